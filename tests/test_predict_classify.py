"""A classifier's probabilities are those of its network on its preprocessing, about the middle or about a point."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_volume import AXES

import svd_hub
from svd_hub import Predictor, Preprocess, images
from svd_hub.errors import OptionError, VolumeError
from svd_hub.predict.crops import classifier_input
from svd_hub.predict.results import Classification
from svd_hub.volume import Volume

rng = np.random.default_rng(0)
ARRAY = rng.integers(-1000, 400, (40, 44, 48)).astype(np.int16)
ENTRY = "resnet3d18w16_lidc"


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 0.8, 0.8), (0.5, 0.5, 0.5), (5.0, 0.7, 0.7)])
def test_probabilities_are_the_networks_on_its_preprocessing(spacing: tuple[float, float, float]) -> None:
    predictor, model = Predictor(ENTRY), svd_hub.load(ENTRY)
    result = predictor(ARRAY, spacing=spacing)
    with torch.inference_mode():
        odds = model(model.preprocess(ARRAY, spacing=spacing))[0].softmax(0)
    assert isinstance(result, Classification)
    assert result.classes == svd_hub.get_entry(ENTRY).classes
    assert result.probabilities == pytest.approx(odds.tolist(), abs=1e-6)
    assert sum(result.probabilities) == pytest.approx(1.0, abs=1e-9)
    assert result.best == result.classes[int(odds.argmax())]
    assert len(result.sha256) == 64


def test_a_photograph() -> None:
    entry = "resnet3d18w16_tinyimagenet"
    picture = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
    model = svd_hub.load(entry)
    result = Predictor(entry)(picture)
    with torch.inference_mode():
        odds = model(model.preprocess(picture))[0].softmax(0)
    assert result.probabilities == pytest.approx(odds.tolist(), abs=1e-6)
    assert sum(result.probabilities) == pytest.approx(1.0, abs=1e-9)
    assert len(result.classes) == 200
    with pytest.raises(VolumeError, match="the input was a picture: there is no volume"):
        _ = result.scan


def test_of_equal_probabilities_the_first_is_the_best() -> None:
    result = Classification(entry="x", classes=("a", "b", "c", "d"), probabilities=(0.1, 0.4, 0.4, 0.1))
    facts = result.own_facts()
    assert facts["best"] == "b"
    assert list(facts["probabilities"]) == ["b", "c", "a", "d"]


# ---- about a point -------------------------------------------------------------------------------------------------

RULE = Preprocess(window=(-1000.0, 400.0), scale=(0.0, 1.0), size=(8, 10, 12))


def cut_about(rule: Preprocess, volume: Volume, point: Any) -> torch.Tensor:
    """The whole volume by `Preprocess`, and the crop about the voxel of it that lies nearest to the point."""
    whole = dataclasses.replace(rule, size=None)(volume.array, spacing=volume.spacing, orientation="SPL")[0]
    want = rule.orientation or "SPL"
    at = volume.grid.indices(np.asarray(point))
    _, order = images.turned(volume.array, "SPL", want)
    starts = []
    for axis, letter, side, size in zip(order, want, whole.shape[1:], rule.size, strict=True):
        share = (at[axis] + 0.5) / volume.shape[axis]
        share = share if letter == "SPL"[axis] else 1 - share
        starts.append(min(side - 1, int(share * side)) - size // 2)
    pad = float(dataclasses.replace(rule, size=None)(np.full((2, 2, 2), rule.padding), spacing=(1, 1, 1)).flatten()[0])
    room = [100] * 6
    padded = F.pad(whole, room, value=pad)
    z, y, x = (slice(100 + s, 100 + s + n) for s, n in zip(starts, rule.size, strict=True))
    return padded[:, z, y, x]


@pytest.mark.parametrize("seed", range(12))
def test_the_crop_about_a_point_is_that_of_the_whole_volume(seed: int) -> None:
    g = np.random.default_rng(seed)
    spacing = tuple(float(s) for s in g.choice([0.7, 1.0, 1.6, 2.5], 3))
    volume = Volume.from_array(ARRAY[:20, :25, :30], spacing=spacing, axes=AXES[int(g.integers(48))], modality="CT")
    sides = tuple(int(n) for n in g.integers(3, 20, 3))
    rule = dataclasses.replace(
        RULE, size=sides, orientation=AXES[int(g.integers(48))], spacing=(1.0, 1.3, 2.0) if seed % 3 else None
    )  # fmt: skip
    for _ in range(4):
        point = volume.grid.points(g.random(3) * (np.array(volume.shape) - 1))
        x, notes = classifier_input(volume, rule, tuple(point))
        expected = cut_about(rule, volume, point)
        torch.testing.assert_close(x[0], expected, rtol=0, atol=1e-6)
        assert not any("the middle" in note for note in notes)


def test_the_middle_is_the_point_in_the_middle() -> None:
    """Without a point the input is about the middle voxel, to the rounding of an even or odd rest."""
    for sides in ((8, 10, 12), (7, 9, 11), (40, 44, 48)):
        volume = Volume.from_array(ARRAY, spacing=(1, 1, 1), modality="CT")
        rule = dataclasses.replace(RULE, size=sides)
        middle = volume.grid.points(np.array([(n - s) // 2 + s // 2 for n, s in zip(volume.shape, sides, strict=True)]))
        assert torch.equal(classifier_input(volume, rule, None)[0], classifier_input(volume, rule, tuple(middle))[0])


def test_shifting_the_volume_and_the_point_together_changes_nothing() -> None:
    base = Volume.from_array(ARRAY, spacing=(1, 1, 1), modality="CT")
    shifted = Volume.from_array(np.roll(ARRAY, (3, -4, 5), (0, 1, 2)), spacing=(1, 1, 1), modality="CT")
    one, _ = classifier_input(base, RULE, (20.0, 22.0, 20.0))
    other, _ = classifier_input(shifted, RULE, (25.0, 18.0, 23.0))
    assert torch.equal(one, other)
    assert not torch.equal(one, classifier_input(base, RULE, (25.0, 18.0, 23.0))[0])


@pytest.mark.parametrize("statistics", ["volume", "positive"])
def test_statistics_are_the_whole_volumes(statistics: str) -> None:
    """Not those of the surroundings of the point, let alone of padding."""
    rule = Preprocess(modality="MR", statistics=statistics, size=(8, 8, 8))
    volume = Volume.from_array(np.abs(ARRAY), spacing=(1, 1, 1), modality="MR")
    whole = dataclasses.replace(rule, size=None)(volume.array, spacing=(1, 1, 1))[0]
    x, _ = classifier_input(volume, rule, (20.0, 21.0, 22.0))
    torch.testing.assert_close(x[0], whole[:, 18:26, 17:25, 16:24], rtol=0, atol=1e-5)
    assert torch.allclose(classifier_input(volume, rule, None)[0][0], whole[:, 16:24, 18:26, 20:28])


def test_what_is_said_of_the_crop() -> None:
    predictor = Predictor(ENTRY)  # 32 mm about the middle
    assert svd_hub.get_entry(ENTRY).preprocess.size == (32, 32, 32)
    large = predictor(ARRAY, spacing=(5.0, 1.0, 1.0))
    told = "the network sees the middle 32 x 32 x 32 mm of the volume alone"
    assert any(note.startswith(told) for note in large.notes)
    fits = predictor(ARRAY, spacing=(1.0, 1.0, 1.0))
    assert not fits.notes
    small = predictor(ARRAY[:10], spacing=(1.0, 0.5, 1.0))
    (note,) = small.notes
    assert note.startswith("the volume is smaller than the input of these weights along 2 of its axes: padded with -")
    edge = predictor(ARRAY, spacing=(1.0, 1.0, 1.0), point=(1.0, 20.0, 20.0))
    (note,) = edge.notes
    assert note.startswith("about the point the volume ends within the input of these weights along 1 of its axes")
    assert predictor(ARRAY, spacing=(1.0, 1.0, 1.0), point=(22.0, 22.0, 20.0)).notes == ()
    assert edge.facts()["point_mm_lps"] == [1.0, 20.0, 20.0]


@pytest.mark.parametrize("point", [(-1.0, 0, 0), (48.0, 0, 0), (0, 44.0, 0), (0, 0, 40.0), (0, 0, -99999.0)])
def test_a_point_outside_is_refused(point: Any) -> None:
    with pytest.raises(VolumeError, match=r"outside the volume; allowed: \[0.0, 0.0, 0.0\] to \[47.0, 43.0, 39.0\]"):
        Predictor(ENTRY)(ARRAY, spacing=(1.0, 1.0, 1.0), point=point)


@pytest.mark.parametrize("point", [(0.0, 0.0, 0.0), (47.4, 43.4, 39.4), (-0.5, -0.5, -0.5)])
def test_a_point_at_the_very_edge_is_taken(point: Any) -> None:
    assert Predictor(ENTRY)(ARRAY, spacing=(1.0, 1.0, 1.0), point=point).point == point


@pytest.mark.parametrize("point", [(0.0, 0.0), (0, 0, 0, 0), (float("nan"), 0, 0), (0, float("inf"), 0), 3.0, "1,2,3"])
def test_what_is_no_point(point: Any) -> None:
    with pytest.raises(OptionError, match=r"point=.* is not allowed; allowed: three numbers, mm to Left"):
        Predictor(ENTRY)(ARRAY, spacing=(1.0, 1.0, 1.0), point=point)


def test_weights_that_read_whole_volumes_take_no_point() -> None:
    volume = Volume.from_array(ARRAY, spacing=(1, 1, 1), modality="CT")
    for rule in (Preprocess(), Preprocess(size=(8, 8, 8), fit="resize")):
        x, notes = classifier_input(volume, rule, None)
        assert torch.equal(x, rule(ARRAY))
        assert notes == []
        with pytest.raises(OptionError, match="these weights read whole volumes"):
            classifier_input(volume, rule, (1.0, 1.0, 1.0))
