"""A module of the user's own is found in the current folder, beside --config-dir, and where packages are installed."""

import importlib
import sys
from pathlib import Path

import pytest

from lpo_platform.config import own_modules
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.sources import find_module


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test adds to the search path is taken away again, and what was looked for is forgotten."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    find_module.cache_clear()
    yield
    find_module.cache_clear()


def option(folder: Path, module: str) -> str:
    """A --config-dir with a reward of that module."""
    (folder / "reward").mkdir(parents=True)
    (folder / "reward" / "mine.yaml").write_text(f"_target_: {module}.Mine\n")
    return str(folder)


@pytest.mark.parametrize("place", ["here", "beside"])
def test_a_module_is_found(clean: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    module = f"own_module_{place}"
    for folder in ("here", "beside"):
        (tmp_path / folder).mkdir()
    (tmp_path / place / f"{module}.py").write_text("class Mine:\n    input = 'pictures'\n")
    monkeypatch.chdir(tmp_path / "here")
    folder = option(tmp_path / "beside" / "conf", module)
    own_modules.look_in([folder])
    words = ["experiment=ddpo_toy", "reward=mine"]
    assert diagnose("train", words, [folder]) == []
    assert importlib.import_module(module).Mine.input == "pictures"


def test_the_error_of_one_that_is_not_there_says_where_it_may_lie(
    clean: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = option(tmp_path / "elsewhere" / "conf", "nowhere_at_all")
    own_modules.look_in([folder])
    (line,) = diagnose("train", ["experiment=ddpo_toy", "reward=mine"], [folder])
    assert line == (
        "reward._target_='nowhere_at_all.Mine' in reward/mine.yaml: no 'nowhere_at_all' to import; "
        f"a module of your own may be installed, or lie in the current folder ({tmp_path}) or beside --config-dir "
        f"({tmp_path}/elsewhere)"
    )


def test_an_installed_package_wins_and_no_place_is_added_twice(
    clean: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    own_modules.look_in([tmp_path / "conf"])
    own_modules.look_in()
    assert sys.path == [*before, str(tmp_path)]
