"""FasterRCNN3D learns four images by heart: miniature ones here, real ones in `make slow`.

What is right of it is said by an average precision in plain loops (helpers_detection).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers_detection import ENCODERS, average_precision, fit, small, squares
from real_data import need
from torch import Tensor

from svd_hub import volume
from svd_hub.models.detection import Target, box_head, stack_images
from svd_hub.models.detection.settings import Sampling

torch.set_num_threads(1)
FORMS = [
    pytest.param("p3d", {}, 9, id="lesions: P3D, 9 slices"),
    pytest.param("resnet3d", {}, 9, marks=pytest.mark.slow, id="lesions: ResNet3D, 9 slices"),
    pytest.param("resnet3d", {"depth_stride": 1, "reduction": "group", "slices": 3}, 3, id="COCO: ResNet3D, 3 slices"),
    pytest.param(
        "p3d", {"depth_stride": 1, "convention": "mmdet1"}, 3, marks=pytest.mark.slow, id="COCO: MP3D, mmdet1"
    ),
]


@pytest.mark.parametrize(("encoder", "options", "depth"), FORMS)
def test_it_learns_four_images_by_heart(
    encoder: str, options: dict[str, Any], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_head, "BOX_SAMPLING", Sampling(number=96, positive_share=0.25))  # for time
    images, targets = squares(depth)
    model = small(encoder, **options)
    before = average_precision(model(images), targets, 0.5)
    course = fit(model, images, targets, steps=80, rate=0.002)
    found = model(images)
    assert before < 0.3
    assert course[-1] < 0.2 * course[0]
    assert average_precision(found, targets, 0.5) > 0.99
    assert average_precision(found, targets, 0.75) > 0.8


# ---- real images -----------------------------------------------------------------------------------------------------
# Narrow networks (16 channels for 64, 64 for 256, 128 for 1024), 80 s each on one core: the paper's width takes 14 to
# 22 minutes.

COCO = ("000000000030.jpg", "000000000086.jpg", "000000000092.jpg", "000000425988.jpg")
DEEPLESION = ("000002_03_01_041.jpg", "000009_03_01_042.jpg", "000010_01_01_084.jpg", "000016_01_01_030.jpg")
LUNG = (("A0001_s2", 9), ("A0001_s2", 15), ("A0002_s3", 13), ("A0002_s3", 19))  # NIfTI at 5 mm, DICOM at 8 mm
MEAN, STD = 123.675, 58.395  # of the authors' detectors, on 0..255
WINDOW = (-1024.0, 1050.0)  # HU, of their lesion detectors


def load_real(folder: str, annotations: str, names: tuple[str, ...], scale: float) -> tuple[list[Tensor], list[Target]]:
    """Images (3, H, W) on 0..255 at a scale, and their boxes, with those categories that occur counted from 0."""
    pillow = pytest.importorskip("PIL.Image")
    place = need(folder)
    table = json.loads((place / annotations).read_text())
    rows = {row["file_name"]: row for row in table["images"]}
    boxes = {name: [a for a in table["annotations"] if a["image_id"] == rows[name]["id"]] for name in names}
    present = sorted({a["category_id"] for own in boxes.values() for a in own})
    pictures, targets = [], []
    for name in names:
        size = (round(rows[name]["width"] * scale), round(rows[name]["height"] * scale))
        picture = pillow.open(next(place.rglob(name))).convert("RGB").resize(size, pillow.Resampling.BOX)
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float())
        labels = [present.index(a["category_id"]) for a in boxes[name]]
        targets.append(Target(corners_of(boxes[name], scale), torch.tensor(labels)))
    return pictures, targets


def corners_of(rows: list[dict[str, Any]], scale: float) -> Tensor:
    """Boxes (G, 4) of COCO's annotations, at a scale."""
    corners = torch.tensor([row["bbox"] for row in rows]) * scale
    corners[:, 2:] += corners[:, :2]
    return corners


