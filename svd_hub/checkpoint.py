"""Reading foreign checkpoints safely, and writing our own: sniff, read, write, diagnose. Nothing here runs a pickle.

A file is judged by its content, never by its name: Drive's quota pages arrive as `.pth`, Git LFS pointers as text.
Foreign pickles go through `torch.load(weights_only=True)` alone; the one extension is an allow-list of numpy scalars.
The hub itself writes only safetensors (layout facts: shared reference, compared-weights.md section 9).
"""

from __future__ import annotations

import json
import os
import pickle
import re
import secrets
import string
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torch.serialization import safe_globals

from .errors import CheckpointError, OptionError

METADATA_KEY = "svd_hub"
SCHEMA = 1

# Tables that hold the weights inside a checkpoint, in the order they are tried.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "network_weights",
    "trunk_state_dict",
    "encoder_state_dict",
    "model",
    "net",
    "module",
    "weights",
)
# What a flat checkpoint may hold beside its tensors; it is left out, and named in `Checkpoint.skipped`.
BESIDE = (
    "meta",
    "optimizer",
    "optimizer_state",
    "optimizer_state_dict",
    "optimizer_states",
    "scheduler",
    "lr_scheduler",
    "lr_schedulers",
    "scheduler_state_dict",
    "scaler",
    "amp",
    "callbacks",
    "loops",
    "hyper_parameters",
    "args",
    "config",
)
_READABLE = ("safetensors", "zip", "pickle")
_AGAIN = "fetch the file again (in a browser, if the host asks for consent), or ask for its true download link"
_REFUSED = {
    "html": ("an HTML page, as hosts send for a quota, a consent or a log-in", _AGAIN),
    "lfs": ("a Git LFS pointer, not the file it stands for", "git lfs pull in that repository, then give that file"),
    "empty": ("an empty file", _AGAIN),
    "truncated": ("the first part of a file: its end is missing", "remove it and fetch it again"),
    "gzip": ("a gzip archive", "unpack it and give the checkpoint inside"),
    "tar": ("a tar archive", "unpack it and give the checkpoint inside"),
    "archive": ("a zip archive that is no checkpoint", "unpack it and give the checkpoint inside"),
    "torchscript": (
        "a TorchScript archive, which is a program",
        "in the environment that made it: torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)",
    ),
    "hdf5": ("an HDF5 file (Keras)", "take the PyTorch file of the same release"),
    "tensorflow": ("a TensorFlow checkpoint", "take the PyTorch file of the same release"),
    "text": ("a text file", _AGAIN),
    "unknown": ("bytes of no known format", _AGAIN),
}


@dataclass(frozen=True)
class Checkpoint:
    """What one file holds.

    Attributes:
        tensors: name -> dense CPU tensor, in the file's order and dtypes; perhaps still backed by the file.
        wrapper: the table the weights were in, such as "state_dict" or "model.state_dict"; "flat" where none was.
        metadata: the safetensors header's own, or the plain values found beside the weights (epoch, arch).
        kind: what `sniff` said.
        prefix: the prefix that every key had and that was taken off ("module."), or "".
        skipped: names found in or beside the weights that are no tensors and were left out.
    """

    tensors: dict[str, Tensor]
    wrapper: str
    metadata: dict[str, str] = field(default_factory=dict)
    kind: str = ""
    prefix: str = ""
    skipped: tuple[str, ...] = ()


