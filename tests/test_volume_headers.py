"""What stands before written voxels: nibabel and SimpleITK place them where the grid says, by each of its words."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from helpers_volume import AXES, oblique, rotation

from svd_hub.errors import VolumeError
from svd_hub.volume import Grid, Volume, headers, read, write_image, write_mask
from svd_hub.volume.record import to_image

rng = np.random.default_rng(0)
ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha")
TYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


def saved(folder: Path, grid: Grid, ending: str, array: np.ndarray | None = None) -> tuple[Path, np.ndarray]:
    """An image on a grid, written, and its voxels on that grid."""
    array = rng.integers(-1000, 1000, grid.size).astype(np.int16) if array is None else array
    volume = Volume.from_image(to_image(array, grid))
    return write_image(volume, folder / f"a{ending}"), array


def affine(grid: Grid) -> np.ndarray:
    """Nibabel's affine of a grid: columns x, y, z, rows Right, Anterior, Superior."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag([-1, -1, 1]) @ grid.matrix[:, ::-1]
    matrix[:3, 3] = np.array([-1, -1, 1]) * grid.origin
    return matrix


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nibabel_and_simpleitk_read_the_nifti_that_is_written(tmp_path: Path, axes: str, ending: str) -> None:
    grid = oblique(AXES.index(axes), axes, degrees=20 + AXES.index(axes))
    path, array = saved(tmp_path, grid, ending)
    one, other = nibabel.load(path), sitk.ReadImage(str(path))
    assert (np.asarray(one.dataobj).transpose(2, 1, 0) == array).all()
    assert (sitk.GetArrayFromImage(other) == array).all()
    assert one.get_data_dtype() == np.int16
    assert np.allclose(one.affine, affine(grid), rtol=0, atol=1e-5)
    assert np.allclose(one.header.get_sform(), affine(grid), rtol=0, atol=1e-5)
    assert np.allclose(one.header.get_qform(), affine(grid), rtol=0, atol=1e-4)
    assert np.allclose(other.GetDirection(), grid.direction, rtol=0, atol=1e-5)
    assert np.allclose(other.GetSpacing(), grid.spacing[::-1], rtol=1e-6)
    assert np.allclose(other.GetOrigin(), grid.origin, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["sform", "qform"])
@pytest.mark.parametrize("seed", range(12))
def test_each_form_alone_is_enough(tmp_path: Path, form: str, seed: int) -> None:
    """Of the quaternion only three of four numbers are in the file: about 180 degrees, where the fourth is small, it is
    known to 3e-4 of a radian (half of float32's digits), whoever writes it."""
    random = np.random.default_rng(seed)
    turn = rotation(180.0 - 0.01 * seed if seed % 3 == 0 else float(random.uniform(0, 180)), seed)
    turn[:, 1] *= -1 if seed % 2 else 1
    grid = Grid(size=(3, 4, 5), spacing=(2.0, 0.7, 0.9), origin=(10.0, -20.0, 5.0), direction=tuple(turn.ravel()))
    path, array = saved(tmp_path, grid, ".nii")
    data = bytearray(path.read_bytes())
    struct.pack_into("<2h", data, 252, *((0, 1) if form == "sform" else (1, 0)))
    path.write_bytes(data)
    one, other, ours = nibabel.load(path), sitk.ReadImage(str(path)), read(path)
    atol = 1e-5 if form == "sform" else 1e-3
    assert np.allclose(one.affine, affine(grid), rtol=0, atol=2 * atol)
    assert np.allclose(other.GetDirection(), grid.direction, rtol=0, atol=atol)
    assert np.allclose(ours.source_grid.direction, grid.direction, rtol=0, atol=atol)
    assert (ours.undo(ours.array) == array).all()


