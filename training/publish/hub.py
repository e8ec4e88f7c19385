"""A release on the Hugging Face Hub, through its own library: HF_TOKEN, HF_ENDPOINT and the proxies are its affair.

Two commits: the weights with their golden pair, log and recipe; then the card and the entry, which names the first
commit. A kill between the two leaves a repository without a card, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...catalog import NOT_STATED
from ...errors import DownloadError, OptionError, SvdHubError
from ...files import sha256_of
from ...transport.failures import stop_if_offline
from ...transport.huggingface import without_retry_lines
from .folder import ENTRY
from .terms import Terms
from .toml import header

REPO = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"


class UploadError(DownloadError):
    """The Hub did not take a release."""


def check(place: Place, terms: Terms) -> None:
    """Raise where a release cannot go to a repository.

    Raises:
        OptionError: it is no name of one, or the terms keep these weights from where everybody gets them.
        DownloadError: no socket may be opened.
    """
    if not re.fullmatch(REPO, place.repo) or ".." in place.repo or "--" in place.repo:
        raise OptionError(f"--repo {place.repo!r} is not allowed. Next: ORGANISATION/NAME, as the Hub has it")
    if not terms.rehost and not place.private:
        stated = terms.licence != NOT_STATED
        why = f"{terms.licence} forbids it" if stated else "no licence is stated"
        step = "" if stated else "--licence NAME, where you may give one, or "
        raise OptionError(
            f"these weights may not be passed on ({why}), and a repository of the Hub is open to everybody. Next: "
            f"{step}--private, or --to FOLDER"
        )
    stop_if_offline(place.repo, "publish to a folder with --to")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A repository of the Hub; `private`: where it is made, its owners alone see it."""

    repo: str
    private: bool = False


Finish = Callable[[str, str], Sequence[str]]


def upload(part: Path, name: str, place: Place, weights: Sequence[str], finish: Finish) -> str:
    """Bring the files of a release into a repository, which is made where it does not exist.

    Args:
        part: the folder of the files.
        name: of the release.
        place: where to.
        weights: names of the files of the first commit.
        finish: makes the others, given the first commit and the entry file that is there already ("" where none is),
            and returns their names.

    Returns:
        The first commit, at which the weights are.

    Raises:
        OptionError: the repository has a release of this name.
        UploadError: the Hub refused, or could not be reached.
    """
    from huggingface_hub import HfApi

    api, repo = HfApi(library_name="svd_hub"), place.repo
    try:
        with without_retry_lines(), _bars_where_somebody_looks():
            api.create_repo(repo, private=place.private or None, exist_ok=True)
            if place.private and not api.repo_info(repo).private:
                raise OptionError(f"{repo} is there, and open to everybody. Next: --private with another --repo")
            known = _known(api, repo, part / f"{name}.safetensors")
            revision = _commit(api, repo, part, weights, f"Weights of {name}")
            _commit(api, repo, part, finish(revision, known), f"Card and entry of {name}")
    except SvdHubError:
        raise
    except Exception as error:  # the library has a dozen kinds, its HTTP library another dozen
        raise _refusal(error, repo) from None  # its own words may hold links that let anybody in
    return revision


@contextlib.contextmanager
def _bars_where_somebody_looks() -> Iterator[None]:
    """Keep the library's progress bars of an upload out of logs; what somebody chose stays."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled() or os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _known(api: Any, repo: str, file: Path) -> str:
    """Return the entries that a repository has already, as text.

    Raises:
        OptionError: one of them, or other weights, have this name.
    """
    found = {one.path: one for one in api.get_paths_info(repo, [file.name, ENTRY])}
    text = ""
    if ENTRY in found:
        with tempfile.TemporaryDirectory() as room:
            text = Path(api.hf_hub_download(repo, ENTRY, local_dir=room)).read_text(encoding="utf-8")
    here = getattr(getattr(found.get(file.name), "lfs", None), "sha256", "")
    if header("entry", file.stem) in text.splitlines() or (file.name in found and here != sha256_of(file)):
        raise OptionError(
            f"{repo} has a {file.name} already, and what was released never changes. Next: another NAME, such as "
            f"{file.stem.partition('@')[0]}@2, or another --repo"
        )
    return text


def _commit(api: Any, repo: str, part: Path, names: Sequence[str], message: str) -> str:
    from huggingface_hub import CommitOperationAdd

    files = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(part / name)) for name in names]
    return str(api.create_commit(repo, files, commit_message=message).oid)


def _refusal(error: Exception, repo: str) -> UploadError:
    """Say what the Hub had against it, in our own words: the library's may hold signed links."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "response", None) is None:
        cause = cause.__cause__
    status = getattr(getattr(cause, "response", None), "status_code", None)
    words = {
        401: "who you are is not known. Next: hf auth login, or set HF_TOKEN to a token that may write",
        403: "you may not write there. Next: a token that may write, or another --repo",
        404: "no such organisation, or you do not see it. Next: another --repo, or a token that may write",
        409: "the name is taken, or somebody writes there now. Next: try again, or another --repo",
    }
    if status in words:
        return UploadError(f"{repo}: HTTP {status}, {words[status]}")
    if status is not None:
        return UploadError(f"{repo}: HTTP {status} from the Hub. Next: try again")
    return UploadError(
        f"{repo}: {type(error).__name__} on the way to the Hub. Next: check the network and HF_ENDPOINT, then the same "
        "command goes on"
    )
