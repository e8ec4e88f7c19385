"""Laws of consent: nothing moves before it, it is given once per licence, and no gate stands where none is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import servers
import torch
from synthetic import TINY, Shelf, ours, values

import svd_hub
from svd_hub import consent, hub, store
from svd_hub.catalog import get_entry
from svd_hub.errors import LicenceError, OptionError

ROOT = Path(__file__).resolve().parents[1]
NC, OTHER = "Held-NC-1.0", "Held by the University (ND)"
SETTING = "SVD_HUB_ACCEPT_LICENCE"


@pytest.fixture
def held(shelf: Shelf) -> Shelf:
    """Two entries under one licence that asks, one under another, one under a licence that does not."""
    shelf.put_licence(NC, url="https://terms.example/nc", forbids="selling it")
    shelf.put_licence(OTHER, url="https://terms.example/nd", forbids="changing it")
    shelf.put_licence("Open-1.0", consent=False)
    for seed, (name, licence) in enumerate({"one": NC, "two": NC, "three": OTHER, "open": "Open-1.0"}.items()):
        shelf.put_tiny(name, seed=seed, licence=licence)
    return shelf


def loads(name: str, **options: Any) -> bool:
    """True where it loads and is what it should be, False where consent is asked for."""
    try:
        state = svd_hub.load(name, progress=False, **options).state_dict()
    except LicenceError:
        return False
    want = values(TINY, seed=["one", "two", "three", "open"].index(name))
    assert all(torch.equal(state[key], want[key]) for key in want)
    return True


def records() -> list[Path]:
    return sorted((store.cache_dir() / "consent").glob("*"))


# ---- the gate ------------------------------------------------------------------------------------------------------


def test_nothing_is_fetched_before_consent(
    held: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SVD_HUB_MIRROR")
    body = ours(TINY)
    held.put_tiny("one", licence=NC, source={"url": server.add("/one.pth", servers.ok(body))})
    with pytest.raises(LicenceError) as caught:
        svd_hub.load("one")
    told = str(caught.value)
    for words in (
        *("'one'", NC, f"the terms {NC}", "https://terms.example/nc", "it forbids: selling it", "Next: "),
        *("accept_licence=True", "svd-hub fetch one --accept-licence", f"{SETTING}={NC}", "once per licence"),
    ):
        assert words in told
    assert server.seen == []
    assert store.usage() == records() == []
    assert loads("one", accept_licence=True)
    assert len(server.gets()) == 1


@pytest.mark.usefixtures("held")
def test_consent_is_remembered_per_licence() -> None:
    assert not loads("one")
    assert loads("one", accept_licence=True)
    assert loads("one")
    assert loads("two"), "the same licence"
    assert not loads("three"), "another one"
    (path,) = records()
    told = json.loads(path.read_text())
    assert (told["licence"], told["url"], told["first_for"]) == (NC, "https://terms.example/nc", "one")
    before = path.read_bytes()
    assert loads("two", accept_licence=True)
    assert path.read_bytes() == before, "what is given is not given again"
    assert loads("three", accept_licence=True)
    assert loads("three")
    assert len(records()) == 2


@pytest.mark.usefixtures("held")
def test_cached_weights_stand_behind_the_gate_too() -> None:
    assert loads("one", accept_licence=True)
    for path in records():
        path.unlink()
    assert not loads("one")


@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("held")
def test_no_gate_where_none_is_asked() -> None:
    assert loads("open")
    assert loads("open", accept_licence=True)
    assert records() == [], "there was nothing to agree to"
    assert svd_hub.load("one", weights=None).num_classes == 5


def test_a_file_of_one_s_own_needs_no_consent(held: Shelf, tmp_path: Path) -> None:
    assert loads("one", weights=held.mirror / "one.pth")
    saved = svd_hub.save(svd_hub.load("one", weights=held.mirror / "one.pth"), tmp_path / "mine.safetensors")
    assert loads("one", weights=saved)
    assert svd_hub.load(saved).entry.licence == NC, "its licence goes with it"
    assert records() == []


@pytest.mark.usefixtures("held")
def test_terms_line() -> None:
    line = consent.terms_line(get_entry("one"))
    assert line == f"{NC} (the terms {NC}) asks for your consent, https://terms.example/nc; it forbids: selling it"
    assert consent.terms_line(get_entry("open")) == ""
    assert consent.terms_line(get_entry("resnet3d18_imagenet")) == ""


# ---- the environment -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("held")
def test_consent_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, f" {OTHER} ,, {NC},")
    assert loads("one")
    assert loads("three")
    assert loads("one", accept_licence=True)
    assert records() == [], "the setting is no record"
    monkeypatch.setenv(SETTING, OTHER)
    assert not loads("one")
    assert loads("three")
    monkeypatch.setenv(SETTING, " ")
    assert not loads("three")


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("word", ["Held-NC-1.1", "Open-1.0", NC.lower(), "1"])
def test_a_setting_that_names_no_such_licence(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv(SETTING, f"{NC},{word}")
    for accepted in (False, True):
        with pytest.raises(OptionError, match=rf"{SETTING} names '{word}'.*nearest: .*allowed: .*{NC}"):
            svd_hub.load("one", accept_licence=accepted)
    assert loads("open"), "who asks for nothing is not stopped by it"


# ---- the record ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("held")
def test_consent_survives_the_cleaning_of_the_cache() -> None:
    assert loads("one", accept_licence=True)
    done = subprocess.run(
        [sys.executable, "-m", "svd_hub", "cache", "--clean"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert store.usage() == []
    assert loads("one")


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "cut off": b'{"licence": "Held-NC',
    "no text": b"\xff\xfe\x00",
    "no table": b'["Held-NC-1.0"]',
    "of another licence": json.dumps({"licence": OTHER}).encode(),
    "too deep": b"[" * 100_000,
}


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_record_is_no_consent(damage: str) -> None:
    assert loads("one", accept_licence=True)
    (path,) = records()
    path.write_bytes(DAMAGED[damage])
    assert not loads("one")
    assert loads("one", accept_licence=True)
    assert loads("two"), "written anew"


@pytest.mark.usefixtures("held")
def test_licences_that_a_file_system_would_confuse() -> None:
    names = ["A/B", "A_B", "A B", "..", ".", "../A_B", "A\\B", "Ä", "a" * 60]
    paths = {consent._path(name) for name in names}
    assert len({str(path).lower() for path in paths}) == len(names)
    assert {path.parent for path in paths} == {store.cache_dir() / "consent"}
    assert not any(path.name.startswith(".") for path in paths)


@pytest.mark.usefixtures("held")
def test_where_nothing_can_be_written_it_holds_for_the_call(home: Path) -> None:
    assert loads("one", accept_licence=True)
    (path,) = records()
    path.unlink()
    path.parent.rmdir()
    (home / "consent").touch()  # a file where the folder should be
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert svd_hub.load("one", accept_licence=True).num_classes == 5
    (warning,) = told
    assert warning.category is hub.LicenceWarning
    for words in (NC, "for this call alone", str(home / "consent"), "Next: ", f"{SETTING}={NC}"):
        assert words in str(warning.message)
    assert warning.filename == __file__, "it points at the caller"
    assert not loads("one")


@pytest.mark.usefixtures("held")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_shared_cache_that_is_read_only(home: Path) -> None:
    assert loads("one", accept_licence=True)
    for path in records():
        path.unlink()
    (home / "consent").chmod(0o500)
    try:
        with pytest.warns(hub.LicenceWarning, match="for this call alone"):
            assert loads("one", accept_licence=True)
    finally:
        (home / "consent").chmod(0o700)


AGREE = """
import sys, time
from pathlib import Path
from svd_hub import consent
from svd_hub.catalog import get_entry
entry = get_entry("one")
Path(sys.argv[1], sys.argv[2]).touch()
while not Path(sys.argv[1], "go").exists():
    time.sleep(0.001)
