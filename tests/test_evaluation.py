"""Laws of the metrics: they equal their plain definitions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from svd_hub import checkpoint, models
from svd_hub.errors import OptionError, SvdHubError
from svd_hub.training.evaluation import auc, batched, classification_metrics, evaluate_entry


def pairs(scores: np.ndarray, labels: np.ndarray) -> float:
    """The definition: over all pairs of a positive and a negative, a win counts 1 and a tie 1/2."""
    wins = [np.sign(p - n) / 2 + 0.5 for p, n in itertools.product(scores[labels == 1], scores[labels == 0])]
    return float(np.mean(wins))


@pytest.mark.parametrize("seed", range(40))
def test_auc_equals_the_count_of_pairs(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(2, 60))
    labels = random.integers(0, 2, count)
    labels[:2] = 0, 1
    levels = int(random.integers(1, 8)) if seed % 2 else 10**6  # many ties, and hardly any
    scores = random.integers(0, levels, count).astype(float)
    assert auc(scores, labels) == pytest.approx(pairs(scores, labels), abs=1e-12)
    assert auc(-scores, labels) == pytest.approx(1 - auc(scores, labels), abs=1e-12)
    assert auc(np.exp(scores / levels), labels) == pytest.approx(auc(scores, labels), abs=1e-12)


def test_auc_equals_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    for _ in range(20):
        labels, scores = np.arange(50) % 2, random.integers(0, 9, 50)
        assert auc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "labels", "told"),
    [
        ([0.1, 0.2], [1, 1], "2 positives and 0 negatives"),
        ([0.1, float("nan")], [0, 1], "1 of 2 scores are not finite"),
        ([0.1, 0.2, 0.3], [0, 1], r"\(3,\).*\(2,\)"),
        ([0.1, 0.2], [0, 2], "0 or 1"),
    ],
)
def test_auc_refuses_what_has_none(scores: list[float], labels: list[int], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        auc(scores, labels)


def test_top_k_equals_sorting_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(64, 9, generator=generator), torch.randint(0, 9, (64,), generator=generator)
    found = classification_metrics(logits, labels)
    ranks = [sorted(row, reverse=True).index(row[label]) for row, label in zip(logits.tolist(), labels, strict=True)]
    assert found["top1"] == pytest.approx(sum(r < 1 for r in ranks) / 64)
    assert found["top5"] == pytest.approx(sum(r < 5 for r in ranks) / 64)
    chances = torch.softmax(logits.double(), 1)[torch.arange(64), labels]
    assert found["loss"] == pytest.approx(float(-chances.log().mean()), abs=1e-5)
    assert "auc" not in found


def test_which_metrics_there_are() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    two = torch.tensor([[2.0, 0], [0, 1], [1, 0], [3, 0]])
    assert classification_metrics(two, labels)["auc"] == pytest.approx(
        pairs((two[:, 1] - two[:, 0]).numpy(), labels.numpy())
    )
    assert set(classification_metrics(two, torch.ones(4, dtype=torch.long))) == {"loss", "top1"}
    assert set(classification_metrics(torch.randn(4, 5), labels)) == {"loss", "top1"}


def test_batched_leaves_nothing_out() -> None:
    assert list(batched(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batched([], 3)) == []


def test_an_entry_without_a_recipe_is_told(tmp_path: Path) -> None:
    options = {"depth": 10, "width": 2, "num_classes": 2}
    tensors = models.build("resnet3d", options).state_dict()
    checkpoint.write(tmp_path / "net.safetensors", tensors, {"architecture": "resnet3d", "options": options})
    with pytest.raises(SvdHubError, match=r"no recipe.*--recipe"):
        evaluate_entry(str(tmp_path / "net.safetensors"))


def test_a_head_of_another_task_is_refused() -> None:
    with pytest.raises(SvdHubError, match="200 outputs"):
        evaluate_entry("resnet3d18w16_tinyimagenet", recipe="resnet3d18w16_lidc")
