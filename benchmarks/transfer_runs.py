"""The runs of a transfer study as one file of results: what each measured, case by case, without the networks.

`results/transfer_STUDY.json` is the memory of `transfer.py` too: a run that is in it is not run again, wherever it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from facts import RESULTS, machine

from svd_hub.training.saving import write_text
from svd_hub.training.scores import read_scores

FOLDS = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run. `part` is the fold it is measured on, or the share of the labels; a choice is one of seed 0."""

    study: str
    arm: str
    part: float
    rate: float
    seed: int
    choice: bool = False

    @property
    def name(self) -> str:
        """The run's folder, and its name among the results."""
        kind = "choice" if self.choice else f"seed{self.seed}"
        return f"{self.study}-{self.arm}-{self.part:g}-{kind}-lr{self.rate:g}"


@dataclass
class Runs:
    """The finished runs of a study.

    Attributes:
        cases: a digest of the evaluated cases -> their columns case and patient, which many runs share.
        found: name -> the run, its last line of the log, its scores by column, and where it was run.
    """

    study: str
    cases: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __contains__(self, run: Run) -> bool:
        return run.name in self.found

    def add(self, run: Run, folder: Path, place: dict[str, Any]) -> None:
        """Take the results of a finished run folder."""
        columns = read_scores(folder / "scores.csv")
        who = {name: columns.pop(name) for name in ("case", "patient")}
        key = next((key for key, known in self.cases.items() if known == who), f"cases{len(self.cases)}")
        self.cases[key] = who
        self.found[run.name] = {
            "run": asdict(run),
            "log": json.loads((folder / "log.jsonl").read_text().splitlines()[-1]),
            "cases": key,
            "scores": {name: [float(value) for value in values] for name, values in columns.items()},
            "on": f"{place['device']}, torch {place['torch']}",
        }

    def metric(self, run: Run, key: str) -> float | None:
        """Return a metric of the last epoch; None where the run is not finished."""
        found = self.found.get(run.name)
        return None if found is None else float(found["log"][key])

    @property
    def file(self) -> Path:
        """Where they are kept."""
        return RESULTS / f"transfer_{self.study}.json"

    def save(self) -> None:
        """Write them, whole: a line a run."""
        lines = [f" {json.dumps(name)}: {json.dumps(self.found[name])}" for name in sorted(self.found)]
        head = f'"study": {json.dumps(self.study)},\n"cases": {json.dumps(self.cases)},\n"runs": {{\n'
        write_text(self.file, "{" + head + ",\n".join(lines) + "\n}}\n")


def read(study: str) -> Runs:
    """Return the finished runs of a study, none where there is no file."""
    runs = Runs(study)
    if runs.file.is_file():
        told = json.loads(runs.file.read_text())
        runs.cases, runs.found = told["cases"], told["runs"]
    return runs


def take(study: str, folders: Path, place: dict[str, Any] | None = None) -> int:
    """Take all finished run folders of a study; return how many were new."""
    runs, before = read(study), len(read(study).found)
    for folder in sorted(folders.glob(f"{study}-*")):
        if (folder / "scores.csv").is_file() and folder.name not in runs.found:
            _, arm, part, kind, rate = folder.name.split("-", 4)
            seed = 0 if kind == "choice" else int(kind.removeprefix("seed"))
            run = Run(
                study=study,
                arm=arm,
                part=float(part),
                rate=float(rate.removeprefix("lr")),
                seed=seed,
                choice=kind == "choice",
            )
            runs.add(run, folder, place or machine())
    runs.save()
    return len(runs.found) - before
