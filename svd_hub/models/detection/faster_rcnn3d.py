"""FasterRCNN3D: the paper's detector for lesions in CT slices and their neighbours, and for COCO pre-training.

A 3D backbone reads slices, its four levels become maps, and from there on it is Faster R-CNN with a feature pyramid,
in two dimensions: boxes on the key slice, the middle one.

Sources: SVD-Net paper, sections III-C and IV-B; urmagicsmine/MP3D@08e5ace (see `settings`, `encoder`).
Names of parameters: `backbone.*`, `gtm.{i}.weight`, `neck.lateral_convs.{i}`, `neck.fpn_convs.{i}`,
`rpn_head.rpn_{conv,cls,reg}`, `bbox_head.shared_fcs.{0,1}`, `bbox_head.fc_{cls,reg}`; i = 0 ... 3, fine to coarse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import OptionError, check_choice
from ...ops import multilevel_roi_align
from ..group_transform import GroupTransform, centre_slice
from ..layers import Backbone, Feature
from ..unet import check_positive
from .box_head import BoxHead, box_losses, sample_boxes, select
from .encoder import (
    check_depth,
    choose_levels,
    full_options,
    is_thin,
    level_depths,
    make_encoder,
    read_level,
)
from .fpn import FPN
from .results import Detections, Target, checked_sizes, checked_targets
from .rpn import RPNHead, level_anchors, propose, rpn_losses
from .settings import (
    ANCHOR_SCALE,
    CHANNELS,
    CONVENTIONS,
    FINEST_SIZE,
    HEAD_CHANNELS,
    MAX_DETECTIONS,
    NMS_THRESHOLD,
    PAD_DIVISOR,
    ROI_LEVELS,
    ROI_SIZE,
    SCORE_THRESHOLD,
    STRIDES,
    TEST_PROPOSING,
)

REDUCTIONS = ("centre", "group")
PARTS = ("gtm.", "neck.", "rpn_head.", "bbox_head.")


class FasterRCNN3D(Backbone):
    """Faster R-CNN on a 3D backbone: boxes, scores and labels of the key slice.

    `forward(images)` returns a list of `Detections`, `forward(images, targets)` a dict of four losses. The paper's two
    forms: `FasterRCNN3D(encoder_options={"variant": "63"})` is the journal's lesion detector (P3D-63, nine slices),
    `FasterRCNN3D(depth_stride=1, num_classes=80, encoder_options=...)` that of COCO pre-training (three slices).

    Args:
        encoder: the backbone, a name of `svd_hub.models.ARCHITECTURES` with levels of stride 4, 8, 16, 32.
        encoder_options: its own options: {"variant": "18ba"}, {"depth": 50, "norm": "group"}; not those that the
            detector sets: in_channels, num_classes, features_only, strides. The authors' detectors have GroupNorm,
            which is P3D's default and not ResNet3D's.
        in_channels: channels of the input; 1 for CT.
        num_classes: of the objects, without the background; 0 = the backbone alone, pooled.
        depth_stride: 1 = depth is kept, any depth is allowed; 2 = nine slices become one in steps. See `encoder`.
        reduction: how a level becomes a map: "centre" its middle slice, as published; "group" the group transform, a
            learned sum over depth that starts as the middle slice.
        slices: the depth of the input that "group" is made for; "centre" does without. One to four with
            `depth_stride=2` is pre-training without depth preservation: see `encoder`.
        convention: "mmdet2" | "mmdet1", what the weights were trained with: where anchors lie, how RoIs are pooled,
            four unused rows in the head. See `Convention`.
        anchor_scale: side of an anchor in strides of its level.
        channels: of the neck and the proposal network.
        head_channels: of the box head.
        score_threshold: scores must be above it, 0 to 1.
        nms_threshold: IoU above which the weaker of two boxes of a class is dropped, 0 to 1.
        max_detections: of an image.
        features_only: the backbone alone; `forward` returns its pyramid.

    Raises:
        OptionError: a value that is not allowed, with what is.
    """

    task: ClassVar[str] = "detection"
    weight_options = (
        "encoder",
        "encoder_options",
        "reduction",
        "slices",
        "convention",
        "channels",
        "head_channels",
    )
    head = "bbox_head.fc_"  # fc_cls and fc_reg
    decoder = PARTS

    def __init__(
        self,
        *,
        encoder: str = "p3d",
        encoder_options: Mapping[str, Any] | None = None,
        in_channels: int = 1,
        num_classes: int = 1,
        depth_stride: int = 2,
        reduction: str = "centre",
        slices: int = 9,
        convention: str = "mmdet2",
        anchor_scale: float = ANCHOR_SCALE,
        channels: int = CHANNELS,
        head_channels: int = HEAD_CHANNELS,
        score_threshold: float = SCORE_THRESHOLD,
        nms_threshold: float = NMS_THRESHOLD,
        max_detections: int = MAX_DETECTIONS,
        features_only: bool = False,
    ) -> None:
        super().__init__(in_channels=in_channels, num_classes=num_classes, features_only=features_only)
        check_choice("reduction", reduction, REDUCTIONS)
        check_choice("convention", convention, CONVENTIONS)
        counts = {"slices": slices, "channels": channels, "head_channels": head_channels}
        for option, count in {**counts, "max_detections": max_detections}.items():
            check_positive(option, count)
        check_shares(score_threshold=score_threshold, nms_threshold=nms_threshold)
        if not anchor_scale > 0:
            raise OptionError(f"anchor_scale={anchor_scale!r} is not allowed; allowed: above 0 (the paper's is 4)")
        self.convention, self.anchor_scale = CONVENTIONS[convention], float(anchor_scale)
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.max_detections = max_detections
        self.encoder_options = full_options(encoder, encoder_options, depth_stride)
        self.thin = is_thin(slices, depth_stride)
        self.backbone = make_encoder(
            encoder, self.encoder_options, in_channels=in_channels, depth_stride=depth_stride, thin=self.thin
        )
        self.levels = choose_levels(self.feature_info)
        depths = level_depths(self.backbone, self.levels, slices, depth_stride) if reduction == "group" else []
        self.has_detector = num_classes > 0 and not features_only
        if not self.has_detector:
            self.avgpool = nn.AdaptiveAvgPool3d(1)
            return
        pairs = zip(self.levels, depths, strict=True) if depths else ()
        self.gtm = nn.ModuleList(GroupTransform(level.channels, depth) for level, depth in pairs)
        self.neck = FPN([level.channels for level in self.levels], channels)
        self.rpn_head = RPNHead(channels)
        self.bbox_head = BoxHead(
            channels, head_channels, num_classes, background_deltas=self.convention.background_deltas
        )

    @property
    def feature_info(self) -> tuple[Feature, ...]:  # type: ignore[override]
        """The backbone's levels, shallow to deep."""
        return self.backbone.feature_info

    def check_input(self, x: Tensor) -> None:
        """Raise `OptionError` unless the backbone takes x (N, in_channels, D, H, W), and there is something in it."""
        self.backbone.check_input(x)
        if torch.jit.is_tracing():
            return
        if 0 in x.shape[2:]:
            raise OptionError(f"images of shape {tuple(x.shape)} are not allowed; allowed: one slice and pixel or more")
        check_depth(self.backbone, x.shape[2], thin=self.thin)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Return the backbone's pyramid of x (N, C, D, H, W), in three dimensions.

        Raises:
            OptionError: the shape does not fit the backbone.
        """
        self.check_input(x)
        return self.backbone.features(x)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Return P2 to P6, maps (N, channels, H, W) of strides 4 to 64, of images (N, C, D, H, W) of any H and W.

        Zeros are appended below and on the right until H and W are multiples of 32.
        """
        height, width = images.shape[3:]
        maps = self.features(F.pad(images, (0, -width % PAD_DIVISOR, 0, -height % PAD_DIVISOR)))
        volumes = [read_level(self.backbone, level, maps) for level in self.levels]
        if len(self.gtm) == 0:
            return self.neck([centre_slice(volume) for volume in volumes])
        return self.neck([gtm(volume) for gtm, volume in zip(self.gtm, volumes, strict=True)])

    def forward(  # type: ignore[override]
        self,
        images: Tensor,
        targets: Sequence[Target] | None = None,
        *,
        sizes: Tensor | Sequence[Sequence[int]] | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Detections] | dict[str, Tensor] | Tensor:
        """Return detections, or losses where targets are given; without a detector see the class.

        Args:
            images: (N, C, D, H, W), normalised; the middle slice is the key slice.
            targets: one for each image.
            sizes: (height, width) of each image in the batch, where some are smaller (`stack_images`); boxes end there.
            generator: draws the samples of the losses.

        Raises:
            OptionError: images, targets or sizes of other shapes, or true boxes that are none.
        """
        if not self.has_detector:
            maps = self.features(images)
            deepest = maps[self.feature_info[-1].name]
            return maps if self.features_only else torch.flatten(self.avgpool(deepest), 1)
        if targets is not None:
            return self.losses(images, targets, sizes=sizes, generator=generator)
        boxes, scores, labels, owners = self.detect(images, sizes=sizes)
        counts = torch.bincount(owners, minlength=len(images)).tolist()
        columns = (boxes.split(counts), scores.split(counts), labels.split(counts))
        return [Detections(*row) for row in zip(*columns, strict=True)]

    def losses(
        self,
        images: Tensor,
        targets: Sequence[Target],
        *,
        sizes: Tensor | Sequence[Sequence[int]] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Return `loss_rpn_cls`, `loss_rpn_bbox`, `loss_cls`, `loss_bbox`, scalars to be added up; see `forward`."""
        self.check_input(images)
        truth = checked_targets(targets, self.num_classes, images)
        within = checked_sizes(sizes, images)
        maps = self.pyramid(images)
        logits, deltas = self.rpn_head(maps)
        anchors = level_anchors(maps, self.anchor_scale, centred=self.convention.centred)
        flat = (torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors))
        losses = rpn_losses(*flat, truth, within, generator)
        with torch.no_grad():
            boxes, owners = propose(logits, deltas, anchors, within, self.convention.train_proposing)
            rule = self.convention.box_matching
            samples = sample_boxes(boxes, owners, truth, self.num_classes, rule=rule, generator=generator)
        seen, moves = self.classify(maps, samples.boxes, samples.images)
        return losses | box_losses(seen, moves, samples)

    def detect(
        self, images: Tensor, *, sizes: Tensor | Sequence[Sequence[int]] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a batch's detections, flat: boxes (K, 4), scores (K,), labels (K,), images (K,); see `forward`."""
        self.check_input(images)
        within = checked_sizes(sizes, images)
        maps = self.pyramid(images)
        logits, deltas = self.rpn_head(maps)
        anchors = level_anchors(maps, self.anchor_scale, centred=self.convention.centred)
        boxes, owners = propose(logits, deltas, anchors, within, TEST_PROPOSING)
        seen, moves = self.classify(maps, boxes, owners)
        return select(
            seen,
            moves,
            boxes,
            owners,
            within,
            score_threshold=self.score_threshold,
            nms_threshold=self.nms_threshold,
            max_detections=self.max_detections,
        )

    def classify(self, maps: Sequence[Tensor], boxes: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the box head's logits (R, K + 1) and deltas (R, K, 4) for boxes (R, 4) of images (R,)."""
        pooled = multilevel_roi_align(
            list(maps[:ROI_LEVELS]),
            boxes,
            images,
            list(STRIDES[:ROI_LEVELS]),
            (ROI_SIZE, ROI_SIZE),
            self.convention.roi_samples,
            self.convention.roi_aligned,
            FINEST_SIZE,
        )
        return self.bbox_head(pooled)


def check_shares(**options: object) -> None:
    """Raise `OptionError` unless all are numbers from 0 to 1."""
    for option, value in options.items():
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise OptionError(f"{option}={value!r} is not allowed; allowed: 0 to 1")
