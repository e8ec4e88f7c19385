"""The demo, as a stranger runs it: offline, on what packages bring and on NIfTI, DICOM and nodule folders."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pydicom
import pytest

import svd_hub
from svd_hub.errors import VolumeError

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAME, NUMBER, FOLDER = "Sentinelname^Anna", "SENTINEL-ID-4711", "sentinel-folder"

NO_SOCKETS = """
import sys
def refuse(event, args):
    if event.startswith("socket."):
        raise RuntimeError("the demo touched a socket: " + event)
sys.addaudithook(refuse)
"""
# One interpreter plays many cases: starting torch is what takes the time.
DRIVER = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
import demo
results = []
for case in json.loads(sys.argv[2]):
    sys.argv = ["demo.py", *case]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = demo.main()
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(results))
"""


def python(*args: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a Python process that cannot open a socket."""
    ban = folder / "ban"
    ban.mkdir()
    (ban / "sitecustomize.py").write_text(NO_SOCKETS)
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("SVD_HUB_", "HF_"))}
    env = {**keep, "PYTHONPATH": str(ban), "OMP_NUM_THREADS": "1", "SVD_HUB_HOME": str(folder / "home"), **variables}
    command = [sys.executable, *args]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def volume(seed: int = 0) -> np.ndarray:
    """A CT (D, H, W) in HU without any symmetry."""
    return np.random.default_rng(seed).integers(-1000, 1000, (5, 40, 48)).astype(np.int16)


def write_dicom(folder: Path, array: np.ndarray, *, series: str = "1.2.3.4", step: float = 2.5) -> Path:
    """Write one file a slice, from the head down, so that the order of names is not that of places."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, plane in enumerate(array):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = pydicom.uid.CTImageStorage
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = f"{series}.{index + 1}"
        one.PatientName, one.PatientID, one.SeriesInstanceUID, one.Modality = NAME, NUMBER, series, "CT"
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, step * index], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.SliceThickness = [0.8, 0.7], 2.5
        one.Rows, one.Columns, one.SamplesPerPixel, one.PhotometricInterpretation = *plane.shape, 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
        one.PixelData = (plane + 1024).astype("<u2").tobytes()
        one.save_as(folder / f"{series}_{len(array) - index:03d}.dcm", enforce_file_format=True)
    return folder


