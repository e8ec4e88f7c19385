"""Laws of images with boxes: what is read and what is left out, boxes that follow their image, samples by the seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from svd_hub.errors import OptionError, SvdHubError
from svd_hub.models.detection import Target
from svd_hub.preprocess import Preprocess
from svd_hub.training.data.annotations import read_coco, read_nih
from svd_hub.training.data.boxes import Boxed, Picture, Sample, collate, for_training, mirrored, resized
from svd_hub.training.data.coco import CocoImages
from svd_hub.training.data.deeplesion import DeepLesionSlices
from svd_hub.training.miniature.boxes import LESIONS, coco_set, lesion_set, write_slice


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    coco_set(folder / "coco")
    lesion_set(folder / "lesions")
    return folder


def coco(sets: Path, **options: Any) -> CocoImages:
    return CocoImages(**{"folder": sets / "coco", "sizes": (48, 64), "eval_size": 64, "workers": 0, **options})


def lesions(sets: Path, **options: Any) -> DeepLesionSlices:
    return DeepLesionSlices(**{"folder": sets / "lesions", "sizes": (64,), "eval_size": 64, "workers": 0, **options})


def picture(boxes: Any, size: tuple[int, int] = (30, 50), crowd: Any = None) -> Picture:
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Picture(
        file="a.jpg",
        size=size,
        boxes=corners,
        labels=np.arange(len(corners)),
        crowd=np.zeros(len(corners), bool) if crowd is None else np.array(crowd, bool),
        area=np.ones(len(corners), np.float32),
    )


# ---- geometry ------------------------------------------------------------------------------------------------------


def painted(size: tuple[int, int], boxes: Tensor, depth: int = 1) -> Tensor:
    """An image (1, D, H, W) that is the number of the box at each pixel; boxes on whole pixels."""
    image = torch.zeros(1, depth, *size)
    for number, (x0, y0, x1, y1) in enumerate(boxes.round().int().tolist(), start=1):
        image[:, :, y0:y1, x0:x1] = number
    return image


@pytest.mark.parametrize("seed", range(8))
def test_boxes_follow_flips_exactly(seed: int) -> None:
    random = np.random.default_rng(seed)
    size = tuple(int(n) for n in random.integers(20, 40, 2))
    x, y = np.sort(random.choice(size[1], 2, replace=False)), np.sort(random.choice(size[0], 2, replace=False))
    boxes = torch.tensor([[x[0], y[0], x[1], y[1]]], dtype=torch.float32)
    image = painted(size, boxes, depth=3)  # type: ignore[arg-type]
    image[:, 0] += 10  # the first slice can be told
    for flip in ("horizontal", "vertical", "depth"):
        turned, moved = mirrored(image, boxes, flip)  # type: ignore[arg-type]
        assert torch.equal(turned[:, 1], painted(size, moved)[:, 0])  # type: ignore[arg-type]
        assert torch.equal(
            turned[0, :, 0, 0] > 5, torch.tensor([False, False, True] if flip == "depth" else [True, False, False])
        )
        back, again = mirrored(turned, moved, flip)  # type: ignore[arg-type]
        assert torch.equal(back, image)
        assert torch.equal(again, boxes)
    _, between = mirrored(image, torch.tensor([[1.25, 2.5, 7.75, 9.0]]), "horizontal")
    assert between.tolist() == [[size[1] - 7.75, 2.5, size[1] - 1.25, 9.0]]


def test_an_image_and_its_boxes_are_scaled_alike() -> None:
    """At twice the size each pixel is four: pixel borders, which boxes are made of, stay pixel borders."""
    boxes = torch.tensor([[4.0, 6.0, 20.0, 18.0]])
    image = painted((24, 32), boxes)
    large, scale = resized(image, 64)
    assert large.shape == (1, 1, 48, 64)
    assert scale.tolist() == [2.0, 2.0]
    x0, y0, x1, y1 = (boxes * scale.repeat(2))[0].int().tolist()
    inner = large[0, 0, y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
    assert bool((inner == 1).all())
    outer = large[0, 0].clone()
    outer[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = 0
    assert not outer.any()
    assert float(large.sum()) == pytest.approx(4 * float(image.sum()), rel=1e-6)
    same, one = resized(image, 32)
    assert same is image
    assert one.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("size", "longest"), [((427, 640), 384), ((640, 427), 448), ((512, 512), 640), ((333, 500), 576)]
)
def test_the_longer_side_is_the_size_and_the_ratio_is_kept(size: tuple[int, int], longest: int) -> None:
    """Sides as mmcv rounds them, and the scale that of each side: boxes reach the border where the image does."""
    image, scale = resized(torch.zeros(1, 1, *size), longest)
    height, width = image.shape[2:]
    assert max(height, width) == longest
    assert (height, width) == tuple(int(side * longest / max(size) + 0.5) for side in size)
    corner = torch.tensor([0.0, 0.0, size[1], size[0]]) * scale.repeat(2)
    assert corner.tolist() == pytest.approx([0, 0, width, height])


def test_values_are_those_of_plain_bilinear_interpolation() -> None:
    random = np.random.default_rng(0)
    values = random.uniform(0, 255, (9, 12))
    found = resized(torch.from_numpy(values)[None, None].float(), 16)[0][0, 0]
    assert found.shape == (12, 16)
    for i in range(12):
        for j in range(16):
            y, x = (min(max((k + 0.5) * 0.75 - 0.5, 0), n - 1) for k, n in ((i, 9), (j, 12)))
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, 8), min(x0 + 1, 11)
            top = values[y0, x0] * (1 - x + x0) + values[y0, x1] * (x - x0)
            bottom = values[y1, x0] * (1 - x + x0) + values[y1, x1] * (x - x0)
            assert float(found[i, j]) == pytest.approx(top * (1 - y + y0) + bottom * (y - y0), abs=1e-3)


def test_a_batch_pads_below_and_on_the_right() -> None:
    empty = torch.zeros(0)
    truth = picture([]).truth()
    samples = [
        Sample(torch.ones(1, 3, h, w), Target(torch.zeros(0, 4), empty.long()), truth, torch.tensor([w / 10, h / 10]))
        for h, w in ((4, 7), (6, 5))
    ]
    batch = collate(samples)
    assert batch.images.shape == (2, 1, 3, 6, 7)
    assert batch.sizes.tolist() == [[4, 7], [6, 5]]
    assert batch.images.sum().item() == 3 * (28 + 30)
    assert bool((batch.images[0, :, :, :4, :7] == 1).all())
    torch.testing.assert_close(batch.scales, torch.tensor([[0.7, 0.4], [0.5, 0.6]]))


# ---- what trains ---------------------------------------------------------------------------------------------------


def test_what_cannot_train_is_left_out_and_counted() -> None:
    """Crowds, slivers, boxes outside, and pictures of which nothing is left; boxes end at the border."""
    pictures = [
        picture([[-3, 2, 20, 40], [10, 5, 10.5, 25], [49.5, 0, 60, 9], [0, 0, 30, 20]], crowd=[0, 0, 0, 1]),
        picture([[0, 0, 30, 20]], crowd=[True]),
        picture([]),
        picture([[1, 2, 3, 4]]),
    ]
    kept, counts = for_training(pictures)
    assert [p.boxes.tolist() for p in kept] == [[[0, 2, 20, 30]], [[1, 2, 3, 4]]]
    assert [p.labels.tolist() for p in kept] == [[0], [0]]
    assert counts == {
        "images": 2,
        "boxes": 2,
        "crowds left out": 2,
        "boxes left out": 2,
        "images without a box": 2,
    }
    assert pictures[0].boxes[0, 0] == -3  # what is measured against stays as it is


@pytest.mark.parametrize("kind", ["coco", "lesions"])
def test_a_sample_is_a_function_of_seed_epoch_and_index(sets: Path, kind: str) -> None:
    def made(seed: int) -> Boxed:
        module = (coco if kind == "coco" else lesions)(sets, seed=seed, sizes=(40, 48, 56, 64))
        module.setup("fit")
        return module.train_set

    def key(sample: Sample) -> list[Any]:
        return [sample.image, sample.target.boxes]

    def same(a: Sample, b: Sample) -> bool:
        return all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(key(a), key(b), strict=True))

    one, two = made(0), made(0)
    _ = two[0, 1]
    places = [(epoch, index) for epoch in range(4) for index in range(3)]
    assert all(same(one[place], two[place]) for place in places)
    assert not all(same(one[place], made(1)[place]) for place in places)
    assert len({tuple(one[epoch, 0].image.shape) for epoch in range(12)}) == 4  # all sizes come
    for place in places:
        sample, original = one[place], one.pictures[place[1]]
        widths = (sample.target.boxes[:, 2:] - sample.target.boxes[:, :2]) / sample.scale
        np.testing.assert_allclose(widths, original.boxes[:, 2:] - original.boxes[:, :2], rtol=1e-5)
        level = sample.image[0, sample.image.shape[1] // 2]
        x0, y0, x1, y1 = sample.target.boxes[0].round().int().tolist()
        inside, around = level[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].mean(), level.median()
        assert abs(float(inside - around)) > 40  # the object is where its box is


def test_half_of_the_samples_are_flipped_each_way(sets: Path) -> None:
    module = lesions(sets, flips=("horizontal", "vertical", "depth"), first=1)
    module.setup("fit")
    x0, y0, _, _ = module.train_set.pictures[0].boxes[0]
    seen = np.array([
        (boxes[0, 0] != x0, boxes[0, 1] != y0, image[0, 0].median() > image[0, -1].median())
        for image, (boxes, _), *_ in (module.train_set[epoch, 0] for epoch in range(200))
    ])  # fmt: skip
    assert ((seen.mean(0) > 0.4) & (seen.mean(0) < 0.6)).all()
    assert np.abs(np.corrcoef(seen.T.astype(float)) - np.eye(3)).max() < 0.2  # one does not go with another
    module = lesions(sets, flips=(), first=1)
    module.setup("fit")
    assert all(torch.equal(module.train_set[e, 0].image, module.train_set[0, 0].image) for e in range(5))


# ---- COCO ----------------------------------------------------------------------------------------------------------


def test_the_tables_are_read_as_they_are(sets: Path) -> None:
    table = json.loads((sets / "coco" / "instances_train2017.json").read_text())
    pictures, classes = read_coco(sets / "coco" / "instances_train2017.json")
    assert classes == ("cat", "dog")  # in the order of their ids, 2 and 7
    assert [p.file for p in pictures] == [image["file_name"] for image in table["images"]]
    for found, image in zip(pictures, table["images"], strict=True):
        rows = [a for a in table["annotations"] if a["image_id"] == image["id"]]
        rows.sort(key=lambda row: row["bbox"])  # whatever their order there
        assert found.size == (image["height"], image["width"])
        corners = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in rows)]
        np.testing.assert_allclose(found.boxes, np.array(corners).reshape(-1, 4), rtol=1e-6)
        assert found.labels.tolist() == [{2: 0, 7: 1}[row["category_id"]] for row in rows]
        assert found.crowd.tolist() == [bool(row["iscrowd"]) for row in rows]
    assert sum(p.crowd.sum() for p in pictures) == 1


def test_a_photograph_becomes_three_slices(sets: Path) -> None:
    module = coco(sets)
    module.setup("fit")
    assert module.facts["train"] | {"sha256": ""} == {
        "images": 7,
        "boxes": 11,
        "crowds left out": 1,
        "boxes left out": 1,
        "images without a box": 1,
        "missing": 0,
        "sha256": "",
    }
    assert len(module.val_set) == 3
    stored = np.asarray(Image.open(sets / "coco" / "val2017" / f"{1:012d}.jpg"))
    sample = module.val_set[0, 1]
    assert sample.image.shape == (1, 3, 48, 64)
    assert np.array_equal(sample.image[0].numpy(), stored.transpose(2, 0, 1))
    assert module.class_names() == coco(sets).class_names() == ("cat", "dog")
    turned = coco(sets, planes="bgr")
    turned.setup("validate")
    assert torch.equal(turned.val_set[0, 1].image, sample.image.flip(1))
    assert "colours reversed" in turned.preprocess(mean=1.0, std=1.0)["note"]


def test_the_record_makes_the_same_numbers(sets: Path) -> None:
    """What `load` gives a user: `Preprocess` of the picture is the run's image, normalised."""
    for module in (coco(sets, eval_size=64), lesions(sets)):
        module.setup("test")
        module.setup("validate")
        told = Preprocess(**module.preprocess(mean=123.675, std=58.395))
        for index, (example, truth) in enumerate(module.examples("val")):
            sample = module.val_set[0, index]
            assert torch.equal(truth.boxes, sample.truth.boxes)
            x, scale = resized(told(**example)[0], module.eval_size)
            assert torch.equal(scale, sample.scale)
            torch.testing.assert_close(x, (sample.image - 123.675) / 58.395, rtol=0, atol=1e-5)


