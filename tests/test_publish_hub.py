"""Releases on the Hub, against a local server that speaks its protocol; in a process of its own, which has HF_*."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import helpers_publish as helpers
import pytest
from servers_hub import SIGNED, TOKEN, Hub

WEIGHTS = {"net.golden.safetensors", "net.log.jsonl", "net.safetensors", "recipe.yaml"}
FILES = {*WEIGHTS, "README.md", "SHA256SUMS", "entry.toml"}
# One process for all tests, since most of the time goes into its start; a line of JSON for each command.
COMMANDS = """
import contextlib, io, json, sys
from svd_hub.cli import main
for line in sys.stdin:
    sys.argv = ["svd-hub", "publish", *json.loads(line)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([code, out.getvalue(), " ".join(err.getvalue().split())]), flush=True)
"""


class Said(NamedTuple):
    """What a command returned and printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SVD_HUB_HOME", str(made / "cache"))
        return helpers.small_run(made)


class Publisher:
    """A process that publishes a run to org/net; neither a token nor a signed link is ever printed."""

    def __init__(self, hub: Hub, run: Path, folder: Path) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SVD_HUB_"))}
        self.run, self.errors = run, folder / "stderr"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMANDS],
                env={
                    **clean,
                    "PYTHONPATH": str(helpers.ROOT),
                    "SVD_HUB_HOME": str(folder / "home"),
                    "HF_HOME": str(folder / "hf"),
                    "HF_ENDPOINT": hub.base,
                    "HF_TOKEN": TOKEN,
                    "HF_HUB_DISABLE_XET": "1",
                    "HF_HUB_DISABLE_TELEMETRY": "1",
                },
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __call__(self, name: str, *options: str) -> Said:
        given = [str(self.run), name, *options, "--repo", "org/net", "--licence", "MIT", "--allow-dirty"]
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(given) + "\n")
        stdin.flush()
        line = stdout.readline()
        assert self.errors.read_text() == "", "the library said something of its own"
        assert not [word for word in (TOKEN, SIGNED, "Traceback") if word in line], line
        return Said(*json.loads(line))

    def close(self) -> None:
        self.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with Hub() as running:
        yield running


