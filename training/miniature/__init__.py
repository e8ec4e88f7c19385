"""Data sets in miniature, each in its real format: seconds to make, seconds to train on.

`svd-hub reproduce RECIPE --tier smoke` makes the one that its recipe reads; the tests of training take the same ones.
What is in them can be learnt in twenty steps: brightness tells a class, objects and organs are brighter than the rest.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import SvdHubError


class Made(NamedTuple):
    """A miniature set: what `--data` is to name, and settings of a recipe for which it is too small."""

    data: Path
    settings: dict[str, Any]


# The data module of a recipe -> where its miniature is made: module, function.
MAKERS = {
    "ImageParquet": ("pictures", "for_recipe"),
    "CocoImages": ("boxes", "photographs_for_recipe"),
    "DeepLesionSlices": ("boxes", "lesions_for_recipe"),
    "LidcNodules": ("nodules", "pairs_for_recipe"),
    "LidcMasks": ("nodules", "pairs_for_recipe"),
    "AcsNodules": ("nodules", "acs_for_recipe"),
    "AcsMasks": ("nodules", "acs_for_recipe"),
    "OrganVolumes": ("organs", "for_recipe"),
    "PairVolumes": ("volumes", "pairs_for_recipe"),
    "OwnVolumes": ("own", "volumes_for_recipe"),
    "OwnMasks": ("own", "masks_for_recipe"),
}


def make(class_path: str, arguments: dict[str, Any], folder: Path) -> Made:
    """Make the miniature set of a recipe's data module.

    Args:
        class_path: of the data module.
        arguments: its own, as the recipe has them; `form` says which of several forms.
        folder: where it goes, not there yet.

    Raises:
        SvdHubError: a data module of which there is no miniature.
    """
    name = class_path.rpartition(".")[2]
    if name not in MAKERS:
        raise SvdHubError(f"there is no miniature set for {class_path}; there is for {', '.join(MAKERS)}. Next: --data")
    module, function = MAKERS[name]
    maker: Callable[[Path, dict[str, Any]], Made] = getattr(importlib.import_module(f".{module}", __name__), function)
    return maker(folder, arguments)
