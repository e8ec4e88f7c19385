"""What happened while a model was loaded: nothing is renamed, dropped or adapted without a line here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .adapt import Adaptation


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """The account of one load.

    Attributes:
        name, architecture: what was loaded.
        total: how many tensors the model has.
        matched: names of the model's tensors that came from the file as they are there.
        missing: the model's tensors that came from no file (a new head); unexpected: the file's that found no place.
        renamed: the file's name -> ours. dropped: the file's name -> why.
        adapted: every change of a tensor's shape, with its rule.
        source: where the bytes came from; sha256 of the file that was read, source_sha256 of the upstream file.
        checked: that hash is the one the catalogue or the ledger promises; False for a file the user named.
        overlay: the catalogue overlay that changed the entry, or "".
    """

    name: str
    architecture: str
    total: int
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    adapted: tuple[Adaptation, ...] = ()
    source: str = ""
    sha256: str = ""
    source_sha256: str = ""
    checked: bool = False
    overlay: str = ""
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.matched)} of {self.total} tensors from {self.source or 'no file'}"]
        if self.sha256:
            lines.append(f"  sha256 {self.sha256}" + (" (checked)" if self.checked else ""))
        if self.source_sha256 and self.source_sha256 != self.sha256:
            lines.append(f"  upstream file sha256 {self.source_sha256}")
        if self.overlay:
            lines.append(f"  catalogue overlay {self.overlay}")
        if self.renamed:
            lines.append(f"  {len(self.renamed)} renamed")
        for reason, count in Counter(self.dropped.values()).items():
            lines.append(f"  {count} dropped: {reason}")
        for kind in ("missing", "unexpected"):
            if names := getattr(self, kind):
                lines.append(f"  {len(names)} {kind}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}")
        for rule, count in Counter(change.rule for change in self.adapted).items():
            first = next(change for change in self.adapted if change.rule == rule)
            lines.append(f"  adapted {first}" + (f" (and {count - 1} more)" if count > 1 else ""))
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
