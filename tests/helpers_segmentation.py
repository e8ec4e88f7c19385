"""What the tests of segmentation networks share: values of which every one matters, plain layers, a small fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_networks import Plan, norm, residual
from torch import Tensor, nn

from svd_hub.metrics import dice

State = Mapping[str, Tensor]
# The data sets that lie beside a checkout; what needs them is marked slow, and skipped where they are not there.
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def randomised(network: nn.Module, seed: int = 5) -> Any:
    """The network in double precision and evaluation mode, with values that no mistake could leave without effect."""
    generator = torch.Generator().manual_seed(seed)
    network.double().eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point():
                continue
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            positive = name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight"))
            tensor.copy_(drawn.abs() + 0.5 if positive else drawn * (2 / max(1, tensor[0].numel())) ** 0.5)
    return network


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def close(a: Any, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def convolve(state: State, name: str, x: Tensor) -> Tensor:
    """Convolution, norm in evaluation, ReLU, as upstream's module of that name."""
    kernel = state[f"{name}.conv.weight"]
    return F.relu(norm(state, f"{name}.bn", F.conv3d(x, kernel, padding=kernel.shape[-1] // 2)))


def resnet_levels(state: State, x: Tensor, *, pool: bool, strides: tuple[int, int, int, int]) -> list[Tensor]:
    """stem, layer1 ... layer4 of a ResNet3D under `backbone.` whose stem has stride 1."""
    return list(residual(state, x, Plan((1, 1, 1), pool, strides), prefix="backbone.").values())


def ball(shape: tuple[int, int, int], centre: tuple[float, float, float], radius: float) -> Tensor:
    """1 inside a ball, 0 outside."""
    axes = [torch.arange(n) - c for n, c in zip(shape, centre, strict=True)]
    return (torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0) < radius**2).long()


def two_balls(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Two noisy volumes (2, 1, D, H, W) and their masks (2, D, H, W)."""
    mid = [(n - 1) / 2 for n in shape]
    masks = torch.stack([ball(shape, (mid[0], mid[1], mid[2] + 2), 5), ball(shape, (mid[0], mid[1] - 2, mid[2]), 4)])
    noise = torch.randn((2, 1, *shape), generator=torch.Generator().manual_seed(0))
    return masks[:, None] * 2.0 - 1 + 0.5 * noise, masks


def fit(model: Any, x: Tensor, y: Tensor, *, steps: int, lr: float) -> list[float]:
    """Train on one batch by cross-entropy and Dice; return the Dice of each class but 0, as evaluation has it."""
    classes = model.num_classes
    wanted = F.one_hot(y, classes).movedim(-1, 1)[:, 1:]
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    model.train()
    for _ in range(steps):
        logits = model(x)
        shares = logits.softmax(1)[:, 1:]
        overlap = 2 * (shares * wanted).sum((0, 2, 3, 4)) / (shares + wanted).sum((0, 2, 3, 4))
        loss = F.cross_entropy(logits, y) + (1 - overlap).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        falling.step()
    with torch.inference_mode():
        found = torch.cat([model.eval()(one[None]).argmax(1) for one in x])
    return [float(value) for value in dice(found, y, classes)[1:]]


def need(folder: str) -> Path:
    """The folder of a data set, or the test is skipped."""
    if not (DATA / folder).is_dir():
        pytest.skip(f"{folder} is not beside the checkout")
    return DATA / folder
