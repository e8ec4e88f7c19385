"""A recipe trained as one of its tiers says, and held against what that is to give.

Seeds run one after another. What is finished is read again, what was stopped goes on, so that the same command ends
where it would have ended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import SvdHubError
from .. import engine, miniature
from .. import recipe as recipes
from ..engine import FOLDER, Report
from ..expected import Rows, Tier, TierName, leaves
from ..saving import write_text

MINIATURE = ".miniature"  # in the run folder: hidden files do not make it a run of something else
LINKED = ("data.init_args.seed", "data.init_args.init")  # what other keys say
# What may differ between a run that is there and the one that is asked for: no number depends on it.
FREE = (FOLDER, "run.threads", "run.checkpoint_steps", "data.init_args.workers", *LINKED)


@dataclass(frozen=True)
class Outcome:
    """What a tier gave.

    Attributes:
        recipe, tier, metric: which.
        values: by seed: the metric of the last epoch, or its share of the first one's.
        mean: of them.
        share: whether they are shares of the first epoch's.
        allowed: the range in words, "" where none decides.
        passed: whether the mean is in it; None = no range decides.
        published: the authors' figure, where nobody here has one.
        source: where that is from.
        hours: that all seeds took.
    """

    recipe: str
    tier: TierName
    metric: str
    values: Mapping[int, float]
    mean: float
    share: bool
    allowed: str
    passed: bool | None
    published: float | None
    source: str
    hours: float

    @property
    def line(self) -> str:
        """All of it on one line."""
        seeds = f"seed {next(iter(self.values))}"
        if len(self.values) > 1:
            each = ", ".join(f"{value:.4g}" for value in self.values.values())
            seeds = f"mean of seeds {', '.join(map(str, self.values))}: {each}"
        value = f"is {self.mean:.4g}" + (" of the first epoch's" if self.share else "")
        told = f"{self.recipe}, {self.tier}: {self.metric} {value} ({seeds})"
        if self.passed is not None:
            return f"{told}, {'as expected' if self.passed else 'not as expected'}; allowed: {self.allowed}"
        if self.published is None:
            return f"{told}. It neither passes nor fails: nobody has run this tier to its end, so it has no range"
        return (
            f"{told}. It neither passes nor fails: {self.published:g} is published ({self.source}) and was not re-run "
            f"by this project; difference {self.mean - self.published:+.4f}"
        )


def reproduce(
    name: str, tier: TierName, *, run: Path, data: Path | None = None, report: Report = lambda line: None
) -> Outcome:
    """Train a recipe as a tier says, and return what came out beside what is allowed.

    Args:
        name: a shipped recipe's name or a YAML file.
        tier: of those it states.
        run: the run folder; of several seeds it holds one for each, seed0, seed1, ...
        data: the data set; None makes a miniature one for "smoke".
        report: called with a JSON line after each epoch.

    Raises:
        SvdHubError: no such tier, other runs in the folder, a result that svd_hub.load does not take.
        KeyboardInterrupt: it was stopped; the same call goes on.
    """
    recipe = recipes.read(name)
    expected = recipe.expected.tier(tier)
    overrides = expected.overrides()
    if data is not None:
        overrides[FOLDER] = str(data.absolute())
    elif tier == "smoke":
        source = recipe.config.data
        made = miniature.make(source.class_path, source.init_args.get("form"), run.absolute() / MINIATURE)
        overrides |= {FOLDER: str(made.data), **made.settings}
    values, hours = dict[int, float](), 0.0
    for seed in expected.seeds:
        folder = run / f"seed{seed}" if len(expected.seeds) > 1 else run
        rows = _rows(_trained(name, {**overrides, "run.seed": seed}, folder, report), expected, data)
        values[seed] = expected.value(rows)
        hours += sum(float(row["seconds"]) for row in rows) / 3600
    mean = sum(values.values()) / len(values)
    published = expected.centre if expected.measured == "published" else None
    return Outcome(
        recipe=recipe.name,
        tier=tier,
        metric=expected.metric,
        values=values,
        mean=mean,
        share=expected.falls is not None,
        allowed=expected.allowed,
        passed=expected.passed(mean),
        published=published,
        source=expected.source,
        hours=hours,
    )


def _trained(name: str, overrides: dict[str, Any], folder: Path, report: Report) -> Path:
    """Return the folder of a finished run of these settings, trained as far as it is not; its result loads."""
    file, kept = folder / "model.safetensors", folder / "recipe.yaml"
    begun = kept.is_file() and (file.is_file() or (folder / "last.ckpt").is_file())
    if not begun:  # or it ended before its first checkpoint: the engine takes its place
        engine.train(name, run=folder, overrides=overrides, report=report)
    else:
        _check_same(recipes.read(name, overrides), recipes.read(str(kept)), folder)
        if not file.is_file():
            moved = {key: value for key, value in overrides.items() if key == FOLDER}
            engine.train("", run=folder, overrides=moved, resume=True, report=report)
    from ...hub import load

    _, loaded = load(str(file), return_report=True)
    if loaded.missing or loaded.unexpected:
        lost = [*loaded.missing, *loaded.unexpected]
        raise SvdHubError(f"{file} does not load whole: {len(lost)} tensors have no place, {lost[0]} first")
    return folder


def _check_same(asked: recipes.Recipe, there: recipes.Recipe, folder: Path) -> None:
    """Refuse a run folder that holds a run of other settings."""
    tables = (leaves(one.config.as_dict()) for one in (asked, there))
    want, have = ({k: v for k, v in table.items() if k.startswith(("run.", "task.", "data."))} for table in tables)
    if other := sorted(key for key in want.keys() | have.keys() if want.get(key) != have.get(key) and key not in FREE):
        key = other[0]
        raise SvdHubError(
            f"{folder} holds a run of other settings: {key} is {have.get(key)!r} there, asked for {want.get(key)!r}. "
            "Next: another --run"
        )


def _rows(folder: Path, expected: Tier, data: Path | None) -> Rows:
    """Return the log of a run; its last row has the test split, too, where that is asked for."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    if expected.metric.startswith("test/"):
        rows[-1] |= {f"test/{key}": value for key, value in _test_metrics(folder, data).items()}
    return rows


def _test_metrics(folder: Path, data: Path | None) -> dict[str, float]:
    """Return what `svd-hub evaluate` measures of a run, kept in its folder."""
    from ..evaluation import evaluate_entry

    model, kept = folder / "model.safetensors", folder / "test.json"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    if kept.is_file() and (found := json.loads(kept.read_text()))["sha256"] == digest:
        metrics: dict[str, float] = found["metrics"]
        return metrics
    metrics = evaluate_entry(str(model), data=data, recipe=str(folder / "recipe.yaml"))["metrics"]
    write_text(kept, json.dumps({"sha256": digest, "metrics": metrics}, indent=1))
    return metrics
