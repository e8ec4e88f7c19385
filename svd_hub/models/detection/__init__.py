"""Faster R-CNN on 3D backbones. `settings` has its numbers, `encoder` its two forms in depth."""

from .faster_rcnn3d import FasterRCNN3D
from .results import Detections, Target, stack_images

__all__ = ["Detections", "FasterRCNN3D", "Target", "stack_images"]
