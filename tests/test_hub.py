"""Laws of load(): what is loaded is what was promised, wrong bytes never become a model, and every change is told."""

from __future__ import annotations

import copy
import dataclasses
import errno
import functools
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
import torch
from synthetic import NARROW, OFFICIAL, OFFICIAL_FILE, TINY, Shelf, official, ours, values, with_code
from torch import Tensor

import svd_hub
from svd_hub import checkpoint, hub, models, store, transport
from svd_hub.canonical import convert_file, converter_version
from svd_hub.catalog import get_entry
from svd_hub.errors import (
    CheckpointError,
    DownloadError,
    IntegrityError,
    OptionError,
    SvdHubError,
    UnknownEntryError,
    WeightsUnavailableError,
)

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.filterwarnings("ignore::svd_hub.hub.LicenceWarning")
X = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
GREY = X[:, :1]


def reported(name: Any, **options: Any) -> tuple[Any, svd_hub.LoadReport]:
    model, report = svd_hub.load(name, progress=False, return_report=True, **options)
    return model, report


@torch.no_grad()
def run(model: Any, x: Tensor = X) -> Tensor:
    return model(x)


def equal(model: Any, tensors: dict[str, Tensor]) -> bool:
    state = model.state_dict()
    return state.keys() == tensors.keys() and all(torch.equal(state[k], tensors[k]) for k in state)


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for the last bits: a kernel may take another path where a tensor lies at another address."""
    return torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.detach().abs().max()))


def nothing_kept() -> bool:
    tmp = store.cache_dir() / "tmp"
    return store.usage() == [] and (not tmp.exists() or list(tmp.iterdir()) == [])


# ---- the official file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["server", "mirror"])
def test_official_layout(shelf: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    body = official(**NARROW)
    url = server.add("/r18.pth", servers.ranged(body))
    shelf.put_official(url=url)
    if place == "server":
        monkeypatch.delenv("SVD_HUB_MIRROR")
    for look in ("fetched", "cached"):
        model, report = reported(OFFICIAL)
        told = str(report)
        assert "120 of 120 tensors" in told, look
        assert report.matched == tuple(model.state_dict())
        assert (report.total, report.missing, report.unexpected, report.adapted) == (120, (), (), ())
        assert report.source_sha256 == hashlib.sha256(body).hexdigest()
        assert report.overlay == str(shelf.overlay)
        assert str(shelf.overlay) in told
        assert "(checked)" in told
        assert any("20 float16 tensors were cast to float32" in note for note in report.notes)
        assert json.loads(json.dumps(report.as_dict()))["total"] == 120
    local = store.cached(get_entry(OFFICIAL), converter_version=converter_version(get_entry(OFFICIAL)))
    assert local is not None
    assert report.sha256 == local.sha256 == hashlib.sha256(local.path.read_bytes()).hexdigest()
    want = {k: v.float() if v.is_floating_point() else v for k, v in values({"depth": 18, **NARROW}, half=True).items()}
    assert equal(model, want)
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"cpu"}
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert len(server.gets()) == (1 if place == "server" else 0)


def test_without_the_overlay_the_entry_refuses_that_file(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shelf.put_official()
    monkeypatch.delenv("SVD_HUB_CATALOG")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(IntegrityError) as caught:
        svd_hub.load(OFFICIAL)
    for words in (OFFICIAL, "5ff2ecb7", digest, str(path), "Next: "):
        assert words in str(caught.value)
    assert nothing_kept()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, "the mirror is not ours to clean"


# ---- wrong files ---------------------------------------------------------------------------------------------------

GOOD = official(**NARROW)


def flipped(body: bytes, at: int | None = None) -> bytes:
    at = len(body) // 2 if at is None else at
    return body[:at] + bytes([body[at] ^ 16]) + body[at + 1 :]


WRONG: dict[str, tuple[bytes, str, str]] = {
    # name: the bytes; what is said where the hash is known; what is said where nothing is known
    "truncated": (GOOD[: len(GOOD) // 2], "cut off", "its end is missing"),
    "flipped": (flipped(GOOD), "got sha256", "damaged or no checkpoint"),
    "html": (servers.QUOTA_PAGE, "an HTML page titled 'Google Drive - Quota exceeded'", "an HTML page"),
    "lfs": (servers.LFS_POINTER, "a Git LFS pointer", "a Git LFS pointer"),
    "empty": (b"", "an empty file", "an empty file"),
    "other model": (official(depth=34, **NARROW), "bytes or more, allowed", "depth 34, not 18"),
    "other width": (official(width=16), "bytes or more, allowed", "width 16, not 8"),
    "two-dimensional": (ours(TINY), "got sha256", "is not a checkpoint of"),
}


@pytest.mark.parametrize("known", [True, False], ids=["hash known", "nothing known"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_file_is_refused(
    shelf: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch, kind: str, known: bool
) -> None:
    shelf.put_tiny()
    other, _ = reported("tiny")
    monkeypatch.delenv("SVD_HUB_MIRROR")
    kept = [(item.path, item.path.read_bytes()) for item in store.usage()]
    body, words_known, words_unknown = WRONG[kind]
    url = server.add("/r18.pth", servers.ok(body))
    shelf.put_official(GOOD, url=url, **({} if known else {"sha256": "", "size": 0}))
    with pytest.raises((IntegrityError, CheckpointError, DownloadError)) as caught:
        svd_hub.load(OFFICIAL)
    told = str(caught.value)
    assert (words_known if known else words_unknown) in told
    for words in (OFFICIAL_FILE if known else OFFICIAL, "Next: "):
        assert words in told
    if known and len(body) <= len(GOOD):
        assert len(server.gets()) == 2, "once more, then reported"
        assert hashlib.sha256(body).hexdigest() in told
    if known:
        assert str(store.incoming_path(get_entry(OFFICIAL))) in told
    assert [(item.path, item.path.read_bytes()) for item in store.usage()] == kept, "other files are untouched"
    assert list((store.cache_dir() / "tmp").iterdir()) == []
    # The next load, of a server that has come to its senses, works.
    shelf.put_official(GOOD, url=server.add("/r18.pth", servers.ok(GOOD)))
    assert reported(OFFICIAL)[1].matched
    assert equal(other, values(TINY))


@pytest.mark.parametrize("how", ["hub", "weights", "name"])
def test_pickled_code_is_never_run(shelf: Shelf, tmp_path: Path, how: str) -> None:
    sentinel = tmp_path / "owned"
    path = shelf.put_official(with_code(sentinel))
    name, options = {"hub": (OFFICIAL, {}), "weights": (OFFICIAL, {"weights": path}), "name": (path, {})}[how]
    with pytest.raises(CheckpointError, match=r"Next: ") as caught:
        svd_hub.load(name, **options)
    assert how == "name" or "mkdir" in str(caught.value)
    assert not sentinel.exists()
    assert nothing_kept()
    assert path.exists()


# ---- the server, the network, the disk -----------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(transport.download, pause=lambda _: None, timeout=0.3)
    monkeypatch.setattr(transport, "download", quick)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (servers.status(404), "HTTP 404"),
        (servers.status(429), "HTTP 429"),
        (servers.status(500), "HTTP 500"),
        (servers.reset, "the connection failed"),
        (servers.drip(GOOD, first=1000, gate=threading.Event()), "too slow"),
        (servers.drop(GOOD, after=1000, etag=""), "broke off at 1000"),
    ],
    ids=["404", "429", "500", "reset", "slow", "drop"],
)
@pytest.mark.usefixtures("impatient")
def test_server_that_fails(
    shelf: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch, step: Any, words: str
) -> None:
    monkeypatch.delenv("SVD_HUB_MIRROR")
    shelf.put_official(GOOD, url=server.add("/r18.pth", step))
    with pytest.raises(DownloadError) as caught:
        svd_hub.load(OFFICIAL)
    for part in (words, server.url("/r18.pth"), OFFICIAL_FILE, str(store.incoming_path(get_entry(OFFICIAL))), "Next: "):
        assert part in str(caught.value)
    assert nothing_kept()
    # What the message says to do, done:
    store.incoming_path(get_entry(OFFICIAL)).write_bytes(GOOD)
    assert len(reported(OFFICIAL)[1].matched) == 120


@pytest.mark.parametrize("name", ["SVD_HUB_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline(shelf: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("SVD_HUB_MIRROR")
    monkeypatch.setenv(name, "1")
    shelf.put_official(GOOD, url=server.add("/r18.pth", servers.ok(GOOD)))
    with pytest.raises(DownloadError, match=f"{name}.*forbids the network.*{OFFICIAL_FILE}"):
        svd_hub.load(OFFICIAL)
    assert server.seen == []
    monkeypatch.delenv(name)
    svd_hub.load(OFFICIAL)
    monkeypatch.setenv(name, "1")
    assert reported(OFFICIAL)[1].matched, "what is here needs no network"


def test_nobody_listens(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SVD_HUB_MIRROR")
    shelf.put_official(GOOD, url="http://127.0.0.1:9/r18.pth")
    with pytest.raises(DownloadError, match=f"the connection failed.*{OFFICIAL_FILE}"):
        svd_hub.load(OFFICIAL)


def test_full_disk_while_converting(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.put_tiny()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(DownloadError, match=r"cannot write in .*home.*No space left.*Next: free some space"):
        svd_hub.load("tiny")
    with pytest.raises(SvdHubError, match=r"cannot write .*x\.safetensors: No space left.*Next: "):
        svd_hub.save(svd_hub.load("tiny", weights=None), store.cache_dir() / "x.safetensors")
    assert nothing_kept()


def test_home_that_cannot_be_written(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shelf.put_tiny()
    (tmp_path / "file").touch()
    monkeypatch.setenv("SVD_HUB_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(DownloadError, match=r"cannot write in .*Next: .*SVD_HUB_HOME"):
        svd_hub.load("tiny")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_home(shelf: Shelf, home: Path) -> None:
    shelf.put_tiny()
    home.mkdir()
    home.chmod(0o500)
    with pytest.raises(DownloadError, match=r"cannot write in .*Next: .*SVD_HUB_HOME"):
        svd_hub.load("tiny")


# ---- other processes -----------------------------------------------------------------------------------------------

CHILD = """
import sys
import svd_hub
svd_hub.load
print("ready", flush=True)
model, report = svd_hub.load(sys.argv[1], progress=False, return_report=True)
print(report.sha256, len(report.matched), flush=True)
"""


def child(name: str, *before: str, code: str = CHILD) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    args = [*before, sys.executable, "-W", "ignore", "-c", code, name]
    return subprocess.Popen(args, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("count", [6, pytest.param(16, marks=pytest.mark.slow)])
def test_many_processes_one_download(
    shelf: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.delenv("SVD_HUB_MIRROR")
    body = official(depth=10, width=4)
    gate = threading.Event()
    url = server.add("/r.pth", servers.drip(body, first=1000, gate=gate))
    shelf.put(OFFICIAL, body, source={"url": url}, options={"depth": 10, "width": 4})
    children = [child(OFFICIAL) for _ in range(count)]
    for one in children:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    time.sleep(0.3)  # the last one's way from there to the lock; the first one's download hangs since long before
    gate.set()
    told = [one.communicate(timeout=200) for one in children]
    assert [one.returncode for one in children] == [0] * count, told
    assert len({out for out, _ in told}) == 1
    assert len(server.seen) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_during_a_download(shelf: Shelf, server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SVD_HUB_MIRROR")
    gate, reached = threading.Event(), threading.Event()
    steps = servers.drip(GOOD, first=len(GOOD) // 2, gate=gate, reached=reached), servers.ok(GOOD)
    shelf.put_official(GOOD, url=server.add("/r.pth", *steps))
    victim = child(OFFICIAL)
    assert reached.wait(60)
    victim.kill()
    victim.communicate(timeout=20)
    gate.set()
    assert list((store.cache_dir() / "tmp").iterdir()), "the test killed too late"
    assert len(reported(OFFICIAL)[1].matched) == 120
    assert list((store.cache_dir() / "tmp").iterdir()) == []


NO_SOCKET = """
import socket, sys
class Refused(socket.socket):
    def __init__(self, *args, **kwargs):
        raise SystemExit("a socket was opened")
