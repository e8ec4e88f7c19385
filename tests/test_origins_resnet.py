"""Every origin of residual (and dense) networks: the documented file, loaded by name, computes what upstream's does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plain_networks as plain
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import upstream_layouts as upstream
from synthetic import Shelf
from torch import Tensor
from upstream_layouts import prefixed, saved, values

import svd_hub
from svd_hub.catalog import Source, all_entries
from svd_hub.errors import CheckpointError
from svd_hub.origins import get_origin
from svd_hub.skeleton import shapes, skeleton

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::svd_hub.hub.LicenceWarning")
State = Mapping[str, Tensor]
WIDTH = 4  # of the stem, in every file here; the catalogue's 64 or 128 are laid over
ORIGINS = ("medicalnet", "kinetics", "torchvision_video", "imagenet_2d", "fmcib", "merlin")


def volume(channels: int, depth: int = 9) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.randn(1, channels, depth, 36, 68, generator=g, dtype=torch.float64)


def doubled(state: State) -> dict[str, Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in state.items()}


def loaded(name: str, **options: Any) -> tuple[Any, svd_hub.LoadReport]:
    """The network in double precision: what is compared are networks, not roundings."""
    model, report = svd_hub.load(name, progress=False, return_report=True, **options)
    return model.double(), report


def same(got: Mapping[str, Tensor], want: Mapping[str, Tensor], *, within: float = 1e-9) -> None:
    """The levels agree to a part of each one's largest value."""
    assert list(got) == list(want)
    for level, tensor in want.items():
        assert tensor.std() > 1e-3, f"{level} says nothing"
        atol = within * float(tensor.abs().max())
        torch.testing.assert_close(got[level], tensor, rtol=0, atol=atol, msg=lambda m, at=level: f"{at}: {m}")


# ---- the layouts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """A file of upstream's: what it holds, what its network computes, and what the report must count."""

    entry: str
    body: bytes
    state: State
    stated: Callable[[State, Tensor], Mapping[str, Tensor]]
    total: int
    channels: int = 1
    head: str = ""
    renamed: int = 0
    dropped: int = 0
    adapted: int = 0
    notes: tuple[str, ...] = ()
    width: int = WIDTH
    depth: int = 9


def medicalnet(depth: int, total: int, *, published: bool = True, entry: str = "med3d") -> Layout:
    state = values(upstream.medicalnet(depth, width=WIDTH))
    head = values(upstream.medicalnet_head(32)) if not published else {}
    state = prefixed({**state, **head}, "module.")
    content: dict[str, Any] = {"state_dict": state}
    if not published:
        content |= {"ecpoch": 3, "batch_id": 0, "optimizer": upstream.sgd_state(state)}
    name = f"resnet3d{depth}_{entry}"
    notes = ("prefix 'module.' stripped", "taken from 'state_dict'")
    return Layout(name, saved(content), state, plain.medicalnet, total, dropped=len(head), notes=notes)


def kinetics(name: str, depth: int, classes: int, total: int) -> Layout:
    """The generation of 2020."""
    state = values(upstream.resnet(depth, width=WIDTH, classes=classes))
    content = {"epoch": 200, "arch": f"resnet-{depth}", "state_dict": state}
    content |= {"optimizer": upstream.sgd_state(state), "scheduler": {"step_size": 50, "gamma": 0.1, "last_epoch": 200}}
    return Layout(name, saved(content), state, plain.kinetics, total, channels=3, head="fc")


def old_kinetics(depth: int, total: int) -> Layout:
    """The generation of 2018: the format of its time, no counters, no shortcut parameters."""
    state = values(upstream.resnet(depth, width=WIDTH, classes=400, shortcut="A"))
    state = prefixed(upstream.without_counters(state), "module.")
    content = {"epoch": 151, "arch": f"resnet-{depth}", "state_dict": state, "optimizer": upstream.sgd_state(state)}

    def stated(p: State, x: Tensor) -> Mapping[str, Tensor]:
        return plain.kinetics(p, x, prefix="module.")

    counters = f"{(total - 2) // 6} counters of batches (num_batches_tracked) are not in the file and start at 0"
    notes = (counters, "prefix 'module.' stripped")
    body = saved(content, legacy=True)
    return Layout(f"resnet3d{depth}_kinetics400", body, state, stated, total, 3, "module.fc", notes=notes)


