"""Laws of the catalogue: every entry is whole and builds, an overlay merges and is named, a fault names its place."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from synthetic import keys

import svd_hub
from svd_hub import catalog, models, origins
from svd_hub.catalog import Entry, Licence, all_entries, all_licences, get_entry, list_entries
from svd_hub.entry import INFLATIONS
from svd_hub.errors import OptionError, SvdHubError, UnknownEntryError
from svd_hub.preprocess import Preprocess
from svd_hub.skeleton import shapes, skeleton

ENTRIES = sorted(catalog._read("")[0])
LICENCES = sorted(catalog._read("")[1])
NETWORKS = [name for name in ENTRIES if get_entry(name).architecture]
TABLES = tomllib.loads(Path(catalog.__file__).with_name("catalog.toml").read_text(encoding="utf-8"))
PAPER = {
    *("resnet3d18_imagenet", "resnet3d34_imagenet", "resnet3d50_imagenet", "mp3d63_coco", "p3d63_coco", "p3d18_coco"),
    *("resnet3d18_coco", "resnet3d50_coco", "resnet3dv1c18_coco", "mp3d63_coco_detector"),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Entry:
    return get_entry(request.param)


@pytest.fixture(params=ENTRIES)
def entry(request: pytest.FixtureRequest) -> Entry:
    return get_entry(request.param)


def test_the_networks_of_the_paper_are_there() -> None:
    assert set(ENTRIES) >= PAPER
    weights = {name for name in PAPER if get_entry(name).loadable}
    assert weights == {"resnet3d18_imagenet", "mp3d63_coco", "mp3d63_coco_detector"}


# ---- every entry ---------------------------------------------------------------------------------------------------


def test_entry_builds_by_its_options(network: Entry) -> None:
    with torch.device("meta"):
        model = models.build(network.architecture, network.options)
    assert model.num_classes == network.options["num_classes"]
    assert origins.get_origin(network.origin)
    if network.classes:
        assert len(network.classes) == len(set(network.classes)) == model.num_classes
    if network.task == "classification":
        assert model.num_classes > 0


def test_entry_states_its_parameters(network: Entry) -> None:
    """As `load` builds it by default; a plan without weights may leave it open."""
    model = skeleton(network.architecture, {"num_classes": 0, **network.options})
    count = sum(parameter.numel() for parameter in model.parameters())
    assert network.parameters in ((count,) if network.loadable else (count, 0))


STORED = [name for name in NETWORKS if get_entry(name).stored]


@pytest.mark.parametrize("name", STORED)
def test_the_stored_form_is_another_form_of_the_same_network(name: str) -> None:
    """Same names but for the head's; kernels of another rank just where a rule says how they are inflated."""
    entry = get_entry(name)
    same = [key for key, value in entry.stored.items() if entry.options.get(key) == value]
    assert same == [], "that is no difference"
    network = skeleton(entry.architecture, {"num_classes": 0, **entry.options})
    stored, built = (
        shapes(skeleton(entry.architecture, entry.stored_options).state_dict()),
        shapes(network.state_dict()),
    )
    assert all(name.startswith(network.head) for name in stored.keys() ^ built.keys())
    flat = any(len(stored[name]) == 4 < len(built[name]) for name in stored.keys() & built.keys())
    assert flat == bool(entry.inflation)


def test_entry_has_a_whole_card(entry: Entry) -> None:
    card = entry.card()
    assert card == svd_hub.get_entry(entry.name).card()
    for words in (f"| licence | {entry.licence}", f"| status | {entry.status}: ", f"| checked | {entry.checked}"):
        assert words in card
    assert (f'`svd_hub.load("{entry.name}")`' in card) == bool(entry.architecture)
    assert "Not a medical device" in card
    assert entry.reason in card
    for note in entry.notes:
        assert note in card
    if entry.loadable:
        assert entry.source.file in card
        assert "## Preprocessing" in card, "weights without their preprocessing"
        assert all(line in card for line in entry.preprocess.describe().splitlines())
    for metric in entry.metrics:
        assert f"{metric.value:g}" in card


