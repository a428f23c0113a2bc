"""The house: which folder may import which. It knows folders; a new module needs no new line here."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "muse"
MODULES = sorted(PACKAGE.rglob("*.py"))
FLOORS = (
    {"host", "catalog"},
    {"ops", "data"},
    {"models", "records", "params"},
    {"measure", "training", "report", "hub"},
    {"bench", "cluster", "counting"},
    {"stages", "runner", "harness"},
    {"cli"},
    {"__init__", "__main__"},
)
"""Folders and single modules of the package from the ground up: each imports only what lies on a lower floor."""

WITHOUT_TORCH = ("catalog", "params", "records", "report", "runner", "host", "cli")
THRESHOLDS = "records/criteria.py"


def place(path: Path) -> str:
    """The folder of a module, or its name where it lies in the package itself."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def floor(name: str) -> int:
    found = [number for number, names in enumerate(FLOORS) if name in names]
    assert found, f"muse/{name} is on no floor: name it in FLOORS"
    return found[0]


@functools.cache
def imports(path: Path) -> tuple[tuple[ast.ImportFrom | ast.Import, list[str], str], ...]:
    """Every import of the package in a file: its node, the parts of the module within the package, a name of it."""
    return tuple(imports_in(path))


def imports_in(path: Path) -> Iterator[tuple[ast.ImportFrom | ast.Import, list[str], str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "muse":
                    yield node, alias.name.split(".")[1:], ""
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level:
                above = path.relative_to(PACKAGE).parts[:-1]
                parts = [*above[: len(above) - node.level + 1], *parts]
            elif parts[:1] == ["muse"]:
                parts = parts[1:]
            else:
                continue
            yield from ((node, parts, alias.name) for alias in node.names)


def file_of(parts: list[str]) -> Path | None:
    path = PACKAGE.joinpath(*parts)
    files = [path.with_suffix(".py"), path / "__init__.py"] if parts else [PACKAGE / "__init__.py"]
    return next((file for file in files if file.is_file()), None)


@functools.cache
def imported_files(path: Path) -> set[Path]:
    """The files of the package that a file imports."""
    return {file_of([*parts, name]) or file_of(parts) for _, parts, name in imports(path)} - {None}


def test_every_part_of_the_package_is_on_one_floor():
    places = {place(path) for path in MODULES}
    assert places == set().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(places)
    single = [path.name for path in PACKAGE.glob("*.py")]
    assert len(single) <= 6, f"{single}: which folder does each belong to?"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down(path):
    here = place(path)
    for file in imported_files(path):
        there = place(file)
        assert there == here or floor(there) < floor(here), f"{path} imports {file}: {there} is not below {here}"


@pytest.mark.parametrize("folder", sorted({place(path) for path in MODULES}))
def test_no_folder_holds_a_circle(folder):
    files = [path for path in MODULES if place(path) == folder]
    graph = {path: imported_files(path) & set(files) - {path} for path in files}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_are_relative_inside_a_folder_and_absolute_across(path):
    if path.parent == PACKAGE:
        return
    for node, parts, name in imports(path):
        inside = (parts or [name])[0] == place(path)
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        assert relative == inside, f"{path}:{node.lineno}"


def test_package_files_are_empty_but_for_public_names():
    full = {path.parent.name for path in MODULES if path.name == "__init__.py" and path.read_text().strip()}
    assert full <= {"muse", "measure", "figures", "texts"}


def test_what_starts_fast_loads_no_torch():
    """Asked of one process, which imports every module of these parts and then looks for torch."""
    modules = [path for path in MODULES if place(path) in WITHOUT_TORCH and not path.name.startswith("warm")]
    names = [".".join(("muse", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in modules]
    names = [name.removesuffix(".__init__") for name in names]
    code = f"import importlib, sys\nfor name in {names}:\n    importlib.import_module(name)\n"
    code += "    assert 'torch' not in sys.modules, f'{name} loads torch'\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_operations_know_torch_and_each_other_only():
    standard = sys.stdlib_module_names | {"torch", "triton"}
    for path in MODULES:
        if place(path) != "ops":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] in standard, f"{path}:{node.lineno}"
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= standard, f"{path}:{node.lineno}"


def test_kernels_are_bound_by_one_file_each():
    """`x_triton` is offered by one file of `ops`, which knows what to do without it; kernels may share tiles."""
    for kernel in (path for path in MODULES if path.stem.endswith("_triton")):
        users = [path for path in MODULES if kernel in imported_files(path)]
        plain = [path for path in users if not path.stem.endswith("_triton")]
        assert len(plain) == 1 or (not plain and users), f"{kernel.name} is bound by {plain}"
        assert {place(path) for path in users} == {"ops"}, kernel


def test_no_two_kernels_share_a_name():
    """A profile and the check that every kernel compiles know them by their names."""
    kernels = [path for path in MODULES if path.stem.endswith("_triton")]
    found = [name for path in kernels for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE)]
    assert found
    assert sorted(found) == sorted(set(found))


def test_only_criteria_hold_the_published_thresholds():
    found = {path: set(thresholds_in(path)) for path in MODULES}
    assert len(found.pop(PACKAGE / THRESHOLDS)) == 3
    assert {path: values for path, values in found.items() if values} == {}


def thresholds_in(path: Path) -> Iterator[object]:
    """The ratios of perplexity and memory, and the pair of bounds of a gradient's norm, where they stand as numbers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and node.value in (1.03, 0.52):
            yield node.value
        elif isinstance(node, ast.Tuple) and [getattr(part, "value", None) for part in node.elts] == [1e-6, 1e3]:
            yield (1e-6, 1e3)


def test_measurements_do_not_print():
    for path in MODULES:
        if place(path) == "measure":
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), path
