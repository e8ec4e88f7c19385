"""One LightningModule per task."""

from .classification import Classification as Classification
from .detection import Detection as Detection
from .segmentation import Segmentation as Segmentation
