"""What a class or function takes, read from its source without importing it.

The signature is the schema of a configuration node: the arguments of the class that `_target_` names say which keys the
node may have and of which type. Importing the class would cost seconds (torch, diffusers); parsing its file costs
milliseconds, so a typing error on the command line is answered at once.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import NoneType
from typing import Any

MAX_HOPS = 8


class NotFound(LookupError):
    """No such module or name; `part` is the longest path that exists, `names` what it offers."""

    def __init__(self, part: str, names: tuple[str, ...]) -> None:
        super().__init__(part)
        self.part = part
        self.names = names


@dataclass(frozen=True)
class Type:
    """A set of values; an unknown annotation accepts everything (`known` is False)."""

    known: bool = False
    plain: frozenset[type] = frozenset()
    literals: tuple[object, ...] = ()
    items: tuple[Type, ...] | None = None
    repeated: bool = False
    values: Type | None = None

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


@dataclass
class Module:
    """A parsed file: its top-level names and what they stand for."""

    name: str
    is_package: bool
    names: dict[str, ast.AST] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)


def signature(target: str) -> Signature | None:
    """The signature of a dotted path such as `lpo_platform.methods.cpo.CPO`.

    Returns None where the source says nothing (a compiled module, a name made at run time).
    Raises NotFound where the module or the name does not exist.
    """
    module, name = _split(target)
    found = _resolve(module, name)
    return None if found is None else _of(*found)


def attribute(target: str, name: str, default: object = None) -> Any:
    """What a class says of itself: the literal that stands at `name` in its body or in that of a base.

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
        found = _resolve(*_split(target))
    except (NotFound, SyntaxError):
        return ""
    documented = found is not None and isinstance(found[1], ast.ClassDef | ast.FunctionDef)
    return (ast.get_docstring(found[1]) or "") if found is not None and documented else ""


@cache
def _literals(target: str, name: str) -> tuple[tuple[Any, ...], ...]:
    """The values of an attribute, each alone in a tuple, the class's own first; () for one that is not written out."""
    try:
        found = _resolve(*_split(target))
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
    for base_module, base in _bases(module, node) if hops < MAX_HOPS else ():
        yield from _said(base_module, base, name, hops + 1)


def _split(target: str) -> tuple[str, str]:
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


def _resolve(module_name: str, name: str, hops: int = 0) -> tuple[Module, ast.AST] | None:
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
        return _resolve(origin, original, hops + 1)
    if "*" in module.imports or "__getattr__" in module.names:
        return None
    raise NotFound(module_name, _public(module_name))


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
    for base_module, base in _bases(module, node):
        found = _of_class(base_module, base, hops + 1) if hops < MAX_HOPS else None
        if found is None or found.parameters or found.open:
            return found and Signature(node.name, found.parameters, found.open)
    known = sum(1 for _ in _bases(module, node))
    plain = sum(1 for base in node.bases if _last_name(base) in {"object", "Protocol", "ABC", "Generic"})
    return Signature(node.name, ()) if known + plain == len(node.bases) else None


def _with_passed_on(module: Module, node: ast.ClassDef, init: ast.FunctionDef, own: Signature, hops: int) -> Signature:
    """`__init__(self, *, beta, **shared)` that calls `super().__init__(**shared)` also takes what its base takes.

    What the call says itself is taken care of (`super().__init__(steps=rounds, **shared)`).
    """
    said = _passes_on(init)
    if not own.open or hops >= MAX_HOPS or said is None:
        return own
    for base_module, base in _bases(module, node):
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


def _bases(module: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
    for base in node.bases:
        try:
            found = _lookup(module, base)
        except NotFound:
            continue
        if found is not None and isinstance(found[1], ast.ClassDef):
            yield found[0], found[1]


def _lookup(module: Module, node: ast.AST) -> tuple[Module, ast.AST] | None:
    """What a name or a dotted name in an annotation or a base list stands for."""
    if isinstance(node, ast.Subscript):
        return _lookup(module, node.value)
    if isinstance(node, ast.Name):
        if node.id not in module.names and node.id not in module.imports:
            return None
        return _resolve(module.name, node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        origin = module.imports.get(node.value.id)
        if origin is not None:
            name = origin[0] if origin[1] is None else f"{origin[0]}.{origin[1]}"
            return _resolve(name, node.attr)
    return None


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(
        _last_name(item.func if isinstance(item, ast.Call) else item) == "dataclass" for item in node.decorator_list
    )


def _fields(module: Module, node: ast.ClassDef) -> dict[str, Parameter]:
    fields: dict[str, Parameter] = {}
    for base_module, base in reversed(list(_bases(module, node))):
        if _is_dataclass(base):
            fields |= _fields(base_module, base)
    for item in node.body:
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        if _last_name(item.annotation) == "ClassVar" or _keyword(item.value, "init") is False:
            continue
        required = item.value is None or (_is_field(item.value) and not _has_default(item.value))
        keyword_only = _keyword(item.value, "kw_only") is True
        fields[item.target.id] = Parameter(item.target.id, annotation(module, item.annotation), required, keyword_only)
    return fields


def _is_field(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Call) and _last_name(node.func) == "field"


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


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


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
    name = _last_name(node)
    if name in NAMED:
        return Type(True, frozenset({NAMED[name]}))
    return _alias(module, node, hops)


def _subscript(module: Module, node: ast.Subscript, hops: int) -> Type:
    name = _last_name(node.value)
    inner = list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name == "Literal":
        return Type(True, literals=tuple(item.value for item in inner if isinstance(item, ast.Constant)))
    if name in ("Annotated", "Final"):
        return annotation(module, inner[0], hops)
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


def _is_ellipsis(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is Ellipsis


def _alias(module: Module, node: ast.AST, hops: int) -> Type:
    """A name that stands for a type, such as `Loss = Literal["soft", "hard"]`, here or where it is imported from."""
    try:
        found = _lookup(module, node)
    except NotFound:
        return Type()
    if found is None or isinstance(found[1], ast.ClassDef | ast.FunctionDef):
        return Type()
    return annotation(found[0], found[1], hops + 1)
