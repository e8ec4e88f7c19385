"""What the tests of segmentation networks share: values of which every one matters, plain layers, a small fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from plain_networks import Plan, norm, residual
from torch import Tensor, nn

State = Mapping[str, Tensor]


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


def three_balls(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Two noisy volumes (2, 1, D, H, W) and their label maps (2, D, H, W): a large, a middling and a small ball.

    The second is the first with H and W exchanged. A final convolution that starts near zero never learns the smaller.
    """
    d, h, w = shape
    labels = torch.zeros(shape, dtype=torch.long)
    for label, radius, centre in ((1, 5, (0.3, 0.25, 0.25)), (2, 4, (0.6, 0.7, 0.7)), (3, 3, (0.5, 0.25, 0.75))):
        labels[ball(shape, (d * centre[0], h * centre[1], w * centre[2]), radius) > 0] = label
    masks = torch.stack([labels, labels.transpose(1, 2)])
    noise = torch.randn((2, 1, *shape), generator=torch.Generator().manual_seed(0))
    return torch.tensor([-1.0, 0.0, 1.0, 2.0])[masks][:, None] + 0.2 * noise, masks


def fit(model: Any, x: Tensor, y: Tensor, *, steps: int, adam: float = 0.0) -> Tensor:
    """Train on one batch by cross-entropy and Dice; return its label maps in evaluation.

    By SGD, or by Adam at the rate `adam`, whose steps do not become smaller where the wanted class is rare.
    """
    classes = model.num_classes
    wanted = F.one_hot(y, classes).movedim(-1, 1)[:, 1:]
    optimiser: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    if adam:
        optimiser = torch.optim.Adam(model.parameters(), lr=adam)
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
        return torch.cat([model.eval()(one[None]).argmax(1) for one in x])
