"""The check of a configuration: exact messages, all problems at once, and the table of what goes with what."""

import errno
import itertools
import os
import re
from dataclasses import fields
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf
from toys.instances import first

from lpo_platform.config import compose, schema, smoke
from lpo_platform.config.check import check
from lpo_platform.config.compatibility import combination_problems, part_of, rows_of
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.errors import users
from lpo_platform.config.options import offered, shipped
from lpo_platform.config.schema import CONF
from lpo_platform.config.signature import attribute

CPO = "batch, beta, cache_features, form, losers, margin, pretrain_weight, share_timestep, steps"
ROOT = (
    "callbacks, control, data, debug, departures, experiment, hardware, logger, method, metrics, model, name, optim, "
    "resume, reward, seed, sweep, task, trainer, tune"
)
METHODS, MODELS, TASKS = (", ".join(shipped(group)) for group in ("method", "model", "task"))
A_TASK = " or ".join(f"task={name}" for name in shipped("task") if name != "none")
A_CONTROL = " or ".join(f"control={name}" for name in shipped("control") if name != "none")

TYPOS = [
    ("method=cp0", f"method=cp0: no such option; did you mean 'cpo'? Options: {METHODS}"),
    ("task=cany", f"task=cany: no such option; did you mean 'canny'? Options: {TASKS}"),
    ("model=tny", f"model=tny: no such option; did you mean 'tiny'? Options: {MODELS}"),
    ("hardware=tpu", "hardware=tpu: no such option; did you mean 'gpu'? Options: auto, cpu, ddp, fsdp, gpu, slurm"),
    ("mehtod=cpo", f"mehtod: no such key or group; did you mean 'method'? Options: {ROOT}"),
    ("sed=1", f"sed: no such key or group; did you mean 'seed'? Options: {ROOT}"),
    ("method.betta=1", f"method.betta: CPO has no such option; did you mean 'beta'? Options: {CPO}"),
    ("+method.stepz=1", f"method.stepz: CPO has no such option; did you mean 'steps'? Options: {CPO}"),
    (
        "optim.wieght_decay=0",
        "optim.wieght_decay: AdamW has no such option; did you mean 'weight_decay'? "
        "Options: betas, clip, eps, lr, schedule, warmup, warmup_steps, weight_decay",
    ),
    ("method.beta=high", "method.beta=high: must be float"),
    ("seed=one", "seed=one: must be int"),
    ("method", "method: not an override; write key=value"),
    (
        "logger.projekt=x",
        "logger.projekt: Wandb has no such option; did you mean 'project'? Options: entity, project, weights",
    ),
]

