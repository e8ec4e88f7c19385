"""Laws of segmentation training: places in the patient, patches, Dice, resume to the bit, the file that comes out."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_training import At, forked, kill, log, resume, same
from safetensors.torch import load_file

import svd_hub
from svd_hub.errors import SvdHubError
from svd_hub.training import engine
from svd_hub.training import recipe as recipes
from svd_hub.training.data.organs import CaseFiles, OrganVolumes, labels_on
from svd_hub.training.data.patches import Augmentation, Case, Patches, affine, cut
from svd_hub.training.evaluation import evaluate_entry, segmentation_metrics, sliding_window
from svd_hub.training.miniature.organs import SIDES, TABLE, anatomy, nifti, organ_set
from svd_hub.training.publish import publish_run
from svd_hub.training.tasks import Segmentation
from svd_hub.training.tasks.classification import Network
from svd_hub.training.tasks.optimiser import Optimiser
from svd_hub.training.tasks.segmentation import build_segmenter

FOLDER = "data.init_args.folder"
STEPS, EPOCHS = 3, 2
ORGANS = {"liver": ["liver"], "spleen": ["spleen"], "kidneys": ["kidney_left", "kidney_right"]}

RECIPE = """\
# svd-hub train miniature
name: miniature
summary: two epochs of a narrow network
run: {epochs: 2, seed: 3, checkpoint_steps: 2, threads: 1}
task:
  class_path: svd_hub.training.tasks.Segmentation
  init_args:
    network:
      architecture: unet3d
      options: {num_classes: 4, encoder: resnet3d, encoder_options: {depth: 10, width: 2}, head_channels: 4}
      form: volume
    organs: [liver, spleen, kidneys]
    window: [16, 16, 16]
    optimiser: {name: adamw, lr: 0.02, warmup: 0.1}
data:
  class_path: svd_hub.training.data.organs.OrganVolumes
  init_args:
    train_cases: {first: {}}
    val_cases: {second: {}, third: {image: scan.nii.gz, labels: other.nii.gz, values: {liver: [7]}}}
    organs: {liver: [liver], spleen: [spleen], kidneys: [kidney_left, kidney_right]}
    patches: 6
    batch_size: 2
    size: [16, 16, 16]
