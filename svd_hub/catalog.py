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
from dataclasses import MISSING, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from .entry import CHECKED as CHECKED
from .entry import LOADABLE as LOADABLE
from .entry import NOT_STATED as NOT_STATED
from .entry import SOURCES as SOURCES
from .entry import STATUSES, TASKS, Metric
from .entry import Entry as Entry
from .entry import Licence as Licence
from .entry import Source as Source
from .errors import OptionError, SvdHubError, UnknownEntryError, check_choice, nearest

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
    "mirror": ("file", "sha256", "size"),
}
_TABLES = ("entry", "licence")


def _file_tables(path: Any) -> dict[str, dict[str, Any]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SvdHubError(f"catalogue {path} cannot be read: {error}. Next: repair or unset SVD_HUB_CATALOG") from error
    wrong = sorted(set(data) - set(_TABLES)) or [k for k in data if not isinstance(data[k], dict)]
    if wrong:
        raise OptionError(
            f"catalogue {path}: {', '.join(wrong)} is not allowed; allowed: [entry.NAME] and [licence.ID] tables"
        )
    return {key: dict(data.get(key, {})) for key in _TABLES}


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


def _build(name: str, table: Mapping[str, Any], overlay: str, licences: Mapping[str, Licence]) -> Entry:
    where, rest = f"entry {name!r}", dict(table)
    source, metrics = rest.pop("source", {}), rest.pop("metrics", [])
    preprocess, inference = rest.pop("preprocess", {}), rest.pop("inference", {})
    if not isinstance(metrics, list) or not isinstance(preprocess, dict) or not isinstance(inference, dict):
        raise OptionError(
            f"catalogue {where}: allowed: [[entry.NAME.metrics]] tables, one [entry.NAME.preprocess] and one "
            "[entry.NAME.inference]"
        )
    entry: Entry = _make(
        Entry,
        rest,
        where,
        name=name,
        overlay=overlay,
        terms=licences.get(str(rest.get("licence"))),
        source=_make(Source, source, f"{where}.source"),
        metrics=tuple(_make(Metric, metric, f"{where}.metrics") for metric in metrics),
        preprocess_data=preprocess,
        inference_data=inference,
    )
    if faults := "; ".join(_faults(entry)):
        raise OptionError(f"catalogue {where}: {faults}")
    return replace(entry, licence_url=entry.licence_url or (entry.terms.url if entry.terms else ""))


def _faults(entry: Entry) -> Iterator[str]:
    """Yield what contradicts itself in an entry."""
    source = entry.source
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.@-]*", entry.name):
        yield "a name has lower-case letters, digits and _ . @ - only"
    if entry.loadable == (source.kind == "none"):
        yield f"status {entry.status!r} with source.kind {source.kind!r}; allowed: 'none' just where no weights exist"
    if missing := [key for key in _NEEDED[source.kind] if not getattr(source, key)]:
        yield f"source.kind {source.kind!r} needs source.{', source.'.join(missing)}"
    own = source.kind in ("bundled", "mirror")  # a file that this project's own commands wrote
    if not re.fullmatch(r"[0-9a-f]{64}" if own else r"[0-9a-f]{0,64}", source.sha256):
        prefix = "" if own else " or upstream's prefix"
        yield f"source.sha256 {source.sha256!r} is not lower-case hex, 64 digits{prefix}"
    if source.kind == "hf" and not re.fullmatch(r"[0-9a-f]{40}", source.revision):
        yield f"source.revision {source.revision!r} is not a commit of 40 hex digits"
    if not 0 <= source.size <= source.max_size:
        yield f"source.size {source.size} is not allowed; allowed: 0 (not known) to max_size {source.max_size}"
    if not entry.architecture and entry.status != "unavailable":
        yield f"status {entry.status!r} needs an architecture"
    if entry.inflation and not entry.stored:
        yield "an inflation needs the stored options of the 2D file"
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


