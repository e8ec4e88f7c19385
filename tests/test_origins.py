"""Each documented layout of upstream, stated here on its own, becomes exactly our names, values and float32."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from svd_hub import checkpoint, origins
from svd_hub.errors import CheckpointError, OptionError
from svd_hub.models.p3d import P3D
from svd_hub.models.resnet3d import ResNet3D
from svd_hub.origins.conversion import Conversion, convert_by_rules

torch.set_num_threads(1)
BATCH = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
GROUP = ("weight", "bias")


def fill(names: list[str], channels: int = 4) -> dict[str, Tensor]:
    """Return seeded values as the authors' training saves them: convolutions in half precision, norms not."""
    g = torch.Generator().manual_seed(len(names))
    tensors: dict[str, Tensor] = {}
    for name in names:
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.randint(1, 10**6, (), generator=g)
        elif "fc." in name:
            tensors[name] = torch.randn((7, channels) if name.endswith("weight") else (7,), generator=g)
        elif is_convolution(name):
            tensors[name] = torch.randn(channels, channels, 3, 3, 3, generator=g).half()
        else:
            tensors[name] = torch.randn(channels, generator=g)
    return tensors


def is_convolution(name: str) -> bool:
    parts = name.split(".")
    flat = parts[0] == "stem" and parts[1] in "036" and len(parts) == 3
    return "conv" in name or name.endswith("downsample.0.weight") or flat


def norm(name: str, kinds: tuple[str, ...]) -> list[str]:
    return [f"{name}.{kind}" for kind in kinds]


def resnet18(stem: list[str], norm_name: str, kinds: tuple[str, ...]) -> list[str]:
    """The names of a ResNet3D-18, svd-net.md section 1.1."""
    names = list(stem)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"layer{stage}.{block}."
            for k in (1, 2):
                names += [f"{at}conv{k}.weight", *norm(f"{at}{norm_name}{k}", kinds)]
            if stage > 1 and block == 0:
                names += [f"{at}downsample.0.weight", *norm(f"{at}downsample.1", kinds)]
    return names


def stem_7(norm_name: str, kinds: tuple[str, ...]) -> list[str]:
    return ["conv1.weight", *norm(f"{norm_name}1", kinds)]


def stem_modules(norm_name: str, kinds: tuple[str, ...]) -> list[str]:
    return [n for i in range(3) for n in (f"stem.{i}.conv.weight", *norm(f"stem.{i}.{norm_name}", kinds))]


def stem_flat(kinds: tuple[str, ...]) -> list[str]:
    return [n for i in (0, 3, 6) for n in (f"stem.{i}.weight", *norm(f"stem.{i + 1}", kinds))]


PLAIN = resnet18(stem_7("bn", BATCH), "bn", BATCH)
V1C = resnet18(stem_modules("bn", BATCH), "bn", BATCH)
PLAIN_GN = resnet18(stem_7("bn", GROUP), "bn", GROUP)
V1C_GN = resnet18(stem_modules("bn", GROUP), "bn", GROUP)
# Our names, then upstream's, in one order.
RESNETS: dict[str, tuple[list[str], list[str]]] = {
    "published: bare": (PLAIN, PLAIN),
    "classifier: backbone.": (PLAIN, [f"backbone.{n}" for n in PLAIN]),
    "GroupNorm": (PLAIN_GN, resnet18(stem_7("gn", GROUP), "gn", GROUP)),
    "deep stem of modules": (V1C, V1C),
    "deep stem of modules, GroupNorm": (V1C_GN, resnet18(stem_modules("gn", GROUP), "gn", GROUP)),
    "deep stem, flat": (V1C, resnet18(stem_flat(BATCH), "bn", BATCH)),
    "deep stem, flat, GroupNorm, backbone.": (
        V1C_GN,
        [f"backbone.{n}" for n in resnet18(stem_flat(GROUP), "gn", GROUP)],
    ),
}


def p3d63(*, ours: bool) -> list[str]:
    """The names of a P3D-63, svd-net.md section 1.3: every norm is a GroupNorm, every stage has a shortcut."""
    names = ["conv1.weight" if ours else "conv1_custom.weight", *norm("norm1", GROUP)]
    for stage, count in enumerate((3, 4, 6, 3), start=1):
        for block in range(count):
            at = f"layer{stage}.{block}."
            for k in (1, 2, 3, 4):
                names += [f"{at}conv{k}.weight", *norm(f"{at}norm{'' if ours else '_'}{k}", GROUP)]
            if block == 0:
                names += [f"{at}downsample.0.weight", *norm(f"{at}downsample.1", GROUP)]
    return names


