"""How one 2D module becomes 3D, or why it cannot: the kinds of module that `svd_hub.inflation` knows.

A module is changed in place and its class exchanged, without its constructor: so its names, hooks, flags and tensors
stay, one that stands in two places stays one, and no constructor has to be known (ACSConv broke on that: its converter
reads the signatures of torch's constructors, which change between releases).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .errors import OptionError
from .models.acs import ACSConv


class NormAct3d(nn.BatchNorm3d):
    """BatchNorm3d, then its submodules in their order: timm's BatchNormAct2d for volumes."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for part in self.children():
            x = part(x)
        return x


class LPPool(nn.LPPool3d):
    """LPPool3d with the mean over depth instead of the sum, so that equal slices give what one gives in 2D."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / float(_height(self.kernel_size) ** (1 / self.norm_type))


# 2D kind -> its 3D kind, and the settings that have an axis.
KINDS: dict[type[nn.Module], tuple[type[nn.Module], tuple[str, ...]]] = {
    nn.Conv2d: (nn.Conv3d, ("kernel_size", "stride", "padding", "dilation", "output_padding")),
    nn.ConvTranspose2d: (nn.ConvTranspose3d, ("kernel_size", "stride", "padding", "dilation", "output_padding")),
    nn.BatchNorm2d: (nn.BatchNorm3d, ()),
    nn.InstanceNorm2d: (nn.InstanceNorm3d, ()),
    nn.Dropout2d: (nn.Dropout3d, ()),
    nn.MaxPool2d: (nn.MaxPool3d, ("kernel_size", "stride", "padding", "dilation")),
    nn.AvgPool2d: (nn.AvgPool3d, ("kernel_size", "stride", "padding")),
    nn.LPPool2d: (LPPool, ("kernel_size", "stride")),
    nn.AdaptiveAvgPool2d: (nn.AdaptiveAvgPool3d, ("output_size",)),
    nn.AdaptiveMaxPool2d: (nn.AdaptiveMaxPool3d, ("output_size",)),
    nn.Upsample: (nn.Upsample, ("size", "scale_factor")),
    nn.ZeroPad2d: (nn.ZeroPad3d, ("padding",)),
    nn.ConstantPad2d: (nn.ConstantPad3d, ("padding",)),
    nn.ReflectionPad2d: (nn.ReflectionPad3d, ("padding",)),
    nn.ReplicationPad2d: (nn.ReplicationPad3d, ("padding",)),
    nn.CircularPad2d: (nn.CircularPad3d, ("padding",)),
}
# Kinds without a 3D form here, and what to put in their place.
UNKNOWN: dict[type[nn.Module], str] = {
    nn.PixelShuffle: "put nn.Upsample and an nn.Conv2d in its place, and train these again",
    nn.PixelUnshuffle: "put an nn.Conv2d with a stride in its place, and train it again",
    nn.Fold: "put an nn.ConvTranspose2d in its place",
    nn.Unfold: "put an nn.Conv2d in its place",
    nn.Unflatten: "it may count on H and W",
    nn.FractionalMaxPool2d: "put an nn.MaxPool2d in its place",
    nn.MaxUnpool2d: "put nn.Upsample in its place",
    nn.Softmax2d: "put nn.Softmax(1) in its place",
}
OTHERWISE = ' (method="i3d" takes it)'


@dataclass
class Plan:
    """Converts the modules of one network.

    `kernel` makes a 3D kernel of a 2D one; `linears` are the inputs of the network's Linear layers; `notes` are added
    to; `made` are the tensors made so far, with their originals, so that what was shared stays shared.
    """

    method: str
    kernel: Callable[[Tensor], Tensor]
    linears: frozenset[int]
    notes: list[str]
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = field(default_factory=dict)

    def convert(self, name: str, module: Any) -> list[str]:
        """Make a module 3D, if it is 2D; return the reasons why it cannot be (then nothing is changed)."""
        kind = next((k for k in type(module).__mro__ if k in KINDS), None)
        if kind is None:
            return _reasons(module)
        if parametrize.is_parametrized(module):
            return ["its tensors are computed (parametrize): remove the parametrization first"]
        if _is_special(module, kind):
            if kind is nn.BatchNorm2d and _is_norm_and_parts(module):
                module.__class__ = NormAct3d
                return []
            return [f"{type(module).__name__} is a {kind.__name__} with a forward or mode of its own"]
        try:
            if kind in (nn.Conv2d, nn.ConvTranspose2d) and "weight" not in module._parameters:
                return ["its weight is computed (weight_norm, spectral_norm, prune): remove that first"]
            acs = kind is nn.Conv2d and self.method == "acs"
            settings = _acs_settings(module) if acs else self._settings(name or "<root>", module, kind)
        except OptionError as error:
            return [str(error)]
        for key, value in settings.items():
            setattr(module, key, value)
        module.__class__ = ACSConv if acs else KINDS[kind][0]
        return []

    def _settings(self, name: str, module: Any, kind: type[nn.Module]) -> dict[str, Any]:
        """Return the new attributes of a module of the 2D kind `kind`."""
        after = {key: deepen(getattr(module, key)) for key in KINDS[kind][1]}
        if kind in (nn.Conv2d, nn.ConvTranspose2d):
            after["weight"] = self._inflated(module, kind)
            # torch keeps the padding twice, for each padding_mode but "zeros": W first, both sides of it
            twice = module._reversed_padding_repeated_twice
            after["_reversed_padding_repeated_twice"] = twice + twice[-2:]
        if kind is nn.ConvTranspose2d:
            self.notes.append(f"{name}: a transposed convolution, inflated by the rule of i3d under every method")
        if kind is nn.AvgPool2d and module.divisor_override is not None:
            after["divisor_override"] = module.divisor_override * _height(module.kernel_size)
        if kind is nn.Upsample:
            if module.mode == "bicubic":
                raise OptionError("Upsample with mode 'bicubic' has no 3D form (mode='bilinear' has one)")
            after["mode"] = {"bilinear": "trilinear"}.get(module.mode, module.mode)
        if "output_size" in after:
            after["output_size"] = self._pooled(name, after["output_size"])
        return after

    def _pooled(self, name: str, size: Any) -> Any:
        """Return the size of an adaptive pool: of depth 1 where a Linear may read all its places, as in VGG."""
        d, h, w = size if isinstance(size, tuple | list) else (size,) * 3
        inputs = [n for n in sorted(self.linears) if None not in (h, w) and h * w > 1 and n % (h * w) == 0]
        if not inputs:
            return size
        self.notes.append(f"{name}: pools to {(1, h, w)} and not {(d, h, w)}, for a Linear of {inputs[-1]} inputs")
        return (1, h, w)

    def _inflated(self, conv: Any, kind: type[nn.Module]) -> nn.Parameter:
        old = conv.weight
        if id(old) not in self.made:
            weight = old.detach()
            new = self.kernel(weight) if kind is nn.Conv2d else _inflate_transposed(weight, conv)
            self.made[id(old)] = (nn.Parameter(new.contiguous(), requires_grad=old.requires_grad), old)
        return self.made[id(old)][0]


def _inflate_transposed(weight: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """Return a kernel (I, O, h, w) over h depth taps: those that meet in the same output slices share it equally."""
    depth, stride, dilation = weight.shape[2], conv.stride[0], conv.dilation[0]
    phases = [dilation * tap % stride for tap in range(depth)]
    if len(set(phases)) < stride:
        raise OptionError(
            f"ConvTranspose2d with kernel {depth}, stride {stride}, dilation {dilation} would leave slices empty"
        )
    shares = torch.tensor([1 / phases.count(phase) for phase in phases], dtype=weight.dtype, device=weight.device)
    return weight.unsqueeze(2) * shares[:, None, None]


def _acs_settings(conv: Any) -> dict[str, Any]:
    """Return the new attributes of a Conv2d as ACSConv; its weight stays the tensor that it is."""
    if conv.padding_mode != "zeros":
        raise OptionError(f"padding_mode={conv.padding_mode!r} is not allowed with ACS; allowed: 'zeros'{OTHERWISE}")
    keys = ("kernel_size", "stride", "padding", "dilation")
    given = {key: deepen(getattr(conv, key)) for key in keys}
    try:
        checked = ACSConv(conv.in_channels, conv.out_channels, groups=conv.groups, device="meta", **given)
    except OptionError as error:
        raise OptionError(f"{error}{OTHERWISE}") from error
    return {key: getattr(checked, key) for key in keys}


def deepen(value: Any) -> Any:
    """Return a setting of H and W with that of H for depth: (h, w) -> (h, h, w), (l, r, t, b) -> (l, r, t, b, t, b)."""
    if not isinstance(value, tuple | list) or len(value) not in (2, 4):
        return value  # a number holds for all axes, so does a word or None
    return (value[0], *value) if len(value) == 2 else (*value, *value[2:])


def _height(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) else value


def describe(module: nn.Module) -> str:
    """Return a module in one line, without its submodules."""
    return f"{type(module).__name__}({module.extra_repr()})"


def own_tensors(module: nn.Module) -> Iterator[str]:
    """Yield a reason for each tensor outside torch's modules that seems to be laid out for images."""
    if type(module).__module__.split(".")[0] == "torch":
        return
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if tensor.ndim > 2:
            yield f"its tensor {name} of shape {tuple(tensor.shape)} may be laid out for H and W"