COMBINATIONS = [
    (["method=cpo", "task=none"], [f"method=cpo needs a task, but task=none; add {A_TASK}"]),
    (["method=cpo", "control=none"], [f"method=cpo needs a control, but control=none; add {A_CONTROL}"]),
    (["method=cpo", "tune=lora"], ["method=cpo needs tune=control, not tune=lora"]),
    (["method=cpo", "tune=full"], ["method=cpo needs tune=control, not tune=full"]),
    (
        ["method=cpo", "task=none", "control=none", "tune=full"],
        [
            f"method=cpo needs a control, but control=none; add {A_CONTROL}",
            "method=cpo needs tune=control, not tune=full",
            f"method=cpo needs a task, but task=none; add {A_TASK}",
        ],
    ),
    (
        ["method=control", "control=none"],
        [
            "method=control with control=none needs tune=full or tune=lora, not tune=control",
            "method=control with control=none needs task=none, not task=canny",
        ],
    ),
    (
        ["method=control", "task=none", "tune=control"],
        [f"method=control with control=controlnet and tune=control needs a task, but task=none; add {A_TASK}"],
    ),
    (
        ["method=control", "tune=lora", "control=controlnet", "task=canny"],
        ["method=control with control=controlnet and task=canny needs tune=control, not tune=lora"],
    ),
    (
        ["model=sd15"],
        [
            "model=sd15 with data=toy: toy data under a full-size model must be asked for; "
            "add data=folder data.path=<folder of pictures>, or data=toy"
        ],
    ),
    (["metrics.task.low=0.3"], ["metrics.task.low: not set in the files; to set it add a plus: +metrics.task.low=0.3"]),
    (["+metrics.task.low=0.3"], []),
    (["metrics.task={low: 0.3}"], []),
    (
        ["+metrics.task.lo=0.3"],
        ["metrics.task.lo: Canny has no such option; did you mean 'low'? Options: form, high, low, train_form"],
    ),
    (["metrics.task={low: x}"], ["metrics.task.low=x: must be float"]),
    (
        ["data=folder"],
        [
            "data.path: required by data=folder; add data.path=<value> (a folder of pictures with captions; see "
            "data/README.md)"
        ],
    ),
    (["data=folder", "data.path=/no/such/folder"], ["data.path=/no/such/folder: no such folder"]),
    (["data=folder", "data.path='~nobody/a'"], ["data.path=~nobody/a: no such folder"]),
    (
        ["hardware.micro_batch=5"],
        ["hardware.micro_batch=5 does not divide method.batch=16; these do: 1, 2, 4, 8, 16"],
    ),
    (["resume=/no/such/run"], ["resume=/no/such/run: no such folder"]),
    (["experiment=ddpo_toy", "reward=oks"], ["reward=oks needs task=pose, not task=none"]),
    (["experiment=ddpo_toy", "reward=consistency"], [f"reward=consistency needs a task, but task=none; add {A_TASK}"]),
    (
        [
            "experiment=ddpo_toy",
            "reward=blend",
            "+reward@reward.rewards.keypoints=oks",
            "reward.rewards.keypoints.bach=2",
        ],
        [
            "reward.rewards.keypoints.bach: Oks has no such option; did you mean 'batch'? Options: batch",
            "reward.rewards.keypoints needs task=pose, not task=none",
        ],
    ),
]


@pytest.mark.parametrize(("override", "message"), TYPOS)
def test_a_typo_gets_one_exact_line(override: str, message: str):
    assert diagnose("train", [override]) == [message]


@pytest.mark.parametrize(("overrides", "messages"), COMBINATIONS)
def test_a_wrong_combination_gets_exact_lines(overrides: list[str], messages: list[str]):
    assert diagnose("train", overrides) == messages


def test_a_group_that_is_taken_away_counts_as_none():
    assert diagnose("train", ["~task"]) == [f"method=cpo needs a task, but task=null; add {A_TASK}"]


def test_all_problems_at_once():
    problems = diagnose("train", ["task=none", "tune=lora", "seed=x", "method.betta=1", "optim.lr=fast", "modle=tiny"])
    assert problems == [
        f"method.betta: CPO has no such option; did you mean 'beta'? Options: {CPO}",
        f"modle: no such key or group; did you mean 'model'? Options: {ROOT}",
        "method=cpo needs tune=control, not tune=lora",
        f"method=cpo needs a task, but task=none; add {A_TASK}",
        "seed=x: must be int",
        "optim.lr=fast: must be float",
    ]


def test_an_unknown_option_does_not_cause_further_lines():
    assert diagnose("train", ["method=cp0", "task=none", "method.foo=1"]) == [TYPOS[0][1]]


def test_syntax_interpolation_and_hydras_own_errors_are_one_line_each():
    assert diagnose("train", ["name='x"]) == [
        "name='x: not an override; quote a value with spaces or special characters: 'key=\"a b\"'"
    ]
    assert diagnose("train", ["name=${nowhere}"]) == ["name='${nowhere}': Interpolation key 'nowhere' not found"]
    (line,) = diagnose("train", ["hydra.run.dirr=x"])
    assert "hydra.run.dirr" in line and "\n" not in line
    assert diagnose("train", ["seed=0,1"]) == ["seed=0,1: several values need -m (a sweep); a list is [a,b]"]


def test_a_sweep_is_checked_value_by_value():
    assert diagnose("train", ["seed=0,1,2", "method=cpo,control"], multirun=True) == []
    assert diagnose("train", ["seed=0,x", "task=canny,none"], multirun=True) == [
        f"method=cpo needs a task, but task=none; add {A_TASK}",
        "seed=x: must be int",
    ]
    assert diagnose("train", ["method=cpo,cp0", "seed=range(0,3)"], multirun=True) == [TYPOS[0][1]]
    many = ["seed=range(0,40)", "task=canny,cany"]
    assert diagnose("train", many, multirun=True) == [TYPOS[1][1]]
    assert diagnose("train", ["sweep=seeds"]) == []


