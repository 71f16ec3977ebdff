"""The wheel works outside the repository; the lock and the Makefile keep their promises."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]
WHEEL = {
    "conf": "lpo_platform/conf",
    "lpo_platform": "lpo_platform",
    "tests/parity": "lpo_platform/commands/benchmark/authors/parity",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked as an installer would."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=REPO, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(command: str, *arguments: str, site: Path, cwd: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(site)}
    code = f"import sys; sys.argv[0] = 'lpo'; from lpo_platform.commands import main; main.{command}()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=900
    )


def test_the_wheel_holds_what_the_repository_does(site: Path):
    for folder, inside in WHEEL.items():
        listed = subprocess.run(["git", "ls-files", folder], cwd=REPO, check=True, capture_output=True, text=True)
        files = [Path(line).relative_to(folder) for line in listed.stdout.split()]
        assert files and [str(file) for file in files if not (site / inside / file).is_file()] == []
    (info,) = site.glob("*.dist-info")
    scripts = (info / "entry_points.txt").read_text()
    assert all(name in scripts for name in ("lpo-train", "lpo-eval", "lpo-prepare"))


def test_the_wheel_uses_its_own_conf(site: Path, tmp_path: Path):
    shown = run("train", "task=canny", "--info", "searchpath", site=site, cwd=tmp_path)
    assert shown.returncode == 0 and f"file://{site}/lpo_platform/conf" in shown.stdout
    assert str(REPO) not in shown.stdout
    assert run("train", "task=cany", site=site, cwd=tmp_path).returncode == 2


@pytest.mark.slow
def test_the_wheel_trains_outside_the_repository(site: Path, tmp_path: Path):
    done = run("train", "method=cpo", "task=canny", "debug=smoke", "hardware=cpu", site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "outputs" / "cpo-tiny-canny" / "latest"
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"
    assert list((folder / "export").rglob("*.safetensors")) and (folder / "report.html").is_file()
    again = run("evaluate", "run=outputs/cpo-tiny-canny", "metrics.num_samples=8", site=site, cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted((REPO / "launchers" / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs_on_the_wheel_alone(example: Path, site: Path, tmp_path: Path) -> None:
    """In an empty folder; the installed package is the one that is unpacked here."""
    code = f"import lpo_platform, runpy; assert lpo_platform.__file__.startswith({str(site)!r}); "
    code += f"runpy.run_path({str(example)!r})"
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-2000:]


@pytest.mark.slow
def test_the_benchmark_of_the_wheel_has_the_authors_steps(site: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lpo_platform", "benchmark", "--model", "tiny", "--flops-only"]
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "| plain-ckpt |" in done.stdout, done.stderr[-2000:]


def test_the_lock_has_a_hash_for_every_package_and_no_address():
    text = (REPO / "requirements.lock").read_text().split("\n", 2)[2]  # below the command that made it
    blocks = re.split(r"\n(?=[a-z0-9])", text)
    assert len(blocks) > 50
    for block in blocks:
        assert re.match(r"[a-z0-9_.\-]+==\S+", block) and "--hash=sha256:" in block, block[:80]
    assert not re.search(r"https?:|file:|index-url|find-links", text)
    names = {block.partition("==")[0] for block in blocks}
    project = (REPO / "pyproject.toml").read_text()
    asked = set(re.findall(r'^  "([A-Za-z0-9-]+)[><=!]', project, re.MULTILINE))
    assert asked and {name.lower() for name in asked} <= names


def make(*arguments: str) -> str:
    """Output of make, also from inside `make test`, whose own settings must not reach it."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
    return subprocess.run(["make", *arguments], cwd=REPO, env=env, check=True, capture_output=True, text=True).stdout


def test_make_help_lists_every_target():
    shown = make("help")
    for target in (
        "demo",
        "test",
        "test-slow",
        "test-dist",
        "test-slurm",
        "test-gpu",
        "test-floor",
        "tiny",
        "real",
        "lint",
        "lock",
        "clean",
    ):
        assert re.search(rf"^  make {target} +\S", shown, re.MULTILINE), target
    assert make() == shown


def test_demo_passes_variables_through():
    shown = make("--dry-run", "demo", "SEED=2", "ARGS=method.steps=3")
    assert "lpo-train method=cpo task=canny resume=auto seed=2 hardware=auto method.steps=3" in shown


def test_no_embedded_file_names_a_folder_of_the_machine_that_made_it():
    """diffusers writes where a model was loaded from into its configuration."""
    configurations = sorted((REPO / "lpo_platform" / "assets").rglob("*.json"))
    assert configurations
    assert [path for path in configurations if '"_name_or_path": "/' in path.read_text(encoding="utf-8")] == []
