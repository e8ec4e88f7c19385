"""The catalogue: every name a user can load, as data. This file reads `catalog.toml` and nothing else.

`SVD_HUB_CATALOG=file.toml` lays more entries over the built-in ones: an entry of the same name is merged key by key
(tests, mirrors inside a hospital). An overlay switches no check off and is named in every load report.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OptionError, SvdHubError, UnknownEntryError, check_choice, nearest

if TYPE_CHECKING:
    from .preprocess import Preprocess

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
        consent: the licence asks for consent first, as non-commercial ones do: `load(..., accept_licence=True)`.
        preprocess_data: keyword arguments of `svd_hub.Preprocess`; read it through `.preprocess`.
        checked: has this project opened the real file ("file"), or only its documented layout? `checked_on`: when.
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
    consent: bool = False
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
    def preprocess(self) -> Preprocess:
        """The `svd_hub.Preprocess` these weights were trained with.

        Raises:
            OptionError: the entry's data is not one's.
        """
        from .preprocess import Preprocess

        try:
            return Preprocess(**self.preprocess_data)
        except (TypeError, ValueError) as error:
            raise OptionError(f"preprocess of {self.name!r}: {error}") from error

    def card(self) -> str:
        """Return the model card, Markdown, made from this entry alone."""
        from .card import render

        return render(self)


_KINDS: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "tuple[str, ...]": (list,),
    "Mapping[str, Any]": (dict,),
}
_NEEDED = {
    "none": (),
    "bundled": ("file", "sha256", "size"),
    "url": ("url", "file"),
    "gdrive": ("id", "file"),
    "hf": ("repo", "revision", "file"),
    "folder": ("url", "file"),
}


def _file_entries(path: Any) -> dict[str, Any]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SvdHubError(f"catalogue {path} cannot be read: {error}. Next: repair or unset SVD_HUB_CATALOG") from error
    if (wrong := sorted(set(data) - {"entry"})) or not isinstance(data.get("entry", {}), dict):
        raise OptionError(
            f"catalogue {path}: {', '.join(wrong) or 'entry'} is not allowed; allowed: [entry.NAME] tables"
        )
    return dict(data.get("entry", {}))


def _fits(value: object, kind: str) -> bool:
    if isinstance(value, list):
        return kind == "tuple[str, ...]" and all(isinstance(item, str) for item in value)
    return isinstance(value, _KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))


def _make(kind: Any, table: object, where: str, **given: Any) -> Any:
    """Return an Entry, Source or Metric after a look at its table's keys and types; `given` are no keys of the file."""
    if not isinstance(table, dict):
        raise OptionError(f"catalogue {where} is a {type(table).__name__}; allowed: a table")
    known = {f.name: str(f.type) for f in fields(kind) if f.name not in given}
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if unknown := sorted(set(table) - set(known)):
        near = "; ".join(f"nearest to {key!r}: {nearest(key, known)}" for key in unknown)
        raise OptionError(f"catalogue {where}: unknown keys {', '.join(unknown)}; {near}; allowed: {', '.join(known)}")
    if missing := sorted(needed - set(table) - set(given)):
        raise OptionError(f"catalogue {where}: missing keys {', '.join(missing)}")
    for key, value in table.items():
        if not _fits(value, known[key]):
            raise OptionError(f"catalogue {where}: {key}={value!r} is not allowed; allowed: {known[key]}")
    try:
        return kind(**given, **{key: tuple(v) if isinstance(v, list) else v for key, v in table.items()})
    except OptionError as error:
        raise OptionError(f"catalogue {where}: {error}") from None