@pytest.mark.parametrize("axes", AXES)
def test_plain_axes_are_plain_in_the_quaternion(axes: str) -> None:
    """Turns by 0, 90, 120 and 180 degrees, half of them left-handed."""
    grid = Grid(size=(3, 4, 5), spacing=(1.0, 1.0, 1.0)).turned(axes)[0]
    head = headers.nifti(grid, np.dtype("i2"))
    assert all(round(abs(v), 6) in (0.0, 0.5, 0.707107, 1.0) for v in struct.unpack_from("<3f", head, 256))
    made = nibabel.Nifti1Header(head[:348])
    assert np.allclose(made.get_qform(), affine(grid), rtol=0, atol=1e-6)
    assert (made.get_sform() == affine(grid)).all()


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_header_is_the_one_simpleitk_writes(tmp_path: Path, ending: str) -> None:
    """But for what describes nothing here: its time step, its name for itself."""
    grid = oblique(4, "RAI")
    path, array = saved(tmp_path, grid, ending)
    sitk.WriteImage(to_image(array, grid), str(tmp_path / f"b{ending}"))
    ours, theirs = nibabel.load(path).header, nibabel.load(tmp_path / f"b{ending}").header
    for name in ours:
        if name in ("xyzt_units", "regular", "descrip", "aux_file", "intent_name", "db_name"):
            continue
        here, there = ours[name], theirs[name]
        if name == "pixdim":
            here, there = here[:4], there[:4]
        same = np.allclose(here, there, atol=1e-6, equal_nan=True) if here.dtype.kind == "f" else (here == there).all()
        assert same, f"{name}: {here}, {there}"
    raw = path.read_bytes() if ending == ".nii" else gzip.decompress(path.read_bytes())
    assert struct.unpack_from("<2f", raw, 112) == (1.0, 0.0)  # nibabel takes the slope out of what it gives
    assert ours.get_xyzt_units()[0] == theirs.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("axes", AXES[::3])
def test_numbers_of_the_text_headers_are_exact(tmp_path: Path, ending: str, axes: str) -> None:
    volume = Volume.from_image(
        to_image(rng.integers(0, 9, (3, 4, 5)).astype(np.int16), oblique(AXES.index(axes), axes))
    )
    grid = volume.source_grid
    image = sitk.ReadImage(str(write_image(volume, tmp_path / f"a{ending}")))
    assert image.GetOrigin() == grid.origin
    assert np.allclose(image.GetSpacing(), grid.spacing[::-1], rtol=1e-15, atol=0)
    assert np.allclose(image.GetDirection(), grid.direction, rtol=0, atol=1e-15)
    if ending == ".mha":  # which keeps the two apart
        assert image.GetSpacing() == grid.spacing[::-1]
        assert image.GetDirection() == grid.direction


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_has_its_name_in_every_format(tmp_path: Path, ending: str, kind: str) -> None:
    """`read` gives two of them; a volume that is put together can hold any."""
    values = rng.integers(0, 100, (3, 4, 5)).astype(kind)
    volume = Volume(array=values, grid=(grid := oblique(1, "SPL")), source_grid=grid)
    image = sitk.ReadImage(str(write_image(volume, tmp_path / f"a{ending}")))
    assert (sitk.GetArrayFromImage(image) == values).all()
    assert sitk.GetArrayFromImage(image).dtype == kind


def test_big_endian_voxels_are_written_little_endian(tmp_path: Path) -> None:
    values = rng.integers(-100, 100, (3, 4, 5)).astype(">i2")
    volume = Volume(array=values, grid=(grid := oblique(1, "SPL")), source_grid=grid)
    for ending in ENDINGS:
        image = sitk.ReadImage(str(write_image(volume, tmp_path / f"a{ending}")))
        assert (sitk.GetArrayFromImage(image) == values).all()


def test_packed_streams_hold_no_name_and_no_time_and_end_where_they_say(tmp_path: Path) -> None:
    volume = Volume.from_array(np.arange(60).reshape(3, 4, 5), spacing=(1.0, 1.0, 1.0))
    for ending in (".nii.gz", ".nrrd"):
        data = write_mask(volume.array > 3, volume, tmp_path / f"a{ending}").read_bytes()
        packed = data[data.index(b"\x1f\x8b") :]
        assert packed[2:8] == b"\x08\0\0\0\0\0"  # deflate, no flags (no name, no comment), no time
        assert gzip.decompress(packed)[-60:] == (volume.array > 3).tobytes()
    data = write_mask(volume.array > 3, volume, tmp_path / "a.mha").read_bytes()
    head, _, packed = data.partition(b"ElementDataFile = LOCAL\n")
    assert zlib.decompress(packed) == (volume.array > 3).tobytes()
    (length,) = re.findall(rb"CompressedDataSize = +(\d+)\n", head)
    assert int(length) == len(packed)


def test_an_axis_too_long_for_nifti_is_refused_and_goes_into_the_others(tmp_path: Path) -> None:
    array = np.zeros((2, 2, 32768), np.int16)
    array[1, 1, 32767] = 1
    volume = Volume.from_array(array, spacing=(1.0, 1.0, 1.0))
    for ending in (".nii", ".nii.gz"):
        with pytest.raises(VolumeError, match=r"32768 voxels.*NIfTI-1; allowed: 32767. Next: .*\.nrrd"):
            write_mask(array, volume, tmp_path / f"a{ending}")
    assert list(tmp_path.iterdir()) == []
    for ending in (".nrrd", ".mha"):
        assert (read(write_mask(array, volume, tmp_path / f"a{ending}")).array == array).all()
