"""The types that annotations stand for, and whether a value of a configuration is of such a type."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass, replace
from types import NoneType

from lpo_platform.config.numbers import Range
from lpo_platform.config.sources import MAX_HOPS, Module, NotFound, last_name, lookup


@dataclass(frozen=True)
class Type:
    """A set of values; an unknown annotation accepts everything (`known` is False). ranges: of its numbers."""

    known: bool = False
    plain: frozenset[type] = frozenset()
    literals: tuple[object, ...] = ()
    items: tuple[Type, ...] | None = None
    repeated: bool = False
    values: Type | None = None
    ranges: tuple[Range, ...] = ()

    def __or__(self, other: Type) -> Type:
        if not (self.known and other.known):
            return Type()
        return Type(
            True,
            self.plain | other.plain,
            self.literals + other.literals,
            self.items if other.items is None else other.items,
            self.repeated or other.repeated,
            self.values if other.values is None else other.values,
            self.ranges + other.ranges,
        )

    def accepts(self, value: object) -> bool:
        """Whether a plain value (as YAML gives it) fits; an int fits a float, a bool fits neither."""
        if not self.known or value in _strings(value, self.literals):
            return True
        if isinstance(value, list):
            return self._accepts_items(value)
        if isinstance(value, dict):
            return self._accepts_dict(value)
        if isinstance(value, int) and not isinstance(value, bool) and float in self.plain:
            return True
        return type(value) in self.plain

    def outside(self, value: object) -> str:
        """Why a number, or one of a list, is in none of the ranges; empty where all are."""
        if isinstance(value, list):
            kinds = (self.items or ()) * (len(value) if self.repeated else 1)
            reasons = (kind.outside(item) for kind, item in zip(kinds, value, strict=False))
            return next((f"each {reason}" for reason in reasons if reason), "")
        if type(value) not in (int, float) or not math.isfinite(value):  # which no setting may be
            return ""
        return next((str(numbers) for numbers in self.ranges if value not in numbers), "")

    def _accepts_items(self, value: list[object]) -> bool:
        if self.items is None:
            return list in self.plain
        if self.repeated:
            return all(self.items[0].accepts(item) for item in value)
        return len(value) == len(self.items) and all(
            kind.accepts(item) for kind, item in zip(self.items, value, strict=True)
        )

    def _accepts_dict(self, value: dict[object, object]) -> bool:
        if self.values is not None:
            return all(self.values.accepts(item) for item in value.values())
        return dict in self.plain

    def __str__(self) -> str:
        parts = [name for kind, name in PLAIN_NAMES.items() if kind in self.plain]
        parts += [repr(value) if isinstance(value, str) else str(value) for value in self.literals]
        if self.items is not None:
            inner = ", ".join(str(item) for item in self.items)
            parts.insert(0, f"list of {inner}" if self.repeated else f"[{inner}]")
        if self.values is not None:
            parts.insert(0, f"mapping to {self.values}")
        if NoneType in self.plain:
            parts.append("null")
        return " or ".join(parts) or "anything"


PLAIN_NAMES = {int: "int", float: "float", bool: "bool", str: "str", list: "list", dict: "mapping"}

NAMED = {
    "int": int, "float": float, "bool": bool, "str": str, "Path": str, "PathLike": str, "None": NoneType,
    "list": list, "tuple": list, "Sequence": list, "Iterable": list, "List": list, "Tuple": list,
    "dict": dict, "Mapping": dict, "Dict": dict,
}  # fmt: skip

SEQUENCES = {"list", "tuple", "Sequence", "Iterable", "List", "Tuple"}

MAPPINGS = {"dict", "Mapping", "Dict"}


def _strings(value: object, literals: tuple[object, ...]) -> tuple[object, ...]:
    """The literals of the same type as value: `True == 1` must not let a bool pass for an int literal."""
    return tuple(literal for literal in literals if type(literal) is type(value))


def annotation(module: Module, node: ast.AST | None, hops: int = 0) -> Type:
    """The type of an annotation: int float bool str Path None, Literal, unions, list, tuple, dict; else unknown."""
    if node is None or hops > MAX_HOPS:
        return Type()
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return annotation(module, ast.parse(node.value, mode="eval").body, hops + 1)
        return Type(True, frozenset({NoneType})) if node.value is None else Type()
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return annotation(module, node.left, hops) | annotation(module, node.right, hops)
    if isinstance(node, ast.Subscript):
        return _subscript(module, node, hops)
    name = last_name(node)
    if name in NAMED:
        return Type(True, frozenset({NAMED[name]}))
    return _alias(module, node, hops)


def _subscript(module: Module, node: ast.Subscript, hops: int) -> Type:
    name = last_name(node.value)
    inner = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        return Type(True, literals=tuple(item.value for item in inner if isinstance(item, ast.Constant)))
    if name in ("Annotated", "Final"):
        ranges = tuple(
            _range(item) for item in inner[1:] if isinstance(item, ast.Call) and last_name(item.func) == "Range"
        )
        return replace(annotation(module, inner[0], hops), ranges=ranges)
    if name not in SEQUENCES | MAPPINGS | {"Optional", "Union"}:
        return Type()
    kinds = [annotation(module, item, hops) for item in inner if not _is_ellipsis(item)]
    if name == "Optional":
        return kinds[0] | Type(True, frozenset({NoneType}))
    if name == "Union":
        union = kinds[0]
        for kind in kinds[1:]:
            union = union | kind
        return union
    if name in MAPPINGS:
        return Type(kinds[-1].known, frozenset({dict}), values=kinds[-1])
    fixed = name in ("tuple", "Tuple") and not _is_ellipsis(inner[-1])
    return Type(all(kind.known for kind in kinds), items=tuple(kinds), repeated=not fixed)


def _range(call: ast.Call) -> Range:
    named = {item.arg: ast.literal_eval(item.value) for item in call.keywords if item.arg}
    return Range(*map(ast.literal_eval, call.args), **named)


def _is_ellipsis(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _alias(module: Module, node: ast.AST, hops: int) -> Type:
    """A name that stands for a type, such as `Loss = Literal["soft", "hard"]`, here or where it is imported from."""
    try:
        found = lookup(module, node)
    except NotFound:
        return Type()
    if found is None or isinstance(found[1], ast.ClassDef | ast.FunctionDef):
        return Type()
    return annotation(found[0], found[1], hops + 1)
