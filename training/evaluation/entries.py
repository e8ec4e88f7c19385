"""An entry measured again: on the evaluation split of its recipe, through its own preprocessing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...errors import SvdHubError
from ...metrics import confusion
from ...ops.blending import whole
from .boxes import detection_metrics, stored
from .classification import classification_metrics
from .segmentation import segmentation_metrics

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`, the last one shorter; itertools can do it from Python 3.12 on."""
    items = iter(items)
    while some := list(islice(items, size)):
        yield some


def evaluate_entry(
    name: str,
    *,
    data: Path | None = None,
    recipe: str | None = None,
    settings: Mapping[str, Any] | None = None,
    batch: int = 64,
) -> dict[str, Any]:
    """Return the metrics of an entry on the evaluation split of its recipe, through its own preprocessing.

    Args:
        name: an entry; a run folder or its result, whose recipe is known; or another `.safetensors` file and `recipe`.
        data: the data set's folder.
        recipe: whose evaluation split; None = the entry's own.
        settings: keys of the recipe to change, {"data.init_args.evaluated": "test"}.
        batch: images at a time.

    Raises:
        SvdHubError: the entry has no recipe with data, or classes of other names.
    """
    from ... import hub
    from .. import recipe as recipes
    from ..folder import result_of

    name, run = result_of(name)
    model, report = hub.load(name, return_report=True)
    source = recipe or run or model.entry.recipe
    if not source:
        raise SvdHubError(
            f"{name!r} has no recipe whose data it could be evaluated on. Next: --recipe NAME --data FOLDER"
        )
    overrides = {**(settings or {}), **({"data.init_args.folder": str(data.absolute())} if data is not None else {})}
    read = recipes.read(source, overrides)
    module = read.make_data()
    classes, outputs = len(module.class_names()), model.options["num_classes"]
    if model.options.get("features_only") or (classes and outputs != classes):
        raise SvdHubError(
            f"{name!r} has {outputs} outputs, the data of recipe {source!r} have {classes} classes. "
            "Next: give the recipe these weights were trained by"
        )
    own, asked = model.entry.classes, module.class_names()
    if own and asked and tuple(own) != tuple(asked):
        raise SvdHubError(
            f"the outputs of {name!r} are {', '.join(own)}, the classes of the data {', '.join(asked)}. Next: data "
            "with the same names in the same order"
        )
    task = getattr(model, "task", "")
    if task == "detection":
        count, metrics, more = _detected(model, module)
    elif task == "segmentation":
        count, metrics, more = _segmented(model, module)
    else:
        count, metrics, more = _classified(model, module, batch)
    return {
        "name": name,
        "sha256": report.sha256,
        "recipe": recipes.read(source).name,
        "split": _split(module, task),
        "examples": count,
        "metrics": metrics,
        "card": {m.name: m.value for m in model.entry.metrics if m.made_by in (source, read.name)},
        **more,
    }


def _split(module: Any, task: str) -> str:
    """Return in words what was evaluated on."""
    if task == "detection":
        return "test"
    folds = getattr(module, "val_folds", None) or getattr(module, "folds", {}).get(False, ())
    lists = getattr(module, "split", "")  # of two lists, train and test, in a form that has a name
    named = getattr(getattr(module, "division", module), "evaluated", "") or getattr(module, "val_split", "")
    if folds:
        return f"folds {', '.join(map(str, folds))}"
    return f"{named or ('test' if lists else 'val')}{f' ({lists})' if lists else ''}"


Found = tuple[int, dict[str, float], dict[str, Any]]  # examples, metrics, what else there is to say


def _classified(model: Any, module: Any, batch: int) -> Found:
    from ..console import bar

    module.setup("validate")
    labels, logits = [], []
    with torch.inference_mode():
        for some in batched(bar(module.examples(), "evaluating", total=len(module.val_set)), batch):
            logits.append(model(torch.cat([model.preprocess(**example) for example, _ in some])))
            labels += [label for _, label in some]
    return len(labels), classification_metrics(torch.cat(logits), torch.tensor(labels)), {}


def _segmented(model: Any, module: Any) -> Found:
    """Whole patients, by the entry's windows; "cases" has each of them."""
    from ..console import bar

    classes, organs = len(module.class_names()), module.class_names()[1:]
    counts, known, cases = [], [], {}
    window, stride = model.inference.windows(model.preprocess.size, model.preprocess.minimum)
    with torch.inference_mode():
        for example, case in bar(module.examples(), "evaluating", total=len(module.val_cases)):
            x = model.preprocess(**example)
            given = whole(model, x, window=window, stride=stride, blend=model.inference.blend).argmax(1)[0]
            counts.append(confusion(fitted_back(given, case.target.shape), case.target, classes))
            known.append(case.known.numpy())
            cases[case.name] = segmentation_metrics(counts[-1][None], known[-1][None], organs)
    return len(counts), segmentation_metrics(np.stack(counts), np.stack(known), organs), {"cases": cases}


def _detected(model: Any, module: Any) -> Found:
    """The test split, image by image, each resized as in the run."""
    from ..console import bar
    from ..data.boxes import resized

    module.setup("test")
    found, truth = [], []
    with torch.inference_mode():
        for example, true in bar(module.examples("test"), "evaluating", total=len(module.test_set)):
            x, scale = resized(model.preprocess(**example)[0], module.eval_size)
            found += [stored(one, scale) for one in model(x[None])]
            truth.append(true)
    one_class = len(module.class_names()) == 1
    return len(truth), detection_metrics(found, truth, ("ap", "froc") if one_class else ("ap",)), {}


def fitted_back(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Return the middle (D, H, W) of what `Preprocess` padded about its centre."""
    starts = [(now - side) // 2 for now, side in zip(x.shape, sides, strict=True)]
    return x[tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))]