def sniff(path: str | os.PathLike[str]) -> str:
    """Return what the content of a file is.

    Returns:
        "safetensors" | "zip" (torch >= 1.6) | "pickle" (older torch): may be read. "torchscript", "archive" (another
        zip), "truncated", "html", "lfs", "empty", "gzip", "tar", "hdf5", "tensorflow", "text", "unknown": may not.

    Raises:
        CheckpointError: there is no such file, or it cannot be opened.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1024)
            file.seek(max(0, size - 8))
            tail = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Next: check the path and its permissions") from error
    return _sniff_safetensors(head, size) or _sniff_binary(path, head, tail) or _sniff_text(head)


def _sniff_safetensors(head: bytes, size: int) -> str:
    length = int.from_bytes(head[:8], "little")
    # 100 MB is the format's own limit of a header.
    if head[8:9] != b"{" or length > 100_000_000:
        return ""
    return "safetensors" if 8 + length <= size else "truncated"


def _sniff_binary(path: Path, head: bytes, tail: bytes) -> str:
    if not head:
        return "empty"
    if head[:2] == b"PK":
        return _sniff_zip(path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if head[257:262] == b"ustar":
        return "tar"
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    # The last eight bytes of a TensorFlow V2 index (a LevelDB table).
    return "tensorflow" if tail == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb" else ""


def _sniff_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "truncated"
    if any(name.endswith("/constants.pkl") for name in names):
        return "torchscript"
    return "zip" if any(name.count("/") == 1 and name.endswith("/data.pkl") for name in names) else "archive"


def _sniff_text(head: bytes) -> str:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"<"):
        return "html"
    if text.startswith(b"version https://git-lfs"):
        return "lfs"
    printable = set(string.printable.encode()) | set(range(0x80, 0x100))
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        # A character cut by the end of the window is still text.
        if error.start < len(head) - 4:
            return "unknown"
    return "text" if printable.issuperset(head) else "unknown"


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of any known wrapping; never executes what is in it.

    Raises:
        CheckpointError: not a checkpoint, damaged, holding code, or holding no dense tensors; the message says
            what was found and what to do next.
    """
    path = Path(path)
    kind = sniff(path)
    skipped: tuple[str, ...] = ()
    if kind == "safetensors":
        tensors, metadata = _read_safetensors(path)
        wrapper = "flat"
    elif kind in ("zip", "pickle"):
        table, wrapper, metadata = _unwrap(path, _read_torch(path, kind))
        tensors, skipped = _split(path, table, flat=wrapper == "flat")
    else:
        what, step = _REFUSED[kind]
        raise CheckpointError(f"{path} is {what}; allowed: {', '.join(_READABLE)} checkpoints. Next: {step}")
    _check_tensors(path, tensors)
    stripped = strip_prefix(tensors, "module.")
    prefix = "module." if stripped.keys() != tensors.keys() else ""
    return Checkpoint(stripped, wrapper, metadata, kind, prefix, skipped)


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return CheckpointError(f"{path} is damaged or no checkpoint: {reason}. Next: remove it and fetch it again")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        return load_file(path), metadata
    except Exception as error:  # whatever a foreign file makes the reader say: a bad file
        raise _damaged(path, error) from error


def _read_torch(path: Path, kind: str) -> Any:
    try:
        mmap = kind == "zip" and _check_zip(path) and path.suffix != ".safetensors"
        try:
            return _torch_load(path, mmap)
        except pickle.UnpicklingError as error:
            if _wanted(error) not in _SCALAR_NAMES:
                raise
        with _SCALARS_LOCK, safe_globals(_scalar_globals()):
            return _torch_load(path, mmap)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        if name := _wanted(error):
            raise CheckpointError(
                f"{path} asks for the Python object {name}; nothing of it was run; allowed: tables of tensors and "
                "plain values. Next: where the file was made and is trusted, save model.state_dict() alone, and give "
                "that file"
            ) from error
        found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
        raise _damaged(path, pickle.UnpicklingError(found.group(1)) if found else error) from error
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise _damaged(path, error) from error


def _torch_load(path: Path, mmap: bool) -> Any:
    with warnings.catch_warnings(), path.open("rb") as file:
        # torch warns of its own deprecations inside old files; a user can do nothing about them.
        warnings.simplefilter("ignore")
        # By name, torch would take any "*.safetensors" for what it says it is: such a path goes in as an open file.
        return torch.load(path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)


def _check_zip(path: Path) -> bool:
    """Verify the check sum of every member (torch does not), and return whether all are stored plainly.

    A member that was compressed by a later tool must not be memory-mapped. CRC 0 = the writer recorded none.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > 100 * path.stat().st_size:
            raise zipfile.BadZipFile("its members would unpack to more than 100 times its size")
        for member in members:
            if member.CRC:
                with archive.open(member) as stream:
                    while stream.read(1 << 20):
                        pass
    return all(member.compress_type == zipfile.ZIP_STORED for member in members)


# numpy 1 and numpy 2 name the same function differently, and torch goes by the name in the file: hence the pairs.
_SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_SCALARS_LOCK = threading.Lock()  # torch's allow-list is one for the whole process


def _scalar_globals() -> list[Any]:
    scalar = np.float64(0).__reduce__()[0]
    types = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [*((scalar, name) for name in _SCALAR_NAMES), np.dtype, *sorted(types, key=lambda t: t.__name__)]


def _wanted(error: pickle.UnpicklingError) -> str:
    """Return the global that torch's unpickler refused, or ""."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found.group(1) if found else ""


