"""2D networks become 3D: the kernel rules, and `inflate`, which treats any CNN module by module.

Sources: Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017, section 2.3 (I3D: a kernel is repeated
over depth and divided by its depth); M3DV/ACSConv@95dc860 acsconv/converters (the kinds of module that are exchanged).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import OptionError, check_choice
from .functional_calls import CALLS_2D, CONVOLUTIONS, Trial, functional_calls, try_channels
from .inflation_plans import Plan, describe, own_tensors
from .models.acs import dense_kernel

INFLATIONS = ("i3d", "acs", "mean_centre")
CHANNEL_RULES = ("sum", "mean")


def inflate_kernel(weight_2d: Tensor, rule: str) -> Tensor:
    """Return a 2D kernel (O, I, h, w) as a 3D kernel (O, I, h, h, w): its depth is that of H.

    "i3d": the kernel h times over depth, divided by h. "acs": `models.acs.dense_kernel`. "mean_centre": the kernel in
    slice h // 2, zeros elsewhere. With all three the sum over the axis that was added is the 2D kernel, and a 1x1
    kernel is the same numbers.

    Raises:
        OptionError: another rule, not four axes, or "acs" of a kernel that is not square.
    """
    check_choice("rule", rule, INFLATIONS)
    if rule == "acs":
        return dense_kernel(weight_2d)
    if weight_2d.ndim != 4:
        raise OptionError(f"a kernel of shape {tuple(weight_2d.shape)} is not 2D; allowed: (O, I, h, w)")
    depth = weight_2d.shape[2]
    kernel = weight_2d.unsqueeze(2)
    if rule == "i3d":
        return kernel.repeat(1, 1, depth, 1, 1) / depth
    return F.pad(kernel, (0, 0, 0, 0, depth // 2, depth - 1 - depth // 2))


def change_channels(weight: Tensor, channels: int, rule: str) -> Tensor:
    """Return a first kernel (O, I, ...) for another number of input channels.

    "sum": the kernels are added up and shared out equally, so a grey volume repeated over the new channels gives
    exactly what it gave repeated over the old ones. "mean": their mean at every new channel (3 -> 1 as the SVD-Net
    paper did: a third of "sum").

    Raises:
        OptionError: another rule.
    """
    check_choice("in_channels_rule", rule, CHANNEL_RULES)
    total = weight.sum(1, keepdim=True)
    one = total / channels if rule == "sum" else total / weight.shape[1]
    return one.expand(-1, channels, *weight.shape[2:]).contiguous()


@dataclass(frozen=True)
class InflationReport:
    """What `inflate` did.

    `converted`: (name, before, after) of every module that is another now. `untreated`: (name, reason) of whatever may
    not fit volumes; the name of the whole network is "". `notes`: what else a user should know.
    """

    method: str
    converted: tuple[tuple[str, str, str], ...]
    untreated: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """True if nothing is left that may not fit volumes."""
        return not self.untreated

    def __str__(self) -> str:
        lines = [f"inflated by {self.method}: {len(self.converted)} converted, {len(self.untreated)} untreated"]
        lines += [f"  converted  {name or '<root>'}: {before} -> {after}" for name, before, after in self.converted]
        lines += [f"  note       {note}" for note in self.notes]
        lines += [f"  untreated  {name or '<root>'}: {reason}" for name, reason in self.untreated]
        return "\n".join(lines)


@overload
def inflate(
    model_2d: nn.Module,
    *,
    method: str = "i3d",
    in_channels: int | None = 1,
    in_channels_rule: str | None = None,
    strict: bool = True,
    return_report: Literal[False] = False,
) -> nn.Module: ...
@overload
def inflate(
    model_2d: nn.Module,
    *,
    method: str = "i3d",
    in_channels: int | None = 1,
    in_channels_rule: str | None = None,
    strict: bool = True,
    return_report: Literal[True],
) -> tuple[nn.Module, InflationReport]: ...
def inflate(
    model_2d: nn.Module,
    *,
    method: str = "i3d",
    in_channels: int | None = 1,
    in_channels_rule: str | None = None,
    strict: bool = True,
    return_report: bool = False,
) -> nn.Module | tuple[nn.Module, InflationReport]:
    """Return a copy of a 2D CNN that takes volumes (N, C, D, H, W), with its weights, names and settings.

    Depth is treated like H: an integer setting holds for all three axes, (h, w) becomes (h, h, w), so the depth is
    strided as the height is (`svd_hub.preserve_depth` takes that back). With "i3d" a volume of equal slices gives the
    2D response, but for zeros that a padding brings in at its ends.

    Convolutions, transposed ones, BatchNorm2d, InstanceNorm2d, pools, Dropout2d, Upsample and paddings are converted;
    what knows no axes stays. A subclass of BatchNorm2d with modules of its own behind it (timm's BatchNormAct2d) is
    converted where a trial on random numbers gives the same. A transposed convolution is inflated by the rule of I3D
    under every method, each depth tap divided by the taps that meet in one output slice. An adaptive pool to h x w gets
    depth 1, not h, in a network with a Linear whose inputs are a multiple of h x w (VGG). What a forward calls by
    itself is found in its byte code and never changed.

    The copy is deep; modules and tensors that are shared stay shared, hooks, devices, types and flags stay as they are.

    Args:
        model_2d: a network of nn.Conv2d and the like; it is not changed.
        method: "i3d" | "acs" | "mean_centre", see `inflate_kernel`; "acs" builds `ACSConv`, whose weights stay 2D.
        in_channels: channels of the volume, None = as they are. Which convolutions read the input is found by a trial
            of the 2D network on zeros, and all of them are changed; a second trial shows that the channels fit. Where
            the first goes wrong, the convolution declared first is taken if it reads 3 channels in one group, with a
            note. Otherwise the channels stay, and the convolution is untreated.
        in_channels_rule: "sum" (a grey volume gives what it gave repeated over the old channels) | "mean"; by default
            "mean" with "mean_centre" and "sum" otherwise.
        strict: raise where something is not treated; False leaves it as it is and reports it.
        return_report: return an `InflationReport` too.

    Returns:
        The network, or (network, report).

    Raises:
        OptionError: a value that is not allowed; with `strict` also whatever is not treated, by name.
    """
    check_choice("method", method, INFLATIONS)
    rule = in_channels_rule or ("mean" if method == "mean_centre" else "sum")
    check_choice("in_channels_rule", rule, CHANNEL_RULES)
    if in_channels is not None and (not isinstance(in_channels, int) or in_channels < 1):
        raise OptionError(f"in_channels={in_channels!r} is not allowed; allowed: 1 or more, None = as they are")
    try:
        model = copy.deepcopy(model_2d)
    except RuntimeError as error:  # a tensor that was computed from parameters
        raise OptionError(
            f"{type(model_2d).__name__} cannot be copied: {error}. Next: remove what computes its weights "
            "(torch.nn.utils.remove_weight_norm, torch.nn.utils.prune.remove)"
        ) from error
    notes: list[str] = []
    untreated: list[tuple[str, str]] = []
    if in_channels is not None:
        untreated += _change_input(model, in_channels, rule, notes)
    linears = frozenset(child.in_features for child in model.modules() if isinstance(child, nn.Linear))
    plan = Plan(method, partial(inflate_kernel, rule=method), linears, notes)
    converted: list[tuple[str, str, str]] = []
    for name, child in _open_modules(model, untreated):
        before = describe(child)
        reasons = plan.convert(name, child)
        if not reasons and describe(child) != before:
            converted.append((name, before, describe(child)))
        else:
            untreated += [(name, reason) for reason in (*reasons, *_leftovers(child))]
    report = InflationReport(method, tuple(converted), tuple(untreated), tuple(notes))
    if strict and untreated:
        found = "; ".join(f"{name or '<root>'}: {reason}" for name, reason in untreated)
        raise OptionError(
            f"inflate(strict=True) of {type(model_2d).__name__} cannot treat {len(untreated)}: {found}. Next: change "
            "these in the 2D network and inflate again, or use strict=False and mend the 3D network yourself"
        )
    return (model, report) if return_report else model


def _open_modules(root: nn.Module, untreated: list[tuple[str, str]]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the submodules that can be changed, each once; note scripted and lazy ones."""
    closed: list[str] = []
    for name, child in list(root.named_modules()):
        if any(prefix == "" or name.startswith(f"{prefix}.") for prefix in closed):
            continue
        if isinstance(child, torch.jit.ScriptModule):
            closed.append(name)
            untreated.append((name, "scripted module: call inflate before torch.jit.script or torch.jit.trace"))
        elif isinstance(child, nn.modules.lazy.LazyModuleMixin):
            untreated.append((name, "lazy module: run one batch through the network first"))
        else:
            yield name, child


def _leftovers(module: nn.Module) -> Iterator[str]:
    """Yield what in a module that was not converted may not fit volumes."""
    if calls := sorted(functional_calls(module, CALLS_2D)):
        yield f"possibly in the forward of {type(module).__name__}: {', '.join(calls)}"
    yield from own_tensors(module)


def _change_input(model: nn.Module, channels: int, rule: str, notes: list[str]) -> Iterator[tuple[str, str]]:
    """Give the convolutions that read the input other channels, all or none; yield (name, reason) why none."""
    convs: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, CONVOLUTIONS)}
    trial = try_channels(model, dict.fromkeys((channels, 3, 1, *(conv.in_channels for conv in convs.values()))))
    if not isinstance(trial, Trial):
        yield from _change_declared(convs, channels, rule, notes, trial)
        return
    readers = {name: convs[name] for name in trial.readers if convs[name].in_channels == trial.channels}
    if trial.channels == channels:
        notes += [
            f"{name} reads {convs[name].in_channels} channels, which the network makes of the {channels} of the input"
            for name in trial.readers
            if name not in readers
        ]
        return
    reasons = [(name, why) for name, conv in readers.items() for why in _why_kept(conv, model, list(readers.values()))]
    reasons += [(name, "it reads other features too") for name in readers if not trial.readers[name]]
    if trial.functional:
        reasons.append(("", "a forward convolves the input without a module"))
    elif not readers:
        reasons.append(("", f"no convolution reads the {trial.channels} channels of the input as they are"))
    if not reasons:
        before = [(conv, conv.weight) for conv in readers.values()]
        _set_channels(readers.values(), channels, rule)
        again = try_channels(model, (channels,), (trial.size,))
        if isinstance(again, Trial):
            notes += [f"{name} reads {channels} channels instead of {trial.channels}, by {rule}" for name in readers]
            return
        for conv, weight in before:
            conv.weight, conv.in_channels = weight, trial.channels
        reasons = [(next(iter(readers)), f"a trial of the network on {channels} channels went wrong ({again})")]
    yield from ((name, f"{_stays(trial.channels, channels)}: {why}") for name, why in reasons)


