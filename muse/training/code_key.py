"""The code that a result depends on, as one hash: it changes with what the code does, and not with where it stands.

The modules of this package that a file imports, at any level of any import, are its closure. Each top-level statement
of it is hashed together with what its names stand for: definitions of this package by their content, other
packages by name. So a definition that moves to another file leaves the hash alone, a name that is bound to another
definition does not, and neither do comments, docstrings and the order of definitions.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
NO_EFFECT_ON_RESULTS = (
    "catalog",
    "host",
    "models.generate",
    "models.states",
    "models.stepper",
    "models.static_step",
    "models.tensor_file",
    "models.weights",
    "params",
    "records",
    "training.checkpoint",
    "training.code_key",
    "training.nonfinite",
)
"""Modules and folders of the package that a hash leaves out: they keep, check and show what others compute."""


Import = ast.Import | ast.ImportFrom
Bindings = dict[str, list[tuple[str, str]]]
"""For each imported name what it may stand for: (dotted module of ours, name in it), or ("", name elsewhere)."""


class CodeKeyError(ValueError):
    """An import of this package that leads to nothing; the message names the file, the line and what was imported."""


@dataclass(frozen=True)
class Statement:
    """A top-level statement: its own digest, what it imports by itself, and the names it uses as dotted chains."""

    digest: str
    imports: tuple[Import, ...]
    chains: frozenset[tuple[str, ...]]
    binds: frozenset[str]
    is_definition: bool  # of a function or a class: what it imports is known within it only


@dataclass(frozen=True)
class Module:
    """A file of the package; `package` is the dotted name that its relative imports start from."""

    path: Path
    package: str
    statements: tuple[Statement, ...]
    top_imports: tuple[Import, ...]

    @functools.cached_property
    def imports(self) -> list[Import]:
        """Those whose names the whole module knows."""
        inner = [node for s in self.statements if not s.is_definition for node in s.imports]
        return [*self.top_imports, *inner]

    @functools.cached_property
    def names(self) -> set[str]:
        """The names that the module binds at its top level."""
        names = {name for statement in self.statements for name in statement.binds}
        return names | {_bound_by(alias) for node in self.imports for alias in node.names}


def code_sha256(*files: str | Path, package: Path | None = None) -> str:
    """Return the hash of what these files and the modules of the package that they import do."""
    return hashlib.sha256("\n".join(sorted(set(Closure(files, package or PACKAGE).digests()))).encode()).hexdigest()


def closure(*files: str | Path, package: Path | None = None) -> list[str]:
    """Return the modules that such a hash covers, as paths within the package where they lie in it."""
    found = Closure(files, package or PACKAGE)
    paths = [(path, path.is_relative_to(found.root)) for path in found.modules]
    return sorted(path.relative_to(found.root).as_posix() if inside else path.name for path, inside in paths)


class Closure:
    """All modules that some files reach, and what the names in them stand for."""

    def __init__(self, files: Sequence[str | Path], root: Path) -> None:
        """Read the files and what they import; CodeKeyError for an import of the package that leads to nothing."""
        self.root, self.name = root.resolve(), root.resolve().name
        self.read_files: dict[Path, Module] = {}
        self.known: dict[Path, Bindings] = {}
        self.modules: dict[Path, Module] = {}
        waiting = [Path(file).resolve() for file in files]
        while waiting:
            path = waiting.pop()
            if path not in self.modules:
                module = self.modules[path] = self.read(path)
                waiting += [file for file in self.files_read_by(module) if not self.has_no_effect(file)]

    def files_read_by(self, module: Module) -> list[Path]:
        """Return the files of ours that a module imports, at its top level or anywhere within."""
        files = []
        for node in [*module.top_imports, *(node for statement in module.statements for node in statement.imports)]:
            for alias in node.names:
                if dotted := self.target(module, node, alias)[0]:
                    files.append(self.file_of(alias.name if isinstance(node, ast.Import) else dotted))
        return list(dict.fromkeys(files))

    def digests(self) -> Iterator[str]:
        """Yield the digest of each statement together with what its names stand for."""
        for module in self.modules.values():
            for statement in module.statements:
                yield self.digest(module, statement)

    def digest(self, module: Module, statement: Statement) -> str:
        """Return the digest of one statement together with what its names stand for."""
        bound = self.known_in(module, statement)
        meanings = {".".join(chain): self.meaning(module, chain, bound) for chain in statement.chains}
        lines = sorted(f"{chain} is {meaning}" for chain, meaning in meanings.items() if meaning)
        return hashlib.sha256("\n".join([statement.digest, *lines]).encode()).hexdigest()

    def known_in(self, module: Module, statement: Statement) -> Bindings:
        """Return what imported names stand for within a statement: the module's, and those that it imports itself."""
        bound = self.bindings(module)
        if statement.is_definition and statement.imports:
            return bound | self._bindings(module, statement.imports)
        return bound

    def read(self, path: Path) -> Module:
        """Return a file as a module, read once."""
        if path not in self.read_files:
            inside = path.is_relative_to(self.root)
            package = ".".join([self.name, *path.relative_to(self.root).parts[:-1]]) if inside else ""
            self.read_files[path] = Module(path, package, *parse(path.read_text(encoding="utf-8")))
        return self.read_files[path]

    def has_no_effect(self, path: Path) -> bool:
        """Whether a module is one of those that a hash leaves out."""
        dotted = ".".join(path.relative_to(self.root).with_suffix("").parts)
        return any(dotted == name or dotted.startswith(f"{name}.") for name in NO_EFFECT_ON_RESULTS)

    def file_of(self, dotted: str) -> Path | None:
        """Return the file of a module or package of ours by its dotted name, None where there is none."""
        path = self.root.joinpath(*dotted.split(".")[1:])
        files = [path / "__init__.py"] if path == self.root else [path.with_suffix(".py"), path / "__init__.py"]
        return next((file for file in files if file.is_file()), None)

    def bindings(self, module: Module) -> Bindings:
        """Return what a module's imported names stand for; CodeKeyError where one of ours leads to nothing."""
        if module.path not in self.known:
            self.known[module.path] = self._bindings(module, module.imports)
        return self.known[module.path]

    def _bindings(self, module: Module, imports: Sequence[Import]) -> Bindings:
        found: Bindings = {}
        for node in imports:
            for alias in node.names:
                found.setdefault(_bound_by(alias), []).append(self.target(module, node, alias))
        return found

    def target(self, module: Module, node: Import, alias: ast.alias) -> tuple[str, str]:
        """Return what one name of an import stands for, as in `Bindings`."""
        if isinstance(node, ast.ImportFrom):
            return self._from(module, node, alias.name)
        if alias.name.split(".")[0] != self.name:
            return "", alias.name
        if self.file_of(alias.name) is None:
            raise _unresolved(module, node, alias.name)
        return (alias.name if alias.asname else self.name), ""

    def _from(self, module: Module, node: ast.ImportFrom, name: str) -> tuple[str, str]:
        source = node.module or ""
        if node.level and module.package:
            parts = module.package.split(".")
            if node.level > len(parts):
                raise _unresolved(module, node, "." * node.level + source)
            source = ".".join([*parts[: len(parts) - node.level + 1], *([source] if source else [])])
        if source.split(".")[0] != self.name:
            return "", "." * node.level + f"{source}:{name}"
        if self.file_of(f"{source}.{name}"):
            return f"{source}.{name}", ""
        file = self.file_of(source)
        if file is None or name not in self.read(file).names:
            raise _unresolved(module, node, f"{source}.{name}")
        return source, name

    def meaning(self, module: Module, chain: Sequence[str], bound: Bindings) -> str:
        """Return what a dotted chain of names stands for, as digests; "" for a name that the module does not bind."""
        found = [statement.digest for statement in module.statements if chain[0] in statement.binds]
        for dotted, name in bound.get(chain[0], ()):
            found.append(self.imported(dotted, [name, *chain[1:]] if name and dotted else chain[1:], name))
        return " or ".join(sorted(found))

    def imported(self, dotted: str, chain: Sequence[str], elsewhere: str) -> str:
        """Return what a chain of names stands for in a module of ours: a definition, or all of the module."""
        if not dotted:
            return elsewhere
        while chain and self.file_of(f"{dotted}.{chain[0]}"):
            dotted, chain = f"{dotted}.{chain[0]}", chain[1:]
        file = self.file_of(dotted)
        if self.has_no_effect(file):
            return "no effect"
        module = self.read(file)
        if chain and chain[0] in module.names:
            return self.meaning(module, chain, self.bindings(module))
        return " and ".join(sorted(statement.digest for statement in module.statements))