def test_batches_and_their_order_do_not_depend_on_the_workers(sets: Path) -> None:
    def batches(workers: int) -> list[Any]:
        module = coco(sets, workers=workers, batch_size=3)
        module.setup("fit")
        return [(b.images, b.sizes, *(t.boxes for t in b.targets)) for b in module.train_dataloader()]

    for one, two in zip(batches(0), batches(2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_fingerprint_knows_images_and_boxes(sets: Path, tmp_path: Path) -> None:
    def prints(folder: Path) -> Any:
        module = coco(sets, folder=folder)
        module.setup("fit")
        return module.fingerprint()

    coco_set(tmp_path / "same")
    first = prints(sets / "coco")
    assert prints(tmp_path / "same") == first
    assert json.loads(json.dumps(first)) == first
    file = tmp_path / "same" / "instances_val2017.json"
    file.write_text(file.read_text().replace('"category_id": 2', '"category_id": 7', 1))
    assert prints(tmp_path / "same")["val"] != first["val"]
    image = tmp_path / "same" / "train2017" / f"{0:012d}.jpg"
    image.write_bytes(image.read_bytes() + b"\0")
    assert prints(tmp_path / "same")["train"] != first["train"]


def test_a_folder_that_lacks_images_is_refused_or_counted(tmp_path: Path) -> None:
    coco_set(tmp_path)
    (tmp_path / "train2017" / f"{1:012d}.jpg").unlink()
    with pytest.raises(
        SvdHubError, match=r"1 of 7 images of split 'train' are not in .*000000000001\.jpg.*partial=true"
    ):
        coco(tmp_path, folder=tmp_path).setup("fit")
    module = coco(tmp_path, folder=tmp_path, partial=True)
    module.setup("fit")
    assert (module.facts["train"]["images"], module.facts["train"]["missing"]) == (6, 1)
    for file in (tmp_path / "val2017").iterdir():
        file.unlink()
    with pytest.raises(SvdHubError, match=r"3 of 3 images of split 'val'"):
        module.setup("fit")


def test_the_first_images_alone(sets: Path) -> None:
    module = coco(sets, first=2, train_split="val")
    module.setup("fit")
    assert [p.file for p in module.train_set.pictures] == [p.file for p in module.val_set.pictures]
    assert len(module.train_set) == 2


# ---- DeepLesion ----------------------------------------------------------------------------------------------------


def test_both_tables_say_the_same(sets: Path) -> None:
    """NIH's CSV counts pixels from 1, and has no row for a slice without a lesion."""
    for split in LESIONS:
        nih, classes = read_nih(sets / "lesions" / "DL_info.csv", split, one_class="lesion")
        ours, same = read_coco(sets / "lesions" / f"deeplesion_{split}.json", one_class="lesion", own_area=False)
        assert classes == same == ("lesion",)
        with_boxes = [p for p in ours if len(p.boxes)]
        assert [(p.file, p.size, p.interval) for p in nih] == [(p.file, p.size, p.interval) for p in with_boxes]
        for a, b in zip(nih, with_boxes, strict=True):
            for name in ("boxes", "labels", "crowd", "area"):
                np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5)
            wide = (b.boxes[:, 2] - b.boxes[:, 0]) * (b.boxes[:, 3] - b.boxes[:, 1])
            np.testing.assert_allclose(b.area, wide, rtol=1e-4)  # not the 4943.9 of the file


def test_nih_boxes_are_those_of_the_published_json(tmp_path: Path) -> None:
    """The first row of NIH's table, and the first box of urmagicsmine/MVP-Net's deeplesion_test.json."""
    (tmp_path / "DL_info.csv").write_text(
        "File_name,Patient_index,Bounding_boxes,Possibly_noisy,Slice_range,Spacing_mm_px_,Image_size,Train_Val_Test\n"
        '000001_01_01_109.png,1,"226.169, 90.0204, 241.252, 111.977",0,"103, 115",'
        '"0.488281, 0.488281, 5","512, 512",3\n'
    )
    [found], _ = read_nih(tmp_path / "DL_info.csv", "test", one_class="lesion")
    assert (found.file, found.size, found.interval) == ("000001_01_01/109.png", (512, 512), 5.0)
    x, y, w, h = 225.169, 89.0204, 15.083, 21.9566
    np.testing.assert_allclose(found.boxes, [[x, y, x + w, y + h]], rtol=1e-6)


@pytest.mark.parametrize("form", ["json", "nih"])
def test_slices_come_in_the_windows_scale(sets: Path, form: str) -> None:
    module = lesions(sets, form=form)
    module.setup("fit")
    assert [p.file for p in module.train_set.pictures] == [
        f"{name}/{key:03d}.png" for name, (key, *_, boxes, _) in LESIONS["train"].items() if boxes
    ]  # the slice without a lesion does not train
    sample = module.val_set[0, 0]
    assert sample.image.shape == (1, 9, 64, 64)
    stored = np.asarray(Image.open(sets / "lesions" / "Images_png" / "000006_01_01" / "040.png")).astype(float) - 32768
    np.testing.assert_allclose(sample.image[0, 4].numpy(), (stored.clip(-1024, 1050) + 1024) / 2074 * 255, atol=1e-3)
    levels = sample.image[0, :, 40, 20] / 255 * 2074 - 1024  # inside the lesion, 3 HU a slice, stored every 5 mm
    np.testing.assert_allclose(levels, [600 + 3 * 2.5 / 5 * k for k in range(-4, 5)], atol=0.6)  # whole HU are stored


def test_slices_without_a_lesion_are_in_the_test_and_not_in_training(sets: Path) -> None:
    module = lesions(sets)
    module.setup("test")
    assert [len(p.boxes) for p in module.test_set.pictures] == [1, 0]
    assert [p.size for p in module.test_set.pictures] == [(80, 80), (64, 64)]
    sample = module.test_set[0, 0]
    assert sample.image.shape == (1, 9, 64, 64)  # of 80 x 80
    assert sample.scale.tolist() == pytest.approx([0.8, 0.8])
    np.testing.assert_allclose(sample.target.boxes, sample.truth.boxes * 0.8, rtol=1e-6)


def test_noisy_boxes_are_kept_unless_asked_otherwise(sets: Path) -> None:
    for form in ("json", "nih"):
        for noisy, boxes in ((True, 5), (False, 4)):
            module = lesions(sets, form=form, noisy=noisy)
            module.setup("fit")
            assert module.facts["train"]["boxes"] == boxes


def test_the_official_interpolation_is_another(sets: Path) -> None:
    stacks = []
    for rule in ("exact", "official"):
        module = lesions(sets, interpolation=rule, flips=())
        module.setup("fit")
        stacks.append([module.train_set[0, index].image for index in range(3)])
    same = [torch.equal(a, b) for a, b in zip(*stacks, strict=True)]
    assert same == [False, True, True]  # stored every 2, 5 and 1 mm


def test_single_jpegs_stand_for_a_stack(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24)).astype(np.uint8)
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        name = f"00000{len(split) - 3}_01_01_007.png"  # png, or its values would change
        Image.fromarray(pixels).save(tmp_path / split / name)
        image = {"id": 0, "file_name": name, "height": 20, "width": 24}
        row = {"id": 1, "image_id": 0, "category_id": 5, "bbox": [3, 4, 10, 9], "area": 90, "iscrowd": 0}
        table = {"images": [image], "annotations": [row], "categories": [{"id": 5, "name": "liver"}]}
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(table))
    module = lesions(tmp_path, folder=tmp_path, form="jpeg", val_split="test", eval_size=24)
    module.setup("fit")
    sample = module.val_set[0, 0]
    hu = -1024 + pixels / 255 * 4095
    assert sample.image.shape == (1, 9, 20, 24)
    for plane in sample.image[0]:
        np.testing.assert_allclose(plane, (hu.clip(-1024, 1050) + 1024) / 2074 * 255, atol=1e-3)
    assert module.class_names() == ("lesion",)
    assert sample.truth.labels.tolist() == [0]


