"""What no command line may say, whatever takes it, is one line that names it before anything is loaded."""

import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lpo_platform.config.annotations import Type
from lpo_platform.config.compose import compose
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.options import offered
from lpo_platform.config.schema import CONF, ROOTS
from lpo_platform.config.signature import signature
from lpo_platform.config.unused_folder import unused_folder
from lpo_platform.config.values import leaves, value_problems


@pytest.mark.parametrize(("word", "method"), [("inf", "cpo"), ("-inf", "lpo"), ("nan", "ddpo")])
def test_no_number_of_any_setting_is_infinite(word: str, method: str) -> None:
    composed = compose("train", [f"method={method}"], [], CONF)
    numbers = [path for path, value in leaves(composed.values) if type(value) is float]
    assert {"optim.lr", "optim.betas[0]", "callbacks.sentinel.drift"} <= set(numbers)
    for path in numbers:
        one = deepcopy(composed)
        _put(one.values, path, OverridesParser.create().parse_override(f"x={word}").value())
        (problem,) = value_problems(one)
        assert problem.startswith(f"{path}={word}") and problem.endswith(": must be a finite number")


def _put(node: object, path: str, value: object) -> None:
    *above, last = path.replace("[", ".").replace("]", "").split(".")
    for part in above:
        node = node[int(part) if isinstance(node, list) else part]
    node[int(last) if isinstance(node, list) else last] = value


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("seed=-1", "seed=-1: must lie in [0, 4294967295]"),
        ("seed=99999999999", "seed=99999999999: must lie in [0, 4294967295]"),
        ("metrics.seed=4294967296", "metrics.seed=4294967296: must lie in [0, 4294967295]"),
        ("data.seed=-1", "data.seed=-1: must lie in [0, 4294967295]"),
        ("model.num_inference_steps=1000", "model.num_inference_steps=1000: must lie in [1, 999]; models are"),
        ("metrics.num_steps=1001", "metrics.num_steps=1001: must lie in [1, 999]; models"),
        ("optim.clip=0", "optim.clip=0: must be above 0"),
        ("optim.warmup_steps=-1", "optim.warmup_steps=-1: must not be negative"),
        ("hydra.job.chdir=true", "hydra.job.chdir=true: paths of a configuration are relative to"),
        ("hydra.output_subdir=null", "hydra.output_subdir=null: a run goes on"),
    ],
)
def test_values_out_of_range_are_named(line: str, problem: str) -> None:
    (found,) = diagnose("train", ["task=canny", line])
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "line", ["seed=4294967295", "model.num_inference_steps=999", "hydra.job.chdir=false", "optim.weight_decay=0"]
)
def test_the_last_value_that_works_works(line: str) -> None:
    assert diagnose("train", ["task=canny", line]) == []


def test_a_group_is_chosen_once() -> None:
    (found,) = diagnose("train", ["method=cpo", "method=lpo"])
    assert found == "method=cpo method=lpo: method is chosen more than once; keep one of them"
    (found,) = diagnose("train", ["method=[cpo,lpo]"])
    assert found == "method=[cpo,lpo]: method is one option at a time; -m runs several"
    assert diagnose("train", ["method=lpo", "method=lpo", "optim.lr=1", "optim.lr=2"]) == []
    gold = "+reward@callbacks.sentinel.gold"
    assert diagnose("train", ["method=lpo", f"{gold}.a=compressibility", f"{gold}.b=incompressibility"]) == []