def refuse(event, args):
    if event.startswith("socket."):
        raise SystemExit(f"a socket was touched: {event}")
sys.addaudithook(refuse)
socket.socket = Refused
"""


def test_cached_entry_opens_no_socket(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.put_tiny()
    shelf.put_tiny("absent", seed=1)
    svd_hub.load("tiny")
    monkeypatch.delenv("SVD_HUB_MIRROR")
    one = child("tiny", code=NO_SOCKET + CHILD)
    out, err = one.communicate(timeout=100)
    assert one.returncode == 0, err
    assert out.split()[-1] == str(len(values(TINY)))
    other = child("absent", code=NO_SOCKET + CHILD)
    _, err = other.communicate(timeout=100)
    assert other.returncode != 0, "the trap works"
    assert "a socket was" in err


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_no_socket_seen_from_outside(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shelf.put_tiny()
    svd_hub.load("tiny")
    monkeypatch.delenv("SVD_HUB_MIRROR")
    trace = tmp_path / "trace"
    one = child("tiny", "strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=socket,connect", "-o", str(trace))
    _, err = one.communicate(timeout=100)
    if "ptrace" in err or not trace.exists():
        pytest.skip("strace may not trace here")
    assert one.returncode == 0, err
    assert "socket(" not in trace.read_text()


# ---- loading rules -------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(shelf: Shelf) -> Shelf:
    shelf.put_tiny()
    return shelf


@pytest.mark.usefixtures("tiny")
def test_random_weights_are_asked_for_and_told() -> None:
    torch.manual_seed(0)
    model, report = reported("tiny", weights=None, depth=18, num_classes=2)
    assert report.matched == ()
    assert report.missing == tuple(model.state_dict())
    assert "random weights, as asked for" in str(report)
    assert not model.training
    assert model.fc.out_features == 2
    torch.manual_seed(1)
    assert not equal(svd_hub.load("tiny", weights=None, depth=18, num_classes=2), model.state_dict())
    assert store.usage() == []


def test_recipe_names_the_next_step() -> None:
    with pytest.raises(WeightsUnavailableError) as caught:
        svd_hub.load("resnet3d34_imagenet")
    told = str(caught.value)
    assert "status recipe" in told
    assert get_entry("resnet3d34_imagenet").reason in told
    line = told.partition("Next: ")[2].partition(" for a random")[0]
    assert line == 'svd_hub.load("resnet3d34_imagenet", weights=None)'
    assert eval(line, {"svd_hub": svd_hub}).num_classes == 1000


def test_recipe_takes_a_file(shelf: Shelf, tmp_path: Path) -> None:
    """Whoever has trained one, or has the authors' file, uses it under its name."""
    options = {"depth": 34, "num_classes": 3, "width": 4}
    table = {"options": options, "origin": "svdnet_imagenet", "status": "recipe", "source": {"kind": "none"}}
    shelf.tables["resnet3d34_imagenet"] = table
    shelf.write()
    upstream = tmp_path / "upstream.pth"
    base = values(options)
    torch.save({"state_dict": {f"{'head' if k[:2] == 'fc' else 'backbone'}.{k}": v for k, v in base.items()}}, upstream)
    model, report = reported("resnet3d34_imagenet", weights=upstream)
    assert equal(model, base)
    assert len(report.renamed) == len(report.matched) == report.total
    with pytest.raises(OptionError, match=r"no upstream file.*--to FILE"):
        convert_file("resnet3d34_imagenet", upstream)
    told = convert_file("resnet3d34_imagenet", upstream, to=tmp_path / "mine.safetensors")
    assert f"written to {tmp_path / 'mine.safetensors'}" in str(told)
    assert equal(svd_hub.load(tmp_path / "mine.safetensors"), base)


