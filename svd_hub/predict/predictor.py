"""Predictor: a loaded network on images in memory or files, with the preprocessing that belongs to it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError, VolumeError, check_choice
from ..hub import load
from ..inference import Inference
from ..metrics import counts_of
from ..preprocess import Preprocess
from ..variable_dimension import rgb_to_depth
from ..volume import Volume, memory
from .components import keep_largest
from .detect import detect, merged, table
from .inputs import to_picture, to_volume
from .results import Classification, Detection, Point, Prediction, Segmentation
from .segment import segment
from .slices import detector_input, key_planes

Done = Callable[[int, int], None]
TASKS = ("classification", "segmentation", "detection")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LEAST_SCORE, MOST = 0.1, 100


class Predictor:
    """A network that takes images as they are and returns typed results.

    >>> predictor = svd_hub.Predictor("unet3d18w16_ctorgans")
    >>> result = predictor("ct.nii.gz")
    >>> result.millilitres["liver"], result.image  # a SimpleITK image on the input's grid

    Args:
        model: a name of the catalogue, a file that `svd_hub.save` wrote, or a loaded network.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32"; "bfloat16" or "float16" compute in 16 bits where torch's autocast does (float16 on GPUs only).
        at_once: windows of a segmenter in one batch; None = 1 to 4, by their size. A single small window takes torch's
            slow path for Conv3d on a CPU: four at once took an eighth of the time each (`benchmarks/predict.py`).
        **options: of `svd_hub.load`, with a name or file.

    Attributes:
        model, entry, preprocess, inference, classes: what is run, and how.

    Raises:
        OptionError: no such device or dtype, or a network without one of the three tasks; and all that `load` raises.
    """

    def __init__(
        self, model: Any, *, device: str = "auto", dtype: str = "float32", at_once: int | None = None, **options: Any
    ) -> None:
        check_choice("dtype", dtype, DTYPES)
        if at_once is not None and (not isinstance(at_once, int) or at_once < 1):
            raise OptionError(f"at_once={at_once!r} is not allowed; allowed: a positive integer, or None")
        self.device, self.dtype, self.at_once = find_device(device), dtype, at_once
        if dtype == "float16" and self.device.type == "cpu":
            raise OptionError("dtype='float16' on a CPU is not allowed; allowed there: float32, bfloat16")
        self.sha256 = ""
        if not isinstance(model, torch.nn.Module):
            model, report = load(model, return_report=True, **options)
            self.sha256 = report.sha256
        elif options:
            raise OptionError(f"{', '.join(options)} cannot be given with a loaded network. Next: give them to load")
        self.entry = getattr(model, "entry", None)
        if self.entry is None:
            raise OptionError(f"{type(model).__name__} does not come from svd_hub.load; allowed: a model that does")
        self.task = self._task_of(model)
        self.model = model.eval().to(self.device)
        self.preprocess: Preprocess = model.preprocess
        self.inference: Inference = model.inference
        self.classes = self._class_names(model.options["num_classes"])

    def _task_of(self, model: Any) -> str:
        task = getattr(model, "task", self.entry.task)
        if model.options.get("features_only") or not model.options.get("num_classes") or task not in TASKS:
            raise OptionError(
                f"{self.entry.name!r} has no head: it is a {task} to fine-tune, not a network to predict with; "
                f"allowed: {', '.join(TASKS)}. Next: svd-hub list --task segmentation, or fine-tune it with a head"
            )
        if model.preprocess.modality == "video":
            raise OptionError(
                f"{self.entry.name!r} reads video clips, which predict does not; allowed: photographs, CT, MR. Next: "
                "model(model.preprocess(clip)) in Python"
            )
        return str(task)

    def _class_names(self, count: int) -> tuple[str, ...]:
        """Return the names of labels; with classes of their own ("sigmoid") there is one more, none of them."""
        apart = self.task == "segmentation" and self.inference.activation == "sigmoid"
        if self.task == "segmentation" and count == 1 and not apart:
            raise OptionError(
                f"{self.entry.name!r} makes one map, which is no segmentation (Models Genesis restores patches). Next: "
                "fine-tune it with num_classes=2, or set Inference(activation='sigmoid') where the map is a mask"
            )
        own = self.entry.classes if len(self.entry.classes) == count else ()
        first = 1 if apart else 0
        return (*(("background",) if apart else ()), *(own or (f"class{k}" for k in range(first, first + count))))

    def __call__(
        self,
        image: Any,
        *,
        spacing: Sequence[float] | None = None,
        axes: str | None = None,
        series: str | int | None = None,
        missing: str = "refuse",
        point: Point | None = None,
        planes: Sequence[int] | None = None,
        least_score: float = LEAST_SCORE,
        most: int = MOST,
        done: Done | None = None,
    ) -> Prediction:
        """Return what the network says of an image: a Classification, Segmentation or Detection.

        Args:
            image: a path (DICOM folder or file, NIfTI, NRRD, MetaImage; a photograph where the weights read those), a
                `Volume`, an array or tensor with `spacing`, a SimpleITK image, a MONAI MetaTensor.
            spacing: mm for each axis of a bare array.
            axes: the direction each axis of a bare array runs to; None = "SPL".
            series: of a DICOM folder with several: SeriesInstanceUID or SeriesNumber.
            missing: "refuse" gaps in a DICOM series, or "fill" them.
            point: classifiers: mm (x, y, z) to Left, Posterior, Superior that the input is cut about.
            planes: detectors: key slices along D; None = every `slice_spacing` mm.
            least_score, most: detectors: findings below that score, or beyond that number, are left out.
            done: called with (steps done, steps in all).

        Raises:
            VolumeError: not an image these weights can read; says what was found, what is allowed, and what next.
            OptionError: an argument that does not belong to the task, or is not allowed.
        """
        self._check_arguments(point=point, planes=planes)
        started = time.perf_counter()
        if self.preprocess.modality == "RGB":
            picture = to_picture(image)
            return self._timed(self._picture(picture, least_score, most), started, time.perf_counter())
        volume = to_volume(
            image, modality=self.preprocess.modality, spacing=spacing, axes=axes, series=series, missing=missing
        )
        read = time.perf_counter()
        with torch.inference_mode():
            if self.task == "classification":
                result: Prediction = self._classified(volume, point)
            elif self.task == "segmentation":
                result = self._segmented(volume, done)
            else:
                result = self._detected(volume, planes, least_score, most, done)
        return self._timed(result, started, read)

    def _check_arguments(self, **given: Any) -> None:
        belongs = {"point": "classification", "planes": "detection"}
        for name, value in given.items():
            if value is not None and (self.task != belongs[name] or self.preprocess.modality == "RGB"):
                raise OptionError(
                    f"{name}={value!r} is for {belongs[name]} of volumes; {self.entry.name!r} does {self.task}. Next: "
                    "leave it out"
                )

    def _timed(self, result: Prediction, started: float, read: float) -> Prediction:
        now = time.perf_counter()
        seconds = {"read": round(read - started, 3), "predict": round(now - read, 3)}
        return dataclasses.replace(result, seconds=seconds)

    def run(self, x: Tensor) -> Any:
        """Return the network's output of x (N, C, D, H, W), computed on `device` in `dtype`; maps come in float32."""
        with self._precision():
            out = self.model(x.to(self.device))
        return out.float() if isinstance(out, Tensor) else out

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        if self.dtype == "float32":
            yield
        else:
            with torch.autocast(self.device.type, DTYPES[self.dtype]):
                yield

    @property
    def _who(self) -> dict[str, Any]:
        return {"entry": self.entry.name, "sha256": self.sha256}

    # ---- the tasks -------------------------------------------------------------------------------------------------

    def _classified(self, volume: Volume, point: Point | None) -> Classification:
        array, notes = cropped(volume, self.preprocess, point)
        x = self.preprocess(array, spacing=volume.spacing, orientation="SPL")
        memory.release(volume.array)
        return self._probabilities(x, volume=volume, notes=(*volume.notes, *notes), point=point)

    def _probabilities(self, x: Tensor, **facts: Any) -> Classification:
        odds = torch.softmax(self.run(x)[0].double(), 0).tolist()
        return Classification(classes=self.classes, probabilities=tuple(odds), **self._who, **facts)

    def _segmented(self, volume: Volume, done: Done | None) -> Segmentation:
        labels = segment(
            self.run,
            volume,
            self.preprocess,
            self.inference,
            labels=len(self.classes),
            device=self.device,
            at_once=self.at_once,
            done=done,
        )
        notes = list(volume.notes)
        for name in self.inference.largest:
            if name not in self.classes:
                raise OptionError(f"largest={name!r} is no class of {self.entry.name!r}; {', '.join(self.classes)} are")
            if gone := keep_largest(labels, self.classes.index(name)):
                notes.append(f"{name}: the largest connected part is kept, {gone} voxels of others were taken away")
        counts = counts_of(labels, len(self.classes))
        return Segmentation(
            labels=labels, classes=self.classes, voxels=counts, volume=volume, notes=tuple(notes), **self._who
        )

    def _detected(
        self, volume: Volume, planes: Sequence[int] | None, least: float, most: int, done: Done | None
    ) -> Detection:
        depth = volume.shape[0]
        keys = key_planes(volume, self.inference.slice_spacing) if planes is None else sorted(set(planes))
        if not keys or keys[0] < 0 or keys[-1] >= depth:
            raise OptionError(f"planes={list(keys)} are not allowed; allowed: 0 to {depth - 1}")
        found = detect(
            self.run,
            volume,
            keys,
            self.preprocess,
            self.inference,
            classes=self.classes,
            device=self.device,
            least=least,
            most=most,
            done=done,
        )
        return Detection(
            classes=self.classes,
            findings=found,
            searched=tuple(keys),
            volume=volume,
            notes=(*volume.notes, f"{self.inference.slices} slices about each key slice, "
                   f"{self.inference.slice_spacing:g} mm apart, cut anew by linear interpolation"),
            **self._who,
        )  # fmt: skip

    def _picture(self, picture: np.ndarray, least: float, most: int) -> Prediction:
        """Return what the network says of a photograph (H, W, 3)."""
        with torch.inference_mode():
            if self.task == "classification":
                return self._probabilities(self.preprocess(picture), picture=picture)
            if self.task != "detection":
                raise OptionError(f"{self.entry.name!r} is a segmenter of photographs; allowed: of CT or MR")
            planes = rgb_to_depth(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float())[0, 0]
            x, (down, right) = detector_input(planes.numpy(), self.preprocess, self.inference.side)
            rows = table(self.run(x)[0], (right, down), least)
            found = merged({0: rows}, [0], self.classes, iou=1.0)[:most]
            return Detection(classes=self.classes, findings=found, searched=(0,), picture=picture, **self._who)


