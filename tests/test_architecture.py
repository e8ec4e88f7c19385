"""The arrows between the rooms, read from the imports: they run one way, and a new room says where it stands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From below to above: a room imports from the lines before its own. Rooms of later issues have their place already.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("files", "images", "spoken", "card", "four_axes", "sniffing", "diagnosis", "ops", "metrics", "weights"),
    ("preprocess", "functional_calls", "inference"),
    ("entry", "prepared"),
    ("catalog", "pickles", "transport", "volume"),
    ("checkpoint", "store"),
    ("models", "origins", "consent"),
    ("skeleton",),
    ("depth_plans", "counting", "inflation_plans", "sizes"),
    ("folding",),
    ("optimise",),
    ("variable_dimension",),
    ("inflation",),
    ("adapt",),
    ("saved", "report", "identify"),
    ("canonical",),
    ("hub",),
    ("tasks",),
    ("entry_points", "predict", "doctor", "survey"),
    ("cli",),
    ("__main__",),
)
RANK = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
OUTSIDE = ("export", "training")


def imports(path: Path, package: str, *, lazy: bool = True) -> Iterator[str]:
    """Yield the full names of the modules a file imports, except for type checkers; `lazy`: inside functions too."""
    skipped: set[ast.AST] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if typing_only or (not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            skipped.update(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def files(folder: str) -> list[tuple[Path, str]]:
    """Return every file under a top-level folder with the package it is in."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).parent.parts
        package = ".".join(parts if folder == "svd_hub" else ("svd_hub", *parts))
        found.append((path, package))
    return found


def room(module: str) -> str:
    """Return the room of svd_hub that a module belongs to; "" for the door, other packages' names as they are."""
    parts = module.split(".")
    if parts[0] != "svd_hub":
        return module
    name = parts[1] if len(parts) > 1 else ""
    return name if name in RANK or name in OUTSIDE or (ROOT / "svd_hub" / f"{name}.py").exists() else ""


HUB = [item for item in files("svd_hub") if item[0] != ROOT / "svd_hub" / "__init__.py"]


def own(path: Path) -> str:
    return path.relative_to(ROOT / "svd_hub").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [path for path, _ in HUB], ids=lambda p: str(p.relative_to(ROOT / "svd_hub")))
def test_arrows_run_one_way(path: Path) -> None:
    package = dict(HUB)[path]
    here = own(path)
    assert here in RANK, f"svd_hub/{here} is a new room: give it its place in LEVELS"
    for module in imports(path, package):
        there = room(module)
        assert module != "svd_hub.load", f"{path} goes through the front door"
        if module.startswith("svd_hub.") and there in RANK and there != here:
            assert RANK[there] < RANK[here], f"{here} imports {there} ({module})"
        assert there not in OUTSIDE, f"{here} knows {there}"


def reached(start: str) -> set[str]:
    """Return every room and foreign top-level module that a room imports, at once or later."""
    found: set[str] = set()
    todo = [start]
    while todo:
        here = todo.pop()
        for path, package in HUB:
            if own(path) != here:
                continue
            for module in imports(path, package):
                there = room(module) if module.startswith("svd_hub") else module.split(".")[0]
                if there and there not in found:
                    found.add(there)
                    todo += [there] if there in RANK else []
    return found


def test_rooms_that_know_little() -> None:
    for name in ("store", "transport", "catalog", "card", "errors", "files"):
        allowed = {"errors", "catalog", "entry", "card", "preprocess", "inference", "images", "transport", "files"}
        assert (reached(name) - {name}) & set(RANK) <= allowed, name
    for name in ("store", "transport", "files"):
        direct = {m.split(".")[0] for path, package in HUB if own(path) == name for m in imports(path, package)}
        assert not direct & {"torch", "safetensors", "numpy"}
    never = {"store", "transport", "hub", "catalog", "huggingface_hub", "urllib", "http", "socket"}
    for name in ("models", "ops", "variable_dimension", "checkpoint", "adapt", "origins"):
        assert not reached(name) & never, name
    assert "origins" not in reached("store")
    assert reached("hub") >= {"store", "checkpoint", "origins", "models"}, "the walk sees nothing"


def test_export_and_training_stay_apart() -> None:
    for folder, other in (("export", "training"), ("training", "export")):
        for path, package in files(folder):
            for module in imports(path, package):
                assert not module.startswith((f"svd_hub.{other}", f"{other}.")), f"{path} imports {module}"
                assert module.split(".")[0] not in (folder, other), f"{path}: import it as svd_hub.{folder}"


def test_inside_the_package_imports_are_relative() -> None:
    for folder in ("svd_hub", "export", "training"):
        for path, _ in files(folder):
            absolute = [
                node.module
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("svd_hub")
            ]
            assert absolute == [], f"{path} imports {absolute}"


def test_no_circles_when_modules_are_imported() -> None:
    """Level by level there can be none between rooms; this holds it for the files inside one, too."""
    graph: dict[str, set[str]] = {}
    names = {f"{package}.{path.stem}" if path.stem != "__init__" else package for path, package in HUB}
    for path, package in HUB:
        name = f"{package}.{path.stem}" if path.stem != "__init__" else package
        targets = set()
        for module in imports(path, package, lazy=False):
            target = module if module in names else module.rpartition(".")[0]
            targets |= {target} & names
        graph[name] = targets - {name}
    while leaves := {name for name, targets in graph.items() if not targets}:
        graph = {name: targets - leaves for name, targets in graph.items() if name not in leaves}
    assert graph == {}, f"a circle: {graph}"


def test_no_print_and_no_assert_outside_their_places() -> None:
    for folder in ("svd_hub", "export", "training"):
        for path, _ in files(folder):
            for node in ast.walk(ast.parse(path.read_text())):
                assert not isinstance(node, ast.Assert), f"{path}:{node.lineno} asserts"
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id != "print", f"{path}:{node.lineno} prints"
