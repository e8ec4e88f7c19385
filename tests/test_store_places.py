"""Laws of svd_hub.store.places: paths stay inside the cache."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import servers
from helpers_store import BODY, COMMIT, OTHER, ROOT, SHA, bring, by_hand, fails, make

from svd_hub import store
from svd_hub.catalog import Entry
from svd_hub.errors import DownloadError, IntegrityError, OptionError
from svd_hub.store import places


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


@pytest.fixture
def clash(monkeypatch: pytest.MonkeyPatch) -> Entry:
    """An entry whose file has the name of another's, from another place, in a catalogue of its own."""
    mine = make("mine", kind="hf", repo="org/a", revision=COMMIT, url="")
    others = {"other": make("other", kind="hf", repo="org/b", revision=COMMIT, url=""), "mine": mine}
    monkeypatch.setattr(places, "all_entries", lambda: others)
    return mine


def test_a_name_that_others_use_is_looked_for_in_the_entry_s_own_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clash: Entry
) -> None:
    monkeypatch.setenv("SVD_HUB_OFFLINE", "1")
    monkeypatch.setenv("SVD_HUB_MIRROR", str(tmp_path / "mirror"))
    by_hand(home, OTHER)
    (tmp_path / "mirror" / "mine").mkdir(parents=True)
    (tmp_path / "mirror" / "model.pth").write_bytes(OTHER)
    own = home / "incoming" / "mine" / "model.pth"
    fails(clash, DownloadError, f"by hand at {own} ", "a folder that has mine/model.pth)")
    assert store.incoming_path(clash) == own
    assert places.local_places(clash) == [own, tmp_path / "mirror" / "mine" / "model.pth"]
    (tmp_path / "mirror" / "mine" / "model.pth").write_bytes(BODY)
    assert bring(clash).source == str(tmp_path / "mirror" / "mine" / "model.pth")
    store.clean()
    by_hand(home, file="mine/model.pth")
    assert bring(clash).source == str(own)


def test_a_name_that_others_use_on_a_mirror(
    server: servers.Server, monkeypatch: pytest.MonkeyPatch, clash: Entry
) -> None:
    monkeypatch.setenv("SVD_HUB_MIRROR", server.base)
    server.add("/model.pth", servers.ok(OTHER))
    server.add("/mine/model.pth", servers.ok(BODY))
    assert bring(clash).source == server.url("/mine/model.pth")
    assert server.gets("/model.pth") == []


def test_a_name_of_one_file_alone_has_both_places(home: Path, clash: Entry) -> None:
    """Two entries may be made of one file: same place upstream, same name."""
    others = places.all_entries()
    others["other"] = dataclasses.replace(clash, name="other")
    assert store.incoming_path(clash) == home / "incoming" / "model.pth"
    assert places.local_places(clash) == [home / "incoming" / "mine" / "model.pth", home / "incoming" / "model.pth"]


@pytest.mark.parametrize("folder", ["", "mine/"])
def test_where_another_entry_s_file_belongs(home: Path, folder: str) -> None:
    by_hand(home, OTHER, f"{folder}model.pth")
    fails(make("mine"), IntegrityError, f"put it into {home / 'incoming' / '<that entry>' / 'model.pth'}")


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
