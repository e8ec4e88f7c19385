"""One volume in every form a user may have it in: the same voxels, the same grid, the same result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers_predict import Bright, blob, segmenter
from helpers_volume import AXES, make_series, rotation
from monai.data import MetaTensor

import svd_hub
from svd_hub import Inference, Predictor, Preprocess
from svd_hub.errors import OptionError, VolumeError
from svd_hub.predict.inputs import to_picture, to_volume
from svd_hub.volume import Volume, read

BLOB, INSIDE = blob()
SPACING = (2.5, 0.8, 0.7)


def forms(folder: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Each form with what has to be said of it."""
    image = sitk.GetImageFromArray(BLOB)
    image.SetSpacing(SPACING[::-1])
    for ending in ("nii.gz", "nrrd", "mha"):
        sitk.WriteImage(image, str(folder / f"ct.{ending}"))
    make_series(folder / "dicom", (BLOB + 1024).astype(np.uint16), spacing=SPACING, origin=(0, 0, 0))
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])
    x_first = torch.from_numpy(BLOB.transpose(2, 1, 0).copy())
    told = {"spacing": SPACING}
    return {
        **{ending: (folder / f"ct.{ending}", {}) for ending in ("nii.gz", "nrrd", "mha")},
        "text": (str(folder / "ct.nrrd"), {}),
        "DICOM folder": (folder / "dicom", {}),
        "DICOM file": (next((folder / "dicom").iterdir()), {}),
        "Volume": (read(folder / "ct.nrrd", modality="CT"), {}),
        "Volume of no modality": (read(folder / "ct.nrrd"), {}),
        "SimpleITK": (image, {}),
        "array": (BLOB, told),
        "float array": (BLOB.astype(np.float64), told),
        "array of another order": (np.asfortranarray(BLOB), {**told, "axes": "SPL"}),
        "read-only array": (np.broadcast_to(BLOB, BLOB.shape), told),
        "big-endian array": (BLOB.astype(">i2"), told),
        "flipped array": (BLOB[::-1, :, ::-1], {**told, "axes": "IPR"}),
        "turned array": (BLOB.transpose(2, 0, 1), {"spacing": (0.7, 2.5, 0.8), "axes": "LSP"}),
        "tensor": (torch.from_numpy(BLOB), told),
        "tensor with a gradient": (torch.from_numpy(BLOB).float().requires_grad_(), told),
        "MetaTensor": (MetaTensor(x_first, affine=torch.from_numpy(affine)), {}),
        "MetaTensor with a channel": (MetaTensor(x_first[None].float(), affine=torch.from_numpy(affine).float()), {}),
    }


def test_every_form_is_the_same_volume_and_gives_the_same(tmp_path: Path) -> None:
    predictor = Predictor(segmenter(rule={"spacing": (2.0, 1.0, 1.0)}))
    first = predictor(BLOB, spacing=SPACING)
    assert len(np.unique(first.labels)) > 2
    for name, (image, options) in forms(tmp_path).items():
        result = predictor(image, **options)
        assert (result.volume.array == BLOB).all(), name
        assert np.allclose(result.volume.spacing, SPACING, atol=1e-4), name
        assert "array" in name or result.volume.grid.is_like(first.volume.grid, tolerance=1e-3), name  # without a place
        assert (result.labels == first.labels).all(), name
        assert result.voxels == first.voxels


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("oblique", [False, True])
def test_a_metatensor_of_any_affine(axes: str, oblique: bool) -> None:
    """The result lies on it: its image has the very affine, as nibabel writes it."""
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])
    affine[:3, 3] = 10, 20, 30
    if oblique:
        turn = np.eye(4)
        turn[:3, :3] = rotation(20, 5)
        affine = turn @ affine
    straight = nibabel.Nifti1Image(BLOB.transpose(2, 1, 0).copy(), affine)
    codes = "".join(reversed(axes))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes)
    )  # fmt: skip
    given = straight.as_reoriented(turn)
    tensor = MetaTensor(torch.from_numpy(np.array(given.dataobj)), affine=torch.from_numpy(given.affine))
    result = Predictor(Bright())(tensor)
    assert (result.labels == INSIDE).all()
    image = result.image
    back = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    assert (back == (np.array(given.dataobj) > 500)).all()
    direction = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    ras = np.array([-1, -1, 1])
    assert np.allclose(direction * ras[:, None], given.affine[:3, :3], atol=1e-5)
    assert np.allclose(np.array(image.GetOrigin()) * ras, given.affine[:3, 3], atol=1e-5)


