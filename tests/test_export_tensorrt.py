"""Engines from network to result, on the double: what TensorRT is asked for, what is kept of it, what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helpers_tensorrt
import numpy as np
import pytest
import torch
from helpers_export import KINDS, copied, exportable, follow_once, shape_of
from helpers_tensorrt import RELEASES, SNAPSHOT, Double, installed, machine
from tensorrt_uses import names, uses
from typer.testing import CliRunner

from svd_hub.errors import CheckpointError, IntegrityError, MissingExtraError, OptionError, SvdHubError
from svd_hub.export import artifact, commands, export, verify
from svd_hub.export.parity import ParityError
from svd_hub.export.tensorrt.artifacts import engine

KIND = "resnet3d"
SHAPE = (4, 32, 40)  # small: every test exports


@pytest.fixture(params=RELEASES)
def double(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    """A double of each release, and one following of the network for all: that takes seconds."""
    follow_once(monkeypatch, KIND)
    with installed(request.param) as double:
        yield double


@pytest.fixture
def only_new(monkeypatch: pytest.MonkeyPatch) -> Iterator[Double]:
    """The newer release alone, where the releases do not differ."""
    follow_once(monkeypatch, KIND)
    with installed("11.4") as double:
        yield double


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX artifacts, from which an engine is built without a network: what most tests are about."""
    folder = tmp_path_factory.mktemp("graphs")
    with pytest.MonkeyPatch.context() as patch:
        follow_once(patch, KIND)
        for precision in ("fp32", "fp16"):
            made(folder / precision, "onnx", precision=precision)
    return folder


def made(folder: Path, to: str = "tensorrt", **options: Any) -> artifact.Artifact:
    return export(exportable(KIND), to, folder, shape=SHAPE, **options)


def test_a_network_becomes_an_engine_that_computes_the_same(double: Double, tmp_path: Path) -> None:
    found = made(tmp_path / "e")
    told = found.manifest
    assert told["parity"]["passed"]
    assert len(told["parity"]["cases"]) >= 4
    release = SNAPSHOT[double.release]["release"]
    assert told["parity"]["runner"] == f"TensorRT {release} on Example GPU"
    assert set(told["files"]) == {"model.plan", "model.onnx", "preprocess.json", "golden.safetensors"}
    key = told["built"]["key"]
    assert key["weights_sha256"] == told["weights_sha256"]
    assert key["graph_sha256"] == told["files"]["model.onnx"]["sha256"]
    assert (key["tensorrt"], key["gpu"], key["compute_capability"]) == (release, "Example GPU", "9.0")
    assert key["precision"] == "fp32"
    profile = {name: tuple(told["profile"][name]) for name in ("smallest", "typical", "largest")}
    assert {name: tuple(shape) for name, shape in key["profile"].items()} == profile

    trt = double.module
    (flags,) = double.named("Builder.create_network")
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert flags == (typed if double.release == "10.16" else 0,)
    assert double.named("IOptimizationProfile.set_shape") == [("volume", *profile.values())]
    assert double.named("IBuilderConfig.clear_flag") == [(trt.BuilderFlag.TF32,)]
    assert double.named("IBuilderConfig.set_flag") == []
    assert double.named("OnnxParser.set_flag") == [(trt.OnnxParserFlag.NATIVE_INSTANCENORM,)]
    assert double.named("OnnxParser.parse") == [((tmp_path / "e" / "model.onnx").read_bytes(),)]
    assert verify(tmp_path / "e", model=exportable(KIND)).passed


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_an_engine(kind: str, tmp_path: Path) -> None:
    """All of the way but TensorRT itself, for every kind of network; outputs of several types and of unknown size."""
    model = exportable(kind)
    with installed("11.4") as double:
        untrained = kind.startswith("detector")  # its scores change places at a breath
        found = export(model, "tensorrt", tmp_path / "e", shape=shape_of(kind), keep_failing=untrained)
        cases = found.manifest["parity"]["cases"]
        assert len(cases) >= 4
        assert all(case["finite"] for case in cases)
        assert found.manifest["parity"]["passed"] or min(case["agreement"] for case in cases) > 0.9
        double.lost = found.outputs
        assert verify(tmp_path / "e").golden.cases[0].finite
        assert [args[0] for args in double.named("IExecutionContext.set_output_allocator")] == list(found.outputs)


