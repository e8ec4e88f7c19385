"""Laws of svd_hub.store.places: paths stay inside the cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers_store import ROOT, SHA, bring, by_hand, make

from svd_hub import store
from svd_hub.errors import OptionError


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store.cache_dir() == tmp_path / "home"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SVD_HUB_HOME", "here")
    assert store.cache_dir() == tmp_path / "here"
    monkeypatch.delenv("SVD_HUB_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.cache_dir() == tmp_path / "xdg" / "svd_hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.cache_dir() == tmp_path / ".cache" / "svd_hub"


@pytest.mark.parametrize("name", ["..", ".hidden", "a/b", "a\\b", "", "a b", "a\n", "/etc"])
def test_names_lead_nowhere_else(name: str) -> None:
    with pytest.raises(OptionError), store.lock(make(name)):
        pass
    with pytest.raises(OptionError):
        store.cached(make(), converter_version=name)
    for sha in (name or "Z", SHA.upper(), SHA + "0"):
        with pytest.raises(OptionError):
            store.expected_sha256(make(sha256=sha))


def test_file_names_lead_nowhere_else(tmp_path: Path) -> None:
    for file in ("..", ".", "", "a\\b"):
        with pytest.raises(OptionError):
            store.fetch(make(file=file), tmp_path)


def test_bundled_path_is_inside_the_package() -> None:
    assert store.bundled_path("x.safetensors") == ROOT / "svd_hub" / "weights" / "x.safetensors"


def test_a_cache_behind_a_link_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("SVD_HUB_HOME", str(tmp_path / "link"))
    by_hand(tmp_path / "link")
    assert bring(make()).path.is_file()
    assert len(store.clean()) == 1


def test_imports_are_light() -> None:
    code = "import sys, svd_hub.store; print(sorted({'torch', 'huggingface_hub', 'rich', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
