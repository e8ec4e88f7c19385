"""What the tests of the variable dimension transform share."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svd_hub.models.resnet3d import ResNet3D


def resnet(**options: Any) -> ResNet3D:
    torch.manual_seed(0)
    return ResNet3D(**{"depth": 18, "width": 4, "init": "kaiming", "features_only": True, **options}).eval()


def settings(module: nn.Module) -> dict[str, Any]:
    """Everything of each submodule that is not a tensor, a submodule or a hook."""
    keys: tuple[str, ...] = (
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "count_include_pad",
        "_reversed_padding_repeated_twice",
    )
    keys += ("feature_info",)
    return {f"{name}.{key}": vars(m)[key] for name, m in module.named_modules() for key in keys if key in vars(m)}


def helper(x: Tensor) -> Tensor:
    return F.avg_pool3d(x, 2)