def test_a_bfloat16_tensor() -> None:
    array = torch.from_numpy(BLOB // 8 * 8).bfloat16()
    assert (to_volume(array, modality="CT", spacing=SPACING).array == array.float().numpy()).all()


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (BLOB, {}, r"an array needs its spacing. Next: spacing=\(z, y, x\)"),
        (BLOB, {"spacing": 1.0}, "spacing=1.0 is not allowed; allowed: three numbers"),
        (BLOB, {"spacing": (1, 1)}, "the spacing .* is not allowed"),
        (BLOB, {"spacing": (1, 0, 1)}, "the spacing .* is not allowed"),
        (BLOB, {"spacing": (1, 1, float("nan"))}, "the spacing .* is not allowed"),
        (BLOB, {"spacing": "abc"}, "spacing='abc' is not allowed"),
        (BLOB, {"spacing": SPACING, "axes": "XYZ"}, "axes='XYZ' is not allowed"),
        (BLOB, {"spacing": SPACING, "axes": 3}, "axes=3 is not allowed"),
        (BLOB, {"spacing": SPACING, "series": 3}, "series=3 is for DICOM folders"),
        (BLOB[0], {"spacing": SPACING}, "three axes of real numbers"),
        (BLOB[None], {"spacing": SPACING}, "three axes of real numbers"),
        (BLOB[:1], {"spacing": SPACING}, "one slice, a 2D image"),
        (BLOB * 1j, {"spacing": SPACING}, "three axes of real numbers"),
        (BLOB.astype(str), {"spacing": SPACING}, "three axes of real numbers"),
        (np.zeros((0, 3, 3)), {"spacing": SPACING}, "three axes of real numbers"),
        (np.full((4, 5, 6), np.nan), {"spacing": SPACING}, "120 of 120 voxels are NaN or infinite"),
        (np.where(INSIDE, np.inf, BLOB), {"spacing": SPACING}, "voxels are NaN or infinite"),
        (np.full((4, 5, 6), 7), {"spacing": SPACING}, "every voxel is 7: an empty image"),
        (BLOB.astype(np.uint8), {"spacing": SPACING}, "the values are 8-bit numbers"),
        (BLOB.tolist(), {"spacing": SPACING}, r"spacing=.* are for bare arrays; this list brings its own"),
        (BLOB.tolist(), {}, "a list is not allowed; allowed: a path, an array with its spacing"),
        (None, {}, "a NoneType is not allowed"),
        (sitk.Image(4, 5, sitk.sitkInt16), {}, "an image of 2 dimensions"),
        (sitk.Image([4, 5, 6], sitk.sitkVectorUInt8, 3), {}, "3 components"),
        (sitk.GetImageFromArray(BLOB), {"spacing": SPACING}, "this Image brings its own"),
        (MetaTensor(torch.zeros(2, 4, 5, 6)), {}, r"an array \(2, 4, 5, 6\) with an affine"),
        (MetaTensor(torch.zeros(4, 5, 6), affine=torch.diag(torch.tensor([1.0, 0, 1, 1]))), {}, "the spacing"),
        ("nowhere.nii.gz", {}, "nowhere.nii.gz cannot be read: No such file"),
    ],
)
def test_what_is_no_volume(image: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((VolumeError, OptionError), match=message) as error:
        Predictor(Bright())(image, **options)
    assert "allowed" in str(error.value) or "Next" in str(error.value)


def test_a_volume_of_another_modality() -> None:
    volume = dataclasses.replace(Volume.from_array(BLOB, spacing=SPACING), modality="MR")
    with pytest.raises(VolumeError, match="the volume is MR and these weights are for CT"):
        Predictor(Bright())(volume)


def test_a_sheared_affine_is_refused() -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[0, 1] = 0.3
    with pytest.raises(VolumeError, match="degrees off right angles"):
        Volume.from_affine(BLOB, affine)
    for wrong in (np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)):
        with pytest.raises(VolumeError):
            Volume.from_affine(BLOB, wrong)


# ---- pictures ------------------------------------------------------------------------------------------------------


