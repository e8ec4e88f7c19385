"""One small module per origin of weights: what its files look like, and how they become ours.

Adding an origin: a module here with `convert(tensors, options) -> Conversion`, its name in `ORIGINS`, a test with its
documented layout. This door imports no torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..errors import OptionError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from .conversion import Conversion

# Part of the path of every conversion in the cache: raise it when the same file would convert to other bytes.
CONVERTER_VERSION: int = 2
ORIGINS = (
    "svd_hub",
    "svdnet_imagenet",
    "svdnet_coco",
    "svdnet_detector",
    "medicalnet",
    "kinetics",
    "torchvision_video",
    "imagenet_2d",
    "genesis",
    "fmcib",
    "merlin",
    "ctfm",
    "suprem",
)


class Origin(Protocol):
    """What a module of this folder offers."""

    def convert(self, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
        """Return the canonical form of a file's tensors; `options` are the entry's own."""
        ...


def get_origin(name: str) -> Origin:
    """Return the module of origin `name`.

    Raises:
        OptionError: no such origin; the message holds the nearest and all names.
    """
    if name not in ORIGINS:
        raise OptionError(
            f"origin={name!r} is not allowed; nearest: {nearest(name, ORIGINS)}; allowed: {', '.join(ORIGINS)}"
        )
    return cast("Origin", importlib.import_module(f".{name}", __package__))
