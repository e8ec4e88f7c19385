"""A release in a folder: a mirror that SVD_HUB_MIRROR serves, or the weights that come inside the package.

    MIRROR/entry.toml    the tables of all releases in it: SVD_HUB_CATALOG takes it
    MIRROR/NAME/         NAME.safetensors, NAME.golden.safetensors, NAME.log.jsonl, recipe.yaml, README.md, entry.toml,
                         SHA256SUMS

A release is there whole or not at all: it is written beside, in a hidden folder, and moved into place.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ...errors import OptionError, SvdHubError
from ...files import sha256_of, sweep, sync_folder, unfinished, write_atomic
from ...store import bundled_path

ENTRY, SUMS = "entry.toml", "SHA256SUMS"
FOREWORD = "# Written by svd-hub publish: an overlay (SVD_HUB_CATALOG), or tables to append to svd_hub/catalog.toml.\n"


def is_bundle(folder: Path) -> bool:
    """Tell whether a folder is the one of the weights inside the package."""
    return folder.resolve() == bundled_path("").resolve()


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder in a mirror for what is not finished; what killed runs left there is removed.

    Raises:
        SvdHubError: the mirror cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        if not is_bundle(folder):
            _name_all(folder)  # a kill may have come between a release and its name in the overlay
        with unfinished(folder) as part:
            yield part
    except SvdHubError:  # some of them are OSErrors, too
        raise
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise SvdHubError(f"{folder} cannot be written: {why}. Next: make room, or --to with another folder") from error


def refuse_taken(folder: Path, name: str) -> None:
    """Raise where a release of this name is in the folder: what was released never changes.

    Raises:
        OptionError: there is one.
    """
    places = [folder / f"{name}.safetensors"] if is_bundle(folder) else [folder / name, folder / f"{name}.safetensors"]
    if there := [place.name for place in places if os.path.lexists(place)]:
        base, _, number = name.partition("@")
        raise OptionError(
            f"{there[0]} is in {folder} already, and what was released never changes. Next: "
            f"{f'{base}@{int(number or 1) + 1}'!r}, or another name"
        )


def sums(folder: Path) -> str:
    """Return the hashes of the files of a folder, as sha256sum writes them."""
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)


def place(part: Path, folder: Path, name: str) -> None:
    """Move a finished release into its mirror, then name it in the mirror's overlay.

    Raises:
        OptionError: another process was faster.
    """
    refuse_taken(folder, name)
    sync_folder(part)
    part.rename(folder / name)
    sync_folder(folder)
    _name_all(folder)


def _name_all(folder: Path) -> None:
    """Write the overlay of a mirror, the tables of all its releases.

    Raises:
        OptionError: there is such a file of somebody else's.
    """
    file, releases = folder / ENTRY, sorted(folder.glob(f"[!.]*/{ENTRY}"))
    known = file.read_text(encoding="utf-8") if file.is_file() else ""
    if known and not known.startswith(FOREWORD):
        raise OptionError(f"{file} was not written by svd-hub publish, and is left as it is. Next: another --to")
    text = "\n".join([FOREWORD, *(path.read_text(encoding="utf-8").removeprefix(FOREWORD) for path in releases)])
    if releases and text != known:
        write_atomic(file, text.encode())


def place_bundled(part: Path, folder: Path, name: str) -> None:
    """Move the three files of bundled weights into the package, the weights last: only they make an entry."""
    refuse_taken(folder, name)
    for ending in ("log.jsonl", "golden.safetensors", "safetensors"):
        os.replace(part / f"{name}.{ending}", folder / f"{name}.{ending}")
    sync_folder(folder)
