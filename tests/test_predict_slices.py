"""Slices about a key slice are those of a plain statement of linear interpolation; key slices leave no gap."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from svd_hub import Preprocess
from svd_hub.errors import OptionError
from svd_hub.predict.slices import around, chosen_planes, detector_input, key_planes
from svd_hub.volume import Volume

rng = np.random.default_rng(0)
SPACINGS = [0.5, 0.625, 0.7, 1.0, 1.25, 1.3, 2.0, 2.5, 3.0, 3.27, 5.0, 7.5, 10.0]


def volume(depth: int, mm: float, kind: Any = np.int16) -> Volume:
    array = rng.integers(-1000, 2000, (depth, 4, 5)).astype(kind)
    if kind == np.float32:
        array += np.float32(0.25)
    return Volume.from_array(array, spacing=(mm, 0.7, 0.7), modality="CT")


def plainly(array: np.ndarray, mm: float, plane: int, slices: int, apart: float) -> np.ndarray:
    """Slice by slice: where it lies in mm, between which two stored ones, and how near to each."""
    out = []
    for k in range(slices):
        place = plane * mm + (k - slices // 2) * apart
        if place <= 0:
            out.append(array[0].astype(float))
        elif place >= (len(array) - 1) * mm:
            out.append(array[-1].astype(float))
        else:
            below = math.floor(place / mm + 1e-9)
            share = place / mm - below
            above = array[min(below + 1, len(array) - 1)].astype(float)
            out.append((1 - share) * array[below] + share * above)
    return np.array(out)


@pytest.mark.parametrize("mm", SPACINGS)
@pytest.mark.parametrize(("slices", "apart"), [(9, 2.5), (3, 2.5), (1, 2.5), (4, 1.7)])
def test_around_is_linear_interpolation(mm: float, slices: int, apart: float) -> None:
    for depth in (2, 7, 40):
        one = volume(depth, mm, np.float32 if depth == 7 else np.int16)
        for plane in {0, 1, depth // 2, depth - 1}:
            found = around(one, plane, slices=slices, spacing=apart)
            assert found.dtype == np.float32
            assert found.shape == (slices, 4, 5)
            assert np.allclose(found, plainly(one.array, mm, plane, slices, apart), atol=2e-3)
            assert (found[slices // 2] == one.array[plane]).all(), "the key slice is as it is stored"


def test_slices_at_stored_places_are_exactly_those() -> None:
    one = volume(40, 1.25)
    found = around(one, 20, slices=9, spacing=2.5)
    assert (found == one.array[12:29:2]).all()
    one = volume(20, 2.5)
    assert (around(one, 10, slices=9, spacing=2.5) == one.array[6:15]).all()


def test_beyond_the_ends_the_last_slice_is_repeated() -> None:
    one = volume(3, 5.0)
    found = around(one, 0, slices=9, spacing=2.5)
    assert (found[:5] == one.array[0]).all()
    assert np.allclose(found[5], (one.array[0].astype(float) + one.array[1]) / 2)
    found = around(one, 2, slices=9, spacing=2.5)
    assert (found[4:] == one.array[2]).all()


@pytest.mark.parametrize("mm", SPACINGS)
@pytest.mark.parametrize("depth", [2, 3, 30, 211])
def test_key_slices(mm: float, depth: int) -> None:
    """Every stored slice lies within 2.5 mm or a slice of one; none is searched twice, none is left out at the ends."""
    one = Volume.from_array(np.arange(depth * 4).reshape(depth, 2, 2), spacing=(mm, 1, 1))
    found = key_planes(one, 2.5)
    assert found == sorted(set(found))
    assert found[0] == 0
    assert 0 <= found[-1] < depth
    if mm >= 2.5:
        assert found == list(range(depth))
    away = [min(abs(k - plane) * mm for plane in found) for k in range(depth)]
    assert max(away[: found[-1] + 1]) <= 2.5 / 2 + mm / 2 + 1e-6
    assert away[-1] < max(2.5, mm) + mm / 2
    assert len(found) <= (depth - 1) * mm / 2.5 + 2


def test_key_slices_of_ones_own() -> None:
    one = volume(10, 1.0)
    assert chosen_planes(one, [7, 2, 2, np.int64(3)]) == [2, 3, 7]
    assert {type(k) for k in chosen_planes(one, np.array([1, 2]))} == {int}
    assert chosen_planes(one, "all") == list(range(10))
    for wrong in ([], [-1], [10], [1.5], [True], ["1"], 3.0, "12"):
        with pytest.raises(OptionError, match=r"planes=.* not allowed; allowed: 'all', or whole numbers, 0 .*to 9"):
            chosen_planes(one, wrong)  # type: ignore[arg-type]
    assert chosen_planes(one, 4) == [4]  # type: ignore[arg-type]


RULE = {"modality": "CT", "window": (-1024.0, 2050.0), "scale": (0.0, 255.0), "mean": 50.0, "std": 2.0}


COLOURS = {"channels": 3, "mean": (1.0, 2.0, 3.0), "std": (4.0, 5.0, 6.0)}


@pytest.mark.parametrize("rule", [RULE, {**RULE, "channels": 3}, {"modality": "CT"}, {**RULE, **COLOURS}])
def test_without_a_side_the_input_is_the_preprocessing_of_the_slices(rule: dict[str, Any]) -> None:
    planes = rng.normal(0, 900, (9, 13, 17)).astype(np.float32)
    x, scales = detector_input(planes, Preprocess(**rule), None)
    assert scales == (1.0, 1.0)
    torch.testing.assert_close(x, Preprocess(**rule)(planes), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "side"), [((40, 60), 30), ((60, 40), 90), ((50, 50), 51), ((31, 77), 64), ((3, 90), 9)]
)
def test_the_scale_is_that_of_the_sides_that_came_out(shape: tuple[int, int], side: int) -> None:
    planes = rng.normal(0, 900, (3, *shape)).astype(np.float32)
    x, (down, right) = detector_input(planes, Preprocess(**RULE), side)
    assert max(x.shape[3:]) == side
    expected = [max(1, round(n * side / max(shape))) for n in shape]
    assert list(x.shape[3:]) == expected
    assert (down, right) == (expected[0] / shape[0], expected[1] / shape[1])
    windowed = ((planes.clip(-1024, 2050) + 1024) / 3074 * 255).astype(np.float32)
    small = F.interpolate(torch.from_numpy(windowed)[None], size=expected, mode="bilinear", align_corners=False)
    torch.testing.assert_close(x[0], (small - 50) / 2, rtol=1e-5, atol=1e-4)
