"""The check of a composed configuration: every problem at once, one line each, without importing torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lpo_platform.config import own_modules
from lpo_platform.config.batch_size import batch_problem, nearest
from lpo_platform.config.compatibility import (
    ANY,
    OF_A_MODEL,
    RUNTIME,
    combination_problems,
    denoiser_problems,
    key_values,
    part_of,
    reward_problems,
    sharding_problems,
    toy_problems,
)
from lpo_platform.config.compose import Composed, Values
from lpo_platform.config.errors import hint, one_line
from lpo_platform.config.options import offered
from lpo_platform.config.paths import path_problem, run_problem
from lpo_platform.config.schema import KEPT, Eval, Kept, Prepare, Score, Train
from lpo_platform.config.signature import Parameter, Signature, attribute, signature
from lpo_platform.config.sources import NotFound
from lpo_platform.config.stored import RENAMED
from lpo_platform.config.values import value_problems
from lpo_platform.config.wanted import wanted

SPECIAL = frozenset({"_target_", "_partial_", "_recursive_", "_convert_", "_args_"})


def check(cfg: DictConfig, choices: Mapping[str, str | None], overrides: Iterable[str] | None = None) -> list[str]:
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
    if absent := _absent(composed):
        return absent
    problems = [] if "method" in composed.unsure else combination_problems(composed, overrides or ())
    problems += reward_problems(composed)
    problems += toy_problems(composed, overrides)
    problems += denoiser_problems(composed)
    problems += _root_problems(composed) + _eval_problems(composed, overrides)
    for group, node in composed.values.items():
        if group not in composed.unsure and isinstance(node, dict):
            problems += node_problems(composed, group, node, group)
    problems += _judge_problems(composed)
    problems += _path_problems(composed) + value_problems(composed)
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
        elif key == "run" and _needs_run(composed) and not (value or composed.values["model"]):
            problems.append(f"run: required by {_chosen(composed, 'what')}; add run=<value>, or model=<option>")
        else:
            problems += _value_problems(composed, key, value, parameter)
    return problems


def _absent(composed: Composed) -> list[str]:
    """One line for each group of which nothing is chosen, as after ~<group>."""
    needed = [group for group in _root(composed).needed if group in composed.values and group not in composed.unsure]
    return [
        f"{group}: nothing is chosen; add {group}=<option>, one of {', '.join(name for name, _ in offered(group))}"
        for group in needed
        if set(_mapping(composed.values.get(group))) <= set(KEPT)  # which data has in any case
    ]


def _needs_run(composed: Composed) -> bool:
    """Whether what is measured is measured of a run: `what=run`, and whatever draws with a run's model."""
    return composed.choices.get("what") == "run" or part_of(composed, "what").says("of_a_run", False)


def _eval_problems(composed: Composed, overrides: Iterable[str] | None) -> list[str]:
    """What lpo-eval lacks to know which model it evaluates, or is told twice."""
    choices, values = composed.choices, composed.values
    asked = {key for key, _ in key_values(overrides or ())}
    chosen = part_of(composed, "task")
    if part_of(composed, "what").says("needs_task") and chosen.target is None:
        return [f"{_chosen(composed, 'what')} {ANY.complaint(chosen, composed.folders)}"]
    if _root(composed) is not Eval or choices.get("what") not in ("model", "run"):
        return []
    if values["run"] is not None:
        twice = [name for name in (*OF_A_MODEL, "weights") if name in asked]
        return [f"{name}: with run=, the run says it; leave one of the two out" for name in twice]
    problems = []
    if choices.get("model") is None and "model" not in composed.unsure:
        others = ", ".join(f"what={name}" for name, of in offered("what") if of and not attribute(of, "of_a_run"))
        problems.append(f"model: required; add model=<option>, or run=<a finished run>, or measure folders by {others}")
    task, control = (choices.get(group) not in (None, "none") for group in ("task", "control"))
    if control and not task and not composed.unsure:
        problems.append(f"control={choices['control']} {ANY.complaint(chosen, composed.folders)}")
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


def _judge_problems(composed: Composed) -> list[str]:
    """The settings of metrics.task are those of the task."""
    given, target = (_mapping(composed.values.get(group)) for group in ("metrics", "task"))
    node, target = given.get("task"), target.get("_target_")
    if not isinstance(node, dict) or not node or not isinstance(target, str) or "task" in composed.unsure:
        return []
    try:
        known = signature(target)
    except (NotFound, SyntaxError):  # the task itself is complained about
        return []
    return [] if known is None else _argument_problems(composed, "metrics.task", node, known, "task")


