"""Laws of the metrics: they equal their plain definitions, counted voxel by voxel."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from svd_hub import metrics
from svd_hub.errors import OptionError
from svd_hub.metrics import auc, confusion, dice, dice_of, rates


def maps(seed: int, classes: int, shape: tuple[int, ...] = (2, 5, 6, 7)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.integers(0, classes, shape), random.integers(0, classes, shape)


def counted(prediction: np.ndarray, target: np.ndarray, classes: int) -> list[list[int]]:
    return [[int(((target == t) & (prediction == p)).sum()) for p in range(classes)] for t in range(classes)]


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_confusion_counts(classes: int) -> None:
    prediction, target = maps(classes, classes)
    assert confusion(prediction, target, classes).tolist() == counted(prediction, target, classes)
    parts = confusion(prediction, target, classes, per_case=True)
    assert parts.tolist() == [counted(p, t, classes) for p, t in zip(prediction, target, strict=True)]
    assert (parts.sum(0) == confusion(prediction, target, classes)).all()
    assert confusion(prediction, target, classes + 2).shape == (classes + 2,) * 2


def test_a_large_volume_is_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    prediction, target = maps(0, 4)
    whole = confusion(prediction, target, 4)
    for size in (1, 7, 209, 210, 10**6):
        monkeypatch.setattr(metrics, "_AT_ONCE", size)
        assert (confusion(prediction, target, 4) == whole).all()
        assert (confusion(torch.from_numpy(prediction), target, 4) == whole).all()


def test_any_kind_of_integer_array_will_do() -> None:
    prediction, target = maps(1, 3)
    whole = confusion(prediction, target, 3)
    read_only = target.astype(np.uint8)
    read_only.flags.writeable = False
    for kind in (read_only, target.astype(">i2"), target.astype(np.uint16), np.asfortranarray(target)):
        assert (confusion(prediction.astype(np.int8), kind, 3) == whole).all()
    assert (confusion(prediction[:, ::-1], target[:, ::-1], 3) == whole).all()
    assert (confusion(torch.from_numpy(prediction).to(torch.uint8), target.tolist(), 3) == whole).all()
    assert (confusion(torch.from_numpy(prediction).transpose(1, 3), target.swapaxes(1, 3), 3) == whole).all()
    one = confusion(prediction == 1, torch.from_numpy(target == 1), 2)
    assert one.tolist() == counted(prediction == 1, target == 1, 2)
    assert confusion(np.zeros((0, 3), int), np.zeros((0, 3), int), 2).tolist() == [[0, 0], [0, 0]]
    assert confusion(np.zeros((0, 3), int), np.zeros((0, 3), int), 2, per_case=True).shape == (0, 2, 2)


# ---- Dice ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_dice_is_twice_the_overlap_over_the_sizes(seed: int) -> None:
    prediction, target = maps(seed, 4)
    expected = []
    for p, t in [(prediction, target), *zip(prediction, target, strict=True)]:
        sets = [(set(map(tuple, np.argwhere(p == k))), set(map(tuple, np.argwhere(t == k)))) for k in range(4)]
        expected.append([2 * len(a & b) / (len(a) + len(b)) for a, b in sets])
    assert dice(prediction, target, 4) == pytest.approx(np.array(expected[0]))
    assert dice(prediction, target, 4, per_case=True) == pytest.approx(np.array(expected[1:]))


def test_the_ends_of_dice_are_0_and_1() -> None:
    """The official code's is 2/3 for a perfect mask, and its loss therefore 1/3 at best."""
    target = np.zeros((4, 4, 4), int)
    target[1:3] = 1
    assert dice(target, target, 2).tolist() == [1.0, 1.0]
    assert dice(1 - target, target, 2).tolist() == [0.0, 0.0]
    half = np.where(np.arange(4)[:, None, None] == 1, target, 0)
    assert dice(half, target, 2) == pytest.approx(np.array([2 * 32 / (48 + 32), 2 * 16 / (16 + 32)]))


def test_a_class_that_nobody_has() -> None:
    present, absent = np.array([[0, 0, 1]]), np.array([[0, 0, 0]])
    for rule, value in (("nan", np.nan), ("one", 1.0)):
        np.testing.assert_array_equal(dice(absent, absent, 2, empty=rule), [1.0, value])
        np.testing.assert_array_equal(dice(absent, present, 2, empty=rule), [0.8, 0.0])
        np.testing.assert_array_equal(dice(present, absent, 2, empty=rule), [0.8, 0.0])
    np.testing.assert_array_equal(dice(absent, absent, 2), [1.0, np.nan])
    both = dice(np.stack([present, absent]), np.stack([present, absent]), 2, per_case=True)
    np.testing.assert_array_equal(both, [[1.0, 1.0], [1.0, np.nan]])
    assert np.nanmean(both[:, 1]) == 1.0
    with pytest.raises(OptionError, match=r"empty='zero'.*'nan', 'one'"):
        dice(absent, absent, 2, empty="zero")