@pytest.mark.slow
def test_eight_bits_become_an_engine(tmp_path: Path) -> None:
    data = [np.random.default_rng(seed).standard_normal((1, *SHAPE), dtype=np.float32) for seed in range(4)]
    with installed("11.4"):
        found = export(exportable(KIND), "tensorrt", tmp_path / "e", precision="int8", shape=SHAPE, images=data)
    assert found.manifest["parity"]["passed"]
    assert found.manifest["built"]["operators"]["QuantizeLinear"] > 10


def test_all_that_ran_was_seen_by_the_walk(only_new: Double, graphs: Path, tmp_path: Path) -> None:
    engine(
        graphs / "fp32",
        tmp_path / "e",
        settings={"refit": "true", "version_compatible": True, "level": 2, "workspace": "1.5"},
    )
    only_new.lost = ("logits",)
    assert verify(tmp_path / "e").passed
    engine(tmp_path / "e", tmp_path / "f", refit_from=tmp_path / "e")
    ran = {(of, name) for of, name, _ in only_new.calls if (of, name) != ("ILogger", "log")}
    assert ran <= set(names(uses(SNAPSHOT["11.4"]["api"])))
    assert len(ran) > 40


def test_settings_reach_the_builder(double: Double, graphs: Path, tmp_path: Path) -> None:
    asked = {"hardware": "ampere_plus", "version_compatible": "yes", "refit": True, "level": "5", "workspace": 0.5}
    found = engine(graphs / "fp32", tmp_path / "e", settings=asked)
    trt = double.module
    assert double.named("IBuilderConfig.set_flag") == [
        (trt.BuilderFlag.VERSION_COMPATIBLE,), (trt.BuilderFlag.REFIT,),
    ]  # fmt: skip
    level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert double.named("IBuilderConfig.hardware_compatibility_level") == [(level,)]
    assert double.named("IBuilderConfig.builder_optimization_level") == [(5,)]
    assert double.named("IBuilderConfig.set_memory_pool_limit") == [(trt.MemoryPoolType.WORKSPACE, 1 << 29)]
    assert double.named("Runtime.engine_host_code_allowed") == [(True,)]
    told = found.manifest["built"]
    assert told["settings"] == {**asked, "version_compatible": True, "level": 5, "timing_cache": True}
    assert (told["key"]["hardware"], told["key"]["version_compatible"]) == ("ampere_plus", True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fp16": True}, "setting of tensorrt='fp16' is not allowed; allowed: 'hardware', 'version_compatible'"),
        ({"hardware": "all"}, "hardware='all' is not allowed; allowed: 'this', 'same_compute_capability'"),
        ({"refit": "perhaps"}, "refit='perhaps' is not allowed; allowed: true or false"),
        ({"level": 6}, "level=6 is not allowed; allowed: 0 to 5"),
        ({"level": "high"}, "level='high' is not allowed; allowed: a number"),
        ({"workspace": 0}, "workspace=0.0 is not allowed; allowed: GiB, more than 0"),
    ],
)
def test_settings_that_are_refused(only_new: Double, tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError) as caught:
        made(tmp_path / "e", settings=settings)
    assert str(caught.value).startswith(said)
    assert not (tmp_path / "e").exists()
    assert only_new.calls == []


def test_settings_of_a_format_that_has_none(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="onnx has no settings, and refit was given"):
        made(tmp_path / "o", "onnx", settings={"refit": True})