def _build(name: str, table: Mapping[str, Any], overlay: str) -> Entry:
    where, rest = f"entry {name!r}", dict(table)
    source, metrics, preprocess = rest.pop("source", {}), rest.pop("metrics", []), rest.pop("preprocess", {})
    if not isinstance(metrics, list) or not isinstance(preprocess, dict):
        raise OptionError(f"catalogue {where}: allowed: [[entry.NAME.metrics]] tables and one [entry.NAME.preprocess]")
    entry: Entry = _make(
        Entry,
        rest,
        where,
        name=name,
        overlay=overlay,
        source=_make(Source, source, f"{where}.source"),
        metrics=tuple(_make(Metric, metric, f"{where}.metrics") for metric in metrics),
        preprocess_data=preprocess,
    )
    if faults := "; ".join(_faults(entry)):
        raise OptionError(f"catalogue {where}: {faults}")
    return entry


def _faults(entry: Entry) -> Iterator[str]:
    """Yield what contradicts itself in an entry."""
    source = entry.source
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.@-]*", entry.name):
        yield "a name has lower-case letters, digits and _ . @ - only"
    if entry.loadable == (source.kind == "none"):
        yield f"status {entry.status!r} with source.kind {source.kind!r}; allowed: 'none' just where no weights exist"
    if missing := [key for key in _NEEDED[source.kind] if not getattr(source, key)]:
        yield f"source.kind {source.kind!r} needs source.{', source.'.join(missing)}"
    if not re.fullmatch(r"[0-9a-f]{64}" if source.kind == "bundled" else r"[0-9a-f]{0,64}", source.sha256):
        yield f"source.sha256 {source.sha256!r} is not lower-case hex, 64 digits or (unless bundled) upstream's prefix"
    if source.kind == "hf" and not re.fullmatch(r"[0-9a-f]{40}", source.revision):
        yield f"source.revision {source.revision!r} is not a commit of 40 hex digits"
    if not 0 <= source.size <= source.max_size:
        yield f"source.size {source.size} is not allowed; allowed: 0 (not known) to max_size {source.max_size}"
    if not entry.loadable and not entry.reason:
        yield f"status {entry.status!r} needs a reason"
    if entry.checked != "never" and not re.fullmatch(r"\d{4}-\d\d-\d\d", entry.checked_on):
        yield f"checked {entry.checked!r} needs checked_on, such as 2026-01-31"


def _merge(base: Mapping[str, Any], over: object, where: str) -> dict[str, Any]:
    if not isinstance(over, dict):
        raise OptionError(f"catalogue {where} is a {type(over).__name__}; allowed: a table")
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged


@functools.lru_cache(maxsize=8)
def _read(overlay: str) -> dict[str, Entry]:
    tables = _file_entries(resources.files(__package__).joinpath("catalog.toml"))
    changed = _file_entries(Path(overlay)) if overlay else {}
    entries = {}
    for name in sorted(tables.keys() | changed.keys()):
        table = _merge(tables.get(name, {}), changed.get(name, {}), f"entry {name!r}")
        entries[name] = _build(name, table, overlay if name in changed else "")
    return entries


def all_entries() -> dict[str, Entry]:
    """Return every entry by name, the overlay of `SVD_HUB_CATALOG` included."""
    return dict(_read(os.environ.get("SVD_HUB_CATALOG", "")))


def get_entry(name: str) -> Entry:
    """Return the entry `name`.

    Raises:
        UnknownEntryError: no such name; the message holds the nearest ones.
    """
    entries = all_entries()
    if name not in entries:
        raise UnknownEntryError(
            f"no entry {name!r} in the catalogue of {len(entries)}; nearest: {nearest(name, entries)}. "
            "Next: svd-hub list"
        )
    return entries[name]


def list_entries(
    pattern: str = "*", *, task: str | None = None, status: str | None = None, licence: str | None = None
) -> list[str]:
    """Return the names that match a shell pattern (or hold it as a part) and every filter given, sorted.

    Args:
        pattern: "resnet3d*_imagenet", or a part of a name such as "med3d", in any case.
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
        if fnmatch.fnmatchcase(name, glob.lower())
        and task in (None, entry.task)
        and status in (None, entry.status)
        and (licence is None or licence.lower() == entry.licence.lower())
    ]
