"""svd-hub: verified pretrained 3D networks for medical images, by name.

>>> import svd_hub
>>> model = svd_hub.load("resnet3d18w16_tinyimagenet", num_classes=2, depth_stride=2)

Importing this package imports neither torch nor huggingface_hub; each name below loads its room when first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The bridge of a bare checkout: `export/` and `training/` stand beside this folder and are imported as
# svd_hub.export and svd_hub.training, as they are from the wheel.
if (_beside := Path(__file__).resolve().parent.parent).joinpath("hubconf.py").is_file():
    __path__.append(str(_beside))

_DOOR = {
    "load": "hub",
    "save": "hub",
    "LoadReport": "hub",
    "list_entries": "catalog",
    "get_entry": "catalog",
    "Entry": "catalog",
    "Preprocess": "preprocess",
    "Inference": "inference",
    "Predictor": "predict",
    "count": "counting",
    "inflate": "inflation",
    "optimize_for_inference": "optimise",
    "task_model": "tasks",
    "rgb_to_depth": "variable_dimension",
    "preserve_depth": "variable_dimension",
    "restore_depth": "variable_dimension",
    "GroupTransform": "variable_dimension",
}
_ROOMS = ("errors", "export", "metrics", "ops", "predict", "training", "volume")  # svd_hub.volume.read(...) at once
__all__ = ["__version__", *_DOOR]

if TYPE_CHECKING:
    from .catalog import Entry as Entry
    from .catalog import get_entry as get_entry
    from .catalog import list_entries as list_entries
    from .counting import count as count
    from .hub import LoadReport as LoadReport
    from .hub import load as load
    from .hub import save as save
    from .inference import Inference as Inference
    from .inflation import inflate as inflate
    from .optimise import optimize_for_inference as optimize_for_inference
    from .predict import Predictor as Predictor
    from .preprocess import Preprocess as Preprocess
    from .tasks import task_model as task_model
    from .variable_dimension import GroupTransform as GroupTransform
    from .variable_dimension import preserve_depth as preserve_depth
    from .variable_dimension import restore_depth as restore_depth
    from .variable_dimension import rgb_to_depth as rgb_to_depth


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    if name not in _DOOR:
        raise AttributeError(f"module 'svd_hub' has no attribute {name!r}; it has: {', '.join(sorted(__all__))}")
    value = getattr(importlib.import_module(f".{_DOOR[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted((*__all__, *_ROOMS))
