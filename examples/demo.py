"""The main job of svd-hub on real images, offline: load by name, verify, predict, take the feature pyramid.

    python examples/demo.py [--data PATH] [--out DIR]

PATH: a NIfTI file, a folder with one DICOM series, or a folder of nodule crops (nodules.csv, images/, masks/). A CT is
segmented too: liver, spleen, kidneys. Without PATH the demo uses images that come inside scikit-image, pydicom and
nibabel. images.py reads them.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # all it needs is on this machine: no socket is opened

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import EVALUATION_FOLD, Nodule, Scan, read_crop, read_data
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table

import svd_hub
from svd_hub.errors import SvdHubError

REPO = Path(__file__).resolve().parent.parent
PRETRAINED, CLASSIFIER = "resnet3d18w16_tinyimagenet", "resnet3d18w16_lidc"
SEGMENTER = "unet3d18w16_ctorgans"
CATS = ("tabby", "Persian cat", "Egyptian cat")
LIMIT = (32, 512, 512)  # slices, rows, columns: of a larger scan its middle is enough for a demo
SHOWN = {1: 3, 2: 2, 3: 2, 4: 2, 5: 3}  # readers' rating -> how many nodules of it are shown
console = Console(highlight=False, markup=False, soft_wrap=True)


@dataclass
class Photo:
    """A photograph with the five likeliest classes, and the rank that a right class has among all."""

    title: str
    image: np.ndarray
    top: list[tuple[str, float]]
    right: tuple[str, ...]
    rank: int

    def verdict(self) -> str:
        """Say how good that is."""
        place = "right" if self.rank == 1 else "in the top 5" if self.rank <= 5 else "not in the top 5"
        return f"{place}, rank {self.rank} of 200"


def by_name() -> Any:
    """Load through torch.hub; svd_hub.load(PRETRAINED, return_report=True) is the same without it."""
    model, report = torch.hub.load(str(REPO), PRETRAINED, source="local", trust_repo=True, return_report=True)
    console.print(str(report))
    cost = svd_hub.count(model, (1, 3, 64, 64))
    console.print(f"  {cost.parameters:,} parameters, {cost.flops:,} FLOPs at 1 x 3 x 64 x 64")
    console.print(f"  status: {model.entry.status}; licence of the weights: {model.entry.licence}")
    return model


def classify(model: Any) -> list[Photo]:
    """Classify two photographs: their planes red, green, blue become depth 0, 1, 2 of a volume."""
    from skimage import data

    photos = []
    for metric in model.entry.metrics:
        console.print(f"to expect: {metric.name} {metric.value:.3f} on {metric.dataset}, {metric.split}")
    for title, image, right in (("cat", data.chelsea(), CATS), ("espresso", data.coffee(), ("espresso",))):
        x = model.preprocess(image)  # (1, 1, 3, 64, 64)
        with torch.inference_mode():
            likely = model(x)[0].softmax(dim=0).sort(descending=True)
        names = [model.entry.classes[i] for i in likely.indices]
        rank = 1 + min(names.index(name) for name in right)
        photo = Photo(title, image, list(zip(names[:5], likely.values[:5].tolist(), strict=True)), right, rank)
        console.print(f"{title} as {by(x.shape)}: {photo.verdict()}", style="bold")
        table = Table.grid(padding=(0, 2))
        for name, p in photo.top:
            bar = ProgressBar(total=1, completed=p, width=40)
            table.add_row(f"  {name}", f"{p:6.1%}", bar, style="green" if name in right else "")
        console.print(table)
        photos.append(photo)
    return photos


def by(shape: Any) -> str:
    """Write a shape or spacing as 1 x 2 x 3."""
    return " x ".join(f"{n:.4g}" for n in shape)


def transfer(scans: list[Scan]) -> None:
    """Load the form that is fine-tuned on volumes (depth is strided too, no head) and take the pyramid of images."""
    model, report = svd_hub.load(PRETRAINED, depth_stride=2, features_only=True, return_report=True)
    console.print(str(report))
    for scan in scans:
        shape = scan.array.shape
        scan.array, window = scan.middle(LIMIT), scan.window()
        preprocess = svd_hub.Preprocess(  # a window to 0..255, then the mean and std of the photographs
            modality="CT" if scan.modality == "CT" else "MR",
            window=window, scale=(0.0, 255.0), mean=model.preprocess.mean, std=model.preprocess.std,
        )  # fmt: skip
        with torch.inference_mode():
            maps = model(preprocess(scan.array))
        scan.array = scan.array.clip(*window)
        used = "" if shape == scan.array.shape else f"the middle {by(scan.array.shape)} of it; "
        console.print(f"{scan.title}: {scan.modality}, {by(shape)} voxels of {by(scan.spacing)} mm", style="bold")
        console.print(f"  {used}window {window[0]:g} to {window[1]:g} -> 0 to 255")
        table = Table("level", "channels", "stride (D, H, W)", "shape (N, C, D, H, W)")
        for level in model.feature_info:
            features = maps[level.name]
            table.add_row(level.name, str(level.channels), str(level.stride), by(features.shape))
            scan.levels[level.name] = features[0, :, features.shape[2] // 2].mean(dim=0).numpy()
        console.print(table)


def assess(folder: Path, rows: list[Nodule]) -> tuple[list[Nodule], str]:
    """Print probabilities of malignancy beside the readers' ratings; return the nodules shown and the AUC in words."""
    from svd_hub.training.evaluation import auc

    model, report = svd_hub.load(CLASSIFIER, return_report=True)
    console.print(str(report))
    shown = [row for rating, count in SHOWN.items() for row in [r for r in rows if r.rating == rating][:count]]
    labelled = [row for row in rows if row.label >= 0]
    cubes = []
    for row in (wanted := list({row.name: row for row in labelled + shown}.values())):
        mask, spacing = read_crop(folder / "masks" / f"{row.name}.nii.gz")
        row.volume = float(np.count_nonzero(mask) * np.prod(spacing))
        crop, spacing = read_crop(folder / "images" / f"{row.name}.nii.gz")
        cubes.append(model.preprocess(crop, spacing=spacing))  # (1, 1, 32, 32, 32) at 1 mm
        row.picture = cubes[-1][0, 0, cubes[-1].shape[2] // 2].numpy()
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in torch.cat(cubes).split(32)])
    likely = logits.softmax(dim=1)[:, model.entry.classes.index("malignant")]
    for row, p in zip(wanted, likely.tolist(), strict=True):
        row.probability = p
    console.print(f"fold {EVALUATION_FOLD}, never seen in training; of each rating the first nodules by name:")
    table = Table("nodule", "readers, 1 to 5", "volume, mm³", "P(malignant)")
    for row in shown:
        table.add_row(row.name, str(row.rating), f"{row.volume:,.0f}", f"{row.probability:.3f}")
    console.print(table)
    network = auc([row.probability for row in labelled], [row.label for row in labelled])
    size = auc([row.volume for row in labelled], [row.label for row in labelled])
    told = f"AUC over {len(labelled)} labelled nodules: network {network:.3f}, volume alone {size:.3f}"
    console.print(told)
    return shown, told


