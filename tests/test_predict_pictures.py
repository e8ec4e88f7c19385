"""Pictures show what was found, where it is, on the slices where most of it is."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
from helpers_predict import Bright, blob
from PIL import Image

from svd_hub import Predictor, Preprocess
from svd_hub.predict.pictures import _spread, _telling, colour, picture, shaded
from svd_hub.predict.results import Classification, Detection, Finding, Segmentation
from svd_hub.volume import Volume


def opened(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content))
    assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
    return np.asarray(image)


def near(pixels: np.ndarray, shade: tuple[int, int, int], tolerance: int = 8) -> np.ndarray:
    return (np.abs(pixels.astype(int) - shade) <= tolerance).all(-1)


@pytest.mark.parametrize("seed", range(20))
def test_the_planes_that_tell_most(seed: int) -> None:
    """12 at most, in order, all of them with a mask; together they hold as much as any even choice would."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 200))
    sizes = np.where(rng.random(count) < rng.random(), rng.integers(0, 1000, count), 0)
    shown = _telling(sizes.tolist())
    there = np.flatnonzero(sizes)
    assert shown == sorted(set(shown))
    assert len(shown) <= 12
    if not len(there):
        assert shown == _spread(range(count))
        return
    assert set(shown) <= set(there)
    assert len(shown) == min(12, len(there)), "no tile is left empty where there is something to show"
    total = np.cumsum(sizes)
    for share in (np.arange(12) + 0.5) / 12:  # the plane in the middle of each twelfth of the mask, and some beside
        assert int(np.searchsorted(total, share * total[-1])) in shown


def test_evenly_spread() -> None:
    assert _spread(range(5)) == [0, 1, 2, 3, 4]
    found = _spread(range(100))
    assert (found[0], found[-1], len(found)) == (0, 99, 12)
    assert max(np.diff(found)) - min(np.diff(found)) <= 1


def test_a_mask_is_tinted_and_its_border_is_in_full() -> None:
    grey = np.full((9, 9, 3), 100, np.uint8)
    labels = np.zeros((9, 9), np.uint8)
    labels[2:7, 2:7] = 2
    seen = shaded(grey, labels)
    assert (seen[labels == 0] == 100).all()
    assert (seen[2, 2:7] == colour(2)).all()
    inner = np.array([65 + 0.35 * c for c in colour(2)])
    assert np.abs(seen[3:6, 3:6] - inner).max() < 1


def test_colours_are_told_apart() -> None:
    shades = [colour(k) for k in range(1, 60)]
    assert len(set(shades)) == 59
    assert all(0 <= part <= 255 for shade in shades for part in shade)
    for one, two in itertools.pairwise(shades):
        assert np.abs(np.subtract(one, two)).max() > 20


def test_a_contact_sheet_shows_the_mask_in_its_place() -> None:
    hu, inside = blob((40, 60, 50))
    predictor = Predictor(Bright())
    result = predictor(hu, spacing=(2.5, 1.0, 1.0))
    assert isinstance(result, Segmentation)
    sheet = opened(picture(result, predictor.preprocess))
    shown = _telling(inside.sum((1, 2)).tolist())
    assert len(shown) == 12
    scale = 256 / 60
    for number, k in enumerate(shown):
        row, column = divmod(number, 4)
        y, x = 8 + row * (256 + 20 + 8), 8 + column * (round(50 * scale) + 8)
        tile = sheet[y : y + 256, x : x + round(50 * scale)]
        tinted = np.abs(tile[..., 0].astype(int) - tile[..., 2]) > 40  # the tint is orange, the rest is grey
        places = np.argwhere(inside[k]) + 0.5
        found = np.argwhere(tinted) / scale
        assert np.allclose(found.mean(0), places.mean(0), atol=1.0), f"slice {k}"
        assert np.allclose(found.min(0), places.min(0) - 0.5, atol=1.0)
        assert np.allclose(found.max(0), places.max(0) + 0.5, atol=1.0)


def test_anisotropic_pixels_are_shown_square() -> None:
    hu, _ = blob((12, 20, 20))
    predictor = Predictor(Bright())
    sheet = opened(picture(predictor(hu, spacing=(1.0, 2.0, 1.0)), predictor.preprocess))
    assert sheet.shape[0] > 256
    tiles = (sheet.shape[1] - 8) // 4 - 8
    assert tiles == 128