@pytest.mark.usefixtures("tiny")
def test_same_output_as_the_network_itself() -> None:
    plain = models.build("resnet3d", TINY).eval()
    plain.load_state_dict(values(TINY))
    model, report = reported("tiny")
    assert close(run(model), run(plain))
    assert report.matched == tuple(model.state_dict())
    assert model.entry == get_entry("tiny")
    assert model.preprocess == get_entry("tiny").preprocess
    assert model.options == TINY


@pytest.mark.usefixtures("tiny")
def test_head_change() -> None:
    base = values(TINY)
    model, report = reported("tiny", num_classes=7)
    assert run(model).shape == (1, 7)
    assert report.missing == ("fc.bias", "fc.weight")
    assert len(report.matched) == report.total - 2
    assert all(torch.equal(t, base[k]) for k, t in model.state_dict().items() if not k.startswith("fc."))
    headless, report = reported("tiny", num_classes=0)
    assert run(headless).shape == (1, 32)
    assert len(report.matched) == report.total == len(headless.state_dict())
    assert "head dropped" in str(report)
    assert close(run(svd_hub.load("tiny")), base["fc.bias"] + run(headless) @ base["fc.weight"].T)
    same, report = reported("tiny", num_classes=5)
    assert equal(same, base), "the same number of classes is the same head"


