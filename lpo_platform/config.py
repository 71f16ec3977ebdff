"""The configuration: its schema, the table of what goes with what, and the check that finds every problem at once.

Nothing here imports torch: a wrong command line is answered in about a second.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lpo_platform.signature import NotFound, Parameter, Signature, signature

HERE = Path(__file__).resolve().parent
CONF = next(path for path in (HERE / "conf", HERE.parent / "conf") if path.is_dir())


class UserError(Exception):
    """Something that the user can put right; the commands print it without a traceback."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def users(error: BaseException) -> BaseException:
    """What is behind an error, a disk that has no room or is not the user's as a UserError."""
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    if type(error).__name__ == "SafetensorError" and (number := re.search(r"os error (\d+)", str(error))):
        error = OSError(int(number[1]), os.strerror(int(number[1])))
    if isinstance(error, OSError) and error.errno in FULL:
        where = f" {error.filename}" if error.filename else ""
        return UserError(f"cannot write{where}: {error.strerror}; make room, then the same command goes on")
    if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
        return UserError(f"{error.filename}: {error.strerror}; what works: a folder that you may read and write")
    return error


class ConfigError(UserError):
    """The configuration cannot work; `problems` holds one line for each reason."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


@dataclass
class Train:
    """Root of `lpo-train`. A field of type Any is a group."""

    model: Any = None
    control: Any = None
    tune: Any = None
    task: Any = None
    reward: Any = None
    data: Any = None
    method: Any = None
    optim: Any = None
    hardware: Any = None
    logger: Any = None
    callbacks: Any = None
    metrics: Any = None
    name: str | None = None
    seed: int = 0
    resume: str | None = None


@dataclass
class Prepare(Train):
    """Root of `lpo-prepare`."""

    force: bool = False
    export: str | None = None
    pose: str | None = None


@dataclass
class Eval:
    """Root of `lpo-eval`."""

    what: Any = None
    model: Any = None
    control: Any = None
    task: Any = None
    reward: Any = None
    data: Any = None
    hardware: Any = None
    metrics: Any = None
    run: str | None = None
    weights: str | None = None
    against: str | None = None
    seed: int = 0


@dataclass
class Score:
    """Root of `lpo-score`."""

    data: Any = None
    hardware: Any = None
    scores: Any = None
    resolution: int = 512


ROOTS: dict[str, type] = {"train": Train, "prepare": Prepare, "eval": Eval, "score": Score}


# Arguments that build.py passes, by group; a configuration may not set them. Keyword-only arguments without a default
# whose annotation is not a plain scalar count as such without standing here.
RUNTIME: dict[str, frozenset[str]] = {
    "callbacks": frozenset({"folder"}),
    "data": frozenset({"resolution", "task"}),
    "method": frozenset({"policy", "optim", "seed", "task"}),
    "task": frozenset({"resolution", "toy"}),
}

# Arguments that name what must exist, relative to the current directory: class -> argument -> what it is.
PATHS = {
    "lpo_platform.data.captioned.Captioned": {"path": "file, folder or hub id"},
    "lpo_platform.data.folder.Folder": {"path": "folder"},
    "lpo_platform.data.image_pairs.ImagePairs": {"path": "folder or hub id", "scores": "file"},
    "lpo_platform.data.prompts.Prompts": {"path": "file", "test_path": "file"},
    "lpo_platform.evaluation.controllability.Controllability": {"originals": "folder", "generated": "folder"},
    "lpo_platform.evaluation.fid_folders.FidOfFolder": {
        "pictures": "folder",
        "weights": "file",
        "reference": "file or folder",
    },
    "lpo_platform.evaluation.folders.Oks": {"original": "file or folder", "target": "file or folder"},
    "lpo_platform.evaluation.generation.Generate": {"csv": "file", "conditions": "folder"},
    "lpo_platform.evaluation.picture_folders.ClipScore": {"images": "folder", "texts": "file or folder"},
    "lpo_platform.evaluation.picture_folders.Lpips": {"originals": "folder", "generated": "folder", "weights": "file"},
    "lpo_platform.evaluation.prompt_sets.GenEval": {"metadata": "file"},
    "lpo_platform.evaluation.prompt_sets.T2ICompBench": {"prompts": "file"},
}

OF_A_RUN = ("generate", "geneval", "run", "t2i_compbench")  # options of what
OF_A_MODEL = ("model", "control", "task", "reward", "data")  # groups that lpo-eval reads where there is no run
NOT_NONE = "!none"
PICTURES = (
    "captioned", "captioned_ade20k", "captioned_cocopose", "captioned_cocostuff", "cpo_pairs",
    "cpo_pairs_ade20k", "cpo_pairs_coco", "cpo_pairs_multigen", "cpo_pairs_pose", "folder", "humanart", "jsonl",
    "multigen_20m", "multigen_20m_depth", "pose_dpo", "toy",
)  # fmt: skip
DIFFERENTIABLE = ("canny", "depth", "hed", "lineart", "seg_ade20k", "seg_coco")
PAIRS = ("image_pairs", "toy_pairs")
OF_PICTURES = (
    "aesthetic", "blend", "clip", "compressibility", "hps", "image_reward", "incompressibility", "pickscore", "spm",
    "toy", "vlm_bertscore", "vqa",
)  # fmt: skip
PROMPTS = ("folder", "prompts", "toy", "toy_prompts")

# For each method the combinations that it accepts: group -> options, or NOT_NONE. A group that is not named is free. An
# option that is not shipped here (a user's own) passes everywhere; a method that is not shipped has no row and is free.
COMPATIBILITY: dict[str, tuple[dict[str, str | tuple[str, ...]], ...]] = {
    "cpo": ({"control": NOT_NONE, "tune": ("control",), "task": NOT_NONE, "reward": ("none",), "data": PICTURES},),
    "control": (
        {"control": NOT_NONE, "tune": ("control",), "task": NOT_NONE, "reward": ("none",), "data": PICTURES},
        {"control": ("none",), "tune": ("full", "lora"), "task": ("none",), "reward": ("none",), "data": PICTURES},
    ),
    "control_reward": (
        {"control": NOT_NONE, "tune": ("control",), "task": DIFFERENTIABLE, "reward": ("none",), "data": PICTURES},
    ),
    "lrm": ({"tune": ("reward",), "control": ("none",), "task": ("none",), "reward": ("none",), "data": PAIRS},),
    "lpo": (
        {
            "tune": ("full", "lora"),
            "control": ("none",),
            "task": ("none",),
            "reward": ("lrm", "random"),
            "data": PROMPTS,
        },
    ),
    "spo": (
        {"tune": ("full", "lora"), "control": ("none",), "task": ("none",), "reward": OF_PICTURES, "data": PROMPTS},
    ),
    "dpo_control": (
        {
            "control": NOT_NONE,
            "tune": ("control",),
            "task": NOT_NONE,
            "reward": ("none", *OF_PICTURES),
            "data": PICTURES,
        },
    ),
    "diffusion_dpo": ({"tune": ("full", "lora"), "control": ("none",), "task": ("none",), "data": PAIRS},),
    "ddpo": (
        {"tune": ("full", "lora"), "control": ("none",), "task": ("none",), "reward": NOT_NONE, "data": PROMPTS},
        {"tune": ("control",), "control": NOT_NONE, "task": NOT_NONE, "reward": NOT_NONE, "data": PICTURES},
    ),
}

# Rewards that look for the condition in a picture, and whose maps they can read: class -> options of task.
OF_CONDITIONS: dict[str, str | tuple[str, ...]] = {
    "lpo_platform.rewards.consistency.Consistency": NOT_NONE,
    "lpo_platform.rewards.keypoint_cosine.KeypointCosine": ("pose",),
    "lpo_platform.rewards.oks.Oks": ("pose",),
    "lpo_platform.rewards.skeleton_dino.SkeletonDino": ("pose",),
}

# Models of full size: toy data below them teaches nothing, so it has to be asked for. What there is instead:
TOY = {
    "toy": "data=folder data.path=<folder of pictures>",
    "toy_prompts": "data=prompts data.path=<file of prompts>",
    "toy_pairs": "data=image_pairs data.path=<Pick-a-Pic: hub id or folder>",
}
FULL_SIZE = frozenset({"sd15", "sd21", "sdxl", "flux"})

# What does not go with FLUX: (group, option) -> why, and what to do.
FLUX = frozenset({"flux", "tiny_flux"})
UNET_ONLY: dict[tuple[str, str], str] = {
    ("method", "lrm"): "a latent reward model is half a UNet; use a model of Stable Diffusion's",
    ("method", "lpo"): "its reward model is half a UNet; use method=ddpo with a reward of pictures",
    ("method", "spo"): "its branches are DDIM's; use method=ddpo",
    ("method", "control_reward"): "its share of rewarded timesteps is DDIM's; use method=control or method=cpo",
    ("reward", "lrm"): "a latent reward model reads a UNet's latents; use a reward of pictures",
    ("control", "controlnet_dino"): "DINO is added to a UNet's ControlNet; use control=controlnet",
}

# What hardware=fsdp on several processes does not go with: (option or argument, value) -> why, and what to do. What
# does: tune=full and tune=control, every method, EMA, gradient checkpointing, 32-true and bf16-mixed, adamw.
UNSHARDED: dict[tuple[str, object], str] = {
    ("tune", "lora"): "adapters are a few MB, there is nothing to shard; use hardware=ddp",
    ("tune", "reward"): "a reward model is half a denoiser and fits a GPU whole; use hardware=ddp",
    ("tune.text_encoder", True): "a text encoder is not sharded; use hardware=ddp",
    ("optim", "adafactor"): "its factored state cannot be sharded; use optim=adamw",
    ("optim", "adamw8bit"): "its state is packed and cannot be sharded; use optim=adamw",
    ("hardware.precision", "16-mixed"): "the gradient scaler does not know sharded gradients; use bf16-mixed",
    ("hardware.compile", True): "compiled blocks are not sharded; use hardware.compile=false",
    ("method.refresh_reward", NOT_NONE): "the processes would draw unequal numbers of pictures; use hardware=ddp",
}

Choices = Mapping[str, str | None]
Values = dict[str, Any]


def several(key: str, value: object) -> bool:
    """Whether an override makes a command a sweep, as -m does."""
    return key in ("sweep", "hydra.mode") or (key, value) == ("hardware", "slurm")


def shipped(group: str) -> tuple[str, ...]:
    """The options of a group that come with the platform."""
    return tuple(sorted(path.stem for path in (CONF / group).glob("*.yaml")))


def fits(group: str, option: str | None, allowed: str | tuple[str, ...]) -> bool:
    """Whether an option satisfies a cell of COMPATIBILITY."""
    if allowed == NOT_NONE:
        return option not in (None, "none")
    return option in allowed or option not in (None, *shipped(group))


def combination_problems(
    choices: Choices, overrides: Iterable[str] = (), *, unsure: frozenset[str] = frozenset()
) -> list[str]:
    """One line for each chosen option that does not go with the method; [] where the table agrees.

    A group of which no option is chosen counts as none; one that is `unsure` counts as fitting.
    """
    method = choices.get("method")
    rows = COMPATIBILITY.get(method or "", ())
    explicit = {key for key, _ in _pairs(overrides)}
    wrong = [[g for g, cell in row.items() if g not in unsure and not fits(g, choices.get(g), cell)] for row in rows]
    if not rows or not all(wrong):
        return []

    def cost(index: int) -> int:
        return sum(4 if group in explicit else 1 for group in wrong[index])

    best = min(range(len(rows)), key=cost)
    others = {group for index, groups in enumerate(wrong) if index != best for group in groups}
    fixed = [f"{group}={choices.get(group)}" for group in rows[best] if group in others - set(wrong[best])]
    context = f" with {' and '.join(fixed)}" if fixed else ""
    who = f"method={method}{context}"
    return [f"{who} {_need(group, choices.get(group) or 'null', rows[best][group])}" for group in wrong[best]]


def _need(group: str, option: str | None, allowed: str | tuple[str, ...]) -> str:
    if allowed == NOT_NONE:
        offers = " or ".join(f"{group}={name}" for name in shipped(group) if name != "none")
        return f"needs a {group}, but {group}={option}; add {offers}"
    return f"needs {' or '.join(f'{group}={name}' for name in allowed)}, not {group}={option}"


def _toy_problems(choices: Choices, overrides: Iterable[str] | None) -> list[str]:
    asked = overrides is None or any(key == "data" for key, _ in _pairs(overrides))
    toy = choices.get("data")
    if asked or toy not in TOY or choices.get("model") not in FULL_SIZE:
        return []
    return [
        f"model={choices['model']} with data={toy}: toy data under a full-size model must be asked for; "
        f"add {TOY[toy]}, or data={toy}"
    ]


def _reward_problems(composed: Composed) -> list[str]:
    """A reward, or one of a blend, that looks for a condition which is not there."""
    reward, task = _mapping(composed.values.get("reward")), composed.choices.get("task")
    nodes = {"reward": reward, **{f"reward.rewards.{k}": v for k, v in _mapping(reward.get("rewards")).items()}}
    cells = {path: OF_CONDITIONS.get(str(_mapping(node).get("_target_"))) for path, node in nodes.items()}
    return [
        f"{_chosen(composed, path)} {_need('task', task or 'null', cell)}"
        for path, cell in cells.items()
        if cell is not None and "task" not in composed.unsure and not fits("task", task, cell)
    ]


def _flux_problems(choices: Choices) -> list[str]:
    if choices.get("model") not in FLUX:
        return []
    return [
        f"{group}={option} with model={choices['model']}: {reason}"
        for (group, option), reason in UNET_ONLY.items()
        if choices.get(group) == option
    ]


def _pairs(overrides: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in overrides:
        key, _, value = line.partition("=")
        yield key.lstrip("+~"), value


@dataclass
class Composed:
    """A configuration as plain values, with the file that set each key (`method/cpo`, or COMMAND)."""

    values: Values
    choices: dict[str, str | None]
    origins: dict[str, str] = field(default_factory=dict)
    unsure: frozenset[str] = frozenset()

    def origin(self, path: str) -> str | None:
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path.rpartition(".")[0]
        return None

    def where(self, path: str) -> str:
        """` in method/mine.yaml` for a key that a file set, empty for the command line."""
        origin = self.origin(path)
        return "" if origin in (None, COMMAND) else f" in {origin}.yaml"


COMMAND = "command line"
SPECIAL = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})


def check(cfg: DictConfig, choices: Choices, overrides: Iterable[str] | None = None) -> list[str]:
    """Every problem of a composed configuration, one line each.

    `cfg` is the job configuration, `choices` the chosen option of each group, `overrides` what stood on the command
    line (None: not known, so nothing is asked that depends on it). Loads no weights and imports nothing.
    """
    values = OmegaConf.to_container(cfg, resolve=False)
    if not isinstance(values, dict):
        raise TypeError(f"a configuration is a mapping, got {type(values).__name__}")
    values.pop("hydra", None)
    return problems_of(Composed(values, dict(choices)), overrides)


def problems_of(composed: Composed, overrides: Iterable[str] | None) -> list[str]:
    """`check` on a configuration that knows where its keys come from."""
    overrides = None if overrides is None else list(overrides)
    choices = {g: option for g, option in composed.choices.items() if g not in composed.unsure}
    problems = []
    if "method" not in composed.unsure:
        problems += combination_problems(choices, overrides or (), unsure=composed.unsure)
    problems += _reward_problems(composed)
    problems += _toy_problems(choices, overrides)
    problems += _flux_problems(choices)
    problems += _root_problems(composed) + _eval_problems(composed, overrides)
    for group, node in composed.values.items():
        if group not in composed.unsure and isinstance(node, dict):
            problems += _node_problems(composed, group, node, group)
    problems += _path_problems(composed) + _size_problems(composed)
    return problems + _batch_problems(composed) + _process_problems(composed)


def _root(composed: Composed) -> type:
    """The root schema that fits: the one which knows most of the keys."""
    if "run" in composed.values:
        return Eval
    if "scores" in composed.values:
        return Score
    return Prepare if "force" in composed.values else Train


def _root_problems(composed: Composed) -> list[str]:
    known = _schema(_root(composed))
    problems = []
    for key, value in composed.values.items():
        parameter = known[key]
        if parameter is None:
            names = [item.name for item in known.parameters]
            problems.append(f"{key}{composed.where(key)}: no such key or group{hint(key, names)}")
        elif value == "???":
            problems.append(f"{key}: required; add {key}=<value>")
        elif key == "run" and composed.choices.get("what") in OF_A_RUN and not (value or composed.values["model"]):
            problems.append(f"run: required by {_chosen(composed, 'what')}; add run=<value>, or model=<option>")
        else:
            problems += _value_problems(composed, key, value, parameter)
    return problems


def _eval_problems(composed: Composed, overrides: Iterable[str] | None) -> list[str]:
    """What lpo-eval lacks to know which model it evaluates, or is told twice."""
    choices, values = composed.choices, composed.values
    asked = {key for key, _ in _pairs(overrides or ())}
    if choices.get("what") == "controllability" and choices.get("task") in (None, "none"):
        return [f"what=controllability {_need('task', choices.get('task') or 'null', NOT_NONE)}"]
    if _root(composed) is not Eval or choices.get("what") not in ("model", "run"):
        return []
    if values["run"] is not None:
        twice = [name for name in (*OF_A_MODEL, "weights") if name in asked]
        return [f"{name}: with run=, the run says it; leave one of the two out" for name in twice]
    problems = []
    if choices.get("model") is None and "model" not in composed.unsure:
        others = ", ".join(f"what={name}" for name in shipped("what") if name not in ("model", *OF_A_RUN))
        problems.append(f"model: required; add model=<option>, or run=<a finished run>, or measure folders by {others}")
    task, control = (choices.get(group) not in (None, "none") for group in ("task", "control"))
    if control and not task and not composed.unsure:
        problems.append(f"control={choices['control']} {_need('task', choices.get('task'), NOT_NONE)}")
    if task and not control and "control" not in asked and not composed.unsure:
        advice = "add control=controlnet, or control=none for a model that does not see the condition"
        problems.append(f"task={choices['task']}: nothing sees the condition; {advice}")
    for key in ("weights", "against"):
        if isinstance(place := values.get(key), str):
            problems += path_problem(key, place.partition("::")[0], "file, folder or hub id")
    return problems


def _schema(schema: type) -> Signature:
    found = signature(f"{schema.__module__}.{schema.__qualname__}")
    if found is None:
        raise TypeError(f"{schema} has no readable signature")
    return found


def _node_problems(composed: Composed, path: str, node: Values, group: str) -> list[str]:
    """Problems of a node with a `_target_`, or of a mapping of such nodes."""
    target = node.get("_target_")
    if target is None:
        return _mapping_problems(composed, path, node, group)
    if not isinstance(target, str) or target.startswith("${"):
        return []
    try:
        found = signature(target)
    except NotFound as error:
        return [_target_problem(composed, path, target, error)]
    except SyntaxError as error:
        return [f"{path}._target_={target!r}{composed.where(path)}: {error.msg} in {error.filename}:{error.lineno}"]
    return [] if found is None else _argument_problems(composed, path, node, found, group)


def _mapping_problems(composed: Composed, path: str, node: Values, group: str) -> list[str]:
    problems = []
    for key, value in node.items():
        below = f"{path}.{key}"
        if isinstance(value, dict):
            problems += _node_problems(composed, below, value, group)
        elif value is not None and path == group:
            problems.append(f"{below}={value!r}{composed.where(below)}: must be a mapping with a _target_, or null")
    return problems


def _target_problem(composed: Composed, path: str, target: str, error: NotFound) -> str:
    missing = target[len(error.part) :].lstrip(".").split(".")[0]
    inside = f" in {error.part}" if error.part else ""
    return (
        f"{path}._target_={target!r}{composed.where(path)}: no {missing!r}{inside} to import"
        f"{hint(missing, error.names, options=False)}"
    )


def _argument_problems(composed: Composed, path: str, node: Values, known: Signature, group: str) -> list[str]:
    runtime = _runtime(known, group)
    free = [item.name for item in known.parameters if item.name not in runtime]
    problems = []
    for key, value in node.items():
        below = f"{path}.{key}"
        parameter = known[str(key)]
        if key in SPECIAL:
            continue
        if key in runtime:
            problems.append(f"{below}{composed.where(below)}: {known.name} gets it from the platform; remove it")
        elif parameter is None and not known.open:
            problems.append(f"{below}{composed.where(below)}: {known.name} has no such option{hint(str(key), free)}")
        elif value == "???" or (value is None and parameter is not None and not parameter.type.accepts(None)):
            # null too: where a default stands before it, OmegaConf keeps that for ???
            problems.append(f"{below}: required by {_chosen(composed, group)}; add {below}=<value>")
        elif isinstance(value, dict) and any("_target_" in _mapping(node) for node in (value, *value.values())):
            problems += _node_problems(composed, below, value, group)
        elif parameter is not None:
            problems += _value_problems(composed, below, value, parameter)
    for item in known.parameters if node else ():
        if item.required and item.name not in node and item.name not in runtime and not node.get("_partial_"):
            problems.append(f"{path}.{item.name}: required by {_chosen(composed, group)}; add it")
    return problems


def _chosen(composed: Composed, group: str) -> str:
    option = composed.choices.get(group)
    return group if option is None else f"{group}={option}"


def _runtime(known: Signature, group: str) -> frozenset[str]:
    """Names of the arguments that are not the configuration's business."""
    named = RUNTIME.get(group, frozenset())
    live = {p.name for p in known.parameters if p.keyword_only and p.required and not p.scalar}
    return frozenset(p.name for p in known.parameters if p.name in named or p.name in live)


