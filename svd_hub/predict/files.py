"""Many inputs, one folder each: whole or not there, and what is there already is not made again.

A folder is named after its input's content, not after its file, whose name often is a patient's; `names=True` asks for
the file's. Nothing that is written holds a path. A killed run leaves a `.part-*` folder, which the next one removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import OptionError, SvdHubError, VolumeError
from ..files import write_atomic
from .inputs import is_picture
from .outputs import RESULT, Outputs, write
from .predictor import Predictor

ENDINGS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
REPORT = "run.json"
_PART = re.compile(r"\.part-(\d+)-[0-9a-f]{8}")
Done = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input of a run. Only `path` and `error` are for this machine's own eyes.

    Attributes:
        path: where the input is.
        name: its folder in the output.
        state: "done" | "there" (made before) | "failed".
        error: what went wrong, with the next step.
        seconds: step -> time.
    """

    path: Path
    name: str = ""
    state: str = "failed"
    error: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


def find_inputs(places: Sequence[str | os.PathLike[str]], *, each: bool = False) -> list[Path]:
    """Return the inputs of files and folders.

    Args:
        places: a file is an input. A folder is one DICOM input, unless it holds volume files (NIfTI, NRRD, MetaImage)
            or pictures: then each of these is.
        each: every folder and every image file inside a folder is an input of its own: a folder of patients' folders.

    Raises:
        VolumeError: a place that is not there, a folder with nothing in it, or one with both files and folders.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise VolumeError(f"{place} is not there. Next: check the path")
        if not place.is_dir():
            found.append(place)
            continue
        inside = sorted(path for path in place.iterdir() if not path.name.startswith("."))
        folders, files = [p for p in inside if p.is_dir()], [p for p in inside if p.is_file() and _is_image(p)]
        if not inside or (each and not folders + files):
            raise VolumeError(f"{place} holds no image. Next: give the folder of the images")
        whole = [path for path in files if not _is_dicom(path)]
        if whole and folders and not each:
            raise VolumeError(
                f"{place} holds {len(whole)} image file(s) and {len(folders)} folder(s); allowed: one DICOM input, or "
                "image files. Next: --each takes each of them as an input, or name those you mean"
            )
        found += folders + files if each else whole or [place]
    return list(dict.fromkeys(found))


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith(ENDINGS) or _is_dicom(path) or is_picture(path)


def digest_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, or of all files of a folder, whatever they are called."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    parts = []
    for file in files:
        with file.open("rb") as opened:
            parts.append(hashlib.file_digest(opened, "sha256").hexdigest())
    return parts[0] if not path.is_dir() else hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()


def predict_files(
    predictor: Predictor,
    inputs: Sequence[Path],
    out: str | os.PathLike[str],
    *,
    outputs: Outputs | None = None,
    names: bool = False,
    overwrite: bool = False,
    done: Done | None = None,
    **options: Any,
) -> Iterator[Case]:
    """Predict each input into its folder under `out`, and yield what came of it; one that fails stops no other.

    Args:
        predictor: the network.
        inputs: what `find_inputs` gave.
        out: the folder of the results; made where it is not there.
        outputs: which files there shall be.
        names: folders have the names of the inputs.
        overwrite: make what is there from other weights or options again; else that is an error.
        done: called with (steps done, steps in all) of the input at hand.
        **options: of `Predictor.__call__`.

    Raises:
        OptionError: two inputs with the same name.
        OSError: the output folder cannot be written.
    """
    want, folder = outputs or Outputs(), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    called = _names(inputs) if names else [""] * len(inputs)
    cases: list[Case] = []
    for path, name in zip(inputs, called, strict=True):
        case = Case(path=path, name=name)
        try:
            case = _one(predictor, case, folder, want, overwrite=overwrite, done=done, options=options)
        except (SvdHubError, OSError) as error:
            case = replace(case, error=str(error))
        cases.append(case)
        _write_report(folder, predictor, cases, len(inputs), want, options)
        yield case


def _one(
    predictor: Predictor,
    case: Case,
    out: Path,
    want: Outputs,
    *,
    overwrite: bool,
    done: Done | None,
    options: dict[str, Any],
) -> Case:
    digest = digest_of(case.path)
    case = replace(case, name=case.name or digest[:12])
    key = _key(predictor, digest, want, options)
    target = out / case.name
    if target.exists() and not overwrite:
        if _key_in(target) == key:
            return replace(case, state="there")
        raise OptionError(
            f"{target} holds another result: of other weights, options or another input. Next: another --out, or "
            "--overwrite"
        )
    result = predictor(case.path, done=done, **options)
    part = out / f".part-{os.getpid()}-{secrets.token_hex(4)}"
    part.mkdir()
    try:
        started = time.perf_counter()
        write(result, part, predictor.preprocess, want)
        seconds = {**result.seconds, "write": round(time.perf_counter() - started, 3)}
        write_atomic(part / "key.json", (json.dumps({"key": key, "input_sha256": digest}) + "\n").encode())
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return replace(case, state="done", seconds=seconds)


def _names(inputs: Sequence[Path]) -> list[str]:
    """Return a name for each input, made of its file's: letters, digits, dots, dashes and underscores.

    Raises:
        OptionError: two are the same.
    """
    found = []
    for path in inputs:
        ending = next((end for end in sorted(ENDINGS, key=len, reverse=True) if path.name.lower().endswith(end)), "")
        stem = path.name[: -len(ending)] if ending else path.stem if path.is_file() else path.resolve().name
        found.append(re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).lstrip(".") or "input")
    if len(set(found)) < len(found):
        raise OptionError("two inputs have the same name. Next: leave --names out: results are named by content then")
    return found


def _key(predictor: Predictor, digest: str, want: Outputs, options: dict[str, Any]) -> str:
    """Return what tells one result from another."""
    facts = {
        "svd_hub": __version__,
        "entry": predictor.entry.name,
        "weights": predictor.sha256,
        "preprocess": asdict(predictor.preprocess),
        "inference": asdict(predictor.inference),
        "dtype": predictor.dtype,
        "outputs": asdict(want),
        "options": {k: v for k, v in options.items() if v is not None},
        "input": digest,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _key_in(folder: Path) -> str:
    try:
        return str(json.loads((folder / "key.json").read_text())["key"]) if (folder / RESULT).is_file() else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _sweep(out: Path) -> None:
    """Remove what killed runs left, not what a run that goes on is about to finish."""
    for path in out.iterdir():
        if (match := _PART.fullmatch(path.name)) and not _alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _write_report(
    out: Path, predictor: Predictor, cases: Sequence[Case], count: int, want: Outputs, options: dict[str, Any]
) -> None:
    """Write `run.json`: what was run on what, with which versions, and how it went; no path and no name of a file."""
    entry = predictor.entry
    facts = {
        "entry": entry.name,
        "weights_sha256": predictor.sha256,
        "status": entry.status,
        "licence": entry.licence,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"svd_hub": __version__, "python": platform.python_version(), "torch": torch.__version__},
        "device": str(predictor.device),
        "dtype": predictor.dtype,
        "outputs": asdict(want),
        "options": {k: v for k, v in options.items() if v is not None and k != "series"},
        "inputs": count,
        "cases": [
            {
                "result": case.name if case.state != "failed" else "",
                "state": case.state,
                "seconds": case.seconds,
                "error": without_places(case.error, case.path, out),
            }
            for case in cases
        ],
        "use": "Research use. Not a medical device.",
    }
    write_atomic(out / REPORT, (json.dumps(facts, indent=1, default=str) + "\n").encode())


def without_places(message: str, *places: Path) -> str:
    """Return a message without these paths, their parts, and what follows them up to a space."""
    for place in sorted({str(p) for path in places for p in (path, path.absolute())}, key=len, reverse=True):
        message = re.sub(re.escape(place) + r"(?:/[^\s:;,]*)?", "the input", message)
    for path in places:
        if len(path.name) > 2:
            message = message.replace(path.name, "the input")
    return message