"""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmentation")
    organ_set(folder / "set")
    (folder / "plain.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("HF_", "SVD_HUB_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SVD_HUB_HOME", str(here / "cache"))


def run(here: Path, folder: Path, **options: Any) -> Path:
    overrides = {FOLDER: str(here / "set"), **options.pop("overrides", {})}
    return engine.train(str(here / "plain.yaml"), run=folder, overrides=overrides, progress=False, **options)


def module(here: Path, **changes: Any) -> OrganVolumes:
    cases = {"train_cases": {"first": CaseFiles()}, "val_cases": {"second": CaseFiles()}}
    return OrganVolumes(**{"organs": ORGANS, "folder": here / "set", "size": (16, 16, 16), **cases, **changes})


@pytest.fixture(scope="module")
def whole(here: Path) -> Path:
    """The uninterrupted run."""
    before = os.environ.get("SVD_HUB_HOME")
    os.environ["SVD_HUB_HOME"] = str(here / "cache")
    try:
        torch.set_num_threads(1)
        run(here, here / "whole")
    finally:
        if before is None:
            del os.environ["SVD_HUB_HOME"]
        else:
            os.environ["SVD_HUB_HOME"] = before
    return here / "whole"


# ---- places in the patient -----------------------------------------------------------------------------------------


def expected(labels: np.ndarray) -> np.ndarray:
    out = np.zeros(labels.shape, int)
    for value, k in ((5, 1), (1, 2), (2, 3), (3, 3)):
        out[labels == value] = k
    return out


@pytest.mark.parametrize(("name", "seed"), [("first", 0), ("second", 1)])
def test_labels_meet_the_image_whatever_way_their_file_runs(here: Path, name: str, seed: int) -> None:
    hu, labels = anatomy(seed)
    _, case = module(here).read_case(name, CaseFiles())
    assert np.array_equal(case.target.numpy(), expected(labels))
    windowed = (hu.clip(-200, 300) + 200.0) / 500 * 255
    np.testing.assert_allclose(case.image[0].numpy(), windowed, atol=1e-3)
    assert case.known.tolist() == [True] * 4


@pytest.mark.parametrize(("image", "labels"), list(itertools.product(("", "x", "yz", "xyz"), ("", "y", "xz"))))
def test_every_way_the_files_can_run_gives_the_same_case(here: Path, tmp_path: Path, image: str, labels: str) -> None:
    hu, truth = anatomy(0)
    nifti(tmp_path / "first" / "ct.nii.gz", hu, flips=image)
    nifti(tmp_path / "first" / "seg.nii.gz", truth, flips=labels)
    (tmp_path / "labels.json").write_text(json.dumps({"first": TABLE}))
    _, case = module(here, folder=tmp_path).read_case("first", CaseFiles())
    assert np.array_equal(case.target.numpy(), expected(truth))
    assert abs(float(case.image[0][case.target == 1].mean()) - (160 + 200) / 500 * 255) < 3


def test_finer_files_come_to_the_same_places(here: Path, tmp_path: Path) -> None:
    """Each voxel is eight of half the side: the outer borders are the same, so are the classes at 3 mm."""
    hu, truth = (np.kron(a, np.ones((2, 2, 2), a.dtype)) for a in anatomy(0))
    nifti(tmp_path / "first" / "ct.nii.gz", hu, spacing=1.5)
    nifti(tmp_path / "first" / "seg.nii.gz", truth, spacing=1.5, flips="xy")
    (tmp_path / "labels.json").write_text(json.dumps({"first": TABLE}))
    image, case = module(here, folder=tmp_path).read_case("first", CaseFiles())
    assert image.shape == tuple(2 * n for n in SIDES)
    assert np.array_equal(case.target.numpy(), expected(anatomy(0)[1]))


def test_labels_of_a_part_of_the_image_are_background_outside(here: Path, tmp_path: Path) -> None:
    from svd_hub import volume

    hu, truth = anatomy(0)
    nifti(tmp_path / "image.nii.gz", hu)
    nifti(tmp_path / "part.nii.gz", truth[:10])
    part, image = volume.read(tmp_path / "part.nii.gz"), volume.read(tmp_path / "image.nii.gz")
    found = labels_on(part, image.grid)
    assert np.array_equal(found[:10], truth[:10])
    assert not found[10:].any()


def test_only_what_is_annotated_counts(here: Path) -> None:
    files = CaseFiles(image="scan.nii.gz", labels="other.nii.gz", values={"liver": [7]})
    image, case = module(here).read_case("third", files)
    assert case.known.tolist() == [True, True, False, False]
    assert image.shape == (4, *SIDES[1:])
    assert set(case.target.unique().tolist()) == {0, 1}


# ---- patches -------------------------------------------------------------------------------------------------------

STILL = Augmentation(scale=0, degrees=0, contrast=0, brightness=0, noise=0, slab=0)


@pytest.fixture(scope="module")
def case() -> Case:
    hu, labels = anatomy(0)
    image = torch.from_numpy((hu.clip(-200, 300) + 200) / 500 * 255).float()[None]
    return Case(name="a", image=image, target=torch.from_numpy(expected(labels)), known=torch.ones(4).bool())


def test_an_unturned_patch_is_a_slice_of_the_volume(case: Case) -> None:
    x, target = cut(case, np.array([9.5, 11.5, 13.5]), np.eye(3), (16, 16, 16))
    torch.testing.assert_close(x, case.image[:, 2:18, 4:20, 6:22], rtol=0, atol=2e-3)
    assert torch.equal(target, case.target[2:18, 4:20, 6:22])


def test_outside_the_volume_is_air(case: Case) -> None:
    x, target = cut(case, np.array([-0.5, 11.5, 13.5]), np.eye(3), (16, 16, 16))
    assert float(x[:, :8].abs().max()) < 1e-3
    assert not target[:8].any()
    torch.testing.assert_close(x[:, 8:], case.image[:, :8, 4:20, 6:22], rtol=0, atol=2e-3)


def test_image_and_classes_are_turned_together(case: Case) -> None:
    """Levels tell the organs apart, also behind the affine map."""
    for seed in range(10):
        matrix = affine(np.random.default_rng(seed), Augmentation())
        x, target = cut(case, np.array([9.5, 12.0, 13.5]), matrix, (20, 20, 24))
        means = [float(x[0][target == k].mean()) for k in (1, 2, 3)]
        np.testing.assert_allclose(means, [183.6, 220, 75], atol=22)  # the rim is mixed with what is beside it


def test_nothing_is_ever_mirrored() -> None:
    """Each axis keeps its direction: left is left, and a mirror would turn the determinant's sign."""
    for seed in range(300):
        matrix = affine(np.random.default_rng(seed), Augmentation())
        assert np.linalg.det(matrix) > 0
        assert (np.diag(matrix) > 0.7).all()
        assert np.abs(matrix - np.diag(np.diag(matrix))).max() < 0.7


