"""A volume in slabs is what `Preprocess` makes of all of it, whatever the axes, the spacing and the statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers_volume import AXES

from svd_hub import Preprocess
from svd_hub.errors import OptionError, VolumeError
from svd_hub.ops.blending import blended
from svd_hub.prepared import Prepared

VOLUME = np.random.default_rng(0).integers(-1024, 2000, (21, 8, 9)).astype(np.int16)
SPACING = (2.0, 0.8, 1.1)


def pieces(rule: Preprocess, step: int = 4, array: np.ndarray = VOLUME, **more: Any) -> torch.Tensor:
    """All slabs, put together."""
    prepared = Prepared(rule, array, SPACING, **more)
    parts = [prepared.slab(k, min(prepared.sides[0], k + step)) for k in range(0, prepared.sides[0], step)]
    whole = torch.cat(parts, 1)
    assert whole.shape == (rule.channels, *prepared.sides)
    assert whole.dtype == torch.float32
    return whole


def same(rule: Preprocess, step: int = 4, tolerance: float = 0.0, array: np.ndarray = VOLUME) -> None:
    expected = rule(array, spacing=SPACING, orientation="SPL")[0]
    found = pieces(rule, step, array)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance


@pytest.mark.parametrize("axes", AXES)
def test_every_orientation(axes: str) -> None:
    """Of the weights, and of the array."""
    for spacing in (None, (1.3, 1.0, 2.5)):
        rule = Preprocess(orientation=axes, spacing=spacing, window=(-160.0, 240.0), scale=(0.0, 255.0), mean=99, std=7)
        same(rule, step=3)
        expected = rule(VOLUME, spacing=SPACING, orientation=axes)[0]
        prepared = Prepared(rule, VOLUME, SPACING, orientation=axes)
        assert torch.equal(prepared.slab(0, prepared.sides[0]), expected)


@pytest.mark.parametrize("spacing", [None, (2.0, 0.8, 1.1), (1.0, 1.0, 1.0), (5.0, 0.4, 3.0), (40.0, 6.0, 0.5)])
@pytest.mark.parametrize("statistics", ["fixed", "volume", "positive"])
@pytest.mark.parametrize("step", [1, 5, 100])
def test_spacing_statistics_and_steps(spacing: Any, statistics: str, step: int) -> None:
    tolerance = 0.0 if statistics == "fixed" else 1e-5  # sums in another order
    same(Preprocess(spacing=spacing, statistics=statistics, mean=3.0, std=2.0), step, tolerance)
    same(Preprocess(spacing=spacing, statistics=statistics, window=(-200.0, 300.0), channels=2), step, tolerance)


@pytest.mark.parametrize("rule", [
    {"window": (-1000.0, 400.0)},
    {"window": (-1000.0, 400.0), "scale": (0.0, 1.0)},
    {"window": (0.0, 400.0), "scale": (1.0, -1.0), "mean": 0.25, "std": 0.5},
    {"channels": 3, "mean": (1.0, 20.0, 300.0), "std": (1.0, 2.0, 3.0)},
    {"channels": 3, "mean": (1.0, 20.0, 300.0), "std": 4.0},
    {"channels": 1, "mean": (1.0, 20.0, 300.0), "std": (1.0, 2.0, 3.0)},
    {"modality": "MR", "statistics": "positive", "window": (-50.0, 900.0), "scale": (-1.0, 1.0)},
])  # fmt: skip
def test_values(rule: dict[str, Any]) -> None:
    same(Preprocess(**rule), tolerance=1e-5)


@pytest.mark.parametrize("statistics", ["fixed", "volume", "positive"])
@pytest.mark.parametrize("rule", [
    {}, {"window": (-160.0, 240.0)}, {"pad": 500.0}, {"pad": -3000.0, "window": (0.0, 9.0)},
    {"channels": 3, "mean": (1.0, 20.0, 300.0), "std": (1.0, 2.0, 3.0)},
])  # fmt: skip
def test_the_padding_of_windows_is_that_of_the_preprocessing(statistics: str, rule: dict[str, Any]) -> None:
    """A window larger than the volume sees what a `size` of that would give."""
    seen: list[torch.Tensor] = []
    prepared = Prepared(Preprocess(statistics=statistics, **rule), VOLUME, SPACING)
    list(blended(lambda x: seen.append(x) or x, prepared, window=(24, 12, 12), stride=(24, 12, 12)))
    expected = Preprocess(statistics=statistics, size=(24, 12, 12), **rule)(VOLUME, spacing=SPACING)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5)


def test_a_long_volume_is_never_floats_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from svd_hub import images

    made: list[int] = []
    real = images.sample

    def spied(*args: Any) -> torch.Tensor:
        made.append(len(found := real(*args)))
        return found

    monkeypatch.setattr(images, "sample", spied)
    array = np.random.default_rng(1).integers(0, 9, (100, 4, 4)).astype(np.int16)
    prepared = Prepared(Preprocess(modality="MR", statistics="volume"), array, SPACING)
    assert sum(len(part) for part in prepared.slabs()) == 100
    assert max(made) <= 16
    assert sum(made) == 300, "once for the mean, once for the deviation, once to give them"


def test_what_is_not_read_in_slabs_is_refused() -> None:
    for rule in (Preprocess(modality="RGB"), Preprocess(modality="video", channels=3),
                 Preprocess(size=(4, 4, 4), fit="resize")):  # fmt: skip
        with pytest.raises(OptionError, match="are not read in slabs; allowed: 'CT' or 'MR', and 'crop'"):
            Prepared(rule, VOLUME, SPACING)
    with pytest.raises(VolumeError, match="no voxel of the image is above 0"):
        Prepared(Preprocess(statistics="positive"), -np.abs(VOLUME), SPACING)
