"""What a run leaves beside its weights: resolved.yaml, env.json and result.json, each written atomically.

Nothing here imports torch: versions come from the installed packages' metadata, so that a run is on record
before anything heavy is loaded.
"""

import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lpo_platform.runs.files import read_json, write_text

PACKAGES = ("lpo-platform", "torch", "lightning", "diffusers", "transformers", "peft", "hydra-core", "wandb")
METRIC_KEYS = frozenset({"before", "after", "difference", "ci95", "higher_is_better"})
HIDDEN = "***"

_HEADER = """\
# The whole configuration of a run. To run it again:
# lpo-train --config-path <the folder of this file> --config-name resolved
"""
_SECRET_NAME = re.compile(
    r"^(.*_)?(password|passwd|secret|credentials?)$|^token$|^(.*_)?(api|access|secret|private)_?key$"
    r"|^(.*_)?(auth|access|api|hub|hf|hugging_?face|wandb|bearer)_?token$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|wandb_v1_\w{20,}|gh[pousr]_[A-Za-z0-9]{20,})")
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")


def start(folder: Path, config: Mapping[str, Any], command: Sequence[str]) -> None:
    """Puts a run on record: what it is (resolved.yaml), where it runs (env.json), that it runs (result.json).

    `config` holds literal values only. Calling it again with the same config in the same folder (a resumed run)
    keeps the first command and counts. Raises ValueError if the config still refers to the hydra node, because such
    a file could not be loaded again.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    again = {"resume": None} if "resume" in config else {}  # or loading the file would continue this run
    text, file = resolved_yaml({**config, **again}), folder / "resolved.yaml"
    known = read_json(folder / "env.json") or {}
    resumed = "command" in known and file.exists() and file.read_text(encoding="utf-8") == text
    shown = known["command"] if resumed else redact_command(command)
    write_text(file, text)
    count = known.get("resumed", 0) + 1 if resumed else 0
    write_json(folder / "env.json", {**environment(), "command": shown, "resumed": count})
    write_json(folder / "result.json", _result("running", command=shown, seed=config.get("seed")))


def finish(
    folder: Path,
    metrics: Mapping[str, Mapping[str, Any]],
    samples: int,
    seconds: float,
    paths: Mapping[str, Any],
    seed: int | None,
    deviations: Sequence[str] = (),
) -> None:
    """Marks a run as finished.

    `metrics` is what `evaluation.statistics.compare` returns, `samples` the number of held-out items behind
    it, `deviations` how it departs from the protocol that it was asked for. Raises ValueError if a metric lacks one of
    METRIC_KEYS.
    """
    for name, metric in metrics.items():
        if not set(metric) >= METRIC_KEYS or len(metric["ci95"]) != 2:
            raise ValueError(f"metric {name}: needs {sorted(METRIC_KEYS)}, ci95 of two, got {dict(metric)}")
    result = _result("finished", command=_command(folder), seed=seed, seconds=seconds, samples=samples)
    result["metrics"] = {name: dict(metric) for name, metric in metrics.items()}
    result["paths"] = {name: str(path) for name, path in paths.items()}
    result |= {"deviations": list(deviations)} if deviations else {}
    write_json(Path(folder) / "result.json", result)


def fail(folder: Path, reason: str, seconds: float | None = None) -> None:
    """Marks a run as failed; `reason` is one line for people. What was measured before is kept."""
    _end(folder, "failed", reason, seconds)


def interrupt(folder: Path, reason: str) -> None:
    """Marks a run as interrupted, unless it has finished; it can be continued."""
    if (read_json(Path(folder) / "result.json") or {}).get("status") != "finished":
        _end(folder, "interrupted", reason, None)


def _end(folder: Path, status: str, reason: str, seconds: float | None) -> None:
    previous = read_json(Path(folder) / "result.json") or {}
    result = _result(status, command=_command(folder), seed=previous.get("seed"), seconds=seconds)
    result |= {key: previous[key] for key in ("samples", "metrics", "paths") if previous.get(key)}
    write_json(Path(folder) / "result.json", result | {"reason": redact(reason.strip())})


def link_latest(folder: Path) -> None:
    """Points `latest` beside the run folder at it; file systems without links are left as they are."""
    link = Path(folder).parent / "latest"
    if link.exists() and not link.is_symlink():
        return
    temporary = link.with_name(f".latest-{os.getpid()}")
    try:
        temporary.symlink_to(Path(folder).name, target_is_directory=True)
        os.replace(temporary, link)
    except OSError:
        temporary.unlink(missing_ok=True)


def resolved_yaml(config: Mapping[str, Any]) -> str:
    """The config as YAML that hydra composes to the same values again.

    Values that name a secret become `???`, so that loading the file asks for them. Raises ValueError on
    `${hydra:`.
    """
    text = OmegaConf.to_yaml(OmegaConf.create(_plain(dict(config))))
    if "${hydra:" in text:
        raise ValueError("resolved.yaml: the config refers to the hydra node, which exists only inside its own job")
    return _HEADER + text


def redact_config(config: Any) -> Any:
    """A copy of a config without the values of keys that name a secret."""
    if isinstance(config, Mapping):
        hidden = {key for key, value in config.items() if value not in (None, "") and _is_secret(str(key))}
        return {key: HIDDEN if key in hidden else redact_config(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [redact_config(value) for value in config]
    return redact(config) if isinstance(config, str) else config


def redact_command(command: Sequence[str]) -> list[str]:
    """The command with secrets replaced by `***`: `x.api_key=..`, `--token ..`, known tokens."""
    shown, hide_next = [], False
    for word in map(str, command):
        name, equals, _ = word.partition("=")
        secret = _is_secret(name.lstrip("+~-").replace("-", "_").rsplit(".", 1)[-1])
        shown.append(HIDDEN if hide_next else f"{name}={HIDDEN}" if secret and equals else redact(word))
        hide_next = secret and not equals and word.startswith("-")
    return shown


def redact(text: str) -> str:
    """Text without the tokens of well-known services and without passwords inside URLs."""
    return _URL_PASSWORD.sub(HIDDEN, _SECRET_VALUE.sub(HIDDEN, text))


def difference(config: Any, defaults: Any) -> list[tuple[str, Any, Any]]:
    """Where two plain configs differ: (dotted path, default, value), in the order of the config.

    A side that lacks a key shows `MISSING`. Mappings are compared key by key, everything else as a whole.
    """
    return list(_difference(config, defaults, path=""))


class _Missing:
    def __repr__(self) -> str:
        return "(absent)"


MISSING = _Missing()


def _difference(config: Any, defaults: Any, *, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(config, Mapping) and isinstance(defaults, Mapping):
        for key in [*config, *(key for key in defaults if key not in config)]:
            inner = f"{path}.{key}" if path else str(key)
            yield from _difference(config.get(key, MISSING), defaults.get(key, MISSING), path=inner)
    elif config != defaults:
        yield path, defaults, config


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide what a run computes, and of python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Versions, git state of this code, and the machine, without names of people or hosts."""
    return {"versions": versions(), "git": git_state(Path(__file__).resolve()), "machine": machine()}


