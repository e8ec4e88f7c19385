"""Laws of detection training: every recipe runs and learns, resume to the bit, what it starts from, what comes out."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_recipes import RECIPES as ALL
from helpers_recipes import commands_of, table_of, text_of
from helpers_training import At, forked, kill, log, resume, same
from safetensors.torch import load_file
from torch import Tensor, nn

import svd_hub
from svd_hub import checkpoint, models
from svd_hub.errors import OptionError, SvdHubError
from svd_hub.models.detection import Target, box_head
from svd_hub.models.detection.settings import Sampling
from svd_hub.training import engine, evaluation, freezing
from svd_hub.training import recipe as recipes
from svd_hub.training.data.boxes import Batch
from svd_hub.training.miniature.boxes import coco_set, lesion_set
from svd_hub.training.tasks import Detection
from svd_hub.training.tasks.classification import Network
from svd_hub.training.tasks.detection import LOSSES, build_detector
from svd_hub.training.tasks.optimiser import Optimiser

ROOT = Path(__file__).resolve().parents[1]
RECIPES = [name for name in ALL if name[:4] in ("coco", "deep")]
FOLDER = "data.init_args.folder"
OPTIONS = "task.init_args.network.options"
INIT = "task.init_args.network.init"
# Narrow, on 64 pixels, one sample size: seconds on one core.
NARROW: dict[str, Any] = {
    INIT: "none",
    f"{OPTIONS}.encoder_options.width": 4,
    f"{OPTIONS}.channels": 16,
    f"{OPTIONS}.head_channels": 32,
    "run.precision": "32-true",
    "run.accumulate": 1,
    "run.threads": 1,
    "task.init_args.optimiser.lr": 0.01,
    "task.init_args.optimiser.warmup_steps": 2,
    "data.init_args.workers": 0,
    "data.init_args.batch_size": 2,
    "data.init_args.sizes": "[56, 64]",
    "data.init_args.eval_size": 64,
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detection")
    coco_set(folder / "coco")
    lesion_set(folder / "deeplesion")
    return folder


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("SVD_HUB_HOME", str(here / "cache"))
    monkeypatch.setattr(box_head, "BOX_SAMPLING", Sampling(number=64, positive_share=0.25))  # for time


def narrow(here: Path, name: str, **changes: Any) -> dict[str, Any]:
    """What makes a shipped recipe one of seconds on the miniature set of its form."""
    two = {f"{OPTIONS}.num_classes": 2} if name.startswith("coco") else {}
    return {**NARROW, **two, FOLDER: str(here / name.split("_")[0]), **changes}


def train(
    here: Path, name: str, folder: Path, *, callbacks: Any = (), tell: Any = lambda line: None, **changes: Any
) -> Path:
    overrides = narrow(here, name, **changes)
    return engine.train(name, run=folder, overrides=overrides, progress=False, callbacks=callbacks, tell=tell)


# ---- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coco_mp3d63", "deeplesion_p3d63"])
def test_what_comes_out_is_the_detector_that_the_recipe_says(here: Path, name: str, tmp_path: Path) -> None:
    lines: list[str] = []
    file = train(here, name, tmp_path / "run", tell=lines.append, **{"run.epochs": 1})
    (row,) = log(tmp_path / "run")
    assert "any size, RGB" in lines[0] or "any size, CT" in lines[0]
    assert f"kept: the last epoch, 0, val/{'ap' if name.startswith('coco') else 'froc'} " in lines[3]
    assert row["train/loss"] == pytest.approx(sum(row[f"train/{n}"] for n in LOSSES), abs=1e-5)
    assert 0 <= row["val/ap" if name.startswith("coco") else "val/froc"] <= 1
    model = svd_hub.load(file)
    assert (model.task, model.entry.task) == ("detection", "detection")
    recipe = recipes.read(name, narrow(here, name))
    options = recipe.config.task.init_args.network.options
    assert {key: model.options[key] for key in options if key != "encoder_options"} == {
        key: value for key, value in options.items() if key != "encoder_options"
    }
    assert model.options["encoder_options"].items() >= options["encoder_options"].items()
    depth = 3 if name.startswith("coco") else 9
    found = model(torch.zeros(1, 1, depth, 64, 64))
    assert found[0].boxes.shape[1] == 4


@pytest.mark.parametrize("name", RECIPES)
def test_the_commands_in_a_recipe_are_commands_of_it(here: Path, name: str) -> None:
    """Each variant that a header names can be built; none writes into the run folder of another."""
    commands = commands_of(name)
    assert commands[0][:4] == ["svd-hub", "train", name, "--data"]
    runs = []
    for command in commands:
        assert command[2] == name
        flags = list(zip(command[3::2], command[4::2], strict=True))
        assert {flag for flag, _ in flags} <= {"--data", "--run", "--init", "--set"}
        runs.append(dict(flags).get("--run", f"runs/{name}"))
        sets = dict(value.split("=", 1) for flag, value in flags if flag == "--set")
        init = dict(flags).get("--init")
        if init is not None and init.startswith("runs/"):
            made = init.split("/")[1].removesuffix("_strided")
            assert init in (f"runs/{made}/model.safetensors", f"runs/{made}_strided/model.safetensors")
            assert made in RECIPES
        recipe = recipes.read(name, {**sets, INIT: "none"})
        with torch.device("meta"):
            network = recipe.config.task.init_args.network
            built = build_detector(Network(architecture=network.architecture, options=dict(network.options)))
        assert next(built.parameters()).is_meta
    assert len(set(runs)) == len(runs)


@pytest.mark.parametrize("name", RECIPES)
def test_a_family_differs_in_what_its_header_says(name: str) -> None:
    """ "To the letter but for": held to the letter."""

    def rest(recipe: str) -> dict[str, Any]:
        table = table_of(recipe)
        network = table["task"]["init_args"]["network"]
        for part, key in ((table, "name"), (table, "summary"), (table, "expected"), (network, "init")):
            part.pop(key, None)
        for key in ("encoder", "encoder_options", *(["convention"] if recipe == "deeplesion_p3d18ba" else [])):
            network["options"].pop(key)
        if name == "deeplesion_p3d18ba":
            network["options"].pop("convention", None)
        return table

    base = "coco_resnet3d18" if name.startswith("coco") else "deeplesion_p3d63"
    assert rest(name) == rest(base)
    assert name == base or f"{base}.yaml, to the letter" in text_of(name)


def test_a_lesion_recipe_starts_from_the_coco_recipe_it_names() -> None:
    for name in ("resnet3d18", "resnet3dv1c18", "p3d18ba"):
        recipe = recipes.read(f"deeplesion_{name}")
        assert recipe.config.task.init_args.network.init == f"runs/coco_{name}/model.safetensors"
        with pytest.raises(
            SvdHubError, match=rf"init='runs/coco_{name}/.* does not exist.*svd-hub train coco_{name}, or"
        ):
            recipe.make()
    assert recipes.read("deeplesion_p3d63").config.task.init_args.network.init == "mp3d63_coco"


# ---- the same again, stopped and resumed -----------------------------------------------------------------------------

STEPS = 3
# accumulated: what a checkpoint must not cut; the sizes of the batches differ from step to step
SHORT = {"run.epochs": 2, "run.checkpoint_steps": 1, "run.clip": 1.0, "data.init_args.sizes": "[48, 56, 64]"}


@pytest.fixture(scope="module")
def whole(here: Path) -> Callable[[], Path]:
    def get() -> Path:
        if not (here / "whole").exists():
            train(here, "coco_resnet3d18", here / "whole", **SHORT)
        return here / "whole"

    return get


def test_a_run_repeats_to_the_bit_whatever_the_workers(here: Path, whole: Any, tmp_path: Path) -> None:
    train(here, "coco_resnet3d18", tmp_path / "run", **SHORT, **{"data.init_args.workers": 2})
    assert same(tmp_path / "run", whole())
    assert log(tmp_path / "run") == log(whole())


def test_the_seed_decides_which_boxes_train(here: Path, whole: Any, tmp_path: Path) -> None:
    """Order, sizes and flips apart: with the same batches, another seed draws other samples."""
    task, data = recipes.read("coco_resnet3d18", narrow(here, "coco_resnet3d18")).make()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(float(task.training_step(batch, 0).detach()))
    assert losses[0] == losses[1] != losses[2]


MOMENTS = [
    ("on_train_batch_start", 1),
    ("on_train_batch_start", 3),
    ("on_train_batch_end", STEPS),
    ("on_validation_batch_start", 2),
    ("on_train_epoch_end", 1),
    ("on_train_batch_end", STEPS + 2),
    ("on_train_end", 1),
]


@pytest.mark.parametrize(("hook", "call"), MOMENTS)
def test_kill_9_and_resume_gives_the_same_bits(here: Path, whole: Any, tmp_path: Path, hook: str, call: int) -> None:
    folder = tmp_path / "run"
    at = At(hook, call, kill)
    code = forked(lambda: train(here, "coco_resnet3d18", folder, callbacks=[at], **SHORT))
    assert code == -signal.SIGKILL
    assert not (folder / "model.safetensors").exists()
    resume(folder)
    assert same(folder, whole())
    assert log(folder) == log(whole())


def test_kill_9_again_and_again(here: Path, whole: Any, tmp_path: Path) -> None:
    draw, folder = random.Random(2), tmp_path / "run"
    first = At("on_train_batch_end", 2, kill)
    assert forked(lambda: train(here, "coco_resnet3d18", folder, callbacks=[first], **SHORT)) == -signal.SIGKILL
    for _ in range(3):
        at = At(draw.choice(["on_train_batch_start", "on_before_optimizer_step"]), draw.randint(1, 3), kill)
        assert forked(lambda at=at: resume(folder, callbacks=[at])) in (0, -signal.SIGKILL)
    resume(folder)
    assert same(folder, whole())
    assert log(folder) == log(whole())


def test_other_data_do_not_go_on(here: Path, tmp_path: Path) -> None:
    coco_set(tmp_path / "set")
    folder, at = tmp_path / "run", At("on_train_batch_end", 2, kill)
    moved = {**SHORT, FOLDER: str(tmp_path / "set")}
    assert forked(lambda: train(here, "coco_resnet3d18", folder, callbacks=[at], **moved)) == -signal.SIGKILL
    file = tmp_path / "set" / "instances_train2017.json"
    file.write_text(file.read_text().replace('"category_id": 2', '"category_id": 7', 1))
    with pytest.raises(SvdHubError, match="data are not those"):
        resume(folder)


# ---- a step ----------------------------------------------------------------------------------------------------------


def made_task(**options: Any) -> Detection:
    network = {"encoder": "p3d", "encoder_options": {"variant": "18ba", "width": 4}, "channels": 8, "head_channels": 8}
    network |= {"num_classes": 2, "depth_stride": 1, **options.pop("options", {})}
    return Detection(
        network=Network(architecture="faster_rcnn3d", options=network, form="volume", **options.pop("network", {})),
        optimiser=Optimiser(),
        **options,
    )


def batch_of(sizes: list[tuple[int, int]]) -> Batch:
    from svd_hub.models.detection import stack_images

    images, told = stack_images([torch.full((1, 3, *size), 200.0) for size in sizes])
    targets = tuple(Target(torch.tensor([[2.0, 3, 20, 22]]), torch.tensor([1])) for _ in sizes)
    return Batch(images, told, targets, (), torch.ones(len(sizes), 2))


def test_padding_is_zero_behind_the_normalisation() -> None:
    """Grey, as upstream's, not the black of air; each image is what it is alone."""
    task = made_task(mean=100.0, std=50.0)
    batch = batch_of([(30, 44), (40, 32)])
    x = task.normalised(batch.images, batch.sizes)
    assert x.shape == (2, 1, 3, 40, 44)
    for image, (height, width) in zip(x, batch.sizes.tolist(), strict=True):
        assert bool((image[:, :, :height, :width] == 2.0).all())
        assert float(image.abs().sum()) == 2.0 * 3 * height * width


