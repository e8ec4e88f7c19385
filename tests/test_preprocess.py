"""Laws of the preprocessing: the tensor follows from the image, whatever the axes, the container and the padding."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from svd_hub import Preprocess
from svd_hub.errors import OptionError, VolumeError

rng = np.random.default_rng(0)
RGB = Preprocess(modality="RGB", mean=114.495, std=57.63)
IMAGE = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
VOLUME = rng.integers(-1024, 2000, (5, 6, 7)).astype(np.int16)


def same(a: torch.Tensor, b: Any, tolerance: float = 0.0) -> bool:
    b = b if isinstance(b, torch.Tensor) else torch.from_numpy(np.array(b, dtype=np.float32))
    return torch.allclose(a, b, rtol=0, atol=tolerance)


# ---- colour pictures -----------------------------------------------------------------------------------------------


def test_planes_become_depth() -> None:
    got = RGB(IMAGE)
    assert got.shape == (1, 1, 3, 64, 64)
    assert got.dtype == torch.float32
    assert same(got[0, 0], (IMAGE.transpose(2, 0, 1).astype(np.float32) - 114.495) / 57.63, 1e-6)


def test_a_picture_and_its_array_are_the_same() -> None:
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray(IMAGE)
    assert same(RGB(picture), RGB(IMAGE))
    assert same(RGB(picture.convert("L")), RGB(np.asarray(picture.convert("L"))))
    for mode in ("P", "RGBA", "HSV", "CMYK"):
        with pytest.raises(VolumeError, match=rf"mode '{mode}'.*convert\('RGB'\)"):
            RGB(picture.convert(mode))


def test_a_read_only_or_reversed_array_is_taken() -> None:
    frozen = IMAGE.copy()
    frozen.flags.writeable = False
    assert same(RGB(frozen), RGB(IMAGE))
    assert same(RGB(IMAGE[::-1]), RGB(IMAGE).flip(3))


def test_grey_is_three_equal_planes() -> None:
    grey = IMAGE[:, :, 0]
    got = RGB(grey)
    assert same(got, RGB(np.stack([grey] * 3, axis=2)))
    assert same(got[0, 0, 0], got[0, 0, 2])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 90), (90, 50), (20, 33)])
def test_resize_keeps_the_shape_and_crops_the_centre(height: int, width: int) -> None:
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    resized = dataclasses.replace(RGB, short_side=40)(image)
    short = min(height, width)
    assert resized.shape[3:] == (round(height * 40 / short), round(width * 40 / short))
    cropped = dataclasses.replace(RGB, short_side=40, size=(3, 32, 32))(image)
    top, left = ((n - 32) // 2 for n in resized.shape[3:])
    assert same(cropped, resized[..., top : top + 32, left : left + 32])


def test_resize_of_one_colour_is_that_colour() -> None:
    got = dataclasses.replace(RGB, short_side=17, size=(3, 16, 16))(np.full((40, 50, 3), 255, np.uint8))
    assert same(got, torch.full((1, 1, 3, 16, 16), (255 - 114.495) / 57.63), 1e-5)


def test_a_small_picture_is_padded_as_black_or_as_told() -> None:
    for pad, value in ((None, 0.0), (100.0, 100.0)):
        got = dataclasses.replace(RGB, size=(3, 70, 66), pad=pad)(IMAGE)
        assert got.shape == (1, 1, 3, 70, 66)
        assert same(got[..., 3:67, 1:65], RGB(IMAGE))
        assert same(got[..., :3, :], torch.full((1, 1, 3, 3, 66), (value - 114.495) / 57.63), 1e-6)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8, 3), bool),
        np.zeros((8, 8, 3), complex),
        rng.random((8, 8, 3)),
        np.full((8, 8, 3), np.nan),
        np.full((8, 8, 3), np.inf),
        np.full((8, 8, 3), 256),
        np.full((8, 8, 3), -1),
        "cat.png",
        None,
    ],
    ids=str,
)
def test_what_is_no_picture_is_refused(image: Any) -> None:
    with pytest.raises(VolumeError, match="allowed: "):
        RGB(image)


# ---- volumes -------------------------------------------------------------------------------------------------------


def test_window_scale_and_fixed_statistics() -> None:
    plain = Preprocess()(VOLUME)
    assert same(plain[0, 0], VOLUME)
    windowed = Preprocess(window=(-160.0, 240.0))(VOLUME)
    assert same(windowed[0, 0], VOLUME.clip(-160, 240))
    scaled = Preprocess(window=(-160.0, 240.0), scale=(0.0, 255.0))(VOLUME)
    assert same(scaled[0, 0], (VOLUME.clip(-160, 240) + 160) / 400 * 255, 1e-4)
    assert (scaled.min(), scaled.max()) == (0, 255)
    done = Preprocess(window=(-160.0, 240.0), scale=(0.0, 255.0), mean=99.0, std=77.0)(VOLUME)
    assert same(done, (scaled - 99) / 77, 1e-6)


def test_statistics_of_the_volume_ignore_crop_and_padding() -> None:
    own = Preprocess(modality="MR", statistics="volume")
    got = own(VOLUME)
    assert abs(got.mean()) < 1e-5
    assert abs(got.std(unbiased=False) - 1) < 1e-5
    assert same(own(VOLUME * 2 + 100), got, 1e-4), "they undo any linear scale"
    padded = dataclasses.replace(own, minimum=(7, 8, 9))(VOLUME)
    assert same(padded[..., 1:6, 1:7, 1:8], got)
    zero = (0 - VOLUME.mean()) / VOLUME.std()
    assert same(padded[..., 0, :, :], torch.full((1, 1, 8, 9), zero), 1e-5), "padding counts as the image's zero"
    assert same(dataclasses.replace(own, size=(3, 4, 5))(VOLUME), got[..., 1:4, 1:5, 1:6])
    assert torch.isfinite(own(np.full((3, 3, 3), 7))).all()


@pytest.mark.parametrize("axes", ["".join(p) for p in itertools.permutations("DHW")])
def test_axes_in_any_order_are_the_same_volume(axes: str) -> None:
    prepare = Preprocess(spacing=(1.0, 2.0, 0.5))
    spacing = {"D": 2.0, "H": 1.0, "W": 0.75}
    order = ["DHW".index(a) for a in axes]
    got = prepare(VOLUME.transpose(order), spacing=[spacing[a] for a in axes], axes=axes)
    assert same(got, prepare(VOLUME, spacing=(2.0, 1.0, 0.75)))
    assert got.shape[2:] == (10, 3, round(7 * 0.75 / 0.5))


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 2.0, 3.0])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_resampled_ramp_is_a_ramp(axis: int, factor: float) -> None:
    """Trilinear interpolation between voxel centres keeps a line, but for half a voxel at each end."""
    n = 12
    ramp = np.moveaxis(np.broadcast_to(np.arange(n, dtype=np.float32) * 10, (4, 5, n)), 2, axis)
    target = [1.0, 1.0, 1.0]
    target[axis] = factor
    got = Preprocess(spacing=(target[0], target[1], target[2]))(ramp, spacing=(1.0, 1.0, 1.0))[0, 0].movedim(axis, 2)
    size = round(n / factor)
    assert got.shape == (4, 5, size)
    line = ((np.arange(size) + 0.5) * n / size - 0.5) * 10
    inner = slice(1, -1)
    assert same(got[..., inner], np.broadcast_to(line.clip(0, (n - 1) * 10)[inner], (4, 5, size - 2)), 1e-3)


def test_the_spacing_it_has_already_changes_nothing() -> None:
    assert same(Preprocess(spacing=(3.0, 1.0, 1.0))(VOLUME, spacing=(3.0, 1.0, 1.0))[0, 0], VOLUME)
    assert same(Preprocess()(VOLUME, spacing=(9.0, 9.0, 9.0))[0, 0], VOLUME)


def test_padding_is_what_the_window_s_low_end_becomes() -> None:
    prepare = Preprocess(window=(-100.0, 300.0), scale=(0.0, 1.0), mean=0.5, std=0.25, size=(9, 10, 3))
    got = prepare(VOLUME)
    assert got.shape == (1, 1, 9, 10, 3)
    assert same(
        got[:, :, 2:7, 2:8], Preprocess(window=(-100.0, 300.0), scale=(0.0, 1.0), mean=0.5, std=0.25)(VOLUME)[..., 2:5]
    )
    assert same(got[:, :, :2], torch.full((1, 1, 2, 10, 3), (0 - 0.5) / 0.25))
    told = dataclasses.replace(prepare, pad=300.0)(VOLUME)
    assert same(told[:, :, :2], torch.full((1, 1, 2, 10, 3), (1 - 0.5) / 0.25))


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 32, 32), (17, 33, 40), (3, 64, 31)])
def test_sizes_reach_the_minimum_and_the_next_multiple(shape: tuple[int, int, int]) -> None:
    prepare = Preprocess(minimum=(8, 32, 32), divisor=(4, 16, 32))
    got = tuple(prepare(np.zeros(shape)).shape[2:])
    for n, have, least, step in zip(got, shape, prepare.minimum, prepare.divisor, strict=True):
        assert n % step == 0
        assert n >= max(have, least)
        assert n - step < max(have, least)


def test_channels_are_repeated_and_may_be_written_to() -> None:
    got = Preprocess(channels=3)(VOLUME)
    assert got.shape == (1, 3, 5, 6, 7)
    got[0, 0] = 0
    assert same(got[0, 2], VOLUME)


def test_the_image_is_left_alone() -> None:
    volume, image = VOLUME.astype(np.float32), IMAGE.copy()
    Preprocess(window=(0.0, 1.0))(volume).zero_()
    RGB(image).zero_()
    assert (volume == VOLUME).all()
    assert (image == IMAGE).all()


def test_simpleitk_image_is_its_array_and_spacing() -> None:
    sitk = pytest.importorskip("SimpleITK")
    prepare = Preprocess(spacing=(2.0, 1.0, 0.5), window=(-100.0, 100.0))
    image = sitk.GetImageFromArray(VOLUME)
    image.SetSpacing((0.7, 0.8, 3.0))  # x, y, z
    assert same(prepare(image), prepare(VOLUME, spacing=(3.0, 0.8, 0.7)))
    for wrong in (sitk.Image([4, 4, 4], sitk.sitkVectorFloat32, 3), sitk.Image([4, 4], sitk.sitkInt16)):
        with pytest.raises(VolumeError, match="allowed: 3D and scalar"):
            prepare(wrong)


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (np.zeros((4, 4)), {}),
        (np.zeros((1, 4, 4, 4)), {}),
        (np.zeros((0, 4, 4)), {}),
        (np.zeros((4, 4, 4), complex), {}),
        (np.zeros((4, 4, 4), "U1"), {}),
        (np.full((4, 4, 4), np.nan), {}),
        (np.full((4, 4, 4), 1e300), {}),
        (np.zeros((4, 4, 4)), {"axes": "DH"}),
        (np.zeros((4, 4, 4)), {"axes": "XYZ"}),
        (np.zeros((4, 4, 4)), {"axes": "DDW"}),
    ],
    ids=str,
)
def test_what_is_no_volume_is_refused(array: Any, options: Any) -> None:
    with pytest.raises(VolumeError, match="allowed: "):
        Preprocess()(array, **options)


def test_needed_spacing_that_is_none() -> None:
    with pytest.raises(VolumeError, match=r"these weights are for \(1.0, 1.0, 1.0\) mm"):
        Preprocess(spacing=(1.0, 1.0, 1.0))(VOLUME)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, np.nan, 1.0), 2.0, "1mm"])
@pytest.mark.parametrize("needed", [None, (1.0, 1.0, 1.0)])
def test_spacing_that_is_none(spacing: Any, needed: Any) -> None:
    with pytest.raises(VolumeError, match=r"spacing=.*allowed: three positive numbers in mm"):
        Preprocess(spacing=needed)(VOLUME, spacing=spacing)


# ---- directions ----------------------------------------------------------------------------------------------------

LETTERS = ["".join(p) for axes in itertools.product("SI", "AP", "LR") for p in itertools.permutations(axes)]
PATIENT = {"S": 0, "I": 0, "A": 1, "P": 1, "L": 2, "R": 2}


def itk_image(seed: int = 0) -> Any:
    """A straight image of 5 x 6 x 7 voxels (z, y, x), spacing 3, 0.8, 0.7 mm."""
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(np.random.default_rng(seed).integers(0, 1000, (5, 6, 7)).astype(np.int16))
    image.SetSpacing((0.7, 0.8, 3.0))  # x, y, z
    return image


def by_simpleitk(image: Any, letters: str) -> np.ndarray:
    """The image's array, its axes running to `letters`, through SimpleITK's own filter."""
    sitk = pytest.importorskip("SimpleITK")
    x_y_z = "".join(sorted(letters, key=lambda letter: -PATIENT[letter]))
    array = sitk.GetArrayFromImage(sitk.DICOMOrient(image, x_y_z))  # axes z, y, x
    return array.transpose([PATIENT[letter] for letter in letters])


def test_there_are_48_orientations() -> None:
    assert len(set(LETTERS)) == 48


@pytest.mark.parametrize("wanted", LETTERS)
def test_every_direction_becomes_the_one_of_the_record(wanted: str) -> None:
    """Whatever way the same patient was stored, the network sees the one tensor."""
    sitk = pytest.importorskip("SimpleITK")
    image = itk_image()
    prepare = Preprocess(orientation=wanted)
    expected = by_simpleitk(image, wanted)
    for stored in ("LPS", "RAS", "PIR", "SLA", "AIL"):
        turned = sitk.DICOMOrient(image, stored)
        assert same(prepare(turned)[0, 0], expected)
        # SimpleITK's array has the axes of its image in reverse.
        assert same(prepare(sitk.GetArrayFromImage(turned), orientation=stored[::-1])[0, 0], expected)
    assert same(prepare(sitk.GetArrayFromImage(image))[0, 0], expected), "an array is S, P, L unless told otherwise"


def test_the_orientations_of_the_systems_are_what_they_say() -> None:
    """A corner voxel each: superior, posterior, left of a straight image is its last one."""
    image = np.zeros((2, 3, 4), np.int16)
    image[1, 2, 3] = 1  # the most superior, posterior, left voxel
    places = {"SPL": (1, 2, 3), "SRA": (1, 0, 0), "LPS": (3, 2, 1), "RAS": (0, 0, 1)}
    for letters, place in places.items():
        got = Preprocess(orientation=letters)(image)[0, 0]
        assert tuple(got.nonzero()[0].tolist()) == place
        assert got.sum() == 1


@pytest.mark.parametrize("seed", range(20))
def test_an_oblique_image_goes_to_the_nearest_axes(seed: int) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = itk_image()
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    image.SetDirection(turn.flatten().tolist())
    assert same(Preprocess(orientation="SRA")(image)[0, 0], by_simpleitk(image, "SRA"))
    assert same(Preprocess()(image)[0, 0], sitk.GetArrayFromImage(image)), "without an orientation: as it comes"


def test_spacing_is_of_the_patient_s_axes_in_every_orientation() -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = itk_image()
    sides = {0: round(5 * 3 / 1.5), 1: round(6 * 0.8 / 0.4), 2: round(7 * 0.7 / 0.35)}  # z, y, x
    straight = Preprocess(orientation="SPL", spacing=(1.5, 0.4, 0.35))(image)[0, 0]
    assert straight.shape == tuple(sides.values())
    for wanted in ("SPL", "LPS", "SRA", "RAS", "AIR"):
        prepare = Preprocess(orientation=wanted, spacing=(1.5, 0.4, 0.35))
        axes = [PATIENT[letter] for letter in wanted]
        flips = [i for i, letter in enumerate(wanted) if letter not in "SPL"]
        for stored in ("LPS", "PIR", "RSA"):
            turned = sitk.DICOMOrient(image, stored)
            assert same(prepare(turned)[0, 0], straight.permute(axes).flip(flips), 1e-3)
            array, spacing = sitk.GetArrayFromImage(turned), turned.GetSpacing()[::-1]
            assert same(prepare(array, spacing=spacing, orientation=stored[::-1]), prepare(turned))


def test_nibabel_s_array_is_the_image_simpleitk_reads(tmp_path: Path) -> None:
    nib, sitk = pytest.importorskip("nibabel"), pytest.importorskip("SimpleITK")
    array = rng.integers(0, 1000, (7, 6, 5)).astype(np.int16)  # x, y, z to right, anterior, superior
    nib.save(nib.Nifti1Image(array, np.diag([0.7, 0.8, 3.0, 1.0])), tmp_path / "scan.nii")
    image = sitk.ReadImage(str(tmp_path / "scan.nii"))
    read = nib.load(tmp_path / "scan.nii")
    spacing = [float(n) for n in read.header.get_zooms()]
    for letters in ("SPL", "RAS", "SRA", None):
        prepare = Preprocess(orientation=letters, spacing=(2.0, 0.5, 0.4))
        assert same(prepare(np.asarray(read.dataobj), spacing=spacing, orientation="RAS"), prepare(image), 1e-3)


def test_without_an_orientation_of_the_record_axes_are_put_in_order_and_not_turned() -> None:
    for letters in LETTERS:
        order = [PATIENT[letter] for letter in letters]
        got = Preprocess()(VOLUME.transpose(order), orientation=letters)
        assert same(got[0, 0], VOLUME)


def test_what_contradicts_the_image_is_refused() -> None:
    image = itk_image()
    prepare = Preprocess(spacing=(1.0, 1.0, 1.0), orientation="SPL")
    assert same(prepare(image, spacing=(3.0, 0.8, 0.7), orientation="SPL"), prepare(image))
    assert same(prepare(image, spacing=(3.0, 0.8 + 1e-7, 0.7)), prepare(image)), "float32 headers round"
    for options in ({"spacing": (0.7, 0.8, 3.0)}, {"spacing": (3.0, 0.8, 0.75)}):
        with pytest.raises(VolumeError, match=r"the image's own is \(3.0, 0.8, 0.7\) mm"):
            prepare(image, **options)
        with pytest.raises(VolumeError, match="the image's own"):
            Preprocess()(image, **options)
    for told in ({"axes": "WHD"}, {"orientation": "RAS"}, {"orientation": "xyz"}):
        with pytest.raises(VolumeError, match=r"which brings its own \(SPL for z, y, x\)"):
            prepare(image, **told)


@pytest.mark.parametrize(
    "options",
    [{"orientation": "SPL", "axes": "WHD"}, *({"orientation": o} for o in ("SP", "SPA", "SPLL", "spl", "XYZ", 3, ""))],
    ids=str,
)
def test_directions_that_are_none(options: Any) -> None:
    with pytest.raises(VolumeError, match=r"orientation=.*allowed: one letter of S/I, one of A/P, one of L/R"):
        Preprocess()(VOLUME, **options)


# ---- crop first ----------------------------------------------------------------------------------------------------


def whole_then_cropped(volume: np.ndarray, spacing: Any, target: Any, size: Any) -> torch.Tensor:
    """What was done before: the whole volume through torch's own interpolation, here in double precision."""
    sides = [max(1, round(n * s / t)) for n, s, t in zip(volume.shape, spacing, target, strict=True)]
    x = torch.from_numpy(volume.astype(np.float64))[None, None]
    x = F.interpolate(x, size=sides, mode="trilinear", align_corners=False)[0, 0]
    for axis, (n, want) in enumerate(zip(sides, size, strict=True)):
        begin = max(0, n - want) // 2
        x = x.narrow(axis, begin, min(n, want))
    room = [w - n for n, w in zip(x.shape, size, strict=True)]
    return F.pad(x, [part for r in reversed(room) for part in (r // 2, r - r // 2)], value=0.0).float()


@pytest.mark.parametrize(
    "target", [(1.0, 1.0, 1.0), (3.0, 1.5, 1.5), (0.5, 0.7, 4.0), (2.5, 0.7, 0.9), (9.0, 8.0, 7.0)]
)
@pytest.mark.parametrize("size", [(8, 8, 8), (1, 2, 60), (200, 5, 7), (31, 33, 35)])
def test_cropped_first_is_cropped_last(target: Any, size: Any) -> None:
    volume = rng.integers(0, 2000, (33, 40, 47)).astype(np.int16) / np.float32(2000)
    spacing = (2.5, 0.7, 0.9)
    prepare = Preprocess(spacing=target, size=size)
    expected = whole_then_cropped(volume, spacing, target, size)
    assert same(prepare(volume, spacing=spacing)[0, 0], expected, 1e-5)
    # In whatever order memory has it, and turned.
    for order in itertools.permutations(range(3)):
        other = np.ascontiguousarray(volume.transpose(order)).transpose(np.argsort(order))
        assert same(prepare(other, spacing=spacing)[0, 0], expected, 1e-5)
    assert same(prepare(volume[::-1, :, ::-1], spacing=spacing)[0, 0], whole_then_cropped(
        volume[::-1, :, ::-1].copy(), spacing, target, size), 1e-5)  # fmt: skip


def test_a_crop_is_a_part_of_the_whole_to_the_bit() -> None:
    volume = rng.normal(0, 500, (20, 24, 28)).astype(np.float32)
    whole = Preprocess(spacing=(1.0, 1.0, 1.0))(volume, spacing=(2.5, 0.7, 0.9))
    assert whole.shape[2:] == (50, 17, 25)
    part = Preprocess(spacing=(1.0, 1.0, 1.0), size=(20, 7, 10))(volume, spacing=(2.5, 0.7, 0.9))
    assert torch.equal(part, whole[:, :, 15:35, 5:12, 7:17])


def test_what_the_crop_takes_away_is_never_computed() -> None:
    """60,000 million voxels that take no memory: resampling them all would need 2 TB."""
    vast = np.broadcast_to(np.arange(4000, dtype=np.int16), (4000, 4000, 4000))
    got = Preprocess(spacing=(1.0, 1.0, 1.0), size=(4, 4, 8))(vast, spacing=(2.0, 2.0, 2.0))
    assert same(got[0, 0], np.broadcast_to(((np.arange(3996, 4004) + 0.5) / 2 - 0.5), (4, 4, 8)), 1e-3)
    assert same(Preprocess(size=(1, 1, 2))(vast)[0, 0], [[[1999, 2000]]])
    clip = np.broadcast_to(np.uint8(9), (200_000, 300, 300, 3))
    assert same(Preprocess(modality="video", channels=3, size=(2, 3, 3))(clip), np.full((1, 3, 2, 3, 3), 9))


# ---- the systems of the reference ----------------------------------------------------------------------------------


def test_fmcib_is_not_clipped_and_is_padded_with_air() -> None:
    """AIM-Harvard/foundation-cancer-image-biomarker@1f1c0c8: (HU + 1024) / 3072, zeros around."""
    prepare = Preprocess(
        orientation="SPL", spacing=(1.0, 1.0, 1.0), mean=-1024.0, std=3072.0, size=(50, 50, 50), pad=-1024.0
    )
    volume = rng.integers(-3000, 6000, (48, 60, 50)).astype(np.int16)
    got = prepare(volume, spacing=(1.0, 1.0, 1.0))[0, 0]
    assert same(got[1:49], (volume[:, 5:55].astype(np.float64) + 1024) / 3072, 1e-6)
    assert got.max() > 1 > 0 > got.min()
    assert (got[[0, 49]] == 0).all()


def test_medicalnet_s_resize_and_statistics() -> None:
    """Tencent/MedicalNet@20f76aa: zoom of order 0, then mean and std of what is above 0; zeros would be noise.

    Upstream leaves scipy's `mode` alone, which loses the last plane where a rounding error puts it outside.
    """
    zoom = pytest.importorskip("scipy.ndimage").zoom
    for shape, size in (((9, 30, 31), (5, 28, 44)), ((4, 5, 6), (9, 10, 11)), ((7, 3, 8), (1, 3, 20))):
        volume = rng.integers(-20, 100, shape).astype(np.int16) * (rng.random(shape) < 0.8)
        small = zoom(volume, [w / n for w, n in zip(size, shape, strict=True)], order=0, mode="nearest")
        small = small.astype(np.float64)
        assert small.shape == size
        above = small[small > 0]
        expected = np.where(small == 0, 0, (small - above.mean()) / above.std())
        got = Preprocess(size=size, fit="resize", statistics="positive")(volume)
        assert same(got[0, 0], expected, 1e-5)


def test_a_resize_after_resampling_and_in_another_orientation() -> None:
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32), (4, 6, 8))
    got = Preprocess(orientation="RAS", spacing=(1.0, 1.0, 1.0), size=(4, 6, 2), fit="resize")(ramp, spacing=(1, 1, 2))
    fine = ((np.arange(16) + 0.5) / 2 - 0.5).clip(0, 7)  # 16 voxels of 1 mm
    assert same(got[0, 0, :, 0, 0], fine[::-1][[0, 5, 10, 15]], 1e-5)


def test_statistics_of_what_is_above_zero_ignore_padding() -> None:
    prepare = Preprocess(modality="MR", statistics="positive", size=(9, 6, 7))
    volume = rng.integers(0, 3, (5, 6, 7)).astype(np.float32)
    above = volume[volume > 0]
    got = prepare(volume)[0, 0]
    assert same(got[2:7], np.where(volume == 0, 0, (volume - above.mean()) / above.std()), 1e-5)
    assert (got[:2] == 0).all()
    with pytest.raises(VolumeError, match="no voxel of the image is above 0"):
        prepare(-volume)
    assert torch.isfinite(prepare(np.full((5, 6, 7), 3))).all()


# ---- clips ---------------------------------------------------------------------------------------------------------

MEAN, STD = (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737)
KINETICS = Preprocess(
    modality="video", channels=3, short_side=112, window=(0.0, 255.0), scale=(0.0, 1.0), mean=MEAN, std=STD,
    size=(16, 112, 112),
)  # fmt: skip
CLIP = rng.integers(0, 256, (20, 112, 130, 3), dtype=np.uint8)


def test_a_clip_has_its_colours_as_channels() -> None:
    got = KINETICS(CLIP)
    assert got.shape == (1, 3, 16, 112, 112)
    expected = (CLIP[2:18, :, 9:121].astype(np.float64) / 255 - MEAN) / STD
    assert same(got[0], expected.transpose(3, 0, 1, 2), 1e-5)
    assert same(KINETICS(CLIP.astype(np.float64)), got)
    assert same(KINETICS(list(CLIP)), got)


def test_the_frames_of_a_clip_are_resized_as_pictures_are() -> None:
    clip = rng.integers(0, 256, (3, 60, 40, 3), dtype=np.uint8)
    got = Preprocess(modality="video", channels=3, short_side=20)(clip)
    assert got.shape == (1, 3, 3, 30, 20)
    for index, frame in enumerate(clip):
        assert same(got[0, :, index], Preprocess(modality="RGB", short_side=20)(frame)[0, 0], 1e-4)


def test_a_short_clip_is_padded_with_black_frames() -> None:
    got = KINETICS(CLIP[:10])
    assert same(got[:, :, 3:13], KINETICS(CLIP[:10].repeat(2, axis=0)[::2])[:, :, 3:13])
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    assert same(got[0, :, [0, 15]], black.view(3, 1, 1, 1).expand(3, 2, 112, 112), 1e-6)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_clip_for_another_number_of_channels_is_grey(channels: int) -> None:
    got = dataclasses.replace(KINETICS, channels=channels)(CLIP)
    assert got.shape == (1, channels, 16, 112, 112)
    grey = CLIP[2:18, :, 9:121].astype(np.float64).mean(3) / 255
    for channel in range(channels):
        assert same(got[0, channel], (grey - np.mean(MEAN)) / np.mean(STD), 1e-5)


def test_a_grey_clip_has_three_equal_colours() -> None:
    grey = CLIP[..., 0]
    assert same(KINETICS(grey), KINETICS(np.stack([grey] * 3, axis=3)))


def test_the_2018_clips_are_not_scaled() -> None:
    mean = (114.7748, 107.7354, 99.475)
    got = Preprocess(modality="video", channels=3, mean=mean, std=1.0, size=(16, 112, 112))(CLIP)
    assert same(got[0], (CLIP[2:18, :, 9:121] - np.array(mean)).transpose(3, 0, 1, 2), 1e-4)


@pytest.mark.parametrize(
    "clip",
    [
        np.zeros((3, 8, 8, 4), np.uint8),
        np.zeros((3, 3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 8, 8, 3), bool),
        rng.random((2, 8, 8, 3)),
        np.full((2, 8, 8, 3), -1000),
        np.full((2, 8, 8, 3), np.nan),
    ],
    ids=lambda clip: f"{clip.shape} {clip.dtype}",
)
def test_what_is_no_clip_is_refused(clip: Any) -> None:
    with pytest.raises(VolumeError, match="allowed: "):
        KINETICS(clip)


@pytest.mark.parametrize("options", [{"spacing": (1, 1, 1)}, {"axes": "WHD"}, {"orientation": "SPL"}], ids=str)
def test_pictures_and_clips_have_no_directions(options: Any) -> None:
    for prepare, image in ((RGB, IMAGE), (KINETICS, CLIP)):
        with pytest.raises(VolumeError, match="spacing, axes and orientation are not allowed with modality"):
            prepare(image, **options)


def test_a_volume_of_three_channels_may_have_three_means() -> None:
    got = Preprocess(channels=3, mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0))(VOLUME)
    for channel, (mean, std) in enumerate(((1, 1), (2, 2), (3, 4))):
        assert same(got[0, channel], (VOLUME - mean) / std)
    assert same(Preprocess(mean=(1.0, 2.0, 3.0), std=2.0)(VOLUME)[0, 0], (VOLUME - 2) / 2)


