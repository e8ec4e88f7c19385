"""The command: what it prints, what it imports, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import servers
from synthetic import NARROW, OFFICIAL, TINY, Shelf, official, ours, values

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
    assert "consent" not in out, "that is the table to choose from"
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
    assert "no name has 'nothing' in it; nearest: " in out
    assert "nearest: unet3d18w16_ctorgans" in run("list", "unet3dw16_ctorgans")[1]
    assert "nearest" not in run("list", "unet", "--status", "unavailable")[1], "there are such names"
    assert json.loads(run("list", "nothing", "--json")[1]) == []
    code, out, err = run("list", "--status", "recipes")
    assert (code, out) == (1, "")
    assert "--status recipes is not allowed; allowed: 'ours'" in err


def test_list_compatible(run: Run, shelf: Shelf) -> None:
    """Everything one chooses by, in one row; none of it is known to the command itself."""
    shelf.put_licence("Held-1.0", url="https://terms")
    shelf.put_tiny("held", licence="Held-1.0", backbone="tiny10", trained_on="1,234 scans", parameters=12_345_678)
    shelf.put_tiny("seen", backbone="tiny10", checked="file", checked_on="2026-01-31")
    shelf.put_tiny("folder", backbone="tiny10", source={"kind": "folder", "url": "https://drive"})
    shelf.put_tiny("other", backbone="tiny18")
    plan = {"summary": "s", "architecture": "resnet3d", "backbone": "tiny10", "status": "recipe", "reason": "a test"}
    shelf.tables["plan"] = plan
    ct = {"modality": "CT", "spacing": [1.5, 1, 1], "window": [-1000, 400], "statistics": "volume", "size": [4, 5, 6]}
    shelf.tables["held"]["preprocess"] = ct
    shelf.write()
    code, out, err = run("list", "--compatible", "tiny10")
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    listed = [name for name in rows if name in shelf.tables]
    assert listed == ["folder", "held", "seen", "plan"], "what has no weights comes last"
    assert "get it by: link = svd-hub fetch NAME brings it; by hand = svd-hub info NAME says where" in out
    assert all(f"{word} = " in out for word in ("link", "by hand", "bundled", "none"))
    assert "get it by: " not in run("list")[1]
    for name, words in {
        "held": ("Held-1.0, consent", "CT, 1.5x1x1 mm, -1000 to 400 HU, own mean and std, 4x5x6", "1,234 scans", "12.3",
                 "official  no", "link"),
        "seen": ("CC0-1.0", "not stated", "yes, 2026-01-31", "?", "link"),
        "folder": ("by hand",),
        "plan": ("not stated", "recipe", "none"),
    }.items():  # fmt: skip
        assert all(word in rows[name] for word in words), rows[name]
    told = json.loads(run("list", "--compatible", "seen", "--json")[1])
    assert [fact["name"] for fact in told] == ["folder", "held", "seen", "plan"], "an entry stands for its backbone"
    held = told[1]
    assert (held["licence"], held["consent"], held["licence_url"]) == ("Held-1.0", True, "https://terms")
    assert (held["parameters"], held["backbone"], held["get"]) == (12_345_678, "tiny10", "link")
    assert held["input"] == "CT, 1.5x1x1 mm, -1000 to 400 HU, own mean and std, 4x5x6"
    assert held["preprocess"]["spacing"] == [1.5, 1, 1]
    assert [fact["name"] for fact in json.loads(run("list", "s*", "--compatible", "tiny10", "--json")[1])] == ["seen"]
    code, out, err = run("list", "--compatible", "tiny1")
    assert (code, out) == (1, "")
    assert "--compatible tiny1 is not allowed; nearest: tiny1" in err


def test_list_compatible_of_every_backbone(run: Run) -> None:
    for backbone in sorted({get_entry(name).backbone for name in svd_hub.list_entries()} - {""}):
        code, out, _ = run("list", "--compatible", backbone)
        assert code == 0
        names = svd_hub.list_entries(compatible=backbone)
        assert names
        told = {line.split()[0] for line in out.splitlines() if line.strip()}
        assert told >= set(names)


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"svd-hub {svd_hub.__version__}\n", "")


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


@pytest.mark.parametrize("name", svd_hub.list_entries())
def test_a_card_does_not_contradict_itself(name: str) -> None:
    entry = get_entry(name)
    card = entry.card()
    rows = dict(re.findall(r"^\| ([a-z0-9 -]+) \| (.*) \|$", card, re.MULTILINE))
    assert ("load" in rows) == bool(entry.architecture), "a load line of what cannot be loaded"
    if entry.status == "recipe":
        assert rows["status"] == "recipe: planned; no weights exist yet"
        assert rows["recipe"] == (entry.recipe or "not written yet")
    assert card.count("## Preprocessing") == 1
    words = "not documented upstream" if entry.architecture else "not recorded here"
    assert (f"## Preprocessing: {words}\n" in card) == (not entry.preprocess_data)


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


@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("list", "--json"),
        ("list", "--compatible", "resnet3d18"),
        ("info", OFFICIAL),
        ("info", OFFICIAL, "--json"),
        ("--version",),
    ],
)
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


TERMS = "  licence: Held-1.0 (the terms Held-1.0) asks for your consent, https://terms; it forbids: selling it"


def test_fetch_goes_on_after_a_failure(run: Run, shelf: Shelf) -> None:
    shelf.put_licence("Held-1.0", url="https://terms", forbids="selling it")
    shelf.put_tiny()
    shelf.put_tiny("held", licence="Held-1.0", seed=1)
    code, out, err = run("fetch", "mp3d63", "p3d63_coco", "held", "tiny")
    assert code == 1
    assert "tensors" in out
    told = [line.partition(": ") for line in err.splitlines() if line]
    assert [word for word, _, _ in told] == ["error", "no weights", "consent"]
    assert [line.split("'")[1] for _, _, line in told] == ["mp3d63", "p3d63_coco", "held"]
    assert all("Next: " in line for _, _, line in told)
    code, out, err = run("fetch", "held", "--accept-licence")
    assert (code, err) == (0, "")
    assert f"\n{TERMS}\n" in out
    assert run("fetch", "held")[0] == 0


@pytest.mark.parametrize("result", ["consent", "no weights", "by hand"])
def test_what_is_asked_for_by_name_and_does_not_come_is_a_failure(run: Run, shelf: Shelf, result: str) -> None:
    """A script that goes on after `fetch NAME` must find it here."""
    shelf.put_licence("Held-1.0")
    shelf.put_tiny("consent", licence="Held-1.0")
    shelf.put_tiny("by hand".replace(" ", "_"), source={"kind": "folder", "url": "https://drive/x"}).unlink()
    names = {"consent": "consent", "no weights": "p3d63_coco", "by hand": "by_hand"}
    code, _, err = run("fetch", names[result])
    assert code == 1
    assert err.startswith(f"{result}: '{names[result]}'")


@pytest.fixture
def mixed(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """A hub of the shelf's entries alone, one of each kind."""
    shelf.put_licence("Held-1.0", url="https://terms", forbids="selling it")
    shelf.put_tiny("a_wrong").write_bytes(b"something else")
    shelf.put_tiny("b_good", seed=1)
    shelf.put_tiny("c_folder", seed=2, source={"kind": "folder", "url": "https://drive/x?usp=sharing"}).unlink()
    shelf.put_tiny("d_held", seed=3, licence="Held-1.0")
    shelf.put_tiny("f_good", seed=4)
    shelf.tables["e_plan"] = {"summary": "s", "architecture": "resnet3d", "status": "recipe", "reason": "a test"}
    shelf.write()
    monkeypatch.setattr(cli, "all_entries", lambda: {name: get_entry(name) for name in sorted(shelf.tables)})
    return shelf


