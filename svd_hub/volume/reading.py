"""From a path to a volume: what a file is, is decided by its content."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ..errors import OptionError, VolumeError, check_choice
from . import memory, streams
from .beside import named_in
from .dicom import Header, is_dicom, read_header
from .metaimage import is_metaimage, read_metaimage
from .nifti import is_nifti, read_nifti
from .nrrd import read_nrrd
from .pixels import voxels
from .record import Source, Volume, finish
from .series import Series, check_modality, choose, headers_in, summary
from .stack import stack
from .values import LARGEST

_ALLOWED = "a DICOM file or folder, NIfTI (.nii, .nii.gz), NRRD, MetaImage (.mha, .mhd)"
_OTHERS = {
    b"PK\x03\x04": "a zip archive",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89HDF": "an HDF5 file",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
    b"%PDF": "a PDF",
    b"version https://git-lfs": "a Git LFS pointer, not the file it stands for",
}


def read(
    path: str | os.PathLike[str],
    *,
    series: str | int | None = None,
    modality: str | None = None,
    missing: str = "refuse",
    largest: int = LARGEST,
) -> Volume:
    """Return the volume of a file or a DICOM folder, its axes brought to Superior, Posterior, Left.

    DICOM says itself what it is and in which unit; for the other formats `modality` is taken at its word. Duplicate
    images are dropped, a tilted gantry is corrected, padding becomes air (CT) or the lowest value; `Volume.notes` says
    so.

    Args:
        path: a DICOM folder (with the folders inside it), one DICOM file (enhanced, or one image of the series beside
            it), NIfTI, NRRD or MetaImage.
        series: SeriesInstanceUID or SeriesNumber, where a folder holds several.
        modality: "CT" or "MR" where the caller needs that one, None for any.
        missing: "refuse" a DICOM series with gaps between its slices, or "fill" them by linear interpolation.
        largest: bytes of voxels at most.

    Raises:
        VolumeError: not a volume, damaged, or of another modality; says what was found, what is allowed, and what next.
        OptionError: an argument that is not allowed.
        MissingExtraError: DICOM without pydicom, or compressed without SimpleITK.
    """
    check_choice("modality", modality, (None, "CT", "MR"))
    check_choice("missing", missing, ("refuse", "fill"))
    volume = _read(Path(path), series, modality, missing, largest)
    if volume.array.nbytes < memory.MAPPED or memory.is_mapped(volume.array):
        return volume
    note = "all of it is held in memory: the folder of temporary files has no room for it (TMPDIR names another)"
    return dataclasses.replace(volume, notes=(*volume.notes, note))


def _read(path: Path, series: str | int | None, modality: str | None, missing: str, largest: int) -> Volume:
    if path.is_dir():
        return _read_dicom(path, series, modality, missing, largest)
    head, packed = streams.head_of(path, name=str(path))
    if series is not None:
        raise OptionError(f"series={series!r} is for DICOM folders, and the input is one file. Next: leave it out")
    if is_nifti(head):
        return read_nifti(path, head, packed=packed, modality=modality or "", largest=largest)
    if is_dicom(head) and not packed:
        return _read_dicom(path, series, modality, missing, largest)
    if head.startswith(b"NRRD000") and not packed:
        return read_nrrd(path, modality=modality or "", largest=largest)
    if is_metaimage(head) and not packed:
        return read_metaimage(path, modality=modality or "", largest=largest)
    kind = next((name for magic, name in _OTHERS.items() if head.startswith(magic)), "no volume that is known here")
    kind = "empty" if not head else f"gzip of {kind}" if packed else kind
    raise VolumeError(f"{path} is {kind}; allowed: {_ALLOWED}. Next: unpack or convert it")


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that an input of one file is made of, itself first.

    One DICOM image stands for its series, so that every DICOM file beside it may be a part; a header of NRRD or
    MetaImage has its voxels in the file it names.

    Raises:
        VolumeError: it cannot be read.
    """
    path = Path(path)
    with streams.open_regular(path, str(path)) as file:
        head = file.read(1 << 16)
    if is_dicom(head):
        header = read_header(path)
        if header is None or header.images != 1:
            return [path]
        beside = sorted(other for other in path.parent.iterdir() if other.is_file() and other.name != path.name)
        return [path, *(other for other in beside if _begins_dicom(other))]
    if head.startswith(b"NRRD000") or is_metaimage(head):
        voxels_file = named_in(path, head)
        return [path] if voxels_file is None else [path, voxels_file]
    return [path]


def series_of(path: str | os.PathLike[str]) -> str:
    """Return the SeriesInstanceUID that a DICOM file of one image belongs to; "" of one that stands for itself alone.

    A file that cannot be read stands for itself: who reads it hears why.
    """
    try:
        header = read_header(Path(path))
    except VolumeError:
        return ""
    return header.series if header is not None and header.images == 1 else ""


def _begins_dicom(path: Path) -> bool:
    with streams.open_regular(path) as file:
        return is_dicom(file.read(132))


def list_series(folder: str | os.PathLike[str]) -> list[Series]:
    """Return the DICOM series of a folder and the folders inside it, by number.

    Raises:
        VolumeError: no DICOM file in it, or a damaged one.
        MissingExtraError: pydicom is not installed.
    """
    if not (path := Path(folder)).is_dir():
        raise VolumeError(f"{path} is no folder. Next: give the folder of the DICOM files")
    return summary(headers_in(path))


def _read_dicom(path: Path, series: str | int | None, modality: str | None, missing: str, largest: int) -> Volume:
    if path.is_dir():
        group, notes = choose(headers_in(path), series, modality)
    else:
        group, notes = _around(path)
    check_modality(group, modality)
    images = stack(group, missing=missing)
    found = group[0].modality
    unit, said = _unit(found, images.planes[0].unit)
    notes += [*said, *images.notes]
    if any(plane.layout.lossy for plane in images.planes):
        notes.append("the images went through a lossy compression")
    array = voxels(images, found, largest, notes)
    places = zip(images.planes, images.slots, strict=True)
    return finish(
        array,
        images.grid,
        modality=found,
        unit=unit,
        notes=notes,
        sources=tuple(Source(plane.layout.path, plane.frame, slot) for plane, slot in places),
        shifts=images.shifts,
    )


def _around(path: Path) -> tuple[list[Header], list[str]]:
    """Return a DICOM file that holds a volume, or the files of its series where it is one image of many."""
    header = read_header(path)
    if header is None:
        raise VolumeError(f"{path} begins like a DICOM file and is none; allowed: {_ALLOWED}. Next: copy it again")
    if header.images != 1:
        return [header], []
    beside = [h for h in headers_in(path.parent) if h.series == header.series and h.path.parent == path.parent]
    group, notes = choose(beside or [header], None, None)
    return group, [*notes, f"the {len(group)} images of the series beside the file are read"]


def _unit(modality: str, stated: str) -> tuple[str, list[str]]:
    """Return the unit of the values of a DICOM series, and what had to be said. "US" is DICOM for "unspecified"."""
    if modality != "CT":
        return "" if stated in ("US", "not rescaled") else stated, []
    if stated == "not rescaled":
        return "HU", ["the images state no rescale slope and intercept: the stored values are taken as HU"]
    if stated in ("", "HU", "US"):
        return "HU", []
    return stated, [f"the values are {stated!r}, not HU"]
