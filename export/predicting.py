"""predictor(): whole images in, results out, with the network run from its artifact: `svd_hub.Predictor` elsewhere.

>>> predictor = svd_hub.export.predictor("out/ctorgans")  # or: svd-hub predict out/ctorgans ct.nii.gz --out results
>>> predictor("ct.nii.gz").millilitres
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError, SvdHubError
from ..models.detection.results import Detections
from ..predict.checks import TASKS, label_of
from ..predict.predictor import Predictor
from ..predict.record import Record
from . import artifact
from .artifact import Artifact
from .contract import Arrays
from .exporting import open_runner
from .formats import AXES

AT_ONCE = 4  # windows in a batch, as `ops.blending` takes them


def predictor(
    folder: str | os.PathLike[str], *, at_once: int | None = None, check: bool = True, **options: Any
) -> Predictor:
    """Return a predictor that runs an artifact: files and arrays in, typed results out, as from the network itself.

    Args:
        folder: what `export` wrote, of a classifier, segmenter or detector.
        at_once: windows of a segmenter in one batch; None = as `Predictor`, or 1 where the artifact takes fewer.
        check: hash the files first.
        **options: of the format's runner: `provider` (onnx, triton), `device` (openvino), `threads` (of these).

    Raises:
        OptionError: it is no network that predicts, or it does not take what its images are cut into.
        CheckpointError, IntegrityError: the folder or its files are not what export wrote.
        MissingExtraError: the runtime is not installed.
        SvdHubError: this machine cannot run it.
    """
    found = artifact.read(folder)
    if check:
        artifact.check(found)
    record = record_of(found)
    most = windows_at_once(record, found.manifest["profile"])
    run, note = open_runner(found.format, found.precision, found.folder, check=False, **options)
    if run is None:
        raise SvdHubError(f"{folder} is not run on this machine: {note}")
    label = label_of(record.name, found.manifest["architecture"], record.weights_sha256)
    return Predictor.around(
        in_torch(run, record.task),
        record,
        at_once=most if at_once is None else at_once,
        label=f"{label}-{found.format.name}-{found.precision}",
        dtype=found.precision,
        runtime=run.provider,
        artifact=found.manifest["artifact_sha256"],
    )


def record_of(found: Artifact) -> Record:
    """Return what belongs to the network of an artifact.

    Raises:
        OptionError: it does not predict; says why.
    """
    told, rules = found.manifest, artifact.rules(found)
    if told["kind"] in ("features", "pyramid"):
        raise OptionError(
            f"{found.folder} gives {told['kind']} and no result; allowed: {', '.join(TASKS)}. Next: export the network "
            "with a head, without --features"
        )
    if why := rules["predicts"].get("why_not"):
        raise OptionError(f"{found.folder} cannot be predicted with: {why}")
    named = {name: told[name] for name in ("weights_sha256", "status", "licence")}
    return Record.of({"name": told["entry"], **named, **{key: rules[key] for key in ("preprocess", "inference")},
                      **rules["predicts"]})  # fmt: skip


def in_torch(run: Callable[[np.ndarray], Arrays], task: str) -> Callable[[Tensor], Any]:
    """Return a function of tensors that gives what the network itself does, by one of arrays that gives its outputs.

    Args:
        run: from a batch (N, C, D, H, W), float32, to its outputs by name.
        task: of `predict.checks.TASKS`.
    """

    def network(x: Tensor) -> Any:
        found = run(np.ascontiguousarray(x.numpy()))
        if task != "detection":
            return torch.from_numpy(found["logits"])
        return [
            Detections(*(torch.from_numpy(found[name][k][found["labels"][k] >= 0]) for name in Detections._fields))
            for k in range(len(x))
        ]

    return network


def windows_at_once(record: Record, profile: Mapping[str, Any]) -> int | None:
    """Return how many windows of an image go into a batch, None = as `Predictor` takes them.

    Args:
        record: of the network.
        profile: of the artifact, as its manifest has it.

    Raises:
        OptionError: the network as it is exported does not take what images are cut into.
    """
    smallest, typical, largest = (profile[name] for name in ("smallest", "typical", "largest"))
    if "batch" not in profile["dynamic"] and typical[0] != 1:
        raise OptionError(
            f"batches of {typical[0]} and no other are not allowed where whole images are read: their windows do not "
            "come in whole batches; allowed: an open batch, or one of 1. Next: --dynamic batch,depth,height,width"
        )
    for axis, need in enumerate(_needs(record)):
        low, high = smallest[axis + 2], largest[axis + 2]
        if need is not None and not low <= need <= high:
            raise OptionError(
                f"images are read in pieces of {need} along {AXES[axis + 1]}, and the exported network would take "
                f"{low} to {high}. Next: leave out --shape, --smallest and --largest, or let them hold {need}"
            )
    return None if largest[0] >= AT_ONCE else 1


def _needs(record: Record) -> Sequence[int | None]:
    """Return the sides (D, H, W) that the network is given; None where the image decides."""
    rule, inference = record.preprocess, record.inference
    if record.task == "segmentation":
        return inference.windows(rule.size, rule.minimum)[0]
    if record.task == "detection" and rule.modality != "RGB":
        return (inference.slices, None, None)
    return rule.size or (None, None, None)
