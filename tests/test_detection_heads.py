"""Laws of the detector's two heads, proposals, losses and detections, each against a statement in plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from helpers_detection import RULES, deltas_of, generator, greedy, matches_of, moved, random_boxes, smooth_l1
from torch import Tensor

from svd_hub.models.detection import Target, box_head, rpn, settings
from svd_hub.models.detection.assign import BACKGROUND
from svd_hub.models.detection.box_head import BoxHead, Samples, box_losses, sample_boxes, select
from svd_hub.models.detection.rpn import RPNHead, level_anchors, propose, rpn_losses
from svd_hub.models.detection.settings import Proposing, Sampling

# ---- proposal network ------------------------------------------------------------------------------------------------


def outputs(shapes: Sequence[tuple[int, int]], images: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    g = generator(seed)
    logits = [torch.randn(images, h * w * 3, generator=g, dtype=torch.float64) * 2 for h, w in shapes]
    return logits, [torch.randn(*x.shape, 4, generator=g, dtype=torch.float64) * 0.4 for x in logits]


SHAPES = ((16, 12), (8, 6), (4, 3), (2, 2), (1, 1))


def pyramid() -> list[Tensor]:
    return [torch.zeros(1, 1, *shape, dtype=torch.float64) for shape in SHAPES]


def test_outputs_are_in_the_order_of_the_anchors() -> None:
    torch.manual_seed(0)
    head = RPNHead(4)
    x = torch.randn(2, 4, 3, 5)
    hidden = F.relu(F.conv2d(x, head.rpn_conv.weight, head.rpn_conv.bias, padding=1))
    logits, deltas = head([x])
    for row, column, anchor in ((0, 0, 0), (2, 1, 2), (1, 4, 1)):
        at = (row * 5 + column) * 3 + anchor
        cell = hidden[1, :, row, column]
        expected = head.rpn_cls.weight[anchor, :, 0, 0] @ cell + head.rpn_cls.bias[anchor]
        torch.testing.assert_close(logits[0][1, at], expected)
        rows = slice(anchor * 4, anchor * 4 + 4)
        expected = head.rpn_reg.weight[rows, :, 0, 0] @ cell + head.rpn_reg.bias[rows]
        torch.testing.assert_close(deltas[0][1, at], expected)
    assert head.to(torch.bfloat16)([x.bfloat16()])[0][0].dtype == torch.float32


@pytest.mark.parametrize("seed", range(3))
def test_proposals_equal_their_statement(seed: int) -> None:
    logits, deltas = outputs(SHAPES, 2, seed)
    anchors = level_anchors(pyramid(), 4.0, centred=False)
    sizes, rule = [[60, 41], [33, 48]], Proposing(before=70, kept=25, iou=0.7)
    boxes, images = propose(logits, deltas, anchors, torch.tensor(sizes), rule)
    for image, size in enumerate(sizes):
        kept: list[tuple[float, list[float]]] = []
        for level in range(5):
            scores = logits[level][image].tolist()
            order = sorted(range(len(scores)), key=lambda i: -scores[i])[:70]
            found = []
            for i in order:
                box = moved(anchors[level][i].tolist(), deltas[level][image, i].tolist(), (1, 1, 1, 1), size)
                if box[2] > box[0] and box[3] > box[1]:
                    found.append((scores[i], box))
            survivors = greedy([box for _, box in found], [score for score, _ in found], 0.7)
            kept += [found[i] for i in survivors]
        stated = [box for _, box in sorted(kept, key=lambda pair: -pair[0])[:25]]
        own = boxes[images == image]
        torch.testing.assert_close(own, torch.tensor(stated, dtype=own.dtype), rtol=1e-6, atol=1e-5)
    assert images.tolist() == [0] * 25 + [1] * 25


def test_no_proposal_is_left_where_nothing_is_finite() -> None:
    logits, deltas = outputs(SHAPES, 2, 0)
    deltas = [d.clone() for d in deltas]
    for d in deltas:
        d[1] = float("nan")
    anchors = level_anchors(pyramid(), 4.0, centred=False)
    boxes, images = propose(logits, deltas, anchors, torch.tensor([[60, 41], [33, 48]]), settings.TEST_PROPOSING)
    assert set(images.tolist()) == {0}
    assert boxes.isfinite().all()


def all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpn, "RPN_SAMPLING", Sampling(10**6, 0.5))
    monkeypatch.setattr(box_head, "BOX_SAMPLING", Sampling(10**6, 0.5))


TRUTH = [
    Target(torch.tensor([[3.0, 4, 22, 30], [10, 20, 35, 36]], dtype=torch.float64), torch.tensor([2, 0])),
    Target(torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)),
]


def test_losses_of_the_proposal_network_equal_their_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    all_of_them(monkeypatch)
    logits, deltas = (torch.cat(x, 1) for x in outputs(SHAPES, 2, 5))
    anchors = torch.cat(level_anchors(pyramid(), 4.0, centred=False)).double()
    sizes = [[60, 41], [33, 48]]
    got = rpn_losses(logits, deltas, anchors, TRUTH, torch.tensor(sizes))
    cls = box = 0.0
    total = 0
    for image, (height, width) in enumerate(sizes):
        inside = [
            i
            for i, (x0, y0, x1, y1) in enumerate(anchors.tolist())
            if x0 >= 0 and y0 >= 0 and x1 < width and y1 < height
        ]
        truth = TRUTH[image].boxes.tolist()
        matched = matches_of(anchors[inside].tolist(), truth, settings.RPN_MATCHING)
        for i, g in zip(inside, matched, strict=True):
            logit = float(logits[image, i])
            if g >= 0:
                cls += math.log1p(math.exp(-logit))
                goal = deltas_of(anchors[i].tolist(), truth[g], (1, 1, 1, 1))
                box += smooth_l1(deltas[image, i].tolist(), goal, 1 / 9)
            elif g == BACKGROUND:
                cls += math.log1p(math.exp(logit))
        positive = sum(g >= 0 for g in matched)
        total += max(1, positive) + max(1, matched.count(BACKGROUND))
        assert (positive > 0) == bool(truth)
    assert got["loss_rpn_cls"].item() == pytest.approx(cls / total, rel=1e-6)
    assert got["loss_rpn_bbox"].item() == pytest.approx(box / total, rel=1e-6)


def test_an_image_too_small_for_any_anchor_costs_nothing() -> None:
    logits, deltas = (torch.cat(x, 1).requires_grad_() for x in outputs(SHAPES, 1, 5))
    anchors = torch.cat(level_anchors(pyramid(), 4.0, centred=False))
    target = Target(torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([0]))
    losses = rpn_losses(logits, deltas, anchors, [target], torch.tensor([[12, 12]]))
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert not logits.grad.any()  # type: ignore[union-attr]


def test_the_draw_of_anchors_is_balanced_and_fixed_by_the_generator() -> None:
    shapes = ((64, 64), (1, 1), (1, 1), (1, 1), (1, 1))
    logits, deltas = (torch.cat(x, 1).requires_grad_() for x in outputs(shapes, 1, 5))
    maps = [torch.zeros(1, 1, *shape) for shape in shapes]
    anchors = torch.cat(level_anchors(maps, 4.0, centred=False))
    target = Target(anchors[6000:6300:3] + 0.5, torch.zeros(100, dtype=torch.int64))

    def drawn(seed: int) -> list[int]:
        losses = rpn_losses(logits, deltas, anchors, [target], torch.tensor([[256, 256]]), generator(seed))
        (gradient,) = torch.autograd.grad(losses["loss_rpn_cls"], logits)
        return gradient[0].nonzero().flatten().tolist()

    assert len(drawn(0)) == 256
    assert drawn(0) == drawn(0) != drawn(1)


# ---- box head --------------------------------------------------------------------------------------------------------


def test_true_boxes_join_the_samples_as_their_own() -> None:
    proposals = torch.cat([random_boxes(30, 3, side=50), TRUTH[0].boxes + 1, random_boxes(10, 4, side=50)])
    images = torch.tensor([0] * 32 + [1] * 10)
    samples = sample_boxes(proposals, images, TRUTH, 3, rule=RULES["mmdet2"], generator=generator(0))
    first, second = samples.images == 0, samples.images == 1
    boxes = [*TRUTH[0].boxes.tolist(), *proposals[:32].tolist()]
    matched = [0, 1, *matches_of(proposals[:32].tolist(), TRUTH[0].boxes.tolist(), RULES["mmdet2"])]
    own = (samples.boxes[first].tolist(), samples.labels[first].tolist(), samples.deltas[first].tolist())
    got = {tuple(box): (label, deltas) for box, label, deltas in zip(*own, strict=True)}
    assert len(got) == len(boxes) == 34
    assert sum(g >= 0 for g in matched) >= 4
    for box, g in zip(boxes, matched, strict=True):
        label, deltas = got[tuple(box)]
        assert label == (TRUTH[0].labels.tolist()[g] if g >= 0 else 3)
        goal = deltas_of(box, TRUTH[0].boxes[g].tolist(), (0.1, 0.1, 0.2, 0.2)) if g >= 0 else [0.0] * 4
        assert deltas == pytest.approx(goal, abs=1e-12)
    assert second.sum() == 10
    assert set(samples.labels[second].tolist()) == {3}


def test_a_quarter_of_512_samples_are_objects() -> None:
    proposals = torch.cat([TRUTH[0].boxes[:1].expand(300, 4), random_boxes(900, 3, side=400, smallest=80)])
    images = torch.zeros(1200, dtype=torch.int64)

    def draw(seed: int) -> Samples:
        return sample_boxes(proposals, images, TRUTH[:1], 3, rule=RULES["mmdet2"], generator=generator(seed))

    samples = draw(0)
    assert len(samples.labels) == 512
    assert (samples.labels != 3).sum() == 128
    assert all(torch.equal(a, b) for a, b in zip(samples, draw(0), strict=True))
    assert not torch.equal(samples.boxes, draw(1).boxes)


def test_losses_of_the_box_head_equal_their_statement() -> None:
    g = generator(2)
    logits = torch.randn(20, 4, generator=g, dtype=torch.float64)
    deltas = torch.randn(20, 3, 4, generator=g, dtype=torch.float64) * 2
    goals = torch.randn(20, 4, generator=g, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 3] * 4)
    got = box_losses(logits, deltas, Samples(torch.zeros(20, 4), torch.zeros(20), labels, goals))
    cls = box = 0.0
    for i, label in enumerate(labels.tolist()):
        cls += math.log(sum(math.exp(v) for v in logits[i].tolist())) - float(logits[i, label])
        if label < 3:
            box += smooth_l1(deltas[i, label].tolist(), goals[i].tolist(), 1.0)
    assert got["loss_cls"].item() == pytest.approx(cls / 20)
    assert got["loss_bbox"].item() == pytest.approx(box / 20)


def test_losses_without_samples_or_objects_are_zero_and_hang_on_the_head() -> None:
    head = BoxHead(2, 4, 3, background_deltas=False)
    none = Samples(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    losses = box_losses(*head(torch.zeros(0, 2, 7, 7)), none)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())
    background = Samples(torch.zeros(2, 4), torch.zeros(2), torch.tensor([3, 3]), torch.zeros(2, 4))
    losses = box_losses(*head(torch.ones(2, 2, 7, 7)), background)
    assert losses["loss_bbox"].item() == 0
    assert losses["loss_cls"].item() == pytest.approx(math.log(4), rel=0.1)


def test_the_background_is_the_last_class_and_its_deltas_are_not_read() -> None:
    torch.manual_seed(0)
    plain, old = (BoxHead(2, 4, 3, background_deltas=extra) for extra in (False, True))
    assert (plain.fc_reg.out_features, old.fc_reg.out_features) == (12, 16)
    state = plain.state_dict()
    state["fc_reg.weight"] = torch.cat([state["fc_reg.weight"], torch.full((4, 4), 99.0)])
    state["fc_reg.bias"] = torch.cat([state["fc_reg.bias"], torch.full((4,), 99.0)])
    old.load_state_dict(state)
    x = torch.randn(5, 2, 7, 7)
    for a, b in zip(plain(x), old(x), strict=True):
        torch.testing.assert_close(a, b)
    assert old(x)[0].shape == (5, 4)


@pytest.mark.parametrize("seed", range(4))
def test_detections_equal_their_statement(seed: int) -> None:
    g = generator(seed)
    boxes = random_boxes(40, seed, side=60, smallest=10)
    images = torch.tensor([0] * 25 + [1] * 15)
    logits = torch.randn(40, 4, generator=g, dtype=torch.float64) * 2
    deltas = torch.randn(40, 3, 4, generator=g, dtype=torch.float64) * 3
    deltas[3, 1] = torch.tensor([300.0, 0, 0, 0])  # out of the image
    sizes, thresholds = [[60, 50], [40, 64]], {"score_threshold": 0.05, "nms_threshold": 0.4, "max_detections": 12}
    got = select(logits, deltas, boxes, images, torch.tensor(sizes), **thresholds)
    for image, size in enumerate(sizes):
        found: list[tuple[float, int, list[float]]] = []
        for label in range(3):
            candidates = []
            for i in (images == image).nonzero().flatten().tolist():
                exponents = [math.exp(v) for v in logits[i].tolist()]
                score = exponents[label] / sum(exponents)
                box = moved(boxes[i].tolist(), deltas[i, label].tolist(), (0.1, 0.1, 0.2, 0.2), size)
                if score > 0.05 and box[2] > box[0] and box[3] > box[1]:
                    candidates.append((score, label, box))
            kept = greedy([box for *_, box in candidates], [score for score, *_ in candidates], 0.4)
            found += [candidates[i] for i in kept]
        found = sorted(found, key=lambda row: -row[0])[:12]
        own = got[3] == image
        assert got[2][own].tolist() == [label for _, label, _ in found]
        torch.testing.assert_close(got[1][own], torch.tensor([s for s, *_ in found], dtype=torch.float64))
        torch.testing.assert_close(got[0][own], torch.tensor([b for *_, b in found], dtype=torch.float64))


def test_detections_of_no_proposals() -> None:
    options = {"score_threshold": 0.0, "nms_threshold": 0.5, "max_detections": 100}
    none = torch.zeros(0, dtype=torch.int64)
    size = torch.tensor([[8, 8]])
    got = select(torch.zeros(0, 4), torch.zeros(0, 3, 4), torch.zeros(0, 4), none, size, **options)
    assert [tuple(x.shape) for x in got] == [(0, 4), (0,), (0,), (0,)]