def nine_slices(key: int, scan: Any) -> Tensor:
    """Nine slices (9, H, W) at 2.5 mm about slice `key` of a volume, interpolated, on 0..255, at half size."""
    place = key + torch.arange(-4, 5) * 2.5 / scan.spacing[0]
    below = place.floor().long()
    hu, share = torch.from_numpy(scan.array.astype(np.float32)), (place - below)[:, None, None]
    stack = torch.lerp(hu[below], hu[below + 1], share).clamp(*WINDOW)
    return F.avg_pool2d((stack - WINDOW[0]) * (255 / (WINDOW[1] - WINDOW[0])), 2)


def load_lung() -> tuple[list[Tensor], list[Target]]:
    """Nine real slices (9, H, W) on 0..255 at half size, and the tumours of the key slices."""
    folder = need("lung_petct_dx")
    table = json.loads((folder / "instances.json").read_text())
    files = {row["name"]: row["file"] for row in table["series"]}
    slices, targets = [], []
    for series, key in LUNG:
        (image,) = (row["id"] for row in table["images"] if (row["series"], row["slice"]) == (series, key))
        boxes = corners_of([row for row in table["annotations"] if row["image_id"] == image], 0.5)
        slices.append(nine_slices(key, volume.read(folder / files[series], modality="CT")))
        targets.append(Target(boxes, torch.zeros(len(boxes), dtype=torch.int64)))
    return slices, targets


def cut(images: list[Tensor], targets: list[Target], *, x: int, y: int) -> tuple[list[Tensor], list[Target]]:
    """The 160 x 160 pixels from (x, y) of each image (1, D, H, W), for time."""
    corner = torch.tensor([x, y, x, y])
    return [i[..., y : y + 160, x : x + 160] for i in images], [Target(t.boxes - corner, t.labels) for t in targets]


def by_heart(encoder: str, images: list[Tensor], targets: list[Target], *, steps: int, **options: Any) -> list[float]:
    """Return AP at IoU 0.5 and 0.75 of a detector that was trained on these images (1, D, H, W), and on no other."""
    batch, sizes = stack_images([(x - MEAN) / STD for x in images])
    classes = 1 + max(int(n) for target in targets for n in target.labels)
    narrow = {**ENCODERS[encoder], "width": 16}
    model = small(encoder, encoder_options=narrow, channels=64, head_channels=128, num_classes=classes, **options)
    before = average_precision(model(batch, sizes=sizes), targets, 0.5)
    fit(model, batch, targets, steps=steps, rate=0.001, sizes=sizes)
    found = model(batch, sizes=sizes)
    assert before < 0.1
    return [average_precision(found, targets, threshold) for threshold in (0.5, 0.75)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_pictures_of_coco() -> None:
    """The pre-training's form: colour planes as three slices, depth kept; seven classes, boxes of 31 to 226 pixels."""
    pictures, targets = load_real("detection_coco_mini", "instances_train2017.json", COCO, 0.6)
    found = by_heart("p3d", [x[None] for x in pictures], targets, steps=150, depth_stride=1)
    assert found[0] > 0.99
    assert found[1] > 0.9


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_slices_of_deeplesion() -> None:
    """The journal's lesion detector: P3D, nine slices become one. The key slice stands for its missing neighbours."""
    pictures, targets = load_real("deeplesion_samples", "instances_train.json", DEEPLESION, 0.5)
    # stored as -1024 ... 3071 HU in 8 bits
    slices = [(x[:1] * (4095 / (WINDOW[1] - WINDOW[0]))).clamp(max=255).expand(9, -1, -1)[None] for x in pictures]
    lesions = [Target(t.boxes, torch.zeros_like(t.labels)) for t in targets]
    found = by_heart("p3d", *cut(slices, lesions, x=32, y=64), steps=200)
    assert found[0] > 0.99
    assert found[1] > 0.9


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_tumours_with_their_real_neighbours() -> None:
    """The z-strided ResNet3D on nine real slices of two patients, re-cut at 2.5 mm from 5 and 8 mm."""
    slices, targets = load_lung()
    found = by_heart("resnet3d", *cut([x[None] for x in slices], targets, x=48, y=72), steps=200)
    assert found[0] > 0.99
    assert found[1] > 0.9
