"""What an engine fits: decided by data alone, without TensorRT."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from helpers_tensorrt import machine

from svd_hub.export.tensorrt.here import Here
from svd_hub.export.tensorrt.key import Key, differences, new_key
from svd_hub.export.tensorrt.options import EngineOptions
from svd_hub.export.tensorrt.progress import Board, stoppable

FACTS = {
    "weights_sha256": "w",
    "precision": "fp16",
    "profile": {"smallest": [1, 1, 2, 2, 2], "typical": [1, 1, 4, 4, 4], "largest": [8, 1, 8, 8, 8], "step": [1, 1, 1]},
}


def at(tensorrt: str = "11.4.0.106", name: str = "A", capability: str = "9.0", system: str = "linux x86_64") -> Here:
    return Here(gpu=machine(name=name, capability=capability), tensorrt=tensorrt, system=system)


def built(where: Here, **options: Any) -> Key:
    return new_key(FACTS, "g", EngineOptions(**options), where)


def test_a_key_holds_everything_that_an_engine_depends_on() -> None:
    key = built(at())
    assert key.data() == {
        "weights_sha256": "w",
        "graph_sha256": "g",
        "precision": "fp16",
        "profile": {"smallest": [1, 1, 2, 2, 2], "typical": [1, 1, 4, 4, 4], "largest": [8, 1, 8, 8, 8]},
        "tensorrt": "11.4.0.106",
        "gpu": "A",
        "compute_capability": "9.0",
        "system": "linux x86_64",
        "hardware": "this",
        "version_compatible": False,
    }
    assert differences(key, at()) == []


FITS = [
    ({}, at("11.4.0.107"), False),
    ({}, at("11.5.0.1"), False),
    ({}, at("10.16.1.11"), False),
    ({"version_compatible": True}, at("11.5.0.1"), True),
    ({"version_compatible": True}, at("12.0.0.1"), True),
    ({"version_compatible": True}, at("13.0.0.1"), False),
    ({"version_compatible": True}, at("11.4.0.105"), False),
    ({"version_compatible": True}, at("10.16.1.11"), False),
    ({}, at(name="B"), False),
    ({}, at(capability="8.9"), False),
    ({"hardware": "same_compute_capability"}, at(name="B"), True),
    ({"hardware": "same_compute_capability"}, at(name="B", capability="8.9"), False),
    ({"hardware": "ampere_plus"}, at(name="B", capability="8.0"), True),
    ({"hardware": "ampere_plus"}, at(name="B", capability="10.0"), True),
    ({"hardware": "ampere_plus"}, at(name="B", capability="12.0"), True),
    ({"hardware": "ampere_plus"}, at(name="B", capability="7.5"), False),
    ({"hardware": "ampere_plus", "version_compatible": True}, at("11.5.0.1", "B", "8.6"), True),
    ({"hardware": "ampere_plus", "version_compatible": True}, at("11.5.0.1", "B", "8.6", "linux aarch64"), False),
    ({"hardware": "everywhere"}, at(), False),
]


@pytest.mark.parametrize(("options", "where", "fits"), FITS, ids=lambda value: str(value)[:60])
def test_where_an_engine_fits(options: dict[str, Any], where: Here, fits: bool) -> None:
    assert (differences(built(at(), **options), where) == []) == fits


def test_every_difference_is_said() -> None:
    lines = differences(built(at()), at("10.16.1.11", "B", "8.0", "win32 AMD64"))
    assert lines == [
        "built with TensorRT 11.4.0.106, here is 10.16.1.11",
        "built on A (9.0) for hardware=this, here is B (8.0)",
        "built on linux x86_64, here is win32 AMD64",
    ]


def test_no_field_of_a_key_is_left_out_of_the_comparison() -> None:
    """A field that nothing looks at would be a promise that is not kept."""
    machine_fields = {"tensorrt", "gpu", "compute_capability", "system", "hardware", "version_compatible"}
    graph_fields = {"weights_sha256", "graph_sha256", "precision", "profile"}  # key_of compares them with the artifact
    assert {field.name for field in dataclasses.fields(Key)} == machine_fields | graph_fields


class Bars:
    """What rich shows, as data."""

    def __init__(self) -> None:
        self.shown: dict[int, tuple[str, int, int]] = {}

    def add_task(self, name: str, total: int) -> int:
        self.shown[len(self.shown)] = (name, 0, total)
        return len(self.shown) - 1

    def update(self, task: int, completed: int) -> None:
        name, _, total = self.shown[task]
        self.shown[task] = (name, completed, total)

    def remove_task(self, task: int) -> None:
        self.shown[task] = ("", 0, 0)


def test_a_board_shows_phases_and_stops() -> None:
    bars = Bars()
    board = Board(bars)
    board.begin("Building", 4)
    board.begin("Timing", 9)
    assert board.step("Timing", 2)
    assert bars.shown == {0: ("Building", 0, 4), 1: ("Timing", 3, 9)}
    board.finish("Timing")
    assert board.step("Timing", 5), "a phase may end with steps left"
    board.stop.set()
    assert not board.step("Building", 0)
    assert board.phases == ["Building", "Timing"]


def test_work_gives_its_result_and_its_error() -> None:
    assert stoppable(lambda: 3, Board()) == 3
    with pytest.raises(ZeroDivisionError):
        stoppable(lambda: 1 // 0, Board())