def test_entry_is_consistent(entry: Entry) -> None:
    source = entry.source
    assert entry.loadable == (source.kind != "none")
    assert entry.loadable != bool(entry.reason)
    if entry.architecture:
        assert isinstance(entry.preprocess, Preprocess)
    assert re.fullmatch(r"[0-9a-f]{0,64}", source.sha256)
    assert entry.outputs or not entry.architecture
    if entry.loadable:
        assert entry.backbone, "nobody finds it by --compatible"
        assert "modality" in entry.preprocess_data, "weights without the kind of image they know"
    if entry.terms is not None and entry.terms.consent and entry.status in ("official", "converted"):
        assert not entry.rehost, "what asks for consent is not ours to pass on"
    assert entry.consent == (entry.terms is not None and entry.terms.consent)
    assert (entry.terms is not None) == (entry.licence in LICENCES)
    assert entry.inflation in INFLATIONS
    if entry.status == "ours":
        assert source.kind in ("bundled", "mirror")
        assert len(source.sha256) == 64
        assert source.size > 0
        assert entry.recipe
        assert entry.checked == "file"
    if source.kind == "hf":
        assert re.fullmatch(r"[0-9a-f]{40}", source.revision)
    if entry.licence == catalog.NOT_STATED:
        assert not entry.rehost, "what has no licence may not be passed on"
    if entry.checked == "file":
        assert entry.checked_on


def test_nobody_inherits_that_a_file_was_seen_or_measured() -> None:
    """`like` shares what two entries have in common; what was done with one file is said of that file alone."""
    for name, table in TABLES["entry"].items():
        if "like" in table:
            if get_entry(name).checked == "file":
                assert "checked" in table, name
            if get_entry(name).metrics:
                assert "metrics" in table, name


@pytest.mark.parametrize("licence", LICENCES)
def test_a_licence_that_asks_says_what_for(licence: str) -> None:
    terms = all_licences()[licence]
    assert terms.id == licence
    assert any(get_entry(name).licence == licence for name in ENTRIES), "nothing is under it"
    if terms.consent:
        assert terms.url.startswith("https://")
        assert terms.forbids


def test_a_card_says_what_the_catalogue_says_and_no_more() -> None:
    entry = get_entry("resnet3d18_imagenet")
    terms = Licence(id="CC-BY-NC-4.0", name="non-commercial", consent=True)
    licensed = dataclasses.replace(entry, licence=terms.id, licence_url="https://x", terms=terms, rehost=True)
    for words in ("CC-BY-NC-4.0 (https://x); asks for consent: accept_licence=True", "may be re-hosted | yes"):
        assert words in licensed.card()
        assert words not in entry.card()
    assert "5ff2ecb7 (a prefix)" in entry.card()
    metric = catalog.Metric(name="top1", value=0.25, dataset="D", split="val", made_by="r")
    assert "| top1 | 0.25 | D | val | r |" in dataclasses.replace(entry, metrics=(metric,)).card()


# ---- looking up ----------------------------------------------------------------------------------------------------


def test_unknown_name_tells_the_nearest() -> None:
    with pytest.raises(
        UnknownEntryError, match=r"'resnet3d18_imagnet'.*nearest: resnet3d18_imagenet.*Next: svd-hub list"
    ):
        get_entry("resnet3d18_imagnet")
    assert issubclass(UnknownEntryError, LookupError)


def test_list_entries() -> None:
    assert list_entries() == sorted(list_entries()) == ENTRIES
    assert list_entries("p3d63") == list_entries("P3D63") == ["mp3d63_coco", "mp3d63_coco_detector", "p3d63_coco"]
    assert list_entries("p3d63*") == ["p3d63_coco"]
    assert list_entries("nothing") == []
    for key, value in (("status", "recipe"), ("task", "backbone"), ("licence", "Not Stated")):
        wanted = [n for n in ENTRIES if getattr(get_entry(n), key).lower() == value.lower()]
        assert list_entries(**{key: value}) == wanted != []
    assert list_entries("*imagenet", status="official", task="backbone") == ["resnet3d18_imagenet"]
    for key in ("status", "task"):
        with pytest.raises(OptionError, match=f"{key}='officail'.*allowed"):
            list_entries(**{key: "officail"})