def test_the_loss_is_the_sum_of_the_four() -> None:
    task = made_task()
    task._trainer = type("Still", (), {"global_step": 0, "current_epoch": 0})()  # type: ignore[assignment]
    batch = batch_of([(40, 44), (44, 40)])
    torch.manual_seed(0)
    loss = task.training_step(batch, 0)
    torch.manual_seed(0)
    parts = task.network(task.normalised(batch.images, batch.sizes), batch.targets, sizes=batch.sizes)
    assert list(parts) == list(LOSSES)
    assert float(loss.detach()) == float(sum(parts.values()).detach())
    loss.backward()
    assert all(p.grad is not None for p in task.network.parameters())
    assert task.sums.tolist()[0] == 2


def test_a_loss_that_is_not_finite_stops_the_run(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Detection.normalised

    def spoilt(self: Detection, images: Tensor, sizes: Tensor) -> Tensor:
        return before(self, images, sizes) * (float("nan") if self.global_step == 1 else 1.0)

    monkeypatch.setattr(Detection, "normalised", spoilt)
    with pytest.raises(SvdHubError, match=r"loss is nan at step 1 \(epoch 0, batch 1\).*Next: a lower"):
        train(here, "coco_resnet3d18", tmp_path / "run", **SHORT)


def test_channels_last_changes_nothing_but_the_memory(here: Path) -> None:
    batch = batch_of([(40, 44), (44, 40)])
    found = []
    for memory in ("contiguous", "channels_last"):
        torch.manual_seed(0)
        task = made_task(network={"memory": memory})
        losses = task.network(task.normalised(batch.images, batch.sizes), batch.targets, sizes=batch.sizes)
        found.append([float(v.detach()) for v in losses.values()])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert task.network.backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last_3d)


