"""From a finished run to a release: half-precision safetensors with a golden input and output beside them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint, models
from ..errors import SvdHubError
from ..preprocess import Preprocess
from . import recipe as recipes
from .saving import write_text

GOLDEN_SEED = 20260


def golden_input(preprocess: Preprocess) -> torch.Tensor:
    """Return a reproducible input (N, C, D, H, W) of the network: smooth noise, so that every layer has work to do.

    Two of the entry's size; where it takes whole volumes, whose output is a map as large as they are, one small one.
    """
    generator = torch.Generator().manual_seed(GOLDEN_SEED)
    whole = preprocess.size is None and preprocess.modality in ("CT", "MR")
    d, h, w = preprocess.size or ((16, 32, 32) if whole else (3, 64, 64))
    coarse = torch.randn(1 if whole else 2, preprocess.channels, max(1, d // 4), h // 4, w // 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(d, h, w), mode="trilinear").half().float()


def last_row(run: Path) -> dict[str, Any]:
    """Return the last line of a run's log.

    Raises:
        SvdHubError: there is no finished epoch.
    """
    file = run / "log.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    if not lines:
        raise SvdHubError(f"{file} has no finished epoch. Next: svd-hub train --resume {run}")
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def publish_run(run: Path, name: str, folder: Path) -> dict[str, Any]:
    """Write `NAME.safetensors` (fp16), `NAME.golden.safetensors` and `NAME.log.jsonl` into `folder`.

    The golden output is that of the file written, read back: fp16 weights computed in fp32.

    Returns:
        What the catalogue entry needs: hash, size, options, metrics of the log, recipe.

    Raises:
        SvdHubError: the run is not finished.
    """
    trained = run / "model.safetensors"
    if not trained.is_file():
        raise SvdHubError(f"{trained} does not exist: the run is not finished. Next: svd-hub train --resume {run}")
    recipe, row = recipes.read(str(run / "recipe.yaml")), last_row(run)
    if row["epoch"] + 1 != recipe.settings.epochs:
        raise SvdHubError(
            f"the log of {run} ends with epoch {row['epoch']} of 0 to {recipe.settings.epochs - 1}: it is not that of "
            f"model.safetensors. Next: svd-hub train --resume {run}"
        )
    read = checkpoint.read(trained)
    record = checkpoint.unpack_metadata(read.metadata)
    half = {k: v.half() if v.is_floating_point() else v for k, v in read.tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.safetensors"
    checkpoint.write(target, half, {**record, "entry": name, "recipe": recipe.name})
    model = models.build(record["architecture"], record["options"])
    model.load_state_dict(checkpoint.to_float32(checkpoint.read(target).tensors)[0])
    preprocess = Preprocess(**record["preprocess"])
    x = golden_input(preprocess)
    with torch.inference_mode():
        y = model.eval()(x)
    checkpoint.write(folder / f"{name}.golden.safetensors", {"input": x.half(), "output": y}, {"entry": name})
    write_text(folder / f"{name}.log.jsonl", (run / "log.jsonl").read_text())
    return {
        "name": name,
        "file": target.name,
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        "size": target.stat().st_size,
        "options": record["options"],
        "recipe": recipe.name,
        "preprocess": record["preprocess"],
        "log": {k.removeprefix("val/"): v for k, v in row.items() if k.startswith("val/")},
    }
