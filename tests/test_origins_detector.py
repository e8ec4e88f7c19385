"""The authors' detectors: both layouts, stated here on their own, become FasterRCNN3D, with the background last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_detection import generator, image, small
from torch import Tensor

from svd_hub import checkpoint
from svd_hub.errors import CheckpointError
from svd_hub.models import build
from svd_hub.models.detection import FasterRCNN3D
from svd_hub.origins import svdnet_detector
from svd_hub.origins.conversion import convert_by_rules

torch.set_num_threads(1)
COCO = {"depth_stride": 1, "num_classes": 80}


def meta(**options: Any) -> FasterRCNN3D:
    with torch.device("meta"):
        return FasterRCNN3D(**options)


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


def upstream(ours: dict[str, Tensor], *, version: int, prefix: str = "backbone.") -> dict[str, Tensor]:
    """A file of the authors: their names, their order of classes, convolutions in half precision."""
    file = {}
    for name, tensor in ours.items():
        rows = 1 if "fc_cls" in name else 4
        if version == 1 and "bbox_head.fc_" in name:
            tensor = torch.cat([tensor[-rows:], tensor[:-rows]])
        half = tensor.ndim > 1 or (name.endswith("bias") and not name.startswith("backbone."))
        file[theirs(name, version=version, prefix=prefix)] = tensor.half() if half else tensor
    return file


def filled(**options: Any) -> FasterRCNN3D:
    """A narrow detector of three classes whose values survive half precision."""
    model = small(num_classes=3, **options)
    g = generator(7)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_((tensor + torch.randn(tensor.shape, generator=g) * 0.01).half())
    return model


@pytest.mark.parametrize(("version", "convention"), [(1, "mmdet1"), (2, "mmdet2")])
@pytest.mark.parametrize("reduction", ["centre", "group"])
@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_each_layout_becomes_the_network_it_was(
    version: int, convention: str, reduction: str, prefix: str, tmp_path: Path
) -> None:
    model = filled(convention=convention, reduction=reduction, depth_stride=1, slices=5)
    path = tmp_path / "detector.pth"
    file = upstream(dict(model.state_dict()), version=version, prefix=prefix)
    torch.save({"meta": {"epoch": 72}, "state_dict": file, "optimizer": {}}, path)
    read = checkpoint.read(path).tensors
    got = svdnet_detector.convert(read, {"num_classes": 3})
    assert {t.dtype for t in got.tensors.values()} == {torch.float32}
    assert not got.dropped
    twin = small(num_classes=3, convention=convention, reduction=reduction, depth_stride=1, slices=5)
    twin.load_state_dict(got.tensors, strict=True)
    x = image(1, 1, 5, 64, 64)
    for a, b in zip(twin(x)[0], model(x)[0], strict=True):
        assert torch.equal(a, b)
    told = svdnet_detector.options_of(read, {})
    group = {"reduction": "group", "slices": 5} if reduction == "group" else {"reduction": "centre"}
    assert told == {"num_classes": 3, "convention": convention, **group}
    assert any("background" in note and "moved" in note for note in got.notes) == (version == 1)
    assert any("float16 tensors were cast" in note for note in got.notes)
    assert all(got.renamed.get(theirs(n, version=version, prefix=prefix), n) == n for n in model.state_dict())


def test_without_moving_rows_every_object_is_taken_for_another() -> None:
    """What the names alone would do: the trap."""
    model = filled(convention="mmdet1", depth_stride=1)
    with torch.no_grad():  # background everywhere but for class 1
        model.bbox_head.fc_cls.bias.copy_(torch.tensor([0.0, 4.0, 0.0, 5.0]))
    file = upstream(dict(model.state_dict()), version=1)
    x = image(1, 1, 3, 64, 64)
    assert set(model(x)[0].labels[:20].tolist()) == {1}
    twin = small(num_classes=3, convention="mmdet1", depth_stride=1)
    twin.load_state_dict(convert_by_rules(file, rename=svdnet_detector.detector_rules()).tensors)
    wrong = twin(x)[0]
    assert 1 not in wrong.labels[:20].tolist()
    assert wrong.scores[0] > 0.5  # and surely: what was the background is now an object
    twin.load_state_dict(svdnet_detector.convert(file, {"num_classes": 3}).tensors)
    assert set(twin(x)[0].labels[:20].tolist()) == {1}


def test_the_released_file_by_its_shapes() -> None:
    """The V1 detector of COCO, 81-way; in half precision but for the norms it has the size that is told, 86.96 MiB."""
    ours = {name: tuple(t.shape) for name, t in meta(**COCO, convention="mmdet1").state_dict().items()}
    file = {theirs(name, version=1): torch.empty(shape, device="meta") for name, shape in ours.items()}
    assert file["bbox_head.fc_cls.weight"].shape == (81, 1024)
    assert file["bbox_head.fc_reg.weight"].shape == (324, 1024)
    assert file["neck.lateral_convs.0.conv.weight"].shape == (256, 256, 1, 1)
    assert file["backbone.conv1_custom.weight"].shape == (64, 1, 1, 7, 7)
    assert file["backbone.norm1.weight"].shape == (64,)
    assert file["backbone.layer4.2.norm_4.bias"].shape == (2048,)
    assert sum(t.numel() for t in file.values()) == 45_530_852
    norms = sum(t.numel() for name, t in file.items() if "norm" in name or "downsample.1" in name)
    assert 2 * 45_530_852 + 2 * norms == 91_183_048
    got = svdnet_detector.convert(file, {"num_classes": 80})
    assert {name: tuple(t.shape) for name, t in got.tensors.items()} == ours
    assert svdnet_detector.options_of(file, {}) == {"num_classes": 80, "convention": "mmdet1", "reduction": "centre"}


@pytest.mark.parametrize("depth", [18, 50])
def test_a_detector_on_resnet3d(depth: int) -> None:
    options = {"encoder": "resnet3d", "encoder_options": {"depth": depth, "norm": "group"}, "depth_stride": 1}
    ours = {name: tuple(t.shape) for name, t in meta(**options).state_dict().items()}
    file = {
        re.sub(r"^(backbone\..*?)bn(\d)", r"\1gn\2", theirs(name, version=2)).replace("conv1_custom", "conv1"): shape
        for name, shape in ours.items()
    }
    assert "backbone.gn1.weight" in file
    got = svdnet_detector.convert({n: torch.empty(s, device="meta") for n, s in file.items()}, {"num_classes": 1})
    assert {name: tuple(t.shape) for name, t in got.tensors.items()} == ours


def test_without_classes_the_backbone_alone_is_kept() -> None:
    model = filled(convention="mmdet1", reduction="group", depth_stride=1)
    file = upstream(dict(model.state_dict()), version=1)
    got = svdnet_detector.convert(file, {"num_classes": 0})
    assert list(got.tensors) == [name for name in model.state_dict() if name.startswith("backbone.")]
    assert len(got.dropped) == len(file) - len(got.tensors)
    assert all("num_classes=0" in reason for reason in got.dropped.values())
    backbone = {name.removeprefix("backbone."): tensor for name, tensor in got.tensors.items()}
    build("p3d", {"variant": "18ba", "width": 8}).load_state_dict(backbone, strict=True)
    bare = {name: tensor for name, tensor in file.items() if name.startswith("backbone.layer")}
    assert svdnet_detector.options_of(bare, {}) == {"num_classes": 0}


@pytest.mark.parametrize("version", [1, 2])
def test_a_head_whose_names_and_rows_disagree_is_refused(version: int) -> None:
    model = filled(convention="mmdet1" if version == 1 else "mmdet2")
    file = upstream(dict(model.state_dict()), version=version)
    other = {
        (n.removeprefix("roi_head.") if version == 2 else n.replace("bbox_head", "roi_head.bbox_head")): t
        for n, t in file.items()
    }
    rows = 16 if version == 1 else 12
    told = rf"as in mmdet{3 - version}, while fc_cls has 4 rows and fc_reg {rows}, as in mmdet{version}"
    for call in (svdnet_detector.convert, svdnet_detector.options_of):
        with pytest.raises(CheckpointError, match=rf"{told}.*cannot be told.*Next: "):
            call(other, {"num_classes": 3})
    agnostic = {n: t[:4] if "fc_reg" in n else t for n, t in file.items()}
    with pytest.raises(CheckpointError, match="fc_reg 4, as in neither"):
        svdnet_detector.convert(agnostic, {"num_classes": 3})
    headless = {n: t for n, t in file.items() if "fc_cls" not in n}
    with pytest.raises(CheckpointError, match=r"0 heads with fc_cls\.weight"):
        svdnet_detector.convert(headless, {"num_classes": 3})


def test_masks_are_left_out_by_name() -> None:
    model = filled()
    file = upstream(dict(model.state_dict()), version=2)
    masks = {"roi_head.mask_head.convs.0.conv.weight": torch.zeros(2)}
    got = svdnet_detector.convert({**file, **masks}, {"num_classes": 3})
    assert list(got.tensors) == list(model.state_dict())
    assert list(got.dropped) == list(masks)
