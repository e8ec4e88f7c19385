"""What is written of one prediction into a folder: JSON, mask or table, DICOM, a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, VolumeError, check_choice
from ..files import write_atomic
from ..preprocess import Preprocess
from ..volume import write_mask
from . import dicom_out
from .pictures import picture
from .results import Detection, Prediction, Segmentation

MASKS = ("nii.gz", "nii", "nrrd", "mha")
RESULT, PICTURE = "result.json", "picture.png"


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Which files there shall be.

    Attributes:
        mask: the format of masks, one of `MASKS`.
        dicom: a DICOM object (SEG of a mask, SR of findings) where the input is DICOM.
        picture: a PNG.
    """

    mask: str = "nii.gz"
    dicom: bool = True
    picture: bool = True

    def __post_init__(self) -> None:
        check_choice("mask", self.mask, MASKS)


def write(
    result: Prediction, folder: Path, rule: Preprocess, want: Outputs, *, made: Mapping[str, Any] | None = None
) -> list[str]:
    """Write the files of a prediction, `result.json` last, and return what is to be said of them.

    Args:
        result: what a `Predictor` gave.
        folder: is there, and empty.
        rule: the preprocessing, whose window the picture shows.
        want: which files.
        made: when, with what and on what the result was made, for `result.json`.

    Raises:
        OSError: the disk is full, the folder read-only.
        MissingExtraError: a picture or DICOM object is wanted, and its library is not installed.
    """
    notes: list[str] = []
    if isinstance(result, Segmentation):
        write_mask(result.labels, result.scan, folder / f"mask.{want.mask}")
    if isinstance(result, Detection):
        write_atomic(folder / "findings.csv", _table(result))
    if want.dicom and dicom_out.can_refer(result):
        if isinstance(result, Segmentation):
            notes += _try(lambda: dicom_out.segmentation(result), folder / "mask.dcm")
        elif isinstance(result, Detection):
            notes += _try(lambda: dicom_out.report(result), folder / "findings.dcm")
    if want.picture:
        write_atomic(folder / PICTURE, picture(result, rule))
    facts = result.facts()
    facts["notes"] += notes
    if made is not None:
        facts["made"] = dict(made)
    facts["files"] = sorted(path.name for path in folder.iterdir() if path.name != RESULT)
    write_atomic(folder / RESULT, (json.dumps(facts, indent=1) + "\n").encode())
    return notes


def _try(make: Callable[[], tuple[bytes, list[str]]], path: Path) -> list[str]:
    """Write a DICOM object, or say why there is none: the other files are the result all the same."""
    try:
        content, notes = make()
    except MissingExtraError:
        raise
    except VolumeError as error:
        return [f"no {path.name}: {error}"]
    write_atomic(path, content)
    return notes


def _table(result: Detection) -> bytes:
    """Return the findings as CSV, a row each."""
    file = io.StringIO()
    box = ("x0", "y0", "x1", "y1")
    places = [f"{kind}_{end}_{axis}_mm" for kind in ("box", "extent") for end in ("low", "high") for axis in "xyz"]
    volume = result.volume is not None
    names = ["finding", "class", "score", *(f"{side}_px" for side in box)]
    names += ["slice", "first_slice", "last_slice", *places] if volume else []
    table = csv.writer(file, lineterminator="\n")
    table.writerow(names)
    for row in result.rows():
        cells = [row["finding"], row["class"], row["score"], *row["box_px"]]
        if volume:
            corners = [*row["box_mm_lps"], *row["extent_mm_lps"]]
            cells += [row["slice"], *row["slices"], *(n for corner in corners for n in corner)]
        table.writerow(cells)
    return file.getvalue().encode()
