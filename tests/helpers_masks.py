"""Masks that were written, held against the images they are of: by SimpleITK in the patient, by highdicom by UID."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import SimpleITK as sitk
from helpers_predict import Bright, blob
from helpers_volume import (
    dice,
)
from pydicom.dataset import Dataset

from svd_hub import Predictor
from svd_hub.predict import Outputs, predict_files

BLOB, INSIDE = blob()
STORED = (BLOB + 1024).astype(np.uint16)
ABOVE = 500  # HU: what is brighter is the blob
SPACING = (2.5, 0.8, 0.7)


def run(path: Path, out: Path, model: Any = None, *, mask: str = "nii.gz", **options: Any) -> Path:
    """Predict one input; return the folder of its result."""
    want = Outputs(mask=mask, picture=False)
    (case,) = predict_files(Predictor(model or Bright(ABOVE)), [path], out, outputs=want, **options)
    assert case.state == "done", case.error
    return out / case.name


def bright(data: Dataset) -> np.ndarray:
    return data.pixel_array.astype(int) * int(data.RescaleSlope) + int(data.RescaleIntercept) > ABOVE


def check_mask(folder: Path, result: Path, exact: bool = True) -> None:
    """The written volume, asked for by SimpleITK where each pixel of each image lies in the patient."""
    mask = sitk.ReadImage(str(result / "mask.nii.gz"))
    found, truth = [], []
    for path in sorted(folder.rglob("*.dcm")):
        data = pydicom.dcmread(path)
        row, column = np.reshape(data.ImageOrientationPatient, (2, 3)).astype(float)
        origin = np.array(data.ImagePositionPatient, float)
        down, right = map(float, data.PixelSpacing)
        inside = bright(data)
        for y, x in np.ndindex(inside.shape):
            if y % 2 or inside[y, x]:
                point = origin + x * right * row + y * down * column
                index = mask.TransformPhysicalPointToIndex(point.tolist())
                there = all(0 <= i < n for i, n in zip(index, mask.GetSize(), strict=True))
                found.append(there and mask[index] == 1)
                truth.append(inside[y, x])
    assert sum(truth) > 50
    if exact:
        assert found == truth
    else:
        assert dice(np.array(found), np.array(truth)) > 0.85


def check_seg(folder: Path, result: Path, exact: bool = True) -> None:
    """The DICOM object, read by highdicom image by image, by the UIDs it refers to."""
    seg = highdicom.seg.segread(result / "mask.dcm")
    files = {str(data.SOPInstanceUID): data for data in map(pydicom.dcmread, sorted(folder.rglob("*.dcm")))}
    referred = [uid for _, _, uid in seg.get_source_image_uids()]
    assert set(referred) <= set(files)
    masks = seg.get_pixels_by_source_instance(referred, ignore_spatial_locations=True)
    assert masks.shape[-1] == 1
    found, truth = masks[..., 0] > 0, np.stack([bright(files[uid]) for uid in referred])
    assert truth.any()
    assert (found == truth).all() if exact else dice(found, truth) > 0.85
    one = next(iter(files.values()))
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert getattr(seg, name) == getattr(one, name)
    assert seg.SeriesInstanceUID != one.SeriesInstanceUID
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["blob"]
