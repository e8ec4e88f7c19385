"""The runners without torch: what they are given, and what they say to anything else."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_export import exportable, follow_once
from helpers_networks import sides

from svd_hub.errors import IntegrityError, OptionError
from svd_hub.export import artifact, export, run_onnx, run_openvino, verify

RUNNERS = {"onnx": run_onnx.Runner, "openvino": run_openvino.Runner}
SHAPE = (1, 1, *sides("pooled"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An artifact of each runner's format, whose batch and depth alone are open."""
    with pytest.MonkeyPatch.context() as patch:
        follow_once(patch, "pooled")
        folder = tmp_path_factory.mktemp("made")
        take = functools.partial(export, exportable("pooled"), shape=SHAPE[2:], dynamic=("batch", "depth"))
        return {to: take(to, folder / to) for to in RUNNERS}


@pytest.mark.parametrize("to", RUNNERS)
@pytest.mark.parametrize(
    ("volume", "told"),
    [
        (np.zeros(SHAPE), "float64"),
        (np.zeros(SHAPE[1:], np.float32), r"float32 \(1, "),
        (np.zeros((*SHAPE[:4], SHAPE[4] + 1), np.float32), f"{SHAPE[4] + 1}"),
        (np.zeros((1, 3, *SHAPE[2:]), np.float32), r"\(1, 3, "),
        ([[0.0]], "list"),
    ],
    ids=["type", "rank", "a closed axis", "channels", "no array"],
)
def test_what_a_volume_is(made: Any, to: str, volume: Any, told: str) -> None:
    run = RUNNERS[to](made[to].folder)
    with pytest.raises(OptionError, match=rf"a volume .*{told}.* allowed: an array float32 \(batch, 1, depth, "):
        run(volume)
    deeper = np.zeros((2, 1, SHAPE[2] + 2, *SHAPE[3:]), np.float32)
    assert run(deeper)["features"].shape[0] == 2


SIGNAL = """
import gc, os, signal, sys, threading
import numpy as np
from svd_hub.export.run_openvino import {how}

def work():
    global run
    run = {make}
    run(np.zeros({shape}, np.float32))

def drop():
    global run
    del run
    gc.collect()

work()
thread = threading.Thread(target=drop)
thread.start()
thread.join()
signal.signal(signal.SIGUSR1, lambda *a: print("handled", flush=True))
os.kill(os.getpid(), signal.SIGUSR1)
"""
OWN_CORE = "(lambda c: c.compile_model(c.read_model({model!r}), 'CPU'))(import_openvino().Core())"


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")
@pytest.mark.parametrize("ours", [True, False], ids=["our runner", "a Core of its own"])
def test_a_signal_after_a_runner_is_gone_in_another_thread(made: Any, ours: bool) -> None:
    """Without the Core that stays, OpenVINO leaves a stack for handlers that is no longer there; see `the_core`."""
    found = made["openvino"]
    make = f"Runner({str(found.folder)!r})" if ours else OWN_CORE.format(model=str(found.model))
    code = SIGNAL.format(how="Runner" if ours else "import_openvino", make=make, shape=SHAPE)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    if ours:
        assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
    elif done.returncode == 0:
        pytest.skip("this release of OpenVINO, or this processor, does without a stack of its own")
    else:
        assert done.returncode == -signal.SIGSEGV


def test_a_provider_that_is_none(made: Any) -> None:
    with pytest.raises(
        OptionError, match=r"provider='cuds' .* allowed: cpu, cuda, tensorrt, or .*CUDAExecutionProvider"
    ):
        run_onnx.Runner(made["onnx"].folder, provider="cuds")


def test_a_manifest_that_was_changed(made: Any, tmp_path: Path) -> None:
    """A tolerance that somebody widened, and nothing else: no file has another hash."""
    folder = made["onnx"].folder
    place = folder / artifact.MANIFEST
    before = place.read_text()
    told = json.loads(before)
    told["parity"]["tolerance"] = 1.0
    try:
        place.write_text(json.dumps(told))
        with pytest.raises(IntegrityError, match=r"manifest.json: expected sha256 .*: it was changed"):
            run_onnx.Runner(folder)
        with pytest.raises(IntegrityError):
            verify(folder, model=exportable("pooled"))
    finally:
        place.write_text(before)
    run_onnx.Runner(folder)
