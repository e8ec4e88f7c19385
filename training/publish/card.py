"""The model card of a release: the catalogue's card, what only the run knows, and the header that the Hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...catalog import NOT_STATED, Entry
from .entry import Facts
from .finished import as_yaml
from .golden import ROUNDING
from .terms import data_before

PIPELINES = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
    "backbone": "image-feature-extraction",
}
# Licences that the Hub knows by name, of those that weights have; others are named and linked.
KNOWN = (
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-3.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
)
USES = {
    "classification": "classify images of the kind below into its classes",
    "segmentation": "outline its classes in images of the kind below",
    "detection": "find boxes of its classes in images of the kind below",
    "backbone": "give features of images of the kind below",
}


def render(entry: Entry, facts: Facts, *, code: Sequence[str], far: float, files: Sequence[str]) -> str:
    """Return the card, Markdown behind a YAML header.

    Args:
        entry: the release as the catalogue has it.
        facts: what it was made of.
        code: the commits that trained and published it, in words.
        far: how far half precision moves the golden output.
        files: names of the files beside it.
    """
    parts = [
        header(entry),
        entry.card().rstrip(),
        _use(entry),
        _limits(entry, facts, far),
        _data(facts),
        _made(facts, code),
        _files(entry, files),
        _citation(facts),
    ]
    return "\n\n".join(parts) + "\n"


def header(entry: Entry) -> str:
    """Return the YAML header as the Hugging Face Hub reads it, with the measured numbers as its `model-index`."""
    from huggingface_hub import EvalResult, ModelCardData

    pipeline = PIPELINES[entry.task]
    results = [
        EvalResult(
            task_type=pipeline,
            dataset_type=_slug(metric.dataset),
            dataset_name=metric.dataset,
            dataset_split=metric.split,
            metric_type=metric.name,
            metric_name=metric.name,
            metric_value=metric.value,
        )
        for metric in entry.metrics
    ]
    data = ModelCardData(
        model_name=entry.name,
        library_name="svd-hub",
        pipeline_tag=pipeline,
        tags=["medical", "3d", "svd-hub", entry.architecture, entry.preprocess.modality.lower()],
        eval_results=results,
        **_licence(entry),
    )
    return f"---\n{data.to_yaml()}\n---"


def _licence(entry: Entry) -> dict[str, Any]:
    """Return the licence as the Hub's header has it; nothing where none is stated."""
    if entry.licence == NOT_STATED:
        return {}
    if entry.licence.lower() in KNOWN:
        return {"license": entry.licence.lower()}
    link = {"license_link": entry.licence_url} if entry.licence_url else {}
    return {"license": "other", "license_name": _slug(entry.licence), **link}


def _slug(text: str) -> str:
    return "-".join("".join(c if c.isalnum() or c in ".-" else " " for c in text.lower()).split())


def _use(entry: Entry) -> str:
    kind = {"RGB": "pictures", "video": "clips"}.get(entry.preprocess.modality, f"{entry.preprocess.modality} volumes")
    lines = [
        "## Intended use",
        "",
        f"Research: to {USES[entry.task]} ({kind}), and to start other networks from. Not for diagnosis, and not for "
        "any decision about a patient: it was never tested for that.",
        "",
        "```bash",
        "# in a folder with these files",
        f"SVD_HUB_CATALOG=entry.toml SVD_HUB_MIRROR=. python -c 'import svd_hub; svd_hub.load(\"{entry.name}\")'",
        "```",
        "",
        f'The file alone loads too: `svd_hub.load("{entry.source.file}")`.',
    ]
    return "\n".join(lines)


def _limits(entry: Entry, facts: Facts, far: float) -> str:
    run = facts.run
    lines = ["- What the notes above say."] if entry.notes else []
    lines += [
        f"- Measured once, with seed {run.recipe.settings.seed}, on the split above, at the last epoch "
        f"({run.recipe.settings.epochs} in all): nothing here says how other seeds, scanners or hospitals come out.",
        "- The numbers are the log's, of the network in its training precision; `svd-hub evaluate` measures the file.",
    ]
    if far:
        lines.append(f"- Half precision moves the golden output by {far:.2g} (up to {ROUNDING:g} is rounding).")
    if entry.licence == NOT_STATED:
        lines.append("- No licence is stated: it may not be passed on.")
    return "\n".join(["## Limits", "", *lines])


def _data(facts: Facts) -> str:
    data, run = facts.data, facts.run
    before, first = str(run.record.get("trained_on", "")), data_before(run)
    lines = [
        "## Data",
        "",
        f"- trained on: {data.name}",
        f"- licence of the data: {data.licence}",
        *([f"- where: {data.url}"] if data.url else []),
        f"- evaluated on: {run.split}",
        f"- started from: {run.init}{f' (trained on {before})' if before else ''}",
        *([f"- licence of the data before: {first.name}: {first.licence}"] if first else []),
        "- fingerprint, by which a resumed or repeated run knows them again:",
        "",
        _fenced("json", json.dumps(run.data, indent=1)),
    ]
    return "\n".join(lines)


def _made(facts: Facts, code: Sequence[str]) -> str:
    run = facts.run
    versions: Mapping[str, str] = run.facts.get("versions", {})
    lines = [
        "## How it was made",
        "",
        f"`svd-hub train recipe.yaml --data FOLDER`, by the recipe `{run.recipe.name}` as it was resolved:",
        "",
        _fenced("yaml", as_yaml({key: value for key, value in run.settings.items() if key != "expected"})),
        "",
        *(f"- {line}" for line in code),
        *([f"- versions: {', '.join(f'{name} {number}' for name, number in versions.items())}"] if versions else []),
        *([f"- machine: {', '.join(f'{name} {fact}' for name, fact in run.machine.items())}"] if run.machine else []),
    ]
    return "\n".join(lines).rstrip()


def _files(entry: Entry, files: Sequence[str]) -> str:
    name = entry.name
    words = {
        f"{name}.safetensors": "the weights, with the record that rebuilds the network",
        f"{name}.golden.safetensors": "an input, and what these weights make of it",
        f"{name}.log.jsonl": "the log of the run, a line an epoch",
        "recipe.yaml": "the recipe",
        "entry.toml": "the catalogue's table: SVD_HUB_CATALOG takes it",
        "SHA256SUMS": "hashes: sha256sum -c SHA256SUMS",
    }
    return "\n".join(["## Files", "", *(f"- `{file}`: {words[file]}" for file in files if file in words)])


def _citation(facts: Facts) -> str:
    lines = [f"- data: {facts.data.citation}"] if facts.data.citation else []
    lines.append("- method: SVD-Net, the paper whose variable dimension transform these networks are built on")
    lines.append("- software: svd-hub (CITATION.cff)")
    return "\n".join(["## Citation", "", *lines])


def _fenced(language: str, text: str) -> str:
    """Return a block of code that its own content cannot end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
