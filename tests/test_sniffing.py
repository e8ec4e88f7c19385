"""Laws of svd_hub.sniffing: content decides, and what is no checkpoint is named."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from helpers_checkpoint import same, torch_save, weights
from safetensors.torch import save_file
from torch import nn

from svd_hub import checkpoint, sniffing
from svd_hub.errors import CheckpointError

torch.set_num_threads(1)


def tar_bytes() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return stream.getvalue()


def zip_bytes(names: tuple[str, ...] = ("a.txt",)) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, "abc" * 50)
    return stream.getvalue()


FOREIGN = {
    "html": b"<!DOCTYPE html><html>Google Drive - Quota exceeded</html>",
    "html with a mark": b"\xef\xbb\xbf\r\n  <!doctype html><html></html>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 133\n",
    "empty": b"",
    "gzip": gzip.compress(b"abc"),
    "tar": tar_bytes(),
    "archive": zip_bytes(),
    "archive with a deep pickle": zip_bytes(("a/b/data.pkl",)),
    "truncated zip": zip_bytes()[:60],
    "truncated safetensors": (500).to_bytes(8, "little") + b'{"a":{"dtype":"F32"',
    "torchscript": zip_bytes(("net/data.pkl", "net/constants.pkl")),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "tensorflow": bytes(range(90)) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
    "text": b'{"error": "Repository not found"}\n',
    "text in utf-8": ("é" * 600).encode(),
    "unknown": random.Random(0).randbytes(3000),
}
KIND_OF = {name: name for name in sniffing.REFUSED} | {
    "html with a mark": "html",
    "archive with a deep pickle": "archive",
    "truncated zip": "truncated",
    "truncated safetensors": "truncated",
    "text in utf-8": "text",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_checkpoint_is_named_and_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(FOREIGN[name])
    kind = KIND_OF[name]
    assert sniffing.sniff(path) == kind
    with pytest.raises(CheckpointError, match="Next: ") as caught:
        checkpoint.read(path)
    assert sniffing.REFUSED[kind][0] in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_refused_kind_has_an_example() -> None:
    assert {KIND_OF[name] for name in FOREIGN} == set(sniffing.REFUSED)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.html", "a"])
def test_content_decides_not_the_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for kind in ("safetensors", "zip", "pickle"):
        if kind == "safetensors":
            save_file(weights(), path)
        else:
            torch_save(weights(), path, legacy=kind == "pickle")
        assert sniffing.sniff(path) == kind
        got = checkpoint.read(path)
        assert got.kind == kind
        assert same(got.tensors, weights())
        path.unlink()


def test_a_real_torchscript_file_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    assert sniffing.sniff(path) == "torchscript"


@pytest.mark.parametrize("path", ["missing.pth", "."])
def test_what_cannot_be_opened_says_so(path: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(tmp_path / path)