# ---- the record ----------------------------------------------------------------------------------------------------

FULL = Preprocess(
    modality="MR", channels=2, orientation="SRA", spacing=(3.5, 1.25, 1.5), short_side=None, window=(-7.0, 77.0),
    scale=(-1.0, 2.0), statistics="fixed", mean=0.125, std=0.375, size=(11, 12, 13), pad=-5.0, note="seen nowhere",
)  # fmt: skip
MED3D = Preprocess(size=(56, 448, 448), fit="resize", statistics="positive")


def test_record_survives_json_and_is_frozen() -> None:
    for record in (FULL, RGB, KINETICS, MED3D, Preprocess(minimum=(1, 2, 3))):
        again = Preprocess(**json.loads(json.dumps(dataclasses.asdict(record))))
        assert again == record
        assert hash(again) == hash(record)
        assert again.describe() == record.describe()
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.mean = 1.0  # type: ignore[misc]


def test_numpy_s_numbers_become_python_s() -> None:
    record = Preprocess(mean=np.float32(0.5), std=np.float64(2), size=tuple(np.array([1, 2, 3])), channels=np.int64(2))
    assert record == Preprocess(mean=0.5, std=2.0, size=(1, 2, 3), channels=2)
    assert {type(n) for n in (record.mean, record.std)} == {float}
    assert {type(n) for n in (*(record.size or ()), record.channels)} == {int}
    json.dumps(dataclasses.asdict(record))


