"""LIDC-IDRI as TCIA has it: a folder of CT images a scan, and an XML of what up to four readers drew.

Sources: the LIDC-IDRI pages of The Cancer Imaging Archive, and the files themselves. A reader's nodule of 3 mm or more
has `characteristics` and, a slice each, a closed contour of (x, y) pixels; smaller ones are a single point, and so are
non-nodules, which are left out. The contour is the outermost line around the nodule: its own pixels are no part of it.
An `inclusion` of FALSE is a hole. The `imageSOP_UID` says which image a contour is on.
"""

from __future__ import annotations

import xml.parsers.expat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SvdHubError

LARGEST = 64 * 2**20  # bytes of an XML; the public ones have up to 3 MB
Points = tuple[tuple[int, int], ...]  # (x, y) in pixels
Triple = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Contour:
    """One closed line on one image, given by its UID; z is its place in mm as the XML has it."""

    image: str
    z: float
    points: Points
    inclusion: bool = True


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What one reader drew of one nodule.

    Attributes:
        reader: number of the reading session, from 0.
        name: the reader's own for the nodule.
        ratings: "malignancy": 1 to 5, and the others; {} for nodules below 3 mm.
        contours: on their images.
    """

    reader: int
    name: str
    ratings: Mapping[str, int] = field(default_factory=dict)
    contours: tuple[Contour, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Session:
    """What an XML says: the series it is about, how many readers there were, and what they drew."""

    series: str
    readers: int
    drawings: tuple[Drawing, ...]


# ---- the XML -------------------------------------------------------------------------------------------------------


class _Node:
    """An element: its name without the namespace, its text and children."""

    def __init__(self, name: str) -> None:
        self.name, self.text, self.children = name, "", list[_Node]()

    def all(self, name: str) -> list[_Node]:
        return [child for child in self.children if child.name == name]

    def get(self, name: str) -> str:
        """Return the text of the first child of a name, "" where there is none; capitals do not matter."""
        for child in self.children:
            if child.name.lower() == name.lower():
                return child.text.strip()
        return ""


def _tree(content: bytes, where: str) -> _Node:
    """Return the elements of an XML. It may declare nothing: neither entities nor a document type are taken.

    Raises:
        SvdHubError: it is no such XML.
    """
    root, path = _Node(""), list[_Node]()
    path.append(root)
    parser = xml.parsers.expat.ParserCreate(namespace_separator=" ")

    def start(name: str, attributes: Mapping[str, str]) -> None:
        node = _Node(name.rpartition(" ")[2])
        path[-1].children.append(node)
        path.append(node)

    def end(name: str) -> None:
        path.pop()

    def text(data: str) -> None:
        path[-1].text += data

    def refuse(*found: object) -> Any:
        raise SvdHubError(
            f"{where} declares a document type or an entity, which could stand for anything; allowed: none"
        )

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, text
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.ExternalEntityRefHandler = refuse
    try:
        parser.Parse(content, True)
    except xml.parsers.expat.ExpatError as error:
        raise SvdHubError(f"{where} is no whole XML: {error}. Next: fetch it again") from error
    return root.children[0]


def read_xml(file: Path) -> Session:
    """Return what the readers of a scan drew.

    Raises:
        SvdHubError: no such file, no XML, or another one (LIDC has some of chest radiographs).
    """
    if not file.is_file():
        raise SvdHubError(f"{file} does not exist. Next: give the XML of the scan")
    if (size := file.stat().st_size) > LARGEST:
        raise SvdHubError(f"{file} has {size:,} bytes; allowed: {LARGEST:,}")
    root = _tree(file.read_bytes(), str(file))
    if root.name != "LidcReadMessage":
        raise SvdHubError(f"{file} is a {root.name}; allowed: LidcReadMessage, the readings of a CT")
    headers = root.all("ResponseHeader")
    sessions = root.all("readingSession")
    try:
        drawings = [
            _drawing(reader, node)
            for reader, session in enumerate(sessions)
            for node in session.all("unblindedReadNodule")
        ]
    except ValueError as error:
        raise SvdHubError(f"{file}: a number of a nodule cannot be read ({error})") from error
    series = headers[0].get("SeriesInstanceUid") if headers else ""
    return Session(series=series, readers=len(sessions), drawings=tuple(drawings))


def _drawing(reader: int, node: _Node) -> Drawing:
    ratings = {
        child.name: int(child.text)
        for found in node.all("characteristics")
        for child in found.children
        if child.text.strip()
    }
    contours = tuple(
        Contour(
            image=roi.get("imageSOP_UID"),
            z=float(roi.get("imageZposition") or "nan"),
            points=tuple((int(float(p.get("xCoord"))), int(float(p.get("yCoord")))) for p in roi.all("edgeMap")),
            inclusion=roi.get("inclusion").upper() != "FALSE",
        )
        for roi in node.all("roi")
    )
    return Drawing(reader=reader, name=node.get("noduleID"), ratings=ratings, contours=contours)


# ---- masks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Region:
    """A mask (z, y, x) within its box of a scan, whose first voxel is `corner`."""

    mask: np.ndarray
    corner: Triple

    @property
    def end(self) -> Triple:
        """The voxel behind the box's last."""
        z, y, x = (first + side for first, side in zip(self.corner, self.mask.shape, strict=True))
        return (z, y, x)

    def within(self, corner: Sequence[int], end: Sequence[int]) -> np.ndarray:
        """Return the mask on another box, False where it has nothing."""
        out = np.zeros([last - first for first, last in zip(corner, end, strict=True)], bool)
        low, high = np.maximum(corner, self.corner), np.minimum(end, self.end)
        if (low < high).all():
            here, there = (
                tuple(slice(*ends) for ends in zip(low - c, high - c, strict=True)) for c in (corner, self.corner)
            )
            out[here] = self.mask[there]
        return out


