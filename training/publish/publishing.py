"""publish_run(): from a finished run to a release, in a folder or on the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import OptionError, check_choice
from .. import tree
from . import code, entry, folder, hub, terms
from .finished import metrics_of, read_finished
from .release import Draft, Release
from .terms import Told
from .weights import DTYPES

BUNDLED = ("safetensors", "golden.safetensors", "log.jsonl")  # of the files of a release, those that a package holds
UNKNOWN = "0" * 40  # stands for a commit of the Hub that does not exist yet


def publish_run(
    run: Path,
    name: str,
    *,
    to: Path | None = None,
    repo: str | None = None,
    private: bool = False,
    dtype: str = "fp16",
    metrics: Sequence[str] = (),
    told: Told | None = None,
    allow_dirty: bool = False,
    dry_run: bool = False,
) -> Release:
    """Make a release of a finished run: weights, golden pair, log, recipe, card, hashes and the catalogue's table.

    Args:
        run: the run folder.
        name: the entry's.
        to: a folder, which becomes a mirror (see `folder`) or is that of the bundled weights, which get three files.
        repo: in place of `to`, a repository of the Hugging Face Hub, ORGANISATION/NAME.
        private: the repository is seen by its owners alone, where it is made.
        dtype: of the weights on the disk.
        metrics: which of the log are published; none = all of evaluation.
        told: what the publisher says.
        allow_dirty: publish what no commit holds, and say so.
        dry_run: make everything and keep nothing.

    Raises:
        OptionError: a name, a place or a licence that is not allowed; a name that was released already.
        SvdHubError: a run that is not finished, or of code that no commit holds; a metric that is not in its log; no
            golden output, or not that of the file; a folder that cannot be written, a Hub that does not take it.
    """
    check_choice("dtype", dtype, DTYPES)
    if (to is None) == (repo is None):
        raise OptionError("a release goes to one place. Next: --to FOLDER, or --repo ORGANISATION/NAME")
    if private and repo is None:
        raise OptionError("--private is for a repository of the Hub. Next: leave it out, or --repo ORGANISATION/NAME")
    entry.check_name(name)
    told, finished = told or Told(), read_finished(run)
    facts = entry.Facts(
        name=name,
        run=finished,
        metrics=metrics_of(finished, metrics),
        data=terms.data_of(finished, told),
        terms=terms.terms_of(finished, told),
        told=told,
    )
    place = hub.Place(repo=repo, private=private) if repo is not None else None
    if place is not None:
        hub.check(place, facts.terms)
    if to is not None:
        folder.refuse_taken(to, name)
    said, unclean = code.checked(finished.facts, tree.present(besides=to), allow_dirty=allow_dirty)
    with _room(None if dry_run else to) as part:
        draft = Draft(part, facts, code=said, notes=unclean)
        names = draft.write_weights(dtype)
        if place is not None:
            return _to_hub(draft, place, names, dry_run=dry_run)
        return _to_folder(draft, to or Path(), dry_run=dry_run)


@contextlib.contextmanager
def _room(to: Path | None) -> Iterator[Path]:
    """Yield an empty folder: beside where the release goes, or anywhere."""
    if to is not None:
        with folder.beside(to) as part:
            yield part
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def _to_folder(draft: Draft, to: Path, *, dry_run: bool) -> Release:
    name, bundled = draft.facts.name, folder.is_bundle(to)
    made = draft.seal(draft.source("bundled" if bundled else "mirror"))
    if bundled:
        kept = [f"{name}.{ending}" for ending in BUNDLED]
        made = dataclasses.replace(made, files=tuple(file for file in made.files if file.name in kept))
    if not dry_run:
        (folder.place_bundled if bundled else folder.place)(draft.part, to, name)
    return made


def _to_hub(draft: Draft, place: hub.Place, names: Sequence[str], *, dry_run: bool) -> Release:
    made: list[Release] = []

    def finish(revision: str, known: str) -> list[str]:
        made.append(draft.seal(draft.source("hf", repo=place.repo, revision=revision), known=known))
        return [file.name for file in made[0].files if file.name not in names]

    if dry_run:
        finish(UNKNOWN, "")
    else:
        hub.upload(draft.part, draft.facts.name, place, names, finish)
    return made[0]
