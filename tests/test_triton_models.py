"""The two Python models as Triton's backend calls them: each request alone, nothing private in an answer or log."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_export import copied
from helpers_predict import segmenter
from helpers_triton import InferenceResponse, Request, TritonError, backend

from svd_hub import Predictor
from svd_hub.errors import MissingExtraError, VolumeError
from svd_hub.export.network import Network
from svd_hub.export.triton import config, repository
from svd_hub.export.triton.image_model import TritonPythonModel
from svd_hub.export.triton.onnxruntime_backend import TritonPythonModel as OnnxRuntime
from svd_hub.predict.record import Record

ARRAY = np.random.default_rng(0).integers(-300, 400, (19, 22, 25)).astype(np.int16)
SPACING = np.array([2.0, 1.0, 1.5])
GIVEN = {"volume": ARRAY, "spacing": SPACING}


def opened(tmp_path: Path, **parameters: str) -> TritonPythonModel:
    """The image model of a narrow segmenter, as the server opens it."""
    repository._write_image(tmp_path / "front", "behind", Record.of_model(segmenter()), None)
    told = {"network": "behind", "largest_voxels": str(config.LARGEST_VOXELS), **parameters}
    model = TritonPythonModel()
    model.initialize(
        {
            "model_repository": str(tmp_path / "front"),
            "model_version": "1",
            "model_config": json.dumps({"parameters": {k: {"string_value": v} for k, v in told.items()}}),
        }
    )
    return model


def behind() -> dict[str, Any]:
    exported = Network(segmenter())
    return {"behind": lambda arrays: {"logits": exported.eager(torch.from_numpy(arrays["volume"]))[0].numpy()}}


def refused(response: InferenceResponse) -> tuple[str, str]:
    assert isinstance(response.failure, TritonError)
    return response.failure.code, response.failure.text


def test_good_and_bad_requests_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = backend(monkeypatch, behind())
    model = opened(tmp_path)
    bad = {"volume": ARRAY, "spacing": SPACING * np.nan}
    first, second, third = model.execute([Request(GIVEN), Request(bad), Request(GIVEN)])
    wanted = Predictor(segmenter(), device="cpu")(ARRAY, spacing=SPACING.tolist()).labels
    np.testing.assert_array_equal(first.arrays()["mask"], wanted)
    np.testing.assert_array_equal(third.arrays()["mask"], wanted)
    facts = json.loads(first.arrays()["result"].tobytes())
    assert (facts["task"], facts["entry"]) == ("segmentation", "unet3d18w16_ctorgans")
    assert refused(second) == ("INVALID_ARG", "spacing holds NaN or infinity; allowed: finite numbers. Next: send the "
                                              "image's own")  # fmt: skip
    assert {name for name, _ in seen.calls} == {"behind"}
    assert max(len(arrays["volume"]) for _, arrays in seen.calls) == 4, "windows are not sent in batches"


def test_a_request_that_nobody_waits_for_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = backend(monkeypatch, behind())
    (response,) = opened(tmp_path).execute([Request(GIVEN, gone_after=1)])
    assert refused(response) == ("CANCELLED", "cancelled")
    assert len(seen.calls) == 2


def test_the_networks_own_failure_is_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise RuntimeError("no memory on the device\nat 0x1234")

    backend(monkeypatch, {"behind": failing})
    (response,) = opened(tmp_path).execute([Request(GIVEN)])
    assert refused(response) == ("INTERNAL", "behind failed on an input of (4, 1, 16, 16, 16): no memory on the device")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ValueError("NAMESENTINEL in /home/ANNA"), "INTERNAL", r"ValueError in \w+\.py, line \d+$"),
        (MemoryError("NAMESENTINEL"), "UNAVAILABLE", "the server has not enough memory for this image$"),
        (MissingExtraError("SimpleITK", "volume"), "INTERNAL", r"SimpleITK is not installed. Next: pip install"),
        (VolumeError("too thin"), "INVALID_ARG", "^too thin$"),
    ],
)
def test_a_fault_tells_its_place_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str, says: str
) -> None:
    seen = backend(monkeypatch, behind())
    model = opened(tmp_path)

    def service(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(model, "service", service)
    (response,) = model.execute([Request(GIVEN)])
    found, text = refused(response)
    assert found == code
    assert re.search(says, text), text
    for words in (text, *seen.log):
        assert "SENTINEL" not in words
        assert "/" not in words.replace("or of a library", "")
    assert len(seen.log) == (1 if type(error) is ValueError else 0)


def test_the_file_in_the_repository_is_that_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend(monkeypatch, behind())
    opened(tmp_path)
    place = tmp_path / "front" / "1" / repository.MODEL
    assert runpy.run_path(str(place))["TritonPythonModel"] is TritonPythonModel
    monkeypatch.setitem(sys.modules, "svd_hub.export.triton.image_model", None)
    with pytest.raises(
        ImportError, match=r'not installed in the Python of this server. Next: pip install "svd-hub\[vol'
    ):
        runpy.run_path(str(place))


# ---- the stand-in for the onnxruntime backend ------------------------------------------------------------------------


def stand_in(tmp_path: Path, *, batch: int) -> OnnxRuntime:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(copied("unet3d").SerializeToString())
    told = {
        "default_model_filename": "model.onnx",
        "max_batch_size": batch,
        "input": [{"name": "volume"}],
        "output": [{"name": "logits"}],
    }
    model = OnnxRuntime()
    model.initialize({"model_repository": str(tmp_path), "model_version": "1", "model_config": json.dumps(told)})
    return model


@pytest.mark.parametrize("batch", [0, 8])
def test_the_stand_in_answers_each_request_of_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    backend(monkeypatch, {})
    model = stand_in(tmp_path, batch=batch)
    runs: list[int] = []
    session = model.session

    class Counted:
        def run(self, outputs: list[str], arrays: dict[str, np.ndarray]) -> Any:
            runs.append(len(arrays["volume"]))
            return session.run(outputs, arrays)

    model.session = Counted()
    random = np.random.default_rng(0)
    volumes = [random.standard_normal((n, 1, 8, 16, 16)).astype(np.float32) for n in (1, 3, 2)]
    answers = [response.arrays()["logits"] for response in model.execute([Request({"volume": v}) for v in volumes])]
    assert runs == ([6] if batch else [1, 3, 2])
    for volume, answer in zip(volumes, answers, strict=True):
        np.testing.assert_allclose(answer, session.run(None, {"volume": volume})[0], rtol=1e-4, atol=1e-5)


def test_the_stand_in_fails_as_the_backend_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend(monkeypatch, {})
    model = stand_in(tmp_path, batch=8)
    responses = model.execute([Request({"volume": np.zeros((1, 2, 8, 16, 16), np.float32)}) for _ in range(2)])
    for response in responses:
        code, text = refused(response)
        assert (code, text.startswith("onnx runtime error: ")) == ("INTERNAL", True)
        assert "\n" not in text
