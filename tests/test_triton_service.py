"""The model in front of a network answers as `Predictor` does, and refuses what it refuses, in words of the request."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from helpers_predict import detector, segmenter

import svd_hub
from svd_hub import Predictor, Preprocess
from svd_hub.errors import OptionError, VolumeError
from svd_hub.export.network import Network
from svd_hub.export.triton import interface
from svd_hub.export.triton.service import Service, answer_of, volume_of
from svd_hub.predict.record import Record
from svd_hub.volume import Volume

ARRAY = np.random.default_rng(0).integers(-300, 400, (19, 22, 25)).astype(np.int16)
SPACING = np.array([2.0, 1.0, 1.5])


def service(model: Any, **options: Any) -> Service:
    """A service in front of the network itself, as a server would give its outputs."""
    exported = Network(model)

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        found = exported.eager(torch.from_numpy(batch))
        return dict(zip(exported.outputs, (tensor.numpy() for tensor in found), strict=True))

    return Service(Record.of_model(model), run, **options)


def classifier(**rule: Any) -> Any:
    torch.manual_seed(0)
    model = svd_hub.load("resnet3d18w16_lidc", weights=None, width=4, depth=10, num_classes=3)
    model.preprocess = Preprocess(window=(-1000.0, 400.0), mean=10.0, std=300.0, **rule)
    return model.eval()


def colours() -> Any:
    torch.manual_seed(0)
    return svd_hub.load("resnet3d18w16_tinyimagenet", weights=None, width=4, depth=10, num_classes=5).eval()


def check(answer: dict[str, np.ndarray], model: Any, image: Any, **options: Any) -> None:
    """The answer is the predictor's own, and of the names, types and axes that the interface states."""
    wanted = answer_of(Predictor(model, device="cpu")(image, **options))
    record = Record.of_model(model)
    ports = interface.outputs(record.task, record.preprocess.modality, len(record.classes))
    assert list(answer) == [port.name for port in ports]
    kinds = {"UINT8": np.uint8, "FP32": np.float32, "INT32": np.int32}
    for port in ports:
        assert answer[port.name].dtype == kinds[port.dtype]
        sides = zip(answer[port.name].shape, port.dims, strict=True)
        assert all(d in (n, -1) for n, d in sides), port
        np.testing.assert_array_equal(answer[port.name], wanted[port.name])


def test_a_mask_is_the_predictors() -> None:
    model = segmenter(rule={"spacing": (2.5, 1.5, 1.5)}, largest=("liver",))
    answer = service(model)({"volume": ARRAY, "spacing": SPACING})
    assert len(np.unique(answer["mask"])) > 1
    check(answer, model, ARRAY, spacing=SPACING.tolist())
    assert service(model, at_once=1)({"volume": ARRAY, "spacing": SPACING})["mask"].shape == ARRAY.shape


@pytest.mark.parametrize("rule", [{}, {"size": (8, 16, 16)}, {"size": (8, 16, 16), "spacing": (1.0, 1.0, 1.0)}])
def test_probabilities_are_the_predictors(rule: dict[str, Any]) -> None:
    model = classifier(**rule)
    answer = service(model)({"volume": ARRAY, "spacing": SPACING})
    check(answer, model, ARRAY, spacing=SPACING.tolist())
    if rule:
        point = np.array([20.0, 12.0, 30.0])
        about = service(model)({"volume": ARRAY, "spacing": SPACING, "point": point})
        check(about, model, ARRAY, spacing=SPACING.tolist(), point=point.tolist())
        assert (about["probabilities"] != answer["probabilities"]).any()


def test_boxes_are_the_predictors() -> None:
    model = detector()
    array = np.random.default_rng(0).integers(-1000, 400, (12, 64, 64)).astype(np.int16)
    given = {"volume": array, "spacing": SPACING, "planes": np.array([3, 6], np.int32), "least_score": np.array([0.3])}
    answer = service(model)(given)
    assert len(answer["boxes"]) > 0
    check(answer, model, array, spacing=SPACING.tolist(), planes=[3, 6], least_score=0.3)
    assert set(answer["slices"][:, 0]) <= {3, 6}
    none = service(model)({**given, "least_score": np.array([1.0])})
    assert none["boxes"].shape == (0, 4)
    assert none["slices"].shape == (0, 3)


def test_pictures_too() -> None:
    model = colours()
    picture = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    check(service(model)({"picture": picture}), model, picture)


# ---- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PSL", "AIR"])
def test_a_turned_image_is_turned_back(axes: str) -> None:
    """What a file's own axes are changes neither the result nor where it lies."""
    model = segmenter()
    straight = Volume.from_array(ARRAY, spacing=SPACING.tolist(), axes="SPL", modality="CT")
    grid, turn = straight.grid.turned(axes)
    given = {
        "volume": np.ascontiguousarray(turn.apply(ARRAY)),
        "spacing": np.array(grid.spacing),
        "direction": np.array(grid.direction),
        "origin": np.array(grid.origin),
    }
    read = volume_of(given, "CT")
    assert read.grid.is_like(straight.grid)
    np.testing.assert_array_equal(read.array, ARRAY)
    mask = service(model)(given)["mask"]
    wanted = Predictor(model, device="cpu")(straight).labels
    np.testing.assert_array_equal(mask, turn.apply(wanted))


