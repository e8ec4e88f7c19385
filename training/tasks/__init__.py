"""One LightningModule per task."""

from .classification import Classification as Classification
from .segmentation import Segmentation as Segmentation