def _value_problems(composed: Composed, path: str, value: object, parameter: Parameter) -> list[str]:
    if isinstance(value, str) and "${" in value:
        try:
            value = OmegaConf.select(OmegaConf.create(composed.values), path)
        except OmegaConfBaseException as error:
            return [f"{path}={value!r}{composed.where(path)}: {one_line(error)}"]
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=False)
    if parameter.type.accepts(value):
        return []
    return [f"{path}={_shown(value)}{composed.where(path)}: must be {parameter.type}"]


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) else repr(value)


def _path_problems(composed: Composed) -> list[str]:
    problems = []
    for group, node in composed.values.items():
        target = node.get("_target_") if isinstance(node, dict) else None
        for key, kind in PATHS.get(target, {}).items() if isinstance(target, str) else ():
            value = node.get(key)
            if isinstance(value, str) and value != "???" and "${" not in value:
                problems += path_problem(f"{group}.{key}", value, kind)
    resume = composed.values.get("resume")
    if isinstance(resume, str) and resume != "auto":
        problems += path_problem("resume", resume)
    pose = composed.values.get("pose")
    if isinstance(pose, str):
        problems += path_problem("pose", pose)
        if composed.values.get("export") is None or composed.choices.get("task") != "pose":
            problems.append(f"pose={pose}: add task=pose export=<the folder that gets keypoints, skeletons and lines>")
    run = composed.values.get("run")
    if isinstance(run, str) and run != "???":
        problems += run_problem(run)
    return problems


