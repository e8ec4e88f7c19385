"""Laws of the data: packed once and whole, seen as the entry sees them, augmented by the seed, never leaking."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from svd_hub.errors import OptionError, SvdHubError
from svd_hub.preprocess import Preprocess
from svd_hub.training.data import packed
from svd_hub.training.data.images import ImageParquet, Phase, random_resized_crop, resize_and_centre_crop
from svd_hub.training.data.lidc import LidcNodules, read_crop, read_nodules
from svd_hub.training.data.packed import PackedImages, pack
from svd_hub.training.miniature import pictures
from svd_hub.training.miniature.nodules import write_nodules
from svd_hub.training.seeding import sample_generator


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SVD_HUB_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def killed(action: Callable[[], object]) -> bool:
    with warnings.catch_warnings():
        # From Python 3.12 on: forking is safe here, every pool has one thread.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=action)
        process.start()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


def module(folder: Path | None, **options: Any) -> ImageParquet:
    settings: dict[str, Any] = {"phases": [Phase(epochs=1, size=16), Phase(epochs=2, size=24)], "eval_crop": 1.0}
    return ImageParquet(folder=folder, **{**settings, "batch_size": 4, "workers": 0, **options})


# ---- packing -------------------------------------------------------------------------------------------------------


def test_a_packed_split_holds_every_image_and_label_in_order(tmp_path: Path, cache: Path) -> None:
    folder = pictures.image_set(tmp_path / "set")
    made = pack(folder, "train", cache)
    rows = [row for file in sorted(folder.glob("train-*")) for row in pq.read_table(file).to_pylist()]
    assert len(made) == len(rows) == pictures.TRAIN
    assert made.labels.tolist() == [row["label"] for row in rows]
    for index, row in enumerate(rows):
        want = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        assert np.array_equal(np.asarray(made.image(index)), np.asarray(want))
    key = packed.fingerprint(packed.shards_of(folder, "train"))
    assert made.info == {"fingerprint": key, "images": pictures.TRAIN, "split": "train"}


def test_grey_images_become_three_equal_planes(tmp_path: Path, cache: Path) -> None:
    made = pack(pictures.image_set(tmp_path / "set"), "train", cache)
    grey = np.asarray(made.image(5))
    assert grey.shape == (24, 24, 3)
    assert np.array_equal(grey[:, :, 0], grey[:, :, 2])
    assert not np.array_equal(*(np.asarray(made.image(4))[:, :, c] for c in (0, 2)))


def test_the_second_call_reads_no_shard_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures.image_set(tmp_path / "set")
    first = pack(folder, "train", cache)
    monkeypatch.setattr(packed, "_write", None)
    assert pack(folder, "train", cache).folder == first.folder
    assert pickle.loads(pickle.dumps(first)).image(3) == first.image(3)
    assert len(pickle.dumps(first)) < 1000  # workers get the folder, not the images


def test_changed_shards_are_packed_anew_beside_the_old(tmp_path: Path, cache: Path) -> None:
    folder = pictures.image_set(tmp_path / "set")
    first = pack(folder, "val", cache)
    pictures.shard(folder / "val-00000-of-00001.parquet", [(pictures.encoded(pictures.picture(9)), 2)])
    second = pack(folder, "val", cache)
    assert (len(first), len(second)) == (7, 1)
    assert first.folder != second.folder
    assert len(PackedImages(first.folder)) == 7  # a run that uses it is not disturbed


@pytest.mark.parametrize("moment", ["images", "end"])
def test_kill_9_leaves_nothing_that_looks_finished(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder = pictures.image_set(tmp_path / "set")

    def die(*args: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        if moment == "images":
            patch.setattr(packed.np, "save", die)
        else:
            patch.setattr(packed.os, "replace", die)
        assert killed(lambda: pack(folder, "train", cache))
    assert not list(cache.glob("train-*"))
    assert len(pack(folder, "train", cache)) == pictures.TRAIN
    left = [f for f in (tmp_path / "cache").rglob("*") if f.name == "images.bin"]
    assert [f.parent.parent for f in left] == [cache]  # what the dead process left is gone


def test_two_processes_that_pack_at_once_both_have_it(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = pictures.image_set(tmp_path / "set"), packed._write

    def slow(*args: Any) -> None:
        before(*args)
        monkeypatch.setattr(packed, "_write", before)
        pack(folder, "train", cache)  # the other one is faster

    monkeypatch.setattr(packed, "_write", slow)
    assert len(pack(folder, "train", cache)) == pictures.TRAIN


def table(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


IMAGE = pa.array([{"bytes": b"x", "path": "x"}])
BAD = {
    "no label": (table(image=IMAGE), r"no columns \['label'\]; found: \['image'\]"),
    "not a struct": (table(image=pa.array([b"x"]), label=pa.array([1])), r"image \(binary\).*allowed"),
    "label text": (table(image=IMAGE, label=pa.array(["a"])), r"label \(string\).*allowed"),
    "no image": (
        table(image=pa.array([{"bytes": None, "path": "x"}], IMAGE.type), label=pa.array([1])),
        "without image or label",
    ),
    "no rows": (table(image=IMAGE[:0], label=pa.array([], pa.int64())), "hold no rows"),
    "not parquet": (lambda path: path.write_bytes(b"<html>"), r"cannot be read as Parquet.*Next"),
}


@pytest.mark.parametrize("case", BAD)
def test_shards_of_another_form_are_told(tmp_path: Path, cache: Path, case: str) -> None:
    make, told = BAD[case]
    make(tmp_path / "train-0.parquet")
    with pytest.raises(SvdHubError, match=told):
        pack(tmp_path, "train", cache)
    assert not list(cache.glob("train-*"))


def test_folders_without_shards_are_told(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(SvdHubError, match=r"no Parquet shards train-\*.*readme\.txt.*Next"):
        pack(tmp_path, "train", cache)
    with pytest.raises(SvdHubError, match="no such folder"):
        pack(tmp_path / "nowhere", "train", cache)
    with pytest.raises(SvdHubError, match="--data FOLDER"):
        module(None).setup("fit")
    (tmp_path / "set" / "data").mkdir(parents=True)  # as a repository of the HF Hub has them
    pictures.shard(tmp_path / "set" / "data" / "train-0.parquet", [(b"x", 0)])
    assert len(packed.shards_of(tmp_path / "set", "train")) == 1


def test_bytes_that_are_no_picture_are_named_when_they_are_read(tmp_path: Path, cache: Path) -> None:
    pictures.shard(tmp_path / "train-0.parquet", [(pictures.encoded(pictures.picture(0)), 0), (b"no picture", 1)])
    made = pack(tmp_path, "train", cache)
    made.image(0)
    with pytest.raises(SvdHubError, match=r"image 1 of split train \(10 bytes\) cannot be decoded"):
        made.image(1)


# ---- what the network sees -----------------------------------------------------------------------------------------


def seen(data: ImageParquet, index: int = 0) -> torch.Tensor:
    return data.val_set[(2, index)][0].float()


def through(data: ImageParquet, pixels: np.ndarray) -> torch.Tensor:
    """The same through the entry's own preprocessing, before mean and std."""
    return Preprocess(**data.preprocess(mean=0.0, std=1.0))(pixels)[0, 0]