def segment(data: Path, out: Path) -> None:
    """Go from a CT file to masks on its own grid, as `svd-hub predict` does."""
    from svd_hub.predict import Predictor, find_inputs, predict_files

    predictor = Predictor(SEGMENTER)
    for case in predict_files(predictor, find_inputs([data]), out):
        if case.state == "failed":
            console.print(f"not segmented: {case.error}")
            continue
        facts = json.loads((out / case.name / "result.json").read_text())
        for row in facts["classes"][1:]:
            console.print(f"  {row['name']:>8} {row['ml']:9.1f} ml")
        for note in facts["notes"]:
            console.print(f"  note: {note}")
        console.print(f"mask, picture and result: {out / case.name}")
    console.print("a demonstration: one patient trained this network; svd-hub info " + SEGMENTER)


def draw(path: Path, photos: list[Photo], scans: list[Scan], nodules: list[Nodule], told: str) -> None:
    """Draw everything into one picture, written beside `path` and moved into place."""
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams.update({"font.size": 9, "axes.titlesize": 9})
    heights = [2.6] * (1 + len(scans)) + [1.7] * bool(nodules)
    figure = Figure(figsize=(12, sum(heights) + 0.3), layout="constrained", dpi=100)
    strips: Any = figure.subfigures(len(heights), 1, height_ratios=heights, hspace=0.03)
    axes: Any = strips[0].subplots(1, 4, width_ratios=(1, 1.1, 1, 1.1))
    heading(strips[0], f"{PRETRAINED}: photographs as volumes of depth 3")
    for photo, (left, right) in zip(photos, axes.reshape(2, 2), strict=True):
        side = min(photo.image.shape[:2])
        top, start = (np.array(photo.image.shape[:2]) - side) // 2  # the network sees the middle square
        picture(left, photo.image[top : top + side, start : start + side], photo.title)
        names, parts = zip(*reversed(photo.top), strict=True)
        bars = right.barh(names, parts, color=["#2a9d8f" if name in photo.right else "#b8c0cc" for name in names])
        right.bar_label(bars, [f"{value:.0%}" for value in parts], padding=3)
        right.set(xlim=(0, 1.1), xticks=[], frame_on=False)
        right.set_title(photo.verdict(), loc="left")
        right.tick_params(length=0)
    for scan, strip in zip(scans, strips[1:], strict=False):
        maps = dict([level for level in scan.levels.items() if min(level[1].shape) >= 8][-4:] or scan.levels)
        heading(strip, f"{scan.title}: feature pyramid of the transfer form (mean of channels, middle slice)")
        axes = strip.subplots(1, 1 + len(maps))
        aspect = scan.spacing[1] / scan.spacing[2]
        picture(axes[0], scan.array[len(scan.array) // 2], f"{scan.modality}, {by(scan.array.shape)}", aspect=aspect)
        for axis, (name, values) in zip(axes[1:], maps.items(), strict=True):
            low, high = np.percentile(values, (1, 99))
            picture(axis, values, f"{name}, {by(values.shape)}", cmap="magma", vmin=low, vmax=high, aspect=aspect)
    if nodules:
        heading(strips[-1], f"{CLASSIFIER}: readers' rating (1 to 5) and P(malignant). {told}")
        for nodule, axis in zip(nodules, strips[-1].subplots(1, len(nodules)), strict=True):
            picture(axis, nodule.picture, f"rated {nodule.rating}\nP = {nodule.probability:.2f}")
    figure.supxlabel("Research use. Not a medical device.", fontsize=8, color="#666666")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}.png")
    try:
        figure.savefig(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def heading(strip: Any, text: str) -> None:
    """Write the headline of a strip."""
    strip.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold")


def picture(axis: Any, image: Any, title: str, **options: Any) -> None:
    """Show an image without ticks."""
    axis.imshow(image, **{"cmap": "gray", **options})
    axis.set_title(title)
    axis.set_axis_off()


def run(data: Path | None, out: Path) -> None:
    """Do the steps one after the other."""
    started = time.perf_counter()
    scans, rows = read_data(data)
    console.rule("1. Load by name through torch.hub, verified", align="left")
    model = by_name()
    console.rule("2. Classify photographs as pseudo-3D volumes", align="left")
    photos = classify(model)
    console.rule("3. The same weights in transfer form: the feature pyramid of medical images", align="left")
    transfer(scans)
    if data and rows:
        console.rule("4. Nodules: probability of malignancy beside the readers' ratings", align="left")
    shown, told = assess(data, rows) if data and rows else ([], "")
    if data and not rows and scans[0].modality == "CT":
        console.rule("4. From the CT file to a mask", align="left")
        segment(data, out / "predict")
    console.rule(align="left")
    draw(out / "svd-hub.png", photos, scans, shown, told)
    console.print(f"picture: {out / 'svd-hub.png'}; {time.perf_counter() - started:.1f} s")
    console.print("Research use. Not a medical device.")


def main() -> int:
    """Return the exit code; what is wrong with the input is told in one paragraph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="NIfTI file, DICOM folder or folder of nodule crops")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the picture (default: demo)")
    asked = parser.parse_args()
    logging.disable()  # readers of medical files quote headers in their log lines
    try:
        run(asked.data, asked.out)
    except (SvdHubError, OSError, ImportError) as error:
        todo = 'pip install "svd-hub[demo]"' if isinstance(error, ImportError) else "--out FOLDER that can be written"
        told = str(error) if isinstance(error, SvdHubError) else f"{error}. Next: {todo}"
        Console(stderr=True, style="red", highlight=False, markup=False, soft_wrap=True).print(f"demo: {told}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