def test_pictures(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    for mode in ("RGB", "RGBA", "P", "L", "1", "CMYK"):
        photo.convert(mode).save(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}", quality=95)
        found = to_picture(tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
        assert (found.shape, found.dtype) == ((30, 40, 3), np.uint8)
    assert (to_picture(tmp_path / "RGB.png") == pixels).all()
    assert (to_picture(photo) == pixels).all()
    assert (to_picture(torch.from_numpy(pixels)) == pixels).all()
    assert (to_picture(pixels[..., 0]) == pixels[..., :1]).all()
    for wrong in (BLOB, pixels / 255.0, pixels.transpose(2, 0, 1), None, "nothing.png", tmp_path, object()):
        with pytest.raises(VolumeError):
            to_picture(wrong)


def test_damaged_pictures_are_refused(tmp_path: Path) -> None:
    import random

    from helpers_volume import damage
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    rng, path = random.Random(0), tmp_path / "photo"
    refused = 0
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        Image.fromarray(pixels).save(path, kind)
        whole = path.read_bytes()
        for _ in range(40):
            path.write_bytes(damage(whole, rng, 200))
            try:
                assert to_picture(path).ndim == 3
            except VolumeError:
                refused += 1
    assert refused > 50


# ---- the network and how it is run ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "dtype='float64' is not allowed; allowed: 'float32'"),
        ({"dtype": torch.float32}, "is not allowed; allowed: 'float32'"),
        ({"dtype": "float16"}, "dtype='float16' on a CPU is not allowed"),
        ({"device": "tpu"}, "device='tpu' is not allowed; allowed: auto, cpu, cuda"),
        ({"device": None}, "device=None is not allowed"),
        ({"device": "meta"}, "device='meta' is not on this machine"),
        ({"at_once": 0}, "at_once=0 is not allowed"),
        ({"at_once": 1.5}, "at_once=1.5 is not allowed"),
        ({"num_classes": 3}, "num_classes cannot be given with a loaded network"),
    ],
)
def test_options_that_are_not_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Predictor(Bright(), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there() -> None:
    assert Predictor(Bright()).device.type == "cpu"
    with pytest.raises(OptionError, match=r"device='cuda:1' is not on this machine. Next: device='cpu'"):
        Predictor(Bright(), device="cuda:1")


def test_networks_that_are_not_to_predict_with() -> None:
    bare = svd_hub.load("resnet3d18w16_lidc", num_classes=0)
    with pytest.raises(OptionError, match=r"'resnet3d18w16_lidc' has no head.* Next: "):
        Predictor(bare)
    with pytest.raises(OptionError, match="has no head"):
        Predictor("resnet3d18w16_lidc", features_only=True)
    with pytest.raises(OptionError, match=r"Linear does not come from svd_hub.load"):
        Predictor(torch.nn.Linear(3, 3))
    with pytest.raises(
        OptionError, match=r"would be new and random .* its results would mean nothing. Next: fine-tune"
    ):
        Predictor("resnet3d18w16_lidc", num_classes=7)
    video = svd_hub.load("resnet3d18_kinetics700", weights=None, width=4)
    with pytest.raises(OptionError, match="reads video clips"):
        Predictor(video)
    one = Bright()
    one.options = {"num_classes": 1}
    with pytest.raises(OptionError, match=r"makes one map.*activation='sigmoid'"):
        Predictor(one)
    flat = Bright()
    flat.preprocess = Preprocess(modality="RGB")
    with pytest.raises(OptionError, match=r"is a segmenter of photographs.*Next: build it with svd_hub.task_model"):
        Predictor(flat)
    with pytest.raises(svd_hub.errors.UnknownEntryError):
        Predictor("no_such_entry")


def test_random_weights_are_taken_where_they_are_asked_for() -> None:
    assert Predictor("resnet3d18w16_lidc", weights=None, width=4).task == "classification"


def test_a_backbone_with_a_head_is_a_classifier() -> None:
    model = svd_hub.load("resnet3d18_med3d", weights=None, width=4, num_classes=2)
    assert Predictor(model).task == "classification"


@pytest.mark.parametrize(
    "given", [{"point": (0, 0, 0)}, {"planes": [1]}, {"least_score": 0.5}, {"most": 3}], ids=lambda g: next(iter(g))
)
def test_arguments_of_other_tasks_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"is not allowed: 'bright' does segmentation of volumes. Next: leave it out"):
        Predictor(Bright())(BLOB, spacing=SPACING, **given)


def test_bfloat16_agrees_nearly_everywhere() -> None:
    single = Predictor("unet3d18w16_ctorgans")
    half = Predictor("unet3d18w16_ctorgans", dtype="bfloat16")
    array = np.random.default_rng(0).normal(0, 1, (8, 20, 20)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    array = (array * 150).astype(np.int16)
    a, b = (predictor(array, spacing=(3, 3, 3)).labels for predictor in (single, half))
    assert half.run(torch.zeros(1, 1, 32, 32, 32)).dtype == torch.float32
    assert len(np.unique(a)) > 1
    assert (a == b).mean() > 0.98
    assert (a != b).any() or np.array_equal(a, b)


def test_a_result_says_nothing_of_where_it_came_from(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(BLOB), str(tmp_path / "SENTINEL.nii.gz"))
    result = Predictor(Bright())(tmp_path / "SENTINEL.nii.gz")
    assert "SENTINEL" not in f"{result!r} {result.facts()} {result.volume!r}"
    assert set(result.seconds) == {"read", "predict"}
    assert result.facts()["use"] == "Research use. Not a medical device."
    assert Inference().data() == {}


def test_weights_without_a_head_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svd_hub.predict.predictor.load", lambda *_, **__: pytest.fail("it was loaded"))
    for name in ("resnet3d18_imagenet", "resnet3d18_med3d", "segresenc_ctfm"):
        with pytest.raises(OptionError, match=r"has no head: it is a backbone .*Next: "):
            Predictor(name)


def test_hu_given_to_weights_for_mr_are_noted() -> None:
    hu = BLOB.copy()
    hu[0] = -1000
    predictor = Predictor(Bright(modality="MR", window=None, statistics="volume"))
    assert any("look like HU of a CT: check that this is MR" in note for note in predictor(hu, spacing=SPACING).notes)
    assert not predictor(np.abs(BLOB), spacing=SPACING).notes


def test_a_mask_is_named_among_what_8_bits_can_be() -> None:
    with pytest.raises(VolumeError, match=r"The file is a mask, a picture of a CT, .* Next: give the image in HU"):
        Predictor(Bright())(INSIDE.astype(np.uint8), spacing=SPACING)
