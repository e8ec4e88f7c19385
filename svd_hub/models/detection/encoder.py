"""The detector's way from a volume to four maps: a 3D backbone, its levels of stride 4 to 32, what is left of depth.

Two forms, by `depth_stride`; no option here changes a parameter.

1: depth is kept in all levels. COCO pre-training (three slices), and MP3D on nine.
2: nine slices (to twelve) become one, in steps, so that layer1 ... layer4 have depth 9, 5, 3, 1:
   - P3D: max-pools `zpool1`, `zpool2` (stride 2) and `zpool3` (three slices to one) behind layer1 ... layer3. The
     neck reads behind the pools, as upstream does: depth 5, 3, 1, 1.
   - ResNet3D: the first blocks of layer2 and layer3 stride in depth as in H and W (paper: "on all res-blocks"). One
     more stride of 2 would leave two slices and no middle, so P3D's last step is taken over: an un-padded max-pool
     over three slices, `layer4.zpool`, before layer4. The neck reads depth 9, 5, 3, 1; with P6 these are the paper's
     (9, 5, 3, 1, 1). The authors never published this network: so it is done here.

   With `slices` of 1 to 4 the two halvings alone leave one slice, and there is no last pool (3, 2, 1, 1 for three):
   COCO pre-training without depth preservation, what the paper's ablation (Table VII) holds its own form against.

Sources: SVD-Net paper, section IV-B; urmagicsmine/MP3D@08e5ace mmdet/models/backbones/{p3d,modified_p3d}.py;
urmagicsmine/CCF-Net@4bcbefe mmdet/models/backbones/resnet_3D.py (ResNet3D, depth kept, centre slice, GroupNorm).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...errors import OptionError, check_choice
from .. import build
from ..layers import Backbone, Feature
from ..p3d import pooled_depth
from ..unet import check_encoder
from .settings import ROI_LEVELS, STRIDES

PLANE = (1, 2, 2)
_RESNET: dict[str, Any] = {"stem_stride": PLANE, "pool_stride": PLANE, "depth_stride": 1}
# By encoder and depth_stride: what the detector sets.
FORMS: dict[str, dict[int, dict[str, Any]]] = {
    "p3d": {1: {"depth_stride": 1}, 2: {"depth_stride": 2}},
    "resnet3d": {
        1: {**_RESNET, "strides": ((1, 1, 1), PLANE, PLANE, PLANE)},
        2: {**_RESNET, "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2), PLANE)},
    },
    "densenet3d": {1: {"depth_stride": 1}},
}
# And what it only proposes: the stem's max-pool of P3D mixes slices where depth is kept (MP3D), else not (P3D).
PROPOSED: dict[str, dict[int, dict[str, Any]]] = {"p3d": {1: {"form": "mp3d"}, 2: {"form": "p3d"}}}


def full_options(encoder: str, options: Mapping[str, Any] | None, depth_stride: int) -> dict[str, Any]:
    """Return all options of the encoder that are not its defaults.

    Raises:
        OptionError: no such encoder, a form it does not have, or a stride that is another than the detector's.
    """
    check_encoder(encoder, options)
    forms = FORMS.get(encoder, {1: {}})
    check_choice(f"depth_stride of a detector on {encoder}", depth_stride, forms)
    for name, value in (options or {}).items():
        # the other form's value is let through: a saved network names what it was built with
        known = [form[name] for form in forms.values() if name in form]
        if known and plain(value) not in known:
            raise OptionError(
                f"encoder_options with {name}={value!r} are not allowed: the detector's levels have strides 4 to 32, "
                f"and depth_stride says what becomes of depth; allowed: {' or '.join(map(repr, known))}. "
                "Next: leave it out"
            )
    return {**PROPOSED.get(encoder, {}).get(depth_stride, {}), **(options or {}), **forms[depth_stride]}


def plain(value: Any) -> Any:
    """Return a value with tuples for lists, at any depth."""
    return tuple(plain(item) for item in value) if isinstance(value, list | tuple) else value


def make_encoder(
    encoder: str, options: Mapping[str, Any], *, in_channels: int, depth_stride: int, thin: bool = False
) -> Backbone:
    """Return the backbone of `full_options`; `thin`: see `is_thin`."""
    backbone = build(encoder, {**options, "in_channels": in_channels, "num_classes": 0, "features_only": True})
    if thin:
        if encoder == "p3d":
            backbone.zpool3 = nn.Identity()
    elif encoder == "resnet3d" and depth_stride == 2:
        zpool = ("zpool", nn.MaxPool3d((3, 1, 1), stride=1))
        stage = backbone.get_submodule("layer4")
        backbone.layer4 = nn.Sequential(OrderedDict([zpool, *stage.named_children()]))  # the keys stay layer4.0, ...
    return backbone


def choose_levels(info: Sequence[Feature]) -> tuple[Feature, ...]:
    """Return the levels of stride 4, 8, 16, 32 in H and W; of several the deepest.

    Raises:
        OptionError: there is no such level.
    """
    chosen = []
    for stride in STRIDES[:ROI_LEVELS]:
        found = [level for level in info if level.stride[1:] == (stride, stride)]
        if not found:
            strides = ", ".join(f"{level.name} {level.stride[1:]}" for level in info)
            raise OptionError(f"an encoder with strides {strides} is not allowed; allowed: one with 4, 8, 16 and 32")
        chosen.append(found[-1])
    return tuple(chosen)


def depth_pool(backbone: nn.Module, level: Feature) -> nn.Module | None:
    """Return the pool over depth that a detector applies to a level before it reads it, or None."""
    found = getattr(backbone, f"zpool{level.name.removeprefix('layer')}", None)
    return found if isinstance(found, nn.Module) else None


def read_level(backbone: nn.Module, level: Feature, maps: Mapping[str, Tensor]) -> Tensor:
    """Return a level (N, C, D, H, W) as the neck reads it."""
    pool = depth_pool(backbone, level)
    return maps[level.name] if pool is None else pool(maps[level.name])


def level_depths(backbone: nn.Module, levels: Sequence[Feature], slices: int, depth_stride: int) -> list[int]:
    """Return the depth that each level has for the neck.

    Raises:
        OptionError: `depth_stride=2` does not fit the number of slices.
    """
    if depth_stride == 2:
        check_slices(slices, thin=is_thin(slices, depth_stride))
    depths = [-(-slices // level.stride[0]) for level in levels]
    if depth_stride == 2:
        depths[-1] = 1  # behind the un-padded pool, which strides do not show
    pools = [depth_pool(backbone, level) for level in levels]
    return [depth if pool is None else pooled_depth(pool, depth) for pool, depth in zip(pools, depths, strict=True)]


def is_thin(slices: int, depth_stride: int) -> bool:
    """Return True where two halvings leave one slice, so that the last pool over three has nothing to do."""
    return depth_stride == 2 and slices <= 4


def check_slices(slices: int, *, thin: bool = False) -> None:
    """Raise `OptionError` unless two halvings leave three slices, or one with `thin`."""
    if -(-slices // 4) != (1 if thin else 3):
        allowed = "1 to 4 (slices=3 was asked for)" if thin else "9 (as trained) to 12"
        fewer = "" if thin else ", or build it with slices=3 for one to four"
        raise OptionError(
            f"{slices} slices are not allowed with depth_stride=2; allowed: {allowed}. Next: resample or "
            f"crop to {3 if thin else 9} slices, or use depth_stride=1 (any depth){fewer}"
        )


def check_depth(backbone: nn.Module, depth: int, *, thin: bool = False) -> None:
    """Raise `OptionError` unless a ResNet3D, or any `thin` backbone, is left with one slice (P3D checks itself).

    Strides and pool are read from the network: `preserve_depth` may have changed them.
    """
    info: Sequence[Feature] = backbone.feature_info  # type: ignore[assignment]
    pool = getattr(getattr(backbone, "layer4", None), "zpool", None)
    if thin:
        left = -(-depth // info[-1].stride[0])
    elif isinstance(pool, nn.Module):
        left = pooled_depth(pool, -(-depth // info[-2].stride[0]))
    else:
        return
    if left not in (1, depth):
        check_slices(depth, thin=thin)
