"""What the content of a file is, whatever its name says: the first bytes decide.

Drive's quota pages arrive as `.pth`, Git LFS pointers as text; both are named here instead of failing in a reader.
"""

from __future__ import annotations

import os
import string
import zipfile
from pathlib import Path

from .errors import CheckpointError

READABLE = ("safetensors", "zip", "pickle")
_AGAIN = "fetch the file again (in a browser, if the host asks for consent), or ask for its true download link"
REFUSED = {
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
