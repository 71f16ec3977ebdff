"""The package as a whole: what it imports is declared, and works on every operating system."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from toys.instances import first

from lpo_platform import __version__
from lpo_platform.__main__ import COMMANDS, main

REPO = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOLDERS = ("lpo_platform", "launchers", "hydra_plugins")
NOT_ON_WINDOWS = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "readline", "curses"}
# Of packages that an extra brings and that may be missing here, by the name that is imported.
EXTRAS = {
    "ai_edge_litert": "ai-edge-litert",
    "bitsandbytes": "bitsandbytes",
    "datasets": "datasets",
    "optuna": "optuna",
    "pycocotools": "pycocotools",
    "submitit": "submitit",
    "trackio": "trackio",
    "wandb_workspaces": "wandb-workspaces",
}


@cache
def trees() -> dict[Path, ast.Module]:
    files = [path for folder in FOLDERS for path in sorted((REPO / folder).rglob("*.py"))]
    assert len(files) > 100
    return {path.relative_to(REPO): ast.parse(path.read_text(encoding="utf-8")) for path in files}


def imports(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Every module that is imported, and the names that are taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module), [alias.name for alias in node.names]


@cache
def imported() -> dict[str, set[Path]]:
    """Third-party packages by the name that is imported, and where."""
    found = defaultdict(set)
    for path, tree in trees().items():
        for module, _ in imports(tree):
            if (top := module.partition(".")[0]) not in {*sys.stdlib_module_names, "lpo_platform", "hydra_plugins"}:
                found[top].add(path)
    return found


def requirements(*extras: str) -> dict[str, str]:
    """The names that pyproject.toml asks for, in lower case, with their bounds."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    found = (re.fullmatch(r"([A-Za-z0-9-]+)(?:\[.*\])?(.*)", line) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}


DISTRIBUTIONS = packages_distributions()


def distribution(name: str) -> str:
    named = DISTRIBUTIONS.get(name)
    return EXTRAS.get(name) or (named[0] if named else name).lower().replace("_", "-")


def test_what_is_imported_is_declared() -> None:
    extras = [extra for extra in PROJECT["optional-dependencies"] if extra != "dev"]
    declared = requirements(*extras)
    found = imported().items()
    missing = {name: sorted(map(str, places)) for name, places in found if distribution(name) not in declared}
    assert missing == {}


def test_an_extra_is_imported_inside_of_a_function_only() -> None:
    optional = {name for name in imported() if distribution(name) not in requirements()}
    assert optional == set(EXTRAS)
    found = [(str(path), name) for path, tree in trees().items() for name in at_import(tree) if name in optional]
    assert found == []