def write_nifti(path: Path, array: np.ndarray, axes: str = "LPS") -> Path:
    """Write (D, H, W) in DICOM's axes with the voxels stored along `axes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-0.7, -0.8, 2.5, 1.0])  # x to the left, y to the back: LPS
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), affine)
    now = nibabel.io_orientation(affine)
    image = image.as_reoriented(nibabel.orientations.ornt_transform(now, nibabel.orientations.axcodes2ornt(axes)))
    image.header["descrip"] = NAME.encode()
    nibabel.save(image, path)
    return path


def write_nodules(folder: Path, fold: int = 3) -> Path:
    """Six nodules whose volume separates the labels but for one pair of nine."""
    lines = ["name,patient_id,fold,label,Malignancy_value"]
    for index, (rating, label, size) in enumerate([(1, 0, 2), (2, 0, 3), (2, 0, 6), (4, 1, 5), (5, 1, 8), (5, 1, 9)]):
        lines.append(f"nodule_{index},patient_{index},{fold},{label},{rating}")
        mask = np.zeros((5, 40, 48), np.uint8)
        mask[0, 0, :size] = 1
        write_nifti(folder / "images" / f"nodule_{index}.nii.gz", volume(index))
        write_nifti(folder / "masks" / f"nodule_{index}.nii.gz", mask)
    (folder / "nodules.csv").write_text("\n".join(lines) + "\n")
    return folder


def classifier(folder: Path) -> dict[str, str]:
    """A stand-in for the malignancy classifier, in a catalogue overlay: the variables that switch it on."""
    model = svd_hub.load("resnet3d18w16_tinyimagenet", num_classes=2, depth_stride=2)
    (folder / "mirror").mkdir()
    file = svd_hub.save(model, folder / "mirror" / "standin.safetensors", classes=("benign", "malignant"))
    entry = f"""
        [entry.resnet3d18w16_lidc]
        summary = "stand-in"
        architecture = "resnet3d"
        options = {{ depth = 18, width = 16, num_classes = 2, stem_pool = false, depth_stride = 2 }}
        task = "classification"
        status = "ours"
        classes = ["benign", "malignant"]
        source = {{ kind = "folder", url = "https://example.invalid", file = "standin.safetensors", size = SIZE,
                   sha256 = "{hashlib.sha256(file.read_bytes()).hexdigest()}" }}
        preprocess = {{ modality = "CT", spacing = [1.0, 1.0, 1.0], window = [-1000.0, 400.0], scale = [0.0, 255.0],
                       size = [32, 32, 32], mean = 114.495, std = 57.63 }}
    """
    lines = [line.strip() for line in entry.replace("SIZE", str(file.stat().st_size)).splitlines()]
    text = "\n".join(lines).replace(",\n", ", ")  # an inline table is one line in TOML 1.0
    (folder / "overlay.toml").write_text(text)
    return {"SVD_HUB_CATALOG": str(folder / "overlay.toml"), "SVD_HUB_MIRROR": str(folder / "mirror")}


def check_picture(folder: Path) -> bytes:
    from PIL import Image

    there = {path.name for path in folder.iterdir()}
    assert there in ({"svd-hub.png"}, {"svd-hub.png", "predict"})  # nothing half-written beside it
    with Image.open(folder / "svd-hub.png") as image:
        assert image.width >= 1000
        assert np.asarray(image.convert("L")).std() > 10
        assert set(image.info) <= {"Software", "dpi"}
    content = (folder / "svd-hub.png").read_bytes()
    assert len(content) < 1_000_000
    return content


def test_default(tmp_path):
    done = python(str(EXAMPLES / "demo.py"), "--out", "out", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    entry = svd_hub.get_entry("resnet3d18w16_tinyimagenet")
    said = ["122 of 122 tensors", "120 of 120 tensors", f"{entry.source.sha256} (checked)", "2,104,216 parameters"]
    said += ["cat as 1 x 1 x 3 x 64 x 64", "espresso as 1 x 1 x 3 x 64 x 64", "1 x 512 x 512", "24 x 96 x 128"]
    said += ["1 x 128 x 2 x 6 x 8", str(Path("out") / "svd-hub.png"), "Research use. Not a medical device."]
    assert [part for part in said if part not in done.stdout] == []
    check_picture(tmp_path / "out")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Every other case, played once: name -> (exit code, stdout, stderr, folder of the picture)."""
    folder = tmp_path_factory.mktemp("demo")
    data = folder / FOLDER
    (data / "empty").mkdir(parents=True)
    (data / "text.nii.gz").write_text("no image\n")
    (data / "text.txt").write_text("no image\n")
    (data / "list").mkdir()
    (data / "list" / "nodules.csv").write_text("name;fold\na;3\n")
    whole = write_nifti(data / "ct.nii.gz", volume()).read_bytes()
    (data / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8, 2), np.int16), np.eye(4)), data / "4d.nii")
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8), np.int16), np.eye(4)), data / "flat.nii")
    header = nibabel.Nifti1Image(np.zeros((8, 8, 8), np.int16), np.eye(4)).to_bytes()
    huge = bytearray(header)
    huge[42:48] = np.array([32000] * 3, "<i2").tobytes()
    (data / "huge.nii").write_bytes(huge)
    write_dicom(data / "two", volume())
    write_dicom(data / "two", volume(), series="1.2.3.5")
    broken = write_dicom(data / "broken", volume()) / "1.2.3.4_001.dcm"
    broken.write_bytes(broken.read_bytes()[:-100])
    gap = write_dicom(data / "gap", volume())
    (gap / "1.2.3.4_003.dcm").unlink()
    good = {
        "nifti": data / "ct.nii.gz",
        "dicom": write_dicom(data / "dicom", volume()),
        "nodules": write_nodules(data / "nodules"),
    }
    bad = ["missing", "empty", "text.nii.gz", "text.txt", "list", "cut.nii.gz", "4d.nii", "flat.nii", "huge.nii"]
    bad += ["two", "broken", "gap", "other_fold"]
    write_nodules(data / "other_fold", fold=1)
    paths = {**good, **{name: data / name for name in bad}}
    arguments = [["--data", str(path), "--out", str(folder / "out" / name)] for name, path in paths.items()]
    done = python("-c", DRIVER, str(EXAMPLES), json.dumps(arguments), folder=folder, **classifier(folder))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    return {name: (*result, folder / "out" / name) for name, result in zip(paths, results, strict=True)}


