"""Laws of svd_hub.pickles: nothing in a file runs, numpy's scalars are read, damage is found."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_checkpoint import same, torch_save, weights
from torch import nn

from svd_hub import checkpoint, pickles
from svd_hub.errors import CheckpointError

torch.set_num_threads(1)


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
    allowed = [entry[0] if isinstance(entry, tuple) else entry for entry in pickles._scalar_globals()]
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
