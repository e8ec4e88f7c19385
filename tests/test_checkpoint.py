"""Laws of svd_hub.checkpoint: content decides, nothing runs, equal input gives equal bytes."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from svd_hub import checkpoint
from svd_hub.errors import CheckpointError, OptionError
from svd_hub.models.resnet3d import ResNet3D

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]


def weights(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "conv1.weight": torch.randn(4, 1, 3, 3, 3, generator=g),
        "layer1.0.conv1.weight": torch.randn(4, 4, 3, 3, 3, generator=g).half(),
        "bn1.weight": torch.randn(4, generator=g),
        "bn1.num_batches_tracked": torch.tensor(7),
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def torch_save(content: Any, path: Path, *, legacy: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


# ---- sniff ---------------------------------------------------------------------------------------------------------


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
KIND_OF = {name: name for name in checkpoint._REFUSED} | {
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
    assert checkpoint.sniff(path) == kind
    with pytest.raises(CheckpointError, match="Next: ") as caught:
        checkpoint.read(path)
    assert checkpoint._REFUSED[kind][0] in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_refused_kind_has_an_example() -> None:
    assert {KIND_OF[name] for name in FOREIGN} == set(checkpoint._REFUSED)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.html", "a"])
def test_content_decides_not_the_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for kind in ("safetensors", "zip", "pickle"):
        if kind == "safetensors":
            save_file(weights(), path)
        else:
            torch_save(weights(), path, legacy=kind == "pickle")
        assert checkpoint.sniff(path) == kind
        got = checkpoint.read(path)
        assert got.kind == kind
        assert same(got.tensors, weights())
        path.unlink()


def test_a_real_torchscript_file_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of TorchScript
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    assert checkpoint.sniff(path) == "torchscript"


@pytest.mark.parametrize("path", ["missing.pth", "."])
def test_what_cannot_be_opened_says_so(path: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(tmp_path / path)


# ---- wrappers, prefixes, what is beside ------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", ["flat", *checkpoint.WRAPPERS, "model.state_dict"])
def test_every_wrapper_is_opened_and_recorded(wrapper: str, legacy: bool, tmp_path: Path) -> None:
    content: Any = weights()
    for name in reversed(wrapper.split(".") if wrapper != "flat" else []):
        content = {"epoch": 12, "arch": "resnet18", "optimizer": {"state": {0: torch.ones(2)}}, name: content}
    got = checkpoint.read(torch_save(content, tmp_path / "a.pth", legacy=legacy))
    assert same(got.tensors, weights())
    assert got.wrapper == wrapper
    assert got.metadata == ({} if wrapper == "flat" else {"epoch": "12", "arch": "resnet18"})


def test_a_flat_file_may_hold_its_optimiser_and_plain_values(tmp_path: Path) -> None:
    content = {**weights(), "epoch": 3, "optimizer": {"lr": 1.0}, "meta": {"note": [1]}}
    got = checkpoint.read(torch_save(content, tmp_path / "a.pth", legacy=False))
    assert same(got.tensors, weights())
    assert got.skipped == ("epoch", "optimizer", "meta")


def test_parameters_become_plain_tensors(tmp_path: Path) -> None:
    content = {"w": nn.Parameter(torch.ones(3))}
    tensor = checkpoint.read(torch_save(content, tmp_path / "a.pth", legacy=False)).tensors["w"]
    assert type(tensor) is Tensor
    assert not tensor.requires_grad


@pytest.mark.parametrize("prefix", ["module.", "module.module."])
def test_module_goes_when_every_key_has_it(prefix: str, tmp_path: Path) -> None:
    content = {"state_dict": {prefix + k: v for k, v in weights().items()}}
    got = checkpoint.read(torch_save(content, tmp_path / "a.pth", legacy=False))
    assert same(got.tensors, weights())
    assert got.prefix == "module."


def test_a_prefix_stays_when_one_key_lacks_it(tmp_path: Path) -> None:
    content = {f"module.{k}": v for k, v in weights().items()} | {"extra": torch.ones(1)}
    got = checkpoint.read(torch_save(content, tmp_path / "a.pth", legacy=False))
    assert same(got.tensors, content)
    assert got.prefix == ""
    assert same(checkpoint.strip_prefix(content, ""), content)


REFUSED_CONTENT: dict[str, tuple[Any, str]] = {
    "a list": ([torch.ones(2)], "holds a list"),
    "a tensor": (torch.ones(2), "holds a Tensor"),
    "nothing": ({}, "no tensors"),
    "no tensors": ({"epoch": 1, "best": 0.5}, "epoch, best"),
    "an empty wrapper": ({"state_dict": {}, "epoch": 1}, "state_dict, epoch"),
    "a table among the weights": ({"state_dict": {**weights(), "bn1": {"a": 1}}}, "no tensors: bn1"),
    "a list among the weights": ({**weights(), "means": [1.0, 2.0]}, "no tensors: means"),
    "sparse": ({"a": torch.ones(3, 3).to_sparse()}, r"a \(torch.float32, torch.sparse_coo"),
    "meta": ({"a": torch.ones(3, device="meta")}, "on meta"),
    "complex": ({"a": torch.ones(3, dtype=torch.complex64)}, "complex64"),
    "four bytes posing as many": ({"a": torch.ones(1).expand(10**9)}, "100 times its own size"),
}


@pytest.mark.parametrize("name", REFUSED_CONTENT)
def test_what_is_no_table_of_dense_tensors_is_refused(name: str, tmp_path: Path) -> None:
    content, message = REFUSED_CONTENT[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.read(torch_save(content, tmp_path / "a.pth", legacy=False))
    assert "Next: " in str(caught.value)


def test_a_table_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["state_dict"] = content
    with pytest.raises(CheckpointError, match="no tensors"):
        checkpoint.read(torch_save(content, tmp_path / "a.pth", legacy=False))


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = {"a": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)}
        torch_save(content, tmp_path / "a.pth", legacy=False)
    with pytest.raises(CheckpointError, match="qint8"):
        checkpoint.read(tmp_path / "a.pth")


# ---- pickles with code -----------------------------------------------------------------------------------------------


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("form", ["zip", "legacy", "raw 2", "raw 4", "as numpy scalar"])
def test_code_is_named_and_never_run(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Even a user who switched torch's protection off by its variable is protected here.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    target, path = tmp_path / "touched", tmp_path / "a.pth"
    content = {"state_dict": weights(), "extra": Evil(target)}
    if form == "as numpy scalar":
        content["first"] = np.float64(1.0)
        content = dict(reversed(content.items()))
    if form.startswith("raw"):
        path.write_bytes(pickle.dumps({"extra": Evil(target)}, protocol=int(form[-1])))
    else:
        torch_save(content, path, legacy=form == "legacy")
    with pytest.raises(CheckpointError, match="Next: ") as caught:
        checkpoint.read(path)
    assert not target.exists()
    if not form.startswith("raw"):
        assert f"{os.system.__module__}.system" in str(caught.value)
        assert "nothing of it was run" in str(caught.value)
    # The drill is real: this pickle does run where pickles are run.
    pickle.loads(pickle.dumps(Evil(target)))
    assert target.exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (np.ones(3), "numpy._core.multiarray._reconstruct"),
    ],
)
def test_objects_are_refused_by_name(value: Any, name: str, tmp_path: Path) -> None:
    for legacy in (False, True):
        with pytest.raises(CheckpointError, match=name):
            checkpoint.read(torch_save({"state_dict": weights(), "args": value}, tmp_path / "a.pth", legacy=legacy))


def test_the_allow_list_is_numpy_s_scalars_and_nothing_else() -> None:
    allowed = [entry[0] if isinstance(entry, tuple) else entry for entry in checkpoint._scalar_globals()]
    types = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    assert set(allowed) == {np.float64(0).__reduce__()[0], np.dtype, *types}


def test_code_behind_a_numpy_scalar_is_not_run(tmp_path: Path) -> None:
    # `os` is on torch's own list of blocked modules; `shutil` is not, so here the allow-list alone protects.
    target = tmp_path / "touched"
    content = {"best": np.float64(1), "extra": Copies(tmp_path / "a.pth", target)}
    for legacy in (False, True):
        with pytest.raises(CheckpointError, match=r"shutil\.copyfile"):
            checkpoint.read(torch_save(content, tmp_path / "a.pth", legacy=legacy))
        assert not target.exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert target.exists()


class Copies:
    """Copies a file when it is unpickled."""

    def __init__(self, source: Path, target: Path) -> None:
        self.paths = (str(source), str(target))

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return shutil.copyfile, self.paths


SCALARS = {"best_loss": np.float64(0.25), "best_acc": np.float32(0.5), "count": np.int64(3), "ok": np.bool_(True)}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])
def test_numpy_scalars_of_both_numpys_are_read(module: bytes, legacy: bool, tmp_path: Path) -> None:
    path = torch_save({"state_dict": weights(), **SCALARS}, tmp_path / "a.pth", legacy=legacy)
    renamed = with_module(path.read_bytes(), module, legacy=legacy)
    assert module in renamed
    path.write_bytes(renamed)
    before = set(torch.serialization.get_safe_globals())
    got = checkpoint.read(path)
    assert same(got.tensors, weights())
    assert got.metadata == {"best_loss": "0.25", "best_acc": "0.5", "count": "3", "ok": "True"}
    assert set(torch.serialization.get_safe_globals()) == before


def with_module(content: bytes, module: bytes, *, legacy: bool) -> bytes:
    old = np.float64(0).__reduce__()[0].__module__.encode()

    def rename(pickled: bytes) -> bytes:
        return pickled.replace(b"c" + old + b"\n", b"c" + module + b"\n")

    if legacy:
        return rename(content)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(stream, "w") as target:
        for name in source.namelist():
            target.writestr(name, rename(source.read(name)) if name.endswith("data.pkl") else source.read(name))
    return stream.getvalue()


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_the_values_is_found_although_torch_reads_on(tmp_path: Path) -> None:
    path = torch_save(weights(), tmp_path / "a.pth", legacy=False)
    content = bytearray(path.read_bytes())
    raw = weights()["conv1.weight"].numpy().tobytes()
    content[content.index(raw) + 5] ^= 1
    path.write_bytes(content)
    assert not same(torch.load(path, weights_only=True), weights())
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(path)


def test_a_file_saved_without_check_sums_is_read(tmp_path: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = torch_save(weights(), tmp_path / "a.pth", legacy=False)
    finally:
        torch.serialization.set_crc32_options(before)
    assert same(checkpoint.read(path).tensors, weights())


def test_a_file_that_was_zipped_again_is_read(tmp_path: Path) -> None:
    path = torch_save(weights(), tmp_path / "a.pth", legacy=False)
    again = tmp_path / "b.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert same(checkpoint.read(again).tensors, weights())


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(5_000_000))
    with pytest.raises(CheckpointError, match="100 times"):
        checkpoint.read(path)


HEADERS = {
    "beyond the end": '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4000]}}',
    "shape against size": '{"a":{"dtype":"F32","shape":[400],"data_offsets":[0,16]}}',
    "overflow": '{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,16]}}',
    "overlap": '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],'
    '"data_offsets":[0,16]}}',
    "unknown dtype": '{"a":{"dtype":"Q9","shape":[4],"data_offsets":[0,16]}}',
    "no JSON": '{"a":',
    "no tensors": "{}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_lying_safetensors_header_is_refused(name: str, tmp_path: Path) -> None:
    header, path = HEADERS[name].encode(), tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + (b"" if name == "no tensors" else bytes(16)))
    assert checkpoint.sniff(path) == "safetensors"
    with pytest.raises(CheckpointError, match="Next: "):
        checkpoint.read(path)


def test_safetensors_without_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, weights(), {})
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 20, 9, 4):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="Next: "):
            checkpoint.read(path)


def damage(content: bytes, r: random.Random) -> bytes:
    data = bytearray(content)
    how = r.choice(("flip", "flip many", "cut", "zero", "swap", "insert"))
    i = r.randrange(len(data))
    if how == "flip":
        data[i] ^= 1 << r.randrange(8)
    elif how == "flip many":
        for _ in range(20):
            data[r.randrange(min(len(data), 900))] ^= 1 << r.randrange(8)
    elif how == "cut":
        del data[i:]
    elif how == "zero":
        data[i : i + 64] = bytes(len(data[i : i + 64]))
    elif how == "swap":
        a, b = sorted((r.randrange(len(data) - 32), r.randrange(len(data) - 32)))
        data[a : a + 32], data[b : b + 32] = data[b : b + 32], data[a : a + 32]
    else:
        data[i:i] = r.randbytes(r.randrange(1, 9))
    return bytes(data)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_200_damaged_files_are_refused_or_read_and_nothing_else(form: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    if form == "safetensors":
        checkpoint.write(path, weights(), {"a": 1})
    else:
        torch_save({"state_dict": weights(), "best": np.float64(1)}, path, legacy=form == "legacy")
    whole, r, refused = path.read_bytes(), random.Random(20), 0
    read = 0
    for _ in range(200):
        path.write_bytes(damage(whole, r))
        try:
            got = checkpoint.read(path)
        except CheckpointError as error:
            refused += "Next: " in str(error)
        else:
            # torch's zip carries check sums, so what is read is what was saved.
            assert form != "zip" or same(got.tensors, weights())
            read += 1
    assert refused + read == 200
    assert refused > 100


# ---- write -----------------------------------------------------------------------------------------------------------

RECORD = {"entry": "resnet3d18_imagenet", "options": {"depth": 18, "norm": "batch"}, "source": "x", "z": 1, "b": [1.5]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, weights(), RECORD)
    got = checkpoint.read(path)
    assert same(dict(sorted(got.tensors.items())), dict(sorted(weights().items())))
    assert checkpoint.unpack_metadata(got.metadata) == {**RECORD, "schema": checkpoint.SCHEMA}
    assert set(got.metadata) == {checkpoint.METADATA_KEY}
    assert got.kind == "safetensors"
    again = tmp_path / "b.safetensors"
    checkpoint.write(again, dict(reversed(got.tensors.items())), got.metadata)
    assert again.read_bytes() == path.read_bytes()


def test_equal_input_gives_equal_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from svd_hub import checkpoint; names = sorted({'b', 'a', 'd', 'c'}, "
        "reverse=sys.argv[2] == '1');"
        "tensors = {n: torch.arange(4.0) + ord(n) for n in names};"
        "checkpoint.write(sys.argv[1], tensors, {n: {m: m for m in names} for n in names})"
    )
    hashes = set()
    for seed in "012":
        path = tmp_path / f"{seed}.safetensors"
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code, str(path), seed], check=True, env=environment, cwd=tmp_path)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_replacing_a_file_leaves_its_loaded_tensors_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, weights(0), {})
    before = checkpoint.read(path).tensors
    checkpoint.write(path, weights(1), {})
    assert same(dict(sorted(before.items())), dict(sorted(weights(0).items())))
    after = checkpoint.read(path).tensors
    assert torch.equal(after["bn1.weight"], weights(1)["bn1.weight"])
    checkpoint.write(path, after, {})
    assert torch.equal(checkpoint.read(path).tensors["bn1.weight"], weights(1)["bn1.weight"])
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, weights(), {})
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.write(path, weights(1), {})
    with pytest.raises(OptionError, match="JSON"):
        checkpoint.write(path, weights(1), {"a": torch.ones(1)})
    with pytest.raises(OptionError, match="JSON"):
        checkpoint.write(path, weights(1), {"a": float("nan")})
    with pytest.raises(CheckpointError, match="no tensors"):
        checkpoint.write(path, {}, {})
    with pytest.raises(CheckpointError, match="sparse"):
        checkpoint.write(path, {"a": torch.eye(2).to_sparse()}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_views_and_shared_storages_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(1, 2, 3, 2, 2)
    tensors = {
        "base": base,
        "same": base,
        "slice": base[:, 1],
        "turned": base.transpose(1, 2),
        "last": base.contiguous(memory_format=torch.channels_last_3d),
        "parameter": nn.Parameter(base),
        "none": torch.ones(0),
        "none too": torch.ones(0),
    }
    checkpoint.write(tmp_path / "a", tensors, {})
    got = checkpoint.read(tmp_path / "a").tensors
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[k], tensors[k]) for k in tensors)


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_a_written_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    checkpoint.write(tmp_path / "a", weights(), {})
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_metadata_of_others_is_empty_and_of_the_future_is_refused() -> None:
    assert checkpoint.unpack_metadata({"format": "pt"}) == {}
    packed = checkpoint.pack_metadata(RECORD)
    assert checkpoint.unpack_metadata(packed) == {**RECORD, "schema": checkpoint.SCHEMA}
    with pytest.raises(CheckpointError, match="upgrade"):
        checkpoint.unpack_metadata(checkpoint.pack_metadata({"schema": checkpoint.SCHEMA + 1}))
    for bad in ("", "{", "[]", "{}", '{"schema":"one"}', "[" * 100_000):
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.unpack_metadata({checkpoint.METADATA_KEY: bad})


def test_to_float32_casts_reals_and_keeps_counters() -> None:
    tensors = {
        "a": torch.tensor([0.1]).half(),
        "b": torch.tensor([0.1]).bfloat16(),
        "c": torch.tensor([0.1], dtype=torch.float64),
        "d": torch.tensor([0.1]),
        "e": torch.tensor([1], dtype=torch.int32),
        "bn.num_batches_tracked": torch.tensor(9.0).half(),
    }
    cast, counts = checkpoint.to_float32(tensors)
    assert [t.dtype for t in cast.values()] == [torch.float32] * 4 + [torch.int32, torch.int64]
    assert all(cast[k].item() == tensors[k].to(torch.float32).item() for k in tensors)
    assert counts == {"bfloat16": 1, "float16": 2, "float64": 1}


# ---- diagnosis -------------------------------------------------------------------------------------------------------


def state(**options: Any) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(ResNet3D(**options).state_dict())


def shapes(**options: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state(**options).items()}


def renamed(pattern: str, **options: Any) -> dict[str, Tensor]:
    return {pattern.format(name): tensor for name, tensor in state(**options).items()}


def flat_2d() -> dict[str, Tensor]:
    return {name: t[:, :, 0] if t.ndim == 5 else t for name, t in state(in_channels=3).items()}


def r2plus1d() -> dict[str, Tensor]:
    new = {}
    for name, tensor in state(in_channels=3).items():
        for part in ("s", "t") if ".conv" in name else ("",):
            new[name.replace(".weight", f"_{part}.weight") if part else name] = tensor
    return new


WRONG: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {
    "3-channel stem, not 1": (state(in_channels=3), {}),
    "3x7x7 stem, not 7x7x7": (state(stem="3x7x7"), {}),
    "shortcut A (no downsample tensors; 18 expected)": (state(shortcut="A"), {}),
    "shortcut B (18 downsample tensors; none expected)": (state(), {"shortcut": "A"}),
    "depth 34, not 18": (state(depth=34), {}),
    "depth 50, not 34": (state(depth=50), {"depth": 34}),
    "depth 18, not 50": (state(), {"depth": 50}),
    "r2plus1d": (r2plus1d(), {"in_channels": 3}),
    "the whole detector (backbone., neck., rpn_head.)": (
        renamed("backbone.{}") | {"neck.a": torch.ones(1), "rpn_head.b": torch.ones(1)},
        {},
    ),
    "keys start with 'backbone.'": (renamed("backbone.{}"), {}),
    "keys start with 'encoder.'": (renamed("encoder.{}"), {}),
    "a 2D network (4-D kernels)": (flat_2d(), {}),
    "half the width: width 32, not 64": (state(width=32), {}),
    "double the width: width 128, not 64": (state(width=128), {}),
    "another stem: stem.0.conv.weight instead of conv1.weight": (state(stem="v1c"), {}),
    "GroupNorm (no running statistics), not BatchNorm": (state(norm="group"), {}),
    "BatchNorm, not GroupNorm": (state(), {"norm": "group"}),
    "400 classes, not 1000": (state(num_classes=400), {"num_classes": 1000}),
    "a shortcut convolution in layer1": (
        state() | {"layer1.0.downsample.0.weight": torch.ones(64, 64, 1, 1, 1)},
        {},
    ),
    "P3D under its upstream names": ({"conv1_custom.weight": torch.ones(64, 1, 1, 7, 7)}, {}),
}


@pytest.mark.parametrize("words", WRONG)
def test_the_known_complaints_are_named(words: str) -> None:
    tensors, options = WRONG[words]
    expected = shapes(**options)
    said = checkpoint.diagnose(tensors, expected)
    assert words in said
    # A diagnosis is made for this complaint, not for every file.
    others = [w for w in WRONG if w != words and w in said]
    assert all(w.split()[0] in ("3-channel", "keys") for w in others), others


def test_a_detector_under_a_prefix_is_also_diagnosed_inside() -> None:
    said = checkpoint.diagnose(renamed("backbone.{}", depth=34), shapes())
    assert "keys start with 'backbone.'" in said
    assert "depth 34, not 18" in said


def test_the_counts_add_up() -> None:
    expected = shapes()
    assert checkpoint.diagnose(state(), expected) == "found 120 tensors, expected 120: 120 match"
    tensors = state()
    del tensors["layer4.1.conv2.weight"], tensors["layer4.1.bn2.weight"]
    tensors["conv1.weight"] = torch.ones(64, 3, 7, 7, 7)
    tensors["other"] = torch.ones(1)
    said = checkpoint.diagnose(tensors, expected)
    assert said.startswith("found 119 tensors, expected 120: 117 match, 2 missing (layer4.1.conv2.weight, ")
    assert "1 unexpected (other)" in said
    assert "1 of another shape (conv1.weight (64, 3, 7, 7, 7), not (64, 1, 7, 7, 7))" in said
    assert checkpoint.diagnose({}, expected).startswith("found 0 tensors")
