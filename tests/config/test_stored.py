"""What runs of before have stored is read: every option, and whole configurations, as they were before classes moved.

tests/toys/stored.json holds them: the nodes of all options that were shipped then, and what some runs resolved to.
"""

import json
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from lpo_platform.config import stored
from lpo_platform.config.check import check, node_problems
from lpo_platform.config.compose import Composed
from lpo_platform.runs import resume
from lpo_platform.runs.foreign import differences, names
from lpo_platform.tracking.report.page.run import Run

STORED = json.loads((Path(__file__).parents[1] / "toys" / "stored.json").read_text())
MISSING = "required by"  # what an option asks of the command line


def test_every_renamed_class_is_there_and_was_an_option():
    old = {word for word in json.dumps(STORED).split('"') if word.startswith("lpo_platform.")}
    assert stored.RENAMED.keys() <= old
    for target in {stored.RENAMED.get(name, name) for name in old}:
        assert get_class(target).__name__ == target.rpartition(".")[2], target


@pytest.mark.parametrize("option", STORED["options"])
def test_a_stored_option_has_its_class_and_its_arguments(tmp_path: Path, option: str):
    group, file = option.split("/")[0], tmp_path / "resolved.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create({group: STORED["options"][option]})))
    node = OmegaConf.to_container(stored.load(file), resolve=False)[group]
    problems = node_problems(Composed({group: node}, {}), group, node, group)
    assert [problem for problem in problems if MISSING not in problem] == []


@pytest.mark.parametrize("name", STORED["runs"])
def test_a_stored_run_passes_the_check_of_today(tmp_path: Path, name: str):
    file = tmp_path / "resolved.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create(STORED["runs"][name])))
    cfg = stored.load(file)
    assert check(cfg, {group: "stored" for group in ("method", "model", "task", "data", "control", "tune")}, None) == []
    assert cfg.model.toy is True  # which its name alone said
    assert Run.read(tmp_path).config["hardware"]["_target_"] == "lpo_platform.hardware.hardware.Hardware"


def test_a_stored_run_is_the_same_run(tmp_path: Path):
    """For resume=auto and for a sweep that goes on: where a class stands is no difference."""
    before = OmegaConf.create(STORED["runs"]["cpo"])
    (tmp_path / ".hydra").mkdir()
    for file in (tmp_path / "resolved.yaml", tmp_path / ".hydra" / "config.yaml"):
        file.write_text(OmegaConf.to_yaml(before))
    now = OmegaConf.to_container(stored.load(tmp_path / "resolved.yaml"))
    assert names(differences(tmp_path, now)) == []
    assert names(differences(tmp_path, now | {"task": {"_target_": "lpo_platform.tasks.hed.Hed"}})) == ["task"]
    assert resume.config_of(tmp_path) == now


def test_a_file_of_today_stays_as_it_is(tmp_path: Path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "method: {_target_: mine.Own, of: [{a: 1}]}\nmodel: {_target_: mine.Big, name: tiny2, toy: false}\n"
    )
    assert stored.load(file) == OmegaConf.load(file) and stored.changes_of(file) == []
    assert stored.changes_of(tmp_path / "none.yaml") == []
