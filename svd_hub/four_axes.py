"""Habits of code that counts on four axes, (N, C, H, W), found in its byte code: `inflate` names them.

Views of four sizes, reductions over axis 2 or 3, shapes unpacked into four, rows and columns by index. As in
`functional_calls`, what is found is possibly wrong for volumes, not certainly; sizes held in variables are not seen.
"""

from __future__ import annotations

import builtins
import dis
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

# Methods that are told a size for each axis, and methods that are told an axis.
SIZED = ("view", "reshape", "expand", "repeat", "permute", "tile", "broadcast_to")
ALONG = (
    *("mean", "sum", "amax", "amin", "max", "min", "std", "var", "std_mean", "var_mean", "logsumexp"),
    *("cat", "concat", "stack", "squeeze", "unsqueeze", "flatten", "size"),
)
# Methods that keep all axes and work along the one that is told: from the end, H and W of a volume are still meant.
KEEPING = (
    *("roll", "flip", "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "softmax", "log_softmax", "softmin"),
    *("sort", "argsort", "diff"),
)
SWAPPING = ("transpose", "swapaxes", "swapdims", "movedim", "moveaxis")  # 1 and 2 are swapped after flatten(2)
LATER = ("roll", "diff")  # the axis comes after another number
READ = "rows or columns of a shape"
INDEXED = "rows or columns by index"
HABITS = frozenset(
    (
        *(READ, INDEXED, *(f"{name} of four sizes" for name in SIZED)),
        *(f"{name} over rows or columns" for name in (*ALONG, *KEEPING, *SWAPPING)),
    )
)
PLANE = (2, 3, -1, -2)
LAST = sys.version_info >= (3, 13)
SILENT = ("CACHE", "EXTENDED_ARG", "PRECALL", "KW_NAMES", "NOP", "NOT_TAKEN")


@dataclass
class Call:
    """A call whose arguments are being loaded: its name, and the integers and the length of a tuple among them."""

    name: str = ""
    taken: list[set[int]] = field(default_factory=list)  # of each argument
    length: int = 0

    def take(self, constant: object) -> None:
        """Note a constant argument: an integer or a tuple of them."""
        items = constant if isinstance(constant, tuple | list) else (constant,)
        if all(isinstance(n, int) and not isinstance(n, bool) for n in items):
            self.taken += [set(items)] if items else []
            self.length = len(items) if isinstance(constant, tuple | list) else self.length

    def join(self, count: int) -> None:
        """Note that the last arguments are one tuple or list of `count` items."""
        self.length = count or self.length
        if count and self.taken:
            self.taken[-count:] = [set().union(*self.taken[-count:])]

    def habits(self, count: int) -> Iterator[str]:
        """Yield what the call says of four axes, with `count` arguments."""
        if self.name in SIZED and 4 in (count, self.length):
            yield f"{self.name} of four sizes"
        ends: tuple[int, ...] = ()
        if self.name in ALONG:
            ends = (3, -2) if self.name == "flatten" else PLANE  # flatten(2) and flatten(1, -1) fit volumes
        elif self.name in (*KEEPING, *SWAPPING):
            ends = (2, 3) if self.name in KEEPING else (3,)
        numbers = self.taken[-1:] if self.name in LATER else self.taken
        if any(group.intersection(ends) for group in numbers):
            yield f"{self.name} over rows or columns"


class Reader:
    """Reads one code object; `held` are the attributes of `self`, whose name in the code is in `me`."""

    def __init__(self, code: CodeType, me: tuple[str, ...], held: Mapping[str, Any]) -> None:
        self.code, self.me, self.held = code, me, held
        self.waiting = [Call()]  # calls whose arguments are being loaded, the innermost last
        self.before: tuple[str, Any] = ("", "")  # the operation before, and what it loaded or called
        self.spans = 0  # slices and ellipses since the last index
        self.naming = False  # what is called is still being loaded: the attributes of a module that was imported

    def habits(self) -> Iterator[str]:
        """Yield the words of `HABITS` that are found, more than once perhaps."""
        for step in dis.get_instructions(self.code):
            if step.opname in SILENT:
                continue
            op, value = step.opname, step.argval
            naming, self.naming = self.naming, False
            if op in ("LOAD_CONST", "LOAD_SMALL_INT"):
                yield from self._constant(value)
            elif "NULL" in step.argrepr or op in ("LOAD_METHOD", "PUSH_NULL"):
                self._begin(op, value)
            elif naming and (op == "LOAD_ATTR" or self.before[0] == "PUSH_NULL"):
                self.waiting[-1].name, self.naming = value, True
            elif op == "LOAD_ATTR" and self._loads_me() and value in self.held:
                self.waiting[-1].take(self.held[value])
            elif op in ("CALL", "CALL_KW", "CALL_FUNCTION_EX") and self.before[0] != "GET_ITER":  # a comprehension's
                call = self.waiting.pop() if len(self.waiting) > 1 else Call()
                yield from call.habits(step.arg or 0)
                value = call.name
            elif op == "UNPACK_SEQUENCE" and value == 4 and self.before[1] in ("shape", "size"):
                yield READ
            else:
                yield from self._other(op, step.arg or 0, step.argrepr)
            self.before = (op, value)

    def _begin(self, op: str, value: Any) -> None:
        """A call begins: its name is here, or before (the NULL of Python 3.13 comes last), or comes next."""
        if op == "PUSH_NULL":
            value = self.before[1] if LAST and self.before[0] == "LOAD_ATTR" else ""
        self.naming = op == "LOAD_GLOBAL" or (op == "PUSH_NULL" and not LAST)
        self.waiting.append(Call("" if op == "LOAD_GLOBAL" and hasattr(builtins, value) else value))

    def _loads_me(self) -> bool:
        op, value = self.before
        last = value[-1] if isinstance(value, tuple) and value else value  # two variables loaded by one operation
        return op.startswith(("LOAD_FAST", "LOAD_DEREF")) and last in self.me

    def _constant(self, value: Any) -> Iterator[str]:
        items = value if isinstance(value, tuple) else (value,)
        spans = [item for item in items if isinstance(item, slice)]  # from Python 3.14 on
        self.spans += len(spans) + sum(item is Ellipsis for item in items)
        first = spans[0].start if spans else value
        if self.before == ("LOAD_ATTR", "shape") and isinstance(first, int) and first in PLANE:
            yield READ
        self.waiting[-1].take(value)

    def _other(self, op: str, count: int, shown: str) -> Iterator[str]:
        if op in ("BUILD_TUPLE", "BUILD_LIST"):
            self.waiting[-1].join(count)
        self.spans += op == "BUILD_SLICE"
        if op in ("BINARY_SUBSCR", "STORE_SUBSCR") or (op == "BINARY_OP" and shown == "[]"):
            made, value = self.before
            items = value if isinstance(value, tuple) else ()
            length = value if made == "BUILD_TUPLE" else len(items)
            if (self.spans and length >= 3) or any(item is Ellipsis for item in items):
                yield INDEXED
            self.spans = 0
        if op.startswith(("BINARY", "COMPARE")) or op == "BUILD_SLICE":
            self.waiting[-1].taken.clear()  # they were no arguments of the call
