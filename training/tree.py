"""The state of the code that is run: which commit, and what differs from it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .. import __file__ as door

CODE = ("svd_hub", "training")  # untracked files count here: they could be imported, or be a recipe


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A checkout: its commit, and the files that differ from it."""

    commit: str
    changed: tuple[str, ...] = ()


def present(*, besides: Path | None = None, root: Path | None = None) -> Tree | None:
    """Return the state of the checkout that this code is run from; None for an installed package, or without git.

    Args:
        besides: a folder whose files do not count, as the one that releases are written to.
        root: of the checkout; None = of this code.
    """
    root = root or Path(door).resolve().parents[1]
    if not (root / ".git").exists():  # the repository of a user's project may lie around an installed package
        return None
    left_out = ["svd_hub/weights"]  # where bundled weights are published to
    if besides is not None and besides.resolve().is_relative_to(root) and besides.resolve() != root:
        left_out.append(besides.resolve().relative_to(root).as_posix())
    paths = [f":(exclude){path}" for path in left_out]
    try:
        commit = _git(root, "rev-parse", "HEAD")[0]
        changed = _git(root, "diff", "--name-only", "HEAD", "--", ".", *paths)
        changed += _git(root, "ls-files", "--others", "--exclude-standard", "--", *CODE, *paths)
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
    return Tree(commit=commit, changed=tuple(sorted(changed)))


def _git(root: Path, *arguments: str) -> list[str]:
    done = subprocess.run(  # noqa: S603  arguments of ours, no shell
        ["git", "-c", "core.quotePath=false", *arguments],  # noqa: S607  whichever git the user has
        cwd=root,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()
