"""NIfTI, NRRD and MetaImage: the same voxels at the same place as SimpleITK's and nibabel's, and nothing in silence."""

from __future__ import annotations

import gzip
import os
import struct
import threading
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers_volume import ARRAY, picture, rotation, written

from svd_hub.errors import OptionError, VolumeError
from svd_hub.volume import read

rng = np.random.default_rng(0)
FORMATS = ("nii", "nii.gz", "nrrd", "mha", "mhd", "nhdr")
KINDS = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64")


def header(path: Path, *edits: tuple[int, str, Any]) -> Path:
    """Change fields of an uncompressed NIfTI-1 header: (offset, struct format, values)."""
    data = bytearray(path.read_bytes())
    for offset, form, values in edits:
        struct.pack_into("<" + form, data, offset, *(values if isinstance(values, tuple) else (values,)))
    path.write_bytes(data)
    return path


def from_nibabel(name: str) -> Path:
    path = Path(nibabel.__file__).parent / "tests" / "data" / name
    if not path.exists():
        pytest.skip("nibabel came without its test data")
    return path


# ---- the same as the witnesses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("packed", [False, True])
def test_voxels_and_place_are_simpleitks(tmp_path: Path, ending: str, kind: str, packed: bool) -> None:
    array = rng.uniform(0, 100, (5, 6, 7)).astype(kind)
    path = written(tmp_path, ending, picture(array, degrees=70, seed=KINDS.index(kind)), packed=packed)
    volume, image = read(path), sitk.ReadImage(str(path))
    assert (volume.undo(volume.array) == sitk.GetArrayFromImage(image).astype(np.float32)).all()
    assert np.allclose(volume.source_grid.spacing[::-1], image.GetSpacing(), atol=1e-6)
    assert np.allclose(volume.source_grid.origin, image.GetOrigin(), atol=1e-5)
    assert np.allclose(volume.source_grid.direction, image.GetDirection(), atol=1e-5)
    assert volume.grid.axes == "SPL"
    assert (volume.array == sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")).astype(np.float32)).all()


@pytest.mark.parametrize("ending", FORMATS)
def test_a_left_handed_grid_is_kept(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path, ending, picture(degrees=20, flip=True))
    if ending == "nii":
        header(path, (252, "2h", (1, 0)))  # the qform alone, which tells it by its qfac
    volume, image = read(path), sitk.ReadImage(str(path))
    assert np.linalg.det(np.reshape(volume.source_grid.direction, (3, 3))) < 0
    assert np.allclose(volume.source_grid.direction, image.GetDirection(), atol=1e-5)
    assert np.linalg.det(np.reshape(volume.grid.direction, (3, 3))) > 0


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_nifti_is_nibabels(tmp_path: Path, version: int, order: str, ending: str) -> None:
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    affine = np.eye(4)
    affine[:3, :3] = rotation(25, 3) * (0.7, 0.8, 2.5)
    affine[:3, 3] = 1, 2, 3
    made = kind(ARRAY.astype(order + "i2").transpose(2, 1, 0), affine)
    head = made.header.as_byteswapped(order)
    head.set_slope_inter(0.5, -3)
    path = tmp_path / f"a.{ending}"
    nibabel.save(kind(made.dataobj, affine, head), path)
    witness = nibabel.load(path)
    assert witness.header.endianness == order
    volume = read(path)
    assert np.allclose(volume.undo(volume.array).transpose(2, 1, 0), witness.get_fdata(), atol=1e-3)
    corner = volume.source_grid.points(np.array([[0, 0, 0], [4, 5, 6]])) * (-1, -1, 1)
    assert np.allclose(corner, nibabel.affines.apply_affine(witness.affine, [[0, 0, 0], [6, 5, 4]]), atol=1e-4)


@pytest.mark.parametrize("name", ["anatomical.nii", "standard.nii.gz", "reoriented_anat_moved.nii"])
def test_files_that_come_with_nibabel(name: str) -> None:
    path = from_nibabel(name)
    witness, volume = nibabel.load(path), read(path)
    assert np.allclose(volume.undo(volume.array).transpose(2, 1, 0), witness.get_fdata(), atol=1e-2)
    end = np.array(witness.shape) - 1
    ours = volume.source_grid.points(end[::-1]) * (-1, -1, 1)
    assert np.allclose(ours, nibabel.affines.apply_affine(witness.affine, end), atol=1e-3)


def test_nan_at_the_border_of_a_resampled_file_is_refused() -> None:
    with pytest.raises(VolumeError, match=r"153 of 1071 voxels are NaN or infinite.*Next: replace them"):
        read(from_nibabel("resampled_anat_moved.nii"))


@pytest.mark.parametrize("name", ["example4d.nii.gz", "functional.nii", "example_nifti2.nii.gz"])
def test_four_dimensions_that_come_with_nibabel(name: str) -> None:
    path = from_nibabel(name)
    with pytest.raises(VolumeError, match=r"4D: several volumes.*one 3D volume.*Next: split it"):
        read(path)


def test_the_type_follows_the_values(tmp_path: Path) -> None:
    """int16 HU stay int16, through a slope of 1 and through a file of floats; halves become float32."""
    path = written(tmp_path, "nii", picture(ARRAY))
    assert read(path).array.dtype == np.int16
    header(path, (112, "2f", (1.0, -24.0)))
    volume = read(path)
    assert volume.array.dtype == np.int16
    assert (volume.undo(volume.array) == ARRAY.astype(int) - 24).all()
    header(path, (112, "2f", (0.5, 0.0)))
    volume = read(path)
    assert volume.array.dtype == np.float32
    assert (volume.undo(volume.array) == ARRAY / 2).all()
    for slope in (0.0, float("nan"), float("inf")):
        header(path, (112, "2f", (slope, 5.0)))
        assert (read(path).undo(read(path).array) == ARRAY).all(), "a slope that is none was used"
    floats = read(written(tmp_path, "mha", picture(ARRAY.astype(np.float64))))
    assert floats.array.dtype == np.int16


# ---- NIfTI's ways to say where it lies -----------------------------------------------------------------------------


def test_qform_alone_sform_alone_and_neither(tmp_path: Path) -> None:
    made = picture(degrees=30, seed=1)
    path = written(tmp_path, "nii", made)
    for codes, same in (((1, 0), True), ((0, 1), True), ((0, 0), False)):
        header(path, (252, "2h", codes))
        volume = read(path)
        assert np.allclose(volume.source_grid.direction, made.GetDirection(), atol=1e-5) == same
        assert np.allclose(volume.source_grid.spacing, (2.5, 0.8, 0.7), atol=1e-6)
        assert ("does not say how it lies" in " ".join(volume.notes)) != same
    assert volume.source_grid.axes == "SPL"


def test_a_sheared_sform_falls_back_on_the_qform_or_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "nii")
    sheared = (280, "12f", (-0.7, 0.3, 0, 0, 0, -0.8, 0, 0, 0, 0, 2.5, 0))
    header(path, sheared, (252, "2h", (1, 1)))
    volume = read(path)
    assert "the qform is used" in volume.notes[0]
    assert np.allclose(volume.source_grid.direction, np.eye(3).ravel(), atol=1e-6)
    header(path, (252, "2h", (0, 1)))
    with pytest.raises(VolumeError, match="degrees off right angles"):
        read(path)


