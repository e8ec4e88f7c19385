"""The catalogue: every name a user can load, as data. This file reads `catalog.toml` and nothing else.

`SVD_HUB_CATALOG=file.toml` lays more entries over the built-in ones: an entry of the same name is merged key by key
(tests, mirrors inside a hospital). An overlay switches no check off and is named in every load report.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import OptionError, SvdHubError, UnknownEntryError, check_choice, nearest

STATUSES = ("ours", "official", "converted", "derived", "recipe", "unavailable")
CHECKED = ("file", "layout", "never")
SOURCES = ("none", "bundled", "url", "gdrive", "hf", "folder")
TASKS = ("backbone", "classification", "segmentation", "detection")
LOADABLE = ("ours", "official", "converted", "derived")
NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the bytes of an entry are, and what they must hash to.

    Attributes:
        kind: one of `SOURCES`. "folder": a shared folder without a link per file, to be fetched by hand.
        file: the file's own name (also what a mirror or a by-hand copy must be called).
        url: the direct link of `url`, the folder's page of `folder`.
        repo, revision: of `hf`; the revision is a 40-hex commit.
        id: Google Drive's file id of `gdrive`.
        sha256: the full hash of the file, or the prefix that is all upstream states, or "" where nothing is known.
        size: bytes, 0 = not known.
        max_size: bytes at which a download is given up.
    """

    kind: str = "none"
    file: str = ""
    url: str = ""
    repo: str = ""
    revision: str = ""
    id: str = ""
    sha256: str = ""
    size: int = 0
    max_size: int = 4_000_000_000

    def __post_init__(self) -> None:
        check_choice("source.kind", self.kind, SOURCES)
        if self.file != Path(self.file).name:
            raise OptionError(f"source.file={self.file!r} is not allowed; allowed: a bare file name")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number: its name and value, the data set and split, and the recipe or source that made it."""

    name: str
    value: float
    dataset: str
    split: str
    made_by: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One name of the hub. See docs/architecture.md for what each key means.

    Attributes:
        options: the architecture's arguments that these weights need; a user never has to know them.
        preprocess_data: keyword arguments of `svd_hub.Preprocess`; read it through `.preprocess`.
        overlay: the file that changed this entry, or "".
    """

    name: str
    summary: str
    architecture: str
    options: Mapping[str, Any] = field(default_factory=dict)
    task: str = "backbone"
    outputs: str = ""
    classes: tuple[str, ...] = ()
    status: str
    reason: str = ""
    origin: str = "svd_hub"
    source: Source = field(default_factory=Source)
    licence: str = NOT_STATED
    licence_url: str = ""
    rehost: bool = False
    trained_on: str = ""
    recipe: str = ""
    paper: str = ""
    citation: str = ""
    link: str = ""
    notes: tuple[str, ...] = ()
    preprocess_data: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    checked: str = "never"
    checked_on: str = ""
    overlay: str = ""

    def __post_init__(self) -> None:
        check_choice("status", self.status, STATUSES)
        check_choice("checked", self.checked, CHECKED)
        check_choice("task", self.task, TASKS)

    @property
    def loadable(self) -> bool:
        """True where weights exist somewhere."""
        return self.status in LOADABLE

    @property
    def preprocess(self) -> Any:
        """The `svd_hub.Preprocess` these weights were trained with."""
        from .preprocess import Preprocess

        return Preprocess(**self.preprocess_data)

    def card(self) -> str:
        """Return the model card, Markdown, made from this entry alone."""
        from .card import render

        return render(self)


def _file_entries(path: Any) -> dict[str, dict[str, Any]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SvdHubError(f"catalogue {path} cannot be read: {error}. Next: repair or unset SVD_HUB_CATALOG") from error
    entries = data.get("entry", {})
    return {name: dict(table) for name, table in entries.items()}


def _build(name: str, table: Mapping[str, Any], overlay: str) -> Entry:
    table = dict(table)
    table["preprocess_data"] = table.pop("preprocess", {})
    table["source"] = Source(**table.get("source", {}))
    table["metrics"] = tuple(Metric(**m) for m in table.get("metrics", ()))
    for key in ("classes", "notes"):
        table[key] = tuple(table.get(key, ()))
    known = {f.name for f in fields(Entry)}
    needed = {f.name for f in fields(Entry) if f.default is MISSING and f.default_factory is MISSING} - {"name"}
    if wrong := sorted(set(table) - known) or sorted(needed - set(table)):
        raise OptionError(f"catalogue entry {name!r}: unknown or missing keys {wrong}; allowed: {sorted(known)}")
    return Entry(name=name, overlay=overlay, **table)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged


@functools.lru_cache(maxsize=8)
def _read(overlay: str) -> dict[str, Entry]:
    tables = _file_entries(resources.files(__package__).joinpath("catalog.toml"))
    changed: dict[str, dict[str, Any]] = _file_entries(Path(overlay)) if overlay else {}
    entries = {}
    for name in sorted(tables.keys() | changed.keys()):
        table = _merge(tables.get(name, {}), changed.get(name, {}))
        entries[name] = _build(name, table, overlay if name in changed else "")
    return entries


def all_entries() -> dict[str, Entry]:
    """Return every entry by name, the overlay of `SVD_HUB_CATALOG` included."""
    return _read(os.environ.get("SVD_HUB_CATALOG", ""))


def get_entry(name: str) -> Entry:
    """Return the entry `name`.

    Raises:
        UnknownEntryError: no such name; the message holds the nearest ones.
    """
    entries = all_entries()
    if name not in entries:
        raise UnknownEntryError(
            f"no entry {name!r} in the catalogue of {len(entries)}; nearest: {nearest(name, entries)}. Next: svd-hub list"
        )
    return entries[name]


def list_entries(
    pattern: str = "*", *, task: str | None = None, status: str | None = None, licence: str | None = None
) -> list[str]:
    """Return the names that match a shell pattern (or hold it as a part) and every filter given, sorted.

    Args:
        pattern: "resnet3d*_imagenet", or a part of a name such as "med3d".
        task: one of `TASKS`.
        status: one of `STATUSES`.
        licence: an SPDX name or "not stated", in any case.
    """
    if task is not None:
        check_choice("task", task, TASKS)
    if status is not None:
        check_choice("status", status, STATUSES)
    glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    return [
        name
        for name, entry in all_entries().items()
        if fnmatch.fnmatchcase(name, glob)
        and task in (None, entry.task)
        and status in (None, entry.status)
        and (licence is None or licence.lower() == entry.licence.lower())
    ]
