"""The model card of an entry: Markdown made from the catalogue alone, so that it cannot say anything else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .catalog import Entry

STATUS_WORDS = {
    "ours": "trained by this project's engine; recipe and log are published with it",
    "official": "the authors' own file",
    "converted": "a third party's file, converted",
    "derived": "computed from other weights",
    "recipe": "planned; no weights exist yet",
    "unavailable": "not to be had through this hub",
}
CHECKED_WORDS = {
    "file": "this project has opened the real file",
    "layout": "built from the documented layout; the real file was never opened by this project",
    "never": "nobody of this project has opened the real file yet",
}


def load_line(entry: Entry) -> str:
    """Return the one line of code that loads an entry."""
    return f'svd_hub.load("{entry.name}")'


def source_line(entry: Entry) -> str:
    """Return where the bytes are, in words."""
    source = entry.source
    places = {
        "none": "none",
        "bundled": f"bundled: svd_hub/weights/{source.file}",
        "url": source.url,
        "gdrive": f"Google Drive, file id {source.id} ({source.file})",
        "hf": f"Hugging Face {source.repo} @ {source.revision}: {source.file}",
        "folder": f"{source.file} in the shared folder {source.url}; no link per file",
        "mirror": f"a release folder, which SVD_HUB_MIRROR names: {source.file}",
    }
    return places[source.kind]


def _recipe_line(entry: Entry) -> str:
    if entry.recipe:
        return entry.recipe
    return {"recipe": "not written yet", "unavailable": "none"}.get(entry.status, "not published here")


def _preprocessing(entry: Entry) -> list[str]:
    if entry.preprocess_data:
        return ["## Preprocessing", "", *(f"- {line}" for line in entry.preprocess.describe().splitlines())]
    return [f"## Preprocessing: {'not documented upstream' if entry.architecture else 'not recorded here'}"]


def _stored_line(entry: Entry) -> str:
    """Return in words what `load` adapts the upstream file from."""
    words = []
    if entry.inflation:
        words.append(f"2D kernels, inflated at load by {entry.inflation}")
    if "in_channels" in entry.stored:
        words.append(f"{entry.stored['in_channels']} input channels, added up at load unless asked otherwise")
    return "; ".join(words) or ", ".join(f"{k}={v!r}" for k, v in entry.stored.items())


def _classes_line(entry: Entry) -> str:
    shown = ", ".join(entry.classes[:20])
    return f"{len(entry.classes)}: {shown}{', ...' if len(entry.classes) > 20 else ''}"


def render(entry: Entry) -> str:
    """Return the card of an entry."""
    source = entry.source
    own = entry.loadable and source.kind == "none"  # a file of the user's own, which says nothing of these
    hash_words = (
        "not known" if not source.sha256 else source.sha256 + (" (a prefix)" if len(source.sha256) < 64 else "")
    )
    options = ", ".join(f"{k}={v!r}" for k, v in entry.options.items())
    opened = f"{entry.checked}{f' ({entry.checked_on})' if entry.checked_on else ''}: {CHECKED_WORDS[entry.checked]}"
    licence = f"{entry.licence}{f' ({entry.licence_url})' if entry.licence_url else ''}"
    licence += "; asks for consent: accept_licence=True" if entry.consent else ""
    licence += f"; forbids {entry.terms.forbids}" if entry.terms and entry.terms.forbids else ""
    lines = [
        f"# {entry.name}",
        "",
        entry.summary,
        "",
        "Research use. Not a medical device.",
        "",
        "| | |",
        "|---|---|",
        *([f"| load | `{load_line(entry)}` |"] if entry.architecture else []),
        f"| architecture | {f'{entry.architecture} ({options})' if entry.architecture else 'none of this hub'} |",
        *([f"| backbone | {entry.backbone} |"] if entry.backbone else []),
        *([f"| parameters | {entry.parameters:,} |"] if entry.parameters else []),
        *([f"| classes | {_classes_line(entry)} |"] if entry.classes else []),
        *([f"| in the file | {_stored_line(entry)} |"] if entry.stored else []),
        f"| task | {entry.task} |",
        f"| outputs | {entry.outputs or 'see the architecture'} |",
        f"| status | {entry.status}: {STATUS_WORDS[entry.status]} |",
        *([f"| checked | {opened} |"] if not own else []),
        f"| trained on | {entry.trained_on or 'not stated'} |",
        f"| licence | {licence} |",
    ]
    if not own:
        lines += [
            f"| may be re-hosted | {'yes' if entry.rehost else 'no'} |",
            f"| source | {source_line(entry)} |",
            f"| sha256 | {hash_words} |",
            f"| size | {f'{source.size:,} bytes' if source.size else 'not known'} |",
            f"| recipe | {_recipe_line(entry)} |",
        ]
    if entry.reason:
        lines += ["", f"**Why there are no weights:** {entry.reason}"]
    lines += ["", *_preprocessing(entry)]
    if entry.inference_data:
        lines += ["", "## On whole volumes", "", *(f"- {k}: {v}" for k, v in entry.inference_data.items())]
    if entry.metrics:
        lines += ["", "## Measured", "", "| metric | value | data set | split | made by |", "|---|---|---|---|---|"]
        lines += [f"| {m.name} | {m.value:g} | {m.dataset} | {m.split} | {m.made_by} |" for m in entry.metrics]
    if entry.notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in entry.notes)]
    if entry.paper or entry.citation or entry.link:
        lines += ["", "## Source", "", *(f"- {part}" for part in (entry.paper, entry.citation, entry.link) if part)]
    return "\n".join(lines) + "\n"


def readme_table(entries: Iterable[Entry]) -> str:
    """Return the README's table of entries, Markdown; entries that say the same of themselves share a line."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for entry in entries:
        licence = f"{entry.licence} (asks for consent)" if entry.consent else entry.licence
        opened = "yes" if entry.checked == "file" else "no"
        key = (entry.status, opened, entry.task if entry.architecture else "-", licence, entry.trained_on or "-")
        rows.setdefault(key, []).append(f"`{entry.name}`")
    lines = ["| names | status | real file opened | task | licence | trained on |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join((' '.join(names), *key))} |" for key, names in rows.items()]
    return "\n".join(lines) + "\n"
