"""A real Triton server, the one that `make tools` brings, on narrow networks: every task, and what must be refused."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_predict import detector, segmenter, start
from helpers_triton import need_server

import svd_hub
from svd_hub import Predictor, Preprocess
from svd_hub.errors import CheckpointError
from svd_hub.export import export
from svd_hub.export.triton import serve_check
from svd_hub.export.triton.client import PROTOCOLS, Client, RefusedError
from svd_hub.export.triton.examples import made_up
from svd_hub.export.triton.server import HOST, Server, running
from svd_hub.export.triton.service import answer_of
from svd_hub.export.triton.wanted import agreement
from svd_hub.predict.record import Record

pytestmark = [pytest.mark.tools, pytest.mark.timeout(600)]
torch.set_num_threads(1)


def classifier() -> Any:
    torch.manual_seed(0)
    model = svd_hub.load("resnet3d18w16_lidc", weights=None, width=4, depth=10, num_classes=2)
    return model.eval()


def colours() -> Any:
    torch.manual_seed(0)
    return svd_hub.load("resnet3d18w16_tinyimagenet", weights=None, width=4, depth=10, num_classes=5).eval()


def magnetic() -> Any:
    rule = {"modality": "MR", "window": None, "scale": None, "statistics": "volume", "spacing": (1.5, 1.5, 1.5)}
    model = segmenter(rule=rule)
    model.preprocess = Preprocess(**{**rule, "mean": 0.0, "std": 1.0})
    return model


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_server()
    folder = tmp_path_factory.mktemp("triton") / "segmenter"
    export(segmenter(largest=("liver",)), "triton", folder, smallest=(16, 16, 16))
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    with running([repository], need_server()) as started:
        yield started


def copied(repository: Path, folder: Path) -> Path:
    return Path(shutil.copytree(repository, folder / "repo"))


def ask(server: Server, protocol: str, model: str, arrays: dict[str, np.ndarray], outputs: list[str]) -> Any:
    with Client(protocol, f"{HOST}:{getattr(server, protocol)}") as asked:
        return asked.infer(model, arrays, outputs)


NAME = "unet3d18w16_ctorgans"


def test_checked_from_end_to_end(repository: Path) -> None:
    report = serve_check(repository, model=segmenter(largest=("liver",)), requests=12)
    assert report.passed, "\n".join(report.lines())
    assert report.server == "triton server 2.51.0"
    assert set(report.network) == set(PROTOCOLS)
    assert all(len(parity.cases) >= 4 for parity in report.network.values())
    assert [case.agreement for case in report.images] == [1.0, 1.0]
    assert (report.together.right, report.together.pieces, len(report.together.refusals)) == (12, 12, 20)
    assert {one.kind for one in report.together.refusals} == {"shape", "dtype", "name", "NaN", "size"}
    inputs, runs = report.together.batches
    assert inputs > runs, "no two requests shared a run"
    assert {(one.protocol, one.at_once) for one in report.speed} == {(p, n) for p in PROTOCOLS for n in (1, 8)}
    told = json.dumps(report.data())
    for word in (str(repository), str(Path.cwd()), "/tmp"):
        assert word not in told
        assert word not in "\n".join(report.lines())


def test_a_wrong_answer_fails_the_check(repository: Path) -> None:
    """Held against another network of the same shape, nothing is right; and it is the check that says so."""
    with pytest.raises(CheckpointError, match="is not the network that"):
        serve_check(repository, model=segmenter().double().float().apply(_shift))


def _shift(module: Any) -> None:
    if isinstance(module, torch.nn.BatchNorm3d):
        module.bias.data += 0.5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_of_the_server_tell_nothing(server: Server, protocol: str) -> None:
    """Neither the message nor the log holds what was in the request, or where anything is."""
    image = made_up(Record.of_model(segmenter()), (20, 24, 28), seed=1)
    image["volume"][3, 4, 5] = 12345
    wrong = [
        {**image, "spacing": np.full(3, np.nan)},
        {**image, "direction": np.zeros(9)},
        {**image, "volume": image["volume"][:1]},
        {**image, "volume": np.full_like(image["volume"], 12345)[:0]},
    ]
    for arrays in wrong:
        with pytest.raises(RefusedError) as refused:
            ask(server, protocol, NAME, arrays, ["mask"])
        assert refused.value.is_clients
        assert "/" not in refused.value.reason
    assert "12345" not in server.log.read_text()


def test_a_request_that_is_cancelled_is_given_up(server: Server) -> None:
    """The windows of an image that nobody waits for are not computed to the end."""
    import tritonclient.grpc as grpc

    image = made_up(Record.of_model(segmenter()), (200, 200, 200), seed=0)
    with (
        Client("http", f"{HOST}:{server.http}") as counting,
        grpc.InferenceServerClient(f"{HOST}:{server.grpc}") as one,
    ):
        before = counting.executions(f"{NAME}_network")[0]
        inputs = []
        for name, array in image.items():
            kind = "INT16" if name == "volume" else "FP64"
            inputs.append(grpc.InferInput(name, list(array.shape), kind).set_data_from_numpy(array))
        under_way = one.async_infer(NAME, inputs, callback=lambda result, error: None)
        _until(lambda: counting.executions(f"{NAME}_network")[0] > before)
        under_way.cancel()
        last = [-1, 0]
        _until(lambda: last.append(counting.executions(f"{NAME}_network")[0]) or last[-1] == last[-2], pause=1.0)
        windows = 24**3  # of 16 voxels, half a window apart
        assert last[-1] - before < windows / 4


def _until(holds: Any, *, patience: float = 60.0, pause: float = 0.02) -> None:
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end
        time.sleep(pause)


def test_an_image_that_is_too_large(repository: Path, tmp_path: Path) -> None:
    copy = copied(repository, tmp_path)
    config = copy / NAME / "config.pbtxt"
    config.write_text(config.read_text().replace('"536870912"', '"20000"'))
    with running([copy], need_server()) as started:
        image = made_up(Record.of_model(segmenter()), (20, 24, 42), seed=0)
        for protocol in PROTOCOLS:
            with pytest.raises(
                RefusedError, match="an image of 20 x 24 x 42 is not allowed; allowed: 1 to 20,000"
            ) as refused:
                ask(started, protocol, NAME, image, ["mask"])
            assert refused.value.is_clients
        assert ask(started, "http", NAME, made_up(Record.of_model(segmenter()), (20, 24, 40), seed=0), ["mask"])


def test_ctrl_c_stops_the_server(repository: Path, tmp_path: Path) -> None:
    copy = copied(repository, tmp_path)  # a server of a place of its own, to tell it from the others
    process = start("serve-check", copy)
    mark = f"--model-repository={copy}".encode()
    _until(lambda: _servers(mark, of=process.pid))
    (pid,) = _servers(mark, of=process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "stopped, and the server with it"
    _until(lambda: not Path(f"/proc/{pid}").exists(), patience=10)


def _servers(mark: bytes, *, of: int) -> list[int]:
    """The servers that a process has started; a child that a server forks has its words too, until it is another."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if parent == of and mark in words and words[0].endswith(b"tritonserver"):
            found.append(int(place.name))
    return found


