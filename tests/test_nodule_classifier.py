"""The paper's classifier of lung nodules: its size, its strides, its padding, and that it learns four by heart.

It is no architecture of its own: ResNet3D with a head of two classes, strided in depth as in H and W.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from real_data import need
from torch import Tensor

import svd_hub
from svd_hub.metrics import auc
from svd_hub.models import build
from svd_hub.preprocess import Preprocess
from svd_hub.skeleton import skeleton
from svd_hub.training import recipe
from svd_hub.training.data.lidc import LidcNodules, read_crop, read_nodules
from svd_hub.training.miniature.nodules import write_nodules

torch.set_num_threads(1)
OPTIONS: dict[str, Any] = {"depth": 18, "num_classes": 2, "depth_stride": 2}
# (x - 99) / 77 on the window -1024 ... 400 mapped to 0..255 (configs/LIDC_Cls_configs of urmagicsmine/CSPR@390a413)
CUBE = Preprocess(
    spacing=(1.0, 1.0, 1.0), window=(-1024.0, 400.0), scale=(0.0, 255.0), mean=99.0, std=77.0, size=(48, 48, 48)
)


def test_the_paper_s_network() -> None:
    model = skeleton("resnet3d", OPTIONS)
    assert sum(p.numel() for p in model.parameters()) == 33_161_026
    names = [name for name in model.state_dict() if not name.startswith("layer")]
    norm = [f"bn1.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    assert names == ["conv1.weight", *norm, "fc.weight", "fc.bias"]
    assert model.state_dict()["fc.weight"].shape == (2, 512)
    maps = model.features(torch.empty(1, 1, 48, 48, 48, device="meta"))
    assert [m.shape[2:] for m in maps.values()] == [(n,) * 3 for n in (24, 12, 6, 3, 2)]
    assert [m.shape[1] for m in maps.values()] == [64, 64, 128, 256, 512]
    assert model(torch.empty(5, 1, 48, 48, 48, device="meta")).shape == (5, 2)


def test_the_recipe_is_that_network_on_that_cube() -> None:
    plan = recipe.read("resnet3d18_lidc")
    network = plan.config["task"]["init_args"]["network"]
    assert (
        skeleton(network["architecture"], network["options"]).feature_info == skeleton("resnet3d", OPTIONS).feature_info
    )
    assert plan.config["data"]["init_args"]["size"] == 48


def test_a_crop_that_is_too_small_is_padded_with_the_window_s_low_end(tmp_path: Any) -> None:
    """30 mm of soft tissue, 0.75 x 0.75 x 2.5 mm, in a cube of 48 mm: what is around it is air."""
    rows = [
        {"name": f"n{label}", "patient_id": f"p{label}", "Malignancy_value": 5, "fold": label, "label": label}
        for label in (0, 1)
    ]
    crop = np.full((40, 40, 12), 40, np.int16)
    folder = write_nodules(tmp_path / "data", rows, {"n0": crop, "n1": crop}, zooms=(0.75, 0.75, 2.5))
    data = LidcNodules(folder=folder, train_folds=[0], val_folds=[1], size=48, margin=0)
    data.setup("fit")
    (cube, label), low = data.val_set[0, 0], 0.0
    inside = cube[0, 9:39, 9:39, 9:39]
    assert label == 1
    assert cube.shape == (1, 48, 48, 48)
    assert inside.min() == inside.max() == pytest.approx((40 + 1000) / 1400 * 255, abs=1e-3)
    assert (cube == low).sum() == 48**3 - 30**3
    array, spacing = read_crop(folder, "n1")
    exact = CUBE(array, spacing=spacing)
    assert exact.min() == pytest.approx((0 - 99) / 77)
    assert "padding -1024 HU" in CUBE.describe()
    assert "low end" in svd_hub.get_entry("resnet3d18w16_lidc").card()


def learn(model: Any, x: Tensor, y: Tensor, *, steps: int, rate: float) -> Tensor:
    """Train on one batch; return how sure the network is of each label in evaluation, (N,)."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=1e-4)
    model.train()
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        return model.eval()(x).softmax(1)


def balls(sides: int) -> tuple[Tensor, Tensor]:
    """Four noisy cubes, each with a ball somewhere: smooth ones are benign, those with a rim are not."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(4, 1, sides, sides, sides, generator=g) * 0.1 - 1, torch.tensor([0, 1, 0, 1])
    axes = torch.meshgrid(*[torch.arange(sides)] * 3, indexing="ij")
    for number, label in enumerate(y.tolist()):
        centre = torch.rand(3, generator=g) * sides / 4 + sides * 3 / 8
        distance = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)).sqrt()
        x[number, 0][distance < sides / 5] += 1.5
        x[number, 0][(distance < sides / 5) & (distance > sides / 7) & (label == 1)] -= 1.0
    return x, y


def test_it_learns_four_balls_by_heart() -> None:
    torch.manual_seed(0)
    x, y = balls(24)
    model = build("resnet3d", {**OPTIONS, "width": 8})
    found = learn(model, x, y, steps=60, rate=3e-3)
    assert auc(found[:, 1], y) == 1
    assert found[range(4), y].min() > 0.9


@pytest.mark.slow
def test_it_learns_four_nodules_by_heart() -> None:
    """At the paper's width and size, from scratch, two benign and two malignant nodules: half a minute."""
    folder = need("lidc_nodules")
    first = {(row.patient, row.label): row for row in reversed(read_nodules(folder)) if row.label >= 0}
    of = {label: [row for (_, own), row in sorted(first.items()) if own == label] for label in (0, 1)}
    benign = of[0][:2]
    rows = [*benign, *[row for row in of[1] if row.patient not in {one.patient for one in benign}][:2]]
    assert len({row.patient for row in rows}) == 4
    crops = [read_crop(folder, row.name) for row in rows]
    x = torch.cat([CUBE(array, spacing=spacing) for array, spacing in crops])
    low = (replace(CUBE, mean=0.0, std=1.0)(crops[0][0], spacing=crops[0][1]) == 0).float().mean()
    assert low > 0.3, "crops of 30 mm leave most of 48 mm to the padding"
    torch.manual_seed(0)
    y = torch.tensor([row.label for row in rows])
    found = learn(build("resnet3d", OPTIONS), x, y, steps=50, rate=5e-4)  # the authors' rate
    assert auc(found[:, 1], y) == 1
    assert found[range(4), y].min() > 0.9, found