def test_patients_in_both_splits_are_refused(sets: Path, tmp_path: Path) -> None:
    lesion_set(tmp_path)
    file = tmp_path / "deeplesion_val.json"
    file.write_text(file.read_text().replace("000006_01_01", "000003_02_02"))
    (tmp_path / "Images_png" / "000006_01_01").rename(tmp_path / "Images_png" / "000003_02_02")
    with pytest.raises(SvdHubError, match=r"patients \['000003'\] \(1 in all\).*shared_patients=true"):
        lesions(sets, folder=tmp_path).setup("fit")
    lesions(sets, folder=tmp_path, shared_patients=True).setup("fit")


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_what_is_refused_says_what_next(sets: Path, tmp_path: Path) -> None:
    with pytest.raises(SvdHubError, match="Next: add --data FOLDER"):
        coco(sets, folder=None).setup("fit")
    with pytest.raises(SvdHubError, match=r"no table of boxes in .*no such folder.*instances_train2017\.json.*--data"):
        coco(sets, folder=tmp_path / "none").setup("fit")
    with pytest.raises(SvdHubError, match=r"no table of boxes of the form 'json' in .*coco.*deeplesion_train\.json"):
        lesions(sets, folder=sets / "coco").setup("fit")
    with pytest.raises(SvdHubError, match=r"DL_info\.csv cannot be read.*Next"):
        lesions(sets, folder=tmp_path, form="nih").setup("fit")
    for options, told in (
        ({"sizes": ()}, r"sizes=\[\]"),
        ({"eval_size": 0}, "eval_size=0"),
        ({"flips": ("horizontal", "horizontal")}, "once at most"),
        ({"slices": 8}, "slices=8.*odd"),
        ({"window": (5.0, 5.0)}, r"window=\(5"),
    ):
        with pytest.raises(OptionError, match=told):
            lesions(sets, **options)  # type: ignore[arg-type]


