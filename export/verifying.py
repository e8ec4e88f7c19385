"""verify(): an artifact again, on this machine: its bytes, its golden pair, and parity where its network is here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import store
from ..canonical import converter_version
from ..catalog import all_entries
from ..errors import CheckpointError, SvdHubError
from ..hub import load
from . import artifact, inputs
from .artifact import Artifact
from .contract import Runner
from .exporting import cases, open_runner
from .facts import weights_sha256
from .formats import AGREEMENT, TOLERANCES
from .network import Network
from .parity import Report, compare, measure, measure_of
from .profile import Profile, make_profile

_ON_IMAGES = "made with images: verified by its golden pair, cut from them; at every shape: --images FOLDER"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify` found.

    Attributes:
        golden: the golden pair, run here; None where nothing here runs the artifact.
        parity: the shapes of the profile against the network; None where the network is not here.
        note: why not.
    """

    golden: Report | None
    parity: Report | None
    note: str = ""

    @property
    def passed(self) -> bool:
        """Everything that could be run is within the tolerance."""
        return all(report.passed for report in (self.golden, self.parity) if report is not None)


def verify(folder: str | os.PathLike[str], *, model: Any = None, images: Any = None, **options: Any) -> Verified:
    """Check an artifact again: its hashes, its golden pair on this machine, and parity where its network is here.

    Args:
        folder: what `export` wrote.
        model: the network, its name or file; None = by the name in the manifest, if it needs no download.
        images: to measure parity on; see `export`. An artifact that was measured on images when it was made is not
            measured on made-up volumes.
        **options: of `svd_hub.load`, with a name or file.

    Raises:
        CheckpointError: the folder is no artifact, or the model is not the one that it was made from.
        IntegrityError: a file is not what it was.
        SvdHubError: this machine cannot run it.
    """
    found = artifact.read(folder)
    artifact.check(found)
    run, note = open_runner(found.format, found.precision, found.folder)
    network, why = original(found, model, options)
    return held(found, run, network, images=images, note=note, why=why)


def held(
    found: Artifact, run: Runner | None, network: Network | None, *, images: Any = None, note: str = "", why: str = ""
) -> Verified:
    """Return the golden pair of an artifact and its parity, by a runner.

    Args:
        found: the artifact.
        run: what runs it; None = nothing here does.
        network: that it was made from; None = it is not here.
        images: to measure parity on; see `verify`.
        note: what is to be said of the runner.
        why: the network is not here.
    """
    golden = None
    if run is not None:
        volume, wanted = artifact.golden(found)
        case = compare(run(volume), wanted, kind=found.manifest["kind"], precision=found.precision, volume=volume)
        golden = Report(
            runner=run.provider,
            measure=measure_of(found.manifest["kind"], (case,)),
            tolerance=TOLERANCES[found.manifest["norm"], found.precision],
            least_agreement=AGREEMENT[found.precision],
            cases=(case,),
            note=note,
        )
    if network is None or run is None:
        return Verified(golden=golden, parity=None, note=why or note)
    if found.manifest["images"] and images is None:
        return Verified(golden=golden, parity=None, note=_ON_IMAGES)
    profile = profile_of(found, network)
    data = inputs.pieces(images, network.source, profile.largest) if images is not None else ()
    rule = getattr(network.source, "preprocess", None)
    volumes = inputs.samples(cases(found.format, found.precision, profile), rule, data)
    parity = measure(network, run, run.provider, found.precision, volumes, note)
    return Verified(golden=golden, parity=parity, note=why)


def original(found: Artifact, model: Any, options: Mapping[str, Any]) -> tuple[Network | None, str]:
    """Return the network that an artifact was made from, or why it is not here."""
    told = found.manifest.get("load")
    asked = model is not None
    if not asked:
        if told is None:
            return None, "made from a network that has no name: parity needs it (verify DIR --model FILE)"
        entry = all_entries().get(told["name"])
        local = entry is not None and store.cached(entry, converter_version=converter_version(entry)) is not None
        if not local:
            return None, f"{told['name']} is not on this machine: svd-hub fetch {told['name']}, then verify again"
        model, options = told["name"], told["options"]
    try:
        network = Network(model if isinstance(model, nn.Module) else load(model, **options))
    except SvdHubError:
        if asked:
            raise
        return None, "its network cannot be loaded here"
    if weights_sha256(network.source) != found.manifest["weights_sha256"]:
        if asked:
            raise CheckpointError(
                f"{model} is not the network that {found.folder} was made from: sha256 of its tensors "
                f"{weights_sha256(network.source)}, expected {found.manifest['weights_sha256']}"
            )
        return None, f"{model} is not what the artifact was made from (a new head, or another release of it)"
    return network, ""


def profile_of(found: Artifact, network: Network) -> Profile:
    """Return the profile that an artifact was made with.

    Raises:
        CheckpointError: the manifest does not say it.
    """
    try:
        told = {name: found.manifest["profile"][name] for name in ("typical", "smallest", "largest", "dynamic")}
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{found.folder / artifact.MANIFEST} is damaged (its profile has no {error}). Next: export it again"
        ) from error
    return make_profile(network.source, shape=told.pop("typical"), **told)
