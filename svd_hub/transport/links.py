"""Links: how they may be shown, and those of Google Drive and of mirrors. Opens nothing."""

from __future__ import annotations

import os
import re
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from ..errors import OptionError


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