def test_a_record_of_before_is_the_same_record() -> None:
    """As files saved before `orientation` and `fit` have it."""
    old = {
        "modality": "CT", "channels": 1, "spacing": [1.0, 1.0, 1.0], "short_side": None, "window": [-1000.0, 400.0],
        "scale": [0.0, 255.0], "statistics": "fixed", "mean": 76.0, "std": 77.0, "size": [32, 32, 32], "pad": None,
        "minimum": [1, 1, 1], "divisor": [1, 1, 1], "note": "",
    }  # fmt: skip
    record = Preprocess(**old)
    assert (record.orientation, record.fit) == (None, "crop")
    assert {
        key: value for key, value in json.loads(json.dumps(dataclasses.asdict(record))).items() if key in old
    } == old


def test_description_mentions_what_is_set() -> None:
    words = FULL.describe()
    for part in (
        "MR",
        "2 channel",
        "D to superior, H to right, W to anterior (SRA)",
        "(3.5, 1.25, 1.5) mm (z, y, x), trilinear",
        "window (-7.0, 77.0)",
        "mapped to (-1.0, 2.0)",
        "mean 0.125, std 0.375",
        "crop or pad to (11, 12, 13)",
        "padding -5",
        "nowhere",
    ):
        assert part in words
    other = Preprocess(modality="RGB", short_side=99, minimum=(1, 2, 3), divisor=(4, 5, 6))
    for part in ("RGB", "short side 99", "(1, 2, 3)", "(4, 5, 6)", "planes"):
        assert part in other.describe()
    assert "own mean and std" in Preprocess(statistics="volume").describe()
    assert "as the image has them" in Preprocess().describe()
    for part in ("resized to (56, 448, 448) by the nearest voxel", "voxels above 0; voxels equal 0 become 0, the mean"):
        assert part in MED3D.describe()
    assert "padding" not in MED3D.describe(), "nothing is padded"
    for part in ("frames are depth, the channels are R, G, B", "mean (0.4345, 0.4051, 0.3775) of the channels"):
        assert part in KINETICS.describe()
    grey = dataclasses.replace(KINETICS, channels=1).describe()
    for part in ("the mean of the colours", "0.4057, the average of 0.4345, 0.4051, 0.3775"):
        assert part in grey
    # Two records that differ in anything differ in words, too.
    changes = {
        "modality": "CT", "channels": 3, "spacing": None, "window": (-7.0, 78.0), "scale": None, "statistics": "volume",
        "mean": 1.0, "std": 2.0, "size": None, "pad": None, "note": "", "orientation": "SRP", "fit": "resize",
    }  # fmt: skip
    assert all(dataclasses.replace(FULL, **{k: v}).describe() != words for k, v in changes.items())
    for key, value in {"mean": 0.1250000001, "minimum": (1, 1, 2), "divisor": (1, 1, 2)}.items():
        base = dataclasses.replace(FULL, size=None)
        assert dataclasses.replace(base, **{key: value}).describe() != base.describe()


