"""Laws of svd_hub.checkpoint: every wrapping is read, equal input gives equal bytes."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_checkpoint import same, torch_save, weights
from torch import Tensor, nn

from svd_hub import checkpoint, sniffing
from svd_hub.errors import CheckpointError, OptionError

torch.set_num_threads(1)


ROOT = Path(__file__).resolve().parents[1]


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
    assert sniffing.sniff(path) == "safetensors"
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
