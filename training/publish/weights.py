"""The released file of a run: its tensors in half or single precision, with the record that rebuilds the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import checkpoint
from ...errors import SvdHubError
from . import golden
from .finished import Finished

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def released(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Return the tensors in the precision of the release; integers stay.

    Raises:
        SvdHubError: half precision cannot hold a value, or one is no finite number already.
    """
    real = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if bad := [name for name, tensor in real.items() if not bool(tensor.isfinite().all())]:
        raise SvdHubError(
            f"{len(bad)} tensors hold NaN or infinity (first: {bad[0]}). Next: publish a run that did not diverge"
        )
    made = {name: tensor.to(DTYPES[dtype]) for name, tensor in real.items()}
    if over := [name for name, tensor in made.items() if not bool(tensor.isfinite().all())]:
        raise SvdHubError(
            f"{len(over)} tensors have values beyond half precision's 65504 (first: {over[0]}, "
            f"{float(real[over[0]].abs().max()):.6g}). Next: --dtype fp32"
        )
    return {name: made.get(name, tensor) for name, tensor in tensors.items()}


def write(file: Path, run: Finished, dtype: str, record: Mapping[str, Any]) -> None:
    """Write the file; `record` is laid over what the run's own file says of its network."""
    checkpoint.write(file, released(run.tensors, dtype), {**run.record, **record})


def lost(run: Finished, dtype: str, x: Tensor, output: golden.Outputs) -> float:
    """Return how far the released network is from the trained one on the golden input; see `golden.moved`."""
    if dtype == "fp32":
        return 0.0
    trained = golden.network_of(run.record["architecture"], run.record["options"], run.tensors)
    return golden.moved(output, golden.output_of(trained, x))