# Options of which the facts are written down here by hand. Others are held by what their classes say alone.
FACTS = {
    "control": ("none", "controlnet", "controlnet_dino"),
    "tune": ("control", "full", "lora", "reward"),
    "reward": ("none", "lrm", "random", "toy", "blend", "spm", "consistency", "keypoint_cosine", "oks"),
    "data": ("captioned", "folder", "toy", "prompts", "image_pairs", "toy_pairs"),
    "method": (
        "cpo",
        "control",
        "control_reward",
        "dpo_control",
        "lrm",
        "lpo",
        "spo",
        "diffusion_dpo",
        "ddpo",
        "nft",
        "step_grpo",
    ),
    "task": ("none", "canny"),
}


def allowed(choice: dict[str, str]) -> bool:
    """The facts of the methods in words, beside what their classes say."""
    prompts = ("folder", "prompts", "toy")
    pictures = ("captioned", "folder", "toy")
    unconditional = choice["control"] == "none" and choice["task"] == "none"
    learned = choice["tune"] in ("full", "lora")
    no_reward = choice["reward"] == "none"
    of_conditions = ("consistency", "keypoint_cosine", "oks", "skeleton_dino")
    branch = choice["control"] != "none" and choice["tune"] == "control" and choice["task"] != "none"
    pairs, by_prompt = choice["data"] in ("image_pairs", "toy_pairs"), choice["data"] in prompts
    of_latents = unconditional and learned and choice["reward"] in ("lrm", "random") and by_prompt
    of_pictures = not no_reward and (
        (branch and choice["data"] in pictures) or (unconditional and learned and by_prompt)
    )
    return {
        "cpo": branch and no_reward and choice["data"] in pictures,
        "control_reward": branch and no_reward and choice["data"] in pictures,
        "dpo_control": branch
        and choice["reward"] not in ("lrm", "random", *of_conditions)
        and choice["data"] in pictures,
        "control": (branch or (unconditional and learned)) and no_reward and choice["data"] in pictures,
        "lrm": unconditional and choice["tune"] == "reward" and no_reward and pairs,
        "lpo": of_latents,
        "step_grpo": of_latents,
        "spo": unconditional
        and learned
        and choice["reward"] not in ("none", "lrm", "random", *of_conditions)
        and by_prompt,
        "diffusion_dpo": unconditional and learned and pairs,
        "ddpo": of_pictures,
        "nft": of_pictures,
    }[choice["method"]]


TARGETS = {group: dict(offered(group)) for group in FACTS}


def chosen(choice: dict[str, str]) -> compose.Composed:
    """The classes of the options alone, which is all that their combination depends on."""
    targets = {group: TARGETS[group][option] for group, option in choice.items()}
    return compose.Composed({g: target and {"_target_": target} for g, target in targets.items()}, choice)


def by_classes(composed: compose.Composed) -> bool:
    rows = rows_of(part_of(composed, "method"))
    return any(all(need.fits(part_of(composed, group)) for group, need in row.items()) for row in rows)


def offers(group: str, name: str, value: object) -> str:
    """The options of a group whose class says that value, as an error lists them."""
    said = {option: target and attribute(target, name) for option, target in offered(group)}
    fit = (option for option, of in said.items() if value in (of if isinstance(of, tuple) else (of,)))
    return " or ".join(f"{group}={option}" for option in fit)


@pytest.mark.parametrize("model", first(["sdxl", "flux"], keep=1))
def test_what_needs_another_denoiser_is_refused(model: str):
    """By what each class says, in a line that says what works instead; everything else is not."""
    denoiser = attribute(dict(offered("model"))[model], "denoiser")
    for group in ("method", "reward", "control"):
        for option, target in offered(group):
            kinds = attribute(target or "", "denoisers", (denoiser,))
            lines = [line for line in diagnose("train", [f"model={model}", f"{group}={option}"]) if "denoiser" in line]
            assert bool(lines) == (denoiser not in kinds), (group, option, lines)
            for line in lines:
                assert line == (
                    f"{group}={option} with model={model}: it works with a {' or '.join(kinds)}, and this model's "
                    f"denoiser is a {denoiser}; what works: {offers(group, 'denoisers', denoiser)}, or "
                    f"{offers('model', 'denoiser', kinds[0])}"
                )
    for recipe in (["method=cpo", "task=lineart", "data=toy"], ["experiment=ddpo_toy", "data=toy_prompts"]):
        assert diagnose("train", [f"model={model}", *recipe]) == []


