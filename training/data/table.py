"""A user's own data as a table: a CSV of `image,label[,mask][,patient][,split]`, read and checked line by line.

Nothing but the table is opened here. Paths are relative to the CSV; separators are commas, semicolons or tabs, as
spreadsheets write them; further columns are left alone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import SvdHubError

COLUMNS = ("image", "label", "mask", "patient", "split")
SPLITS = ("train", "val", "test")
ENDS = 1 << 16  # bytes at both ends of a file that are hashed; the end of a .nii.gz has the checksum of all of it


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image.

    Attributes:
        line: of the CSV, for messages.
        image: a file, or a folder of DICOM files.
        label: any text; "" where the table has none.
        mask: a file, or None.
        patient: whose image it is; the image's own path where the table does not say.
        split: one of `SPLITS`, or "" where the table does not say.
    """

    line: int
    image: Path = field(repr=False)
    label: str = ""
    mask: Path | None = field(default=None, repr=False)
    patient: str = field(default="", repr=False)
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a CSV, in the order of their images, so that the order of its lines changes nothing."""

    path: Path
    rows: tuple[Row, ...]
    columns: tuple[str, ...]

    def at(self, row: Row) -> str:
        """Return where a row is, for a message."""
        return f"{self.path}, line {row.line}"


def read_table(path: Path, *, needs: Sequence[str]) -> Table:
    """Return the table of a CSV file.

    Args:
        path: the file.
        needs: columns besides `image` that have a value in each row.

    Raises:
        SvdHubError: not such a table; says the line, what was found and what is allowed.
    """
    header, lines = _read(path)
    _check_header(path, header, ("image", *needs))
    rows, seen = [], dict[Path, int]()
    for number, cells in lines:
        if len(cells) > len(header):
            raise SvdHubError(
                f"{path}, line {number}: {len(cells)} cells, the header has {len(header)}. Next: quote a cell with a "
                "comma in it"
            )
        missing = [""] * (len(header) - len(cells))
        row = _row(path, number, dict(zip(header, cells + missing, strict=True)), needs)
        if (before := seen.setdefault(row.image, number)) != number:
            raise SvdHubError(
                f"{path}, line {number}: the image of line {before} once more; allowed: each image once. "
                "Next: leave one of the lines out"
            )
        rows.append(row)
    if not rows:
        raise SvdHubError(f"{path} has no rows below its header; allowed: one for each image")
    if absent := [(r.line, p) for r in rows for p in (r.image, r.mask) if p is not None and not p.exists()]:
        line, place = absent[0]
        more = f", and {len(absent) - 1} files of later lines do not either" if len(absent) > 1 else ""
        raise SvdHubError(
            f"{path}, line {line}: {place} does not exist{more}. Next: paths relative to the folder of the CSV, or "
            "absolute ones"
        )
    return Table(path=path, rows=tuple(sorted(rows, key=lambda row: row.image)), columns=tuple(header))


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the names of the columns in lower case, and the number and stripped cells of each line that has any."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise SvdHubError(f"{path} {what}; allowed: a CSV of image,label[,mask][,patient][,split]. Next: --data my.csv")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte order mark in front
    except UnicodeDecodeError as error:
        raise SvdHubError(f"{path} is no text in UTF-8 ({error.reason}). Next: save it as CSV UTF-8") from error
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    lines = []
    try:
        for cells in reader:
            lines.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise SvdHubError(f"{path}, line {reader.line_num}: {error}. Next: mend the quotes of that line") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        raise SvdHubError(f"{path} is empty; allowed: a header image,label[,mask][,patient][,split], and rows")
    return [name.lower() for name in lines[0][1]], lines[1:]


def _check_header(path: Path, header: list[str], needs: Sequence[str]) -> None:
    if twice := sorted({name for name in header if name in COLUMNS and header.count(name) > 1}):
        raise SvdHubError(f"{path} has the columns {', '.join(twice)} twice; allowed: once each")
    if missing := [name for name in needs if name not in header]:
        raise SvdHubError(
            f"{path} has no column {', '.join(missing)}; found: {', '.join(header)}. Next: a header line with "
            f"{', '.join(needs)}, and where you have them patient and split"
        )


def _row(path: Path, line: int, cells: dict[str, str], needs: Sequence[str]) -> Row:
    if empty := [name for name in ("image", *needs) if not cells.get(name)]:
        raise SvdHubError(f"{path}, line {line}: {', '.join(empty)} is empty; allowed: a value. Next: fill it in")
    for name in ("patient", "split"):
        if name in cells and not cells[name]:
            raise SvdHubError(
                f"{path}, line {line}: {name} is empty, and other rows have one. Next: fill it in, or leave the column "
                "out"
            )
    split = cells.get("split", "").lower()
    if split and split not in SPLITS:
        raise SvdHubError(f"{path}, line {line}: split={cells['split']!r} is not allowed; allowed: {', '.join(SPLITS)}")
    image = (path.parent / cells["image"]).resolve()
    return Row(
        line=line,
        image=image,
        label=cells.get("label", ""),
        mask=(path.parent / cells["mask"]).resolve() if cells.get("mask") else None,
        patient=cells.get("patient") or str(image),
        split=split,
    )


def digest(rows: Sequence[Row]) -> str:
    """Return a hash of what the rows say and of their files: sizes, and both ends of each; no path goes into it."""
    found = hashlib.sha256()
    for row in rows:
        found.update(f"\n{row.label}\t{row.split}\n".encode())
        for place in (row.image, row.mask):
            for file in _files(place) if place is not None else ():
                found.update(ends_of(file))
    return found.hexdigest()


def ends_of(file: Path) -> bytes:
    """Return the size of a file and what it begins and ends with: what tells it from others without reading it all."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        first = handle.read(ENDS)
        handle.seek(max(ENDS, size - ENDS))
        return f"{size} ".encode() + first + handle.read(ENDS)


def _files(place: Path) -> Iterator[Path]:
    yield from sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]


def class_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the different labels: numbers by their size, any other text by the alphabet."""
    found = sorted(set(labels))
    try:
        numbers = [float(text) for text in found]
    except ValueError:
        return tuple(found)
    return tuple(sorted(found, key=lambda text: (float(text), text)) if all(map(math.isfinite, numbers)) else found)