@pytest.fixture(scope="module")
def publisher(served: Hub, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    started = Publisher(served, run, tmp_path_factory.mktemp("publisher"))
    yield started
    started.close()


@pytest.fixture
def hub(served: Hub) -> Hub:
    """The server, with nothing on it."""
    served.empty()
    return served


def test_a_release_on_the_hub_loads_by_the_table_that_was_printed(
    hub: Hub, publisher: Publisher, tmp_path: Path
) -> None:
    said = publisher("net")
    assert said.code == 0, said
    repo = hub.repos["org/net"]
    assert (repo.files.keys(), repo.private) == (FILES, False)
    (first, _, weights), (_, _, _) = repo.commits
    assert weights.keys() == WEIGHTS
    source = tomllib.loads(said.out)["entry"]["net"]["source"]
    assert source == {
        **{"kind": "hf", "repo": "org/net", "revision": first, "file": "net.safetensors"},
        **{"sha256": hashlib.sha256(weights["net.safetensors"]).hexdigest(), "size": len(weights["net.safetensors"])},
    }
    assert hub.uploads == 2, "weights and golden pair went through LFS"
    assert tomllib.loads(repo.files["entry.toml"].decode())["entry"]["net"]["source"] == source
    assert repo.files["README.md"].startswith(b"---\n")
    assert f"Hugging Face org/net @ {first}".encode() in repo.files["README.md"]
    assert "net is in org/net on the Hugging Face Hub" in said.err
    assert {seen.headers.get("authorization") for seen in hub.seen if seen.method == "POST"} == {f"Bearer {TOKEN}"}
    assert {seen.headers.get("authorization") for seen in hub.seen if seen.path.startswith("/put/")} == {None}

    (tmp_path / "entry.toml").write_text(said.out)
    (tmp_path / "pair").write_bytes(repo.files["net.golden.safetensors"])
    env = {"SVD_HUB_CATALOG": "entry.toml", "HF_ENDPOINT": hub.base, "HF_HOME": str(tmp_path / "hf")}
    found = helpers.python(helpers.LOADS, "net", "pair", cwd=tmp_path, **env)
    place, digest, apart, whole = json.loads(found.splitlines()[-1])
    assert (place, digest) == (f"huggingface.co/org/net@{first[:12]}/net.safetensors", source["sha256"])
    assert apart < 1e-3
    assert whole


def test_what_was_released_there_never_changes(hub: Hub, publisher: Publisher) -> None:
    first, again, second = publisher("net"), publisher("net"), publisher("net@2")
    assert (first.code, again.code, second.code) == (0, 1, 0), (again, second)
    assert "org/net has a net.safetensors already, and what was released never changes. Next: another NAME" in again.err
    assert again.out == ""
    commits = hub.repos["org/net"].commits
    assert len(commits) == 4, "the refused one made none"
    before, after = commits[1][2], commits[3][2]
    assert after["net.safetensors"] == before["net.safetensors"]
    entries = tomllib.loads(after["entry.toml"].decode())["entry"]
    assert entries["net"] == tomllib.loads(before["entry.toml"].decode())["entry"]["net"]
    assert entries["net@2"] == tomllib.loads(second.out)["entry"]["net@2"]


def test_other_weights_of_the_name_are_left_alone(hub: Hub, publisher: Publisher) -> None:
    hub.add_repo("org/net", {"net.safetensors": b"other bytes"})
    said = publisher("net")
    assert said.code == 1
    assert "org/net has a net.safetensors already" in said.err
    assert hub.repos["org/net"].files == {"net.safetensors": b"other bytes"}


def test_an_upload_that_broke_off_goes_on(hub: Hub, publisher: Publisher) -> None:
    """The first commit was made, the card's was refused: nothing there says that it is finished."""
    hub.failing = [("/api/validate-yaml", 500)]
    broken = publisher("net")
    assert broken.code == 1
    assert broken.err.startswith("error: org/net: HTTP 500 from the Hub. Next: ")
    assert hub.repos["org/net"].files.keys() == WEIGHTS
    said = publisher("net")
    assert said.code == 0, said
    repo = hub.repos["org/net"]
    assert (repo.files.keys(), len(repo.commits), hub.uploads) == (FILES, 2, 2)
    assert tomllib.loads(said.out)["entry"]["net"]["source"]["revision"] == repo.commits[0][0]


def test_what_the_hub_has_against_it(hub: Hub, publisher: Publisher) -> None:
    expected = [
        ("/api/repos/create", 404, "HTTP 404, no such organisation"),
        ("/api/repos/create", 400, "HTTP 400 from the Hub"),
        ("/api/repos/create", 200, "on the way to the Hub. Next: check the network and HF_ENDPOINT"),  # not its answer
        ("/preupload/", 403, "HTTP 403, you may not write there. Next: a token that may write"),
        ("/put/", 403, "HTTP 403, you may not write there"),
        ("/commit/", 409, "HTTP 409, the name is taken, or somebody writes there now"),
    ]
    hub.failing = [(path, status) for path, status, _ in expected]
    for _, _, words in expected:
        said = publisher("net")
        assert said.code == 1
        assert said.out == ""
        assert said.err.startswith("error: org/net: ")
        assert words in said.err
    assert hub.failing == []
    assert hub.repos["org/net"].commits == []


def test_a_token_that_is_not_known(hub: Hub, publisher: Publisher) -> None:
    hub.token = "another"
    said = publisher("net")
    assert said.code == 1
    assert "HTTP 401, who you are is not known. Next: hf auth login, or set HF_TOKEN" in said.err
    assert hub.repos == {}


def test_a_private_repository_is_private_or_refused(hub: Hub, publisher: Publisher) -> None:
    hub.add_repo("org/net", {})
    said = publisher("net", "--private")
    assert said.code == 1
    assert "org/net is there, and open to everybody. Next: --private with another --repo" in said.err
    assert hub.repos["org/net"].files == {}
    del hub.repos["org/net"]
    said = publisher("net", "--private")
    assert said.code == 0, said
    assert hub.repos["org/net"].private


def test_a_dry_run_asks_nobody(hub: Hub, publisher: Publisher) -> None:
    said = publisher("net", "--dry-run")
    assert said.code == 0, said
    assert "net would be in org/net on the Hugging Face Hub" in said.err
    assert tomllib.loads(said.out)["entry"]["net"]["source"]["revision"] == "0" * 40
    assert hub.seen == []
