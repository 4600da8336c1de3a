"""The package's folders: each imports only those below it, without circles, and is small enough to be read."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

import pytest
from paths import PACKAGE

# Folders in which the modules of a folder may import, besides their own.
BELOW = {
    "model": set(),
    "visualization": set(),
    "formats": {"model"},
    "data": {"formats", "model"},
    "evaluation": {"data", "model", "visualization"},
    "hub": {"data", "model"},
    "training": {"data", "evaluation", "formats", "hub", "model", "visualization"},
    "planning": {"data", "model", "training", "visualization"},
    "curation": {"data", "evaluation", "formats", "model", "visualization"},
    "checkpoints": {"data", "hub", "model"},
    "cli": {
        *("checkpoints", "curation", "data", "evaluation", "formats", "hub", "model", "planning", "training"),
        "visualization",
    },
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}
# Without those that only say what their folder is.
LENGTHS = {
    name: len(path.read_text(encoding="utf-8").splitlines())
    for name, path in MODULES.items()
    if path.name != "__init__.py"
}


def folder_of(name: str) -> str:
    """The folder of a module; nothing for the package's own, which may import everything."""
    parts = MODULES[name].relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def own_imports(node: ast.AST, name: str) -> Iterator[str]:
    """The modules of this package that statements anywhere below a node import."""
    for statement in ast.walk(node):
        if isinstance(statement, ast.Import):
            found = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            package = name.split(".")
            if MODULES[name].name == "__init__.py":
                package.append("")
            start = package[: -statement.level] if statement.level else []
            source = ".".join([*start, *([statement.module] if statement.module else [])])
            # A module of that folder, or else what a module defines.
            inner = [f"{source}.{alias.name}" for alias in statement.names]
            found = [module if module in MODULES else source for module in inner]
        else:
            continue
        yield from (module for module in found if module.split(".")[0] == PACKAGE.name)


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
LATE = {
    name: {
        module
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for module in own_imports(function, name)
    }
    for name, tree in TREES.items()
}
IMPORTS = {name: set(own_imports(tree, name)) - LATE[name] for name, tree in TREES.items()}


def test_no_circles():
    assert all(IMPORTS[name] <= MODULES.keys() for name in MODULES)
    list(TopologicalSorter(IMPORTS).static_order())
    list(TopologicalSorter(BELOW).static_order())


@pytest.mark.parametrize("folder", BELOW)
def test_folders_import_downwards(folder):
    for name in MODULES:
        if folder_of(name) == folder:
            assert {folder_of(module) for module in IMPORTS[name]} <= BELOW[folder] | {folder}, name


def test_every_folder_is_known():
    assert {folder_of(name) for name in MODULES} == BELOW.keys() | {""}


def test_nothing_is_imported_late_but_commands():
    for name, modules in LATE.items():
        assert {folder_of(module) for module in modules} <= {"cli"}, name


def test_sizes():
    folders = [MODULES[name].parent for name in LENGTHS]
    # What travels with a checkpoint has to be flat.
    most = {PACKAGE / "model": 23}
    assert all(folders.count(folder) <= most.get(folder, 18) for folder in folders)
    assert max(LENGTHS.values()) <= 660
    assert median(LENGTHS.values()) <= 260
