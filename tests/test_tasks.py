"""Laws of the task networks made from a loaded backbone: what is taken over, what is new, and that it can be kept."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import svd_hub
from svd_hub import tasks
from svd_hub.adapt import plain
from svd_hub.errors import CheckpointError, OptionError
from svd_hub.models.unet3d import UNet3D
from svd_hub.skeleton import shapes, skeleton

torch.set_num_threads(1)
OURS = "resnet3d18w16_tinyimagenet"
ORGANS = ("background", "liver", "spleen", "kidneys")
CT = svd_hub.Preprocess(modality="CT", spacing=(3, 3, 3), window=(-200, 250), scale=(0, 255), mean=123.675, std=58.395)


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def run(model: Any, x: Tensor) -> Any:
    with torch.inference_mode():
        return model(x)


def close(a: Tensor, b: Tensor) -> None:
    """Equal but for the last bits: a kernel may take another path where a tensor lies at another address."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max()))


def made(backbone: Any, architecture: str = "unet3d", **options: Any) -> tuple[Any, Any]:
    options = {"num_classes": 4, "classes": ORGANS, **options}
    return svd_hub.task_model(backbone, architecture, return_report=True, **options)


# ---- a classifier is what load gives ---------------------------------------------------------------------------------


def test_the_paper_s_classifier_of_nodules() -> None:
    options = {"depth": 18, "num_classes": 2, "depth_stride": 2}
    model = skeleton("resnet3d", options)
    assert sum(p.numel() for p in model.parameters()) == 33_161_026
    assert [n for n in model.state_dict() if not n.startswith(("conv1", "bn1", "layer"))] == ["fc.weight", "fc.bias"]
    maps = model.features(torch.empty(1, 1, 48, 48, 48, device="meta"))
    assert [m.shape[2:] for m in maps.values()] == [(n,) * 3 for n in (24, 12, 6, 3, 2)]
    assert model(torch.empty(5, 1, 48, 48, 48, device="meta")).shape == (5, 2)
    ours = svd_hub.load(OURS, num_classes=2, depth_stride=2)
    assert run(ours, image(2, 1, 24, 24, 24)).shape == (2, 2)


# ---- what is taken over ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["unet3d", "fcn3d"])
def test_the_encoder_is_the_backbone_tensor_by_tensor(architecture: str) -> None:
    backbone = svd_hub.load(OURS, depth_stride=2, stem_stride=1)
    model, report = made(backbone, architecture)
    have, got = backbone.state_dict(), model.state_dict()
    taken = [name for name in have if not name.startswith("fc.")]
    for name in taken:
        assert torch.equal(got[f"backbone.{name}"], have[name])
        assert got[f"backbone.{name}"].data_ptr() == have[name].data_ptr()
    assert report.renamed == {name: f"backbone.{name}" for name in taken}
    assert set(report.matched) == set(report.renamed.values())
    assert set(report.missing) == set(got) - set(report.matched)
    assert all(name.startswith(("neck.", "decode_head.")) for name in report.missing)
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    assert report.total == len(got) == len(report.matched) + len(report.missing)
    assert (report.name, report.architecture) == (OURS, architecture)
    assert f"{len(taken)} of {len(got)} tensors from the loaded {OURS}" in str(report)
    assert not model.training
    assert run(model, image(1, 1, 9, 17, 16)).shape == (1, 4, 9, 17, 16)


def test_features_only_gives_the_same_encoder() -> None:
    with_head, without = (made(svd_hub.load(OURS, features_only=f)) for f in (False, True))
    assert shapes(with_head[0].state_dict()) == shapes(without[0].state_dict())
    assert without[1].dropped == {}
    x = image(1, 1, 16, 16, 16)
    for name, level in with_head[0].features(x).items():
        close(level, without[0].features(x)[name])


