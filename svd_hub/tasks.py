"""A loaded backbone becomes the encoder of a task's network.

>>> import svd_hub
>>> backbone = svd_hub.load("resnet3d18w16_tinyimagenet")
>>> model = svd_hub.task_model(backbone, "unet3d", num_classes=4, classes=("background", "liver", "spleen", "kidneys"))

A classifier needs none of this: `svd_hub.load(name, num_classes=2, depth_stride=2)` is the paper's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import models
from .adapt import plain
from .checkpoint import diagnose
from .entry import Entry, Source
from .errors import OptionError
from .inference import Inference
from .models import Backbone
from .preprocess import Preprocess
from .report import LoadReport
from .skeleton import shapes
from .variable_dimension import is_preserved

# Where a backbone strides: no parameter depends on it, and the task's network decides (`BackboneUNet.forms`).
SPATIAL = ("stem_stride", "stem_pool", "pool_stride", "strides", "dilations", "depth_stride", "output_stride")
# What the task's network sets for its encoder.
OUTER = ("in_channels", "num_classes", "features_only", "keep_decoder")
PREFIX = "backbone."


def task_model(
    backbone: Any,
    architecture: str,
    *,
    num_classes: int,
    classes: Sequence[str] = (),
    preprocess: Preprocess | None = None,
    return_report: bool = False,
    **options: Any,
) -> Any:
    """Return a task's network around the weights of a loaded backbone; decoder and head are new.

    The tensors are not copied: training the network changes `backbone` too, whose own head is left where it is. Where
    the encoder strides is the task's: give `encoder_options={"stem_pool": False}` for another form.

    Args:
        backbone: what `svd_hub.load` returned, with or without a head.
        architecture: a network with an encoder: "unet3d", "fcn3d", ...
        num_classes: as the network counts them; the background is one of those of a map.
        classes: their names, or none.
        preprocess: of the task; None = the backbone's own.
        return_report: return (model, LoadReport).
        **options: the network's own; `encoder_options` among them, laid over what the backbone was built with.

    Returns:
        The network, on the backbone's device, in its precision and mode. It carries `.entry`, `.preprocess`,
        `.inference` (set another one for other windows) and `.options`: `svd_hub.save` writes it, and `load` of that
        file rebuilds it alone.

    Raises:
        OptionError: not such a backbone or architecture, or options that do not fit the weights; says what is allowed.
    """
    entry = _entry_of(backbone)
    _check_architecture(architecture)
    if taken := [name for name in ("encoder", "in_channels") if name in options]:
        raise OptionError(
            f"{', '.join(taken)} cannot be given: the backbone decides; allowed: the other options of {architecture}. "
            "Next: load another backbone, or svd_hub.load(..., in_channels=...)"
        )
    if classes and len(classes) != num_classes:
        raise OptionError(f"{len(classes)} classes for num_classes={num_classes}; allowed: one name for each")
    preprocess = _checked_preprocess(preprocess, backbone)
    given = {**_encoder_options(backbone, entry), **_checked_given(options.get("encoder_options"), backbone, entry)}
    asked = {**options, "encoder": entry.architecture, "encoder_options": given}
    asked |= {"in_channels": backbone.in_channels, "num_classes": num_classes}
    network: Any = models.build(architecture, asked)
    # in full, so that a saved network does not depend on what a later release takes for the task's form
    asked["encoder_options"] = dict(getattr(network, "encoder_options", given))
    _fill(network, backbone, entry)
    network.train(backbone.training)
    network.options, network.preprocess, network.inference = asked, preprocess, Inference()
    network.classes = tuple(classes)
    network.entry = dataclasses.replace(
        entry,
        summary=f"{architecture} on {entry.name}",
        architecture=architecture,
        options=asked,
        stored={},
        inflation="",
        parameters=0,
        task=getattr(network, "task", "backbone"),
        outputs="",
        classes=tuple(classes),
        status="derived",
        reason="",
        source=Source(),
        recipe="",
        notes=(),
        preprocess_data=dataclasses.asdict(preprocess),
        inference_data={},
        metrics=(),
        checked="never",
        checked_on="",
    )
    return (network, _report(network, backbone, entry)) if return_report else network


def _entry_of(backbone: Any) -> Entry:
    entry = getattr(backbone, "entry", None)
    if not isinstance(entry, Entry) or not isinstance(backbone, Backbone):
        raise OptionError(f"{type(backbone).__name__} does not come from svd_hub.load; allowed: a backbone that does")
    if "encoder" in models.option_names(entry.architecture):
        raise OptionError(
            f"{entry.name!r} is a {entry.architecture}, a task's network already; allowed: a backbone. Next: "
            "svd_hub.load(FILE, num_classes=...) gives it another head"
        )
    return entry


def _check_architecture(architecture: str) -> None:
    if "encoder" not in models.option_names(architecture):
        tasks = [name for name in models.ARCHITECTURES if "encoder" in models.option_names(name)]
        raise OptionError(
            f"architecture={architecture!r} has no encoder to put a backbone into; allowed: {', '.join(tasks)}. Next: "
            "svd_hub.load(name, num_classes=...) makes a classifier of a backbone"
        )


def _checked_preprocess(preprocess: Preprocess | None, backbone: Any) -> Preprocess:
    if preprocess is None:
        own: Preprocess = backbone.preprocess
        return own
    if not isinstance(preprocess, Preprocess):
        raise OptionError(f"preprocess={preprocess!r} is not allowed; allowed: a svd_hub.Preprocess, or None")
    if preprocess.channels != backbone.in_channels:
        raise OptionError(
            f"preprocess with channels={preprocess.channels} does not fit a backbone of in_channels="
            f"{backbone.in_channels}; allowed: the same. Next: svd_hub.load(..., in_channels=...)"
        )
    return preprocess


def _encoder_options(backbone: Any, entry: Entry) -> dict[str, Any]:
    """Return the options a backbone was built with, but for those that the task decides."""
    names = set(models.option_names(entry.architecture)) - {*SPATIAL, *OUTER}
    return {name: value for name, value in backbone.options.items() if name in names}


def _checked_given(given: Any, backbone: Any, entry: Entry) -> Mapping[str, Any]:
    """Return what the user asks of the encoder, unless it belongs to other weights (or is no table: see `build`)."""
    if not isinstance(given, Mapping):
        if given is None:
            return {}
        raise OptionError(f"encoder_options={given!r} is not allowed; allowed: a table, option -> value")
    defaults = models.default_options(entry.architecture)
    for name in models.weight_options(entry.architecture):
        own = plain(backbone.options.get(name, defaults[name]))
        if name in given and plain(given[name]) != own:
            raise OptionError(
                f"encoder_options with {name}={given[name]!r} do not fit the weights of {entry.name!r}, which are "
                f"{name}={own!r}; allowed: that, and options that change no parameter: {', '.join(SPATIAL)}, ..."
            )
    return given


def _fill(network: Any, backbone: Any, entry: Entry) -> None:
    """Put the backbone's tensors under `backbone.`, all that are wanted and no other."""
    have, want = backbone.state_dict(), network.backbone.state_dict()
    found = {name: have[name] for name in want if name in have}
    if shapes(found) != shapes(want):
        raise OptionError(
            f"{entry.name!r} lacks what the encoder needs: {diagnose(found, shapes(want))}. Next: leave out "
            "encoder_options that add parameters (a stride in layer1), or load the backbone anew"
        )
    like = next(backbone.parameters())
    network.to(device=like.device, dtype=like.dtype)
    network.backbone.load_state_dict(found, strict=True, assign=True)
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    for name, parameter in network.backbone.named_parameters():
        parameter.requires_grad_(name not in frozen)


