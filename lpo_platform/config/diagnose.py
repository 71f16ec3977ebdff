"""Every problem of a command line at once, in the words of the file or override that caused it."""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from lpo_platform.config.check import problems_of
from lpo_platform.config.compose import Composed, Source, Values, merge, override_parser, set_value, several, source
from lpo_platform.config.errors import ConfigError, hint, one_line
from lpo_platform.config.schema import CONF, ROOTS
from lpo_platform.config.signature import attribute, signature
from lpo_platform.config.sources import NotFound
from lpo_platform.config.synonyms import KEYS, meant_key, meant_option, nearly

MAX_VARIANTS = 32


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
    missing = [f"--config-dir {folder}: no such folder" for folder in config_dirs if not Path(folder).is_dir()]
    config_dirs = [folder for folder in config_dirs if Path(folder).is_dir()]
    files = source(primary, config_dirs, conf)
    if not files.repo.config_exists(primary):
        return [*missing, f"--config-name {primary}: no such file in {conf}"]
    parsed, problems = _parse(_joined(overrides))
    swept = [item for item in parsed if item.is_sweep_override()]
    multirun = multirun or any(several(item.key_or_group, item.value()) for item in parsed)
    if swept and not multirun:
        problems += [f"{item.input_line}: several values need -m (a sweep); a list is [a,b]" for item in swept]
        parsed = [item for item in parsed if not item.is_sweep_override()]
    if lists := [item for item in parsed if isinstance(item.value(), list) and _is_group(files, item)]:
        # Hydra would mix the files of its options
        advice = "is one option at a time; -m runs several"
        return missing + [f"{item.input_line}: {item.key_or_group} {advice}" for item in lists]
    problems = missing + problems + _repeated(files, parsed) + _fixed_problems(parsed)
    try:
        for variant in _variants(files, parsed):
            problems += _variant_problems(files, variant, values=values)
    except ConfigError as error:  # a file that cannot be read
        return list(dict.fromkeys([*problems, *error.problems]))
    if values:
        problems += _plugin_problems(parsed, multirun=multirun)
    if not problems and any(item.is_hydra_override() for item in parsed):
        problems = _hydra_problems(files, overrides, multirun=multirun)
    return list(dict.fromkeys(problems))


def _repeated(files: Source, parsed: Sequence[Override]) -> list[str]:
    """Groups of which a command line chooses two options: Hydra would take the last one without a word."""
    chosen: dict[str, list[str]] = {}
    for item in parsed:
        if _is_group(files, item) and not (item.is_add() or item.is_delete() or item.is_sweep_override()):
            options = chosen.setdefault(item.get_key_element(), [])
            options += [text] if (text := item.get_value_element_as_str()) not in options else []
    return [
        f"{' '.join(f'{group}={option}' for option in options)}: {group} is chosen more than once; keep one of them"
        for group, options in chosen.items()
        if len(options) > 1
    ]


# Settings of Hydra that have to stay as they are, and why.
FIXED = {
    "hydra.job.chdir": ((False,), "paths of a configuration are relative to where the command is called"),
    "hydra.output_subdir": ((".hydra",), "a run goes on, and is reported, by what lies there"),
    "hydra.job.name": (tuple(ROOTS), "it is the command's own; name=<text> names a run"),
}


def _fixed_problems(parsed: Sequence[Override]) -> list[str]:
    folders = ("hydra.run.dir", "hydra.sweep.dir")
    nowhere = [f"{i.key_or_group}=: no folder; add one, or leave it out" for i in parsed if _is_empty(i, folders)]
    return nowhere + [
        f"{item.input_line}: {FIXED[item.key_or_group][1]}; leave it out"
        for item in parsed
        if item.key_or_group in FIXED and item.value() not in FIXED[item.key_or_group][0]
    ]


def _is_empty(item: Override, keys: Sequence[str]) -> bool:
    return item.key_or_group in keys and not item.is_delete() and item.value() in ("", None)


# Options of Hydra's own groups that need more than the dependencies: the module, and our extra that brings it.
PLUGINS = {
    "hydra/launcher=slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "hardware=slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "hydra/launcher=local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "hydra/sweeper=optuna": ("optuna", "optuna"),
}


