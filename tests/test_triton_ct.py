"""Real CT, whole, through a real Triton server, among fifty pieces and twenty wrong requests: what predict gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from helpers_predict import command
from helpers_triton import need_server
from real_data import need

from svd_hub.export.triton import serve_check
from svd_hub.export.triton.server import HOST, running

pytestmark = [pytest.mark.slow, pytest.mark.tools]
ENTRY = "unet3d18w16_ctorgans"
CLIENT = Path(__file__).resolve().parents[1] / "examples" / "triton_client.py"
SAME = 1e-6  # of the voxels; where two logits are a rounding apart, torch and ONNX Runtime may choose differently


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_server()
    folder = tmp_path_factory.mktemp("triton") / "models"
    assert command("export", ENTRY, "--to", "triton", "--out", folder)[0] == 0
    return folder


def abdomen() -> Path:
    """A whole abdomen at 3 mm, a file whose axes are not the network's."""
    return need("ct_organ_seg") / "ts_abdomen_3mm" / "ct.nii.gz"


def slices() -> Path:
    """Another person: twenty DICOM slices of 512 x 512."""
    return need("ct_organ_seg") / "ts_dicom_20slices" / "dicom"


def as_file(series: Path, path: Path) -> Path:
    """A DICOM series as one file, which the example reads."""
    sitk.WriteImage(sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series))), str(path))
    return path


def test_the_client_example_gets_what_predict_writes(repository: Path, tmp_path: Path) -> None:
    with running([repository], need_server()) as server:
        for number, volume in enumerate((abdomen(), as_file(slices(), tmp_path / "slices.nii.gz"))):
            out, mask = tmp_path / f"out{number}", tmp_path / f"mask{number}.nii.gz"
            code, _, errors = command("predict", ENTRY, volume, "--out", out, "--no-picture", "--no-dicom")
            assert code == 0, errors
            line = [sys.executable, str(CLIENT), str(volume), str(mask), f"{HOST}:{server.http}"]
            done = subprocess.run(line, env=os.environ, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            (folder,) = (path for path in out.iterdir() if path.is_dir())
            found, wanted = (sitk.ReadImage(str(path)) for path in (mask, folder / "mask.nii.gz"))
            for place in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
                np.testing.assert_allclose(getattr(found, place)(), getattr(wanted, place)(), atol=1e-5)
            a, b = sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(wanted)
            assert len(np.unique(b)) > 2, "there is no liver and no spleen: the comparison would say little"
            assert (a != b).mean() <= SAME


def test_with_fifty_pieces_and_twenty_wrong_requests(repository: Path) -> None:
    report = serve_check(repository, volumes=[abdomen(), slices()], requests=50)
    assert report.passed, "\n".join(report.lines())
    assert report.reference == "the network in torch"
    assert report.piece == (1, 1, 48, 48, 48)
    together = report.together
    assert (together.pieces, together.right, together.wrong) == (50, 50, ())
    assert len(together.refusals) == 20
    assert {one.kind for one in together.refusals} == {"shape", "dtype", "name", "NaN", "size"}
    assert {(one.protocol, one.status) for one in together.refusals} == {("http", "400"), ("grpc", "INVALID_ARGUMENT")}
    assert all(one.reason for one in together.refusals)
    assert together.alive
    for case in (*report.images, *together.images):
        differing, of = (int(word.replace(",", "")) for word in case.says.split() if word[0].isdigit())
        assert differing <= SAME * of, case.says
    assert len(report.images) == 4
    assert len(together.images) == 2