def test_fetch_all(run: Run, mixed: Shelf, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    code, out, err = run("fetch", "--all", "--report", report)
    assert code == 1, "one failed"
    names = ["a_wrong", "b_good", "c_folder", "d_held", "f_good"]
    steps = [line for line in out.splitlines() if line.endswith(" ...")]
    want = [f"{number}/5 {name} ..." for number, name in enumerate(names, 1)]
    assert steps == want, "what has no weights is not tried"
    assert "5 of 5 entries: 1 failed, 2 ok, 1 by hand, 1 consent" in out
    told = err.splitlines()
    assert [line.partition(": ")[0] for line in told] == ["error", "by hand", "consent"]
    assert "svd-hub convert c_folder c_folder.pth" in told[1]
    assert "https://drive/x," in told[1]
    assert all(words in told[2] for words in ("Held-1.0", "https://terms", "selling it"))
    written = json.loads(report.read_text())
    assert [(entry["name"], entry["result"]) for entry in written["entries"]] == list(
        zip(names, ["failed", "ok", "by hand", "consent", "ok"], strict=True)
    )
    assert tomllib.loads(written["catalogue_patch"]) == {}
    (mixed.mirror / "a_wrong.pth").write_bytes(ours(TINY))
    code, out, err = run("fetch", "--all", "--accept-licence", "--report", report)
    assert code == 0, "what has to be done by hand is no failure"
    assert "5 of 5 entries: 4 ok, 1 by hand" in out
    assert json.loads(report.read_text())["results"] == {"ok": 4, "by hand": 1}


def test_fetch_all_or_names(run: Run, tmp_path: Path) -> None:
    for args in (("fetch",), ("fetch", "--all", OFFICIAL)):
        code, out, err = run(*args)
        assert (code, out) == (1, "")
        assert err == "error: fetch needs entries, or --all, and not both. Next: svd-hub list\n"
    code, out, err = run("fetch", OFFICIAL, "--report", tmp_path / "none" / "report.json")
    assert (code, out) == (1, "")
    assert "cannot be written: No such file" in err, "before anything is fetched"


def test_an_error_that_nobody_foresaw_is_told(run: Run, mixed: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    from svd_hub import survey

    def load(name: str, **_: object) -> object:
        raise MemoryError(f"for {name}")

    monkeypatch.setattr(survey, "load", load)
    code, out, err = run("fetch", "b_good", "f_good")
    assert code == 1
    assert [*err.splitlines()] == [f"error: unexpected MemoryError: for {name}" for name in ("b_good", "f_good")]
    assert "2 of 2 entries: 2 failed" in out


# A shell starts what runs behind it with SIGINT ignored, and that is inherited: the command is to get it all the same.
WITH_CTRL_C = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("svd_hub", run_name="__main__")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_leaves_a_report_and_the_next_run_goes_on(
    shelf: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SVD_HUB_MIRROR")
    gate, reached = threading.Event(), threading.Event()
    bodies = [ours(TINY, seed=seed) for seed in range(2)]

    def held(handler: servers.Handler) -> None:
        """Send the first bytes; the rest never comes while the command runs, however long that takes."""
        with contextlib.suppress(OSError):
            handler.send(200, {"Content-Length": str(len(bodies[1]))}, bodies[1][:1000])
            reached.set()
            gate.wait()

    steps = held, servers.ok(bodies[1])
    shelf.put_tiny("one", source={"url": server.add("/one.pth", servers.ok(bodies[0]))})
    shelf.put_tiny("two", seed=1, source={"url": server.add("/two.pth", *steps)})
    report = tmp_path / "report.json"
    command = [sys.executable, "-c", WITH_CTRL_C, "fetch", "one", "two", "--report", str(report)]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    try:
        assert reached.wait(120)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=120)
    finally:
        gate.set()
        child.kill()
        child.wait()
    assert child.returncode == 130, err
    assert "Traceback" not in err
    assert "1 of 2 entries: 1 ok" in out
    assert "stopped. Next: the same command again" in out
    told = json.loads(report.read_text())
    assert (told["asked"], told["done"], told["results"]) == (2, 1, {"ok": 1})
    assert list((store.cache_dir() / "tmp").iterdir()) == [], "nothing half-done is left"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert json.loads(report.read_text())["results"] == {"ok": 2}
    assert [len(server.gets(path)) for path in ("/one.pth", "/two.pth")] == [1, 2]


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


def test_convert_tells_the_terms(run: Run, shelf: Shelf, tmp_path: Path) -> None:
    """A file on one's own disk passes no gate; what it may be used for is said all the same."""
    shelf.put_licence("Held-1.0", url="https://terms", forbids="selling it")
    path = shelf.put_tiny("held", licence="Held-1.0")
    for args in (("held", path), ("held", path, "--to", tmp_path / "mine.safetensors")):
        code, out, err = run("convert", *args)
        assert (code, err) == (0, "")
        assert out.splitlines()[-1] == TERMS
    assert run("fetch", "held")[0] == 1, "the entry asks nevertheless"
    shelf.put_tiny("free", seed=1)
    assert "licence" not in run("convert", "free", shelf.mirror / "free.pth")[1]


def test_convert_says_how_to_use_another_file(run: Run, shelf: Shelf, tmp_path: Path) -> None:
    shelf.put_tiny()
    other = tmp_path / "other.pth"
    other.write_bytes(ours(TINY, seed=9))
    code, _, err = run("convert", "tiny", other)
    assert code == 1
    step = err.partition("Next: ")[2]
    assert "svd-hub info tiny" in step
    assert "--to FILE.safetensors" in step
    (line,) = re.findall(r"svd_hub\.load\(.*?\)", step)
    model = eval(line, {"svd_hub": svd_hub})
    assert (model.conv1.weight == values(TINY, seed=9)["conv1.weight"]).all()
    assert run("convert", "tiny", other, "--to", tmp_path / "other.safetensors")[0] == 0


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
    assert missing["[volume]"] == 'in the checkout: pip install -c constraints.txt -e ".[volume]"'


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


def test_fetch_takes_names(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(ours(TINY))
    code, _, err = run("fetch", path)
    assert code == 1
    assert "no entry" in err


def test_no_flag_asks_for_a_value_and_none_is_there_twice(run: Run) -> None:
    for command in ("predict", "fetch", "cache", "list"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert not re.search(r"<bool>|--no-(each|names|overwrite|accept|clean)", out), out


def test_own_files_have_a_card_and_can_be_verified(run: Run, tmp_path: Path) -> None:
    model = svd_hub.load("resnet3d18w16_lidc", weights=None, width=4, depth=10)
    file = tmp_path / "run" / "model.safetensors"
    file.parent.mkdir()
    svd_hub.save(model, file, classes=("lean", "stout"))
    for place in (file, file.parent):
        code, out, _ = run("info", place)
        assert code == 0
        assert "| classes | 2: lean, stout |" in out
        assert "opened" not in out, "that is said of the catalogue's"
        code, out, _ = run("verify", place)
        assert code == 0
        assert re.search(r"^ +ok .*sha256 [0-9a-f]{64}, \d+ tensors of a resnet3d", out.replace("\n", " ")), out
        assert svd_hub.load(place).classes == ("lean", "stout")
    code, _, err = run("verify", tmp_path / "gone.safetensors")
    assert (code, "no such file" in err) == (1, True)
    (tmp_path / "empty").mkdir()
    code, _, err = run("info", tmp_path / "empty")
    assert (code, "holds no model.safetensors; allowed: the folder of a finished run" in err) == (1, True)
    with file.open("r+b") as data:
        data.seek(-4, os.SEEK_END)
        data.write(b"\x00\x00\xc0\x7f")  # NaN
    code, out, _ = run("verify", file)
    assert (code, "1 tensors hold NaN or infinity" in out) == (1, True)


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "" if name == "monai" else "1.0")
    (volume,) = [one for one in doctor.examine() if one.what == "[volume]"]
    assert volume.found == "SimpleITK 1.0, highdicom 1.0, pydicom 1.0, pillow 1.0; missing: monai"
