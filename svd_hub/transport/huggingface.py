"""Files of the Hugging Face Hub, at a pinned commit, through its own library."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import DownloadError, OptionError
from .failures import MissingError, folder_error, stop_if_offline
from .links import public_url

PAUSE = 1.0  # seconds before the one further attempt to connect


class UnreachableError(DownloadError):
    """No connection to the Hub: no network, no such host, refused, or no answer to the attempt to connect."""


def hf_host() -> str:
    """Return the host that answers for the Hub: HF_ENDPOINT's, else huggingface.co."""
    return urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname or ""


def hf_cached(repo: str, revision: str, file: str) -> Path | None:
    """Return the file of that commit in huggingface_hub's own cache, or None. Opens no socket."""
    _check_revision(repo, revision)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def hf_download(repo: str, revision: str, file: str, folder: Path, *, progress: bool = True, hint: str = "") -> Path:
    """Bring `file` of a pinned commit into `folder`, through huggingface_hub and under its settings.

    HF_ENDPOINT, HF_HOME, HF_TOKEN, the proxies and the retries are huggingface_hub's own, but for a host that cannot be
    reached: that is told within seconds. Its cache is neither read (a damaged file there would come back again and
    again; see `hf_cached`) nor written (it would keep a pickle).

    Raises:
        MissingError: no such repository, commit or file. UnreachableError: no connection to the Hub.
        FolderError, DownloadError: see `download`.
    """
    _check_revision(repo, revision)
    hint = hint or f"fetch the file by hand and save it as {Path(file).name}"
    stop_if_offline(f"{file} of {repo}", hint)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import tqdm

    class Quiet(tqdm):  # the library itself is quiet where stderr is no terminal
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    room = folder / f"hf-{secrets.token_hex(8)}"
    try:
        room.mkdir()
        with without_retry_lines():
            _knock(repo, revision, file)
            path = hf_hub_download(
                repo,
                file,
                revision=revision,
                local_dir=room / "file",
                cache_dir=room / "no-cache",
                library_name="svd_hub",
                tqdm_class=None if progress else Quiet,
            )
        target = folder / Path(file).name
        os.replace(path, target)
        return target
    except Exception as error:  # the library has a dozen kinds, its HTTP library another dozen
        raise _hf_error(error, repo, revision, file, folder, hint) from error
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _knock(repo: str, revision: str, file: str) -> None:
    """Raise where the Hub cannot be reached, after two attempts: `hf_hub_download` alone would make seven, in 24 s.

    Whatever else is wrong is left to `hf_hub_download`, which tells more of it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    for left in (1, 0):
        try:
            get_hf_file_metadata(hf_hub_url(repo, file, revision=revision), library_name="svd_hub")
        except Exception as error:
            kinds = {kind.__name__ for kind in type(error).__mro__}
            if left and "ConnectError" in kinds:
                time.sleep(PAUSE)
                continue
            if _NO_CONNECTION & kinds:
                raise
        return


# By name: which HTTP library huggingface_hub uses is its own affair.
_NO_CONNECTION = {"ConnectError", "ConnectTimeout", "ProxyError"}


@contextlib.contextmanager
def without_retry_lines() -> Iterator[None]:
    """Keep huggingface_hub's warnings ("Retrying in 8s") off stderr; a verbosity that somebody chose stays."""
    from huggingface_hub.utils import logging

    if logging.get_verbosity() != logging.WARNING or os.environ.get("HF_HUB_VERBOSITY"):
        yield
        return
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity_warning()


def _check_revision(repo: str, revision: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise OptionError(f"revision {revision!r} of {repo} is not allowed; allowed: a commit of 40 hex digits")


_FOLDER_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def _hf_error(error: Exception, repo: str, revision: str, file: str, folder: Path, hint: str) -> DownloadError:
    from huggingface_hub import errors as hf

    where = f"{file} of {repo} at {revision[:12]}"
    response = getattr(error, "response", None)
    status = f"HTTP {response.status_code}, " if response is not None else ""
    if isinstance(error, hf.GatedRepoError):
        link = f"https://huggingface.co/{repo}"
        return DownloadError(
            f"{where}: {status}the repository is gated. Next: accept its conditions at {link} and set HF_TOKEN"
        )
    unreachable = bool(_NO_CONNECTION & {kind.__name__ for kind in type(error).__mro__})
    if unreachable or isinstance(error, hf.LocalEntryNotFoundError | hf.OfflineModeIsEnabled):
        cause = error if unreachable else error.__cause__
        why = f" ({type(cause).__name__})" if cause else ""
        endpoint = f" HF_ENDPOINT is {public_url(os.environ['HF_ENDPOINT'])}." if os.environ.get("HF_ENDPOINT") else ""
        kind = UnreachableError if unreachable else DownloadError
        return kind(f"{where}: the Hub cannot be reached{why}.{endpoint} Next: check the network, or {hint}")
    for missing, words in (
        (hf.RevisionNotFoundError, "no such commit"),
        (hf.EntryNotFoundError, "no such file in this commit"),
        (hf.RepositoryNotFoundError, "no such repository, or it is private and HF_TOKEN is not set"),
    ):
        if isinstance(error, missing):
            return MissingError(f"{where}: {status}{words}. Next: {hint}")
    if response is None and isinstance(error, OSError) and error.errno in _FOLDER_ERRNOS:
        return folder_error(folder, error)
    return DownloadError(f"{where}: {status}{type(error).__name__} in huggingface_hub. Next: try again, or {hint}")