def test_every_method_reward_and_branch_goes_with_both_kinds_of_denoisers_but_nft():
    """Its loss is that of velocities on straight paths."""
    for group in ("method", "reward", "control"):
        for option, target in offered(group):
            kinds = attribute(target or "", "denoisers", ("unet", "transformer"))
            assert set(kinds) == ({"transformer"} if option == "nft" else {"unet", "transformer"}), (group, option)


OF_A_FOLDER = ("captioned", "cpo_pairs", "cpo_pairs_multigen", "cpo_pairs_multigen_depth", "hf", "jsonl")


def paths(folder: Path) -> dict[str, list[str]]:
    """What each data option needs on the command line, for files that are there."""
    (folder / "prompts.txt").touch()
    return {
        **{name: [f"data.path={folder}"] for name in OF_A_FOLDER},
        "folder": [f"data.path={folder}"],
        "image_pairs": [f"data.path={folder}"],
        **{name: [f"data.path={folder}/prompts.txt"] for name in ("prompts", "lpo_prompts")},
    }


def needed(experiment: str, folder: Path) -> list[str]:
    """What an experiment's data and reward need on the command line; embedded ones need nothing."""
    if experiment.endswith("_toy"):
        return []
    kind = experiment.split("_")[0]
    place = paths(folder)["prompts" if kind in ("lpo", "spo", "step", "ddpo", "nft") else "folder"]
    if experiment == "pose_ddpo_paper":
        return [*place, "task.weights=w"]
    more = {"lrm": f"data.scores={folder}/prompts.txt", "cpo": "control.weights=w", "controlnetpp": "control.weights=w"}
    return [*place, *([more[kind]] if kind in more else [])]


def test_every_combination_gets_the_verdict_of_the_classes():
    for options in itertools.product(*FACTS.values()):
        choice = dict(zip(FACTS, options, strict=True))
        composed = chosen(choice)
        problems = combination_problems(composed, [f"{group}={option}" for group, option in choice.items()])
        assert (problems == []) == allowed(choice) == by_classes(composed), (choice, problems)


@pytest.mark.slow
def test_the_check_reads_the_classes(tmp_path: Path):
    for method, control in itertools.product(shipped("method"), shipped("control")):
        words = [f"method={method}", f"control={control}", "model=tiny_sd3"]  # which every method can train
        composed = compose.compose_from(compose.source("train", words, CONF), words)
        problems = check(OmegaConf.create(composed.values), composed.choices, [])
        assert (problems == []) == by_classes(composed), (method, control, problems)


def test_every_shipped_class_says_what_it_goes_with():
    """Without it the check would let everything pass."""
    said = {
        "method": ("trains", "reads", "rewards", "denoisers"), "reward": ("input",), "tune": ("trains",),
        "data": ("gives",), "task": ("differentiable",), "model": ("denoiser",),
    }  # fmt: skip
    for group, names in said.items():
        for option, target in offered(group):
            assert all(target is None or attribute(target, name) is not None for name in names), (group, option)


CONTROLLED = ["method=ddpo", "task=pose", "control=controlnet", "tune=control", "data=toy"]


# A command line on which an option fits, by what its class says.
LINES = {
    ("reward", "input", "pictures"): ["method=spo"],
    ("reward", "input", "latents"): ["method=lpo"],
    ("reward", "input", "condition"): CONTROLLED,
    ("data", "gives", ("pairs",)): ["method=lrm"],
    ("data", "gives", ("prompts",)): ["method=lpo"],
    ("tune", "trains", "reward"): ["method=lrm"],
}


def line_of(group: str, option: str) -> list[str]:
    target = dict(offered(group)).get(option)
    said = {key: attribute(target or "", key[1]) for key in LINES if key[0] == group}
    return next((LINES[key] for key, value in said.items() if value == key[2]), [])


