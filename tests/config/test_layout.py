"""The layout: every room of the package imports only from those below it, and nothing runs in circles."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import lpo_platform
from lpo_platform.config.options import shipped

PACKAGE = Path(lpo_platform.__file__).parent
FROM_BELOW = (
    "config", "diffusion", "runs", "hardware", "models", "tasks", "rewards", "data", "methods", "evaluation",
    "tracking", "commands", "api", "__main__",
)  # fmt: skip


def name_of(path: Path) -> str:
    parts = ("lpo_platform", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it but for the sake of types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for node in typing for part in node.body for inner in ast.walk(part)}
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in skipped:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import) and id(node) not in skipped:
            names |= {alias.name for alias in node.names}
    return {name for name in names if name in MODULES and MODULES[name].name != "__init__.py"} - {name_of(path)}


EDGES = {name: imported(path) for name, path in MODULES.items() if path.name != "__init__.py"}


def room(name: str) -> str:
    return name.split(".")[1]


def test_the_rooms_are_those_of_the_readme() -> None:
    assert {room(name) for name in EDGES} <= set(FROM_BELOW)
    places = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_") and path.name != "py.typed"}
    assert len(places - {"conf"}) <= 14


def test_nothing_is_imported_from_above() -> None:
    rank = {name: number for number, name in enumerate(FROM_BELOW)}
    above = [f"{a} imports {b}" for a, found in EDGES.items() for b in sorted(found) if rank[room(b)] > rank[room(a)]]
    assert above == []


def test_no_circle() -> None:
    try:
        order = list(TopologicalSorter(EDGES).static_order())
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None
    assert len(order) == len(EDGES) > 200


def test_private_names_stay_in_their_file() -> None:
    """Of the package, the launchers and the tests: what another file imports is public."""
    root, own = PACKAGE.parent, ("lpo_platform", "toys", "parity", "launchers")
    files = [path for room in ("lpo_platform", "launchers", "tests") for path in (root / room).rglob("*.py")]
    found = [
        f"{path.relative_to(root)}:{node.lineno} {node.module}.{alias.name}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in own
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert len(files) > 300 and found == []


def test_no_method_and_no_task_is_known_by_name() -> None:
    """What is not of methods or tasks asks their classes; `control` is also a group, `pose` also a key."""
    names = {*shipped("method"), *shipped("task")} - {"control", "none", "pose"}
    rooms = ("config", "runs", "hardware", "tracking", "commands")
    files = [path for room_ in rooms for path in (PACKAGE / room_).rglob("*.py") if path.parent.name != "benchmark"]
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.value}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    ]
    assert {"cpo", "lpo", "canny"} <= names and len(files) > 100 and found == []


def test_no_two_files_of_tests_have_one_name() -> None:
    """Without packages among the tests pytest takes the second for the first, where both can be collected."""
    names = [path.name for path in (PACKAGE.parent / "tests").rglob("test_*.py")]
    assert len(names) > 80 and sorted(set(names)) == sorted(names)
