"""Installs the built wheel alone into an empty folder and uses it from another one; run by `make wheel`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CHECK = """
import json, pathlib, sys
import svd_hub
assert pathlib.Path(svd_hub.__file__).is_relative_to(sys.argv[1]), svd_hub.__file__
assert "torch" not in sys.modules
mine = svd_hub.list_entries(status="ours")
ours = [name for name in mine if svd_hub.get_entry(name).source.kind == "bundled"]
for name in ours:
    model, report = svd_hub.load(name, return_report=True)
    assert len(report.matched) == report.total, str(report)
import svd_hub.training.recipe as recipes
for name in ours:
    recipes.read(svd_hub.get_entry(name).recipe)
print(f"wheel: {len(svd_hub.list_entries())} entries, {len(ours)} bundled and loaded, their recipes read")
"""


def main() -> None:
    """Build nothing, check the one wheel of the folder given."""
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    strange = {top for top in tops if top != "svd_hub" and not top.endswith(".dist-info")}
    if strange:
        raise SystemExit(f"the wheel brings {sorted(strange)} into site-packages")
    with tempfile.TemporaryDirectory() as site, tempfile.TemporaryDirectory() as empty:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, str(wheel)]
        subprocess.run(pip, check=True)
        env = {**os.environ, "PYTHONPATH": site, "SVD_HUB_HOME": empty}
        subprocess.run([sys.executable, "-c", CHECK, site], cwd=empty, env=env, check=True)
        for command in (["list"], ["info", "resnet3d18_imagenet"], ["train", "--help"]):
            subprocess.run(
                [sys.executable, "-m", "svd_hub", *command], cwd=empty, env=env, check=True, stdout=subprocess.DEVNULL
            )


if __name__ == "__main__":
    main()
