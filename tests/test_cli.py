"""The command: what it prints, what it imports, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic import NARROW, OFFICIAL, TINY, Shelf, official, ours

import svd_hub
from svd_hub import cli, doctor, store
from svd_hub.catalog import get_entry

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.filterwarnings("ignore::svd_hub.hub.LicenceWarning")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process: (exit code, stdout, stderr)."""

    def go(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["svd-hub", *map(str, args)])
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # `main` has its own
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return go


# ---- list and info -------------------------------------------------------------------------------------------------


def test_list(run: Run) -> None:
    code, out, err = run("list")
    assert (code, err) == (0, "")
    for name in svd_hub.list_entries():
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
        entry = get_entry(name)
        assert entry.status in line
        assert entry.licence in line
        assert ("  yes, " in line) == (entry.checked == "file")
    assert f"{len(svd_hub.list_entries())} of {len(svd_hub.list_entries())} entries" in out


def test_list_filters(run: Run) -> None:
    code, out, _ = run("list", "r*_imagenet", "--status", "recipe", "--task", "classification", "--json")
    found = json.loads(out)
    assert code == 0
    assert [e["name"] for e in found] == ["resnet3d34_imagenet", "resnet3d50_imagenet"]
    assert {e["status"] for e in found} == {"recipe"}
    assert json.loads(run("list", "--licence", "NOT STATED", "--json")[1]) != []
    code, out, _ = run("list", "nothing")
    assert code == 0
    assert "0 of" in out
    assert json.loads(run("list", "nothing", "--json")[1]) == []
    code, out, err = run("list", "--status", "recipes")
    assert (code, out) == (1, "")
    assert "status='recipes' is not allowed; allowed: 'ours'" in err


@pytest.mark.parametrize("name", svd_hub.list_entries())
def test_info(run: Run, name: str) -> None:
    entry = get_entry(name)
    assert run("info", name) == (0, entry.card() + "\n", "")
    facts = json.loads(run("info", name, "--json")[1])
    assert facts["card"] == entry.card()
    assert facts["options"] == entry.options
    assert facts["preprocess"] == entry.preprocess_data
    assert facts["source"]["sha256"] == entry.source.sha256
    assert facts["checked"] == entry.checked


COUNT = """
import json, resource, runpy, sys
sys.argv = ["svd-hub", *sys.argv[1:]]
try:
    runpy.run_module("svd_hub", run_name="__main__")
except SystemExit as end:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([used.ru_utime + used.ru_stime, sorted({m.split(".")[0] for m in sys.modules})]), file=sys.stderr)
"""


@pytest.mark.parametrize("command", [("list",), ("list", "--json"), ("info", OFFICIAL), ("info", OFFICIAL, "--json")])
def test_list_and_info_are_quick(command: tuple[str, ...]) -> None:
    """Under half a second because nothing heavy is imported; the time itself is only printed."""
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", COUNT, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seconds, modules = json.loads(done.stderr.splitlines()[-1])
    sys.stdout.write(f"svd-hub {' '.join(command)}: {seconds:.2f} s of processor time\n")
    heavy = {
        "torch",
        "numpy",
        "safetensors",
        "huggingface_hub",
        "monai",
        "SimpleITK",
        "pytorch_lightning",
        "PIL",
        "scipy",
    }
    assert not heavy & set(modules)


# ---- fetch, verify, convert, cache ---------------------------------------------------------------------------------


def test_fetch(run: Run, shelf: Shelf) -> None:
    shelf.put_tiny()
    shelf.put_official()
    code, out, _ = run("fetch", "tiny", OFFICIAL)
    assert code == 0
    assert re.search(r"tiny: (\d+) of \1 tensors", out)
    assert "120 of 120 tensors" in out
    assert str(shelf.overlay) in out, "a long path stays in one piece"
    assert len(store.usage()) == 2


