"""A run's log as a picture: loss and metrics over epochs, in panels side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .events import PLACES

# Okabe and Ito's colours, which people of any colour vision can tell apart (without the yellow, too pale on white).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
SCALE = 2  # drawn this much larger and made smaller: lines come out smooth
WIDTH, HEIGHT, LINE = 520, 300, 14  # of a panel's curves, and of a line of text, in pixels
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 24, 24  # margins about them
MOST = 14  # curves of a panel; others are in the log

Series = dict[str, list[tuple[float, float]]]  # name -> (epoch, value)


def panels(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Return what is drawn: losses apart from metrics, each with the epochs that have a finite value of it."""
    found: dict[str, Series] = {"loss": {}, "metrics": {}}
    for row in rows:
        for name, value in row.items():
            if name not in PLACES and math.isfinite(value):
                panel = "loss" if "loss" in name else "metrics"
                found[panel].setdefault(name, []).append((row["epoch"] + 1, value))
    return {title: dict(list(series.items())[:MOST]) for title, series in found.items() if series}


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers between two: multiples of 1, 2 or 5 times a power of ten, some `count` of them."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    step = next((s * power for s in (1, 2, 5) if 1.5 * count * s * power >= span), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def draw(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the picture as a PNG; equal rows give equal bytes."""
    shown = panels(rows)
    legend = LINE * max((len(series) for series in shown.values()), default=0)
    width, height = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM + legend + 8
    image = Image.new("RGB", (max(1, len(shown)) * width * SCALE, height * SCALE), "white")
    pen = ImageDraw.Draw(image)
    for index, (title, series) in enumerate(shown.items()):
        _panel(pen, index * width, title, series)
    buffer = io.BytesIO()
    image.reduce(SCALE).quantize(64, Image.Quantize.FASTOCTREE).save(buffer, "PNG")
    return buffer.getvalue()


def _panel(pen: ImageDraw.ImageDraw, left: int, title: str, series: Series) -> None:
    """Draw one panel: frame, round numbers, curves, and below them what they are with their last values."""
    font = ImageFont.load_default(size=11 * SCALE)
    points = [point for line in series.values() for point in line]
    (x0, x1), (y0, y1) = (_range([p[axis] for p in points]) for axis in (0, 1))

    def at(x: float, y: float) -> tuple[float, float]:
        across, down = (x - x0) / (x1 - x0) * WIDTH, (y1 - y) / (y1 - y0) * HEIGHT
        return (left + LEFT + across) * SCALE, (TOP + down) * SCALE

    for value in ticks(y0, y1):
        pen.line([at(x0, value), at(x1, value)], fill="#dddddd", width=SCALE)
        pen.text((at(x0, value)[0] - 6 * SCALE, at(x0, value)[1]), f"{value:.4g}", "black", font, anchor="rm")
    for value in ticks(x0, x1, 8):
        if value == round(value):
            pen.text((at(value, y0)[0], at(value, y0)[1] + 4 * SCALE), f"{value:.0f}", "black", font, anchor="mt")
    pen.rectangle([at(x0, y1), at(x1, y0)], outline="black", width=SCALE)
    pen.text(((left + LEFT) * SCALE, 4 * SCALE), f"{title}, by epoch", "black", font)
    for k, (name, line) in enumerate(series.items()):
        colour, places = COLOURS[k % len(COLOURS)], [at(*point) for point in line]
        pen.line(places, fill=colour, width=2 * SCALE, joint="curve")
        for x, y in places if len(places) < 2 else places[-1:]:
            pen.ellipse([x - 3 * SCALE, y - 3 * SCALE, x + 3 * SCALE, y + 3 * SCALE], fill=colour)
        below = (TOP + HEIGHT + BOTTOM + k * LINE) * SCALE
        pen.text(((left + LEFT) * SCALE, below), f"{name}  {line[-1][1]:.4g}", colour, font)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis: those of the values, or something around them where they are one."""
    low, high = min(values), max(values)
    if low == high:
        return low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    return low, high
