"""Laws of a survey: one failure stops nobody, the report tells the whole file, and nothing of this machine is in it."""

from __future__ import annotations

import json
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import servers
import torch
from synthetic import NARROW, OFFICIAL, TINY, Shelf, official, ours, values, with_code

import svd_hub
from svd_hub import catalog, store, survey
from svd_hub.canonical import convert_file
from svd_hub.catalog import get_entry
from svd_hub.errors import OptionError
from svd_hub.survey import RESULTS, Finding, catalogue_patch, public, write_report

pytestmark = pytest.mark.filterwarnings("ignore::svd_hub.hub.LicenceWarning")
SENTINEL = "JANE-DOE"
GOOD = official(**NARROW)


def look(*names: str, **options: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in survey.survey(names, **options)}


@pytest.fixture
def shipped(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """The shelf's entries as the package's own catalogue would have them: no overlay."""
    real = catalog._file_tables

    def tables(path: Any) -> dict[str, dict[str, Any]]:
        found = real(path)
        if Path(str(path)).name == "catalog.toml":
            for key, over in real(shelf.overlay).items():
                found[key] |= {name: catalog._merge(found[key].get(name, {}), over[name], name) for name in over}
        return found

    monkeypatch.setattr(catalog, "_file_tables", tables)
    monkeypatch.delenv("SVD_HUB_CATALOG")
    return shelf


def layout(tensors: Mapping[str, torch.Tensor]) -> list[list[Any]]:
    return [[name, str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()]


# ---- what is found -------------------------------------------------------------------------------------------------


def test_a_file_that_fits(shipped: Shelf, server: servers.Server, tmp_path: Path) -> None:
    """What upstream's file held, as it was: the dtypes, the table and the prefix that a conversion takes away."""
    tensors = values({"depth": 18, "num_classes": 0, **NARROW}, half=True)
    renamed = {f"module.backbone.{name}": t for name, t in tensors.items()} | {
        "module.head.fc.weight": torch.zeros(9, 4)
    }
    torch.save({"state_dict": renamed, "meta": {"epoch": 3}}, tmp_path / "file.pth")
    body = (tmp_path / "file.pth").read_bytes()
    shipped.put_official(body, url=server.add("/r18.pth", servers.ok(body)), sha256="", size=0)
    os.environ.pop("SVD_HUB_MIRROR")
    found = look(OFFICIAL)[OFFICIAL]
    assert (found.result, found.error, found.cause) == ("ok", "", None)
    assert found.size == len(body)
    assert found.sha256 == get_sha256(body)
    assert found.upstream["tensors"] == layout({n.removeprefix("module."): t for n, t in renamed.items()})
    assert {row[1] for row in found.upstream["tensors"]} == {"float16", "float32", "int64"}
    assert (found.upstream["kind"], found.upstream["wrapper"], found.upstream["prefix"]) == (
        "zip", "state_dict", "module.",
    )  # fmt: skip
    assert found.renamed == len(tensors)
    assert list(found.dropped.values()) == [1]
    assert "9 classes" in next(iter(found.dropped))
    assert any("float16 tensors were cast" in note for note in found.notes)
    assert found.catalogue == {"sha256": "", "size": 0, "checked": "never", "overlay": False}
    assert found.report is not None
    assert len(found.report.matched) == len(tensors)
    again = look(OFFICIAL)[OFFICIAL]
    same = [f.as_dict() | {"seconds": 0} for f in (found, again)]
    assert same[0] == same[1], "the cache tells the same"
    trusted = f"no hash is known upstream: sha256 {get_sha256(body)} is trusted from this first use on"
    assert found.notes.count(trusted) == 1
    assert not any("check it against" in note for note in found.notes), "upstream's own link delivered it"
    assert len(server.gets()) == 1, "what is here costs no download"


def get_sha256(body: bytes) -> str:
    import hashlib

    return hashlib.sha256(body).hexdigest()


def test_where_a_file_came_from(shipped: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's place in public form; what this machine's people set up by its kind alone."""
    body, other = ours(TINY, seed=1), ours(TINY, seed=2)
    secret = server.add("/tiny.pth", servers.ok(body)).replace("127", "user:word@127") + "?token=t"
    shipped.put_tiny("local")
    shipped.put_tiny("linked", seed=1, source={"url": secret})
    shipped.put_tiny("mirrored", seed=2)
    shipped.mirror.joinpath("linked.pth").unlink()
    shipped.mirror.joinpath("mirrored.pth").unlink()
    assert look("local")["local"].source == "a file on this machine"
    assert look("linked")["linked"].source == server.url("/tiny.pth")
    monkeypatch.setenv("SVD_HUB_MIRROR", server.base)
    server.add("/mirrored/mirrored.pth", servers.ok(other))
    assert look("mirrored")["mirrored"].source == "a mirror"
    assert look("resnet3d18w16_lidc")["resnet3d18w16_lidc"].source == "bundled resnet3d18w16_lidc.safetensors"


def test_an_overlay_s_place_is_its_owner_s(shelf: Shelf, server: servers.Server) -> None:
    shelf.put_tiny(source={"url": server.add("/tiny.pth", servers.ok(ours(TINY)))}).unlink()
    found = look("tiny")["tiny"]
    assert (found.result, found.source) == ("ok", "a place of a catalogue overlay")
    assert found.catalogue["overlay"]


def test_every_result(shelf: Shelf) -> None:
    shelf.put_licence("Held-1.0", url="https://terms", forbids="selling it")
    shelf.put_tiny("held", licence="Held-1.0")
    shelf.put_tiny("good", seed=1)
    shelf.put_tiny("wrong", seed=2).write_bytes(b"something else")
    shelf.put_tiny("folder", seed=3, source={"kind": "folder", "url": "https://drive/folder?usp=sharing"}).unlink()
    shelf.put_tiny("gone", seed=4).unlink()
    names = ("held", "nobody", "wrong", "folder", "p3d63_coco", "gone", "resnet3d18w16_lidc", "good")
    found = look(*names)
    assert tuple(found) == names, "nothing stops the rest"
    results = {name: finding.result for name, finding in found.items()}
    assert results == {
        "held": "consent", "nobody": "failed", "wrong": "failed", "folder": "by hand", "p3d63_coco": "no weights",
        "gone": "failed", "resnet3d18w16_lidc": "bundled", "good": "ok",
    }  # fmt: skip
    assert set(results.values()) == set(RESULTS)
    for name, finding in found.items():
        assert (finding.report is not None) == (finding.cause is None) == (finding.error == "") == (name in LOADED)
        assert finding.seconds >= 0
    assert (found["held"].licence, found["held"].licence_url) == ("Held-1.0", "https://terms")
    assert "selling it" in found["held"].error
    assert found["folder"].next == "open <overlay>, fetch folder.pth, then svd-hub convert folder folder.pth"
    for name, step in {
        "held": 'accept_licence=True', "nobody": "svd-hub list", "wrong": "replace or remove <mirror>/wrong.pth",
        "p3d63_coco": "p3d63_coco", "gone": "put gone.pth by hand at <cache>/incoming/gone.pth",
        "resnet3d18w16_lidc": "", "good": "",
    }.items():  # fmt: skip
        assert step in found[name].next, found[name].next
        assert bool(found[name].next) == bool(step)
        assert found[name].error.endswith(found[name].next), "the error's own words"
    assert (found["wrong"].sha256, found["wrong"].size) == (get_sha256(b"something else"), 14), "what came instead"
    assert found["wrong"].catalogue["sha256"] == get_sha256(ours(TINY, seed=2))
    assert "nearest" in found["nobody"].error
    store.incoming_path(get_entry("folder")).write_bytes(ours(TINY, seed=3))
    again = look("folder", "held", accept_licence=True)
    assert {finding.result for finding in again.values()} == {"ok"}
    assert again["folder"].next == ""


LOADED = ("resnet3d18w16_lidc", "good")


def test_a_file_of_another_layout_is_told_whole(shelf: Shelf) -> None:
    """The catalogue's own mistake is repaired from the report: what the file is and all that is in it."""
    tensors = values({"depth": 34, **NARROW}, half=True)
    body = official(depth=34, **NARROW)
    shelf.put_official(body)
    found = look(OFFICIAL)[OFFICIAL]
    assert found.result == "failed"
    assert "depth 34, not 18" in found.error
    assert (found.sha256, found.size) == (get_sha256(body), len(body))
    assert found.upstream["tensors"] == layout(tensors)
    assert found.upstream["wrapper"] == "state_dict"


def test_an_error_that_nobody_foresaw_stops_nobody(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.put_tiny()
    real = survey.load

    def load(name: str, **options: Any) -> Any:
        if name == "tiny":
            raise KeyError(f"{Path.home()}/secret")
        return real(name, **options)

    monkeypatch.setattr(survey, "load", load)
    found = look("tiny", "resnet3d18w16_lidc")
    assert [finding.result for finding in found.values()] == ["failed", "bundled"]
    assert found["tiny"].error == "unexpected KeyError: '<home>/secret'"


def test_ctrl_c_ends_it(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.put_tiny("one")
    shelf.put_tiny("two", seed=1)
    told: list[tuple[int, int, str]] = []

    def progress(*step: Any) -> None:
        told.append(step)
        if step[0] == 2:
            raise KeyboardInterrupt

    running = survey.survey(["one", "two"], progress=progress)
    assert next(running).name == "one"
    with pytest.raises(KeyboardInterrupt):
        next(running)
    assert told == [(1, 2, "one"), (2, 2, "two")]


# ---- what may be shown ---------------------------------------------------------------------------------------------


def test_the_report_holds_nothing_of_this_machine(
    server: servers.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every folder, address and secret of this machine has the sentinel in it; every kind of failure is met."""
    home = tmp_path / SENTINEL / "with a space"
    for folder in ("cache", "shelf", "here"):
        (home / folder).mkdir(parents=True)
    shelf = Shelf(home / "shelf")
    for name, value in {
        "HOME": home, "SVD_HUB_HOME": home / "cache", "SVD_HUB_CATALOG": shelf.overlay, "SVD_HUB_MIRROR": shelf.mirror,
        "HF_TOKEN": f"hf_{SENTINEL}", "HTTPS_PROXY": f"http://u:{SENTINEL}@proxy.{SENTINEL}.org:3128",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(home / "here")
    shelf.put_tiny("good")
    shelf.put_tiny("html", seed=1).write_bytes(servers.QUOTA_PAGE)
    shelf.put_tiny("wrong", seed=2).write_bytes(b"x")
    shelf.put_tiny("short", source={"sha256": "", "size": 0}).write_bytes(official(**NARROW)[:5000])
    shelf.put_tiny("code", source={"sha256": "", "size": 0}).write_bytes(with_code(home / "owned"))
    shelf.put_tiny("layout", source={"sha256": "", "size": 0}).write_bytes(GOOD)
    shelf.put_tiny(
        "folder", seed=3, source={"kind": "folder", "url": f"https://u:{SENTINEL}@drive/f?k={SENTINEL}"}
    ).unlink()
    url = server.add(f"/{SENTINEL}/gone.pth", servers.status(404)).replace("127", f"u:{SENTINEL}@127")
    shelf.put_tiny("gone", seed=4, source={"url": url}).unlink()
    shelf.put_tiny("unreadable", seed=5).unlink()
    (shelf.mirror / "unreadable.pth").mkdir()
    shelf.put_licence("Held-1.0")
    shelf.put_tiny("held", seed=6, licence="Held-1.0")
    found = look(*shelf.tables, f"{home}/x.safetensors", f"~{SENTINEL}/x")
    monkeypatch.setenv("SVD_HUB_OFFLINE", "1")
    found |= {"offline": look("gone")["gone"]}
    (home / "file").touch()
    monkeypatch.setenv("SVD_HUB_HOME", str(home / "file" / "cache"))
    found |= {"no home": look("good")["good"]}
    monkeypatch.setenv("SVD_HUB_MIRROR", f"https://u:{SENTINEL}@mirror.{SENTINEL}.org/{SENTINEL}")
    found |= {"no mirror": look("good")["good"]}
    monkeypatch.setenv("SVD_HUB_MIRROR", f"ftp://{SENTINEL}")
    found |= {"no such mirror": look("good")["good"]}
    assert [name for name, finding in found.items() if finding.cause is None] == ["good"]
    told = " ".join(str(finding.cause) for finding in found.values())
    assert SENTINEL in told, "this machine's own eyes see all of it"
    write_report(tmp_path / "report.json", found.values(), asked=20)
    text = (tmp_path / "report.json").read_text()
    assert SENTINEL.lower() not in text.lower()
    for private in (tmp_path, "with a space", server.base, f":{server.server_address[1]}", "u:"):
        assert str(private) not in text
    assert "<cache>/incoming/gone.pth" in found["gone"].error, "and yet it can be understood"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/x y", "<path>"),
        ("/data/x y: no such file. Next: replace it", "<path>: no such file. Next: replace it"),
        ("cannot read /data/Doe, Jane/CT 1.pth: denied", "cannot read <path>: denied"),
        ("/data/Dr. Doe/a (1) b.pth is no checkpoint. Next: info", "<path>. Next: info"),
        ("/data/scan: Doe/x: no", "<path>: no"),
        ("/data/x y: see https://h.org/a/b for more", "<path>: see https://h.org/a/b for more"),
        ("in '/data/x': no", "in '<path>': no"),
        ("in '/data/x y, z: (1)': no", "in '<path>': no"),
        ('in "/data/o\'neil x": no', 'in "<path>": no'),
        ("in '/data/o'neil x': no", "in '<path>': no"),
        ("load('x', weights='/data/a b'), or", "load('x', weights='<path>'), or"),
        ("/data/x y\nnext line", "<path>\nnext line"),
        ("at (/data/x.pth).", "at (<path>)."),
        ("error:/data/x", "error:<path>"),
        ("file=/data/x", "file=<path>"),
        (r"C:\Users\jane\x y.pth: no", "<path>: no"),
        (r"\\server\share\x", "<path>"),
        ("~/x: see ~jane/x", "<path>"),
        ("file:///data/x", "<path>"),
        ("from file:///data/x y: no", "from <path>: no"),
        ("https://host.org/a/b.pth: HTTP 404", "https://host.org/a/b.pth: HTTP 404"),
        ("huggingface.co/a/b@0123/c.pth", "huggingface.co/a/b@0123/c.pth"),
        ("1/2 of 3 / 4", "1/2 of 3 / 4"),
    ],
)
def test_paths_are_told_from_addresses(text: str, shown: str) -> None:
    assert public(text) == shown


def test_names_of_this_machine_are_replaced(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("SVD_HUB_HOME", str(tmp_path / "link"))
    monkeypatch.setenv("SVD_HUB_MIRROR", "https://user:word@mirror.local/files/?sig=1")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdef")
    monkeypatch.setenv("SVD_HUB_OFFLINE", "1")
    for text, shown in (
        (f"{tmp_path}/link/a and {tmp_path}/real/b", "<SVD_HUB_HOME>/a and <SVD_HUB_HOME>/b"),
        ("https://mirror.local/files/a/b.pth", "<SVD_HUB_MIRROR>/a/b.pth"),
        ("mirror.local refused hf_abcdef", "<SVD_HUB_MIRROR> refused <HF_TOKEN>"),
        ("1 of 1", "1 of 1"),
        (f"https://host{tmp_path}/link", f"https://host{tmp_path}/link"),
    ):
        assert public(text).replace("<cache>", "<SVD_HUB_HOME>") == shown


# ---- the report ----------------------------------------------------------------------------------------------------


def test_the_report(shelf: Shelf, tmp_path: Path) -> None:
    shelf.put_tiny()
    shelf.put_tiny("gone", seed=1).unlink()
    path = tmp_path / "report.json"
    found: list[Finding] = []
    write_report(path, found, asked=2)
    assert json.loads(path.read_text())["entries"] == []
    for finding in survey.survey(["tiny", "gone"]):
        found.append(finding)
        write_report(path, found, asked=2)
        assert json.loads(path.read_text())["done"] == len(found)
    told = json.loads(path.read_text())
    assert (told["format"], told["svd_hub"], told["asked"]) == (1, svd_hub.__version__, 2)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", told["date"])
    assert told["results"] == {"ok": 1, "failed": 1}
    assert [entry["name"] for entry in told["entries"]] == ["tiny", "gone"]
    assert sorted(told["entries"][0]["upstream"]["tensors"]) == sorted(layout(values(TINY)))
    assert not {"report", "cause"} & told["entries"][0].keys()
    assert list(tmp_path.glob(".report*")) == [], "written beside and moved"
    with pytest.raises(OptionError, match=r"--report .*none.* cannot be written: No such file.*Next: "):
        write_report(tmp_path / "none" / "report.json", found, asked=2)


def test_the_patch_is_an_overlay(
    shipped: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is found can be laid over the catalogue as it is, and then the entry is that file and no other."""
    monkeypatch.delenv("SVD_HUB_MIRROR")

    def link(name: str, body: bytes, **source: Any) -> dict[str, Any]:
        return {"url": server.add(f"/{name}", servers.ok(body)), **source}

    shipped.put_official(GOOD, **link("r18", GOOD), sha256=get_sha256(GOOD)[:8], size=0)
    shipped.put_tiny("known", checked="file", checked_on="2026-01-31", source=link("known", ours(TINY)))
    unknown = {"sha256": "", "size": 0, "file": "new.pth"}
    shipped.put_tiny("new.name@2", seed=1, source=link("new", ours(TINY, seed=1), **unknown))
    shipped.put_tiny("wrong", seed=2, source=link("wrong", b"x"))
    found = look(OFFICIAL, "known", "new.name@2", "wrong", "resnet3d18w16_lidc")
    before = get_entry(OFFICIAL)
    write_report(tmp_path / "report.json", found.values(), asked=5)
    told = json.loads((tmp_path / "report.json").read_text())
    tables = tomllib.loads(told["catalogue_patch"])["entry"]
    assert set(tables) == {OFFICIAL, "new.name@2"}, "what is known already is no news"
    patch = tmp_path / "patch.toml"
    patch.write_text(told["catalogue_patch"])
    monkeypatch.setenv("SVD_HUB_CATALOG", str(patch))
    entry = get_entry(OFFICIAL)
    assert (entry.source.sha256, entry.source.size) == (get_sha256(GOOD), len(GOOD))
    assert (entry.checked, entry.checked_on, entry.overlay) == ("file", told["date"], str(patch))
    assert (entry.summary, entry.source.id, entry.options) == (before.summary, before.source.id, before.options)
    monkeypatch.setenv("SVD_HUB_OFFLINE", "1")
    assert {finding.result for finding in look(OFFICIAL, "new.name@2").values()} == {"ok"}, "it is the one in the cache"


@pytest.mark.parametrize("where", ["incoming", "mirror folder", "mirror", "convert", "convert here"])
@pytest.mark.parametrize("digits", [0, 8])
def test_what_no_link_delivered_is_not_in_the_patch(
    shipped: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str, digits: int
) -> None:
    """A file that somebody put here says nothing of upstream's, in this run and in every later one."""
    path = shipped.put_tiny(source={"sha256": get_sha256(ours(TINY))[:digits], "size": 0})
    source = "a file on this machine"
    if where == "mirror":
        server.add("/tiny.pth", servers.ok(path.read_bytes()))
        monkeypatch.setenv("SVD_HUB_MIRROR", server.base)
        source = "a mirror"
    elif where != "mirror folder":
        monkeypatch.delenv("SVD_HUB_MIRROR")
        monkeypatch.chdir(tmp_path)
        target = store.incoming_path(get_entry("tiny")) if where == "incoming" else tmp_path / "mine.pth"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    if where.startswith("convert"):
        convert_file("tiny", Path("mine.pth") if where == "convert here" else tmp_path / "mine.pth")
    for _ in range(2):
        found = look("tiny")["tiny"]
        assert (found.result, found.source) == ("ok", source)
        assert "entry" not in tomllib.loads(catalogue_patch([found], "2026-01-31"))
        part = f"only {get_sha256(ours(TINY))[:8]!r} of its hash" if digits else "nothing"
        assert f"it came from {source}, no link delivered it, and {part} existed to check it against" in found.notes
        assert sum("is trusted from this first use on" in note for note in found.notes) == 1


def test_a_host_that_cannot_be_reached_is_tried_once(shelf: Shelf, server: servers.Server) -> None:
    """Refused once is told at once by the others of that host; a 404 tells nothing of them, nor do other hosts."""
    os.environ.pop("SVD_HUB_MIRROR")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: every connection is refused
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for seed, (name, url) in enumerate(
            {
                "gone": server.add("/gone", servers.status(404)).replace("127.0.0.1", "localhost"),
                "there": server.add("/there", servers.ok(ours(TINY, seed=1))).replace("127.0.0.1", "localhost"),
                "first": f"{dead}/first",
                "second": f"{dead}/second",
                "by_hand": f"{dead}/by_hand",
            }.items()
        ):
            shelf.put_tiny(name, seed=seed, source={"url": url})
        store.incoming_path(get_entry("by_hand")).parent.mkdir(parents=True)
        store.incoming_path(get_entry("by_hand")).write_bytes(ours(TINY, seed=4))
        found = look("gone", "there", "first", "second", "by_hand")
        results = [finding.result for finding in found.values()]
        assert results == ["failed", "ok", "failed", "failed", "ok"]
        assert "refused" in str(found["first"].cause)
        told = str(found["second"].cause)
        assert "second.pth of 'second' was not tried: 127.0.0.1 could not be reached a moment ago. Next: " in told
        assert "svd-hub fetch second" in found["second"].next
        assert "refused" in str(look("second")["second"].cause), "the next survey tries again"


def test_what_an_overlay_changed_is_not_in_the_patch(
    shelf: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SVD_HUB_MIRROR")
    shelf.put_official(GOOD, url=server.add("/r18.pth", servers.ok(GOOD)), sha256="", size=0)
    found = look(OFFICIAL)
    assert found[OFFICIAL].result == "ok"
    assert "entry" not in tomllib.loads(catalogue_patch(found.values(), "2026-01-31"))