def _plugin_problems(parsed: Sequence[Override], *, multirun: bool) -> list[str]:
    """What a launcher or sweeper lacks: its package, or the -m without which it is not asked."""
    problems = []
    for item in parsed:
        choice = f"{item.key_or_group}={item.value()}"
        if choice not in PLUGINS:
            continue
        module, extra = PLUGINS[choice]
        if not installed(module):
            problems.append(f"{choice}: needs packages that are not installed; pip install 'lpo-platform[{extra}]'")
        if not multirun:
            problems.append(f"{choice}: works with -m only, also for a single job; add -m")
    return problems


def installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _hydra_problems(files: Source, overrides: Sequence[str], *, multirun: bool) -> list[str]:
    """What Hydra says about settings of its own, such as `hydra.run.dirr=x`."""
    mode = RunMode.MULTIRUN if multirun else RunMode.RUN
    try:
        ConfigLoaderImpl(files.path).load_configuration(files.primary, list(overrides), mode)
    except (HydraException, OmegaConfBaseException) as error:
        return [one_line(error) or one_line(error.__cause__ or error)]
    return []


SPACED = re.compile(r"(\S+?)(?: +=| *= +| += +)([^= ]\S*)")


def _joined(words: Sequence[str]) -> list[str]:
    """`method`, `=`, `cpo` as the one word `method = cpo` that is meant; so too with a space on one side only."""
    joined: list[str] = []
    for word in words:
        before = joined[-1] if joined else "="
        opens = word.startswith("=") and "=" not in before
        closes = before.endswith("=") and "=" not in word and joined
        if opens or closes:
            joined[-1] = f"{before} {word}"
        else:
            joined.append(word)
    return joined


def _parse(overrides: Sequence[str]) -> tuple[list[Override], list[str]]:
    parsed, problems = [], []
    for line in overrides:
        if (spaced := re.fullmatch(SPACED, line)) is not None:
            problems.append(f"{line}: no spaces around =; write {spaced[1]}={spaced[2]}")
            continue
        try:
            parsed.append(override_parser().parse_override(line))
        except HydraException:
            quoted = "quote a value with spaces or special characters: 'key=\"a b\"'"
            problems.append(f"{line}: not an override; {quoted if '=' in line else 'write key=value'}")
    return parsed, problems


def _variants(files: Source, parsed: list[Override]) -> Iterator[list[Override]]:
    """The jobs of a sweep: all of them where they are few, else each value once."""
    axes = [_values(files, item) for item in parsed]
    count = 1
    for axis in axes:
        count *= len(axis)
    if count <= MAX_VARIANTS:
        yield from (list(job) for job in itertools.product(*axes))
        return
    first = [axis[0] for axis in axes]
    for index, axis in enumerate(axes):
        for item in axis:
            yield [*first[:index], item, *first[index + 1 :]]


def _values(files: Source, item: Override) -> list[Override]:
    if not item.is_sweep_override():
        return [item]
    if item.is_discrete_sweep():
        texts = [str(text) for text in item.sweep_string_iterator()]
    elif item.is_interval_sweep():
        interval = item.value()
        texts = [str(interval.start), str(interval.end)]
    else:
        glob = item.value()
        texts = glob.filter(files.options(item.key_or_group)) if hasattr(glob, "filter") else []
    return [override_parser().parse_override(f"{item.get_key_element()}={text}") for text in texts] or [item]


def _variant_problems(files: Source, parsed: list[Override], *, values: bool) -> list[str]:
    good, problems, unsure = _screen_groups(files, parsed)
    try:
        composed = merge(files, [item for item in good if item not in _settings(files, good)])
    except (HydraException, OmegaConfBaseException) as error:
        return [*problems, one_line(error)]
    composed.unsure = frozenset(unsure)
    for item in _settings(files, good):
        if item.is_hydra_override():
            continue
        problem = _setting_problem(files, composed, item)
        if problem is None:
            set_value(composed, item)
        elif problem:
            problems.append(problem)
    if values:
        given = [item.input_line or "" for item in parsed] if composed.choices else None
        problems += problems_of(composed, given)
    return problems


def _is_group(files: Source, item: Override) -> bool:
    key = item.key_or_group
    return files.repo.group_exists(key) and item.key_or_group != "hydra"


