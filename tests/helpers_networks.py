"""One narrow network of every kind, whose norms are not what they start as: what the tests of inference share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from svd_hub.models import build

torch.set_num_threads(1)
RESNET = {"depth": 18, "width": 8}
P3D = {"variant": "18ba", "width": 8}
# name -> architecture, options, the least (D, H, W), the step of each, the most D
KINDS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...], int | None]] = {
    "resnet3d": ("resnet3d", {**RESNET, "num_classes": 3}, (1, 1, 1), (1, 1, 1), None),
    "pooled": ("resnet3d", {**RESNET, "depth_stride": 2}, (1, 1, 1), (1, 1, 1), None),
    "pyramid": ("resnet3d", {**RESNET, "stem": "v1c", "features_only": True}, (1, 1, 1), (1, 1, 1), None),
    "medicalnet": (
        "resnet3d",
        {**RESNET, "depth": 10, "shortcut": "A", "output_stride": 8, "depth_stride": 2, "num_classes": 3},
        (1, 1, 1),
        (1, 1, 1),
        None,
    ),
    "acs": ("resnet3d", {**RESNET, "convolution": "acs", "num_classes": 3}, (1, 1, 1), (1, 1, 1), None),
    "densenet3d": ("densenet3d", {"depth": 121, "width": 8, "num_classes": 3}, (1, 29, 29), (1, 1, 1), None),
    "mp3d": ("p3d", {**P3D, "num_classes": 3}, (2, 2, 2), (1, 1, 1), None),
    "p3d": ("p3d", {**P3D, "num_classes": 3, "form": "p3d", "depth_stride": 2}, (9, 1, 1), (1, 1, 1), 12),
    "fcn3d": ("fcn3d", {"encoder_options": RESNET, "num_classes": 3}, (1, 1, 1), (1, 1, 1), None),
    "unet3d": ("unet3d", {"encoder_options": RESNET, "num_classes": 3}, (1, 1, 1), (1, 1, 1), None),
    "genesis": ("unet3d_genesis", {"width": 4, "batch_statistics": False}, (8, 8, 8), (8, 8, 8), None),
    "genesis_batch": ("unet3d_genesis", {"width": 4}, (16, 16, 16), (8, 8, 8), None),
    "segresencoder": ("segresencoder", {"init_filters": 8, "blocks_down": (1, 1, 1), "num_classes": 3},
                      (1, 1, 1), (1, 1, 1), None),
    "segresnet_ds": ("segresnet_ds", {"init_filters": 8, "blocks_down": (1, 1, 1)}, (4, 4, 4), (4, 4, 4), None),
    "segresnet": ("segresnet", {"init_filters": 8}, (8, 8, 8), (8, 8, 8), None),
    "detector": (
        "faster_rcnn3d",
        {"encoder_options": P3D, "channels": 16, "head_channels": 32, "num_classes": 2},
        (9, 1, 1),
        (1, 1, 1),
        12,
    ),
    "detector_small": (
        "faster_rcnn3d",
        {"encoder": "resnet3d", "encoder_options": {"depth": 10, "width": 8}, "channels": 16, "head_channels": 32,
         "num_classes": 2, "depth_stride": 1},
        (1, 1, 1),
        (1, 1, 1),
        None,
    ),
    "detector_group": (
        "faster_rcnn3d",
        {"encoder": "resnet3d", "encoder_options": RESNET, "channels": 16, "head_channels": 32, "num_classes": 2,
         "depth_stride": 1, "reduction": "group", "slices": 5, "convention": "mmdet1"},
        (5, 1, 1),
        (0, 1, 1),
        5,
    ),
}  # fmt: skip


def network(kind: str, **options: Any) -> Any:
    """A network of a kind, all of whose numbers matter."""
    architecture, own, *_ = KINDS[kind]
    torch.manual_seed(0)
    model: Any = build(architecture, {**own, **options})
    model.options = {**own, **options}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, nn.BatchNorm3d | nn.GroupNorm | nn.InstanceNorm3d) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, mean=0.3, std=0.2)
    return model.eval()


def sides(kind: str, side: int = 32) -> tuple[int, int, int]:
    """An ordinary (D, H, W) of a kind: group norms have more than two values to normalise by."""
    _, options, least, step, _ = KINDS[kind]
    side = 2 * side if "variant" in str(options) else side
    depth = least[0] if step[0] == 0 or least[0] in (5, 9) else max(8, least[0])
    return depth, max(side, least[1]), max(side, least[2])


def tensors(output: Any) -> list[Tensor]:
    """The tensors of an output, whatever it is."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for item in (output.values() if isinstance(output, dict) else output) for tensor in tensors(item)]


def error(found: Any, wanted: Any) -> float:
    """The largest relative error (of norms) between the tensors of two outputs."""
    pairs = list(zip(tensors(found), tensors(wanted), strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    return max(float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)) for a, b in pairs)
