"""Windows blended slab by slab are MONAI's `sliding_window_inference`; one row of them is in memory, and no more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from svd_hub.errors import OptionError
from svd_hub.ops.blending import InMemory, blended, importance, whole, window_starts

MODES = {"gaussian": "gaussian", "constant": "constant"}


class Local(nn.Module):
    """A network whose output depends on where in its window a voxel lies, as every padded convolution's does."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(channels + classes)
        self.layers = nn.Sequential(
            nn.Conv3d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, classes, 3, padding=1)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def cases(count: int) -> list[dict[str, Any]]:
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        window = rng.integers(2, 9, 3)
        stride = [int(rng.integers(1, w + 1)) for w in window]
        found.append(
            {
                "sides": tuple(int(n) for n in rng.integers(1, 20, 3)),
                "window": tuple(int(w) for w in window),
                "stride": stride,
                "blend": list(MODES)[number % 2],
                "at_once": int(rng.integers(1, 6)),
                "channels": int(rng.integers(1, 3)),
                "classes": int(rng.integers(1, 4)),
                "pad": float(rng.choice([0.0, -1.5])),
            }
        )
    return found


def monais(network: nn.Module, x: Tensor, case: dict[str, Any]) -> Tensor:
    # An overlap that `int(window * (1 - overlap))` brings back to the very stride.
    overlap = [max(0.0, 1 - (s + 1e-6) / w) for s, w in zip(case["stride"], case["window"], strict=True)]
    return sliding_window_inference(
        x, case["window"], 3, network, overlap=overlap, mode=MODES[case["blend"]], cval=case["pad"]
    )  # fmt: skip


@pytest.mark.parametrize("case", cases(40), ids=lambda c: f"{c['sides']}-{c['window']}-{c['stride']}")
def test_it_is_monais_sliding_window_inference(case: dict[str, Any]) -> None:
    torch.manual_seed(1)
    network, x = Local(case["channels"], case["classes"]).eval(), torch.randn(1, case["channels"], *case["sides"])
    options = {key: case[key] for key in ("window", "stride", "blend")}
    with torch.inference_mode():
        expected = monais(network, x, case)
        found = whole(network, x, pad=case["pad"], at_once=case["at_once"], **options)
        alone = whole(network, x, pad=case["pad"], at_once=1, **options)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4
    assert (found - alone).abs().max() < 1e-5, "at_once changes more than the rounding"


def test_a_network_of_segmentation_too() -> None:
    from helpers_predict import segmenter

    network = segmenter(window=(16, 16, 16))
    torch.manual_seed(2)
    x = torch.randn(2, 1, 21, 34, 18)
    case = {"window": (16, 16, 16), "stride": (8, 8, 8), "blend": "gaussian", "pad": 0.0}
    with torch.inference_mode():
        found = whole(network, x, window=(16, 16, 16), stride=(8, 8, 8), at_once=4)
        expected = monais(network, x, case)
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("case", cases(15), ids=lambda c: f"{c['sides']}-{c['window']}-{c['stride']}")
def test_slabs_come_in_order_and_cover_all(case: dict[str, Any]) -> None:
    """A network that says where a voxel lies (its own input) says the same afterwards, slab after slab."""
    d, h, w = case["sides"]
    x = torch.arange(float(d * h * w)).reshape(1, d, h, w)
    options = {key: case[key] for key in ("window", "stride", "blend", "at_once")}
    parts = [part.clone() for part in blended(lambda x: x, InMemory(x), **options)]
    assert all(part.shape[0] == 1 and part.shape[2:] == (h, w) and part.shape[1] > 0 for part in parts)
    assert all(part.dtype == torch.float32 for part in parts)
    torch.testing.assert_close(torch.cat(parts, 1), x, rtol=1e-5, atol=1e-3)
    if d > case["window"][0] + case["stride"][0]:
        assert len(parts) > 1, "the volume comes in one piece"