OF_OTHERS = ("hydra", "local", "measure", "what")
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in OF_OTHERS)


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_every_group_passes(group: str, tmp_path: Path):
    extra = {"image_pairs": ["method=lrm"], "prompts": ["method=lpo"], "lpo_prompts": ["method=lpo"]}
    given = {
        **{("data", option): [*overrides, *extra.get(option, [])] for option, overrides in paths(tmp_path).items()},
        ("model", "sd15"): ["data=toy"],
        ("model", "sd21"): ["data=toy"],
        ("model", "sdxl"): ["data=toy"],
        **{("model", name): ["data=toy"] for name in ("flux", "sd3", "sd35m", "sd35l")},
        **{("experiment", name): needed(name, tmp_path) for name in shipped("experiment")},
        ("method", "nft"): ["model=tiny_sd3"],
        ("control", "none"): ["method=control", "task=none", "tune=full"],
        ("task", "none"): ["method=control", "control=none", "tune=full"],
        ("tune", "full"): ["method=control", "control=none", "task=none"],
        ("tune", "lora"): ["method=control", "control=none", "task=none"],
        **{("reward", name): ["method=spo", "reward.weights=w"] for name in ("aesthetic", "spm", "vqa")},
        **{("metrics", f"cpo_{task}"): [f"task={task}"] for task in ("pose", "seg_ade20k", "seg_coco")},
        ("metrics", "quality"): ["metrics.measures.fid.weights=w", "metrics.measures.lpips.weights=w"],
        ("metrics", "preference"): ["metrics.measures.aesthetic.reward.weights=w"],
    }
    for option in shipped(group):
        overrides = [f"{group}={option}", *given.get((group, option), line_of(group, option))]
        assert diagnose("train", overrides) == [], overrides


OPTIONS = {group: shipped(group) for group in GROUPS if group != "experiment"}
TURNS = range(max(map(len, OPTIONS.values())))


@pytest.mark.parametrize("turns", first([TURNS[::6], TURNS], keep=1))
def test_every_option_composes_as_hydra_does(turns: range):
    """One option of every group at once, with a recipe that says something else; at last each has had its turn."""
    recipes = shipped("experiment")
    for turn in turns:
        overrides = [f"{group}={names[turn % len(names)]}" for group, names in OPTIONS.items()]
        overrides.append(f"experiment={recipes[turn % len(recipes)]}")
        assert ours("train", overrides) == hydras("train", overrides), overrides


@pytest.mark.slow
def test_every_recipe_composes_as_hydra_does():
    for name in shipped("experiment"):
        assert ours("train", [f"experiment={name}"]) == hydras("train", [f"experiment={name}"]), name


def test_a_full_disk_is_the_users_to_put_right_whatever_writes():
    from safetensors import SafetensorError

    for error in (OSError(errno.ENOSPC, "No space left"), SafetensorError("I/O error: none left (os error 28)")):
        assert str(users(error)).startswith("cannot write: No space left"), error
    assert "folder that you may" in str(users(PermissionError(errno.EACCES, "Permission denied", "here")))


def test_of_nothing_nothing_is_learned():
    found = diagnose("train", ["method.steps=0", "data.num_test=-1", "metrics.rows=0", "optim.lr=0"])
    assert sorted(found) == [
        "data.num_test=-1: must be at least 1",
        "method.steps=0: must be at least 1",
        "metrics.rows=0: must be at least 1",
        "optim.lr=0: must be above 0",
    ]


def test_guidance_below_nothing_is_refused_wherever_it_is_asked_for():
    wrong = ["model.guidance=-2", "method.guidance=-0.5", "metrics.guidance=-1", "metrics.guidance_base=-1"]
    line = ["method=lpo", "metrics=lpo", *wrong]
    assert diagnose("train", line) == [f"{key}: must not be negative; 0 to 1 are no guidance" for key in wrong]
    assert diagnose("train", ["model.guidance=0", "metrics.guidance=0.5"]) == []


def ours(primary: str, overrides: list[str]) -> dict:
    return compose.compose(primary, overrides, [], CONF).values