def test_tables_that_are_none_are_told(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    for text, told in (
        ("{", "cannot be read as JSON"),
        ("[1]", "cannot be read as JSON"),
        ('{"images": []}', r"no lists \['annotations', 'categories'\]"),
        (
            '{"images": [], "categories": [], "annotations": [{"id": 4, "image_id": 1, "category_id": 2}]}',
            "annotation 4 is of image 1 and category 2",
        ),
    ):
        file.write_text(text)
        with pytest.raises(SvdHubError, match=told):
            read_coco(file)
    table = tmp_path / "DL_info.csv"
    table.write_text("File_name,Bounding_boxes\n")
    with pytest.raises(SvdHubError, match=r"no columns \['Possibly_noisy'"):
        read_nih(table, "train", one_class="lesion")
    head = "File_name,Bounding_boxes,Possibly_noisy,Spacing_mm_px_,Image_size,Train_Val_Test\n"
    table.write_text(head + 'a_001.png,"1, 2, 3",0,"1, 1, 5","512, 512",1\n')
    with pytest.raises(SvdHubError, match=r"DL_info\.csv, line 2.*Next"):
        read_nih(table, "train", one_class="lesion")
    with pytest.raises(SvdHubError, match="no split 'both'; allowed: train, val, test"):
        read_nih(table, "both", one_class="lesion")


def test_images_of_another_size_than_their_boxes_are_refused(tmp_path: Path) -> None:
    coco_set(tmp_path / "coco")
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(tmp_path / "coco" / "val2017" / f"{0:012d}.jpg")
    module = coco(tmp_path, folder=tmp_path / "coco")
    module.setup("fit")
    with pytest.raises(SvdHubError, match=r"has 12 x 10 pixels, its boxes are for 40 x 64.*Next"):
        _ = module.val_set[0, 0]
    (tmp_path / "coco" / "val2017" / f"{0:012d}.jpg").write_bytes(b"nothing")
    with pytest.raises(SvdHubError, match=r"cannot be decoded.*Next"):
        _ = module.val_set[0, 0]
    lesion_set(tmp_path / "lesions")
    for place in range(36, 45):
        write_slice(tmp_path / "lesions" / "Images_png" / "000006_01_01" / f"{place:03d}.png", np.zeros((32, 32)))
    other = lesions(tmp_path, folder=tmp_path / "lesions")
    other.setup("fit")
    with pytest.raises(SvdHubError, match=r"040\.png has 32 x 32 pixels, its boxes are for 64 x 64"):
        _ = other.val_set[0, 0]
