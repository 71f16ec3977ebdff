"""Help of every command, and of every mistake on a command line, comes before anything heavy is imported."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from toys.instances import first

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
HEAVY = ("torch", "lightning", "diffusers", "transformers", "wandb", "pandas", "matplotlib", "cv2")
MODULES = 900  # torch has 1,200; a command 420 to 660
PROGRAM = f"""
import atexit, runpy, sys
told = lambda: [[m for m in {HEAVY} if m in sys.modules], len(sys.modules)]
atexit.register(lambda: print(*told(), sep="|", file=sys.stderr))
"""


def cold(program: str, *arguments: str, cwd: Path) -> tuple[int, str]:
    """Exit code and what was shown; fails where something heavy was imported, or very much."""
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, *arguments],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    *shown, last = done.stderr.strip().splitlines()
    heavy, modules = last.split("|")
    assert heavy == "[]", f"imports {heavy}"
    assert int(modules) < MODULES
    return done.returncode, done.stdout + "\n".join(shown)


def script(name: str) -> str:
    module, function = SCRIPTS[name].split(":")
    return f"sys.argv[0] = {name!r}\nfrom {module} import {function} as main\nmain()"


@pytest.mark.parametrize("name", first(sorted(SCRIPTS), keep=4))
def test_help(name: str, tmp_path: Path) -> None:
    code, shown = cold(script(name), "--help", cwd=tmp_path)
    assert code == 0 and name in shown


@pytest.mark.parametrize("name", first(sorted(SCRIPTS), keep=4))
def test_a_mistake(name: str, tmp_path: Path) -> None:
    code, shown = cold(script(name), "no_such_key=3", "no_such_key=4", cwd=tmp_path)
    assert code == 2 and "no_such_key" in shown and "Traceback" not in shown


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--what", "nothing"], 2)])
def test_the_benchmark(arguments: list[str], code: int, tmp_path: Path) -> None:
    assert cold(script("lpo-benchmark"), *arguments, cwd=tmp_path)[0] == code