def _inherit(name: str, tables: Mapping[str, Any], below: tuple[str, ...]) -> dict[str, Any]:
    """Return the table of an entry laid over the one that it is `like`: what they share is written once.

    What an entry says replaces what the other says; `more_notes` come behind the notes. `source` alone is merged key by
    key; a source of another kind starts afresh, and another file never takes over a hash or a size.
    """
    where = f"entry {name!r}"
    table = _merge({}, tables.get(name, {}), where)
    base = table.pop("like", None)
    if base is None:
        return table
    if not isinstance(base, str) or base not in tables or base in below:
        raise OptionError(f"catalogue {where}: like={base!r} is not allowed; allowed: another entry of this file")
    inherited, source = _inherit(base, tables, (*below, name)), table.get("source", {})
    if "licence" in table:
        inherited.pop("licence_url", None)
    if "kind" in source:
        inherited.pop("link", None)
    table["notes"] = [*table.get("notes", inherited.get("notes", [])), *table.pop("more_notes", [])]
    taken = {} if "kind" in source else inherited.get("source", {})
    if "file" in source:
        taken = {key: value for key, value in taken.items() if key not in ("sha256", "size")}
    return {**inherited, **table, "source": {**taken, **source}}


@functools.lru_cache(maxsize=8)
def _read(overlay: str) -> tuple[dict[str, Entry], dict[str, Licence]]:
    ours = _file_tables(resources.files(__package__).joinpath("catalog.toml"))
    over = _file_tables(Path(overlay)) if overlay else {key: {} for key in _TABLES}
    licences = {key: _licence(key, ours["licence"], over["licence"]) for key in ours["licence"] | over["licence"]}
    entries = {}
    changed = over["entry"]
    tables = {name: _inherit(name, ours["entry"], ()) for name in ours["entry"]}
    for name in sorted(tables.keys() | changed.keys()):
        table = _merge(tables.get(name, {}), changed.get(name, {}), f"entry {name!r}")
        entries[name] = _build(name, table, overlay if name in changed else "", licences)
        own = licences.get(str(tables.get(name, {}).get("licence")))
        if own is not None and own.consent and not entries[name].consent:
            raise OptionError(
                f"catalogue entry {name!r}: licence {entries[name].licence!r} in place of {own.id!r}, which asks for "
                "consent, is not allowed. Next: SVD_HUB_ACCEPT_LICENCE gives consent for a whole machine"
            )
    return entries, licences


def _licence(key: str, ours: Mapping[str, Any], over: Mapping[str, Any]) -> Licence:
    """Return a licence; an overlay cannot take away that it asks for consent."""
    table = _merge(ours.get(key, {}), over.get(key, {}), f"licence {key!r}")
    made: Licence = _make(Licence, table, f"licence {key!r}", id=key)
    if ours.get(key, {}).get("consent") and not made.consent:
        raise OptionError(
            f"catalogue licence {key!r}: consent=false is not allowed: it asks for consent. "
            "Next: SVD_HUB_ACCEPT_LICENCE gives it for a whole machine"
        )
    return made


def all_entries(overlay: Path | None = None) -> dict[str, Entry]:
    """Return every entry by name, those of an overlay included: `overlay`, or None = that of `SVD_HUB_CATALOG`."""
    return dict(_read(os.environ.get("SVD_HUB_CATALOG", "") if overlay is None else str(overlay))[0])


def all_licences() -> dict[str, Licence]:
    """Return the licences that the catalogue describes, by id, the overlay's included."""
    return dict(_read(os.environ.get("SVD_HUB_CATALOG", ""))[1])


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
    pattern: str = "*",
    *,
    task: str | None = None,
    status: str | None = None,
    licence: str | None = None,
    compatible: str | None = None,
) -> list[str]:
    """Return the names that match a shell pattern (or hold it as a part) and every filter given, sorted.

    Args:
        pattern: "resnet3d*_imagenet", or a part of a name such as "med3d", in any case.
        task: one of `TASKS`.
        status: one of `STATUSES`.
        licence: an SPDX name or "not stated", in any case.
        compatible: a backbone such as "resnet3d18", or an entry: only what the same backbone can start from.
    """
    family = _backbone(compatible) if compatible is not None else None
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
        and family in (None, entry.backbone)
    ]


def _backbone(name: str) -> str:
    """Return the backbone that `name` is, or that the entry `name` has."""
    entries = all_entries()
    backbones = {entry.backbone for entry in entries.values() if entry.backbone}
    found = entries[name].backbone if name in entries else name
    if found not in backbones:
        raise OptionError(
            f"compatible={name!r} is not allowed; nearest: {nearest(name, backbones)}; "
            f"allowed: an entry, or one of {', '.join(sorted(backbones))}"
        )
    return found