def test_every_window_is_run_once_and_told() -> None:
    told: list[tuple[int, int]] = []
    seen: list[int] = []

    def network(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    list(blended(network, InMemory(torch.zeros(1, 9, 12, 8)), window=(4, 4, 4), stride=(2, 3, 4), at_once=4,
                 done=lambda now, total: told.append((now, total))))  # fmt: skip
    starts = [window_starts(n, 4, s) for n, s in ((9, 2), (12, 3), (8, 4))]
    total = len(starts[0]) * len(starts[1]) * len(starts[2])
    assert sum(seen) == total
    assert max(seen) <= 4
    assert [now for now, _ in told] == list(np.cumsum(seen))
    assert {count for _, count in told} == {total}


@pytest.mark.parametrize(
    ("length", "window", "stride", "starts"),
    [(10, 4, 2, [0, 2, 4, 6]), (10, 4, 3, [0, 3, 6]), (11, 4, 3, [0, 3, 6, 7]), (4, 4, 2, [0]), (5, 4, 4, [0, 1]),
     (3, 4, 2, [0])],
)  # fmt: skip
def test_where_windows_begin(length: int, window: int, stride: int, starts: list[int]) -> None:
    assert window_starts(length, window, stride) == starts


def test_weights_are_monais() -> None:
    from monai.data.utils import compute_importance_map

    for window in ((4, 5, 6), (32, 80, 80), (1, 2, 3), (7, 7, 7)):
        for blend in MODES:
            expected = compute_importance_map(window, mode=MODES[blend], sigma_scale=0.125)
            torch.testing.assert_close(importance(window, blend), expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(OptionError, match="blend='linear' is not allowed"):
        importance((4, 4, 4), "linear")


@pytest.mark.parametrize(
    "network",
    [
        lambda x: x[..., 1:],
        lambda x: x[0],
        lambda x: x[:, :, 0],
        lambda x: torch.cat((x, x)),
        lambda x: (x, x),
        lambda x: {"out": x},
        lambda x: nn.functional.interpolate(x, scale_factor=0.5),
    ],
)
def test_a_network_of_another_output_is_refused(network: Callable[[Tensor], Any]) -> None:
    with pytest.raises(OptionError, match=r"the network made .* of 2 windows \(4, 4, 4\); allowed: \(2, K, 4, 4, 4\)"):
        list(blended(network, InMemory(torch.zeros(1, 8, 8, 8)), window=(4, 4, 4), stride=(4, 4, 4), at_once=2))


def test_no_window_at_once_is_refused() -> None:
    with pytest.raises(OptionError, match="at_once=0 is not allowed"):
        list(blended(lambda x: x, InMemory(torch.zeros(1, 8, 8, 8)), window=(4, 4, 4), stride=(4, 4, 4), at_once=0))


@pytest.mark.parametrize(
    ("window", "stride"),
    [((4, 4), (2, 2)), ((4, 4, 4), (0, 2, 2)), ((4, 4, 4), (5, 2, 2)), ((0, 4, 4), (0, 2, 2)), ((4, 4, 4), (2, 2))],
)
def test_windows_that_make_no_sense_are_refused(window: tuple[int, ...], stride: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="allowed: "):
        list(blended(lambda x: x, InMemory(torch.zeros(1, 8, 8, 8)), window=window, stride=stride))


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.storage = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
                self.storage = max(self.storage, one.untyped_storage().nbytes() // one.element_size())
        return out


def test_padding_has_a_value_for_each_channel() -> None:
    x, pad = torch.zeros(2, 3, 5, 4), torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    seen: list[Tensor] = []
    list(blended(lambda x: seen.append(x) or x, InMemory(x, pad), window=(6, 6, 6), stride=(6, 6, 6)))
    for one, value in zip(seen[0][0], (1.0, -2.0), strict=True):
        assert torch.equal(one, nn.functional.pad(x[0], (1, 1, 0, 1, 1, 2), value=value))


def test_logits_of_the_whole_volume_are_never_made() -> None:
    """Whatever the volume's length, no tensor is larger than one row of windows with all its classes."""

    class Asked:
        sides, pad = (64, 12, 12), 0.0

        def __init__(self, depth: int) -> None:
            self.sides = (depth, 12, 12)

        def slab(self, start: int, stop: int) -> Tensor:
            return torch.ones(1, stop - start, 12, 12)

    classes, largest = 5, []
    for depth in (20, 200):
        with Largest() as spy:
            planes = 0
            for part in blended(lambda x: x.expand(-1, classes, -1, -1, -1) * 1.0, Asked(depth), window=(4, 8, 8),
                                stride=(2, 4, 4), at_once=2):  # fmt: skip
                planes += part.shape[1]
        assert planes == depth
        largest.append((spy.elements, spy.storage))
    assert largest[0] == largest[1], "memory grows with the volume"
    assert max(largest[0]) <= classes * 4 * 12 * 12


def test_no_plane_is_read_twice() -> None:
    asked: list[int] = []

    class Asked(InMemory):
        def slab(self, start: int, stop: int) -> Tensor:
            asked.extend(range(start, stop))
            return super().slab(start, stop)

    list(blended(lambda x: x, Asked(torch.zeros(1, 23, 8, 8)), window=(6, 4, 4), stride=(2, 4, 4)))
    assert asked == list(range(23))