def test_the_task_decides_where_the_encoder_strides() -> None:
    backbone = svd_hub.load(OURS)
    assert backbone.feature_info[0].stride == (1, 2, 2)
    for architecture, pool, strides in (("unet3d", True, (1, 2, 2, 2)), ("fcn3d", False, (1, 2, 1, 2))):
        model, report = made(backbone, architecture)
        form = {"stem_stride": 1, "stem_pool": pool, "strides": strides, "depth_stride": 2}
        alone = svd_hub.load(OURS, features_only=True, **form)
        assert model.feature_info == alone.feature_info
        x = image(1, 1, 10, 16, 12)
        for name, level in run(alone, x).items():
            close(level, model.features(x)[name])
        told = [note for note in report.notes if note.startswith("the encoder's")]
        changed = {"stem_stride", "depth_stride"} | ({"stem_pool"} if pool else {"strides"})
        assert {note.split()[2] for note in told} == changed
        assert "the encoder's stem_stride is 1, the backbone's was 2; no tensor changes" in told
    assert backbone.feature_info[0].stride == (1, 2, 2)


def test_the_form_may_be_chosen() -> None:
    model, report = made(svd_hub.load(OURS), encoder_options={"stem_pool": False, "stem_stride": [1, 2, 2]})
    assert model.feature_info[0].stride == (1, 2, 2)
    assert model.feature_info[1].stride == (1, 2, 2)
    assert not any("stem_pool" in note for note in report.notes)
    assert run(model, image(1, 1, 8, 16, 16)).shape == (1, 4, 8, 16, 16)


def test_options_of_the_weights_are_kept_and_dilations_are_not() -> None:
    small = {"width": 4, "weights": None}
    dilated = svd_hub.load("resnet3d18_med3d23", **small)
    assert [level.stride[1] for level in dilated.feature_info] == [2, 4, 8, 8, 8]
    model, _ = made(dilated)
    assert "output_stride" not in model.options["encoder_options"]
    kept = {"shortcut": "A", "detach_shortcut": True, "width": 4, "depth": 18}
    assert kept.items() <= model.options["encoder_options"].items()
    assert [level.stride for level in model.feature_info] == [(s, s, s) for s in (1, 2, 4, 8, 16)]
    v1c = svd_hub.load("resnet3dv1c18_coco", **small)
    assert shapes(made(v1c)[0].backbone.state_dict()) == shapes(
        {name: tensor for name, tensor in v1c.state_dict().items() if not name.startswith("fc.")}
    )


def test_device_precision_mode_and_frozen_parts_are_the_backbone_s() -> None:
    backbone = svd_hub.load(OURS).double().train()
    backbone.conv1.requires_grad_(False)
    model, _ = made(backbone, "fcn3d")
    assert {t.dtype for t in model.state_dict().values()} == {torch.float64, torch.int64}
    assert model.training
    assert model.decode_head.training
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["backbone.conv1.weight"]


def test_training_the_network_trains_the_backbone_unless_it_was_copied() -> None:
    backbone = svd_hub.load(OURS)
    apart, before = copy.deepcopy(backbone), backbone.layer1[0].conv1.weight.detach().clone()
    model, _ = made(backbone)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(image(2, 1, 16, 32, 32)).square().mean().backward()
    optimiser.step()
    assert not torch.equal(backbone.layer1[0].conv1.weight, before)
    assert torch.equal(backbone.layer1[0].conv1.weight, model.backbone.layer1[0].conv1.weight)
    assert torch.equal(apart.layer1[0].conv1.weight, before)


@pytest.mark.parametrize("architecture", ["unet3d", "fcn3d"])
@pytest.mark.parametrize("family", ["resnet3d", "p3d", "densenet3d", "unet3d_genesis", "segresencoder", "segresnet"])
def test_every_family_of_the_catalogue_can_be_an_encoder(family: str, architecture: str, tmp_path: Path) -> None:
    narrow = {"segresencoder": {"init_filters": 2}, "segresnet": {"init_filters": 2}}.get(family, {"width": 4})
    name = next(n for n in svd_hub.list_entries() if svd_hub.get_entry(n).architecture == family)
    backbone = svd_hub.load(name, weights=None, **narrow)
    model, report = made(backbone, architecture)
    heads = (backbone.head,) if isinstance(backbone.head, str) else backbone.head
    left = [n for n in backbone.state_dict() if n.startswith((*heads, *backbone.decoder))]
    assert set(report.dropped) == set(left)
    assert len(report.matched) == len(backbone.state_dict()) - len(left)
    x = image(1, backbone.in_channels, 16, 32, 33)
    assert run(model, x).shape == (1, 4, 16, 32, 33)
    again = svd_hub.load(svd_hub.save(model, tmp_path / "m.safetensors"))
    close(run(again, x), run(model, x))