consent.check(entry, accepted=True)
consent.check(entry, accepted=False)
assert "torch" not in sys.modules
"""


@pytest.mark.usefixtures("held")
def test_processes_that_agree_at_once(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    command = [sys.executable, "-W", "error", "-c", AGREE, str(gate)]
    children = [
        subprocess.Popen([*command, str(i)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for i in range(6)
    ]  # fmt: skip
    while len(list(gate.iterdir())) < len(children) and all(child.poll() is None for child in children):
        pass
    (gate / "go").touch()
    told = [child.communicate(timeout=60)[1] for child in children]
    assert [child.returncode for child in children] == [0] * 6, told
    (path,) = records()
    assert json.loads(path.read_text())["licence"] == NC
    assert loads("one")


# ---- no licence at all ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_unstated_licence_is_told_once(shelf: Shelf) -> None:
    shelf.put_tiny("one", licence="not stated", link="https://authors")
    shelf.put_tiny("two", licence="not stated")
    shelf.put_tiny("free")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for name in ("one", "one", "free", "two"):
            svd_hub.load(name)
    assert [w.category for w in told] == [hub.LicenceWarning] * 2
    assert "'one'" in str(told[0].message)
    assert "https://authors" in str(told[0].message)
    assert told[0].filename == __file__, "it points at the caller"
    assert records() == []