def _settings(files: Source, parsed: list[Override]) -> list[Override]:
    return [item for item in parsed if not _is_group(files, item)]


def _screen_groups(files: Source, parsed: list[Override]) -> tuple[list[Override], list[str], set[str]]:
    """Overrides without those that choose an option which does not exist, and the groups that are unsure by that."""
    good, problems, unsure = [], [], set()
    for item in parsed:
        group = item.key_or_group
        if not _is_group(files, item) or item.is_delete():
            good.append(item)
            continue
        if group not in files.groups and not group.startswith("hydra/") and not item.is_add():
            problems.append(_unknown_root(files, group))
            continue
        if item.is_add() and item.package is None and group in files.groups:
            word = (item.input_line or "").lstrip("+")
            problems.append(f"{item.input_line}: {group} is a group; write {word}, without +")
            continue
        chosen = item.value()
        chosen = chosen if isinstance(chosen, list) else [chosen]
        wanted = ["null" if value is None else str(value) for value in chosen]
        options = files.options(group)
        unknown = [name for name in wanted if name not in options]
        missing = [name for name in unknown if f"{group}={name}" not in PLUGINS]  # the others get a line of their own
        problems += [f"{group}={name}: no such option{meant_option(files, group, name, options)}" for name in missing]
        if unknown:
            unsure.add(group)
        else:
            good.append(item)
    return good, problems, unsure


def _setting_problem(files: Source, composed: Composed, item: Override) -> str | None:
    """What is wrong with the key of `a.b=value`: None for nothing, '' where a bad group already explains it."""
    key = item.key_or_group
    parts = key.split(".")
    if parts[0] in composed.unsure:
        return ""
    if item.is_add() and _stands(composed.values, parts):
        return f"{item.input_line}: {key} is set already; write {(item.input_line or '').lstrip('+')}, without +"
    if item.is_add() or item.is_force_add():
        return None if parts[0] in composed.values else _unknown_root(files, key, composed.values)
    if parts[0] not in composed.values:
        return _unknown_root(files, key, composed.values)
    node: object = composed.values
    for index, part in enumerate(parts):
        if not isinstance(node, dict):
            above = ".".join(parts[:index])
            return f"{key}: {_name(composed, above)} has no options"
        if part not in node:
            return _unknown_key(composed, item, parts, index, node)
        node = node[part]
    return None


def _stands(node: object, parts: list[str]) -> bool:
    for part in parts:
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _name(composed: Composed, path: str) -> str:
    option = composed.choices.get(path)
    return path if option is None else f"{path}={option}"


def _unknown_root(files: Source, key: str, values: Values | None = None) -> str:
    root = ROOTS.get(files.primary)
    names = {*files.groups, *(item.name for item in (fields(root) if root else ()))}
    first = key.partition(".")[0]
    if meant := meant_key(key, values or {}):
        return f"{key}: no such key or group{meant}"
    if not get_close_matches(first, names, 1, 0.8) and (meant := nearly(key, values or {})):
        return f"{key}: no such key or group{meant}"
    return f"{first}: no such key or group{hint(first, names)}"


def _unknown_key(composed: Composed, item: Override, parts: list[str], index: int, node: Values) -> str | None:
    """A key that its node does not have; one that the constructor has takes a `+`."""
    path = ".".join(parts[:index])
    target = (composed.values.get("task") or {} if path == "metrics.task" else node).get("_target_")
    name, names = _name(composed, path), [key for key in node if key != "_target_"]
    try:
        known = signature(target) if isinstance(target, str) else None
    except (NotFound, SyntaxError):
        known = None
    key = ".".join(parts)
    if known is not None:
        if known[parts[index]] is not None or known.open:
            return f"{key}: not set in the files; to set it add a plus: +{item.input_line}"
        name = known.name
        if reason := attribute(target, "refused", {}).get(parts[index]):
            return f"{key}: not to be set here: {reason}"
    if parts[index] in KEYS:
        return f"{key}: {name} has no such option{meant_key(key, composed.values)} Options: {', '.join(sorted(names))}"
    return f"{key}: {name} has no such option{hint(parts[index], names)}"
