"""Where things lie: the folders of the cache, the files that people put there, and the words for places upstream."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from .. import transport
from ..catalog import Entry, Source, all_entries
from ..errors import DownloadError, OptionError

RELEASES = Path(__file__).resolve().parents[2] / "releases"  # of a checkout; see `svd-hub publish`


class Used(NamedTuple):
    """One file of the cache: entry ("" where unknown), path, bytes."""

    entry: str
    path: Path
    size: int


def cache_dir() -> Path:
    """Return the cache folder: SVD_HUB_HOME, else $XDG_CACHE_HOME/svd_hub, else ~/.cache/svd_hub. Creates nothing."""
    if home := os.environ.get("SVD_HUB_HOME", ""):
        return Path(home).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "svd_hub"


def bundled_path(file: str) -> Path:
    """Return where a file that comes inside the package lies."""
    return Path(str(resources.files("svd_hub"))) / "weights" / file


def incoming_path(entry: Entry) -> Path:
    """Return where a person can put the upstream file of `entry` by hand: a folder of its own where names clash."""
    folder = cache_dir() / "incoming"
    return (folder / part("entry", entry.name) if name_is_shared(entry) else folder) / file_name(entry)


def canonical_path(source_sha256: str, converter_version: str) -> Path:
    """Return where the conversion of an upstream file is cached."""
    version = part("converter_version", converter_version)
    return cache_dir() / checked_hash(source_sha256, full=True) / f"{version}.safetensors"


def local_places(entry: Entry) -> list[Path]:
    """Return where the upstream file of `entry` may lie on this machine, best first.

    By hand, in a mirror folder, in the releases of the checkout that this is (a wheel has none). In each
    <folder>/<entry>/<file>, then <folder>/<file>; the second is left out where `name_is_shared`.
    """
    folders = [cache_dir() / "incoming"]
    if isinstance(mirror := transport.mirror(), Path):
        folders.append(mirror)
    if entry.source.kind == "mirror":
        folders.append(RELEASES)
    name, file = part("entry", entry.name), file_name(entry)
    tails = (Path(name, file),) if name_is_shared(entry) else (Path(name, file), Path(file))
    return [folder / tail for folder in folders for tail in tails]


def name_is_shared(entry: Entry) -> bool:
    """Tell whether an entry with another source calls its file the same: `model.safetensors` alone says too little."""
    file = file_name(entry)
    return any(
        other.source.file == file and _whence(other.source) != _whence(entry.source)
        for other in all_entries().values()
        if other.source.kind not in ("none", "bundled")
    )


def _whence(source: Source) -> tuple[str, ...]:
    return (source.url, source.repo, source.revision, source.id)


# ---- words and parts of paths -------------------------------------------------------------------------------------


def part(what: str, value: str) -> str:
    """Return `value` if it can be a part of a path without leading elsewhere."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@+-]*", value):
        raise OptionError(f"{what}={value!r} is not allowed; allowed: letters, digits and . _ @ + -, no dot in front")
    return value


def file_name(entry: Entry) -> str:
    """Return the name of the upstream file of `entry`, if it is one and leads nowhere else."""
    file = entry.source.file
    if file in ("", ".", "..") or re.search(r"[/\\\x00-\x1f]", file):
        raise OptionError(f"source.file={file!r} of {entry.name!r} is not allowed; allowed: a bare file name")
    return file


def checked_hash(value: str, *, full: bool = False) -> str:
    """Return `value` if it is a sha256 in lower-case hex, or (not `full`) the first digits of one."""
    if not re.fullmatch(r"[0-9a-f]{64}" if full else r"[0-9a-f]{0,64}", value):
        raise OptionError(
            f"sha256={value!r} is not allowed; allowed: {'64' if full else 'at most 64'} lower-case hex digits"
        )
    return value


def upstream(source: Source) -> str:
    """Return where upstream the bytes are, in words."""
    return {
        "url": transport.public_url(source.url),
        "gdrive": f"Google Drive file {source.id}",
        "hf": f"huggingface.co/{source.repo}@{source.revision[:12]}/{source.file}",
        "folder": transport.public_url(source.url),
        "mirror": "a release folder",
    }.get(source.kind, source.kind)


def by_hand(entry: Entry) -> str:
    """Return the next step for a person, in words."""
    held = f"{entry.name}/{file_name(entry)}" if name_is_shared(entry) else "it"
    return (
        f"put {file_name(entry)} by hand at {incoming_path(entry)} (or set SVD_HUB_MIRROR to a folder that has {held})"
    )


# ---- folders ------------------------------------------------------------------------------------------------------


def make_folder(folder: Path) -> None:
    """Make a folder of the cache, and those above it.

    Raises:
        FolderError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise transport.folder_error(folder, error) from error


def listing(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, by name; nothing where there is no such folder.

    Raises:
        DownloadError: it cannot be read.
    """
    try:
        with os.scandir(folder) as items:
            return sorted(items, key=lambda item: item.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DownloadError(f"cannot read {folder}: {error.strerror}. Next: repair it, or set SVD_HUB_HOME") from error


def own_files(*suffixes: str) -> Iterator[Path]:
    """Yield the cache's own files by ending: real files in real folders named by a hash, nothing behind a link."""
    for folder in listing(cache_dir()):
        if re.fullmatch(r"[0-9a-f]{64}", folder.name) and folder.is_dir(follow_symlinks=False):
            for item in listing(Path(folder.path)):
                if item.name.endswith(suffixes) and item.is_file(follow_symlinks=False):
                    yield Path(item.path)
