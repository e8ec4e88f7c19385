"""Dice of unet3d18w16_ctorgans from file to mask, on each input's own grid, the patient that trained it included.

python benchmarks/ctorgans.py --data ../shared/data/ct_organ_seg
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import numpy as np
import torch

from svd_hub import Predictor, volume
from svd_hub.metrics import confusion, dice_of
from svd_hub.training import recipe
from svd_hub.training.data.organs import label_values, labels_on

NAME = "unet3d18w16_ctorgans"
RESULT = Path(__file__).parent / "results" / "ctorgans.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    folder = parser.parse_args().data
    data, predictor = recipe.read(NAME, {"data.init_args.folder": str(folder)}).make_data(), Predictor(NAME)
    cases = {}
    for name, files in {**data.train_cases, **data.val_cases}.items():
        values = label_values(folder, name, files, data.organs)
        result = predictor(folder / name / files.image)
        there = labels_on(volume.read(folder / name / files.labels), result.scan.grid)
        truth = np.zeros(there.shape, np.int64)
        for k, organ in enumerate(data.organs, start=1):
            truth[np.isin(there, list(values.get(organ, ())))] = k
        dice = dice_of(confusion(result.labels.astype(np.int64), truth, len(data.organs) + 1))
        cases[name] = {
            "role": "trained on" if name in data.train_cases else "not trained on",
            "size_zyx": result.volume.shape,
            "dice": {organ: round(float(dice[k]), 4) for k, organ in enumerate(data.organs, 1) if organ in values},
            "seconds": result.seconds,
        }
        print(name, cases[name])
    facts = {"entry": NAME, "sha256": predictor.sha256, "date": date.today().isoformat(), "torch": torch.__version__}
    facts |= {"threads": torch.get_num_threads(), "machine": platform.machine(), "cases": cases}
    RESULT.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
