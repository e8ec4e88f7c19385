"""How an engine is built, beyond its graph and shapes; as the command's `--set NAME=VALUE` gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...errors import OptionError, check_choice

HARDWARE = ("this", "same_compute_capability", "ampere_plus")
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of a build; `formats` says each in a line.

    Attributes:
        hardware: one of `HARDWARE`: the GPUs that may run it.
        version_compatible: later releases of TensorRT may run it.
        refit: its weights can be exchanged.
        level: 0 to 5, how long TensorRT searches; None = its default.
        workspace: GiB; None = all there is.
        timing_cache: whether times of kernels are kept between builds.
    """

    hardware: str = "this"
    version_compatible: bool = False
    refit: bool = False
    level: int | None = None
    workspace: float | None = None
    timing_cache: bool = True

    def data(self) -> dict[str, Any]:
        """Return them for a manifest, and for building again."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def options_of(settings: Mapping[str, Any]) -> EngineOptions:
    """Return the options of settings, whose values may be text.

    Raises:
        OptionError: one that is none, or whose value is not allowed.
    """
    known = {field.name: field for field in fields(EngineOptions)}
    for name in settings:
        check_choice("setting of tensorrt", name, known)
    found = {name: _value(name, value) for name, value in settings.items() if value is not None}
    options = EngineOptions(**found)
    check_choice("hardware", options.hardware, HARDWARE)
    if options.level is not None and not 0 <= options.level <= 5:
        raise OptionError(f"level={options.level} is not allowed; allowed: 0 to 5")
    if options.workspace is not None and options.workspace <= 0:
        raise OptionError(f"workspace={options.workspace} is not allowed; allowed: GiB, more than 0")
    return options


def _value(name: str, value: Any) -> Any:
    text = str(value).lower()
    if name == "hardware":
        return text
    if name in ("level", "workspace"):
        try:
            return int(text) if name == "level" else float(text)
        except ValueError:
            raise OptionError(f"{name}={value!r} is not allowed; allowed: a number") from None
    if text not in _WORDS:
        raise OptionError(f"{name}={value!r} is not allowed; allowed: true or false")
    return _WORDS[text]