COUNTED = {
    "method": ("steps", "rounds", "batch", "prompts", "group", "candidates", "num_steps", "inner_epochs"),
    "model": ("resolution", "num_inference_steps"),
    "data": ("num_train", "num_test"),
    "metrics": ("num_samples", "num_steps", "batch", "rows", "images_per_item"),
    "callbacks": ("every", "log_every", "samples_every"),
}


def _size_problems(composed: Composed) -> list[str]:
    """Of nothing nothing comes: what is counted is at least 1, and the learning rate is not 0."""
    problems = []
    for group, keys in COUNTED.items():
        for key in keys:
            value = _mapping(composed.values.get(group)).get(key)
            if type(value) is int and value < 1:
                problems.append(f"{group}.{key}={value}{composed.where(f'{group}.{key}')}: must be at least 1")
    rate = _mapping(composed.values.get("optim")).get("lr")
    if type(rate) in (int, float) and not rate > 0:
        problems.append(f"optim.lr={rate}{composed.where('optim.lr')}: must be above 0, or nothing is learned")
    return problems


def _batch_problems(composed: Composed) -> list[str]:
    """A batch is cut into equal parts: one for each process, and these into micro-batches."""
    hardware, method = (_mapping(composed.values.get(group)) for group in ("hardware", "method"))
    micro, batch, prompts = hardware.get("micro_batch"), method.get("batch"), method.get("prompts")
    micro = None if micro == "auto" else micro  # which divides by itself
    devices, nodes = hardware.get("devices", 1), hardware.get("num_nodes", 1)
    if type(batch) is not int or batch < 1 or type(nodes) is not int or type(devices) not in (int, type(None)):
        return []  # their types are complained about elsewhere
    if not (micro is None or (type(micro) is int and micro > 0)):
        return []
    problems = [
        f"hardware.{key}={value}: must be at least 1"
        for key, value in (("devices", devices), ("num_nodes", nodes))
        if value is not None and value < 1
    ]
    if problems or devices is None:
        return problems
    processes = devices * nodes
    problem = batch_problem(batch, micro, processes)
    if type(prompts) is int and prompts < processes:
        problems.append(f"method.prompts={prompts}: a round needs at least one for each of {processes} processes")
    return problems + ([problem] if problem else [])