def _report(network: Any, backbone: Any, entry: Entry) -> LoadReport:
    """Return what was taken over, what is new, and what is left."""
    names, taken = tuple(network.state_dict()), tuple(network.backbone.state_dict())
    left = [name for name in backbone.state_dict() if name not in taken]
    return LoadReport(
        name=entry.name,
        architecture=network.entry.architecture,
        total=len(names),
        matched=tuple(name for name in names if name.startswith(PREFIX)),
        missing=tuple(name for name in names if not name.startswith(PREFIX)),
        renamed={name: PREFIX + name for name in taken},
        dropped=dict.fromkeys(left, "head or decoder of the backbone, no part of the encoder"),
        source=f"the loaded {entry.name}",
        notes=tuple(_notes(network, backbone, entry)),
    )


def _notes(network: Any, backbone: Any, entry: Entry) -> Iterator[str]:
    defaults = models.default_options(entry.architecture)
    before, after = {**defaults, **backbone.options}, {**defaults, **network.options["encoder_options"]}
    for name in SPATIAL:
        if name in defaults and plain(before[name]) != plain(after[name]):
            yield f"the encoder's {name} is {after[name]!r}, the backbone's was {before[name]!r}; no tensor changes"
    if is_preserved(backbone):
        yield "preserve_depth was undone: the encoder strides in depth as its options say"
    if network.preprocess.modality == "RGB":
        yield "the preprocessing is that of pictures, as the backbone was trained: give preprocess= for volumes"
    if network.preprocess.size is not None:
        yield f"the preprocessing makes every input {network.preprocess.size}: give preprocess= for whole volumes"