def test_a_damaged_repository_is_not_started(repository: Path, tmp_path: Path) -> None:
    copy = copied(repository, tmp_path)
    (copy / NAME / "labels.txt").write_text("other\n")
    process = start("serve-check", copy)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "labels.txt: expected sha256" in errors


@pytest.mark.slow
def test_every_task_at_once(tmp_path: Path) -> None:
    """Classes, boxes, pictures and MR beside each other on one server, each answer that of its predictor."""
    installation = need_server()
    models = {"lidc": classifier(), "colours": colours(), "mr": magnetic(), "boxes": detector()}
    for name, model in models.items():
        model.entry = type(model.entry)(**{**vars(model.entry), "name": name})
        shapes = {"shape": (9, 64, 64), "smallest": (9, 32, 32), "largest": (9, 128, 128)} if name == "boxes" else {}
        export(model, "triton", tmp_path / name, **shapes)
    with running([tmp_path / name for name in models], installation) as started:
        for name, model in models.items():
            record = Record.of_model(model)
            sides = (12, 64, 64) if name == "boxes" else (40, 44, 48)
            image = made_up(record, sides, seed=0)
            array = image.get("volume", image.get("picture"))
            options = {} if name == "colours" else {"spacing": image["spacing"].tolist()}
            more: dict[str, Any] = {}
            if name == "boxes":
                more, options["planes"] = {"planes": np.array([3, 6], np.int32)}, [3, 6]
            wanted = answer_of(Predictor(model, device="cpu")(array, **options))
            assert len(np.unique(wanted.get("labels", wanted.get("mask", wanted.get("probabilities"))))) > 1
            for protocol in PROTOCOLS:
                answer = ask(started, protocol, name, {**image, **more}, list(wanted))
                agrees, says = agreement(answer, wanted)
                assert agrees > 0.999, says
                assert json.loads(answer["result"].tobytes())["task"] == record.task
            if name == "mr":
                with pytest.raises(RefusedError, match="1 of 84480 voxels are NaN or infinite") as refused:
                    ask(started, "grpc", name, {**image, "volume": _one_nan(array)}, ["mask"])
                assert refused.value.is_clients


def _one_nan(array: Any) -> np.ndarray:
    broken = array.copy()
    broken[1, 2, 3] = np.nan
    return broken
