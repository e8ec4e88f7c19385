"""What is written: the mask on the input's grid, to the voxel, whole or not at all, and nobody's name in it."""

from __future__ import annotations

import contextlib
import gzip
import os
import stat
import warnings
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from helpers_volume import (
    AXES,
    CORONAL,
    HU,
    IDENTITY,
    NAME,
    OBLIQUE,
    PLACE,
    STORED,
    make_series,
    oblique,
    phantom,
    picture,
    read_by_itk,
    written,
)

from svd_hub.errors import VolumeError
from svd_hub.volume import Volume, list_series, read, resample, write_image, write_mask
from svd_hub.volume.record import to_image

FORMATS = (".nii.gz", ".nii", ".nrrd", ".mha")
rng = np.random.default_rng(0)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("kind", ["nii.gz", "nrrd", "mha"])
def test_a_mask_lies_on_the_input_whoever_reads_it(tmp_path: Path, ending: str, kind: str) -> None:
    """In memory it follows from the voxels; on the disk it must follow from the input's own, to a foreign reader."""
    source = picture(degrees=40, seed=2, flip=True)
    source = sitk.PermuteAxes(source, [2, 0, 1])
    path = written(tmp_path, kind, source)
    volume = read(path)
    out = write_mask(volume.array > 500, volume, tmp_path / f"mask{ending}")
    mask, image = sitk.ReadImage(str(out)), sitk.ReadImage(str(path))
    assert (sitk.GetArrayFromImage(mask) == (sitk.GetArrayFromImage(image) > 500)).all()
    assert mask.GetPixelID() == sitk.sitkUInt8
    for one, other in (
        (mask.GetOrigin(), image.GetOrigin()),
        (mask.GetSpacing(), image.GetSpacing()),
        (mask.GetDirection(), image.GetDirection()),
    ):
        assert np.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), CORONAL, OBLIQUE])
@pytest.mark.parametrize("ending", FORMATS)
def test_a_mask_of_a_dicom_series(tmp_path: Path, orientation: tuple[float, ...], ending: str) -> None:
    make_series(tmp_path / "in", STORED, orientation=orientation)
    volume, witness = read(tmp_path / "in"), read_by_itk(tmp_path / "in")
    out = write_mask((volume.array > 500).astype(np.int64) * 3, volume, tmp_path / f"mask{ending}")
    mask = sitk.ReadImage(str(out))
    assert (sitk.GetArrayFromImage(mask) == 3 * (sitk.GetArrayFromImage(witness) > 500)).all()
    assert np.allclose(mask.GetDirection(), witness.GetDirection(), atol=1e-5)
    assert np.allclose(mask.GetOrigin(), witness.GetOrigin(), atol=1e-4)


@pytest.mark.parametrize("axes", AXES[::5])
def test_write_and_read_is_the_identity(tmp_path: Path, axes: str) -> None:
    grid = oblique(1, axes)
    array = rng.integers(-1000, 1000, grid.size).astype(np.int16)
    volume = Volume.from_image(to_image(array, grid), modality="CT")
    for ending in FORMATS:
        again = read(write_image(volume, tmp_path / f"a{ending}"), modality="CT")
        assert (again.array == volume.array).all()
        assert again.grid.is_like(volume.grid)
        assert again.source_grid.is_like(grid)


def test_nibabel_reads_the_same_place(tmp_path: Path) -> None:
    volume = Volume.from_image(picture(degrees=30))
    made = nibabel.load(write_image(volume, tmp_path / "a.nii.gz"))
    end = np.array(made.shape) - 1
    assert np.allclose(
        nibabel.affines.apply_affine(made.affine, end), volume.source_grid.points(end[::-1]) * (-1, -1, 1), atol=1e-4
    )
    assert made.header["sform_code"] > 0
    assert made.header["qform_code"] > 0


def test_many_labels_need_sixteen_bits(tmp_path: Path) -> None:
    volume = Volume.from_array(np.arange(27).reshape(3, 3, 3), spacing=(1.0, 1.0, 1.0))
    labels = np.arange(27).reshape(3, 3, 3) * 100
    made = sitk.ReadImage(str(write_mask(labels, volume, tmp_path / "a.nrrd")))
    assert made.GetPixelID() == sitk.sitkUInt16
    assert (sitk.GetArrayFromImage(made) == labels).all()


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    volume = Volume.from_array(np.arange(27).reshape(3, 3, 3), spacing=(1.0, 1.0, 1.0))
    for mask, message in (
        (np.zeros((3, 3, 3), np.float32), "argmax"),
        (np.zeros((1, 3, 3, 3), np.uint8), r"\(D, H, W\)"),
        (np.zeros((3, 3, 4), np.uint8), "does not lie on this volume"),
        (np.full((3, 3, 3), -1), "labels -1 to -1"),
        (np.full((3, 3, 3), 70000), "labels 70000"),
    ):
        with pytest.raises(VolumeError, match=message):
            write_mask(mask, volume, tmp_path / "a.nii.gz")
    for name in ("a.png", "a", "a.dcm", "a.nii.zip"):
        with pytest.raises(VolumeError, match=r"ending.*\.nii\.gz, \.nii, \.nrrd, \.mha"):
            write_mask(np.zeros((3, 3, 3), bool), volume, tmp_path / name)
    coarse = resample(Volume.from_array(rng.random((9, 9, 9)), spacing=(1.0, 1.0, 1.0)), (2.0, 2.0, 2.0))
    with pytest.raises(VolumeError, match="does not lie on this volume"):
        write_mask(np.zeros((9, 9, 9), bool), coarse, tmp_path / "a.nii.gz")
    assert list(tmp_path.iterdir()) == []


