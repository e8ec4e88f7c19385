"""From slices to findings: scaled back, told in pixels and mm, the same in every file."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_spots import HU, SPACING, Spots, lesion_series
from helpers_volume import AXES

import svd_hub
from svd_hub import Predictor, Preprocess
from svd_hub.errors import OptionError
from svd_hub.predict import Detection, Outputs
from svd_hub.predict.outputs import write
from svd_hub.volume import Volume, read

rng = np.random.default_rng(0)


def test_one_lesion_is_one_finding() -> None:
    result = Predictor(Spots())(HU, spacing=SPACING)
    assert isinstance(result, Detection)
    (one,) = result.findings
    assert (one.label, one.score, one.plane, one.planes) == ("dim", pytest.approx(0.7), 5, (4, 7))
    assert one.box == one.extent == (12.0, 5.0, 20.0, 9.0)
    assert sorted(one.boxes) == [4, 5, 6, 7]
    assert result.searched == tuple(range(13))
    (row,) = result.rows()
    assert row["slice"] == 5
    assert row["slices"] == [4, 7]
    assert row["box_px"] == [12.0, 5.0, 20.0, 9.0]
    assert row["box_mm_lps"][0] == pytest.approx([(12 - 0.5) * 0.7, (5 - 0.5) * 0.8, 5 * 2.5])
    assert row["extent_mm_lps"][1] == pytest.approx([(20 - 0.5) * 0.7, (9 - 0.5) * 0.8, 7 * 2.5])


def test_what_the_network_is_given() -> None:
    model = Spots(side=52)
    Predictor(model)(HU, spacing=SPACING, planes=[3])
    assert model.seen == [(1, 1, 9, 40, 52)]
    result = Predictor(Spots(side=52))(HU, spacing=SPACING)
    assert np.allclose(result.findings[0].box, (12, 5, 20, 9), atol=0.51), "scaled back from twice the size"


def test_planes_least_score_and_most() -> None:
    predictor = Predictor(Spots())
    assert predictor(HU, spacing=SPACING, planes=[7, 5, 5]).searched == (5, 7)
    assert predictor(HU, spacing=SPACING, planes=[0]).findings == ()
    assert predictor(HU, spacing=SPACING, least_score=0.65).findings[0].planes == (5, 5)
    assert predictor(HU, spacing=SPACING, least_score=0.71).findings == ()
    hu = HU.copy()
    hu[10, 2:6, 2:6] = 900
    assert [one.label for one in predictor(hu, spacing=SPACING).findings] == ["glaring", "dim"]
    assert [one.label for one in predictor(hu, spacing=SPACING, most=1).findings] == ["glaring"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("least_score", -0.1), ("least_score", 1.1), ("least_score", float("nan")), ("least_score", "0.5"), ("most", 0),
     ("most", -1), ("most", 1.5), ("most", True), ("planes", [13]), ("planes", [-1]), ("planes", [])],
)  # fmt: skip
def test_arguments_that_make_no_sense(option: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"{option}=.* not allowed; allowed: "):
        Predictor(Spots())(HU, spacing=SPACING, **{option: value})


# ---- places --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", AXES)
def test_rows_lie_on_the_input_under_every_turn(axes: str) -> None:
    """The lesion's voxels, as the input counts them, and the points they are at, by the input's own grid."""
    straight = Volume.from_array(HU, spacing=SPACING, modality="CT")
    grid, turn = straight.grid.turned(axes)
    given = dataclasses.replace(straight, array=np.ascontiguousarray(turn.apply(HU)), grid=grid, source_grid=grid)
    result = Predictor(Spots())(given.image)
    (row,) = result.rows()
    bright = np.argwhere(given.array > 200)
    low, high = bright.min(0), bright.max(0)
    points = grid.points(np.array([(z, y, x) for z in (low[0], high[0]) for y in (low[1] - 0.5, high[1] + 0.5)
                                   for x in (low[2] - 0.5, high[2] + 0.5)]))  # fmt: skip
    # in the patient: half a voxel more within the slices, none along their normal
    centres = grid.points(bright)
    half = np.array([0.35, 0.4, 0.0])
    assert np.allclose(row["extent_mm_lps"][0], centres.min(0) - half, atol=2e-3)
    assert np.allclose(row["extent_mm_lps"][1], centres.max(0) + half, atol=2e-3)
    if axes[0] in "SI":
        x0, y0, x1, y1 = row["box_px"]
        place = given.array[row["slice"]]
        if axes[1] in "AP":
            assert place[int(y0) : int(y1), int(x0) : int(x1)].min() == 700
            assert (place > 200).sum() == (y1 - y0) * (x1 - x0)
            assert row["slices"] == [low[0], high[0]]
    assert points.shape == (8, 3)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_the_table_is_the_json(tmp_path: Path) -> None:
    lesion_series(tmp_path / "in", (-1, 0, 0, 0, 1, 0))
    (tmp_path / "out").mkdir()
    predictor = Predictor(Spots())
    write(predictor(tmp_path / "in"), tmp_path / "out", predictor.preprocess, Outputs())
    facts = json.loads((tmp_path / "out" / "result.json").read_text())
    with (tmp_path / "out" / "findings.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(facts["findings"]) == 1
    for line, row in zip(lines, facts["findings"], strict=True):
        assert (line["finding"], line["class"], line["score"]) == ("1", row["class"], str(row["score"]))
        assert [float(line[f"{side}_px"]) for side in ("x0", "y0", "x1", "y1")] == row["box_px"]
        assert int(line["slice"]) == row["slice"]
        assert [int(line["first_slice"]), int(line["last_slice"])] == row["slices"]
        for kind in ("box", "extent"):
            told = [[float(line[f"{kind}_{end}_{axis}_mm"]) for axis in "xyz"] for end in ("low", "high")]
            assert told == row[f"{kind}_mm_lps"]
    assert facts["files"] == ["findings.csv", "findings.dcm", "picture.png"]
    assert facts["searched_slices"] == 13


@pytest.mark.parametrize("kind", ["array", "grey", "path", "picture"])
def test_a_photograph(tmp_path: Path, kind: str) -> None:
    from PIL import Image

    pixels = rng.integers(0, 100, (40, 60, 3)).astype(np.uint8)
    pixels[10:20, 30:50] = 250
    grey = pixels[..., 0]
    pixels = np.repeat(grey[..., None], 3, 2)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    given: Any = {"array": pixels, "grey": grey, "path": tmp_path / "photo.png", "picture": Image.fromarray(pixels)}[
        kind
    ]
    model = Spots(side=120, modality="RGB")
    predictor = Predictor(model)
    result = predictor(given)
    assert model.seen == [(1, 1, 3, 80, 120)]
    (one,) = result.findings
    assert np.allclose(one.box, (30, 10, 50, 20), atol=0.51)
    assert "slice" not in result.rows()[0]
    (tmp_path / "out").mkdir()
    write(result, tmp_path / "out", predictor.preprocess, Outputs())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["findings.csv", "picture.png", "result.json"]
    assert (tmp_path / "out" / "findings.csv").read_text().splitlines()[
        0
    ] == "finding,class,score,x0_px,y0_px,x1_px,y1_px"
    for refused in ({"planes": [0]}, {"spacing": (1, 1, 1)}, {"axes": "SPL"}, {"series": 3}, {"point": (0, 0, 0)}):
        with pytest.raises(OptionError, match="is not allowed: 'spots' does detection of photographs"):
            predictor(given, **refused)


@pytest.mark.parametrize("rule", [{"spacing": (1.0, 1.0, 1.0)}, {"size": (9, 64, 64)}, {"statistics": "volume"},
                                  {"orientation": "RAS"}])  # fmt: skip
def test_a_detector_whose_preprocessing_would_be_passed_over_is_refused(rule: dict[str, Any]) -> None:
    """As one gets by putting a detector on a backbone of 3D crops."""
    model = Spots()
    model.preprocess = Preprocess(**rule)
    with pytest.raises(OptionError, match=f"the preprocessing of 'spots' has {next(iter(rule))}=.* Next: "):
        Predictor(model)


def test_a_detector_of_ours_from_a_file(tmp_path: Path) -> None:
    """Saved, loaded, run: its boxes on a slice are those of the network on that input."""
    from helpers_predict import detector

    model = detector()
    svd_hub.save(model, tmp_path / "detector.safetensors")
    predictor = Predictor(tmp_path / "detector.safetensors")
    hu = rng.integers(-200, 300, (12, 64, 80)).astype(np.int16)
    result = predictor(hu, spacing=(2.5, 1.0, 1.0), planes=[6], least_score=0.0)
    x = predictor.preprocess(hu[2:11])
    with torch.inference_mode():
        (found,) = predictor.model(x)
    assert len(found.boxes) > 0
    assert len(result.findings) == len(found.boxes)
    assert np.allclose(sorted(one.score for one in result.findings), sorted(found.scores.tolist()), atol=1e-6)
    best = result.findings[0]
    assert np.allclose(best.box, found.boxes[int(found.scores.argmax())].tolist(), atol=1e-3)
    assert read  # the public reader is not needed for arrays
