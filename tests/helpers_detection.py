"""What the tests of the detector share: its rules in plain loops over single numbers, and boxes to try them on."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from svd_hub.models.detection import Detections, FasterRCNN3D, Target, settings
from svd_hub.models.detection.assign import BACKGROUND, NEITHER
from svd_hub.models.detection.settings import CONVENTIONS, Matching

torch.set_num_threads(1)
Box = Sequence[float]
RULES = {
    "rpn": settings.RPN_MATCHING,
    "mmdet2": CONVENTIONS["mmdet2"].box_matching,
    "mmdet1": CONVENTIONS["mmdet1"].box_matching,
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(count: int, seed: int, side: float = 60.0, smallest: float = 4.0) -> Tensor:
    g = generator(seed)
    low = torch.rand(count, 2, generator=g, dtype=torch.float64) * side * 0.6
    return torch.cat([low, low + smallest + torch.rand(count, 2, generator=g, dtype=torch.float64) * side * 0.4], 1)


def iou_of(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def deltas_of(box: Box, goal: Box, stds: Box) -> list[float]:
    w, h = box[2] - box[0], box[3] - box[1]
    return [
        ((goal[0] + goal[2]) / 2 - (box[0] + box[2]) / 2) / w / stds[0],
        ((goal[1] + goal[3]) / 2 - (box[1] + box[3]) / 2) / h / stds[1],
        math.log((goal[2] - goal[0]) / w) / stds[2],
        math.log((goal[3] - goal[1]) / h) / stds[3],
    ]


def moved(box: Box, deltas: Box, stds: Box, size: Sequence[int]) -> list[float]:
    """A box after its deltas, clipped to an image of (height, width)."""
    w, h = box[2] - box[0], box[3] - box[1]
    x = (box[0] + box[2]) / 2 + deltas[0] * stds[0] * w
    y = (box[1] + box[3]) / 2 + deltas[1] * stds[1] * h
    limit = math.log(1000 / 16)
    w *= math.exp(max(-limit, min(limit, deltas[2] * stds[2])))
    h *= math.exp(max(-limit, min(limit, deltas[3] * stds[3])))
    corners = ((x - w / 2, size[1]), (y - h / 2, size[0]), (x + w / 2, size[1]), (y + h / 2, size[0]))
    return [max(0.0, min(float(bound), value)) for value, bound in corners]


def greedy(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou_of(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def smooth_l1(found: Box, goal: Box, beta: float) -> float:
    total = 0.0
    for a, b in zip(found, goal, strict=True):
        d = abs(a - b)
        total += d * d / 2 / beta if d < beta else d - beta / 2
    return total


def matches_of(boxes: list[list[float]], truth: list[list[float]], rule: Matching) -> list[int]:
    """MaxIoUAssigner in words: background, then objects, then each object's best boxes, objects in their order."""
    matched = [NEITHER] * len(boxes)
    for a, box in enumerate(boxes):
        overlaps = [iou_of(box, t) for t in truth]
        best = max(overlaps, default=0.0)
        if best < rule.negative:
            matched[a] = BACKGROUND
        if truth and best >= rule.positive:
            matched[a] = overlaps.index(best)
    for g, t in enumerate(truth if rule.low_quality else []):
        overlaps = [iou_of(box, t) for box in boxes]
        if max(overlaps) >= rule.minimum:
            for a, overlap in enumerate(overlaps):
                if overlap == max(overlaps):
                    matched[a] = g
    return matched


# ---- the authors' files ----------------------------------------------------------------------------------------------


def theirs(name: str, *, version: int, prefix: str = "backbone.") -> str:
    """What the authors call a tensor of ours."""
    if name.startswith("backbone."):
        name = name.removeprefix("backbone.")
        if "layer" in name:
            name = re.sub(r"\.norm(\d)\.", r".norm_\1.", name)
        return prefix + re.sub(r"^conv1\.", "conv1_custom.", name)
    if name.startswith("gtm."):
        return f"{prefix}groupconv_{int(name[4]) + 1}.weight"
    if name.startswith("neck."):
        return re.sub(r"(\d)\.(weight|bias)$", r"\1.conv.\2", name)
    return f"roi_head.{name}" if version == 2 and name.startswith("bbox_head.") else name