NAN, INF = float("nan"), float("inf")
WRONG: list[dict[str, Any]] = [
    {"modality": "PET"}, {"modality": ["CT"]}, {"statistics": "mine"}, {"channels": 0}, {"std": 0.0}, {"std": -1.0},
    {"window": (1.0, 1.0)}, {"window": (1.0, 2.0, 3.0)}, {"window": 3.0}, {"window": "ab"}, {"scale": (0.0, 1.0)},
    {"spacing": (1.0, 0.0, 1.0)}, {"spacing": (1.0, 1.0)}, {"spacing": 1.0}, {"size": (3, 0, 3)}, {"size": 3},
    {"size": {1: 1, 2: 2, 3: 3}}, {"divisor": (0, 1, 1)}, {"minimum": (1, 1)}, {"short_side": 0}, {"fit": "zoom"},
    *({key: value} for key in ("mean", "pad", "std") for value in (NAN, INF, -INF, 10**400, True, "1", 1j)),
    {"mean": None}, {"std": None}, {"channels": None}, {"minimum": None}, {"divisor": None},
    {"mean": (1.0, 2.0)}, {"mean": ()}, {"mean": (1.0, 2.0, NAN)}, {"std": (1.0, 0.0, 1.0)}, {"std": [1.0, True, 1.0]},
    {"window": (NAN, 1.0)}, {"window": (0.0, INF)}, {"window": (False, True)}, {"spacing": (1.0, 1.0, INF)},
    *({key: value} for key in ("size", "minimum", "divisor") for value in ((1, 2, 3.0), (1, 2, 3.5), (1, 2, True))),
    *({"channels": value} for value in (1.0, True, "1", NAN)), {"short_side": 32.0, "modality": "RGB"},
    {"orientation": "LPI5"}, {"orientation": "LPR"}, {"orientation": "lps"}, {"orientation": 3}, {"orientation": ""},
    {"scale": (1.0, 1.0), "window": (0.0, 1.0)}, {"scale": (0.0, NAN), "window": (0.0, 1.0)}, {"note": None},
    {"fit": "resize"}, {"fit": "resize", "modality": "video", "size": (1, 2, 3)},
    {"spacing": (1.0, 1.0, 1.0), "modality": "RGB"}, {"orientation": "SPL", "modality": "video"},
    {"short_side": 3, "modality": "CT"}, {"mean": (1.0, 2.0, 3.0), "modality": "RGB"},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_record_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=rf"{next(iter(wrong))}=.*allowed: "):
        Preprocess(**wrong)


def test_a_record_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, svd_hub.preprocess as p; p.Preprocess(orientation='SPL', spacing=(1, 1, 1)).describe(); "
        "sys.exit(bool({'torch', 'numpy', 'SimpleITK'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_making_a_picture_smaller_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # the finest pattern: without a filter it stays black or white in places
    x = Preprocess(modality="RGB", short_side=16)(stripes)
    assert (x - 127.5).abs().max() < 40
