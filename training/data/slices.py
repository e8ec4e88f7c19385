"""CT slices stored one by one as 16-bit PNG (DeepLesion): the stack about a key slice, at a distance of our own.

Sources: urmagicsmine/MP3D@08e5ace mmdet/datasets/pipelines/image_io_3DCE.py (what is read, in HU, and from where);
the reading itself is exact here, the official rule is a named option.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from ...errors import SvdHubError

Rule = Literal["exact", "official"]
Part = tuple[int, float]  # a stored slice, counted from the key slice, and its weight
OFFSET = 32768  # stored value - OFFSET = HU


def parts(place: int, *, spacing: float, interval: float, rule: Rule) -> tuple[Part, ...]:
    """Return which stored slices make the slice at `place` * `spacing` mm from the key slice, and with what weights.

    "exact" interpolates between the two that are nearest to it. "official" takes their weights from the first place,
    whatever the place: the share by which `spacing` goes beyond a whole number of intervals weighs the farther slice.
    The two agree where that share is 0 or a half (intervals of 1 and 5 mm at 2.5 mm), else the official stack is
    squeezed and stretched: 133 of DeepLesion's 4,831 test images.

    Args:
        place: ... -1, 0 (the key slice), 1 ...
        spacing: mm between the slices that are made.
        interval: mm between the stored ones.
        rule: see above.
    """
    distance = abs(place) * spacing / interval
    near, far = math.floor(distance), math.ceil(distance)
    sign = -1 if place < 0 else 1
    share = distance - near if rule == "exact" else spacing / interval - math.floor(spacing / interval)
    if near == far or (share == 0 and rule == "official"):
        return ((sign * near, 1.0),)
    return ((sign * near, 1 - share), (sign * far, share))


def existing(offset: int, there: Callable[[int], bool]) -> int:
    """Return the slice nearest to `offset`, on the way to the key slice (0), that is stored."""
    while offset and not there(offset):
        offset -= 1 if offset > 0 else -1
    return offset


def mixed(
    read: Callable[[int], np.ndarray],
    there: Callable[[int], bool],
    *,
    slices: int,
    spacing: float,
    interval: float,
    rule: Rule,
) -> np.ndarray:
    """Return the stack (slices, H, W) about the key slice, float32.

    Args:
        read: a stored slice (H, W) by its offset from the key slice; called once for each.
        there: is a slice stored? Where it is not, the next one towards the key slice is taken.
        slices: an odd number; the key slice is the middle one.
        spacing, interval, rule: see `parts`.
    """
    half = slices // 2
    plan = [parts(place, spacing=spacing, interval=interval, rule=rule) for place in range(-half, half + 1)]
    stored: dict[int, np.ndarray] = {}
    out = []
    for mixture in plan:
        total: np.ndarray | float = 0.0
        for offset, weight in mixture:
            found = existing(offset, there)
            if found not in stored:
                stored[found] = read(found).astype(np.float32)
            total = total + np.float32(weight) * stored[found]
        out.append(total)
    return np.stack(out)


def read_png(file: Path) -> np.ndarray:
    """Return a slice (H, W) in HU, int32.

    Raises:
        SvdHubError: no 16-bit PNG of one channel.
    """
    try:
        with Image.open(file) as image:
            form, values = image.mode, np.asarray(image)
    except OSError as error:
        raise SvdHubError(f"{file} cannot be decoded: {error}. Next: fetch that slice again") from error
    if not form.startswith("I"):
        raise SvdHubError(
            f"{file} is an image of form {form!r}; allowed: 16-bit PNG of one channel, value - {OFFSET} = HU. "
            "Next: take DeepLesion's Images_png, not pictures made of them"
        )
    return values.astype(np.int32) - OFFSET


def read_stack(folder: Path, key: int, *, slices: int, spacing: float, interval: float, rule: Rule) -> np.ndarray:
    """Return the stack (slices, H, W) in HU about slice `key` of a series: files `001.png`, `002.png`, ...

    Raises:
        SvdHubError: a slice that cannot be read, slices of different sizes, no distance between the stored ones.
    """
    if not interval > 0:
        raise SvdHubError(f"slice {key} of {folder} is said to come every {interval} mm; allowed: above 0")

    def file(offset: int) -> Path:
        return folder / f"{key + offset:03d}.png"

    def read(offset: int) -> np.ndarray:
        values = read_png(file(offset))
        shapes.add(values.shape)
        if len(shapes) > 1:
            raise SvdHubError(
                f"{folder} has slices of sizes {sorted(shapes)} about slice {key}; allowed: one. Next: fetch it again"
            )
        return values

    shapes: set[tuple[int, ...]] = set()
    return mixed(
        read, lambda offset: file(offset).is_file(), slices=slices, spacing=spacing, interval=interval, rule=rule
    )
