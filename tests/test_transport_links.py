"""Laws of svd_hub.transport.links: what a mirror and a file id may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from svd_hub import transport
from svd_hub.errors import OptionError


def test_gdrive_url() -> None:
    assert transport.gdrive_url("1-a_B") == (
        "https://drive.usercontent.google.com/download?id=1-a_B&export=download&confirm=t"
    )
    assert transport.public_url(transport.gdrive_url("abc")).endswith("/download?id=abc")


@pytest.mark.parametrize("file_id", ["", "a b", "a&b=c", "../x", "a/b", "a\n"])
def test_gdrive_id_is_checked(file_id: str) -> None:
    with pytest.raises(OptionError, match="file id"):
        transport.gdrive_url(file_id)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", None),
        ("/srv/mirror", Path("/srv/mirror")),
        ("file:///srv/a%20b", Path("/srv/a b")),
        ("file://localhost/srv", Path("/srv")),
        ("https://host/base", "https://host/base"),
    ],
)
def test_mirror(monkeypatch: pytest.MonkeyPatch, value: str, expected: Path | str | None) -> None:
    monkeypatch.setenv("SVD_HUB_MIRROR", value)
    assert transport.mirror() == expected


@pytest.mark.parametrize("value", ["ftp://host/x", "s3://bucket", "file://other/srv"])
def test_mirror_of_another_kind(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SVD_HUB_MIRROR", value)
    with pytest.raises(OptionError, match="SVD_HUB_MIRROR"):
        transport.mirror()


def test_mirror_urls() -> None:
    assert transport.mirror_urls("https://h/base/?key=1", "net@2", "a b.pth") == [
        "https://h/base/net%402/a%20b.pth?key=1",
        "https://h/base/a%20b.pth?key=1",
    ]
