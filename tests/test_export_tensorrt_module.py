"""TensorRTModule on the double: tensors in and out, open shapes, outputs of unknown size, one shape as a graph."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_export import exportable, follow_once
from helpers_networks import error
from helpers_tensorrt import Double, Graph, Stream, installed

from svd_hub.errors import OptionError, SvdHubError
from svd_hub.export import export

KIND = "resnet3d"
SHAPE = (4, 32, 40)  # small: every test exports


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine of open shapes."""
    return built(tmp_path_factory.mktemp("engine") / "e")


def built(folder: Path, **options: Any) -> Path:
    with installed("11.4"), pytest.MonkeyPatch.context() as patch:
        follow_once(patch, KIND)
        patch.setenv("SVD_HUB_HOME", str(folder.parent / "home"))
        export(exportable(KIND), "tensorrt", folder, shape=SHAPE, **options)
    return folder


@pytest.fixture
def double() -> Iterator[Double]:
    with installed("11.4") as made:
        yield made


def opened(folder: Path, **options: Any) -> Any:
    from svd_hub.export.tensorrt import TensorRTModule

    return TensorRTModule(folder, **options)


def wanted(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return exportable(KIND)(x)


def test_open_shapes(folder: Path, double: Double) -> None:
    run = opened(folder)
    assert isinstance(run, torch.nn.Module)
    assert run.key.precision == "fp32"
    kept = []
    for seed, (batch, scale) in enumerate([(1, 1), (3, 1), (2, 0.5), (1, 1.5)]):
        sides = [max(1, int(n * scale)) for n in SHAPE]
        x = torch.randn((batch, 1, *sides), generator=torch.Generator().manual_seed(seed))
        found = run(x)
        assert list(found) == ["logits"]
        kept.append((x, found["logits"]))
    for x, logits in kept:  # a result stays when others come after it
        assert error(logits, wanted(x)) < 1e-5


def test_other_layouts_and_gradients(folder: Path, double: Double) -> None:
    run = opened(folder)
    x = torch.randn(2, 1, *SHAPE)
    last = x.contiguous(memory_format=torch.channels_last_3d)[:, :, :, :, ::1].requires_grad_()
    strided = torch.randn(2, 1, SHAPE[0], SHAPE[1], 2 * SHAPE[2])[..., ::2]
    assert error(run(last)["logits"], wanted(x)) < 1e-5
    assert error(run(strided)["logits"], wanted(strided)) < 1e-5


@pytest.mark.parametrize("shape", [(9, 1, *SHAPE), (1, 2, *SHAPE), (1, 1, 500, 64, 64), SHAPE, (1, 1, 1, 1, 1)])
def test_shapes_that_are_refused(folder: Path, double: Double, shape: tuple[int, ...]) -> None:
    run = opened(folder)
    double.calls.clear()
    with pytest.raises(
        OptionError, match=r"an input of torch\.float32 .* is not allowed; allowed: float32 from \(1, 1"
    ):
        run(torch.zeros(shape))
    assert double.calls == []


def test_types_that_are_refused(folder: Path, double: Double) -> None:
    with pytest.raises(OptionError, match=r"an input of torch\.float16 .* is not allowed; allowed: float32"):
        opened(folder)(torch.zeros((1, 1, *SHAPE), dtype=torch.float16))


def test_an_output_whose_size_only_a_run_tells(folder: Path, double: Double) -> None:
    double.lost = ("logits",)
    run = opened(folder)
    first, second = torch.randn(2, 1, *SHAPE), torch.randn(3, 1, *SHAPE)
    one, two = run(first)["logits"], run(second)["logits"]
    assert one.shape[0] == 2
    assert two.shape[0] == 3
    assert error(one, wanted(first)) < 1e-5
    assert error(two, wanted(second)) < 1e-5
    assert [args[0] for args in double.named("IExecutionContext.set_output_allocator")] == ["logits", "logits"]


def test_the_allocator(double: Double) -> None:
    from svd_hub.export.tensorrt.callbacks import Allocator, taken

    made = Allocator(torch.int64, torch.device("cpu"))
    assert taken(made) is None
    address = made.reallocate_output_async("labels", 0, 64, 256, 7)
    assert address == made.memory.data_ptr()
    assert taken(made) is None, "no shape yet"
    made.notify_shape("labels", (2, 3))
    assert taken(made).shape == (2, 3)
    assert taken(made).dtype == torch.int64
    made.notify_shape("labels", (0, 3))
    assert taken(made).shape == (0, 3)
    assert made.reallocate_output_async("labels", 0, 1 << 60, 256, 7) == 0, "too much memory is no exception here"


def test_failures_of_a_run_are_errors(folder: Path, double: Double) -> None:
    run = opened(folder)
    x = torch.zeros(1, 1, *SHAPE)
    for name, value, said in (
        ("IExecutionContext.execute_async_v3", lambda stream: False, "could not run the engine: it gave no reason"),
        ("IExecutionContext.infer_shapes", lambda: ["volume"], "does not know the shapes of volume"),
        ("IExecutionContext.set_input_shape", lambda name, shape: False, "takes no input of shape"),
    ):
        double.does = {name: value}
        with pytest.raises(SvdHubError, match=said):
            run(x)
    double.does = {"ICudaEngine.create_execution_context": lambda: None}
    with pytest.raises(SvdHubError, match=r"cannot be run: .* Next: a GPU with more memory"):
        opened(folder)


def test_streams_wait_for_each_other(folder: Path, double: Double) -> None:
    run = opened(folder)
    run(torch.zeros(1, 1, *SHAPE))
    current = importlib.import_module("svd_hub.export.tensorrt.module").cuda.current_stream(run.device)
    assert run._stream is not current
    assert run._stream.waited == [current]
    assert current.waited == [run._stream]
    assert double.named("IExecutionContext.execute_async_v3") == [(Stream.cuda_stream,)]


def test_one_run_at_a_time(folder: Path, double: Double) -> None:
    run = opened(folder)
    volumes = [torch.randn(1, 1, *SHAPE) for _ in range(8)]
    found: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        found[number] = run(volumes[number])["logits"]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, volume in enumerate(volumes):
        assert error(found[number], wanted(volume)) < 1e-5


def test_one_shape_is_one_graph(double: Double, tmp_path: Path) -> None:
    folder = built(tmp_path / "e", dynamic=())
    with installed("11.4") as own:
        run = opened(folder)
        graph = run._graph.graph
        assert isinstance(graph, Graph)
        own.calls.clear()
        kept = [(x, run(x)["logits"]) for x in (torch.randn(1, 1, *SHAPE) for _ in range(3))]
        for x, logits in kept:
            assert error(logits, wanted(x)) < 1e-5
        assert graph.replayed == 3
        assert own.calls == [], "a replay asks TensorRT nothing"
        plain = opened(folder, cuda_graph=False)
        assert plain._graph is None
        x = torch.randn(1, 1, *SHAPE)
        assert torch.equal(plain(x)["logits"], run(x)["logits"])
        own.lost = ("logits",)
        with pytest.raises(OptionError, match="the size of logits is only known in a run"):
            opened(folder)


def test_a_graph_of_open_shapes_is_refused(folder: Path, double: Double) -> None:
    assert opened(folder)._graph is None
    with pytest.raises(OptionError, match="cuda_graph=True needs one shape; this engine has several"):
        opened(folder, cuda_graph=True)


def test_artifacts_of_other_formats_are_refused(double: Double, tmp_path: Path) -> None:
    export(exportable(KIND), "torchscript", tmp_path / "t", shape=SHAPE)
    with pytest.raises(OptionError, match="is torchscript; allowed: tensorrt"):
        opened(tmp_path / "t")


def test_the_door() -> None:
    from svd_hub.export import tensorrt

    with pytest.raises(AttributeError, match="has no attribute 'Engine'; it has: TensorRTModule"):
        tensorrt.Engine  # noqa: B018