def _reasons(module: nn.Module) -> list[str]:
    """Return why a module of no known 2D kind does not fit volumes, [] if it seems to."""
    kind = type(module).__name__
    foreign = type(module).__module__.split(".")[0] != "torch"
    instead = next((UNKNOWN[k] for k in type(module).__mro__ if k in UNKNOWN), "")
    if instead or ("2d" in kind.lower() and not foreign):
        return [f"{kind} has no 3D form here{instead and f' ({instead})'}"]
    if "3d" in kind.lower() and not foreign:
        return [f"{kind} is 3D already: it reads five axes in the 2D network"]
    if isinstance(module, nn.Softmax | nn.LogSoftmax | nn.Softmin | nn.GLU) and module.dim in (2, 3):
        return [f"{kind} over axis {module.dim}, which is another axis of a volume"]
    if isinstance(module, nn.Flatten) and (module.end_dim != -1 or module.start_dim not in (0, 1, 2)):
        return [f"Flatten of axes {module.start_dim} to {module.end_dim}"]
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
        return [f"LayerNorm over a fixed shape {tuple(module.normalized_shape)}"]
    # a block named so is made of modules that are looked at one by one
    alone = not any(True for _ in module.children()) or bool(module._parameters) or bool(module._buffers)
    if foreign and "2d" in kind.lower() and alone and not isinstance(module, ACSConv):
        return [f"{kind} is 2D by its name and of an unknown kind"]
    return []


def _is_special(module: nn.Module, kind: type[nn.Module]) -> bool:
    """True if a subclass of `kind`, or one instance, computes something else (`train`: a norm that stays frozen)."""
    mro = type(module).__mro__
    holders = (module, *mro[: mro.index(kind)])
    return any(name in vars(holder) for holder in holders for name in ("forward", "_conv_forward", "__call__", "train"))


def _is_norm_and_parts(norm: nn.BatchNorm2d) -> bool:
    """Try a subclass of BatchNorm2d on random numbers: is it BatchNorm, then its submodules, in both modes?"""
    try:
        old = copy.deepcopy(norm).cpu().float()
        for part in old.modules():
            part._forward_hooks.clear()
            part._forward_pre_hooks.clear()
        new: Any = copy.deepcopy(old)
        new.__class__ = NormAct3d
        image = torch.randn(3, norm.num_features, 4, 5, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for training in (True, False):
                torch.default_generator.manual_seed(0)  # for a dropout among the parts
                expected = old.train(training)(image.clone())
                torch.default_generator.manual_seed(0)
                found = new.train(training)(image.clone().unsqueeze(2)).squeeze(2)
                if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
                    return False
    except Exception:  # whatever a foreign forward raises: then it is none
        return False
    return True