def test_a_patch_is_a_function_of_seed_epoch_and_index(case: Case) -> None:
    def patches(seed: int) -> Patches:
        return Patches([case], count=8, size=(16, 16, 16), rule=Augmentation(), seed=seed)

    one, two = patches(0), patches(0)
    _ = two[0, 5]
    assert torch.equal(one[1, 2][0], two[1, 2][0])
    for other in (one[1, 3], one[0, 2], patches(1)[1, 2]):
        assert not torch.equal(one[1, 2][0], other[0])
    x, target = one[0, 0]
    assert x.shape == (1, 16, 16, 16)
    assert target.shape == (16, 16, 16)
    assert target.dtype == torch.int64
    assert all(float(one[0, i][0].min()) >= 0 and float(one[0, i][0].max()) <= 255 for i in range(8))


def test_half_of_the_patches_are_about_an_organ() -> None:
    """An organ in the corner that a patch from anywhere never reaches: what shows it was centred on it."""
    target = torch.zeros(64, 64, 64, dtype=torch.int64)
    target[0, 0, 0] = 2
    corner = Case(name="a", image=torch.zeros(1, 64, 64, 64), target=target, known=torch.ones(4).bool())
    shown = Patches([corner], count=400, size=(8, 8, 8), rule=STILL, seed=0)
    share = sum(bool(shown[0, i][1].any()) for i in range(400)) / 400
    assert 0.43 < share < 0.57


def test_a_slab_leaves_whole_slices() -> None:
    ones = torch.ones(48, 48, 48, dtype=torch.int64)
    filled = Case(name="a", image=100.0 * ones[None], target=ones, known=torch.ones(4).bool())
    slabs = Patches([filled], count=40, size=(16, 16, 16), rule=replace(STILL, slab=1.0), seed=0)
    kept = []
    for i in range(40):
        x, target = slabs[0, i]
        slices = (x[0] > 50).flatten(1).any(1)
        assert torch.equal(slices, target.flatten(1).any(1))
        assert int((slices[1:] != slices[:-1]).sum()) <= 2  # one run
        kept.append(int(slices.sum()))
    assert min(kept) < 6
    assert max(kept) > 12


# ---- Dice ----------------------------------------------------------------------------------------------------------