def _change_declared(
    convs: Mapping[str, Any], channels: int, rule: str, notes: list[str], why: str
) -> Iterator[tuple[str, str]]:
    """Do the same where no trial went through (`why`): the convolution declared first is taken to read the input."""
    name, first = next(iter(convs.items()), ("", None))
    if first is None:
        notes.append(f"no convolution was found to read {channels} channels")
        return
    if isinstance(first, nn.modules.lazy.LazyModuleMixin) or first.in_channels == channels:
        return
    unknown = [] if first.in_channels == 3 else [f"no trial told which convolution reads the input ({why})"]
    reasons = [*_why_kept(first, nn.ModuleDict(), [first]), *unknown]
    if reasons:
        yield from ((name, f"{_stays(first.in_channels, channels)}: {reason}") for reason in reasons)
        return
    notes.append(f"{name or '<root>'} reads {channels} channels instead of {first.in_channels}, by {rule}")
    notes.append(f"{name or '<root>'} is taken to read the input, as the first declared: no trial went through ({why})")
    notes += [
        f"{other} has {conv.in_channels} input channels too: if it also reads the input, use in_channels=None"
        for other, conv in convs.items()
        if conv.in_channels == first.in_channels and conv is not first
    ]
    _set_channels([first], channels, rule)


def _stays(before: int, channels: int) -> str:
    return f"its input stays {before} channels and not {channels} (in_channels=None asks for that)"


