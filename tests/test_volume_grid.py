"""Laws of svd_hub.volume.grid: a turn moves no voxel in the patient, loses nothing, and is what ITK's orienter does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers_volume import AXES, oblique

from svd_hub import Preprocess
from svd_hub.errors import OptionError, VolumeError
from svd_hub.volume import Grid, Volume
from svd_hub.volume.grid import grid_of

rng = np.random.default_rng(0)


def test_all_48_orientations_are_told_apart() -> None:
    assert len(set(AXES)) == 48
    for axes in AXES:
        assert oblique(0, axes, 0.0).axes == axes


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("seed", range(3))
def test_a_turn_moves_no_voxel_and_is_undone_exactly(axes: str, seed: int) -> None:
    grid = oblique(seed, axes)
    array = rng.integers(0, 1000, (2, *grid.size))
    turned, turn = grid.turned()
    result = turn.apply(array)
    assert turned.axes == "SPL"
    assert result.shape[1:] == turned.size
    for index in itertools.product(*(range(n) for n in turned.size)):
        old = np.rint(grid.indices(turned.points(np.array(index)))).astype(int)
        assert np.abs(grid.points(old) - turned.points(np.array(index))).max() < 1e-9
        assert (result[(slice(None), *index)] == array[(slice(None), *old)]).all()
    assert (turn.undo(result) == array).all()


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("seed", range(3))
def test_the_canonical_orientation_is_itks_lps(axes: str, seed: int) -> None:
    grid = oblique(seed, axes)
    image = sitk.GetImageFromArray(rng.integers(-1000, 1000, grid.size).astype(np.int16))
    image.SetSpacing(grid.spacing[::-1])
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    volume, witness = Volume.from_image(image), sitk.DICOMOrient(image, "LPS")
    assert (volume.array == sitk.GetArrayFromImage(witness)).all()
    for ours, theirs in (
        (volume.image.GetOrigin(), witness.GetOrigin()),
        (volume.image.GetSpacing(), witness.GetSpacing()),
        (volume.image.GetDirection(), witness.GetDirection()),
    ):
        assert np.allclose(ours, theirs, atol=1e-9)
    back = volume.undo_image(volume.array)
    assert (sitk.GetArrayFromImage(back) == sitk.GetArrayFromImage(image)).all()
    assert np.allclose(back.GetDirection(), image.GetDirection(), atol=1e-9)
    assert np.allclose(back.GetOrigin(), image.GetOrigin(), atol=1e-9)


def test_points_are_itks() -> None:
    grid = oblique(1, "IAR")
    image = sitk.Image(*grid.size[::-1], sitk.sitkInt16)
    image.SetSpacing(grid.spacing[::-1])
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    for index in ((0, 0, 0), (2, 3, 4), (1.5, -0.5, 2.25)):
        point = image.TransformContinuousIndexToPhysicalPoint([float(i) for i in index[::-1]])
        assert np.allclose(grid.points(np.array(index)), point)
        assert np.allclose(grid.indices(np.array(point)), index)


def test_axes_that_are_none_are_refused() -> None:
    for axes in ("SP", "SPP", "SSS", "XYZ", "", "spl"):
        with pytest.raises(OptionError, match="one each of L/R, P/A and S/I"):
            Grid(size=(2, 2, 2), spacing=(1.0, 1.0, 1.0)).turned(axes)


def test_small_shear_is_made_straight_and_said_and_more_is_refused() -> None:
    steps = np.diag([0.7, 0.8, 2.5])
    for degrees, said in ((0.01, 0), (0.5, 1)):
        steps[0, 1] = 0.8 * np.sin(np.radians(degrees))
        steps[1, 1] = 0.8 * np.cos(np.radians(degrees))
        grid, notes = grid_of((3, 4, 5), steps, (0.0, 0.0, 0.0))
        assert len(notes) == said
        assert np.allclose(grid.spacing, (2.5, 0.8, 0.7))
        direction = np.reshape(grid.direction, (3, 3))
        assert np.abs(direction.T @ direction - np.eye(3)).max() < 1e-12
    steps[0, 1] = 0.1
    with pytest.raises(VolumeError, match=r"degrees off right angles.*up to 1.*Next"):
        grid_of((3, 4, 5), steps, (0.0, 0.0, 0.0))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), 1e-6, 1e5])
def test_spacings_of_no_scanner_are_refused(bad: float) -> None:
    with pytest.raises(VolumeError, match="spacing"):
        Volume.from_array(np.arange(27.0).reshape(3, 3, 3), spacing=(1.0, bad, 1.0))


def test_arrays_in_memory_take_their_axes() -> None:
    array = rng.integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    volume = Volume.from_array(array, spacing=(1.0, 2.0, 3.0), axes="RAS", modality="CT")
    assert volume.shape == (6, 5, 4)
    assert volume.spacing == (3.0, 2.0, 1.0)
    assert (volume.array == array.transpose(2, 1, 0)[:, ::-1, ::-1]).all()
    assert (volume.undo(volume.array) == array).all()
    assert (volume.unit, volume.modality, volume.source_grid.axes) == ("HU", "CT", "RAS")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 6)), "every voxel is 0"),
        (np.full((4, 5, 6), np.nan), "120 of 120 voxels are NaN"),
        (np.arange(120.0).reshape(1, 4, 30), "one slice"),
        (np.arange(120.0).reshape(4, 30), "three axes"),
        (np.arange(120.0).reshape(2, 4, 5, 3), "three axes"),
        (np.arange(120).reshape(4, 5, 6).astype(complex), "three axes of real numbers"),
        (np.zeros((0, 5, 6)), "three axes"),
        (np.array([[["a"]]]), "three axes"),
    ],
)
def test_arrays_that_are_no_volume_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(VolumeError, match=message):
        Volume.from_array(array, spacing=(1.0, 1.0, 1.0))


def test_images_that_are_no_volume_are_refused() -> None:
    for image in (sitk.Image(4, 5, sitk.sitkInt16), sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3)):
        with pytest.raises(VolumeError, match=r"dimensions.*components.*allowed: 3 and 1"):
            Volume.from_image(image)


def test_anisotropy_is_said() -> None:
    array = np.arange(64.0).reshape(4, 4, 4)
    assert Volume.from_array(array, spacing=(5.0, 1.0, 1.0)).notes == ()
    (note,) = Volume.from_array(array, spacing=(20.0, 1.0, 1.0)).notes
    assert "20 times longer" in note


def test_whole_numbers_are_int16_and_others_float32() -> None:
    whole = np.arange(60.0).reshape(3, 4, 5) - 30
    for array, kind in (
        (whole, np.int16),
        (whole.astype(np.float32), np.int16),
        (whole.astype(np.int64), np.int16),
        (whole.astype(">i4"), np.int16),
        (whole + 0.5, np.float32),
        (whole + 32760, np.float32),
        (whole.astype(np.int8), np.int16),
    ):
        volume = Volume.from_array(array, spacing=(1.0, 1.0, 1.0))
        assert volume.array.dtype == kind
        assert (volume.array == array).all()
        assert volume.array.dtype.isnative


def test_what_preprocess_makes_of_it() -> None:
    """As an image and as an array, whatever the input's axes were: one tensor."""
    grid = oblique(1, "IAR", 0.0)
    image = sitk.GetImageFromArray(rng.integers(-1000, 1000, grid.size).astype(np.int16))
    image.SetSpacing(grid.spacing[::-1])
    image.SetDirection(grid.direction)
    volume = Volume.from_image(image, modality="CT")
    preprocess = Preprocess(modality="CT", window=(-1000.0, 400.0), scale=(0.0, 1.0), spacing=(1.0, 1.0, 1.0))
    tensor = preprocess(volume.array, spacing=volume.spacing)
    assert torch.equal(preprocess(volume.image), tensor)
    assert np.allclose(tensor.shape[2:], np.multiply(volume.shape, volume.spacing), atol=0.5)


def test_a_repr_shows_no_voxels() -> None:
    volume = Volume.from_array(np.arange(27).reshape(3, 3, 3), spacing=(1.0, 2.0, 3.0), modality="CT")
    assert repr(volume) == "Volume((3, 3, 3), int16, spacing=(1, 2, 3) mm, CT HU)"