def batch_problem(batch: int, micro: int | None, processes: int) -> str | None:
    """Why a step of `batch` samples cannot be cut into equal micro-batches on all processes, and what can; or None."""
    if batch % processes:
        return f"method.batch={batch} does not divide among {processes} processes; nearest: {nearest(batch, processes)}"
    own = batch // processes
    if micro is None or micro >= own or own % micro == 0:
        return None
    sizes = ", ".join(str(size) for size in range(1, own + 1) if own % size == 0)
    part = f"method.batch={batch}" if processes == 1 else f"the {own} of method.batch={batch} on each process"
    return f"hardware.micro_batch={micro} does not divide {part}; these do: {sizes}"


def _process_problems(composed: Composed) -> list[str]:
    """Several processes need a strategy, and not everything can be sharded."""
    hardware = _mapping(composed.values.get("hardware"))
    devices, nodes = hardware.get("devices", 1), hardware.get("num_nodes", 1)
    several = devices is None or (type(devices) is int and type(nodes) is int and devices * nodes > 1)
    chosen = composed.choices.get("hardware")
    if not several or hardware.get("strategy") is None:
        return []
    if hardware["strategy"] == "single":
        asked = f"hardware.devices={devices if devices != 1 else nodes}"
        return [f"hardware={chosen} is one process, not {devices} on {nodes} nodes; add hardware=ddp {asked}"]
    if _root(composed) is Score:
        return [f"hardware={chosen}: lpo-score is one process; use hardware=auto"]
    return _sharding_problems(composed) if hardware["strategy"] == "fsdp" else []