def _unwrap(path: Path, content: Any) -> tuple[Mapping[Any, Any], str, dict[str, str]]:
    names: list[str] = []
    metadata: dict[str, str] = {}
    # Three levels are more than any known file has; a pickled table may contain itself.
    for _ in range(3):
        if not isinstance(content, Mapping):
            break
        key = next((k for k in WRAPPERS if isinstance(content.get(k), Mapping) and content[k]), None)
        if key is None:
            break
        metadata |= {str(k): str(v)[:200] for k, v in content.items() if _plain(v) and v is not None}
        names.append(key)
        content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}; allowed: a table of tensors, plain or under one of "
            f"{', '.join(WRAPPERS)}. Next: save model.state_dict() and give that file"
        )
    return content, ".".join(names) or "flat", metadata


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | np.generic)


def _split(path: Path, table: Mapping[Any, Any], *, flat: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a table, detached, and the names of what was left out."""
    tensors = {k: v.detach() for k, v in table.items() if isinstance(k, str) and isinstance(v, Tensor)}
    others = {str(k): v for k, v in table.items() if k not in tensors}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors; found the keys {_some(others)}; looked for a table of tensors, plain or under "
            f"one of {', '.join(WRAPPERS)}. Next: save the table of weights alone and give that file"
        )
    wrong = [k for k, v in others.items() if not _plain(v) and not (flat and k in BESIDE)]
    if wrong:
        raise CheckpointError(
            f"{path} holds values among its weights that are no tensors: {_some(wrong)}; allowed: tensors and plain "
            "values. Next: save the table of weights alone and give that file"
        )
    return tensors, tuple(others)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what is not an ordinary dense tensor with its bytes in the file."""
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors. Next: check that this is the file you meant")
    wrong: list[str] = []
    for name, tensor in tensors.items():
        dense = tensor.layout is torch.strided and not tensor.is_nested
        if not dense or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
            wrong.append(f"{name} ({tensor.dtype}, {tensor.layout}, on {tensor.device.type})")
    if wrong:
        raise CheckpointError(
            f"{path} holds tensors that are sparse, quantised, complex or without data: {_some(wrong)}; allowed: dense "
            "real tensors. Next: take the release's unquantised file"
        )
    # A stride of 0 lets four bytes pose as any number of values.
    if sum(t.numel() * t.element_size() for t in tensors.values()) > 100 * path.stat().st_size + (1 << 20):
        raise CheckpointError(f"{path} declares more than 100 times its own size. Next: remove it and fetch it again")


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors without `prefix`, however often it is repeated, if every name has it; else as they are."""
    stripped = dict(tensors)
    while prefix and stripped and all(name.startswith(prefix) and name != prefix for name in stripped):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def to_float32(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return every real tensor as float32 (`num_batches_tracked` as int64, other integers untouched).

    Also returns how many were cast, by the name of the dtype they had ("float16": 20).
    """
    cast: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()
    for name, tensor in tensors.items():
        target = torch.float32 if tensor.is_floating_point() else tensor.dtype
        target = torch.int64 if name.endswith("num_batches_tracked") else target
        if tensor.dtype != target:
            counts[str(tensor.dtype).removeprefix("torch.")] += 1
        cast[name] = tensor.to(target)
    return cast, dict(sorted(counts.items()))


def pack_metadata(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a record of JSON values as the one header entry of our files.

    One entry, because safetensors orders several differently in each process, and equal files must have equal hashes.

    Raises:
        OptionError: a value that JSON cannot hold.
    """
    try:
        text = json.dumps({"schema": SCHEMA, **record}, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise OptionError(f"metadata cannot be written: {error}; allowed: JSON values under text keys") from error
    return {METADATA_KEY: text}


def unpack_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the record that `pack_metadata` stored, its "schema" included; {} where the file is not one of ours.

    Raises:
        CheckpointError: the record is damaged, or of a later svd_hub.
    """
    if METADATA_KEY not in metadata:
        return {}
    try:
        record = json.loads(metadata[METADATA_KEY])
        schema = record["schema"]
        later = schema > SCHEMA
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError("the svd_hub record of this file is damaged. Next: fetch or convert it again") from error
    if later:
        raise CheckpointError(
            f"this file has a record of schema {schema}; this svd_hub reads up to {SCHEMA}. "
            "Next: pip install --upgrade svd-hub"
        )
    return dict(record)


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write safetensors: equal input gives equal bytes, and a reader sees the old file or the whole new one.

    Args:
        path: the file; its folder must exist. Tensors that are mapped from an older file there keep their values.
        tensors: any dense tensors; views, shared storages and other devices are copied.
        metadata: a record of JSON values, or what `pack_metadata` made of one.

    Raises:
        CheckpointError: nothing to write, or a tensor without data.
        OptionError: metadata that JSON cannot hold.
        OSError: the folder is read-only, full or missing. Nothing is left behind.
    """
    path = Path(path)
    packed = set(metadata) == {METADATA_KEY} and isinstance(metadata[METADATA_KEY], str)
    content = save(_dense(path, tensors), dict(metadata) if packed else pack_metadata(metadata))
    # Not safetensors.save_file: it writes with mode 0600, and a cache is often shared by a group.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _dense(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors sorted, on the CPU, contiguous, each with a storage of its own."""
    if not tensors:
        raise CheckpointError(f"{path}: no tensors to write")
    dense: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype}, {tensor.layout}; allowed: dense tensors with data"
            )
        tensor = tensor.cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        dense[name] = tensor
    return dense


