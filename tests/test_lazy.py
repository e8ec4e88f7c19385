"""What is imported when: the door and the catalogue without torch, the first load with torch and nothing heavier."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import svd_hub

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    *("torch", "huggingface_hub", "safetensors", "monai", "SimpleITK", "pytorch_lightning", "lightning", "torchvision"),
    *("onnx", "onnxruntime", "scipy", "pandas", "matplotlib", "skimage", "PIL", "nibabel", "pydicom", "pyarrow"),
}


def modules(code: str) -> set[str]:
    """Return the top-level modules that some code imports, in a process of its own, after its call of `before()`."""
    code = (
        "import json, sys\nseen = set()\ndef before(): seen.update(sys.modules)\n"
        f"{code}\nprint(json.dumps(sorted({{m.split('.')[0] for m in set(sys.modules) - seen}})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1])) - set(sys.stdlib_module_names)


def test_the_door_and_the_catalogue_are_light() -> None:
    code = "before(); import svd_hub; dir(svd_hub); svd_hub.list_entries(); svd_hub.get_entry('mp3d63_coco').source"
    assert modules(code) == {"svd_hub"}


def test_a_card_needs_neither_torch_nor_numpy() -> None:
    assert modules("before(); import svd_hub; svd_hub.get_entry('mp3d63_coco').card()") == {"svd_hub"}


def test_help_of_the_entry_points_needs_no_torch() -> None:
    assert not HEAVY & modules("import hubconf; assert 'mp3d63_coco' in hubconf.mp3d63_coco.__doc__")


def test_first_load_adds_torch_and_nothing_heavier() -> None:
    bundled = svd_hub.list_entries(status="ours")
    load = f"svd_hub.load({bundled[0]!r})" if bundled else "svd_hub.load('resnet3d18_coco', width=8, weights=None)"
    added = modules(f"import numpy, torch, safetensors.torch\nbefore()\nimport svd_hub\n{load}")
    assert added <= {"svd_hub", "torch"}, "sympy here means torch's compiler: see svd_hub/skeleton.py"


@pytest.mark.parametrize("name", svd_hub.__all__)
def test_every_name_of_the_door_opens(name: str) -> None:
    assert getattr(svd_hub, name) is not None
    assert name in dir(svd_hub)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'laod'; it has: .*load"):
        _ = svd_hub.laod


def test_the_door_is_typed_as_it_opens() -> None:
    """The names for type checkers are those that are opened."""
    import ast

    tree = ast.parse((ROOT / "svd_hub" / "__init__.py").read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    typed: dict[str, Any] = {a.asname: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert typed == svd_hub._DOOR


def test_every_name_of_the_door_stays_what_it_is() -> None:
    """A submodule that is imported binds its name in the package: none may have the name of a function of the door."""
    code = """
import importlib, pkgutil
import svd_hub
from svd_hub import _DOOR
svd_hub.load("resnet3d18w16_tinyimagenet", weights=None)
for module in set(_DOOR.values()):
    importlib.import_module(f"svd_hub.{module}")
names = [info.name for info in pkgutil.iter_modules(svd_hub.__path__)]
assert not set(names) & set(_DOOR), set(names) & set(_DOOR)
assert all(callable(getattr(svd_hub, name)) for name in _DOOR)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["volume", "errors", "predict", "ops", "metrics"])
def test_a_room_is_there_without_an_import_of_its_own(name: str) -> None:
    code = f"import svd_hub; assert svd_hub.{name}.__name__ == 'svd_hub.{name}'; assert {name!r} in dir(svd_hub)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