def test_forms_that_disagree_are_said(tmp_path: Path) -> None:
    path = header(written(tmp_path, "nii"), (280, "12f", (0.7, 0, 0, 0, 0, 0.8, 0, 0, 0, 0, 2.5, 0)))
    volume = read(path)
    assert volume.source_grid.axes == "SAR"
    assert any("disagree; the sform is used" in note for note in volume.notes)


def test_lengths_in_metres_and_micrometres(tmp_path: Path) -> None:
    for code, factor in ((1, 1000.0), (3, 0.001)):
        path = header(written(tmp_path, "nii"), (123, "B", code))
        sform = np.diag([-0.7, -0.8, 2.5]) / factor
        rows = np.concatenate([sform, [[0], [0], [0]]], axis=1)
        header(path, (280, "12f", tuple(rows.ravel())), (252, "2h", (0, 1)))
        volume = read(path)
        assert np.allclose(volume.spacing, (2.5, 0.8, 0.7), rtol=1e-5)
        assert any("not in mm" in note for note in volume.notes)


def test_spaces_of_nrrd(tmp_path: Path) -> None:
    path = written(tmp_path, "nrrd")
    data = path.read_bytes()
    for name, signs in (
        (b"left-posterior-superior", (1, 1, 1)),
        (b"LPS", (1, 1, 1)),
        (b"right-anterior-superior", (-1, -1, 1)),
        (b"RAS", (-1, -1, 1)),
        (b"left-anterior-superior", (1, -1, 1)),
        (b"LAS", (1, -1, 1)),
    ):
        path.write_bytes(data.replace(b"left-posterior-superior", name))
        volume = read(path)
        assert np.allclose(np.reshape(volume.source_grid.direction, (3, 3)), np.diag(signs))
        assert np.allclose(volume.source_grid.origin, np.array((10.0, -20.0, 30.0)) * signs)
    path.write_bytes(data.replace(b"space: left-posterior-superior\n", b"space dimension: 3\n"))
    assert "does not name the patient's axes" in read(path).notes[0]
    path.write_bytes(data.replace(b"left-posterior-superior", b"left-right-left"))
    with pytest.raises(VolumeError, match=r"space 'left-right-left' is not allowed"):
        read(path)


