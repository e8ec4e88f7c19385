"""What export/tensorrt uses of TensorRT exists in both releases, with the signatures it is called with."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tensorrt_api
from helpers_tensorrt import RELEASES, SNAPSHOT, Double
from tensorrt_uses import fits, names, only, problems, uses

BINDINGS = {name: tensorrt_api.ROOT / ".tools" / f"tensorrt-{name}" / ".made" for name in RELEASES}


@pytest.mark.parametrize("release", RELEASES)
def test_every_name_in_use_is_in_the_release(release: str) -> None:
    api = SNAPSHOT[release]["api"]
    found = uses(api)
    assert problems(api, found) == []
    assert only(api, found) == api, "the snapshot is of other sources. Next: python tools/tensorrt_api.py"
    assert len(set(names(found))) > 70, "the walk sees nothing"


@pytest.mark.parametrize("release", RELEASES)
def test_the_snapshot_is_the_bindings(release: str) -> None:
    if not BINDINGS[release].exists():
        pytest.skip("the bindings of TensorRT are not here. Next: make tools")
    real = tensorrt_api.of(release)
    assert real["release"] == SNAPSHOT[release]["release"]
    found = uses(real["api"])
    assert problems(real["api"], found) == []
    assert only(real["api"], found) == SNAPSHOT[release]["api"], "Next: python tools/tensorrt_api.py"
    # what the documents of this project say of the two
    gone = {"FP16", "BF16", "INT8", "OBEY_PRECISION_CONSTRAINTS"} & set(real["api"]["BuilderFlag"])
    assert bool(gone) == (release == "10.16")
    assert ("IInt8EntropyCalibrator2" in real["api"]) == (release == "10.16")
    assert ("EXPLICIT_BATCH" in real["api"]["NetworkDefinitionCreationFlag"]) == (release == "10.16")


PLANTED = {
    "builder.create_builder_config().set_flag(trt.BuilderFlag.FP16)": "BuilderFlag.FP16 does not exist",
    "builder.create_builder_config().set_flags(3)": "IBuilderConfig.set_flags does not exist",
    "builder.build_engine(1, 2)": "Builder.build_engine does not exist",
    "builder.create_network(1, 2)": r"Builder.create_network takes \(flags: SupportsInt = 0\) .*, not 2",
    "builder.create_network(flag=1)": r"Builder.create_network takes .* not 0, \('flag',\)",
    "network = builder.create_network()\nnetwork.num_inputs = 3": "INetworkDefinition.num_inputs cannot be set",
    "network = builder.create_network()\nnetwork.num_inputs()": "INetworkDefinition.num_inputs is no method",
    "trt.IInt8Calibrator()": "trt.IInt8Calibrator does not exist",
    "trt.IInt8Calibrator.x": "trt.IInt8Calibrator does not exist",
    "trt.IBuilderConfig()": "IBuilderConfig.__init__ does not exist",
    "[e.text() for i in range(3) if (e := trt.OnnxParser(builder.create_network(), log).get_error(i))]":
        "ParserError.text does not exist",
    "held.engine: trt.ICudaEngine = make()\nheld.engine.run()": "ICudaEngine.run does not exist",
    "made(builder).serialise()": "ICudaEngine.serialise does not exist",
    "class Mine(trt.IProgressMonitor):\n    def step_completed(self, phase_name, step):\n        return True":
        "IProgressMonitor.step_completed does not exist",
    "class Mine(trt.IProgressMonitor):\n    def step_complete(self, phase_name):\n        return True":
        "IProgressMonitor.step_complete takes",
}  # fmt: skip


@pytest.mark.parametrize("source", PLANTED)
def test_what_is_planted_is_found(source: str, tmp_path: Path) -> None:
    head = "import tensorrt as trt\ndef made(builder: trt.Builder) -> trt.ICudaEngine: ...\n"
    body = f"def work(builder: trt.Builder, log: trt.ILogger):\n{textwrap.indent(source, '    ')}\n"
    (tmp_path / "planted.py").write_text(head + body)
    api = SNAPSHOT["11.4"]["api"]
    found = problems(api, uses(api, tmp_path))
    assert len(found) == 1, found
    assert re.search(PLANTED[source], found[0])


@pytest.mark.parametrize(
    ("text", "count", "keywords", "fine"),
    [
        ("(a: int, b: int = 0) -> X", 1, (), True),
        ("(a: int, b: int = 0) -> X", 2, (), True),
        ("(a: int, b: int = 0) -> X", 0, (), False),
        ("(a: int, b: int = 0) -> X", 3, (), False),
        ("(a: int, b: int = 0) -> X", 1, ("b",), True),
        ("(a: int, b: int = 0) -> X", 1, ("a",), False),
        ("(a: int, b: int = 0) -> X", 0, ("a",), True),
        ("(a: int, b: int = 0) -> X", 1, ("c",), False),
        ("() -> X", 0, (), True),
    ],
)
def test_calls_and_signatures(text: str, count: int, keywords: tuple[str, ...], fine: bool) -> None:
    assert fits(text, count, keywords) == fine


@pytest.mark.parametrize("release", RELEASES)
def test_the_double_takes_what_the_bindings_take(release: str) -> None:
    double = Double(release)
    trt: Any = double.module

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None: ...

    log = Log()
    log.own = 3  # a class of ours holds what it wants
    builder = trt.Builder(log)
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.REFIT)
    config.set_flag(flag=trt.BuilderFlag.REFIT)
    config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE
    assert int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == (1 if release == "10.16" else 0)
    assert isinstance(builder.create_network(1), trt.INetworkDefinition)
    with pytest.raises(AttributeError):
        trt.BuilderFlag.FP16  # noqa: B018
    with pytest.raises(AttributeError):
        builder.build_engine  # noqa: B018
    with pytest.raises(AttributeError, match="no 'fp16' that can be set"):
        config.fp16 = True
    with pytest.raises(TypeError, match="incompatible function arguments"):
        config.set_flag(1)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        config.set_flag(trt.BuilderFlag.REFIT, True)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        config.set_flag(flags=trt.BuilderFlag.REFIT)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        trt.Builder("log")
    with pytest.raises(TypeError, match="is a HardwareCompatibilityLevel"):
        config.hardware_compatibility_level = 1
    with pytest.raises(TypeError):
        trt.IBuilderConfig()
    assert double.named("IBuilderConfig.set_flag") == [(trt.BuilderFlag.REFIT,)] * 2