NECK = [f"neck.{p}_convs.{i}.conv.{k}" for p in ("lateral", "fpn") for i in range(4) for k in GROUP]
RPN = [f"rpn_head.rpn_{p}.{k}" for p in ("conv", "cls", "reg") for k in GROUP]
HEAD = [f"bbox_head.{p}.{k}" for p in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg") for k in GROUP]
V1 = [*NECK, *RPN, *HEAD]
V2 = [*NECK, *RPN, *(f"roi_head.{n}" for n in HEAD)]


def check(got: Conversion, ours: list[str], theirs: list[str], upstream: dict[str, Tensor]) -> None:
    """Names, values and the record agree with the two lists, one to one."""
    assert list(got.tensors) == ours
    for new, old in zip(ours, theirs, strict=True):
        source = upstream[old]
        want = source if new.endswith("num_batches_tracked") else source.float()
        assert got.tensors[new].dtype == want.dtype, new
        assert torch.equal(got.tensors[new], want), new
    assert got.renamed == {old: new for new, old in zip(ours, theirs, strict=True) if old != new}
    assert set(got.dropped) == set(upstream) - set(theirs)
    half = sum(t.dtype == torch.float16 for n, t in upstream.items() if n in theirs)
    assert f"{half} float16 tensors were cast to float32" in got.notes


def test_our_names_are_the_networks_own() -> None:
    def keys(network: type[torch.nn.Module], **options: Any) -> set[str]:
        with torch.device("meta"):
            return set(network(**options).state_dict())

    assert keys(ResNet3D, depth=18, width=2) == set(PLAIN)
    assert len(PLAIN) == len(set(PLAIN)) == 120
    assert keys(ResNet3D, depth=18, width=2, stem="v1c") == set(V1C)
    assert keys(ResNet3D, depth=18, width=2, norm="group") == set(PLAIN_GN)
    assert keys(ResNet3D, depth=18, width=2, norm="group", stem="v1c") == set(V1C_GN)
    assert keys(P3D) == set(p3d63(ours=True))


# ---- the official ImageNet file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", RESNETS)
@pytest.mark.parametrize("origin", ["svdnet_imagenet", "svdnet_coco"])
def test_every_layout_of_a_resnet_becomes_ours(layout: str, origin: str) -> None:
    ours, theirs = RESNETS[layout]
    upstream = fill(theirs)
    check(origins.get_origin(origin).convert(upstream, {}), ours, theirs, upstream)


def test_the_published_file_converts_from_disk_and_loads_strictly(tmp_path: Path) -> None:
    model = ResNet3D(depth=18, width=2, init="kaiming")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape).half())
    half = {n: t.half() if t.ndim == 5 else t for n, t in model.state_dict().items()}
    path = tmp_path / "res3d18.pth"
    torch.save({"meta": {"config": "x"}, "state_dict": half}, path)
    got = origins.get_origin("svdnet_imagenet").convert(checkpoint.read(path).tensors, {"num_classes": 0})
    assert len(got.tensors) == 120
    twin = ResNet3D(depth=18, width=2)
    twin.load_state_dict(got.tensors, strict=True)
    x = torch.rand(2, 1, 3, 16, 16)
    assert torch.equal(model.eval()(x), twin.eval()(x))
    assert got.notes == ("20 float16 tensors were cast to float32",)
    assert not got.renamed
    assert not got.dropped


@pytest.mark.parametrize("head", ["head.fc.", "fc."])
def test_the_classifier_is_kept_or_dropped_as_the_entry_says(head: str) -> None:
    origin = origins.get_origin("svdnet_imagenet")
    prefix = "backbone." if head == "head.fc." else ""
    names = [prefix + n for n in PLAIN]
    fc = [head + k for k in GROUP]
    upstream = fill([*names, *fc])
    kept = origin.convert(upstream, {"num_classes": 1000})
    check(kept, [*PLAIN, "fc.weight", "fc.bias"], [*names, *fc], upstream)
    assert "the file's classifier has 7 classes" in kept.notes
    dropped = origin.convert(upstream, {"num_classes": 0})
    check(dropped, PLAIN, names, upstream)
    assert all("7 classes" in reason for reason in dropped.dropped.values())


@pytest.mark.parametrize("origin", ["svdnet_imagenet", "svdnet_coco"])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_the_norm_after_a_flat_deep_stem_is_refused_by_name(origin: str, prefix: str) -> None:
    names = [prefix + n for n in (*resnet18(stem_flat(GROUP), "gn", GROUP), "gn1.weight", "gn1.bias")]
    with pytest.raises(CheckpointError, match=rf"{prefix}gn1\.bias, {prefix}gn1\.weight.*Next: "):
        origins.get_origin(origin).convert(fill(names), {})


