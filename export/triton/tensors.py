"""Arrays in and out of Triton's Python backend, by DLPack.

Its own `as_numpy()` and `Tensor(name, array)` are built for numpy 1 in servers up to 24.10: with numpy 2 an array goes
out empty, without an error. DLPack means the same to all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def array_of(tensor: Any) -> np.ndarray:
    """Return a tensor of a request or response, which must lie in this machine's memory; it shares that memory."""
    return np.from_dlpack(tensor)


def tensor_of(backend: Any, name: str, array: np.ndarray) -> Any:
    """Return an array as a tensor.

    Args:
        backend: the module triton_python_backend_utils.
        name: of the output, or of another model's input.
        array: numbers; not text, which DLPack does not know.
    """
    plain = np.ascontiguousarray(array)
    plain = plain if plain.flags.writeable else plain.copy()  # DLPack knows no read-only
    # torch's capsule and not numpy's, which complains when it is put away under the name that the backend gives it
    return backend.Tensor.from_dlpack(name, torch.from_numpy(plain))