# ---- whole or not at all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, step: str
) -> None:
    volume = Volume.from_array(np.arange(27).reshape(3, 3, 3), spacing=(1.0, 1.0, 1.0))
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left"):
            write_mask(volume.array > 3, volume, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    write_mask(volume.array > 3, volume, path)
    assert sitk.ReadImage(str(path)).GetSize() == (3, 3, 3)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    volume = Volume.from_array(np.arange(27).reshape(3, 3, 3), spacing=(1.0, 1.0, 1.0))
    with pytest.raises(OSError, match="folder is missing, full or read-only"):
        write_mask(volume.array > 3, volume, tmp_path / "absent" / "a.nii.gz")


def test_the_input_is_not_written_over(tmp_path: Path) -> None:
    paths = make_series(tmp_path / "in", STORED)
    volume = read(tmp_path / "in")
    trap = tmp_path / "trap.nii.gz"
    trap.symlink_to(paths[0])
    with pytest.raises(VolumeError, match="one of the input's own"):
        write_mask(volume.array > 3, volume, trap)
    assert (read(tmp_path / "in").array == HU).all()


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    volume = Volume.from_array(np.arange(27).reshape(3, 3, 3), spacing=(1.0, 1.0, 1.0))
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    out = write_mask(volume.array > 3, volume, tmp_path / "a.nii.gz")
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_mask_gives_the_same_bytes(tmp_path: Path, ending: str) -> None:
    volume = Volume.from_array(np.arange(27).reshape(3, 3, 3), spacing=(1.0, 1.0, 1.0))
    one = write_mask(volume.array > 3, volume, tmp_path / f"one{ending}").read_bytes()
    assert one == write_mask(volume.array > 3, volume, tmp_path / f"two{ending}").read_bytes()


# ---- nobody's name -------------------------------------------------------------------------------------------------


def unpacked(data: bytes) -> bytes:
    """The bytes of a file and of every packed stream in it."""
    found = [data]
    for magic, wbits in ((b"\x1f\x8b", 31), (b"x\x9c", 15), (b"x\x01", 15), (b"x\xda", 15)):
        at = data.find(magic)
        while at >= 0:
            with contextlib.suppress(zlib.error):
                found.append(zlib.decompressobj(wbits).decompress(data[at:]))
            at = data.find(magic, at + 1)
    return b"\n".join(found)


def test_the_search_for_names_finds_names() -> None:
    assert NAME.encode() in unpacked(b"123" + gzip.compress(NAME.encode()))
    assert NAME.encode() in unpacked(b"123" + zlib.compress(NAME.encode()))


@pytest.mark.parametrize("ending", FORMATS)
def test_no_patient_and_no_path_in_any_output(
    tmp_path: Path, ending: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / PLACE / NAME
    paths = make_series(folder, phantom())
    assert NAME.encode() in paths[0].read_bytes()
    volume = read(folder)
    (tmp_path / "out").mkdir()
    mask = write_mask(volume.array > 100, volume, tmp_path / "out" / f"mask{ending}")
    image = write_image(volume, tmp_path / "out" / f"image{ending}")
    said = [repr(volume), str(volume), "\n".join(volume.notes), "\n".join(map(str, list_series(folder)))]
    said += [repr(list_series(folder)), repr(volume.grid), caplog.text, *capfd.readouterr()]
    said += [key + volume.image.GetMetaData(key) for key in volume.image.GetMetaDataKeys()]
    bytes_of = [unpacked(path.read_bytes()) for path in (mask, image)] + [text.encode() for text in said]
    for word in (NAME, NAME.split("^")[0], IDENTITY, PLACE, str(tmp_path), "19000101"):
        for k, content in enumerate(bytes_of):
            assert word.encode() not in content, f"output {k} holds {word}"
            assert word.encode("utf-16-le") not in content
    made = sitk.ReadImage(str(mask))
    for key in made.GetMetaDataKeys():
        assert not any(word in made.GetMetaData(key) for word in (NAME, IDENTITY, PLACE))


def test_no_patient_in_what_pydicom_says(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It warns of values that break a rule, and quotes them: here a name and an ID that are too long."""
    long = f"{NAME} " * 12

    def edit(data: pydicom.Dataset, _: int) -> None:
        data.PatientID, data.FrameOfReferenceUID = long, f"1.2.{NAME}"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = make_series(tmp_path, STORED, edit=edit)
    with pytest.warns(UserWarning, match="exceeds|Invalid value"):
        assert NAME in pydicom.dcmread(paths[0]).PatientID
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (read(tmp_path).array == HU).all()
    assert NAME not in caplog.text + "".join(capfd.readouterr())


def test_no_patient_in_what_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A header with values that are wrong makes pydicom quote them; a name may not come out on that way."""
    folder = tmp_path / "in"
    paths = make_series(folder, phantom())
    whole = paths[2].read_bytes()
    for planted in (b"Modality", b"InstanceNumber", b"SeriesNumber", b"RescaleSlope", b"PixelSpacing"):
        data = pydicom.dcmread(paths[2])
        element = data[planted.decode()]
        with pydicom.config.disable_value_validation():
            data.add_new(element.tag, "LO", NAME)
            data.save_as(paths[2])
        with pytest.raises(VolumeError) as caught:
            read(folder)
        chain = [caught.value, caught.value.__cause__]
        if not caught.value.__suppress_context__:
            chain.append(caught.value.__context__)
        assert not any(NAME in str(error) for error in chain), planted
        paths[2].write_bytes(whole)
    assert NAME not in "".join(capfd.readouterr())
