"""People's data: words planted in headers, names and folders come out nowhere but in the DICOM objects.

All three tasks run as a user runs them, on inputs that are good and on inputs that fail, and every byte that is written
or printed is searched: files, what is packed in them, PNG chunks, the terminal.
"""

from __future__ import annotations

import gzip
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from helpers_predict import blob, detector, saved, segmenter, start
from helpers_volume import compress, make_series, save
from pydicom.dataset import Dataset

HU = np.random.default_rng(0).integers(-150, 250, (12, 64, 64)).astype(np.int16)
HU[2:8, 20:40, 10:50] = 900
# Each is its own word, so that a failure says what leaked.
HEADER = ("NAMESENTINEL", "IDSENTINEL", "WARDSENTINEL", "SERIESSENTINEL", "STUDYSENTINEL", "DOCTORSENTINEL",
          "PRIVATESENTINEL", "NOTESENTINEL", "19310203", "ACCSENTINEL")  # fmt: skip
PLACES = ("DIRSENTINEL", "FILESENTINEL")
UIDS = ("1.2.826.0.1.777.1", "1.2.826.0.1.777.2", "1.2.826.0.1.777.3")


def planted(data: Dataset, k: int) -> None:
    data.PatientName, data.PatientID, data.PatientBirthDate = "NAMESENTINEL^ANNA", "IDSENTINEL", "19310203"
    data.InstitutionName, data.SeriesDescription, data.StudyDescription = HEADER[2:5]
    data.ReferringPhysicianName, data.AccessionNumber = "DOCTORSENTINEL", "ACCSENTINEL"
    data.PatientComments = data.ImageComments = "NOTESENTINEL"
    data.StudyInstanceUID, data.SeriesInstanceUID = UIDS[:2]
    data.SOPInstanceUID = f"{UIDS[2]}.{k + 1}"
    block = data.private_block(0x0051, "PRIVATESENTINEL", create=True)
    block.add_new(1, "LO", "PRIVATESENTINEL")


def series(folder: Path, **more: object) -> Path:
    make_series(folder, (HU + 1024).astype(np.uint16), edit=planted, **more)
    for k, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"FILESENTINEL_{k}.dcm")
    return folder


def good(root: Path) -> list[Path]:
    """Inputs that are read: DICOM plain and packed, NIfTI, NRRD, MetaImage, each with words where there is room."""
    packed = series(root / "packed")
    for path in packed.iterdir():
        compress(path, "JPEG2000")
    nifti = nibabel.Nifti1Image(HU.transpose(2, 1, 0).copy(), np.diag([-1.0, -1.0, 2.5, 1.0]))
    header = nifti.header
    header["descrip"], header["aux_file"] = b"NAMESENTINEL IDSENTINEL", b"NOTESENTINEL"
    header["intent_name"], header["db_name"] = b"WARDSENTINEL", b"IDSENTINEL"
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"NAMESENTINEL"))
    nibabel.save(nifti, root / "FILESENTINEL.nii.gz")
    image = sitk.GetImageFromArray(HU + 1)
    image.SetSpacing((1, 1, 2.5))
    for word in HEADER:
        image.SetMetaData(f"key_{word}", word)
    sitk.WriteImage(image, str(root / "FILESENTINEL.nrrd"))
    assert b"NAMESENTINEL" in (root / "FILESENTINEL.nrrd").read_bytes()
    sitk.WriteImage(image + 1, str(root / "FILESENTINEL.mha"))
    raw = (root / "FILESENTINEL.mha").read_bytes()
    (root / "FILESENTINEL.mha").write_bytes(b"Comment = NAMESENTINEL\n" + raw)
    return [series(root / "plain"), packed, *(root / f"FILESENTINEL.{end}" for end in ("nii.gz", "nrrd", "mha"))]


def bad(root: Path) -> list[Path]:
    """Inputs that fail in as many ways as can be thought of."""
    found = [series(root / kind) for kind in ("patients", "gap", "mr", "broken", "dates", "two series", "constant")]
    made = dict(zip(("patients", "gap", "mr", "broken", "dates", "two series", "constant"), found, strict=True))

    def each(kind: str) -> Iterator[tuple[int, Path, Dataset]]:
        for k, path in enumerate(sorted(made[kind].iterdir())):
            yield k, path, pydicom.dcmread(path)

    for k, path, data in each("patients"):
        data.PatientID = f"IDSENTINEL{k % 2}"
        save(data, path)
    (made["gap"] / "FILESENTINEL_3.dcm").unlink()
    (made["gap"] / "FILESENTINEL_7.dcm").unlink()
    for _, path, data in each("mr"):
        data.Modality = "MR"
        save(data, path)
    for _, path, data in each("dates"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data.SOPInstanceUID, data.StudyDate = "", "NOTESENTINEL"
        save(data, path)
    for k, path, data in each("two series"):
        data.SeriesInstanceUID = f"{UIDS[1]}.{k % 2}"
        save(data, path)
    for _, path, data in each("constant"):
        data.PixelData = bytes(len(data.PixelData))
        save(data, path)
    whole = (made["broken"] / "FILESENTINEL_0.dcm").read_bytes()
    at = whole.index(b"NAMESENTINEL") - 2
    (made["broken"] / "FILESENTINEL_0.dcm").write_bytes(whole[:at] + b"\xff\xff" + whole[at + 2 :])
    cut = root / "FILESENTINEL cut.nii.gz"
    cut.write_bytes(gzip.compress(b"NAMESENTINEL" * 1000))
    (root / "FILESENTINEL.txt").write_text("NAMESENTINEL")
    (root / "FILESENTINEL.nhdr").write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 4\nencoding: raw\nendian: little\n"
        "NAME:=NAMESENTINEL\ndata file: ../DIRSENTINEL/FILESENTINEL.raw\n"
    )
    (root / "DIRSENTINEL empty").mkdir()
    (root / "DIRSENTINEL empty" / "FILESENTINEL.txt").write_text("x")
    (root / "FILESENTINEL.png").write_bytes(b"\x89PNG\r\n\x1a\nNAMESENTINEL")
    return [*found, cut, *(root / f"FILESENTINEL.{end}" for end in ("txt", "nhdr", "png")), root / "DIRSENTINEL empty"]


