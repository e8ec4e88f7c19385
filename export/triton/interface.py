"""What the model in front of a network takes and returns, by task: names, types, shapes. No torch, no numpy."""

from __future__ import annotations

from dataclasses import dataclass

VOLUME, PICTURE = "volume", "picture"
RESULT = "result"
RECORD = "record.json"  # beside model.py: the rules that belong to the weights
# Types as requests spell them; Triton's configuration puts TYPE_ before each.
HU, REAL = "INT16", "FP32"


@dataclass(frozen=True)
class Port:
    """One input or output.

    Attributes:
        name, dtype, dims: -1 is any length.
        says: what it is, in a line.
        optional: of inputs.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    says: str
    optional: bool = False


def inputs(task: str, modality: str) -> tuple[Port, ...]:
    """Return what it takes.

    Args:
        task: one of `predict.checks.TASKS`.
        modality: "CT" (HU in 16 bits), "MR", or "RGB".
    """
    if modality == "RGB":
        return (Port(PICTURE, "UINT8", (-1, -1, 3), "the picture, rows, columns, R G B of 0 to 255"),)
    kind = HU if modality == "CT" else REAL
    what = "HU" if modality == "CT" else "the image's own values"
    found = [
        Port(VOLUME, kind, (-1, -1, -1), f"{what}; axes z, y, x, as SimpleITK's array of an image has them"),
        Port("spacing", "FP64", (3,), "mm from voxel to voxel along z, y, x"),
        Port("direction", "FP64", (9,), "as SimpleITK has it; left out: a straight DICOM series", optional=True),
        Port("origin", "FP64", (3,), "mm of the first voxel, x, y, z; left out: zeros", optional=True),
    ]
    if task == "classification":
        found.append(Port("point", "FP64", (3,), "mm x, y, z to cut about; left out: the middle", optional=True))
    if task == "detection":
        found += [
            Port("planes", "INT32", (-1,), "key slices, 0 the lowest; left out: by the entry's spacing", optional=True),
            Port("least_score", "FP64", (1,), "findings below it are left out; left out: 0.1", optional=True),
        ]
    return tuple(found)


def outputs(task: str, modality: str, classes: int) -> tuple[Port, ...]:
    """Return what it gives; `result` is what `svd-hub predict` writes into result.json.

    Args:
        task: see `inputs`.
        modality: see `inputs`.
        classes: how many labels there are.
    """
    result = Port(RESULT, "UINT8", (-1,), "JSON in UTF-8: classes, sizes, places in mm, notes; nothing of a patient")
    if task == "classification":
        return (Port("probabilities", "FP32", (classes,), "one a class, in the order of labels.txt"), result)
    if task == "segmentation":
        kind = "UINT8" if classes <= 256 else "UINT16"
        return (Port("mask", kind, (-1, -1, -1), "labels on the input's own voxels, names in labels.txt"), result)
    found = [
        Port("boxes", "FP32", (-1, 4), "x0, y0, x1, y1 in pixels of the input's slices, the surest first"),
        Port("scores", "FP32", (-1,), "of the boxes"),
        Port("labels", "INT32", (-1,), "of the boxes, names in labels.txt"),
    ]
    if modality != "RGB":
        found.append(Port("slices", "INT32", (-1, 3), "of each box: its slice, the first and the last of the finding"))
    return (*found, result)
