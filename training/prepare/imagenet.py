"""ImageNet, or any picture set of its two forms: folders of classes, or the Hugging Face Hub's Parquet shards.

Pictures become JPEGs whose short side is 256 pixels, packed as `data.packed` reads them: a fraction of the download's
size, and every crop that training draws is decoded from a small picture. What is as small already stays as it is.
Crops of a small share of a picture lose resolution by it: give short_side=0 to keep all pictures as they are.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import OptionError, SvdHubError
from ..data.packed import opened, shards_of
from ..saving import replacing, write_text
from .job import Done, Entry, Job, join, names_and_sizes

PICTURES = {".jpeg", ".jpg", ".png", ".webp", ".bmp"}
SPLITS = ("train", "val")
CHUNK = 512  # pictures a task of a folder set
MAPPING = "LOC_synset_mapping.txt"  # the Kaggle download's names of the classes
Sources = list[tuple[Path, int]]


@dataclass(frozen=True, kw_only=True)
class ImageNet(Job):
    """See the module.

    Attributes:
        source: has train/CLASS/*.JPEG and val/CLASS/*.JPEG; or train-*.parquet and val-* or validation-*, or data/ with
            them.
        short_side: pixels; 0 = pictures as they are.
        quality: of the JPEGs that are written.
    """

    source: Path
    short_side: int = 256
    quality: int = 90
    name: str = field(default="imagenet", init=False)

    def __post_init__(self) -> None:
        if self.short_side < 0 or not 1 <= self.quality <= 100:
            raise OptionError(
                f"short_side={self.short_side}, quality={self.quality} are not allowed; allowed: 0 or more, 1 to 100"
            )

    @functools.cached_property
    def folders(self) -> bool:
        """Whether it is folders of classes."""
        return (self.source / "train").is_dir() and not list((self.source / "train").glob("*.parquet"))

    @functools.cached_property
    def classes(self) -> list[str]:
        """The names of the folders of classes, in the order of their numbers."""
        found = {split: {p.name for p in (self.source / split).glob("*") if p.is_dir()} for split in SPLITS}
        if not found["train"]:
            raise SvdHubError(f"{self.source / 'train'} has no folders of classes. Next: unpack the class archives")
        if not found["val"]:
            raise SvdHubError(
                f"{self.source / 'val'} has no folders of classes, so the pictures have no labels. Next: move each "
                "into the folder of its class, as the usual valprep script does"
            )
        if unknown := sorted(found["val"] - found["train"]):
            raise SvdHubError(f"{self.source / 'val'} has classes that train has not: {', '.join(unknown[:5])}")
        return sorted(found["train"])

    @functools.cached_property
    def pictures(self) -> dict[str, Sources]:
        """Split -> files and labels, by class and name."""
        return {
            split: [
                (file, label)
                for label, name in enumerate(self.classes)
                for file in sorted((self.source / split / name).glob("*"))
                if file.suffix.lower() in PICTURES
            ]
            for split in SPLITS
        }

    @functools.cached_property
    def shards(self) -> dict[str, list[Path]]:
        """Split -> Parquet shards; the Hub's imagenet-1k says validation."""
        found = {"train": shards_of(self.source, "train")}
        try:
            found["val"] = shards_of(self.source, "val")
        except SvdHubError:
            found["val"] = shards_of(self.source, "validation")
        return found

    @functools.cached_property
    def _source(self) -> str:
        """A hash of names and sizes; a million files are looked at once."""
        found: dict[str, list[Path]] = self.shards if not self.folders else {}
        found = found or {split: [file for file, _ in self.pictures[split]] for split in SPLITS}
        return names_and_sizes(self.source, [file for split in SPLITS for file in found[split]])

    def question(self) -> dict[str, Any]:
        """Return options and source."""
        form = "folders" if self.folders else "parquet"
        return {"short_side": self.short_side, "quality": self.quality, "form": form, "source": self._source}

    def tasks(self) -> Sequence[str]:
        """Return "SPLIT-NUMBER": a chunk of pictures, or the row groups of all shards one by one."""
        return self._tasks

    @functools.cached_property
    def _tasks(self) -> list[str]:
        counts = {
            split: -(-len(self.pictures[split]) // CHUNK) if self.folders else len(self._groups[split])
            for split in SPLITS
        }
        return [f"{split}-{number:06}" for split in SPLITS for number in range(counts[split])]

    @functools.cached_property
    def _groups(self) -> dict[str, list[tuple[Path, int]]]:
        found: dict[str, list[tuple[Path, int]]] = {}
        for split in SPLITS:
            found[split] = []
            for shard in self.shards[split]:
                with opened(shard) as file:
                    found[split] += [(shard, group) for group in range(file.num_row_groups)]
        return found

    def _rows(self, task: str) -> Iterator[tuple[str, bytes, int]]:
        """Yield what each picture of a task is called, its bytes and label."""
        split, number = task.split("-")
        if self.folders:
            for path, label in self.pictures[split][int(number) * CHUNK : (int(number) + 1) * CHUNK]:
                yield path.relative_to(self.source).as_posix(), path.read_bytes(), label
            return
        shard, group = self._groups[split][int(number)]
        with opened(shard) as file:
            table = file.read_row_group(group, columns=["image", "label"])
        images = table.column("image").combine_chunks().field("bytes").to_pylist()
        for row, (data, label) in enumerate(zip(images, table.column("label").to_pylist(), strict=True)):
            yield f"{shard.name}, row group {group}, row {row}", data or b"", -1 if label is None else label

    def do(self, task: str, folder: Path) -> Done:
        """Write the pictures of a task one behind another, and their lengths and labels."""
        lengths, labels, dropped = [], [], []
        place = folder / "chunks"
        place.mkdir(exist_ok=True)
        with replacing(place / f"{task}.bin") as out:
            for what, data, label in self._rows(task):
                try:
                    if label < 0:
                        raise ValueError("no label")
                    small = shrunk(data, self.short_side, self.quality)
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                    dropped.append((what, f"unreadable: {error}"))
                    continue
                lengths.append(out.write(small))
                labels.append(label)
        with replacing(place / f"{task}.npz") as out:
            np.savez(out, lengths=np.asarray(lengths, np.int64), labels=np.asarray(labels, np.int64))
        return Done(files=(f"chunks/{task}.bin", f"chunks/{task}.npz"), dropped=tuple(dropped), facts=len(labels))

    def assemble(self, folder: Path, entries: Sequence[Entry]) -> tuple[dict[str, Any], list[str]]:
        """Join the chunks of each split into the packed form."""
        facts, spent = dict[str, Any](), list[str]()
        for split in SPLITS:
            chunks = [entry.task for entry in entries if entry.task.startswith(f"{split}-")]
            (folder / split).mkdir(exist_ok=True)
            join(folder, [f"chunks/{chunk}.bin" for chunk in chunks], f"{split}/images.bin")
            parts = [dict(np.load(folder / "chunks" / f"{chunk}.npz", allow_pickle=False)) for chunk in chunks]
            lengths, labels = (np.concatenate([part[key] for part in parts]) for key in ("lengths", "labels"))
            for key, array in (("offsets", np.concatenate([[0], np.cumsum(lengths)])), ("labels", labels)):
                with replacing(folder / split / f"{key}.npy") as out:
                    np.save(out, array.astype(np.int64))
            if not len(labels):
                raise SvdHubError(f"no picture of {split} can be read. Next: check {self.source}")
            facts[split] = {"images": len(labels), "classes": len(np.unique(labels)), "bytes": int(lengths.sum())}
            info = {"split": split, "images": len(labels), "fingerprint": self.question()["source"]}
            info |= {"short_side": self.short_side, "quality": self.quality}
            write_text(folder / split / "set.json", json.dumps(info))
            spent += [f"chunks/{chunk}.{end}" for chunk in chunks for end in ("bin", "npz")]
        if rows := self._class_rows():
            write_text(folder / "classes.json", json.dumps(rows, indent=1))
        return facts, spent

    def _class_rows(self) -> list[dict[str, Any]]:
        """Return number, folder and words of each class, [] where nobody says them."""
        if (self.source / "classes.json").is_file():
            rows: list[dict[str, Any]] = json.loads((self.source / "classes.json").read_text(encoding="utf-8"))
            return rows
        if not self.folders:
            return [{"id": k, "words": name} for k, name in enumerate(_hub_names(self.shards["train"][0]))]
        words = dict[str, str]()
        if (self.source / MAPPING).is_file():
            lines = (self.source / MAPPING).read_text(encoding="utf-8").splitlines()
            words = {first: rest for first, _, rest in (line.partition(" ") for line in lines)}
        return [{"id": k, "wnid": name, "words": words.get(name, name)} for k, name in enumerate(self.classes)]


def _hub_names(shard: Path) -> list[str]:
    """Return the class names in the metadata that the Hub's `datasets` writes into a shard, [] without."""
    with opened(shard) as file:
        metadata = file.schema_arrow.metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features["label"]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def shrunk(data: bytes, short_side: int, quality: int) -> bytes:
    """Return a picture as an RGB JPEG of this short side; as it is where it is a JPEG no larger, or no side is asked.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError: it cannot be decoded; how PIL says it.
    """
    with Image.open(io.BytesIO(data)) as picture:
        small = not short_side or min(picture.size) <= short_side
        plain = picture.format == "JPEG" and picture.mode in ("RGB", "L")
        picture.load()
        if small and (plain or not short_side):
            return data
        made = picture.convert("RGB")
    if not small:
        width, height = made.size
        factor = short_side / min(made.size)
        size = (max(short_side, round(width * factor)), max(short_side, round(height * factor)))
        made = made.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    made.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
