"""Laws of a user's own data: the table line by line, patients on one side, seen as the result sees them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers_training import At, forked, log
from safetensors.torch import load_file
from typer.testing import CliRunner

import svd_hub
from svd_hub import cli
from svd_hub.errors import OptionError, SvdHubError
from svd_hub.preprocess import Preprocess
from svd_hub.training import engine
from svd_hub.training.data import planning
from svd_hub.training.data.kept import Kept, Memory
from svd_hub.training.data.own import Division, Reading
from svd_hub.training.data.own_masks import OwnMasks, check_place
from svd_hub.training.data.own_volumes import Changes, OwnVolumes
from svd_hub.training.data.planning import Extent
from svd_hub.training.data.splits import check_leakage, split_by_patient
from svd_hub.training.data.table import class_order, read_table
from svd_hub.training.evaluation import evaluate_entry
from svd_hub.training.miniature import own as made
from svd_hub.training.miniature.own import lump, masked, write_csv
from svd_hub.training.miniature.volumes import write_volume

FOLDER = "data.init_args.folder"
BACKBONE = "resnet3d18w16_tinyimagenet"
INIT = "task.init_args.network.init"
READING = "data.init_args.reading"
SECRET = "SENTINEL-4711"  # a patient's number: it may be in the CSV and nowhere else
labelled = functools.partial(made.labelled, patient=SECRET)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tmp_path_factory.mktemp("classified"))


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked(tmp_path_factory.mktemp("segmented"))


# ---- the table -----------------------------------------------------------------------------------------------------


def file(folder: Path, text: str) -> Path:
    for name in ("a.nii", "b.nii", "c, d.nii"):
        (folder / name).touch()
    (folder / "my.csv").write_text(text, encoding="utf-8")
    return folder / "my.csv"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_is_read_as_spreadsheets_write_it(tmp_path: Path, separator: str) -> None:
    text = "﻿Image,Label , SPLIT,note\r\nb.nii, 1 ,train,x\r\n\r\na.nii,höhe,VAL,\r\n"
    table = read_table(file(tmp_path, text.replace(",", separator)), needs=("label",))
    assert [(row.line, row.image.name, row.label, row.split) for row in table.rows] == [
        (4, "a.nii", "höhe", "val"),
        (2, "b.nii", "1", "train"),
    ]
    assert {row.patient for row in table.rows} == {str(row.image) for row in table.rows}


def test_the_order_of_the_lines_changes_nothing(tmp_path: Path) -> None:
    lines = ["a.nii,x", "b.nii,y", '"c, d.nii",x']
    tables = [
        read_table(file(tmp_path, "\n".join(["image,label", *order])), needs=("label",))
        for order in itertools.permutations(lines)
    ]
    names = {tuple((row.image, row.label) for row in table.rows) for table in tables}
    assert len(names) == 1


TABLES = {
    "empty": ("", "is empty; allowed: a header"),
    "no rows": ("image,label\n", "no rows below its header"),
    "no column": ("image,class\na.nii,x", "no column label; found: image, class"),
    "no header": ("a.nii,x\nb.nii,y", "no column image, label; found: a.nii, x"),
    "column twice": ("image,label,label\na.nii,x,y", "the columns label twice"),
    "no label": ("image,label\na.nii,x\nb.nii,", r"line 3: label is empty"),
    "short line": ("image,label,patient\na.nii,x,p\nb.nii,y", r"line 3: patient is empty, and other rows"),
    "long line": ("image,label\nc, d.nii,x", r"line 2: 3 cells, the header has 2. Next: quote"),
    "no file": ("image,label\na.nii,x\nz.nii,y\ny.nii,y", r"line 3: .*z\.nii does not exist, and 1 files of later"),
    "twice": ("image,label\na.nii,x\nb.nii,y\n./a.nii,y", r"line 4: the image of line 2 once more"),
    "split": ("image,label,split\na.nii,x,training", r"line 2: split='training' is not allowed; allowed: train, val"),
    "quotes": ('image,label\n"a.nii,x\n', r"line 2: .*quotes"),
}


@pytest.mark.parametrize("case", TABLES)
def test_wrong_tables_are_told_by_line(tmp_path: Path, case: str) -> None:
    text, told = TABLES[case]
    with pytest.raises(SvdHubError, match=told):
        read_table(file(tmp_path, text), needs=("label",))


def test_tables_that_are_none_are_told(tmp_path: Path) -> None:
    for path, told in ((tmp_path / "x.csv", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(SvdHubError, match=told):
            read_table(path, needs=())
    (tmp_path / "x.csv").write_bytes("image,label\nä".encode("latin-1"))
    with pytest.raises(SvdHubError, match="no text in UTF-8"):
        read_table(tmp_path / "x.csv", needs=())


def test_labels_are_numbers_by_size_or_text_by_the_alphabet() -> None:
    assert class_order(["10", "9", "2.5", "9"]) == ("2.5", "9", "10")
    assert class_order(["10", "9", "b"]) == ("10", "9", "b")
    assert class_order(["nan", "1", "inf"]) == ("1", "inf", "nan")


# ---- patients ------------------------------------------------------------------------------------------------------


def test_leakage_is_what_two_sets_share_and_nobody_is_named() -> None:
    draw = random.Random(4)
    for _ in range(200):
        splits = {
            name: [f"{SECRET}-{draw.randrange(30)}" for _ in range(draw.randrange(8))] for name in ("a", "b", "c")
        }
        shared = {
            (one, other): sum(p in splits[other] for p in set(splits[one]))
            for one, other in (("a", "b"), ("a", "c"), ("b", "c"))
        }
        if not any(shared.values()):
            check_leakage(splits)
            continue
        with pytest.raises(SvdHubError) as told:
            check_leakage(splits)
        assert SECRET not in str(told.value)
        for (one, other), count in shared.items():
            total = len({*splits[one], *splits[other]})
            assert (f"{count} of the {total} patients are in {one} and in {other}" in str(told.value)) == (count > 0)


def test_a_split_keeps_patients_whole_and_labels_in_proportion() -> None:
    draw = random.Random(7)
    for trial in range(60):
        count = draw.randrange(4, 60)
        patients = [f"p{draw.randrange(max(2, count // 2))}" for _ in range(count)]
        labels = [draw.choice("aaab") for _ in range(count)]
        if len({p for p, label in zip(patients, labels, strict=True)}) < 3:
            continue
        share = draw.choice((0.1, 0.2, 0.5))
        split = split_by_patient(patients, labels, share=share, seed=trial)
        sides = {p: {s for q, s in zip(patients, split, strict=True) if q == p} for p in patients}
        assert all(len(side) == 1 for side in sides.values())
        order = draw.sample(range(count), count)
        again = split_by_patient([patients[k] for k in order], [labels[k] for k in order], share=share, seed=trial)
        assert [split[k] for k in order] == again
        rare = [p for p in sides if any(q == p and label == "b" for q, label in zip(patients, labels, strict=True))]
        if len(rare) >= 2 and labels.count("b") < labels.count("a"):
            chosen = sum(sides[p] == {"val"} for p in rare)
            assert chosen == min(max(1, round(share * len(rare))), len(rare) - 1)
    assert split_by_patient(list("abcdef"), ["x"] * 6, share=0.5, seed=0) != split_by_patient(
        list("abcdef"), ["x"] * 6, share=0.5, seed=1
    )


def test_splits_that_cannot_be_are_told() -> None:
    with pytest.raises(OptionError, match=r"val_share=1\.5"):
        split_by_patient(["a"], ["x"], share=1.5, seed=0)
    with pytest.raises(SvdHubError, match="2 patients cannot be split"):
        split_by_patient(["a", "b", "b"], ["x", "y", "y"], share=0.2, seed=0)


def test_a_patient_in_two_splits_is_counted_and_not_named(tmp_path: Path) -> None:
    path = labelled(tmp_path, count=8)
    path.write_text(path.read_text().replace(f"{SECRET}-3,val", f"{SECRET}-0,val"))
    with pytest.raises(SvdHubError, match=r"1 of the 3 patients are in train and in val \(lines 2, 3, 8, 9\)") as told:
        OwnVolumes(folder=path).class_names()
    assert SECRET not in str(told.value)


def test_the_test_split_is_looked_at_where_it_is_asked_for(tmp_path: Path) -> None:
    path = labelled(tmp_path)
    path.write_text(path.read_text().replace(f"{SECRET}-5,val", f"{SECRET}-5,test"))
    assert [len(own(path, division=Division(evaluated=which)).rows("val")) for which in ("val", "test")] == [2, 2]
    seen = [{r.line for r in own(path, division=Division(evaluated=which)).rows("val")} for which in ("val", "test")]
    assert not seen[0] & seen[1]


def test_without_a_split_patients_are_drawn_and_without_patients_it_is_said(tmp_path: Path) -> None:
    path = labelled(tmp_path, split=False)
    data = OwnVolumes(folder=path, division=Division(val_share=0.3))
    train, val = ({row.patient for row in data.rows(split)} for split in ("train", "val"))
    assert not train & val
    assert len(val) == 2
    path.write_text(path.read_text().replace("patient", "person", 1))
    with pytest.warns(UserWarning, match="no column patient: each image is taken for another"):
        assert len(OwnVolumes(folder=path).rows("val")) == 2


# ---- the preprocessing ---------------------------------------------------------------------------------------------


def start(init: str, *, modality: str = "CT", window: Any = None) -> Preprocess:
    return planning.starting_point(init, modality=modality, window=window, ct_window=(-900.0, 300.0))


def test_the_starting_point_says_how_volumes_are_read() -> None:
    pictures = start(BACKBONE)
    assert (pictures.window, pictures.scale, pictures.mean) == ((-900, 300), (0, 255), 114.495)
    clips = start("resnet3d18_kinetics700")
    assert (clips.scale, clips.channels) == ((0, 1), 1)
    assert clips.mean == pytest.approx((0.4345 + 0.4051 + 0.3775) / 3)
    lidc = start("resnet3d18w16_lidc")
    own = svd_hub.get_entry("resnet3d18w16_lidc").preprocess
    assert lidc == dataclasses.replace(own, orientation="SPL", note="")
    assert start("resnet3d152_merlin").orientation == "SRA"
    assert start("resnet3d18w16_lidc", window=(-200, 200)).window == (-200, 200)
    for init in (BACKBONE, "resnet3d18w16_lidc", "resnet3d50x2_fmcib"):
        resonance = start(init, modality="MR")
        assert (resonance.modality, resonance.statistics, resonance.window) == ("MR", "volume", None)
    assert start("resnet3d18_med3d", modality="MR").statistics == "positive"
    scaled = start(BACKBONE, modality="MR", window=(0, 2000))
    assert (scaled.statistics, scaled.window, scaled.scale) == ("fixed", (0, 2000), (0, 255))
    assert start("none").mean == pictures.mean
    with pytest.raises(OptionError, match="not windowed"):
        start("resnet3d50x2_fmcib", window=(-200, 200))


def test_what_the_entry_leaves_open_is_the_median_volume() -> None:
    extents = [Extent(size=(n, 50, 70), spacing=(2.0, 1.0, 0.5)) for n in (10, 20, 60)]
    whole = planning.whole_volumes(start(BACKBONE), extents, voxels=10**6, fixed=False)
    assert (whole.spacing, whole.size) == ((2.0, 1.0, 0.5), (24, 56, 72))
    few = planning.whole_volumes(start(BACKBONE), extents, voxels=10_000, fixed=False)
    assert few.spacing is not None
    assert few.size is not None
    assert few.spacing[0] == 2.0  # the finest axes give way first
    assert few.spacing[1] == few.spacing[2] > 1
    lengths = np.array([40, 50, 35])
    assert 9_000 < np.prod(lengths / few.spacing) <= 10_000
    fixed = planning.whole_volumes(start(BACKBONE), extents, voxels=10, fixed=True)
    assert fixed.size == whole.size
    rule, size = planning.patches(start(BACKBONE), extents, size=None, voxels=10**6)
    assert (rule.size, size) == (None, (16, 48, 64))
    assert planning.patches(start(BACKBONE), extents, size=None, voxels=16 * 48 * 48)[1] == (16, 48, 48)
    turned = dataclasses.replace(start(BACKBONE), orientation="RAS")  # D is x, W is z
    assert planning.patches(turned, extents, size=None, voxels=10**6)[1] == (64, 48, 16)
    assert planning.whole_volumes(turned, extents, voxels=10**6, fixed=False).size == (72, 56, 24)


def own(path: Path, **options: Any) -> OwnVolumes:
    return OwnVolumes(folder=path, init=BACKBONE, **{"batch_size": 4, **options})


@pytest.mark.parametrize("init", [BACKBONE, "resnet3d18w16_lidc", "resnet3d152_merlin", "resnet3d18_med3d"])
def test_evaluation_sees_exactly_what_the_result_does(classified: Path, init: str) -> None:
    """Windows, statistics of a volume, a resize to corners, other axes."""
    data = OwnVolumes(folder=classified, init=init, reading=Reading(size=(8, 10, 12)))
    data.setup("fit")
    preprocess = Preprocess(**data.preprocess(mean=0.0, std=1.0))
    examples = list(data.examples())
    assert len(examples) == len(data.val_set) == 4
    for index, (example, label) in enumerate(examples):
        x, y = data.val_set[(0, index)]
        assert torch.equal(preprocess(**example)[0], x)
        assert y == label
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape[2:] == (8, 10, 12)


def test_augmentation_is_the_samples_own_and_workers_change_nothing(classified: Path) -> None:
    few = own(classified)
    many = own(classified, workers=2, reading=Reading(memory=0))
    for data in (few, many):
        data.setup("fit")
    assert len(few.train_set.inputs.items) == 8  # type: ignore[union-attr]
    assert not many.train_set.inputs.items  # type: ignore[union-attr]
    for (x, y), (u, v) in zip(few.train_dataloader(), many.train_dataloader(), strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
    views = [few.train_set[(epoch, 0)][0] for epoch in range(6)]  # type: ignore[index]
    assert len({view.numpy().tobytes() for view in views}) == 6
    low, high = few.values().low, few.values().high
    assert all(low - 1e-6 <= float(view.min()) <= float(view.max()) <= high + 1e-6 for view in views)


def test_changes_move_and_turn_and_leave_the_rest(classified: Path) -> None:
    still = {"contrast": 0.0, "brightness": 0.0, "noise": 0.0}
    data = own(classified, changes=Changes(shift=0.0, flip="W", quarter_turns=False, **still))
    data.setup("fit")
    plain = data.train_set.inputs[0]  # type: ignore[union-attr]
    views = [data.train_set[(epoch, 0)][0] for epoch in range(12)]  # type: ignore[index]
    flipped = [bool(torch.allclose(view, plain.flip(3), atol=1e-5)) for view in views]
    assert set(flipped) == {True, False}
    assert all(torch.allclose(v, plain.flip(3) if f else plain, atol=1e-5) for v, f in zip(views, flipped, strict=True))
    for wrong in ({"flip": "X"}, {"flip": "DD"}, {"shift": 1.0}):
        with pytest.raises(OptionError, match="is not allowed"):
            Changes(**wrong)  # type: ignore[arg-type]


def test_memory_is_bounded_and_changes_nothing() -> None:
    read: list[int] = []

    def item(k: int) -> torch.Tensor:
        read.append(k)
        return torch.full((250,), float(k))

    memory = Memory(2.5e-6)  # 2,500 bytes: two items
    kept = Kept(item, 5, memory)
    assert sorted(kept.items) == [0, 1]
    assert memory.left == 500
    read.clear()
    assert [float(x[0]) for x in kept] == [0, 1, 2, 3, 4]
    assert read == [2, 3, 4]
    assert len(kept[1:3]) == 2
    with pytest.raises(IndexError):
        kept[5]


# ---- what is wrong with volumes ------------------------------------------------------------------------------------


def test_volumes_that_cannot_be_read_are_named_by_line(tmp_path: Path) -> None:
    path = labelled(tmp_path)
    (tmp_path / "scans" / "03.nii.gz").write_bytes(b"nothing")
    with pytest.raises(SvdHubError, match=r"my\.csv, line 5: .*03\.nii\.gz is no volume"):
        own(path).setup("fit")


def test_pictures_given_as_ct_are_refused_and_other_values_told(tmp_path: Path) -> None:
    for k in range(4):
        write_volume(tmp_path / f"{k}.nii.gz", (lump(k, value=200)[0] + 1024).clip(0))
    rows = [{"image": f"{k}.nii.gz", "label": k % 2, "split": ("train", "val")[k // 2]} for k in range(4)]
    path = write_csv(tmp_path / "my.csv", rows)
    with pytest.warns(UserWarning, match="2 of 2 volumes of training have no value below 0"):
        own(path).setup("fit")
    own(path, reading=Reading(modality="MR")).setup("fit")
    write_volume(tmp_path / "0.nii.gz", lump(0, value=200)[1])
    with pytest.raises(SvdHubError, match=r"line 2: .*8-bit.*reading\.modality=MR"):
        own(path).setup("fit")


LABELS: dict[str, tuple[Callable[[str], str], dict[str, Any], str]] = {
    "one": (lambda text: text.replace("soft", "solid"), {}, "all 12 rows have the label 'solid'"),
    "unlearnt": (
        lambda text: text[:-1].rpartition("soft")[0] + f"new,{SECRET}-5,val\n",
        {},
        "'new' is in the split train",
    ),
    "unknown": (str, {"classes": ["solid", "hard"]}, r"line 4: the label 'soft' is none of classes="),
    "no val": (lambda text: text.replace(",val", ",train"), {}, "no row has split val"),
    "no train": (lambda text: text.replace(",train", ",test"), {}, "no row has split train"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_cannot_be_learnt_are_told(tmp_path: Path, case: str) -> None:
    change, options, told = LABELS[case]
    path = labelled(tmp_path)
    path.write_text(change(path.read_text()))
    with pytest.raises(SvdHubError, match=told):
        own(path, **options).setup("fit")


def test_classes_may_be_put_in_another_order(classified: Path) -> None:
    assert own(classified).class_names() == ("soft", "solid")
    data = own(classified, classes=["solid", "soft"])
    data.setup("fit")
    assert data.class_names() == ("solid", "soft")
    assert data.class_counts() == [4, 4]
    assert data.val_set.labels == [0, 0, 1, 1]


# ---- masks ---------------------------------------------------------------------------------------------------------


def segmenting(path: Path, **options: Any) -> OwnMasks:
    return OwnMasks(folder=path, init=BACKBONE, **{"patches": 8, **options})


@pytest.mark.parametrize("init", [BACKBONE, "segresnet_suprem"])
def test_masks_lie_where_their_images_do(segmented: Path, init: str) -> None:
    """Files of any orientation: at the volumes' own spacing a voxel's value tells its class."""
    data = OwnMasks(folder=segmented, init=init, reading=Reading(spacing=(1, 1, 1), window=(-1000, 400)))
    data.setup("fit")
    assert data.class_names() == ("background", "label 1", "label 4")
    low, high = data.values().low, data.values().high
    for case in data.train_set.cases:  # type: ignore[union-attr]
        hounsfield = (case.image[0] - low) / (high - low) * 1400 - 1000
        want = torch.where((hounsfield - 200).abs() < 1, 1, torch.where((hounsfield + 300).abs() < 1, 2, 0))
        assert torch.equal(case.target.long(), want)
        assert set(case.target.unique().tolist()) == {0, 1, 2}
    first = data.train_set.cases[0]  # type: ignore[union-attr]
    letters = svd_hub.get_entry(init).preprocess.orientation or "SPL"
    image = sitk.DICOMOrient(sitk.ReadImage(str(segmented.parent / "seg0.nrrd")), letters[::-1])
    assert np.array_equal(first.target.numpy(), {0: 0, 1: 1, 4: 2}[0] + _classes(sitk.GetArrayFromImage(image)))


def _classes(array: np.ndarray) -> np.ndarray:
    return np.where(array == 4, 2, array)


def test_patches_of_own_masks_are_padded_with_the_low_end(segmented: Path) -> None:
    data = segmenting(segmented, reading=Reading(size=(48, 48, 48), ct_window=(-1000, 400)))
    data.setup("fit")
    x, target = data.train_set[(0, 1)]  # type: ignore[index]
    assert x.shape == (1, 48, 48, 48)
    assert float(x.min()) == pytest.approx(data.values().low)
    assert target.dtype == torch.int64
    assert data.fills()["window"] == (48, 48, 48)
    assert Preprocess(**data.preprocess(mean=0.0, std=1.0)).minimum == (48, 48, 48)


def moved(path: Path) -> None:
    image = sitk.ReadImage(str(path))
    image.SetOrigin((0.0, 0.0, 0.0))
    sitk.WriteImage(image, str(path))


def cropped(path: Path) -> None:
    """As many tools write a mask; as a mask of another patient of the same set looks."""
    sitk.WriteImage(sitk.ReadImage(str(path))[:, :, 1:], str(path))


def coarse(path: Path) -> None:
    image = sitk.ReadImage(str(path))
    image.SetSpacing((1.0, 1.0, 1.5))
    sitk.WriteImage(image, str(path))


def oblique(path: Path) -> None:
    image = sitk.ReadImage(str(path))
    image.SetDirection(sitk.Euler3DTransform((0, 0, 0), 0, 0, 0.1).GetMatrix())
    sitk.WriteImage(image, str(path))


def far(path: Path) -> None:
    image = sitk.ReadImage(str(path))[:, :, 1:]
    image.SetOrigin((900.0, 0.0, 0.0))
    sitk.WriteImage(image, str(path))


MASKS: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "header lost": (
        moved,
        {},
        r"line 2: .*not on the image's grid.*origin -21, -19, 0;.*origin 3, -7, 11.*header is not",
    ),
    "another size": (cropped, {}, r"line 2: .*mask 17 x 20 x 22 voxels.*image 18 x 20 x 22 .*Next: check the pair; or"),
    "another spacing": (coarse, {}, r"line 2: .*mask 18 x 20 x 22 voxels of 1.5 x 1 x 1 mm.*image 18 x 20 x 22"),
    "turned": (oblique, {}, r"line 2: .*not on the image's grid.*direction 0\.995"),
    "elsewhere": (far, {"other_grids": "resample"}, r"line 2: nothing of the mask lies within the image"),
    "an image": (
        lambda path: write_volume(path, lump(0, value=0)[0].astype(np.float32) / 7),
        {},
        r"line 2: the mask has \d+ different values",
    ),
    "no such class": (
        lambda path: None,
        {"classes": {"liver": [1], "bone": [9]}},
        r"no mask has a value of bone; found: \[1, 4\]",
    ),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_that_do_not_fit_are_told(tmp_path: Path, case: str) -> None:
    change, options, told = MASKS[case]
    path = masked(tmp_path)
    change(tmp_path / "seg0.nrrd")
    with pytest.raises(SvdHubError, match=told):
        segmenting(path, **options).setup("fit")


def test_a_mask_on_another_grid_is_brought_to_its_image_where_asked(tmp_path: Path) -> None:
    """What was cut off is background; a header that is rounded is no other grid."""
    path = masked(tmp_path)
    same = segmenting(path, reading=Reading(spacing=(1, 1, 1)))
    same.setup("fit")
    cropped(tmp_path / "seg0.nrrd")
    data = segmenting(path, reading=Reading(spacing=(1, 1, 1)), other_grids="resample")
    data.setup("fit")
    before, after = (one.train_set.cases[0].target for one in (same, data))  # type: ignore[union-attr]
    lost = (before != after).flatten(1).any(1).nonzero().flatten().tolist()
    assert lost in ([], [0], [len(before) - 1])
    assert after.any()
    rounded = sitk.ReadImage(str(tmp_path / "seg1.nrrd"))
    rounded.SetOrigin([value + 0.004 for value in rounded.GetOrigin()])
    sitk.WriteImage(rounded, str(tmp_path / "seg1.nrrd"))
    row = next(row for row in data.rows("train") if row.mask and row.mask.name == "seg1.nrrd")
    image, mask = data.reader.image(row), data.reader.mask(row)
    check_place("line", image, mask, other_grids="refuse")


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backbone of seconds."""
    made = svd_hub.load(BACKBONE, weights=None, depth=10, width=4)
    return str(svd_hub.save(made, tmp_path_factory.mktemp("narrow") / "narrow.safetensors"))