def test_times_are_kept_and_given_to_the_next_build(only_new: Double, graphs: Path, tmp_path: Path, home: Path) -> None:
    engine(graphs / "fp32", tmp_path / "a")
    (kept,) = (home / "tensorrt").iterdir()
    assert kept.name == f"{SNAPSHOT['11.4']['release']}-example-gpu-sm90.timing"
    assert kept.read_bytes() == b"times"
    only_new.calls.clear()
    engine(graphs / "fp32", tmp_path / "b")
    assert only_new.named("IBuilderConfig.create_timing_cache")[0] == (b"times",)
    kept.write_bytes(b"damaged")
    only_new.calls.clear()
    engine(graphs / "fp32", tmp_path / "c")
    assert only_new.named("IBuilderConfig.create_timing_cache")[:2] == [(b"damaged",), (b"",)]
    only_new.calls.clear()
    engine(graphs / "fp32", tmp_path / "d", settings={"timing_cache": "no"})
    assert only_new.named("IBuilderConfig.create_timing_cache") == []


def test_a_timing_cache_that_cannot_be_written_costs_time_alone(
    only_new: Double, graphs: Path, tmp_path: Path, home: Path
) -> None:
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file where the cache folder should be")
    assert engine(graphs / "fp32", tmp_path / "e").manifest["parity"]["passed"]


def test_what_tensorrt_says_is_in_the_error(only_new: Double, graphs: Path, tmp_path: Path) -> None:
    trt = only_new.module
    fault = only_new.new("ParserError")
    only_new.does = {
        "OnnxParser.parse": lambda graph: False,
        "OnnxParser.num_errors": 1,
        "OnnxParser.get_error": lambda number: fault,
        "ParserError.node_operator": "Conv",
        "ParserError.node_name": "node_7",
        "ParserError.desc": "no such kernel",
    }
    with pytest.raises(SvdHubError, match="TensorRT does not take the graph: Conv node_7: no such kernel"):
        engine(graphs / "fp32", tmp_path / "e")

    def failing(network: Any, config: Any) -> None:
        log = only_new.named("Builder.__init__")[-1][0]
        log.log(trt.ILogger.Severity.WARNING, "a warning")
        log.log(trt.ILogger.Severity.ERROR, "out of memory")

    only_new.does = {"Builder.build_serialized_network": failing}
    with pytest.raises(SvdHubError, match=r"built no engine: out of memory\. Next: a smaller --largest"):
        engine(graphs / "fp32", tmp_path / "e")
    only_new.does = {"IBuilderConfig.add_optimization_profile": -1}
    with pytest.raises(SvdHubError, match="TensorRT refuses the shapes"):
        engine(graphs / "fp32", tmp_path / "e")
    only_new.does = {"ITensor.name": "image"}
    with pytest.raises(SvdHubError, match=r"the graph's inputs are \['image'\]"):
        engine(graphs / "fp32", tmp_path / "e")
    assert not (tmp_path / "e").exists()
    assert not any(path.name.startswith(".e") for path in tmp_path.iterdir())


