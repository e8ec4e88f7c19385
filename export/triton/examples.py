"""Requests to try a server with: images of files, made-up ones, pieces for its network, and 20 that it must refuse."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...errors import OptionError
from ...predict.record import Record
from ...volume import Volume
from ..contract import INPUT
from . import interface
from .client import PATIENCE, UNNAMED, Client, RefusedError

Arrays = Mapping[str, np.ndarray]


def request_of(volume: Volume, modality: str) -> dict[str, np.ndarray]:
    """Return the request for a volume, on the axes of its file, which the server turns itself.

    Raises:
        OptionError: a CT whose values are no whole HU: the server takes 16 bits.
    """
    array, grid = volume.undo(volume.array), volume.source_grid
    if modality == "CT" and array.dtype != np.int16:
        raise OptionError("the values of this CT are no whole HU of 16 bits, which the server takes. Next: round them")
    return {
        interface.VOLUME: array if modality == "CT" else array.astype(np.float32),
        "spacing": np.array(grid.spacing),
        "direction": np.array(grid.direction),
        "origin": np.array(grid.origin),
    }


def made_up(record: Record, sides: Sequence[int], *, seed: int) -> dict[str, np.ndarray]:
    """Return a request of smooth shapes and noise, over the range that the weights look at.

    Args:
        record: of the network.
        sides: (D, H, W); a picture takes the last two.
        seed: another one gives another image.
    """
    rule = record.preprocess
    random = np.random.default_rng([seed, *sides])
    coarse = torch.from_numpy(random.random((1, 1, 4, 5, 6)))
    smooth = F.interpolate(coarse, size=tuple(sides), mode="trilinear", align_corners=True)[0, 0].numpy()
    values = 0.8 * smooth + 0.2 * random.random(tuple(sides))
    if rule.modality == "RGB":
        plane = (255 * values[0]).astype(np.uint8)
        return {interface.PICTURE: np.stack([plane, plane[::-1], 255 - plane], axis=-1)}
    low, high = rule.window or (0.0, 1000.0)
    image = low + (high - low) * values
    kind = np.int16 if rule.modality == "CT" else np.float32
    return {interface.VOLUME: image.astype(kind), "spacing": np.array(rule.spacing or (1.0, 1.0, 1.0), np.float64)}


# ---- what must be refused --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A request that is wrong in one way.

    Attributes:
        kind: "shape", "dtype", "name", "NaN" or "size".
        says: what is wrong.
        model, arrays, output: what is sent, and asked for.
        declared: shape that is said of the first array, where it is not its own; sent by hand over HTTP.
    """

    kind: str
    says: str
    model: str
    arrays: Arrays = field(repr=False)
    output: str
    declared: tuple[int, ...] = ()


def bad_requests(models: Mapping[str, str], piece: np.ndarray, most: int, output: str, image: Arrays) -> list[Bad]:
    """Return requests that a server must refuse.

    Args:
        models: names of the "network" and the "image" model, "" where there is none.
        piece: (1, C, D, H, W), an input that the network takes.
        most: images in one request.
        output: one of the network's.
        image: a request that the image model takes; of a picture or of none, it is left alone.
    """
    network, front = models["network"], models["image"]

    def net(kind: str, says: str, array: np.ndarray, name: str = INPUT, asked: str = output, **more: Any) -> Bad:
        return Bad(kind=kind, says=says, model=network, arrays={name: array}, output=asked, **more)

    found = [
        net("shape", "a channel too many", np.concatenate([piece, piece], 1)),
        net("shape", "an axis too few", piece[0]),
        net("dtype", "double precision", piece.astype(np.float64)),
        net("dtype", "whole numbers", piece.astype(np.int32)),
        net("name", "an input of another name", piece, name="image"),
        net("name", "an output of another name", piece, asked="mask"),
        net("size", "more images than one request may have", np.repeat(piece, max(most, len(piece)) + 1, 0)),
        net("size", "a tensor of terabytes of which little comes", piece, declared=(1, piece.shape[1], *(2**14,) * 3)),
        net("size", "a tensor whose size is no 64-bit number", piece, declared=(1, piece.shape[1], *(2**31,) * 3)),
        net("size", "a tensor of which half comes", piece, declared=(2, *piece.shape[1:])),
    ]
    if not front or interface.VOLUME not in image:
        return found
    voxels, spacing = image[interface.VOLUME], image["spacing"]
    other = np.float32 if voxels.dtype == np.int16 else np.int16

    def img(kind: str, says: str, **changed: np.ndarray | None) -> Bad:
        arrays = {name: array for name, array in {**image, **changed}.items() if array is not None}
        return Bad(kind=kind, says=says, model=front, arrays=arrays, output=interface.RESULT)

    found += [
        img("shape", "a slice and no volume", volume=voxels[0]),
        img("shape", "a spacing of two numbers", spacing=spacing[:2]),
        img("dtype", "voxels of another type", volume=voxels.astype(other)),
        img("dtype", "a spacing in single precision", spacing=spacing.astype(np.float32)),
        img("name", "no spacing", spacing=None),
        img("name", "an input too many", patient=spacing),
        img("NaN", "a spacing that is NaN", spacing=spacing * np.nan),
        img("NaN", "a spacing that is infinite", spacing=spacing * np.inf),
        img("NaN", "a direction that is NaN", direction=np.full(9, np.nan)),
        img("NaN", "an origin that is NaN", origin=np.array([0.0, np.nan, 0.0])),
    ]
    if voxels.dtype == np.float32:
        found.append(img("NaN", "a voxel that is NaN", volume=np.where(voxels == voxels[0, 0, 0], np.nan, voxels)))
    return found


def send(bad: Bad, protocol: str, address: str) -> None:
    """Send a request as it is, wrong.

    Raises:
        RefusedError: as it should be.
    """
    if bad.declared:
        _send_by_hand(bad, address)
        return
    with Client(protocol, address) as client:
        client.infer(bad.model, bad.arrays, [bad.output])


def _send_by_hand(bad: Bad, address: str) -> None:
    """Send over HTTP what no client would: a tensor that is said to be larger than what comes."""
    ((name, array),) = bad.arrays.items()
    data = array.tobytes()
    tensor = {"name": name, "shape": bad.declared, "datatype": "FP32", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    try:
        connection.request("POST", f"/v2/models/{bad.model}/infer", head + data,
                           {"Inference-Header-Content-Length": str(len(head))})  # fmt: skip
        answer = connection.getresponse()
        if answer.status != 200:
            raise RefusedError(str(answer.status), str(json.loads(answer.read())["error"]).removeprefix(UNNAMED))
        answer.read()
    finally:
        connection.close()
