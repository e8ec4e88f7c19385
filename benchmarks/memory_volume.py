"""python benchmarks/memory_volume.py: how much memory a volume takes, by its length; nothing of it may grow.

Volumes of 250, 500 and 1,000 slices of 512 x 512 are written to the disk (up to 3 GB at a time, in the folder of
temporary files), and each is treated by a process of its own: read, gone through plane by plane, and a mask written.
What is kept is the process's own peak (ru_maxrss) beyond what it was after the imports. Aims: under 300 MB, and within
10 % or 5 MB over the lengths.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

LENGTHS = (250, 500, 1000)
SIDE = 512
MOST_MB, GROWTH, GROWTH_MB = 300, 0.1, 5
AXES = {
    "identity": (1, 0, 0, 0, 1, 0, 0, 0, 1),
    "RAS": (-1, 0, 0, 0, -1, 0, 0, 0, 1),
    "sagittal": (0, 0, 1, 1, 0, 0, 0, 1, 0),
}
# What is read: ending of the file, type of its voxels, axes x, y, z of the file (columns; Left, Posterior, Superior).
VOLUMES = {
    "nii": ("nii", "i2", "identity"),
    "nii, sagittal": ("nii", "i2", "sagittal"),
    "nii, RAS, real numbers": ("nii", "f4", "RAS"),
    "nii.gz, RAS": ("nii.gz", "i2", "RAS"),
    "nrrd": ("nrrd", "i2", "RAS"),
    "mha": ("mha", "i2", "RAS"),
    "DICOM": ("dicom", "i2", "identity"),
}  # fmt: skip
Mark = Callable[[str], None]


# ---- what is measured, each in a process of its own; the first mark is what the others are held against --------------


def volume(path: Path, mark: Mark) -> None:
    """Read a volume, go through its planes, write a mask and the image."""
    import pydicom.filereader  # noqa: F401  as `read` would

    from svd_hub.volume import memory, read, write_mask

    mark("imports")
    scan = read(path)
    mark("read")
    labels = memory.empty(scan.shape, "u1")
    for plane, label in memory.planes(scan.array, labels):
        label[...] = plane > 40
    mark("gone through")
    write_mask(labels, scan, path.parent / "mask.nii.gz")
    mark("mask written")


TASKS: dict[str, Callable[[Path, Mark], None]] = {"volume": volume}


def peak() -> float:
    """Return the most memory this process has had, in MB."""
    unit = 1e6 if sys.platform == "darwin" else 1e6 / 1024  # ru_maxrss: bytes there, KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def measured(task: str, path: Path) -> dict[str, float]:
    """Return the peak in MB after each mark of a task, from a fresh process."""
    command = [sys.executable, __file__, "--task", task, str(path)]
    peaks = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    if peaks["imports"] <= peak():  # on Linux a process begins with the peak of the one that started it
        raise SystemExit("this process is itself too large to measure another")
    return peaks


def run(task: str, path: Path) -> None:
    """Run a task in this process and print its peaks."""
    peaks: dict[str, float] = {}

    def mark(name: str) -> None:
        peaks[name] = peak()

    TASKS[task](path, mark)
    print(json.dumps(peaks))


# ---- the volumes ---------------------------------------------------------------------------------------------------


def make(folder: Path, name: str, slices: int) -> Path:
    """Write a volume, from a process of its own, and return its file or folder."""
    subprocess.run([sys.executable, __file__, "--make", name, str(slices), str(folder)], check=True)
    return folder / f"scan.{VOLUMES[name][0]}"


def write(name: str, slices: int, folder: Path) -> None:
    """Write a body with noise in air."""
    import numpy as np

    from svd_hub.volume import Grid, Volume, memory, write_image

    ending, kind, axes = VOLUMES[name]
    grid = Grid(size=(slices, SIDE, SIDE), spacing=(1.5, 0.7, 0.7), direction=tuple(map(float, AXES[axes])))
    canonical, turn = grid.turned()
    noise = np.random.default_rng(0).normal(0, 20, (16, SIDE, SIDE))
    y, x = (np.mgrid[:SIDE, :SIDE] - SIDE / 2) / (0.4 * SIDE)
    body = y * y + x * x < 1
    array = memory.empty(grid.size, kind)
    for k, (plane,) in enumerate(memory.planes(array)):
        plane[...] = np.where(body, 40 + noise[k % 16] + 100 * np.sin(k / 20 + 3 * x), -1000)
    if ending == "dicom":
        (folder / "scan.dicom").mkdir()
        for k, (plane,) in enumerate(memory.planes(array)):
            dicom(plane, 1.5 * k, k + 1, folder / "scan.dicom" / f"{k:04d}")
        return
    # The body lies in the planes of the file, whichever way these lie in the patient.
    turned = memory.empty(canonical.size, kind)
    memory.copy(turn.apply(array), turned)
    write_image(Volume(array=turned, grid=canonical, source_grid=grid, turn=turn), folder / f"scan.{ending}")


def dicom(plane: Any, z: float, number: int, path: Path) -> None:
    """Write one CT image."""
    import pydicom

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.CTImageStorage, f"1.2.3.{number}"
    data.Modality, data.SeriesInstanceUID, data.InstanceNumber = "CT", "1.2.3", number
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, z], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.FrameOfReferenceUID = [0.7, 0.7], "1.2.4"
    data.Rows, data.Columns = plane.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 1
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.RescaleSlope, data.RescaleIntercept = 1, 0
    data.add_new("PixelData", "OW", plane.tobytes())
    data.save_as(path, enforce_file_format=True)


# ---- all of it -----------------------------------------------------------------------------------------------------


def beyond(peaks: dict[int, dict[str, float]]) -> dict[str, Any]:
    """Return the peaks beyond the imports by length, and whether the aims are met."""
    highest = {length: round(max(marks.values()) - marks["imports"], 1) for length, marks in peaks.items()}
    low, high = min(highest.values()), max(highest.values())
    flat = high - low <= max(GROWTH * low, GROWTH_MB)
    return {"peaks_mb": peaks, "beyond_imports_mb": highest, "aims met": {"small": high < MOST_MB, "flat": flat}}


def main() -> None:
    """Measure and keep."""
    results = {}
    for name in VOLUMES:
        peaks = {}
        for length in LENGTHS:
            with tempfile.TemporaryDirectory() as folder:
                peaks[length] = measured("volume", make(Path(folder), name, length))
        results[name] = beyond(peaks)
        print(name, results[name]["beyond_imports_mb"], file=sys.stderr)
    from facts import keep  # not before: it imports torch

    keep("memory_volume", {"slice": [SIDE, SIDE], "volume": results})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--task"]:
        run(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1:2] == ["--make"]:
        write(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
