"""The way of every preparation: tasks in parallel, a journal of what is done, and the result moved into place.

    DST.part/job.json       what was asked for: another question does not go on with these files
    DST.part/journal.jsonl  a line for each task that is done, with the size and hash of each of its files
    DST.part/...            the files themselves
    DST                     all of it, with prepared.json and dropped.csv, once nothing is left to do

A kill costs the tasks that were under way. A task is done when its line is in the journal: files come before it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import SvdHubError
from ...files import sha256_of
from ..console import bar
from ..saving import replacing, write_text

VERSION = 1  # of the layout of prepared folders
RECORD, DROPPED = "prepared.json", "dropped.csv"


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a task made.

    Attributes:
        files: names within the folder.
        dropped: (what, why) of each thing that was left out.
        facts: what the assembly needs to know of it, as JSON.
    """

    files: tuple[str, ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()
    facts: Any = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the journal: a task, what it made, and name -> (bytes, sha256) of its files."""

    task: str
    done: Done
    hashes: dict[str, tuple[int, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a preparation came to.

    Attributes:
        folder: the result.
        files: how many it has.
        facts: counts and the like.
        dropped: reason -> how many things were left out for it; `dropped.csv` names them.
        before: True = it was there already, and its files were held against their hashes.
    """

    folder: Path
    files: int
    facts: dict[str, Any]
    dropped: dict[str, int]
    before: bool = False


class Job(ABC):
    """A preparation. It may be asked from several threads at once, and its tasks have to be the same each time."""

    name: str

    @abstractmethod
    def question(self) -> dict[str, Any]:
        """Return what decides the result: options, and the source by its names and sizes."""

    @abstractmethod
    def tasks(self) -> Sequence[str]:
        """Return the tasks by name, one line each.

        Raises:
            SvdHubError: the source has another form.
        """

    @abstractmethod
    def do(self, task: str, folder: Path) -> Done:
        """Write a task's files into the folder; a file that is there already is a killed attempt's."""

    @abstractmethod
    def assemble(self, folder: Path, entries: Sequence[Entry]) -> tuple[dict[str, Any], list[str]]:
        """Put the tasks' files together; return the facts for the report, and names of files that are no longer needed.

        It may come again after a kill, and must not rely on what it wrote before.
        """


def prepare(job: Job, target: Path, *, workers: int = 0) -> Report:
    """Do a job, go on with one that was stopped, or check a finished one.

    Args:
        job: what to do.
        target: the folder that comes out.
        workers: threads, 0 = as many as there are cores.

    Raises:
        SvdHubError: the source or target has another form, or a finished folder is damaged.
    """
    if target.exists():
        return _examine(job, target)
    if not job.tasks():
        raise SvdHubError(f"there is nothing to prepare for {job.name}. Next: check the source folder")
    folder = target.with_name(f"{target.name}.part")
    _begin(job, folder)
    done = {entry.task: entry for entry in _journal(folder)}
    todo = [task for task in job.tasks() if task not in done]
    journal = Journal(folder / "journal.jsonl")
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        try:
            made = as_completed([pool.submit(_do, job, task, folder, journal) for task in todo])
            for future in bar(made, f"preparing {job.name}", total=len(todo)):
                entry = future.result()
                done[entry.task] = entry
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return _finish(job, folder, target, [done[task] for task in job.tasks()])


# ---- on the way ----------------------------------------------------------------------------------------------------


def _begin(job: Job, folder: Path) -> None:
    """Make the folder, or see that it was begun with the same question."""
    question = json.loads(json.dumps({"dataset": job.name, "version": VERSION, **job.question()}))
    file = folder / "job.json"
    if file.is_file():
        if json.loads(file.read_text()) != question:
            raise SvdHubError(
                f"{folder} was begun with other options or another source. Next: finish that, or remove the folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(question, indent=1))


class Journal:
    """Appends lines from several threads, each on the disk before its task counts as done."""

    def __init__(self, file: Path) -> None:
        self.file, self.lock = file, threading.Lock()

    def write(self, entry: Entry) -> None:
        """Append the line of a task."""
        with self.lock, self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_line(entry)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _do(job: Job, task: str, folder: Path, journal: Journal) -> Entry:
    done = job.do(task, folder)
    hashes = {name: ((folder / name).stat().st_size, sha256_of(folder / name)) for name in done.files}
    entry = Entry(task=task, done=done, hashes=hashes)
    journal.write(entry)
    return entry


def _line(entry: Entry) -> dict[str, Any]:
    return {
        "task": entry.task,
        "files": entry.hashes,
        "dropped": entry.done.dropped,
        "facts": entry.done.facts,
    }


def _journal(folder: Path) -> Iterator[Entry]:
    """Yield the tasks that are done and whose files are there; a line that a kill cut off is no line."""
    file = folder / "journal.jsonl"
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        write_text(file, text)
    for line in text.splitlines():
        found = json.loads(line)
        hashes = {name: (size, digest) for name, (size, digest) in found["files"].items()}
        if all((folder / name).is_file() and (folder / name).stat().st_size == hashes[name][0] for name in hashes):
            dropped = tuple((what, why) for what, why in found["dropped"])
            done = Done(files=tuple(hashes), dropped=dropped, facts=found["facts"])
            yield Entry(task=found["task"], done=done, hashes=hashes)


# ---- at the end ----------------------------------------------------------------------------------------------------


def _finish(job: Job, folder: Path, target: Path, entries: Sequence[Entry]) -> Report:
    for entry in entries:  # those of an earlier process may have gone bad since
        for name, (_, digest) in entry.hashes.items():
            if sha256_of(folder / name) != digest:
                raise SvdHubError(f"{folder / name} has changed since it was made. Next: remove {folder}, start again")
    facts, spent = job.assemble(folder, entries)
    dropped = [pair for entry in entries for pair in entry.done.dropped]
    text = io.StringIO()
    table = csv.writer(text)
    table.writerows([("what", "why"), *dropped])
    write_text(folder / DROPPED, text.getvalue())
    passing = {"job.json", "journal.jsonl", RECORD, *spent}
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    kept = {name: hash_and_size(folder / name) for name in names if name not in passing}
    record: dict[str, Any] = {
        "dataset": job.name,
        "version": VERSION,
        "question": job.question(),
        "facts": facts,
        "dropped": dict(Counter(why.partition(":")[0] for _, why in dropped).most_common()),
        "files": kept,
        "spent": [*spent, "job.json", "journal.jsonl"],
    }
    write_text(folder / RECORD, json.dumps(record, indent=1))
    os.replace(folder, target)  # finished; what is left to remove is only weight
    _remove(target, record["spent"])
    return Report(folder=target, files=len(kept), facts=facts, dropped=record["dropped"])


def _remove(target: Path, names: Sequence[str]) -> None:
    """Remove files that are no longer needed, and folders that are empty then."""
    for name in names:
        (target / name).unlink(missing_ok=True)
    for place in {(target / name).parent for name in names} - {target}:
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def hash_and_size(file: Path) -> dict[str, Any]:
    """Return the sha256 and size of a file, as `prepared.json` keeps them."""
    return {"sha256": sha256_of(file), "size": file.stat().st_size}


def _examine(job: Job, target: Path) -> Report:
    """Return the report of a finished folder whose files are all whole."""
    file = target / RECORD
    if not file.is_file():
        raise SvdHubError(f"{target} is there already and was not prepared here. Next: choose another folder")
    record = json.loads(file.read_text())
    asked = json.loads(json.dumps(job.question()))
    if record["dataset"] != job.name or record["version"] != VERSION or record["question"] != asked:
        raise SvdHubError(
            f"{target} was prepared with other options, or from another source. Next: choose another folder, or remove "
            "it"
        )
    _remove(target, record["spent"])  # a kill may have come before
    for name, found in bar(record["files"].items(), "checking", total=len(record["files"])):
        if not (target / name).is_file() or hash_and_size(target / name) != found:
            raise SvdHubError(f"{target / name} is missing or damaged. Next: remove {target} and prepare it again")
    return Report(
        folder=target, files=len(record["files"]), facts=record["facts"], dropped=record["dropped"], before=True
    )


# ---- for the jobs --------------------------------------------------------------------------------------------------


def names_and_sizes(folder: Path, files: Sequence[Path]) -> str:
    """Return a hash of the files' places within a folder and of their sizes."""
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}\n".encode())
    return found.hexdigest()


def join(folder: Path, parts: Sequence[str], target: str) -> None:
    """Write files one behind another into a new one."""
    with replacing(folder / target) as out:
        for part in parts:
            with (folder / part).open("rb") as file:
                shutil.copyfileobj(file, out, 1 << 22)