def test_nothing_found_is_shown_and_said() -> None:
    hu, _ = blob()
    predictor = Predictor(Bright(5000.0))
    sheet = opened(picture(predictor(hu, spacing=(1, 1, 1)), predictor.preprocess))
    assert not near(sheet, colour(1), 3).any()


def test_boxes_are_drawn_where_they_are() -> None:
    volume = Volume.from_array(np.random.default_rng(0).integers(0, 9, (6, 40, 50)), spacing=(3, 1, 1), modality="CT")
    box = (10.0, 5.0, 30.0, 25.0)
    one = Finding(label="b", score=0.5, box=box, plane=3, planes=(3, 3), extent=box)
    rule = Preprocess(window=(-1000.0, 1000.0))
    result = Detection(entry="x", classes=("a", "b"), findings=(one,), searched=(3,), volume=volume)
    sheet = opened(picture(result, rule))
    scale = 256 / 50
    marked = np.argwhere(near(sheet[8 : 8 + 205, 8 : 8 + 256], colour(2), 3))
    assert np.allclose(marked.min(0) / scale, (5, 10), atol=0.5)
    assert np.allclose(marked.max(0) / scale, (25, 30), atol=0.5)
    nothing = Detection(entry="x", classes=("a", "b"), findings=(), searched=(0, 2, 4), volume=volume)
    assert opened(picture(nothing, rule)).shape[0] > 200


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_photographs(dtype: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 60, (30, 60, 3)).astype(dtype)
    box = (10.0, 5.0, 30.0, 25.0)
    one = Finding(label="a", score=0.5, box=box, extent=box)
    found = Detection(entry="x", classes=("a",), findings=(one,), picture=pixels)
    sheet = opened(picture(found, Preprocess(modality="RGB")))
    marked = np.argwhere(near(sheet[8:392, 8:776], colour(1), 3))
    scale = 768 / 60
    assert np.allclose(marked.min(0) / scale, (5, 10), atol=0.3)
    assert np.allclose(marked.max(0) / scale, (25, 30), atol=0.3)
    said = Classification(entry="x", classes=("a", "b"), probabilities=(0.25, 0.75), picture=pixels)
    assert opened(picture(said, Preprocess(modality="RGB"))).shape[1] >= 420


def test_a_classification_shows_the_planes_through_the_point() -> None:
    array = np.full((20, 30, 40), -1000, np.int16)
    array[5], array[:, 7], array[:, :, 33] = 0, 0, 0
    array[0, 0, 0] = 1000
    volume = Volume.from_array(array, spacing=(1, 1, 1), modality="CT")
    rule = Preprocess(window=(-1000.0, 1000.0))
    result = Classification(
        entry="x", classes=("a",), probabilities=(1.0,), volume=volume, point=(33.0, 7.0, 5.0)
    )  # fmt: skip
    sheet = opened(picture(result, rule))
    axial = sheet[8 : 8 + 192, 8 : 8 + 256]  # plane 5 is grey throughout
    assert (np.abs(axial[20:].astype(int) - 127) < 3).all()
    for corner in (axial[2:18, 2:14], axial[2:18, -14:-2]):
        assert (corner > 250).all(-1).any(), "R and L"
    assert not near(sheet, colour(1), 3).any(), "a class has no colour here"


def test_no_window_of_the_weights_is_no_obstacle() -> None:
    for array in (np.arange(4 * 5 * 6).reshape(4, 5, 6), np.where(np.arange(120).reshape(4, 5, 6) < 90, 0, 7)):
        volume = Volume.from_array(array, spacing=(1, 1, 1))
        result = Classification(entry="x", classes=("a",), probabilities=(1.0,), volume=volume)
        assert opened(picture(result, Preprocess(modality="MR"))).max() > 100


def test_many_labels_long_names_and_other_letters() -> None:
    array = np.random.default_rng(0).integers(0, 300, (4, 30, 30)).astype(np.uint16)
    volume = Volume.from_array(array, spacing=(1, 1, 1))
    classes = ("background", "肝臓", "x" * 200, *(f"class{k}" for k in range(3, 300)))
    counts = tuple(np.bincount(array.ravel(), minlength=300).tolist())
    result = Segmentation(entry="x", labels=array, classes=classes, voxels=counts, volume=volume)
    sheet = opened(picture(result, Preprocess()))
    assert sheet.shape[1] < 2000
    assert sheet.shape[0] < 2500, "a legend of 300 lines"
