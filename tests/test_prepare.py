"""Laws of `svd-hub prepare`: whole or not there, goes on after any kill to the same bytes, says what it left out."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_lidc import contour, message, nodule, square
from helpers_training import forked
from helpers_volume import make_series
from PIL import Image
from typer.testing import CliRunner

from svd_hub import cli, volume
from svd_hub.errors import OptionError, SvdHubError
from svd_hub.training.data.images import ImageParquet, Phase
from svd_hub.training.data.lidc import LidcNodules, read_nodules
from svd_hub.training.data.lidc_masks import LidcMasks
from svd_hub.training.data.packed import pack
from svd_hub.training.miniature import nodules, pictures, volumes
from svd_hub.training.miniature.volumes import write_volume
from svd_hub.training.prepare import job_of, prepare
from svd_hub.training.prepare.imagenet import ImageNet, shrunk
from svd_hub.training.prepare.job import Done, Entry, Job
from svd_hub.training.prepare.lidc import fold_of


class Words(Job):
    """A word a task; some tasks leave something out."""

    name = "words"

    def __init__(self, count: int = 12, *, loud: bool = False) -> None:
        self.count, self.loud, self.made = count, loud, list[str]()

    def question(self) -> dict[str, Any]:
        return {"count": self.count, "loud": self.loud}

    def tasks(self) -> Sequence[str]:
        return [f"word{k}" for k in range(self.count)]

    def do(self, task: str, folder: Path) -> Done:
        self.made.append(task)
        (folder / f"{task}.txt").write_text(task.upper() if self.loud else task)
        dropped = ((f"{task}, second", "unreadable: why"),) if task.endswith("3") else ()
        return Done(files=(f"{task}.txt",), dropped=dropped, facts=len(task))

    def assemble(self, folder: Path, entries: Sequence[Entry]) -> tuple[dict[str, Any], list[str]]:
        (folder / "all.txt").write_text(" ".join((folder / e.done.files[0]).read_text() for e in entries))
        return {"letters": sum(e.done.facts for e in entries)}, ["word0.txt"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_what_comes_out_is_whole_hashed_and_says_what_it_left_out(tmp_path: Path) -> None:
    report = prepare(Words(), tmp_path / "out", workers=3)
    assert (report.facts, report.dropped) == ({"letters": 12 * 5 + 2}, {"unreadable": 1})
    found = contents(tmp_path / "out")
    assert set(found) == {*(f"word{k}.txt" for k in range(1, 12)), "all.txt", "dropped.csv", "prepared.json"}
    assert found["all.txt"].decode() == " ".join(f"word{k}" for k in range(12))
    assert list(csv.reader(io.StringIO(found["dropped.csv"].decode())))[1:] == [["word3, second", "unreadable: why"]]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again = Words()
    assert prepare(again, tmp_path / "out").before
    assert again.made == []


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path, seed: int) -> None:
    prepare(Words(), tmp_path / "whole", workers=1)
    at = random.Random(seed).randrange(12)

    class Dying(Words):
        def do(self, task: str, folder: Path) -> Done:
            if task == f"word{at}":
                (folder / f"{task}.txt").write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
            return super().do(task, folder)

    assert forked(lambda: prepare(Dying(), tmp_path / "out", workers=1)) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    rest = Words()
    prepare(rest, tmp_path / "out", workers=1)
    assert len(rest.made) <= 12 - max(0, at - 1)  # all but those whose line was written
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["assemble", "replace", "remove"])
def test_killed_at_the_end_it_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    from svd_hub.training.prepare import job

    prepare(Words(), tmp_path / "whole")

    def die(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        real = os.replace  # files are moved by it too, and pass
        places: dict[str, tuple[Any, str, Any]] = {
            "assemble": (Words, "assemble", die),
            "replace": (job.os, "replace", lambda a, b: real(a, b) if Path(b).suffix else die()),
            "remove": (job, "_remove", die),
        }
        patch.setattr(*places[moment])
        assert forked(lambda: prepare(Words(), tmp_path / "out")) == -signal.SIGKILL
    rest = Words()
    prepare(rest, tmp_path / "out")
    assert rest.made == []
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_line_that_was_cut_off_and_files_that_are_gone_are_made_again(tmp_path: Path) -> None:
    class Failing(Words):
        def do(self, task: str, folder: Path) -> Done:
            if task == "word9":
                raise SvdHubError("the disk is full")
            return super().do(task, folder)

    with pytest.raises(SvdHubError, match="the disk is full"):
        prepare(Failing(), tmp_path / "out", workers=1)
    part = tmp_path / "out.part"
    journal = part / "journal.jsonl"
    cut = json.loads(journal.read_text().splitlines()[-1])["task"]
    journal.write_text(journal.read_text()[:-7])
    (part / "word2.txt").unlink()
    (part / "word4.txt").write_text("longer than before")
    rest = Words()
    prepare(rest, tmp_path / "out", workers=1)
    assert {"word2", "word4", "word9", cut} <= set(rest.made)
    assert "word5" not in rest.made


def test_folders_of_another_kind_are_told(tmp_path: Path) -> None:
    prepare(Words(), tmp_path / "out")
    with pytest.raises(SvdHubError, match="prepared with other options"):
        prepare(Words(loud=True), tmp_path / "out")
    (tmp_path / "out" / "word5.txt").write_text("word6")
    with pytest.raises(SvdHubError, match=r"word5\.txt is missing or damaged"):
        prepare(Words(), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    with pytest.raises(SvdHubError, match="was not prepared here"):
        prepare(Words(), tmp_path / "mine")
    (tmp_path / "other.part").mkdir()
    (tmp_path / "other.part" / "job.json").write_text("{}")
    with pytest.raises(SvdHubError, match="begun with other options"):
        prepare(Words(), tmp_path / "other")
    with pytest.raises(SvdHubError, match="nothing to prepare"):
        prepare(Words(0), tmp_path / "none")


def test_data_sets_and_options_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"dataset='kitti'.*'imagenet', 'lidc', 'lits', 'decathlon'"):
        job_of("kitti", tmp_path)
    with pytest.raises(OptionError, match="imagenet has no option 'size'; allowed: short_side, quality"):
        job_of("imagenet", tmp_path, {"size": "3"})
    with pytest.raises(OptionError, match="short_side='x' is not allowed; allowed: int"):
        job_of("imagenet", tmp_path, {"short_side": "x"})
    for wrong in ({"short_side": -1}, {"quality": 0}):
        with pytest.raises(OptionError, match="allowed: 0 or more, 1 to 100"):
            ImageNet(source=tmp_path, **wrong)


# ---- pictures ------------------------------------------------------------------------------------------------------


def folders(folder: Path) -> Path:
    """Three classes of JPEGs; a broken one, a PNG, a grey one and one of four colours."""
    for k in range(17):
        split, name = ("train" if k < 13 else "val"), f"n{k % 3}"
        (folder / split / name).mkdir(parents=True, exist_ok=True)
        data = pictures.encoded(pictures.picture(k, size=(30 + k, 40), label=k % 3))
        (folder / split / name / f"{k:02}.JPEG").write_bytes(data if k != 4 else data[:-300])
    Image.fromarray(pictures.picture(50, size=(40, 30))).save(folder / "train" / "n0" / "x.png")
    Image.fromarray(pictures.picture(51, size=(20, 30), grey=True)).save(folder / "train" / "n1" / "y.JPEG")
    Image.new("CMYK", (20, 24), (9, 90, 30, 0)).save(folder / "train" / "n2" / "z.JPEG")
    (folder / "LOC_synset_mapping.txt").write_text("n0 a thing, other name\nn1 b\nn2 c\n")
    return folder


def test_folders_of_classes_become_what_the_recipes_read(tmp_path: Path) -> None:
    source = folders(tmp_path / "set")
    report = prepare(ImageNet(source=source, short_side=24), tmp_path / "out", workers=2)
    assert report.dropped == {"unreadable": 1}
    assert report.facts["train"]["images"] == 15
    data = ImageParquet(folder=tmp_path / "out", phases=[Phase(epochs=1, size=16)], batch_size=4, workers=0)
    data.setup("fit")
    assert data.class_names() == ("a thing", "b", "c")
    images = data.train_set.images
    files = [
        file
        for name in ("n0", "n1", "n2")
        for file in sorted((source / "train" / name).iterdir())
        if file.name != "04.JPEG"
    ]
    assert images.labels.tolist() == [int(file.parent.name[1]) for file in files]
    for k, file in enumerate(files):
        with Image.open(file) as before:
            size, small = before.size, min(before.size) <= 24
            want = np.asarray(before.convert("RGB"), float)
        made = images.image(k)
        assert min(made.size) == min(24, min(size))
        assert abs(made.size[0] / made.size[1] - size[0] / size[1]) < 0.05
        if small and file.name != "z.JPEG":
            assert np.array_equal(np.asarray(made), want)
        assert np.abs(np.asarray(made, float).mean((0, 1)) - want.mean((0, 1))).max() < 3
    assert len(data.val_set.images) == 4


def test_shards_become_the_same_and_keep_their_names(tmp_path: Path) -> None:
    source = pictures.image_set(tmp_path / "set")
    (source / "val-00000-of-00001.parquet").rename(source / "validation-00000-of-00001.parquet")
    prepare(ImageNet(source=source), tmp_path / "out")
    made = pack(tmp_path / "out", "train", tmp_path / "nowhere")
    assert (len(made), len(pack(tmp_path / "out", "val", tmp_path / "nowhere"))) == (pictures.TRAIN, 7)
    assert np.array_equal(np.asarray(made.image(3)), np.asarray(pack(source, "train", tmp_path / "cache").image(3)))
    assert json.loads((tmp_path / "out" / "classes.json").read_text())[0]["words"] == "thing 0, other name"


def test_pictures_as_they_are_stay_so() -> None:
    large = pictures.encoded(pictures.picture(1, size=(90, 80)))
    assert shrunk(large, 0, 90) == large
    assert shrunk(large, 80, 90) == large
    png = pictures.encoded(pictures.picture(1), "PNG")
    assert shrunk(png, 0, 90) == png
    with Image.open(io.BytesIO(shrunk(png, 80, 90))) as made:
        assert (made.format, made.size) == ("JPEG", (24, 24))


def test_folders_without_labels_are_told(tmp_path: Path) -> None:
    source = folders(tmp_path / "set")
    (source / "val" / "n9").mkdir()
    with pytest.raises(SvdHubError, match="classes that train has not: n9"):
        prepare(ImageNet(source=source), tmp_path / "out")
    for file in (source / "val").rglob("*.JPEG"):
        file.rename(source / "val" / file.name)
    for place in (source / "val").glob("n*"):
        place.rmdir()
    with pytest.raises(SvdHubError, match="no folders of classes, so the pictures have no labels"):
        prepare(ImageNet(source=source), tmp_path / "out")
    with pytest.raises(SvdHubError, match="no Parquet shards"):
        prepare(ImageNet(source=tmp_path / "nothing"), tmp_path / "out")


# ---- LIDC ----------------------------------------------------------------------------------------------------------

BRIGHT = 1500  # stored: 476 HU


def scan(folder: Path, patient: str, series: str, *, down: bool = False, xml: bool = True, readers: int = 2) -> Path:
    """A CT of 12 slices whose nodule is bright, and its XML in another folder."""
    stored = np.random.default_rng(len(series)).integers(100, 300, (12, 24, 28)).astype(np.uint16)
    stored[4:7, 10:15, 6:12] = BRIGHT
    stored[0, 0, :2] = (0, 3000)
    paths = make_series(
        folder / patient / "study" / "series",
        stored,
        spacing=(-2.0 if down else 2.0, 0.8, 0.8),
        series=series,
        patient=(patient, patient),
        edit=lambda data, k: setattr(data, "SOPInstanceUID", f"{series}.{k + 1}"),
    )
    line = [(x, y) for x, y in square(6, 10, 5)]
    line = [(x + 1 if x > 8 else x, y) for x, y in line]  # six columns wide
    rois = [contour(f"{series}.{k + 1}", 0.0, line) for k in (4, 5, 6)]
    place = folder / "xml" / f"{series}.xml"
    place.parent.mkdir(exist_ok=True)
    if xml:
        place.write_text(message([[nodule("n", rois, 5)] for _ in range(readers)] + [[]], series=series))
    assert paths
    return folder


@pytest.fixture(scope="module")
def tcia(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tcia")
    for k in range(6):
        scan(folder, f"LIDC-IDRI-{k:04}", f"1.2.{k}", down=k % 2 == 1)
    scan(folder, "LIDC-IDRI-0100", "1.2.100", xml=False)
    scan(folder, "LIDC-IDRI-0101", "1.2.101", readers=1)
    (folder / "xml" / "radiograph.xml").write_text("<IdriReadMessage/>")
    return folder


def test_scans_and_readings_become_nodules_with_their_masks(tcia: Path, tmp_path: Path) -> None:
    """Slices run up or down; the mask lies on the bright voxels."""
    report = prepare(job_of("lidc", tcia, {"side": "16", "readers": "2"}), tmp_path / "out")
    assert report.facts == {"nodules": 6, "patients": 6, "benign": 0, "malignant": 6, "undecided": 0}
    assert report.dropped == {"no XML of a CT of this folder": 1, "drawn by fewer than 2 readers": 1}
    rows = read_nodules(tmp_path / "out")
    assert {row.fold for row in rows} == {fold_of(row.patient) for row in rows}
    for row in rows:
        image = volume.read(tmp_path / "out" / "images" / f"{row.name}.nii.gz", modality="CT")
        mask = volume.read(tmp_path / "out" / "masks" / f"{row.name}.nii.gz")
        assert np.array_equal(mask.array > 0, image.array == BRIGHT - 1024)
        assert mask.array.sum() == 3 * 5 * 6
        whole = volume.read(tcia / row.patient / "study" / "series", modality="CT")
        at = np.rint(whole.grid.indices(image.grid.points(np.argwhere(mask.array)))).astype(int)
        assert (whole.array[tuple(at.T)] == BRIGHT - 1024).all()
    folds = sorted({row.fold for row in rows})
    data = LidcMasks(folder=tmp_path / "out", train_folds=folds[1:], val_folds=folds[:1], size=8, margin=2)
    data.setup("fit")
    assert data.train_set[(0, 0)][1].any()
    assert LidcNodules(folder=tmp_path / "out", train_folds=folds[1:], val_folds=folds[:1])._rows(folds)


def test_the_npz_set_becomes_nifti_pairs(tmp_path: Path) -> None:
    source = nodules.acs_set(tmp_path / "set", count=6)
    report = prepare(job_of("lidc", source), tmp_path / "out")
    assert (report.facts["benign"], report.facts["malignant"]) == (3, 3)
    rows = read_nodules(tmp_path / "out")
    assert len({row.patient for row in rows}) == 5
    with np.load(source / "nodule" / f"{rows[0].name}.npz") as before:
        image = volume.read(tmp_path / "out" / "images" / f"{rows[0].name}.nii.gz")
        mask = volume.read(tmp_path / "out" / "masks" / f"{rows[0].name}.nii.gz")
        assert np.abs(image.array - (before["voxel"] / 255 * 1424 - 1024)).max() <= 0.5
        assert np.array_equal(mask.array, before["answer1"])


def test_downloads_that_lack_a_half_are_told(tmp_path: Path, tcia: Path) -> None:
    (tmp_path / "only").mkdir()
    with pytest.raises(SvdHubError, match="holds no DICOM files"):
        prepare(job_of("lidc", tmp_path / "only"), tmp_path / "out")
    scan(tmp_path / "only", "LIDC-IDRI-0001", "1.2.9", xml=False)
    with pytest.raises(SvdHubError, match="holds no XML of readings"):
        prepare(job_of("lidc", tmp_path / "only"), tmp_path / "out")
    with pytest.raises(SvdHubError, match="is no folder"):
        prepare(job_of("lidc", tmp_path / "none"), tmp_path / "out")
    with pytest.raises(OptionError, match="readers=5"):
        job_of("lidc", tcia, {"readers": "5"})


# ---- pairs ---------------------------------------------------------------------------------------------------------


def test_pairs_are_looked_at_and_wrong_ones_named(tmp_path: Path) -> None:
    """By the command."""
    source = volumes.lits(tmp_path / "set")
    batch = source / "Training Batch 2"
    (batch / "segmentation-1.nii").unlink()
    write_volume(batch / "segmentation-3.nii", volumes.anatomy(3)[1][1:])
    write_volume(batch / "segmentation-5.nii", volumes.anatomy(5)[1] * 3)
    cli._add_commands()
    result = CliRunner().invoke(
        cli.app, ["prepare", "lits", str(source), str(tmp_path / "out")], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert "pairs: 3" in result.output
    assert "left out: 1, two grids" in result.output
    rows = list(csv.DictReader((tmp_path / "out" / "cases.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["volume-0", "volume-2", "volume-4"]
    labels = volumes.anatomy(0)[1]
    assert [int(rows[0][f"voxels_{name}"]) for name in ("liver", "tumour")] == [(labels == k).sum() for k in (1, 2)]
    dropped = dict(csv.reader((tmp_path / "out" / "dropped.csv").read_text().splitlines()))
    assert dropped["volume-1"].startswith("missing labels: segmentation-1.nii")
    assert dropped["volume-5"].startswith("unknown labels: [3.0, 6.0]")
    assert str(tmp_path) not in (tmp_path / "out" / "dropped.csv").read_text()
    again = CliRunner().invoke(cli.app, ["prepare", "lits", str(source), str(tmp_path / "out"), "--json"])
    assert json.loads(again.output)["pairs"] == 3
