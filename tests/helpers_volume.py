"""DICOM series and damaged files for the tests of svd_hub.volume, made with pydicom and SimpleITK."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.data
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from svd_hub.volume import Grid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL, SAGITTAL = (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)
NAME, IDENTITY, PLACE = "SENTINEL^NAME", "SENTINEL-ID-4711", "SENTINELPLACE"  # none of them may come out anywhere
Edit = Callable[[Dataset, int], None]


AXES = [
    "".join(letters)
    for order in itertools.permutations(("LR", "PA", "SI"))
    for letters in itertools.product(*order)
]  # fmt: skip


def rotation(degrees: float, seed: int) -> np.ndarray:
    """A rotation by `degrees` about a random axis (Rodrigues)."""
    axis = np.random.default_rng(seed).normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def oblique(seed: int, axes: str, degrees: float = 35.0) -> Grid:
    plain = Grid(size=(2, 2, 2), spacing=(1.0, 1.0, 1.0)).turned(axes)[0]
    direction = rotation(degrees, seed) @ np.reshape(plain.direction, (3, 3))
    return Grid(
        size=(3, 4, 5), spacing=(2.0, 0.7, 0.9), origin=(10.0, -20.0, 5.0), direction=tuple(direction.ravel().tolist())
    )


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def phantom(shape: tuple[int, int, int] = (7, 20, 24), *, seed: int = 0) -> np.ndarray:
    """Stored values 0..4000 of a CT with an intercept of -1024: no two slices, rows or columns alike."""
    return np.random.default_rng(seed).integers(0, 4000, shape).astype(np.uint16)


STORED = phantom()
HU = STORED.astype(int) - 1024
OBLIQUE = tuple(rotation(25, 4)[:, :2].T.ravel())
ARRAY = np.random.default_rng(0).integers(-1000, 3000, (5, 6, 7)).astype(np.int16)


def picture(array: np.ndarray = ARRAY, *, degrees: float = 0.0, seed: int = 0, flip: bool = False) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((10.0, -20.0, 30.0))
    direction = rotation(degrees, seed)
    if flip:  # a left-handed grid
        direction[:, 0] *= -1
    image.SetDirection(direction.ravel())
    return image


def written(folder: Path, ending: str, image: sitk.Image | None = None, *, packed: bool = False) -> Path:
    path = folder / f"volume.{ending}"
    sitk.WriteImage(picture() if image is None else image, str(path), packed)
    return path


def image(
    pixels: np.ndarray,
    *,
    position: Sequence[float] = (0.0, 0.0, 0.0),
    orientation: Sequence[float] = AXIAL,
    spacing: tuple[float, float] = (0.8, 0.7),
    series: str = "",
    number: int = 1,
    instance: int = 1,
    modality: str = "CT",
    slope: float | str = 1,
    intercept: float | str = -1024,
    patient: tuple[str, str] = (NAME, IDENTITY),
    reference: str = "1.2.3.4",
    syntax: str = ExplicitVRLittleEndian,
) -> Dataset:
    """One DICOM image; `pixels` (rows, columns) are the stored values, uint16 or int16."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    data.SOPInstanceUID = generate_uid()
    data.PatientName, data.PatientID = patient
    data.PatientBirthDate = "19000101"
    data.StudyInstanceUID = "1.2.3"
    data.SeriesInstanceUID = series or "1.2.3.5"
    data.SeriesDescription = PLACE
    data.SeriesNumber, data.InstanceNumber = number, instance
    data.FrameOfReferenceUID = reference
    data.Modality = modality
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.ImagePositionPatient = [f"{float(p):.10g}" for p in position]
    data.ImageOrientationPatient = [f"{float(o):.10g}" for o in orientation]
    data.PixelSpacing = [f"{s:.10g}" for s in spacing]
    data.SliceThickness = "1"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
    data.RescaleSlope, data.RescaleIntercept = str(slope), str(intercept)
    order = ">" if syntax == pydicom.uid.ExplicitVRBigEndian else "<"
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data["PixelData"].VR = "OW"
    return data


def save(data: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the tests plant on purpose is worth a warning to pydicom
        data.save_as(path, enforce_file_format=True)
    return path


def make_series(
    folder: Path,
    stored: np.ndarray,
    *,
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.7),
    origin: Sequence[float] = (-10.0, 20.0, -30.0),
    orientation: Sequence[float] = AXIAL,
    positions: Sequence[Sequence[float]] | None = None,
    edit: Edit | None = None,
    shuffle: bool = True,
    **options: Any,
) -> list[Path]:
    """A series, one file a slice of `stored` (z, y, x), stacked along the normal; names say nothing of the order."""
    row, column = np.reshape(orientation, (2, 3))
    normal = np.cross(row, column)
    names = list(range(len(stored)))
    if shuffle:
        random.Random(0).shuffle(names)
    paths = []
    for k, pixels in enumerate(stored):
        place = np.asarray(origin) + k * spacing[0] * normal if positions is None else positions[k]
        data = image(
            pixels, position=place, orientation=orientation, spacing=spacing[1:], instance=k + 1, **options
        )  # fmt: skip
        if edit is not None:
            edit(data, k)
        paths.append(save(data, folder / f"{names[k]:04d}.dcm"))
    return paths


def read_by_itk(folder: Path) -> sitk.Image:
    """What SimpleITK's own reader of series makes of a folder: the witness."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def compress(path: Path, kind: str) -> None:
    """Rewrite a DICOM image compressed by SimpleITK: "JPEG" (lossless, process 14) or "JPEG2000"."""
    data = pydicom.dcmread(path)
    packed = path.with_suffix(".packed.dcm")
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(packed))
    writer.UseCompressionOn()
    writer.SetCompressor(kind)
    stored = sitk.GetImageFromArray(data.pixel_array[None])
    stored.SetMetaData("0008|0060", "CT")
    writer.Execute(stored)
    made = pydicom.dcmread(packed)
    packed.unlink()
    for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(data, name, made[name].value)
    data.file_meta.TransferSyntaxUID = made.file_meta.TransferSyntaxUID
    data.PixelData = made.PixelData
    data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB"
    save(data, path)


def damage(whole: bytes, rng: random.Random, head: int) -> bytes:
    """Bytes with one of: an end cut off, some changed, a run overwritten, some put in, some taken out.

    Seven of ten times it hits the first `head` bytes.
    """
    data = bytearray(whole)
    reach = min(head, len(data)) if rng.random() < 0.7 else len(data)
    at = rng.randrange(reach)
    kind = rng.randrange(5)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(reach)] = rng.randrange(256)
    elif kind == 2:
        count = min(rng.randrange(1, 64), len(data) - at)
        data[at : at + count] = bytes([rng.choice([0, 127, 255])]) * count
    elif kind == 3:
        data[at:at] = rng.randbytes(rng.randrange(1, 32))
    else:
        del data[at : at + rng.randrange(1, 32)]
    return bytes(data)


def sample(name: str) -> Path:
    return Path(pydicom.data.__file__).parent / "test_files" / name


@contextmanager
def no_itk_warnings() -> Iterator[None]:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(True)