def test_dice_of_all_voxels_is_not_the_mean_over_cases() -> None:
    target = np.array([[1] * 9 + [0], [1] + [0] * 9])
    prediction = np.array([[1] * 9 + [0], [0] * 10])
    assert dice(prediction, target, 2)[1] == pytest.approx(18 / 19)
    assert dice(prediction, target, 2, per_case=True)[:, 1].mean() == 0.5
    summed = confusion(prediction[:1], target[:1], 2) + confusion(prediction[1:], target[1:], 2)
    assert dice_of(summed)[1] == pytest.approx(18 / 19)


# ---- rates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_rates_equal_their_definitions(classes: int) -> None:
    prediction, target = maps(7, classes, (40,))
    found = rates(confusion(prediction, target, classes))
    for k in range(classes):
        given, true = prediction == k, target == k
        assert found.sensitivity[k] == pytest.approx(given[true].mean())
        assert found.specificity[k] == pytest.approx((~given)[~true].mean())
        assert found.precision[k] == pytest.approx(true[given].mean())
        recall, precision = given[true].mean(), true[given].mean()
        assert found.f1[k] == pytest.approx(2 * recall * precision / (recall + precision))
    assert float(found.accuracy) == pytest.approx((prediction == target).mean())


def test_rates_of_one_class_against_the_other() -> None:
    """64 malignant nodules of which 48 are found, 246 benign ones of which 24 are called malignant."""
    found = rates([[222, 24], [16, 48]])
    assert found.sensitivity[1] == 48 / 64
    assert found.specificity[1] == 222 / 246
    assert found.specificity[0] == found.sensitivity[1]
    assert found.precision[1] == 48 / 72
    assert float(found.accuracy) == 270 / 310
    two = rates(np.array([[[222, 24], [16, 48]], [[1, 0], [0, 1]]]))
    assert two.accuracy.tolist() == [270 / 310, 1.0]
    assert two.sensitivity.shape == (2, 2)


def test_what_does_not_occur_has_no_rate() -> None:
    found = rates([[5, 0], [0, 0]])
    np.testing.assert_array_equal(found.sensitivity, [1, np.nan])
    np.testing.assert_array_equal(found.specificity, [np.nan, 1])
    np.testing.assert_array_equal(found.precision, [1, np.nan])
    np.testing.assert_array_equal(found.f1, [1, np.nan])
    assert np.isnan(rates([[0, 0], [0, 0]]).accuracy)


def test_rates_equal_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    prediction, target = maps(3, 4, (200,))
    found = rates(confusion(prediction, target, 4))
    assert (confusion(prediction, target, 4) == sklearn.confusion_matrix(target, prediction)).all()
    assert found.sensitivity == pytest.approx(sklearn.recall_score(target, prediction, average=None))
    assert found.precision == pytest.approx(sklearn.precision_score(target, prediction, average=None))
    assert found.f1 == pytest.approx(sklearn.f1_score(target, prediction, average=None))


# ---- AUC -------------------------------------------------------------------------------------------------------------


def test_auc_is_the_share_of_pairs_in_order() -> None:
    scores, labels = np.array([3.0, 1, 2, 2, 0, 2]), np.array([1, 0, 1, 0, 0, 1])
    pairs = [np.sign(p - n) / 2 + 0.5 for p, n in itertools.product(scores[labels == 1], scores[labels == 0])]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))
    assert auc([0.0, 1.0], [0, 1]) == 1.0
    assert auc([1.0, 1.0], [0, 1]) == 0.5


def test_training_has_the_same_one() -> None:
    from svd_hub.training import evaluation

    assert evaluation.auc is auc


# ---- errors ----------------------------------------------------------------------------------------------------------

ONES = np.ones((2, 3), int)
BAD: tuple[tuple[Any, Any, Any, str], ...] = (
    (ONES * 1.0, ONES, 2, r"prediction of type float64 holds no labels.*Next: logits.argmax"),
    (ONES, torch.ones(2, 3), 2, r"target of type torch.float32 holds no labels"),
    (np.array([["a"]]), np.array([[1]]), 2, r"prediction of type <U1"),
    (ONES, ONES[:1], 2, r"prediction \(2, 3\) and target \(1, 3\).*one shape"),
    (ONES * 2, ONES, 2, r"prediction has labels 2 to 2; allowed: 0 to 1"),
    (ONES, -ONES, 2, r"target has labels -1 to -1; allowed: 0 to 1"),
    (ONES > 0, ONES, 1, r"prediction has labels 1 to 1; allowed: 0 to 0"),
    (ONES, ONES, 0, r"num_classes=0 .*1 or more"),
    (ONES, ONES, "2", r"num_classes='2' "),
)


@pytest.mark.parametrize(("prediction", "target", "classes", "message"), BAD)
def test_bad_maps_say_what_is_allowed(prediction: Any, target: Any, classes: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        dice(prediction, target, classes)


@pytest.mark.parametrize("matrix", [[1, 2], [[1, 2]], [[1.5, 0], [0, 1]], [[-1, 0], [0, 1]]], ids=str)
def test_bad_matrices_say_what_is_allowed(matrix: Any) -> None:
    for function in (rates, dice_of):
        with pytest.raises(OptionError, match=r"counts \(\.\.\., K, K\)"):
            function(matrix)


def test_cases_need_an_axis() -> None:
    with pytest.raises(OptionError, match="one shape"):
        confusion(1, 1, 2, per_case=True)
    assert confusion(1, 1, 2).tolist() == [[0, 0], [0, 1]]
