"""Bringing many entries to this machine, and an account of what was found that may be shown to anyone.

The account is for the catalogue: which file came, what hangs in it, whether it fits. It holds nothing of the machine it
was made on: no path, no address of a mirror, no token, no name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from safetensors import safe_open

from . import __version__, checkpoint, store, transport
from .canonical import converter_version
from .catalog import Entry, all_entries, get_entry
from .errors import (
    CheckpointError,
    DownloadError,
    LicenceError,
    OptionError,
    SvdHubError,
    WeightsUnavailableError,
)
from .files import write_atomic
from .hub import load
from .report import LoadReport
from .store import fetching, hosts, ledger, places

RESULTS = ("ok", "bundled", "by hand", "consent", "no weights", "failed")
FORMAT = 1
Progress = Callable[[int, int, str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What came of one entry. All but `report` and `cause` may be shown to anyone.

    Attributes:
        name: the entry.
        result: one of `RESULTS`. "by hand": no link per file; "consent": the licence asks for it first.
        source: where upstream the bytes came from, in words; "a file on this machine", "a mirror" or "a place of a
            catalogue overlay" where no link of the catalogue delivered them. Never where they lay on this machine.
        sha256, size: of the upstream file that came, "" and 0 where none did.
        catalogue: what the catalogue says of it: sha256 (perhaps a prefix), size, checked; and whether an overlay of
            this machine changed the entry.
        licence: its name; licence_url: where it is.
        upstream: what the file held before anything was done to it: kind, wrapper, prefix, skipped, and its tensors as
            [name, dtype, shape].
        renamed: how many tensors got another name; dropped, adapted: reason or rule -> how many.
        notes, error: sentences, without this machine's paths and addresses; next: what a person can do, as the error
            says it.
        seconds: how long it took.
        report, cause: the full account or error, for this machine's own eyes.
    """

    name: str
    result: str
    source: str = ""
    sha256: str = ""
    size: int = 0
    catalogue: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    licence: str = ""
    licence_url: str = ""
    upstream: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    renamed: int = 0
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    adapted: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    error: str = ""
    next: str = ""
    seconds: float = 0.0
    report: LoadReport | None = None
    cause: Exception | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what may be shown, as JSON values."""
        hidden = ("report", "cause")
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in hidden}


def survey(
    names: Iterable[str], *, accept_licence: bool = False, progress: Progress | None = None
) -> Iterator[Finding]:
    """Load one entry after the other and yield what came of each; what is on this machine costs no download.

    Args:
        names: of entries; a name that is none is a failure like any other.
        accept_licence: consent to every licence among them that asks for it.
        progress: called before each entry with its number, how many there are, and its name; None = nothing is shown
            while a file comes.

    Nothing is raised for an entry: its finding says what was. Ctrl-C ends it between two findings. A host that could
    not be reached is not tried again by the entries after it; the next survey starts without that memory.
    """
    listed, unreached = list(names), set[str]()
    for number, name in enumerate(listed, 1):
        if progress is not None:
            progress(number, len(listed), name)
        start = time.monotonic()
        with hosts.remembering_hosts(unreached):  # not around the yield, where other code runs
            finding = _look(name, accept_licence=accept_licence, bar=progress is not None)
        yield dataclasses.replace(finding, seconds=round(time.monotonic() - start, 1))


def _look(name: str, *, accept_licence: bool, bar: bool) -> Finding:
    facts: dict[str, Any] = {}
    try:
        entry = get_entry(name)
        facts = _facts_of(entry)
        _, report = load(name, accept_licence=accept_licence, progress=bar, return_report=True)
        return Finding(name=name, report=report, **{**facts, **_facts_of_load(entry, report)})
    except Exception as error:  # whatever a foreign file makes a library say: the others' turn comes all the same
        return Finding(name=public(name), **{**facts, **_facts_of_error(error, facts)})


def _facts_of(entry: Entry) -> dict[str, Any]:
    source = entry.source
    catalogue = {"sha256": source.sha256, "size": source.size, "checked": entry.checked, "overlay": bool(entry.overlay)}
    return {"catalogue": catalogue, "licence": entry.licence, "licence_url": entry.licence_url, "next": _by_hand(entry)}


def _by_hand(entry: Entry) -> str:
    if entry.source.kind == "mirror":
        return "set SVD_HUB_MIRROR to the release folder, or to its address"
    if entry.source.kind != "folder":
        return ""
    return public(
        f"open {transport.public_url(entry.source.url)}, fetch {entry.source.file}, "
        f"then svd-hub convert {entry.name} {entry.source.file}"
    )


def _facts_of_load(entry: Entry, report: LoadReport) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "result": "bundled" if entry.source.kind == "bundled" else "ok",
        "sha256": report.source_sha256,
        "size": entry.source.size,
        "source": _place(entry, report.source),
        "renamed": len(report.renamed),
        "dropped": dict(Counter(report.dropped.values())),
        "adapted": dict(Counter(change.rule for change in report.adapted)),
        "notes": tuple(public(note) for note in report.notes),
        "next": "",
    }
    if entry.source.kind == "bundled":
        return facts
    path = store.canonical_path(report.source_sha256, converter_version(entry))
    with safe_open(path, framework="pt") as file:
        record = checkpoint.unpack_metadata(file.metadata() or {})
    size = (ledger.read(ledger.record_path(path)) or {}).get("source_size", 0)
    notes = (*facts["notes"], *_trust_notes(entry, facts))
    return {**facts, "size": size, "upstream": record.get("upstream", {}), "notes": notes}


def _place(entry: Entry, told: str) -> str:
    """Return where upstream a file came from; what a person set up on this machine is told by its kind only."""
    if told == f"bundled {entry.source.file}":
        return told
    if entry.source.kind in ("url", "gdrive", "hf") and told == places.upstream(entry.source):
        return "a place of a catalogue overlay" if entry.overlay else told
    return "a mirror" if told.startswith(("http://", "https://")) else "a file on this machine"


def _delivered(finding: Finding) -> bool:
    """Tell whether a link brought the file, which alone shows what upstream has."""
    return finding.source not in ("", "a mirror", "a file on this machine")


def _trust_notes(entry: Entry, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a hash that the catalogue does not know in full is worth; `load` tells it at the first use only."""
    told = fetching.trust_note(entry, facts["sha256"])
    if told and not any(told in note for note in facts["notes"]):
        yield told
    if told and facts["source"] in ("a mirror", "a file on this machine"):
        part = f"only {entry.source.sha256!r} of its hash" if entry.source.sha256 else "nothing"
        yield f"it came from {facts['source']}, no link delivered it, and {part} existed to check it against"