def test_dice_is_the_mean_over_the_patients_that_have_the_organ_annotated() -> None:
    counts = np.zeros((2, 3, 3), int)
    counts[0] = [[90, 0, 0], [2, 6, 0], [0, 4, 4]]  # liver: 2 * 6 / (8 + 10); spleen: 2 * 4 / (8 + 4)
    counts[1] = [[50, 0, 9], [0, 5, 0], [0, 0, 0]]  # liver 1; of the spleen nothing is known
    known = np.array([[True, True, True], [True, True, False]])
    found = segmentation_metrics(counts, known, ["liver", "spleen"])
    assert found["dice_liver"] == pytest.approx((12 / 18 + 1) / 2)
    assert found["dice_spleen"] == pytest.approx(8 / 12)
    assert found["dice"] == pytest.approx((found["dice_liver"] + found["dice_spleen"]) / 2)
    assert segmentation_metrics(counts[1:], known[1:], ["liver", "spleen"]).keys() == {"dice", "dice_liver"}
    known[1, 2] = True  # annotated and not there: what was given is wrong
    assert segmentation_metrics(counts[1:], known[1:], ["liver", "spleen"])["dice_spleen"] == 0


def test_windows_of_a_pointwise_network_give_the_whole() -> None:
    x = torch.randn(1, 1, 9, 30, 21, generator=torch.Generator().manual_seed(0))
    found = sliding_window(lambda part: torch.cat([part, part**2], 1), x, window=(16, 16, 16))
    torch.testing.assert_close(found, torch.cat([x, x**2], 1), rtol=1e-4, atol=1e-4)


# ---- a run ---------------------------------------------------------------------------------------------------------


def test_the_log_has_each_organ(whole: Path) -> None:
    for row in log(whole):
        organs = [row[f"val/dice_{organ}"] for organ in ORGANS]
        assert all(0 <= value <= 1 for value in organs)
        assert row["val/dice"] == pytest.approx(sum(organs) / 3, abs=2e-6)


def test_a_run_repeats_to_the_bit(here: Path, whole: Path, tmp_path: Path) -> None:
    run(here, tmp_path / "again")
    assert same(tmp_path / "again", whole)
    assert log(tmp_path / "again") == log(whole)


MOMENTS = [
    ("on_train_batch_start", 1),
    ("on_train_batch_start", 3),  # right behind the first checkpoint
    ("on_train_batch_end", STEPS),
    ("on_validation_batch_start", 2),
    ("on_train_epoch_end", 1),
    ("on_train_batch_end", STEPS + 2),
    ("on_train_end", 1),
]


@pytest.mark.parametrize(("hook", "call"), MOMENTS)
def test_kill_9_and_resume_gives_the_same_bits(here: Path, whole: Path, tmp_path: Path, hook: str, call: int) -> None:
    folder = tmp_path / "run"
    assert forked(lambda: run(here, folder, callbacks=[At(hook, call, kill)])) == -signal.SIGKILL
    assert not (folder / "model.safetensors").exists()
    resume(folder)
    assert same(folder, whole)
    assert log(folder) == log(whole)


def test_kill_9_again_and_again(here: Path, whole: Path, tmp_path: Path) -> None:
    draw, folder = random.Random(1), tmp_path / "run"
    assert forked(lambda: run(here, folder, callbacks=[At("on_train_batch_end", 2, kill)])) == -signal.SIGKILL
    for _ in range(3):
        at = At(draw.choice(["on_train_batch_start", "on_before_optimizer_step"]), draw.randint(1, 3), kill)
        assert forked(lambda at=at: resume(folder, callbacks=[at])) in (0, -signal.SIGKILL)
    resume(folder)
    assert same(folder, whole)
    assert log(folder) == log(whole)


def test_other_data_do_not_go_on(here: Path, tmp_path: Path) -> None:
    organ_set(tmp_path / "set")
    folder = tmp_path / "run"
    options = {"overrides": {FOLDER: str(tmp_path / "set")}, "callbacks": [At("on_train_batch_end", 2, kill)]}
    assert forked(lambda: run(here, folder, **options)) == -signal.SIGKILL
    nifti(tmp_path / "set" / "first" / "seg.nii.gz", anatomy(0)[1][::-1])
    with pytest.raises(SvdHubError, match="data are not those"):
        resume(folder)


