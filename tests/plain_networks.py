"""What the compared networks compute, said in plain functions of the tensors as upstream names them.

Nothing of svd_hub is used here: these are the statements that loaded networks are held against. Each function takes a
state dict of the upstream file (prefix and all), and returns every level of the pyramid by the hub's name for it. The
facts (where a network strides, pools, dilates, and by what its shortcut subsamples) are those of the repositories that
the modules of svd_hub/origins name. Widths and depths are whatever the tensors have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
Triple = tuple[int, int, int]
Convolve = Callable[..., Tensor]
LEVELS = ("stem", "layer1", "layer2", "layer3", "layer4")


def norm(p: State, name: str, x: Tensor) -> Tensor:
    """Batch norm in evaluation."""
    return F.batch_norm(x, *(p[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))


def solid(kernel: Tensor, bias: Tensor | None, x: Tensor, *, stride: Any = 1, dilation: int = 1) -> Tensor:
    """A 3D convolution that keeps the size but for its stride."""
    padding = tuple(dilation * (k // 2) for k in kernel.shape[2:])
    return F.conv3d(x, kernel, bias, stride, padding, dilation)


def repeated(kernel: Tensor, bias: Tensor | None, x: Tensor, **how: Any) -> Tensor:
    """I3D: each slice of the 3D kernel is the 2D kernel, divided by how many there are."""
    k = kernel.shape[-1]
    return solid(torch.stack([kernel / k] * k, dim=2), bias, x, **how)


def in_three_planes(kernel: Tensor, bias: Tensor | None, x: Tensor, **how: Any) -> Tensor:
    """ACS: three thin convolutions side by side; 64 channels are 22 axial, 21 coronal and 21 sagittal ones."""
    sizes = [(len(kernel) + rest) // 3 for rest in (2, 1, 0)]
    biases = [None] * 3 if bias is None else bias.split(sizes)
    parts = zip((2, 3, 4), kernel.split(sizes), biases, strict=True)
    return torch.cat([solid(part.unsqueeze(axis), b, x, **how) for axis, part, b in parts], dim=1)


@dataclass(frozen=True)
class Names:
    """How a file calls the parts: of the stem, of the k-th pair of a block."""

    stem: tuple[str, str] = ("conv1", "bn1")
    pair: tuple[str, str] = ("conv{}", "bn{}")


@dataclass(frozen=True)
class Plan:
    """Where a residual network strides and dilates; one number is all three axes."""

    stem: Triple
    pool: bool = True
    strides: tuple[int, int, int, int] = (1, 2, 2, 2)
    dilations: tuple[int, int, int, int] = (1, 1, 1, 1)
    names: Names = Names()
    detach: bool = True
    convolve: Convolve = solid


def residual(state: State, x: Tensor, plan: Plan, *, prefix: str = "") -> dict[str, Tensor]:
    """Return the stem before its pool, and the four stages."""
    p = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}

    def convolve(name: str, x: Tensor, **how: Any) -> Tensor:
        return plan.convolve(p[f"{name}.weight"], p.get(f"{name}.bias"), x, **how)

    first, second = plan.names.stem
    x = F.relu(norm(p, second, convolve(first, x, stride=plan.stem)))
    levels = {"stem": x}
    if plan.pool:
        x = F.max_pool3d(x, kernel_size=3, stride=2, padding=1)
    for stage in (1, 2, 3, 4):
        blocks = len({name.split(".")[1] for name in p if name.startswith(f"layer{stage}.")})
        for block in range(blocks):
            stride = plan.strides[stage - 1] if block == 0 else 1
            x = one_block(p, f"layer{stage}.{block}", x, convolve, stride, plan.dilations[stage - 1], plan)
        levels[f"layer{stage}"] = x
    return levels


def one_block(p: State, name: str, x: Tensor, convolve: Convolve, stride: int, dilation: int, plan: Plan) -> Tensor:
    """Two 3x3x3 convolutions, the first strided, or 1x1x1, strided 3x3x3, 1x1x1; and what they are added to."""
    pairs = [tuple(f"{name}.{part.format(k)}" for part in plan.names.pair) for k in (1, 2, 3)]
    if f"{pairs[2][0]}.weight" in p:
        hows: list[dict[str, Any]] = [{}, {"stride": stride, "dilation": dilation}, {}]
    else:
        hows = [{"stride": stride, "dilation": dilation}, {"dilation": dilation}]
    y = x
    for number, how in enumerate(hows):
        conv, bn = pairs[number]
        y = norm(p, bn, convolve(conv, y, **how))
        y = F.relu(y) if number < len(hows) - 1 else y
    if f"{name}.downsample.0.weight" in p:
        x = norm(p, f"{name}.downsample.1", convolve(f"{name}.downsample.0", x, stride=stride))
    elif y.shape != x.shape:
        x = F.avg_pool3d(x.detach() if plan.detach else x, kernel_size=1, stride=stride)
        x = torch.cat([x, x.new_zeros(len(x), y.shape[1] - x.shape[1], *x.shape[2:])], dim=1)
    return F.relu(y + x)


def classify(state: State, deepest: Tensor, name: str = "fc") -> Tensor:
    """The logits on the mean of the deepest level."""
    return F.linear(deepest.mean((2, 3, 4)), state[f"{name}.weight"], state[f"{name}.bias"])


def medicalnet(state: State, x: Tensor, *, prefix: str = "module.", detach: bool = True) -> dict[str, Tensor]:
    """MedicalNet: stride 8; the third and fourth stage are dilated by 2 and 4 instead of strided."""
    plan = Plan(stem=(2, 2, 2), strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), detach=detach)
    return residual(state, x, plan, prefix=prefix)


def kinetics(state: State, x: Tensor, *, prefix: str = "", detach: bool = True) -> dict[str, Tensor]:
    """3D-ResNets-PyTorch, both generations: the stem keeps the frames, everything after it halves them too."""
    return residual(state, x, Plan(stem=(1, 2, 2), detach=detach), prefix=prefix)


def torchvision_r3d(state: State, x: Tensor, *, stem: Triple = (1, 2, 2)) -> dict[str, Tensor]:
    """torchvision's r3d: a stem three frames deep, no pool; convolutions and norms of a block in pairs."""
    names = Names(("stem.0", "stem.1"), ("conv{}.0", "conv{}.1"))
    return residual(state, x, Plan(stem=stem, pool=False, names=names))


