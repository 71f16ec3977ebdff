"""The arguments, class attributes and docstring of a class or function, read from its source without importing it.

The signature is the schema of a configuration node: the arguments of the class that `_target_` names say which keys the
node may have and of which type.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from lpo_platform.config.annotations import Type, annotation
from lpo_platform.config.sources import MAX_HOPS, Module, NotFound, bases_of, last_name, resolve, split_target


@dataclass(frozen=True)
class Parameter:
    """One argument. `scalar` is False for live objects, which a configuration cannot write down."""

    name: str
    type: Type
    required: bool
    keyword_only: bool

    @property
    def scalar(self) -> bool:
        return self.type.known


@dataclass(frozen=True)
class Signature:
    """Arguments of a class or function. `open` accepts any further keyword."""

    name: str
    parameters: tuple[Parameter, ...]
    open: bool = False

    def __getitem__(self, name: str) -> Parameter | None:
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


def signature(target: str) -> Signature | None:
    """The signature of a dotted path such as `lpo_platform.methods.cpo.CPO`.

    Returns None where the source says nothing (a compiled module, a name made at run time).
    Raises NotFound where the module or the name does not exist.
    """
    module, name = split_target(target)
    found = resolve(module, name)
    return None if found is None else _of(*found)


def attribute(target: str, name: str, default: object = None) -> Any:
    """The class attribute `name`: the literal in the body of the class or of a base.

    The default where it says nothing, where the value is not written out, and where there is no class to read.
    """
    own = next(iter(_literals(target, name)), ())
    return own[0] if own else default


def attributes(target: str, name: str) -> list[Any]:
    """The literals that stand at `name` in a class and in its bases, its own first."""
    return [value for found in _literals(target, name) for value in found]


def docstring(target: str) -> str:
    """What stands in the docstring of a class or function; empty where there is none to read."""
    try:
        found = resolve(*split_target(target))
    except (NotFound, SyntaxError):
        return ""
    documented = found is not None and isinstance(found[1], ast.ClassDef | ast.FunctionDef)
    return (ast.get_docstring(found[1]) or "") if found is not None and documented else ""


@cache
def _literals(target: str, name: str) -> tuple[tuple[Any, ...], ...]:
    """The values of an attribute, each alone in a tuple, the class's own first; () for one that is not written out."""
    try:
        found = resolve(*split_target(target))
    except (NotFound, SyntaxError):
        return ()
    if found is None or not isinstance(found[1], ast.ClassDef):
        return ()
    return tuple(map(_literal, _said(*found, name)))


def _literal(node: ast.expr) -> tuple[Any, ...]:
    try:
        return (ast.literal_eval(node),)
    except ValueError:
        return ()


def _said(module: Module, node: ast.ClassDef, name: str, hops: int = 0) -> Iterator[ast.expr]:
    """The values of an attribute, the class's own before those of its bases."""
    for item in node.body:
        named = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
        if isinstance(named, ast.Name) and named.id == name and getattr(item, "value", None) is not None:
            yield item.value
    for base_module, base in bases_of(module, node) if hops < MAX_HOPS else ():
        yield from _said(base_module, base, name, hops + 1)


def _of(module: Module, node: ast.AST) -> Signature | None:
    if isinstance(node, ast.FunctionDef):
        return _of_function(module, node, node.name, skip=0)
    if isinstance(node, ast.ClassDef):
        return _of_class(module, node)
    return None


def _of_class(module: Module, node: ast.ClassDef, hops: int = 0) -> Signature | None:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _with_passed_on(module, node, item, _of_function(module, item, node.name, skip=1), hops)
    if _is_dataclass(node):
        return Signature(node.name, tuple(_fields(module, node).values()))
    for base_module, base in bases_of(module, node):
        found = _of_class(base_module, base, hops + 1) if hops < MAX_HOPS else None
        if found is None or found.parameters or found.open:
            return found and Signature(node.name, found.parameters, found.open)
    known = sum(1 for _ in bases_of(module, node))
    plain = sum(1 for base in node.bases if last_name(base) in {"object", "Protocol", "ABC", "Generic"})
    return Signature(node.name, ()) if known + plain == len(node.bases) else None


def _with_passed_on(module: Module, node: ast.ClassDef, init: ast.FunctionDef, own: Signature, hops: int) -> Signature:
    """`__init__(self, *, beta, **shared)` that calls `super().__init__(**shared)` also takes what its base takes.

    What the call says itself is taken care of (`super().__init__(steps=rounds, **shared)`).
    """
    said = _passes_on(init)
    if not own.open or hops >= MAX_HOPS or said is None:
        return own
    for base_module, base in bases_of(module, node):
        above = _of_class(base_module, base, hops + 1)
        if above is not None:
            more = tuple(p for p in above.parameters if own[p.name] is None and p.name not in said)
            return Signature(own.name, own.parameters + more, above.open)
    return own


def _passes_on(init: ast.FunctionDef) -> set[str] | None:
    """The arguments named in the `super().__init__(...)` that passes the rest on; None where no call does."""
    rest = init.args.kwarg.arg if init.args.kwarg else None
    for call in ast.walk(init):
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "super().__init__":
            continue
        if any(k.arg is None and isinstance(k.value, ast.Name) and k.value.id == rest for k in call.keywords):
            return {k.arg for k in call.keywords if k.arg is not None}
    return None


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(
        last_name(item.func if isinstance(item, ast.Call) else item) == "dataclass" for item in node.decorator_list
    )


def _fields(module: Module, node: ast.ClassDef) -> dict[str, Parameter]:
    fields: dict[str, Parameter] = {}
    for base_module, base in reversed(list(bases_of(module, node))):
        if _is_dataclass(base):
            fields |= _fields(base_module, base)
    for item in node.body:
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        if last_name(item.annotation) == "ClassVar" or _keyword(item.value, "init") is False:
            continue
        required = item.value is None or (_is_field(item.value) and not _has_default(item.value))
        keyword_only = _keyword(item.value, "kw_only") is True
        fields[item.target.id] = Parameter(item.target.id, annotation(module, item.annotation), required, keyword_only)
    return fields


def _is_field(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and last_name(node.func) == "field"


def _has_default(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and any(k.arg in ("default", "default_factory") for k in node.keywords)


def _keyword(node: ast.AST | None, name: str) -> object:
    if isinstance(node, ast.Call) and _is_field(node):
        for item in node.keywords:
            if item.arg == name and isinstance(item.value, ast.Constant):
                return item.value.value
    return None


def _of_function(module: Module, node: ast.FunctionDef, name: str, *, skip: int) -> Signature:
    arguments = [*node.args.posonlyargs, *node.args.args]
    first_default = len(arguments) - len(node.args.defaults)
    parameters = [
        Parameter(item.arg, annotation(module, item.annotation), index < first_default, False)
        for index, item in enumerate(arguments)
    ][skip:]
    parameters += [
        Parameter(item.arg, annotation(module, item.annotation), default is None, True)
        for item, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    ]
    return Signature(name, tuple(parameters), node.args.kwarg is not None)