def git_state(file: Path) -> dict[str, Any] | None:
    """Commit and cleanness of the repository that tracks `file`; None for an installed wheel."""
    if _output(["git", "ls-files", "--error-unmatch", file.name], cwd=file.parent) is None:
        return None
    commit = _output(["git", "rev-parse", "HEAD"], cwd=file.parent)
    return {"commit": commit, "dirty": bool(_output(["git", "status", "--porcelain"], cwd=file.parent))}


def machine() -> dict[str, Any]:
    """Operating system, processor, cores that this process may use, memory in GiB and names of the GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]) if shutil.which("nvidia-smi") else None
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu_model(),
        "cores": cores,
        "memory_gib": _memory_gib(),
        "gpus": [line.strip() for line in (gpus or "").splitlines() if line.strip()],
    }


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON atomically; numbers that JSON has no word for (nan, inf) become null."""
    write_text(path, json.dumps(_plain(value, escape=False, finite=True), indent=2, ensure_ascii=False) + "\n")


def _result(status: str, *, command: list[str], seed: Any, seconds: float | None = None, samples: int = 0) -> dict:
    return {
        "status": status,
        "command": command,
        "seed": seed,
        "seconds": None if seconds is None else round(float(seconds), 3),
        "versions": versions(),
        "samples": samples,
        "metrics": {},
        "paths": {},
    }


def _command(folder: Path) -> list[str]:
    return (read_json(Path(folder) / "env.json") or {}).get("command", [])


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _plain(value: Any, *, escape: bool = True, finite: bool = False) -> Any:
    """Plain containers. `escape` is for OmegaConf: a literal `${` stays literal, a secret becomes ???."""
    if isinstance(value, Mapping):
        hide = {key for key, inner in value.items() if escape and inner not in (None, "") and _is_secret(str(key))}
        return {
            (key if escape else str(key)): "???" if key in hide else _plain(inner, escape=escape, finite=finite)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner, escape=escape, finite=finite) for inner in value]
    if value is None or isinstance(value, bool | int):
        return value
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.tolist()
        return value if isinstance(value, int) else _plain(value, escape=escape, finite=finite)
    if isinstance(value, float):
        return None if finite and not math.isfinite(value) else value
    text = str(value)
    return redact(text.replace("${", "\\${")) if escape and "${hydra:" not in text else text


def _output(command: list[str], *, cwd: Path | None = None) -> str | None:
    """Standard output of a program, or None if it is missing, fails or hangs. Takes no git locks."""
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
