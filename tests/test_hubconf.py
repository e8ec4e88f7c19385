"""torch.hub's door: its names are the catalogue's, its dependencies exact, and it works from a plain copy."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import NARROW, OFFICIAL, Shelf, official, values
from test_architecture import HUB, imports, own, reached

import hubconf
import svd_hub
from svd_hub.catalog import get_entry
from svd_hub.entry_points import entry_points

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"huggingface_hub": "huggingface_hub", "safetensors": "safetensors"}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What a person gets who copies the folder: no .git, no tests, no build."""
    folder = tmp_path / "a plain copy"
    folder.mkdir()
    shutil.copy(ROOT / "hubconf.py", folder)
    for name in ("svd_hub", "export", "training"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(code: str, folder: Path, *, env: dict[str, str] | None = None) -> Any:
    """Run code far from the checkout; return what its last line prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOAD = """
import json, sys, hashlib, torch
model, report = torch.hub.load({repo!r}, {name!r}, source="local", trust_repo=True, return_report=True, progress=False)
import svd_hub
flat = b"".join(t.float().numpy().tobytes() for _, t in sorted(model.state_dict().items()))
print(json.dumps([report.as_dict(), str(report), hashlib.sha256(flat).hexdigest(), svd_hub.__file__]))
"""


def flat_sha256(tensors: dict[str, torch.Tensor]) -> str:
    flat = b"".join(t.float().numpy().tobytes() for _, t in sorted(tensors.items()))
    return hashlib.sha256(flat).hexdigest()


def test_official_file_from_a_plain_copy(shelf: Shelf, copy: Path, tmp_path: Path, server: Any) -> None:
    """The whole width: 33 million parameters, 66 MB; by a server, then by the cache with the server gone."""
    import servers

    body = official()
    shelf.put(OFFICIAL, body, source={"url": server.add("/r18.pth", servers.ranged(body))})
    code = LOAD.format(repo=str(copy), name=OFFICIAL)
    env = {"SVD_HUB_MIRROR": ""}
    report, told, digest, where = run(code, tmp_path, env=env)
    assert "120 of 120 tensors" in told
    assert (len(report["matched"]), report["total"], report["missing"]) == (120, 120, [])
    assert report["overlay"] == str(shelf.overlay)
    assert report["source_sha256"] == hashlib.sha256(body).hexdigest()
    assert digest == flat_sha256(values({"depth": 18}, half=True))
    assert Path(where).is_relative_to(copy)
    assert len(server.gets()) == 1


def test_stranger_s_packages_of_our_folders_names(shelf: Shelf, copy: Path, tmp_path: Path) -> None:
    shelf.put_official(official(**NARROW))
    for name in ("export", "training", "tests", "models"):
        (tmp_path / "strange" / name).mkdir(parents=True)
        (tmp_path / "strange" / name / "__init__.py").write_text("raise RuntimeError('a stranger was imported')")
    code = LOAD.format(repo=str(copy), name=OFFICIAL) + (
        "import svd_hub.training\nprint(json.dumps([report.total, svd_hub.training.__file__]))"
    )
    total, where = run(code, tmp_path, env={"PYTHONPATH": str(tmp_path / "strange")})
    assert total == 120
    assert Path(where).is_relative_to(copy)


def test_list_and_help_of_torch_hub(copy: Path, tmp_path: Path) -> None:
    """Both know no local source, so the copy lies where torch.hub keeps what it has downloaded."""
    hub = tmp_path / "torch" / "hub"
    hub.mkdir(parents=True)
    shutil.copytree(copy, hub / "org_svd_main")
    options = "skip_validation=True, trust_repo=True"
    code = f"""
import json, sys, torch
names = torch.hub.list("org/svd:main", {options}, verbose=False)
text = torch.hub.help("org/svd:main", {OFFICIAL!r}, {options})
print(json.dumps([names, text]))
"""
    names, text = run(code, tmp_path, env={"TORCH_HOME": str(tmp_path / "torch")})
    assert sorted(names) == svd_hub.list_entries()
    assert get_entry(OFFICIAL).card() in text


def test_public_names_are_the_catalogue_s() -> None:
    public = {name for name in vars(hubconf) if not name.startswith("_")} - {"dependencies"}
    assert sorted(public) == svd_hub.list_entries()
    for name in public:
        point = getattr(hubconf, name)
        assert point.__name__ == name
        assert get_entry(name).card() in point.__doc__
        assert "svd_hub.load" in point.__doc__


def test_entry_point_is_load(shelf: Shelf) -> None:
    shelf.put_tiny()
    point = entry_points()["tiny"]
    assert point(num_classes=2, depth_stride=2).fc.out_features == 2
    model, report = point(weights=None, return_report=True)
    assert report.missing == tuple(model.state_dict())
    with pytest.raises(TypeError):
        point("positional")


def test_dependencies_are_exact() -> None:
    """Everything that load can import, and nothing else; and the wheel requires it, too."""
    stdlib = set(sys.stdlib_module_names) | {"svd_hub"}
    rooms = {"hub", *reached("hub")}
    imported = {
        module.split(".")[0]
        for path, package in HUB
        if own(path) in rooms
        for module in imports(path, package)
        if module.split(".")[0] not in stdlib
    }
    optional = {"SimpleITK"}  # only where a person hands over an image of it
    assert imported - optional == set(hubconf.dependencies)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.split(r"[><=\[ ]", line)[0].replace("-", "_") for line in project["dependencies"]}
    assert set(hubconf.dependencies) <= required
    assert {"typer", "rich", "packaging"} <= required, "what the command needs"
