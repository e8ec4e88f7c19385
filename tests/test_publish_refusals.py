"""What is not published, and what the refusal says. Nothing is written then."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers_publish as helpers
import pytest
import torch
import yaml
from safetensors.torch import load_file
from synthetic import Shelf

from svd_hub import checkpoint
from svd_hub.catalog import all_entries
from svd_hub.errors import OptionError, SvdHubError
from svd_hub.training import tree
from svd_hub.training.miniature import pictures
from svd_hub.training.publish import Told, golden


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which no test changes."""
    folder = tmp_path_factory.mktemp("refusals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVD_HUB_HOME", str(folder / "cache"))
        return helpers.small_run(folder)


@pytest.fixture
def run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to change."""
    helpers.clean_tree(monkeypatch)
    return Path(shutil.copytree(whole, tmp_path / "run"))


def refused(run: Path, tmp_path: Path, kind: type[SvdHubError], *words: str, name: str = "net", **given: Any) -> str:
    """Hold what a refusal owes: one line with the words and the next step, and nothing written."""
    place = {} if "repo" in given else {"to": tmp_path / "mirror"}
    with pytest.raises(kind) as caught:
        helpers.release(run, name, **{**place, **given})
    told = str(caught.value)
    assert all(word in told for word in (*words, "Next: ")), told
    assert "\n" not in told
    assert not (tmp_path / "mirror").exists() or list((tmp_path / "mirror").iterdir()) == []
    return told


# ---- names ----------------------------------------------------------------------------------------------------------

ODD = ["", "Net", "../net", "net/x", ".net", "net.x", "net x", "net\n", "nét", "-net", "net@0", "net@", "n" * 101, "@2"]


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name(run: Path, tmp_path: Path, name: str) -> None:
    refused(run, tmp_path, OptionError, repr(name), "lower-case letters", name=name)


@pytest.mark.parametrize("name", ["resnet3d18w16_lidc", "resnet3d18_imagenet", "rubik_cube"])
def test_a_name_of_the_catalogue(run: Path, tmp_path: Path, name: str) -> None:
    refused(run, tmp_path, OptionError, repr(name), "never changes", f"{name}@2", name=name)


def test_the_next_free_number(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("net", "net@2"):
        helpers.release(run, name, to=tmp_path / "releases")
    monkeypatch.setenv("SVD_HUB_CATALOG", str(tmp_path / "releases" / "entry.toml"))
    assert all_entries().keys() >= {"net", "net@2"}
    assert refused(run, tmp_path, OptionError, "never changes").endswith("Next: 'net@3', or another name")
    monkeypatch.delenv("SVD_HUB_CATALOG")
    before = {path: path.read_bytes() for path in (tmp_path / "releases").rglob("*") if path.is_file()}
    with pytest.raises(OptionError, match=r"net@2 is in .* already.*never changes.*'net@3'"):
        helpers.release(run, "net@2", to=tmp_path / "releases")
    assert {path: path.read_bytes() for path in (tmp_path / "releases").rglob("*") if path.is_file()} == before


def test_a_plan_of_the_catalogue_waits_for_its_own_network(run: Path, tmp_path: Path) -> None:
    told = refused(
        run, tmp_path, OptionError, "plans 'resnet3d34_imagenet' as another network", name="resnet3d34_imagenet"
    )
    assert "options" in told


def test_a_plan_of_the_catalogue_gets_its_weights(run: Path, tmp_path: Path, shelf: Shelf) -> None:
    options = {"depth": 10, "width": 2, "num_classes": 3, "stem_pool": False}
    shelf.tables["planned"] = {
        **{"summary": "to come", "status": "recipe", "reason": "nobody trained it", "architecture": "resnet3d"},
        **{"options": options, "task": "classification", "paper": "somebody's", "preprocess": {"modality": "RGB"}},
    }
    shelf.write()
    made = helpers.release(run, "planned", to=tmp_path / "mirror")
    assert (made.entry.status, made.entry.reason, made.entry.paper) == ("ours", "", "")
    assert made.entry.preprocess.size == (3, 24, 24)


@pytest.mark.parametrize("given", [{"to": None}, {"repo": "org/net", "to": Path("x")}, {"private": True}])
def test_one_place(run: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    refused(run, tmp_path, OptionError, "--repo ORGANISATION/NAME", **given)


# ---- the state of the code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("git", "words"),
    [
        ({"commit": helpers.COMMIT, "dirty": True}, "the code that trained it was changed since commit 0123456789ab"),
        ({"commit": helpers.COMMIT}, "the code that trained it was changed"),
        (None, "the run records no commit of the code that trained it"),
        ({"commit": "", "dirty": False}, "the run records no commit"),
    ],
)
def test_a_run_of_code_that_no_commit_holds(run: Path, tmp_path: Path, git: Any, words: str) -> None:
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "git": git}))
    refused(run, tmp_path, SvdHubError, words, "commit and train again, or --allow-dirty")
    made = helpers.release(run, to=tmp_path / "mirror", allow_dirty=True)
    assert any(note.lower().startswith(words.lower()) for note in made.entry.notes)
    assert f"- {words[0].upper()}{words[1:]}" in made.card


def test_a_run_that_went_on_with_other_code(run: Path, tmp_path: Path) -> None:
    facts = json.loads((run / "run.json").read_text())
    for dirty in (False, True):
        resumed = [{"versions": {"torch": "3"}}, {"git": {"commit": "e" * 40, "dirty": dirty}}]
        (run / "run.json").write_text(json.dumps({**facts, "resumed": resumed}))
        if dirty:
            refused(run, tmp_path / "x", SvdHubError, "the code that trained it was changed since commit eeeeeeeeeeee")
        else:
            card = helpers.release(run, to=tmp_path / "mirror").card
            assert f"- trained by commit {helpers.COMMIT}\n- trained by commit {'e' * 40}\n" in card


def test_a_tree_that_is_not_clean_now(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dirty = tree.Tree(commit="f" * 40, changed=("a.py", "b.py", "c.py", "d.py"))
    monkeypatch.setattr(tree, "present", lambda **_: dirty)
    told = refused(run, tmp_path, SvdHubError, "the code that publishes it was changed since commit ffffffffffff")
    assert "a.py, b.py, c.py and 1 others. Next: commit, or --allow-dirty" in told
    card = helpers.release(run, to=tmp_path / "mirror", allow_dirty=True).card
    assert f"- trained by commit {helpers.COMMIT}\n- published by commit {'f' * 40}\n" in card
    assert "- The code that publishes it was changed since commit ffffffffffff." in card


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_state_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "svd_hub"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    (tmp_path / "README.md").write_text("read\n")
    monkeypatch.setattr(tree, "door", str(package / "__init__.py"))
    assert tree.present() is None, "no checkout"
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = tree.Tree(commit=git(tmp_path, "rev-parse", "HEAD"))
    assert tree.present() == clean
    (package / "weights" / "net.safetensors").write_text("released")
    (tmp_path / "notes.txt").write_text("nobody imports it")
    assert tree.present() == clean
    (package / "new.py").write_text("x = 2\n")
    assert (tree.present() or clean).changed == ("svd_hub/new.py",)
    assert tree.present(besides=package) == clean
    (tmp_path / "README.md").write_text("other\n")
    assert (tree.present() or clean).changed == ("README.md", "svd_hub/new.py")


# ---- the run --------------------------------------------------------------------------------------------------------


def test_an_unfinished_run(run: Path, tmp_path: Path) -> None:
    log = (run / "log.jsonl").read_text()
    (run / "model.safetensors").rename(tmp_path / "kept")
    refused(run, tmp_path, SvdHubError, "not finished", f"svd-hub train --resume {run}")
    (tmp_path / "kept").rename(run / "model.safetensors")
    for text in ("", log.splitlines()[0] + "\n"):
        (run / "log.jsonl").write_text(text)
        refused(run, tmp_path, SvdHubError, "epoch", "--resume")
    (run / "log.jsonl").write_text("{")
    refused(run, tmp_path, SvdHubError, "log.jsonl is damaged")
    (run / "log.jsonl").write_text(log)
    (run / "run.json").unlink()
    refused(run, tmp_path, SvdHubError, "run.json cannot be read")


def test_a_network_that_load_does_not_build(run: Path, tmp_path: Path) -> None:
    read = checkpoint.read(run / "model.safetensors")
    record = {**checkpoint.unpack_metadata(read.metadata), "architecture": "resnet2d"}
    checkpoint.write(run / "model.safetensors", {k: v.clone() for k, v in read.tensors.items()}, record)
    refused(run, tmp_path, SvdHubError, "'resnet2d', which svd_hub.load does not build")


def test_a_2d_network(tmp_path: Path) -> None:
    """Its file is inflated when it is loaded: nothing of 2D is an entry of this hub."""
    pictures.image_set(tmp_path / "set")
    settings = {helpers.FOLDER: str(tmp_path / "set"), "task.init_args.network.options.num_classes": 3}
    made = helpers.untrained(tmp_path / "run", "resnet2d18w16_tinyimagenet", settings)
    refused(made, tmp_path, SvdHubError, "holds a 2D network, which loads as what it is inflated to")


# ---- metrics --------------------------------------------------------------------------------------------------------


def test_a_metric_that_is_not_in_the_log(run: Path, tmp_path: Path) -> None:
    told = refused(run, tmp_path, SvdHubError, "--metric 'val/aux'", "nearest: val/auc", metrics=["auc", "aux"])
    assert "it has: val/auc, val/loss, val/top1" in told
    settings = yaml.safe_load((run / "recipe.yaml").read_text())
    tier = {"metric": "test/froc", "centre": 0.8, "tolerance": 0.1, "hardware": "one thread", "hours": 1.0}
    (run / "recipe.yaml").write_text(yaml.safe_dump({**settings, "expected": {"full": tier}}))
    refused(run, tmp_path, SvdHubError, "the recipe miniature expects 'test/froc'")
    made = helpers.release(run, to=tmp_path / "mirror", metrics=["val/top1", "loss"])
    assert [(metric.name, metric.value) for metric in made.entry.metrics] == [("top1", 0.625), ("loss", 0.5)]


@pytest.mark.parametrize(("row", "words"), [({}, "no metric of evaluation"), ({"val/auc": float("nan")}, "no finite")])
def test_a_log_that_measures_nothing(run: Path, tmp_path: Path, row: dict[str, float], words: str) -> None:
    (run / "log.jsonl").write_text(json.dumps({"epoch": 1, **row}) + "\n")
    refused(run, tmp_path, SvdHubError, words)


# ---- golden output --------------------------------------------------------------------------------------------------


def altered(run: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    read = checkpoint.read(run / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in read.tensors.items()}
    change(tensors)
    checkpoint.write(run / "model.safetensors", tensors, read.metadata)


def test_weights_without_a_golden_output(run: Path, tmp_path: Path) -> None:
    altered(run, lambda tensors: tensors["layer1.0.conv1.weight"].view(-1)[:1].fill_(float("nan")))
    refused(run, tmp_path, SvdHubError, "NaN or infinity", "layer1.0.conv1.weight")
    altered(run, lambda tensors: [tensor.zero_() for name, tensor in tensors.items() if "num" not in name])
    refused(run, tmp_path, SvdHubError, "there is no golden output", "the same everywhere")


def test_a_golden_output_that_is_missing_or_another(run: Path, tmp_path: Path) -> None:
    helpers.release(run, to=tmp_path / "mirror")
    folder = tmp_path / "mirror" / "net"
    assert golden.check(folder, "net") <= golden.SAME
    file = golden.file_of(folder, "net")
    pair, record = load_file(file), checkpoint.unpack_metadata(checkpoint.read(file).metadata)
    for changed, words in (
        ({**pair, "output": pair["output"] + 0.01 * pair["output"].abs().max()}, "does not give the golden output"),
        ({"output": pair["output"]}, "is no golden pair"),
        ({"input": pair["input"], "output": pair["output"][:, :2]}, "cannot be compared"),
    ):
        checkpoint.write(file, changed, record)
        with pytest.raises(SvdHubError, match=words):
            golden.check(folder, "net")
    file.unlink()
    with pytest.raises(SvdHubError, match=r"net.golden.safetensors is missing.*Next: "):
        golden.check(folder, "net")


def test_a_golden_output_that_does_not_come_out_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = golden.network_of

    def other(*given: Any) -> Any:
        model = real(*given)
        with torch.no_grad():
            next(model.parameters()).mul_(1.5)
        return model

    monkeypatch.setattr(golden, "network_of", other)
    refused(
        run, tmp_path, SvdHubError, "does not give the golden output", "files of two releases do not belong together"
    )


# ---- terms ----------------------------------------------------------------------------------------------------------


def began_with(run: Path, licence: str) -> None:
    """Let the run have begun with weights under a licence."""
    read = checkpoint.read(run / "model.safetensors")
    record = {**checkpoint.unpack_metadata(read.metadata), "licence": licence, "trained_on": "CT of a hospital"}
    checkpoint.write(run / "model.safetensors", {k: v.clone() for k, v in read.tensors.items()}, record)


@pytest.mark.parametrize("licence", ["not stated", "CC-BY-NC-ND-4.0"])
def test_terms_of_the_start_stay_with_the_weights(run: Path, tmp_path: Path, licence: str) -> None:
    began_with(run, licence)
    refused(run, tmp_path, OptionError, "--licence Apache-2.0", f"allowed: {licence!r}")
    refused(run, tmp_path, OptionError, "may not be passed on", "--private", repo="org/net", told=Told())
    made = helpers.release(run, to=tmp_path / "mirror", told=Told())
    assert (made.entry.licence, made.entry.rehost) == (licence, False)
    assert made.entry.consent == (licence != "not stated")
    assert made.entry.trained_on.endswith(", from CT of a hospital")
    assert "may be re-hosted | no" in made.card


def test_a_licence_that_nobody_stated_keeps_weights_at_home(run: Path, tmp_path: Path) -> None:
    refused(run, tmp_path, OptionError, "no licence is stated", "--licence NAME", repo="org/net", told=Told())
    made = helpers.release(run, to=tmp_path / "mirror", told=Told())
    assert (made.entry.licence, made.entry.rehost, made.data_known) == ("not stated", False, False)
    assert "license" not in helpers.header(made.card)
    assert "- licence of the data: not stated" in made.card


@pytest.mark.parametrize("repo", ["net", "org/", "a/b/c", "org/../x", "org/net?x", "org/a--b", "/net"])
def test_a_repository_that_is_none(run: Path, tmp_path: Path, repo: str) -> None:
    refused(run, tmp_path, OptionError, "ORGANISATION/NAME", repo=repo)


def test_nothing_is_uploaded_offline(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVD_HUB_OFFLINE", "1")
    refused(run, tmp_path, SvdHubError, "SVD_HUB_OFFLINE forbids the network", "--to", repo="org/net")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(SvdHubError, match=r"cannot be written: Permission denied\. Next: "):
        helpers.release(run, to=tmp_path / "shut" / "mirror")


def test_a_file_in_the_folders_place(run: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SvdHubError, match=r"taken cannot be written: .*\. Next: "):
        helpers.release(run, to=tmp_path / "taken")