# ---- what is no volume ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (sitk.GetImageFromArray(ARRAY[0]), "one slice|3D grey volume"),
        (picture(ARRAY[:1]), "one slice"),
        (sitk.JoinSeries([picture(), picture()]), "several volumes|3D grey"),
        (sitk.Compose([picture(ARRAY.astype(np.uint8))] * 3), "several volumes|RGB|3D grey"),
        (picture(np.full_like(ARRAY, 7)), "every voxel is 7"),
        (picture(np.where(ARRAY > 2000, np.nan, ARRAY.astype(np.float32))), "NaN or infinite"),
        (picture(np.where(ARRAY > 2000, np.inf, ARRAY.astype(np.float32))), "NaN or infinite"),
        (picture(ARRAY.astype(np.float64) * 1e300), "NaN or infinite"),
    ],
    ids=["2D", "one slice", "4D", "RGB", "constant", "NaN", "inf", "beyond float32"],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, ending: str, image: sitk.Image, message: str) -> None:
    with pytest.raises(VolumeError, match=message) as caught:
        read(written(tmp_path, ending, image))
    assert "allowed" in str(caught.value)
    assert "Next" in str(caught.value)


@pytest.mark.parametrize(("code", "bits", "name"), [(128, 24, "RGB colour"), (32, 64, "complex"), (1536, 128, "1536")])
def test_nifti_voxels_that_are_no_numbers(tmp_path: Path, code: int, bits: int, name: str) -> None:
    path = header(written(tmp_path, "nii"), (70, "2h", (code, bits)))
    with pytest.raises(VolumeError, match=name):
        read(path)


