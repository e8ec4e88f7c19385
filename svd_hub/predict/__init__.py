"""Prediction: from a CT or MR file, or an image in memory, to a result that a clinician's tool can read.

`Predictor` is the network with what belongs to it; `predict_files` runs one over files and writes what it finds.
"""

from __future__ import annotations

from .predictor import Predictor
from .results import Classification, Detection, Finding, Prediction, Segmentation

__all__ = ["Classification", "Detection", "Finding", "Prediction", "Predictor", "Segmentation"]
