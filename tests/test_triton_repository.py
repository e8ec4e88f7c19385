"""A model repository: whole, by Triton's own schema, named and shaped as the network is, the same bytes every time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from helpers_export import copied, order
from helpers_predict import detector, segmenter
from helpers_triton import parsed

from svd_hub import Inference, Preprocess
from svd_hub.errors import OptionError
from svd_hub.export import artifact
from svd_hub.export import onnx as onnx_format
from svd_hub.export.contract import Order
from svd_hub.export.network import Network
from svd_hub.export.profile import make_profile
from svd_hub.export.triton import config, interface, repository
from svd_hub.predict.record import Record

KINDS = (
    "resnet3d",
    "pyramid",
    "unet3d",
)  # logits, levels, a map; of boxes, whose graph takes a minute, a real server is asked


def built(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    """Write the repository of a kind; the graph is followed once for all tests."""
    graph = copied(kind)
    monkeypatch.setattr(onnx_format, "single_precision", lambda *args: graph)
    folder.mkdir(parents=True)
    return repository.build(order(kind, **options), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_by_tritons_own_schema_and_as_the_graph_is(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    told = built(kind, tmp_path / "repo", monkeypatch)
    name = told["models"]["network"]
    place = tmp_path / "repo" / name
    graph = onnx.load(tmp_path / "repo" / told["model"]).graph
    found = parsed(place / "config.pbtxt")
    assert (found.name, found.backend, found.max_batch_size) == (name, "onnxruntime", 8)
    assert (place / "1" / found.default_model_filename).is_file()
    for ports, values in ((found.input, graph.input), (found.output, graph.output)):
        assert [port.name for port in ports] == [value.name for value in values]
        for port, value in zip(ports, values, strict=True):
            dims = value.type.tensor_type.shape.dim
            assert dims[0].dim_param == "batch"
            assert list(port.dims) == [dim.dim_value or -1 for dim in dims[1:]]
            kinds = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.INT64: "TYPE_INT64"}
            assert (
                type(found).DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[port.data_type].name
                == (kinds[value.type.tensor_type.elem_type])
            )
    (group,) = found.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (1, "KIND_AUTO")
    assert found.dynamic_batching.max_queue_delay_microseconds == config.DELAY
    assert not found.dynamic_batching.HasField("default_queue_policy"), "with one, requests wait for nothing"
    (sample,) = found.model_warmup
    assert list(sample.inputs["volume"].dims) == list(order(kind).profile.typical[1:])
    assert sample.inputs["volume"].zero_data
    assert found.parameters["cudnn_conv_algo_search"].string_value == "1"


def test_the_same_on_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = built("unet3d", tmp_path / "repo", monkeypatch)
    place = tmp_path / "repo" / told["models"]["network"]
    one, other = parsed(place / "config.pbtxt"), parsed(place / "configs" / "tensorrt.pbtxt")
    for field in ("name", "max_batch_size", "input", "output", "dynamic_batching", "model_warmup"):
        assert getattr(one, field) == getattr(other, field)
    assert other.backend == "tensorrt"
    assert other.default_model_filename == "", "a GPU without an engine of its own would be given another's"
    assert dict(other.cc_model_filenames)["9.0"] == "model_cc90.plan"
    assert set(other.cc_model_filenames) == set(config.CAPABILITIES)
    (group,) = other.instance_group
    assert (group.Kind.Name(group.kind), list(group.profile)) == ("KIND_GPU", ["0"])


def test_closed_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    graph = copied("unet3d")
    typical = order("unet3d").profile.typical
    for value in (graph.graph.input[0], graph.graph.output[0]):
        for dim, n in zip(value.type.tensor_type.shape.dim, (typical[0], 0, *typical[2:]), strict=True):
            if n:
                dim.dim_value = n
    monkeypatch.setattr(onnx_format, "single_precision", lambda *args: graph)
    (tmp_path / "repo").mkdir()
    told = repository.build(order("unet3d", dynamic=()), tmp_path / "repo")
    found = parsed(tmp_path / "repo" / told["models"]["network"] / "config.pbtxt")
    assert found.max_batch_size == 0
    assert list(found.input[0].dims) == list(typical)
    assert list(found.output[0].dims) == [typical[0], 3, *typical[2:]]
    assert not found.HasField("dynamic_batching")
    assert list(found.model_warmup[0].inputs["volume"].dims) == list(typical)
    assert onnx.checker.check_model(graph) is None


def test_a_network_without_an_entry_has_no_model_in_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = built("pyramid", tmp_path / "repo", monkeypatch)
    assert told["models"]["image"] == ""
    assert told["note"].startswith("no model that takes images: ")
    assert [path.name for path in (tmp_path / "repo").iterdir()] == [told["models"]["network"]]


# ---- the model in front ----------------------------------------------------------------------------------------------


def ordered(model: Any, **options: Any) -> Order:
    return Order(network=Network(model), profile=make_profile(model, **options), precision="fp32")


def front(model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[dict[str, Any], Path]:
    """Write a repository whose network's file is left out: what stands in front of it is looked at."""
    folder.mkdir()
    graph = copied("unet3d").SerializeToString()

    def build(asked: Order, place: Path) -> dict[str, Any]:
        (place / "model.onnx").write_bytes(graph)
        return {}

    monkeypatch.setattr(onnx_format, "build", build)
    told = repository.build(ordered(model, **options), folder)
    return told, folder / told["models"]["image"]


