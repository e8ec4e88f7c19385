"""Bringing one upstream file into a folder: direct links, Google Drive, the Hugging Face Hub, a mirror.

This file does; `store.py` decides, checks the hash and keeps the cache. Nothing here trusts what a server sends:
the size is limited, redirects are restricted and the file appears under its name only when it is complete.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import errno
import http.client
import os
import random
import re
import secrets
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from .errors import DownloadError, OptionError

CHUNK = 1 << 18
REDIRECTS = 10
LONGEST_PAUSE = 60.0  # seconds; also the most a Retry-After is obeyed for
WRONG_FILE_SIZE = 1 << 20  # an error page may be this long although a smaller file was promised: it is named afterwards
Pause = Callable[[float], object]
Advance = Callable[[int, int | None], None]


class MissingError(DownloadError):
    """The server answers and does not give the file (403, 404, 410)."""


class FolderError(DownloadError):
    """The folder on this machine cannot be written."""


def offline() -> bool:
    """True where HF_HUB_OFFLINE or SVD_HUB_OFFLINE asks that no socket is opened."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in _OFFLINE)


_OFFLINE = ("HF_HUB_OFFLINE", "SVD_HUB_OFFLINE")


def _stop_if_offline(what: str, hint: str) -> None:
    if offline():
        names = " and ".join(name for name in _OFFLINE if os.environ.get(name))
        raise DownloadError(f"{what} is not on this machine and {names} forbids the network. Next: unset it, or {hint}")


def folder_error(folder: Path, error: OSError) -> FolderError:
    """Say which folder cannot be written, why, and how to choose another."""
    why = error.strerror or type(error).__name__
    todo = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it a writable folder"
    return FolderError(f"cannot write in {folder}: {why}. Next: {todo}, or set SVD_HUB_HOME to another folder")


def public_url(url: str) -> str:
    """Return `url` as it may be shown: no user, password, query or fragment (Google Drive's file id is public)."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = "&".join(q for q in parts.query.split("&") if q.startswith("id=")) if host.endswith(".google.com") else ""
    return urlunsplit((parts.scheme, host, parts.path, query, ""))


def gdrive_url(file_id: str) -> str:
    """Return Google Drive's direct link of a file; `confirm=t` passes the page "too large to scan for viruses".

    Raises:
        OptionError: not a file id.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", file_id):
        raise OptionError(f"Google Drive file id {file_id!r} is not allowed; allowed: letters, digits, '_' and '-'")
    return f"https://drive.usercontent.google.com/download?id={file_id}&export=download&confirm=t"


# ---- direct links --------------------------------------------------------------------------------------------------


@dataclass
class _Transfer:
    """The state that one download carries from attempt to attempt."""

    url: str
    handle: BinaryIO
    folder: Path
    limit: int
    timeout: float
    advance: Advance
    total: int | None = None
    validator: str = ""  # ETag or Last-Modified: the proof that a resumed body is the same body
    done: int = 0
    best: int = 0

    def rewind(self) -> None:
        self.done, self.total, self.validator = 0, None, ""
        self.handle.seek(0)
        self.handle.truncate()

    def write(self, chunk: bytes) -> None:
        self.done += len(chunk)
        self.check(self.done)
        try:
            self.handle.write(chunk)
        except OSError as error:
            raise folder_error(self.folder, error) from error
        self.best = max(self.best, self.done)
        self.advance(self.done, self.total)

    def check(self, size: int) -> None:
        if size > self.limit:
            raise DownloadError(
                f"{public_url(self.url)}: {size} bytes or more, allowed: {self.limit}; the file upstream is not the "
                "one of the catalogue"
            )


class _ShortError(OSError):
    """The body ended before the length that its header promised, or a resumed part does not fit."""


