"""The series of a folder: found, listed without a word about the patient, and one of them chosen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import VolumeError
from . import streams
from .dicom import Header, read_header
from .grid import Floats3, Triple
from .stack import stack

MODALITIES = ("CT", "MR", "PT", "NM")  # images with a place in the patient
_FILES = 100_000
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Series:
    """One DICOM series of a folder. Neither a name nor a description: those are free text, often with a patient in it.

    Attributes:
        uid: SeriesInstanceUID.
        number: SeriesNumber, None where it is not stated.
        modality: as DICOM says it: "CT", "MR", "SEG", ...
        slices: its images.
        size: voxels (z, y, x) of the volume, None where it is none.
        spacing: mm (z, y, x), None where it is no volume.
        patient: which patient of the folder, counted from 1.
        problem: why it cannot be read as a volume, or "".
    """

    uid: str
    number: int | None
    modality: str
    slices: int
    size: Triple | None
    spacing: Floats3 | None
    patient: int
    problem: str = ""

    def __str__(self) -> str:
        number = "no number" if self.number is None else f"number {self.number}"
        shape = ""
        if self.size and self.spacing:
            spacing = " x ".join(f"{s:.4g}" for s in self.spacing)
            shape = f", {' x '.join(map(str, self.size))} at {spacing} mm"
        return f"{number}, {self.modality or 'no modality'}, {self.slices} image(s){shape}"


def headers_in(folder: Path) -> list[Header]:
    """Return what every DICOM file of a folder and the folders inside it says.

    Links to files are followed, links to folders are not (they can form a ring). Other files are passed over.

    Raises:
        VolumeError: no DICOM file, one that is damaged or cannot be opened, or too many files.
    """
    found, damaged, others = [], 0, 0
    for path in _files(folder):
        try:
            header = read_header(path)
        except streams.NotAFileError:
            header = None
        except streams.UnopenedError:  # a broken link, as git-annex leaves it, or a file of somebody else
            raise VolumeError(
                "a file of the folder cannot be opened (a broken link, no permission): it could be a slice. "
                "Next: bring it here, or take it out"
            ) from None
        except VolumeError as error:
            damaged += 1
            problem = str(error)
            continue
        if header is None:
            others += 1
        else:
            found.append(header)
    if damaged:
        raise VolumeError(f"{damaged} of {damaged + len(found)} DICOM files of the folder are not usable: {problem}")
    if not found:
        raise VolumeError(
            f"{folder} holds no DICOM file ({others} other file(s)); allowed: a folder of DICOM files, or one NIfTI, "
            "NRRD or MetaImage file. Next: give the file itself"
        )
    return found


def _files(folder: Path) -> Iterator[Path]:
    count = 0
    for root, folders, names in os.walk(folder, onerror=_closed):
        folders.sort()
        for name in sorted(names):
            count += 1
            if count > _FILES:
                raise VolumeError(f"the folder holds more than {_FILES} files. Next: give the folder of one series")
            yield Path(root) / name


def _closed(error: OSError) -> None:
    raise VolumeError(
        f"a folder cannot be opened: {error.strerror}; it could hold slices of the series. Next: check its permissions"
    ) from None


def grouped(headers: Sequence[Header]) -> dict[str, list[Header]]:
    """Return the files by series."""
    groups: dict[str, list[Header]] = {}
    for header in headers:
        groups.setdefault(header.series, []).append(header)
    return groups


def summary(headers: Sequence[Header]) -> list[Series]:
    """Return the series of files in the order of their numbers."""
    patients = {patient: k + 1 for k, patient in enumerate(dict.fromkeys(header.patient for header in headers))}
    found = []
    for uid, group in grouped(headers).items():
        size, spacing, problem = None, None, ""
        try:
            _one_patient(group)
            check_modality(group, None)
            grid = stack(group, missing="fill").grid
            size, spacing = grid.size, grid.spacing
        except VolumeError as error:
            problem = str(error)
        found.append(
            Series(
                uid=uid,
                number=group[0].number,
                modality=group[0].modality,
                slices=sum(header.images for header in group),
                size=size,
                spacing=spacing,
                patient=patients[group[0].patient],
                problem=problem,
            )
        )
    return sorted(found, key=lambda s: (s.number is None, s.number or 0, s.uid))


def check_modality(group: Sequence[Header], wanted: str | None) -> None:
    """Refuse a series of another modality.

    Raises:
        VolumeError: with what else is wrong with its images, which says more of a screenshot than "OT".
    """
    found = group[0].modality
    if found not in MODALITIES or (wanted and found != wanted):
        fault = next((header.fault for header in group if header.fault and header.images), "")
        raise VolumeError(
            f"the modality of the DICOM series is {found or 'not stated'}; allowed: {wanted or ', '.join(MODALITIES)}. "
            + (f"And {fault}" if fault else "Next: give another series")
        )


def choose(headers: Sequence[Header], series: str | int | None, modality: str | None) -> tuple[list[Header], list[str]]:
    """Return the files of the series to read, and what had to be said.

    Args:
        headers: every DICOM file of the folder.
        series: SeriesInstanceUID or SeriesNumber, None where there is one.
        modality: the one that is wanted, None for any.

    Raises:
        VolumeError: several to choose from (they are listed), none that fits, two patients.
    """
    groups = grouped(headers)
    found = summary(headers)
    patients = {one.patient for one in found}
    by_uid = named = [one for one in found if one.uid == series] if isinstance(series, str) else []
    if series is not None and not named:
        named = [one for one in found if one.number is not None and str(one.number) == str(series).strip()]
        if not named:
            raise VolumeError(f"series={series!r} is not in the folder; there are{_listed(found)}")
    if len(patients) > 1 and not by_uid:
        raise VolumeError(
            f"the folder holds files of {len(patients)} patients; allowed: one. Next: give the folder of one patient "
            "(each=True takes each folder inside), or the series by its UID (svd_hub.volume.list_series has them)"
            f"{_listed(found)}"
        )
    if len(named) > 1:
        raise VolumeError(
            f"series={series!r}: {len(named)} series of the folder have it; allowed: the UID of one{_listed(named)}"
        )
    if not named and len(groups) > 1 and (stray := sum(header.images for header in groups.get("", ()))):
        raise VolumeError(  # it could be a slice whose header is damaged
            f"{stray} image(s) of the folder name no series. Next: take them out, or name a series with "
            f"series=, by its number or UID{_listed(found)}"
        )
    if not named:
        fit = [one for one in found if one.modality in MODALITIES and one.modality == (modality or one.modality)]
        named = [one for one in fit if one.size] or fit
        if len(named) > 1:
            raise VolumeError(
                f"the folder holds {len(named)} series that could be read. Next: name one with series=, by its number "
                f"or UID{_listed(named)}"
            )
        if not named and len(found) == 1:
            check_modality(groups[found[0].uid], modality)
        if not named:
            raise VolumeError(
                f"the folder holds no series of modality {modality or ' or '.join(MODALITIES)}. Next: give another "
                f"folder{_listed(found)}"
            )
    group = groups[named[0].uid]
    _one_patient(group)
    notes = [f"{len(found) - 1} other series of the folder left out"] if len(found) > 1 else []
    return group, notes


def _one_patient(group: Sequence[Header]) -> None:
    if (count := len({header.patient for header in group})) > 1:
        raise VolumeError(
            f"one series holds images of {count} patients; allowed: one. It was put together wrongly. "
            "Next: export it again from where it is archived"
        )


def _listed(found: Sequence[Series]) -> str:
    """Return a line for each series: with its UID, which names a person, only where no number tells it from others."""
    several = len({one.patient for one in found}) > 1
    numbers = [one.number for one in found]
    lines = []
    for one in found[:_SHOWN]:
        alike = not several and (one.number is None or numbers.count(one.number) > 1)
        patient = f"patient {one.patient}, " if several else ""
        uid = f", {one.uid or 'no UID'}" if alike else ""
        lines.append(f"\n  {patient}{one}{uid}")
    return ":" + "".join(lines) + (f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
