"""Inputs on disk: which there are in what a user names, which bytes they are made of, and what a result is called."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import OptionError, VolumeError
from ..files import sha256_of
from ..volume import files_of, series_of
from .inputs import is_picture

ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
REPORT, TABLE = "run.json", "results.csv"


def find_inputs(places: Sequence[str | os.PathLike[str]], *, each: bool = False) -> list[Path]:
    """Return the inputs of files and folders.

    Args:
        places: a file is an input. A folder is one DICOM input where it holds DICOM files or folders; else each of its
            volume files (NIfTI, NRRD, MetaImage) or pictures is one.
        each: what lies inside a folder is taken apart: each folder in it as if it was named itself, each volume file
            or picture, and of loose DICOM files each series.

    Raises:
        VolumeError: a place that is not there, a folder with nothing in it, or one with several kinds of input.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise VolumeError(f"{place} is not there. Next: check the path")
        found += _inputs_in(place, each=each) if place.is_dir() else [place]
    return list(dict.fromkeys(found))


def _inputs_in(place: Path, *, each: bool) -> list[Path]:
    try:
        inside = sorted(path for path in place.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise VolumeError(f"{place} cannot be read: {error.strerror}. Next: check its permissions") from None
    folders, files = [path for path in inside if path.is_dir()], [path for path in inside if _is_image(path)]
    if not inside or (each and not folders + files):
        raise VolumeError(f"{place} holds no image. Next: give the folder of the images")
    if each:
        return [one for folder in folders for one in _inputs_of(folder)] + _one_of_each_series(files)
    if not files and (below := _volumes_below(place)):
        raise VolumeError(
            f"{place} holds {len(folders)} folder(s) with {below} volume file(s) in them, and no DICOM file; allowed: "
            "one DICOM input, or volume files. Next: each=True takes each folder, or name those you mean"
        )
    volumes = [path for path in files if path.name.lower().endswith(ENDINGS)]
    dicom = [path for path in files if path not in volumes and _is_dicom(path)]
    pictures = [path for path in files if path not in volumes and path not in dicom]
    others = [f"{len(dicom)} DICOM file(s)"] * bool(dicom) + [f"{len(folders)} folder(s)"] * bool(folders)
    if volumes and others:
        raise VolumeError(
            f"{place} holds {len(volumes)} volume file(s) and {' and '.join(others)}; allowed: one DICOM input, or "
            "volume files. Next: name those you mean (a DICOM file stands for its series), or each=True takes each"
        )
    if pictures and folders and not dicom:
        raise VolumeError(
            f"{place} holds {len(pictures)} picture(s) and {len(folders)} folder(s); allowed: one DICOM input, or "
            "pictures. Next: name those you mean, or each=True takes each"
        )
    return volumes or ([] if dicom else pictures) or [place]


def _inputs_of(folder: Path) -> list[Path]:
    """Return the inputs of one folder of many; one that is not clear is its own, and fails without the others."""
    try:
        return _inputs_in(folder, each=False)
    except VolumeError:
        return [folder]


def _one_of_each_series(files: Sequence[Path]) -> list[Path]:
    """Return files without those DICOM images whose series another one stands for already."""
    kept, seen = [], set()
    for path in files:
        series = series_of(path) if _is_dicom(path) else ""
        if series not in seen:
            kept.append(path)
        if series:
            seen.add(series)
    return kept


def _volumes_below(place: Path) -> int:
    """Return how many volume files lie in the folders of a folder, 0 where there is a DICOM file too."""
    count = 0
    for path in place.rglob("*"):
        if path.is_file():
            if _is_dicom(path):
                return 0
            count += path.name.lower().endswith(ENDINGS)
    return count


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _is_image(path: Path) -> bool:
    """Return whether a file is to be read; one that cannot be opened is, so that somebody hears of it."""
    if not path.is_file():
        return False
    try:
        return is_picture(path) or path.name.lower().endswith(ENDINGS) or _is_dicom(path)
    except OSError:
        return True


def digest_of(path: Path) -> str:
    """Return the sha256 of the bytes that an input is made of, whatever its files are called."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return hashlib.sha256("".join(sorted(map(sha256_of, files))).encode()).hexdigest()
    own, *others = map(sha256_of, files_of(path))
    return hashlib.sha256("".join([own, *sorted(others)]).encode()).hexdigest() if others else own


def plain_name(name: str) -> str:
    """Return a name of letters, digits, dots, dashes and underscores, which every disk takes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip(".") or "input"


def names_of(inputs: Sequence[Path]) -> list[str]:
    """Return a name for each input, made of its file's: letters, digits, dots, dashes and underscores.

    Raises:
        OptionError: two are the same, as a disk that does not tell capitals from small letters sees it.
    """
    found = []
    for path in inputs:
        name = path.name if path.is_file() else path.resolve().name
        ending = next((end for end in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(end)), "")
        if not ending and path.is_file() and (match := re.search(r"\.[A-Za-z][A-Za-z0-9]{1,4}$", name)):
            ending = match[0]  # and not the last number of a UID
        found.append(plain_name(name[: len(name) - len(ending)]))
    if len({name.lower() for name in found}) < len(found):
        raise OptionError(
            "two inputs have the same name. Next: leave out names=True: results are named by content then"
        )
    return found


def check_out(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse a folder for results that is none, or would become a part of an input.

    Raises:
        OptionError: it is a file, or lies inside a file or an input.
    """
    here = out.resolve()
    if not (there := next(path for path in (here, *here.parents) if path.exists())).is_dir():
        what = "is a file" if there == here else "lies inside a file"
        raise OptionError(f"out={str(out)!r} {what}; allowed: a folder, which is made if need be. Next: another name")
    for path in inputs:
        if path.is_dir() and here.is_relative_to(path.resolve()):
            raise OptionError(
                f"the results' folder {out} lies inside the input {path}, and would be read as a part of it the next "
                "time. Next: out= with a folder elsewhere"
            )


def without_places(message: str, *places: Path) -> str:
    """Return a message without these paths, what follows them up to a space, and the names of their files."""
    for place in sorted({str(p) for path in places for p in (path, path.absolute())}, key=len, reverse=True):
        message = re.sub(rf"(?<![\w.-]){re.escape(place)}(?:/[^\s:;,]*|(?![\w-]))", "the input", message)
    for path in places:
        if len(path.name) > 2:
            message = re.sub(rf"(?<![\w.-]){re.escape(path.name)}(?![\w-])", "the input", message)
    return message
