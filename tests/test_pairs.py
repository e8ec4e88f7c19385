"""Laws of LiTS and the Decathlon: the official lists, nested label fractions, patches of the right place."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from svd_hub.errors import OptionError, SvdHubError
from svd_hub.preprocess import Preprocess
from svd_hub.training.data.pairs import PairVolumes, drawn_split, lits_split, part_of, read_pairs
from svd_hub.training.miniature import volumes
from svd_hub.training.prepare import job_of, prepare


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volumes.decathlon(tmp_path_factory.mktemp("decathlon"))


@pytest.fixture(scope="module")
def lits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return volumes.lits(tmp_path_factory.mktemp("lits"))


def module(folder: Path | None, form: str = "decathlon", **options: Any) -> PairVolumes:
    settings: dict[str, Any] = {"classes": {"front": [1], "back": [2]}, "size": (16, 16, 16), "patches": 8}
    return PairVolumes(folder=folder, form=form, **{**settings, **options})  # type: ignore[arg-type]


def test_the_official_lists_of_lits_are_105_13_and_13() -> None:
    """svd-net.md 3.6: disjoint and complete."""
    names = [f"volume-{k}" for k in range(131)]
    split = lits_split(names)
    assert {key: len(found) for key, found in split.items()} == {"train": 105, "val": 13, "test": 13}
    assert sorted(n for found in split.values() for n in found) == sorted(names)
    assert {"volume-2", "volume-127"} <= set(split["test"])
    assert {"volume-0", "volume-113"} <= set(split["val"])


def test_fractions_are_parts_of_larger_ones_and_splits_follow_the_seed_alone() -> None:
    names = [f"c{k:02}" for k in range(40)]
    split = drawn_split(names, share=0.2, seed=3)
    assert (len(split["train"]), len(split["val"])) == (32, 8)
    assert drawn_split(names[::-1], share=0.2, seed=3)["val"] == split["val"][::-1]
    assert drawn_split(names, share=0.2, seed=4) != split
    parts = [set(part_of(split["train"], fraction=f, seed=3)) for f in (0.01, 0.05, 0.2, 0.5, 1.0)]
    assert [len(part) for part in parts] == [1, 2, 6, 16, 32]
    assert all(small < large for small, large in itertools.pairwise(parts))
    for wrong in (0.0, 1.1):
        with pytest.raises(OptionError, match="fraction="):
            part_of(names, fraction=wrong, seed=0)
        with pytest.raises(OptionError, match="val_share="):
            drawn_split(names, share=wrong, seed=0)


def test_evaluation_does_not_change_with_the_fraction(decathlon: Path) -> None:
    data = [module(decathlon, fraction=fraction) for fraction in (0.25, 1.0)]
    assert data[0].names["val"] == data[1].names["val"]
    assert (len(data[0].names["train"]), len(data[1].names["train"])) == (1, 5)


def test_evaluation_sees_exactly_what_the_entry_does_and_labels_lie_on_it(decathlon: Path, lits: Path) -> None:
    for data in (module(decathlon), module(lits, "lits", split="official", window=(-200.0, 250.0))):
        data.setup("fit")
        preprocess = Preprocess(**{**data.preprocess(mean=0.0, std=1.0), "minimum": (1, 1, 1)})
        for index, (example, case) in enumerate(data.examples()):
            x, target, known = data.val_set[(0, index)]
            assert torch.equal(preprocess(**example)[0], x)
            assert torch.equal(target, case.target)
            assert known.all()
            number = int(case.name.rpartition("-" if "-" in case.name else "_")[2])
            assert np.array_equal(target.numpy(), volumes.anatomy(number)[1])
        x, target = data.train_set[(1, 2)]
        assert x.shape == (1, 16, 16, 16)
        assert target.shape == (16, 16, 16)
    assert data.names == {"train": ["volume-1", "volume-3", "volume-4", "volume-5"], "val": ["volume-0"]}
    assert module(lits, "lits", split="official", evaluated="test").names["val"] == ["volume-2"]


def test_patches_that_are_about_nothing_are_anywhere(lits: Path) -> None:
    from svd_hub.training.data.patches import Augmentation

    still = Augmentation(scale=0, degrees=0, contrast=0, brightness=0, noise=0, slab=0, about=0.0, flip="DW")
    data = module(lits, "lits", augmentation=still, size=(18, 8, 8), window=(-200.0, 250.0))
    data.setup("fit")
    shares = [float((data.train_set[(e, 0)][1] > 0).float().mean()) for e in range(60)]
    about = Augmentation(scale=0, degrees=0, contrast=0, brightness=0, noise=0, slab=0, about=1.0)
    data.train_set.rule = about
    centred = [float((data.train_set[(e, 0)][1] > 0).float().mean()) for e in range(60)]
    assert np.mean(shares) < 0.8 * np.mean(centred)
    assert min(shares) < 0.03
    with pytest.raises(OptionError, match=r"augmentation\.flip='Q'"):
        Augmentation(flip="Q")


def test_pairs_that_prepare_left_out_are_left_out(tmp_path: Path) -> None:
    folder = volumes.lits(tmp_path / "set")
    (folder / "Training Batch 2" / "segmentation-1.nii").unlink()
    with pytest.raises(SvdHubError, match=r"segmentation-1\.nii does not exist.*leave volume-1 out"):
        module(folder, "lits", split="official").setup("fit")
    prepare(job_of("lits", folder), tmp_path / "checked")
    data = module(folder, "lits", split="official", checked=tmp_path / "checked")
    data.setup("fit")
    assert data.names["train"] == ["volume-3", "volume-4", "volume-5"]


def test_folders_of_another_form_are_told(tmp_path: Path, decathlon: Path) -> None:
    with pytest.raises(SvdHubError, match="--data FOLDER"):
        module(None).setup("fit")
    with pytest.raises(SvdHubError, match=r"dataset\.json does not exist"):
        read_pairs(tmp_path, "decathlon")
    with pytest.raises(SvdHubError, match="no pairs of the form 'lits'"):
        read_pairs(tmp_path, "lits")
    with pytest.raises(SvdHubError, match=r"classes with the values \[7\]"):
        module(decathlon, classes={"x": [7]}).setup("fit")
    with pytest.raises(OptionError, match="LiTS alone has one"):
        module(decathlon, split="official")
    table = json.loads((decathlon / "dataset.json").read_text())
    for change, told in (({"modality": {"0": "T1", "1": "T2"}}, "2 modalities"), ({"labels": ["a"]}, "another form")):
        (tmp_path / "dataset.json").write_text(json.dumps({**table, **change}))
        with pytest.raises(SvdHubError, match=told):
            read_pairs(tmp_path, "decathlon")
