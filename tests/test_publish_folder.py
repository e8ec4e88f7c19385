"""Releases in folders: a mirror that another process loads from by name, the bundled weights, and kills on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import helpers_publish as helpers
import pytest
import servers

from svd_hub import store
from svd_hub.catalog import all_entries
from svd_hub.cli import main
from svd_hub.errors import OptionError
from svd_hub.training.publish import folder, publishing
from svd_hub.training.publish.release import Draft


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVD_HUB_HOME", str(made / "cache"))
        return helpers.small_run(made)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers.clean_tree(monkeypatch)


def files(place: Path) -> dict[str, bytes]:
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


# ---- a mirror -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net", "net@2"])
def test_another_process_loads_it_by_name_offline(run: Path, tmp_path: Path, name: str) -> None:
    mirror = tmp_path / "mirror"
    made = helpers.release(run, name, to=mirror)
    env = {"SVD_HUB_CATALOG": "mirror/entry.toml", "SVD_HUB_MIRROR": "mirror", "SVD_HUB_OFFLINE": "1"}
    pair = mirror / name / f"{name}.golden.safetensors"
    source, digest, apart, whole = json.loads(helpers.python(helpers.LOADS, name, pair, cwd=tmp_path, **env))
    assert Path(source) == Path("mirror", name, f"{name}.safetensors")
    assert digest == made.entry.source.sha256
    assert apart < 1e-3
    assert whole
    told = helpers.python("from svd_hub.cli import main; main()", "info", name, cwd=tmp_path, **env)
    assert told.startswith(f"# {name}\n")
    assert "a release folder, which SVD_HUB_MIRROR names" in told


def test_a_server_gives_the_folder_as_it_is(
    run: Path, tmp_path: Path, server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers.release(run, "net", to=tmp_path / "mirror")
    for path, body in files(tmp_path / "mirror").items():
        server.add(f"/releases/{path}", servers.ranged(body))
    monkeypatch.setenv("SVD_HUB_CATALOG", str(tmp_path / "mirror" / "entry.toml"))
    monkeypatch.setenv("SVD_HUB_MIRROR", f"{server.base}/releases")
    with store.workdir() as work:
        found = store.fetch(all_entries()["net"], work, progress=False)
    assert found.source == f"{server.base}/releases/net/net.safetensors"


def test_one_mirror_holds_many_releases(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "two@2"):
        helpers.release(run, name, to=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entry.toml", "one", "two", "two@2"]
    monkeypatch.setenv("SVD_HUB_CATALOG", str(tmp_path / "entry.toml"))
    assert all_entries().keys() >= {"one", "two", "two@2"}
    for name in ("one", "two", "two@2"):
        alone = tomllib.loads((tmp_path / name / "entry.toml").read_text())
        assert tomllib.loads((tmp_path / "entry.toml").read_text())["entry"][name] == alone["entry"][name]


def test_hashes_are_those_of_the_files(run: Path, tmp_path: Path) -> None:
    made = helpers.release(run, to=tmp_path)
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "net").iterdir()}
    assert {file.name: file.sha256 for file in made.files} == found
    lines = (tmp_path / "net" / "SHA256SUMS").read_text().splitlines()
    assert dict(reversed(line.split("  ")) for line in lines) == {k: v for k, v in found.items() if k != "SHA256SUMS"}


def test_an_overlay_of_somebody_else_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "entry.toml").write_text("[entry.mine]\n")
    with pytest.raises(OptionError, match=r"was not written by svd-hub publish.*Next: another --to"):
        helpers.release(run, to=tmp_path)
    assert files(tmp_path) == {"entry.toml": b"[entry.mine]\n"}


# ---- kills ----------------------------------------------------------------------------------------------------------

STAGES = ["write_weights", "seal", "place", "_name_all"]
KILLED = """
import os, signal, sys
from pathlib import Path
import helpers_publish as helpers
from svd_hub.training import tree
from svd_hub.training.publish import folder, publishing
from svd_hub.training.publish.release import Draft
tree.present = lambda **_: None
run, to, stage = sys.argv[1:]
owner = Draft if hasattr(Draft, stage) else folder
real, calls = getattr(owner, stage), []
def killed(*given, **more):
    calls.append(stage)
    if stage == "_name_all" and len(calls) == 1:  # the first one looks for what an earlier kill left
        return real(*given, **more)
    if stage in ("write_weights", "seal"):
        real(*given, **more)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, stage, killed)
