"""Whether a network can be predicted with, on which device, and what its labels are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..catalog import all_entries
from ..errors import OptionError
from ..inference import Inference
from ..preprocess import Preprocess

TASKS = ("classification", "segmentation", "detection")


def task_of(model: Any) -> str:
    """Return what a loaded network does.

    Raises:
        OptionError: none of the three tasks, or on images that predict does not read.
    """
    name, rule = model.entry.name, model.preprocess
    task = getattr(model, "task", model.entry.task)
    if model.options.get("features_only") or not model.options.get("num_classes"):
        raise _headless(name, task)
    task = task if task in TASKS else "classification"  # a backbone with a head, as `svd_hub.save` has it
    if rule.modality == "video":
        raise OptionError(
            f"{name!r} reads video clips, which predict does not; allowed: photographs, CT, MR. Next: "
            "model(model.preprocess(clip)) in Python"
        )
    if task == "segmentation" and (rule.modality == "RGB" or rule.fit != "crop"):
        what = "of photographs" if rule.modality == "RGB" else "of volumes that are resized whole"
        raise OptionError(
            f"{name!r} is a segmenter {what}, which predict does not run; allowed: CT or MR in windows. Next: build it "
            'with svd_hub.task_model(..., preprocess=svd_hub.Preprocess(modality="CT", window=(-150, 250))), or train '
            "it with such a rule"
        )
    if task == "detection":
        _check_detector(rule, name)
    return str(task)


def check_entry(name: str) -> None:
    """Refuse a name of the catalogue whose weights have no head, before they are fetched; other names pass.

    Raises:
        OptionError: see above.
    """
    entry = all_entries().get(name)
    if entry is not None and entry.architecture and not entry.options.get("num_classes", 1):
        raise _headless(name, entry.task)


def _headless(name: str, task: str) -> OptionError:
    return OptionError(
        f"{name!r} has no head: it is a {task} to fine-tune, not a network to predict with; allowed: "
        f"{', '.join(TASKS)}. Next: svd-hub list --task segmentation, or fine-tune it with a head"
    )


def _check_detector(rule: Preprocess, name: str) -> None:
    """A detector reads slices as they are stored: what of its rule would be passed over is refused."""
    passed = [key for key in ("spacing", "short_side", "size") if getattr(rule, key) is not None]
    passed += ["statistics"] if rule.statistics != "fixed" else []
    passed += ["orientation"] if rule.orientation not in (None, "SPL") else []
    if passed:
        raise OptionError(
            f"the preprocessing of {name!r} has {', '.join(f'{key}={getattr(rule, key)!r}' for key in passed)}, which "
            "does not fit a detector: it reads slices as they are; allowed: window, scale, mean, std, and "
            "Inference(side=...) for their size. Next: svd_hub.task_model(..., preprocess=...) with such a record"
        )


def label_of(name: str, architecture: str, sha256: str) -> str:
    """Return what results call a network; a file's own name says nothing, as every run has a model.safetensors.

    Args:
        name, architecture: of its entry.
        sha256: of the weights, "" for a network in memory.
    """
    if not sha256 or name in all_entries():
        return name
    return f"own-{architecture}-{sha256[:8]}"


def class_names(model: Any, task: str) -> tuple[str, ...]:
    """Return the names of labels; with classes of their own ("sigmoid") there is one more, none of them.

    Raises:
        OptionError: a segmenter of one map, or a class to keep the largest part of that is none.
    """
    entry, rule = model.entry, model.inference
    count = model.options["num_classes"]
    apart = task == "segmentation" and rule.activation == "sigmoid"
    if task == "segmentation" and count == 1 and not apart:
        raise OptionError(
            f"{entry.name!r} makes one map, which is no segmentation (Models Genesis restores patches). Next: "
            "fine-tune it with num_classes=2, or set Inference(activation='sigmoid') where the map is a mask"
        )
    own: Sequence[str] = entry.classes if len(entry.classes) == count else ()
    first = 1 if apart else 0
    names = (*(("background",) if apart else ()), *(own or (f"class{k}" for k in range(first, first + count))))
    if task == "segmentation":
        _check_largest(rule, entry.name, names)
    return names


def _check_largest(rule: Inference, name: str, classes: Sequence[str]) -> None:
    for part in rule.largest:
        if part not in classes[1:]:
            raise OptionError(f"largest={part!r} is no class of {name!r}; allowed: {', '.join(classes[1:])}")


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of a name; "auto" = CUDA where there is one.

    Raises:
        OptionError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise OptionError(f"device={name!r} is not allowed; allowed: auto, cpu, cuda, cuda:N, mps") from None
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(device.type, False):
        raise OptionError(f"device={str(name)!r} is not on this machine. Next: device='cpu', or 'auto'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device={str(name)!r} is not on this machine; it has {torch.cuda.device_count()} of CUDA")
    return device