def inside(points: Points) -> Region:
    """Return the pixels, as a plane, whose centres are inside a closed line through pixels, and not on it.

    Even-odd rule, so that a line that crosses itself has an inside, too.
    """
    columns, rows = zip(*points, strict=True)
    y = np.arange(min(rows), max(rows) + 1)[:, None]
    x = np.arange(min(columns), max(columns) + 1)[None]
    filled, on = np.zeros((len(y), x.shape[1]), bool), np.zeros((len(y), x.shape[1]), bool)
    for (x0, y0), (x1, y1) in zip(points, (*points[1:], points[0]), strict=True):
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)  # above 0 left of a line that runs to larger y
        filled ^= (min(y0, y1) <= y) & (y < max(y0, y1)) & ((side > 0) if y1 > y0 else (side < 0))
        between = (min(x0, x1) <= x) & (x <= max(x0, x1)) & (min(y0, y1) <= y) & (y <= max(y0, y1))
        on |= (side == 0) & between
    return Region(mask=(filled & ~on)[None], corner=(0, int(y[0, 0]), int(x[0, 0])))


def region_of(drawing: Drawing, slices: Mapping[str, int], shape: Triple) -> Region | None:
    """Return what a reader drew, None where that has no voxel.

    Args:
        drawing: with contours.
        slices: UID of an image -> its index along z.
        shape: (z, y, x) of the scan.

    Raises:
        SvdHubError: a contour is on an image that the scan does not have, or outside it.
    """
    planes: list[tuple[bool, Region]] = []
    for contour in drawing.contours:
        if contour.image not in slices:
            raise SvdHubError(
                f"a contour of nodule {drawing.name} is on an image that the scan does not have. Next: fetch the whole "
                "series, or the XML of this one"
            )
        if any(not (0 <= x < shape[2] and 0 <= y < shape[1]) for x, y in contour.points):
            raise SvdHubError(f"a contour of nodule {drawing.name} leaves the image of {shape[1:]} pixels")
        if contour.points:
            flat = inside(contour.points)
            place = (slices[contour.image], *flat.corner[1:])
            planes.append((contour.inclusion, Region(mask=flat.mask, corner=place)))
    solid = [region for inclusion, region in planes if inclusion and region.mask.any()]
    if not solid:
        return None
    corner, end = _around(solid)
    mask = np.any([region.within(corner, end) for region in solid], axis=0)
    for inclusion, region in planes:
        if not inclusion:
            mask &= ~region.within(corner, end)
    return Region(mask=mask, corner=corner) if mask.any() else None


def _around(regions: Sequence[Region]) -> tuple[Triple, Triple]:
    """Return the first voxel of the box about regions, and the one behind its last."""
    low = np.min([region.corner for region in regions], axis=0).tolist()
    high = np.max([region.end for region in regions], axis=0).tolist()
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


# ---- readers together ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Nodule:
    """What several readers drew of one nodule.

    Attributes:
        region: the voxels that half of those who drew it have, or more.
        readers: how many drew it.
        ratings: "malignancy" and the others -> each reader's, as far as given.
    """

    region: Region
    readers: int
    ratings: Mapping[str, tuple[int, ...]]

    @property
    def malignancy(self) -> int:
        """The most frequent rating, of equally frequent ones the lowest (as 540 of 552 in the ACS table); 0 if none."""
        return mode(self.ratings.get("malignancy", ()))


def mode(values: Iterable[int]) -> int:
    """Return the most frequent value, of equally frequent ones the lowest; 0 where there is none."""
    found = Counter(values)
    return min(found, key=lambda value: (-found[value], value)) if found else 0


def nodules(session: Session, slices: Mapping[str, int], shape: Triple) -> list[Nodule]:
    """Return the nodules of 3 mm or more: drawings that share a voxel are of one, half of their readers decide.

    Args:
        session: of the XML.
        slices: UID of an image -> its index along z.
        shape: (z, y, x) of the scan.

    Raises:
        SvdHubError: see `region_of`.
    """
    drawn: list[tuple[Drawing, Region]] = []
    for drawing in session.drawings:
        closed = any(len(contour.points) > 2 for contour in drawing.contours)
        if drawing.ratings and closed and (region := region_of(drawing, slices, shape)):
            drawn.append((drawing, region))
    groups: list[list[int]] = []
    for k in range(len(drawn)):
        touching = [group for group in groups if any(_share(drawn[k][1], drawn[other][1]) for other in group)]
        groups = [group for group in groups if group not in touching]
        groups.append([*(other for group in touching for other in group), k])
    found = [_together([drawn[k] for k in sorted(group)]) for group in groups]
    return sorted(found, key=lambda nodule: nodule.region.corner)


def _share(one: Region, other: Region) -> bool:
    return bool((one.mask & other.within(one.corner, one.end)).any())


def _together(drawn: Sequence[tuple[Drawing, Region]]) -> Nodule:
    corner, end = _around([region for _, region in drawn])
    by_reader: dict[int, np.ndarray] = {}
    for drawing, region in drawn:  # a reader who drew two parts drew both
        there = region.within(corner, end)
        by_reader[drawing.reader] = by_reader[drawing.reader] | there if drawing.reader in by_reader else there
    votes = np.sum(list(by_reader.values()), axis=0, dtype=int)
    names = sorted({name for drawing, _ in drawn for name in drawing.ratings})
    return Nodule(
        region=Region(mask=2 * votes >= len(by_reader), corner=corner),
        readers=len(by_reader),
        ratings={name: tuple(d.ratings[name] for d, _ in drawn if name in d.ratings) for name in names},
    )