@pytest.mark.usefixtures("tiny")
def test_input_channels() -> None:
    want = run(svd_hub.load("tiny"), GREY.expand(-1, 3, -1, -1, -1))
    one, report = reported("tiny", in_channels=1)
    assert close(run(one, GREY), want)
    assert "conv1.weight" not in report.matched
    assert "input channels by sum" in str(report)
    assert one.in_channels == 1
    mean = svd_hub.load("tiny", in_channels=1, in_channels_rule="mean")
    assert torch.allclose(mean.conv1.weight * 3, one.conv1.weight)
    with pytest.raises(OptionError, match="in_channels_rule='max'"):
        svd_hub.load("tiny", in_channels=1, in_channels_rule="max")
    with pytest.raises(OptionError, match="in_channels=0"):
        svd_hub.load("tiny", in_channels=0)


@pytest.mark.usefixtures("tiny")
def test_spatial_options_change_strides_and_no_value() -> None:
    base, x = values(TINY), torch.zeros(1, 3, 32, 64, 64)
    for options, strides in (
        ({}, [(1, 2, 2), (1, 4, 4), (1, 8, 8), (1, 16, 16), (1, 32, 32)]),
        ({"depth_stride": 2}, [(2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16), (32, 32, 32)]),
        ({"output_stride": 8}, [(1, 2, 2), (1, 4, 4), (1, 8, 8), (1, 8, 8), (1, 8, 8)]),
        ({"depth_stride": 2, "output_stride": 16}, [(2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16), (16, 16, 16)]),
        ({"stem_pool": False}, [(1, 2, 2), (1, 2, 2), (1, 4, 4), (1, 8, 8), (1, 16, 16)]),
    ):
        model, report = reported("tiny", **options)
        assert equal(model, base)
        assert len(report.matched) == report.total
        assert [f.stride for f in model.feature_info] == strides
        for feature, level in zip(model.feature_info, model.features(x).values(), strict=True):
            size = tuple(n // s for n, s in zip(x.shape[2:], feature.stride, strict=True))
            assert level.shape == (1, feature.channels, *size)


@pytest.mark.usefixtures("tiny")
def test_features_only_is_the_pyramid() -> None:
    model, report = reported("tiny", features_only=True)
    pyramid = run(model)
    assert list(pyramid) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    want = svd_hub.load("tiny").features(X)
    assert all(close(pyramid[k], want[k]) for k in want)
    assert not hasattr(model, "fc")
    assert "head dropped" in str(report)


@pytest.mark.usefixtures("tiny")
def test_options_are_checked_before_anything_is_fetched() -> None:
    for options, words in (
        ({"width": 8}, "width=8 does not fit the weights of 'tiny', which are width=4"),
        ({"shortcut": "A"}, "shortcut='A' does not fit.*shortcut='B'"),
        ({"depth_strid": 2}, "no option 'depth_strid'; nearest: depth_stride"),
        ({"depth_stride": 3}, "depth_stride=3 is not allowed; allowed: 1, 2"),
        ({"output_stride": 7}, "output_stride=7"),
        ({"weights": 3}, "weights=3 is not allowed"),
        ({"weights": None, "widht": 8}, "no option 'widht'.*nearest to 'widht': width"),
    ):
        with pytest.raises(OptionError, match=words):
            svd_hub.load("tiny", **options)
    assert nothing_kept()
    assert equal(svd_hub.load("tiny", width=4), values(TINY)), "what the weights have may be said"
    with pytest.raises(CheckpointError, match=r"does not fit 'tiny' with these options.*Next: "):
        svd_hub.load("tiny", strides=(2, 2, 2, 2))


def test_unknown_names() -> None:
    with pytest.raises(UnknownEntryError, match="nearest: resnet3d18_imagenet"):
        svd_hub.load("resnet3d18_imagene")
    for path in ("nowhere/x", "x.safetensors", Path("x")):
        with pytest.raises(CheckpointError, match=r"no such file.*Next: "):
            svd_hub.load(path)


@pytest.mark.usefixtures("tiny")
def test_weights_from_a_file_of_upstream(tmp_path: Path) -> None:
    for wrapped, file in (({"state_dict": values(TINY, seed=7)}, "a.pth"), (values(TINY, seed=7), "b.pt")):
        torch.save(wrapped, tmp_path / file)
        model, report = reported("tiny", weights=tmp_path / file, num_classes=2)
        base = values(TINY, seed=7)
        assert all(torch.equal(t, base[k]) for k, t in model.state_dict().items() if not k.startswith("fc."))
        assert report.source == str(tmp_path / file)
        assert report.sha256 == hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
        assert "(checked)" not in str(report), "nobody promised this hash"
    assert nothing_kept()
    with pytest.raises(CheckpointError, match=r"a\.pth does not say which network it is.*Next: .*weights="):
        svd_hub.load(tmp_path / "a.pth")


@pytest.mark.usefixtures("tiny")
def test_save_and_load(tmp_path: Path) -> None:
    model = svd_hub.load("tiny", num_classes=2, depth_stride=2, in_channels=1)
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.cat([GREY, -GREY])).square().sum().backward()
        optimiser.step()
    model.eval()
    model.preprocess = svd_hub.Preprocess(modality="CT", spacing=(2.0, 1.0, 1.0), window=(-100.0, 240.0))
    path = tmp_path / "mine.safetensors"
    assert svd_hub.save(model, path, classes=("benign", "malignant")) == path
    for name, options in ((path, {}), (str(path), {}), ("tiny", {"weights": path}), ("tiny", {"weights": str(path)})):
        again, report = reported(name, **options)
        assert equal(again, model.state_dict())
        assert close(run(again, GREY), run(model, GREY))
        assert report.matched == tuple(model.state_dict())
        assert again.entry.classes == ("benign", "malignant")
        assert again.preprocess == model.preprocess
        assert again.options == model.options
        assert again.entry.licence == "CC0-1.0"
        assert not again.training
    assert again.entry.name == "tiny"
    _, report = reported(path, num_classes=3)
    assert report.missing == ("fc.bias", "fc.weight")
    assert svd_hub.load(path, weights=None).fc.out_features == 2
    twice = svd_hub.save(svd_hub.load(path), tmp_path / "twice.safetensors")
    assert checkpoint.read(twice).tensors.keys() == checkpoint.read(path).tensors.keys()
    assert svd_hub.load(twice).entry.classes == ("benign", "malignant")


