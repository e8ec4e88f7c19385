"""LiTS and the Decathlon: a look at every pair of volume and labels before a network is trained on them.

Nothing is copied: the result is a table of the pairs that are whole, with what they hold, and one of those that are not
and why. `data.pairs` reads the folder itself, and leaves out what the table does.
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import volume
from ...errors import SvdHubError, VolumeError
from ..data.pairs import Pair, read_pairs
from ..saving import write_text
from .job import Done, Entry, Job, names_and_sizes


@dataclass(frozen=True, kw_only=True)
class NiftiPairs(Job):
    """See the module.

    Attributes:
        source: LiTS: volume-N.nii and segmentation-N.nii, in it or in folders; the Decathlon: a task's dataset.json,
            imagesTr and labelsTr.
        form: "lits" or "decathlon".
    """

    source: Path
    form: str

    @property
    def name(self) -> str:  # type: ignore[override]
        """The data set."""
        return self.form

    @functools.cached_property
    def pairs(self) -> dict[str, Pair]:
        """Name -> its files."""
        return {pair.name: pair for pair in read_pairs(self.source, self.form).pairs}

    @functools.cached_property
    def _source(self) -> str:
        files = [file for pair in self.pairs.values() for file in (pair.image, pair.labels)]
        return names_and_sizes(self.source, [file for file in files if file.is_file()])

    def question(self) -> dict[str, Any]:
        """Return the source."""
        return {"form": self.form, "source": self._source}

    def tasks(self) -> Sequence[str]:
        """Return a task for each pair."""
        return list(self.pairs)

    def do(self, task: str, folder: Path) -> Done:
        """Look at a pair."""
        pair, known = self.pairs[task], read_pairs(self.source, self.form)
        try:
            facts = look(pair, known.labels, modality=known.modality)
        except (SvdHubError, VolumeError) as error:
            return Done(dropped=((task, str(error).replace(str(self.source), "")),))
        return Done(facts=facts)

    def assemble(self, folder: Path, entries: Sequence[Entry]) -> tuple[dict[str, Any], list[str]]:
        """Write cases.csv."""
        rows = [entry.done.facts for entry in entries if entry.done.facts]
        if not rows:
            raise SvdHubError(f"no pair of {self.source} is whole. Next: see journal.jsonl in {folder} for why")
        text = io.StringIO()
        table = csv.DictWriter(text, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
        write_text(folder / "cases.csv", text.getvalue())
        spacings = np.array([[row[f"spacing_{axis}"] for axis in "zyx"] for row in rows])
        ends = {key: np.round(getattr(np, key)(spacings, axis=0), 4).tolist() for key in ("min", "median", "max")}
        return {"pairs": len(rows), "spacing_zyx": ends}, []


def look(pair: Pair, labels: dict[int, str], *, modality: str) -> dict[str, Any]:
    """Return what a pair holds.

    Raises:
        SvdHubError, VolumeError: a file is missing or cannot be read, the two are not on one grid, or there is a label
            that is not known.
    """
    for what, file in (("image", pair.image), ("labels", pair.labels)):
        if not file.is_file():
            raise SvdHubError(f"missing {what}: {file.name} does not exist")
    image, drawn = volume.read(pair.image, modality=modality), volume.read(pair.labels)
    if drawn.shape != image.shape or not drawn.grid.is_like(image.grid, min(image.spacing) / 2):
        raise SvdHubError(
            f"two grids: image {image.shape} at {image.spacing} mm, labels {drawn.shape} at {drawn.spacing} mm, or "
            "another place"
        )
    values, counts = np.unique(drawn.array, return_counts=True)
    if unknown := sorted({float(value) for value in values} - {float(value) for value in labels}):
        raise SvdHubError(f"unknown labels: {unknown[:5]}; known: {labels}")
    found = dict(zip(values.tolist(), counts.tolist(), strict=True))
    row: dict[str, Any] = {"name": pair.name}
    row |= {f"size_{axis}": n for axis, n in zip("zyx", image.shape, strict=True)}
    row |= {f"spacing_{axis}": round(s, 5) for axis, s in zip("zyx", image.spacing, strict=True)}
    row |= {"low": float(image.array.min()), "high": float(image.array.max())}
    return row | {f"voxels_{name}": int(found.get(value, 0)) for value, name in labels.items() if value}
