"""Python files read without importing them: where a module lies, and which statement defines a name.

Importing a class would cost seconds (torch, diffusers); parsing its file costs milliseconds, so a typing error on the
command line is answered at once.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

MAX_HOPS = 8


class NotFound(LookupError):
    """No such module or name; `part` is the longest path that exists, `names` what it offers."""

    def __init__(self, part: str, names: tuple[str, ...]) -> None:
        super().__init__(part)
        self.part = part
        self.names = names


@dataclass
class Module:
    """A parsed file: its top-level names and what they stand for."""

    name: str
    is_package: bool
    names: dict[str, ast.AST] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)


def split_target(target: str) -> tuple[str, str]:
    """Module and name; raises NotFound at the first part that does not exist."""
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise NotFound("", ())
    for length in range(1, len(parts)):
        if find_module(".".join(parts[:length])) is not None:
            continue
        parent = ".".join(parts[: length - 1])
        # A class inside the module found so far: `package.module.Class.method`.
        if parent and parts[length - 1] in _public(parent):
            return parent, parts[length - 1]
        raise NotFound(parent, _public(parent) if parent else ())
    return ".".join(parts[:-1]), parts[-1]


@cache
def find_module(name: str) -> ModuleSpec | None:
    """The spec of a module without importing its parents (importlib.util.find_spec would)."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    for index, _ in enumerate(rest, 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        path = ".".join(name.split(".")[: index + 1])
        spec = PathFinder.find_spec(path, list(spec.submodule_search_locations))
    return spec


def _public(module: str) -> tuple[str, ...]:
    """Names that a module offers: classes, functions, and for a package its sub-modules."""
    spec = find_module(module)
    parsed = parse(module)
    names = set() if parsed is None else {n for n in parsed.names if not n.startswith("_")}
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        names |= {p.stem for p in Path(folder).glob("*.py") if not p.stem.startswith("_")}
        names |= {p.parent.name for p in Path(folder).glob("*/__init__.py")}
    return tuple(sorted(names))


@cache
def parse(name: str) -> Module | None:
    """The parsed module, or None where there is no Python source to read."""
    spec = find_module(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    module = Module(name, spec.submodule_search_locations is not None)
    for node in _statements(tree.body):
        _enter(module, node)
    return module


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, also those under `if TYPE_CHECKING:` and `try:`."""
    for node in body:
        if isinstance(node, ast.If):
            yield from _statements(node.body + node.orelse)
        elif isinstance(node, ast.Try):
            yield from _statements(node.body)
        else:
            yield node


def _enter(module: Module, node: ast.stmt) -> None:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        module.names[node.name] = node
    elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        module.names[node.targets[0].id] = node.value
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        module.names[node.target.id] = node.value
    elif isinstance(node, ast.Import):
        for alias in node.names:
            module.imports[alias.asname or alias.name.split(".")[0]] = (
                alias.name if alias.asname else alias.name.split(".")[0],
                None,
            )
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            module.imports[alias.asname or alias.name] = (_absolute(module, node), alias.name)


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + (1 if module.is_package else 0)]
    return ".".join([*parts, node.module] if node.module else parts)


def resolve(module_name: str, name: str, hops: int = 0) -> tuple[Module, ast.AST] | None:
    """The statement that defines a name, followed through imports; NotFound where the file does not have it."""
    module = parse(module_name)
    if module is None or hops > MAX_HOPS:
        return None
    if name in module.names:
        return module, module.names[name]
    if name in module.imports:
        origin, original = module.imports[name]
        if original is None or find_module(f"{origin}.{original}") is not None:
            return None
        return resolve(origin, original, hops + 1)
    if "*" in module.imports or "__getattr__" in module.names:
        return None
    raise NotFound(module_name, _public(module_name))


def lookup(module: Module, node: ast.AST) -> tuple[Module, ast.AST] | None:
    """What a name or a dotted name in an annotation or a base list stands for."""
    if isinstance(node, ast.Subscript):
        return lookup(module, node.value)
    if isinstance(node, ast.Name):
        if node.id not in module.names and node.id not in module.imports:
            return None
        return resolve(module.name, node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        origin = module.imports.get(node.value.id)
        if origin is not None:
            name = origin[0] if origin[1] is None else f"{origin[0]}.{origin[1]}"
            return resolve(name, node.attr)
    return None


def bases_of(module: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
    for base in node.bases:
        try:
            found = lookup(module, base)
        except NotFound:
            continue
        if found is not None and isinstance(found[1], ast.ClassDef):
            yield found[0], found[1]


def last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