def test_another_result_leaves_nothing_behind(
    only_new: Double, graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = helpers_tensorrt._run
    wrong = {"logits": lambda array: array * 1.001}
    monkeypatch.setattr(
        helpers_tensorrt, "_run", lambda *args: {name: wrong[name](array) for name, array in right(*args).items()}
    )
    with pytest.raises(ParityError, match=r"tensorrt fp32 of ResNet3D differs by more"):
        made(tmp_path / "e")
    with pytest.raises(ParityError, match=r"the engine of ResNet3D differs by more"):
        engine(graphs / "fp32", tmp_path / "e")
    assert [path.name for path in tmp_path.iterdir()] == ["home"], "the times alone are kept"


def test_an_operator_that_tensorrt_does_not_take(
    only_new: Double, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = copied(KIND)
    for node in graph.graph.node:
        if node.op_type == "MaxPool":
            next(item for item in node.attribute if item.name == "dilations").ints[:] = [1, 2, 2]
    monkeypatch.setattr("svd_hub.export.onnx.single_precision", lambda network, profile, opset: graph)
    with pytest.raises(SvdHubError, match="does not take this graph: MaxPool: dilations must be ones"):
        made(tmp_path / "e")
    assert only_new.calls == []


# ---- other machines --------------------------------------------------------------------------------------------------


def test_from_an_onnx_artifact(double: Double, graphs: Path, tmp_path: Path) -> None:
    source = artifact.read(graphs / "fp16")
    found = engine(graphs / "fp16", tmp_path / "e", model=exportable(KIND), settings={"refit": True})
    assert found.manifest["parity"]["passed"]
    assert found.precision == "fp16"
    assert (tmp_path / "e" / "model.onnx").read_bytes() == (graphs / "fp16" / "model.onnx").read_bytes()
    assert found.manifest["weights_sha256"] == source.manifest["weights_sha256"]
    with pytest.raises(OptionError, match="is there already"):
        engine(graphs / "fp16", tmp_path / "e")
    made(tmp_path / "t", "torchscript")
    with pytest.raises(OptionError, match="is torchscript; allowed: onnx, tensorrt"):
        engine(tmp_path / "t", tmp_path / "e", overwrite=True)


def test_an_engine_of_another_machine_is_refused_and_built_again(
    only_new: Double, graphs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "e"
    engine(graphs / "fp32", folder, settings={"level": 1})
    only_new.gpu = machine(name="Another GPU", capability="8.0")
    only_new.calls.clear()
    with pytest.raises(SvdHubError) as caught:
        verify(folder)
    text = str(caught.value)
    assert "built on Example GPU (9.0) for hardware=this, here is Another GPU (8.0)" in text
    command = f"svd-hub export engine {folder} --out {folder} --overwrite"
    assert text.endswith(f"Next: {command}")
    assert only_new.calls == [], "TensorRT was asked for something before the engine was refused"

    result = CliRunner().invoke(commands.app, command.removeprefix("svd-hub export ").split())
    assert result.exit_code == 0, result.output
    assert "resnet3d" in result.output.lower()
    again = artifact.read(folder)
    assert again.manifest["built"]["key"]["gpu"] == "Another GPU"
    assert again.manifest["built"]["settings"]["level"] == 1
    assert verify(folder).passed


def test_an_engine_of_another_release_is_refused(only_new: Double, graphs: Path, tmp_path: Path) -> None:
    engine(graphs / "fp32", tmp_path / "e")
    only_new.module.__version__ = "11.5.0.1"
    only_new.calls.clear()
    with pytest.raises(SvdHubError, match=r"built with TensorRT 11\.4\.0\.106, here is 11\.5\.0\.1"):
        verify(tmp_path / "e")
    assert only_new.calls == []


def test_damage_is_found_before_tensorrt_reads(only_new: Double, graphs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "e"
    engine(graphs / "fp32", folder)
    only_new.calls.clear()
    shutil.copytree(folder, tmp_path / "plan")
    (tmp_path / "plan" / "model.plan").write_bytes(b"something else")
    with pytest.raises(IntegrityError, match=r"model\.plan: expected sha256"):
        verify(tmp_path / "plan")
    told = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**told, "weights_sha256": "0" * 64}))
    with pytest.raises(IntegrityError, match=r"manifest\.json: expected sha256 .*: it was changed"):
        verify(folder)
    kept = {name: value for name, value in told.items() if name not in ("files", "artifact_sha256", "schema")}
    for change, error, said in (  # sealed anew, every hash holds
        ({"weights_sha256": "0" * 64}, IntegrityError, "was built for weights_sha256"),
        ({"precision": "fp16"}, IntegrityError, "was built for precision fp32, and the artifact has fp16"),
        ({"built": {}}, CheckpointError, "has no whole key of its engine. Next: svd-hub export engine"),
    ):
        artifact.seal(folder, {**kept, **change})
        with pytest.raises(error, match=said):
            verify(folder)
    assert only_new.calls == []
    # an engine that is damaged is built again all the same: its graph is whole
    rebuilt = engine(tmp_path / "plan", tmp_path / "plan", overwrite=True)
    assert rebuilt.manifest["parity"]["passed"]


def test_a_plan_that_tensorrt_cannot_read(only_new: Double, graphs: Path, tmp_path: Path) -> None:
    engine(graphs / "fp32", tmp_path / "e")
    only_new.does = {"Runtime.deserialize_cuda_engine": lambda plan: None}
    with pytest.raises(IntegrityError, match=r"TensorRT cannot read the engine .* Next: svd-hub export engine"):
        verify(tmp_path / "e")


def test_other_weights_for_an_engine(only_new: Double, graphs: Path, tmp_path: Path) -> None:
    source = graphs / "fp32"
    engine(source, tmp_path / "e", settings={"refit": True})
    only_new.calls.clear()
    found = engine(source, tmp_path / "new", refit_from=tmp_path / "e", model=exportable(KIND))
    assert found.manifest["parity"]["passed"]
    assert only_new.named("OnnxParserRefitter.refit_from_bytes") == [((source / "model.onnx").read_bytes(),)]
    assert only_new.named("Builder.build_serialized_network") == []
    engine(source, tmp_path / "fixed")
    with pytest.raises(OptionError, match="cannot be refitted; allowed: engines built with --set refit"):
        engine(source, tmp_path / "no", refit_from=tmp_path / "fixed")
    with pytest.raises(OptionError, match="cannot be refitted: its precision is fp32, wanted fp16"):
        engine(graphs / "fp16", tmp_path / "no", refit_from=tmp_path / "e")
    only_new.does = {"Refitter.get_missing_weights": lambda: ["conv1"]}
    with pytest.raises(SvdHubError, match="the graph has no weights for conv1"):
        engine(source, tmp_path / "no", refit_from=tmp_path / "e")
    assert not (tmp_path / "no").exists()


# ---- machines without ------------------------------------------------------------------------------------------------


def test_without_a_gpu_tensorrt_is_not_even_imported(tmp_path: Path) -> None:
    """Where there is none, TensorRT may end the process: it is refused before."""
    (tmp_path / "tensorrt.py").write_text("raise SystemExit('imported')")
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); torch.cuda.is_available = lambda: False\n"
        "from svd_hub.errors import SvdHubError\n"
        "from svd_hub.export import tensorrt as door\n"
        "from svd_hub.export.tensorrt.artifacts import Runner\n"
        "for call in (lambda: Runner('x'), lambda: door.TensorRTModule):\n"
        "    try: call()\n"
        "    except SvdHubError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("TensorRT needs a CUDA device, and torch") for line in lines)


