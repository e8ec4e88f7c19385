"""Checkpoints laid out as upstream's code saves them, with seeded values instead of trained ones.

Names and shapes are stated here from the facts about each repository (the modules of svd_hub/origins say which), not
taken from the hub's networks: `test_origins_resnet` counts their parameters against the numbers upstream gives.
"""

from __future__ import annotations

import io
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


def norm(name: str, channels: int) -> Shapes:
    """The five tensors of a batch norm."""
    parts = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (channels,))
    return {f"{name}.{part}": shape for part, shape in parts.items()} | {f"{name}.num_batches_tracked": ()}


def resnet(
    depth: int,
    *,
    width: int = 64,
    channels: int = 3,
    stem: Sequence[int] = (7, 7, 7),
    shortcut: str = "B",
    bias: bool = False,
    classes: int = 0,
) -> Shapes:
    """A residual network under torchvision's names; a stem of two sizes makes a 2D one."""
    axes = len(stem)
    shapes: Shapes = {"conv1.weight": (width, channels, *stem), **norm("bn1", width)}
    before = width
    for stage, count in enumerate(BLOCKS[depth], start=1):
        planes = width * 2 ** (stage - 1)
        out = planes if depth < 50 else 4 * planes
        for block in range(count):
            at = f"layer{stage}.{block}"
            plan = [(before, planes, 3), (planes, planes, 3)]
            if depth >= 50:
                plan = [(before, planes, 1), (planes, planes, 3), (planes, out, 1)]
            for k, (a, b, size) in enumerate(plan, start=1):
                shapes |= {f"{at}.conv{k}.weight": (b, a, *[size] * axes), **norm(f"{at}.bn{k}", b)}
            if shortcut == "B" and block == 0 and before != out:
                shapes[f"{at}.downsample.0.weight"] = (out, before, *[1] * axes)
                shapes |= {f"{at}.downsample.0.bias": (out,)} if bias else {}
                shapes |= norm(f"{at}.downsample.1", out)
            before = out
    if classes:
        shapes |= {"fc.weight": (classes, before), "fc.bias": (classes,)}
    return shapes


def medicalnet(depth: int, *, width: int = 64) -> Shapes:
    """What is published: the backbone, one channel, shortcut A at depth 18 and 34 alone."""
    return resnet(depth, width=width, channels=1, shortcut="A" if depth in (18, 34) else "B")


def medicalnet_head(features: int, classes: int = 2) -> Shapes:
    """`conv_seg`: a transposed convolution with a bias, then two convolutions."""
    head = {"0.weight": (features, 32, 2, 2, 2), "0.bias": (32,), **norm("1", 32)}
    head |= {"3.weight": (32, 32, 3, 3, 3), **norm("4", 32), "6.weight": (classes, 32, 1, 1, 1)}
    return {f"conv_seg.{name}": shape for name, shape in head.items()}


def torchvision_video(*, width: int = 64, classes: int = 400) -> Shapes:
    """r3d_18: the stem is one Sequential, and so is each convolution of a block with its norm."""
    plain = resnet(18, width=width, stem=(3, 7, 7), classes=classes)
    rules = ((r"^conv1\.", "stem.0."), (r"^bn1\.", "stem.1."))
    rules += ((r"^(layer.*)\.conv(\d)\.", r"\1.conv\2.0."), (r"^(layer.*)\.bn(\d)\.", r"\1.conv\2.1."))
    return {_rename(name, rules): shape for name, shape in plain.items()}


def densenet(
    *, layers: Sequence[int] = (6, 12, 24, 16), growth: int = 32, width: int = 64, classes: int = 1000
) -> Shapes:
    """torchvision's 2D DenseNet-121 (and its like) under the names of today."""
    shapes: Shapes = {"features.conv0.weight": (width, 3, 7, 7), **norm("features.norm0", width)}
    count = width
    for block, many in enumerate(layers, start=1):
        for layer in range(1, many + 1):
            at = f"features.denseblock{block}.denselayer{layer}"
            shapes |= {**norm(f"{at}.norm1", count), f"{at}.conv1.weight": (4 * growth, count, 1, 1)}
            shapes |= {**norm(f"{at}.norm2", 4 * growth), f"{at}.conv2.weight": (growth, 4 * growth, 3, 3)}
            count += growth
        if block < len(layers):
            at = f"features.transition{block}"
            shapes |= {**norm(f"{at}.norm", count), f"{at}.conv.weight": (count // 2, count, 1, 1)}
            count //= 2
    shapes |= norm("features.norm5", count)
    return shapes | {"classifier.weight": (classes, count), "classifier.bias": (classes,)}


def merlin(*, depth: int = 152, width: int = 64, codes: int = 1692) -> Shapes:
    """The image encoder with its two heads, bare: the file of the five-year prediction (6 codes)."""
    shapes, features = resnet(depth, width=width, stem=(3, 7, 7)), 32 * width
    heads = {"classifier": codes, "contrastive_head": 512}
    for name, many in heads.items():
        shapes |= {f"{name}.weight": (many, features, 1, 1, 1), f"{name}.bias": (many,)}
    return shapes


def merlin_main(*, width: int = 64) -> Shapes:
    """The main file: the encoder under its prefix, a text encoder (here two of its layers), the temperature."""
    image = {f"encode_image.i3_resnet.{name}": shape for name, shape in merlin(width=width).items()}
    text = {"embeddings.word_embeddings.weight": (11, 4), "encoder.layer.0.output.dense.bias": (4,)}
    text = {f"encode_text.text_encoder.{name}": shape for name, shape in text.items()}
    return {"logit_scale": (), **image, **text, "encode_text.linear_layer.weight": (512, 4)}


def _rename(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def parameters(shapes: Mapping[str, Sequence[int]]) -> int:
    """How many numbers are trained: all but the statistics of the norms."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(torch.Size(shape).numel() for name, shape in shapes.items() if not name.endswith(buffers))


def values(shapes: Mapping[str, Sequence[int]], *, seed: int = 0) -> OrderedDict[str, Tensor]:
    """Seeded tensors under which no level of a deep network dies or explodes."""
    g = torch.Generator().manual_seed(seed)
    made: OrderedDict[str, Tensor] = OrderedDict()
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            made[name] = torch.randint(1, 10**6, (), generator=g)
        elif name.endswith("running_var"):
            made[name] = torch.rand(shape, generator=g) + 0.5
        elif len(shape) > 1:
            made[name] = torch.randn(shape, generator=g) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        else:
            made[name] = torch.randn(shape, generator=g) * 0.1 + 0.6 * name.endswith("weight")
    return made


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> OrderedDict[str, Tensor]:
    """The same under `prefix`, as DataParallel and trainers save it."""
    return OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())


def without_counters(tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """As PyTorch before 0.4.1 saved norms."""
    return OrderedDict((n, t) for n, t in tensors.items() if not n.endswith("num_batches_tracked"))


def legacy_densenet(tensors: Mapping[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The names in torchvision's published files: dots that module names may not have any more."""
    rule = (r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.")
    return OrderedDict((_rename(n, (rule,)), t) for n, t in without_counters(tensors).items())


def sgd_state(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """An optimiser's state as it lies beside the weights: as many tensors again."""
    state = {index: {"momentum_buffer": torch.zeros_like(t)} for index, t in enumerate(tensors.values())}
    return {"state": state, "param_groups": [{"lr": 0.1, "momentum": 0.9, "params": list(state)}]}


def saved(content: Any, *, legacy: bool = False) -> bytes:
    """What torch.save writes; `legacy`: the format before PyTorch 1.6."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()
