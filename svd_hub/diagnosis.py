"""Saying how a file differs from the network asked for, from names and shapes alone: pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
_DETECTOR = ("backbone", "neck", "rpn_head", "bbox_head", "roi_head")
# Parts of the hub's segmentation networks, and of the heads that others put on theirs.
_DECODER = re.compile(r"(up_tr\d+|up_layers|up_samples|decoder)\.")
_SEGMENTER = re.compile(r"(conv_seg|heads|out_tr|conv_final|seg_outputs|decode_head|segmentation_head)\.")
_FAMILIES = {
    "a U-Net as Models Genesis has it": re.compile(r"(^|\.)down_tr64\."),
    "a DenseNet": re.compile(r"(^|\.)denseblock1\."),
    "a SegResNet of MONAI": re.compile(r"(^|\.)(conv_init|convInit)\."),
    "a residual network": re.compile(r"(^|\.)layer1\.0\.(conv|norm)"),
}
_STEMS = (
    *("conv1.weight", "stem.0.conv.weight", "conv0.weight", "down_tr64.ops.0.conv1.weight"),
    *("encoder.conv_init.weight", "convInit.conv.weight"),
)
_DEPTHS = {
    (False, (1, 1, 1, 1)): "10",
    (False, (2, 2, 2, 2)): "18",
    (False, (3, 4, 6, 3)): "34",
    (True, (3, 4, 6, 3)): "50",
    (True, (3, 4, 23, 3)): "101",
    (True, (3, 8, 36, 3)): "152",
    (True, (3, 24, 36, 3)): "200",
}


def diagnose(tensors: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> str:
    """Return, in a sentence or two, how a file differs from the network asked for and what it looks like instead.

    Args:
        tensors: the file's tensors, by name.
        expected: name -> shape of the network's.
    """
    found: Shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    wanted: Shapes = {name: tuple(shape) for name, shape in expected.items()}
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    reshaped = [f"{n} {found[n]}, not {wanted[n]}" for n in wanted if n in found and found[n] != wanted[n]]
    matched = len(wanted) - len(missing) - len(reshaped)
    parts = [f"found {len(found)} tensors, expected {len(wanted)}: {matched} match"]
    for count, word in ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape")):
        if count:
            parts.append(f"{len(count)} {word} ({some(count)})")
    text = ", ".join(parts)
    looks = [line for line in _looks(found, wanted) if line]
    return f"{text}. It looks like {'; '.join(looks)}" if looks else text


def some(names: Iterable[object], count: int = 3) -> str:
    """Return the first `count` names in words, and how many more there are ("none" if there are none)."""
    listed = [str(name) for name in names]
    more = f", and {len(listed) - count} more" if len(listed) > count else ""
    return (", ".join(listed[:count]) or "none") + more


def _looks(found: Shapes, wanted: Shapes) -> Iterator[str]:
    prefix, inner = _inner(found, wanted)
    tops = {name.split(".")[0] for name in found}
    parts = [f"{top}." for top in _DETECTOR if top in tops]
    if len(parts) > 1:
        yield f"the whole detector ({', '.join(parts)})"
    elif prefix:
        yield f"the right network whose keys start with {prefix!r}"
    yield _family(inner, wanted)
    yield _depth(inner, wanted)
    yield _shortcut(inner, wanted)
    yield from _stem(inner, wanted)
    yield _norm(inner, wanted)
    yield _decoder(inner, wanted)
    yield _head(inner, wanted)
    yield _segmentation_head(inner, wanted)


def _inner(found: Shapes, wanted: Shapes) -> tuple[str, Shapes]:
    """Return the prefix (of one part) without which most more names match, and the tensors under it."""
    best, prefix, inner = len(found.keys() & wanted.keys()), "", found
    for candidate in sorted({name.split(".")[0] + "." for name in found if "." in name}):
        under = {n.removeprefix(candidate): shape for n, shape in found.items() if n.startswith(candidate)}
        if (score := len(under.keys() & wanted.keys())) > best:
            best, prefix, inner = score, candidate, under
    return prefix, inner


def _family(found: Shapes, wanted: Shapes) -> str:
    if any(re.search(r"(^|\.)conv\d_[st]\.|\.conv\d\.0\.3\.", name) for name in found):
        return "r2plus1d (each 3D kernel split in two), another network"
    ranks = Counter(len(shape) for shape in found.values())
    if ranks[4] and not ranks[5] and any(len(shape) == 5 for shape in wanted.values()):
        return "a 2D network (4-D kernels)"
    wanted_ranks = Counter(len(shape) for shape in wanted.values())
    if wanted_ranks[4] and not wanted_ranks[5] and ranks[5]:
        return "a 3D network (5-D kernels), not the 2D one that is inflated here"
    if any(re.search(r"(^|\.)(conv1_custom|norm_\d)\.", name) for name in found):
        return "P3D under its upstream names: convert it first"
    for family, mark in _FAMILIES.items():
        if any(map(mark.search, found)) and wanted and not any(map(mark.search, wanted)):
            return f"{family}, another network"
    return ""


def _blocks(names: Iterable[str]) -> tuple[bool, tuple[int, ...]]:
    """Return whether the blocks are bottlenecks, and how many each stage has."""
    listed = list(names)
    counts: dict[int, int] = {}
    for name in listed:
        if found := re.match(r"layer(\d)\.(\d+)\.", name):
            stage, index = int(found.group(1)), int(found.group(2))
            counts[stage] = max(counts.get(stage, 0), index + 1)
    last = max((n for name in listed for n in re.findall(r"^layer\d\.\d+\.conv(\d)\.", name)), default="2")
    return last == "3", tuple(counts[stage] for stage in sorted(counts))


def _depth(found: Shapes, wanted: Shapes) -> str:
    here, there = _blocks(found), _blocks(wanted)
    if here == there or not here[1] or not there[1]:
        return ""
    if here in _DEPTHS and there in _DEPTHS:
        return f"depth {_DEPTHS[here]}, not {_DEPTHS[there]}"
    return f"another depth: blocks per stage {here[1]}, not {there[1]}"


def _shortcut(found: Shapes, wanted: Shapes) -> str:
    if _blocks(found) != _blocks(wanted) or not _blocks(found)[1]:
        return ""
    here, there = {n for n in found if ".downsample." in n}, {n for n in wanted if ".downsample." in n}
    if there and not here:
        whose = "as MedicalNet's and the first Kinetics networks of depth 18 and 34 have"
        return f"shortcut A (no downsample tensors; {len(there)} expected), {whose}"
    if here and not there:
        return f"shortcut B ({len(here)} downsample tensors; none expected)"
    if any(n.startswith("layer1.0.downsample.") for n in here - there):
        return "a network with a shortcut convolution in layer1, as early detectors had by mistake"
    biases = [n for n in here ^ there if n.endswith(".downsample.0.bias")]
    if biases:
        word = "with" if biases[0] in here else "without"
        return f"shortcut B {word} a bias in its convolution"
    return ""


def _stem(found: Shapes, wanted: Shapes) -> Iterator[str]:
    here = next((n for n in _STEMS if n in found), "")
    there = next((n for n in _STEMS if n in wanted), "")
    if not here or not there:
        return
    if here != there:
        if {here, there} == set(_STEMS[:2]):
            yield f"another stem: {here} instead of {there}"
        return
    a, b = found[here], wanted[there]
    if len(a) != len(b) or len(b) < 3:
        return
    if a[1] != b[1]:
        yield f"{a[1]}-channel stem, not {b[1]}"
    if a[2:] != b[2:]:
        yield f"{'x'.join(map(str, a[2:]))} stem, not {'x'.join(map(str, b[2:]))}"
    if a[0] != b[0]:
        fmcib = " (FMCIB's)" if (a[0], b[0]) == (128, 64) and _blocks(found)[0] else ""
        half = "half the width: " if 2 * a[0] == b[0] else f"double width{fmcib}: " if a[0] == 2 * b[0] else ""
        yield f"{half}width {a[0]}, not {b[0]}"


def _norm(found: Shapes, wanted: Shapes) -> str:
    here, there = (any(n.endswith("running_mean") for n in names) for names in (found, wanted))
    if here == there or not any(n.endswith(".bias") for n in found):
        return ""
    return "BatchNorm, not GroupNorm" if here else "GroupNorm (no running statistics), not BatchNorm"


def _decoder(found: Shapes, wanted: Shapes) -> str:
    here, there = ([n for n in names if _DECODER.match(n)] for names in (found, wanted))
    if bool(here) == bool(there) or not any(n in found for n in wanted if n not in there):
        return ""
    parts = some(sorted({n.split(".")[0] for n in here or there}))
    if there:
        return f"an encoder only ({len(there)} tensors of the decoder are not there: {parts}): num_classes=0 takes it"
    return f"a whole segmentation network ({len(here)} tensors of a decoder: {parts}), not an encoder only"


def _head(found: Shapes, wanted: Shapes) -> str:
    here, there = found.get("fc.weight"), wanted.get("fc.weight")
    if not here or not there or here[0] == there[0]:
        return ""
    return f"{here[0]} classes, not {there[0]}"


def _segmentation_head(found: Shapes, wanted: Shapes) -> str:
    here, there = ({n: s for n, s in names.items() if _SEGMENTER.match(n)} for names in (found, wanted))
    if more := sorted({n.split(".")[0] for n in here.keys() - there.keys()} - {n.split(".")[0] for n in there}):
        return f"a network with a segmentation head ({some(more)}.) that is not expected"
    for name in here.keys() & there.keys():
        a, b = here[name], there[name]
        if name.endswith("weight") and len(a) == len(b) == 5 and a[1:] == b[1:] and a[0] != b[0]:
            return f"a segmentation head of {a[0]} classes, not {b[0]}"
    return ""
