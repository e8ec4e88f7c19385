"""Evaluation: metrics as pure functions of arrays, the statistics between runs, and an entry measured again.

Nothing heavy is imported before it is needed: scipy for the t-test, pycocotools for average precision.
"""

from ...metrics import auc
from .classification import (
    ClassificationResult,
    ThresholdMetrics,
    choose_threshold,
    classification_metrics,
    evaluate_scores,
    threshold_metrics,
)
from .coco import AveragePrecision, average_precision
from .detection import Froc, froc
from .entries import batched, evaluate_entry, fitted_back
from .resampling import Estimate, bootstrap_mean, paired_bootstrap
from .seeds import MeanSd, TTest, over_seeds, t_test
from .segmentation import DiceSummary, Triple, dice_summary, segmentation_metrics, sliding_window, strides

__all__ = [
    "AveragePrecision",
    "ClassificationResult",
    "DiceSummary",
    "Estimate",
    "Froc",
    "MeanSd",
    "TTest",
    "ThresholdMetrics",
    "Triple",
    "auc",
    "average_precision",
    "batched",
    "bootstrap_mean",
    "choose_threshold",
    "classification_metrics",
    "dice_summary",
    "evaluate_entry",
    "evaluate_scores",
    "fitted_back",
    "froc",
    "over_seeds",
    "paired_bootstrap",
    "segmentation_metrics",
    "sliding_window",
    "strides",
    "t_test",
    "threshold_metrics",
]