def val_set(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    rows = [(pictures.encoded(pixels, "PNG"), 0)]
    pictures.shard(folder / "val-0.parquet", rows)
    pictures.shard(folder / "train-0.parquet", rows * 4)
    return folder


@pytest.mark.parametrize(("size", "eval_crop"), [((24, 24), 1.0), ((32, 32), 0.75), ((24, 30), 1.0), ((40, 32), 0.75)])
def test_at_its_own_size_evaluation_sees_exactly_what_the_entry_does(
    tmp_path: Path, size: tuple[int, int], eval_crop: float
) -> None:
    pixels = pictures.picture(3, size=size)
    data = module(val_set(tmp_path / "set", pixels), eval_crop=eval_crop)
    data.setup("validate")
    assert torch.equal(seen(data), through(data, pixels))


@pytest.mark.parametrize("size", [(48, 48), (17, 17), (60, 80), (33, 50), (24, 31)])
def test_resized_evaluation_agrees_within_rounding_and_half_a_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    """PIL rounds to whole values, and crops in the same resampling, between two pixels where the rest is odd."""
    pixels = pictures.picture(4, size=size)
    data = module(val_set(tmp_path / "set", pixels))
    data.setup("validate")
    difference, square = (seen(data) - through(data, pixels)).abs(), size[0] == size[1]
    assert float(difference.mean()) < (0.6 if square else 3)
    assert float(difference.max()) < (1.1 if square else 20)


def test_the_size_follows_the_phases(tmp_path: Path) -> None:
    data = module(pictures.image_set(tmp_path / "set"))
    data.setup("fit")
    assert [data.train_set.size(e) for e in range(5)] == [16, 24, 24, 24, 24]
    for loader in (data.train_dataloader(), data.val_dataloader()):
        sizes = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            x, label = next(iter(loader))
            sizes.append(tuple(x.shape[1:]))
            assert x.dtype == torch.uint8
            assert label.shape == (4,)
        assert sizes == [(3, 16, 16), (3, 24, 24)]


def test_augmentation_is_a_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    folder = pictures.image_set(tmp_path / "set")
    first, again, other = module(folder), module(folder), module(folder, seed=1)
    for data in (first, again, other):
        data.setup("fit")
    want = first.train_set[(1, 3)][0]
    again.train_set[(2, 0)]  # whatever was asked before
    assert torch.equal(again.train_set[(1, 3)][0], want)
    assert not torch.equal(first.train_set[(2, 3)][0], want)
    assert not torch.equal(other.train_set[(1, 3)][0], want)
    assert torch.equal(other.val_set[(1, 3)][0], first.val_set[(1, 3)][0])


def test_the_planes_are_shuffled_as_wholes_and_images_flipped(tmp_path: Path) -> None:
    pixels = np.zeros((24, 24, 3), dtype=np.uint8)
    pixels[:, :12] = (10, 100, 200)
    folder = val_set(tmp_path / "set", pixels)
    orders, flips = set(), set()
    data = module(folder, scale=(1.0, 1.0))
    data.setup("fit")
    for epoch in range(1, 40):
        x = data.train_set[(epoch, 0)][0]
        orders.add(tuple(x.amax((1, 2)).tolist()))
        flips.add(bool(x[:, :, 0].sum() > x[:, :, -1].sum()))
    assert flips == {True, False}
    assert len(orders) == 6
    assert {tuple(sorted(order)) for order in orders} == {(10, 100, 200)}
    still = module(folder, shuffle_planes=False)
    still.setup("fit")
    assert {tuple(still.train_set[(e, 0)][0].amax((1, 2)).argsort().tolist()) for e in range(1, 9)} == {(0, 1, 2)}


def test_random_crops_stay_inside_and_have_the_asked_area(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[tuple[float, ...]] = []

    class Page(Image.Image):
        def resize(self, size: Any, resample: Any = None, box: Any = None, reducing_gap: Any = None) -> Any:
            boxes.append(box)
            return self

    page = Page()
    page._size = (40, 30)
    for index in range(300):
        random_resized_crop(page, 16, (0.25, 0.5), sample_generator(0, 0, index))
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= 40
        assert 0 <= y0 < y1 <= 30
        assert 0.25 - 1e-9 <= (x1 - x0) * (y1 - y0) / 1200 <= 0.5 + 1e-9
        assert 3 / 4 - 1e-9 <= (x1 - x0) / (y1 - y0) <= 4 / 3 + 1e-9
    assert len({x0 for x0, *_ in boxes}) > 250


def test_the_centre_crop_is_the_centre() -> None:
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, 10:30] = 255
    assert np.asarray(resize_and_centre_crop(Image.fromarray(pixels), 20, 20)).min() == 255
    smaller = np.asarray(resize_and_centre_crop(Image.fromarray(pixels), 10, 10))
    assert smaller[:, 1:-1].min() == 255  # antialiasing looks over the edge
    assert np.array_equal(smaller, smaller[:, ::-1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"phases": []}, "phases"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.9, 0.5)}, "scale"),
        ({"eval_crop": 1.5}, "eval_crop"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_settings_that_make_no_sense_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        module(None, **options)
    with pytest.raises(OptionError, match="0 epochs"):
        Phase(epochs=0, size=8)


def test_class_names_are_read_where_they_are(tmp_path: Path) -> None:
    folder = pictures.image_set(tmp_path / "set")
    assert module(folder).class_names() == ("thing 0", "thing 1", "thing 2")
    (folder / "classes.json").unlink()
    assert module(folder).class_names() == ()


# ---- nodules -------------------------------------------------------------------------------------------------------


def row(name: str, patient: str, fold: int, label: int) -> dict[str, Any]:
    return {"name": name, "patient_id": patient, "Malignancy_value": label + 2, "fold": fold, "label": label}


ROWS = [row(f"n{i}", f"p{i}", i % 3, i % 2) for i in range(12)] + [row("undecided", "p12", 0, -1)]


def crop(seed: int, shape: tuple[int, int, int] = (12, 12, 12)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 400, shape).astype(np.int16)


@pytest.fixture
def nodules(tmp_path: Path) -> Path:
    shapes = [(12, 12, 12), (9, 12, 15), (11, 10, 13), (20, 7, 8)]
    volumes = {r["name"]: crop(i, shapes[i % 4]) for i, r in enumerate(ROWS)}
    return write_nodules(tmp_path / "nodules", ROWS, volumes)


def lidc(folder: Path | None, **options: Any) -> LidcNodules:
    return LidcNodules(
        folder=folder, **{"train_folds": [0, 1], "val_folds": [2], "size": 8, "margin": 4, "batch_size": 2, **options}
    )


def test_undecided_nodules_are_left_out_and_folds_kept_apart(nodules: Path) -> None:
    data = lidc(nodules)
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (8, 4)
    assert len(read_nodules(nodules)) == 13
    assert set(data.train_set.labels) == {0, 1}
    x, label = next(iter(data.train_dataloader()))
    assert x.shape == (2, 1, 8, 8, 8)
    assert label.dtype == torch.int64
    assert 0 <= float(x.min()) <= float(x.max()) <= 255


def test_axes_and_spacing_become_z_y_x(tmp_path: Path) -> None:
    """NIfTI holds (x, y, z): a bright voxel at x=1, y=2, z=5 of a (6, 7, 9) volume with its own spacing each."""
    volume = np.full((6, 7, 9), -1000, dtype=np.int16)
    volume[1, 2, 5] = 400
    folder = write_nodules(tmp_path / "set", [row("a", "p", 0, 1)], {"a": volume}, zooms=(0.5, 0.75, 2.0))
    array, spacing = read_crop(folder, "a")
    assert array.shape == (9, 7, 6)
    assert spacing == pytest.approx((2.0, 0.75, 0.5))
    assert tuple(np.argwhere(array == 400)[0]) == (5, 2, 1)
    cube = lidc(folder, size=16).exact(array, spacing=spacing)
    assert cube.shape == (1, 1, 16, 16, 16)
    inside = (cube[0, 0] > 0).nonzero().float()
    # 18 x 5 x 3 voxels of 1 mm; cut to 16 in depth, centred in the others (5 and 6 voxels of padding before)
    centre = inside.mean(0)
    assert centre[0] == pytest.approx(5.5 * 2 - 0.5 - 1, abs=1)
    assert centre[1] == pytest.approx(2.5 * 0.75 - 0.5 + 5, abs=1)
    assert centre[2] == pytest.approx(1.5 * 0.5 - 0.5 + 6, abs=1)


def test_padding_is_the_low_end_of_the_window(tmp_path: Path) -> None:
    volume = np.full((4, 4, 4), 400, dtype=np.int16)
    rows = [row(f"{i}", f"p{i}", i, i % 2) for i in range(3)]
    folder = write_nodules(tmp_path / "set", rows, {r["name"]: volume for r in rows})
    data = lidc(folder)
    data.setup("fit")
    cube = data.val_set[(0, 0)][0][0]
    assert torch.equal(cube[2:6, 2:6, 2:6], torch.full((4, 4, 4), 255.0))
    assert float(cube.sum()) == 64 * 255
    assert float(data.train_set.volumes.sum()) == 2 * 64 * 255


def test_evaluation_sees_exactly_what_the_entry_does(nodules: Path) -> None:
    """Also where a crop is odd, and smaller or larger than the cube."""
    data = lidc(nodules)
    data.setup("fit")
    preprocess = Preprocess(**data.preprocess(mean=0.0, std=1.0))
    examples = list(data.examples())
    assert [label for _, label in examples] == data.val_set.labels
    for index, (example, _) in enumerate(examples):
        assert torch.equal(preprocess(**example)[0], data.val_set[(0, index)][0])


def test_augmentation_of_crops_keeps_the_voxels_and_the_seed_decides_it(nodules: Path) -> None:
    data, again, other = lidc(nodules, margin=0), lidc(nodules, margin=0), lidc(nodules, margin=0, seed=1)
    for one in (data, again, other):
        one.setup("fit")
    plain = data.train_set.volumes[0]
    views = [data.train_set[(epoch, 0)][0] for epoch in range(30)]
    assert all(torch.equal(v.flatten().sort()[0], plain.flatten().sort()[0]) for v in views)
    assert len({v.numpy().tobytes() for v in views}) > 8
    assert all(torch.equal(again.train_set[(e, 0)][0], v) for e, v in enumerate(views))
    assert not all(torch.equal(other.train_set[(e, 0)][0], v) for e, v in enumerate(views))
    shifted = lidc(nodules)
    shifted.setup("fit")
    assert len({shifted.train_set[(e, 0)][0].numpy().tobytes() for e in range(30)}) > 20


def test_leaks_are_refused(tmp_path: Path, nodules: Path) -> None:
    with pytest.raises(SvdHubError, match=r"1 of the 3 folds are in train_folds and in val_folds"):
        lidc(nodules, val_folds=[1, 2])
    leaking = write_nodules(tmp_path / "leaking", [row("a", "same", 0, 0), row("b", "same", 1, 1)], {})
    with pytest.raises(SvdHubError, match=r"1 of the 1 patients are in fold 0 and in fold 1"):
        read_nodules(leaking)


def test_nodule_sets_of_another_form_are_told(tmp_path: Path, nodules: Path) -> None:
    with pytest.raises(SvdHubError, match=r"nodules\.csv does not exist.*--data"):
        read_nodules(tmp_path)
    with pytest.raises(SvdHubError, match="--data FOLDER"):
        lidc(None).setup("fit")
    with pytest.raises(SvdHubError, match=r"no labelled nodules of folds \[7\]"):
        lidc(nodules, val_folds=[7]).setup("fit")
    file = nodules / "nodules.csv"
    text = file.read_text()
    file.write_text(text.replace("fold", "part", 1))
    with pytest.raises(SvdHubError, match=r"no columns \['fold'\]; found"):
        read_nodules(nodules)
    file.write_text(text.replace("n3,p3,3", "n3,p3,high"))
    with pytest.raises(SvdHubError, match=r"line 5: .*must be numbers"):
        read_nodules(nodules)
    file.write_text(text)
    (nodules / "images" / "n2.nii.gz").unlink()
    with pytest.raises(SvdHubError, match=r"n2\.nii\.gz does not exist"):
        lidc(nodules).setup("fit")


def test_the_fingerprint_follows_the_data(tmp_path: Path, nodules: Path) -> None:
    def of(data: Any) -> str:
        data.setup("fit")
        return json.dumps(data.fingerprint())

    first = of(lidc(nodules))
    assert first == of(lidc(nodules))
    assert str(tmp_path) not in first
    assert of(lidc(nodules, train_folds=[0])) != first
    moved = nodules.rename(tmp_path / "moved")
    assert of(lidc(moved)) == first
    nibabel.save(nibabel.Nifti1Image(crop(99), np.eye(4)), moved / "images" / "n1.nii.gz")
    assert of(lidc(moved)) != first
    images = pictures.image_set(tmp_path / "images")
    one = of(module(images))
    assert str(tmp_path) not in one
    assert of(module(images.rename(tmp_path / "elsewhere"))) == one
    assert of(module(pictures.image_set(tmp_path / "others", seed=1))) != one
