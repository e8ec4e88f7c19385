"""Laws of the stack about a key slice: what is read, and how what lies between stored slices is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from svd_hub.errors import SvdHubError
from svd_hub.training.data.slices import existing, mixed, parts, read_png, read_stack
from svd_hub.training.miniature.boxes import series, write_slice

SPACING = 2.5


def stack(levels: dict[int, float], interval: float, *, rule: str = "exact", slices: int = 9) -> list[float]:
    """The mixture of slices that are one number each, stored at these offsets from the key slice."""
    made = mixed(
        lambda offset: np.full((1, 1), levels[offset]),
        lambda offset: offset in levels,
        slices=slices,
        spacing=SPACING,
        interval=interval,
        rule=rule,  # type: ignore[arg-type]
    )
    return [float(value) for value in made.reshape(-1)]


def intervals(count: int) -> list[float]:
    random = np.random.default_rng(5)
    return [1.0, 5.0, 2.0, 2.5, 3.0, 1.25, 0.8, *random.uniform(0.4, 8.0, count).tolist()]


@pytest.mark.parametrize("interval", intervals(30))
def test_exact_is_linear_interpolation_by_place(interval: float) -> None:
    """numpy's own interpolation on the places in mm."""
    random = np.random.default_rng(round(interval * 1000))
    reach = math.ceil(4 * SPACING / interval) + 1
    offsets = list(range(-reach, reach + 1))
    values = random.uniform(-1024, 3071, len(offsets))
    expected = np.interp([SPACING * k for k in range(-4, 5)], [interval * o for o in offsets], values)
    found = stack(dict(zip(offsets, values.tolist(), strict=True)), interval)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3)  # HU, in single precision


@pytest.mark.parametrize("interval", intervals(30))
def test_the_official_rule_in_words(interval: float) -> None:
    """T17: the weights a, b of the first place are used for all; both multiply one slice where a place is stored."""
    unit = SPACING / interval
    a, b = unit - math.floor(unit), math.ceil(unit) - unit
    random = np.random.default_rng(round(interval * 1000))
    reach = math.ceil(4 * unit) + 1
    levels = dict(zip(range(-reach, reach + 1), random.uniform(-1024, 3071, 2 * reach + 1).tolist(), strict=True))
    expected = [levels[0]]
    for place in range(1, 5):
        far, near = math.ceil(place * unit), math.floor(place * unit)
        for sign, at in ((-1, 0), (1, len(expected) + 1)):
            value = levels[sign * far] if a == 0 else a * levels[sign * far] + b * levels[sign * near]
            expected.insert(at, value)
    np.testing.assert_allclose(stack(levels, interval, rule="official"), expected, rtol=0, atol=2e-3)


def test_where_the_two_rules_differ() -> None:
    """DeepLesion's own intervals: right at 1 and 5 mm (4,690 of 4,831 test images), wrong at 2 mm (105) and 3 mm."""

    def differ(interval: float) -> bool:
        levels = {offset: float(offset * interval) for offset in range(-30, 31)}  # each slice says where it is, in mm
        exact, official = (stack(levels, interval, rule=rule) for rule in ("exact", "official"))
        assert exact == pytest.approx([SPACING * k for k in range(-4, 5)], abs=1e-4)
        return exact != pytest.approx(official, abs=1e-4)

    told = {interval: differ(interval) for interval in (1.0, 5.0, 2.5, 1.25, 2.0, 3.0, 3.75, 7.0)}
    assert told == {1.0: False, 5.0: False, 2.5: False, 1.25: False, 2.0: True, 3.0: True, 3.75: True, 7.0: True}
    levels = {offset: 2.0 * offset for offset in range(-10, 11)}
    # at 2 mm: 5 mm is 2.5 slices, of which the official rule makes 0.25 * 3 + 0.75 * 2
    assert stack(levels, 2.0, rule="official")[4:7] == pytest.approx([0, 2.5, 4.5])