@pytest.mark.parametrize(
    ("make", "task", "optional"),
    [(segmenter, "segmentation", {"direction", "origin"}),
     (detector, "detection", {"direction", "origin", "planes", "least_score"})],
)  # fmt: skip
def test_the_model_in_front(
    make: Any, task: str, optional: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    told, place = front(model, tmp_path / "repo", monkeypatch)
    found = parsed(place / "config.pbtxt")
    assert (found.name, found.backend, found.max_batch_size) == (place.name, "python", 0)
    record = Record.of(json.loads((place / "1" / "record.json").read_text())["record"])
    assert (record.task, record.preprocess, record.inference) == (task, model.preprocess, model.inference)
    ins, outs = interface.inputs(task, "CT"), interface.outputs(task, "CT", len(record.classes))
    for ports, own in ((found.input, ins), (found.output, outs)):
        assert [(port.name, list(port.dims)) for port in ports] == [(one.name, list(one.dims)) for one in own]
    assert {port.name for port in found.input if port.optional} == optional
    assert found.parameters["network"].string_value == told["models"]["network"]
    assert (tmp_path / "repo" / found.parameters["network"].string_value / "config.pbtxt").is_file()
    assert (place / "labels.txt").read_text().split("\n") == [*record.classes, ""]
    if task == "segmentation":  # its classes are the network's own
        network = parsed(tmp_path / "repo" / told["models"]["network"] / "config.pbtxt")
        assert [port.label_filename for port in network.output] == ["labels.txt"]
        assert (tmp_path / "repo" / network.name / "labels.txt").read_text().split() == list(model.entry.classes)
    compile((place / "1" / "model.py").read_text(), "model.py", "exec")
    (group,) = found.instance_group
    assert group.Kind.Name(group.kind) == "KIND_CPU", "what is in front needs no GPU"


def test_what_the_server_would_be_given_must_fit_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = segmenter(window=(16, 48, 48))
    with pytest.raises(
        OptionError, match=r"pieces of 48 along height, .* would take 16 to 32. Next: leave out --shape"
    ):
        front(model, tmp_path / "a", monkeypatch, shape=(16, 24, 48), smallest=(16, 16, 16), largest=(32, 32, 64))
    with pytest.raises(OptionError, match=r"batches of 2 and no other .* Next: --dynamic batch,depth,height,width"):
        front(model, tmp_path / "b", monkeypatch, shape=(2, 1, 16, 48, 48), dynamic=("depth",))
    for number, (most, at_once) in enumerate([(8, None), (2, 1)]):
        shapes = {"largest": (most, 1, 16, 48, 48)}
        _, place = front(model, tmp_path / f"c{number}", monkeypatch, shape=(16, 48, 48), **shapes)
        assert json.loads((place / "1" / "record.json").read_text())["at_once"] == at_once


@pytest.mark.parametrize(
    ("entry", "name"),
    [("unet3d18w16_ctorgans", "unet3d18w16_ctorgans"), ("net@2", "net_2"), ("my net.safetensors", "my_net"),
     ("../../etc/passwd", "etc_passwd"), ("ä", "network"), (".safetensors", "network")],
)  # fmt: skip
def test_names_are_safe_in_a_url_and_as_a_folder(entry: str, name: str) -> None:
    assert repository.model_name(entry) == name


def test_the_record_says_everything_the_rules_are() -> None:
    """A field that is added to the rules later reaches the server, too."""
    record = Record.of_model(segmenter())
    for part, kind in (("preprocess", Preprocess), ("inference", Inference)):
        assert set(record.data()[part]) == {field.name for field in dataclasses.fields(kind)}


# ---- the text form ---------------------------------------------------------------------------------------------------


def test_text_is_read_as_it_was_meant() -> None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    odd = 'a "quoted" \\ name\nof two lines, \u00e4'
    message = {"name": odd, "max_batch_size": 3, "input": [{"name": "a", "dims": [1, -1]}, {"name": "b", "dims": []}],
               "parameters": [{"key": "k", "value": {"string_value": "v"}}]}  # fmt: skip
    found = text_format.Parse(config.text(message, "two lines\nof comment"), model_config_pb2.ModelConfig())
    assert (found.name, found.max_batch_size) == (odd, 3)
    assert [(port.name, list(port.dims)) for port in found.input] == [("a", [1, -1]), ("b", [])]
    assert found.parameters["k"].string_value == "v"


# ---- as an artifact --------------------------------------------------------------------------------------------------


def test_an_artifact_of_folders(tmp_path: Path) -> None:
    """Files of folders are sealed and checked as those beside the manifest are."""
    with artifact.beside(tmp_path / "repo", overwrite=False) as folder:
        (folder / "net" / "1").mkdir(parents=True)
        (folder / "net" / "1" / "model.onnx").write_bytes(b"graph")
        artifact.seal(folder, {"format": "triton", "built": {"model": "net/1/model.onnx"}})
    found = artifact.read(tmp_path / "repo")
    assert list(found.manifest["files"]) == ["net/1/model.onnx"]
    assert found.model == tmp_path / "repo" / "net" / "1" / "model.onnx"
    artifact.check(found)
    found.model.write_bytes(b"other")
    with pytest.raises(artifact.IntegrityError, match="expected sha256"):
        artifact.check(found)


def test_twice_the_same_bytes_and_no_place_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "DIRSENTINEL"):
        built("unet3d", tmp_path / name / "repo", monkeypatch)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 3  # no entry, so nothing in front
    for file in files:
        content = (tmp_path / "DIRSENTINEL" / file).read_bytes()
        assert content == (tmp_path / "one" / file).read_bytes()
        assert b"SENTINEL" not in content
        assert str(tmp_path).encode() not in content
