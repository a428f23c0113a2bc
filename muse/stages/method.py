"""The version of a measurement: a hash of the code that measured, whatever became of the code that was measured.

It covers the functions that made a number and, at any depth, the definitions that they name. Models, training and the
kernels below them are what is measured: a change there is a changed model. Settings are part of a record by themselves.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from muse.records.schema import Metric
from muse.training.code_key import PACKAGE, Bindings, Closure, Module, Statement, statement_of

MEASURED = ("catalog", "host", "models", "ops", "params", "records", "report", "stages.stage", "training")
"""What a measurement is made of or kept in: modules and folders of the package that no version follows an import to."""

MEASURING = ("ops.cuda_graph", "ops.planar", "records.bootstrap")
"""Modules within those that decide how something is measured."""

DIGITS = 16

Place = tuple[Path, str]
"""A module and a name that it binds at its top level; all of the module where the name is empty."""


def by(metrics: Iterable[Metric], *functions: Callable) -> list[Metric]:
    """Return the metrics as measured by these functions of the package: with the version of their method."""
    version = method_of(*functions)
    return [metric.model_copy(update={"method": version}) for metric in metrics]


def method_of(*functions: Callable, package: Path = PACKAGE) -> str:
    """Return the version of what these functions measure; "" where the source of one is not in the package.

    The same functions are looked for in another copy of the `package`.
    """
    entries = []
    for function in functions:
        module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
        file = Path(getattr(sys.modules.get(module or ""), "__file__", None) or "").resolve()
        if not file.is_relative_to(PACKAGE) or not name:
            return ""
        entries.append((file.relative_to(PACKAGE).as_posix(), name))
    return _version(tuple(sorted(entries)), package)


@functools.cache
def _version(entries: tuple[tuple[str, str], ...], package: Path) -> str:
    reach, digests = _Reach(package), set()
    for file, name in entries:
        found = _definition(package / file, name)
        if found is None:
            return ""
        digests |= reach.digests_from(reach.read((package / file).resolve()), found)
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()[:DIGITS]


def _definition(file: Path, qualified: str) -> Statement | None:
    """The definition of that name in a file, such as `Class.method`; None where there is none."""
    node: ast.AST = ast.parse(file.read_text(encoding="utf-8"))
    for name in qualified.split("."):
        node = next((child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == name), None)
        if node is None:
            return None
    return statement_of(node)


class _Reach(Closure):
    """Definitions that a statement names, and those that they name in turn."""

    def __init__(self, package: Path) -> None:
        super().__init__((), package)

    def has_no_effect(self, path: Path) -> bool:
        dotted = ".".join(path.relative_to(self.root).with_suffix("").parts)
        return _within(dotted, MEASURED) and not _within(dotted, MEASURING)

    def digests_from(self, module: Module, statement: Statement) -> set[str]:
        """Return the digests of a statement of a module and of all that it reaches."""
        found, seen = {self.digest(module, statement)}, set()
        waiting = list(self._named(module, statement))
        while waiting:
            path, name = place = waiting.pop()
            if place in seen:
                continue
            seen.add(place)
            there = self.read(path)
            for reached in there.statements:
                if not name or name in reached.binds:
                    found.add(self.digest(there, reached))
                    waiting += self._named(there, reached)
        return found

    def _named(self, module: Module, statement: Statement) -> Iterator[Place]:
        bound = self.known_in(module, statement)
        for chain in statement.chains:
            yield from self._places(module, chain, bound)

    def _places(self, module: Module, chain: tuple[str, ...], bound: Bindings) -> Iterator[Place]:
        """Where the things are defined that a dotted chain of names stands for."""
        if any(chain[0] in statement.binds for statement in module.statements):
            yield module.path, chain[0]
        for dotted, name in bound.get(chain[0], ()):
            if dotted:
                yield from self._imported(dotted, (name, *chain[1:]) if name else chain[1:])

    def _imported(self, dotted: str, chain: tuple[str, ...]) -> Iterator[Place]:
        while chain and self.file_of(f"{dotted}.{chain[0]}"):
            dotted, chain = f"{dotted}.{chain[0]}", chain[1:]
        file = self.file_of(dotted)
        if self.has_no_effect(file):
            return
        module = self.read(file)
        if chain and chain[0] in module.names:
            yield from self._places(module, chain, self.bindings(module))
        else:
            yield file, ""


def _within(dotted: str, names: Iterable[str]) -> bool:
    return any(dotted == name or dotted.startswith(f"{name}.") for name in names)
