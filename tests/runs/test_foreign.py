"""A folder goes on with the run that it holds and with no other; what differs is named by its key."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from toys.instances import first

from lpo_platform.commands import main as commands
from lpo_platform.commands.main import run_command
from lpo_platform.commands.terminal import Command
from lpo_platform.runs import foreign, record

HERE = "hydra.run.dir=out/a"


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Runs lpo-train, or another command, whose work is to put the run on record and to say so."""
    monkeypatch.chdir(tmp_path)

    def work(cfg: DictConfig, folder: Path) -> None:
        record.start(folder, OmegaConf.to_container(cfg, resolve=True), sys.argv)
        (folder / "worked").touch()

    def run(*arguments: str, primary: str = "train") -> int:
        monkeypatch.setattr(sys, "argv", [f"lpo-{primary}", *arguments])
        monkeypatch.setattr(commands, "work_of", lambda name: work)
        with pytest.raises(SystemExit) as end:
            run_command(Command(f"lpo-{primary}", primary))
        return int(end.value.code or 0)

    yield run


def content(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("now", "named"),
    first(
        [
            (["optim.lr=1e-2", "seed=5"], ["seed: 0 there, 5 now", "optim.lr: 0.001 there, 0.01 now"]),
            (["task=hed"], ["task: lpo_platform.tasks.canny.Canny there, lpo_platform.tasks.hed.Hed now"]),
            (
                ["data.num_train=9", "optim.clip=null", "method.steps=10", "callbacks.every=7"],
                [
                    "data.num_train: 512 there, 9 now",
                    "optim.clip: 1.0 there, null now",
                    "method.steps: 40 there, 10 now",
                    "callbacks.every: 20 there, 7 now",
                ],
            ),
        ],
        keep=1,
    ),
)
def test_another_configuration_is_refused_by_its_keys(main, capsys, now: list[str], named: list[str]) -> None:
    base = ["method=control", "task=canny", "optim.lr=1e-3", "method.steps=40"]
    assert main(*base, HERE) == 0
    held = content(Path("out/a"))
    capsys.readouterr()
    given = {word.partition("=")[0] for word in now}
    kept = [word for word in base if word.partition("=")[0] not in given]
    for line in ([*kept, HERE, *now], ["resume=out/a", *now]):
        assert main(*line) == 2
        said = capsys.readouterr().err
        assert said.startswith("lpo-train: out/a holds a run with another configuration:\n")
        assert all(f"\n  {line}\n" in said for line in named) and "Traceback" not in said
        assert content(Path("out/a")) == held


@pytest.mark.parametrize(
    "now",
    first(
        [[], ["logger=none", "name=mine", "hardware=cpu", "hardware.micro_batch=4", "callbacks.log_every=5"]], keep=1
    ),
)
def test_the_same_configuration_goes_on(main, now: list[str]) -> None:
    base = ["method=control", "task=canny", "method.steps=40", HERE]
    assert main(*base) == 0
    Path("out/a/worked").unlink()
    assert main(*base, *now) == 0
    assert Path("out/a/worked").exists()
    Path("out/a/worked").unlink()
    assert main("resume=out/a", *now, "method.steps=80") == 0
    assert Path("out/a/worked").exists()


@pytest.mark.slow
def test_a_folder_belongs_to_its_command(main, capsys) -> None:
    assert main("task=canny", HERE) == 0
    held = content(Path("out/a"))
    for primary, words in (("prepare", ["task=canny"]), ("eval", ["model=tiny"])):
        assert main(*words, HERE, primary=primary) == 2
        assert "out/a is the folder of an lpo-train; what works: another hydra.run.dir" in capsys.readouterr().err
    assert content(Path("out/a")) == held


def test_lengths_are_raised_in_whole_rounds_and_precisions_that_are_both_named_differ() -> None:
    def between(before: dict, now: dict, longer: bool = True) -> list[str]:
        return [key for key, _, _ in foreign.between(before, now, longer=longer)]

    steps = lambda count: {"method": {"steps": count}, "callbacks": {"every": 20}}  # noqa: E731
    assert between(steps(40), steps(50)) == [] and between(steps(40), steps(50), longer=False) == ["method.steps"]
    assert between(steps(50), steps(60)) == ["method.steps"] == between(steps(40), steps(20))
    rounds = lambda count: {"method": {"rounds": count}, "callbacks": {"every": 4}}  # noqa: E731
    assert between(rounds(3), rounds(6)) == [] and between(rounds(6), rounds(3)) == ["method.rounds"]
    precision = lambda name: {"hardware": {"precision": name}}  # noqa: E731
    assert between(precision("32-true"), precision("bf16-mixed")) == ["hardware.precision"]
    assert between(precision("auto"), precision("bf16-mixed")) == [] == between(precision("32-true"), precision("auto"))


def test_a_class_of_its_own_stands_for_its_arguments() -> None:
    before = {"optim": {"_target_": "a.A", "lr": 1.0, "inner": {"x": 1}}, "seed": None}
    now = {"optim": {"_target_": "a.B", "lr": 2.0}, "extra": {}}
    assert foreign.between(before, now) == [("optim._target_", "a.A", "a.B")]
