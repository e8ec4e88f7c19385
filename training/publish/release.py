"""What a release is while it is made: its files in a folder that nobody takes for finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import checkpoint
from ...catalog import Entry
from ...files import sha256_of
from ..saving import write_text
from . import against, card, entry, folder, golden, weights
from .entry import Facts

RECIPE, README = "recipe.yaml", "README.md"


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of a release: its name, sha256 and size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Release:
    """What was published, or would be.

    Attributes:
        entry: as the catalogue has it.
        text: its TOML table.
        files: what was written.
        far: how far half precision moves the golden output; 0 of a release in single precision.
        notes: what is to be said of it.
        data_known: are the data and their terms stated?
        card: its model card.
    """

    entry: Entry
    text: str
    files: tuple[File, ...]
    far: float
    notes: tuple[str, ...]
    data_known: bool
    card: str


class Draft:
    """A release in the making.

    Args:
        part: an empty folder.
        facts: what its entry says.
        code: the commits that trained and published it, in words.
        notes: what does not stand in them, in words.
    """

    def __init__(self, part: Path, facts: Facts, *, code: Sequence[str], notes: Sequence[str]) -> None:
        self.part, self.facts, self.code = part, facts, tuple(code)
        self.notes = (*against.remarks(facts.run), *notes)
        self.far = 0.0

    @property
    def weights(self) -> Path:
        """The released file."""
        return self.part / f"{self.facts.name}.safetensors"

    def write_weights(self, dtype: str) -> tuple[str, ...]:
        """Write weights, golden pair, log and recipe, and return their names.

        The golden output is that of the file written, read back: half precision on the disk, computed in single.

        Raises:
            SvdHubError: the weights are not finite, do not fit in half precision, or give no golden output.
        """
        facts, run = self.facts, self.facts.run
        own = {"licence": facts.terms.licence, "licence_url": facts.terms.url, "trained_on": facts.trained_on}
        weights.write(self.weights, run, dtype, {"entry": facts.name, "recipe": run.recipe.name, **own})
        record, tensors = run.record, checkpoint.read(self.weights).tensors
        x = golden.input_of(record)
        output = golden.output_of(golden.network_of(record["architecture"], record["options"], tensors), x)
        golden.write(self.part, facts.name, x, output)
        golden.check(self.part, facts.name)
        self.far = weights.lost(run, dtype, x, output)
        if self.far > golden.ROUNDING:
            self.notes += (
                f"half precision loses more than rounding: it moves the golden output by {self.far:.2g}, where "
                f"{golden.ROUNDING:g} would be rounding; --dtype fp32 keeps it",
            )
        write_text(self.part / f"{facts.name}.log.jsonl", run.log)
        write_text(self.part / RECIPE, run.recipe_text)
        return tuple(sorted(path.name for path in self.part.iterdir()))

    def source(self, kind: str, **more: str) -> dict[str, Any]:
        """Return the entry's source: where the bytes are, and what they must hash to."""
        file = self.weights
        return {"kind": kind, **more, "file": file.name, "sha256": sha256_of(file), "size": file.stat().st_size}

    def seal(self, source: Mapping[str, Any], *, known: str = "") -> Release:
        """Write entry, card and hashes, and return what the release is then.

        Args:
            source: of the entry.
            known: the text of an overlay to which the entry is added.

        Raises:
            OptionError: the name waits in the catalogue for another network.
        """
        facts, file = self.facts, self.part / folder.ENTRY
        notes = [*facts.told.notes, *(f"{note[0].upper()}{note[1:]}." for note in self.notes)]
        text = entry.text_of(facts.name, entry.table_of(facts, source, notes))
        write_text(file, "\n".join([known.rstrip("\n") + "\n" if known else folder.FOREWORD, text]))
        made = entry.read_back(file, facts)
        names = [*(path.name for path in self.part.iterdir()), README, folder.SUMS]
        page = card.render(made, facts, code=self.code, far=self.far, files=sorted(names))
        write_text(self.part / README, page)
        write_text(self.part / folder.SUMS, folder.sums(self.part))
        files = [File(name=path.name, sha256=sha256_of(path), size=path.stat().st_size) for path in self._paths()]
        return Release(
            entry=made,
            text=text,
            files=tuple(files),
            far=self.far,
            notes=(*self.code, *self.notes),
            data_known=facts.data.stated,
            card=page,
        )

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.part.iterdir() if path.is_file())