def contents(path: Path) -> bytes:
    """The bytes of a file, and of what is packed in it; a PNG has no chunks but the picture's own."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        assert raw[3] == 0, "a name or a comment in the gzip header"
        return raw + gzip.decompress(raw)
    if path.suffix == ".png":
        at, kinds, packed = 8, set(), b""
        while at < len(raw):
            (length,) = struct.unpack_from(">I", raw, at)
            kind = raw[at + 4 : at + 8]
            kinds.add(kind)
            packed += raw[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
            at += 12 + length
        assert kinds == {b"IHDR", b"IDAT", b"IEND"}
        return raw + zlib.decompress(packed)
    return raw


def forms(word: str) -> Iterator[bytes]:
    for text in (word, word.lower(), word.title()):
        yield text.encode()
        yield text.encode("utf-16-le")


def check_written(out: Path, objects: set[str]) -> None:
    seen = set()
    for path in out.rglob("*"):
        assert not any(word in str(path.relative_to(out)) for word in (*HEADER, *PLACES)), path
        if path.is_dir():
            continue
        seen.add(path.name)
        content = contents(path)
        words = PLACES if path.suffix == ".dcm" else (*HEADER, *PLACES, *UIDS)
        for word in words:
            assert not any(form in content for form in forms(word)), f"{word} in {path.name}"
        assert str(out.parent).encode() not in content, f"a path in {path.name}"
        if path.suffix == ".dcm":
            data = pydicom.dcmread(path)
            assert (data.PatientID, data.StudyInstanceUID) == ("IDSENTINEL", UIDS[0]), "it belongs to its study"
    assert seen == {"run.json", "results.csv", "result.json", "key.json", "picture.png", *objects}


def check_printed(printed: str, typed: list[Path]) -> None:
    """What was typed may be there, as it was typed."""
    for path in sorted(typed, key=lambda p: -len(str(p))):
        printed = printed.replace(str(path), "")
    for word in (*HEADER, *PLACES, UIDS[0], UIDS[2]):
        assert not any(form.decode("latin-1") in printed for form in forms(word)), f"{word} in {printed}"


@pytest.mark.parametrize(
    ("task", "objects"),
    [("segmentation", {"mask.nii.gz", "mask.dcm"}), ("detection", {"findings.csv", "findings.dcm"}),
     ("classification", set())],
)  # fmt: skip
def test_nothing_of_a_person_comes_out(tmp_path: Path, task: str, objects: set[str]) -> None:
    root = tmp_path / "DIRSENTINEL"
    root.mkdir()
    entry: object = "resnet3d18w16_lidc"
    if task == "segmentation":
        entry = saved(segmenter(), tmp_path / "net.safetensors")
    elif task == "detection":
        entry = saved(detector(), tmp_path / "net.safetensors")
    read, failing = good(root), bad(root)
    out = tmp_path / "out"
    more = ["--key-slice", "5", "--least-score", "0", "--most", "3"] if task == "detection" else []
    process = start("predict", entry, *read, *failing, "--out", out, *more)
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 1, errors
    failed = errors.count(": failed: ")
    assert (printed.count(" -> "), failed) == (len(read) + 1, len(failing) - 1), errors  # "dates" is read all the same
    assert "fault of svd-hub" not in errors
    check_printed(printed + errors, [*read, *failing])
    check_written(out, objects)


def test_messages_of_the_whole_command_name_what_was_typed_alone(tmp_path: Path) -> None:
    """Refused before anything is read: an input that is not there, results inside an input."""
    folder = series(tmp_path / "DIRSENTINEL" / "a")
    for typed in (["--out", tmp_path / "out", tmp_path / "DIRSENTINEL" / "gone"], ["--out", folder, folder]):
        process = start("predict", "resnet3d18w16_lidc", *typed)
        printed, errors = process.communicate(timeout=100)
        assert process.returncode == 1
        check_printed(printed + errors, [path for path in typed if isinstance(path, Path)])


def test_names_only_where_one_asks(tmp_path: Path) -> None:
    from helpers_predict import command

    image = sitk.GetImageFromArray(blob()[0])
    (tmp_path / "in").mkdir()
    sitk.WriteImage(image, str(tmp_path / "in" / "FILESENTINEL.nii.gz"))
    net = saved(segmenter(), tmp_path / "net.safetensors")
    command("predict", net, tmp_path / "in", "--out", tmp_path / "plain", "--no-picture")
    command("predict", net, tmp_path / "in", "--out", tmp_path / "named", "--no-picture", "--names")
    assert not any("SENTINEL" in path.name for path in (tmp_path / "plain").rglob("*"))
    assert not any(b"SENTINEL" in contents(path) for path in (tmp_path / "plain").rglob("*") if path.is_file())
    assert next((tmp_path / "named").glob("FILESENTINEL-own-*/mask.nii.gz")).exists()
    for path in (tmp_path / "named").rglob("*.*"):
        told = path.is_file() and b"FILESENTINEL" in path.read_bytes()
        assert told == (path.name in ("run.json", "results.csv")), path.name
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes(), path.name
