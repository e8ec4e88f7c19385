"""Guards against what is known to go wrong around training; wrong 16-bit gradients have a file of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from torch import nn

from svd_hub import doctor
from svd_hub.training.precision import warn_of_slow_cudnn

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEVER = {"torchvision", "timm"}  # either breaks beside a torch for CPUs, and takes Lightning along


# ---- cuDNN ---------------------------------------------------------------------------------------------------------


def on_gpu(monkeypatch: pytest.MonkeyPatch, cudnn: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_16_bit_conv3d_on_an_old_cudnn_is_told_with_the_cure(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    on_gpu(monkeypatch, 91002)
    with pytest.warns(UserWarning, match=r"cuDNN 9\.10 .*4 times slower.*Next: .*9\.15.*32-true"):
        warn_of_slow_cudnn(nn.Sequential(nn.Conv3d(1, 1, 3)), precision)


def test_no_word_where_nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    network, planar = nn.Sequential(nn.Conv3d(1, 1, 3)), nn.Sequential(nn.Conv2d(1, 1, 3))
    on_gpu(monkeypatch, 91002)
    warn_of_slow_cudnn(network, "32-true")
    warn_of_slow_cudnn(planar, "bf16-mixed")
    on_gpu(monkeypatch, 91500)
    warn_of_slow_cudnn(network, "bf16-mixed")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    warn_of_slow_cudnn(network, "bf16-mixed")


# ---- torchvision ---------------------------------------------------------------------------------------------------


def closure(names: list[str]) -> set[str]:
    """What is installed with some requirements, by the metadata of what is installed here."""
    found: set[str] = set()
    todo = [Requirement(name) for name in names]
    while todo:
        one = todo.pop()
        name = re.sub(r"[-_.]+", "-", one.name).lower()
        extras = one.extras or {""}
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue
        for line in map(Requirement, lines):
            if line.marker is None or any(line.marker.evaluate({"extra": extra}) for extra in extras):
                line.marker = None
                todo.append(line)
    return found


def test_nothing_that_is_installed_with_it_brings_torchvision_or_timm() -> None:
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines if "svd-hub" not in line]
    found = closure([*PROJECT["dependencies"], *extras])
    assert {"torch", "torchmetrics", "lightning-utilities", "fsspec"} <= found  # so it was really followed
    assert not NEVER & found


def test_a_torchvision_without_kernels_is_told_with_the_cure_by_train_and_doctor(tmp_path: Path) -> None:
    """What PyPI's build does beside a torch for CPUs; Lightning's import is where it shows."""
    package, about = tmp_path / "torchvision", tmp_path / "torchvision-0.28.0.dist-info"
    package.mkdir()
    about.mkdir()
    (package / "__init__.py").write_text(
        "import torch\ntorch.library.register_fake('torchvision::nms')(lambda: None)\n"
    )
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "svd_hub", "train", "resnet3d18w16_lidc"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: torchvision is installed")
    assert "Next: pip uninstall torchvision" in done.stderr
    assert done.stderr.count("\n") == 1
    if not torch.__version__.endswith("+cpu"):
        return  # the doctor goes by versions, because it imports nothing heavy
    told = subprocess.run(
        [sys.executable, "-m", "svd_hub", "doctor", "--json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 1
    assert "pip uninstall torchvision" in told.stdout


# ---- Lightning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3", "2.6.5", "2.7.0"])
def test_releases_with_malware_or_code_execution_are_outside_of_the_requirement(version: str) -> None:
    lines = [line for line in PROJECT["optional-dependencies"]["train"] if line.startswith("pytorch-lightning")]
    (wanted,) = map(Requirement, lines)
    assert wanted.specifier.contains("2.6.6")
    assert not wanted.specifier.contains(version)
    pins = [
        Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("#", "")
    ]
    (pin,) = (one for one in pins if one.name == "pytorch-lightning")
    assert not pin.specifier.contains(version)


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_doctor_names_the_releases_with_malware(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    monkeypatch.setattr(doctor, "_version", lambda asked: version if asked == name else "")
    (found,) = (one for one in doctor.examine() if one.what == name)
    assert found.broken
    assert found.next == f"pip install '{name}>=2.6.6'"
