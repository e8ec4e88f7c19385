"""What a classifier starts from: a backbone, or the encoder of a segmenter or a detector under a new head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ...catalog import get_entry
from ...checkpoint import diagnose
from ...entry import Entry
from ...errors import OptionError
from ...models import build, default_options, option_names
from ...saved import entry_of_file
from ...skeleton import shapes

TAKEN = ("num_classes", "in_channels")  # of a recipe's options, where these are of another architecture
# Segmenters with the encoder of another architecture, whose names its tensors have: the prefix of them, and what it
# takes of the options. Others say their encoder by an option.
SHARED = {"segresnet_ds": ("segresencoder", "encoder.", ("init_filters", "blocks_down", "norm"))}


def classifier_from(init: str, architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """Return a classifier of whole images that starts from `init`.

    A U-Net that can have classes of the image has them. Of other segmenters and of detectors the encoder is taken, in
    the form it was trained in, with a new head; the rest of their weights is left.

    Args:
        init: an entry, or a file that `svd_hub.save` wrote.
        architecture: what `options` belong to; a network of another one takes `TAKEN` of them alone.
        options: of the network.

    Raises:
        SvdHubError: no such entry, or one that cannot become a classifier.
    """
    from ...hub import load

    path = Path(init)
    entry = entry_of_file(path) if path.suffix == ".safetensors" else get_entry(init)
    few = {name: value for name, value in options.items() if name in TAKEN}
    names = option_names(entry.architecture) if entry.architecture else ()  # without one, `load` says why
    if "image_classes" in names:
        return load(init, **few, image_classes=True)
    if "encoder" in names or entry.architecture in SHARED:
        return _encoder(init, entry, architecture, options)
    if "keep_decoder" in names:
        raise OptionError(
            f"init={init!r} is a {entry.architecture}, a segmenter whose encoder is no network of the hub on its own; "
            "allowed for classes of a whole image: a backbone, or a segmenter on one. Next: svd-hub list --task "
            "backbone"
        )
    return load(init, **(options if entry.architecture == architecture else few))


def _encoder(init: str, entry: Entry, architecture: str, options: Mapping[str, Any]) -> nn.Module:
    """Return the encoder of a trained network with a new head; it carries `.entry` and `.options` as `load` gives."""
    from ...hub import load

    whole = load(init, **{key: value for key, value in options.items() if key == "in_channels"})
    name, form, tensors = _parts(whole, entry.architecture)
    asked = options if name == architecture else {key: value for key, value in options.items() if key in TAKEN}
    made: Any = build(name, {"in_channels": whole.in_channels, **form, **asked})
    have, want = made.state_dict(), shapes(made.state_dict())
    heads = (made.head,) if isinstance(made.head, str) else tuple(made.head)
    found = {**{key: value for key, value in have.items() if key.startswith(heads)}, **tensors}
    if shapes(found) != want:
        raise OptionError(
            f"init={init!r}: its encoder is not the {name} that {dict(asked)} ask for: {diagnose(found, want)}. Next: "
            "leave out options of network.options that change parameters, or take another init"
        )
    made.load_state_dict(found)
    made.options = {"in_channels": whole.in_channels, **form, **asked}
    made.entry = dataclasses.replace(entry, architecture=name, options=made.options, stored={}, inflation="")
    return made


def _parts(whole: Any, architecture: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the encoder's architecture, its options, and its tensors by the names they have there."""
    if architecture in SHARED:
        name, prefix, taken = SHARED[architecture]
        form = {option: whole.options[option] for option in taken if option in whole.options}
        return name, form, {key: value for key, value in whole.state_dict().items() if key.startswith(prefix)}
    default = default_options(architecture)["encoder"]
    return whole.options.get("encoder", default), dict(whole.encoder_options), dict(whole.backbone.state_dict())
