"""A small scripted HTTP server on 127.0.0.1: each path plays a list of steps, one per request, the last one for ever.

>>> with Server() as server:
...     server.add("/model.pth", drop(b"abcdef", after=2), ranged(b"abcdef"))
...     server.url("/model.pth")
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

QUOTA_PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>Sorry</body></html>"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 134217728\n"


@dataclass(frozen=True)
class Seen:
    """One request as it arrived. `headers` has lower-case names."""

    method: str
    path: str
    headers: dict[str, str]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _play(self) -> None:
        self.server.step_for(self)(self)

    do_GET = do_HEAD = _play

    def send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """Send a head and, except for HEAD, a body, as given: nothing is added or corrected."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()

    def log_message(self, *args: Any) -> None:
        pass


Step = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    """The server; runs inside `with`. `seen` holds every request in order of arrival."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[Seen] = []
        self.steps: dict[str, list[Step]] = {}
        self.guard = threading.Lock()

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hangs up is what many tests are about

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def url(self, path: str) -> str:
        return self.base + path

    def add(self, path: str, *steps: Step) -> str:
        """Let `path` play `steps`; return its URL."""
        self.steps[path] = list(steps)
        return self.url(path)

    def add_hf(self, repo: str, revision: str, file: str, body: bytes, *, gated: bool = False) -> None:
        """Serve one file as the Hugging Face Hub does, enough for huggingface_hub with HF_ENDPOINT=server.base."""
        digest = hashlib.sha256(body).hexdigest()
        head = {"X-Repo-Commit": revision, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(body))}
        step = ranged(body, etag=f'"{digest}"', headers=head)
        if gated:
            step = status(403, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        self.add(f"/{repo}/resolve/{revision}/{file}", step)

    def gets(self, path: str | None = None) -> list[Seen]:
        """Return the GET requests for `path` (None: for any)."""
        return [seen for seen in self.seen if seen.method == "GET" and path in (None, seen.path)]

    def step_for(self, handler: Handler) -> Step:
        path = handler.path.split("?")[0]
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self.guard:
            self.seen.append(Seen(handler.command, handler.path, headers))
            steps = self.steps.get(path, [status(404)])
            return steps.pop(0) if len(steps) > 1 else steps[0]


def ok(body: bytes, **headers: str) -> Step:
    """A whole body; knows nothing of ranges."""
    return lambda handler: handler.send(200, {"Content-Length": str(len(body)), **headers}, body)


def ranged(body: bytes, *, etag: str = '"v1"', headers: dict[str, str] | None = None) -> Step:
    """A body in whole or from Range on, where If-Range (if sent) is the ETag."""

    def play(handler: Handler) -> None:
        head = {"ETag": etag, "Accept-Ranges": "bytes", **(headers or {})}
        wanted = handler.headers.get("Range", "")
        if wanted.startswith("bytes=") and handler.headers.get("If-Range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            head["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            handler.send(206, {**head, "Content-Length": str(len(body) - start)}, body[start:])
        else:
            handler.send(200, {**head, "Content-Length": str(len(body))}, body)

    return play


def answer(code: int, headers: dict[str, str], body: bytes = b"") -> Step:
    """Exactly this, right or wrong; the connection is closed after it."""

    def play(handler: Handler) -> None:
        handler.send(code, headers, body)
        handler.close_connection = True

    return play


def status(code: int, *, headers: dict[str, str] | None = None) -> Step:
    """An error, or any other status without a body."""
    return lambda handler: handler.send(code, {"Content-Length": "0", **(headers or {})})


def redirect(location: str, *, code: int = 302) -> Step:
    return status(code, headers={"Location": location})


def drop(body: bytes, *, after: int, etag: str = '"v1"', **headers: str) -> Step:
    """Promise the whole body, send `after` bytes and hang up."""
    head = {"Content-Length": str(len(body)), "ETag": etag, **headers}
    return answer(200, {name: value for name, value in head.items() if value}, body[:after])


def reset(handler: Handler) -> None:
    """Answer with a TCP reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def drip(body: bytes, *, first: int, gate: threading.Event, reached: threading.Event | None = None) -> Step:
    """Send `first` bytes, say so, and send the rest only when the gate opens: as slow as the test wants."""

    def play(handler: Handler) -> None:
        with contextlib.suppress(OSError):
            handler.send(200, {"Content-Length": str(len(body)), "ETag": '"v1"'}, body[:first])
            if reached is not None:
                reached.set()
            gate.wait(20)
            handler.wfile.write(body[first:])

    return play
