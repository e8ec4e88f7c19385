"""The numbers of the paper's detectors, and what their two code bases do differently.

Sources: urmagicsmine/MP3D@08e5ace configs/deeplesion/{p3d,mp3d_groupconv}.py (mmdet 2.25), and for mmdet 1
urmagicsmine/CSPR@390a413 configs/Deeplesion_configs (the P3D18ba detector) and MP3D's configs/legacy_1.x. Both agree in
all that is not a `Convention`. The configuration of COCO pre-training was never released.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ops.boxes import Four


@dataclass(frozen=True)
class Matching:
    """When a box is an object's: IoU at `positive` or above; background below `negative`; between them neither.

    `low_quality`: an object's best boxes, ties included, become its own whatever they were, if their IoU is at least
    `minimum`; of several objects the last one wins.
    """

    positive: float
    negative: float
    minimum: float
    low_quality: bool


@dataclass(frozen=True)
class Sampling:
    """How many boxes of an image train a head, and how many of them may be objects'; background fills the rest."""

    number: int
    positive_share: float


@dataclass(frozen=True)
class Proposing:
    """The best `before` of each level of an image, then suppression at `iou` level by level, then the best `kept`."""

    before: int
    kept: int
    iou: float


@dataclass(frozen=True)
class Convention:
    """What belongs to the weights of one code base. Boxes are continuous here in both: mmdet 1's lacked one pixel.

    mmdet 1 counts widths as x1 - x0 + 1. With its right and lower edges moved by that pixel, its coder, IoU, RoIAlign
    and levels are those of mmdet 2, but for what is listed here, and for clipping, where the pixel is not repeated.

    Attributes:
        centred: anchors lie around the middle of their cell, on whole pixels; else around its corner, exactly.
        roi_aligned, roi_samples: of RoIAlign; see `svd_hub.ops.roi_align`.
        background_deltas: the head has four deltas for the background too, which nothing ever reads.
        box_matching: of the box head.
        train_proposing: how many proposals there are in training.
    """

    centred: bool
    roi_aligned: bool
    roi_samples: int
    background_deltas: bool
    box_matching: Matching
    train_proposing: Proposing


CONVENTIONS = {
    "mmdet2": Convention(
        centred=False,
        roi_aligned=True,
        roi_samples=0,  # adaptive
        background_deltas=False,
        box_matching=Matching(positive=0.5, negative=0.5, minimum=0.5, low_quality=False),
        train_proposing=Proposing(before=2000, kept=1000, iou=0.7),
    ),
    "mmdet1": Convention(
        centred=True,
        roi_aligned=False,
        roi_samples=2,
        background_deltas=True,
        box_matching=Matching(positive=0.5, negative=0.5, minimum=0.5, low_quality=True),
        train_proposing=Proposing(before=2000, kept=2000, iou=0.7),
    ),
}

# The pyramid: P2 to P5 from the backbone's levels, P6 subsampled from P5.
STRIDES = (4, 8, 16, 32, 64)
CHANNELS = 256
# Pad(size_divisor=32) behind the normalisation, so with 0: all levels then halve without a remainder.
PAD_DIVISOR = 32

ANCHOR_SCALE = 4.0  # times the stride: sides of 16 to 256 pixels; the usual one is 8, lesions are small
ANCHOR_RATIOS = (0.5, 1.0, 2.0)

RPN_MATCHING = Matching(positive=0.7, negative=0.3, minimum=0.3, low_quality=True)
RPN_SAMPLING = Sampling(number=256, positive_share=0.5)
RPN_BORDER = 0  # pixels by which an anchor may leave the image and still train
RPN_STDS: Four = (1.0, 1.0, 1.0, 1.0)
RPN_BETA = 1 / 9  # of the smooth L1 loss
TEST_PROPOSING = Proposing(before=1000, kept=1000, iou=0.7)  # in training: see Convention

# Matching: see Convention.
BOX_SAMPLING = Sampling(number=512, positive_share=0.25)  # the true boxes are among the candidates
BOX_STDS: Four = (0.1, 0.1, 0.2, 0.2)
BOX_BETA = 1.0
ROI_SIZE = 7
ROI_LEVELS = 4  # P2 to P5; P6 has anchors only
FINEST_SIZE = 56.0  # boxes of this side and below 112 pixels are pooled from P2
HEAD_CHANNELS = 1024

# Every box counts in a FROC curve: a higher threshold or fewer boxes end it before 4 false positives per image.
SCORE_THRESHOLD = 0.0
NMS_THRESHOLD = 0.5
MAX_DETECTIONS = 100
