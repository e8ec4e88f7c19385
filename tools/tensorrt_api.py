"""What export/tensorrt uses of TensorRT's Python API: read from its sources, held against the real bindings.

    python tools/tensorrt_api.py          writes tests/tensorrt_api.json from the bindings in .tools (make tools)
    python tools/tensorrt_api.py --read   prints the API of the bindings that can be imported, as JSON

An API is data: class -> member -> what it is. A method is a list of its signatures, as "(name: type = ...) -> type",
a property "-> type", with "<->" where it can be set, a value of an enumeration "constant 4", a class inside a class
"class". What a class of one's own overrides is among the methods, also where the bindings only describe it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RELEASES = ("10.16", "11.4")
SNAPSHOT = ROOT / "tests" / "tensorrt_api.json"
Api = dict[str, dict[str, Any]]

# How pybind11 writes types, and what the API calls them.
_NAMES = (
    (r"\btensorrt_bindings\.tensorrt\.", ""),
    (r"\b(typing|typing_extensions|collections\.abc)\.", ""),
    (r"\bnvonnxparser::I?(\w+)", r"\1"),
    (r" = <[^>]*>", " = ..."),
    (r"self: [\w.]+,? ?|arg0: [\w.]+,? ?(?=.*\) -> )", ""),
)


def read() -> Api:
    """Return the API of the bindings that can be imported."""
    module = importlib.import_module("tensorrt_bindings")
    found: Api = {"module": {"__version__": "-> str"}}
    for name, value in vars(module).items():
        if inspect.isbuiltin(value):
            found["module"][name] = _signatures(name, value.__doc__ or "")
        if inspect.isclass(value):
            found["module"][name] = "class"
            found[name] = _class(value)
            inner = ((key, part) for key, part in vars(value).items() if inspect.isclass(part))
            found |= {f"{name}.{key}": _class(part) for key, part in inner}
    return found


def release() -> str:
    """Return the release of the bindings that can be imported."""
    return str(importlib.import_module("tensorrt_bindings").__version__)


def _class(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dir(cls):
        if name.startswith("_") and name != "__init__":
            continue
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property):
            kind = _plain(value.fget.__doc__ or "").rpartition("-> ")[2].strip() or "Any"
            found[name] = f"<-> {kind}" if value.fset else f"-> {kind}"
        elif inspect.isclass(value):
            found[name] = "class"
        elif callable(value):
            found[name] = _signatures(name, getattr(cls, name).__doc__ or "")
        elif isinstance(value, cls):
            found[name] = f"constant {int(value)}"
    for name, arguments in re.findall(r"def (\w+)\(self, ([^)]*)\):", cls.__doc__ or ""):
        found.setdefault(name, [f"({arguments})"])
    return found


def _signatures(name: str, doc: str) -> list[str]:
    """Return the signatures of a method, of which pybind11 writes one in its first line, or several, numbered."""
    lines = [_plain(line) for line in doc.splitlines()]
    several = [line.split(" ", 1)[1] for line in lines if re.match(r"\d+\. " + name + r"\(", line)]
    return [line.removeprefix(name) for line in several or [line for line in lines[:1] if line.startswith(name + "(")]]


def _plain(text: str) -> str:
    for pattern, name in _NAMES:
        text = re.sub(pattern, name, text)
    return text


def of(name: str) -> dict[str, Any]:
    """Return release and API of the bindings in .tools, as a process of its own sees them: one fits into a process.

    Args:
        name: of `RELEASES`.
    """
    place = ROOT / ".tools" / f"tensorrt-{name}"
    environment = {**os.environ, "PYTHONPATH": str(place)}
    done = subprocess.run(
        [sys.executable, __file__, "--read"], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{place.relative_to(ROOT)} cannot be imported: {done.stderr[-300:]}. Next: make tools")
    return json.loads(done.stdout)


def snapshot() -> dict[str, Any]:
    """Return what is committed: of each release, what the sources use."""
    from tensorrt_uses import only, uses

    found = {}
    for name in RELEASES:
        told = of(name)
        found[name] = {"release": told["release"], "api": only(told["api"], uses(told["api"]))}
    return found


def main() -> None:
    """Print the API, or write the snapshot."""
    if "--read" in sys.argv:
        sys.stdout.write(json.dumps({"release": release(), "api": read()}))
        return
    SNAPSHOT.write_text(json.dumps(snapshot(), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
