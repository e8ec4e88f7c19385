"""A picture of each result: slices in the weights' window, with masks or boxes, and not a word about the patient."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import MissingExtraError
from ..preprocess import Preprocess
from ..volume import Volume, memory
from .results import RESEARCH_USE, Classification, Detection, Prediction, Segmentation, on_input

# Colours that colour-blind people can tell apart (Okabe and Ito 2008), and what comes beyond them.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_TILE, _ACROSS, _TILES, _LINE, _MARGIN = 256, 4, 12, 20, 8
_ENTRY, _LETTER = 264, 8  # pixels of a legend's column, and of a letter
Line = tuple[tuple[int, int, int] | None, str]  # of a legend: a colour where it stands for one, and words
_SHADE = 0.35  # of a mask's colour over the image


def picture(result: Prediction, rule: Preprocess) -> bytes:
    """Return a PNG: a contact sheet of a segmentation, boxes of a detection, three planes of a classification.

    Args:
        result: what a `Predictor` gave.
        rule: its preprocessing; the window is shown.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    if isinstance(result, Segmentation):
        sheet = _segmentation(result, rule)
    elif isinstance(result, Detection):
        sheet = _detection(result, rule)
    elif isinstance(result, Classification):
        sheet = _classification(result, rule)
    else:
        raise TypeError(type(result).__name__)
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def colour(label: int) -> tuple[int, int, int]:
    """Return the colour of a label, from 1 on."""
    if label <= len(_COLOURS):
        return _COLOURS[label - 1]
    step = label * 0.61803398875 % 1  # the golden ratio spreads hues
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * (step + np.array([0.0, 1 / 3, 2 / 3])))
    red, green, blue = (int(n) for n in 80 + 175 * wave)
    return red, green, blue


# ---- the three -----------------------------------------------------------------------------------------------------


def _segmentation(result: Segmentation, rule: Preprocess) -> Any:
    volume = result.scan
    shown = _telling([int(np.count_nonzero(plane)) for (plane,) in memory.planes(result.labels)])
    grey = Greys(volume, rule)
    tiles = []
    for k in shown:
        labels = result.labels[k]
        tile = grey.tile(shaded(grey.plane(k), labels))
        tiles.append((f"slice {k + 1} of {volume.shape[0]}", _marked(tile, "RL")))
    memory.release(result.labels)
    legend: list[Line] = [
        (colour(k), f"{name}  {result.millilitres[name]:.1f} ml")
        for k, name in enumerate(result.classes)
        if k and result.voxels[k]
    ]
    return _sheet(tiles, legend or [(None, "no voxel was given a class")], result.entry)


def _detection(result: Detection, rule: Preprocess) -> Any:
    boxes = [(one, colour(result.classes.index(one.label) + 1)) for one in result.findings[:_TILES]]
    legend: list[Line] = [
        (shade, f"{number}  {one.label}  {one.score:.2f}") for number, (one, shade) in enumerate(boxes, start=1)
    ]
    nothing: list[Line] = [(None, "nothing was found")]
    if result.picture is not None:
        scale = _TILE * 3 / max(result.picture.shape[:2])
        whole = _resized(np.asarray(result.picture, np.uint8), scale, scale)
        for one, shade in boxes:
            _draw_box(whole, one.box, shade, scale, scale)
        return _sheet([("", whole)], legend or nothing, result.entry)
    volume, grey = result.scan, Greys(result.scan, rule)
    tiles = []
    for number, (one, shade) in enumerate(boxes, start=1):
        tile = grey.tile(grey.plane(one.plane))
        _draw_box(tile, one.box, shade, grey.right, grey.down)
        tiles.append((f"finding {number}, slice {on_input(volume, one.plane, one.box)[0]}", _marked(tile, "RL")))
    if not tiles:
        tiles = [(f"slice {k}", _marked(grey.tile(grey.plane(k)), "RL")) for k in _spread(result.searched)]
    return _sheet(tiles, legend or nothing, result.entry)