def resnet_2d(state: State, x: Tensor, convolve: Convolve) -> dict[str, Tensor]:
    """A 2D ResNet whose every convolution is done on volumes by `convolve`, strided in all three axes."""
    return residual(state, x, Plan(stem=(2, 2, 2), convolve=convolve))


def fmcib(state: State, x: Tensor, *, prefix: str = "") -> dict[str, Tensor]:
    """FMCIB: MONAI's ResNet-50 with stride 2 in the stem and a bias in every shortcut convolution."""
    return residual(state, x, Plan(stem=(2, 2, 2)), prefix=prefix)


def merlin(state: State, x: Tensor, *, prefix: str = "encode_image.i3_resnet.") -> dict[str, Tensor]:
    """Merlin: the volume three times as channels; a stem three slices deep that keeps them, then as Kinetics."""
    return residual(state, torch.cat([x, x, x], dim=1), Plan(stem=(1, 2, 2)), prefix=prefix)


def densenet_2d(state: State, x: Tensor, convolve: Convolve) -> dict[str, Tensor]:
    """A 2D DenseNet on volumes: the stem before its pool, what each dense block gives, the last after norm and ReLU.

    Reads today's names and those of the published file (`denselayer1.norm.1`).
    """
    legacy = re.compile(r"\.(norm|conv)\.([12])\.")
    p = {legacy.sub(r".\1\2.", name.removeprefix("features.")): tensor for name, tensor in state.items()}

    def step(bn: str, conv: str, x: Tensor) -> Tensor:
        return convolve(p[f"{conv}.weight"], None, F.relu(norm(p, bn, x)))

    levels = {"level0": F.relu(norm(p, "norm0", convolve(p["conv0.weight"], None, x, stride=2)))}
    x = F.max_pool3d(levels["level0"], kernel_size=3, stride=2, padding=1)
    for block in (1, 2, 3, 4):
        layers = len({name.split(".")[1] for name in p if name.startswith(f"denseblock{block}.")})
        for layer in range(1, layers + 1):
            at = f"denseblock{block}.denselayer{layer}"
            x = torch.cat([x, step(f"{at}.norm2", f"{at}.conv2", step(f"{at}.norm1", f"{at}.conv1", x))], dim=1)
        levels[f"level{block}"] = x
        if block < 4:
            x = F.avg_pool3d(step(f"transition{block}.norm", f"transition{block}.conv", x), kernel_size=2, stride=2)
    levels["level4"] = F.relu(norm(p, "norm5", x))
    return levels
