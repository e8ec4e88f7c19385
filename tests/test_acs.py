"""Laws of ACSConv: an independent statement of it, its equality with a dense convolution, its 2D state, its errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svd_hub.errors import OptionError
from svd_hub.models.acs import ACSConv, dense_kernel

torch.set_num_threads(1)


def noise(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def groups_of(channels: int) -> tuple[int, int, int]:
    """A third each; what is over goes to the first, then the second."""
    sizes = [channels // 3] * 3
    for index in range(channels % 3):
        sizes[index] += 1
    return (sizes[0], sizes[1], sizes[2])


def three_convolutions(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, dilation: int) -> Tensor:
    """ACS as it is told: axial, coronal and sagittal kernels, one voxel thick, side by side."""
    edge = dilation * (weight.shape[-1] // 2)
    parts, start = [], 0
    for axis, size in enumerate(groups_of(len(weight))):
        if size:
            padding, own = [edge] * 3, slice(start, start + size)
            padding[axis] = 0
            kernel = weight[own].unsqueeze(axis + 2)
            b = None if bias is None else bias[own]
            parts.append(F.conv3d(x, kernel, b, stride=stride, padding=padding, dilation=dilation))
            start += size
    return torch.cat(parts, dim=1)


LAYERS: dict[str, tuple[int, int, int, int, int, int]] = {  # in, out, kernel, stride, padding, dilation
    "stem": (1, 64, 7, 2, 3, 1),
    "stem of three channels": (3, 64, 7, 2, 3, 1),
    "3x3x3": (16, 64, 3, 1, 1, 1),
    "3x3x3 strided": (16, 128, 3, 2, 1, 1),
    "1x1x1 strided": (32, 64, 1, 2, 0, 1),
    "dilated": (8, 16, 3, 1, 2, 2),
    "few channels": (4, 2, 3, 1, 1, 1),
    "one channel": (4, 1, 5, 1, 2, 1),
}
SIZES = ((8, 12, 16), (7, 9, 11), (1, 13, 6))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_layer_is_its_dense_convolution_exactly(layer: str, size: tuple[int, int, int]) -> None:
    channels_in, channels_out, kernel, stride, padding, dilation = LAYERS[layer]
    where: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    torch.manual_seed(0)
    acs = ACSConv(channels_in, channels_out, kernel, **where)
    dense = nn.Conv3d(channels_in, channels_out, kernel, **where)
    with torch.no_grad():
        dense.weight.copy_(dense_kernel(acs.weight))
        dense.bias.copy_(acs.bias)  # type: ignore[union-attr, arg-type]
    x = noise(2, channels_in, *size)
    assert (acs(x) - dense(x)).abs().max().item() == 0.0


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_layer_is_three_convolutions(layer: str, size: tuple[int, int, int]) -> None:
    channels_in, channels_out, kernel, stride, padding, dilation = LAYERS[layer]
    acs = ACSConv(channels_in, channels_out, kernel, stride=stride, padding=padding, dilation=dilation).double()
    x = noise(2, channels_in, *size, dtype=torch.float64)
    torch.testing.assert_close(acs(x), three_convolutions(x, acs.weight, acs.bias, stride, dilation))


@pytest.mark.parametrize(
    ("channels", "sizes"),
    [
        (64, (22, 21, 21)),
        (128, (43, 43, 42)),
        (256, (86, 85, 85)),
        (512, (171, 171, 170)),
        (2, (1, 1, 0)),
        (3, (1,) * 3),
    ],
)
def test_sizes_of_the_groups(channels: int, sizes: tuple[int, int, int]) -> None:
    assert groups_of(channels) == sizes
    kernel = dense_kernel(torch.ones(channels, 1, 3, 3))[:, 0]
    flat = [[not one.select(axis, 0).any() and not one.select(axis, 2).any() for one in kernel] for axis in range(3)]
    first, second, third = sizes
    planes = [0] * first + [1] * second + [2] * third
    assert [axis.count(True) for axis in flat] == list(sizes)
    assert all(flat[plane][index] for index, plane in enumerate(planes))


def test_the_dense_kernel_sums_to_the_2d_kernel_over_the_axis_that_was_added() -> None:
    weight = noise(7, 4, 5, 5)
    kernel = dense_kernel(weight)
    assert kernel.shape == (7, 4, 5, 5, 5)
    for index, axis in enumerate((1, 1, 1, 2, 2, 3, 3)):
        assert torch.equal(kernel[index].sum(axis), weight[index])
        assert torch.equal(kernel[index].select(axis, 2), weight[index])


def test_an_even_kernel_lies_at_its_half() -> None:
    weight = noise(3, 1, 4, 4)
    kernel = dense_kernel(weight)
    assert torch.equal(kernel[0, 0, 2], weight[0, 0])
    assert torch.equal(kernel[1, 0, :, 2], weight[1, 0])
    assert torch.equal(kernel[2, 0, :, :, 2], weight[2, 0])
    assert torch.count_nonzero(kernel) == weight.numel()


@pytest.mark.parametrize("times", [1, 2])
def test_depthwise_channels_keep_their_input(times: int) -> None:
    acs = ACSConv(5, 5 * times, 3, padding=1, groups=5).double()
    x = noise(1, 5, 6, 7, 8, dtype=torch.float64)
    for channel, plane in enumerate(n for n, size in enumerate(groups_of(5 * times)) for _ in range(size)):
        kernel = acs.weight[channel : channel + 1].unsqueeze(plane + 2)
        padding = [0 if axis == plane else 1 for axis in range(3)]
        own = channel // times
        expected = F.conv3d(x[:, own : own + 1], kernel, acs.bias[channel : channel + 1], padding=padding)
        torch.testing.assert_close(acs(x)[:, channel : channel + 1], expected)


def test_the_state_is_that_of_a_2d_convolution() -> None:
    for bias in (True, False):
        flat, acs = nn.Conv2d(6, 9, 3, bias=bias), ACSConv(6, 9, 3, bias=bias)
        assert {n: t.shape for n, t in acs.state_dict().items()} == {n: t.shape for n, t in flat.state_dict().items()}
        acs.load_state_dict(flat.state_dict())
        assert torch.equal(acs.weight, flat.weight)


def test_initialisation_is_that_of_a_2d_convolution() -> None:
    torch.manual_seed(3)
    flat = nn.Conv2d(16, 33, 5)
    torch.manual_seed(3)
    acs = ACSConv(16, 33, 5)
    assert torch.equal(acs.weight, flat.weight)
    assert torch.equal(acs.bias, flat.bias)
    assert acs.weight.abs().max() <= 1 / math.sqrt(16 * 25)


def test_training_moves_the_2d_kernel_and_nothing_else() -> None:
    torch.manual_seed(0)
    acs = ACSConv(2, 7, 3, padding=1).double()
    before = acs.weight.detach().clone()
    x = noise(2, 2, 5, 6, 7, dtype=torch.float64)
    optimiser = torch.optim.SGD(acs.parameters(), lr=0.1)
    acs(x).square().mean().backward()
    # by hand: the gradient of the dense kernel, read off where the 2D kernel lies
    dense = dense_kernel(before).requires_grad_()
    F.conv3d(x, dense, acs.bias.detach(), padding=1).square().mean().backward()
    assert dense.grad is not None
    parts = [dense.grad[:3, :, 1], dense.grad[3:5, :, :, 1], dense.grad[5:, :, :, :, 1]]
    torch.testing.assert_close(acs.weight.grad, torch.cat(parts))
    optimiser.step()
    assert [n for n, _ in acs.named_parameters()] == ["weight", "bias"]
    assert acs.weight.shape == (7, 2, 3, 3)
    assert not torch.equal(acs.weight, before)
    assert torch.count_nonzero(dense_kernel(acs.weight)) == acs.weight.numel()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("groups", [1, 4])
def test_it_can_be_exported(groups: int) -> None:
    acs, x = ACSConv(4, 8, 3, stride=(1, 2, 2), padding=1, groups=groups).eval(), noise(2, 4, 5, 6, 7)
    for other in (torch.jit.script(acs), torch.jit.trace(acs, x), torch.export.export(acs, (x,)).module()):
        assert torch.equal(other(x), acs(x))


def test_settings_read_as_those_of_conv3d() -> None:
    acs = ACSConv(4, 8, 3, stride=(1, 2, 2), padding=1, dilation=1, bias=False)
    same = nn.Conv3d(4, 8, 3, stride=(1, 2, 2), padding=1, bias=False)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"):
        assert getattr(acs, name) == getattr(same, name)
    assert acs.extra_repr() == same.extra_repr()
    assert ACSConv(4, 8, 3, padding="same", dilation=(1, 2, 3)).padding == (1, 2, 3)
    assert ACSConv(4, 8, 3, padding="valid").padding == (0, 0, 0)
    assert ACSConv(4, 8, (3, 3, 3), dtype=torch.float64, device="meta").weight.dtype == torch.float64


BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"groups": 2}, r"groups=2 .*groups=1.*depthwise"),
    ({"groups": 4, "out_channels": 6}, r"out_channels=6, groups=4 .*divide"),
    ({"in_channels": 0}, r"in_channels=0"),
    ({"kernel_size": (1, 3, 3)}, r"kernel_size=\(1, 3, 3\) .*one size"),
    ({"kernel_size": 0}, r"kernel_size=0 .*from 1"),
    ({"stride": (2, 2)}, r"stride=\(2, 2\) .*\(D, H, W\)"),
    ({"padding": -1}, r"padding=-1 .*from 0"),
    ({"padding": "full"}, r"padding='full'"),
    ({"padding": "same", "stride": 2}, r"padding='same' .*stride 1"),
    ({"padding": "same", "kernel_size": 4}, r"padding='same' .*odd kernel"),
    ({"dilation": 0}, r"dilation=0 .*from 1"),
)


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_bad_settings_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ACSConv(**{"in_channels": 4, "out_channels": 8, "kernel_size": 3, **options})


@pytest.mark.parametrize("shape", [(4, 1, 3, 5), (4, 1, 3), (4, 1, 3, 3, 3)])
def test_a_kernel_without_an_acs_form(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"allowed: \(O, I, k, k\).*i3d"):
        dense_kernel(torch.zeros(shape))