def test_a_detector_is_made_in_the_same_way(tmp_path: Path) -> None:
    backbone = svd_hub.load("mp3d63_coco", weights=None, width=4)
    model, report = made(backbone, "faster_rcnn3d", num_classes=1, classes=("lesion",), channels=8, head_channels=8)
    assert len(report.matched) == len([n for n in backbone.state_dict() if not n.startswith("fc.")])
    assert model.entry.task == "detection"
    again = svd_hub.load(svd_hub.save(model, tmp_path / "m.safetensors"))
    assert again.entry.task == "detection"
    assert shapes(again.state_dict()) == shapes(model.state_dict())
    assert again.backbone.feature_info == model.backbone.feature_info


# ---- it can be kept --------------------------------------------------------------------------------------------------


def test_save_and_load_rebuild_it_alone(tmp_path: Path) -> None:
    backbone = svd_hub.load(OURS)
    model, _ = made(backbone, preprocess=CT, decoder_channels=(8, 8, 16, 32), head_channels=8)
    assert model.entry.classes == ORGANS
    assert model.entry.task == "segmentation"
    assert model.entry.preprocess == model.preprocess == CT
    x = image(1, 1, 11, 18, 20)
    model.train()(torch.cat([x, -x]))  # its running statistics are its own now
    model.eval()
    path = svd_hub.save(model, tmp_path / "liver.safetensors")
    again, report = svd_hub.load(path, return_report=True)
    close(run(again, x), run(model, x))
    assert report.matched == tuple(model.state_dict())
    assert (again.entry.architecture, again.entry.task, again.entry.classes) == ("unet3d", "segmentation", ORGANS)
    assert again.preprocess == CT
    assert plain(again.options) == plain(model.options)
    assert again.entry.licence == svd_hub.get_entry(OURS).licence
    twice = svd_hub.load(svd_hub.save(again, tmp_path / "twice.safetensors"))
    close(run(twice, x), run(model, x))
    with pytest.raises(CheckpointError, match=r"holds a unet3d .*Next: svd_hub.load"):
        svd_hub.load(OURS, weights=path)


def test_a_saved_network_takes_another_head_input_or_none(tmp_path: Path) -> None:
    model, _ = made(svd_hub.load(OURS))
    path, x = svd_hub.save(model, tmp_path / "m.safetensors"), image(1, 1, 16, 16, 16)
    other, report = svd_hub.load(path, num_classes=2, return_report=True)
    assert run(other, x).shape == (1, 2, 16, 16, 16)
    assert set(report.missing) == {"decode_head.conv_seg.weight", "decode_head.conv_seg.bias"}
    pyramid = run(svd_hub.load(path, features_only=True), x)
    for name, level in model.features(x).items():
        close(pyramid[name], level)
    close(run(svd_hub.load(path, num_classes=0), x), pyramid["layer4"].mean((2, 3, 4)))
    dense = run(svd_hub.load(path, num_classes=0, keep_decoder=True), x)
    close(dense, model.decode(model.features(x)))
    two = svd_hub.load(path, in_channels=2)
    torch.testing.assert_close(run(two, x.expand(-1, 2, -1, -1, -1)), run(model, x), rtol=1e-3, atol=1e-3)
    with pytest.raises(OptionError, match=r"encoder_options=.* does not fit the weights"):
        svd_hub.load(path, encoder_options={"width": 16})