def test_two_networks_in_one_file_are_refused() -> None:
    upstream = fill([*PLAIN, *(f"backbone.{n}" for n in PLAIN)])
    with pytest.raises(CheckpointError, match=r"'conv1\.weight' and 'backbone\.conv1\.weight'"):
        origins.get_origin("svdnet_imagenet").convert(upstream, {})


# ---- the official COCO file ------------------------------------------------------------------------------------------

COCO = {
    "V1 detector": ("backbone.", V1),
    "V2 detector": ("backbone.", V2),
    "V1 detector with group transform": ("backbone.", [*V1, *(f"backbone.groupconv_{i}.weight" for i in range(1, 5))]),
    "backbone with group transform": ("", [f"groupconv_{i}.weight" for i in range(1, 5)]),
    "backbone alone": ("", []),
}


@pytest.mark.parametrize("layout", COCO)
def test_every_layout_of_p3d_becomes_ours(layout: str) -> None:
    prefix, others = COCO[layout]
    theirs = [prefix + n for n in p3d63(ours=False)]
    upstream = fill([*theirs, *others])
    got = origins.get_origin("svdnet_coco").convert(upstream, {})
    check(got, p3d63(ours=True), theirs, upstream)
    assert all("belongs to the detector" in reason for reason in got.dropped.values())
    for top in ("neck", "rpn_head", "bbox_head", "roi_head"):
        count = sum(n.startswith(f"{top}.") for n in others)
        assert any(note.startswith(f"{count} tensors of {top} were dropped") for note in got.notes) == bool(count)


def test_a_detector_without_its_backbone_is_refused() -> None:
    with pytest.raises(CheckpointError, match="belongs to the detector"):
        origins.get_origin("svdnet_coco").convert(fill(V1), {})


def test_the_file_through_all_its_wrapping(tmp_path: Path) -> None:
    theirs = [f"module.backbone.{n}" for n in p3d63(ours=False)]
    upstream = fill([*theirs, *(f"module.{n}" for n in V1)])
    path = tmp_path / "mp3d63.pth"
    torch.save({"meta": {"epoch": 72}, "state_dict": upstream, "optimizer": {"state": {}}}, path)
    read = checkpoint.read(path)
    got = origins.get_origin("svdnet_coco").convert(read.tensors, {})
    assert (read.wrapper, read.prefix, len(read.tensors)) == ("state_dict", "module.", len(upstream))
    check(got, p3d63(ours=True), [n.removeprefix("module.") for n in theirs], read.tensors)


# ---- ours, the rules, the door ---------------------------------------------------------------------------------------


def test_our_own_files_keep_every_name() -> None:
    upstream = fill(PLAIN)
    check(origins.get_origin("svd_hub").convert(upstream, {}), PLAIN, PLAIN, upstream)


def test_all_origins_are_modules_with_convert_and_leave_their_input_alone() -> None:
    for name in set(origins.ORIGINS) - {"svdnet_detector"}:  # which puts the backbone where a detector has it
        upstream = fill(PLAIN)
        before = {n: t.clone() for n, t in upstream.items()}
        got = origins.get_origin(name).convert(upstream, {})
        assert got.tensors.keys() == set(PLAIN)
        assert upstream.keys() == before.keys()
        assert all(upstream[n].dtype == before[n].dtype and torch.equal(upstream[n], before[n]) for n in before)
    here = {p.stem for p in Path(origins.__file__).parent.glob("*.py")} - {"__init__", "conversion"}
    assert here == set(origins.ORIGINS)


def test_an_unknown_origin_names_the_nearest() -> None:
    with pytest.raises(OptionError, match="nearest: svdnet_imagenet"):
        origins.get_origin("svdnet_imagenett")


def test_the_door_imports_no_torch() -> None:
    code = "import sys, svd_hub.origins as o; assert o.CONVERTER_VERSION >= 1; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_rules_apply_in_order_and_drops_see_the_file_s_own_names() -> None:
    tensors = {"m.a.x": torch.ones(1), "m.b.x": torch.ones(2).double(), "m.c.x": torch.tensor([float("nan")])}
    got = convert_by_rules(
        tensors, rename=((r"^m\.", ""), (r"^a\.", "z.")), drop=((r"^b\.", "never"), (r"^m\.b\.", "b"))
    )
    assert list(got.tensors) == ["z.x", "c.x"]
    assert got.renamed == {"m.a.x": "z.x", "m.c.x": "c.x"}
    assert got.dropped == {"m.b.x": "b"}
    assert got.notes == ("1 tensors of m were dropped: b", "1 tensors hold NaN or infinity, c.x first")


def test_a_batch_counter_saved_as_a_real_becomes_an_integer_again() -> None:
    got = convert_by_rules({"bn1.num_batches_tracked": torch.tensor(9.0).half()})
    assert got.tensors["bn1.num_batches_tracked"].dtype == torch.int64