# ---- frozen parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "stem"),
    [
        ({"depth": 18, "width": 4}, {"conv1", "bn1"}),
        ({"depth": 18, "width": 4, "stem": "v1c"}, {"stem"}),
        ({"variant": "18ba", "width": 4, "norm": "batch"}, {"conv1", "norm1"}),
    ],
)
def test_frozen_stages_keep_every_value(encoder: dict[str, Any], stem: set[str]) -> None:
    options = {"encoder": "p3d" if "variant" in encoder else "resnet3d", "encoder_options": encoder}
    task = made_task(options=options, freeze=("stem", "layer1"), norm_eval=False)
    before = {name: value.clone() for name, value in task.network.state_dict().items()}
    task.train()
    optimiser = torch.optim.SGD([p for p in task.network.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    batch = batch_of([(64, 64)])
    for _ in range(2):
        optimiser.zero_grad()
        x = task.normalised(batch.images, batch.sizes) + torch.randn(1, 1, 3, 64, 64)
        sum(task.network(x, batch.targets, sizes=batch.sizes).values()).backward()
        optimiser.step()
    moved = {name for name, value in task.network.state_dict().items() if not torch.equal(value, before[name])}
    still = {name.split(".")[1] for name in before if name not in moved and name.startswith("backbone.")}
    assert stem | {"layer1"} <= still
    for part in (*stem, "layer1"):
        assert not {name for name in moved if name.startswith(f"backbone.{part}.")}
    assert {f"backbone.layer{n}" for n in (2, 3, 4)} <= {".".join(name.split(".")[:2]) for name in moved}
    assert any("running_mean" in name for name in moved)
    assert not any(
        m.training for part in (*stem, "layer1") for m in task.network.get_submodule(f"backbone.{part}").modules()
    )
    assert task.network.backbone.layer2.training


def test_batch_norms_keep_their_statistics_as_upstream_s() -> None:
    options = {"encoder": "resnet3d", "encoder_options": {"depth": 18, "width": 4}}
    for norm_eval in (True, False):
        task = made_task(options=options, norm_eval=norm_eval).train()
        norms = [m for m in task.network.backbone.modules() if isinstance(m, nn.BatchNorm3d)]
        assert norms
        assert {m.training for m in norms} == {not norm_eval}
        assert task.network.training
        assert all(p.requires_grad for p in task.network.parameters())


def test_what_cannot_be_frozen_is_told() -> None:
    with pytest.raises(OptionError, match=r"freeze=\['layer9'\].*allowed: stem, layer1, layer2, layer3, layer4"):
        made_task(freeze=("layer9",))
    assert list(freezing.parts(models.build("resnet3d", {"depth": 10, "width": 2, "num_classes": 3}))) == [
        "stem",
        *(f"layer{n}" for n in (1, 2, 3, 4)),
    ]


# ---- what it starts from ---------------------------------------------------------------------------------------------

LESION: dict[str, Any] = {
    "encoder": "resnet3d",
    "encoder_options": {"depth": 18, "width": 4, "norm": "group"},
    "num_classes": 1,
    "channels": 16,
    "head_channels": 32,
}


def start(init: Path, *, transfer: Any = "backbone", **options: Any) -> Any:
    network = Network(architecture="faster_rcnn3d", options={**LESION, **options}, init=str(init), form="volume")
    return build_detector(network, transfer=transfer)


def equal_parts(made: Any, file: Path, prefix: str) -> dict[str, bool]:
    given, have = load_file(file), made.state_dict()
    names = [name for name in have if name.startswith(prefix)]
    assert names
    return {
        name: name in given and given[name].shape == have[name].shape and torch.equal(given[name], have[name])
        for name in names
    }


def test_the_backbone_of_a_coco_run_starts_a_lesion_detector(whole: Any) -> None:
    """Three slices and two classes become nine slices and one class; neck and heads are new, as upstream's."""
    file = whole() / "model.safetensors"
    made = start(file)
    assert made.training
    assert all(equal_parts(made, file, "backbone.").values())
    matrices = {n: ok for n, ok in equal_parts(made, file, "").items() if n.endswith("weight") and n[:4] != "back"}
    assert not any(matrices.values())
    made.eval()(torch.zeros(1, 1, 9, 64, 64))


def test_all_that_fits_of_a_detector(whole: Any) -> None:
    file = whole() / "model.safetensors"
    made = start(file, transfer="detector", convention="mmdet1", reduction="group", slices=9)
    found = equal_parts(made, file, "")
    new = {name for name, ok in found.items() if not ok}
    assert new == {f"bbox_head.fc_{k}.{p}" for k in ("cls", "reg") for p in ("weight", "bias")} | {
        f"gtm.{n}.weight" for n in range(4)
    }
    again = start(file, transfer="detector", convention="mmdet1", num_classes=2, depth_stride=1)
    assert all(equal_parts(again, file, "").values())  # the same classes: it goes on


def test_a_backbone_starts_a_detector(tmp_path: Path) -> None:
    torch.manual_seed(1)
    options = {"depth": 18, "width": 4, "norm": "group", "num_classes": 3}
    made = models.build("resnet3d", options)
    checkpoint.write(tmp_path / "net.safetensors", made.state_dict(), {"architecture": "resnet3d", "options": options})
    detector = start(tmp_path / "net.safetensors")
    have = detector.state_dict()
    for name, value in made.state_dict().items():
        assert name.startswith("fc.") or torch.equal(have[f"backbone.{name}"], value)
    assert detector.options["encoder_options"]["strides"][1] == (2, 2, 2)


def test_norm_and_shortcut_are_those_of_the_backbone(tmp_path: Path) -> None:
    """Table VI compares backbones of BatchNorm, and of shortcut A, in one recipe of GroupNorm: init alone changes."""
    options = {"depth": 18, "width": 4, "num_classes": 0, "shortcut": "A"}
    made = models.build("resnet3d", options)
    checkpoint.write(tmp_path / "net.safetensors", made.state_dict(), {"architecture": "resnet3d", "options": options})
    detector = start(tmp_path / "net.safetensors")
    own = detector.options["encoder_options"]
    assert (own["shortcut"], own.get("norm", "batch")) == ("A", "batch")
    assert not any("downsample" in name for name in detector.state_dict())
    assert any(isinstance(m, nn.BatchNorm3d) for m in detector.backbone.modules())
    assert not any(isinstance(m, nn.GroupNorm) for m in detector.backbone.modules())


def test_an_init_that_does_not_fit_is_refused(whole: Any, tmp_path: Path) -> None:
    file = whole() / "model.safetensors"
    deeper = {"depth": 34, "width": 4, "norm": "group"}
    for init, options, told in (
        (file, {"encoder_options": deeper}, r"other options than network\.options.*Next"),
        (file, {"encoder": "p3d", "encoder_options": {"variant": "18ba", "width": 4}}, "other options"),
        (file, {"convention": "mmdet2", "transfer": "detector"}, r"another convention.*mmdet1.*transfer='backbone'"),
    ):
        with pytest.raises(SvdHubError, match=told):
            start(init, **options)
    large = start(file).state_dict()
    checkpoint.write(
        tmp_path / "deep.safetensors",
        build_detector(
            Network(architecture="faster_rcnn3d", options={**LESION, "encoder_options": deeper})
        ).state_dict(),
        {"architecture": "faster_rcnn3d", "options": {**LESION, "encoder_options": deeper}},
    )
    assert large
    with pytest.raises(SvdHubError, match="other options"):  # it has all that is wanted, and more
        start(tmp_path / "deep.safetensors")
    with pytest.raises(OptionError, match="'resnet3d' finds no boxes"):
        build_detector(Network(architecture="resnet3d"))
    options = {"depth": 18, "width": 4, "stem": "v1c", "num_classes": 0}
    made = models.build("resnet3d", options)
    checkpoint.write(tmp_path / "b.safetensors", made.state_dict(), {"architecture": "resnet3d", "options": options})
    with pytest.raises(SvdHubError, match="width=8 do not fit the weights"):
        start(tmp_path / "b.safetensors", encoder_options={"width": 8, "norm": "group"})
    with pytest.raises(SvdHubError, match=r"encoder='p3d' does not fit init=.*a resnet3d"):
        start(tmp_path / "b.safetensors", encoder="p3d", encoder_options={})


# ---- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "epochs"), [("coco_resnet3d18", 4), ("deeplesion_p3d18ba", 12)])
def test_it_measures_what_the_log_says_through_its_own_preprocessing(
    here: Path, tmp_path: Path, name: str, epochs: int
) -> None:
    """After as many epochs as finding anything takes: nought against nought says nothing."""
    changes = {"run.epochs": epochs, "data.init_args.test_split": "val"}
    file = train(here, name, tmp_path / "run", **changes)
    told = evaluation.evaluate_entry(
        str(file), data=here / name.split("_")[0], recipe=str(tmp_path / "run" / "recipe.yaml")
    )
    last = log(tmp_path / "run")[-1]
    logged = {key.removeprefix("val/"): value for key, value in last.items() if key.startswith("val/")}
    assert told["examples"] == (3 if name.startswith("coco") else 1)
    assert {key: told["metrics"][key] for key in logged} == pytest.approx(logged, abs=1e-5)
    assert logged["ap" if name.startswith("coco") else "froc"] > 0


def test_the_run_says_what_was_left_out(whole: Any) -> None:
    facts = json.loads((whole() / "run.json").read_text())
    assert facts["data"]["train"]["crowds left out"] == 1
    assert facts["data"]["train"]["images"] == 7


# ---- options of a network, in a command ------------------------------------------------------------------------------


def test_one_option_of_a_network_is_set_beside_the_others(here: Path) -> None:
    asked = {f"{OPTIONS}.encoder_options.width": "8", f"{OPTIONS}.encoder_options.strides": "[1, 2, 2, 2]"}
    recipe = recipes.read("coco_resnet3d18", asked)
    own = recipe.config.task.init_args.network.options["encoder_options"]
    assert own == {"depth": 18, "norm": "group", "width": 8, "strides": [1, 2, 2, 2]}
    assert "width: 8" in recipe.text
    with pytest.raises(SvdHubError, match=r"encoder\.width is not allowed: 'encoder' is no table"):
        recipes.read("coco_resnet3d18", {f"{OPTIONS}.encoder.width": 8})
    with pytest.raises(SvdHubError, match="nearest to 'widht'"):
        recipes.read("coco_resnet3d18", {f"{OPTIONS}.encoder_options.widht": 8}).make()
