"""Which names of TensorRT export/tensorrt uses and how, read from the sources without running them.

The module is called `trt` there, and what is given to a function says its type (`network: trt.INetworkDefinition`);
from these and from what the API says of what it returns, the type of every other object follows. What is asked of an
object whose type does not follow is not seen: a test holds that all that runs against the double was.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Api = dict[str, dict[str, Any]]
SOURCES = Path(__file__).resolve().parents[1] / "export" / "tensorrt"
MODULE = "trt"


@dataclass(frozen=True)
class Use:
    """One use of a member: "call" and "override" with its arguments, "get", or "set".

    Attributes:
        of: the class, or "module" for the module itself.
        name: the member.
        how: see above.
        where: file and line.
        count: of arguments by position.
        keywords: names of the others.
    """

    of: str
    name: str
    how: str
    where: str
    count: int = 0
    keywords: tuple[str, ...] = ()


def uses(api: Api, folder: Path = SOURCES) -> list[Use]:
    """Return every use in the sources of a folder, by the types that an API says."""
    trees = {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.py"))}
    returns = {
        node.name: kind
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (kind := _annotated(node.returns))
    }
    found: list[Use] = []
    for name, tree in trees.items():
        reader = _Reader(api, name, returns)
        reader.visit(tree)
        found += reader.found
    return found


def problems(api: Api, found: Sequence[Use]) -> list[str]:
    """Return what of the uses an API does not allow, a line each."""
    return [f"{use.where}: {text}" for use in found if (text := _problem(api, use))]


def only(api: Api, found: Sequence[Use]) -> Api:
    """Return the part of an API that is used, with the names of the classes that it speaks of."""
    part: Api = {}
    for use in found:
        members = part.setdefault(use.of, {})
        if use.name in api.get(use.of, {}):
            members[use.name] = api[use.of][use.name]
            for name in re.findall(r"[A-Z][\w.]*\w", str(members[use.name])):
                if name in api:
                    part.setdefault(name, {})
    return part


def signature(text: str) -> tuple[list[str], int, str]:
    """Return the names of a signature's arguments, how many of them must be given, and the type it returns."""
    node = ast.parse(f"def f{text}: ...").body[0]
    if not isinstance(node, ast.FunctionDef):
        raise TypeError(text)
    names = [argument.arg for argument in node.args.args]
    return names, len(names) - len(node.args.defaults), ast.unparse(node.returns) if node.returns else ""


def fits(text: str, count: int, keywords: Sequence[str]) -> bool:
    """Return whether a call with this many arguments by position and these by keyword fits a signature."""
    names, least, _ = signature(text)
    given = [*names[:count], *keywords]
    return count <= len(names) and len(set(given)) == len(given) and set(names[:least]) <= set(given) <= set(names)


def _problem(api: Api, use: Use) -> str:
    if use.of not in api:
        return f"trt.{use.of} does not exist"
    member = api[use.of].get(use.name)
    named = f"trt.{use.of}.{use.name}".replace(".module.", ".")
    if member is None:
        return f"{named} does not exist"
    if use.how in ("call", "override"):
        if not isinstance(member, list):
            return f"{named} is no method"
        if not any(fits(text, use.count, use.keywords) for text in member):
            return (
                f"{named} takes {' or '.join(member) or 'nothing: it cannot be made'}, not {use.count}, {use.keywords}"
            )
        return ""
    if isinstance(member, list):
        return f"{named} is a method"
    return f"{named} cannot be set" if use.how == "set" and not str(member).startswith("<->") else ""


def _annotated(node: ast.expr | None) -> str:
    """Return the class of an annotation `trt.Name`, "" of any other."""
    parts = _dotted(node) if node is not None else []
    return ".".join(parts[1:]) if parts[:1] == [MODULE] else ""