@pytest.mark.parametrize("name", ["nifti", "dicom", "nodules"])
def test_data(cases, name):
    code, out, err, folder = cases[name]
    assert (code, err) == (0, "")
    if name == "nodules":
        assert "AUC over 6 labelled nodules: network 0." in out or "AUC over 6 labelled nodules: network 1." in out
        assert f"volume alone {8 / 9:.3f}" in out
        assert all(f"nodule_{index} " in out for index in range(6))
    else:
        assert "CT, 5 x 40 x 48 voxels of 2.5 x 0.8 x 0.7 mm" in out
        assert "1 x 16 x 3 x 20 x 24" in out
    content = check_picture(folder)
    for secret in (NAME, NAME.split("^")[0], NUMBER, FOLDER):
        assert secret.lower() not in out.replace(str(folder), "").lower()
        assert secret.lower().encode() not in content.lower()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing", "does not exist"), ("empty", "no DICOM image"), ("text.nii.gz", "cannot be read"),
        ("text.txt", "no DICOM image"), ("list", "cannot be read"), ("cut.nii.gz", "cannot be read"),
        ("4d.nii", "three axes"), ("flat.nii", "contrast"), ("huge.nii", "voxels"), ("two", "2 series (of 5, 5 "),
        ("broken", "cannot be read"), ("gap", "2.50 to 5.00 mm"), ("other_fold", "0 nodules of fold 3"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_paragraph(cases, name, told):
    code, out, err, folder = cases[name]
    assert code == 1
    assert err.startswith("demo: ")
    assert err.count("\n") == 1
    assert told in err
    assert "Next: " in err
    assert not folder.exists()
    for secret in (NAME.split("^")[0], NUMBER):
        assert secret.lower() not in (out + err).lower()


@pytest.fixture
def images(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import images

    return images


def test_dicom_slices_are_sorted_by_place_and_in_hu(images, tmp_path):
    scan = images.read_dicom(write_dicom(tmp_path / "a", volume()), "it")
    assert np.array_equal(scan.array, volume())
    assert scan.spacing == (2.5, 0.8, 0.7)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAL", "PIR"])
def test_nifti_is_turned_to_the_axes_of_dicom(images, tmp_path, axes):
    scan = images.read_nifti(write_nifti(tmp_path / "a.nii.gz", volume(), axes), "it")
    assert scan.modality == "CT"
    assert np.array_equal(scan.array, volume())
    assert scan.spacing == pytest.approx((2.5, 0.8, 0.7))


def test_compressed_dicom_names_what_to_install(images, monkeypatch):
    import pydicom.pixels

    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda syntax: SimpleNamespace(is_available=False))
    with pytest.raises(VolumeError, match=r"JPEG 2000.*pip install pylibjpeg"):
        images.bundled_scans()


def test_tilted_or_mixed_slices_are_refused(images, tmp_path):
    folder = write_dicom(tmp_path / "a", volume())
    one = pydicom.dcmread(folder / "1.2.3.4_001.dcm")
    one.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    one.save_as(folder / "1.2.3.4_001.dcm")
    with pytest.raises(VolumeError, match="2 directions"):
        images.read_dicom(folder, "it")