def test_list_compatible() -> None:
    backbones = {get_entry(name).backbone for name in ENTRIES} - {""}
    for backbone in backbones:
        wanted = [name for name in ENTRIES if get_entry(name).backbone == backbone]
        assert list_entries(compatible=backbone) == wanted != []
        assert list_entries(compatible=wanted[0]) == wanted, "an entry stands for its backbone"
    assert list_entries("*imagenet", compatible="resnet3d18", status="official") == ["resnet3d18_imagenet"]
    assert len(list_entries(compatible="resnet3d18")) > 2
    for wrong in ("resnet3d1", "resnet3d18_imagene", ""):
        with pytest.raises(
            OptionError, match=rf"compatible='{wrong}' is not allowed; nearest: .*allowed: an entry, or"
        ):
            list_entries(compatible=wrong)
    with pytest.raises(OptionError, match=r"nearest: resnet3d18,"):
        list_entries(compatible="resnet3d1")


def test_the_list_cannot_be_spoilt() -> None:
    all_entries().clear()
    all_licences().clear()
    assert list_entries() == ENTRIES
    assert sorted(all_licences()) == LICENCES


# ---- overlay and faults --------------------------------------------------------------------------------------------

WHOLE: dict[str, Any] = {"summary": "s", "architecture": "resnet3d", "status": "recipe", "reason": "a test"}
LOADABLE = WHOLE | {"status": "official", "source": {"kind": "url", "url": "http://x", "file": "f.pth"}}


@pytest.fixture
def overlay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def lay(text: str) -> Path:
        path = tmp_path / "overlay.toml"
        path.write_text(text)
        monkeypatch.setenv("SVD_HUB_CATALOG", str(path))
        catalog._read.cache_clear()
        return path

    return lay


