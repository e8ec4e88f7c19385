"""Reading what torch.save wrote, without running any of it.

`torch.load(weights_only=True)` alone reads; the one extension of its allow-list is numpy's scalars.
"""

from __future__ import annotations

import pickle
import re
import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.serialization import safe_globals

from .errors import CheckpointError

# numpy 1 and numpy 2 name the same function differently, and torch goes by the name in the file: hence the pairs.
_SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_SCALARS_LOCK = threading.Lock()  # torch's allow-list is one for the whole process


def read_torch(path: Path, kind: str) -> Any:
    """Return what a file of torch.save holds.

    Args:
        path: the file.
        kind: what `sniff` said of it, "zip" or "pickle".

    Raises:
        CheckpointError: it is damaged, or asks for anything but tensors and plain values; nothing of it was run.
    """
    try:
        mmap = kind == "zip" and _check_zip(path) and path.suffix != ".safetensors"
        try:
            return _torch_load(path, mmap)
        except pickle.UnpicklingError as error:
            if _wanted(error) not in _SCALAR_NAMES:
                raise
        with _SCALARS_LOCK, safe_globals(_scalar_globals()):
            return _torch_load(path, mmap)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        if name := _wanted(error):
            raise CheckpointError(
                f"{path} asks for the Python object {name}; nothing of it was run; allowed: tables of tensors and "
                "plain values. Next: where the file was made and is trusted, save model.state_dict() alone, and give "
                "that file"
            ) from error
        found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        raise damaged(path, pickle.UnpicklingError(found.group(1)) if found else error) from error
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise damaged(path, error) from error


def _torch_load(path: Path, mmap: bool) -> Any:
    with warnings.catch_warnings(), path.open("rb") as file:
        # torch warns of its own deprecations inside old files; a user can do nothing about them.
        warnings.simplefilter("ignore")
        # By name, torch would take any "*.safetensors" for what it says it is: such a path goes in as an open file.
        return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)


def _check_zip(path: Path) -> bool:
    """Verify the check sum of every member (torch does not), and return whether all are stored plainly.

    A member that was compressed by a later tool must not be memory-mapped. CRC 0 = the writer recorded none.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > 100 * path.stat().st_size:
            raise zipfile.BadZipFile("its members would unpack to more than 100 times its size")
        for member in members:
            if member.CRC:
                with archive.open(member) as stream:
                    while stream.read(1 << 20):
                        pass
    return all(member.compress_type == zipfile.ZIP_STORED for member in members)


def _scalar_globals() -> list[Any]:
    scalar = np.float64(0).__reduce__()[0]
    types = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [*((scalar, name) for name in _SCALAR_NAMES), np.dtype, *sorted(types, key=lambda t: t.__name__)]


def _wanted(error: pickle.UnpicklingError) -> str:
    """Return the global that torch's unpickler refused, or ""."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found.group(1) if found else ""


def damaged(path: Path, error: BaseException) -> CheckpointError:
    """Return the error that says of a file what a reader said of it."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return CheckpointError(f"{path} is damaged or no checkpoint: {reason}. Next: remove it and fetch it again")
