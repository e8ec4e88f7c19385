"""One LightningModule per task."""

from .classification import Classification as Classification
