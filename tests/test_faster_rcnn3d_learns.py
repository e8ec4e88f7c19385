"""FasterRCNN3D learns four images by heart: miniature ones here, real ones in `make slow`.

What is right of it is said by an average precision in plain loops (helpers_detection).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_detection import ENCODERS, average_precision, fit, small, squares
from torch import Tensor

from svd_hub.models.detection import Target, box_head, stack_images
from svd_hub.models.detection.settings import Sampling

torch.set_num_threads(1)
# The data sets that lie beside a checkout; what needs them is marked slow, and skipped where they are not there.
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
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
    course = fit(model, images, targets, steps=60, rate=0.002)
    found = model(images)
    assert before < 0.3
    assert course[-1] < 0.1 * course[0]
    assert average_precision(found, targets, 0.5) > 0.99
    assert average_precision(found, targets, 0.75) > 0.9


# ---- real images -----------------------------------------------------------------------------------------------------

COCO = ("000000000030.jpg", "000000000086.jpg", "000000000092.jpg", "000000425988.jpg")
LESIONS = ("000002_03_01_041.jpg", "000009_03_01_042.jpg", "000010_01_01_084.jpg", "000016_01_01_030.jpg")
MEAN, STD = 123.675, 58.395  # of the authors' detectors, on 0..255


def load_real(
    folder: Path, annotations: str, names: tuple[str, ...], scale: float
) -> tuple[list[Tensor], list[Target]]:
    """Images (3, H, W) on 0..255 at a scale, and their boxes, with those categories that occur counted from 0."""
    pillow = pytest.importorskip("PIL.Image")
    if not folder.is_dir():
        pytest.skip(f"{folder.name} is not beside this checkout")
    table = json.loads((folder / annotations).read_text())
    rows = {row["file_name"]: row for row in table["images"]}
    boxes = {name: [a for a in table["annotations"] if a["image_id"] == rows[name]["id"]] for name in names}
    present = sorted({a["category_id"] for own in boxes.values() for a in own})
    pictures, targets = [], []
    for name in names:
        size = (round(rows[name]["width"] * scale), round(rows[name]["height"] * scale))
        picture = pillow.open(next(folder.rglob(name))).convert("RGB").resize(size, pillow.Resampling.BOX)
        pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float())
        corners = torch.tensor([a["bbox"] for a in boxes[name]]) * scale
        corners[:, 2:] += corners[:, :2]
        targets.append(Target(corners, torch.tensor([present.index(a["category_id"]) for a in boxes[name]])))
    return pictures, targets


def by_heart(encoder: str, images: list[Tensor], targets: list[Target], *, steps: int, **options: Any) -> list[float]:
    """Return AP at IoU 0.5 and 0.75 of a detector that was trained on these images (1, D, H, W), and on no other."""
    batch, sizes = stack_images([(x - MEAN) / STD for x in images])
    classes = 1 + max(int(n) for target in targets for n in target.labels)
    narrow = {**ENCODERS[encoder], "width": 16}
    model = small(encoder, encoder_options=narrow, channels=64, head_channels=128, num_classes=classes, **options)
    fit(model, batch, targets, steps=steps, rate=0.001, sizes=sizes)
    found = model(batch, sizes=sizes)
    return [average_precision(found, targets, threshold) for threshold in (0.5, 0.75)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_four_pictures_of_coco() -> None:
    """The pre-training's form: colour planes as three slices, depth kept; seven classes, boxes of 31 to 226 pixels."""
    pictures, targets = load_real(DATA / "detection_coco_mini", "instances_train2017.json", COCO, 0.6)
    found = by_heart("p3d", [x[None] for x in pictures], targets, steps=150, depth_stride=1)
    assert found[0] > 0.99
    assert found[1] > 0.9


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_four_slices_of_deeplesion(encoder: str) -> None:
    """Nine slices become one. The samples have no neighbours, so the key slice stands for them."""
    pictures, targets = load_real(DATA / "deeplesion_samples", "instances_train.json", LESIONS, 0.5)
    # stored as -1024 ... 3071 HU in 8 bits; the detectors read -1024 ... 1050 HU on 0..255
    slices = [(x[:1] * (4095 / 2074)).clamp(max=255).expand(9, -1, -1)[None] for x in pictures]
    lesions = [Target(t.boxes, torch.zeros_like(t.labels)) for t in targets]
    found = by_heart(encoder, slices, lesions, steps=150)
    assert found[0] > 0.99
    assert found[1] > 0.9
