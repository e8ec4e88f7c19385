"""Metrics: pure functions on arrays and tensors, and the evaluation of an entry on the split of its recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..errors import OptionError, SvdHubError

T = TypeVar("T")


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the area under the ROC curve: P(score of a positive > score of a negative), ties count one half.

    Raises:
        OptionError: one of the two classes is missing, a score is not finite, or they are not one label per score.
    """
    score, label = np.asarray(scores, dtype=float), np.asarray(labels)
    if score.ndim != 1 or score.shape != label.shape or not np.isin(label, (0, 1)).all():
        raise OptionError(f"scores {score.shape}, labels {label.shape} are not allowed; allowed: (N,), labels 0 or 1")
    if not np.isfinite(score).all():
        raise OptionError(f"{int((~np.isfinite(score)).sum())} of {len(score)} scores are not finite")
    label = label.astype(bool)
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        raise OptionError(f"AUC needs both classes; found {positives} positives and {negatives} negatives")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


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
    from .console import bar

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
    module.setup("validate")
    labels, logits = [], []
    with torch.inference_mode():
        for some in batched(bar(module.examples(), "evaluating", total=len(module.val_set)), batch):
            logits.append(model(torch.cat([model.preprocess(**example) for example, _ in some])))
            labels += [label for _, label in some]
    metrics = classification_metrics(torch.cat(logits), torch.tensor(labels))
    return {
        "name": name,
        "sha256": report.sha256,
        "examples": len(labels),
        "metrics": metrics,
        "card": {m.name: m.value for m in model.entry.metrics if m.made_by == source},
    }
