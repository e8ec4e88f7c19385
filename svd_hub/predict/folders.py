"""Folders of results: whole or not there, never anybody else's, and what a killed run left is removed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import OptionError, SvdHubError
from ..files import sweep as sweep
from ..files import sync_folder, write_atomic
from ..files import unfinished as unfinished
from .outputs import RESULT

KEY = "key.json"


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """What the system has against the folder of results becomes an error that says so.

    Raises:
        SvdHubError: it is read-only, full, or no folder.
    """
    try:
        yield
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else type(error).__name__
        raise SvdHubError(f"{out} cannot be written: {why}. Next: make room, or another out=") from None


def is_made(target: Path, key: str, *, overwrite: bool) -> bool:
    """Return whether the result of a key is there already.

    Args:
        target: the folder of the result.
        key: what the result follows from.
        overwrite: a result of another key may be replaced.

    Raises:
        OptionError: there is something else: another result, or what is none and is never replaced.
    """
    if not os.path.lexists(target):
        return False
    found = _key_in(target)
    if found == key:
        return True
    if not found:
        raise OptionError(
            f"{target} is there, and is no result of this command alone: it is left as it is. Next: another out="
        )
    if not overwrite:
        raise OptionError(
            f"{target} holds another result: of other weights, options or another input. Next: another out=, or "
            "overwrite=True"
        )
    return False


def put(part: Path, target: Path, key: str, input_sha256: str) -> None:
    """Make an unfinished folder the result, in place of an old one, which `is_made` has seen."""
    write_atomic(part / KEY, (json.dumps({"key": key, "input_sha256": input_sha256}) + "\n").encode())
    if target.exists():
        shutil.rmtree(target)
    part.rename(target)
    sync_folder(target.parent)


def _key_in(folder: Path) -> str:
    """Return the key of a result, "" of a folder that is none, or holds anything else besides."""
    try:
        if folder.is_symlink():
            return ""
        key = json.loads((folder / KEY).read_text())["key"]
        files = json.loads((folder / RESULT).read_text())["files"]
        return str(key) if {path.name for path in folder.iterdir()} <= {KEY, RESULT, *files} else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
