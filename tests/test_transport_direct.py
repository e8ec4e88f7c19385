"""Laws of svd_hub.transport.direct: a file arrives complete or not at all, every failure says what a person can do."""

from __future__ import annotations

import builtins
import errno
import http.client
import os
import random
import socket
import ssl
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import servers
from helpers_store import COMMIT

from svd_hub import transport
from svd_hub.errors import DownloadError
from svd_hub.transport import direct

BODY = random.Random(0).randbytes(300_000)


class Pauses(list[float]):
    """Stands for time.sleep: notes the seconds instead of waiting."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def get(url: str, folder: Path, **options: Any) -> Path:
    target = folder / "model.pth"
    transport.download(url, target, **{"max_size": 10**7, "pause": Pauses(), "timeout": 5.0, **options})
    return target


def fails(url: str, folder: Path, **options: Any) -> DownloadError:
    """Return the error of a download, and hold the two laws of every failure: nothing is left, the hand is named."""
    with pytest.raises(DownloadError) as caught:
        get(url, folder, **options)
    assert list(folder.iterdir()) == []
    assert "Next: " in str(caught.value)
    return caught.value


def test_whole_body(server: servers.Server, tmp_path: Path) -> None:
    assert get(server.add("/a", servers.ok(BODY)), tmp_path).read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
    assert server.gets()[0].headers["accept-encoding"] == "identity"


def test_empty_body_is_complete(server: servers.Server, tmp_path: Path) -> None:
    assert get(server.add("/a", servers.ok(b"")), tmp_path).read_bytes() == b""


def test_resume_asks_for_the_rest_of_the_same_body(server: servers.Server, tmp_path: Path) -> None:
    url = server.add("/a", servers.drop(BODY, after=100_000), servers.ranged(BODY))
    assert get(url, tmp_path).read_bytes() == BODY
    first, second = server.gets()
    assert "range" not in first.headers
    assert (second.headers["range"], second.headers["if-range"]) == ("bytes=100000-", '"v1"')


def test_resume_of_a_changed_file_starts_anew(server: servers.Server, tmp_path: Path) -> None:
    url = server.add("/a", servers.drop(b"x" * 300_000, after=100_000), servers.ranged(BODY, etag='"v2"'))
    assert get(url, tmp_path).read_bytes() == BODY


def test_resume_with_last_modified(server: servers.Server, tmp_path: Path) -> None:
    stamp = "Mon, 01 Jan 2024 00:00:00 GMT"
    broken = servers.drop(BODY, after=1000, etag='W/"weak"', **{"Last-Modified": stamp})
    assert get(server.add("/a", broken, servers.ranged(BODY, etag=stamp)), tmp_path).read_bytes() == BODY
    assert server.gets()[1].headers["if-range"] == stamp


def test_no_resume_without_proof_of_sameness(server: servers.Server, tmp_path: Path) -> None:
    url = server.add("/a", servers.drop(b"x" * 300_000, after=100_000, etag=""), servers.ranged(BODY))
    assert get(url, tmp_path).read_bytes() == BODY
    assert "range" not in server.gets()[1].headers


@pytest.mark.parametrize("content_range", ["bytes 5-299999/300000", "bytes 1000-299999/299999", "", "bytes */300000"])
def test_a_part_that_does_not_fit_is_not_joined(server: servers.Server, tmp_path: Path, content_range: str) -> None:
    part = servers.answer(206, {"Content-Range": content_range, "Content-Length": "299000"}, b"y" * 299_000)
    url = server.add("/a", servers.drop(BODY, after=1000), part, servers.ok(BODY))
    assert get(url, tmp_path).read_bytes() == BODY


def test_416_starts_anew(server: servers.Server, tmp_path: Path) -> None:
    url = server.add("/a", servers.drop(BODY, after=1000), servers.status(416), servers.ok(BODY[:500]))
    assert get(url, tmp_path).read_bytes() == BODY[:500]


def test_short_body_is_never_a_file(server: servers.Server, tmp_path: Path) -> None:
    url = server.add("/a", servers.drop(BODY, after=1000, etag=""))
    error = fails(url, tmp_path, attempts=3)
    assert "broke off at 1000 of 300000" in str(error)
    assert "3 attempts" in str(error)
    assert len(server.gets()) == 3


def test_broken_chunks_are_retried(server: servers.Server, tmp_path: Path) -> None:
    broken = servers.answer(200, {"Transfer-Encoding": "chunked"}, b"5\r\nhello\r\n5\r\nwo")
    assert get(server.add("/a", broken, servers.ok(BODY)), tmp_path).read_bytes() == BODY


def test_a_line_that_breaks_often_still_arrives(server: servers.Server, tmp_path: Path) -> None:
    """Attempts count only where nothing new came: ten breaks with two attempts allowed."""
    step = len(BODY) // 10

    def piece(handler: servers.Handler) -> None:
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        head = {"ETag": '"v1"', "Content-Length": str(len(BODY) - start)}
        if start:
            head["Content-Range"] = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        servers.answer(206 if start else 200, head, BODY[start : start + step])(handler)

    assert get(server.add("/a", piece), tmp_path, attempts=2).read_bytes() == BODY
    assert len(server.gets()) == 10


@pytest.mark.parametrize("code", [403, 404, 410])
def test_missing_is_not_retried(server: servers.Server, tmp_path: Path, code: int) -> None:
    error = fails(server.add("/a", servers.status(code)), tmp_path, hint="put it at /there/model.pth")
    assert isinstance(error, transport.MissingError)
    assert f"HTTP {code}" in str(error)
    assert str(error).endswith("Next: put it at /there/model.pth")
    assert len(server.gets()) == 1


@pytest.mark.parametrize("code", [400, 401, 451])
def test_refusal_is_not_retried(server: servers.Server, tmp_path: Path, code: int) -> None:
    assert f"HTTP {code}" in str(fails(server.add("/a", servers.status(code)), tmp_path))
    assert len(server.gets()) == 1


@pytest.mark.parametrize("code", [408, 500, 502, 503, 504])
def test_server_errors_are_retried(server: servers.Server, tmp_path: Path, code: int) -> None:
    url = server.add("/a", servers.status(code), servers.status(code), servers.ok(BODY))
    pauses = Pauses()
    assert get(url, tmp_path, pause=pauses).read_bytes() == BODY
    assert len(pauses) == 2
    assert 0.3 < pauses[0] < 0.7 < pauses[1] < 1.3


def test_server_error_for_ever(server: servers.Server, tmp_path: Path) -> None:
    error = fails(server.add("/a", servers.status(503)), tmp_path, attempts=4)
    assert "HTTP 503 Service Unavailable (4 attempts)" in str(error)
    assert "/a" in str(error)
    assert len(server.gets()) == 4


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("100000", direct.LONGEST_PAUSE)])
def test_retry_after(server: servers.Server, tmp_path: Path, value: str, seconds: float) -> None:
    url = server.add("/a", servers.status(429, headers={"Retry-After": value}), servers.ok(BODY))
    pauses = Pauses()
    assert get(url, tmp_path, pause=pauses).read_bytes() == BODY
    assert pauses == [seconds]


def test_retry_after_as_a_date(server: servers.Server, tmp_path: Path) -> None:
    far = "Fri, 31 Dec 2100 23:59:59 GMT"
    url = server.add("/a", *[servers.status(429, headers={"Retry-After": v}) for v in (far, "soon")], servers.ok(BODY))
    pauses = Pauses()
    get(url, tmp_path, pause=pauses)
    assert pauses[0] == direct.LONGEST_PAUSE
    assert pauses[1] < 2


def test_reset_is_retried(server: servers.Server, tmp_path: Path) -> None:
    assert get(server.add("/a", servers.reset, servers.ok(BODY)), tmp_path).read_bytes() == BODY


def test_reset_for_ever(server: servers.Server, tmp_path: Path) -> None:
    assert "2 attempts" in str(fails(server.add("/a", servers.reset), tmp_path, attempts=2))


def test_slow_server(server: servers.Server, tmp_path: Path) -> None:
    gate = threading.Event()
    url = server.add("/a", servers.drip(BODY, first=1000, gate=gate), servers.ranged(BODY))
    try:
        assert get(url, tmp_path, timeout=0.1).read_bytes() == BODY
    finally:
        gate.set()
    assert server.gets()[1].headers["range"] == "bytes=1000-"


def test_too_slow_server(server: servers.Server, tmp_path: Path) -> None:
    gate = threading.Event()
    url = server.add("/a", servers.drip(BODY, first=0, gate=gate))
    try:
        assert "too slow" in str(fails(url, tmp_path, timeout=0.05, attempts=2))
    finally:
        gate.set()


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        pauses = Pauses()
        error = fails(f"http://127.0.0.1:{taken.getsockname()[1]}/a", tmp_path, pause=pauses)
    assert "refused" in str(error).lower()
    assert pauses == []


@pytest.mark.parametrize(
    ("failure", "words", "tries"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "no such host", 1),
        (socket.gaierror(socket.EAI_AGAIN, "later"), "no such host", 2),
        (ssl.SSLCertVerificationError("bad"), "SSL_CERT_FILE", 1),
        (ssl.SSLEOFError("eof"), "connection failed", 2),
        (http.client.BadStatusLine("secret"), "BadStatusLine", 2),
        (http.client.InvalidURL("secret"), "InvalidURL", 1),
    ],
)
def test_other_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, words: str, tries: int
) -> None:
    count = []

    def raises(*_: Any) -> None:
        count.append(1)
        raise failure

    monkeypatch.setattr(direct, "_open", raises)
    error = fails("https://example.invalid/a", tmp_path, attempts=2)
    assert words in str(error)
    assert "secret" not in str(error)
    assert len(count) == tries


def test_size_limit_by_header(server: servers.Server, tmp_path: Path) -> None:
    error = fails(server.add("/a", servers.ok(BODY)), tmp_path, max_size=299_999)
    assert "300000" in str(error)
    assert "299999" in str(error)
    assert len(server.gets()) == 1


def test_size_limit_by_counting(server: servers.Server, tmp_path: Path) -> None:
    body = b"".join(b"10000\r\n" + bytes(0x10000) + b"\r\n" for _ in range(4)) + b"0\r\n\r\n"
    url = server.add("/a", servers.answer(200, {"Transfer-Encoding": "chunked"}, body))
    assert get(url, tmp_path, max_size=4 * 0x10000).stat().st_size == 4 * 0x10000
    (tmp_path / "model.pth").unlink()
    assert "allowed: 262143" in str(fails(url, tmp_path, max_size=4 * 0x10000 - 1))


def test_a_much_larger_file_than_promised_is_given_up(server: servers.Server, tmp_path: Path) -> None:
    head = {"Content-Length": "3000000"}
    assert "not the one" in str(fails(server.add("/a", servers.answer(200, head)), tmp_path, expected_size=1000))
    # A small wrong file is brought all the same: what it says (a quota page) is the better error.
    (tmp_path / "page").mkdir()
    page = get(server.add("/b", servers.ok(servers.QUOTA_PAGE)), tmp_path / "page", expected_size=10)
    assert page.read_bytes() == servers.QUOTA_PAGE


def test_redirects_are_followed(server: servers.Server, tmp_path: Path) -> None:
    server.add("/b/c", servers.redirect("../d", code=307))
    server.add("/d", servers.ok(BODY))
    assert get(server.add("/a", servers.redirect("/b/c")), tmp_path).read_bytes() == BODY


def test_redirects_end(server: servers.Server, tmp_path: Path) -> None:
    assert "redirects" in str(fails(server.add("/a", servers.redirect("/a")), tmp_path))
    assert len(server.gets()) == direct.REDIRECTS + 1


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://x", "data:,x"])
def test_redirect_elsewhere_is_refused(server: servers.Server, tmp_path: Path, place: str) -> None:
    assert "refused" in str(fails(server.add("/a", servers.redirect(place)), tmp_path))
    assert len(server.gets()) == 1


def test_redirect_to_plain_http_is_refused() -> None:
    with pytest.raises(DownloadError, match=r"from https to http example\.org refused"):
        direct._redirected("https://example.org/a?token=s3cret", "http://example.org/a?token=s3cret")
    assert direct._redirected("http://a/", "https://b/") == "https://b/"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a", "/etc/passwd", "http:///nohost"])
def test_only_http(tmp_path: Path, url: str) -> None:
    assert "allowed: http, https" in str(fails(url, tmp_path))


def test_secrets_stay_secret(server: servers.Server, tmp_path: Path) -> None:
    server.add("/a", servers.status(404))
    url = f"http://user:hunter2@127.0.0.1:{server.server_address[1]}/a?token=s3cret#frag"
    error = fails(url, tmp_path)
    assert "/a" in str(error)
    assert not any(word in str(error) for word in ("user", "hunter2", "s3cret", "frag"))
    assert server.gets()[0].headers["authorization"] == "Basic dXNlcjpodW50ZXIy"
    assert server.gets()[0].path == "/a?token=s3cret"


def test_password_does_not_travel_with_a_redirect(server: servers.Server, tmp_path: Path) -> None:
    with servers.Server() as other:
        server.add("/a", servers.redirect(other.add("/b", servers.ok(BODY))))
        get(f"http://user:hunter2@127.0.0.1:{server.server_address[1]}/a", tmp_path)
        assert "authorization" in server.gets()[0].headers
        assert "authorization" not in other.gets()[0].headers


def test_proxy_of_the_environment(server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.base)
    server.add("http://far.invalid/a", servers.ok(BODY))
    assert get("http://far.invalid/a", tmp_path).read_bytes() == BODY


def test_interrupt_leaves_nothing(server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
        raise KeyboardInterrupt

    monkeypatch.setattr(direct._Transfer, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(server.add("/a", servers.ok(BODY)), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_folder_that_cannot_be_written(
    server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = builtins.open

    def refuse(path: Any, *args: Any, **options: Any) -> Any:
        if str(path).endswith(".part"):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    error = fails(server.add("/a", servers.ok(BODY)), tmp_path)
    assert isinstance(error, transport.FolderError)
    assert all(words in str(error) for words in (str(tmp_path), "SVD_HUB_HOME", os.strerror(code)))
    assert server.seen == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk(server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "_create", lambda part: open("/dev/full", "wb", buffering=0))  # noqa: SIM115 - the caller closes it
    monkeypatch.setattr(direct._Transfer, "rewind", lambda self: None)
    error = fails(server.add("/a", servers.ok(BODY)), tmp_path)
    assert isinstance(error, transport.FolderError)
    assert "No space left" in str(error)
    assert "free some space" in str(error)
    assert "SVD_HUB_HOME" in str(error)


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "SVD_HUB_OFFLINE"])
def test_offline(server: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    assert name in str(fails(server.add("/a", servers.ok(BODY)), tmp_path))
    with pytest.raises(DownloadError, match=name):
        transport.hf_download("a/b", COMMIT, "model.pth", tmp_path)
    assert server.seen == []
    monkeypatch.setenv(name, "0")
    assert not transport.offline()


def test_progress_only_on_a_terminal(
    server: servers.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/a", servers.ok(BODY))
    get(url, tmp_path)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    get(url, tmp_path, progress=False)
    assert capsys.readouterr() == ("", "")
    get(url, tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "model.pth" in err
