"""Maths of detection without models and without torchvision: boxes, anchors, non-maximum suppression, RoIAlign.

Plain torch on any device. Boxes are (..., 4): x0, y0, x1, y1 in continuous coordinates, so that the width is x1 - x0;
sizes of images and maps are (height, width). Batches are flat: N boxes of all images, with an (N,) index beside them.

Every function can be scripted, and traced without burning sizes in (the device of a trace stays, as always); a saved
TorchScript file needs no svd_hub. That is why options here have defaults but are not keyword-only: TorchScript compiles
no keyword-only argument with a default.
"""

from .anchors import base_anchors, grid_anchors, inside_image, pyramid_anchors, valid_flags
from .boxes import MAX_LOG_RATIO, area, clip, decode, encode, iou, iou_matrix, larger_than
from .nms import batched_nms, first_of_each, multiclass_nms, nms
from .roi_align import multilevel_roi_align, roi_align, roi_levels

__all__ = [
    "MAX_LOG_RATIO",
    "area",
    "base_anchors",
    "batched_nms",
    "clip",
    "decode",
    "encode",
    "first_of_each",
    "grid_anchors",
    "inside_image",
    "iou",
    "iou_matrix",
    "larger_than",
    "multiclass_nms",
    "multilevel_roi_align",
    "nms",
    "pyramid_anchors",
    "roi_align",
    "roi_levels",
    "valid_flags",
]
