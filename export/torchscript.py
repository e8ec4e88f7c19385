"""A network as a TorchScript file, by tracing; it loads in libtorch and where svd_hub cannot be imported.

A CPU user who wants its speed applies `torch.jit.optimize_for_inference(torch.jit.freeze(module))` after loading; saved
after that it could not be loaded again (torch 2.13).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import artifact
from .contract import Order
from .network import InPrecision
from .quiet import quiet

FILE = "model.pt"
_NUMBERED = re.compile(rb"___torch_mangle_\d+")
NAMES = "outputs.json"  # inside the file: the names of the outputs, in order


def build(order: Order, folder: Path) -> dict[str, Any]:
    """Write model.pt; see `contract.Builder`."""
    body = InPrecision(order.network, order.precision).eval()
    sample = torch.zeros(order.profile.typical)
    with quiet(), torch.no_grad():
        # torch numbers names of classes from the second time on that it meets them; so that all have numbers, twice
        torch.jit.trace(body, torch.zeros(order.profile.smallest), check_trace=False)
        traced = torch.jit.trace(body, sample, check_trace=False)
        torch.jit.save(traced, str(folder / "traced.pt"), {NAMES: json.dumps(list(order.network.outputs)).encode()})
    without_sources(folder / "traced.pt", folder / FILE)
    (folder / "traced.pt").unlink()
    return {"bytes": (folder / FILE).stat().st_size}


def without_sources(path: Path, to: Path) -> None:
    """Write a TorchScript archive again without what differs from one export to the next.

    That is its source map, which holds paths of this machine, and the numbers that torch appends to names of classes,
    which count all that were ever traced in a process.
    """
    reader = torch._C.PyTorchFileReader(str(path))
    writer = torch._C.PyTorchFileWriter(str(to))
    records = {name: reader.get_record(name) for name in reader.get_all_records() if not name.endswith(".debug_pkl")}
    found = {number for text in (*map(str.encode, records), *records.values()) for number in _NUMBERED.findall(text)}
    names = {number: b"___torch_mangle_%d" % i for i, number in enumerate(sorted(found, key=lambda n: (len(n), n)))}
    content = {}
    for name, record in records.items():
        if not name.startswith((".data/", "version", "byteorder")):  # torch writes these itself
            text = name.startswith("code/") or name.endswith(".pkl")  # not the tensors
            renamed = _NUMBERED.sub(lambda match: names[match[0]], name.encode()).decode()
            content[renamed] = _NUMBERED.sub(lambda match: names[match[0]], record) if text else record
    for name in sorted(content):
        writer.write_record(name, content[name], len(content[name]))
    writer.write_end_of_file()


class Runner:
    """Runs model.pt; see `contract.Runner`."""

    def __init__(self, folder: Path, *, check: bool = True) -> None:
        if check:
            artifact.check(artifact.read(folder))
        extra = {NAMES: ""}
        with quiet():
            self.module = torch.jit.load(str(folder / FILE), map_location="cpu", _extra_files=extra).eval()
        self.names = json.loads(extra[NAMES])
        self.provider = f"torch {torch.__version__} TorchScript on the CPU"

    def __call__(self, volume: np.ndarray) -> dict[str, np.ndarray]:
        with torch.inference_mode(), quiet():
            out = self.module(torch.from_numpy(volume))
        found = out if isinstance(out, tuple) else (out,)
        return {name: tensor.numpy() for name, tensor in zip(self.names, found, strict=True)}