helpers.release(Path(run), to=Path(to))
"""


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_leaves_nothing_that_looks_finished(run: Path, tmp_path: Path, stage: str) -> None:
    mirror = tmp_path / "mirror"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(run), str(mirror), stage],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(helpers.ROOT), str(helpers.ROOT / "tests")])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    shown = sorted(path.name for path in mirror.iterdir() if not path.name.startswith("."))
    if stage == "_name_all":  # the release is whole, and the next command names it
        assert shown == ["net"]
        with pytest.raises(OptionError, match=r"net is in .* already"):
            helpers.release(run, to=mirror)
        helpers.release(run, "other", to=mirror)
        names = ["entry.toml", "net", "other"]
    else:
        assert shown == []
        assert [path.name for path in mirror.iterdir()], "the kill came too early"
        helpers.release(run, to=mirror)
        names = ["entry.toml", "net"]
    assert sorted(path.name for path in mirror.iterdir()) == names, "what the kill left was swept"
    assert "[entry.net]" in (mirror / "entry.toml").read_text()


@pytest.mark.parametrize("stage", ["write_weights", "seal"])
def test_an_error_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Draft, stage, fails)
    with pytest.raises(KeyboardInterrupt):
        helpers.release(run, to=tmp_path / "mirror")
    assert list((tmp_path / "mirror").iterdir()) == []


def test_two_at_once_and_one_wins(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Draft.seal

    def slower(self: Draft, *given: Any, **more: Any) -> Any:
        monkeypatch.setattr(Draft, "seal", real)
        helpers.release(run, to=tmp_path)
        return real(self, *given, **more)

    monkeypatch.setattr(Draft, "seal", slower)
    with pytest.raises(OptionError, match="already"):
        helpers.release(run, to=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["entry.toml", "net"]


# ---- the bundled weights --------------------------------------------------------------------------------------------


def test_bundled_weights_are_three_files_and_a_table(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    monkeypatch.setattr(folder, "bundled_path", lambda file: weights / file)
    made = helpers.release(run, to=weights)
    names = ["net.golden.safetensors", "net.log.jsonl", "net.safetensors"]
    assert sorted(path.name for path in weights.iterdir()) == names == [file.name for file in made.files]
    assert (made.entry.source.kind, made.entry.source.file) == ("bundled", "net.safetensors")
    monkeypatch.setattr("svd_hub.store.places.bundled_path", lambda file: weights / file)
    (tmp_path / "table.toml").write_text(made.text)
    monkeypatch.setenv("SVD_HUB_CATALOG", str(tmp_path / "table.toml"))
    assert store.cached(all_entries()["net"], converter_version="any") is not None
    monkeypatch.delenv("SVD_HUB_CATALOG")
    with pytest.raises(OptionError, match=r"net.safetensors is in .* already"):
        helpers.release(run, to=weights)


def test_the_folder_of_the_bundled_weights_is_known() -> None:
    assert folder.is_bundle(helpers.ROOT / "svd_hub" / "weights")
    assert not folder.is_bundle(helpers.ROOT / "svd_hub")


# ---- the command ----------------------------------------------------------------------------------------------------


def command(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["svd-hub", "publish", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def test_the_command_prints_a_table_that_can_be_appended(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(run, "net", "--to", tmp_path / "mirror", "--licence", "MIT", "--note", "It is small.") == 0
    out, err = capsys.readouterr()
    ours = (helpers.ROOT / "svd_hub" / "catalog.toml").read_text()
    whole = tomllib.loads(ours + out)
    assert whole["entry"].keys() - tomllib.loads(ours)["entry"].keys() == {"net"}
    assert (whole["entry"]["net"]["licence"], whole["entry"]["net"]["notes"][0]) == ("MIT", "It is small.")
    assert out in (tmp_path / "mirror" / "net" / "entry.toml").read_text()
    for words in ("net.golden.safetensors", "sha256 ", "auc 0.75 on", "is not stated: --dataset", "svd-hub info net"):
        assert words in err


def test_a_dry_run_shows_everything_and_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing.hub, "upload", None)
    before = files(run)
    assert command(run, "net", "--to", tmp_path / "mirror", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert not (tmp_path / "mirror").exists()
    for words in ("would be in", "net.safetensors", "# net\n", "## Limits", "Next: the same command without --dry-run"):
        assert words in err
    assert tomllib.loads(out)["entry"]["net"]["source"]["kind"] == "mirror"
    assert command(run, "net", "--repo", "org/net", "--licence", "MIT", "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["entry"]["source"]["repo"] == "org/net"
    assert "overlay" not in told["entry"]
    assert {file["name"] for file in told["files"]} >= {"README.md", "net.safetensors"}
    assert files(run) == before


def test_the_command_refuses_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    facts = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**facts, "git": {**facts["git"], "dirty": True}}))
    assert command(copy, "net", "--to", tmp_path / "mirror") == 1
    assert "--allow-dirty, which the card then says" in " ".join(capsys.readouterr().err.split())
    assert command(copy, "net", "--to", tmp_path / "mirror", "--allow-dirty") == 0
    assert command(run, "net", "--to", tmp_path / "other", "--dtype", "fp8") == 1
    assert "--dtype fp8 is not allowed" in capsys.readouterr().err
