"""Volumes that are read once and kept in memory, as far as that reaches; the others are read again when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from torch import Tensor

from ..console import bar

T = TypeVar("T")


class Memory:
    """Bytes that several sets share.

    Args:
        gigabytes: in all.
    """

    def __init__(self, gigabytes: float) -> None:
        self.left = int(gigabytes * 1e9)

    def take(self, count: int) -> bool:
        """Return whether `count` bytes are left, and take them."""
        if count > self.left:
            return False
        self.left -= count
        return True


class Kept(Sequence[T]):
    """The items `read(0)`, `read(1)`, ...; workers share what the process had read before they began.

    Args:
        read: makes an item, always the same for an index.
        count: of the items.
        memory: what they may take.
    """

    def __init__(self, read: Callable[[int], T], count: int, memory: Memory) -> None:
        self.read, self.length = read, count
        self.items: dict[int, T] = {}
        for index in bar(range(count), "reading volumes"):
            item = read(index)
            if not memory.take(bytes_of(item)):
                break  # most volumes are of about one size: the next would not fit either
            self.items[index] = item

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        if not 0 <= index < self.length:
            raise IndexError(index)
        return self.items[index] if index in self.items else self.read(index)


def bytes_of(item: Any) -> int:
    """Return the bytes of the tensors in a tensor, a list, or an object with attributes."""
    if isinstance(item, Tensor):
        return item.nbytes
    if isinstance(item, list | tuple):
        return sum(map(bytes_of, item))
    return sum(map(bytes_of, vars(item).values())) if hasattr(item, "__dict__") else 0
