"""The code of a release: it names the commits that trained and published it, and nothing that was never committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import SvdHubError
from ..tree import Tree


def checked(
    facts: Mapping[str, Any], now: Tree | None, *, allow_dirty: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what is to be said of the code: the commits that trained and publish, and what does not stand in them.

    Args:
        facts: `run.json`; its `git` is {"commit": ..., "dirty": ...}, and so is that of each of `resumed` that has one.
        now: the checkout that publishes.
        allow_dirty: say what is not clean in place of refusing it.

    Raises:
        SvdHubError: the run was trained, or is published, by code that no commit holds; or nobody knows.
    """
    states = [facts.get("git"), *(one["git"] for one in facts.get("resumed", ()) if "git" in one)]
    commits, faults = list[str](), list[str]()
    for state in states:
        commit = str((state or {}).get("commit") or "")
        if not commit:
            faults.append("the run records no commit of the code that trained it")
        elif (state or {}).get("dirty") is not False:
            faults.append(f"the code that trained it was changed since commit {commit[:12]}")
        commits += [commit] if commit else []
    trained_clean = not faults
    if now is not None and now.changed:
        faults.append(f"the code that publishes it was changed since commit {now.commit[:12]}{_some(now.changed)}")
    faults = list(dict.fromkeys(faults))
    if faults and not allow_dirty:
        step = "commit" if trained_clean else "commit and train again"
        raise SvdHubError(
            f"not published: {'; '.join(faults)}. Next: {step}, or --allow-dirty, which the card then says"
        )
    said = [f"trained by commit {commit}" for commit in dict.fromkeys(commits)]
    if now is not None and now.commit not in commits:
        said.append(f"published by commit {now.commit}")
    return tuple(said), tuple(fault.partition(": ")[0] for fault in faults)


def _some(names: Sequence[str]) -> str:
    return f": {', '.join(names[:3])}{f' and {len(names) - 3} others' if len(names) > 3 else ''}"
