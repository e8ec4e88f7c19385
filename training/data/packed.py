"""Parquet image sets packed once into one file of encoded images that is then memory-mapped.

Parquet has no cheap random access (one image costs a whole row group); a packed set has, for a thousand images or a
million, and all workers share its pages. Layout of the folder: `images.bin`, `offsets.npy`, `labels.npy`, `set.json`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from rich.progress import track

from ...errors import SvdHubError


def shards_of(folder: Path, split: str) -> list[Path]:
    """Return the shards `split-*.parquet` of a folder (or of its `data/`), sorted.

    Raises:
        SvdHubError: there are none.
    """
    for place in (folder, folder / "data"):
        if found := sorted(place.glob(f"{split}-*.parquet")):
            return found
    raise SvdHubError(
        f"no Parquet shards {split}-*.parquet in {folder}; found: "
        f"{sorted(p.name for p in folder.glob('*'))[:8] if folder.is_dir() else 'no such folder'}. "
        "Next: give the folder of a data set in the Hugging Face Parquet form, e.g. --data tiny_imagenet"
    )


def fingerprint(shards: list[Path]) -> str:
    """Return a hash of the shards' names, sizes and footers (which hold every column chunk's size and statistics)."""
    digest = hashlib.sha256()
    for shard in shards:
        size = shard.stat().st_size
        digest.update(f"{shard.name} {size}\n".encode())
        with shard.open("rb") as file:
            file.seek(max(0, size - 65536))
            digest.update(file.read())
    return digest.hexdigest()


class PackedImages:
    """Encoded images with labels, by index. Pickles as its folder, so that workers map the same pages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info: dict[str, object] = json.loads((folder / "set.json").read_text())
        self.labels = np.load(folder / "labels.npy")
        self._offsets = np.load(folder / "offsets.npy")
        self._blob = np.memmap(folder / "images.bin", dtype=np.uint8, mode="r")

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self.__init__(folder)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return image `index`, decoded, in RGB (grey ones repeated)."""
        start, end = self._offsets[index], self._offsets[index + 1]
        return Image.open(io.BytesIO(self._blob[start:end].tobytes())).convert("RGB")


def _rows(shards: list[Path]) -> Iterator[tuple[bytes, int]]:
    for shard in shards:
        file = pq.ParquetFile(shard)
        missing = {"image", "label"} - set(file.schema_arrow.names)
        if missing:
            raise SvdHubError(f"{shard} has no columns {sorted(missing)}; found: {file.schema_arrow.names}")
        for batch in file.iter_batches(batch_size=256, columns=["image", "label"]):
            images = batch.column("image").field("bytes")
            yield from zip((b.as_buffer().to_pybytes() for b in images), batch.column("label").to_pylist(), strict=True)


def pack(folder: Path, split: str, cache: Path) -> PackedImages:
    """Return the packed form of a split, made in `cache` the first time.

    It is written beside and moved into place; a killed packing leaves nothing that looks finished.
    """
    shards = shards_of(folder, split)
    key = fingerprint(shards)
    target = cache / f"{split}-{key[:16]}"
    if not (target / "set.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=cache, prefix=".packing-"))
        try:
            total = sum(pq.ParquetFile(s).metadata.num_rows for s in shards)
            offsets, labels, end = [0], [], 0
            with (work / "images.bin").open("wb") as blob:
                for data, label in track(_rows(shards), total=total, description=f"packing {split}", transient=True):
                    end += blob.write(data)
                    offsets.append(end)
                    labels.append(label)
            np.save(work / "offsets.npy", np.asarray(offsets, dtype=np.int64))
            np.save(work / "labels.npy", np.asarray(labels, dtype=np.int64))
            (work / "set.json").write_text(json.dumps({"fingerprint": key, "images": total, "split": split}))
            if target.exists():
                shutil.rmtree(target)
            os.replace(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return PackedImages(target)