def test_overlay_merges_key_by_key(overlay: Any) -> None:
    before = get_entry("resnet3d18_imagenet")
    path = overlay(
        '[entry.resnet3d18_imagenet]\nlicence = "MIT"\n[entry.resnet3d18_imagenet.source]\nsha256 = "ab"\n'
        "[entry.resnet3d18_imagenet.options]\nwidth = 8\n[entry.resnet3d18_imagenet.preprocess]\nstd = 2.0\n"
        f"[entry.mine]\n{keys(LOADABLE)}"
    )
    after = get_entry("resnet3d18_imagenet")
    assert after == dataclasses.replace(
        before,
        licence="MIT",
        overlay=str(path),
        source=dataclasses.replace(before.source, sha256="ab"),
        options={**before.options, "width": 8},
        preprocess_data={**before.preprocess_data, "std": 2.0},
    )
    assert list_entries() == sorted([*ENTRIES, "mine"])
    assert get_entry("mine").overlay == str(path)
    assert get_entry("mp3d63_coco").overlay == ""


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (WHOLE | {"licens": "MIT"}, r"licens; nearest to 'licens': licence"),
    "missing key": ({"summary": "s"}, "missing keys status"),
    "no architecture": ({k: v for k, v in WHOLE.items() if k != "architecture"}, "'recipe' needs an architecture"),
    "inflation": (WHOLE | {"inflation": "2d", "stored": {"a": 1}}, "inflation='2d' is not allowed; allowed: .*'acs'"),
    "inflation of nothing": (WHOLE | {"inflation": "i3d"}, "needs the stored options"),
    "stored": (WHOLE | {"stored": 3}, "stored=3"),
    "parameters": (WHOLE | {"parameters": 1.5}, "parameters=1.5"),
    "backbone": (WHOLE | {"backbone": ["a"]}, "backbone="),
    "consent in an entry": (WHOLE | {"consent": True}, "unknown keys consent"),
    "terms in an entry": (WHOLE | {"terms": {}}, "unknown keys terms"),
    "like in an overlay": (WHOLE | {"like": "resnet3d18_imagenet"}, "unknown keys like"),
    "status": (WHOLE | {"status": "offical"}, "status='offical'.*'official'"),
    "task": (WHOLE | {"task": "sorting"}, "task='sorting'"),
    "checked": (WHOLE | {"checked": "yes"}, "checked='yes'"),
    "checked without a date": (WHOLE | {"checked": "file"}, "needs checked_on"),
    "type": (WHOLE | {"summary": 5}, "summary=5"),
    "a word for a list": (WHOLE | {"classes": "ab"}, "classes='ab'"),
    "a list of numbers": (WHOLE | {"notes": [1]}, r"notes=\[1\]"),
    "truth for a number": (LOADABLE | {"source": {"size": True}}, "size=True"),
    "the loader's own key": (WHOLE | {"overlay": "x"}, "unknown keys overlay"),
    "the loader's own name": (WHOLE | {"preprocess_data": {}}, "unknown keys preprocess_data"),
    "unknown source key": (LOADABLE | {"source": {"sha": "ab"}}, "source: unknown keys sha; nearest to 'sha': sha256"),
    "source kind": (LOADABLE | {"source": {"kind": "ftp"}}, "source.kind='ftp'"),
    "path as file name": (LOADABLE | {"source": {"kind": "url", "url": "u", "file": "../f"}}, "bare file name"),
    "no source": (WHOLE | {"status": "official"}, "source.kind 'none'"),
    "recipe with a source": (LOADABLE | {"status": "recipe"}, "source.kind 'url'"),
    "no reason": ({k: v for k, v in WHOLE.items() if k != "reason"}, "needs a reason"),
    "url without one": (LOADABLE | {"source": {"kind": "url", "file": "f"}}, "needs source.url"),
    "drive without an id": (LOADABLE | {"source": {"kind": "gdrive", "file": "f"}}, "needs source.id"),
    "branch": (LOADABLE | {"source": {"kind": "hf", "repo": "a/b", "file": "f", "revision": "main"}}, "40 hex"),
    "upper-case hash": (LOADABLE | {"source": LOADABLE["source"] | {"sha256": "AB"}}, "lower-case hex"),
    "long hash": (LOADABLE | {"source": LOADABLE["source"] | {"sha256": "a" * 65}}, "lower-case hex"),
    "bundled by a prefix": (
        LOADABLE | {"source": {"kind": "bundled", "file": "f", "sha256": "ab", "size": 1}},
        "lower-case hex",
    ),
    "bundled without a size": (
        LOADABLE | {"source": {"kind": "bundled", "file": "f", "sha256": "a" * 64}},
        "source.size",
    ),
    "negative size": (LOADABLE | {"source": LOADABLE["source"] | {"size": -1}}, "size -1"),
    "size above the limit": (LOADABLE | {"source": LOADABLE["source"] | {"size": 9, "max_size": 8}}, "max_size 8"),
    "metric": (WHOLE | {"metrics": [{"name": "a"}]}, "metrics: missing keys dataset, made_by, split, value"),
    "metrics": (WHOLE | {"metrics": 3}, "metrics"),
    "preprocess": (WHOLE | {"preprocess": 3}, "preprocess"),
    "source": (WHOLE | {"source": 3}, "source is a int"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_its_entry_and_key(overlay: Any, fault: str) -> None:
    table, words = FAULTS[fault]
    text = keys({k: v for k, v in table.items() if k != "metrics"})
    metrics = table.get("metrics", [])
    text += (
        "".join(f"[[entry.x.metrics]]\n{keys(m)}" for m in metrics) if isinstance(metrics, list) else "metrics = 3\n"
    )
    overlay(f"[entry.x]\n{text}")
    with pytest.raises(OptionError, match=rf"'x'.*{words}"):
        all_entries()


def test_the_entries_that_the_faults_are_made_of_are_whole(overlay: Any) -> None:
    overlay(f"[entry.x]\n{keys(WHOLE)}[entry.y]\n{keys(LOADABLE)}")
    assert get_entry("x").reason == "a test"
    assert get_entry("y").loadable


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[entry.x", "cannot be read"),
        ("[entries.x]\nsummary = 's'", "entries is not allowed"),
        ("entry = 3", "entry is not allowed"),
        ("[entry]\nx = 3", "'x' is a int"),
        ("[entry]\nmp3d63_coco = 3", "'mp3d63_coco' is a int"),
        (f"[entry.UPPER]\n{keys(WHOLE)}", "lower-case"),
        ("\ud800", "cannot be read"),
    ],
)
def test_an_overlay_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "overlay.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    monkeypatch.setenv("SVD_HUB_CATALOG", str(path))
    with pytest.raises(SvdHubError, match=words):
        all_entries()