def test_the_same_as_simpleitk_reads() -> None:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(ARRAY)
    image.SetSpacing((1.5, 1.0, 2.0))
    image.SetOrigin((-10.0, 20.5, 3.0))
    turn = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5)
    image.SetDirection(turn.GetMatrix())
    given = {
        "volume": sitk.GetArrayFromImage(image),
        "spacing": np.array(image.GetSpacing()[::-1]),
        "direction": np.array(image.GetDirection()),
        "origin": np.array(image.GetOrigin()),
    }
    assert volume_of(given, "CT").grid.is_like(Volume.from_image(image).grid, 1e-9)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"spacing": SPACING * np.nan}, "spacing holds NaN or infinity; allowed: finite numbers"),
        ({"spacing": -SPACING}, r"the spacing \(-2.0, -1.0, -1.5\) mm .* allowed: 0.001 to 100 mm"),
        ({"direction": np.full(9, np.inf)}, "direction holds NaN or infinity"),
        ({"direction": np.zeros(9)}, "direction .* is none; allowed: three columns of length 1 at right angles"),
        ({"direction": 2 * np.eye(3).ravel()}, "direction .* is none"),
        ({"direction": np.array([1, 0.3, 0, 0, 1, 0, 0, 0, 1.0])}, "direction .* is none"),
        ({"origin": np.array([0, np.nan, 0])}, "origin holds NaN"),
        ({"origin": np.array([0, 1e9, 0])}, "the origin .* is not allowed"),
        ({"volume": ARRAY[:0]}, "an image of 0 x 22 x 25 is not allowed; allowed: 1 to 20,000 voxels"),
        ({"volume": np.tile(ARRAY, (2, 1, 1))}, "an image of 38 x 22 x 25 is not allowed; .* raise largest_voxels"),
        ({"volume": ARRAY[:1]}, "one slice, a 2D image"),
        ({"volume": np.zeros_like(ARRAY)}, "every voxel is 0: an empty image"),
    ],
)
def test_what_is_refused(changed: dict[str, np.ndarray], says: str) -> None:
    asked = service(segmenter(), largest_voxels=20_000)
    with pytest.raises(VolumeError, match=says):
        asked({"volume": ARRAY, "spacing": SPACING, **changed})


def test_options_are_refused_as_predict_refuses_them() -> None:
    asked = service(classifier(size=(8, 16, 16)))
    given = {"volume": ARRAY, "spacing": SPACING}
    with pytest.raises(VolumeError, match=r"the point .* lies outside the volume"):
        asked({**given, "point": np.array([500.0, 0, 0])})
    with pytest.raises(OptionError, match="NaN or infinity is not allowed"):
        asked({**given, "point": np.array([np.nan, 0, 0])})
    with pytest.raises(OptionError, match=r"least_score=2.0 is not allowed; allowed: 0 to 1"):
        service(detector())({**given, "least_score": np.array([2.0])})


def test_nan_in_an_mr_and_nan_of_a_network() -> None:
    model = segmenter(rule={"modality": "MR", "window": None, "scale": None, "statistics": "volume"})
    array = ARRAY.astype(np.float32)
    assert interface.inputs("segmentation", "MR")[0].dtype == "FP32"
    check(service(model)({"volume": array, "spacing": SPACING}), model, array, spacing=SPACING.tolist())
    broken = array.copy()
    broken[3, 4, 5] = np.nan
    with pytest.raises(VolumeError, match="1 of 10450 voxels are NaN or infinite"):
        service(model)({"volume": broken, "spacing": SPACING})
    record = Record.of_model(model)
    nothing = Service(record, lambda batch: {"logits": np.full((len(batch), 4, *batch.shape[2:]), np.nan, np.float32)})
    with pytest.raises(VolumeError, match="the network's output holds NaN or infinity"):
        nothing({"volume": array, "spacing": SPACING})


# ---- the record ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [segmenter, classifier, detector, colours])
def test_a_record_survives_json(make: Any) -> None:
    record = dataclasses.replace(Record.of_model(make()), weights_sha256="ab" * 32)
    assert Record.of(json.loads(json.dumps(record.data()))) == record


def test_a_record_that_is_none() -> None:
    data = Record.of_model(segmenter()).data()
    for broken in ({}, {**data, "preprocess": {"window": 3}}, {**data, "inference": {"new": 1}}):
        with pytest.raises(OptionError, match="the record of a network is damaged or of another svd_hub"):
            Record.of(broken)
    with pytest.raises(OptionError, match=r"task='reading' of .* is not allowed; allowed: classification"):
        Record.of({**data, "task": "reading"})
