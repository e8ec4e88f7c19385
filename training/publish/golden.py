"""A golden input and what the released weights make of it: anybody can see that the file computes what it did here.

`NAME.golden.safetensors` holds `input`, and `output` of a classifier or a segmenter. Of a detector it holds the boxes
of one image, strongest first: `boxes` (K, 4) in pixels, `scores` and `labels` (K,), as the network finds them with
`score_threshold=0`, so that there are some whatever it was trained on; its record says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import checkpoint, models
from ...errors import OptionError, SvdHubError
from ...inference import Inference
from ...ops import iou_matrix
from ...preprocess import Preprocess

SEED = 20260
BOXES = 20  # of a detector's golden output; those behind them are too weak to say much
SIDE = 128  # pixels of a detector's image: two cells of its coarsest map
EVERY_BOX: Mapping[str, Any] = {"score_threshold": 0.0}
# How far an output may be from the golden one; see `moved`.
SAME = 1e-3  # another machine, other threads
ROUNDING = 1e-2  # half precision: twenty times the 2^-11 of one rounding, for the layers that add up

Outputs = dict[str, Tensor]


def file_of(folder: Path, name: str) -> Path:
    """Return where the golden pair of a release lies."""
    return folder / f"{name}.golden.safetensors"


def golden_input(preprocess: Preprocess, *, task: str = "", slices: int = 0) -> Tensor:
    """Return a reproducible input (N, C, D, H, W) of a network: smooth noise, so that every layer has work to do.

    Two of the entry's size; where it takes whole volumes, whose output is a map as large as they are, one small one;
    for a detector one image of `slices` planes.
    """
    generator = torch.Generator().manual_seed(SEED)
    count, size = 2, preprocess.size
    if task == "detection":
        count, size = 1, (3 if preprocess.modality == "RGB" else slices, SIDE, SIDE)
    elif size is None:
        whole = preprocess.modality in ("CT", "MR")
        count, size = (1, (16, 32, 32)) if whole else (2, (3, 64, 64))
    d, h, w = size
    coarse = torch.randn(count, preprocess.channels, max(1, d // 4), h // 4, w // 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(d, h, w), mode="trilinear").half().float()


def input_of(record: Mapping[str, Any]) -> Tensor:
    """Return the golden input of the network of a record."""
    slices = Inference.of(record.get("inference", {}), "the run").slices
    return golden_input(Preprocess(**record["preprocess"]), task=str(record.get("task", "")), slices=slices)


def network_of(architecture: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """Return a network for its golden output: single precision, in evaluation, a detector with all its boxes."""
    every = EVERY_BOX if "score_threshold" in models.option_names(architecture) else {}
    model = models.build(architecture, {**options, **every})
    model.load_state_dict(checkpoint.to_float32(tensors)[0])
    return model.eval()


def output_of(model: Any, x: Tensor) -> Outputs:
    """Return what a network makes of the golden input.

    Raises:
        SvdHubError: nothing, everywhere the same, or no finite numbers: no output that could be compared.
    """
    with torch.inference_mode():
        found = model(x)
    if isinstance(found, Tensor):
        made = {"output": found}
        says = found.numel() > 1 and float(found.float().std()) > 0
    elif isinstance(found, list) and hasattr(found[0], "boxes"):
        boxes = found[0]
        made = {key: getattr(boxes, key) for key in ("boxes", "scores", "labels")}
        says = len(boxes.scores) > 0 and float(boxes.scores.max()) > 0
    else:
        raise SvdHubError(f"a network that returns {type(found).__name__} has no golden output; allowed: maps, boxes")
    finite = all(bool(tensor.isfinite().all()) for tensor in made.values())
    if not finite or not says:
        what = "the same everywhere, or no box" if finite else "NaN or infinite"
        raise SvdHubError(
            f"there is no golden output: what these weights make of the golden input is {what}. Next: a run that "
            "did not diverge"
        )
    return {key: tensor.clone() for key, tensor in made.items()}


def moved(found: Mapping[str, Tensor], golden: Mapping[str, Tensor]) -> float:
    """Return how far an output is from the golden one, 0 = equal.

    Of maps, the largest difference over the largest golden value. Of boxes, for each golden one the nearest that was
    found of its label: one less IoU, or the difference in score over the highest golden score, whichever is larger; the
    largest of these. The order of boxes says nothing, and one that was found besides counts for nothing: scores that
    nearly agree may swap.

    Raises:
        SvdHubError: they are of different kinds or shapes.
    """
    if "output" in golden and "output" in found and found["output"].shape == golden["output"].shape:
        largest = float(golden["output"].abs().max())
        return float((found["output"].float() - golden["output"].float()).abs().max()) / largest
    if "boxes" not in golden or "boxes" not in found:
        shapes = [{key: tuple(tensor.shape) for key, tensor in one.items()} for one in (found, golden)]
        raise SvdHubError(f"outputs {shapes[0]} cannot be compared with golden ones {shapes[1]}")
    if not len(found["boxes"]):
        return 1.0
    apart = 1 - iou_matrix(golden["boxes"].float(), found["boxes"].float())
    scores, highest = golden["scores"].float(), float(golden["scores"].max())
    apart = apart.maximum((scores[:, None] - found["scores"].float()).abs() / highest)
    same = golden["labels"][:, None] == found["labels"]
    return float(apart.where(same, torch.ones(())).amin(1).max())


def write(folder: Path, name: str, x: Tensor, output: Outputs) -> None:
    """Write the golden pair of a release."""
    asked = dict(EVERY_BOX) if "boxes" in output else {}
    kept = {key: tensor[:BOXES] if asked else tensor for key, tensor in output.items()}
    checkpoint.write(file_of(folder, name), {"input": x.half(), **kept}, {"entry": name, "options": asked})


def check(folder: Path, name: str) -> float:
    """Return how far the released file of a folder is from its golden output, loaded as a user loads it.

    Raises:
        SvdHubError: there is no golden output, or it is not that of the file.
    """
    from ...hub import load

    file, weights = file_of(folder, name), folder / f"{name}.safetensors"
    if not file.is_file():
        raise SvdHubError(f"{file.name} is missing: nothing shows what {weights.name} computes. Next: publish the run")
    read = checkpoint.read(file)
    golden, options = dict(read.tensors), checkpoint.unpack_metadata(read.metadata).get("options", {})
    try:
        x = golden.pop("input").float()
        found = output_of(load(weights, **options), x)
    except (KeyError, OptionError) as error:
        raise SvdHubError(f"{file.name} is no golden pair of {weights.name}: {error}. Next: publish the run") from error
    if (far := moved(found, golden)) > SAME:
        raise SvdHubError(
            f"{weights.name} does not give the golden output of {file.name}: it is {far:.2g} away, allowed: {SAME:g}. "
            "Next: publish the run again; files of two releases do not belong together"
        )
    return far
