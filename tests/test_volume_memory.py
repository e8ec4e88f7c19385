"""Arrays that lie in a file: the same bits as in memory, whatever is read; no pages left of what was gone through."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from helpers_volume import AXES, CORONAL, OBLIQUE, STORED, compress, make_series, oblique, phantom, written
from pydicom.dataset import Dataset

from svd_hub.errors import VolumeError
from svd_hub.volume import Volume, memory, read, write_image, write_mask
from svd_hub.volume.record import to_image

rng = np.random.default_rng(0)
linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux which pages are in memory")


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, it sends every array from there on to a file, and has it gone through in crumbs."""

    def start() -> None:
        monkeypatch.setattr(memory, "MAPPED", 1)
        monkeypatch.setattr(memory, "SLAB", 700)

    return start


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, one of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def mappings(what: str) -> Iterator[tuple[int, int, int]]:
    """Yield begin, end and bytes in memory of the process's mappings of which a line of smaps holds `what`."""
    begin = end = -1
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(n, 16) for n in first.split("-")) if what in line else (-1, -1)
        elif first == "Rss:" and begin >= 0:
            yield begin, end, 1024 * int(line.split()[1])


def resident(array: np.ndarray) -> int:
    """Bytes in memory of the mapping an array lies in."""
    place = array.__array_interface__["data"][0]
    return next(size for begin, end, size in mappings("") if begin <= place < end)


