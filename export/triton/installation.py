"""Where a tritonserver is on this machine, and what it needs around it to start."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

from ... import __file__ as svd_hub_file
from ...errors import SvdHubError
from .. import telemetry

TOOLS = Path(".tools") / "triton"
USUAL = Path("/opt/tritonserver")  # in NVIDIA's images
VARIABLE = "SVD_HUB_TRITON"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_INSIDE = Path("pytriton") / "tritonserver"  # of the wheel that `make tools` unpacks
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """A tritonserver.

    Attributes:
        root: the folder that holds bin/tritonserver and backends/.
        libraries: the folder of its libraries, None where the system knows them.
    """

    root: Path
    libraries: Path | None = None

    @property
    def binary(self) -> Path:
        """The program."""
        return self.root / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        """What runs Python models: the one built for this very Python, or the one that NVIDIA's image brings."""
        own = self.root / "python_backend_stubs" / PYTHON / _STUB
        return own if own.is_file() else self.root / "backends" / "python" / _STUB

    @property
    def has_onnxruntime(self) -> bool:
        """Whether it brings the onnxruntime backend itself."""
        return (self.root / "backends" / "onnxruntime").is_dir()

    def backends(self, folder: Path) -> Path:
        """Return the folder of the backends: its own, or in an empty `folder` the Python backend and a stand-in.

        They are copied: tritonserver takes no backend that is a link.
        """
        if self.has_onnxruntime:
            return self.root / "backends"
        shutil.copytree(self.root / "backends" / "python", folder / "python")
        shutil.copy2(self.stub, folder / "python" / _STUB)
        (folder / "onnxruntime").mkdir()
        lines = "from svd_hub.export.triton.onnxruntime_backend import TritonPythonModel\n"
        (folder / "onnxruntime" / "model.py").write_text(f'{lines}\n__all__ = ["TritonPythonModel"]\n')
        return folder

    def environment(self, folder: Path) -> dict[str, str]:
        """Return the environment of the server, whose Python models import what this very Python does.

        The stub reads no PYTHONPATH: it takes the Python that PATH leads to. So that is an environment laid into an
        empty `folder`, whose one file names where this process imports from.
        """
        venv.EnvBuilder(symlinks=True).create(folder)
        site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
        (site / "svd_hub.pth").write_text("".join(f"{path}\n" for path in _import_path()))
        libraries = [str(path) for path in (self.libraries, sysconfig.get_config_var("LIBDIR")) if path]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        return {
            **kept,
            "PATH": os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)]),
            "LD_LIBRARY_PATH": os.pathsep.join([*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]),
            "PYTHONDONTWRITEBYTECODE": "1",  # not into the repository that is checked
            telemetry.ONNX_RUNTIME: os.environ.get(telemetry.ONNX_RUNTIME, "1"),
        }


def find(given: str | os.PathLike[str] | None = None) -> Installation:
    """Return the tritonserver of a folder, or the first of SVD_HUB_TRITON, .tools/triton, /opt/tritonserver.

    Raises:
        SvdHubError: there is none, or none that runs models of this Python.
    """
    named = given or os.environ.get(VARIABLE)
    checkout = Path(__file__).resolve().parents[2]
    for place in [Path(named)] if named else [checkout / TOOLS, Path.cwd() / TOOLS, USUAL]:
        inside = place / _INSIDE
        root = inside if inside.is_dir() else place
        libraries = place / "nvidia_pytriton.libs"
        found = Installation(root.resolve(), libraries.resolve() if libraries.is_dir() else None)
        if found.binary.is_file():
            if not found.stub.is_file():
                raise SvdHubError(
                    f"the tritonserver in {place} runs no models of Python {PYTHON}. Next: another Python"
                )
            return found
    where = f"no bin/tritonserver in {named}" if named else "there is no tritonserver on this machine"
    raise SvdHubError(
        f"{where}. Next: make tools (in a checkout of svd-hub), or run this in NVIDIA's Triton image, or name the "
        f"folder with --server or {VARIABLE}"
    )


def _import_path() -> list[str]:
    """Return where this process imports from, but for Python's own library; this package first."""
    own = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    own |= {os.path.join(folder, "lib-dynload") for folder in own}
    hub = Path(svd_hub_file).resolve().parents[1]
    found = [str(hub), *(os.path.abspath(path) for path in sys.path if path and os.path.isdir(path))]
    return list(dict.fromkeys(path for path in found if os.path.realpath(path) not in own))
