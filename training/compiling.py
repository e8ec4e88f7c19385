"""torch.compile of a network, where it can be done."""

from __future__ import annotations

import os
import shutil

from torch import nn

from ..errors import SvdHubError


def compile_network(network: nn.Module) -> None:
    """Have a network compiled when it first runs, in place: its names and tensors stay.

    Raises:
        SvdHubError: there is no C++ compiler, without which torch can compile neither for a CPU nor for a GPU.
    """
    compilers = (os.environ.get("CXX", "g++"), "clang++", "cl")
    if not any(map(shutil.which, compilers)):
        raise SvdHubError(
            "run.compile=true needs a C++ compiler; found none of g++, clang++. Next: install one (apt-get install "
            "g++), name it in CXX, or run.compile=false"
        )
    network.compile()