def hydras(primary: str, overrides: list[str]) -> dict:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(primary, overrides, return_hydra_config=True)
    smoke.shrink(cfg, cfg.hydra.runtime.choices, overrides)  # as a job does
    return {key: value for key, value in OmegaConf.to_container(cfg, resolve=False).items() if key != "hydra"}


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path):
    (tmp_path / "optim").mkdir()
    for time, lr in enumerate((0.5, 0.25)):
        (tmp_path / "optim" / "mine.yaml").write_text(f"_target_: lpo_platform.methods.optim.AdamW\nlr: {lr}\n")
        os.utime(tmp_path / "optim" / "mine.yaml", (time, time))
        assert compose.compose("train", ["optim=mine"], [str(tmp_path)], CONF).values["optim"]["lr"] == lr


@pytest.mark.parametrize(
    ("primary", "overrides"),
    first(
        [
            (
                "train",
                ["method.beta=3", "+method.extra=[1,{a: 2}]", "~task.low", "optim.betas=[0.5,0.9]", "name='a b'"],
            ),
            ("train", ["experiment=cpo_canny_sd15", "tune=lora", "method.steps=7"]),
            ("train", ["debug=smoke", "callbacks=default", "++name=null"]),
            ("train", ["method=ddpo", "reward=blend", "+reward@reward.rewards.a=toy", "+reward.weights.a=2"]),
            ("prepare", ["task=canny", "force=true"]),
            ("eval", ["run=/tmp", "metrics.batch=2"]),
            ("eval", ["run=/tmp", "+measure@metrics.measures.a=reward", "+reward@metrics.measures.a.reward=toy"]),
            *(("eval", ["run=/tmp", f"+measure@metrics.measures.a={name}"]) for name in shipped("measure")),
        ],
        keep=8,
    ),
)
def test_our_composition_equals_hydras(primary: str, overrides: list[str]):
    assert ours(primary, overrides) == hydras(primary, overrides)


def test_the_command_line_wins_over_the_method_and_the_method_over_the_default():
    assert ours("train", [])["control"]["_target_"].endswith("ControlNet")
    values = ours("train", ["tune=lora", "method.steps=7", "experiment=cpo_canny_sd15"])
    assert values["tune"]["_target_"].endswith("Lora")
    assert values["method"]["steps"] == 7 and values["method"]["beta"] == 5000.0


