"""torch.hub's entry points: one callable per entry of the catalogue, made from its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .catalog import Entry, all_entries


def entry_points() -> dict[str, Callable[..., Any]]:
    """Return name -> callable for `hubconf.py`; each takes the keyword arguments of `svd_hub.load`."""
    return {name: _entry_point(entry) for name, entry in all_entries().items()}


def _entry_point(entry: Entry) -> Callable[..., Any]:
    def point(**options: Any) -> Any:
        from .hub import load

        return load(entry.name, **options)

    point.__name__ = point.__qualname__ = entry.name
    point.__doc__ = f"{entry.card()}\nKeyword arguments: those of svd_hub.load."
    return point
