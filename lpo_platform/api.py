"""The Python interface: the commands as functions, with the same checks, and their parts one by one.

A problem of an override raises ConfigError, whose text is what the command would print.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from lpo_platform.commands.command_line import checked_words, parse_line, quote
from lpo_platform.commands.main import claim
from lpo_platform.commands.table import work_of
from lpo_platform.commands.terminal import Command
from lpo_platform.config import smoke
from lpo_platform.config.compose import compose as compose_values
from lpo_platform.config.compose import source
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.errors import ConfigError, UserError, hint
from lpo_platform.config.options import shipped
from lpo_platform.config.paths import run_folder
from lpo_platform.config.schema import CONF
from lpo_platform.hardware import launch
from lpo_platform.runs import files, record

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from lpo_platform.data.source import Data
    from lpo_platform.models.policy import Policy
    from lpo_platform.tasks.task import Task


def compose(*overrides: str, command: str = "train", config_dir: str | Path | None = None) -> DictConfig:
    """The configuration that a command would run with.

    Args:
        overrides: as on the command line, "method=cpo".
        command: train, eval, prepare or score.
        config_dir: a folder with more options, as --config-dir.

    Raises:
        ConfigError: every problem of the overrides at once.
    """
    folders = [str(config_dir)] if config_dir is not None else []
    if problems := diagnose(command, list(overrides), folders):
        raise ConfigError(problems)
    setup_globals()
    path = source(command, folders, CONF).path
    cfg = ConfigLoaderImpl(path).load_configuration(command, list(overrides), RunMode.RUN)
    smoke.shrink(cfg, cfg.hydra.runtime.choices, overrides)
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])


def train(*overrides: str, folder: str | Path | None = None, config_dir: str | Path | None = None) -> Run:
    """Trains as lpo-train does, and returns what the run left.

    Args:
        overrides: as on the command line, "method=cpo", "resume=auto".
        folder: the run folder; None makes a new one below outputs/.
        config_dir: a folder with more options, as --config-dir.

    Raises:
        ConfigError: every problem of the overrides at once.
        UserError: what can be put right, in one sentence.
    """
    return _run("train", overrides, folder, config_dir)


def evaluate(*overrides: str, folder: str | Path | None = None, config_dir: str | Path | None = None) -> Run:
    """Evaluates as lpo-eval does: `evaluate("run=outputs/cpo-tiny-canny")`. Arguments and errors are those of train."""
    return _run("eval", overrides, folder, config_dir)


@dataclass(frozen=True)
class Run:
    """What a run left in its folder."""

    folder: Path

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json: status, seed, seconds, versions, metrics."""
        return files.read_json(self.folder / "result.json") or {}

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """For each metric: before, after, difference, ci95, higher_is_better."""
        return self.result.get("metrics", {})

    @property
    def table(self) -> str:
        """The metrics as the command prints them."""
        from lpo_platform.evaluation.result_table import table

        return table(self.metrics)

    @property
    def items(self) -> list[dict[str, Any]]:
        """One row for each held-out item: its id, its caption and its scores before and after."""
        from lpo_platform.evaluation import item_table

        return item_table.read(self.folder / "evaluation" / "items.parquet")

    def pictures(self, side: str = "after") -> list[Image]:
        """The pictures of the first held-out items. side: condition, before or after."""
        from PIL import Image

        found = sorted((self.folder / "samples" / side).glob("*.png"), key=lambda path: int(path.stem))
        return [Image.open(path) for path in found]

    @property
    def export(self) -> Path:
        """The folder of the trained weights, in the formats of diffusers."""
        return self.folder / "export"

    @property
    def report(self) -> Path:
        """The page of the run."""
        return self.folder / "report.html"

    @property
    def config(self) -> DictConfig:
        """The whole configuration."""
        return OmegaConf.load(self.folder / "resolved.yaml")


