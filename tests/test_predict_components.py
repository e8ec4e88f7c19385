"""The largest part, found plane by plane, is scipy's of the whole volume."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from svd_hub.predict.components import keep_largest
from svd_hub.volume import memory


def by_scipy(labels: np.ndarray, label: int) -> np.ndarray:
    """What is left, by `scipy.ndimage.label` (6-connectivity); of parts of one size the first in reading order."""
    parts, count = scipy.ndimage.label(labels == label)
    out = labels.copy()
    if count:
        sizes = np.bincount(parts.ravel())[1:]
        out[(parts > 0) & (parts != 1 + int(sizes.argmax()))] = 0
    return out


@pytest.mark.parametrize("seed", range(30))
def test_it_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 14, 3))
    dense = rng.random()
    labels = np.where(rng.random(shape) < dense, rng.integers(1, 4, shape), 0)
    if seed % 3:  # parts of some size, not single voxels
        labels = labels.repeat(2, 1).repeat(3, 2)
    labels = labels.astype(np.uint16 if seed % 2 else np.uint8)
    for label in (1, 2, 3, 4):
        expected, gone = by_scipy(labels, label), int((labels == label).sum())
        found = labels.copy()
        gone -= int((expected == label).sum())
        assert keep_largest(found, label) == gone
        assert (found == expected).all()
        assert (found[labels != label] == labels[labels != label]).all()


def test_parts_that_meet_far_down_are_one() -> None:
    """A comb: its teeth meet in the last plane alone."""
    labels = np.zeros((9, 7, 21), np.uint8)
    labels[:, 3, ::2] = 1
    labels[-1, 3, :] = 1
    labels[:4, 0, 0] = 1
    assert keep_largest(labels, 1) == 4
    assert labels.sum() == 9 * 11 + 10


def test_parts_that_touch_at_an_edge_are_two() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, :3] = 1
    labels[1, 1, :2] = 1
    labels[0, 1, 3] = 1
    assert keep_largest(labels, 1) == 3
    assert labels[0, 0].sum() == labels.sum() == 3


@pytest.mark.parametrize("labels", [np.zeros((3, 4, 5), np.uint8), np.full((3, 4, 5), 2, np.uint8)])
def test_nothing_to_take_away(labels: np.ndarray) -> None:
    before = labels.copy()
    assert keep_largest(labels, 1) == keep_largest(labels, 2) == 0
    assert (labels == before).all()


def test_of_equal_parts_the_first_stays() -> None:
    labels = np.zeros((3, 5, 5), np.uint8)
    labels[1, 0, 0] = labels[0, 4, 4] = labels[2, 2, 2] = 1
    assert keep_largest(labels, 1) == 2
    assert labels[0, 4, 4] == 1


def test_an_array_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAPPED", 1)
    monkeypatch.setattr(memory, "SLAB", 100)
    labels = memory.empty((6, 9, 10), np.uint8)
    labels[...] = np.random.default_rng(0).integers(0, 2, labels.shape)
    assert memory.is_mapped(labels)
    expected = by_scipy(np.array(labels), 1)
    keep_largest(labels, 1)
    assert (labels == expected).all()


def test_planes_of_a_view() -> None:
    """A map that was turned: its planes are not contiguous."""
    labels = np.random.default_rng(0).integers(0, 3, (8, 9, 10)).astype(np.uint8)
    expected = by_scipy(labels.transpose(2, 0, 1)[::-1], 1)
    view = labels.transpose(2, 0, 1)[::-1]
    keep_largest(view, 1)
    assert (view == expected).all()
