"""Laws of LIDC's other forms: the official split counted and refused, masks that turn with their images, the XML."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers_lidc as lidc
import numpy as np
import pytest
import torch
from helpers_lidc import contour, message, nodule, square

from svd_hub.errors import OptionError, SvdHubError
from svd_hub.preprocess import Preprocess
from svd_hub.training.data import lidc_acs, lidc_xml
from svd_hub.training.data.lidc_acs import INFO, AcsNodules, hounsfield, read_split, turned, two_classes
from svd_hub.training.data.lidc_masks import AcsMasks, LidcMasks
from svd_hub.training.data.lidc_xml import Contour, Drawing, inside, mode, nodules, read_xml, region_of
from svd_hub.training.miniature.nodules import acs_set, pair_set, reading, write_tables


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lidc.official_tables(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def acs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return acs_set(tmp_path_factory.mktemp("acs") / "set")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pair_set(tmp_path_factory.mktemp("pairs") / "set")


# ---- the official split --------------------------------------------------------------------------------------------


def counts(folder: Path, split: Any) -> dict[str, tuple[int, int]]:
    found = {key: two_classes(rows) for key, rows in read_split(folder, split).items()}
    return {key: tuple(sum(r.label == k for r in rows) for k in (0, 1)) for key, rows in found.items()}  # type: ignore[misc]


def test_the_four_counts_come_out_of_tables_of_the_official_form(official: Path) -> None:
    """svd-net.md 3.5: each nodule once, undecided ones dropped; the one without annotation is in neither."""
    assert counts(official, "official") == {"train": (986, 337), "test": (246, 64)}
    split = read_split(official, "official")
    assert [len(split["train"]), len(split["test"])] == [2142, 526]
    assert len(set(split["test"])) == 491
    readings = lidc_acs.read_readings(official)
    assert len(readings) == 2635
    assert readings["lidc101_1"].label == -1
    assert not any(r.name == "lidc101_1" for rows in split.values() for r in rows)


def test_the_official_split_leaks_and_is_refused_unless_it_is_named(official: Path) -> None:
    split = read_split(official, "official")
    of = {key: {r.patient for r in rows} for key, rows in split.items()}
    shared = len(of["train"] & of["test"])
    assert shared > 100
    with pytest.raises(SvdHubError, match=rf"{shared} of the .* are in train and in test .*split=clean") as told:
        read_split(official)
    assert "IDRI" not in str(told.value)
    clean = read_split(official, "clean")
    assert clean["test"] == split["test"]
    assert clean["train"] == tuple(r for r in split["train"] if r.patient not in of["test"])
    assert counts(official, "clean")["test"] == (246, 64)
    with pytest.raises(OptionError, match="split='all'"):
        read_split(official, "all")  # type: ignore[arg-type]


def test_tables_of_another_form_are_told(tmp_path: Path) -> None:
    with pytest.raises(SvdHubError, match=r"train_test_split\.csv does not exist"):
        read_split(tmp_path)
    rows = [reading("lidc1_1", "p", "1")]
    write_tables(tmp_path, rows, ["lidc1_1.npz", "lidc2_1.npz"], [])
    with pytest.raises(SvdHubError, match=r"no reading of 1 nodules of .*lidc2_1 first"):
        read_split(tmp_path)
    (tmp_path / INFO).write_text((tmp_path / INFO).read_text().replace("1111,1", "1111,x"))
    with pytest.raises(SvdHubError, match="line 2: malignancy_mode is no number"):
        read_split(tmp_path)
    (tmp_path / INFO).write_text("index,uid\n")
    with pytest.raises(SvdHubError, match=r"no columns \['malignancy_mode'\]"):
        read_split(tmp_path)


# ---- the npz set ---------------------------------------------------------------------------------------------------


class Harm:
    """What unpickling would do."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (exec, ("raise SystemError('it was unpickled')",))


