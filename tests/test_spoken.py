"""Messages of the rooms in the words of a command: its options, as one types them."""

from __future__ import annotations

import sys

import pytest

import svd_hub
from svd_hub import cli
from svd_hub.spoken import in_options


@pytest.fixture(autouse=True)
def _commands() -> None:
    cli._add_commands()


def said(monkeypatch: pytest.MonkeyPatch, typed: str, message: str) -> str:
    monkeypatch.setattr(sys, "argv", ["svd-hub", *typed.split()])
    return in_options(message, cli._asked())


@pytest.mark.parametrize(
    ("typed", "message", "expected"),
    [
        ("predict X y --out z", "or fill the gaps (missing='fill')", "or fill the gaps (--fill-gaps)"),
        ("predict X", "give a point (mm) to cut about", "--point X,Y,Z (mm) to cut about"),
        ("predict X", "point=(-1.0, 2.0, 3.0) is not allowed", "--point -1.0,2.0,3.0 is not allowed"),
        ("predict X", "planes=[3, 99] are not allowed", "--key-slice 3 --key-slice 99 are not allowed"),
        ("predict X", "allowed: 'all', or whole numbers", "allowed: --every-slice, or whole numbers"),
        ("predict X", "planes='all' is not allowed", "--every-slice is not allowed"),
        ("predict X", "name one with series=, by its number", "name one with --series, by its number"),
        ("predict X", "least_score=0.5, most=3: no", "--least-score 0.5, --most 3: no"),
        ("predict X", "each=True takes each folder", "--each takes each folder"),
        ("predict X", "/data/out=3/a: modality='CT'", "/data/out=3/a: modality='CT'"),
        ("export X --to onnx", "shape=(32,) is not allowed", "--shape 32 is not allowed"),
        ("export run X", "or keep_failing=True to look at it", "or --keep-failing to look at it"),
        ("export verify F", "keep_failing=True", "keep_failing=True"),
        ("list", "status='recipes' is not allowed", "--status recipes is not allowed"),
        ("fetch X", "Next: read it, then load(..., accept_licence=True), or svd-hub fetch X --accept-licence",
         "Next: read it, then svd-hub fetch X --accept-licence"),
        ("nothing", "series=3 is not allowed", "series=3 is not allowed"),
    ],
)  # fmt: skip
def test_python_words_become_options(monkeypatch: pytest.MonkeyPatch, typed: str, message: str, expected: str) -> None:
    assert said(monkeypatch, typed, message) == expected


def test_weights_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error itself, so that it cannot be reworded without the option."""
    with pytest.raises(svd_hub.errors.WeightsUnavailableError) as told:
        svd_hub.load("resnet3d34_imagenet")
    assert "svd_hub.load" in str(told.value)
    assert "Next: --init none for a random network, or --init FILE for your own" in said(
        monkeypatch, "train finetune-classify", str(told.value)
    )