def test_a_saved_network_does_not_depend_on_what_the_task_s_form_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = made(svd_hub.load(OURS))
    path, x = svd_hub.save(model, tmp_path / "m.safetensors"), image(1, 1, 16, 16, 16)
    monkeypatch.setattr(UNet3D, "forms", {"resnet3d": {"stem_stride": 2, "strides": (1, 2, 2, 1), "depth_stride": 1}})
    assert made(svd_hub.load(OURS))[0].feature_info[0].stride == (1, 2, 2)
    close(run(svd_hub.load(path), x), run(model, x))


def test_a_table_compares_as_json_gives_it_back() -> None:
    assert plain({"a": [1, [2]], "b": {"c": (1,)}}) == plain({"b": {"c": [1]}, "a": (1, (2,))})
    assert plain({"a": [1]}) != plain({"a": [2]})


# ---- what the report says of the input -------------------------------------------------------------------------------


def test_the_report_says_when_the_preprocessing_is_another_task_s() -> None:
    backbone = svd_hub.load(OURS)
    model, report = made(backbone)
    assert model.preprocess == backbone.preprocess
    assert [note.split(":")[0] for note in report.notes if "preprocessing" in note] == [
        "the preprocessing is that of pictures, as the backbone was trained",
        "the preprocessing makes every input (3, 64, 64)",
    ]
    assert not any("preprocessing" in note for note in made(backbone, preprocess=CT)[1].notes)


def test_the_report_says_when_preserved_depth_is_undone() -> None:
    preserved, _ = svd_hub.preserve_depth(svd_hub.load(OURS, depth_stride=2))
    model, report = made(preserved)
    assert any(note.startswith("preserve_depth was undone") for note in report.notes)
    assert model.feature_info[-1].stride == (16, 16, 16)


# ---- errors ----------------------------------------------------------------------------------------------------------

BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"architecture": "resnet3d"}, r"'resnet3d' has no encoder.*allowed: .*unet3d.*Next: .*num_classes"),
    ({"architecture": "unet"}, r"'unet' is not known; nearest: unet3d"),
    ({"encoder": "p3d"}, r"encoder cannot be given: the backbone decides"),
    ({"in_channels": 3}, r"in_channels cannot be given.*Next: .*in_channels=\.\.\."),
    ({"classes": ("a", "b")}, r"2 classes for num_classes=4"),
    ({"depht": 3}, r"unet3d has no option 'depht'"),
    ({"encoder_options": {"width": 64}}, r"width=64 do not fit the weights of .*tinyimagenet', which are width=16"),
    ({"encoder_options": {"stem_strid": 1}}, r"resnet3d has no option 'stem_strid'; .*stem_stride"),
    ({"encoder_options": 7}, r"encoder_options=7 .*a table"),
    ({"encoder_options": {"strides": (2, 2, 2, 2)}}, r"lacks what the encoder needs: .*layer1.0.downsample.*Next: "),
    ({"preprocess": 3}, r"preprocess=3 .*svd_hub.Preprocess"),
    ({"preprocess": svd_hub.Preprocess(channels=3)}, r"channels=3 does not fit a backbone of in_channels=1"),
)


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_bad_options_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        made(svd_hub.load(OURS), **options)


def test_only_a_loaded_backbone_will_do() -> None:
    for nothing in (torch.nn.Linear(1, 1), None, svd_hub.models.build("resnet3d", {"depth": 10, "width": 2})):
        with pytest.raises(OptionError, match=r"does not come from svd_hub\.load"):
            made(nothing)
    with pytest.raises(OptionError, match=r"is a unet3d, a task's network already.*Next: "):
        made(made(svd_hub.load(OURS))[0])
    changed = svd_hub.load(OURS)
    changed.layer4[0].conv1 = torch.nn.Conv3d(64, 99, 3)
    with pytest.raises(OptionError, match=r"lacks what the encoder needs: .*Next: "):
        made(changed)


def test_what_the_task_decides_is_no_matter_of_weights() -> None:
    from svd_hub import models

    for name in models.ARCHITECTURES:
        assert not {*tasks.SPATIAL, *tasks.OUTER} & set(models.weight_options(name))
