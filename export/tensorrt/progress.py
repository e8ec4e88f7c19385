"""How far a build is, and the way to stop it: a build takes minutes, and TensorRT does not see Ctrl-C."""

from __future__ import annotations

import concurrent.futures
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Board:
    """Where TensorRT's phases are noted; it calls from threads of its own.

    Args:
        bars: of rich, None = shown nowhere.

    Attributes:
        stop: set it, and the build ends at its next step.
        phases: names of those that have begun, in order.
    """

    def __init__(self, bars: Any = None) -> None:
        self.stop = threading.Event()
        self.phases: list[str] = []
        self._bars, self._lock = bars, threading.Lock()
        self._tasks: dict[str, Any] = {}

    def begin(self, phase: str, steps: int) -> None:
        """Note that a phase of so many steps has begun."""
        with self._lock:
            self.phases.append(phase)
            if self._bars is not None:
                self._tasks[phase] = self._bars.add_task(phase, total=steps)

    def step(self, phase: str, step: int) -> bool:
        """Note a step; return whether the build goes on."""
        with self._lock:
            if phase in self._tasks:
                self._bars.update(self._tasks[phase], completed=step + 1)
        return not self.stop.is_set()

    def finish(self, phase: str) -> None:
        """Note that a phase is over, also where steps of it are left out."""
        with self._lock:
            if phase in self._tasks:
                self._bars.remove_task(self._tasks.pop(phase))


@contextlib.contextmanager
def board() -> Iterator[Board]:
    """Yield a board; with bars on stderr where someone watches."""
    if not sys.stderr.isatty():
        yield Board()
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as bars:
        yield Board(bars)


def stoppable(work: Callable[[], T], told: Board) -> T:
    """Return what `work` returns, from a thread of its own, so that Ctrl-C reaches this one and stops the work.

    Raises:
        KeyboardInterrupt: after the work has stopped.
    """
    with concurrent.futures.ThreadPoolExecutor(1, "tensorrt") as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            told.stop.set()
            concurrent.futures.wait([future])
            raise
