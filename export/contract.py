"""What the parts of an export give each other. A new format is a row in `formats` and these two functions. No torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from .formats import Format

if TYPE_CHECKING:
    import numpy as np

    from .network import Network
    from .profile import Profile

INPUT = "volume"
Arrays = Mapping[str, "np.ndarray"]


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a builder is asked for.

    Attributes:
        network: to be exported: one float32 tensor in, float32 tensors out, by name.
        profile: shapes it must take.
        precision: one of `formats.PRECISIONS`.
        calibration: arrays (C, D, H, W) as the network takes them, for int8; else empty.
        exact: int8 leaves more than heads in float32: see `quantise.shortcuts`.
        opset: of ONNX, None = the builder's choice.
        facts: what goes into the file's own metadata, where it has such: entry, task, preprocessing, as text.
        settings: of the format, of those that its row has.
    """

    network: Network
    profile: Profile
    precision: str
    calibration: tuple[np.ndarray, ...] = ()
    exact: bool = False
    opset: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


class Builder(Protocol):
    """Writes the files of an artifact into an empty folder and returns what the manifest should say of them."""

    def __call__(self, order: Order, folder: Path) -> dict[str, Any]: ...


class Runner(Protocol):
    """Runs an artifact; made of its folder, whose files are hashed first (`check`), and of options of its own.

    `provider` is what really computes, in the runtime's words.
    """

    provider: str

    def __init__(self, folder: Path, *, check: bool = True, **options: Any) -> None: ...

    def __call__(self, volume: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name for an input (N, C, D, H, W), float32."""
        ...


def builder_of(row: Format) -> Builder:
    """Return the function that writes a format."""
    return cast("Builder", _find(row.build))


def runner_of(row: Format) -> type[Runner]:
    """Return the class that runs a format."""
    return cast("type[Runner]", _find(row.runner))


def _find(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), attribute)
