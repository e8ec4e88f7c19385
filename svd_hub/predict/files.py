"""Many inputs, one folder each: whole or not there, and what is there already is not made again.

A folder is named after its input's content and the network, not after its file, whose name often is a patient's;
`names=True` asks for the file's. Nothing that is written holds a path. `run.json` and `results.csv` are of the last run
into a folder: they name each input by its place among those given.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import OptionError, SvdHubError
from ..files import write_atomic
from . import folders, table
from .outputs import RESULT, Outputs, write
from .places import REPORT, TABLE, check_out, digest_of, names_of, plain_name, without_places
from .predictor import Predictor
from .results import RESEARCH_USE

Done = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input of a run. Only `path` and `error` are for this machine's own eyes.

    Attributes:
        path: where the input is.
        number: its place among the inputs of the run, from 1.
        name: its folder in the output; of a failed one, where its result would be.
        digest: sha256 of what the input is made of.
        state: "done" | "there" (made before) | "failed".
        error: what went wrong, with the next step.
        seconds: step -> time.
        facts: what `result.json` holds.
    """

    path: Path
    number: int
    name: str = ""
    digest: str = field(default="", repr=False)
    state: str = "failed"
    error: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict, repr=False)


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
        overwrite: make what is there from other weights or options again; else that is an error. What is no result of
            a run is never touched.
        done: called with (steps done, steps in all) of the input at hand.
        **options: of `Predictor.__call__`.

    Raises:
        OptionError: two inputs with the same name, `out` is a file, or results inside an input.
        SvdHubError: the output folder cannot be written.
    """
    want, folder = outputs or Outputs(), Path(out)
    check_out(folder, inputs)
    called = names_of(inputs) if names else [""] * len(inputs)
    run = _Run(predictor, folder, want, options, len(inputs), names=names)
    for number, (path, name) in enumerate(zip(inputs, called, strict=True), start=1):
        case = Case(path=path, number=number, name=name)
        try:
            case = run.named(case)
            case = run.one(case, overwrite=overwrite, done=done)
        except Exception as error:  # whatever it is, the next input is another
            case = replace(case, error=_told(error, path))
        run.keep(case)
        yield case


def _told(error: Exception, path: Path) -> str:
    """Return an error in words; of one that nobody foresaw, only where it was: its own words could be anything."""
    if isinstance(error, SvdHubError):
        return str(error)
    if isinstance(error, OSError):
        return f"{path} cannot be read: {error.strerror or type(error).__name__}. Next: check the path and its disk"
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return "there is not enough memory. Next: device='cpu', or a machine with more of it"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"a fault of svd-hub or of a library it uses: {type(error).__name__} in {Path(place.filename).name}, line "
        f"{place.lineno}. Next: report this line"
    )


class _Run:
    """What the cases of a run share, and its report."""

    def __init__(
        self, predictor: Predictor, out: Path, want: Outputs, options: dict[str, Any], count: int, *, names: bool
    ) -> None:
        self.predictor, self.out, self.want, self.count, self.names = predictor, out, want, count, names
        self.options = {key: value for key, value in options.items() if value is not None}
        self.cases: list[Case] = []
        self.rows: list[dict[str, Any]] = []
        self._facts = _facts(predictor, want, self.options)
        with folders.writing(out):
            out.mkdir(parents=True, exist_ok=True)
            folders.sweep(out)
        self._write()  # a folder that cannot be written is told before anything is computed

    def named(self, case: Case) -> Case:
        """Return an input with its folder's name, which holds the network's: several can run on the same input."""
        digest = digest_of(case.path)
        return replace(case, name=f"{case.name or digest[:12]}-{plain_name(self.predictor.label)}", digest=digest)

    def one(self, case: Case, *, overwrite: bool, done: Done | None) -> Case:
        """Return what came of an input."""
        target = self.out / case.name
        key = hashlib.sha256(f"{self._facts}\n{case.digest}".encode()).hexdigest()
        if self._is_made(case, key, overwrite=overwrite):
            return replace(case, state="there", facts=json.loads((target / RESULT).read_text()))
        result = self.predictor(case.path, done=done, **self.options)
        started = time.perf_counter()
        made = {"finished": _now(), **self._machine(), "seconds": result.seconds}
        with folders.writing(self.out), folders.unfinished(self.out) as part:
            write(result, part, self.predictor.preprocess, self.want, made=made)
            seconds = {**result.seconds, "write": round(time.perf_counter() - started, 3)}
            folders.put(part, target, key, case.digest)
            facts = json.loads((target / RESULT).read_text())
        return replace(case, state="done", seconds=seconds, facts=facts)

    def _is_made(self, case: Case, key: str, *, overwrite: bool) -> bool:
        try:
            return folders.is_made(self.out / case.name, key, overwrite=overwrite)
        except OptionError:
            reading = {name: self.options[name] for name in ("series", "missing") if name in self.options}
            self.predictor.read(case.path, **reading)  # what is wrong with the input itself is said first
            raise

    def keep(self, case: Case) -> None:
        """Add a case to the reports."""
        self.cases.append(replace(case, facts={}))  # a row is all that is kept of many
        values = table.values(case.facts) if case.facts else {}
        self.rows.append({**self._place(case), "state": case.state, **values})
        self._write()

    def _place(self, case: Case) -> dict[str, Any]:
        """Return which input a case is and where its result is; the file's name is there where names are asked for."""
        file = {"file": case.path.name or case.path.resolve().name} if self.names else {}
        return {"position": case.number, **file, "result": case.name}

    def _machine(self) -> dict[str, Any]:
        versions = {"svd_hub": __version__, "python": platform.python_version(), "torch": torch.__version__}
        artifact = {"artifact_sha256": self.predictor.artifact} if self.predictor.artifact else {}
        return {"versions": versions, "device": self.predictor.runtime, "dtype": self.predictor.dtype, **artifact}

    def _write(self) -> None:
        """Write `run.json`, what was run on what, with which versions, and how it went, and `results.csv`; no path."""
        entry = self.predictor.entry
        facts = {
            "entry": self.predictor.label,
            "weights_sha256": self.predictor.sha256,
            "status": entry.status,
            "licence": entry.licence,
            "finished": _now(),
            **self._machine(),
            "outputs": asdict(self.want),
            "options": {key: value for key, value in self.options.items() if key != "series"},
            "inputs": self.count,
            "cases": [
                {**self._place(case), "state": case.state, "seconds": case.seconds, "error": self._kept(case)}
                for case in self.cases
            ],
            "use": RESEARCH_USE,
        }
        names = ["position", *(["file"] if self.names else []), "result", "state"]
        names += table.columns(self.predictor.task, self.predictor.classes)
        with folders.writing(self.out):
            write_atomic(self.out / REPORT, (json.dumps(facts, indent=1, default=str) + "\n").encode())
            write_atomic(self.out / TABLE, table.as_csv(names, self.rows))

    def _kept(self, case: Case) -> str:
        """Return the error of a case as the report has it: no place, and no list of series, whose UIDs name people."""
        first = case.error.split("\n")[0].rstrip(":")
        if "series" in self.options:
            first = first.replace(str(self.options["series"]), "...")
        return without_places(first, case.path, self.out)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _facts(predictor: Predictor, want: Outputs, options: dict[str, Any]) -> str:
    """Return all that a result follows from, beside its input."""
    facts = {
        "svd_hub": __version__,
        "entry": predictor.label,
        "weights": predictor.artifact or predictor.sha256 or _fingerprint(predictor.model),
        "options_of_the_network": getattr(predictor.model, "options", {}),  # an artifact's are within its hash
        "preprocess": asdict(predictor.preprocess),
        "inference": asdict(predictor.inference),
        "dtype": predictor.dtype,
        "outputs": asdict(want),
        "options": options,
    }
    return json.dumps(facts, sort_keys=True, default=str)


def _fingerprint(model: torch.nn.Module) -> str:
    """Return the sha256 of a network's tensors: one that was handed over in memory has no file."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
