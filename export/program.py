"""A network as an ExportedProgram of torch.export, for AOTInductor, torch.compile and other backends of torch.

Loading one needs torch and nothing of ours. It takes batches and depths of 1 (torch's own default would not: a size of
1 is a constant to it), but no input whose deepest level is a single voxel.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.fx.experimental._config as symbolic

from ..errors import OptionError
from . import artifact
from .contract import Order
from .formats import AXES
from .network import InPrecision
from .quiet import quiet

FILE = "model.pt2"
# What a node notes of where it came from: files and lines of this machine.
_NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")


def build(order: Order, folder: Path) -> dict[str, Any]:
    """Write model.pt2; see `contract.Builder`."""
    program = followed(order)
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            for note in _NOTES:
                node.meta.pop(note, None)
    program._example_inputs = None  # an array of zeros in the file, the size of the sample
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={"outputs.txt": "\n".join(order.network.outputs)})
    (folder / FILE).write_bytes(buffer.getvalue())
    return {"bytes": (folder / FILE).stat().st_size}


def followed(order: Order) -> torch.export.ExportedProgram:
    """Return the program of a network, its open axes open."""
    body = InPrecision(order.network, order.precision).eval()
    sample = torch.zeros(order.profile.sample(order.network.source.feature_info[-1].stride))
    named = zip((0, 2, 3, 4), AXES, strict=True)
    axes = {index: torch.export.Dim.DYNAMIC for index, name in named if name in order.profile.dynamic}
    with quiet(), torch.no_grad(), symbolic.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(body, (sample,), dynamic_shapes=(axes,))


class Runner:
    """Runs model.pt2; see `contract.Runner`."""

    def __init__(self, folder: Path, *, check: bool = True) -> None:
        if check:
            artifact.check(artifact.read(folder))
        extra = {"outputs.txt": ""}
        with quiet():
            program = torch.export.load(folder / FILE, extra_files=extra)
            self.module = program.module()
        self.names = extra["outputs.txt"].split("\n")
        self.provider = f"torch {torch.__version__} ExportedProgram on the CPU"

    def __call__(self, volume: np.ndarray) -> dict[str, np.ndarray]:
        """See `contract.Runner`.

        Raises:
            OptionError: a shape that the program does not take.
        """
        try:
            with torch.inference_mode():
                out = self.module(torch.from_numpy(volume))
        except AssertionError as error:
            raise OptionError(
                f"the program takes no input of shape {volume.shape}: {error}. Next: a larger one (its deepest level "
                "must have two voxels), or --to onnx, which takes it"
            ) from error
        found = out if isinstance(out, tuple) else (out,)
        return {name: tensor.numpy() for name, tensor in zip(self.names, found, strict=True)}
