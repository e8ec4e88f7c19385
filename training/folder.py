"""The run folder: when a new run may begin in it, and whose it is while it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..catalog import all_entries
from ..errors import SvdHubError
from .saving import write_text

if sys.platform != "win32":
    import fcntl

RECIPE, FACTS, RESULT = "recipe.yaml", "run.json", "model.safetensors"
BEGUN = {RECIPE, FACTS}  # all there is of a run before its first checkpoint and its first epoch


def check_free(run: Path) -> None:
    """Refuse a folder that a new run would mix with something else.

    A run that ended before its first checkpoint left nothing that is worth going on with: the same command, or the
    corrected one, takes its place.

    Raises:
        SvdHubError: the folder is not empty, or the run in it is being trained.
    """
    if not run.exists():
        return
    there = {file.name for file in run.iterdir() if not file.name.startswith(".")} if run.is_dir() else {""}
    if there - BEGUN:
        raise SvdHubError(
            f"run folder {run} is not empty. Next: --resume {run} where it is a run, or choose another with --run"
        )
    if RECIPE in there:
        handle = os.open(run / RECIPE, os.O_RDWR)
        free = _lock(handle)
        os.close(handle)
        if not free:
            raise SvdHubError(f"a run is being trained in {run}. Next: choose another folder with --run")


def result_of(name: str) -> tuple[str, str | None]:
    """Return what `name` stands for, and the recipe of the run that made it, where it is a run folder or its result.

    Raises:
        SvdHubError: a run that is not finished.
    """
    path = Path(name)
    run = path.parent if path.name == RESULT else path
    if name in all_entries() or not (run / RECIPE).is_file():
        return name, None
    if not (run / RESULT).is_file():
        raise SvdHubError(f"{run} has no {RESULT}: the run is not finished. Next: svd-hub train --resume {run}")
    return str(run / RESULT), str(run / RECIPE)


def cannot_change(run: Path, keys: Iterable[str]) -> str:
    """Return why a run that goes on is not given other settings, and how its weights are taken further."""
    result = run / RESULT
    start = f"--init {result}" if result.is_file() else "--run and another folder"
    return (
        f"a run that goes on keeps its recipe; asked to change: {', '.join(sorted(keys))}. Next: leave that out, or "
        f"begin a new run: svd-hub train RECIPE {start}"
    )


@contextmanager
def held(run: Path, recipe: str | None) -> Iterator[None]:
    """Begin a run in its folder and keep new ones out of it; the system lets go of it when the process dies.

    Args:
        run: the folder; made where it is not there.
        recipe: the resolved text of a new run; None = it goes on.
    """
    run.mkdir(parents=True, exist_ok=True)
    if recipe is not None:
        (run / FACTS).unlink(missing_ok=True)  # of a run that came to nothing
        write_text(run / RECIPE, recipe)
    handle = os.open(run / RECIPE, os.O_RDWR)
    try:
        _lock(handle)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Return False where another process has it; where a file system or a system has no such locks, nobody has."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
