"""Laws of the preprocessing: the tensor follows from the image, whatever the axes, the container and the padding."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0), (0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (1.0, np.nan, 1.0), 2.0])
def test_needed_spacing_that_is_none(spacing: Any) -> None:
    with pytest.raises(VolumeError, match=r"these weights are for \(1.0, 1.0, 1.0\) mm"):
        Preprocess(spacing=(1.0, 1.0, 1.0))(VOLUME, spacing=spacing)


# ---- the record ----------------------------------------------------------------------------------------------------

FULL = Preprocess(
    modality="MR", channels=2, spacing=(3.5, 1.25, 1.5), short_side=None, window=(-7.0, 77.0), scale=(-1.0, 2.0),
    statistics="fixed", mean=0.125, std=0.375, size=(11, 12, 13), pad=-5.0, note="seen nowhere",
)  # fmt: skip


def test_record_survives_json_and_is_frozen() -> None:
    for record in (FULL, RGB, Preprocess(minimum=(1, 2, 3))):
        again = Preprocess(**json.loads(json.dumps(dataclasses.asdict(record))))
        assert again == record
        assert hash(again) == hash(record)
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.mean = 1.0  # type: ignore[misc]


def test_description_mentions_what_is_set() -> None:
    words = FULL.describe()
    for part in (
        "MR",
        "2 channel",
        "3.5",
        "1.25",
        "-7.0, 77.0",
        "-1.0, 2.0",
        "0.125",
        "0.375",
        "11, 12, 13",
        "-5",
        "nowhere",
    ):
        assert part in words
    other = Preprocess(modality="RGB", short_side=99, minimum=(1, 2, 3), divisor=(4, 5, 6))
    for part in ("RGB", "short side 99", "(1, 2, 3)", "(4, 5, 6)", "planes"):
        assert part in other.describe()
    assert "own mean and std" in Preprocess(statistics="volume").describe()
    # Two records that differ in anything differ in words, too.
    changes = {
        "modality": "CT", "channels": 3, "spacing": None, "window": (-7.0, 78.0), "scale": None, "statistics": "volume",
        "mean": 1.0, "std": 2.0, "size": None, "pad": None, "note": "",
    }  # fmt: skip
    assert all(dataclasses.replace(FULL, **{k: v}).describe() != words for k, v in changes.items())


@pytest.mark.parametrize(
    "wrong",
    [
        {"modality": "PET"}, {"statistics": "mine"}, {"channels": 0}, {"std": 0.0}, {"std": -1.0},
        {"window": (1.0, 1.0)}, {"window": (1.0, 2.0, 3.0)}, {"window": 3.0}, {"scale": (0.0, 1.0)},
        {"spacing": (1.0, 0.0, 1.0)}, {"spacing": (1.0, 1.0)}, {"size": (3, 0, 3)}, {"divisor": (0, 1, 1)},
        {"minimum": (1, 1)}, {"short_side": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=rf"{next(iter(wrong))}=.*allowed: "):
        Preprocess(**wrong)


def test_making_a_picture_smaller_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # the finest pattern: without a filter it stays black or white in places
    x = Preprocess(modality="RGB", short_side=16)(stripes)
    assert (x - 127.5).abs().max() < 40
