"""Laws of COCO's average precision and of FROC as training logs them, held against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_boxes import plain_froc
from helpers_detection import average_precision as plain_ap
from helpers_detection import generator, random_boxes

from svd_hub.models.detection import Detections, Target
from svd_hub.training.evaluation.boxes import Truth, detection_metrics, stored


def ap(found: list[Detections], truth: list[Truth]) -> dict[str, float]:
    return detection_metrics(found, truth, ("ap",))


def sensitivities(found: list[Detections], truth: list[Truth]) -> dict[str, float]:
    return detection_metrics(found, truth, ("froc",))


def truth_of(boxes: torch.Tensor, labels: torch.Tensor, crowd: torch.Tensor | None = None) -> Truth:
    sides = boxes[:, 2:] - boxes[:, :2]
    crowd = torch.zeros(len(boxes), dtype=torch.bool) if crowd is None else crowd
    return Truth(boxes, labels, crowd, sides[:, 0] * sides[:, 1])


def case(seed: int, *, images: int = 6, classes: int = 2, found: int = 12) -> tuple[list[Detections], list[Truth]]:
    """True boxes, and detections some of which are true boxes moved a little; one image of each is empty."""
    g = generator(seed)
    detections, truth = [], []
    for number in range(images):
        count = 0 if number == 1 else 3
        boxes = random_boxes(count, 100 * seed + number, side=100, smallest=12).float()
        labels = torch.randint(0, classes, (count,), generator=g)
        guesses = random_boxes(0 if number == 2 else found, 100 * seed + number + 50, side=100, smallest=12).float()
        near = min(count, len(guesses)) * 2  # each true box is found twice
        guesses[:near] = boxes.repeat(2, 1)[:near] + 3 * torch.randn((near, 4), generator=g)
        own = torch.randint(0, classes, (len(guesses),), generator=g)
        own[:near] = labels.repeat(2)[:near]
        detections.append(Detections(guesses, torch.rand(len(guesses), generator=g), own))
        truth.append(truth_of(boxes, labels))
    return detections, truth


@pytest.mark.parametrize("seed", range(6))
def test_ap_is_nearly_the_area_under_the_curve(seed: int) -> None:
    """COCO reads the curve at 101 places, the plain statement takes all of its area: they differ by a place or two."""
    found, truth = case(seed)
    metrics = ap(found, truth)
    targets = [Target(t.boxes, t.labels) for t in truth]
    for threshold, name in ((0.5, "ap50"), (0.75, "ap75")):
        assert metrics[name] == pytest.approx(plain_ap(found, targets, threshold), abs=0.015)
    steps = [plain_ap(found, targets, 0.5 + 0.05 * k) for k in range(10)]
    assert metrics["ap"] == pytest.approx(float(np.mean(steps)), abs=0.015)


def test_ap_of_what_is_all_right_and_of_nothing() -> None:
    _, truth = case(3)
    perfect = [Detections(t.boxes, torch.ones(len(t.boxes)), t.labels) for t in truth]
    assert ap(perfect, truth)["ap"] == pytest.approx(1)
    nothing = [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)) for _ in truth]
    assert ap(nothing, truth)["ap"] == 0
    assert ap(nothing, truth).keys() == {"ap", "ap50", "ap75", "ap_small", "ap_medium"}
    empty = [truth_of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) for _ in truth]
    assert ap(perfect, empty) == {}  # no object of any size


def test_a_crowd_is_neither_found_nor_missed() -> None:
    found, truth = case(4)
    before = ap(found, truth)
    box = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    crowded = [
        Truth(torch.cat([t.boxes, box]), torch.cat([t.labels, t.labels.new_zeros(1)]), *rest)
        for t in truth
        for rest in [(torch.cat([t.crowd, torch.tensor([True])]), torch.cat([t.area, t.area.new_full((1,), 1e4)]))]
    ]
    assert ap(found, crowded)["ap"] >= before["ap"]  # what lies in the crowd is no mistake any more
    assert sensitivities(found, crowded) == sensitivities(found, truth)


def test_talk_stays_inside(capsys: pytest.CaptureFixture[str]) -> None:
    ap(*case(0))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("seed", range(4))
def test_froc_is_that_of_plain_loops(seed: int) -> None:
    found, truth = case(seed, images=12, classes=1, found=60)
    plain = plain_froc(
        [torch.cat([d.boxes, d.scores[:, None]], 1).double().numpy() for d in found],
        [t.boxes.double().numpy() for t in truth],
        (0.5, 1, 2, 4),
    )
    metrics = sensitivities(found, truth)
    assert list(metrics) == ["froc", "froc_0.5", "froc_1", "froc_2", "froc_4"]
    assert list(metrics.values())[1:] == pytest.approx(list(plain.sensitivity))
    assert metrics["froc"] == pytest.approx(np.mean(plain.sensitivity))
    assert 0 < metrics["froc_0.5"] <= metrics["froc_4"]


def test_both_measures_together() -> None:
    found, truth = case(1)
    assert detection_metrics(found, truth, ("ap", "froc")) == ap(found, truth) | sensitivities(found, truth)


def test_boxes_go_back_to_the_stored_image() -> None:
    found = Detections(torch.tensor([[10.0, 30.0, 20.0, 60.0]]), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    assert stored(found, torch.tensor([2.0, 3.0])).boxes.tolist() == [[5.0, 10.0, 10.0, 20.0]]
