"""The recipes that are shipped, by name: found and listed without the libraries of training."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ..errors import SvdHubError, nearest


def shipped() -> dict[str, Path]:
    """Return the files of all shipped recipes by name."""
    folder = Path(str(resources.files(__package__).joinpath("recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """Return the file of a shipped recipe's name, or `name` itself where it is a file.

    Raises:
        SvdHubError: neither, with the nearest names.
    """
    if Path(name).is_file():
        return Path(name)
    found = shipped()
    if name not in found:
        raise SvdHubError(f"no recipe {name!r}; nearest: {nearest(name, found)}. Next: svd-hub train --list")
    return found[name]


def summaries() -> dict[str, str]:
    """Return what each shipped recipe says of itself in its line `summary`."""
    found = {}
    for name, path in shipped().items():
        lines = path.read_text(encoding="utf-8").splitlines()
        summary = next((line for line in lines if line.startswith("summary:")), "")
        found[name] = summary.removeprefix("summary:").strip().strip("'\"")
    return found
