"""Metrics: pure functions on arrays and tensors, and the evaluation of an entry on the split of its recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import SvdHubError
from ..metrics import auc as auc
from ..metrics import confusion, dice_of

T = TypeVar("T")
Triple = tuple[int, int, int]


def classification_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return loss and top-1 (and top-5 with more than 5 classes, AUC with 2) of (N, K) logits and (N,) labels."""
    loss = torch.nn.functional.cross_entropy(logits.float(), labels)
    order = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = order == labels[:, None]
    metrics = {"loss": float(loss), "top1": float(hits[:, 0].float().mean())}
    if logits.shape[1] > 5:
        metrics["top5"] = float(hits.any(1).float().mean())
    if logits.shape[1] == 2 and 0 < int(labels.sum()) < len(labels):
        metrics["auc"] = auc((logits[:, 1] - logits[:, 0]).cpu().numpy(), labels.cpu().numpy())
    return metrics


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`, the last one shorter; itertools can do it from Python 3.12 on."""
    items = iter(items)
    while some := list(islice(items, size)):
        yield some


def sliding_window(network: Any, x: Tensor, *, window: Triple, overlap: float = 0.5, pad: float = 0.0) -> Tensor:
    """Return the logits (N, K, D, H, W) of whole volumes, blended from windows with Gaussian weights (MONAI).

    Args:
        network: from (n, C, *window) to logits of the same sides.
        x: (N, C, D, H, W); padded about its centre with `pad` where it is smaller than a window.
        window: (D, H, W).
        overlap: of neighbouring windows, a share of the window.
        pad: the value of padding.
    """
    from monai.inferers import sliding_window_inference

    result: Any = sliding_window_inference(
        x, window, 1, network, overlap=overlap, mode="gaussian", padding_mode="constant", cval=pad
    )
    return result


def segmentation_metrics(counts: np.ndarray, known: np.ndarray, organs: Sequence[str]) -> dict[str, float]:
    """Return Dice of each organ, the mean over the patients that have it annotated, and "dice", the mean over organs.

    Args:
        counts: (N, K, K) confusion matrices, one a patient; class 0 is the background and has no Dice here.
        known: (N, K), True where that patient has that class annotated; elsewhere nothing is known of it.
        organs: names of the classes 1 to K - 1.
    """
    values = np.where(known, dice_of(counts), np.nan)[:, 1:]
    found = {
        f"dice_{organ}": float(np.nanmean(column))
        for organ, column in zip(organs, values.T, strict=True)
        if not np.isnan(column).all()
    }
    return {"dice": sum(found.values()) / len(found), **found} if found else {}


def evaluate_entry(
    name: str, *, data: Path | None = None, recipe: str | None = None, batch: int = 64
) -> dict[str, Any]:
    """Return the metrics of an entry on the evaluation split of its recipe, through its own preprocessing.

    Args:
        name: an entry, or a `.safetensors` file together with `recipe`.
        data: the data set's folder.
        recipe: whose evaluation split; None = the entry's own.

    Raises:
        SvdHubError: the entry has no recipe with data.
    """
    from .. import hub
    from . import recipe as recipes
    from .detection_metrics import evaluate_detector

    model, report = hub.load(name, return_report=True)
    source = recipe or model.entry.recipe
    if not source:
        raise SvdHubError(
            f"{name!r} has no recipe whose data it could be evaluated on. Next: --recipe NAME --data FOLDER"
        )
    overrides = {"data.init_args.folder": str(data.absolute())} if data is not None else {}
    module = recipes.read(source, overrides).make_data()
    classes, outputs = len(module.class_names()), model.options["num_classes"]
    if model.options.get("features_only") or (classes and outputs != classes):
        raise SvdHubError(
            f"{name!r} has {outputs} outputs, the data of recipe {source!r} have {classes} classes. "
            "Next: give the recipe these weights were trained by"
        )
    task = getattr(model, "task", "")
    if task == "detection":
        count, metrics, more = (*evaluate_detector(model, module), {})
    elif task == "segmentation":
        count, metrics, more = _segmented(model, module)
    else:
        count, metrics, more = _classified(model, module, batch)
    return {
        "name": name,
        "sha256": report.sha256,
        "examples": count,
        "metrics": metrics,
        "card": {m.name: m.value for m in model.entry.metrics if m.made_by == source},
        **more,
    }


Found = tuple[int, dict[str, float], dict[str, Any]]  # examples, metrics, what else there is to say


def _classified(model: Any, module: Any, batch: int) -> Found:
    from .console import bar

    module.setup("validate")
    labels, logits = [], []
    with torch.inference_mode():
        for some in batched(bar(module.examples(), "evaluating", total=len(module.val_set)), batch):
            logits.append(model(torch.cat([model.preprocess(**example) for example, _ in some])))
            labels += [label for _, label in some]
    return len(labels), classification_metrics(torch.cat(logits), torch.tensor(labels)), {}


def _segmented(model: Any, module: Any) -> Found:
    """Whole patients, by windows of the least size that the preprocessing gives; "cases" has each of them."""
    from .console import bar

    classes, organs = len(module.class_names()), module.class_names()[1:]
    counts, known, cases = [], [], {}
    with torch.inference_mode():
        for example, case in bar(module.examples(), "evaluating", total=len(module.val_cases)):
            x = model.preprocess(**example)
            given = sliding_window(model, x, window=model.preprocess.minimum).argmax(1)[0]
            counts.append(confusion(fitted_back(given, case.target.shape), case.target, classes))
            known.append(case.known.numpy())
            cases[case.name] = segmentation_metrics(counts[-1][None], known[-1][None], organs)
    return len(counts), segmentation_metrics(np.stack(counts), np.stack(known), organs), {"cases": cases}


def fitted_back(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Return the middle (D, H, W) of what `Preprocess` padded about its centre."""
    starts = [(now - side) // 2 for now, side in zip(x.shape, sides, strict=True)]
    return x[tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))]