def test_an_overlay_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SVD_HUB_CATALOG", str(tmp_path / "none.toml"))
    with pytest.raises(SvdHubError, match=r"none\.toml cannot be read.*Next: repair or unset SVD_HUB_CATALOG"):
        all_entries()


# ---- licences ------------------------------------------------------------------------------------------------------

HELD = '[licence."Held-1.0"]\nname = "held"\nurl = "https://terms"\nconsent = true\nforbids = "selling it"\n'


def test_an_overlay_brings_its_own_licence(overlay: Any) -> None:
    whole = keys(WHOLE | {"licence": "Held-1.0"})
    overlay(f'{HELD}[entry.x]\n{whole}[entry.y]\n{whole}licence_url = "https://own"\n[entry.z]\n{keys(WHOLE)}')
    terms = Licence(id="Held-1.0", name="held", url="https://terms", consent=True, forbids="selling it")
    assert all_licences()["Held-1.0"] == terms
    x, y, z = (get_entry(name) for name in "xyz")
    assert (x.terms, x.consent, x.licence_url) == (terms, True, "https://terms")
    assert (y.terms, y.consent, y.licence_url) == (terms, True, "https://own"), "an entry's own link is nearer"
    assert (z.terms, z.consent, z.licence_url) == (None, False, "")
    assert sorted([*LICENCES, "Held-1.0"]) == sorted(all_licences())
    assert list_entries(licence="held-1.0") == ["x", "y"]


def test_an_overlay_changes_a_key_of_a_licence(overlay: Any) -> None:
    name = next(name for name, terms in all_licences().items() if terms.consent)
    before = all_licences()[name]
    overlay(f'[licence."{name}"]\nurl = "https://mirror"\n')
    assert all_licences()[name] == dataclasses.replace(before, url="https://mirror")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[licence.x]\nname = 'n'\nconsnt = true", "licence 'x': unknown keys consnt; nearest to 'consnt': consent"),
        ("[licence.x]\nconsent = true", "licence 'x': missing keys name"),
        ("[licence.x]\nname = 'n'\nconsent = 1", "licence 'x': consent=1 is not allowed; allowed: bool"),
        ("[licence.x]\nname = 'n'\nid = 'y'", "licence 'x': unknown keys id"),
        ("[licence]\nx = 3", "licence 'x' is a int; allowed: a table"),
        ("licence = 3", "licence is not allowed; allowed: .*licence.ID. tables"),
    ],
)
def test_a_licence_that_is_none(overlay: Any, text: str, words: str) -> None:
    overlay(text)
    for look in (all_licences, all_entries):
        with pytest.raises(OptionError, match=words):
            look()


