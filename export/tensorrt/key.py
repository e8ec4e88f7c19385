"""What an engine was built from and for, and whether it fits here: said before TensorRT sees a byte of it.

TensorRT has no call that asks; it deserialises, and gives None, or wrong answers, or ends the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from packaging.version import Version

from ...errors import CheckpointError, IntegrityError, SvdHubError
from ..artifact import Artifact
from .here import Here
from .options import EngineOptions

GRAPH, PLAN = "model.onnx", "model.plan"
SHAPES = ("smallest", "typical", "largest")
AMPERE = 8.0  # the least compute capability of hardware="ampere_plus"
# A version-compatible engine runs on its own and on later releases of its major version and of the next one
# (TensorRT 11's support matrix: 10 -> 11 yes, 8 -> 11 no).
LATER_MAJORS = 1


@dataclass(frozen=True, kw_only=True)
class Key:
    """Everything that an engine depends on.

    Attributes:
        weights_sha256: of the network's tensors.
        graph_sha256: of the ONNX file.
        precision: of its numbers.
        profile: smallest, typical and largest shape.
        tensorrt, gpu, compute_capability, system: of the machine that built it.
        hardware, version_compatible: where else it may run; see `EngineOptions`.
    """

    weights_sha256: str
    graph_sha256: str
    precision: str
    profile: Mapping[str, tuple[int, ...]]
    tensorrt: str
    gpu: str
    compute_capability: str
    system: str
    hardware: str
    version_compatible: bool

    def data(self) -> dict[str, Any]:
        """Return it for a manifest."""
        return {**asdict(self), "profile": {name: list(shape) for name, shape in self.profile.items()}}


def new_key(manifest: Mapping[str, Any], graph_sha256: str, options: EngineOptions, here: Here) -> Key:
    """Return the key of an engine that is built here.

    Args:
        manifest: of the artifact: weights, precision, profile.
        graph_sha256: of the ONNX file.
        options: of the build.
        here: this machine.
    """
    return Key(
        weights_sha256=manifest["weights_sha256"],
        graph_sha256=graph_sha256,
        precision=manifest["precision"],
        profile={name: tuple(manifest["profile"][name]) for name in SHAPES},
        tensorrt=here.tensorrt,
        gpu=here.gpu.name,
        compute_capability=here.gpu.compute_capability,
        system=here.system,
        hardware=options.hardware,
        version_compatible=options.version_compatible,
    )


def key_of(found: Artifact) -> Key:
    """Return the key of an artifact's engine.

    Raises:
        CheckpointError: its manifest has none, or not a whole one.
        IntegrityError: the engine is of another graph, other weights, another precision or profile than the artifact.
    """
    told = found.manifest.get("built", {}).get("key", {})
    if set(told) != {field.name for field in fields(Key)}:
        raise CheckpointError(f"{found.folder} has no whole key of its engine. Next: {rebuild(found)}")
    key = Key(**{**told, "profile": {name: tuple(shape) for name, shape in told["profile"].items()}})
    artifact = {
        "weights_sha256": found.manifest["weights_sha256"],
        "graph_sha256": found.manifest["files"].get(GRAPH, {}).get("sha256", ""),
        "precision": found.manifest["precision"],
        "profile": {name: tuple(found.manifest["profile"][name]) for name in SHAPES},
    }
    for name, value in artifact.items():
        if getattr(key, name) != value:
            raise IntegrityError(
                f"the engine in {found.folder} was built for {name} {getattr(key, name)}, and the artifact has "
                f"{value}. Next: {rebuild(found)}"
            )
    return key


def refuse_other(found: Artifact, here: Here) -> Key:
    """Return the key of an artifact's engine, if the engine fits this machine.

    Raises:
        SvdHubError: it does not; says in what, and how it is built again.
    """
    key = key_of(found)
    if lines := differences(key, here):
        raise SvdHubError(f"the engine in {found.folder} does not fit here: {'; '.join(lines)}. Next: {rebuild(found)}")
    return key


def differences(key: Key, here: Here) -> list[str]:
    """Return in what an engine does not fit a machine."""
    capability = here.gpu.compute_capability
    fits = {
        "this": (key.gpu, key.compute_capability) == (here.gpu.name, capability),
        "same_compute_capability": key.compute_capability == capability,
        "ampere_plus": float(capability) >= AMPERE,
    }
    found = []
    if not _release_fits(key, Version(here.tensorrt)):
        later = " or later" if key.version_compatible else ""
        found.append(f"built with TensorRT {key.tensorrt}{later}, here is {here.tensorrt}")
    if not fits.get(key.hardware, False):
        wanted = f"{key.gpu} ({key.compute_capability})"
        found.append(f"built on {wanted} for hardware={key.hardware}, here is {here.gpu.name} ({capability})")
    if key.system != here.system:
        found.append(f"built on {key.system}, here is {here.system}")
    return found


def _release_fits(key: Key, found: Version) -> bool:
    built = Version(key.tensorrt)
    if not key.version_compatible:
        return found == built
    return built <= found and found.major <= built.major + LATER_MAJORS


def rebuild(found: Artifact) -> str:
    """Return the command that builds an artifact's engine again, from the graph beside it."""
    return f"svd-hub export engine {found.folder} --out {found.folder} --overwrite"
