"""Compressed DICOM frames: what is not as the header says is not unpacked, and a crash of the worker is an error."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.data
import pytest
from helpers_volume import (
    HU,
    IDENTITY,
    NAME,
    PLACE,
    STORED,
    compress,
    image,
    make_series,
    save,
)

from svd_hub.errors import VolumeError
from svd_hub.volume import codec, read
from svd_hub.volume.dicom import read_header


def test_a_compressed_frame_of_another_size_is_not_unpacked(tmp_path: Path) -> None:
    big = image(np.zeros((3000, 3000), np.uint16) + np.arange(3000, dtype=np.uint16))
    for kind in ("JPEG", "JPEG2000"):
        folder = tmp_path / kind
        compress(save(big, folder / "big.dcm"), kind)
        data = pydicom.dcmread(folder / "big.dcm")
        (folder / "big.dcm").unlink()
        data.Rows = data.Columns = 16
        for k in range(2):
            data.ImagePositionPatient, data.SOPInstanceUID = [0, 0, k], f"1.2.{k + 1}"
            save(data, folder / f"{k}.dcm")
        with pytest.raises(VolumeError, match=r"image 1: its compressed pixels are 3000 x 3000.*says 16 x 16"):
            read(folder)


def test_an_unknown_compression_is_named(tmp_path: Path) -> None:
    for path in make_series(tmp_path, STORED):
        compress(path, "JPEG2000")
        data = pydicom.dcmread(path)
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
        save(data, path)
    with pytest.raises(VolumeError, match=r"High-Throughput JPEG 2000.*not supported; allowed: JPEG baseline.*Next"):
        read(tmp_path)


def packed_series(folder: Path) -> None:
    for path in make_series(folder, STORED):
        compress(path, "JPEG")


def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put another program in the worker's place."""
    (tmp_path / "codec_worker.py").write_text(body)
    monkeypatch.setattr(codec, "__file__", str(tmp_path / "codec.py"))


def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    "body",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "import sys; sys.stdin.buffer.read(8); sys.stdout.buffer.write(bytes([1]) * 10)",
        "import time; time.sleep(60)",
        "import sys; sys.stdin.buffer.read(8); sys.stdout.buffer.write(bytes(1)); sys.stdout.flush()",
    ],
    ids=["crash", "half an answer", "hang", "refusal"],
)
def test_what_happens_to_the_worker_is_an_error_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    packed_series(tmp_path / "series")
    temporary = temporary_folder(tmp_path, monkeypatch)
    worker(tmp_path, monkeypatch, body)
    monkeypatch.setattr(codec, "SECONDS", 1.0)
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def noted(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(real(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    with pytest.raises(VolumeError, match=r"image 1: its compressed pixels are damaged\. Next"):
        read(tmp_path / "series")
    assert len(started) == 1
    assert started[0].poll() is not None, "a worker was left behind"
    assert not list(temporary.iterdir()), "a patient's pixels were left behind"


def test_no_pixel_outlives_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed_series(tmp_path / "series")
    temporary = temporary_folder(tmp_path, monkeypatch)
    layout = codec_layout(next((tmp_path / "series").iterdir()))
    with codec.Decoder() as decoder:
        for _ in range(2):
            assert (decoder.decode(layout, 0) == STORED).all(axis=(1, 2)).any()
            (folder,) = temporary.iterdir()
            assert folder.stat().st_mode & 0o077 == 0
            assert not list(folder.iterdir()), "what would be left if this process were killed now"
    assert not list(temporary.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from svd_hub.volume import codec
from svd_hub.volume.dicom import read_header
layout = read_header(Path(sys.argv[1])).planes[0].layout
decoder = codec.Decoder()
decoder.decode(layout, 0)
decoder._put(b"a patient's pixels")
print(sorted(path.name for path in Path(os.environ["TMPDIR"]).rglob("*.dcm")), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_no_pixel(tmp_path: Path) -> None:
    packed_series(tmp_path / "series")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    line = [sys.executable, "-c", KILLED, str(next((tmp_path / "series").iterdir()))]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "['frame.dcm']\n"), done.stderr
    end = time.monotonic() + 30
    while list(temporary.iterdir()) and time.monotonic() < end:
        time.sleep(0.02)
    assert not list(temporary.iterdir())


def test_a_full_disk_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed_series(tmp_path / "series")
    temporary = temporary_folder(tmp_path, monkeypatch)
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if temporary in path.parents:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(VolumeError, match=r"image 1: .*not unpacked.*\(No space left on device\)\. Next: .*TMPDIR"):
        read(tmp_path / "series")
    assert not list(temporary.iterdir())


def test_no_worker_runs_for_plain_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_series(tmp_path, STORED)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert (read(tmp_path).array == HU).all()


def test_the_frame_that_goes_to_the_worker_holds_nothing_of_the_patient(tmp_path: Path) -> None:
    packed_series(tmp_path)
    path = next(tmp_path.iterdir())
    layout = codec_layout(path)
    wrapped = codec.wrapped(codec.frames_of(layout)[0], layout)
    for word in (NAME, IDENTITY, PLACE):
        assert word.encode() in path.read_bytes()
        assert word.encode() not in wrapped
    made = pydicom.dcmread(pydicom.filebase.DicomBytesIO(wrapped))
    assert made.file_meta.TransferSyntaxUID == layout.syntax
    assert (made.Rows, made.Columns) == (20, 24)


def codec_layout(path: Path) -> Any:

    header = read_header(path)
    assert header is not None
    return header.planes[0].layout


def test_jpeg_sizes_are_read_behind_other_segments() -> None:
    start = b"\xff\xc3\x00\x0b\x10\x00\x14\x00\x18\x01\x01\x11\x00"  # of a lossless frame: 20 rows, 24 columns
    frame = b"\xff\xd8" + b"\xff\xe0\x00\x08JFIF\0\0" + b"\xff" + start + bytes(9)
    assert codec._jpeg_size(frame) == (20, 24, 1)
    for cut in (0, 1, 5, 12, 15):
        assert codec._jpeg_size(frame[:cut]) is None
    assert codec._jpeg_size(b"\xff\xd8" + b"\xff\xe0\x00\x00" * 1000) is None
