"""Files laid out as upstream's, with seeded values instead of trained ones, and the overlays that name them."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

OFFICIAL = "resnet3d18_imagenet"
OFFICIAL_FILE = "res3d18_imagenet_BN_73.07-5ff2ecb7.pth"
NARROW = {"width": 8}  # about a megabyte instead of 66
TINY = {"depth": 10, "width": 4, "num_classes": 5, "in_channels": 3}


@functools.lru_cache(maxsize=8)
def _official(items: tuple[tuple[str, Any], ...], seed: int) -> bytes:
    buffer = io.BytesIO()
    import torch

    content = {
        "state_dict": values(dict(items), seed=seed, half=True),
        "meta": {"epoch": 100, "mmcls_version": "0.5.0"},
    }
    torch.save(content, buffer)
    return buffer.getvalue()


def official(*, seed: int = 0, **options: Any) -> bytes:
    """A ResNet3D as the authors publish it: bare keys under "state_dict", "meta" beside it, convolutions in fp16."""
    return _official(tuple(sorted({"depth": 18, "num_classes": 0, **options}.items())), seed)


def values(options: dict[str, Any], *, seed: int = 0, half: bool = False) -> dict[str, Any]:
    """Return a seeded state dict of a ResNet3D whose outputs are neither zero nor infinite."""
    import torch

    from svd_hub import models

    with torch.device("meta"):
        shapes = {name: t.shape for name, t in models.build("resnet3d", options).state_dict().items()}
    g = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.randint(1, 10**6, (), generator=g)
        elif name.endswith("running_var"):
            made[name] = torch.rand(shape, generator=g) + 0.5
        elif len(shape) == 5:
            tensor = torch.randn(shape, generator=g) * (2 / shape[1:].numel()) ** 0.5
            made[name] = tensor.half() if half else tensor
        else:
            made[name] = torch.randn(shape, generator=g) * 0.1 + float(name.endswith("weight"))
    return made


def ours(options: dict[str, Any], *, seed: int = 0) -> bytes:
    """A plain safetensors file of a ResNet3D under our names."""
    from safetensors.torch import save

    return save(values(options, seed=seed))


class Shelf:
    """Entries of a test's own, laid over the catalogue; `put` writes the file and the overlay."""

    def __init__(self, folder: Path) -> None:
        self.mirror, self.overlay = folder / "mirror", folder / "overlay.toml"
        self.mirror.mkdir()
        self.tables: dict[str, dict[str, Any]] = {}
        self.licences: dict[str, dict[str, Any]] = {}
        self.write()

    def put(self, name: str, body: bytes, *, source: dict[str, Any] | None = None, **table: Any) -> Path:
        """Let the entry `name` be this file (in the mirror; elsewhere too, if `source` says so); return its path."""
        given = {"kind": "url", "url": "http://127.0.0.1:9/none", "file": f"{name}.pth"}
        if name == OFFICIAL:
            given["file"] = OFFICIAL_FILE
        given |= {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body)} | (source or {})
        self.tables[name] = {**table, "source": given}
        path = self.mirror / given["file"]
        path.write_bytes(body)
        self.write()
        return path

    def put_official(self, body: bytes | None = None, **source: Any) -> Path:
        """The official entry, narrow."""
        return self.put(OFFICIAL, body or official(**NARROW), source=source, options=NARROW)

    def put_tiny(self, name: str = "tiny", *, seed: int = 0, **table: Any) -> Path:
        """A new entry, the smallest network with a head."""
        given = {"summary": "a test", "architecture": "resnet3d", "options": TINY, "status": "official"}
        given |= {"task": "classification", "licence": "CC0-1.0", "classes": list("abcde")}
        return self.put(name, ours(TINY, seed=seed), **(given | table))

    def put_licence(self, name: str, **table: Any) -> None:
        """A licence that asks for consent; entries name it as theirs."""
        self.licences[name] = {"name": f"the terms {name}", "consent": True, **table}
        self.write()

    def write(self) -> None:
        """Write the overlay, and let the catalogue be read anew."""
        text = "".join(f"[licence.{toml(name)}]\n{keys(table)}" for name, table in self.licences.items())
        text += "".join(f"[entry.{toml(name)}]\n{keys(table)}" for name, table in self.tables.items())
        self.overlay.write_text(text, encoding="utf-8")
        if catalog := sys.modules.get("svd_hub.catalog"):
            catalog._read.cache_clear()


def keys(table: dict[str, Any]) -> str:
    return "".join(f"{key} = {toml(value)}\n" for key, value in table.items())


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)  # of text, numbers, booleans and lists of them, JSON is TOML


class Code:
    """What an attacker pickles: it makes the folder when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.sentinel),)


def with_code(sentinel: Path) -> bytes:
    """A checkpoint that runs code where it is unpickled without care."""
    return pickle.dumps({"state_dict": Code(sentinel)}, protocol=2)