def download(
    url: str,
    target: Path,
    *,
    max_size: int,
    expected_size: int = 0,
    progress: bool = True,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: Pause = time.sleep,
    hint: str = "",
) -> None:
    """Bring `url` to `target`, complete or not at all. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are honoured.

    Connection resets, time-outs, 408, 429 and 5xx are retried with growing pauses, from where the body broke off if
    the server can tell that it is still the same body. An attempt that got further than all before starts a new count.

    Args:
        url: http or https; a user and password in it are sent to its own host only.
        target: the file to make; its folder exists.
        max_size: bytes at which the download is given up.
        expected_size: bytes that the catalogue promises, 0 = not known.
        progress: show a bar on stderr, where that is a terminal.
        attempts: attempts in a row that may bring nothing new.
        timeout: seconds without a byte after which an attempt has failed.
        pause: called with the seconds to wait between attempts.
        hint: what a person can do instead; the end of every error.

    Raises:
        MissingError: 403, 404 or 410. FolderError: the folder cannot be written. DownloadError: all else.
    """
    hint = hint or f"fetch the file by hand and save it as {target.name}"
    _stop_if_offline(public_url(url), hint)
    limit = min(max_size, max(expected_size, WRONG_FILE_SIZE)) if expected_size else max_size
    part = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
    try:
        with _create(part) as handle, _progress_bar(target.name, expected_size, shown=progress) as advance:
            transfer = _Transfer(url, handle, target.parent, limit, timeout, advance)
            _try_until_done(transfer, attempts, pause)
        os.replace(part, target)
    except DownloadError as error:
        raise type(error)(f"{error}. Next: {hint}" if "Next:" not in str(error) else str(error)) from error.__cause__
    except OSError as error:  # what remains is flushing and moving
        raise folder_error(target.parent, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _create(part: Path) -> BinaryIO:
    try:
        return open(part, "xb")
    except OSError as error:
        raise folder_error(part.parent, error) from error


def _try_until_done(transfer: _Transfer, attempts: int, pause: Pause) -> None:
    failures = tries = 0
    cause: Exception
    while True:
        tries, before, wait = tries + 1, transfer.best, 0.0
        try:
            return _attempt(transfer)
        except DownloadError:
            raise
        except urllib.error.HTTPError as error:
            with error:
                cause, reason, again, wait = error, *_read_status(error, transfer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause, reason, again = error, *_read_failure(error)
        failures = 1 if transfer.best > before else failures + 1
        if not again or failures >= attempts:
            kind = (
                MissingError
                if isinstance(cause, urllib.error.HTTPError) and cause.code in (403, 404, 410)
                else DownloadError
            )
            count = f" ({tries} attempts)" if tries > 1 else ""
            raise kind(f"{public_url(transfer.url)}: {reason}{count}") from cause
        # Jitter, because sixteen machines of a cluster would otherwise all come back at the same moment.
        pause(min(wait or 0.5 * 2 ** (failures - 1) * random.uniform(0.75, 1.25), LONGEST_PAUSE))  # noqa: S311 - no secret


def _read_status(error: urllib.error.HTTPError, transfer: _Transfer) -> tuple[str, bool, float]:
    if error.code == 416:  # the file upstream became shorter than what is here
        transfer.rewind()
    again = error.code in (408, 416, 429) or error.code >= 500
    wait = _retry_after(error.headers.get("Retry-After", "") if error.headers else "")
    return f"HTTP {error.code} {http.client.responses.get(error.code, '')}".rstrip(), again, wait


def _retry_after(value: str) -> float:
    if value.strip().isdigit():
        return float(value)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _read_failure(error: Exception) -> tuple[str, bool]:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = getattr(cause, "verify_message", "unknown")
        return f"the certificate is not trusted ({why}); SSL_CERT_FILE names your own authorities", False
    if isinstance(cause, socket.gaierror):
        return "no such host, or no network", cause.errno == socket.EAI_AGAIN
    if isinstance(cause, TimeoutError):
        return "the server is too slow: no byte within the time-out", True
    if isinstance(cause, _ShortError):
        return str(cause), True
    # Refused and unreachable do not mend within seconds. A message of http.client may hold the URL: its type is told.
    again = isinstance(cause, ConnectionResetError | ConnectionAbortedError | BrokenPipeError | ssl.SSLError)
    again = again or (isinstance(cause, http.client.HTTPException) and not isinstance(cause, http.client.InvalidURL))
    words = cause.strerror if isinstance(cause, OSError) and cause.strerror else type(cause).__name__
    return f"the connection failed: {words}", again


def _attempt(transfer: _Transfer) -> None:
    headers = {}
    if transfer.done and transfer.validator:
        headers = {"Range": f"bytes={transfer.done}-", "If-Range": transfer.validator}
    elif transfer.done:
        transfer.rewind()
    with _open(transfer.url, headers, transfer.timeout) as response:
        _begin(transfer, response)
        while chunk := response.read1(CHUNK):
            transfer.write(chunk)
    if transfer.total is not None and transfer.done != transfer.total:
        raise _ShortError(f"the body broke off at {transfer.done} of {transfer.total} bytes")


def _begin(transfer: _Transfer, response: Any) -> None:
    """Read the head of an answer: a part that fits what is here, or a whole body from its start."""
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip())
        if found is None or int(found[1]) != transfer.done or int(found[2]) != transfer.total:
            transfer.rewind()
            raise _ShortError("the server resumed at another place or with another file")
        return
    if response.status != 200:
        raise DownloadError(f"{public_url(transfer.url)}: HTTP {response.status} where 200 was expected")
    transfer.rewind()
    length = response.headers.get("Content-Length", "")
    transfer.total = int(length) if length.isdigit() else None
    transfer.check(transfer.total or 0)
    etag = response.headers.get("ETag", "")
    # A weak ETag does not promise equal bytes, so it may not stand in If-Range (RFC 9110, 13.1.5).
    transfer.validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _open(url: str, headers: dict[str, str], timeout: float) -> Any:
    """Open `url`, following redirects by hand: urllib would send the headers along and would follow to ftp:."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        opener.add_handler(handler)
    start = url
    for _ in range(REDIRECTS + 1):
        try:
            return opener.open(_request(url, headers), timeout=timeout)
        except urllib.error.HTTPError as error:
            location = error.headers.get("Location") if error.code in (301, 302, 303, 307, 308) else None
            if location is None:
                raise
            error.close()
            url = _redirected(url, urljoin(url, location))
    raise DownloadError(f"{public_url(start)}: more than {REDIRECTS} redirects")


_HEADERS = {"User-Agent": "svd-hub", "Accept-Encoding": "identity"}


def _request(url: str, headers: dict[str, str]) -> urllib.request.Request:
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https") or not host:
        raise DownloadError(f"{public_url(url)}: scheme {parts.scheme!r} is not allowed; allowed: http, https")
    plain = quote(urlunsplit(parts._replace(netloc=host, fragment="")), safe="!#$%&'()*+,/:;=?@[]~")
    request = urllib.request.Request(plain, headers=headers | _HEADERS)  # noqa: S310 - checked above
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(unquote(user).encode()).decode())
    return request


def _redirected(old: str, new: str) -> str:
    before, after = urlsplit(old), urlsplit(new)
    if after.scheme not in ("http", "https") or (before.scheme == "https" and after.scheme == "http"):
        raise DownloadError(
            f"{public_url(old)}: redirect from {before.scheme} to {after.scheme} {after.hostname} refused"
        )
    return new


@contextlib.contextmanager
def _progress_bar(name: str, total: int, *, shown: bool) -> Iterator[Advance]:
    if not (shown and sys.stderr.isatty()):
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total or None)
        yield lambda done, size: bar.update(task, completed=done, total=size or total or None)


# ---- the Hugging Face Hub ------------------------------------------------------------------------------------------


def _check_revision(repo: str, revision: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise OptionError(f"revision {revision!r} of {repo} is not allowed; allowed: a commit of 40 hex digits")


def hf_cached(repo: str, revision: str, file: str) -> Path | None:
    """Return the file of that commit in huggingface_hub's own cache, or None. Opens no socket."""
    _check_revision(repo, revision)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def hf_download(repo: str, revision: str, file: str, folder: Path, *, progress: bool = True, hint: str = "") -> Path:
    """Bring `file` of a pinned commit into `folder`, through huggingface_hub and under its settings.

    HF_ENDPOINT, HF_HOME, HF_TOKEN, the proxies and the retries are huggingface_hub's own. Its cache is neither read
    (a damaged file there would come back again and again; see `hf_cached`) nor written (it would keep a pickle).

    Raises:
        MissingError: no such repository, commit or file. FolderError, DownloadError: see `download`.
    """
    _check_revision(repo, revision)
    hint = hint or f"fetch the file by hand and save it as {Path(file).name}"
    _stop_if_offline(f"{file} of {repo}", hint)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import tqdm

    class Quiet(tqdm):  # the library itself is quiet where stderr is no terminal
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})

    room = folder / f"hf-{secrets.token_hex(8)}"
    try:
        room.mkdir()
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
    if isinstance(error, hf.LocalEntryNotFoundError | hf.OfflineModeIsEnabled):
        cause = error.__cause__
        why = f" ({type(cause).__name__})" if cause else ""
        endpoint = f" HF_ENDPOINT is {public_url(os.environ['HF_ENDPOINT'])}." if os.environ.get("HF_ENDPOINT") else ""
        return DownloadError(f"{where}: the Hub cannot be reached{why}.{endpoint} Next: check the network, or {hint}")
    for kind, words in (
        (hf.RevisionNotFoundError, "no such commit"),
        (hf.EntryNotFoundError, "no such file in this commit"),
        (hf.RepositoryNotFoundError, "no such repository, or it is private and HF_TOKEN is not set"),
    ):
        if isinstance(error, kind):
            return MissingError(f"{where}: {status}{words}. Next: {hint}")
    if response is None and isinstance(error, OSError) and error.errno in _FOLDER_ERRNOS:
        return folder_error(folder, error)
    return DownloadError(f"{where}: {status}{type(error).__name__} in huggingface_hub. Next: try again, or {hint}")


_FOLDER_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


# ---- mirrors -------------------------------------------------------------------------------------------------------


def mirror() -> Path | str | None:
    """Return SVD_HUB_MIRROR: a folder (a path or a file: URL), the base URL of a server, or None.

    Raises:
        OptionError: another scheme, or a file: URL of another machine.
    """
    value = os.environ.get("SVD_HUB_MIRROR", "").strip()
    parts = urlsplit(value)
    if not value:
        return None
    if parts.scheme in ("http", "https"):
        return value
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(urllib.request.url2pathname(parts.path))
    if "://" in value or parts.scheme == "file":
        raise OptionError(
            f"SVD_HUB_MIRROR={public_url(value)!r} is not allowed; allowed: a folder, file:///folder, http(s)://host/folder"
        )
    return Path(value).expanduser()


def mirror_urls(base: str, name: str, file: str) -> list[str]:
    """Return where a mirror server may have `file` of the entry `name`: <base>/<name>/<file>, then <base>/<file>."""
    parts = urlsplit(base)
    folder = parts.path.rstrip("/")
    return [
        urlunsplit(parts._replace(path=f"{folder}/{tail}")) for tail in (f"{quote(name)}/{quote(file)}", quote(file))
    ]
