"""The report of a GPU, its logic on a double of one: the CPU, which runs every line but the choice of the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from helpers_export import exportable, shape_of
from helpers_tensorrt import installed

from svd_hub.errors import OptionError, SvdHubError
from svd_hub.export import artifact, export
from svd_hub.export.gpu import require_gpu
from svd_hub.export.gpu_report import Timing, artifacts_of, cuda_device, gpu_report, lines
from svd_hub.export.gpu_runtimes import Device, strayed
from svd_hub.export.gpu_timing import Timed, alternate

ON_CPU = Device(torch=torch.device("cpu"), provider="cpu", facts={"name": "a double"})
QUICK = Timing(rounds=2, shapes=((8, 32, 32),))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two precisions of one network."""
    folder = tmp_path_factory.mktemp("artifacts")
    for precision in ("fp32", "fp16"):
        export(exportable("resnet3d"), "onnx", folder / precision, precision=precision, shape=shape_of("resnet3d"))
    return folder


def test_what_a_report_says(made: Path, tmp_path: Path) -> None:
    said: list[str] = []
    told = gpu_report(
        made, to=tmp_path / "r.json", model=exportable("resnet3d"), timing=QUICK, device=ON_CPU, say=said.append
    )
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(told))
    assert str(made) not in text
    assert told["passed"]
    assert [part["precision"] for part in told["artifacts"]] == ["fp16", "fp32"]
    assert told["device"]["name"] == "a double"
    for part in told["artifacts"]:
        runtime = part["onnxruntime"]
        assert len(runtime["parity"]["cases"]) >= 4
        assert runtime["golden"]["passed"]
        assert runtime["nodes"]["CPUExecutionProvider"] > 20
        assert part["tensorrt"]["note"].startswith("not installed")
        (times,) = part["times"].values()
        assert times["eager fp32"]["ratio"] == 1
        assert {f"onnxruntime {part['precision']}", "eager bf16 channels_last_3d"} < set(times)
        assert all(way["median_ms"] >= way["least_ms"] > 0 for way in times.values())
    assert any("times at 1x1x8x32x32" in line for line in said)
    assert any(line.startswith("resnet3d") or "passed" in line for line in lines(told))


def test_the_network_stays_where_it_is(made: Path) -> None:
    model = exportable("resnet3d")
    strides = [parameter.stride() for parameter in model.parameters()]
    gpu_report(made / "fp32", model=model, timing=QUICK, device=ON_CPU)
    assert [parameter.stride() for parameter in model.parameters()] == strides