# ---- like: what entries share is written once ----------------------------------------------------------------------


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Another catalogue inside the package."""

    def put(tables: dict[str, dict[str, Any]], more: str = "") -> None:
        text = "".join(f"[entry.{name}]\n{keys(table)}" for name, table in tables.items())
        (tmp_path / "package").mkdir(exist_ok=True)
        (tmp_path / "package" / "catalog.toml").write_text(text + more)
        monkeypatch.setattr(catalog, "resources", SimpleNamespace(files=lambda _: tmp_path / "package"))
        catalog._read.cache_clear()

    return put


BASE = LOADABLE | {
    "options": {"depth": 18, "num_classes": 5},
    "source": {"kind": "url", "url": "http://x", "file": "a.pth", "sha256": "a" * 64, "size": 7, "max_size": 9},
    "preprocess": {"modality": "CT", "size": [4, 5, 6]},
    "backbone": "b",
    "notes": ["a note"],
    "licence": "Held-1.0",
}


def test_like(built_in: Any) -> None:
    """What an entry says replaces what the other says; of a source key by key, and never another file's hash."""
    built_in(
        {
            "c": {"like": "b", "summary": "third"},
            "a": BASE,
            "b": {"like": "a", "options": {"depth": 34}, "source": {"file": "b.pth", "max_size": 8}, "notes": []},
            "d": {"like": "a", "preprocess": {"modality": "MR"}, "source": {"url": "http://y"}},
            "e": {"like": "a", "source": {"kind": "gdrive", "id": "i", "file": "e.pth"}},
        },
        HELD,
    )
    a, b, c, d, e = (get_entry(name) for name in "abcde")
    assert a.terms is not None
    assert (b.options, b.notes, b.backbone, b.terms) == ({"depth": 34}, (), "b", a.terms)
    assert b.source == dataclasses.replace(a.source, file="b.pth", sha256="", size=0, max_size=8)
    assert (c.summary, c.source, c.options) == ("third", b.source, b.options), "the order in the file does not matter"
    assert dict(d.preprocess_data) == {"modality": "MR"}
    assert d.source == dataclasses.replace(a.source, url="http://y"), "the same file elsewhere"
    assert e.source == catalog.Source(kind="gdrive", id="i", file="e.pth"), "another kind starts afresh"
    assert a == dataclasses.replace(get_entry("a"), **{"notes": ("a note",)})


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"a": {"like": "a"}}, "'a': like='a'"),
        ({"a": {"like": "b"}, "b": {"like": "c"}, "c": {"like": "a"}}, "'.': like='.'"),
        ({"a": {"like": "nobody"}}, "'a': like='nobody'"),
        ({"a": {"like": 3}}, "'a': like=3"),
        ({"a": {"like": ["b"]}, "b": BASE}, r"'a': like=\['b'\]"),
    ],
    ids=["itself", "circle", "nobody", "number", "list"],
)
def test_like_of_no_entry(built_in: Any, tables: dict[str, Any], words: str) -> None:
    built_in({name: WHOLE | table for name, table in tables.items()})
    with pytest.raises(OptionError, match=f"entry {words} is not allowed; allowed: another entry of this file"):
        all_entries()


def test_an_overlay_over_an_inherited_entry(built_in: Any, overlay: Any) -> None:
    """It changes the one entry it names: neither the one that is like it, nor the one it is like."""
    built_in({"a": BASE, "b": {"like": "a", "summary": "b"}, "c": {"like": "b"}}, HELD)
    before = all_entries()
    path = overlay('[entry.b]\nsummary = "mine"\n[entry.b.source]\nurl = "http://inside"\n')
    after = all_entries()
    assert {name for name in after if after[name] != before[name]} == {"b"}
    b = after["b"]
    assert (b.summary, b.source.url, b.source.sha256, b.overlay) == ("mine", "http://inside", "a" * 64, str(path))
    assert b.consent, "what it does not name stays"


def test_an_overlay_cannot_take_consent_away(built_in: Any, overlay: Any) -> None:
    built_in({"a": BASE}, HELD)
    for text in ('[licence."Held-1.0"]\nconsent = false\n', '[entry.a]\nlicence = "MIT"\n'):
        overlay(text)
        with pytest.raises(OptionError, match=r"asks for consent.*SVD_HUB_ACCEPT_LICENCE"):
            all_entries()


def test_preprocessing_that_is_none_names_the_entry(overlay: Any) -> None:
    for data in ("windw = [0, 1]", "window = [1, 0]", 'modality = "PET"'):
        overlay(f"[entry.x]\n{keys(WHOLE)}[entry.x.preprocess]\n{data}\n")
        with pytest.raises(OptionError, match="preprocess of 'x'"):
            _ = get_entry("x").preprocess