def train(name: str, path: Path, run: Path, **more: Any) -> Path:
    settings = {FOLDER: str(path), "run.threads": 1, "run.epochs": 4, **more.pop("settings", {})}
    return engine.train(name, run=run, overrides=settings, progress=False, **more)


RATE = "task.init_args.optimiser.lr"
CLASSIFY = {"run.epochs": 10, RATE: 3e-3, "data.init_args.batch_size": 4, f"{READING}.size": "[8, 12, 12]"}
LUNG = {f"{READING}.ct_window": "[-1000, 400]"}
SEGMENT = {RATE: 1e-2, "data.init_args.patches": 10, f"{READING}.size": "[16, 16, 16]", **LUNG}


def test_finetune_classify_learns_and_its_result_stands_alone(classified: Path, tmp_path: Path) -> None:
    """By the command, as a stranger types it; 20 steps."""
    arguments = [f"--set={key}={value}" for key, value in {"run.threads": 1, **CLASSIFY}.items()]
    command = ["finetune-classify", "--data", str(classified), "--init", BACKBONE, "--run", str(tmp_path / "run")]
    cli._add_commands()
    result = CliRunner().invoke(cli.app, ["train", *command, *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = log(tmp_path / "run")
    assert rows[-1]["step"] == 20
    assert rows[-1]["train/loss"] < 0.6 * rows[0]["train/loss"]
    assert rows[-1]["val/auc"] > 0.9
    model = svd_hub.load(tmp_path / "run" / "model.safetensors")
    assert model.entry.classes == ("soft", "solid")
    assert model.preprocess.size == (8, 12, 12)
    assert model.entry.licence == svd_hub.get_entry(BACKBONE).licence
    assert "Tiny-ImageNet" in model.entry.trained_on
    found = evaluate_entry(str(tmp_path / "run" / "model.safetensors"), recipe=str(tmp_path / "run" / "recipe.yaml"))
    assert found["metrics"]["loss"] == pytest.approx(rows[-1]["val/loss"], abs=1e-4)
    other_way = {"data.init_args.classes": '["solid", "soft"]'}
    with pytest.raises(SvdHubError, match="are soft, solid, the classes of the data solid, soft"):
        evaluate_entry(
            str(tmp_path / "run" / "model.safetensors"),
            recipe=str(tmp_path / "run" / "recipe.yaml"),
            settings=other_way,
        )
    svd_hub.save(model, tmp_path / "again.safetensors")
    assert svd_hub.load(tmp_path / "again.safetensors").entry.classes == ("soft", "solid")
    for file in (tmp_path / "run").iterdir():
        assert SECRET.encode() not in file.read_bytes(), file
    other = train("finetune-classify", classified, tmp_path / "other", settings={
        **CLASSIFY, "run.epochs": 1, INIT: str(tmp_path / "again.safetensors")})  # fmt: skip
    assert svd_hub.load(other).preprocess == model.preprocess


def test_class_weights_are_balanced_by_the_images_of_training(tmp_path: Path) -> None:
    path = labelled(tmp_path)
    path.write_text(path.read_text().replace(f"soft,{SECRET}-1", f"solid,{SECRET}-1"))
    tasks = []

    class Keep(At):
        def __init__(self) -> None:
            super().__init__("on_train_start", -1, lambda: None)

        def on_train_end(self, trainer: Any, task: Any) -> None:
            tasks.append(task)

    train("finetune-classify", path, tmp_path / "run", settings=CLASSIFY | {"run.epochs": 1}, callbacks=[Keep()])
    assert tasks[0].weights.tolist() == pytest.approx([8 / (2 * 2), 8 / (2 * 6)])


def test_a_killed_run_goes_on_to_the_bit(classified: Path, tmp_path: Path) -> None:
    settings = CLASSIFY | {"run.epochs": 2, "run.checkpoint_steps": 1}
    whole = train("finetune-classify", classified, tmp_path / "whole", settings=settings)
    kill = At("on_train_batch_end", 4, lambda: os.kill(os.getpid(), signal.SIGKILL))

    def die() -> None:
        train("finetune-classify", classified, tmp_path / "killed", settings=settings, callbacks=[kill])

    assert forked(die) == -signal.SIGKILL
    again = engine.train("", run=tmp_path / "killed", resume=True, progress=False)
    one, other = load_file(whole), load_file(again)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_finetune_segment_learns_and_its_result_stands_alone(segmented: Path, narrow: str, tmp_path: Path) -> None:
    """20 steps; then the network goes on with other classes, as it is."""
    result = train("finetune-segment", segmented, tmp_path / "run", settings=SEGMENT | {INIT: narrow})
    rows = log(tmp_path / "run")
    assert rows[-1]["step"] == 20
    assert rows[-1]["train/loss"] < 0.9 * rows[0]["train/loss"]
    assert {"val/dice", "val/dice_label 1", "val/dice_label 4"} <= set(rows[-1])
    model = svd_hub.load(result)
    assert (model.entry.architecture, model.entry.classes) == ("unet3d", ("background", "label 1", "label 4"))
    found = evaluate_entry(str(result), recipe=str(tmp_path / "run" / "recipe.yaml"))
    assert found["metrics"]["dice"] == pytest.approx(rows[-1]["val/dice"], abs=1e-4)
    more = {INIT: str(result), "data.init_args.classes": '{"lump": [1, 4]}', "run.epochs": 1}
    other = svd_hub.load(train("finetune-segment", segmented, tmp_path / "other", settings=SEGMENT | more))
    assert (other.options["num_classes"], other.entry.classes) == (2, ("background", "lump"))
    assert other.options["encoder_options"] == model.options["encoder_options"]


def test_a_segmenter_of_another_kind_goes_on_as_it_is(segmented: Path, tmp_path: Path) -> None:
    start = svd_hub.load("segresnet_ctfm", weights=None, init_filters=4, blocks_down=(1, 1, 1, 1, 1))
    svd_hub.save(start, tmp_path / "start.safetensors")
    settings = SEGMENT | {
        INIT: str(tmp_path / "start.safetensors"),
        "data.init_args.patches": 2,
        "run.epochs": 1,
        f"{READING}.spacing": "[1, 1, 1]",
    }
    made = svd_hub.load(train("finetune-segment", segmented, tmp_path / "run", settings=settings))
    assert (made.entry.architecture, made.options["num_classes"]) == ("segresnet_ds", 3)
    assert made.preprocess.window == (-1024, 2048)