def test_without_a_gpu_nothing_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("svd_hub.export.onnx.single_precision", lambda *args: pytest.fail("the network was followed"))
    with pytest.raises(SvdHubError, match=r"TensorRT needs a CUDA device, .*; or svd-hub export ENTRY --to onnx here"):
        made(tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


def test_without_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from svd_hub.export.tensorrt import here

    monkeypatch.setattr(here, "require_gpu", lambda what, **options: machine())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r'tensorrt is not installed\. Next: pip install "svd-hub\[tensorrt\]"'):
        made(tmp_path / "e")
    with installed("10.16") as double:
        double.module.__version__ = "10.12.0.36"
        with pytest.raises(SvdHubError, match=r"TensorRT 10\.12\.0\.36 is too old; allowed: 10\.16 or later"):
            made(tmp_path / "e")


@pytest.fixture
def with_ctrl_c() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which a shell in the background takes away."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("with_ctrl_c")
def test_a_stopped_build(only_new: Double, graphs: Path, tmp_path: Path) -> None:
    """Ctrl-C during a build: TensorRT is told, and nothing is left behind."""
    import _thread

    def slow(network: Any, config: Any) -> Any:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 10**6)
        for step in range(10**6):
            if step == 3:
                _thread.interrupt_main()
            if not monitor.step_complete("Building", step):
                return None
        raise AssertionError("it was not stopped")

    only_new.does = {"Builder.build_serialized_network": slow}
    with pytest.raises(KeyboardInterrupt):
        engine(graphs / "fp32", tmp_path / "e")
    assert list(tmp_path.iterdir()) == []