def _sharding_problems(composed: Composed) -> list[str]:
    problems = []
    for (path, refused), reason in UNSHARDED.items():
        if "." in path:
            group, key = path.split(".")
            value = _mapping(composed.values.get(group)).get(key)
            wrong = value is not None if refused == NOT_NONE else value == refused
            shown = _shown(value)
        else:
            shown = value = composed.choices.get(path)
            wrong = path not in composed.unsure and value == refused
        if wrong:
            problems.append(f"{path}={shown} with hardware={composed.choices.get('hardware')}: {reason}")
    method, hardware = _mapping(composed.values.get("method")), _mapping(composed.values.get("hardware"))
    prompts, devices, nodes = method.get("prompts"), hardware.get("devices"), hardware.get("num_nodes")
    if all(type(number) is int and number > 0 for number in (prompts, devices, nodes)) and prompts % (devices * nodes):
        problems.append(
            f"method.prompts={prompts} does not divide among {devices * nodes} processes, which sharded weights need; "
            f"nearest: {nearest(prompts, devices * nodes)}"
        )
    return problems


def nearest(number: int, unit: int) -> str:
    """The multiples of `unit` around a number that is none."""
    below = number // unit * unit
    return " or ".join(str(size) for size in (below, below + unit) if size)


def _mapping(node: object) -> Values:
    return node if isinstance(node, dict) else {}


