"""Parameters and FLOPs of the networks of Table II, counted as the paper's counter does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIDE = 224  # the paper counts an image of ImageNet


def counted(network: Mapping[str, Any]) -> dict[str, float]:
    """Return "parameters" (with a classifier of 1000) and "flops" (without one) of a row's network."""
    from ...counting import count
    from ...skeleton import skeleton
    from ..twins import ResNet2D

    options = {**network, "num_classes": 1000}
    architecture = options.pop("architecture")
    if architecture == "resnet2d":
        found = count(ResNet2D(**options), (3, SIDE, SIDE))
    else:
        found = count(skeleton(architecture, options), (1, 3, SIDE, SIDE))
    return {"parameters": found.parameters, "flops": found.flops}
