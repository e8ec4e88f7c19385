"""Two processes of one run, as torchrun starts them, without its seconds: forks with its variables."""

from __future__ import annotations

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable


def together(action: Callable[[int], object], world: int = 2) -> list[int]:
    """Do it in `world` processes that find each other; their exit codes, negative for the signal that ended one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank: int) -> None:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            GROUP_RANK="0",
            WORLD_SIZE=str(world),
            LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            TORCHELASTIC_RUN_ID="test",
        )
        action(rank)

    with warnings.catch_warnings():
        # From Python 3.12 on: forking is safe here, every pool has one thread.
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*", category=DeprecationWarning)
        made = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in range(world)]
        for process in made:
            process.start()
    made[0].join(90)
    for process in made[1:]:
        process.join(10)
        if process.is_alive():  # it waits for one that is gone, as torchrun would see
            process.kill()
            process.join(10)
    codes = [process.exitcode for process in made]
    assert None not in codes
    return [code or 0 for code in codes]