def _unresolved(module: Module, node: Import, what: str) -> CodeKeyError:
    return CodeKeyError(f"{module.path}:{node.lineno}: import of {what}: no such module or name")


def _bound_by(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


@functools.cache
def parse(source: str) -> tuple[tuple[Statement, ...], tuple[Import, ...]]:
    """Return the statements of a module's text, and the imports among them."""
    statements, imports = [], []
    for node in ast.parse(source).body:
        if isinstance(node, Import):
            imports.append(node)
        elif not _is_text(node):
            statements.append(statement_of(node))
    return tuple(statements), tuple(imports)


def statement_of(node: ast.stmt) -> Statement:
    inner = tuple(child for child in ast.walk(node) if isinstance(child, Import))
    chains, binds = frozenset(_chains(node)), frozenset(_bound(node))
    plain = _Plain().visit(node)
    return Statement(hashlib.sha256(ast.dump(plain).encode()).hexdigest(), inner, chains, binds, _defines(node))


def _defines(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


class _Plain(ast.NodeTransformer):
    """Leaves out docstrings, and of imports all but the names that they bind: `Closure.digest` adds their meaning."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if _is_text(node) else self.generic_visit(node)

    def visit_Import(self, node: Import) -> ast.AST:
        return ast.Import([ast.alias(_bound_by(alias)) for alias in node.names])

    visit_ImportFrom = visit_Import  # noqa: N815


def _chains(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Yield every name that is used, with the attributes that follow it: ("planar", "lift") of planar.lift(x)."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        yield (node.id, *reversed(parts))
    for child in ast.iter_child_nodes(node):
        yield from _chains(child)


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the names that a top-level statement binds in its module, other than by imports."""
    if _defines(node):
        yield node.name
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Lambda | ast.comprehension):
            yield from _bound(child)
