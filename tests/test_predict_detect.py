"""From boxes on slices to findings: scaled back, merged in chains, told in pixels and mm, the same in every file."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from helpers_detection import iou_of
from helpers_volume import AXES, AXIAL, CORONAL, OBLIQUE, make_series
from torch import Tensor, nn

import svd_hub
from svd_hub import Inference, Predictor, Preprocess
from svd_hub.errors import OptionError
from svd_hub.models.detection import Detections
from svd_hub.predict import Detection, Outputs
from svd_hub.predict.detect import merged, table
from svd_hub.predict.outputs import write
from svd_hub.volume import Volume, read

rng = np.random.default_rng(0)


def rows_on(planes: list[int], count: int, labels: int, seed: int) -> dict[int, np.ndarray]:
    """Random boxes, many of which overlap those of the next slice."""
    g = np.random.default_rng(seed)
    found = {}
    for plane in planes:
        low = g.integers(0, 6, (g.integers(0, count), 2)) * 4 + g.random((1, 2)) * 3
        boxes = np.concatenate([low, low + 8], 1)
        rest = np.stack([g.permutation(1000)[: len(low)] / 1000 + plane * 1e-6, g.integers(0, labels, len(low))], 1)
        found[plane] = np.concatenate([boxes, rest], 1)
    return found


def chains(boxes: dict[int, np.ndarray], planes: list[int], iou: float) -> list[list[tuple[int, int]]]:
    """The rule of `merged` in plain loops: lists of (plane, number of the box)."""
    free = {(p, k) for p in planes for k in range(len(boxes[p]))}
    found = []
    for p, k in sorted(free, key=lambda at: -boxes[at[0]][at[1]][4]):
        if (p, k) not in free:
            continue
        free.remove((p, k))
        chain = [(p, k)]
        for step in (-1, 1):
            here, at = (p, k), planes.index(p) + step
            while 0 <= at < len(planes):
                last = boxes[here[0]][here[1]]
                there = [
                    (iou_of(last[:4], boxes[q][j][:4]), -j)
                    for q, j in free
                    if q == planes[at] and boxes[q][j][5] == last[5]
                ]
                if not there or max(there)[0] < iou:
                    break
                here = (planes[at], -max(there)[1])
                free.remove(here)
                chain.append(here)
                at += step
        found.append(sorted(chain))
    return found


@pytest.mark.parametrize("seed", range(25))
def test_merging_is_its_plain_statement(seed: int) -> None:
    planes = [0, 2, 5, 7, 9, 12]
    boxes, iou = rows_on(planes, 9, 1 + seed % 3, seed), (0.2, 0.5, 0.9, 1.0)[seed % 4]
    classes = ["a", "b", "c"]
    found = merged(boxes, planes, classes, iou=iou)
    expected = chains(boxes, planes, iou)
    assert len(found) == len(expected)
    for one, chain in zip(found, expected, strict=True):
        members = {p: boxes[p][k] for p, k in chain}
        best = max(members, key=lambda p: members[p][4])
        assert (one.plane, one.score) == (best, members[best][4])
        assert one.label == classes[int(members[best][5])]
        assert one.planes == (min(members), max(members))
        assert one.boxes == {p: tuple(row[:4]) for p, row in members.items()}
        sides = np.array([row[:4] for row in members.values()])
        assert one.extent == (*sides[:, :2].min(0), *sides[:, 2:].max(0))
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert sum(len(one.boxes) for one in found) == sum(map(len, boxes.values())), "each box is in one chain"


def test_a_chain_ends_where_a_slice_has_no_such_box() -> None:
    box = [10.0, 10.0, 30.0, 30.0]
    boxes = {k: np.array([[*box, 0.5 + k / 100, 0.0]]) for k in range(6)}
    boxes[2] = np.array([[*box, 0.9, 1.0]])
    boxes[4] = np.zeros((0, 6))
    found = merged(boxes, list(range(6)), ["a", "b"], iou=0.5)
    assert [(one.label, one.planes) for one in found] == [("b", (2, 2)), ("a", (5, 5)), ("a", (3, 3)), ("a", (0, 1))]


def test_boxes_are_scaled_back_and_weak_ones_left_out() -> None:
    boxes = torch.tensor([[2.0, 3.0, 8.0, 12.0], [0.0, 0.0, 1.0, 1.0], [4.0, 4.0, 6.0, 9.0]])
    found = table(Detections(boxes, torch.tensor([0.9, 0.1, 0.0999]), torch.tensor([1, 0, 1])), (2.0, 3.0), 0.1)
    assert found[0].tolist() == [1.0, 1.0, 4.0, 4.0, pytest.approx(0.9), 1.0]
    assert len(found) == 2
    assert found.dtype == np.float64


# ---- a detector that sees brightness -------------------------------------------------------------------------------


class Spots(nn.Module):
    """Finds the bright pixels of the key slice: one box around all of them, its label by their brightness."""

    task = "detection"

    def __init__(self, side: int | None = None, modality: str = "CT") -> None:
        super().__init__()
        self.entry = dataclasses.replace(
            svd_hub.get_entry("unet3d18w16_ctorgans"), name="spots", classes=("dim", "glaring"), metrics=()
        )
        self.preprocess = Preprocess(modality=modality)
        self.inference = Inference(slices=3 if modality == "RGB" else 9, side=side)
        self.options = {"num_classes": 2}
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> list[Detections]:
        self.seen.append(tuple(x.shape))
        key = x[0, 0, x.shape[2] // 2]
        at = (key > 200).nonzero()
        if not len(at):
            return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))]
        (y0, x0), (y1, x1) = at.min(0).values.tolist(), (at.max(0).values + 1).tolist()
        high = float(key.max())
        boxes = torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32)
        return [Detections(boxes, torch.tensor([min(1.0, high / 1000)]), torch.tensor([int(high > 800)]))]


SHAPE, SPACING = (13, 20, 26), (2.5, 0.8, 0.7)
LESION = (slice(4, 8), slice(5, 9), slice(12, 20))


def scan() -> np.ndarray:
    """HU (D, H, W) with one lesion, brightest on plane 5."""
    hu = rng.integers(-100, 50, SHAPE).astype(np.int16)
    hu[LESION] = 600
    hu[5][LESION[1:]] = 700
    return hu


HU = scan()


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


def lesion_series(folder: Path, orientation: tuple[float, ...] = AXIAL, **options: Any) -> list[Path]:
    return make_series(folder, (HU + 1024).astype(np.uint16), spacing=SPACING, orientation=orientation, **options)


def regions(result: Detection) -> list[tuple[pydicom.Dataset, np.ndarray]]:
    """The image and the ring of each finding of the DICOM object, read by highdicom."""
    from svd_hub.predict import dicom_out

    content, _ = dicom_out.report(result)
    document = highdicom.sr.srread(io.BytesIO(content))
    images = {}
    for source in result.volume.sources:
        data = pydicom.dcmread(source.path)
        images[data.SOPInstanceUID] = data
    found = []
    for group in document.content.get_planar_roi_measurement_groups():
        region = group.roi
        uid = region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        found.append((images[uid], region.value))
    return found


@pytest.mark.parametrize(
    "orientation", [AXIAL, (-1, 0, 0, 0, -1, 0), (1, 0, 0, 0, -1, 0), (-1, 0, 0, 0, 1, 0), OBLIQUE]
)
def test_the_structured_report_puts_the_box_on_the_lesion(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    lesion_series(tmp_path, orientation)
    ((data, ring),) = regions(Predictor(Spots())(tmp_path))
    inside = np.argwhere(data.pixel_array.astype(int) - 1024 > 200)
    assert len(inside) == 32
    assert ring[:, 0].min() == inside[:, 1].min()
    assert ring[:, 0].max() == inside[:, 1].max() + 1
    assert ring[:, 1].min() == inside[:, 0].min()
    assert ring[:, 1].max() == inside[:, 0].max() + 1
    assert (data.pixel_array.max() - 1024) == 700
    assert (ring[0] == ring[-1]).all()


@pytest.mark.parametrize("pixels", [(1, 0), (-1, 0), (0, 1), (-0.5, 0.25)])
def test_a_tilted_gantrys_boxes_lie_on_its_images(tmp_path: Path, pixels: tuple[float, float]) -> None:
    """In the report and in the rows alike."""
    step = np.array([pixels[1] * 0.7, pixels[0] * 0.8, 2.5])
    lesion_series(tmp_path, positions=[k * step for k in range(13)])
    result = Predictor(Spots())(tmp_path)
    ((data, ring),) = regions(result)
    inside = np.argwhere(data.pixel_array.astype(int) - 1024 > 200)
    (y0, x0), (y1, x1) = inside.min(0), inside.max(0) + 1
    off = 0.0 if float(pixels[0]).is_integer() else 1.0
    assert np.allclose([*ring.min(0), *ring.max(0)], [x0, y0, x1, y1], atol=off + 1e-6)
    (row,) = result.rows()
    assert np.allclose(row["box_px"], [x0, y0, x1, y1], atol=off + 1e-3)
    assert row["slice"] == 5


def test_a_report_of_nothing_and_of_slices_that_are_not_axial(tmp_path: Path) -> None:
    lesion_series(tmp_path / "axial")
    lesion_series(tmp_path / "coronal", CORONAL)
    predictor = Predictor(Spots())
    for kind, planes, why in (
        ("axial", [0], "nothing was found"),
        ("coronal", None, "the input's slices are not axial"),
    ):
        out = tmp_path / f"{kind} out"
        out.mkdir()
        notes = write(predictor(tmp_path / kind, planes=planes), out, predictor.preprocess, Outputs())
        assert any(f"no findings.dcm: {why}" in note for note in notes)
        assert sorted(p.name for p in out.iterdir()) == ["findings.csv", "picture.png", "result.json"]


def test_a_finding_on_a_slice_that_was_filled_in(tmp_path: Path) -> None:
    paths = lesion_series(tmp_path / "in")
    paths[5].unlink()
    result = Predictor(Spots())(tmp_path / "in", missing="fill", planes=[5])
    assert result.findings[0].plane == 5
    (tmp_path / "out").mkdir()
    (note,) = write(result, tmp_path / "out", Preprocess(), Outputs(picture=False))
    assert note.startswith("no findings.dcm: 1 finding(s) lie on slices that were filled in: no image shows them")
    hu = HU.copy()
    hu[9:12, 2:6, 2:6] = 900
    series = make_series(tmp_path / "two", (hu + 1024).astype(np.uint16), spacing=SPACING)
    series[10].unlink()
    result = Predictor(Spots())(tmp_path / "two", missing="fill", planes=[5, 10])
    assert len(result.findings) == 2
    assert len(regions(result)) == 1


def test_an_enhanced_files_frame_is_named(tmp_path: Path) -> None:
    from highdicom.legacy import LegacyConvertedEnhancedCTImage
    from test_predict_grids import complete

    paths = lesion_series(tmp_path / "single", edit=complete)
    made = LegacyConvertedEnhancedCTImage([pydicom.dcmread(p) for p in reversed(paths)], "1.2.9", 9, "1.2.9.1", 1)
    made.save_as(tmp_path / "all.dcm")
    from svd_hub.predict import dicom_out

    content, _ = dicom_out.report(Predictor(Spots())(tmp_path / "all.dcm"))
    (group,) = highdicom.sr.srread(io.BytesIO(content)).content.get_planar_roi_measurement_groups()
    reference = group.roi.ContentSequence[0].ReferencedSOPSequence[0]
    frame = made.pixel_array[int(reference.ReferencedFrameNumber) - 1].astype(int) - 1024
    ring = group.roi.value
    assert frame.max() == 700
    assert frame[int(ring[0, 1]) : int(ring[2, 1]), int(ring[0, 0]) : int(ring[2, 0])].min() == 700


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
