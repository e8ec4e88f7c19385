"""From real files to results: CT of other people, the bundled networks, and every file that comes out."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from helpers_predict import Bright, detector, saved
from helpers_volume import dice, read_by_itk

from svd_hub import Predictor
from svd_hub.predict import Outputs, find_inputs, predict_files
from svd_hub.volume import read

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ORGANS, LUNG, NODULES = DATA / "ct_organ_seg", DATA / "lung_petct_dx", DATA / "lidc_nodules"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(p.is_dir() for p in (ORGANS, LUNG, NODULES)), reason="no real data"),
]
SEGMENTER = "unet3d18w16_ctorgans"
NAMES = {"liver": "liver", "spleen": "spleen", "kidneys": "kidney"}


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(SEGMENTER)


def truth(case: str, organ: str, like: sitk.Image) -> np.ndarray:
    """The drawn mask of an organ, at the voxels of an image, wherever its own file has them."""
    file = next(ORGANS.joinpath(case).glob("*seg*"), ORGANS / "none")
    table = json.loads((ORGANS / "labels.json").read_text())[case]
    labels = [int(k) for k, one in table.items() if NAMES[organ] in one["name"]]
    drawn = sitk.ReadImage(str(file))
    there = sitk.Resample(drawn, like, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    return np.isin(sitk.GetArrayFromImage(there), labels)


def by_uid(folder: Path) -> dict[str, pydicom.Dataset]:
    """The headers of a folder; where the anonymiser emptied the UID, that of the file's own header counts."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in folder.iterdir()]
    return {data.SOPInstanceUID or data.file_meta.MediaStorageSOPInstanceUID: data for data in headers}


def run(predictor: Predictor, place: Path, out: Path, **options: Any) -> Path:
    (case,) = predict_files(predictor, [place], out, **options)
    assert case.state == "done", case.error
    return out / case.name


@pytest.mark.parametrize(
    ("case", "floors"),
    [
        ("ts_abdomen_3mm", {"liver": 0.95, "spleen": 0.93, "kidneys": 0.93}),  # the patient that trained it
        ("ts_dicom_20slices", {"liver": 0.80, "spleen": 0.80}),
    ],
)
def test_organs_are_where_they_were_drawn(tmp_path: Path, predictor: Predictor, case: str, floors: Any) -> None:
    place = ORGANS / case / "dicom" if case == "ts_dicom_20slices" else ORGANS / case / "ct.nii.gz"
    result = run(predictor, place, tmp_path)
    mask = sitk.ReadImage(str(result / "mask.nii.gz"))
    found = sitk.GetArrayFromImage(mask)
    facts = json.loads((result / "result.json").read_text())
    labels = {row["name"]: row["label"] for row in facts["classes"]}
    for organ, floor in floors.items():
        assert dice(found == labels[organ], truth(case, organ, mask)) >= floor, organ
    assert (result / "picture.png").stat().st_size > 100_000


def test_the_mask_lies_on_the_input_of_nibabel(tmp_path: Path, predictor: Predictor) -> None:
    for name in ("ts_abdomen_3mm", "ts_aorta_1p5mm", "ts_pulmonary_1p5mm"):
        source = nibabel.load(ORGANS / name / "ct.nii.gz")
        mask = nibabel.load(run(predictor, ORGANS / name / "ct.nii.gz", tmp_path) / "mask.nii.gz")
        assert mask.shape == source.shape
        assert np.allclose(mask.affine, source.affine, atol=1e-4)


@pytest.mark.parametrize(
    "folder", [ORGANS / "ts_dicom_20slices" / "dicom", LUNG / "dicom_A0002_s3"], ids=lambda p: p.name
)
def test_dicom_and_nifti_of_one_series_give_one_result(tmp_path: Path, predictor: Predictor, folder: Path) -> None:
    sitk.WriteImage(read_by_itk(folder), str(tmp_path / "ct.nii.gz"))
    one = run(predictor, folder, tmp_path / "out")
    other = run(predictor, tmp_path / "ct.nii.gz", tmp_path / "out")
    masks = [sitk.ReadImage(str(result / "mask.nii.gz")) for result in (one, other)]
    arrays = [sitk.GetArrayFromImage(mask) for mask in masks]
    assert (arrays[0] == arrays[1]).all()
    assert np.allclose(masks[0].GetOrigin(), masks[1].GetOrigin(), atol=1e-3)
    assert not (other / "mask.dcm").exists()
    if not arrays[0].any():
        assert "no mask.dcm: no voxel has a class" in (one / "result.json").read_text()
        return
    seg = highdicom.seg.segread(one / "mask.dcm")
    headers = by_uid(folder)
    uids = [uid for _, _, uid in seg.get_source_image_uids()]
    frames = seg.get_pixels_by_source_instance(uids, ignore_spatial_locations=True, combine_segments=True)
    places = {uid: np.array(headers[uid].ImagePositionPatient, float) for uid in uids}
    assert seg.PatientID == next(iter(headers.values())).PatientID
    used = [item.SegmentLabel for item in seg.SegmentSequence]
    labels = [1 + ["liver", "spleen", "kidneys"].index(name) for name in used]
    for uid, frame in zip(uids, frames, strict=True):
        z = masks[0].TransformPhysicalPointToIndex(places[uid].tolist())[2]
        assert (np.array([0, *labels])[frame] == arrays[0][z]).all()