def test_nothing_of_an_npz_is_unpickled(tmp_path: Path) -> None:
    (tmp_path / "nodule").mkdir()
    np.savez(tmp_path / "nodule" / "bad.npz", voxel=np.array([Harm()], dtype=object))
    with pytest.raises(SvdHubError, match="no arrays voxel that can be read"):
        lidc_acs.read_nodule(tmp_path, "bad", "voxel")
    np.savez(tmp_path / "nodule" / "small.npz", voxel=np.zeros((3, 3, 3), np.uint8))
    (tmp_path / "nodule" / "text.npz").write_text("nothing")
    for name, told in (("small", r"holds \(3, 3, 3\)"), ("text", "can be read"), ("none", "does not exist")):
        with pytest.raises(SvdHubError, match=told):
            lidc_acs.read_nodule(tmp_path, name, "voxel")
    with pytest.raises(SvdHubError, match="no arrays answer1"):
        lidc_acs.read_nodule(tmp_path, "small", "answer1")


def test_evaluation_of_the_npz_set_is_what_the_entry_sees(acs: Path) -> None:
    """The values go to HU and back."""
    data = AcsNodules(folder=acs, split="official", batch_size=2)
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (8, 4)
    preprocess = Preprocess(**data.preprocess(mean=0.0, std=1.0))
    for index, (example, label) in enumerate(data.examples()):
        x, y = data.val_set[(0, index)]
        assert y == label
        torch.testing.assert_close(preprocess(**example)[0], x.float(), rtol=0, atol=2e-3)
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape == (2, 1, 48, 48, 48)
    assert x.dtype == torch.uint8


def test_training_moves_by_five_voxels_at_most(acs: Path) -> None:
    data = AcsNodules(folder=acs, split="clean", size=20, move=5)
    data.setup("fit")
    (voxel,) = lidc_acs.read_nodule(acs, data.rows()["train"][0].name, "voxel")
    sums = {
        int(voxel[z : z + 20, y : y + 20, x : x + 20].sum(dtype=int)): (z, y, x)
        for z, y, x in itertools.product(range(23, 38), repeat=3)
    }
    places = [sums[int(data.train_set[(epoch, 0)][0].sum(dtype=torch.int64))] for epoch in range(80)]
    for axis in range(3):
        assert {place[axis] for place in places} == set(range(25, 36))
    with pytest.raises(OptionError, match="size=80, move=5"):
        AcsNodules(size=80)


def test_a_cube_and_its_mask_turn_together_every_way() -> None:
    cube = torch.arange(27).reshape(3, 3, 3)
    views = set()
    for seed in range(1500):
        one, other = turned(np.random.default_rng(seed), cube, cube * 10)
        assert torch.equal(other, one * 10)
        assert sorted(one.flatten().tolist()) == list(range(27))
        assert int(one[1, 1, 1]) == 13
        views.add(tuple(one.flatten().tolist()))
    assert len(views) == 48  # all of the cube's symmetries


@pytest.mark.parametrize("form", ["pairs", "acs"])
def test_masks_lie_on_their_images_through_every_turn(form: str, pairs: Path, acs: Path) -> None:
    """A nodule is brighter than its surroundings, so that a threshold tells its mask."""
    data: Any = (
        LidcMasks(folder=pairs, train_folds=[0, 1, 2], val_folds=[3], size=12, margin=4)
        if form == "pairs"
        else AcsMasks(folder=acs, split="official", size=30, move=3)
    )
    data.setup("fit")
    level = {"pairs": (((40 - 800) / 2 + 1000) / 1400) * 255, "acs": 60}[form]
    for epoch, index in itertools.product(range(3), range(len(data.train_set))):
        x, mask = data.train_set[(epoch, index)]
        assert mask.dtype == torch.int64
        assert torch.equal(x[0] > level, mask > 0)
        assert mask.any()
    for index, (example, case) in enumerate(data.examples()):
        x, mask, known = data.val_set[(0, index)]
        assert torch.equal(case.target, mask)
        assert torch.equal(x[0] > level, mask > 0)
        assert known.tolist() == [True, True]
        assert set(example) == {"image", "spacing"}
    assert len(data.val_cases) == {"pairs": 4, "acs": 5}[form]  # the official list has one twice
    if form == "acs":
        assert len(AcsMasks(folder=acs, split="clean").val_cases) == 4


