"""What the tests of store and transport share: an entry, its bytes, and what the hub does."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest

from svd_hub import store
from svd_hub.catalog import Entry, Source

ROOT = Path(__file__).resolve().parents[1]
BODY = random.Random(0).randbytes(200_000)
SHA = hashlib.sha256(BODY).hexdigest()
OTHER = random.Random(1).randbytes(200_000)
VERSION = "test-1"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make(name: str = "net", **source: Any) -> Entry:
    given = {
        "kind": "url",
        "file": "model.pth",
        "url": "http://127.0.0.1:9/model.pth",
        "sha256": SHA,
        "size": len(BODY),
    }
    return Entry(
        name=name, summary="a test", architecture="none", status="official", source=Source(**{**given, **source})
    )


def convert(path: Path) -> bytes:
    return b"converted " + hashlib.sha256(path.read_bytes()).digest() + b"." * 5000


def bring(entry: Entry, version: str = VERSION) -> store.Local:
    """What the hub does, without a network."""
    if (local := store.cached(entry, converter_version=version)) is not None:
        return local
    with store.lock(entry):
        if (local := store.cached(entry, converter_version=version)) is not None:
            return local
        with store.workdir() as folder:
            fetched = store.fetch(entry, folder, progress=False)
            file = folder / "canonical.safetensors"
            file.write_bytes(convert(fetched.path))
            return store.publish(entry, file, converter_version=version, fetched=fetched)


def by_hand(home: Path, body: bytes = BODY, file: str = "model.pth") -> Path:
    path = home / "incoming" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)
    return path


def fails(entry: Entry, kind: type[Exception], *words: object) -> str:
    """Hold what every failed fetch owes: the error names the words and the next step, and no work is left."""
    with pytest.raises(kind) as caught:
        bring(entry)
    told = str(caught.value)
    assert all(str(word) in told for word in (*words, "Next: ")), told
    tmp = store.cache_dir() / "tmp"
    assert not tmp.is_dir() or list(tmp.iterdir()) == []
    assert store.usage() == []
    return told