def test_the_job_configuration_never_refers_to_hydra():
    for path in CONF.rglob("*.yaml"):
        if "hydra" in path.relative_to(CONF).parts:
            continue
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        values.pop("hydra", None)
        assert "${hydra" not in str(values), path


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my_conf"
    for group in ("task", "method", "experiment"):
        (folder / group).mkdir(parents=True)
    (tmp_path / "my_task_for_test.py").write_text(
        "import not_installed_anywhere\nclass Edges:\n    def __init__(self, low: float = 0.1): ...\n"
    )
    (folder / "task" / "edges.yaml").write_text("_target_: my_task_for_test.Edges\nlow: 0.2\n")
    (folder / "method" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /control: controlnet\n"
        "method:\n  _target_: lpo_platform.methods.cpo.CPO\n  betta: 3\n  steps: many\n  batch: 1\n"
    )
    (folder / "experiment" / "wrong.yaml").write_text("# @package _global_\nmehtod: 3\ntask:\n  loww: 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_an_option_of_the_user_passes_without_being_imported(own: Path):
    assert diagnose("train", ["task=edges"], [str(own)]) == []
    assert diagnose("train", ["task=edges", "task.low=x"], [str(own)]) == ["task.low=x: must be float"]
    assert diagnose("train", ["task=edgs"], [str(own)]) == [
        f"task=edgs: no such option; did you mean 'edges'? Options: {', '.join(sorted([*shipped('task'), 'edges']))}"
    ]
    assert diagnose("train", [], ["/no/such/conf"]) == ["--config-dir /no/such/conf: no such folder"]


def test_a_problem_in_a_file_names_the_file(own: Path):
    names = ", ".join(sorted(item.name for item in fields(schema.Train)))
    assert diagnose("train", ["method=mine", "experiment=wrong", "task=canny"], [str(own)]) == [
        "method=mine needs tune=control, not tune=full",  # as its class says, whoever wrote the option
        f"mehtod in experiment/wrong.yaml: no such key or group; did you mean 'method'? Options: {names}",
        "task.loww in experiment/wrong.yaml: Canny has no such option; did you mean 'low'? "
        "Options: form, high, low, train_form",
        f"method.betta in method/mine.yaml: CPO has no such option; did you mean 'beta'? Options: {CPO}",
        "method.steps=many in method/mine.yaml: must be int",
    ]


def test_a_wrong_target_is_named(own: Path):
    path = own / "task" / "lost.yaml"
    path.write_text("_target_: lpo_platform.tasks.cany.Canny\n")
    (line,) = diagnose("train", ["task=lost"], [str(own)])
    assert line == (
        "task._target_='lpo_platform.tasks.cany.Canny' in task/lost.yaml: no 'cany' in lpo_platform.tasks to import; "
        "did you mean 'canny'?"
    )
    path.write_text("_target_: lpo_platform.tasks.canny.Cany\n")
    (line,) = diagnose("train", ["task=lost"], [str(own)])
    assert line.endswith("no 'Cany' in lpo_platform.tasks.canny to import; did you mean 'Canny'?")


def test_what_the_platform_passes_cannot_be_set_and_what_is_needed_must_be():
    assert diagnose("train", ["+data.resolution=32"]) == ["data.resolution: Toy gets it from the platform; remove it"]
    assert diagnose("train", ["~method.steps"]) == ["method.steps: required by method=cpo; add it"]


def test_eval_and_prepare(tmp_path: Path):
    (line,) = diagnose("eval", [])
    assert line.startswith(
        "model: required; add model=<option>, or run=<a finished run>, or measure folders by what=clip"
    )
    assert diagnose("eval", ["what=generate"])[0].startswith("run: required by what=generate; add run=<value>")
    assert diagnose("eval", [f"run={tmp_path}/none"]) == [f"run={tmp_path}/none: no such folder"]
    assert diagnose("eval", [f"run={tmp_path}", "task=canny"]) == [
        "task: with run=, the run says it; leave one of the two out",
        f"run={tmp_path}: not a run folder (neither it nor its 'latest' holds resolved.yaml)",
    ]
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest" / "resolved.yaml").touch()
    assert diagnose("eval", [f"run={tmp_path}"]) == []
    assert diagnose("prepare", ["task=canny"]) == []
    assert diagnose("prepare", ["force=3", "seed=0"]) == ["force=3: must be bool"]


def test_a_path_that_is_relative_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert diagnose("train", ["data=folder", "data.path=pics"]) == [f"data.path=pics: no such folder in {tmp_path}"]
    assert diagnose("train", ["data=folder", "data.path=file"]) == [f"data.path=file: not a folder in {tmp_path}"]
    Path("pics").mkdir()
    assert diagnose("train", ["data=folder", "data.path=pics"]) == []


def test_every_key_of_a_shipped_option_is_an_argument_and_every_message_is_one_line():
    for overrides, _ in COMBINATIONS:
        assert not [line for line in diagnose("train", overrides) if "\n" in line or not re.match(r"\S", line)]


def test_a_file_and_a_hub_id_are_told_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.json").touch()
    (tmp_path / "pairs").mkdir()

    def about_paths(*overrides: str) -> list[str]:
        return [line for line in diagnose("train", overrides) if line.startswith("data.")]

    assert about_paths("data=prompts", "data.path=p.json") == []
    assert about_paths("data=prompts", "data.path=pairs") == [f"data.path=pairs: not a file in {tmp_path}"]
    assert about_paths("data=prompts", "data.path=p.json", "data.test_path=/none.json") == [
        "data.test_path=/none.json: no such file"
    ]
    assert about_paths("data=image_pairs", "data.path=pairs") == []
    assert about_paths("data=image_pairs", "data.path=yuvalkirstain/pickapic_v1") == []
    assert about_paths("data=image_pairs", "data.path=none") == [
        f"data.path=none: no such folder in {tmp_path}, and no hub id"
    ]
    assert about_paths("data=image_pairs", "data.path=pairs", "data.scores=s.csv") == [
        f"data.scores=s.csv: no such file in {tmp_path}"
    ]
    assert about_paths("data=image_pairs", "data.path=pairs", "data.strategy=4") == [
        "data.strategy=4: must be 1 or 2 or 3 or null"
    ]