def test_pairs_that_do_not_fit_are_told(tmp_path: Path) -> None:
    folder = pair_set(tmp_path / "set", count=4)
    with pytest.raises(SvdHubError, match=r"1 of the 2 folds are in train_folds and in val_folds"):
        LidcMasks(folder=folder, train_folds=[0, 1], val_folds=[1])
    (folder / "masks" / "n0.nii.gz").write_bytes((pair_set(tmp_path / "x") / "masks" / "n0.nii.gz").read_bytes())
    with pytest.raises(SvdHubError, match=r"no nodules of folds \[9\]"):
        LidcMasks(folder=folder, train_folds=[9], val_folds=[3]).setup("fit")
    (folder / "masks" / "n0.nii.gz").unlink()
    with pytest.raises(SvdHubError, match=r"masks/n0\.nii\.gz does not exist"):
        LidcMasks(folder=folder, train_folds=[0], val_folds=[3]).setup("fit")


# ---- the XML -------------------------------------------------------------------------------------------------------


def plain_inside(points: list[tuple[int, int]], shape: tuple[int, int]) -> np.ndarray:
    """Pixel by pixel: a ray to the right crosses the line an odd number of times; what is on the line is outside."""
    out = np.zeros(shape, bool)
    for y, x in itertools.product(*map(range, shape)):
        odd = on = False
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            cross = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
            on |= cross == 0 and min(x0, x1) <= x <= max(x0, x1) and min(y0, y1) <= y <= max(y0, y1)
            if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
                odd = not odd
        out[y, x] = odd and not on
    return out


def test_a_line_is_filled_as_a_ray_says_and_is_no_part_of_it() -> None:
    draw = random.Random(3)
    for _ in range(150):
        points = [(draw.randrange(12), draw.randrange(10)) for _ in range(draw.randrange(3, 8))]
        found = inside(tuple(points)).within((0, 0, 0), (1, 10, 12))[0]
        assert np.array_equal(found, plain_inside(points, (10, 12))), points
    assert inside(tuple(square(4, 3, 2))).within((0, 0, 0), (1, 8, 8))[0].nonzero()[0].tolist() == [3, 3, 4, 4]


SLICES = {f"uid{z}": z for z in range(6)}
SHAPE = (6, 20, 24)


def blocks(*found: tuple[int, int, int, int]) -> np.ndarray:
    """(z, y, x, side) squares in a scan."""
    out = np.zeros(SHAPE, bool)
    for z, y, x, side in found:
        out[z, y : y + side, x : x + side] = True
    return out


def block(z: int, y: int, x: int, side: int) -> str:
    return contour(f"uid{z}", float(z), square(x, y, side))


def whole(found: lidc_xml.Nodule) -> np.ndarray:
    return found.region.within((0, 0, 0), SHAPE)


def read(folder: Path, text: str) -> lidc_xml.Session:
    (folder / "scan.xml").write_text(text)
    return read_xml(folder / "scan.xml")


def test_half_of_the_readers_who_drew_a_nodule_decide(tmp_path: Path) -> None:
    first = [
        nodule("1", [block(1, 4, 4, 4), block(2, 4, 4, 4)], 4),
        nodule("small", [contour("uid3", 3.0, [(9, 9)])], None),
        lidc.non_nodule("uid2", 2.0),
    ]
    second = [nodule("A", [block(2, 5, 5, 4)], 5), nodule("B", [block(4, 12, 12, 3)], 1)]
    third = [nodule("x", [block(2, 5, 4, 4)], 4)]
    session = read(tmp_path, message([first, second, third, []]))
    assert (session.series, session.readers, len(session.drawings)) == ("1.2.3.5", 4, 5)
    one, other = nodules(session, SLICES, SHAPE)
    assert (one.readers, other.readers) == (3, 1)
    assert one.ratings["malignancy"] == (4, 5, 4)
    assert one.ratings["subtlety"] == (3, 3, 3)
    assert (one.malignancy, other.malignancy) == (4, 1)
    parts = [blocks((1, 4, 4, 4), (2, 4, 4, 4)), blocks((2, 5, 5, 4)), blocks((2, 5, 4, 4))]
    assert np.array_equal(whole(one), np.sum(parts, axis=0) * 2 >= 3)
    assert np.array_equal(whole(other), blocks((4, 12, 12, 3)))


