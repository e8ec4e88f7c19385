"""One folder is one artifact: the model, its preprocessing, a golden pair, and a manifest that names all by their hash.

`manifest.json` says which network it is (entry, sha256 of its weights), what it takes and returns, what made it, and
how it was checked. Nothing in the folder names a path, a host or a time. This module imports no torch, so that runners
need none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, IntegrityError, OptionError, SvdHubError
from ..files import sha256_of, sync_folder, write_atomic
from .formats import FORMATS, Format

if TYPE_CHECKING:
    import numpy as np

MANIFEST, PREPROCESS, GOLDEN = "manifest.json", "preprocess.json", "golden.safetensors"
SCHEMA = 3
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "numpy")


@dataclass(frozen=True)
class Artifact:
    """A folder and what its manifest says."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def format(self) -> Format:
        """The row of the format table."""
        return FORMATS[self.manifest["format"]]

    @property
    def precision(self) -> str:
        """One of `formats.PRECISIONS`."""
        return str(self.manifest["precision"])

    @property
    def model(self) -> Path:
        """The file with the network; where it has no fixed name, the manifest says which it is."""
        return self.folder / self.manifest["built"].get("model", self.format.model)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(output["name"] for output in self.manifest["outputs"])


def read(folder: str | os.PathLike[str]) -> Artifact:
    """Return the artifact of a folder; its files are not read yet (`check`).

    Raises:
        CheckpointError: the folder is no artifact, or one of another release.
    """
    place = Path(folder)
    try:
        manifest = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        earlier, known = manifest["schema"] < SCHEMA, manifest["format"] in FORMATS and manifest["schema"] == SCHEMA
    except FileNotFoundError:
        raise CheckpointError(
            f"{place} holds no {MANIFEST}: it is not what svd-hub export wrote. Next: svd-hub export ENTRY --to ... "
            "--out DIR"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place / MANIFEST} is damaged ({error}). Next: export it again") from error
    if earlier:
        raise CheckpointError(
            f"{place} is of schema {manifest['schema']}, of an earlier svd_hub, and this one reads {SCHEMA}. Next: "
            "export it again"
        )
    if not known:
        raise CheckpointError(
            f"{place} is a {manifest['format']!r} of schema {manifest['schema']}, of a later svd_hub. Next: "
            "pip install --upgrade svd-hub"
        )
    return Artifact(place, manifest)


def check(artifact: Artifact, *, but: Collection[str] = ()) -> None:
    """Hash the manifest and the files again, but for those named.

    Raises:
        IntegrityError: one is missing or another than it was.
    """
    if (found := _digest(artifact.manifest)) != (sealed := artifact.manifest.get("artifact_sha256")):
        raise IntegrityError(
            f"{artifact.folder / MANIFEST}: expected sha256 {sealed} of its content, found {found}: it was changed. "
            "Next: export it again"
        )
    for name, told in artifact.manifest["files"].items():
        if name in but:
            continue
        path = artifact.folder / name
        found = sha256_of(path) if path.is_file() else "no such file"
        if found != told["sha256"]:
            raise IntegrityError(f"{path}: expected sha256 {told['sha256']}, found {found}. Next: export it again")


def fitting(artifact: Artifact, volume: np.ndarray) -> np.ndarray:
    """Return a volume that a runner may be given.

    Raises:
        OptionError: it has another rank, another type or another length of a closed axis; says which are allowed.
    """
    dims = artifact.manifest["profile"]["dims"]
    shape, kind = tuple(getattr(volume, "shape", ())), str(getattr(volume, "dtype", type(volume).__name__))
    same = len(shape) == len(dims) and all(
        n == want or isinstance(want, str) for n, want in zip(shape, dims, strict=True)
    )
    if kind != "float32" or not same:
        raise OptionError(
            f"a volume {kind} {shape} is not allowed; allowed: an array float32 ({', '.join(map(str, dims))}), as "
            "svd_hub.Preprocess makes it"
        )
    return volume


def rules(artifact: Artifact) -> dict[str, Any]:
    """Return what is to be done to an image before the network and to its result, as `facts.preprocessing` put it."""
    found: dict[str, Any] = json.loads((artifact.folder / PREPROCESS).read_text(encoding="utf-8"))
    return found


def golden(artifact: Artifact) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the golden input, and what the network itself gave for it."""
    from safetensors.numpy import load_file

    found = load_file(artifact.folder / GOLDEN)
    return found["input"], {name: found[f"output.{name}"] for name in artifact.outputs}


# ---- writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def beside(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder beside the target; it takes the target's place when all went well, and is gone when not.

    Raises:
        OptionError: the target is there; with `overwrite`, it is something else than an artifact.
        SvdHubError: the folder cannot be made.
    """
    _refuse_taken(target, overwrite=overwrite)
    made = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        made.mkdir(parents=True)
    except OSError as error:
        raise SvdHubError(f"cannot write {target}: {error.strerror}. Next: choose another --out") from error
    try:
        yield made
        for path in made.rglob("*"):
            _sync(path)
        _refuse_taken(target, overwrite=overwrite)  # another process may have been faster
        old = target.with_name(f"{made.name}.old")
        if target.exists():
            os.replace(target, old)
        os.replace(made, target)
        shutil.rmtree(old, ignore_errors=True)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _refuse_taken(target: Path, *, overwrite: bool) -> None:
    ours = target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))
    if target.exists() and not (ours and (overwrite or not any(target.iterdir()))):
        step = "--overwrite replaces it" if ours else "choose another --out"
        raise OptionError(f"{target} is there already{'' if ours else ' and is no artifact'}. Next: {step}")


def _sync(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("rb") as file:
        os.fsync(file.fileno())


def write_golden(folder: Path, volume: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
    """Write a golden input with what the network gave for it."""
    import numpy as np
    from safetensors.numpy import save

    arrays = {"input": volume, **{f"output.{name}": array for name, array in outputs.items()}}
    write_atomic(folder / GOLDEN, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON of which the same content gives the same bytes."""
    write_atomic(path, (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def seal(folder: Path, manifest: Mapping[str, Any]) -> Artifact:
    """Write the manifest of a folder whose files are all there, with their hashes."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name != MANIFEST]
    files = {name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
    whole = {"schema": SCHEMA, **manifest, "files": files}
    write_json(folder / MANIFEST, {**whole, "artifact_sha256": _digest(whole)})
    return read(folder)


def _digest(manifest: Mapping[str, Any]) -> str:
    """Return the sha256 of what a manifest says, which includes those of the files: a change of either shows."""
    said = {name: value for name, value in manifest.items() if name != "artifact_sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the releases of what makes an artifact, of those that are installed."""
    from .. import __version__

    found = {"svd_hub": __version__}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