@pytest.mark.usefixtures("tiny")
def test_save_keeps_the_entry_s_classes_where_they_fit(tmp_path: Path) -> None:
    for options, classes in (({}, tuple("abcde")), ({"num_classes": 2}, ()), ({"num_classes": 0}, ())):
        path = svd_hub.save(svd_hub.load("tiny", **options), tmp_path / "m.safetensors")
        assert svd_hub.load(path).entry.classes == classes


@pytest.mark.usefixtures("tiny")
def test_save_refuses_what_load_could_not_rebuild(tmp_path: Path) -> None:
    model, path = svd_hub.load("tiny", depth_stride=2), tmp_path / "m.safetensors"
    preserved, _ = svd_hub.preserve_depth(model)
    with pytest.raises(OptionError, match=r"other strides or paddings.*Next: "):
        svd_hub.save(preserved, path)
    assert svd_hub.save(svd_hub.restore_depth(preserved), path) == path
    assert svd_hub.save(copy.deepcopy(model), path) == path
    path.unlink()
    with pytest.raises(OptionError, match="4 classes for 5 outputs"):
        svd_hub.save(model, path, classes=tuple("abcd"))
    with pytest.raises(OptionError, match=r"ends with \.safetensors"):
        svd_hub.save(model, tmp_path / "m.pth")
    with pytest.raises(SvdHubError, match=r"cannot write .*Next: "):
        svd_hub.save(model, tmp_path / "none" / "m.safetensors")
    with pytest.raises(OptionError, match="Linear does not come from"):
        svd_hub.save(torch.nn.Linear(1, 1), path)
    model.fc = torch.nn.Linear(32, 9)
    with pytest.raises(OptionError, match=r"9 classes, not 5.*Next: .*num_classes"):
        svd_hub.save(model, path)
    assert list(tmp_path.glob("*.safetensors")) == []


