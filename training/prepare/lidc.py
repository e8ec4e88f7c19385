"""LIDC-IDRI from TCIA (DICOM and XML), or the ACS authors' npz set, as NIfTI pairs with a CSV: what `data.lidc` reads.

A nodule is a crop at the scan's own spacing about the voxels that half of its readers drew, with its mask. Folds are by
patient, from the patient's number alone, so that no order of files changes them.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ... import volume
from ...errors import OptionError, SvdHubError, VolumeError
from ...volume import Volume
from ..data import lidc_acs, lidc_xml
from ..saving import write_text
from .job import Done, Entry, Job, names_and_sizes

FOLDS = 5
BORDER = 8.0  # mm around a nodule that is larger than the crop
LABELS = {1: 0, 2: 0, 3: -1, 4: 1, 5: 1}
Triple = tuple[int, int, int]


def fold_of(patient: str) -> int:
    """Return a patient's fold, 0 to 4."""
    return int(hashlib.sha256(patient.encode()).hexdigest(), 16) % FOLDS


@dataclass(frozen=True, kw_only=True)
class Lidc(Job):
    """See the module.

    Attributes:
        source: folders of DICOM files and XML files in any order, or the npz set.
        side: mm of a crop, at least.
        readers: nodules that fewer of them drew are left out.
    """

    source: Path
    side: float = 64.0
    readers: int = 1
    name: str = field(default="lidc", init=False)

    def __post_init__(self) -> None:
        if not self.side > 0 or not 1 <= self.readers <= 4:
            raise OptionError(f"side={self.side}, readers={self.readers} are not allowed; allowed: above 0 mm, 1 to 4")

    @functools.cached_property
    def packed(self) -> bool:
        """Whether it is the npz set."""
        return (self.source / lidc_acs.SPLIT).is_file()

    @functools.cached_property
    def files(self) -> list[Path]:
        """All files of the source."""
        if not self.source.is_dir():
            raise SvdHubError(f"{self.source} is no folder. Next: give that of the DICOM and XML files, or the npz set")
        return sorted(file for file in self.source.rglob("*") if file.is_file())

    @functools.cached_property
    def _source(self) -> str:
        return names_and_sizes(self.source, self.files)

    def question(self) -> dict[str, Any]:
        """Return options and source."""
        form = "npz" if self.packed else "tcia"
        return {"side": self.side, "readers": self.readers, "form": form, "source": self._source}

    @functools.cached_property
    def readings(self) -> dict[str, Path]:
        """Series -> its XML. A radiograph's, or one that names no series, belongs to nothing."""
        found: dict[str, Path] = {}
        for file in self.files:
            if file.suffix.lower() == ".xml" and (series := _series_of(file)):
                found[series] = file
        return found

    @functools.cached_property
    def scans(self) -> list[str]:
        """The folders with DICOM files, within the source."""
        with_images = {file.parent for file in self.files if file.suffix.lower() in (".dcm", "")}
        return sorted(folder.relative_to(self.source).as_posix() for folder in with_images)

    def tasks(self) -> Sequence[str]:
        """Return a task for each folder of images, or for each nodule of the npz set."""
        return self._tasks

    @functools.cached_property
    def _tasks(self) -> list[str]:
        if self.packed:
            return sorted({name for names in lidc_acs.read_lists(self.source).values() for name in names})
        if not self.scans:
            raise SvdHubError(f"{self.source} holds no DICOM files (.dcm). Next: give the folder of the download")
        if not self.readings:
            raise SvdHubError(
                f"{self.source} holds no XML of readings. Next: unpack LIDC-XML-only.zip of TCIA into it, too"
            )
        return self.scans

    @functools.cached_property
    def _table(self) -> dict[str, lidc_acs.Reading]:
        return lidc_acs.read_readings(self.source)

    def do(self, task: str, folder: Path) -> Done:
        """Write the nodules of a scan, or one of the npz set."""
        for kind in ("images", "masks"):
            (folder / kind).mkdir(exist_ok=True)
        try:
            return self._of_npz(task, folder) if self.packed else self._of_scan(task, folder)
        except (SvdHubError, VolumeError) as error:
            return Done(dropped=((task, f"unreadable: {error}".replace(str(self.source), "")),))

    # ---- the npz set ----

    def _of_npz(self, name: str, folder: Path) -> Done:
        if (reading := self._table.get(name)) is None or not reading.mode:
            return Done(dropped=((name, "no rating of malignancy"),))
        voxel, answer = lidc_acs.read_nodule(self.source, name, "voxel", "answer1")
        spacing = (1.0, 1.0, 1.0)
        image = Volume.from_array(np.rint(lidc_acs.hounsfield(voxel)).astype(np.int16), spacing=spacing, modality="CT")
        files = _write(folder, name, image, answer != 0)
        row = _row(name, reading.patient, reading.mode, answers=1, mask=answer != 0, spacing=spacing)
        return Done(files=files, facts=[row])

    # ---- DICOM and XML ----

    def _of_scan(self, task: str, folder: Path) -> Done:
        import pydicom

        found = [series for series in volume.list_series(self.source / task) if series.modality == "CT"]
        here = [series.uid for series in found if series.uid in self.readings]
        if not here:
            return Done(dropped=((task, "no XML of a CT of this folder" if found else "no CT"),))
        scan = volume.read(self.source / task, series=here[0], modality="CT")
        if scan.shifts:
            return Done(dropped=((task, "tilted gantry: contours are on other images than the volume's"),))
        header = pydicom.dcmread(scan.sources[0].path, stop_before_pixels=True, specific_tags=["PatientID"])
        patient = str(header.PatientID)
        slices = {
            str(
                pydicom.dcmread(s.path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"]).SOPInstanceUID
            ): s.plane
            for s in scan.sources
        }
        session = lidc_xml.read_xml(self.readings[here[0]])
        drawn = lidc_xml.nodules(session, slices, scan.source_grid.size)
        files, rows, dropped = list[str](), list[dict[str, Any]](), list[tuple[str, str]]()
        for number, nodule in enumerate(drawn, start=1):
            name = f"{patient}_{hashlib.sha256(here[0].encode()).hexdigest()[:6]}_{number}"
            if nodule.readers < self.readers:
                dropped.append((name, f"drawn by fewer than {self.readers} readers"))
            elif not nodule.malignancy:
                dropped.append((name, "no rating of malignancy"))
            else:
                image, mask = crop(scan, nodule.region, self.side)
                files += _write(folder, name, image, mask)
                rows.append(
                    _row(name, patient, nodule.malignancy, answers=nodule.readers, mask=mask, spacing=image.spacing)
                )
        if not drawn:
            dropped.append((task, "no nodule of 3 mm or more"))
        return Done(files=tuple(files), dropped=tuple(dropped), facts=rows)

    def assemble(self, folder: Path, entries: Sequence[Entry]) -> tuple[dict[str, Any], list[str]]:
        """Write nodules.csv."""
        found = {row["name"]: row for entry in entries for row in entry.done.facts or ()}
        rows = [found[name] for name in sorted(found)]
        if not rows:
            raise SvdHubError(f"no nodule of {self.source} can be used. Next: see journal.jsonl in {folder} for why")
        text = io.StringIO()
        table = csv.DictWriter(text, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
        write_text(folder / "nodules.csv", text.getvalue())
        labels = [row["label"] for row in rows]
        facts = {"nodules": len(rows), "patients": len({row["patient_id"] for row in rows})}
        facts |= {"benign": labels.count(0), "malignant": labels.count(1), "undecided": labels.count(-1)}
        return facts, []


def _series_of(file: Path) -> str:
    """Return the series an XML is about, "" where it is no readings of a CT."""
    try:
        return lidc_xml.read_xml(file).series
    except SvdHubError:
        return ""


def crop(scan: Volume, region: lidc_xml.Region, side: float) -> tuple[Volume, np.ndarray]:
    """Return the part of a scan about a nodule, and the nodule's mask on it.

    Args:
        scan: of one orientation.
        region: the nodule on the scan's own images, before it was turned.
        side: mm along each axis at least; the scan's border may cut it.
    """
    own = region.within((0, 0, 0), scan.source_grid.size)
    whole = scan.turn.apply(own)
    places = np.argwhere(whole)
    low, high = places.min(0), places.max(0) + 1
    mm = np.asarray(scan.spacing)
    want = np.maximum(np.ceil(side / mm), (high - low) + np.ceil(2 * BORDER / mm)).astype(int)
    first = np.maximum(0, (low + high - want) // 2)
    last = np.minimum(scan.shape, (low + high - want) // 2 + want)
    cut = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    z, y, x = (float(p) for p in scan.grid.points(first)[::-1])
    size = (int(last[0] - first[0]), int(last[1] - first[1]), int(last[2] - first[2]))
    grid = replace(scan.grid, size=size, origin=(x, y, z))
    image = Volume(array=np.ascontiguousarray(scan.array[cut]), grid=grid, modality="CT", unit="HU", source_grid=grid)
    return image, np.ascontiguousarray(whole[cut])


def _write(folder: Path, name: str, image: Volume, mask: np.ndarray) -> tuple[str, str]:
    files = (f"images/{name}.nii.gz", f"masks/{name}.nii.gz")
    volume.write_image(image, folder / files[0])
    volume.write_mask(mask.astype(np.uint8), image, folder / files[1])
    return files


def _row(
    name: str, patient: str, mode: int, *, answers: int, mask: np.ndarray, spacing: Sequence[float]
) -> dict[str, Any]:
    """Return a line of nodules.csv; the diameter is that of a ball of the mask's volume."""
    millilitres = float(mask.sum()) * float(np.prod(spacing))
    return {
        "name": name,
        "patient_id": patient,
        "fold": fold_of(patient),
        "label": LABELS[mode],
        "Malignancy_value": mode,
        "readers": answers,
        "diameter_mm": round((6 * millilitres / np.pi) ** (1 / 3), 2),
    }
