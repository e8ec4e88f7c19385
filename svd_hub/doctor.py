"""What is installed, what is missing, and what is known to break. Imports nothing heavy."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

from . import store
from .errors import SvdHubError

EXTRAS = {  # as pyproject.toml has them; a test holds the two together
    "volume": ("SimpleITK", "monai", "highdicom", "pydicom", "pillow"),
    "train": (
        "pytorch-lightning", "jsonargparse", "monai", "nibabel", "pillow", "pyarrow", "pycocotools", "pyyaml",
        "scipy",
    ),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "serve": ("tritonclient",),
    "demo": ("SimpleITK", "highdicom", "pydicom", "pillow", "matplotlib", "scikit-image", "nibabel"),
}  # fmt: skip
MALWARE = ("2.6.2", "2.6.3")  # of lightning, GHSA-w37p-236h-pfx3


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, the next step ("" = none), and whether something is broken."""

    what: str
    found: str
    next: str = ""
    broken: bool = False


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def examine() -> list[Finding]:
    """Return the findings, the core first."""
    findings = [Finding("python", platform.python_version())]
    torch = _version("torch")
    old = bool(torch) and Version(torch).release < (2, 11)
    findings.append(
        Finding("torch", torch or "missing", "pip install 'torch>=2.11'" if old or not torch else "", old or not torch)
    )
    for name in ("numpy", "safetensors", "huggingface_hub", "typer", "rich"):
        found = _version(name)
        findings.append(Finding(name, found or "missing", "" if found else f"pip install {name}", not found))
    for extra, names in EXTRAS.items():
        missing = [n for n in names if not _version(n)]
        words = [", ".join(f"{n} {_version(n)}" for n in names if n not in missing)]
        words.append(f"missing: {', '.join(missing)}" if missing else "")
        findings.append(Finding(f"[{extra}]", "; ".join(filter(None, words)), _install(extra) if missing else ""))
    findings += _hazards(torch)
    findings.append(_cache())
    return findings


def _install(extra: str) -> str:
    """Return the command that installs an extra: in a checkout with its constraints, under which it was tested."""
    if (Path(__file__).resolve().parent.parent / "constraints.txt").is_file():
        return f'in the checkout: pip install -c constraints.txt -e ".[{extra}]"'
    return f'pip install "svd-hub[{extra}]"'


def _hazards(torch: str) -> list[Finding]:
    found = []
    if torch.endswith("+cpu") and _version("torchvision"):
        found.append(
            Finding(
                "torchvision beside CPU torch",
                f"{_version('torchvision')}: breaks pytorch-lightning, torchmetrics and timm if its operators fail",
                "pip uninstall torchvision",
                _version("torchvision").find("+cpu") < 0,
            )
        )
    for name in ("lightning", "pytorch-lightning"):
        if _version(name) in MALWARE:
            found.append(Finding(name, f"{_version(name)} was malware", f"pip install '{name}>=2.6.6'", True))
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        found.append(
            Finding(
                "onnxruntime", "both wheels are installed: the GPU one is shadowed",
                "pip uninstall onnxruntime onnxruntime-gpu, then install one", True,
            )
        )  # fmt: skip
    return found


def _cache() -> Finding:
    folder = store.cache_dir()
    try:
        used = sum(item.size for item in store.usage())
        place = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(place).free
    except (OSError, SvdHubError) as error:
        return Finding("cache", f"{folder}: {error}", "set SVD_HUB_HOME to a folder that can be written", True)
    return Finding("cache", f"{folder}: {used:,} bytes used, {free:,} free")