@pytest.mark.usefixtures("tiny")
def test_a_file_of_ours_for_another_network_is_refused(tmp_path: Path) -> None:
    path = svd_hub.save(svd_hub.load("tiny"), tmp_path / "m.safetensors")
    for name in (OFFICIAL, "mp3d63_coco"):
        with pytest.raises(CheckpointError, match=rf"holds a resnet3d.*{name}.*Next: svd_hub\.load"):
            svd_hub.load(name, weights=path)


def test_a_file_of_the_cache_is_a_file_of_ours(tiny: Shelf, tmp_path: Path) -> None:
    svd_hub.load("tiny")
    (used,) = store.usage()
    file = Path(shutil.copy(used.path, tmp_path / "copy.safetensors"))
    model = svd_hub.load(file)
    assert equal(model, values(TINY))
    assert model.entry.classes == tuple("abcde")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        svd_hub.load(file)


@pytest.mark.parametrize(
    "wrong", [{"classes": 5}, {"task": "sorting"}, {"preprocess": [1]}, {"preprocess": {"a": 1}}], ids=str
)
def test_a_damaged_record_is_told(tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = tmp_path / "m.safetensors"
    checkpoint.write(path, values(TINY), {"architecture": "resnet3d", "options": TINY, **wrong})
    with pytest.raises((CheckpointError, OptionError), match=r"record is damaged|preprocess of 'm"):
        svd_hub.load(path)


@pytest.mark.usefixtures("tiny")
def test_training_in_place_leaves_the_cache_alone() -> None:
    model = svd_hub.load("tiny")
    (used,) = store.usage()
    before = used.path.read_bytes()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    model.train()(torch.cat([X, X])).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9).step()
    assert used.path.read_bytes() == before
    assert equal(svd_hub.load("tiny"), values(TINY)), "no model sees another's changes"


