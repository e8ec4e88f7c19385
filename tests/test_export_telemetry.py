"""The runtimes note nothing about a person and send nothing: seen in a process with an empty home, as on a new server.

Both do by default, and neither where the variable CI is set, which is taken away here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_export_quantise import convolution

from svd_hub.export import telemetry

RUN = """
import sys
from svd_hub.export import {module}

def told(event, args):
    if event.startswith(("socket.", "os.fork", "subprocess.", "os.posix_spawn")):
        raise SystemExit(f"{{event}} {{args}}")

sys.addaudithook(told)
module = {module}.{function}()
{work}
assert "openvino_telemetry" not in sys.modules
"""
ONNX = "module.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider']).get_inputs()"
OPENVINO = "core = module.Core(); core.compile_model(core.read_model(sys.argv[1]), 'CPU').inputs"


@pytest.mark.parametrize(
    ("module", "function", "work"),
    [("run_onnx", "import_runtime", ONNX), ("run_openvino", "import_openvino", OPENVINO)],
    ids=["ONNX Runtime", "OpenVINO"],
)
def test_nothing_is_noted_or_sent(tmp_path: Path, module: str, function: str, work: str) -> None:
    import onnx

    home, model = tmp_path / "person", tmp_path / "model.onnx"
    home.mkdir()
    onnx.save(convolution(np.ones((1, 1, 3, 3, 3), np.float32)), model)
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", telemetry.ONNX_RUNTIME)}
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(module=module, function=function, work=work), str(model)],
        env={**environment, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not list(home.rglob("*"))


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(telemetry.ONNX_RUNTIME, "0")
    telemetry.onnx_runtime_off()
    assert os.environ[telemetry.ONNX_RUNTIME] == "0"
    monkeypatch.delenv(telemetry.ONNX_RUNTIME)
    telemetry.onnx_runtime_off()
    assert os.environ[telemetry.ONNX_RUNTIME] == "1"


def test_a_program_that_has_openvino_keeps_its_own_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    with telemetry.openvino_off():
        assert "openvino_telemetry" not in sys.modules
    monkeypatch.delitem(sys.modules, "openvino")
    with telemetry.openvino_off():
        assert sys.modules["openvino_telemetry"] is None
    assert "openvino_telemetry" not in sys.modules
