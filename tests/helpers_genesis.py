"""The Genesis U-Net stated independently of our module: documented names and shapes, and every operation by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
# Channels at width 1 of each pair: in (None: the input's), middle, out.
DOWN: dict[str, tuple[int | None, int, int]] = {
    "down_tr64": (None, 1, 2),
    "down_tr128": (2, 2, 4),
    "down_tr256": (4, 4, 8),
    "down_tr512": (8, 8, 16),
}
UP = {"up_tr256": (24, 8, 8), "up_tr128": (12, 4, 4), "up_tr64": (6, 2, 2)}


def documented_shapes(width: int = 32, inputs: int = 1, classes: int = 1) -> dict[str, tuple[int, ...]]:
    """Upstream's names and shapes, written out from the documented layout."""
    found: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{name}.{part}"] = (channels,)
        found[f"{name}.num_batches_tracked"] = ()

    for name, (first, middle, out) in (DOWN | UP).items():
        reads = inputs if first is None else first * width
        if name.startswith("up"):
            deep = 2 * out * width
            found[f"{name}.up_conv.weight"], found[f"{name}.up_conv.bias"] = (deep, deep, 2, 2, 2), (deep,)
        for index, (a, b) in enumerate(((reads, middle * width), (middle * width, out * width))):
            found[f"{name}.ops.{index}.conv1.weight"] = (b, a, 3, 3, 3)
            found[f"{name}.ops.{index}.conv1.bias"] = (b,)
            norm(f"{name}.ops.{index}.bn1", b)
    found["out_tr.final_conv.weight"], found["out_tr.final_conv.bias"] = (classes, 2 * width, 1, 1, 1), (classes,)
    return found


def values(wanted: dict[str, tuple[int, ...]], seed: int = 5) -> State:
    """Values in double precision of which every one matters."""
    generator = torch.Generator().manual_seed(seed)
    made: State = {}
    for name, shape in wanted.items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.randint(1, 10**6, (), generator=generator)
            continue
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5
        made[name] = tensor.abs() + 0.5 if name.endswith(("running_var", "bn1.weight")) else tensor
    return made


def image(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# An independent statement: no module of ours, every mean and variance by hand.


def normalised(p: State, name: str, x: Tensor, batch: bool) -> Tensor:
    if batch:
        mean, var = x.mean((0, 2, 3, 4)), x.var((0, 2, 3, 4), unbiased=False)
    else:
        mean, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    scale = p[f"{name}.weight"] / torch.sqrt(var + 1e-5)
    return (x - mean[:, None, None, None]) * scale[:, None, None, None] + p[f"{name}.bias"][:, None, None, None]


def state_pair(p: State, name: str, x: Tensor, batch: bool) -> Tensor:
    for index in (0, 1):
        at = f"{name}.ops.{index}."
        x = F.conv3d(x, p[f"{at}conv1.weight"], p[f"{at}conv1.bias"], padding=1)
        x = normalised(p, f"{at}bn1", x, batch).clamp(min=0)
    return x


def state_unet(p: State, x: Tensor, *, batch: bool = True) -> dict[str, Tensor]:
    maps = {}
    for index, name in enumerate(DOWN):
        x = state_pair(p, name, F.max_pool3d(x, 2) if index else x, batch)
        maps[f"level{index}"] = x
    for name, skip in zip(UP, ("level2", "level1", "level0"), strict=True):
        x = F.conv_transpose3d(x, p[f"{name}.up_conv.weight"], p[f"{name}.up_conv.bias"], stride=2)
        x = state_pair(p, name, torch.cat((x, maps[skip]), 1), batch)
    maps["dense"] = x
    maps["logits"] = F.conv3d(x, p["out_tr.final_conv.weight"], p["out_tr.final_conv.bias"])
    maps["map"] = 1 / (1 + torch.exp(-maps["logits"]))
    return maps