def _classification(result: Classification, rule: Preprocess) -> Any:
    legend: list[Line] = [(None, f"{name}  {share:.3f}") for name, share in result.ranked[:5]]
    if result.volume is None:
        seen = np.asarray(result.picture, np.uint8)
        scale = _TILE * 2 / max(seen.shape[:2])
        seen = seen if seen.ndim == 3 else np.repeat(seen[..., None], 3, 2)
        return _sheet([("", _resized(seen, scale, scale))], legend, result.entry)
    volume = result.volume
    at = [n // 2 for n in volume.shape]
    if result.point is not None:
        at = np.rint(volume.grid.indices(np.array([result.point]))[0]).astype(int).clip(0, np.array(volume.shape) - 1)
    planes = [  # feet are below in the two upright ones
        ("axial", volume.array[at[0]], (1, 2), "RL"),
        ("coronal", volume.array[::-1, at[1]], (0, 2), "RL"),
        ("sagittal", volume.array[::-1, :, at[2]], (0, 1), "AP"),
    ]
    seen_part = _part_seen(volume, rule, [float(k) + 0.5 for k in at] if result.point is not None else None)
    tiles = []
    for name, values, (row, column), ends in planes:
        mm = volume.spacing
        scale = _TILE / max(values.shape[0] * mm[row], values.shape[1] * mm[column])
        down, right = mm[row] * scale, mm[column] * scale
        tile = _resized(_grey(values, _window(values, rule)), down, right)
        if seen_part is not None:
            (y0, y1), (x0, x1) = seen_part[row], seen_part[column]
            if row == 0:
                y0, y1 = volume.shape[0] - y1, volume.shape[0] - y0
            _draw_box(tile, (x0, y0, x1, y1), colour(2), right, down)
        tiles.append((name, _marked(tile, ends)))
    memory.release(volume.array)
    return _sheet(tiles, legend, result.entry)


def _part_seen(volume: Volume, rule: Preprocess, middle: Sequence[float] | None) -> list[tuple[float, float]] | None:
    """Return from where to where, in voxels of D, H, W, a network sees a volume; None where that is all of it."""
    if rule.size is None or rule.fit != "crop" or rule.orientation not in (None, "SPL"):
        return None
    mm = rule.spacing or volume.spacing
    middle = [n / 2 for n in volume.shape] if middle is None else middle
    half = [side * s / own / 2 for side, s, own in zip(rule.size, mm, volume.spacing, strict=True)]
    return [(m - h, m + h) for m, h in zip(middle, half, strict=True)]


# ---- parts ---------------------------------------------------------------------------------------------------------


class Greys:
    """Planes of a volume as grey pictures with square pixels, all of one size."""

    def __init__(self, volume: Volume, rule: Preprocess) -> None:
        self.volume = volume
        self.window = _window(volume.array[volume.shape[0] // 2], rule)
        _, y, x = volume.spacing
        scale = _TILE / max(volume.shape[1] * y, volume.shape[2] * x)
        self.down, self.right = y * scale, x * scale

    def plane(self, k: int) -> np.ndarray:
        """Return (H, W, 3) of 0..255."""
        seen = _grey(self.volume.array[k], self.window)
        memory.release(self.volume.array)
        return seen

    def tile(self, pixels: np.ndarray) -> Any:
        """Return (H, W, 3) as a picture of the size of a tile."""
        return _resized(pixels, self.down, self.right)


def _window(plane: np.ndarray, rule: Preprocess) -> tuple[float, float]:
    low, high = rule.window if rule.window is not None else np.percentile(plane, (1, 99))
    return float(low), float(high) if high > low else float(low) + 1


def _grey(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    grey = ((values.astype(np.float32) - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def shaded(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) with each label's colour over it, and its border in full."""
    out = pixels.astype(np.float32)
    padded = np.pad(labels, 1, mode="edge")
    inner = np.ones(labels.shape, bool)
    for y, x in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inner &= padded[y : y + labels.shape[0], x : x + labels.shape[1]] == labels
    for label in np.unique(labels):
        if label:
            where = labels == label
            tint = np.array(colour(int(label)), np.float32)
            out[where] = (1 - _SHADE) * out[where] + _SHADE * tint
            out[where & ~inner] = tint
    return out.astype(np.uint8)


def _telling(sizes: Sequence[int]) -> list[int]:
    """Return at most `_TILES` planes with masks of these sizes: most of them where most of the mask is."""
    total = np.cumsum(sizes)
    if not total[-1]:
        return _spread(range(len(sizes)))
    shares = (np.arange(_TILES) + 0.5) / _TILES * total[-1]
    chosen = set(np.searchsorted(total, shares).tolist())
    there = np.flatnonzero(sizes)
    for k in _spread(there.tolist()):  # where a few planes hold nearly all of it
        if len(chosen) < min(_TILES, len(there)):
            chosen.add(k)
    return sorted(chosen)


def _spread(planes: Sequence[int]) -> list[int]:
    """Return at most `_TILES` of them, evenly apart."""
    if len(planes) <= _TILES:
        return list(planes)
    return [planes[int(k)] for k in np.rint(np.linspace(0, len(planes) - 1, _TILES))]


def _pillow() -> Any:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingExtraError("pillow", "volume") from None
    return Image, ImageDraw, ImageFont


def _resized(pixels: np.ndarray, down: float, right: float) -> Any:
    image, _, _ = _pillow()
    height, width = pixels.shape[:2]
    size = (max(1, round(width * right)), max(1, round(height * down)))
    return image.fromarray(np.ascontiguousarray(pixels)).resize(size, image.Resampling.BILINEAR)


def _draw_box(tile: Any, box: Sequence[float], shade: tuple[int, int, int], right: float, down: float) -> None:
    _, draw, _ = _pillow()
    x0, y0, x1, y1 = box
    draw.Draw(tile).rectangle((x0 * right, y0 * down, x1 * right, y1 * down), outline=shade, width=2)


def _marked(tile: Any, ends: str) -> Any:
    """Return a tile with a letter at its left and at its right end: the patient's sides, as the volume's axes run."""
    _, draw, font = _pillow()
    pen, letters = draw.Draw(tile), font.load_default(size=13)
    for letter, x in zip(ends, (3, tile.size[0] - 12), strict=True):
        pen.text((x, 2), letter, fill=(255, 255, 255), font=letters)
    return tile


def _sheet(tiles: Sequence[tuple[str, Any]], legend: Sequence[Line], entry: str) -> Any:
    """Return tiles with their captions in rows, and below the legend and whose work it is."""
    image, draw, font = _pillow()
    letters = font.load_default(size=13)
    wide, high = (max(tile.size[axis] for _, tile in tiles) for axis in (0, 1))
    across = min(_ACROSS, len(tiles))
    rows = -(-len(tiles) // across)
    width = max(_MARGIN + across * (wide + _MARGIN), 420)
    columns = max(1, (width - _MARGIN) // _ENTRY)
    lines = -(-len(legend) // columns)
    height = _MARGIN + rows * (high + _LINE + _MARGIN) + _LINE * (lines + 1) + _MARGIN
    sheet = image.new("RGB", (width, height), (24, 24, 24))
    pen = draw.Draw(sheet)
    for number, (caption, tile) in enumerate(tiles):
        row, column = divmod(number, across)
        x, y = _MARGIN + column * (wide + _MARGIN), _MARGIN + row * (high + _LINE + _MARGIN)
        sheet.paste(tile, (x, y))
        pen.text((x, y + high + 2), caption, fill=(200, 200, 200), font=letters)
    below = _MARGIN + rows * (high + _LINE + _MARGIN)
    room = (width // columns - 28) // _LETTER
    for number, (shade, words) in enumerate(legend):  # down, then across
        column, line = divmod(number, lines)
        x, y = _MARGIN + column * (width // columns), below + line * _LINE
        if shade is not None:
            pen.rectangle((x, y + 3, x + 12, y + 15), fill=shade)
        shown = words if len(words) <= room else f"{words[: room - 3]}..."
        pen.text((x if shade is None else x + 20, y), shown, fill=(230, 230, 230), font=letters)
    pen.text((_MARGIN, below + lines * _LINE), f"{entry}. {RESEARCH_USE}", fill=(160, 160, 160), font=letters)
    return sheet
