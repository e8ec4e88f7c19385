"""Laws of svd_hub.volume.resampling: torch's interpolation inside, the patient's space kept, and the way back."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from helpers_volume import dice, oblique

from svd_hub.errors import OptionError, VolumeError
from svd_hub.volume import Volume, resample, restore
from svd_hub.volume.record import to_image

rng = np.random.default_rng(0)
ARRAY = rng.integers(-1000, 1000, (12, 17, 15)).astype(np.int16)
VOLUME = Volume.from_array(ARRAY, spacing=(3.0, 0.8, 0.7), modality="CT")


def ball(shape: tuple[int, int, int], spacing: tuple[float, float, float], radius: float) -> np.ndarray:
    """A ball of `radius` mm with dents in the middle of a volume."""
    z, y, x = np.meshgrid(
        *((np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"
    )  # fmt: skip
    angle = np.arctan2(y, x)
    return np.sqrt(x * x + y * y + z * z) < radius * (1 + 0.15 * np.cos(3 * angle))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.4, 0.35), (2.1, 1.7, 0.7), (6.0, 3.0, 3.0)])
def test_linear_is_torchs_interpolation(spacing: tuple[float, float, float]) -> None:
    got = resample(VOLUME, spacing)
    size = [round(n * s / t) for n, s, t in zip(ARRAY.shape, VOLUME.spacing, spacing, strict=True)]
    x = torch.from_numpy(ARRAY.astype(np.float32))[None, None]
    want = F.interpolate(x, size=size, mode="trilinear", align_corners=False)[0, 0].numpy()
    assert got.shape == want.shape
    assert got.array.dtype == np.float32
    assert np.abs(got.array - want).max() < 0.05
    edges = np.array([-0.5, -0.5, -0.5]), np.array(VOLUME.shape) - 0.5
    new = np.array([-0.5, -0.5, -0.5]), np.array(got.shape) - 0.5
    for old_corner, new_corner in zip(edges, new, strict=True):
        assert np.allclose(VOLUME.grid.points(old_corner), got.grid.points(new_corner))


@pytest.mark.parametrize("order", ["nearest", "linear", "bspline"])
@pytest.mark.parametrize("exact", [False, True])
def test_the_same_spacing_changes_nothing(order: str, exact: bool) -> None:
    got = resample(VOLUME, VOLUME.spacing, order=order, exact=exact)
    assert got.grid.is_like(VOLUME.grid)
    assert np.abs(got.array - ARRAY).max() < 0.01
    assert order != "nearest" or got.array.dtype == np.int16


def test_exact_keeps_the_first_centre_and_the_spacing() -> None:
    got = resample(VOLUME, (2.5, 0.8, 0.7), exact=True)
    assert got.spacing == (2.5, 0.8, 0.7)
    assert got.shape == (int(11 * 3 / 2.5) + 1, 17, 15)
    assert got.grid.origin == VOLUME.grid.origin
    for k in range(got.shape[0]):  # each slice lies between its two neighbours
        place = k * 2.5 / 3
        below = min(int(place), 10)
        want = (1 - (place - below)) * ARRAY[below] + (place - below) * ARRAY[below + 1]
        assert np.abs(got.array[k] - want).max() < 0.01


def test_a_linear_field_stays_where_it_is_in_the_patient() -> None:
    grid = oblique(2, "RIP")
    index = np.indices((12, 17, 15)).reshape(3, -1).T
    big = type(grid)(size=(12, 17, 15), spacing=grid.spacing, origin=grid.origin, direction=grid.direction)
    field = (big.points(index) @ (1.0, -2.0, 3.0)).reshape(12, 17, 15)
    volume = Volume.from_image(to_image(field, big))
    for exact in (False, True):
        got = resample(volume, (1.1, 0.6, 1.3), exact=exact)
        inner = np.indices(got.shape).reshape(3, -1).T
        points = got.grid.points(inner)
        old = volume.grid.indices(points)
        inside = ((old >= 0) & (old <= np.array(volume.shape) - 1)).all(axis=1)
        assert inside.mean() > 0.7
        assert np.abs(got.array.ravel()[inside] - (points @ (1.0, -2.0, 3.0))[inside]).max() < 1e-3


def test_antialiasing_takes_away_what_the_new_grid_cannot_hold() -> None:
    stripes = np.zeros((8, 8, 64), np.int16)
    stripes[:, :, ::2] = 1000
    volume = Volume.from_array(stripes, spacing=(1.0, 1.0, 1.0))
    plain = resample(volume, (1.0, 1.0, 3.0)).array
    smooth = resample(volume, (1.0, 1.0, 3.0), antialias=True).array
    inner = (slice(None), slice(None), slice(2, -2))
    assert plain[inner].std() > 200
    assert np.abs(smooth[inner] - 500).max() < 40
    fine = resample(volume, (1.0, 1.0, 0.5), antialias=True).array
    assert (fine == resample(volume, (1.0, 1.0, 0.5)).array).all(), "an axis that becomes finer was smoothed"


def test_antialiasing_has_the_stated_width() -> None:
    """Half of its maximum is reached sqrt(5^2 - 1^2) / 2 mm beside a point, and nothing is lost."""
    line = 1000.0 * rng.random(81)
    volume = Volume.from_array(np.tile(line, (5, 6, 1)), spacing=(1.0, 1.0, 1.0))
    got = resample(volume, (1.0, 1.0, 5.0), antialias=True, exact=True).array
    place = np.arange(81) - np.arange(81)[:, None]
    weight = np.exp(-np.log(2) * (place / (np.sqrt(24) / 2)) ** 2)
    want = (weight @ line / weight.sum(axis=1))[::5]
    assert np.abs(got - want)[..., 2:-2].max() < 10
    assert (got == got[2, 2]).all(), "an axis that keeps its spacing was smoothed"


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.5, 1.5, 1.5), (3.0, 3.0, 3.0)])
def test_a_mask_comes_back(spacing: tuple[float, float, float]) -> None:
    """A body of the size of a liver, through finer grids and one that is coarser in the plane, and back."""
    shape, mm = (60, 70, 80), (3.0, 2.0, 2.0)
    mask = ball(shape, mm, 60.0)
    volume = Volume.from_array(np.where(mask, 60, -100).astype(np.int16), spacing=mm)
    there = resample(volume, spacing)
    drawn = there.array > -20
    back = restore(drawn, of=there, to=volume)
    assert back.dtype == bool
    finer = max(spacing) <= min(mm)
    assert dice(back, mask) > (0.99 if finer else 0.98)
    soft = restore(drawn.astype(np.float32), of=there, to=volume, order="linear")
    assert soft.dtype == np.float32
    assert dice(soft > 0.5, mask) > (0.99 if finer else 0.98)


def test_probabilities_come_back_together() -> None:
    there = resample(VOLUME, (1.0, 1.0, 1.0))
    raw = rng.random((2, 3, *there.shape)).astype(np.float32)
    back = restore(raw, of=there, to=VOLUME, order="linear")
    assert back.shape == (2, 3, *VOLUME.shape)
    assert np.abs(back[1, 2] - restore(raw[1, 2], of=there, to=VOLUME, order="linear")).max() == 0
    total = restore(raw / raw.sum(axis=1, keepdims=True), of=there, to=VOLUME, order="linear").sum(axis=1)
    assert np.abs(total - 1).max() < 1e-5, "probabilities at the border lost something"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32])
def test_labels_keep_their_type(kind: type) -> None:
    there = resample(VOLUME, (1.5, 0.8, 0.7))
    labels = rng.integers(0, 100, there.shape).astype(kind)
    back = restore(labels, of=there, to=VOLUME)
    assert back.dtype == kind
    assert set(np.unique(back)) <= set(np.unique(labels))


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(OptionError, match=r"order='cubic'.*'nearest', 'linear', 'bspline'"):
        resample(VOLUME, (1.0, 1.0, 1.0), order="cubic")
    for spacing in ((0.0, 1.0, 1.0), (1.0, 1.0), (1.0, float("nan"), 1.0)):
        with pytest.raises(VolumeError, match="spacing"):
            resample(VOLUME, spacing)
    with pytest.raises(VolumeError, match="two along each axis"):
        resample(VOLUME, (1.0, 1.0, 50.0))
    with pytest.raises(VolumeError, match=r"does not lie on this volume"):
        restore(np.zeros((3, 4, 5), np.uint8), of=resample(VOLUME, (1.0, 1.0, 1.0)), to=VOLUME)


def test_it_says_what_it_did_and_is_a_volume_of_its_own() -> None:
    got = resample(VOLUME, (1.0, 1.0, 1.0), order="bspline")
    assert got.notes[-1] == "resampled to 1, 0.9714, 1.05 mm (bspline)"
    assert (got.modality, got.unit) == ("CT", "HU")
    assert got.source_grid == got.grid
    assert (got.undo(got.array) == got.array).all()
    image = got.image
    witness = sitk.Resample(
        VOLUME.image, image, sitk.Transform(), sitk.sitkBSpline, 0.0, sitk.sitkFloat32
    )  # fmt: skip
    assert np.abs(sitk.GetArrayFromImage(witness) - got.array).max() < 0.5