def test_another_modality_is_refused_where_it_shows(tmp_path: Path) -> None:
    grey = picture(rng.integers(0, 255, (5, 6, 7)).astype(np.uint8))
    path = written(tmp_path, "nii.gz", grey)
    assert read(path, modality="MR").modality == "MR"
    with pytest.raises(VolumeError, match=r"8-bit numbers.*not HU|8-bit numbers.*allowed for CT: HU"):
        read(path, modality="CT")
    stored = read(written(tmp_path, "nrrd", picture((ARRAY + 1000).astype(np.uint16))), modality="CT")
    assert "check that these are HU" in stored.notes[-1]
    with pytest.raises(OptionError, match=r"modality='PET'.*'CT', 'MR'"):
        read(path, modality="PET")
    with pytest.raises(OptionError, match="missing="):
        read(path, missing="yes")


def test_twenty_to_one_is_read_and_said(tmp_path: Path) -> None:
    image = picture()
    image.SetSpacing((0.5, 0.5, 10.0))
    assert any("20 times longer" in note for note in read(written(tmp_path, "nii.gz", image)).notes)


# ---- what is damaged, or made to harm ------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", FORMATS[:4])
@pytest.mark.parametrize("packed", [False, True])
def test_half_a_file_is_no_volume(tmp_path: Path, ending: str, packed: bool) -> None:
    """SimpleITK gives the missing half of a NIfTI file as zeros, and says nothing."""
    path = written(tmp_path, ending, packed=packed)
    whole = path.read_bytes()
    for cut in (1, 9, len(whole) // 4, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        with pytest.raises(VolumeError, match=r"cut off|damaged"):
            read(path)


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_one_wrong_bit_in_packed_voxels_is_found(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path, ending, packed=True)
    whole = path.read_bytes()
    for at in (len(whole) // 2, len(whole) - 30, len(whole) - 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(VolumeError, match=r"damaged|cut off"):
            read(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    small = gzip.decompress(written(tmp_path, "nii.gz").read_bytes())
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:  # far more behind the voxels than the header declares
        file.write(small + b"\0" * (64 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(VolumeError, match="go on far beyond"):
        read(path)
    declared = bytearray(small)
    struct.pack_into("<8h", declared, 40, 3, 20000, 20000, 20000, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(bytes(declared)))
    with pytest.raises(VolumeError, match=r"20000 x 20000 x 20000 voxels, 14901.2 GiB; allowed: 4.0 GiB"):
        read(path)
    struct.pack_into("<8h", declared, 40, 3, 1000, 1000, 100, 1, 1, 1, 1)
    path.write_bytes(gzip.compress(bytes(declared)))
    with pytest.raises(VolumeError, match="declares 200000000 bytes"):  # more than so few packed bytes can hold
        read(path)
    with pytest.raises(VolumeError, match=r"0.0 GiB. Next: check that it is whole, or give read"):
        read(written(tmp_path, "nii.gz"), largest=100)


def test_members_of_gzip_are_one_stream(tmp_path: Path) -> None:
    """bgzip and pigz write several members."""
    whole = gzip.decompress(written(tmp_path, "nii.gz").read_bytes())
    path = tmp_path / "members.nii.gz"
    path.write_bytes(b"".join(gzip.compress(whole[k : k + 100]) for k in range(0, len(whole), 100)))
    volume = read(path)
    assert (volume.undo(volume.array) == ARRAY).all()


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../secret.raw", "LIST", "a%03d.raw 1 5 1", "sub/secret.raw", "..\\secret.raw", "", ".", "..",
     "C:secret.raw", ".hidden.raw", "absent.raw"],
)  # fmt: skip
def test_a_header_reaches_no_file_but_the_one_beside_it(tmp_path: Path, name: str) -> None:
    for place in (tmp_path, tmp_path / "in", tmp_path / "in" / "sub"):
        place.mkdir(exist_ok=True)
        for target in ("secret.raw", ".hidden.raw"):
            (place / target).write_bytes(rng.bytes(10_000))
    meta = tmp_path / "in" / "a.mhd"
    meta.write_text(f"NDims = 3\nDimSize = 5 6 7\nElementType = MET_UCHAR\nElementDataFile = {name}\n")
    with pytest.raises(VolumeError, match=r"one file beside it|not beside it|ElementDataFile"):
        read(meta)
    if name:
        nrrd = tmp_path / "in" / "a.nhdr"
        nrrd.write_text(f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 5 6 7\nencoding: raw\ndata file: {name}\n")
        with pytest.raises(VolumeError, match=r"one file beside it|not beside it"):
            read(nrrd)
    meta.write_text("NDims = 3\nDimSize = 5 6 7\nElementType = MET_UCHAR\nElementDataFile = secret.raw\n")
    assert read(meta).shape == (7, 6, 5)


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    path = written(tmp_path, "nii.gz")
    for name in ("volume.dcm", "volume", "volume.zip"):
        assert (read(path.rename(tmp_path / name)).array.shape) == ARRAY.shape
        path = tmp_path / name


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "a PNG picture"),
        (b"\xff\xd8\xff\xe0" + bytes(600), "a JPEG picture"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"hello", "no volume that is known"),
        (bytes(2000), "no volume that is known"),
        (gzip.compress(b"hello" * 100, mtime=0), "gzip of no volume"),
        (b"\x1f\x8b" + bytes(100), "packed data are damaged"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=kind):
        read(path)


def test_a_zip_is_not_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(written(tmp_path, "nii.gz"), "a.nii.gz")
    with pytest.raises(VolumeError, match=r"a zip archive.*Next: unpack"):
        read(tmp_path / "a.zip")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_links_are_followed_and_pipes_are_not_waited_for(tmp_path: Path) -> None:
    path = written(tmp_path, "nii.gz")
    link = tmp_path / "link.nii.gz"
    link.symlink_to(path)
    assert (read(link).undo(read(link).array) == ARRAY).all()
    link.unlink()
    link.symlink_to(tmp_path / "absent")
    with pytest.raises(VolumeError, match="cannot be read: No such file"):
        read(link)
    os.mkfifo(tmp_path / "pipe.nii")
    errors: list[Exception] = []

    def reading() -> None:
        try:
            read(tmp_path / "pipe.nii")
        except VolumeError as error:
            errors.append(error)

    thread = threading.Thread(target=reading, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert "not a regular file" in str(errors[0])
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "pipe")
    with pytest.raises(VolumeError, match="holds no DICOM file"):
        read(tmp_path / "folder")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"type: short", b"type: block", "type 'block'"),
        (b"sizes: 7 6 5", b"sizes: 7 6 -5", "sizes"),
        (b"sizes: 7 6 5", b"sizes: 7 6", "sizes"),
        (b"encoding: raw", b"encoding: hex", "encoding 'hex'"),
        (b"endian: little", b"endian: middle", "endian"),
        (b"(0.6", b"(x.6", "space directions"),
        (b"encoding: raw", b"encoding: raw\nbyte skip: 7", "begin after"),
    ],
)
def test_damaged_fields_of_nrrd(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = written(tmp_path, "nrrd")
    data = path.read_bytes()
    assert old in data, data[:600]
    path.write_bytes(data.replace(old, new))
    with pytest.raises(VolumeError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"MET_SHORT", b"MET_ARRAY", "ElementType"),
        (b"DimSize = 7 6 5", b"DimSize = 7 6 0", "DimSize"),
        (b"NDims = 3", b"NDims = 4", "DimSize"),
        (b"BinaryData = True", b"BinaryData = False", "as text"),
        (b"Offset = 10", b"Offset = nan", "offset"),
        (b"TransformMatrix = 1 0 0", b"TransformMatrix = 1 0", "transformmatrix"),
        (b"TransformMatrix = 1 0 0", b"TransformMatrix = 0 0 0", "spacing"),
        (b"ElementDataFile", b"ElementNoFile", "no ElementDataFile"),
    ],
)
def test_damaged_fields_of_metaimage(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = written(tmp_path, "mha")
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(VolumeError, match=message):
        read(path)