def _why_kept(conv: Any, model: nn.Module, readers: Sequence[Any]) -> Iterator[str]:
    """Yield why a convolution that reads the input cannot be given other channels."""
    if not isinstance(conv, nn.Conv2d | nn.ConvTranspose2d):
        yield f"{type(conv).__name__} reads it"
    elif "weight" not in conv._parameters:
        yield "the weight that reads it is computed"
    elif conv.groups != 1:
        yield f"{type(conv).__name__} reads it in {conv.groups} groups"
    elif any(conv.weight is p for m in model.modules() if m not in readers for p in m._parameters.values()):
        yield "the weight that reads it is shared with a module that reads other features"


def _set_channels(convs: Iterable[Any], channels: int, rule: str) -> None:
    """Give convolutions other input channels; a weight that they share stays one."""
    made: dict[int, nn.Parameter] = {}
    for conv in convs:
        old = conv.weight
        if id(old) not in made:
            swapped = isinstance(conv, nn.ConvTranspose2d)  # (I, O, h, w)
            weight = change_channels(old.detach().transpose(0, 1) if swapped else old.detach(), channels, rule)
            weight = weight.transpose(0, 1).contiguous() if swapped else weight
            made[id(old)] = nn.Parameter(weight, requires_grad=old.requires_grad)
        conv.weight, conv.in_channels = made[id(old)], channels
