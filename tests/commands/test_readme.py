"""The commands of every README: each passes its check; the five of the first take a newcomer to a leaderboard."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from lpo_platform.config.diagnose import diagnose

REPO = Path(__file__).resolve().parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")
TEXTS = [README, *(path.read_text(encoding="utf-8") for path in sorted(REPO.glob("lpo_platform/**/README.md")))]
PRIMARIES = {
    "lpo-train": "train", "lpo-doctor": "train", "lpo-plan": "train",
    "lpo-eval": "eval", "lpo-prepare": "prepare", "lpo-score": "score",
}  # fmt: skip
RUN = "outputs/cpo-tiny-canny/latest"


def commands() -> list[str]:
    """Lines of code blocks, and what stands as code in tables, that start with one of our commands."""
    blocks = [line for text in TEXTS for block in re.findall(r"^```\n(.*?)^```", text, flags=re.M | re.S)
              for line in block.splitlines()]  # fmt: skip
    rows = [line for text in TEXTS for line in text.splitlines() if line.startswith("|")]
    cells = [code for line in rows for code in re.findall(r"`([^`]+)`", line)]
    found = [line.partition("  #")[0].strip() for line in [*blocks, *cells]]
    return list(dict.fromkeys(line for line in found if line.split()[:1] and line.split()[0] in PRIMARIES))


def words_of(line: str) -> list[str]:
    """As typed, with a run for <...>; ends of lines left open (...) are dropped."""
    filled = (
        re.sub(r"<[^<>]*>(?=/)|<[^<>]*run[^<>]*>", RUN, line)
        .replace("<hub id>", "org/name")
        .replace("<Pick-a-Pic>", "photos")
    )
    return [word for word in shlex.split(re.sub(r"<[^<>]*>", "file", filled).replace("'", "")) if "..." not in word][1:]


@pytest.mark.parametrize("line", commands())
def test_a_command_passes_its_check(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", "photos", "poses", "a", "b", "out", "texts", f"{RUN}/.hydra"):
        Path(folder).mkdir(parents=True)
    files = ("rows.csv", "scores.csv", "evaluation_metadata.jsonl", "color_val.txt", "4k_training_prompts.json")
    for file in ("file", *files):
        Path(file).touch()
    Path(RUN, "resolved.yaml").touch()
    flags = {"-m", "--help", "--cfg", "job"}
    words = words_of(line)
    overrides = [word for word in words if word not in flags and not word.startswith("-")]
    if "--config-path" in words:
        pytest.skip("reads the configuration of a run; test_training.py repeats one")
    plan = [word for word in overrides if not word.startswith("plan.")]
    primary = PRIMARIES[line.split()[0]]
    values = "experiment=" not in line or primary != "train"  # those want the user's data, as the README says
    problems = diagnose(primary, plan, multirun="-m" in words, values=values)
    assert [problem for problem in problems if "needs packages that are not installed" not in problem] == []  # an extra


def test_the_first_page_fits_five_minutes_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 180
    targets = [target.partition("#") for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets and [path for path, *_ in targets if not (REPO / path).exists()] == []
    texts = [((REPO / path).read_text(encoding="utf-8"), place) for path, mark, place in targets if mark]
    assert texts and all(f"\n## {place.replace('-', ' ')}\n" in text.lower() for text, place in texts)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_commands_lead_from_a_clone_to_a_leaderboard(tmp_path: Path) -> None:
    (block,) = re.findall(r"^## Five commands\n\n```\n(.*?)^```", README, flags=re.M | re.S)
    lines = block.splitlines()
    assert len(lines) == 5
    subprocess.run(["git", "clone", "--quiet", REPO, tmp_path / "clone"], check=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    done = subprocess.run(
        ["bash", "-e", "-c", block], cwd=tmp_path / "clone", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    page = tmp_path / "clone" / done.stdout.splitlines()[-1]
    assert page.name == "report.html" and "method=control" in page.read_text(encoding="utf-8")