def in_files() -> int:
    """Bytes in memory of all files that the process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE


# ---- the same bits -------------------------------------------------------------------------------------------------


def check_same(path: Path, mapped: Callable[[], None], folder: Path, **options: Any) -> Volume:
    """Read, undo and write in memory, then in files; all must agree."""
    outputs = []
    for place in ("memory", "files"):
        if place == "files":
            mapped()
        volume = read(path, **options)
        mask = (volume.array > np.median(volume.array)).astype(np.uint8)
        (folder / place).mkdir()
        for ending in (".nii", ".nii.gz", ".nrrd", ".mha"):
            write_mask(mask, volume, folder / place / f"mask{ending}")
            write_image(volume, folder / place / f"image{ending}")
        planes = volume.to_planes(mask) if volume.sources else mask
        outputs.append((volume, volume.undo(volume.array), planes))
        assert memory.is_mapped(volume.array) == (place == "files")
    (one, undone, planes), (other, undone_too, planes_too) = outputs
    assert one.array.dtype == other.array.dtype
    assert other.array.flags.c_contiguous
    assert np.array_equal(one.array, other.array)
    assert np.array_equal(undone, undone_too)
    assert np.array_equal(planes, planes_too)
    assert (one.notes, one.grid, one.turn, one.source_grid) == (other.notes, other.grid, other.turn, other.source_grid)
    for file in (folder / "memory").iterdir():
        assert file.read_bytes() == (folder / "files" / file.name).read_bytes(), file.name
    return other


@pytest.mark.parametrize("axes", AXES)
def test_every_orientation_is_the_same_in_a_file(tmp_path: Path, mapped: Callable[[], None], axes: str) -> None:
    array = rng.integers(-1000, 1000, (13, 24, 35)).astype(np.int16)
    grid = oblique(AXES.index(axes), axes)
    path = written(tmp_path, "nii", to_image(array, grid))
    volume = check_same(path, mapped, tmp_path)
    assert (volume.undo(volume.array) == array).all()


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha", "mhd", "nhdr"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("kind", "factor"),
    [("uint8", 1), ("int16", 1), ("uint16", 1), ("int32", 1), ("uint32", 9), ("float32", 1), ("float64", 1.1)],
)
def test_every_format_and_type_is_the_same_in_a_file(
    tmp_path: Path, mapped: Callable[[], None], ending: str, packed: bool, kind: str, factor: float
) -> None:
    """Whole floats become int16, others and what is too large for that float32."""
    array = (rng.integers(0, 255, (9, 20, 15)) * factor * (1000 if factor == 9 else 1)).astype(kind)
    path = written(tmp_path, ending, to_image(array, oblique(3, "RAS")), packed=packed)
    volume = check_same(path, mapped, tmp_path)
    assert volume.array.dtype == (np.int16 if factor == 1 else np.float32)


@pytest.mark.parametrize("slope", [(1.0, -24.0), (0.5, 3.0), (3.0, -1.0), (900.0, 0.0)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_slopes_and_byte_orders_are_the_same_in_a_file(
    tmp_path: Path, mapped: Callable[[], None], slope: tuple[float, float], order: str
) -> None:
    nibabel = pytest.importorskip("nibabel")
    array = rng.integers(0, 1000, (9, 20, 15)).astype(order + "i2")
    head = nibabel.Nifti1Header(endianness=order)
    head.set_data_dtype(array.dtype)
    image = nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]), head)
    image.header.set_slope_inter(*slope)
    nibabel.save(image, tmp_path / "a.nii")
    check_same(tmp_path / "a.nii", mapped, tmp_path)


def padded(data: Dataset, k: int) -> None:
    data.add_new(0x00280120, "US", int(STORED[k].min()))


def inverted(data: Dataset, k: int) -> None:
    padded(data, k)
    data.PhotometricInterpretation = "MONOCHROME1"


def wider(data: Dataset, k: int) -> None:
    data.RescaleSlope = "20" if k > 3 else "1"


TILT = [(0.0, 0.4 * k, 2.5 * k) for k in range(7)]
GAPS = [(0.0, 0.0, z) for z in (0, 5, 10, 15, 17.5, 20, 22.5)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"orientation": CORONAL},
        {"orientation": OBLIQUE, "slope": "0.5"},
        {"edit": padded},
        {"edit": padded, "modality": "MR", "intercept": 0},
        {"edit": inverted, "modality": "MR", "intercept": 0},
        {"edit": wider},
        {"positions": TILT},
        {"positions": TILT, "edit": padded, "modality": "MR", "slope": "0.5"},
        {"positions": GAPS},
        {"positions": GAPS, "slope": "0.5", "modality": "MR"},
    ],
    ids=["plain", "coronal", "float", "padded", "padded MR", "MONOCHROME1", "wider on the way", "tilt",
         "tilt, padded MR", "gaps", "gaps, float"],
)  # fmt: skip
def test_dicom_is_the_same_in_a_file(tmp_path: Path, mapped: Callable[[], None], options: dict[str, Any]) -> None:
    make_series(tmp_path / "in", STORED, **options)
    check_same(tmp_path / "in", mapped, tmp_path, missing="fill")


def enhanced(folder: Path, stored: np.ndarray, *, compressed: bool) -> Path:
    """One multi-frame file, its frames from the last slice to the first."""
    paths = make_series(folder / "single", stored)
    data = pydicom.dcmread(paths[0])
    data.SOPClassUID = pydicom.uid.EnhancedCTImageStorage
    data.NumberOfFrames = len(stored)
    frames = []
    for path in reversed(paths):
        slice_, frame = pydicom.dcmread(path), Dataset()
        place = Dataset()
        place.ImagePositionPatient = slice_.ImagePositionPatient
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    turn, measures, shared = Dataset(), Dataset(), Dataset()
    turn.ImageOrientationPatient, measures.PixelSpacing = data.ImageOrientationPatient, data.PixelSpacing
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [turn], [measures]
    data.PerFrameFunctionalGroupsSequence, data.SharedFunctionalGroupsSequence = frames, [shared]
    data.PixelData = stored[::-1].tobytes()
    data["PixelData"].VR = "OW"
    if compressed:
        data.compress(pydicom.uid.RLELossless)
    data.save_as(folder / "all.dcm")
    return folder / "all.dcm"


@pytest.mark.parametrize("compressed", [False, True])
def test_enhanced_dicom_is_the_same_in_a_file(tmp_path: Path, mapped: Callable[[], None], compressed: bool) -> None:
    path = enhanced(tmp_path, STORED, compressed=compressed)
    volume = check_same(path, mapped, tmp_path)
    assert (volume.array == STORED.astype(int) - 1024).all()


def test_compressed_dicom_is_the_same_in_a_file(tmp_path: Path, mapped: Callable[[], None]) -> None:
    for path in make_series(tmp_path / "in", STORED):
        compress(path, "JPEG2000")
    check_same(tmp_path / "in", mapped, tmp_path)


def test_what_is_refused_is_refused_in_a_file_with_the_same_words(tmp_path: Path, mapped: Callable[[], None]) -> None:
    array = rng.normal(size=(9, 20, 15)).astype(np.float32)
    inputs = []
    for name, value in (("nan", np.nan), ("inf", np.inf), ("huge", 1e300)):
        bad = array.astype(np.float64)
        bad[7, 3, 4] = value
        (tmp_path / name).mkdir()
        inputs.append(written(tmp_path / name, "nii.gz", sitk.GetImageFromArray(bad)))
    (tmp_path / "flat").mkdir()
    inputs.append(written(tmp_path / "flat", "nrrd", sitk.GetImageFromArray(np.full_like(array, 7))))
    cut = written(tmp_path, "mha", sitk.GetImageFromArray(array))
    cut.write_bytes(cut.read_bytes()[:-5])
    errors = []
    for start in (lambda: None, mapped):
        start()
        for path in (*inputs, cut):
            with pytest.raises(VolumeError) as caught:
                read(path)
            errors.append(str(caught.value))
    assert errors[:5] == errors[5:]
    assert "1 of 2700 voxels" in errors[0]


@pytest.mark.parametrize("seed", range(20))
def test_copies_between_any_two_orders_of_memory(mapped: Callable[[], None], seed: int) -> None:
    mapped()
    random = np.random.default_rng(seed)
    shape = random.integers(1, 40, 3)
    views = []
    for _ in range(2):
        order = random.permutation(3)
        array = memory.empty(shape[order].tolist(), np.int16)
        array[...] = random.integers(-1000, 1000, array.shape)
        views.append(array.transpose(np.argsort(order))[tuple(slice(None, None, s) for s in random.choice([-1, 1], 3))])
    source, target = views
    before = source.copy()
    memory.copy(source, target)
    assert (target == before).all()
    assert (source == before).all()


# ---- what is released, and what is not -----------------------------------------------------------------------------


def test_small_arrays_are_ordinary_and_large_ones_lie_in_a_file() -> None:
    for shape, large in (((0, 4, 4), False), ((memory.MAPPED - 1,), False), ((memory.MAPPED // 2, 1, 1), True)):
        array = memory.empty(shape, np.uint8 if len(shape) == 1 else np.int16)
        assert memory.is_mapped(array) == large
        assert array.shape == shape
        assert array.flags.writeable
        assert array.flags.c_contiguous


def test_released_voxels_stay(mapped: Callable[[], None]) -> None:
    mapped()
    array = memory.empty((20, 40, 50), np.float32)
    values = rng.normal(size=array.shape).astype(np.float32)
    array[...] = values
    for part in (array, array[3], array[5:9, ::-1, 3:7], array[::-2].T, array[:0], array.reshape(-1)[7:8]):
        memory.release(part)
        assert (array == values).all()
    array[3] = 7
    memory.release(array[3])
    assert (array[3] == 7).all()
    values[3] = 7
    for plane, other in memory.planes(array, values):
        assert (plane == other).all()


def test_arrays_of_others_are_left_alone(tmp_path: Path) -> None:
    """Dropping the pages of a private map would undo what was written into it."""
    (tmp_path / "a").write_bytes(bytes(1 << 16))
    private = np.memmap(tmp_path / "a", np.uint8, mode="c")
    private[:] = 5
    plain = np.full(1 << 16, 5, np.uint8)
    for array in (private, private[::2], np.asarray(private), plain, plain[3:]):
        memory.release(array)
        assert not memory.is_mapped(array)
    assert (private == 5).all()
    assert (plain == 5).all()


@linux
def test_pages_go_when_they_are_released_and_no_others() -> None:
    array = memory.empty((2, memory.MAPPED), np.uint8)
    array[...] = 1
    assert resident(array) == array.nbytes
    memory.release(array[1])
    assert 0 < resident(array) <= array[0].nbytes
    array[0].min()
    assert resident(array) >= array[0].nbytes
    memory.release(array[:, 5])  # from the first to the last of it
    assert resident(array) == 0
    for step in (1, -1):
        for start in range(7, array.size, 1_000_003)[::step]:  # no whole number of pages
            part = array.reshape(-1)[start : start + 1_000_003]
            assert part.min() == 1
            memory.release(part)
        assert resident(array) == 0
    assert array[1, 5] == 1
    assert 0 < resident(array) < array.nbytes // 4


@linux
@pytest.mark.parametrize("kind", ["nii.gz", "nrrd", "mha", "sagittal", "float", "dicom", "tilted", "padded MR", "gaps"])
def test_no_step_has_more_than_a_few_slabs_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Looked at before each release: what a step forgot would be there at the next one's."""
    path = tmp_path / "in"
    stored = phantom((24 if kind in ("float", "padded MR", "tilted") else 48, 512, 512))  # 25 MB
    if kind in ("dicom", "tilted", "padded MR", "gaps"):
        tilt = [(0.0, 0.2 * k, 2.5 * k) for k in range(24)]
        padding = {"edit": lambda data, _: data.add_new(0x00280120, "US", 7), "modality": "MR", "slope": "0.5"}
        gaps = {"positions": [(0.0, 0.0, 2.5 * (k + k // 2)) for k in range(48)]}
        options = {"dicom": {}, "tilted": {"positions": tilt}, "padded MR": padding, "gaps": gaps}
        make_series(path, stored, **options[kind])
    else:
        array = stored.astype(np.float32) / 3 if kind == "float" else stored.astype(np.int16)
        grid = oblique(1, "RSP" if kind == "sagittal" else "SAR", 5)
        path = written(tmp_path, kind if kind in ("nii.gz", "nrrd", "mha") else "nii", to_image(array, grid))
    monkeypatch.setattr(memory, "MAPPED", 1)
    monkeypatch.setattr(memory, "SLAB", 1 << 20)
    real, peaks, before = memory.release, [0], in_files()

    def watched(array: np.ndarray) -> None:
        peaks.append(in_files() - before)
        real(array)

    monkeypatch.setattr(memory, "release", watched)
    few = 12 << 20  # a slab, and two page tables beside it, of two arrays
    volume = read(path, missing="fill")
    assert volume.array.nbytes >= 2 * few
    assert 0 < max(peaks) < few, f"read: {max(peaks)}"
    labels = memory.empty(volume.shape, np.uint8)
    for plane, label in memory.planes(volume.array, labels):
        label[...] = plane > 500
    assert max(peaks) < few, f"gone through: {max(peaks)}"
    write_mask(labels, volume, tmp_path / "mask.nii.gz")
    assert max(peaks) < few, f"mask written: {max(peaks)}"
    write_image(volume, tmp_path / "image.nii")
    assert max(peaks) < few, f"image written: {max(peaks)}"
    undone = volume.to_planes(labels) if volume.sources else volume.undo(labels)
    assert max(peaks) < few, f"undone: {max(peaks)}"
    assert undone.any()
    volume.array.max()
    assert resident(volume.array) >= volume.array.nbytes
    volume.release()
    assert resident(volume.array) == 0


CHILD = """
import resource, sys
from svd_hub.volume import memory, read, write_mask
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
volume = read(sys.argv[1])
labels = memory.empty(volume.shape, "u1")
for plane, label in memory.planes(volume.array, labels):
    label[...] = plane > 0
write_mask(labels, volume, sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@linux
def test_the_peak_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """At the real sizes: 80 and 240 slices of 512 x 512, 42 and 126 MB."""
    peaks = []
    for count in (80, 240):
        path = tmp_path / f"{count}.nii"
        first = written(
            tmp_path, "nii", to_image(np.arange(96 * 64, dtype=np.int16).reshape(6, 32, 32), oblique(1, "SAR"))
        )
        head = bytearray(first.read_bytes()[:352])
        head[42:48] = np.array([512, 512, count], "<i2").tobytes()
        slab = rng.integers(-1000, 1000, (16, 512, 512)).astype("<i2").tobytes()
        with path.open("wb") as file:
            file.write(head)
            for _ in range(count // 16):
                file.write(slab)
        command = [sys.executable, "-c", CHILD, str(path), str(tmp_path / "mask.nii.gz")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
        path.unlink()
    assert peaks[1] - peaks[0] < 8, f"{peaks} MB"
    assert peaks[1] < 100, f"{peaks} MB"


# ---- the file ------------------------------------------------------------------------------------------------------


@linux
def test_the_file_has_no_name_and_goes_with_its_array(temporary: Path) -> None:
    array = memory.empty((memory.MAPPED,), np.uint8)
    assert memory.is_mapped(array)
    assert list(temporary.iterdir()) == []
    assert [end - begin for begin, end, _ in mappings(str(temporary))] == [array.nbytes]
    files = len(os.listdir("/proc/self/fd"))
    part = array[5:9]
    del array
    assert list(mappings(str(temporary)))  # a view keeps it
    del part
    assert list(mappings(str(temporary))) == []
    assert len(os.listdir("/proc/self/fd")) == files - 1


@linux
def test_nothing_is_left_by_reading_but_the_volume(temporary: Path, mapped: Callable[[], None]) -> None:
    path = written(temporary.parent, "nii.gz", to_image(phantom().astype(np.float64) / 2, oblique(2, "RSP")))
    mapped()
    volume = read(path)
    assert len(list(mappings(str(temporary)))) == 1
    assert list(temporary.iterdir()) == []
    del volume
    assert list(mappings(str(temporary))) == []


def no_room(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "disk_usage":
        usage = shutil.disk_usage(tempfile.gettempdir())
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    elif how == "fallocate":

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    else:
        monkeypatch.setattr(tempfile, "tempdir", str(Path(tempfile.gettempdir()) / "absent"))


@pytest.mark.parametrize("how", ["disk_usage", "fallocate", "no folder"])
def test_a_disk_without_room_leaves_it_in_memory_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: Callable[[], None], how: str
) -> None:
    array = phantom().astype(np.int16)
    path = written(tmp_path, "nii.gz", to_image(array, oblique(2, "SAR")))
    no_room(monkeypatch, how)
    assert not any("held in memory" in note for note in read(path).notes)  # a small one is where it should be
    mapped()
    volume = read(path)
    assert not memory.is_mapped(volume.array)
    assert (volume.undo(volume.array) == array).all()
    assert "no room" in volume.notes[-1]
    assert "TMPDIR" in volume.notes[-1]


def test_a_limit_of_the_system_leaves_it_in_memory() -> None:
    """A real refusal: the system grants no file of that size."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (memory.MAPPED // 2, limits[1]))
        array = memory.empty((memory.MAPPED,), np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not memory.is_mapped(array)
    array[:] = 1


def test_without_fallocate_the_file_is_written_out(monkeypatch: pytest.MonkeyPatch, mapped: Callable[[], None]) -> None:
    """Where blocks cannot be asked for, they are written: a full disk must be an error when the array is made."""
    mapped()
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(memory, "_ZEROS", bytes(1000))
    array = memory.empty((3, 1234), np.uint8)
    assert memory.is_mapped(array)
    assert not array.any()
    array[...] = 3
    memory.release(array)
    assert (array == 3).all()
