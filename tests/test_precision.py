"""Laws of bf16 training on a CPU: what the guard lets through is right, what it holds back is exactly fp32."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.grad import conv3d_weight

from svd_hub.models import build
from svd_hub.training.precision import guard_cpu_bf16, unsafe_in_bf16
from svd_hub.training.tasks import Classification
from svd_hub.training.tasks.classification import Network, Optimiser

STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def survives(action: Callable[[], object]) -> bool:
    """Whether it ends well in a process of its own: a wrong kernel may take the process with it."""
    with warnings.catch_warnings():
        # From Python 3.12 on: forking is safe here, every pool has one thread.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=action)
        process.start()
    process.join(120)
    return process.exitcode == 0


def gradients(conv: nn.Conv3d, size: tuple[int, ...], *, bf16: bool) -> tuple[Tensor, Tensor]:
    """Weight and input gradient under the same input and output gradient."""
    generator = torch.Generator().manual_seed(sum(size))
    x = torch.randn(2, conv.in_channels, *size, generator=generator).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        y = conv(x)
    g = torch.randn(y.shape, generator=generator).bfloat16()
    conv.weight.grad = None
    y.backward(g.to(y.dtype))
    assert conv.weight.grad is not None
    assert x.grad is not None
    return conv.weight.grad.float(), x.grad.float()


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference as a share of the largest value of b."""
    return float((a - b).abs().max() / b.abs().max())