def at_import(tree: ast.Module) -> Iterator[str]:
    """The packages that a module imports when it is itself imported, but not those for the sake of types."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (module.partition(".")[0] for module, _ in imports(node))
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def test_a_package_whose_private_names_are_imported_has_an_upper_bound() -> None:
    bounds = requirements("pose")
    private = set()
    for tree in trees().values():
        for module, names in imports(tree):
            top, *below = module.split(".")
            if top in imported() and any(re.match(r"_[A-Za-z]", name) for name in [*below, *names]):
                private.add(distribution(top))
    assert {"hydra-core", "torch", "torchmetrics"} <= private
    assert [name for name in sorted(private) if "<" not in bounds[name]] == []


def test_every_dependency_has_a_lower_bound_and_stands_once() -> None:
    for group in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]:
        assert [line for line in group if ">=" not in line and not line.startswith("lpo-platform[")] == []
        names = [re.split(r"[>\[]", line)[0].lower() for line in group]
        assert len(set(names)) == len(names)


def locked(file: str) -> dict[str, str]:
    found = re.findall(r"^([a-z0-9._-]+)==(\S+)", (REPO / file).read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


def test_the_locks_cover_every_extra_and_agree() -> None:
    small, large = locked("requirements.lock"), locked("requirements-extras.lock")
    assert {name: large.get(name) for name in small} == small
    asked = requirements(*PROJECT["optional-dependencies"])
    assert set(asked) - {"lpo-platform"} <= set(large)
    assert set(requirements("dev", "slurm")) - {"lpo-platform"} <= set(small)


def test_nothing_that_windows_lacks_is_needed_to_import_a_module() -> None:
    found = [(str(path), name) for path, tree in trees().items() for name in at_import(tree) if name in NOT_ON_WINDOWS]
    assert found == []


def test_what_windows_lacks_of_os_and_signal_is_asked_for_first() -> None:
    """Each use stands in a function that looks whether it is there: by hasattr, AttributeError or sys.platform."""
    lacking = {f"os.{name}" for name in ("fork", "getpgid", "getuid", "killpg", "nice", "setsid", "sysconf")}
    lacking |= {f"os.sched_{name}" for name in ("getaffinity", "setaffinity", "yield")}
    lacking |= {f"signal.SIG{name}" for name in ("ALRM", "CHLD", "HUP", "KILL", "QUIT", "USR1", "USR2")}
    found, blind = 0, []
    for path, tree in trees().items():
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            text = ast.unparse(function)
            names = {ast.unparse(node) for node in ast.walk(function) if isinstance(node, ast.Attribute)} & lacking
            found += len(names)
            looks = any(word in text for word in ("hasattr(", "AttributeError", "sys.platform"))
            blind += [(str(path), name) for name in names if not looks]
    assert found >= 3 and blind == []


def test_text_is_read_and_written_in_one_encoding_everywhere() -> None:
    """Windows takes another one where none is named; the examples write ASCII."""
    silent = []
    for path, tree in ((path, tree) for path, tree in trees().items() if path.parent.name != "examples"):
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            named = {keyword.arg for keyword in call.keywords}
            if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
                atomic = ast.unparse(call.func.value) == "files"  # runs/files.py encodes by itself
                silent += [(str(path), call.lineno)] * (not atomic and "encoding" not in named)
            mode = [node.value for node in call.args[:2] if isinstance(node, ast.Constant)]
            if ast.unparse(call.func) == "open" or ast.unparse(call.func).endswith(").open"):
                binary = any("b" in str(word) for word in mode)
                silent += [(str(path), call.lineno)] * (not binary and "encoding" not in named)
    assert silent == []


# What Python has on Linux and lacks on Windows, taken away before anything of ours is imported.
WITHOUT = f"""
import os, signal, sys
for name in {sorted(NOT_ON_WINDOWS - {"posix"})}:
    sys.modules[name] = None
for name in ("SIGHUP", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD"):
    delattr(signal, name)
for name in ("getuid", "getpgid", "killpg", "setsid", "getloadavg", "sched_getaffinity"):
    delattr(os, name)
from lpo_platform.__main__ import main
main()
"""


def without(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *words], cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )  # fmt: skip


@pytest.mark.parametrize("name", first(COMMANDS, keep=3))
def test_help_works_without_what_windows_lacks(name: str, tmp_path: Path) -> None:
    done = without(name, "--help", cwd=tmp_path)
    assert done.returncode == 0 and f"lpo-{name}" in done.stdout, done.stderr


def test_a_mistake_is_named_without_what_windows_lacks(tmp_path: Path) -> None:
    done = without("train", "task=cany", cwd=tmp_path)
    assert done.returncode == 2 and "canny" in done.stderr and "Traceback" not in done.stderr


def test_python_m_knows_every_command_of_the_wheel(capsys: pytest.CaptureFixture[str]) -> None:
    assert {f"lpo-{name}": ":".join(place) for name, place in COMMANDS.items()} == PROJECT["scripts"]


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=lambda words: "".join(words))
def test_version_is_ours(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["python -m lpo_platform", *words, "--version"])
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code or 0, capsys.readouterr().out) == (0, f"lpo-platform {__version__}\n")


@pytest.mark.parametrize(("words", "code"), [([], 2), (["fly"], 2), (["--help"], 0)])
def test_python_m_without_a_command_lists_them(words: list[str], code: int, tmp_path: Path) -> None:
    done = without(*words, cwd=tmp_path)
    assert done.returncode == code and all(name in done.stderr for name in COMMANDS)
