"""3D-ResNets-PyTorch: ResNet3D of Kinetics and Moments in Time, in two generations with opposite shortcuts.

By what the authors' code does, the files of 2020 (`r3d18_K_200ep.pth`, ...) are tables {epoch, arch, state_dict,
optimizer, scheduler} with bare torchvision names, a 3-channel stem and shortcut B. Those of 2018
(`resnet-18-kinetics.pth`, ...) have `module.` before every name; depth 18 and 34 have no `downsample` (shortcut A);
and a key list in issue 20 shows no `num_batches_tracked`, which PyTorch did not save then. Nobody of this project has
opened one of these files.
Sources: kenshohara/3D-ResNets-PyTorch@540a0ea main.py, models/resnet.py, README.md (classes of every file);
@d9847ea (branch CVPR2018) train.py, models/resnet.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from .conversion import Conversion, Rule, convert_by_rules
from .genesis import with_counters

# Classes of the published files (K, KM, KMS, KS, M, MS, S; Kinetics-400). A file with another entry's number is that
# entry's, or of none; any other number is the user's own training.
_PUBLISHED = (700, 1039, 1139, 800, 339, 439, 100, 400)


def options_of(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file says of its network: a user's own classes, no classifier, or another number of channels.

    The SVD-Net authors' copies (`..._med1channel.pth`) have one channel.

    Args:
        tensors: the file's.
        options: of the entry.
    """
    stem, head = tensors.get("conv1.weight"), tensors.get("fc.weight")
    return variant(options, stem=stem, head=head, published=_PUBLISHED)


def convert(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> Conversion:
    """Return the network under its own names, which are ours, with counters of batches where the file has none.

    Args:
        tensors: the file's.
        options: of the entry; the classifier is kept where `num_classes` is above 0.

    Raises:
        CheckpointError: a file with nothing but the classifier.
    """
    done = convert_by_rules(tensors, drop=head_rules(options, tensors.get("fc.weight")))
    return with_notes(with_counters(done), options_of(tensors, options))


def variant(
    options: Mapping[str, Any], *, stem: Tensor | None, head: Tensor | None, published: Collection[int] = ()
) -> dict[str, Any]:
    """Return the one option in which a file differs from its entry: `num_classes`, or `in_channels`.

    Not both: many networks have these names, and a file without the classifier and with another stem is not this one.

    Args:
        options: of the entry.
        stem: the first kernel of the file, (width, channels, ...); None where it has another name.
        head: the classifier's weight, (classes, features); None where the file has none.
        published: numbers of classes that belong to files of other entries.
    """
    told: dict[str, Any] = {}
    classes = 0 if head is None else head.shape[0]
    if options.get("num_classes", 0) not in (0, classes):
        if classes in published:
            return {}
        told["num_classes"] = classes
    if stem is not None and stem.shape[1] != options.get("in_channels", 1):
        told["in_channels"] = stem.shape[1]
    return told if len(told) == 1 else {}


def head_rules(options: Mapping[str, Any], head: Tensor | None, *, prefix: str = r"^fc\.") -> tuple[Rule, ...]:
    """Return the rule that drops the classifier, where the entry has none."""
    if options.get("num_classes") or head is None:
        return ()
    return ((prefix, f"the classifier of {head.shape[0]} classes; this entry has none (num_classes=0)"),)


def with_notes(conversion: Conversion, told: Mapping[str, Any]) -> Conversion:
    """Return a conversion with a sentence on what `variant` found."""
    notes = []
    if "num_classes" in told:
        classes = told["num_classes"]
        notes.append(f"the file's own classifier has {classes} classes" if classes else "the file has no classifier")
    if "in_channels" in told:
        notes.append(f"the file's own stem has in_channels={told['in_channels']}")
    return dataclasses.replace(conversion, notes=(*conversion.notes, *notes))