def torchvision() -> Layout:
    state = values(upstream.torchvision_video(width=WIDTH))
    named = sum(not name.startswith(("fc.", "layer")) or ".conv" in name for name in state)
    stated = plain.torchvision_r3d
    return Layout("r3d18_kinetics400", saved(state), state, stated, 122, channels=3, head="fc", renamed=named)


def imagenet(depth: int, rule: str, total: int, kernels: int, *, timm: bool = False) -> Layout:
    """A one-channel volume, by default: upstream copies it three times."""
    state = values(upstream.resnet(depth, width=WIDTH, stem=(7, 7), classes=1000))
    convolve = {"i3d": plain.repeated, "acs": plain.in_three_planes}[rule]

    def stated(p: State, x: Tensor) -> Mapping[str, Tensor]:
        return plain.resnet_2d(p, torch.cat([x, x, x], dim=1), convolve)

    body = safetensors.torch.save(dict(state)) if timm else saved(upstream.without_counters(state), legacy=True)
    name = f"resnet3d{depth}_imagenet_{rule}"
    notes = () if timm else ("counters of batches",)
    return Layout(name, body, state, stated, total, head="fc", adapted=kernels, notes=notes)


def densenet(rule: str, *, timm: bool = False) -> Layout:
    state = values(upstream.densenet(growth=4, width=8))  # ACS of two channels would leave one plane out
    state = state if timm else upstream.legacy_densenet(state)
    convolve = {"i3d": plain.repeated, "acs": plain.in_three_planes}[rule]

    def stated(p: State, x: Tensor) -> Mapping[str, Tensor]:
        return plain.densenet_2d(p, torch.cat([x, x, x], dim=1), convolve)

    body = safetensors.torch.save(dict(state)) if timm else saved(state, legacy=True)
    name = f"densenet3d121_imagenet_{rule}"
    notes = () if timm else ("121 counters of batches",)
    count = {"total": 727, "renamed": len(state), "adapted": 120}
    return Layout(name, body, state, stated, head="classifier", notes=notes, width=8, depth=32, **count)


def fmcib(form: str) -> Layout:
    state = values(upstream.resnet(50, width=WIDTH, channels=1, bias=True))
    head = {"0.0.weight": torch.ones(8, 128), "0.0.bias": torch.ones(8)}
    prefix = {"published": "", "lighter": "model.trunk.", "pre-training": "model.backbone."}[form]
    if form == "published":
        content: dict[str, Any] = {"trunk_state_dict": state, "head_state_dict": head}
    else:
        head = prefixed(head, "model.heads." if form == "lighter" else "model.projection_head.layers.")
        content = {"epoch": 99, "global_step": 5, "state_dict": {**prefixed(state, prefix), **head}, "loops": {}}

    def stated(p: State, x: Tensor) -> Mapping[str, Tensor]:
        return plain.fmcib(p, x, prefix=prefix)

    counts = {"renamed": 322, "dropped": 2} if prefix else {}
    state = prefixed(state, prefix)
    return Layout("resnet3d50x2_fmcib", saved(content), state, stated, 322, **counts)


