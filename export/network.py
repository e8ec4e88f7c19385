"""A loaded network as a server sees it: one float32 tensor in, float32 tensors out, each with a name."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..errors import OptionError
from ..folding import fold, put
from ..models import Backbone
from ..models.detection import FasterRCNN3D
from ..models.unet import UNet
from ..models.unet3d_genesis import BatchStatistics3d
from ..optimise import FixedConv3d, in_sixteen_bits

DETECTIONS = ("boxes", "scores", "labels")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Network(nn.Module):
    """The part of a network that is exported, with the names of what it returns.

    Norms are folded, ACS kernels put together: rounding apart the same numbers from fewer operators.

    Attributes:
        kind: one of `formats.KINDS`.
        outputs: names, in order.
        norm: one of `formats.NORMS`.
        pooled: what it gives is a mean over the volume, in which rounding cancels and a shift stays.
        source: the network it was made from, for parity.
    """

    source: Backbone
    inner: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not isinstance(model, Backbone):
            raise OptionError(f"{type(model).__name__} is not a network of svd_hub; allowed: what svd_hub.load returns")
        if any(isinstance(module, FixedConv3d) for module in model.modules()):
            raise OptionError("an optimised network cannot be exported. Next: export the one that it was made from")
        self.kind, self.outputs = described(model)
        self.pooled = self.kind in ("logits", "features")
        self.norm = "group" if any(isinstance(module, _LIVE) for module in model.modules()) else "batch"
        object.__setattr__(self, "source", model)  # no submodule: it is neither moved nor written
        self.inner = fold(model)
        for name, module in list(self.inner.named_modules()):
            if isinstance(module, BatchStatistics3d):
                put(self.inner, name, StatisticsOfBatch(module))

    def forward(self, volume: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs, in the order of their names, for a volume (N, C, D, H, W)."""
        return returned(self.inner, self.kind, volume)

    @torch.no_grad()
    def eager(self, volume: Tensor) -> tuple[Tensor, ...]:
        """Return what the network that this was made from gives: what an export is held against."""
        return returned(self.source, self.kind, volume)


def returned(model: Any, kind: str, volume: Tensor) -> tuple[Tensor, ...]:
    """Return the outputs of a loaded network, in the order of their names, for a volume (N, C, D, H, W)."""
    if kind == "detections":
        return padded(model.detect(volume), volume.shape[0], model.max_detections)
    out = model(volume)
    return tuple(out.values()) if isinstance(out, dict) else (out,)


class StatisticsOfBatch(nn.Module):
    """A batch norm by the statistics of its input, as an instance norm of all images together: one plain operator."""

    weight: Tensor
    bias: Tensor

    def __init__(self, norm: BatchStatistics3d) -> None:
        super().__init__()
        self.register_buffer("weight", norm.weight.detach())
        self.register_buffer("bias", norm.bias.detach())
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        n, c, d, h, w = x.shape
        together = x.transpose(0, 1).reshape(1, c, n * d, h, w)
        y = torch.instance_norm(together, self.weight, self.bias, None, None, True, 0.0, self.eps, False)
        return y.reshape(c, n, d, h, w).transpose(0, 1)


_LIVE = (nn.GroupNorm, nn.InstanceNorm3d, BatchStatistics3d)


def described(model: Any) -> tuple[str, tuple[str, ...]]:
    """Return the kind of what a network returns, and the names."""
    if model.features_only:
        return "pyramid", tuple(level.name for level in model.feature_info)
    if isinstance(model, FasterRCNN3D):
        return ("detections", DETECTIONS) if model.has_detector else ("features", ("features",))
    if isinstance(model, UNet) and model.has_decoder:
        return "map", ("logits" if model.num_classes else "features",)
    return ("logits", ("logits",)) if model.num_classes else ("features", ("features",))


def padded(found: Sequence[Tensor], count: int | Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return flat detections of a batch as boxes (N, most, 4), scores (N, most), labels (N, most).

    Where an image has fewer, boxes and scores are 0 and labels -1: a server's batch has one shape.

    Args:
        found: boxes (K, 4), scores (K,), labels (K,), images (K,), image by image.
        count: N.
        most: of an image.
    """
    boxes, scores, labels, images = found
    place = torch.arange(images.shape[0], device=images.device) - torch.searchsorted(images, images)
    row = images * most + place
    flat: Any = count * most  # torch takes a traced number for a size; its annotations do not
    all_boxes = boxes.new_zeros((flat, 4)).index_copy(0, row, boxes)
    all_scores = scores.new_zeros((flat,)).index_copy(0, row, scores)
    all_labels = labels.new_full((flat,), -1).index_copy(0, row, labels)
    return all_boxes.view(-1, most, 4), all_scores.view(-1, most), all_labels.view(-1, most)


class InPrecision(nn.Module):
    """A network in fp32, or in 16 bits between float32 input and output; what torch's own formats hold.

    Args:
        network: a copy of it is taken where the precision is another than fp32.
        precision: "fp32" | "fp16" | "bf16".
    """

    def __init__(self, network: Network, precision: str) -> None:
        super().__init__()
        self.dtype = DTYPES[precision]
        self.network = network
        if precision != "fp32":
            self.network = copy.deepcopy(network)
            for name, module in list(self.network.named_modules()) if network.pooled else ():
                if isinstance(module, _ConvNd) and module.bias is not None:
                    put(self.network, name, WideBias(module, module.bias, self.dtype))
            in_sixteen_bits(self.network, self.dtype)

    def forward(self, volume: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return one tensor where there is one, else a tuple, in the order of the names."""
        found = self.network(volume.to(self.dtype))
        out = tuple(x.float() if x.is_floating_point() else x for x in found)
        return out[0] if len(out) == 1 else out


class WideBias(nn.Module):
    """A convolution in a 16-bit type whose bias is added in float32; see `biases`."""

    bias: Tensor

    def __init__(self, plain: _ConvNd, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        spread = (-1, *(1,) * len(plain.kernel_size))
        self.register_buffer("bias", bias.detach().reshape(spread))
        plain.bias = None
        self.plain = plain.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.plain(x)
        return out.add_(self.bias)  # in float32 inside, and rounded once