def test_a_loss_that_is_not_finite_stops_the_run(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, calls = Segmentation.forward, itertools.count()

    def forward(self: Segmentation, x: torch.Tensor) -> torch.Tensor:
        return before(self, x) * (float("nan") if next(calls) == 1 else 1.0)

    monkeypatch.setattr(Segmentation, "forward", forward)
    with pytest.raises(SvdHubError, match=r"loss is nan at step 1 \(epoch 0, batch 1\).*Next: a lower"):
        run(here, tmp_path / "run")


# ---- what comes out ------------------------------------------------------------------------------------------------


def test_the_file_rebuilds_alone(whole: Path) -> None:
    model, report = svd_hub.load(whole / "model.safetensors", return_report=True)
    assert len(report.matched) == report.total
    assert model.entry.task == "segmentation"
    assert model.entry.classes == ("background", "liver", "spleen", "kidneys")
    assert model.options["encoder_options"]["stem_stride"] == 1  # in full
    told = model.preprocess
    assert (told.modality, told.orientation, told.spacing) == ("CT", "SPL", (3.0, 3.0, 3.0))
    assert (told.window, told.scale, told.mean, told.std) == ((-200.0, 300.0), (0.0, 255.0), 114.495, 57.63)
    assert (told.size, told.minimum) == (None, (16, 16, 16))
    hu, _ = anatomy(1)
    x = told(hu, spacing=(3, 3, 3), orientation="SPL")
    with torch.inference_mode():
        assert model(x).shape == (1, 4, *SIDES)


def test_it_measures_what_the_log_says_through_its_own_preprocessing(here: Path, whole: Path) -> None:
    found = evaluate_entry(str(whole / "model.safetensors"), data=here / "set", recipe=str(here / "plain.yaml"))
    last = log(whole)[-1]
    assert found["examples"] == 2
    assert found["metrics"].keys() == {key.removeprefix("val/") for key in last if key.startswith("val/")}
    for name, value in found["metrics"].items():
        assert value == pytest.approx(last[f"val/{name}"], abs=2e-3), name
    assert found["cases"]["third"].keys() == {"dice", "dice_liver"}
    both = [found["cases"][name]["dice_liver"] for name in ("second", "third")]
    assert found["metrics"]["dice_liver"] == pytest.approx(sum(both) / 2)


def test_a_release_of_whole_volumes(whole: Path, tmp_path: Path) -> None:
    made = publish_run(whole, "net", to=tmp_path, allow_dirty=True)
    golden = load_file(tmp_path / "net" / "net.golden.safetensors")
    model = svd_hub.load(tmp_path / "net" / made.entry.source.file)
    with torch.inference_mode():
        output = model(golden["input"].float())
    assert output.shape == (1, 4, 16, 32, 32)
    assert float((output - golden["output"]).abs().max()) < 1e-3
    assert float(golden["output"].std()) > 0
    assert {metric.name: metric.value for metric in made.entry.metrics}["dice"] == log(whole)[-1]["val/dice"]
    assert made.entry.inference == model.inference
    assert made.entry.outputs == "(N, 4, D, H, W) logits: background, liver, spleen, kidneys"


# ---- what it starts from -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved encoder of known values."""
    file = tmp_path_factory.mktemp("backbone") / "encoder.safetensors"
    from svd_hub import checkpoint, models

    options = {"depth": 10, "width": 2, "num_classes": 3, "stem_pool": False}
    torch.manual_seed(1)
    made = models.build("resnet3d", options)
    checkpoint.write(file, made.state_dict(), {"architecture": "resnet3d", "options": options})
    return file


OPTIONS = {"num_classes": 4, "encoder": "resnet3d", "encoder_options": {"depth": 10, "width": 2}, "head_channels": 4}


def test_the_encoder_starts_from_an_entry_and_the_rest_is_new(backbone: Path) -> None:
    given = load_file(backbone)
    made: Any = build_segmenter(Network(architecture="unet3d", options=OPTIONS, init=str(backbone)))
    assert made.training
    taken = {k.removeprefix("backbone."): v for k, v in made.state_dict().items() if k.startswith("backbone.")}
    assert taken.keys() == {k for k in given if not k.startswith("fc.")}
    assert all(torch.equal(taken[k], given[k]) for k in taken)
    fresh: Any = build_segmenter(Network(architecture="unet3d", options=OPTIONS))
    assert {k: v.shape for k, v in made.state_dict().items()} == {k: v.shape for k, v in fresh.state_dict().items()}
    assert made.options["encoder_options"] == fresh.options["encoder_options"]


def test_an_init_that_does_not_fit_is_refused(backbone: Path, whole: Path) -> None:
    wide = {**OPTIONS, "encoder_options": {"depth": 10, "width": 4}}
    for init in (backbone, whole / "model.safetensors"):
        with pytest.raises(SvdHubError, match=r"fit|other options"):
            build_segmenter(Network(architecture="unet3d", options=wide, init=str(init)))
    with pytest.raises(SvdHubError, match="encoder='densenet3d'"):
        build_segmenter(
            Network(architecture="unet3d", options={**OPTIONS, "encoder": "densenet3d"}, init=str(backbone))
        )


def test_a_trained_segmenter_goes_on(whole: Path) -> None:
    file = whole / "model.safetensors"
    made: Any = build_segmenter(Network(architecture="unet3d", options=OPTIONS, init=str(file)))
    assert made.training
    given = load_file(file)
    assert all(torch.equal(v, given[k]) for k, v in made.state_dict().items())
    two: Any = build_segmenter(Network(architecture="unet3d", options={**OPTIONS, "num_classes": 2}, init=str(file)))
    assert two.state_dict()["decode_head.conv_seg.weight"].shape[0] == 2


def test_the_shipped_recipe_can_be_made() -> None:
    recipe = recipes.read("unet3d18w16_ctorgans")
    task, data = recipe.make()
    assert isinstance(task, Segmentation)
    assert isinstance(data, OrganVolumes)
    assert data.class_names() == ("background", *task.organs)
    assert task.window == data.size
    given = svd_hub.load("resnet3d18w16_tinyimagenet").state_dict()["layer4.1.conv2.weight"]
    assert torch.equal(task.network.state_dict()["backbone.layer4.1.conv2.weight"], given)


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_what_is_refused_says_what_next(here: Path, tmp_path: Path) -> None:
    with pytest.raises(SvdHubError, match=r"1 of the \d cases are in train_cases and in val_cases"):
        module(here, val_cases={"first": CaseFiles()})
    with pytest.raises(SvdHubError, match="one case or more"):
        module(here, val_cases={})
    with pytest.raises(SvdHubError, match=r"Next: add --data FOLDER"):
        module(here, folder=None).setup("fit")
    with pytest.raises(SvdHubError, match=r"labels\.json does not exist.*--data"):
        module(here, folder=tmp_path).setup("fit")
    with pytest.raises(SvdHubError, match=r"does not name the case 'third'.*values"):
        module(here, val_cases={"third": CaseFiles()}).setup("validate")
    with pytest.raises(SvdHubError, match=r"ct\.nii\.gz does not exist"):
        module(here, val_cases={"third": CaseFiles(values={"liver": [7]})}).setup("validate")
    with pytest.raises(SvdHubError, match=r"values for \['lung'\].*allowed"):
        module(here, val_cases={"third": CaseFiles(values={"lung": [7]})}).setup("validate")
    with pytest.raises(SvdHubError, match="has none of"):
        module(here, organs={"lung": ["lung"]}).setup("fit")
    with pytest.raises(SvdHubError, match="3 organs and the background"):
        Segmentation(network=Network(options={"num_classes": 3}), optimiser=Optimiser(), organs=list(ORGANS))