def test_other_numbers_fail(made: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(made / "fp32", tmp_path / "bad")
    path = tmp_path / "bad" / "model.onnx"
    graph = onnx.load(path)
    kernel = next(tensor for tensor in graph.graph.initializer if len(tensor.dims) == 5)
    values = onnx.numpy_helper.to_array(kernel) * 1.001
    kernel.CopyFrom(onnx.numpy_helper.from_array(values, kernel.name))
    onnx.save(graph, path)
    told = json.loads((tmp_path / "bad" / "manifest.json").read_text())
    artifact.seal(
        tmp_path / "bad", {key: value for key, value in told.items() if key not in ("files", "artifact_sha256")}
    )
    found = gpu_report(tmp_path / "bad", timing=QUICK, device=ON_CPU)
    assert not found["passed"]
    assert "FAILED" in "\n".join(lines(found))


def test_an_engine_is_built_measured_and_timed(made: Path, tmp_path: Path) -> None:
    with installed("11.4") as double:
        found = gpu_report(made / "fp16", model=exportable("resnet3d"), timing=QUICK, device=ON_CPU)
        (part,) = found["artifacts"]
        told = part["tensorrt"]
        assert found["passed"]
        assert told["release"].startswith("11.4")
        assert len(told["parity"]["cases"]) >= 4
        (times,) = part["times"].values()
        assert times["tensorrt fp16"]["median_ms"] > 0
        assert times["tensorrt fp16, from the host"]["median_ms"] > 0
        assert "TensorRT: 11.4" in "\n".join(lines(found))
        double.does = {"Builder.build_serialized_network": lambda network, config: None}
        found = gpu_report(made / "fp16", model=exportable("resnet3d"), timing=QUICK, device=ON_CPU)
        (part,) = found["artifacts"]
        assert not found["passed"]
        assert part["onnxruntime"]["passed"]
        assert "built no engine" in part["tensorrt"]["error"]
        assert not any("tensorrt" in name for times in part["times"].values() for name in times)


def test_a_provider_that_is_not_there_is_told_and_the_rest_goes_on(made: Path) -> None:
    device = Device(torch=torch.device("cpu"), provider="cuda", exact={"use_tf32": "0"})
    found = gpu_report(made / "fp32", model=exportable("resnet3d"), timing=QUICK, device=device)
    (part,) = found["artifacts"]
    assert not found["passed"]
    assert "CUDAExecutionProvider was asked for and ONNX Runtime chose CPU" in part["onnxruntime"]["error"]
    (times,) = part["times"].values()
    assert times["eager fp32"]["median_ms"] > 0
    assert "CUDAExecutionProvider" in times["onnxruntime fp32"]["error"]
    assert "CUDAExecutionProvider" in times["onnxruntime tf32"]["error"]
    assert "CUDAExecutionProvider" in "\n".join(lines(found))


def test_arithmetic_that_ran_elsewhere() -> None:
    nodes = {"CPUExecutionProvider": {"Shape": 3, "Gather": 2}, "CUDAExecutionProvider": {"Conv": 20}}
    assert strayed(nodes, "CUDAExecutionProvider") == {}
    nodes["CPUExecutionProvider"]["Conv"] = 1
    assert strayed(nodes, "CUDAExecutionProvider") == {"Conv": 1}
    assert strayed({"CPUExecutionProvider": {"Conv": 1}}, "CPUExecutionProvider") == {}


def test_ways_are_taken_in_turn_and_one_that_fails_costs_only_itself() -> None:
    calls: list[str] = []

    def failing() -> None:
        raise RuntimeError("out of memory\nat /some/place")

    ways = {
        "eager fp32": Timed(lambda: calls.append("a")),
        "other": Timed(lambda: calls.append("b")),
        "broken": Timed(failing),
        "absent": Timed(error="no such device"),
    }
    told = alternate(ways, lambda: None, 4, base="eager fp32")
    assert "".join(calls[-8:]) == "abababab"
    assert told["broken"] == {"error": "RuntimeError: out of memory"}
    assert told["absent"] == {"error": "no such device"}
    assert set(told["other"]) == {"first_ms", "median_ms", "least_ms", "ratio"}


def test_without_a_gpu_it_is_refused(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SvdHubError, match=r"needs a CUDA device, and torch .* sees none here. Next: run it on"):
        gpu_report(made, to=tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, multi_processor_count, total_memory = "NVIDIA Example", 9, 0, 132, 10**9

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: Properties)
    found = cuda_device()
    assert (found.torch, found.provider, found.exact) == (torch.device("cuda", 0), "cuda", {"use_tf32": "0"})
    assert found.facts["compute_capability"] == "9.0"
    with pytest.raises(SvdHubError, match="the test was asked for on CUDA device 3; there are 1, from 0 on"):
        require_gpu("the test", index=3)


def test_folders(made: Path, tmp_path: Path) -> None:
    assert [one.precision for one in artifacts_of(made)] == ["fp16", "fp32"]
    assert [one.precision for one in artifacts_of(made / "fp32")] == ["fp32"]
    with pytest.raises(OptionError, match="holds nothing that svd-hub export wrote; allowed: ONNX artifacts"):
        artifacts_of(tmp_path)


def test_where_two_wheels_lie_in_two_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    from svd_hub.export import run_onnx

    told: dict[str, Any] = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(run_onnx, "wheels", lambda: told)
    monkeypatch.setattr(run_onnx, "places", lambda: ["/a", "/a"])
    with pytest.raises(SvdHubError, match=r"onnxruntime 1\.32\.0 and onnxruntime-gpu 1\.31\.1 are both installed"):
        run_onnx.import_runtime()
    monkeypatch.setattr(run_onnx, "places", lambda: ["/a", "/b"])
    assert run_onnx.import_runtime().__name__ == "onnxruntime"