@pytest.mark.parametrize("rule", ["exact", "official"])
def test_missing_slices_are_the_next_ones_towards_the_key_slice(rule: str) -> None:
    levels = {-1: 10.0, 0: 20.0, 1: 30.0, 3: 50.0}
    assert [existing(o, lambda o: o in levels) for o in (-5, -1, 0, 1, 2, 3, 9)] == [-1, -1, 0, 1, 1, 3, 3]
    # stored every 5 mm: -10, -7.5, -5, -2.5, 0, 2.5, 5, 7.5, 10 mm are slices -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2
    assert stack(levels, 5.0, rule=rule) == pytest.approx([10, 10, 10, 15, 20, 25, 30, 30, 30])
    assert stack({0: 7.0}, 1.0, rule=rule) == [7.0] * 9


def test_no_weight_is_left_out_or_counted_twice() -> None:
    for interval in intervals(200):
        for place in range(-6, 7):
            for rule in ("exact", "official"):
                found = parts(place, spacing=SPACING, interval=interval, rule=rule)  # type: ignore[arg-type]
                assert sum(weight for _, weight in found) == pytest.approx(1)
                assert all(0 <= weight <= 1 for _, weight in found)
                assert abs(found[0][0]) <= abs(place) * SPACING / interval <= abs(found[-1][0])


def test_each_slice_is_read_once() -> None:
    calls: list[int] = []

    def read(offset: int) -> np.ndarray:
        calls.append(offset)
        return np.zeros((2, 2))

    mixed(read, lambda offset: True, slices=9, spacing=2.5, interval=5.0, rule="exact")
    assert sorted(calls) == [-2, -1, 0, 1, 2]
    calls.clear()
    mixed(read, lambda offset: True, slices=9, spacing=2.5, interval=1.0, rule="exact")
    assert sorted(calls) == [-10, -8, -7, -5, -3, -2, 0, 2, 3, 5, 7, 8, 10]


# ---- files ---------------------------------------------------------------------------------------------------------


def lines(values: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([v.astype(np.float64) for v in values])


def test_a_stack_of_files_in_hu(tmp_path: Path) -> None:
    made = series(tmp_path / "000001_01_01", range(95, 106), (6, 8))
    found = read_stack(tmp_path / "000001_01_01", 100, slices=9, spacing=2.5, interval=5.0, rule="exact")
    mean = [(made[98 + k // 2].astype(float) + made[98 + (k + 1) // 2]) / 2 for k in range(9)]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, lines(mean), atol=1e-3)
    assert np.array_equal(found[4], made[100])
    last = read_stack(tmp_path / "000001_01_01", 105, slices=3, spacing=2.5, interval=2.5, rule="exact")
    assert np.array_equal(last, lines([made[104], made[105], made[105]]))


def test_all_of_sixteen_bits_is_read(tmp_path: Path) -> None:
    hu = np.array([[-32768, -1024, 0], [1, 3071, 32767]])
    write_slice(tmp_path / "007.png", hu)
    assert np.array_equal(read_png(tmp_path / "007.png"), hu)


def test_slices_that_are_none_are_told(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "001.png")
    with pytest.raises(SvdHubError, match=r"001\.png is an image of form 'L'.*16-bit.*Next"):
        read_png(tmp_path / "001.png")
    (tmp_path / "002.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(SvdHubError, match=r"002\.png cannot be decoded.*Next"):
        read_png(tmp_path / "002.png")
    (tmp_path / "002.png").unlink()
    write_slice(tmp_path / "003.png", np.zeros((4, 4)))
    write_slice(tmp_path / "004.png", np.zeros((4, 5)))
    options = {"slices": 3, "spacing": 2.5, "rule": "exact"}
    with pytest.raises(SvdHubError, match=r"sizes \[\(4, 4\), \(4, 5\)\] about slice 3"):
        read_stack(tmp_path, 3, interval=2.5, **options)  # type: ignore[arg-type]
    with pytest.raises(SvdHubError, match=r"every 0\.0 mm; allowed: above 0"):
        read_stack(tmp_path, 3, interval=0.0, **options)  # type: ignore[arg-type]
