"""Reading for the demo: NIfTI files, DICOM folders and nodule crops, and the real images inside pydicom and nibabel.

Each array has the axes (D, H, W) of DICOM: slices from feet to head, rows to the back, columns to the patient's left.
Nothing of a header but sizes, spacing and modality is kept, and no message quotes one: headers name patients.
"""

from __future__ import annotations

import contextlib
import csv
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from svd_hub.errors import SvdHubError, VolumeError

Spacing = tuple[float, float, float]
EVALUATION_FOLD = 3
MAX_VOXELS = 4e8


@dataclass
class Scan:
    """A medical image (D, H, W), in HU where it is CT, with its spacing in mm (z, y, x); `levels` is its pyramid."""

    title: str
    modality: str
    array: np.ndarray
    spacing: Spacing
    levels: dict[str, np.ndarray] = field(default_factory=dict)

    def middle(self, limit: tuple[int, int, int]) -> np.ndarray:
        """Return the middle of the array, at most `limit` voxels along each axis."""
        low = [max(0, n - most) // 2 for n, most in zip(self.array.shape, limit, strict=True)]
        return self.array[tuple(slice(n, n + most) for n, most in zip(low, limit, strict=True))]

    def window(self) -> tuple[float, float]:
        """Return the values to show: HU of air to bone for CT, else the 1st to the 99th percentile.

        Raises:
            VolumeError: the image has no contrast.
        """
        if self.modality == "CT":
            return -1000.0, 400.0
        low, high = (float(n) for n in np.nanpercentile(self.array, (1, 99)))
        if not low < high:
            raise VolumeError(f"{self.title}: nearly all its voxels are {low:g}. Next: give an image with contrast")
        return low, high


@dataclass
class Nodule:
    """A row of nodules.csv: readers' rating 1 to 5; label 0 benign, 1 malignant, -1 undecided (rating 3)."""

    name: str
    rating: int
    label: int
    volume: float = 0.0
    probability: float = 0.0
    picture: np.ndarray | None = None


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Readers raise what they like on a damaged file, and their words may quote a patient's tags: replace both."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (SvdHubError, ImportError):
        raise
    except Exception as error:
        raise VolumeError(
            f"{what} cannot be read ({type(error).__name__}): damaged, or not what its name says. "
            "Next: open it in a viewer, or export it again"
        ) from error


def read_nifti(path: Path, title: str, *, first_of_4d: bool = False) -> Scan:
    """Read a NIfTI image; the format does not tell CT from MR, but only CT goes far below zero (air)."""
    import nibabel

    with reading(title):
        image: Any = nibabel.squeeze_image(nibabel.load(path))
        if image.ndim == 4 and first_of_4d:
            image = image.slicer[..., 0]
        kind, shape = image.get_data_dtype(), tuple(image.shape)
        if len(shape) != 3 or kind.kind not in "buif" or not 0 < np.prod(shape, dtype=float) < MAX_VOXELS:
            raise VolumeError(
                f"{title} has shape {shape} and type {kind}; allowed: three axes, real numbers, at most "
                f"{MAX_VOXELS:g} voxels. Next: choose one volume of a 4D image (nibabel: image.slicer[..., 0])"
            )
        image = nibabel.as_closest_canonical(image)  # x to the right, y to the front, z to the head
        array = image.get_fdata(dtype=np.float32)[::-1, ::-1].transpose(2, 1, 0)
        x, y, z = (float(mm) for mm in image.header.get_zooms())
    return Scan(title, "CT" if array.min() < -500 else "MR", array, (z, y, x))


def read_dicom(path: Path, title: str) -> Scan:
    """Read a DICOM file, or a folder of one series sorted along the normal of its slices."""
    import pydicom

    slices: list[Any] = []
    with reading(title):
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            with contextlib.suppress(pydicom.errors.InvalidDicomError, IsADirectoryError):
                if "Rows" in (found := pydicom.dcmread(file)):
                    slices.append(found)
        if not slices:
            raise VolumeError(
                f"{title} holds no DICOM image. Next: give --data a NIfTI file (.nii, .nii.gz), a folder with the "
                "files of one DICOM series, or a folder with nodules.csv"
            )
        _check_one_volume(slices, title)
        across = np.reshape(np.asarray(slices[0].get("ImageOrientationPatient", (1, 0, 0, 0, 1, 0)), float), (2, 3))
        places = np.array([np.cross(*across) @ _position(s, alone=len(slices) == 1) for s in slices])
        gaps = np.diff(np.sort(places))
        if len(gaps) and (gaps.min() < 0.01 or gaps.max() > 1.5 * np.median(gaps)):
            raise VolumeError(
                f"{title}: neighbouring slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart; allowed: one evenly "
                "spaced volume. Next: bring the missing slices, or move the doubled ones elsewhere"
            )
        slices = [slices[i] for i in np.argsort(places)]
        planes = [s.pixel_array * float(s.get("RescaleSlope", 1)) + float(s.get("RescaleIntercept", 0)) for s in slices]
        y, x = (float(mm) for mm in slices[0].get("PixelSpacing", (1, 1)))
        z = float(np.median(gaps)) if len(gaps) else float(slices[0].get("SliceThickness") or 1)
    return Scan(title, str(slices[0].get("Modality", "?")), np.stack(planes).astype(np.float32), (z, y, x))


def _position(one: Any, *, alone: bool) -> np.ndarray:
    place = (0, 0, 0) if alone else one.ImagePositionPatient
    return np.asarray(place, float)


def _check_one_volume(slices: list[Any], title: str) -> None:
    """Raise `VolumeError` unless this is one series of parallel grey slices that pydicom can decode here."""
    from pydicom.pixels import get_decoder

    series = Counter(str(s.get("SeriesInstanceUID")) for s in slices).values()
    if len(series) > 1:
        raise VolumeError(
            f"{title} holds {len(series)} series (of {', '.join(map(str, series))} images); allowed: one. "
            "Next: move the files of one series into a folder of their own"
        )
    sizes = {(s.Rows, s.Columns, s.get("SamplesPerPixel", 1), int(s.get("NumberOfFrames") or 1)) for s in slices}
    directions = {tuple(np.round(np.asarray(s.get("ImageOrientationPatient", ()), float), 2)) for s in slices}
    if len(sizes) > 1 or len(directions) > 1 or next(iter(sizes))[2:] != (1, 1):
        raise VolumeError(
            f"{title}: its {len(slices)} images have {len(sizes)} sizes and {len(directions)} directions, or colours "
            "or frames; allowed: parallel grey slices of one size, one a file. Next: choose such a series"
        )
    for syntax in {s.file_meta.TransferSyntaxUID for s in slices}:
        if syntax.is_compressed and not get_decoder(syntax).is_available:
            raise VolumeError(
                f"{title} is compressed as {syntax.name}, and pydicom finds no decoder for that. "
                "Next: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
            )


def bundled_scans() -> list[Scan]:
    """Read a CT slice (512 x 512, lossless JPEG 2000: Pillow decodes it) and an MR volume that other packages bring."""
    import nibabel
    import pydicom

    ct = Path(pydicom.__file__).parent / "data/test_files/J2K_pixelrep_mismatch.dcm"
    mr = Path(nibabel.__file__).parent / "tests/data/example4d.nii.gz"
    return [read_dicom(ct, "CT slice inside pydicom"), read_nifti(mr, "MR volume inside nibabel", first_of_4d=True)]


def read_nodules(folder: Path) -> list[Nodule]:
    """Read the rows of the evaluation fold."""
    with reading("nodules.csv"), (folder / "nodules.csv").open(newline="", encoding="utf-8") as handle:
        rows = [
            Nodule(Path(row["name"]).name, int(float(row["Malignancy_value"])), int(row["label"]))
            for row in csv.DictReader(handle)
            if int(row["fold"]) == EVALUATION_FOLD
        ]
    if not {0, 1} <= {row.label for row in rows}:
        raise VolumeError(
            f"nodules.csv has {len(rows)} nodules of fold {EVALUATION_FOLD}, not of both labels 0 and 1; allowed: "
            "both. Next: compare it with LIDC's (columns name, fold, label, Malignancy_value)"
        )
    return rows


def read_crop(path: Path) -> tuple[np.ndarray, Spacing]:
    """Return the array (D, H, W) of a crop, as it was stored for training, and its spacing in mm (z, y, x)."""
    import nibabel

    with reading(f"{path.parent.name}/{path.name}"):
        image: Any = nibabel.load(path)
        x, y, z = (float(mm) for mm in image.header.get_zooms())
        return np.asarray(image.dataobj).transpose(2, 1, 0), (z, y, x)


def read_data(path: Path | None) -> tuple[list[Scan], list[Nodule]]:
    """Read what a user's path is: an image, or a folder of nodules, which come beside the bundled images.

    Raises:
        VolumeError: it cannot be used; says why, and what can.
    """
    if path is None:
        return bundled_scans(), []
    if not path.exists():
        raise VolumeError(f"{path} does not exist. Next: give a NIfTI file, a DICOM folder, or a folder of nodules")
    if (path / "nodules.csv").is_file():
        return bundled_scans(), read_nodules(path)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return [read_nifti(path, "your NIfTI image")], []
    return [read_dicom(path, "your DICOM folder" if path.is_dir() else "your file")], []