@dataclass(frozen=True)
class Loaded:
    """A model that draws.

    Attributes:
        policy: the denoiser with its control branch.
        task: what turns maps into conditions; None without a control branch.
        cfg: the configuration that it was built from.
    """

    policy: Policy
    task: Task | None
    cfg: DictConfig

    def encode(self, pictures: Tensor) -> Tensor:
        """The latents of pictures (B, 3, H, W) in [0, 1]: the means of the autoencoder, (B, C, h, w)."""
        import torch

        adapter = self.policy.adapter
        with torch.no_grad():
            moments = adapter.encode_moments(pictures.to(adapter.device))
            return adapter.sample_latents(moments, torch.zeros_like(moments[:, : adapter.latent_shape[0]]))

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """What the denoiser sees of B prompts, (B, L, D)."""
        import torch

        with torch.no_grad():
            return self.policy.adapter.embed(self.policy.adapter.tokenize(list(prompts)))

    def sample(
        self,
        prompts: str | Sequence[str],
        control: Tensor | None = None,
        *,
        seed: int = 0,
        num_steps: int | None = None,
        guidance: float | None = None,
        eta: float = 0.0,
    ) -> Tensor:
        """Draws one picture for each prompt: (B, 3, H, W) in [0, 1].

        Args:
            prompts: B of them.
            control: (B, 3, H, W) in [0, 1], the condition of each; only with a control branch.
            seed: of the noise. The picture of prompt number i depends on (seed, i) and not on B.
            num_steps: of sampling; None is the model's own number.
            guidance: of classifier-free guidance; None is the model's own.
            eta: 0 is deterministic, 1 is ancestral sampling.
        """
        import torch

        from lpo_platform.models.adapter import Condition
        from lpo_platform.models.sampling import Sampling, sample_latents

        adapter, prompts = self.policy.adapter, [prompts] if isinstance(prompts, str) else list(prompts)
        if (control is None) != (self.policy.control is None):
            has, says = ("a ControlNet", "needs a") if control is None else ("no ControlNet", "takes no")
            raise UserError(f"the model has {has}: sample() {says} control=")
        sampling = Sampling(
            num_steps or adapter.num_inference_steps, adapter.guidance if guidance is None else guidance, eta
        )
        with torch.no_grad():
            condition = Condition(self.embed(prompts), None if control is None else control.to(adapter.device))
            ids = [f"sample-{number}" for number in range(len(prompts))]
            latents = sample_latents(self.policy, condition, ids, sampling, seed=seed, stream="sample")
            return adapter.decode(latents).clamp(0, 1)


def load(place: str | Path, *overrides: str) -> Loaded:
    """A model with its weights.

    Args:
        place: a run folder, an option of the group model ("tiny", "sd15"), or a folder or hub id of a ControlNet, a
            denoiser, a LoRA or a pipeline of diffusers.
        overrides: for what is no run the model that the weights belong to: "model=sd15", "control=controlnet",
            "task=canny"; for all "hardware=cpu" or the like.

    Raises:
        UserError: where nothing fits.
    """
    from lpo_platform.commands import evaluate as command
    from lpo_platform.commands.build import create, task_of
    from lpo_platform.commands.job_log import quiet
    from lpo_platform.hardware.hardware import Hardware

    run, named = run_folder(str(place)), str(place) in shipped("model")
    if not (run or named or any(word.startswith("model=") for word in overrides)):
        works = f"a run folder, one of {', '.join(shipped('model'))}, or weights with 'model=<option>' behind them"
        raise UserError(f"{place}: neither a run folder nor an option of model; what works: {works}")
    given = f"model={place}" if named else f"run={quote(run)}" if run else f"weights={quote(place)}"
    cfg = compose(given, *(["what=run"] if run and not named else []), *overrides, command="eval")
    quiet()
    hardware: Hardware = create(cfg.hardware)
    hardware.join()
    if named:
        known = command.of_model(cfg)
        policy, _ = command.initial(known, hardware)
    else:
        known = command.of_run(cfg) if run else command.of_model(cfg)
        side = command.placed(str(run or place), "weights", known, cfg)
        known, (policy, _) = side.cfg, command.policy_at(side, hardware)
    return Loaded(policy.eval(), task_of(known) if known.get("control") else None, known)


def task(name: str, **settings: Any) -> Task:
    """A task by the name of its option: `task("canny", low=0.1)` detects, renders and compares conditions.

    Args:
        name: an option of the group task.
        settings: of that option; `resolution` in pixels (default 512) and `toy` for the detectors of toy scenes.
    """
    from lpo_platform.commands.build import create
    from lpo_platform.config.signature import signature

    node = _option("task", name)
    live = {"resolution": settings.pop("resolution", 512), "toy": settings.pop("toy", False)}
    known = signature(node._target_)
    live = {key: value for key, value in live.items() if known and known[key]}
    return create(_with(node, "task", settings), **live)