@pytest.mark.usefixtures("tiny")
def test_a_loaded_model_survives_its_file() -> None:
    model = svd_hub.load("tiny")
    (used,) = store.usage()
    junk = used.path.with_suffix(".junk")
    junk.write_bytes(bytes(used.size))
    os.replace(junk, used.path)
    assert equal(model, values(TINY))
    used.path.unlink()
    assert run(model).isfinite().all()


@pytest.mark.usefixtures("tiny")
def test_copies_carry_their_entry(tmp_path: Path) -> None:
    model = svd_hub.load("tiny")
    torch.save(model, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), whole):
        assert again.entry == model.entry
        assert again.preprocess == model.preprocess
        assert equal(again, model.state_dict())
        assert close(run(again), run(model))
    assert model.preprocess(np.zeros((3, 4, 5))).shape == (1, 1, 3, 4, 5)


# ---- licences ------------------------------------------------------------------------------------------------------


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


def test_the_conversion_key_tells_options_origins_and_versions_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from svd_hub import canonical, origins

    entry = svd_hub.get_entry("resnet3d18_imagenet")
    keys = {
        canonical.converter_version(entry),
        canonical.converter_version(dataclasses.replace(entry, options={**entry.options, "width": 8})),
        canonical.converter_version(dataclasses.replace(entry, origin="svdnet_coco")),
    }
    monkeypatch.setattr(origins, "CONVERTER_VERSION", origins.CONVERTER_VERSION + 1)
    keys.add(canonical.converter_version(entry))
    assert len(keys) == 4


