"""The one table: whole, true, and the source of what the command and the errors say."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from svd_hub.errors import OptionError
from svd_hub.export import commands
from svd_hub.export.contract import builder_of, runner_of
from svd_hub.export.formats import (
    AGREEMENT,
    AXES,
    FORMATS,
    KINDS,
    NORMS,
    PRECISIONS,
    TOLERANCES,
    check_cell,
    get_format,
    matrix,
)


def test_every_row_is_whole() -> None:
    for name, row in FORMATS.items():
        assert row.name == name
        assert set(row.precisions) <= set(PRECISIONS)
        assert "fp32" in row.precisions
        assert row.unrun <= set(row.precisions)
        assert row.kinds <= set(KINDS)
        assert row.quantised <= set(KINDS)
        assert (row.kinds == set(KINDS)) != bool(row.why_not)
        assert set(row.axes) <= set(AXES)
        assert callable(builder_of(row))
        assert callable(runner_of(row))


def test_a_bound_for_every_cell() -> None:
    assert set(TOLERANCES) == {(norm, precision) for norm in NORMS for precision in PRECISIONS}
    assert set(AGREEMENT) == set(PRECISIONS)
    # as issue 6 states them
    assert [TOLERANCES["batch", precision] for precision in PRECISIONS] == [1e-5, 2e-3, 1e-2, 5e-2]
    assert (TOLERANCES["group", "fp32"], TOLERANCES["group", "bf16"]) == (1e-4, 3e-2)


def test_the_extras_are_those_of_the_project() -> None:
    from svd_hub.doctor import EXTRAS

    assert {row.extra for row in FORMATS.values()} <= {"", *EXTRAS}


def test_what_is_not_made_says_why() -> None:
    assert check_cell("onnx", "int8", "map").name == "onnx"
    with pytest.raises(OptionError, match="to='onx' is not allowed; allowed: 'torchscript', 'torch_export', 'onnx'"):
        get_format("onx")
    with pytest.raises(OptionError, match="precision of torchscript='int8' is not allowed; allowed: 'fp32', 'fp16'"):
        check_cell("torchscript", "int8", "map")
    with pytest.raises(OptionError, match=r"torch_export of a network that gives detections .* Next: one of torchscr"):
        check_cell("torch_export", "fp32", "detections")
    with pytest.raises(OptionError, match=r"int8 .* detections is not made: .* allowed: fp32, fp16, bf16"):
        check_cell("onnx", "int8", "detections")


def test_help_and_list_are_the_table() -> None:
    text = CliRunner().invoke(commands.app, ["run", "--help"]).output
    shown = " ".join(text.replace("│", " ").split())  # rich puts every option into a box
    for name, row in FORMATS.items():
        assert f"{name}: {row.summary}" in shown
        assert f"{name}: {', '.join(row.precisions)}" in shown
    listed = CliRunner().invoke(commands.app, ["formats"]).output.splitlines()
    assert [tuple(line.split(None, 2)) for line in listed] == matrix()
    assert len(matrix()) == sum(len(row.precisions) for row in FORMATS.values())


def test_the_table_and_the_command_import_nothing_heavy() -> None:
    code = (
        "import sys; import svd_hub.export, svd_hub.export.formats, svd_hub.export.commands, svd_hub.export.artifact; "
        "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'openvino', 'safetensors'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
