"""Which entries a file belongs to, by its tensors alone: for the person whose file is not what it was taken for."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from . import origins
from .catalog import Entry, all_entries
from .errors import SvdHubError
from .origins.conversion import Conversion
from .skeleton import shapes, skeleton

# What the first names of an architecture begin with: a file without them need not be held against its network, which
# may take MONAI to build.
STEMS = {
    "resnet3d": ("conv1.", "stem."),
    "p3d": ("conv1.",),
    "densenet3d": ("conv0.",),
    "unet3d_genesis": ("down_tr64.",),
    "segresencoder": ("encoder.conv_init.",),
    "segresnet_ds": ("encoder.conv_init.",),
    "segresnet": ("convInit.",),
    "fcn3d": ("backbone.",),
    "unet3d": ("backbone.",),
    "faster_rcnn3d": ("backbone.",),
}
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Match:
    """An entry whose network is in a file.

    Attributes:
        entry: `svd_hub.load(entry.name, weights=FILE)` takes the file.
        options: in which the file differs from the entry, as its origin reads them off: {} = in nothing,
            {"num_classes": 2} = the same network with a classifier of its own.
        dropped: how many tensors of the file are not the network's, such as the other half of a detector.
    """

    entry: Entry
    options: Mapping[str, Any] = field(default_factory=dict)
    dropped: int = 0

    @property
    def distance(self) -> tuple[int, int]:
        """How far the file is from the entry's own: tensors to drop, then options that differ."""
        return self.dropped, len(self.options)

    def __str__(self) -> str:
        words = [f"{key}={value!r}" for key, value in self.options.items()]
        words += [f"{self.dropped} tensors left out"] if self.dropped else []
        return self.entry.name + (f" ({', '.join(words)})" if words else "")


def identify(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the entries that a file fits best, those with weights first; [] where it fits none.

    Several fit equally where networks are alike and only the training differs: MedicalNet's two files of one depth.

    Args:
        tensors: of one checkpoint, as `svd_hub.checkpoint.read` gives them.
    """
    found = matches(tensors)
    return [match.entry.name for match in found if match.distance == found[0].distance]


def matches(tensors: Mapping[str, Tensor], *, entries: Iterable[Entry] | None = None) -> list[Match]:
    """Return every entry whose network a file holds after the conversion of its origin, the nearest first.

    Names and shapes decide; no value is read. A network whose library is not installed is passed over.

    Args:
        tensors: of one checkpoint, as `svd_hub.checkpoint.read` gives them.
        entries: to look among; None = the catalogue.
    """
    layout = {name: tensor.to("meta") for name, tensor in tensors.items()}
    converted: dict[str, tuple[Conversion, Shapes, dict[str, Any]] | None] = {}
    found = []
    for entry in all_entries().values() if entries is None else entries:
        if not entry.architecture:
            continue
        key = json.dumps([entry.origin, entry.stored_options], sort_keys=True)
        if key not in converted:
            converted[key] = _converted(entry, layout)
        if (held := converted[key]) is None:
            continue
        done, here, told = held
        if _may_be(entry, here, told) and here == _expected(entry, told):
            found.append(Match(entry=entry, options=told, dropped=len(done.dropped)))
    return sorted(found, key=lambda match: (match.distance, not match.entry.loadable, match.entry.name))


def _converted(entry: Entry, layout: Mapping[str, Tensor]) -> tuple[Conversion, Shapes, dict[str, Any]] | None:
    """Return the conversion, its shapes, and what the file says otherwise than the entry; None where it is refused."""
    options = entry.stored_options
    try:
        origin = origins.get_origin(entry.origin)
        done = origin.convert(layout, options)
    except SvdHubError:
        return None
    options_of = getattr(origin, "options_of", None)
    told = options_of(layout, options) if options_of else {}
    return done, shapes(done.tensors), {key: value for key, value in told.items() if value != options.get(key)}


def _may_be(entry: Entry, here: Shapes, told: Mapping[str, Any]) -> bool:
    """Return whether the stem allows it, and the parameters, where the catalogue counts them for this very form."""
    if not any(name.startswith(STEMS.get(entry.architecture, "")) for name in here):
        return False
    if entry.stored or told or not entry.parameters:
        return True
    return entry.parameters == sum(math.prod(shape) for name, shape in here.items() if not name.endswith(_BUFFERS))


def _expected(entry: Entry, told: Mapping[str, Any]) -> Shapes:
    """Return the shapes of the entry's network with `told`; {} where it cannot be built."""
    try:
        return _shapes_of(entry.architecture, json.dumps({**entry.stored_options, **told}, sort_keys=True))
    except SvdHubError:
        return {}


@functools.lru_cache(maxsize=256)
def _shapes_of(architecture: str, options: str) -> Shapes:
    return shapes(skeleton(architecture, json.loads(options)).state_dict())