def test_preprocess_follows_the_input_channels() -> None:
    model = svd_hub.load("resnet3d18w16_lidc", in_channels=2)
    x = model.preprocess(np.zeros((20, 20, 20), np.int16), spacing=(1, 1, 1))
    assert model(x).shape == (1, 2)


def test_a_saved_pyramid_gets_a_head_only_when_asked(tmp_path: Path) -> None:
    file = tmp_path / "pyramid.safetensors"
    svd_hub.save(svd_hub.load("resnet3d18w16_lidc", features_only=True), file)
    assert isinstance(svd_hub.load(file)(torch.zeros(1, 1, 32, 32, 32)), dict)
    with pytest.raises(OptionError, match="exclude each other"):
        svd_hub.load(file, num_classes=3)
    assert svd_hub.load(file, num_classes=3, features_only=False)(torch.zeros(1, 1, 32, 32, 32)).shape == (1, 3)


def test_save_refuses_a_changed_module(tmp_path: Path) -> None:
    model = svd_hub.load("resnet3d18w16_lidc")
    model.layer1[0].relu = torch.nn.GELU()
    with pytest.raises(OptionError, match="another kind"):
        svd_hub.save(model, tmp_path / "changed.safetensors")


def test_a_users_file_is_not_called_ours(tmp_path: Path) -> None:
    svd_hub.save(svd_hub.load("resnet3d18w16_lidc"), tmp_path / "mine.safetensors")
    entry = svd_hub.load(tmp_path / "mine.safetensors").entry
    assert (entry.status, entry.checked) == ("derived", "never")
    assert entry.citation == svd_hub.get_entry("resnet3d18w16_lidc").citation


def test_a_number_that_is_a_word_is_shown_as_one() -> None:
    with pytest.raises(OptionError, match=r"num_classes='2' are not allowed; allowed: whole numbers"):
        svd_hub.load("resnet3d18w16_lidc", weights=None, num_classes="2")