def sizes(kernel: int) -> list[tuple[int, int, int]]:
    depths = {1, 2, 3, kernel - 1, kernel, kernel + 1}
    planes = [(1, 1), (1, 5), (2, 2), (5, 1), (kernel // 2 + 1, kernel // 2 + 1), (8, 8)]
    return [(d, h, w) for d in sorted(depths) for h, w in planes]


@pytest.mark.parametrize("channels", [(1, 16), (16, 32)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_where_the_rule_says_safe_bf16_gradients_are_right(kernel: int, channels: tuple[int, int]) -> None:
    checked = []
    for stride, size in itertools.product(STRIDES, sizes(kernel)):
        conv = nn.Conv3d(*channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        if not unsafe_in_bf16(conv, size):
            checked.append((conv, size))

    def check() -> None:
        for conv, size in checked:
            want, got = gradients(conv, size, bf16=False), gradients(conv, size, bf16=True)
            assert difference(got[0], want[0]) < 0.02, (kernel, conv.stride, size)
            assert difference(got[1], want[1]) < 0.02, (kernel, conv.stride, size)

    assert len(checked) > 10
    assert survives(check)


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_where_the_rule_says_unsafe_the_guard_gives_the_fp32_gradient_itself(kernel: int) -> None:
    held = []
    for stride, size in itertools.product(STRIDES, sizes(kernel)):
        conv = nn.Conv3d(2, 4, kernel, stride=stride, padding=kernel // 2, bias=False)
        wrong_in_fp32_too = kernel == 7 and stride[0] == 2 and 4 <= size[0] <= 7  # see training/precision.py
        if unsafe_in_bf16(conv, size) and not wrong_in_fp32_too:
            held.append((conv, size))

    def check() -> None:
        for conv, size in held:
            want = gradients(conv, size, bf16=False)
            got = gradients(guard_cpu_bf16(conv), size, bf16=True)
            assert torch.equal(got[0], want[0]), (conv.stride, size)
            assert torch.equal(got[1], want[1]), (conv.stride, size)

    assert len(held) > 10
    assert survives(check)


@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [
        (3, 1, (2, 8, 8)),  # each of these was measured wrong, or killed the process
        (5, 1, (4, 9, 9)),
        (7, 1, (2, 9, 9)),
        (7, 1, (6, 9, 9)),
        (7, 2, (7, 9, 9)),
        (3, 2, (9, 1, 9)),
        (3, 2, (3, 1, 1)),
        (5, 1, (9, 1, 9)),
        (5, 2, (9, 9, 1)),
        (7, 1, (9, 2, 9)),
    ],
)
def test_what_was_measured_wrong_is_called_unsafe(kernel: int, stride: int, size: tuple[int, int, int]) -> None:
    assert unsafe_in_bf16(nn.Conv3d(1, 1, kernel, stride=stride, padding=kernel // 2), size)


def test_the_rule_follows_kernel_and_dilation_not_more() -> None:
    assert not unsafe_in_bf16(nn.Conv3d(1, 1, 1), (2, 1, 1))
    assert not unsafe_in_bf16(nn.Conv3d(1, 1, (1, 3, 3), padding=(0, 1, 1)), (2, 4, 4))
    assert not unsafe_in_bf16(nn.Conv3d(1, 1, 3, padding=1), (3, 2, 2))  # layer4 of a 32 px image
    assert not unsafe_in_bf16(nn.Conv3d(1, 1, 3, padding=1), (4, 8, 8))
    assert unsafe_in_bf16(nn.Conv3d(1, 1, 3, padding=2, dilation=2), (4, 8, 8))


def test_the_guard_changes_neither_state_nor_fp32_nor_inference_and_can_be_copied() -> None:
    network = build("resnet3d", {"depth": 10, "width": 2, "num_classes": 2})
    keys, x = list(network.state_dict()), torch.randn(1, 1, 2, 32, 32)
    want = network.eval()(x)
    guarded = guard_cpu_bf16(network)
    assert guarded is network
    assert list(network.state_dict()) == keys
    assert torch.equal(network(x), want)
    twin = copy.deepcopy(network)
    nn.init.zeros_(twin.conv1.weight)  # type: ignore[arg-type, union-attr]
    assert not torch.equal(twin(x), want)  # the copy runs on its own weights ...
    assert torch.equal(network(x), want)  # ... and the first on its


def test_stage_by_stage_gradients_of_a_pretraining_step() -> None:
    """Each convolution, given the inputs and output gradients that it really had: bf16 against fp32, at depth 3."""

    def check() -> None:
        torch.manual_seed(0)
        network = Network(options={"depth": 10, "width": 16, "num_classes": 5, "stem_pool": False})
        task = Classification(network=network, optimiser=Optimiser())
        seen: dict[str, list[Tensor]] = {}
        convs = {n: m for n, m in task.network.named_modules() if isinstance(m, nn.Conv3d)}

        def watch(name: str, conv: nn.Module) -> None:
            def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                seen[name] = [inputs[0].detach()]
                output.register_hook(seen[name].append)

            conv.register_forward_hook(keep)

        for name, conv in convs.items():
            watch(name, conv)
        images, labels = torch.randint(0, 256, (6, 3, 32, 32)), torch.randint(0, 5, (6,))
        for norm in task.network.modules():
            if isinstance(norm, nn.BatchNorm3d):
                nn.init.ones_(norm.weight)  # the last of each block is zero at first, and would hide its convolutions
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(task(images), labels)
        loss.backward()
        assert len(seen) == len(convs) > 10
        for name, conv in convs.items():
            x, g = seen[name]
            options = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
            want = conv3d_weight(x.float(), conv.weight.shape, g.float(), **options)
            assert conv.weight.grad is not None
            assert x.shape[2] == 3
            assert difference(conv.weight.grad, want) < 0.02, name

    assert survives(check)


def test_the_task_is_guarded() -> None:
    """A volume of depth 2 under autocast: the stem and every 3x3x3 convolution must go the fp32 way."""
    torch.manual_seed(0)
    network = Network(options={"depth": 10, "width": 2, "num_classes": 2}, form="volume")
    task = Classification(network=network, optimiser=Optimiser())
    found: dict[str, torch.dtype] = {}
    for name, module in task.network.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(lambda m, i, o, name=name: found.__setitem__(name, o.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        task(torch.rand(2, 1, 2, 32, 32) * 255)
    assert {found[name] for name in found if "downsample" not in name} == {torch.float32}
    assert {found[name] for name in found if "downsample" in name} == {torch.bfloat16}  # 1x1x1 is safe
