"""The few forms of TOML that an entry needs; the standard library reads it and writes none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ...errors import OptionError


def header(*path: str) -> str:
    """Return the head of a table, [a.b."c@2"]."""
    return f"[{'.'.join(key(part) for part in path)}]"


def key(name: str) -> str:
    """Return a key, in quotes where it needs them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else written(name)


def written(value: Any) -> str:
    """Return a value in one line.

    Raises:
        OptionError: TOML, or an entry, cannot hold it.
    """
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key(str(name))} = {written(one)}" for name, one in value.items() if one is not None)
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for one character that JSON leaves as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise OptionError(f"{value!r} cannot stand in the catalogue; allowed: text, finite numbers, lists and tables")
