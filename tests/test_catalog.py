"""Laws of the catalogue: every entry is whole and builds, an overlay merges and is named, a fault names its place."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import keys

import svd_hub
from svd_hub import catalog, models, origins
from svd_hub.catalog import Entry, all_entries, get_entry, list_entries
from svd_hub.errors import OptionError, SvdHubError, UnknownEntryError
from svd_hub.preprocess import Preprocess

ENTRIES = sorted(catalog._read(""))
PAPER = {
    *("resnet3d18_imagenet", "resnet3d34_imagenet", "resnet3d50_imagenet", "mp3d63_coco", "p3d63_coco", "p3d18_coco"),
    *("resnet3d18_coco", "resnet3d50_coco", "resnet3dv1c18_coco"),
}


@pytest.fixture(params=ENTRIES)
def entry(request: pytest.FixtureRequest) -> Entry:
    return get_entry(request.param)


def test_the_networks_of_the_paper_are_there() -> None:
    assert set(ENTRIES) >= PAPER
    weights = {name for name in PAPER if get_entry(name).loadable}
    assert weights == {"resnet3d18_imagenet", "mp3d63_coco"}


# ---- every entry ---------------------------------------------------------------------------------------------------


def test_entry_builds_by_its_options(entry: Entry) -> None:
    with torch.device("meta"):
        model = models.build(entry.architecture, entry.options)
    assert model.num_classes == entry.options["num_classes"]
    assert origins.get_origin(entry.origin)
    if entry.classes:
        assert len(entry.classes) == len(set(entry.classes)) == model.num_classes
    if entry.task == "classification":
        assert model.num_classes > 0


def test_entry_has_a_whole_card(entry: Entry) -> None:
    card = entry.card()
    assert card == svd_hub.get_entry(entry.name).card()
    for words in (f"| licence | {entry.licence}", f"| status | {entry.status}: ", f"| checked | {entry.checked}"):
        assert words in card
    assert f'`svd_hub.load("{entry.name}")`' in card
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
    assert isinstance(entry.preprocess, Preprocess)
    assert re.fullmatch(r"[0-9a-f]{0,64}", source.sha256)
    assert entry.outputs
    if entry.status == "ours":
        assert (source.kind, len(source.sha256)) == ("bundled", 64)
        assert source.size > 0
        assert entry.recipe
        assert entry.checked == "file"
    if source.kind == "hf":
        assert re.fullmatch(r"[0-9a-f]{40}", source.revision)
    if entry.licence == catalog.NOT_STATED:
        assert not entry.rehost, "what has no licence may not be passed on"
    if entry.checked == "file":
        assert entry.checked_on


def test_a_card_says_what_the_catalogue_says_and_no_more() -> None:
    entry = get_entry("resnet3d18_imagenet")
    licensed = dataclasses.replace(entry, licence="CC-BY-NC-4.0", licence_url="https://x", consent=True, rehost=True)
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
    assert list_entries("p3d63") == list_entries("P3D63") == ["mp3d63_coco", "p3d63_coco"]
    assert list_entries("p3d63*") == ["p3d63_coco"]
    assert list_entries("nothing") == []
    for key, value in (("status", "recipe"), ("task", "backbone"), ("licence", "Not Stated")):
        wanted = [n for n in ENTRIES if getattr(get_entry(n), key).lower() == value.lower()]
        assert list_entries(**{key: value}) == wanted != []
    assert list_entries("*imagenet", status="official", task="backbone") == ["resnet3d18_imagenet"]
    for key in ("status", "task"):
        with pytest.raises(OptionError, match=f"{key}='officail'.*allowed"):
            list_entries(**{key: "officail"})


def test_the_list_cannot_be_spoilt() -> None:
    all_entries().clear()
    assert list_entries() == ENTRIES


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
    "missing key": ({"summary": "s"}, "missing keys architecture, status"),
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


def test_preprocessing_that_is_none_names_the_entry(overlay: Any) -> None:
    for data in ("windw = [0, 1]", "window = [1, 0]", 'modality = "PET"'):
        overlay(f"[entry.x]\n{keys(WHOLE)}[entry.x.preprocess]\n{data}\n")
        with pytest.raises(OptionError, match="preprocess of 'x'"):
            _ = get_entry("x").preprocess
