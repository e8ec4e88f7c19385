"""Parquet image sets packed once into one file of encoded images that is then memory-mapped.

Parquet has no cheap random access (one image costs a whole row group); a packed set has, for a thousand images or a
million, and all workers share its pages. Layout of the folder: `images.bin`, `offsets.npy`, `labels.npy`, `set.json`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ... import store
from ...errors import SvdHubError
from ..console import bar
from ..saving import write_text


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
        """Return image `index`, decoded, in RGB (grey ones repeated).

        Raises:
            SvdHubError: its bytes are not a picture.
        """
        start, end = self._offsets[index], self._offsets[index + 1]
        try:
            return Image.open(io.BytesIO(self._blob[start:end].tobytes())).convert("RGB")
        except OSError as error:
            raise SvdHubError(
                f"image {index} of split {self.info['split']} ({end - start} bytes) cannot be decoded: {error}. "
                "Next: repair or leave out that row of the data set"
            ) from error


def opened(shard: Path) -> pq.ParquetFile:
    """Return a shard with the columns it must have: image (a struct with its encoded bytes) and label (an integer)."""
    try:
        file = pq.ParquetFile(shard)
    except (pa.ArrowInvalid, OSError) as error:
        raise SvdHubError(f"{shard} cannot be read as Parquet: {error}. Next: fetch that shard again") from error
    schema = file.schema_arrow
    if missing := {"image", "label"} - set(schema.names):
        raise SvdHubError(f"{shard} has no columns {sorted(missing)}; found: {schema.names}")
    image, label = schema.field("image").type, schema.field("label").type
    if not pa.types.is_struct(image) or image.get_field_index("bytes") < 0 or not pa.types.is_integer(label):
        raise SvdHubError(
            f"{shard}: columns image ({image}) and label ({label}) are not allowed; "
            "allowed: image a struct with its encoded bytes, label an integer"
        )
    return file


def _rows(shards: list[Path]) -> Iterator[tuple[bytes, int]]:
    for shard in shards:
        with opened(shard) as file:
            for batch in file.iter_batches(batch_size=256, columns=["image", "label"]):
                images, labels = batch.column("image").field("bytes"), batch.column("label")
                if images.null_count or labels.null_count:
                    raise SvdHubError(f"{shard} has rows without image or label; allowed: both in each row")
                yield from zip((b.as_buffer().to_pybytes() for b in images), labels.to_pylist(), strict=True)


def pack(folder: Path, split: str, cache: Path) -> PackedImages:
    """Return the packed form of a split: what `svd-hub prepare imagenet` left there, or made in `cache` the first time.

    It is made elsewhere and moved into place; a killed packing leaves nothing that looks finished.

    Raises:
        SvdHubError: no shards, or shards of another form.
    """
    if (folder / split / "set.json").is_file():
        return PackedImages(folder / split)
    shards = shards_of(folder, split)
    key = fingerprint(shards)
    target = cache / f"{split}-{key[:16]}"
    if not (target / "set.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with store.workdir() as work:
            made = work / target.name
            made.mkdir()
            _write(made, shards, {"fingerprint": key, "split": split})
            try:
                os.replace(made, target)
            except OSError:
                if not (target / "set.json").is_file():  # else another process was faster; its folder is as good
                    raise
    return PackedImages(target)


def _write(folder: Path, shards: list[Path], info: dict[str, object]) -> None:
    """Write the four files of a packed set; `set.json` comes last."""
    total = 0
    for shard in shards:
        with opened(shard) as file:
            total += file.metadata.num_rows
    if not total:
        raise SvdHubError(f"the shards of {shards[0].parent} hold no rows. Next: fetch them again")
    offsets, labels = [0], []
    with (folder / "images.bin").open("wb") as blob:
        for data, label in bar(_rows(shards), f"packing {info['split']}", total=total):
            offsets.append(offsets[-1] + blob.write(data))
            labels.append(label)
        blob.flush()
        os.fsync(blob.fileno())
    np.save(folder / "offsets.npy", np.asarray(offsets, dtype=np.int64))
    np.save(folder / "labels.npy", np.asarray(labels, dtype=np.int64))
    write_text(folder / "set.json", json.dumps({**info, "images": total}))
