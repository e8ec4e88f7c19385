"""The architectures, by name. Each is one file, imported when it is first built.

>>> model = build("resnet3d", {"depth": 18, "num_classes": 2})
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import OptionError, nearest
from .layers import Backbone, Feature

__all__ = ["ARCHITECTURES", "Backbone", "Feature", "build", "default_options", "option_names", "weight_options"]

ARCHITECTURES: dict[str, str] = {
    "resnet3d": "resnet3d:ResNet3D",
    "p3d": "p3d:P3D",
    "densenet3d": "densenet3d:DenseNet3D",
    "unet3d_genesis": "unet3d_genesis:GenesisUNet3D",
    "segresencoder": "segresnet:SegResEncoder",
    "segresnet_ds": "segresnet:SegResNetDS",
    "segresnet": "segresnet:SegResNet",
    "fcn3d": "fcn3d:FCN3D",
    "unet3d": "unet3d:UNet3D",
    "faster_rcnn3d": "detection:FasterRCNN3D",
}
"""Name -> "module:Class"; the module is one of this package."""


def _find(architecture: str) -> type[Backbone]:
    if architecture not in ARCHITECTURES:
        raise OptionError(
            f"architecture {architecture!r} is not known; nearest: {nearest(architecture, ARCHITECTURES)}; "
            f"allowed: {', '.join(ARCHITECTURES)}"
        )
    module, _, name = ARCHITECTURES[architecture].partition(":")
    found: type[Backbone] = getattr(importlib.import_module(f".{module}", __name__), name)
    return found


def default_options(architecture: str) -> dict[str, Any]:
    """Return all options of an architecture with their defaults, in its own order.

    Raises:
        OptionError: no such architecture.
    """
    return {name: option.default for name, option in inspect.signature(_find(architecture)).parameters.items()}


def option_names(architecture: str) -> tuple[str, ...]:
    """Return the names of all options of an architecture, in its own order."""
    return tuple(default_options(architecture))


def weight_options(architecture: str) -> tuple[str, ...]:
    """Return the options that decide names or shapes of parameters, and so belong to a weight."""
    return _find(architecture).weight_options


def build(architecture: str, options: Mapping[str, Any]) -> Backbone:
    """Return a freshly initialised network.

    Args:
        architecture: one of `ARCHITECTURES`.
        options: its keyword arguments; what is not named has the architecture's default.

    Raises:
        OptionError: no such architecture, an option it does not have, or a value the option does not allow.
    """
    allowed = option_names(architecture)
    unknown = [name for name in options if name not in allowed]
    if unknown:
        near = "; ".join(f"nearest to {name!r}: {nearest(name, allowed)}" for name in unknown)
        raise OptionError(
            f"{architecture} has no option {', '.join(map(repr, unknown))}; {near}; allowed: {', '.join(allowed)}"
        )
    return _find(architecture)(**options)