def _dotted(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return [*inner, node.attr] if inner else []
    return [node.id] if isinstance(node, ast.Name) else []


class _Reader(ast.NodeVisitor):
    """Walks one file; names and `self.` attributes are known by their types from where they are bound on."""

    def __init__(self, api: Api, file: str, returns: dict[str, str]) -> None:
        self.api, self.file, self.returns = api, file, returns
        self.known: dict[str, str] = {}
        self.found: list[Use] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """See what a class of our own overrides."""
        for base in node.bases:
            if kind := _annotated(base):
                methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
                for method in methods:
                    if not method.name.startswith("_"):
                        count = len(method.args.args) - 1
                        self._use(kind, method.name, "override", method, count)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Know the arguments by their annotations; names bound inside are forgotten after it."""
        outside = dict(self.known)
        for argument in (*node.args.args, *node.args.kwonlyargs):
            self._bind(argument.arg, _annotated(argument.annotation))
        for item in node.body:
            self.visit(item)
        attributes = {name: kind for name, kind in self.known.items() if "." in name}
        self.known = {**outside, **attributes}

    def visit_Assign(self, node: ast.Assign) -> None:
        """Know a name by what it is given."""
        kind = self.type_of(node.value)
        for target in node.targets:
            self._target(target, kind)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Know a name by its annotation."""
        kind = self.type_of(node.value) if node.value is not None else ""
        self._target(node.target, _annotated(node.annotation) or kind)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        """Know a name by what it is given."""
        self._target(node.target, self.type_of(node.value))

    def visit_ListComp(self, node: ast.ListComp) -> None:
        """Read a comprehension in the order it runs: what its conditions bind is known in its element."""
        for part in (*node.generators, node.elt):
            self.visit(part)

    visit_SetComp = visit_GeneratorExp = visit_ListComp  # noqa: N815

    def visit_Call(self, node: ast.Call) -> None:
        """Note a call."""
        self.type_of(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Note what is read."""
        self.type_of(node)

    def type_of(self, node: ast.AST) -> str:
        """Return the class of an expression, "" where it does not follow, and note what it uses."""
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Name):
            return self.known.get(node.id, "")
        if isinstance(node, ast.NamedExpr):
            self.visit_NamedExpr(node)
            return self.known.get(node.target.id, "")
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
            self.visit(node)
        else:
            self.generic_visit(node)
        return ""

    def _call(self, node: ast.Call) -> str:
        for part in (*node.args, *(word.value for word in node.keywords)):
            self.type_of(part)
        given = {"count": len(node.args), "keywords": tuple(word.arg or "**" for word in node.keywords)}
        made = _annotated(node.func)
        if made in self.api:  # an object of the class
            self._use(made, "__init__", "call", node, **given)
            return made
        if isinstance(node.func, ast.Attribute):
            of = self._owner(node.func)
            if of:
                explicit = node.func.attr == "__init__"  # a base's __init__ is given self
                count = given["count"] - explicit  # type: ignore[operator]
                self._use(of, node.func.attr, "call", node, count, given["keywords"])  # type: ignore[arg-type]
                member = self.api.get(of, {}).get(node.func.attr, [])
                texts = member if isinstance(member, list) else []
                return next((signature(text)[2] for text in texts if signature(text)[2] in self.api), "")
            return ""
        self.type_of(node.func)
        return self.returns.get(node.func.id, "") if isinstance(node.func, ast.Name) else ""

    def _attribute(self, node: ast.Attribute) -> str:
        dotted = ".".join(_dotted(node))
        if dotted in self.known:
            return self.known[dotted]
        of = self._owner(node)
        if not of:
            return ""
        self._use(of, node.attr, "get", node)
        member = str(self.api.get(of, {}).get(node.attr, ""))
        kind = of if member.startswith("constant") else member.removeprefix("<").removeprefix("-> ")
        kind = f"{of}.{node.attr}".removeprefix("module.") if member == "class" else kind
        return kind if kind in self.api else ""

    def _owner(self, node: ast.Attribute) -> str:
        """Return the class that an attribute is of; a class that the API does not have is noted and so told."""
        parts = _dotted(node.value)
        if parts[:1] == [MODULE] and MODULE not in self.known:
            name = ".".join(parts[1:]) or "module"
            if name not in self.api:
                self._use(name, node.attr, "get", node)
                return ""
            return name
        return self.type_of(node.value)

    def _target(self, target: ast.AST, kind: str) -> None:
        if isinstance(target, ast.Tuple):
            for part in target.elts:
                self._target(part, "")
            return
        if isinstance(target, ast.Attribute):
            of = self.type_of(target.value)
            if of:
                self._use(of, target.attr, "set", target)
                return
        self._bind(".".join(_dotted(target)), kind)

    def _bind(self, name: str, kind: str) -> None:
        if kind:
            self.known[name] = kind
        else:
            self.known.pop(name, None)

    def _use(self, of: str, name: str, how: str, node: ast.AST, count: int = 0, keywords: tuple[str, ...] = ()) -> None:
        line = getattr(node, "lineno", 0)
        self.found.append(Use(of, name, how, f"{self.file}:{line}", count, keywords))


def names(found: Sequence[Use]) -> Iterator[tuple[str, str]]:
    """Yield (class, member) of the uses."""
    for use in found:
        yield use.of, use.name