def test_drawings_are_joined_whatever_their_order(tmp_path: Path) -> None:
    """Ends that do not touch belong together through what is between them."""
    drawn = [block(2, 4, x, 4) for x in (2, 8, 5)]
    for order in itertools.permutations(drawn):
        (found,) = nodules(read(tmp_path, message([[nodule("n", [roi], 3)] for roi in order])), SLICES, SHAPE)
        assert found.readers == 3
        assert np.array_equal(whole(found), blocks((2, 4, 5, 4)) & (blocks((2, 4, 2, 4)) | blocks((2, 4, 8, 4))))


def test_two_parts_of_one_reader_are_one_vote_and_holes_are_left_out(tmp_path: Path) -> None:
    parts = [nodule("a", [block(1, 4, 4, 3)], 2), nodule("b", [block(1, 4, 9, 3)], 2)]
    around = nodule("n", [block(1, 3, 3, 10), contour("uid1", 1.0, square(6, 6, 2), inclusion=False)], 4)
    (found,) = nodules(read(tmp_path, message([parts, [around]])), SLICES, SHAPE)
    assert found.readers == 2
    assert found.ratings["malignancy"] == (2, 2, 4)
    want = blocks((1, 3, 3, 10)) & ~blocks((1, 6, 6, 2))
    assert np.array_equal(whole(found), want | blocks((1, 4, 4, 3), (1, 4, 9, 3)))


def test_the_mode_is_the_lowest_of_the_most_frequent() -> None:
    draw = random.Random(0)
    for _ in range(200):
        values = [draw.randrange(1, 6) for _ in range(draw.randrange(1, 5))]
        most = max(values.count(v) for v in values)
        assert mode(values) == min(v for v in values if values.count(v) == most)
    assert mode([]) == 0


ENTITY = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
FILES = {
    "entity": (message([[nodule("&b;", [], 1)]], before=ENTITY), "declares a document type or an entity"),
    "outside": (message([], before='<!DOCTYPE x SYSTEM "file:///etc/passwd">'), "declares a document type"),
    "broken": (message([])[:-9], "is no whole XML"),
    "radiograph": ("<IdriReadMessage/>", "is a IdriReadMessage; allowed: LidcReadMessage"),
    "text": (message([[nodule("1", [block(0, 1, 1, 2)], 1)]]).replace("<xCoord>", "<xCoord>x"), "cannot be read"),
}


@pytest.mark.parametrize("case", FILES)
def test_other_xml_is_refused(tmp_path: Path, case: str) -> None:
    text, told = FILES[case]
    with pytest.raises(SvdHubError, match=told):
        read(tmp_path, text)
    with pytest.raises(SvdHubError, match="does not exist"):
        read_xml(tmp_path / "none.xml")


def test_contours_beside_the_scan_are_told() -> None:
    line = Contour(image="uid1", z=0.0, points=tuple(square(3, 3, 2)))
    with pytest.raises(SvdHubError, match="an image that the scan does not have"):
        region_of(Drawing(reader=0, name="n", contours=(line,)), {}, SHAPE)
    with pytest.raises(SvdHubError, match="leaves the image of"):
        region_of(Drawing(reader=0, name="n", contours=(line,)), SLICES, (6, 4, 4))


def test_values_are_hounsfield_units() -> None:
    assert hounsfield(np.array([0, 255], np.uint8)).tolist() == [-1024, 400]
