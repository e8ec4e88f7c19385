"""Direct links: one file over http or https, resumed where it broke off, complete or not at all."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import os
import random
import re
import secrets
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

from ..errors import DownloadError
from .failures import MissingError, folder_error, stop_if_offline
from .links import public_url

CHUNK = 1 << 18
REDIRECTS = 10
LONGEST_PAUSE = 60.0  # seconds; also the most a Retry-After is obeyed for
WRONG_FILE_SIZE = 1 << 20  # an error page may be this long although a smaller file was promised: it is named afterwards
Pause = Callable[[float], object]
Advance = Callable[[int, int | None], None]


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
    stop_if_offline(public_url(url), hint)
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
