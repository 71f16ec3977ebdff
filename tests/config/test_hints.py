"""What a newcomer types, and the answer which says what to type instead."""

from pathlib import Path

import pytest

from lpo_platform.commands.command_line import checked_words, parse_line
from lpo_platform.commands.diff import side
from lpo_platform.commands.export.export import export_settings
from lpo_platform.commands.listing import listing
from lpo_platform.commands.plan.settings import settings_of
from lpo_platform.commands.report import arguments_of
from lpo_platform.commands.terminal import Command
from lpo_platform.config.compose import source
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.errors import UserError
from lpo_platform.config.options import shipped
from lpo_platform.config.paths import runs_named
from lpo_platform.config.schema import CONF
from lpo_platform.config.signature import docstring
from lpo_platform.config.synonyms import KEYS, OPTIONS

STEPS = "no such key or group; did you mean method.steps?"
BATCH = "no such key or group; did you mean method.batch or hardware.micro_batch?"
RATE = "no such key or group; did you mean optim.lr?"
OTHER_OPTION = [
    ("method=dpo", "method=dpo: no such option; did you mean 'diffusion_dpo' or 'dpo_control'? Options: "),
    ("method=grpo", "method=grpo: no such option; did you mean method=step_grpo, or method=ddpo method.baseline=group"),
    ("data=pickapic", "data=pickapic: no such option; did you mean data=image_pairs? Options: "),
    ("hardware=cuda", "hardware=cuda: no such option; did you mean hardware=gpu? Options: "),
    ("task=segmentation", "task=segmentation: no such option; did you mean task=seg_ade20k or task=seg_coco? "),
    ("task=seg", "task=seg: no such option; did you mean 'seg_ade20k' or 'seg_coco'? Options: "),
    (
        "optim.learning_rate=1",
        "optim.learning_rate: AdamW has no such option; did you mean optim.lr? Options: betas, clip, eps, lr, ",
    ),
    (
        "hardware.batch_size=4",
        "hardware.batch_size: Hardware has no such option; did you mean hardware.micro_batch? Options: accelerator, ",
    ),
]
OTHER_KEY = [
    (["steps=10"], f"steps: {STEPS}"),
    (["+steps=10"], f"steps: {STEPS}"),
    (["method=ddpo", "task=pose", "steps=10"], "steps: no such key or group; did you mean method.rounds?"),
    (["trainer.max_steps=4"], "trainer.max_steps: not to be set here: set method.steps or method.rounds"),
    (["+trainer.max_steps=4"], "trainer.max_steps: not to be set here: set method.steps or method.rounds"),
    (
        ["trainer.profiler=simple"],
        "trainer.profiler: not set in the files; to set it add a plus: +trainer.profiler=simple",
    ),
    (["+trainer.profiler=simpel"], "trainer.profiler=simpel: must be 'simple' or 'advanced' or 'pytorch' or null"),
    (["+seed=1"], "+seed=1: seed is set already; write seed=1, without +"),
    (["+optim.lr=1"], "+optim.lr=1: optim.lr is set already; write optim.lr=1, without +"),
    (["stepz=10"], f"stepz: {STEPS}"),
    (["lr=1e-4"], f"lr: {RATE}"),
    (["learning_rate=1e-4"], f"learning_rate: {RATE}"),
    (["optimizer.lr=1e-4"], f"optimizer.lr: {RATE}"),
    (["batch_size=4"], f"batch_size: {BATCH}"),
    (["batch=4"], f"batch: {BATCH}"),
    (["devices=8"], "devices: no such key or group; did you mean hardware.devices?"),
    (
        ["pretrained_model_name_or_path=a/b"],
        "pretrained_model_name_or_path: no such key or group; did you mean model.weights?",
    ),
    (["+method=cpo"], "+method=cpo: method is a group; write method=cpo, without +"),
    (["method", "=", "cpo"], "method = cpo: no spaces around =; write method=cpo"),
    (["method=", "cpo"], "method= cpo: no spaces around =; write method=cpo"),
    (["method", "=cpo"], "method =cpo: no spaces around =; write method=cpo"),
    (["method = cpo"], "method = cpo: no spaces around =; write method=cpo"),
    (["seed=[0,1]"], "seed=[0, 1]: must be int; several values: -m seed=0,1"),
    (["seed=[a,b]"], "seed=['a', 'b']: must be int"),
]
PLACES = [
    ("model", "runwayml/stable-diffusion-v1-5", "model=sd15 model.weights"),
    ("model", "stabilityai/stable-diffusion-xl-base-1.0", "model=sdxl model.weights"),
    ("data", "yuvalkirstain/pickapic_v2", "data=image_pairs data.path"),
    ("data", "somebody/pictures", "data=hf data.path"),
    ("reward", "casiatao/LRM", "reward=lrm reward.weights"),
    ("model", "{folder}", "model=sd15 model.weights"),
    ("reward", "yuvalkirstain/PickScore_v1", "reward=pickscore reward.weights"),
    ("data", "{folder}", "data=folder data.path"),
]


@pytest.mark.parametrize(("word", "answer"), OTHER_OPTION)
def test_the_option_that_is_meant_is_named(word: str, answer: str):
    (line,) = diagnose("train", [word])
    assert line.startswith(answer)


