"""The state of the code that trained and publishes: a release names a commit, and nothing that was never committed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __file__ as door
from ...errors import SvdHubError

CODE = ("svd_hub", "training")  # untracked files count here: they could be imported, or be a recipe


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A checkout: its commit, and the files that differ from it."""

    commit: str
    changed: tuple[str, ...] = ()


def present(*, besides: Path | None = None) -> Tree | None:
    """Return the state of the checkout that this code is run from; None for an installed package, or without git.

    Args:
        besides: a folder whose files do not count, as the one that releases are written to.
    """
    root = Path(door).resolve().parents[1]
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


def checked(
    facts: Mapping[str, Any], now: Tree | None, *, allow_dirty: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what is to be said of the code: the commits that trained and publish, and what does not stand in them.

    Args:
        facts: `run.json`; its `git` is {"commit": ..., "dirty": ...}.
        now: the checkout that publishes.
        allow_dirty: say what is not clean in place of refusing it.

    Raises:
        SvdHubError: the run was trained, or is published, by code that no commit holds; or nobody knows.
    """
    then = facts.get("git") or {}
    commit = str(then.get("commit") or "")
    faults = []
    if not commit:
        faults.append("the run records no commit of the code that trained it")
    elif then.get("dirty") is not False:
        faults.append(f"the code that trained it was changed since commit {commit[:12]}")
    if now is not None and now.changed:
        faults.append(f"the code that publishes it was changed since commit {now.commit[:12]}{_some(now.changed)}")
    if faults and not allow_dirty:
        step = "commit" if commit and then.get("dirty") is False else "commit and train again"
        raise SvdHubError(
            f"not published: {'; '.join(faults)}. Next: {step}, or --allow-dirty, which the card then says"
        )
    said = [f"trained by commit {commit}"] if commit else []
    if now is not None and now.commit != commit:
        said.append(f"published by commit {now.commit}")
    return tuple(said), tuple(fault.partition(": ")[0] for fault in faults)


def _some(names: Sequence[str]) -> str:
    return f": {', '.join(names[:3])}{f' and {len(names) - 3} others' if len(names) > 3 else ''}"
