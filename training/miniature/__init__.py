"""Data sets in miniature, each in its real format: seconds to make, seconds to train on.

`svd-hub reproduce RECIPE --tier smoke` makes the one that its recipe reads; the tests of training take the same ones.
What is in them can be learnt in twenty steps: brightness tells a class, objects and organs are brighter than the rest.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import SvdHubError

CSV = "my.csv"  # of sets that are a table
# The data module of a recipe, with its form where it has several -> what makes its miniature: module, function.
MAKERS = {
    "ImageParquet": ("pictures", "image_set"),
    "CocoImages": ("boxes", "coco_set"),
    "DeepLesionSlices.json": ("boxes", "lesion_set"),
    "DeepLesionSlices.nih": ("boxes", "lesion_set"),
    "LidcNodules": ("nodules", "pair_set"),
    "LidcMasks": ("nodules", "pair_set"),
    "AcsNodules": ("nodules", "acs_set"),
    "AcsMasks": ("nodules", "acs_set"),
    "OrganVolumes": ("organs", "organ_set"),
    "PairVolumes.decathlon": ("volumes", "decathlon"),
    "PairVolumes.lits": ("volumes", "lits"),
    "OwnVolumes": ("own", "labelled"),
    "OwnMasks": ("own", "masked"),
}


class Made(NamedTuple):
    """A miniature set: what `--data` is to name, and the settings of a recipe for which it is too small."""

    data: Path
    settings: dict[str, Any]


def make(class_path: str, form: str | None, folder: Path) -> Made:
    """Make the miniature set of a recipe's data module, whole or not at all; one that is there is taken as it is.

    Args:
        class_path: of the data module.
        form: which of its forms, where it has several.
        folder: where the set goes.

    Raises:
        SvdHubError: there is no miniature of it.
    """
    name = class_path.rpartition(".")[2] + (f".{form}" if form else "")
    if name not in MAKERS:
        raise SvdHubError(f"there is no miniature of {name}; there is of {', '.join(MAKERS)}. Next: --data FOLDER")
    module, function = MAKERS[name]
    room = importlib.import_module(f".{module}", __name__)
    if not folder.is_dir():
        maker: Callable[[Path], Path] = getattr(room, function)
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        maker(part)
        part.rename(folder)
    table = folder / CSV
    return Made(table if table.is_file() else folder, getattr(room, "SETTINGS", {}).get(function, {}))