@pytest.mark.parametrize(("words", "answer"), OTHER_KEY)
def test_one_line_says_what_to_type(words: list[str], answer: str):
    assert diagnose("train", words) == [answer]


@pytest.mark.parametrize(("group", "place", "answer"), PLACES)
def test_a_folder_or_hub_id_is_led_to_the_setting_that_takes_it(group: str, place: str, answer: str, tmp_path: Path):
    place = place.format(folder=tmp_path)
    (line,) = diagnose("train", [f"{group}={place}"])
    assert line == f"{group}={place}: no such option; a hub id or folder: {answer}={place}"


def test_every_answer_of_the_tables_exists():
    for meant in OPTIONS.values():
        for words in meant.split(" or "):
            assert not [line for line in diagnose("train", words.split()) if "no such" in line], words
    files = source("train", [], CONF)
    keys = {
        f"{group}.{key}"
        for group in ("method", "optim", "model", "hardware")
        for option in shipped(group)
        for file in [files.repo.load_config(f"{group}/{option}").config]
        for key in (file.get(group) or file)
    }
    assert {path for paths in KEYS.values() for path in paths} <= keys


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--task", "canny"], "unknown flag --task; options are written task=canny"),
        (["--task=canny"], "unknown flag --task; options are written task=canny"),
        (["method=cpo", "--devices", "8"], "unknown flag --devices; options are written hardware.devices=8"),
        (["--learning-rate", "1e-4"], "unknown flag --learning-rate; options are written optim.lr=1e-4"),
        (["--resume"], "unknown flag --resume; options are written resume=<value>"),
        (["-x"], "unrecognized arguments: -x; --help shows what works"),
        (["--list", "rewards"], "--list rewards: no such group; did you mean 'reward'?"),
    ],
)
def test_an_unknown_flag_is_one_line(words: list[str], answer: str):
    with pytest.raises(UserError) as raised:
        parse_line(words)
    assert str(raised.value).startswith(answer) and "\n" not in str(raised.value)


def test_the_flags_that_exist_are_left_alone(tmp_path: Path):
    line = parse_line(["-m", "seed=0,1", "--cfg", "job", "--package", "data", "--config-dir", str(tmp_path)])
    assert line.shows and line.multirun and line.overrides == ["seed=0,1"]


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("plan.device=4090", "plan.device=4090: no such device; did you mean 'rtx4090'? Options: a100, auto, cpu, "),
        ("plan.devize=cpu", "plan.devize=cpu: no such setting; did you mean 'device'?; what works: plan.device, "),
    ],
)
def test_a_plan_is_refused_before_anything_is_composed(word: str, answer: str):
    with pytest.raises(UserError) as raised:
        settings_of([word])
    assert str(raised.value).startswith(answer)


def test_a_bare_folder_is_a_run(tmp_path: Path):
    assert runs_named([str(tmp_path), "what=fid", "nowhere"]) == [f"run={tmp_path}", "what=fid", "nowhere"]


@pytest.mark.parametrize("group", sorted(path.name for path in CONF.iterdir() if (path / "none.yaml").is_file()))
def test_a_list_has_a_sentence_for_every_option(group: str):
    lines = dict(line.partition(" ")[::2] for line in listing(group).splitlines())
    assert tuple(lines) == shipped(group)
    assert all(text.strip() for name, text in lines.items() if name != "none"), lines


def test_a_listed_sentence_is_the_first_of_the_file_or_else_of_the_class(tmp_path: Path):
    (tmp_path / "method").mkdir()
    target = "_target_: lpo_platform.methods.ddpo.DDPO\n"
    (tmp_path / "method" / "own.yaml").write_text(
        f"# @package _global_\n# Mine\n# alone. And more.\nmethod:\n  {target}"
    )
    (tmp_path / "method" / "bare.yaml").write_text(f"# eta: the noise\n{target}")
    lines = dict(line.split(maxsplit=1) for line in listing("method", [tmp_path]).splitlines())
    whole = " ".join(docstring("lpo_platform.methods.ddpo.DDPO").split())
    assert lines["own"] == "Mine alone."
    assert whole.startswith(lines["bare"]) and lines["bare"].endswith(".") and ". " not in lines["bare"]


@pytest.mark.parametrize("group", sorted({path.parent.name for path in CONF.glob("*/*.yaml")} - {"local"}))
def test_no_two_options_of_a_group_are_described_alike(group: str):
    said = [line.split(maxsplit=1)[1] for line in listing(group).splitlines()]
    assert len(set(said)) == len(said)


@pytest.mark.parametrize("word", ["{run}", "run={run}"])
def test_a_run_is_named_alike_in_every_command(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As a bare folder and as run=."""
    run, said = tmp_path / "run", word.format(run=tmp_path / "run")
    run.mkdir()
    (run / "resolved.yaml").write_text("seed: 3\n")
    line = parse_line([said])
    checked_words(Command("lpo-eval", "eval"), [said], line)
    assert line.value("run") == str(run)
    assert export_settings([said, "to=merged"])["run"] == str(run)
    assert side(said).config == {"seed": 3}
    monkeypatch.setattr("sys.argv", ["lpo-report", said])
    assert arguments_of().folder == run
