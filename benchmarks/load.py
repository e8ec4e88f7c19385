"""python benchmarks/load.py: how long a verified load of a 134 MB entry takes, against reading and hashing its file.

A file laid out as the official ResNet3D-18 (random weights) is converted into a cache of its own through a catalogue
overlay; then reading and hashing the cached file, `svd_hub.load` with the hash checked, and `svd_hub.load` with
SVD_HUB_VERIFY=stat run in turn. Aim: load <= 1.5 times reading and hashing.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from pathlib import Path

import torch
from facts import alternate, keep

NAME = "resnet3d18_imagenet"


def prepare(folder: Path) -> Path:
    """Fill a cache with a synthetic full-width file and return the cached one."""
    import svd_hub
    from svd_hub import store
    from svd_hub.canonical import converter_version
    from svd_hub.hub import LicenceWarning

    warnings.simplefilter("ignore", LicenceWarning)
    file = folder / "mirror" / NAME / "res3d18_imagenet_BN_73.07-5ff2ecb7.pth"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": svd_hub.load(NAME, weights=None).state_dict(), "meta": {}}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    overlay = folder / "overlay.toml"
    overlay.write_text(f'[entry.{NAME}.source]\nsha256 = "{digest}"\n')
    os.environ |= {"SVD_HUB_CATALOG": str(overlay), "SVD_HUB_MIRROR": str(file.parent.parent)}
    svd_hub.load(NAME)
    entry = svd_hub.get_entry(NAME)
    local = store.cached(entry, converter_version=converter_version(entry))
    if local is None:
        raise SystemExit("the entry is not in the cache")
    return local.path


def main() -> None:
    """Measure and keep."""
    import svd_hub

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SVD_HUB_HOME"] = str(folder / "home")
        path = prepare(folder)

        def load(mode: str) -> None:
            os.environ["SVD_HUB_VERIFY"] = mode
            svd_hub.load(NAME)

        def read_and_hash() -> None:
            with path.open("rb") as handle:
                hashlib.file_digest(handle, "sha256")

        cases = {"read_and_hash": read_and_hash, "load": lambda: load("sha256"), "load_stat": lambda: load("stat")}
        times = alternate(cases, 25)
        base = times["read_and_hash"]["wall_s"]
        ratios = {case: round(value["wall_s"] / base, 3) for case, value in times.items()}
        keep("load", {"bytes": path.stat().st_size, "times": times, "ratio_to_read_and_hash": ratios})


if __name__ == "__main__":
    main()
