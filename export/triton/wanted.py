"""The right answers, in this process: of the network in torch where it is here, else of ONNX Runtime on its file."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...errors import OptionError
from ...predict.predictor import Predictor
from ...predict.record import Record
from ...preprocess import Preprocess
from ...volume import Volume
from .. import artifact, inputs, verifying
from ..artifact import Artifact
from ..network import Network
from ..parity import dice, matched
from ..run_onnx import Runner
from . import interface
from .service import Service, answer_of

Arrays = Mapping[str, np.ndarray]
PIECE = 48  # the side of the pieces that are sent all at once, where the network takes it


class Wanted:
    """What a repository must answer.

    Attributes:
        name: who gives the answers.
        record: of the image model, None where there is none.
        models: names of the "network" and the "image" model.

    Args:
        found: the repository.
        network: that it was made from, None where it is not here.
        why: it is not.
    """

    def __init__(self, found: Artifact, network: Network | None, why: str) -> None:
        self.found, self.network = found, network
        self.models: Mapping[str, str] = found.manifest["built"]["models"]
        self.record: Record | None = None
        if front := self.models["image"]:
            told = json.loads((found.folder / front / "1" / interface.RECORD).read_text(encoding="utf-8"))
            self.record = Record.of(told["record"])
        self._run: Callable[[np.ndarray], Arrays]
        self._predictor: Predictor | None = None
        if network is not None:
            self.name, self._run = "the network in torch", functools.partial(_eager, network)
            self._predictor = Predictor(network.source, device="cpu") if self.record is not None else None
        else:
            self.name, self._run = f"ONNX Runtime in this process ({why})", Runner(found.folder)
            self._predictor = Service(self.record, self._run).predictor if self.record is not None else None

    def of_network(self, batch: np.ndarray) -> Arrays:
        """Return the network's outputs for a batch (N, C, D, H, W)."""
        with torch.inference_mode():
            return self._run(batch)

    def of_image(self, image: Volume | Arrays) -> Arrays:
        """Return the image model's outputs for a volume, or a request of `examples.made_up`."""
        if isinstance(image, Volume):
            return self._predicted(image)
        if interface.PICTURE in image:
            return self._predicted(image[interface.PICTURE])
        return self._predicted(image[interface.VOLUME], spacing=image["spacing"].tolist())

    def _predicted(self, image: Any, **options: Any) -> Arrays:
        if self._predictor is None:
            raise OptionError(f"{self.models['network']} takes no images. Next: ask it for a tensor")
        return answer_of(self._predictor(image, **options))

    def cases(self) -> list[np.ndarray]:
        """Return an input of each shape of the profile."""
        told = self.found.manifest["profile"]
        if self.network is not None:
            shapes = verifying.profile_of(self.found, self.network).cases
        else:
            shapes = tuple(dict.fromkeys(tuple(told[name]) for name in ("smallest", "typical")))
        return inputs.samples(shapes, self._rule())

    def piece(self, seed: int) -> np.ndarray:
        """Return one small input (1, C, D, H, W)."""
        told = self.found.manifest["profile"]
        shape = list(told["typical"])
        shape[0] = 1 if "batch" in told["dynamic"] else shape[0]
        for axis, (name, step) in enumerate(zip(("depth", "height", "width"), told["step"], strict=True), start=2):
            if name in told["dynamic"]:
                low, high = told["smallest"][axis], told["largest"][axis]
                shape[axis] = min(high, max(low, low + round((PIECE - low) / step) * step))
        return inputs.probe(shape, self._rule(), seed=seed)

    def _rule(self) -> Preprocess | None:
        data = artifact.rules(self.found)["preprocess"]
        return Preprocess(**data) if data else None


def _eager(network: Network, batch: np.ndarray) -> Arrays:
    found = network.eager(torch.from_numpy(batch))
    return dict(zip(network.outputs, (tensor.numpy() for tensor in found), strict=True))


def agreement(answer: Arrays, wanted: Arrays) -> tuple[float, str]:
    """Return by how much two answers of an image model agree, 1 is wholly, and what that is in words.

    Args:
        answer: the server's.
        wanted: the right one.
    """
    if "mask" in wanted:
        a, b = answer["mask"], wanted["mask"]
        if a.shape != b.shape or a.dtype != b.dtype:
            return 0.0, f"a mask {a.shape} {a.dtype}, wanted {b.shape} {b.dtype}"
        return dice(a, b, 1 + int(max(a.max(), b.max()))), f"{int((a != b).sum()):,} of {b.size:,} voxels differ"
    if "probabilities" in wanted:
        apart = float(np.abs(answer["probabilities"] - wanted["probabilities"]).max())
        return 1 - apart, f"probabilities differ by {apart:.1e} at most"
    share, _ = matched(_as_batch(answer), _as_batch(wanted))
    return share, f"{len(wanted['scores'])} findings, {len(answer['scores'])} answered"


def _as_batch(found: Arrays) -> dict[str, np.ndarray]:
    """Return findings as `parity.matched` reads them; those of other slices are of another label."""
    labels = found["labels"].astype(np.int64)
    if "slices" in found:
        labels = labels + 1000 * found["slices"][:, 0]
    return {"boxes": found["boxes"][None], "scores": found["scores"][None], "labels": labels[None]}


def relevant(cases: Sequence[np.ndarray], most: int) -> list[np.ndarray]:
    """Return the inputs that fit into one request."""
    return [case for case in cases if not most or len(case) <= most]