# ---- diagnosis: pure functions on names and shapes ----------------------------------------------------------------

Shapes = Mapping[str, tuple[int, ...]]
_DETECTOR = ("backbone", "neck", "rpn_head", "bbox_head", "roi_head")
_DEPTHS = {
    (False, (1, 1, 1, 1)): "10",
    (False, (2, 2, 2, 2)): "18",
    (False, (3, 4, 6, 3)): "34",
    (True, (3, 4, 6, 3)): "50",
    (True, (3, 4, 23, 3)): "101",
    (True, (3, 8, 36, 3)): "152",
    (True, (3, 24, 36, 3)): "200",
}


def diagnose(tensors: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> str:
    """Return, in a sentence or two, how a file differs from the network asked for and what it looks like instead.

    Args:
        tensors: the file's tensors, by name.
        expected: name -> shape of the network's.
    """
    found: Shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    wanted: Shapes = {name: tuple(shape) for name, shape in expected.items()}
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    reshaped = [f"{n} {found[n]}, not {wanted[n]}" for n in wanted if n in found and found[n] != wanted[n]]
    matched = len(wanted) - len(missing) - len(reshaped)
    parts = [f"found {len(found)} tensors, expected {len(wanted)}: {matched} match"]
    for count, word in ((missing, "missing"), (unexpected, "unexpected"), (reshaped, "of another shape")):
        if count:
            parts.append(f"{len(count)} {word} ({_some(count)})")
    text = ", ".join(parts)
    looks = [line for line in _looks(found, wanted) if line]
    return f"{text}. It looks like {'; '.join(looks)}" if looks else text


def _some(names: Iterable[object], count: int = 3) -> str:
    listed = [str(name) for name in names]
    more = f", and {len(listed) - count} more" if len(listed) > count else ""
    return (", ".join(listed[:count]) or "none") + more


def _looks(found: Shapes, wanted: Shapes) -> Iterator[str]:
    prefix, inner = _inner(found, wanted)
    tops = {name.split(".")[0] for name in found}
    parts = [f"{top}." for top in _DETECTOR if top in tops]
    if len(parts) > 1:
        yield f"the whole detector ({', '.join(parts)})"
    elif prefix:
        yield f"the right network whose keys start with {prefix!r}"
    yield _family(inner, wanted)
    yield _depth(inner, wanted)
    yield _shortcut(inner, wanted)
    yield from _stem(inner, wanted)
    yield _norm(inner, wanted)
    yield _head(inner, wanted)


def _inner(found: Shapes, wanted: Shapes) -> tuple[str, Shapes]:
    """Return the prefix (of one part) without which most more names match, and the tensors under it."""
    best, prefix, inner = len(found.keys() & wanted.keys()), "", found
    for candidate in sorted({name.split(".")[0] + "." for name in found if "." in name}):
        under = {n.removeprefix(candidate): shape for n, shape in found.items() if n.startswith(candidate)}
        if (score := len(under.keys() & wanted.keys())) > best:
            best, prefix, inner = score, candidate, under
    return prefix, inner


def _family(found: Shapes, wanted: Shapes) -> str:
    if any(re.search(r"(^|\.)conv\d_[st]\.|\.conv\d\.0\.3\.", name) for name in found):
        return "r2plus1d (each 3D kernel split in two), another network"
    ranks = Counter(len(shape) for shape in found.values())
    if ranks[4] and not ranks[5] and any(len(shape) == 5 for shape in wanted.values()):
        return "a 2D network (4-D kernels); svd_hub.inflate makes such a network 3D"
    if any(re.search(r"(^|\.)(conv1_custom|norm_\d)\.", name) for name in found):
        return "P3D under its upstream names: convert it first"
    return ""


def _blocks(names: Iterable[str]) -> tuple[bool, tuple[int, ...]]:
    """Return whether the blocks are bottlenecks, and how many each stage has."""
    listed = list(names)
    counts: dict[int, int] = {}
    for name in listed:
        if found := re.match(r"layer(\d)\.(\d+)\.", name):
            stage, index = int(found.group(1)), int(found.group(2))
            counts[stage] = max(counts.get(stage, 0), index + 1)
    last = max((n for name in listed for n in re.findall(r"^layer\d\.\d+\.conv(\d)\.", name)), default="2")
    return last == "3", tuple(counts[stage] for stage in sorted(counts))


def _depth(found: Shapes, wanted: Shapes) -> str:
    here, there = _blocks(found), _blocks(wanted)
    if here == there or not here[1] or not there[1]:
        return ""
    if here in _DEPTHS and there in _DEPTHS:
        return f"depth {_DEPTHS[here]}, not {_DEPTHS[there]}"
    return f"another depth: blocks per stage {here[1]}, not {there[1]}"


def _shortcut(found: Shapes, wanted: Shapes) -> str:
    if _blocks(found) != _blocks(wanted) or not _blocks(found)[1]:
        return ""
    here, there = {n for n in found if ".downsample." in n}, {n for n in wanted if ".downsample." in n}
    if there and not here:
        return f"shortcut A (no downsample tensors; {len(there)} expected): build it with shortcut='A'"
    if here and not there:
        return f"shortcut B ({len(here)} downsample tensors; none expected): build it with shortcut='B'"
    if any(n.startswith("layer1.0.downsample.") for n in here - there):
        return "a network with a shortcut convolution in layer1, as early detectors had by mistake"
    return ""


def _stem(found: Shapes, wanted: Shapes) -> Iterator[str]:
    names = ("conv1.weight", "stem.0.conv.weight")
    here = next((n for n in names if n in found), "")
    there = next((n for n in names if n in wanted), "")
    if not here or not there:
        return
    if here != there:
        yield f"another stem: {here} instead of {there}"
        return
    a, b = found[here], wanted[there]
    if len(a) != len(b) or len(b) < 3:
        return
    if a[1] != b[1]:
        yield f"{a[1]}-channel stem, not {b[1]}"
    if a[2:] != b[2:]:
        yield f"{'x'.join(map(str, a[2:]))} stem, not {'x'.join(map(str, b[2:]))}"
    if a[0] != b[0]:
        half = "half the width: " if 2 * a[0] == b[0] else "double the width: " if a[0] == 2 * b[0] else ""
        yield f"{half}width {a[0]}, not {b[0]}"


def _norm(found: Shapes, wanted: Shapes) -> str:
    here, there = (any(n.endswith("running_mean") for n in names) for names in (found, wanted))
    if here == there or not any(n.endswith(".bias") for n in found):
        return ""
    return "BatchNorm, not GroupNorm" if here else "GroupNorm (no running statistics), not BatchNorm"


def _head(found: Shapes, wanted: Shapes) -> str:
    here, there = found.get("fc.weight"), wanted.get("fc.weight")
    if not here or not there or here[0] == there[0]:
        return ""
    return f"{here[0]} classes, not {there[0]}"