def node_problems(composed: Composed, path: str, node: Values, group: str) -> list[str]:
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
            problems += node_problems(composed, below, value, group)
        elif path == group and (value is not None or group != "scores"):
            where = composed.where(below)
            problems.append(f"{below}={_shown(value)}{where}: must be a mapping with a _target_, or null")
    return problems


def _target_problem(composed: Composed, path: str, target: str, error: NotFound) -> str:
    if target in RENAMED:
        return f"{path}._target_={target!r}{composed.where(path)}: it has moved; write {RENAMED[target]}"
    missing = target[len(error.part) :].lstrip(".").split(".")[0]
    inside = f" in {error.part}" if error.part else ""
    advice = hint(missing, error.names, options=False) if error.part else f"; {own_modules.places(composed.folders)}"
    return f"{path}._target_={target!r}{composed.where(path)}: no {missing!r}{inside} to import{advice}"


def _argument_problems(composed: Composed, path: str, node: Values, known: Signature, group: str) -> list[str]:
    runtime, kept = _runtime(known, group), _schema(Kept) if path == "data" else None
    free = [item.name for item in known.parameters if item.name not in runtime]
    problems = []
    for key, value in node.items():
        below = f"{path}.{key}"
        parameter = known[str(key)]
        if key in SPECIAL:
            continue
        if kept and kept[str(key)]:
            problems += _value_problems(composed, below, value, kept[str(key)])
        elif key in runtime:
            problems.append(f"{below}{composed.where(below)}: {known.name} gets it from the platform; remove it")
        elif parameter is None and (reason := attribute(str(node.get("_target_")), "refused", {}).get(key)):
            problems.append(f"{below}{composed.where(below)}: not to be set here: {reason}")
        elif parameter is None and not known.open:
            problems.append(f"{below}{composed.where(below)}: {known.name} has no such option{hint(str(key), free)}")
        elif value == "???" or (value is None and parameter is not None and not parameter.type.accepts(None)):
            # null too: where a default stands before it, OmegaConf keeps that for ???
            what = wanted(composed, group, below)
            problems.append(f"{below}: required by {_chosen(composed, group)}; add {below}={what}")
        elif isinstance(value, dict) and any("_target_" in _mapping(node) for node in (value, *value.values())):
            problems += node_problems(composed, below, value, group)
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
        reason = parameter.type.outside(value)
        return [f"{path}={_shown(value)}{composed.where(path)}: {reason}"] if reason else []
    each = isinstance(value, list) and value and all(map(parameter.type.accepts, value)) and not composed.where(path)
    several = f"; several values: -m {path}={','.join(map(_shown, value))}" if each else ""
    return [f"{path}={_shown(value)}{composed.where(path)}: must be {parameter.type}{several}"]


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return value if isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) else repr(value)


def _path_problems(composed: Composed) -> list[str]:
    problems = []
    for group, node in composed.values.items():
        target = node.get("_target_") if isinstance(node, dict) else None
        for key, kind in attribute(target, "paths", {}).items() if isinstance(target, str) else ():
            value = node.get(key)
            if isinstance(value, str) and value != "???" and "${" not in value:
                below = f"{group}.{key}"
                advice = f"; add {below}={wanted(composed, group, below)}" if composed.where(below) else ""
                problems += [f"{line}{advice}" for line in path_problem(below, value, kind)]
    resume = composed.values.get("resume")
    if isinstance(resume, str) and resume != "auto":
        problems += path_problem("resume", resume)
    pose = composed.values.get("pose")
    if isinstance(pose, str):
        problems += path_problem("pose", pose)
        if composed.values.get("export") is None or part_of(composed, "task").says("annotated") != "people":
            problems.append(f"pose={pose}: add task=pose export=<the folder that gets keypoints, skeletons and lines>")
    run = composed.values.get("run")
    if isinstance(run, str) and run != "???":
        problems += run_problem(run)
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
    if devices is None or devices < 1 or nodes < 1:
        return []
    processes = devices * nodes
    problem = batch_problem(batch, micro, processes)
    problems = [problem] if problem else []
    if type(prompts) is int and prompts < processes:
        problems.append(f"method.prompts={prompts}: a round needs at least one for each of {processes} processes")
    return problems


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
    problems = sharding_problems(composed)
    method, hardware = _mapping(composed.values.get("method")), _mapping(composed.values.get("hardware"))
    prompts, devices, nodes = method.get("prompts"), hardware.get("devices"), hardware.get("num_nodes")
    if all(type(number) is int and number > 0 for number in (prompts, devices, nodes)) and prompts % (devices * nodes):
        problems.append(
            f"method.prompts={prompts} does not divide among {devices * nodes} processes, which sharded weights need; "
            f"nearest: {nearest(prompts, devices * nodes)}"
        )
    return problems


def _mapping(node: object) -> Values:
    return node if isinstance(node, dict) else {}
