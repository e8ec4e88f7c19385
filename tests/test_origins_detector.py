"""The authors' detectors: both layouts, stated here on their own, become FasterRCNN3D, with the background last."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_detection import generator, image, small, theirs, upstream
from synthetic import Shelf
from torch import Tensor

import svd_hub
from svd_hub import checkpoint
from svd_hub.catalog import get_entry
from svd_hub.errors import CheckpointError, OptionError
from svd_hub.models import build
from svd_hub.models.detection import FasterRCNN3D, Target
from svd_hub.origins import svdnet_detector
from svd_hub.origins.conversion import convert_by_rules
from svd_hub.skeleton import skeleton

torch.set_num_threads(1)
COCO = {"depth_stride": 1, "num_classes": 80}


def meta(**options: Any) -> Any:
    return skeleton("faster_rcnn3d", options)


def filled(**options: Any) -> FasterRCNN3D:
    """A narrow detector of three classes whose values survive half precision."""
    model = small(**{"num_classes": 3, **options})
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


# ---- through load ----------------------------------------------------------------------------------------------------

NAME = "mp3d63_coco_detector"
NARROW: dict[str, Any] = {"encoder_options": {"variant": "18ba", "width": 8}, "channels": 32, "head_channels": 64}
unstated = pytest.mark.filterwarnings("ignore::svd_hub.hub.LicenceWarning")


def file_of(model: FasterRCNN3D, *, version: int = 1) -> bytes:
    buffer = io.BytesIO()
    torch.save({"meta": {}, "state_dict": upstream(model.state_dict(), version=version)}, buffer)
    return buffer.getvalue()


def coco(**options: Any) -> FasterRCNN3D:
    """The detector of the entry, narrow, with values of its own in every tensor."""
    return filled(num_classes=80, convention="mmdet1", depth_stride=1, **options)


def same(a: Any, b: Any, x: Tensor) -> None:
    """In double precision, because where a tensor lies in memory decides how a kernel rounds."""
    for one, two in zip(a.double()(x.double())[0], b.double()(x.double())[0], strict=True):
        torch.testing.assert_close(one, two)


@unstated
def test_the_released_detector_loads_whole_and_its_backbone_alone_by_the_other_name(shelf: Shelf) -> None:
    model = coco()
    shelf.put(NAME, file_of(model), options=NARROW)
    shelf.put("mp3d63_coco", file_of(model), options={"variant": "18ba", "width": 8})
    loaded, report = svd_hub.load(NAME, return_report=True)
    assert report.matched == tuple(model.state_dict())
    assert (report.missing, report.unexpected, report.adapted, dict(report.dropped)) == ((), (), (), {})
    assert {name.split(".")[0] for name in report.matched} == {"backbone", "neck", "rpn_head", "bbox_head"}
    assert "bbox_head.fc_cls (one)" in str(report.notes)
    assert loaded.entry.classes[:2] == ("person", "bicycle")
    assert len(loaded.entry.classes) == loaded.num_classes == 80
    assert loaded.convention is FasterRCNN3D(**NARROW, convention="mmdet1").convention
    same(loaded, model, image(1, 1, 3, 64, 64))
    backbone, report = svd_hub.load("mp3d63_coco", return_report=True)
    assert {name.split(".")[0] for name in report.dropped} == {"neck", "rpn_head", "bbox_head"}
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[f"backbone.{name}"].float())


@unstated
@pytest.mark.parametrize("reduction", ["centre", "group"])
def test_the_released_detector_becomes_one_of_lesions(shelf: Shelf, reduction: str) -> None:
    """Nine slices, one class: backbone, neck, RPN and the shared layers are COCO's; what is new is named."""
    model = coco()
    shelf.put(NAME, file_of(model), options=NARROW)
    lesions, report = svd_hub.load(NAME, num_classes=1, depth_stride=2, reduction=reduction, return_report=True)
    head = {f"bbox_head.fc_{part}.{kind}" for part in ("cls", "reg") for kind in ("weight", "bias")}
    gtm = {f"gtm.{i}.weight" for i in range(4)} if reduction == "group" else set()
    assert set(report.missing) == head | gtm
    for name, tensor in lesions.state_dict().items():
        if name not in head | gtm:
            assert torch.equal(tensor, model.state_dict()[name]), name
    x = image(1, 1, 9, 64, 64)
    assert [level.shape[2] for level in lesions.features(x).values()] == [9, 9, 5, 3, 1]
    centre = small(num_classes=80, convention="mmdet1", depth_stride=2)
    centre.load_state_dict(model.state_dict())
    for a, b in zip(lesions.pyramid(x), centre.pyramid(x), strict=True):
        torch.testing.assert_close(a, b)
    assert set(lesions(x)[0].labels.tolist()) == {0}
    assert set(lesions.train()(x, [Target(torch.tensor([[3.0, 4, 30, 40]]), torch.tensor([0]))])) == {
        *("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox")
    }


