"""Predictor: a loaded network on images in memory or files, with the preprocessing that belongs to it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from typing import Any, Self

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
from .checks import check_entry, class_names, find_device, label_of, task_of
from .components import keep_largest
from .crops import classifier_input
from .detect import detect, merged, table
from .inputs import to_picture, to_volume
from .record import Record
from .results import Classification, Detection, Point, Prediction, Segmentation
from .segment import segment
from .slices import chosen_planes, detector_input, key_planes

Done = Callable[[int, int], None]
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
        label: what results call the network: the entry, or of a file of your own its kind and the hash's beginning.
        dtype, runtime: what it is computed in, and by what.
        artifact: sha256 of what `svd-hub export` wrote, where it runs from that; else "".

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
        self.runtime, self.artifact = str(self.device), ""
        self._autocast = None if dtype == "float32" else DTYPES[dtype]
        if dtype == "float16" and self.device.type == "cpu":
            raise OptionError("dtype='float16' on a CPU is not allowed; allowed there: float32, bfloat16")
        self.sha256 = ""
        if not isinstance(model, torch.nn.Module):
            check_entry(str(model))
            model, report = load(model, return_report=True, **options)
            self.sha256 = report.sha256
            if report.missing and options.get("weights", "default") is not None:
                raise OptionError(
                    f"{len(report.missing)} tensors of {report.name!r} would be new and random (num_classes="
                    f"{model.options['num_classes']}): its results would mean nothing. Next: fine-tune it, svd_hub.save"
                    " it, and give that file"
                )
        elif options:
            raise OptionError(f"{', '.join(options)} cannot be given with a loaded network. Next: give them to load")
        if getattr(model, "entry", None) is None:
            raise OptionError(f"{type(model).__name__} does not come from svd_hub.load; allowed: a model that does")
        self.entry: Any = model.entry
        self.task = task_of(model)
        self.classes = class_names(model, self.task)
        self.label = label_of(model.entry.name, model.entry.architecture, self.sha256)
        self.model: Any = model.eval().to(self.device)
        self.preprocess: Preprocess = model.preprocess
        self.inference: Inference = model.inference

    @classmethod
    def around(
        cls,
        network: Callable[[Tensor], Any],
        record: Record,
        *,
        at_once: int | None = None,
        label: str = "",
        dtype: str = "float32",
        runtime: str = "",
        artifact: str = "",
    ) -> Self:
        """Return a predictor whose network runs elsewhere, in another runtime or behind a server.

        Args:
            network: from (N, C, D, H, W), float32 on the CPU, to logits (N, K, ...), or a list of `Detections`.
            record: what belongs to it.
            at_once: windows of a segmenter in one batch.
            label, dtype, runtime, artifact: see the attributes.
        """
        made = cls.__new__(cls)
        made.device, made.dtype, made.at_once = torch.device("cpu"), dtype, at_once
        made.runtime, made.artifact, made._autocast = runtime, artifact, None
        made.sha256, made.entry, made.model = record.weights_sha256, record, network
        made.label = label or record.name
        made.task, made.classes = record.task, record.classes
        made.preprocess, made.inference = record.preprocess, record.inference
        return made

    def __call__(
        self,
        image: Any,
        *,
        spacing: Sequence[float] | None = None,
        axes: str | None = None,
        series: str | int | None = None,
        missing: str = "refuse",
        point: Point | None = None,
        planes: Sequence[int] | str | None = None,
        least_score: float | None = None,
        most: int | None = None,
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
            planes: detectors: key slices along D, or "all"; None = every `slice_spacing` mm.
            least_score, most: detectors: findings below that score (None = 0.1), or beyond that number (None = 100),
                are left out.
            done: called with (steps done, steps in all).

        Raises:
            VolumeError: not an image these weights can read; says what was found, what is allowed, and what next.
            OptionError: an argument that does not belong to the task, or is not allowed.
        """
        self.check_arguments(point=point, planes=planes, least_score=least_score, most=most)
        least, most = LEAST_SCORE if least_score is None else least_score, MOST if most is None else most
        started = time.perf_counter()
        volume = self.read(image, spacing=spacing, axes=axes, series=series, missing=missing)
        read = time.perf_counter()
        if isinstance(volume, np.ndarray):
            return self._timed(self._picture(volume, least, most), started, read)
        with torch.inference_mode():
            if self.task == "classification":
                result: Prediction = self._classified(volume, point)
            elif self.task == "segmentation":
                result = self._segmented(volume, done)
            else:
                result = self._detected(volume, planes, least, most, done)
        return self._timed(result, started, read)

    def read(
        self,
        image: Any,
        *,
        spacing: Sequence[float] | None = None,
        axes: str | None = None,
        series: str | int | None = None,
        missing: str = "refuse",
    ) -> Volume | np.ndarray:
        """Return an image as these weights take it: a volume, or a photograph (H, W, 3) of 0..255.

        Args and errors are those of a call; nothing is computed.
        """
        if self.preprocess.modality == "RGB":
            self._refuse(spacing=spacing, axes=axes, series=series)
            return to_picture(image)
        return to_volume(
            image, modality=self.preprocess.modality, spacing=spacing, axes=axes, series=series, missing=missing
        )

    def check_arguments(self, *, point: Any, planes: Any, least_score: Any, most: Any) -> None:
        """Refuse arguments that belong to another task, or make no sense; None is allowed for each.

        Raises:
            OptionError: one of these.
        """
        if self.task != "classification" or self.preprocess.modality == "RGB":
            self._refuse(point=point)
        if self.task != "detection":
            self._refuse(planes=planes, least_score=least_score, most=most)
        elif self.preprocess.modality == "RGB":
            self._refuse(planes=planes)
        if least_score is not None and not (_number(least_score) and 0 <= least_score <= 1):
            raise OptionError(f"least_score={least_score!r} is not allowed; allowed: 0 to 1")
        if most is not None and not (isinstance(most, Integral) and not isinstance(most, bool) and int(most) > 0):
            raise OptionError(f"most={most!r} is not allowed; allowed: a positive integer")

    def _refuse(self, **given: Any) -> None:
        """Refuse arguments that say nothing to this network."""
        for name, value in given.items():
            if value is not None:
                kind = "photographs" if self.preprocess.modality == "RGB" else "volumes"
                raise OptionError(
                    f"{name}={value!r} is not allowed: {self.entry.name!r} does {self.task} of {kind}. Next: leave it "
                    "out"
                )

    def _timed(self, result: Prediction, started: float, read: float) -> Prediction:
        now = time.perf_counter()
        seconds = {"read": round(read - started, 3), "predict": round(now - read, 3)}
        return dataclasses.replace(result, seconds=seconds)

    def run(self, x: Tensor) -> Any:
        """Return the network's output of x (N, C, D, H, W), computed on `device` in `dtype`; maps come in float32.

        Raises:
            VolumeError: a map that holds NaN or infinity.
        """
        with self._precision():
            out = self.model(x.to(self.device))
        if not isinstance(out, Tensor):
            return out
        out = out.float()
        if not bool(torch.isfinite(out).all()):
            step = "check the weights" if self._autocast is None else "dtype='float32'"
            raise VolumeError(f"the network's output holds NaN or infinity in {self.dtype}. Next: {step}")
        return out

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        if self._autocast is None:
            yield
        else:
            with torch.autocast(self.device.type, self._autocast):
                yield

    @property
    def _who(self) -> dict[str, Any]:
        return {"entry": self.label, "sha256": self.sha256}

    # ---- the tasks -------------------------------------------------------------------------------------------------

    def _classified(self, volume: Volume, point: Point | None) -> Classification:
        x, notes = classifier_input(volume, self.preprocess, point)
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
            if gone := keep_largest(labels, self.classes.index(name)):
                notes.append(f"{name}: the largest connected part is kept, {gone} voxels of others were taken away")
        counts = counts_of((plane for (plane,) in memory.planes(labels)), len(self.classes))
        return Segmentation(
            labels=labels, classes=self.classes, voxels=counts, volume=volume, notes=tuple(notes), **self._who
        )

    def _detected(
        self, volume: Volume, planes: Sequence[int] | str | None, least: float, most: int, done: Done | None
    ) -> Detection:
        keys = key_planes(volume, self.inference.slice_spacing) if planes is None else chosen_planes(volume, planes)
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
        """Return what the network says of a photograph (H, W, 3) of 0..255."""
        with torch.inference_mode():
            if self.task == "classification":
                return self._probabilities(self.preprocess(picture), picture=picture)
            planes = rgb_to_depth(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float())[0, 0]
            x, (down, right) = detector_input(planes.numpy(), self.preprocess, self.inference.side)
            rows = table(self.run(x)[0], (right, down), least)
            found = merged({0: rows}, [0], self.classes, iou=1.0)[:most]
            return Detection(classes=self.classes, findings=found, searched=(0,), picture=picture, **self._who)


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