def _facts_of_error(error: Exception, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kind of a failure and what is known of the file that failed."""
    told = str(error) if isinstance(error, SvdHubError) else f"unexpected {type(error).__name__}: {error}"
    found = {"result": _result(error, by_hand=bool(facts.get("next"))), "error": public(told), "cause": error}
    if found["result"] != "by hand":
        found["next"] = public(told.rpartition("Next: ")[2]) if "Next: " in told else ""
    if isinstance(error, CheckpointError) and error.upstream:
        held = dict(error.upstream)
        found |= {"sha256": held.pop("sha256", ""), "size": held.pop("size", 0), "upstream": held}
    elif refused := re.search(r"got sha256 ([0-9a-f]{64}), (\d+) bytes", told):  # as store.examine says it
        found |= {"sha256": refused[1], "size": int(refused[2])}
    return found


def _result(error: Exception, *, by_hand: bool) -> str:
    if isinstance(error, LicenceError):
        return "consent"
    if isinstance(error, WeightsUnavailableError):
        return "no weights"
    missing = isinstance(error, DownloadError) and not isinstance(error, transport.FolderError)
    return "by hand" if by_hand and missing else "failed"


# ---- what may be shown ---------------------------------------------------------------------------------------------

# An address is left as it is, but for one of this machine's files.
_ADDRESS = re.compile(r"(?!file:)\b\w+://[^\s'\",;()]+")
# A path begins where no word and no dot is before it.
_PATH = re.compile(r"file:/|(?<![\w.>])(?:~[\w.-]*/|/|[A-Za-z]:\\|\\\\)(?=[^\s'\",;()<>])")
_SECRET = re.compile(r"(TOKEN|PASSWORD|SECRET|_KEY|PROXY)$", re.IGNORECASE)


def public(text: str) -> str:
    """Return a sentence without what belongs to this machine: its paths, its mirrors and proxies, its secrets."""
    for value, word in sorted(_own_values().items(), key=lambda item: -len(item[0])):
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", word, text)
    shown, at = [], 0
    plain = _ADDRESS.sub(lambda m: "_" * len(m[0]), text)  # of the same length, with no separator in it
    while start := _PATH.search(plain, at):
        shown += [text[at : start.start()], "<path>"]
        at = _end_of_path(plain, start.start())
    return "".join([*shown, text[at:]])


def _end_of_path(text: str, start: int) -> int:
    """Return where a path surely has ended; a path may hold blanks, commas and brackets, so rather too late.

    One in quotes ends with them. Any other ends at the first ": " or closing bracket of its own sentence behind which
    no separator follows, or else with the sentence, that is, before "Next:" or at the end of the line.
    """
    quote = text[start - 1 : start]
    if quote and quote in "'\"" and (closing := re.compile(rf"{quote}(?!\w)").search(text, start)):
        return closing.start()
    stop = re.compile(r"\.? Next: |\n|\.?$").search(text, start)
    end = stop.start() if stop else len(text)
    last = max(text.rfind("/", start, end), text.rfind("\\", start, end))
    depth = text[start:last].count("(") - text[start:last].count(")")
    for at in range(last + 1, end):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth < 0 or (text[at] == ":" and text[at + 1 : at + 2] in ("", " ")):
            return at
    return end


def _own_values() -> dict[str, str]:
    """Return what the settings of this machine name, and the word that stands for it."""
    addresses, folders, found = {}, {}, {}
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) > 3:
            found[value] = f"<{name}>"
        if "://" in value:
            addresses[value] = f"<{name}>"
        elif os.path.isabs(value) and os.pathsep not in value:
            folders[value] = f"<{name}>"
    addresses |= {entry.source.url: "<overlay>" for entry in all_entries().values() if entry.overlay}
    for address, word in addresses.items():
        parts = urlsplit(address)
        shown = transport.public_url(address).rstrip("/")
        found |= dict.fromkeys((address, shown, parts.netloc, parts.hostname or ""), word)
    with contextlib.suppress(OptionError):
        folders[str(transport.mirror() or "")] = "<mirror>"
    folders |= {str(store.cache_dir()): "<cache>", str(Path.cwd()): "<here>", os.path.expanduser("~"): "<home>"}
    for folder, word in folders.items():
        for form in (folder, os.path.realpath(folder)) if folder else ():
            found[form.rstrip(os.sep)] = word
    return {value: word for value, word in found.items() if len(value) > 1}


# ---- the report ----------------------------------------------------------------------------------------------------


def write_report(path: Path, findings: Iterable[Finding], *, asked: int) -> None:
    """Write the account of a survey, whole or not at all; to be called again after each entry.

    Args:
        path: a JSON file.
        findings: so far.
        asked: how many entries there are to be.

    Raises:
        OptionError: it cannot be written.
    """
    listed = list(findings)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    content = {
        "format": FORMAT,
        "svd_hub": __version__,
        "date": date,
        "asked": asked,
        "done": len(listed),
        "results": dict(Counter(finding.result for finding in listed)),
        "catalogue_patch": catalogue_patch(listed, date),
        "entries": [finding.as_dict() for finding in listed],
    }
    try:
        write_atomic(path, json.dumps(content, indent=1).encode())
    except OSError as error:
        raise OptionError(
            f"--report {path} cannot be written: {error.strerror}. Next: name a file in a folder that can be written"
        ) from error


def catalogue_patch(findings: Iterable[Finding], date: str) -> str:
    """Return what the catalogue does not know yet of files that came and fit, as TOML: an overlay of SVD_HUB_CATALOG.

    Only what a link of the catalogue delivered: a file that somebody put on this machine, or on a mirror, shows nothing
    of what upstream has. What an overlay of this machine had changed is left out, because the catalogue's own entry may
    be another file.
    """
    lines = [f"# svd-hub {__version__}, {date}: files that a link delivered, were opened and fit"]
    for finding in findings:
        known = finding.catalogue
        new = (known.get("sha256"), known.get("size"), known.get("checked")) != (finding.sha256, finding.size, "file")
        if finding.result != "ok" or known["overlay"] or not new or not _delivered(finding):
            continue
        key = finding.name if re.fullmatch(r"[A-Za-z0-9_-]+", finding.name) else json.dumps(finding.name)
        lines += [
            f"\n[entry.{key}]",
            'checked = "file"',
            f'checked_on = "{date}"',
            f"[entry.{key}.source]",
            f'sha256 = "{finding.sha256}"',
            f"size = {finding.size}",
        ]
    return "\n".join(lines) + "\n"