def find_device(name: str) -> torch.device:
    """Return the device of a name; "auto" = CUDA where there is one.

    Raises:
        OptionError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"device={name!r} is not allowed; allowed: auto, cpu, cuda, cuda:N, mps") from None
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here.get(device.type, False):
        raise OptionError(f"device={name!r} is not on this machine. Next: device='cpu', or 'auto'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(f"device={name!r} is not on this machine; it has {torch.cuda.device_count()} CUDA devices")
    return device


def cropped(volume: Volume, rule: Preprocess, point: Point | None) -> tuple[np.ndarray, list[str]]:
    """Return the voxels that a classifier's input is cut from, and what is to be said of it.

    Args:
        volume: the whole one.
        rule: the weights' preprocessing.
        point: mm (x, y, z) that becomes the middle; None = the volume's own.

    Raises:
        VolumeError: the point lies outside the volume.
        OptionError: a point, and the weights read whole volumes.
    """
    if rule.size is None or rule.fit != "crop":
        if point is not None:
            raise OptionError(f"point={point} is not allowed: these weights read whole volumes. Next: leave it out")
        return volume.array, []
    mm = rule.spacing or volume.spacing
    need = [side * s / own for side, s, own in zip(rule.size, mm, volume.spacing, strict=True)]  # in voxels
    notes = []
    if short := [f"{n}" for n, want in zip(volume.shape, need, strict=True) if n < want - 0.5]:
        notes.append(
            f"the volume is smaller than the input of these weights along {len(short)} of its axes: padded with "
            f"{rule.padding:g}, the window's low end unless the weights say otherwise"
        )
    if point is None:
        if any(n > 2 * want for n, want in zip(volume.shape, need, strict=True)):
            size = " x ".join(f"{side * s:g}" for side, s in zip(rule.size, mm, strict=True))
            notes.append(f"the network sees the middle {size} mm of the volume alone; give a point (mm) to cut about")
        return volume.array, notes
    at = volume.grid.indices(np.array([point], dtype=float))[0]
    if not ((at >= -0.5) & (at <= np.array(volume.shape) - 0.5)).all():
        ends = volume.grid.points(np.array([[0, 0, 0], [n - 1 for n in volume.shape]]))
        low, high = ends.min(0).round(1).tolist(), ends.max(0).round(1).tolist()
        raise VolumeError(
            f"the point {tuple(point)} mm lies outside the volume; allowed: {low} to {high} mm (x, y, z to Left, "
            "Posterior, Superior). Next: negate x and y of a point that counts to Right and Anterior"
        )
    return _about(volume.array, at, need, rule.padding), notes


def _about(array: np.ndarray, at: np.ndarray, need: Sequence[float], fill: float) -> np.ndarray:
    """Return a block whose middle is the voxel nearest to `at`, two voxels larger than needed, filled outside."""
    centre = np.rint(at).astype(int)
    half = [int(np.ceil(n / 2)) + 1 for n in need]
    out = np.full([2 * h + 1 for h in half], fill, np.float32)
    here, there = [], []
    for c, h, n in zip(centre, half, array.shape, strict=True):
        first, last = max(0, c - h), min(n, c + h + 1)
        here.append(slice(first, last))
        there.append(slice(first - (c - h), last - (c - h)))
    out[tuple(there)] = array[tuple(here)]
    return out
