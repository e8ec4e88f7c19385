"""What a prediction is: frozen, typed, and as JSON values that hold nothing of a patient."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from ..errors import VolumeError
from ..volume import Volume

RESEARCH_USE = "Research use. Not a medical device."
Box = tuple[float, float, float, float]
Point = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What the three tasks share.

    Attributes:
        entry: what the network is called: an entry's name, or `own-ARCHITECTURE-HASH` of a file of your own.
        sha256: of the weights' file, "" for a network handed over in memory; of one that runs elsewhere, of its
            tensors, as the artifact's manifest has it.
        volume: what was read; None for a picture.
        notes: what was found and done, in words without patient data.
        seconds: step -> time.
    """

    task: ClassVar[str] = ""
    entry: str
    sha256: str = ""
    volume: Volume | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def scan(self) -> Volume:
        """What was read.

        Raises:
            VolumeError: it was a picture.
        """
        if self.volume is None:
            raise VolumeError("the input was a picture: there is no volume. Next: use the probabilities or boxes")
        return self.volume

    def facts(self) -> dict[str, Any]:
        """Return the result as JSON values: no path, no identifier, no word of the input's header."""
        found: dict[str, Any] = {"task": self.task, "entry": self.entry, "weights_sha256": self.sha256}
        if self.volume is not None:
            found["input"] = {
                "modality": self.volume.modality,
                "unit": self.volume.unit,
                "size_zyx": list(self.volume.source_grid.size),
                "spacing_zyx_mm": [round(mm, 6) for mm in self.volume.source_grid.spacing],
                "axes_zyx": self.volume.source_grid.axes,
            }
        return {**found, **self.own_facts(), "notes": list(self.notes), "use": RESEARCH_USE}

    def own_facts(self) -> dict[str, Any]:
        """Return what the task adds."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, eq=False)
class Classification(Prediction):
    """Probabilities of the classes, in the network's order.

    Attributes:
        classes: their names; numbers where the entry has none.
        probabilities: one for each, together 1.
        point: mm (x, y, z) to Left, Posterior, Superior that the input was cut about, None = its centre.
    """

    task: ClassVar[str] = "classification"
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    point: Point | None = None
    picture: np.ndarray | None = field(default=None, repr=False)

    @property
    def best(self) -> str:
        """The most probable class."""
        return self.classes[int(np.argmax(self.probabilities))]

    @property
    def ranked(self) -> list[tuple[str, float]]:
        """Each class with its probability, the highest first, of equal ones in the network's order."""
        order = np.argsort(-np.asarray(self.probabilities), kind="stable")
        return [(self.classes[k], self.probabilities[k]) for k in order]

    def own_facts(self) -> dict[str, Any]:
        """Return the probabilities, the highest first."""
        return {
            "best": self.best,
            "probabilities": {name: round(share, 6) for name, share in self.ranked},
            **({} if self.point is None else {"point_mm_lps": list(self.point)}),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmentation(Prediction):
    """A label map on the input's own grid.

    Attributes:
        labels: (D, H, W) on `volume`, uint8 or uint16; `volume.undo(labels)` has the input's axes.
        classes: names of the labels 0, 1, ...; 0 is the background.
        voxels: of each class.
    """

    task: ClassVar[str] = "segmentation"
    labels: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    voxels: tuple[int, ...]

    @property
    def millilitres(self) -> dict[str, float]:
        """The volume of each class but the background."""
        z, y, x = self.scan.spacing
        return {name: n * z * y * x / 1000 for name, n in zip(self.classes[1:], self.voxels[1:], strict=True)}

    @property
    def image(self) -> Any:
        """The label map as a SimpleITK image on the input's grid."""
        return self.scan.undo_image(self.labels)

    def mask(self, name: str) -> np.ndarray:
        """Return where a class is, bool (D, H, W) on `volume`.

        Raises:
            VolumeError: no class of that name.
        """
        if name not in self.classes:
            raise VolumeError(f"class {name!r} is not one of these; allowed: {', '.join(self.classes)}")
        return self.labels == self.classes.index(name)

    def own_facts(self) -> dict[str, Any]:
        """Return size and label of each class."""
        table = zip(self.classes, self.voxels, strict=True)
        return {
            "classes": [
                {"label": k, "name": name, "voxels": n, **({"ml": round(self.millilitres[name], 3)} if k else {})}
                for k, (name, n) in enumerate(table)
            ]
        }


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was detected; in a volume, boxes of neighbouring slices that are one.

    Attributes:
        label: class; score: of the best box.
        plane: of the best box along D of `volume`; box: (x0, y0, x1, y1) on it, in pixels of continuous coordinates.
        planes: first and last one.
        extent: (x0, y0, x1, y1) around the boxes of all its planes.
        boxes: plane -> its best box there.
    """

    label: str
    score: float
    box: Box
    plane: int = 0
    planes: tuple[int, int] = (0, 0)
    extent: Box
    boxes: dict[int, Box] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Detection(Prediction):
    """What was detected, the surest first.

    Attributes:
        findings: in falling order of their scores.
        searched: the planes that were key slices.
    """

    task: ClassVar[str] = "detection"
    classes: tuple[str, ...]
    findings: tuple[Finding, ...]
    searched: tuple[int, ...] = ()
    picture: np.ndarray | None = field(default=None, repr=False)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each finding: boxes in pixels of the input's own slices, and in mm in the patient.

        `slice` and `box_px` count on the input as its file has it, where its slices are axial; else they are on the
        volume as it was turned. Slices of a DICOM series count from 0 along its normal, those that were filled in
        among them. `*_mm_lps` are (x, y, z) to Left, Posterior, Superior; `extent` is of all slices.
        """
        return [self._row(number, finding) for number, finding in enumerate(self.findings, start=1)]

    def _row(self, number: int, one: Finding) -> dict[str, Any]:
        row: dict[str, Any] = {"finding": number, "class": one.label, "score": round(one.score, 6)}
        if self.volume is None:
            return {**row, "box_px": [round(n, 3) for n in one.box]}
        plane, box = on_input(self.volume, one.plane, one.box)
        ends = sorted(on_input(self.volume, p, one.box)[0] for p in one.planes)
        corners = [(one.plane, one.plane, one.box), (*one.planes, one.extent)]
        low, high, first, last = (
            [round(float(mm), 3) for mm in point]
            for z0, z1, (x0, y0, x1, y1) in corners
            for point in self.volume.grid.points(np.array([(z0, y0 - 0.5, x0 - 0.5), (z1, y1 - 0.5, x1 - 0.5)]))
        )
        return {
            **row,
            "slice": plane,
            "box_px": [round(n, 3) for n in box],
            "slices": ends,
            "box_mm_lps": [low, high],
            "extent_mm_lps": [first, last],
        }

    def own_facts(self) -> dict[str, Any]:
        """Return the rows."""
        return {"searched_slices": len(self.searched), "findings": self.rows()}


def on_input(volume: Volume, plane: int, box: Box) -> tuple[int, Box]:
    """Return plane and box as the input's own axes count them, where its planes are axial; else as they are.

    A box on a tilted gantry's slice is where that image has it, before the tilt was corrected.
    """
    if volume.turn.order != (0, 1, 2):
        return plane, box
    (d, h, w), (z, y, x) = volume.shape, volume.turn.flips
    x0, y0, x1, y1 = box
    x0, x1 = (w - x1, w - x0) if x else (x0, x1)
    y0, y1 = (h - y1, h - y0) if y else (y0, y1)
    plane = d - 1 - plane if z else plane
    if volume.shifts:
        slots = [source.plane for source in volume.sources]
        down, right = (float(np.interp(plane, slots, along)) for along in zip(*volume.shifts, strict=True))
        x0, x1, y0, y1 = x0 - right, x1 - right, y0 - down, y1 - down
    return plane, (x0, y0, x1, y1)
