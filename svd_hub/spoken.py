"""Messages in the words of who asked: the rooms speak Python, and who typed a command is told its options.

A room writes `point=(1, 2, 3)`; the command has the option `--point`, and says `--point 1,2,3`. Which names are options
is read from the command itself, so that no list of them can grow old; what is called otherwise there stands in `OTHER`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

# By command, "" = all of them: pattern -> what is said instead.
OTHER: Mapping[str, Mapping[str, str]] = {
    "": {
        r"load\(\.\.\., accept_licence=True\), or svd-hub": "svd-hub",
        r"accept_licence=True": "--accept-licence",
    },
    "predict": {
        r"missing='fill'": "--fill-gaps",
        r"planes='all'|planes=all\b": "--every-slice",
        r"planes=": "key_slice=",
        r"give a point \(mm\)": "--point X,Y,Z (mm)",
        r"allowed: 'all', or whole numbers": "allowed: --every-slice, or whole numbers",
    },
    "train": {
        r"svd_hub\.load\([^()]*, weights=None\) for a random network, or weights=\"file\"": (
            "--init none for a random network, or --init FILE"
        ),
        r"weights=None": "--init none",
    },
}
_VALUE = r"""'[^']*'|"[^"]*"|\([^()]*\)|\[[^\[\]]*\]|[^\s:;,.()\[\]]+(?:\.\d+)?|"""
_SIDES = ("shape", "smallest", "largest")  # tuples that are written with an x


def in_options(message: str, command: Any = None) -> str:
    """Return a message whose Python arguments are the options of a command.

    Args:
        message: what a room says.
        command: the click command that was asked for, None where there was none.
    """
    name = getattr(command, "name", None) or ""
    for pattern, words in {**OTHER[""], **OTHER.get(name, {})}.items():
        message = re.sub(pattern, words.replace("\\", r"\\"), message)
    options = {one.name: one for one in getattr(command, "params", ()) if one.opts[0].startswith("--")}
    if not options:
        return message
    names = "|".join(sorted(options, key=len, reverse=True))
    return re.sub(
        rf"(?<![\w./=\-])({names})=({_VALUE})(?![\w(])",
        lambda found: _typed(options[found[1]], found[2]),
        message,
    )


def _typed(option: Any, text: str) -> str:
    """Return an option with a value, as one types them."""
    flag = option.opts[0]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if value is True:
        return str(flag)
    if isinstance(value, list):
        return " ".join(f"{flag} {one}" for one in value)
    if isinstance(value, tuple):
        return f"{flag} {('x' if option.name in _SIDES else ',').join(map(str, value))}"
    return f"{flag} {value}".rstrip()