def upstream(ours: Mapping[str, Tensor], *, version: int, prefix: str = "backbone.") -> dict[str, Tensor]:
    """A file of the authors: their names, their order of classes, convolutions in half precision."""
    file = {}
    for name, tensor in ours.items():
        rows = 1 if "fc_cls" in name else 4
        if version == 1 and "bbox_head.fc_" in name:
            tensor = torch.cat([tensor[-rows:], tensor[:-rows]])
        half = tensor.ndim > 1 or (name.endswith("bias") and not name.startswith("backbone."))
        file[theirs(name, version=version, prefix=prefix)] = tensor.half() if half else tensor
    return file


# ---- detectors -------------------------------------------------------------------------------------------------------

ENCODERS: dict[str, dict[str, Any]] = {
    "p3d": {"variant": "18ba", "width": 8},
    "resnet3d": {"depth": 18, "width": 8, "norm": "group", "init": "kaiming"},
}


def small(encoder: str = "p3d", **options: Any) -> FasterRCNN3D:
    """A narrow detector of two classes, every value of which matters."""
    torch.manual_seed(0)
    own = {"encoder_options": ENCODERS[encoder], "channels": 32, "head_channels": 64, "num_classes": 2}
    return FasterRCNN3D(encoder=encoder, **{**own, **options}).eval()


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(3))


def fit(
    model: Any, images: Tensor, targets: list[Target], *, steps: int, rate: float, sizes: Any = None
) -> list[float]:
    """Train on one batch, the rate falling to zero; return the sum of the losses of each step."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draws = generator(1)
    course = []
    for _ in range(steps):
        loss = torch.stack(list(model(images, targets, sizes=sizes, generator=draws).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35)
        optimizer.step()
        falling.step()
        course.append(loss.item())
    model.eval()
    return course


def average_precision(found: Sequence[Detections], targets: Sequence[Target], threshold: float) -> float:
    """The mean over classes of the area under precision against recall, each true box found once at most."""
    areas = []
    for label in sorted({int(n) for target in targets for n in target.labels}):
        truth = [target.boxes[target.labels == label].tolist() for target in targets]
        total = sum(len(boxes) for boxes in truth)
        rows = [
            (score, image, box)
            for image, (boxes, scores, labels) in enumerate(found)
            for box, score, own in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
            if own == label
        ]
        hits: list[bool] = []
        for _, image, box in sorted(rows, key=lambda row: -row[0]):
            overlaps = [iou_of(box, other) for other in truth[image]]
            best = max(overlaps, default=0.0)
            hits.append(best >= threshold)
            if hits[-1]:
                truth[image].pop(overlaps.index(best))
        precisions = [sum(hits[: n + 1]) / (n + 1) for n in range(len(hits))]
        areas.append(sum(max(precisions[n:]) / total for n, hit in enumerate(hits) if hit))
    return sum(areas) / len(areas)


def squares(depth: int, *, side: int = 64, count: int = 4) -> tuple[Tensor, list[Target]]:
    """Images (count, 1, depth, side, side) of noise with a bright box and a dark one, classes 1 and 0."""
    g = generator(0)
    images = torch.randn(count, 1, depth, side, side, generator=g) * 0.1
    targets = []
    for number in range(count):
        boxes, labels = [], []
        for half in range(2):
            width, height = torch.randint(13, side // 2 - 3, (2,), generator=g).tolist()
            x = half * side // 2 + int(torch.randint(0, side // 2 - width, (1,), generator=g))
            y = int(torch.randint(0, side - height, (1,), generator=g))
            labels.append((number + half) % 2)
            images[number, :, :, y : y + height, x : x + width] += 3.0 * labels[-1] - 1.5
            boxes.append([x, y, x + width, y + height])
        targets.append(Target(torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels)))
    return images, targets