FILES = {
    "syntax": (b"a: [1\nb: 2\n", "2:2: expected ',' or ']', but got ':'"),
    "tab": (b"_target_: x.Y\n\tb: 1\n", "2:1: found character '\\t' that cannot start any token"),
    "latin": ("# ok\n# caf\xe9\n".encode("latin-1"), "2:6: not UTF-8; save the file in that encoding"),
    "utf16": ("_target_: x.Y\n".encode("utf-16"), "1:1: not UTF-8; save the file in that encoding"),
    "zero": (b"a: 1\nb: \x00\n", "2:4: a character that YAML does not allow (special characters are not allowed)"),
    "twice": (b"a: 1\na: 2\n", "2:1: found duplicate key a"),
    "empty": (b"", "1:1: an empty file; a configuration is a mapping of keys to values"),
    "silent": (b"# later\n", "1:1: an empty file; a configuration is a mapping of keys to values"),
    "list": (b"- a\n- b\n", "1:1: a list; a configuration is a mapping of keys to values"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_configuration_is_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    content, problem = FILES[name]
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / f"{name}.yaml").write_bytes(content)
    assert diagnose("train", [f"task={name}"], [str(tmp_path)]) == [f"{tmp_path}/task/{name}.yaml:{problem}"]


def test_a_file_that_nobody_asks_for_may_be_broken(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("[")
    assert diagnose("train", ["task=canny"], [str(tmp_path)]) == []


def test_a_text_is_no_option(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "text.yaml").write_text("hello\n")
    assert diagnose("train", ["task=text"], [str(tmp_path)]) == [
        "task.hello=null in task/text.yaml: must be a mapping with a _target_, or null"
    ]


@pytest.mark.parametrize(
    "target", ["os.system", "subprocess.run", "builtins.eval", "shutil.rmtree", "pathlib.Path", "hydra.utils.get_class"]
)
def test_python_itself_is_called_by_no_configuration(target: str, tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "plain.yaml").write_text(f"_target_: {target}\n")
    (tmp_path / "task" / "inside.yaml").write_text(
        f"_target_: lpo_platform.tasks.canny.Canny\nlow: [{{_target_: {target}}}]\n"
    )
    reason = "a configuration may not call it; what works: a class of lpo_platform or of your own"
    assert f"task._target_='{target}' in task/plain.yaml: {reason}" in diagnose(
        "train", ["task=plain"], [str(tmp_path)]
    )
    assert f"task.low[0]._target_='{target}' in task/inside.yaml: {reason}" in diagnose(
        "train", ["task=inside"], [str(tmp_path)]
    )


def test_a_folder_is_given_once(tmp_path: Path) -> None:
    wanted = str(tmp_path / "new" / "2026-01-01_00-00-00")
    assert [unused_folder(wanted) for _ in range(3)] == [wanted, f"{wanted}-2", f"{wanted}-3"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir())[1] == "2026-01-01_00-00-00-2"


# What may be any number: offsets and gaps count both ways, and a layer is looked up in the model.
ANY_NUMBER = {"data.label_offset", "method.gap", "reward.layer"}


def settings_with_numbers() -> Iterator[tuple[str, str, Type]]:
    """(group, setting, its type) of every number that a shipped option takes."""
    groups = [path.name for path in sorted(CONF.iterdir()) if path.is_dir()]
    targets = {(name, target) for name in groups for _, target in offered(name) if target}
    for group, target in targets | {("callbacks", "lpo_platform.tracking.callbacks.sentinel.Sentinel")}:
        for parameter in known.parameters if (known := signature(target)) else ():
            kinds = parameter.type.items or (parameter.type,)
            for kind in kinds:
                if kind.plain & {int, float}:
                    yield group, parameter.name, kind


def test_every_number_has_a_range() -> None:
    found = {f"{group}.{name}" for group, name, kind in settings_with_numbers() if not kind.ranges}
    assert found == ANY_NUMBER
    assert len({(group, name) for group, name, _ in settings_with_numbers()}) > 90


def test_a_number_beyond_either_end_is_refused_and_the_ends_as_they_are_declared() -> None:
    for _, _, kind in settings_with_numbers():
        for numbers in kind.ranges:
            step = 1 if float not in kind.plain else 1e-9
            for end, beyond, excluded in ((numbers.low, -step, numbers.above), (numbers.high, step, numbers.below)):
                if math.isfinite(end):
                    assert kind.outside(end + beyond) == str(numbers)
                    assert kind.outside(end) == (str(numbers) if excluded else "")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("task=canny method.beta=-1", "method.beta=-1: must be above 0"),
        ("task=canny optim.betas=[1.0,0.999]", "optim.betas=[1.0, 0.999]: each must lie in [0, 1)"),
        ("task=canny hardware.micro_batch=0", "hardware.micro_batch=0: must be at least 1"),
        ("task=canny hardware.devices=0", "hardware.devices=0: must be at least 1"),
        ("task=canny callbacks.ema_decay=1", "callbacks.ema_decay=1: must lie in [0, 1)"),
        ("task=canny callbacks.sentinel.items=0", "callbacks.sentinel.items=0: must be at least 1"),
        ("task=canny data.cache_gb=0", "data.cache_gb=0: must be above 0"),
        ("method=lpo tune=lora tune.rank=0", "tune.rank=0: must be at least 1"),
        ("method=lpo method.candidates=1", "method.candidates=1: must be at least 2"),
        ("method=lrm metrics.timesteps=[5,1000]", "metrics.timesteps=[5, 1000]: each must lie in [0, 999]"),
        ("data=folder data.path=. task=canny data.test_fraction=1", "data.test_fraction=1: must lie in (0, 1)"),
        ("task=canny hydra.run.dir=", "hydra.run.dir=: no folder; add one, or leave it out"),
    ],
)
def test_a_number_that_makes_no_sense_is_one_line(words: str, problem: str) -> None:
    assert diagnose("train", words.split()) == [problem]


@pytest.mark.parametrize("primary", list(ROOTS))
def test_a_group_that_is_taken_away_is_asked_for(primary: str) -> None:
    beside = {"train": ["task=canny"], "prepare": ["task=canny"], "eval": ["model=tiny"], "score": ["data.path=."]}
    for group in ROOTS[primary].needed:
        (found,) = diagnose(primary, [*beside[primary], f"~{group}"])
        assert found.startswith(f"{group}: nothing is chosen; add {group}=<option>")


def test_null_is_no_option_of_a_group() -> None:
    for group in ("method", "task", "experiment", "logger"):
        (found,) = diagnose("train", ["task=canny"] * (group != "task") + [f"{group}=null"])
        assert found.startswith(f"{group}=null: no such option")