@unstated
def test_a_group_transform_of_any_depth_is_added_to_middle_slices_and_to_nothing_else(
    shelf: Shelf, tmp_path: Path
) -> None:
    shelf.put(NAME, file_of(coco()), options=NARROW)
    kept, grouped = svd_hub.load(NAME), svd_hub.load(NAME, reduction="group", slices=3)
    x = image(1, 1, 3, 64, 64)
    same(kept, grouped, x)
    path = svd_hub.save(grouped.float(), tmp_path / "group.safetensors")
    same(svd_hub.load(path), kept, x)
    for other in ({"reduction": "centre"}, {"slices": 9}):
        with pytest.raises(OptionError, match=r"does not fit the weights of .*group"):
            svd_hub.load(path, **other)
    damaged = {n: t for n, t in checkpoint.read(path).tensors.items() if n != "gtm.2.weight"}
    checkpoint.write(path, damaged, checkpoint.unpack_metadata(checkpoint.read(path).metadata))
    with pytest.raises(CheckpointError, match=r"1 missing \(gtm\.2\.weight\)"):
        svd_hub.load(path)


@unstated
def test_a_file_with_a_group_transform_keeps_it(shelf: Shelf) -> None:
    """Third parties saw none in the released file; if it has one after all, it decides."""
    model = coco(reduction="group", slices=3)
    shelf.put(NAME, file_of(model), options=NARROW)
    loaded, report = svd_hub.load(NAME, return_report=True)
    assert (loaded.options["reduction"], loaded.options["slices"]) == ("group", 3)
    assert any("reduction='group'" in note for note in report.notes)
    same(loaded, model, image(1, 1, 3, 64, 64))


@unstated
def test_a_detector_of_lesions_of_one_s_own(shelf: Shelf, tmp_path: Path) -> None:
    """What mmdet 2 saved of the DeepLesion configuration: one class, P3D, the background last."""
    model = filled(depth_stride=2)
    shelf.put(NAME, file_of(coco()), options=NARROW)
    path = tmp_path / "epoch_24.pth"
    path.write_bytes(file_of(model, version=2))
    loaded, report = svd_hub.load(NAME, weights=path, depth_stride=2, return_report=True)
    assert loaded.options["convention"] == "mmdet2"
    assert loaded.num_classes == 3
    assert report.matched == tuple(model.state_dict())
    same(loaded, model, image(1, 1, 9, 64, 64))


def test_the_entry_says_what_the_network_is() -> None:
    entry = get_entry(NAME)
    assert entry.source == get_entry("mp3d63_coco").source
    assert dict(entry.options) == {
        "encoder": "p3d", "encoder_options": {"variant": "63"}, "depth_stride": 1, "reduction": "centre",
        "convention": "mmdet1", "num_classes": 80,
    }  # fmt: skip
    assert meta(**entry.options).encoder_options["form"] == "mp3d"
    assert meta(**{**entry.options, "depth_stride": 2}).encoder_options["form"] == "p3d"
    assert entry.task == FasterRCNN3D.task == "detection"
    assert len(set(entry.classes)) == 80
    x = entry.preprocess(np.zeros((70, 90, 3), np.uint8))
    assert x.shape == (1, 1, 3, 70, 90)  # boxes are in the picture's own pixels