def merlin(*, main: bool) -> Layout:
    shapes = upstream.merlin_main(width=WIDTH) if main else upstream.merlin(width=WIDTH, codes=6)
    state = values(shapes)
    prefix = "encode_image.i3_resnet." if main else ""

    def stated(p: State, x: Tensor) -> Mapping[str, Tensor]:
        return plain.merlin(p, x, prefix=prefix)

    counts = {"renamed": 930 * main, "dropped": 4 + 4 * main, "adapted": 1}
    return Layout("resnet3d152_merlin", saved(state), state, stated, 930, **counts)


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "MedicalNet 10 (B)": lambda: medicalnet(10, 72),
    "MedicalNet 18 (A)": lambda: medicalnet(18, 102),
    "MedicalNet 18, 23 data sets": lambda: medicalnet(18, 102, entry="med3d23"),
    "MedicalNet 34 (A)": lambda: medicalnet(34, 198),
    "MedicalNet 50 (B)": lambda: medicalnet(50, 318),
    "MedicalNet 18 as its training saves it": lambda: medicalnet(18, 102, published=False),
    "Kinetics-700, 18": lambda: kinetics("resnet3d18_kinetics700", 18, 700, 122),
    "Kinetics-700, 50": lambda: kinetics("resnet3d50_kinetics700", 50, 700, 320),
    "Kinetics and Moments, 34": lambda: kinetics("resnet3d34_kinetics_moments", 34, 1039, 218),
    "Kinetics of 2018, 18 (A)": lambda: old_kinetics(18, 104),
    "Kinetics of 2018, 34 (A)": lambda: old_kinetics(34, 200),
    "torchvision r3d_18": torchvision,
    "I3D 18": lambda: imagenet(18, "i3d", 122, 20),
    "I3D 50, timm": lambda: imagenet(50, "i3d", 320, 53, timm=True),
    "ACS 18, timm": lambda: imagenet(18, "acs", 122, 20, timm=True),
    "ACS 34": lambda: imagenet(34, "acs", 218, 36),
    "I3D DenseNet-121": lambda: densenet("i3d"),
    "ACS DenseNet-121, timm": lambda: densenet("acs", timm=True),
    "FMCIB": lambda: fmcib("published"),
    "FMCIB, lighter": lambda: fmcib("lighter"),
    "FMCIB, pre-training": lambda: fmcib("pre-training"),
    "Merlin": lambda: merlin(main=True),
    "Merlin, five years": lambda: merlin(main=False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_level_is_upstream_s(shelf: Shelf, layout: str) -> None:
    made = LAYOUTS[layout]()
    shelf.put(made.entry, made.body, options={"width": made.width})
    model, report = loaded(made.entry)
    counts = (report.total, len(report.matched), len(report.renamed), len(report.dropped))
    assert counts == (made.total, made.total - made.adapted, made.renamed, made.dropped)
    assert (report.missing, report.unexpected, report.checked) == ((), (), True)
    assert len({change.name for change in report.adapted}) == made.adapted
    assert all(any(part in note for note in report.notes) for part in made.notes), report.notes
    assert all(reason for reason in report.dropped.values())
    x, state = volume(made.channels, made.depth), doubled(made.state)
    within = 1e-6 if made.adapted else 1e-9  # kernels are added up and divided in single precision
    with torch.no_grad():
        want = made.stated(state, x)
        same(model.features(x), want, within=within)
        deepest = list(want.values())[-1]
        outputs = plain.classify(state, deepest, made.head) if made.head else deepest.mean((2, 3, 4))
        same({"outputs": model(x)}, {"outputs": outputs}, within=within)


# ---- the facts about the real files ----------------------------------------------------------------------------------

PARAMETERS: dict[str, tuple[upstream.Shapes, int]] = {
    # of the layouts at their full width: what the repositories' own networks were counted to have
    **{
        f"MedicalNet {depth}": (upstream.medicalnet(depth), count)
        for depth, count in (
            (10, 14_355_520),
            (18, 32_986_176),
            (34, 63_295_808),
            (50, 46_155_072),
            (101, 85_201_216),
            (152, 117_359_936),
            (200, 126_559_552),
        )
    },
    "r3d18 K": (upstream.resnet(18, classes=700), 33_563_004),
    "r3d18 KM": (upstream.resnet(18, classes=1039), 33_736_911),
    "r3d34 K": (upstream.resnet(34, classes=700), 63_872_636),
    "r3d50 K": (upstream.resnet(50, classes=700), 47_633_276),
    "resnet-18-kinetics": (upstream.resnet(18, classes=400, shortcut="A"), 33_235_280),
    "torchvision r3d_18": (upstream.torchvision_video(), 33_371_472),
    "torchvision resnet18": (upstream.resnet(18, stem=(7, 7), classes=1000), 11_689_512),
    "torchvision densenet121": (upstream.densenet(), 7_978_856),
    "FMCIB": (upstream.resnet(50, width=128, channels=1, bias=True), 184_477_824),
    "Merlin, trunk": (upstream.resnet(152, stem=(3, 7, 7)), 117_366_208),
    "Merlin with both heads": (upstream.merlin(), 121_882_204),
}


@pytest.mark.parametrize("file", PARAMETERS)
def test_the_layouts_have_the_parameters_of_the_real_networks(file: str) -> None:
    layout, count = PARAMETERS[file]
    assert upstream.parameters(layout) == count


def promised(source: Source) -> upstream.Shapes:
    """What a published file holds, by its name alone (timm's by the repository's)."""
    name = source.repo if source.file == "model.safetensors" else source.file
    if found := re.fullmatch(r"resnet_(\d+)(?:_23dataset)?\.pth", name):
        return upstream.medicalnet(int(found[1]))
    if found := re.fullmatch(r"r3d(\d+)_(KM?)_200ep\.pth", name):
        return upstream.resnet(int(found[1]), classes={"K": 700, "KM": 1039}[found[2]])
    if found := re.fullmatch(r"resnet-(18|34)-kinetics\.pth", name):
        return upstream.resnet(int(found[1]), classes=400, shortcut="A")
    if found := re.fullmatch(r"timm/resnet(\d+)\.tv_in1k|resnet(\d+)-[0-9a-f]{8}\.pth", name):
        return upstream.resnet(int(found[1] or found[2]), stem=(7, 7), classes=1000)
    return {
        "timm/densenet121.tv_in1k": upstream.densenet(),
        "densenet121-a639ec97.pth": upstream.densenet(),
        "r3d_18-b3b3357e.pth": upstream.torchvision_video(),
        "model_weights.torch": upstream.resnet(50, width=128, channels=1, bias=True),
        "i3_resnet_clinical_longformer_best_clip_04-02-2024_23-21-36_epoch_99.pt": upstream.merlin_main(),
    }[name]


@pytest.mark.parametrize("name", [name for name, entry in all_entries().items() if entry.origin in ORIGINS])
def test_every_entry_is_the_network_of_its_file(name: str) -> None:
    entry = all_entries()[name]
    layout = promised(entry.source)
    empty = {key: torch.zeros(()).expand(shape) for key, shape in layout.items()}
    done = get_origin(entry.origin).convert(empty, entry.stored_options)
    assert shapes(done.tensors) == shapes(skeleton(entry.architecture, entry.stored_options).state_dict())
    skeleton(entry.architecture, entry.options)
    free = entry.architecture == "resnet3d" and not any(".downsample." in key for key in layout)
    assert (entry.options.get("shortcut") == "A", entry.options.get("detach_shortcut", False)) == (free, free)
    if entry.source.size and entry.origin != "merlin":  # its text encoder is not laid out here
        numbers = sum(torch.Size(shape).numel() for shape in layout.values())
        assert 0 < entry.source.size - 4 * numbers < 0.01 * entry.source.size


# ---- files of a user's own, and wrong ones ---------------------------------------------------------------------------


def narrow(shelf: Shelf, name: str) -> None:
    shelf.tables[name] = {"options": {"width": WIDTH}}
    shelf.write()


OWN: dict[str, tuple[str, upstream.Shapes, dict[str, Any], str]] = {
    # what it is: the entry, the file, what it changes, what is said
    "other classes": (
        "resnet3d18_kinetics700",
        upstream.resnet(18, width=WIDTH, classes=101),
        {"num_classes": 101},
        "the file's own classifier has 101 classes",
    ),
    "no classifier": (
        "resnet3d18_kinetics700",
        upstream.resnet(18, width=WIDTH),
        {"num_classes": 0},
        "the file has no classifier",
    ),
    "one channel, as the SVD-Net authors' copies": (
        "resnet3d18_kinetics_moments",
        upstream.resnet(18, width=WIDTH, channels=1, classes=1039),
        {"in_channels": 1},
        "the file's own stem has in_channels=1",
    ),
    "torchvision, other classes": (
        "r3d18_kinetics400",
        upstream.torchvision_video(width=WIDTH, classes=7),
        {"num_classes": 7},
        "has 7 classes",
    ),
    "2D, other classes": (
        "resnet3d18_imagenet_acs",
        upstream.resnet(18, width=WIDTH, stem=(7, 7), classes=165),
        {"num_classes": 165},
        "has 165 classes",
    ),
    "2D, no classifier": (
        "resnet3d50_imagenet_i3d",
        upstream.resnet(50, width=WIDTH, stem=(7, 7)),
        {"num_classes": 0},
        "the file has no classifier",
    ),
    "2D, one channel": (
        "resnet3d18_imagenet_i3d",
        upstream.resnet(18, width=WIDTH, stem=(7, 7), channels=1, classes=1000),
        {"in_channels": 1},
        "in_channels=1",
    ),
    "DenseNet, other classes": (
        "densenet3d121_imagenet_i3d",
        upstream.densenet(width=WIDTH, growth=WIDTH // 2, classes=14),
        {"num_classes": 14},
        "has 14 classes",
    ),
}


@pytest.mark.parametrize("own", OWN)
def test_a_user_s_own_file_says_what_it_is(shelf: Shelf, tmp_path: Path, own: str) -> None:
    name, layout, told, words = OWN[own]
    narrow(shelf, name)
    state = values(layout)
    file = tmp_path / "own.pth"
    file.write_bytes(saved({"state_dict": state}))
    model, report = loaded(name, weights=file)
    assert {key: getattr(model, key) for key in told} == told
    assert any(words in note for note in report.notes)
    assert (len(report.dropped), report.missing) == (0, ())
    head = next((state[key] for key in ("fc.weight", "classifier.weight") if key in state), None)
    assert head is None or torch.equal(model.fc.weight, head.double())


def r2plus1d(pattern: str) -> upstream.Shapes:
    """Its kernels are split in two; the rest of a block is called as in r3d."""
    made: upstream.Shapes = {"conv1.weight": (WIDTH, 3, 7, 7, 7), **upstream.norm("bn1", WIDTH)}
    for part, kernel in (("s", (1, 3, 3)), ("t", (3, 1, 1))):
        at = pattern.format({"s": "0.0", "t": "0.3"}[part] if "conv1." in pattern else part)
        made[f"{at}.weight"] = (WIDTH, WIDTH, *kernel)
    return made


MC3 = upstream.torchvision_video(width=WIDTH) | {
    f"layer2.0.conv{k}.0.weight": (2 * WIDTH, k * WIDTH, 1, 3, 3) for k in (1, 2)
}
WRONG: dict[str, tuple[str, upstream.Shapes, str]] = {
    # the entry, the file, what is said of it
    "2018 for 2020": (
        "resnet3d18_kinetics700",
        upstream.resnet(18, width=WIDTH, classes=400, shortcut="A"),
        r"shortcut A \(no downsample tensors; 18 expected\).*400 classes, not 700",
    ),
    "2020 for 2018": (
        "resnet3d18_kinetics400",
        upstream.resnet(18, width=WIDTH, classes=700),
        r"shortcut B \(18 downsample tensors; none expected\).*700 classes, not 400",
    ),
    "KM for K": (
        "resnet3d18_kinetics700",
        upstream.resnet(18, width=WIDTH, classes=1039),
        "1039 classes, not 700",
    ),
    "depth": (
        "resnet3d34_kinetics700",
        upstream.resnet(18, width=WIDTH, classes=700),
        "depth 18, not 34",
    ),
    "R(2+1)D of the same repository": ("resnet3d18_kinetics700", r2plus1d("layer1.0.conv1_{}"), "r2plus1d"),
    "R(2+1)D of torchvision": ("r3d18_kinetics400", r2plus1d("layer1.0.conv1.{}"), "r2plus1d"),
    "MC3 of torchvision": (
        "r3d18_kinetics400",
        MC3,
        r"layer2\.0\.conv1\.weight \(8, 4, 1, 3, 3\), not \(8, 4, 3, 3, 3\)",
    ),
    "Kinetics for torchvision": (
        "r3d18_kinetics400",
        upstream.resnet(18, width=WIDTH, classes=400),
        "7x7x7 stem, not 3x7x7",
    ),
    "MedicalNet for Kinetics": (
        "resnet3d50_kinetics700",
        upstream.medicalnet(50, width=WIDTH),
        "2 missing.*1-channel stem, not 3",
    ),
    "Kinetics for MedicalNet": (
        "resnet3d18_med3d",
        upstream.resnet(18, width=WIDTH, classes=400, shortcut="A"),
        "2 unexpected.*3-channel stem, not 1",
    ),
    "2D for 3D": (
        "resnet3d18_kinetics700",
        upstream.resnet(18, width=WIDTH, stem=(7, 7), classes=700),
        "a 2D network",
    ),
    "3D for 2D": (
        "resnet3d18_imagenet_acs",
        upstream.resnet(18, width=WIDTH, classes=1000),
        r"a 3D network \(conv1\.weight \(4, 3, 7, 7, 7\)\).*allowed: a 2D one.*Next: ",
    ),
    "FMCIB's width": (
        "resnet3d50x2_fmcib",
        upstream.resnet(50, width=WIDTH // 2, channels=1, bias=True),
        "half the width",
    ),
    "FMCIB without its biases": (
        "resnet3d50x2_fmcib",
        upstream.resnet(50, width=WIDTH, channels=1),
        r"4 missing \(layer1\.0\.downsample\.0\.bias",
    ),
    "Merlin's text alone": (
        "resnet3d152_merlin",
        {"encode_text.linear_layer.weight": (512, 4)},
        r"none of the 1 tensors.*text encoder.*Next: ",
    ),
    "a ResNet-101 for Merlin": (
        "resnet3d152_merlin",
        upstream.merlin(depth=101, width=WIDTH),
        "depth 101, not 152",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_network_is_refused_by_its_kind(shelf: Shelf, tmp_path: Path, wrong: str) -> None:
    name, layout, words = WRONG[wrong]
    narrow(shelf, name)
    file = tmp_path / "wrong.pth"
    file.write_bytes(saved(values(layout)))
    with pytest.raises(CheckpointError, match=words):
        svd_hub.load(name, weights=file)


# ---- shortcut A ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda: medicalnet(18, 102), lambda: old_kinetics(18, 104)], ids=["med3d", "kinetics"]
)
def test_the_shortcut_lets_gradients_through_only_if_asked(shelf: Shelf, make: Callable[[], Layout]) -> None:
    made = make()
    shelf.put(made.entry, made.body, options={"width": WIDTH})
    stated = plain.medicalnet if "med3d" in made.entry else plain.kinetics
    x = volume(made.channels)
    weigh = torch.randn(1, 8 * WIDTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    outputs, gradients = [], []
    for how in ({}, {"detach_shortcut": False}):
        model, _ = loaded(made.entry, num_classes=0, **how)
        outputs.append(model(x))
        (outputs[-1] * weigh).sum().backward()
        found = {f"module.{name}": p.grad for name, p in model.named_parameters()}
        state = {name: t.requires_grad_(name in found) for name, t in doubled(made.state).items()}
        levels = stated(state, x, prefix="module.", detach=how.get("detach_shortcut", True))
        torch.testing.assert_close(outputs[-1], levels["layer4"].mean((2, 3, 4)), rtol=1e-9, atol=1e-9)
        (levels["layer4"].mean((2, 3, 4)) * weigh).sum().backward()
        for name, gradient in found.items():
            assert gradient is not None
            torch.testing.assert_close(gradient, state[name].grad, rtol=1e-8, atol=1e-10)
        gradients.append(found)
    assert torch.equal(*outputs)
    held, free = gradients
    different = {name.split(".")[1] for name in held if not torch.allclose(held[name], free[name], rtol=1e-3)}
    assert different == {"conv1", "bn1", "layer1", "layer2", "layer3"}, "behind the last shortcut nothing changes"


# ---- adaptations -----------------------------------------------------------------------------------------------------


def test_one_channel_by_sum_is_the_grey_clip_and_by_mean_a_third_of_the_stem(shelf: Shelf) -> None:
    made = kinetics("resnet3d18_kinetics700", 18, 700, 122)
    shelf.put(made.entry, made.body, options={"width": WIDTH})
    grey, state = volume(1), doubled(made.state)
    clip = torch.cat([grey, grey, grey], dim=1)
    with torch.no_grad():
        total, report = loaded(made.entry, in_channels=1)
        same(total.features(grey), plain.kinetics(state, clip), within=1e-6)
        assert [str(c) for c in report.adapted] == [
            "conv1.weight (4, 3, 7, 7, 7) -> (4, 1, 7, 7, 7): input channels by sum"
        ]
        mean, report = loaded(made.entry, in_channels=1, in_channels_rule="mean")
        response = F.conv3d(clip, state["conv1.weight"], stride=(1, 2, 2), padding=3)
        same({"stem": 3 * mean.conv1(grey)}, {"stem": response}, within=1e-6)
        assert "input channels by mean" in str(report)


@pytest.mark.parametrize("stride", [None, 2], ids=["stride 1, 2, 2", "stride 2, 2, 2"])
@pytest.mark.parametrize("depth", [8, 9])
def test_the_deeper_stem_of_r3d_is_the_same_function(shelf: Shelf, depth: int, stride: int | None) -> None:
    made = torchvision()
    # Small whole numbers: their sums are exact in whatever order a kernel of another depth adds them up.
    kernel = (made.state["stem.0.weight"] * 20).round()
    state = {**made.state, "stem.0.weight": kernel}
    shelf.put(made.entry, saved(state), options={"width": WIDTH})
    how = {} if stride is None else {"stem_stride": stride}
    clip = (4 * volume(3, depth)).round()
    with torch.no_grad():
        trained, _ = loaded(made.entry, **how)
        deeper, report = loaded(made.entry, stem_depth=7, **how)
        assert deeper.conv1.weight.shape[2] == 7
        assert not deeper.conv1.weight[:, :, [0, 1, 5, 6]].any()
        assert [c.name for c in report.adapted] == ["conv1.weight"]
        levels = trained.features(clip)
        for level, tensor in deeper.features(clip).items():
            assert torch.equal(tensor, levels[level]), level
        same(levels, plain.torchvision_r3d(doubled(state), clip, stem=(stride or 1, 2, 2)))
        one, report = loaded(made.entry, stem_depth=7, in_channels=1, **how)
        same(
            one.features(clip[:, :1]),
            plain.torchvision_r3d(doubled(state), clip[:, [0, 0, 0]], stem=(stride or 1, 2, 2)),
        )
        assert len(report.adapted) == 2


def test_other_heads_and_pyramids_of_a_converted_file(shelf: Shelf) -> None:
    made = kinetics("resnet3d18_kinetics700", 18, 700, 122)
    shelf.put(made.entry, made.body, options={"width": WIDTH})
    clip, state = volume(3), doubled(made.state)
    with torch.no_grad():
        want = plain.kinetics(state, clip)
        pyramid, report = loaded(made.entry, features_only=True)
        same(pyramid(clip), want)
        assert {c.name for c in report.adapted} == {"fc.weight", "fc.bias"}
        headless, _ = loaded(made.entry, num_classes=0)
        same({"pooled": headless(clip)}, {"pooled": want["layer4"].mean((2, 3, 4))})
        fresh, report = loaded(made.entry, num_classes=2)
        assert fresh(clip).shape == (1, 2)
        assert report.missing == ("fc.bias", "fc.weight")


def test_an_entry_without_classes_drops_the_classifier(shelf: Shelf) -> None:
    made = kinetics("resnet3d18_kinetics700", 18, 700, 122)
    shelf.put(made.entry, made.body, options={"width": WIDTH, "num_classes": 0})
    _, report = loaded(made.entry)
    assert report.total == len(report.matched) == 120
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    assert all("the classifier of 700 classes" in reason for reason in report.dropped.values())