def test_lungs_of_others_are_run(tmp_path: Path, predictor: Predictor) -> None:
    """No organ of these was drawn: the way is tried, and what comes out lies on the input."""
    inputs = sorted(LUNG.glob("*.nii.gz"))
    for case in predict_files(predictor, inputs, tmp_path, outputs=Outputs(mask="nrrd")):
        assert case.state == "done", case.error
        source, mask = sitk.ReadImage(str(case.path)), sitk.ReadImage(str(tmp_path / case.name / "mask.nrrd"))
        assert mask.GetSize() == source.GetSize()
        assert np.allclose(mask.GetDirection(), source.GetDirection(), atol=1e-5)


@pytest.mark.parametrize(
    ("case", "spacing", "floor"),
    [
        ("ts_abdomen_3mm", (3.0, 3.0, 3.0), 1.0),
        ("ts_abdomen_3mm", (2.0, 2.5, 1.5), 0.99),
        ("ts_dicom_20slices", (2.0, 1.5, 1.5), 0.99),
        ("ts_dicom_20slices", (3.0, 3.0, 3.0), 0.98),  # 40 mm of a liver in 13 planes
    ],
)
def test_a_drawn_liver_goes_through_the_networks_grid_and_back(
    case: str, spacing: tuple[float, float, float], floor: float
) -> None:
    """The way of every mask, with a network that makes no mistake: the volume is the drawn liver."""
    place = ORGANS / case / "dicom" if case == "ts_dicom_20slices" else ORGANS / case / "ct.nii.gz"
    volume = read(place, modality="CT")
    image = volume.undo_image(volume.array)
    liver = truth(case, "liver", image)
    drawn = sitk.GetImageFromArray((liver * 2000 - 1000).astype(np.int16))
    drawn.CopyInformation(image)
    found = Predictor(Bright(0.0, spacing=spacing, orientation="RAS"))(drawn)
    assert liver.sum() > 10_000
    assert dice(sitk.GetArrayFromImage(found.image) == 1, liver) >= floor


def test_nodules_are_classified() -> None:
    """Crops of LIDC about 30 mm wide: padded, and said; the probabilities are the network's."""
    predictor = Predictor("resnet3d18w16_lidc")
    with (NODULES / "nodules.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["label"] in "01"][:40]
    shares: dict[str, list[float]] = {"0": [], "1": []}
    for row in rows:
        path = NODULES / "images" / f"{row['name']}.nii.gz"
        result = predictor(path)
        assert sum(result.probabilities) == pytest.approx(1.0)
        image = sitk.ReadImage(str(path))
        mm = [n * s for n, s in zip(image.GetSize(), image.GetSpacing(), strict=True)]
        assert any("padded with" in note for note in result.notes) == (min(mm) < 31.5)
        x = predictor.preprocess(image)
        with torch.inference_mode():
            odds = predictor.model(x)[0].softmax(0)
        assert result.probabilities == pytest.approx(odds.tolist(), abs=1e-5)
        shares[row["label"]].append(result.probabilities[1])
    assert np.mean(shares["1"]) > np.mean(shares["0"]), "malignant ones look more malignant"


def test_a_detector_runs_on_real_slices(tmp_path: Path) -> None:
    """A random one: its boxes mean nothing, and lie on the images they name."""
    predictor = Predictor(saved(detector(), tmp_path / "net.safetensors"))
    folder = ORGANS / "ts_dicom_20slices" / "dicom"
    result = run(predictor, folder, tmp_path / "out", planes=[5, 10], least_score=0.0, most=5)
    facts = json.loads((result / "result.json").read_text())
    assert len(facts["findings"]) == 5
    for row in facts["findings"]:
        x0, y0, x1, y1 = row["box_px"]
        assert 0 <= x0 < x1 <= 512
        assert 0 <= y0 < y1 <= 512
    document = highdicom.sr.srread(result / "findings.dcm")
    groups = document.content.get_planar_roi_measurement_groups()
    for group, row in zip(groups, facts["findings"], strict=True):
        assert group.roi.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID in by_uid(folder)
        ring = group.roi.value
        assert np.allclose([*ring.min(0), *ring.max(0)], row["box_px"], atol=1e-2)


def test_folders_as_they_are(tmp_path: Path, predictor: Predictor) -> None:
    assert find_inputs([ORGANS / "ts_dicom_20slices" / "dicom"]) == [ORGANS / "ts_dicom_20slices" / "dicom"]
    result = run(predictor, ORGANS / "dcmqi_liver_3slices" / "ct_01.dcm", tmp_path, outputs=Outputs())
    mask = sitk.ReadImage(str(result / "mask.nii.gz"))
    assert mask.GetSize() == (512, 512, 3)
