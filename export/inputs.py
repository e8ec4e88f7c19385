"""Volumes to try a network with: in the range of its own preprocessing, or cut from data that the user gave."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import OptionError, VolumeError
from ..preprocess import Preprocess
from .profile import Profile

MOST = 64  # pieces of a user's images; more changes the ranges of int8 little
PER_SHAPE = 2  # pieces of each shape but the typical one
PER_VOLUME = 4  # pieces of a volume that is larger than the network's largest input


def probe(shape: Sequence[int], rule: Preprocess | None, *, seed: int) -> np.ndarray:
    """Return a volume (N, C, D, H, W), float32: smooth shapes and noise over the range that preprocessing gives."""
    random = np.random.default_rng([seed, *shape])
    coarse = torch.from_numpy(random.random((*shape[:2], 4, 5, 6)))
    smooth = F.interpolate(coarse, size=tuple(shape[2:]), mode="trilinear", align_corners=True)
    x = (0.8 * smooth + 0.2 * torch.from_numpy(random.random(tuple(shape)))).float()  # 0 to 1
    if rule is None or (rule.window is None and rule.modality not in ("RGB", "video")):
        return ((x - x.mean()) / x.std()).numpy()
    low, high = rule.window or (0.0, 255.0)
    x = rule.windowed(low + (high - low) * x)
    if rule.statistics == "fixed":
        mean, std = (sum(v) / 3 if isinstance(v, tuple) else v for v in (rule.mean, rule.std))
        return ((x - mean) / std).numpy()
    return ((x - x.mean()) / x.std()).numpy()


def cut(shape: Sequence[int], data: Sequence[np.ndarray], *, seed: int) -> np.ndarray:
    """Return a volume (N, C, D, H, W) of pieces of the data (C, D, H, W).

    What has the very sides that are asked for is taken first, and whole; what is too small is mirrored at its ends.
    """
    random = np.random.default_rng([seed, *shape])
    data = [array for array in data if array.shape[1:] == tuple(shape[2:])] or data
    pieces = []
    for _ in range(shape[0]):
        array = data[int(random.integers(len(data)))]
        room = [max(0, n - want) for n, want in zip(array.shape[1:], shape[2:], strict=True)]
        starts = random.integers(0, room, endpoint=True).tolist()
        piece = array[(slice(None), *(slice(s, s + want) for s, want in zip(starts, shape[2:], strict=True)))]
        short = [(0, 0), *((0, want - n) for n, want in zip(piece.shape[1:], shape[2:], strict=True))]
        pieces.append(np.pad(piece, short, mode="symmetric"))
    return np.stack(pieces).astype(np.float32)


def pieces(images: Any, model: Any, largest: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Return what a user's network will see: arrays (C, D, H, W), none with a side above the largest.

    Args:
        images: a folder of volumes or pictures (what `svd-hub predict` reads, and .npy arrays as the network takes
            them), or arrays or tensors (C, D, H, W) or (1, C, D, H, W) as the network takes them.
        model: whose preprocessing files go through.
        largest: (N, C, D, H, W); larger volumes are cut, `PER_VOLUME` pieces of each.

    Raises:
        OptionError: no images, or arrays of another shape.
    """
    arrays = _files(Path(images), model) if isinstance(images, str | os.PathLike) else list(images)
    volumes = [_checked(array, largest[1]) for array in arrays[:MOST]]
    if not volumes:
        where = os.fspath(images) if isinstance(images, str | os.PathLike) else "what was given"
        raise OptionError(f"no images in {where}; allowed: what svd-hub predict reads, or .npy arrays (C, D, H, W)")
    found = []
    for number, volume in enumerate(volumes):
        sides = [min(n, most) for n, most in zip(volume.shape[1:], largest[2:], strict=True)]
        for piece in range(PER_VOLUME if tuple(sides) != volume.shape[1:] else 1):
            found.append(cut((1, largest[1], *sides), [volume], seed=number * PER_VOLUME + piece)[0])
    return tuple(found[:MOST])


def calibration(data: Sequence[np.ndarray], profile: Profile) -> tuple[np.ndarray, ...]:
    """Return what int8 is calibrated with: a piece of the typical sides of each array, then `PER_SHAPE` of each other.

    What a network pads where sides are odd, and the values that grow there, would lie outside of the ranges else.
    """
    usual = [cut((1, *profile.typical[1:]), [array], seed=n)[0] for n, array in enumerate(data)]
    others = dict.fromkeys(shape[1:] for shape in profile.cases if shape[1:] != profile.typical[1:])
    return (*usual, *(cut((1, *sides), data, seed=n)[0] for sides in others for n in range(PER_SHAPE)))


def _checked(array: Any, channels: int) -> np.ndarray:
    volume = np.asarray(array, dtype=np.float32)
    volume = volume[0] if volume.ndim == 5 and len(volume) == 1 else volume
    if volume.ndim != 4 or len(volume) != channels or not np.isfinite(volume).all():
        raise OptionError(
            f"an image of shape {np.shape(array)} is not allowed; allowed: finite (C, D, H, W) or "
            f"(1, C, D, H, W) with C = {channels}, as the network takes it"
        )
    return volume


def _files(folder: Path, model: Any) -> list[np.ndarray]:
    """Return every image of a folder, in the order of names, through the network's preprocessing."""
    if not folder.is_dir():
        raise OptionError(f"images={os.fspath(folder)!r} is no folder. Next: check the path")
    found: list[np.ndarray] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or len(found) >= MOST:
            continue
        found.append(np.load(path) if path.suffix == ".npy" else _image(path, model.preprocess))
    return found


def _image(path: Path, rule: Preprocess) -> np.ndarray:
    from ..predict.inputs import to_picture, to_volume

    if rule.modality == "RGB":
        return rule(to_picture(path))[0].numpy()
    if rule.modality == "video":
        raise VolumeError(f"{path.name}: clips are not read from files. Next: give arrays, or .npy files")
    volume = to_volume(path, modality=rule.modality)
    return rule(volume.array, spacing=volume.spacing, orientation="SPL")[0].numpy()


def samples(
    shapes: Iterable[Sequence[int]], rule: Preprocess | None, data: Sequence[np.ndarray] = ()
) -> list[np.ndarray]:
    """Return one volume of each shape: of the data where there is some, else `probe`s."""
    seeded = enumerate(shapes)
    return [cut(shape, data, seed=n) if data else probe(shape, rule, seed=n) for n, shape in seeded]