def path_problem(key: str, value: str, kind: str = "folder") -> list[str]:
    """kind: what it may be, of file, folder and hub id."""
    path = Path(value).expanduser()
    if ("file" in kind and path.is_file()) or ("folder" in kind and path.is_dir()):
        return []
    if "hub id" in kind and is_hub_id(value) and not path.exists():
        return []
    what = "not a" if path.exists() else "no such"
    noun = " or ".join(noun for noun in ("file", "folder") if noun in kind)
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    return [f"{key}={value}: {what} {noun}{where}{', and no hub id' if 'hub id' in kind else ''}"]


def is_hub_id(text: str) -> bool:
    """Whether a text has the form `owner/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) is not None


def run_folder(value: str) -> Path | None:
    """The run folder that `run=` names: the folder itself, or `latest` in it; None where neither holds a run."""
    folder = Path(value).expanduser()
    for path in (folder, folder / "latest"):
        if (path / "resolved.yaml").is_file():
            return path.resolve()
    return None


def run_problem(value: str) -> list[str]:
    missing = path_problem("run", value)
    if missing or run_folder(value) is not None:
        return missing
    return [f"run={value}: not a run folder (neither it nor its 'latest' holds resolved.yaml)"]


def hint(name: str, names: Iterable[str], *, options: bool = True) -> str:
    """`; did you mean 'beta'? Options: batch, beta`."""
    names = sorted(set(names))
    close = difflib.get_close_matches(name, names, 1, 0.6)
    text = f"; did you mean {close[0]!r}?" if close else ""
    if not options or not names:
        return text
    return f"{text or ';'} {'Options' if close else 'options'}: {', '.join(names)}"


def one_line(error: BaseException) -> str:
    """OmegaConf adds lines about its own types below the reason; Hydra spreads one reason over several."""
    text = str(error)
    return text.partition("\n")[0] if isinstance(error, OmegaConfBaseException) else " ".join(text.split())


def diagnose(
    primary: str,
    overrides: Sequence[str],
    config_dirs: Sequence[str] = (),
    *,
    conf: Path = CONF,
    multirun: bool = False,
    values: bool = True,
) -> list[str]:
    """Every problem of a command line, one line each; [] where Hydra will compose it and `check` will agree.

    `values=False` looks at what composition needs (groups, options, keys) and leaves the values alone.
    """
    from lpo_platform import compose

    return compose.diagnose(primary, overrides, config_dirs, conf=conf, multirun=multirun, values=values)


# The primaries name these: an unknown top-level key then fails in Hydra's own composition, too.
for _name, _root_schema in ROOTS.items():
    ConfigStore.instance().store(name=f"{_name}_schema", node=_root_schema)