def dataset(name: str, **settings: Any) -> Data:
    """A data set by the name of its option: `dataset("folder", path="pictures", resolution=512).train[0]`.

    Args:
        name: an option of the group data.
        settings: of that option; `resolution` in pixels (default 512) and `task`, a Task, where it asks for them.
    """
    from lpo_platform.commands.build import data_of

    node = _option("data", name)
    resolution, task = settings.pop("resolution", 512), settings.pop("task", None)
    return data_of(_with(node, "data", settings), resolution, task)


def reward(name: str, model: str = "tiny", **settings: Any) -> Callable[..., Tensor]:
    """A reward by the name of its option, ready to call.

    One of pictures is called with (pictures (B, 3, H, W) in [0, 1], prompts) and returns (B,). One of noisy latents,
    as `reward("lrm", model="sd15", weights=...)`, is called with (latents (B, C, h, w), t (B,), prompts).

    Args:
        name: an option of the group reward.
        model: the option of the group model whose latents a reward of latents reads.
        settings: of that option, such as weights.
    """
    from lpo_platform.commands.build import create, reward_of
    from lpo_platform.commands.job_log import quiet
    from lpo_platform.config.signature import signature
    from lpo_platform.rewards.reward import StepReward

    quiet()
    node = _with(_option("reward", name), "reward", settings)
    known = signature(node._target_)
    adapter = create(_option("model", model)) if known and known["adapter"] else _Nowhere()
    found = reward_of(OmegaConf.create({"reward": node}), adapter, None)
    if not isinstance(found, StepReward):
        return found

    def score(latents: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        import torch

        rows = torch.arange(len(latents), device=latents.device)
        return found(latents, t, found.encode(list(prompts)), rows)

    return score


class _Nowhere:
    """Stands for the model of a reward that needs none; says where a module goes."""

    @property
    def device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"


def _option(group: str, name: str) -> DictConfig:
    if name not in shipped(group):
        raise ConfigError(f"{group}={name}: no such option{hint(name, shipped(group))}")
    composed = compose_values("train", [f"{group}={name}"], [], CONF)
    return OmegaConf.create(composed.values)[group]


def _with(node: DictConfig, group: str, settings: dict[str, Any]) -> DictConfig:
    """The node with settings of the caller, checked by name as on the command line."""
    from lpo_platform.config.signature import signature

    known = signature(node._target_)
    for name in settings if known else ():
        if known[name] is None:
            names = [item.name for item in known.parameters]
            raise ConfigError(f"{group}.{name}: {known.name} has no such option{hint(name, names, options=False)}")
    return OmegaConf.merge(node, settings)


def _run(primary: str, overrides: Sequence[str], folder: str | Path | None, config_dir: str | Path | None) -> Run:
    """Checks, composes and runs one job in this process, or in the processes that its hardware asks for."""
    words = [*overrides, *([f"hydra.run.dir={quote(Path(folder).absolute())}"] if folder is not None else [])]
    flags = ["--config-dir", str(config_dir)] if config_dir is not None else []
    command = Command(f"lpo-{primary}", primary)
    line = parse_line([*flags, *words])
    if line.multirun:
        raise UserError("one configuration at a time; a sweep is lpo-train -m, or a loop in Python")
    checked_words(command, [*flags, *words], line)
    setup_globals()
    loader = ConfigLoaderImpl(source(primary, line.config_dirs, CONF).path)
    cfg = loader.load_configuration(primary, line.overrides, RunMode.RUN)
    smoke.shrink(cfg, cfg.hydra.runtime.choices, line.overrides)
    HydraConfig.instance().set_config(cfg)
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    with _spoken_as([command.name, *line.overrides]):
        done = run_job(
            hydra_context=context, task_function=_job(primary), config=cfg, job_dir_key="hydra.run.dir",
            job_subdir_key=None, configure_logging=False,
        )  # fmt: skip
    return Run(done.return_value)


def _job(primary: str) -> Callable[[DictConfig], Path]:
    def job(cfg: DictConfig) -> Path:
        folder = Path(HydraConfig.get().runtime.output_dir)
        with claim(folder):
            try:
                if primary == "train":
                    record.link_latest(folder)
                if (count := launch.processes(cfg)) > 1:
                    launch.run(primary, cfg, folder, count)
                else:
                    work_of(primary)(cfg, folder)
            except Exception as error:
                record.fail(folder, str(error))
                logging.getLogger(__name__).exception("%s failed", folder)
                raise
        return folder

    return job


@contextmanager
def _spoken_as(words: Sequence[str]) -> Iterator[None]:
    """The command line that repeats a run, for its record."""
    before, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = before