def test_unstated_licence_is_one_note(shelf: Shelf) -> None:
    shelf.put_official()
    command = [sys.executable, "-m", "svd_hub", "fetch", OFFICIAL, OFFICIAL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    assert done.stderr.startswith("note: ")
    assert "upstream states no licence" in done.stderr
    assert done.stderr.count("\n") == 1


def test_fetch_goes_on_after_a_failure(run: Run, shelf: Shelf) -> None:
    shelf.put_tiny()
    shelf.put_tiny("held", consent=True, seed=1)
    code, out, err = run("fetch", "mp3d63", "p3d63_coco", "held", "tiny")
    assert code == 1
    assert "tensors" in out
    errors = [line for line in err.splitlines() if line]
    assert [line.split("'")[1] for line in errors] == ["mp3d63", "p3d63_coco", "held"]
    assert all(line.startswith("error: ") and "Next: " in line for line in errors)
    assert run("fetch", "held", "--accept-licence")[0] == 0


def test_verify(run: Run, shelf: Shelf) -> None:
    shelf.put_tiny()
    code, out, _ = run("verify", "tiny")
    assert code == 1
    assert "absent  tiny" in out
    assert "svd-hub fetch tiny" in out
    svd_hub.load("tiny")
    assert run("verify", "tiny")[0] == 0
    code, out, _ = run("verify")
    assert code == 0
    names = [line.split()[1] for line in out.splitlines()]
    assert names == [n for n in svd_hub.list_entries() if get_entry(n).source.kind == "bundled"] + ["tiny"]
    (used,) = store.usage()
    used.path.write_bytes(used.path.read_bytes()[:-1] + b"x")
    for args in ((), ("tiny",)):
        code, out, _ = run("verify", *args)
        assert code == 1
        assert "damaged  tiny" in out
        assert str(used.path) in out
        assert "svd-hub fetch tiny" in out
    assert used.path.exists(), "verify only looks"
    assert run("fetch", "tiny")[0] == 0
    assert run("verify")[0] == 0


def test_convert(run: Run, shelf: Shelf, tmp_path: Path) -> None:
    path = shelf.put_official()
    elsewhere = tmp_path / "downloaded (1).pth"
    path.rename(elsewhere)
    code, out, _ = run("convert", OFFICIAL, elsewhere, "--to", tmp_path / "out.safetensors")
    assert code == 0
    assert "120 of 120" in out
    assert store.usage() == []
    code, out, _ = run("convert", OFFICIAL, elsewhere)
    assert code == 0
    (used,) = store.usage()
    assert f"written to {used.path}" in out
    assert elsewhere.exists()
    assert run("fetch", OFFICIAL)[0] == 0, "what was converted is loaded without a download"
    tensors = svd_hub.load(tmp_path / "out.safetensors").state_dict()
    assert all((tensors[k] == v).all() for k, v in svd_hub.load(OFFICIAL).state_dict().items())


def test_convert_refuses(run: Run, shelf: Shelf, tmp_path: Path) -> None:
    shelf.put_official()
    other = tmp_path / "other.pth"
    other.write_bytes(official(depth=34, **NARROW))
    real = shelf.mirror / get_entry(OFFICIAL).source.file
    for args, words in (
        ((OFFICIAL, other), "expected sha256"),
        ((OFFICIAL, other, "--to", tmp_path / "o.safetensors"), "depth 34, not 18"),
        ((OFFICIAL, tmp_path / "none.pth"), "none.pth"),
        ((OFFICIAL, tmp_path / "none.pth", "--to", tmp_path / "o.safetensors"), "none.pth"),
        ((OFFICIAL, real, "--to", tmp_path / "o.bin"), ".safetensors"),
        (
            (OFFICIAL, real, "--to", tmp_path / "n" / "o.safetensors"),
            "cannot write",
        ),
        (("resnet3d34_imagenet", other), "no upstream file"),
        (("nobody", other), "nearest"),
    ):
        code, out, err = run("convert", *args)
        assert (code, out) == (1, "")
        assert words in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1, "one paragraph"
    assert store.usage() == []
    assert not list(tmp_path.glob("*.safetensors"))


def test_cache(run: Run, shelf: Shelf) -> None:
    for seed, name in enumerate(("one", "two")):
        shelf.put_tiny(name, seed=seed)
        svd_hub.load(name)
    sizes = {item.entry: item.size for item in store.usage()}
    code, out, _ = run("cache")
    assert code == 0
    assert f"{sum(sizes.values()):,}  bytes in {store.cache_dir()}" in out
    assert all(str(item.path) in out for item in store.usage())
    assert f"{sizes['one']:,}  bytes in" in run("cache", "--name", "one")[1]
    assert f"{sizes['one']:,}  bytes removed from" in run("cache", "--clean", "--name", "one")[1]
    assert [item.entry for item in store.usage()] == ["two"]
    assert run("cache", "--clean")[0] == 0
    assert store.usage() == []
    for args in (("--name", "on"), ("--clean", "--name", "on")):
        code, _, err = run("cache", *args)
        assert code == 1
        assert "nearest: one" in err


# ---- doctor, errors ------------------------------------------------------------------------------------------------


def test_doctor(run: Run) -> None:
    findings = doctor.examine()
    code, out, _ = run("doctor", "--json")
    told = json.loads(out)
    assert [f["what"] for f in told] == [f.what for f in findings]
    assert code == int(any(f.broken for f in findings)) == run("doctor")[0]
    assert all(word in run("doctor")[1] for word in ("torch", "[train]", "cache"))


def test_doctor_knows_the_hazards(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torch": "2.10.0+cpu", "torchvision": "0.25.0", "pytorch-lightning": "2.6.3", "numpy": ""}
    there |= {"onnxruntime": "1", "onnxruntime-gpu": "1"}
    monkeypatch.setattr(doctor, "_version", lambda name: there.get(name, "1.0"))
    broken = {f.what: f.next for f in doctor.examine() if f.broken}
    assert set(broken) == {"torch", "torchvision beside CPU torch", "pytorch-lightning", "onnxruntime", "numpy"}
    assert all(broken.values())
    monkeypatch.setattr(doctor, "_version", lambda name: "2.13.0" if name in ("torch", "numpy") else "")
    missing = {f.what: f.next for f in doctor.examine() if f.next}
    assert missing["[volume]"] == 'pip install "svd-hub[volume]"'


def test_doctor_s_extras_are_the_project_s() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, names in doctor.EXTRAS.items():
        assert sorted(names) == sorted(re.split(r"[><=\[ ]", line)[0] for line in extras[extra])


def test_errors_are_one_paragraph(run: Run) -> None:
    for args in (("info", "mp3d63_cocoo"), ("fetch", "mp3d63_cocoo"), ("verify", "mp3d63_cocoo")):
        code, out, err = run(*args)
        assert (code, out) == (1, "")
        assert err.startswith("error: no entry 'mp3d63_cocoo'")
        assert "nearest: mp3d63_coco" in err
        assert err.count("\n") == 1
    assert run("lst")[0] == 2


def test_error_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[entry.x]\nsummary = 3\n")
    done = subprocess.run(
        [sys.executable, "-m", "svd_hub", "list"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={**os.environ, "SVD_HUB_CATALOG": str(tmp_path / "broken.toml")},
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: catalogue entry 'x': missing keys")


def test_commands_of_other_rooms_are_found(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("list", "info", "fetch", "verify", "convert", "cache", "doctor", "train", "evaluate"):
        assert command in out


def test_a_file_made_by_hand_is_no_entry(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(ours(TINY))
    code, _, err = run("fetch", path)
    assert code == 1
    assert "does not say which network it is" in err
