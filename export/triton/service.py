"""From the arrays of a request to the arrays of an answer: `svd-hub predict` without files. Knows nothing of Triton."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import OptionError, VolumeError
from ...predict.predictor import Predictor
from ...predict.record import Record
from ...predict.results import Classification, Detection, Prediction, Segmentation
from ...volume import Volume
from ...volume.grid import check_spacing
from ..contract import Arrays
from ..predicting import in_torch
from . import interface
from .config import LARGEST_VOXELS

Done = Callable[[int, int], None]
_IDENTITY = np.eye(3)
_SKEW = 0.02  # what rounding in headers explains, and `Volume` puts right


class Service:
    """Answers requests for one network.

    Args:
        record: what belongs to the network.
        network: from a batch (N, C, D, H, W), float32, to its outputs by name.
        at_once: windows of a segmenter in one batch.
        largest_voxels: of an image; larger ones are refused.
    """

    def __init__(
        self,
        record: Record,
        network: Callable[[np.ndarray], Arrays],
        *,
        at_once: int | None = None,
        largest_voxels: int = LARGEST_VOXELS,
    ) -> None:
        self.record, self.largest_voxels = record, largest_voxels
        self.modality = record.preprocess.modality
        self.predictor = Predictor.around(in_torch(network, record.task), record, at_once=at_once)

    def __call__(self, given: Arrays, *, done: Done | None = None) -> dict[str, np.ndarray]:
        """Return the outputs that `interface.outputs` names, for inputs that `interface.inputs` names.

        Args:
            given: those that came; names, types and numbers of axes are what the server has checked them to be.
            done: called with (steps done, steps in all); what it raises ends the request.

        Raises:
            VolumeError: an image these weights cannot read.
            OptionError: another argument that is not allowed.
        """
        name = interface.PICTURE if self.modality == "RGB" else interface.VOLUME
        image = given[name]
        self._check_size(image)
        options = {key: _plain(given[key]) for key in ("point", "planes", "least_score") if key in given}
        if self.modality == "RGB":
            return answer_of(self.predictor(image, **options))
        return answer_of(self.predictor(volume_of(given, self.modality), done=done, **options))

    def _check_size(self, image: np.ndarray) -> None:
        if not 0 < image.size <= self.largest_voxels:
            raise VolumeError(
                f"an image of {' x '.join(map(str, image.shape))} is not allowed; allowed: 1 to "
                f"{self.largest_voxels:,} voxels. Next: crop it, or raise largest_voxels in the server's config.pbtxt"
            )


def answer_of(result: Prediction) -> dict[str, np.ndarray]:
    """Return a prediction as the arrays that `interface.outputs` names; a mask lies on the input's own axes."""
    facts = {interface.RESULT: np.frombuffer(json.dumps(result.facts()).encode(), np.uint8)}
    if isinstance(result, Segmentation):
        return {"mask": result.scan.undo(result.labels), **facts}
    if isinstance(result, Classification):
        return {"probabilities": np.asarray(result.probabilities, np.float32), **facts}
    if isinstance(result, Detection):
        return {**_boxes(result), **facts}
    raise TypeError(type(result).__name__)


def volume_of(given: Arrays, modality: str) -> Volume:
    """Return the volume of a request.

    Args:
        given: `volume` (z, y, x) and `spacing` (z, y, x); `direction` and `origin` as SimpleITK has them, or none.
        modality: of the weights.

    Raises:
        VolumeError: numbers that are no place or direction, and what `Volume.from_affine` refuses.
    """
    spacing = _finite(given["spacing"], "spacing")
    check_spacing(spacing.tolist())
    turn = _finite(given.get("direction", _IDENTITY), "direction").reshape(3, 3)
    if np.abs(turn.T @ turn - _IDENTITY).max() > _SKEW:
        raise VolumeError(
            f"direction {turn.round(3).tolist()} is none; allowed: three columns of length 1 at right angles, the axes "
            "x, y, z. Next: send what SimpleITK's GetDirection() gives"
        )
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing[::-1], _finite(given.get("origin", np.zeros(3)), "origin")
    affine[:2] *= -1  # from Left and Posterior to Right and Anterior
    return Volume.from_affine(given[interface.VOLUME].transpose(2, 1, 0), affine, modality=modality)


def _finite(array: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(array).all():
        raise VolumeError(f"{name} holds NaN or infinity; allowed: finite numbers. Next: send the image's own")
    return array.astype(np.float64)


def _plain(array: np.ndarray) -> Any:
    """Return the option of an array: a number of an array of one, else its numbers.

    Raises:
        OptionError: NaN or infinity.
    """
    if not np.isfinite(array).all():
        raise OptionError("NaN or infinity is not allowed; allowed: finite numbers")
    return array.tolist()[0] if array.shape == (1,) and array.dtype.kind == "f" else array.tolist()


def _boxes(result: Detection) -> dict[str, np.ndarray]:
    """Return the findings as `result.json` has them, as arrays: on the input's own slices where those are axial."""
    rows = result.rows()
    found = {
        "boxes": np.array([row["box_px"] for row in rows], np.float32).reshape(-1, 4),
        "scores": np.array([one.score for one in result.findings], np.float32),
        "labels": np.array([result.classes.index(one.label) for one in result.findings], np.int32),
    }
    if result.volume is not None:
        ends = [[row["slice"], *row["slices"]] for row in rows]
        found["slices"] = np.array(ends, np.int32).reshape(-1, 3)
    return found
