"""What is wrong with a recipe's keys and values, in one line: the key as it is written, and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from ..errors import OptionError

# Lines of the parser that name the other types a value could have had.
BESIDES = ("Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Given value")
WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "tuple": "a list"}


def check_keys(asked: Iterable[str], config: Any) -> None:
    """Refuse keys that a recipe does not have; those below a table of free content are the parser's matter.

    Args:
        asked: the keys to change.
        config: of the recipe as it stands, with every default.

    Raises:
        OptionError: an unknown key, with the nearest ones.
    """
    asked = list(asked)
    if any(key.endswith("class_path") for key in asked):  # another class has other keys
        return
    known, values = list(config.keys(branches=True)), dict(config.items())
    leaves = tuple(f"{key}." for key, value in values.items() if value is None or isinstance(value, dict | list))
    for key in asked:
        if key not in known and not key.startswith(leaves):
            raise OptionError(f"no key {key!r}; nearest: {', '.join(nearest_keys(key, known)) or 'none'}")


def nearest_keys(key: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the keys that `key` may stand for: by what it ends with, then by its last word, then as a whole."""
    known = list(known)
    if ends := [name for name in known if name.endswith(f".{key}")]:
        return ends[:count]
    words = sorted({name.rpartition(".")[2] for name in known})
    found = [
        name for word in get_close_matches(key.rpartition(".")[2], words, count, 0.7) for name in _last(known, word)
    ]
    return (found or get_close_matches(key, known, count, 0.4))[:count]


def _last(known: Iterable[str], word: str) -> list[str]:
    return [name for name in known if name.rpartition(".")[2] == word]


def readable(error: Exception, asked: Mapping[str, Any] | None = None) -> str:
    """Return the parser's message on one line, in the words of a recipe.

    Args:
        error: the parser's.
        asked: keys that were to be changed, with their values.
    """
    lines = [line.strip(" -") for line in str(error).splitlines()]
    text = " ".join(line for line in lines if not line.startswith(BESIDES)).strip()
    text = re.sub(r"Problem with given class_path '[^']*': ", "", text)
    text = re.sub(r'Parser key "(\w+)": Parser key "([^"]+)":', r'Parser key "\1.init_args.\2":', text)
    text = re.sub(r'Parser key "([^"]+)":', r"\1:", text)
    text = re.sub(r"^(task|data): (Option )", r"\1.init_args: \2", text)
    key, _, what = text.partition(": ")
    found = re.sub(r"^Expected an? ", "", what)
    if key not in (asked or {}) or found == what:
        return text
    return f"{key}={(asked or {})[key]} is not allowed; allowed: {_allowed(found)}"


def _allowed(expected: str) -> str:
    """Return in words what the parser expected."""
    expected = re.sub(r"[.]? ?Got value: .*$", "", expected)
    if choices := re.fullmatch(r"typing\.Literal\[(.*)\]", expected):
        return choices[1].replace("'", "")
    kind = re.fullmatch(r"<class '(\w+)'>", expected)
    return WORDS.get(kind[1], kind[1]) if kind else expected
