"""From a checked configuration to a finished job: the only caller of hydra's instantiate, every step written out."""

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import lightning as L
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lpo_platform import record
from lpo_platform.callbacks.best import Best
from lpo_platform.callbacks.checkpoint import Checkpoint, newest
from lpo_platform.callbacks.ema import EMA
from lpo_platform.callbacks.progress import Progress
from lpo_platform.callbacks.samples import Samples
from lpo_platform.callbacks.settings import Callbacks
from lpo_platform.config import CONF, UserError
from lpo_platform.data import aligned_pairs, condition_pairs, preference_rows
from lpo_platform.data.aligned_pairs import AlignedPairs
from lpo_platform.data.cache import Cache
from lpo_platform.data.condition_pairs import ConditionPairs
from lpo_platform.data.export_pairs import export_pairs
from lpo_platform.data.generated_pairs import GeneratedPairs
from lpo_platform.data.pose_extraction import extract
from lpo_platform.data.preference_rows import PreferenceRows
from lpo_platform.data.rollouts import Rollouts
from lpo_platform.data.rounds import Rounds
from lpo_platform.data.source import Data
from lpo_platform.distributed import agree, lead, wait
from lpo_platform.evaluation.evaluate import Evaluation, Evaluator, write_items
from lpo_platform.evaluation.generate import Sampling
from lpo_platform.evaluation.pairs import PairEvaluator
from lpo_platform.evaluation.pictures import save_pictures
from lpo_platform.evaluation.statistics import table
from lpo_platform.hardware import Hardware
from lpo_platform.methods.method import Method
from lpo_platform.methods.online import Online
from lpo_platform.models.adapter import Adapter
from lpo_platform.models.export import export, restore
from lpo_platform.models.policy import Policy
from lpo_platform.models.weights import digest
from lpo_platform.rewards.reward import Reward, StepReward
from lpo_platform.signature import signature
from lpo_platform.tasks.pose import Pose
from lpo_platform.tasks.task import Task
from lpo_platform.tracking import report, wandb
from lpo_platform.tracking.files import Files, Resume

CACHE = Path("outputs/cache")
create = partial(instantiate, _convert_="all")
log = logging.getLogger(__name__)


@dataclass
class Job:
    """The live objects of a configuration."""

    cfg: DictConfig
    hardware: Hardware
    policy: Policy
    task: Task | None
    data: Data
    reward: Reward | StepReward | None
    control_digest: str | None
    _preferences: dict[str, PreferenceRows] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Pictures computed at once where nothing is trained."""
        return self.hardware.micro_batch or 32

    @property
    def sampling(self) -> Sampling:
        adapter = self.policy.adapter
        return Sampling(adapter.num_inference_steps, adapter.guidance)

    def needs(self) -> tuple[str, ...]:
        """Columns of a training sample: what the method asks for, as far as this model and task have it."""
        asked = get_class(self.cfg.method._target_).columns(self.cfg.method)
        text = "tokens" if self.policy.trains_text else "text"
        return tuple(text if c == "text" else c for c in asked if c != "control" or self.task is not None)

    def rows(self, *, force: bool = False) -> ConditionPairs | PreferenceRows | None:
        """The training samples, from the cache as far as it has them; None for a method that makes its own."""
        if issubclass(get_class(self.cfg.method._target_), Online):
            return None
        if "labels" in self.needs() and "control" in self.needs():
            return self.aligned(force=force)
        if "labels" in self.needs():
            rows = self.preferences("train", force=force)
            return rows.decided() if get_class(self.cfg.method._target_).needs_winner else rows
        losers, more = "loser" in self.needs(), {name: name in self.needs() for name in ("target", "features")}
        cache = condition_pairs.cache_of(
            self.data.train, self.policy, self.task, control_digest=self.control_digest if losers else None,
            sampling=self.sampling, folder=CACHE, **more,
        )  # fmt: skip
        if force:
            forget(cache)
        with self.hardware.autocast():
            return condition_pairs.prepare(
                cache, self.data.train, self.policy, self.task, losers=losers, sampling=self.sampling, batch=self.batch,
                **more,
            )  # fmt: skip

    def aligned(self, *, force: bool = False) -> AlignedPairs:
        """Preferences between pictures that the starting policy draws of the data's conditions."""
        method, source = self.cfg.method, self.data.train
        options = {"sampling": self.sampling, "group": method.group}
        cache = aligned_pairs.cache_of(
            source, self.policy, self.task, reward=plain(self.cfg.reward) if self.reward else None,
            control_digest=self.control_digest, folder=CACHE, **options,
        )  # fmt: skip
        if force:
            forget(cache)
        with self.hardware.autocast():
            return aligned_pairs.prepare(
                cache, source, self.policy, self.task, self.reward, gap=method.gap, batch=self.batch, **options
            )

    def preferences(self, split: str, *, force: bool = False) -> PreferenceRows:
        """Rows of a split of preference data, train, validation or test; its cache is checked once."""
        if split in self._preferences and not force:
            return self._preferences[split]
        if isinstance(self.data, GeneratedPairs):
            with self.hardware.autocast():
                self.data.draw(self.policy, CACHE, self.batch)
        source, adapter = getattr(self.data, split), self.policy.adapter
        cache = preference_rows.cache_of(source, adapter, text="text" in self.needs(), folder=CACHE)
        if force:
            forget(cache)
        with self.hardware.autocast():
            text = "text" in self.needs()
            rows = preference_rows.prepare(cache, source, adapter, text=text, title=f"preferences ({split})")
        self._preferences[split] = rows
        return rows

    @property
    def drawn(self) -> Data:
        """The data that pictures are drawn for: of preferences their prompts."""
        return getattr(self.data, "prompts", self.data)

    def measure(self, evaluator: Evaluator | PairEvaluator, *, title: str) -> Evaluation:
        """What the evaluator finds in the policy as it is now."""
        with self.hardware.autocast():
            if isinstance(evaluator, PairEvaluator) != ("reward" in self.policy.learning):
                raise UserError("a reward model is measured with metrics=pairs, and nothing else is")
            if isinstance(evaluator, PairEvaluator):
                return evaluator(self.policy, self.preferences("test"), title=title)
            return evaluator(self.policy, self.drawn, self.task, title=title, reward=self.reward)


def forget(cache: Cache) -> None:
    """Deletes a cache, before any process looks into it."""
    if lead():
        shutil.rmtree(cache.folder, ignore_errors=True)
    wait()


def assemble(cfg: DictConfig) -> Job:
    """Builds what a configuration names, on its device, and meets the other processes."""
    quiet()
    L.seed_everything(cfg.seed, verbose=False)
    hardware: Hardware = create(cfg.hardware)
    hardware.join()
    task, (policy, control_digest) = task_of(cfg), policy_of(cfg, hardware)
    known, live = signature(cfg.data._target_), {"resolution": cfg.model.resolution, "task": task}
    data = create(cfg.data, **{name: value for name, value in live.items() if not known or known[name]})
    return Job(cfg, hardware, policy, task, data, reward_of(cfg, policy.adapter, task), control_digest)


def policy_of(cfg: DictConfig, hardware: Hardware) -> tuple[Policy, str | None]:
    """The model with what learns in it, on its device, and what identifies the ControlNet that it starts from."""
    adapter, control, control_digest = create(cfg.model), None, None
    if cfg.get("control"):
        branch, task = create(cfg.control), get_class(cfg.task._target_).name
        control, control_digest = branch.load(adapter, task), branch.digest(adapter, task)
    policy = Policy(adapter, create(cfg.tune), control).place(hardware.device, hardware.frozen_dtype)
    return hardware.prepare(policy), control_digest


def task_of(cfg: DictConfig) -> Task | None:
    """The task, told what it asks for: the model's resolution, and whether its pictures are toy scenes.

    A tiny model draws them whatever its data are, and toy data are read whatever draws: in both cases detector=auto is
    the embedded detector.
    """
    if not cfg.get("task"):
        return None
    toy = cfg.model.name.startswith("tiny") or cfg.data._target_.startswith("lpo_platform.data.toy.")
    known, live = signature(cfg.task._target_), {"toy": toy, "resolution": cfg.model.resolution}
    return create(cfg.task, **{name: value for name, value in live.items() if known and known[name]})


def reward_of(cfg: DictConfig, adapter: Adapter, task: Task | None) -> Reward | StepReward | None:
    """The reward, where the model is; one of latents gets the model whose latents it reads, one of conditions the task
    that finds them."""
    return _reward(cfg.reward, "reward", {"adapter": adapter, "task": task}) if cfg.get("reward") else None


def _reward(node: DictConfig, path: str, live: dict[str, Adapter | Task | None]) -> Reward | StepReward:
    """Of a blend, the rewards that it is made of first."""
    known = signature(node._target_)
    given = {name: value for name, value in live.items() if known and known[name]}
    if "rewards" in node:
        given["rewards"] = {name: _reward(part, f"{path}.rewards.{name}", live) for name, part in node.rewards.items()}
        node = OmegaConf.masked_copy(node, [key for key in node if key != "rewards"])
    with located(path):
        reward = create(node, _partial_=True)(**given)
    return reward.to(live["adapter"].device) if isinstance(reward, nn.Module) else reward


@contextmanager
def located(path: str) -> Iterator[None]:
    """Puts the place in the configuration before a UserError that a class raised about its arguments."""
    try:
        yield
    except (UserError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(cause, UserError):
            raise
        raise UserError(f"{path}: {cause}") from error


def train(cfg: DictConfig, folder: Path) -> dict:
    """Trains, evaluates before and after on the same held-out items and noise, and leaves a run folder."""
    started = time.monotonic()
    if lead():
        record.start(folder, plain(cfg), sys.argv)
    job = assemble(cfg)
    evaluator: Evaluator = create(cfg.metrics)
    settings: Callbacks = create(cfg.callbacks)
    say(f"{cfg.model.name} on {job.hardware.describe()}, run folder {folder}")

    phases = Phases()
    with phases("evaluate_base"):
        before = evaluate_once(job, evaluator, folder / "evaluation" / "before.safetensors", title="evaluate base")
    guest = track(cfg, folder)
    try:
        with phases("prepare"):
            rows = job.rows()
        with phases("train"):
            live = {"policy": job.policy, "optim": create(cfg.optim), "seed": cfg.seed}
            asked = signature(cfg.method._target_)
            live |= {"reward": job.reward} if job.reward else {}
            live |= {"task": job.task} if asked and asked["task"] else {}
            method: Method = create(cfg.method, **live)
            fit(job, method, rows, evaluator, settings, folder, guest)
        with phases("evaluate_trained"):
            load_trained(job.policy, folder, settings)
            after = evaluate_once(job, evaluator, folder / "evaluation" / "after.safetensors", title="evaluate trained")
        if lead():
            Files(folder).log_metrics(phases.seconds, step=max(0, method.trainer.global_step - 1))
        export_folder, seconds = folder / "export", time.monotonic() - started
        metrics = conclude(job, evaluator, before, after, folder, export_folder, seconds)
        tell(guest, metrics, folder)
    except BaseException:
        wandb.finish(guest, failed=True)
        raise
    wandb.finish(guest)
    return metrics


class Phases:
    """Seconds of each part of a job, as the report shows them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[f"perf/{name}_seconds"] = time.monotonic() - started


def fit(
    job: Job,
    method: Method,
    rows: ConditionPairs | PreferenceRows | None,
    evaluator: Evaluator,
    settings: Callbacks,
    folder: Path,
    guest: wandb.Guest | None,
) -> None:
    """The training itself, from the newest checkpoint of the folder if it has one, and the export of its result."""
    micro_batch, accumulation = job.hardware.split(method.batch)
    if accumulation > 1 or job.hardware.processes > 1:
        say(job.hardware.arithmetic(method.batch))
    online = isinstance(method, Online)
    if online:
        rounds = Rollouts(job.data.train, method, micro_batch=micro_batch, seed=job.cfg.seed)
    else:
        rounds = Rounds(
            rows, job.needs(), batch=method.batch, micro_batch=micro_batch, steps=method.steps,
            every=settings.every, seed=job.cfg.seed, num_workers=job.hardware.num_workers,
        )  # fmt: skip
    every = settings.every if online else 1  # epochs between checkpoints: an offline epoch is `every` steps already
    ema = EMA(settings.ema_decay) if settings.ema_decay is not None else None
    callbacks = [Resume(), Progress(title(job.cfg), method.steps, rounds=online), *([ema] if ema else [])]
    if settings.samples and isinstance(evaluator, Evaluator):
        shown = Samples(
            folder / "samples", job.drawn, job.task, evaluator, settings.samples, every * settings.samples_every
        )
        callbacks.append(shown)
    if isinstance(evaluator, PairEvaluator):
        callbacks.append(Best(folder / "export", evaluator, job.preferences("validation")))
    callbacks.append(Checkpoint(folder / "checkpoints", every))  # last: it saves what the others have done
    trainer = L.Trainer(
        **job.hardware.trainer(find_unused_parameters="reward" in job.policy.learning),
        max_epochs=method.steps if online else rounds.num_rounds,
        reload_dataloaders_every_n_epochs=1,
        accumulate_grad_batches=accumulation,
        use_distributed_sampler=False,
        log_every_n_steps=settings.log_every,
        logger=[Files(folder), *([guest] if guest else [])],
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    method.train()
    trainer.fit(method, rounds, ckpt_path=newest(folder / "checkpoints"), weights_only=True)
    # here and not in a callback: a run that was killed after its last checkpoint trains no more, but is exported
    export(job.policy, folder / "export")
    if ema is not None:
        with ema.averaged(job.policy.trainable()):
            export(job.policy, folder / "export", "_ema")


def evaluate(cfg: DictConfig, folder: Path) -> dict:
    """Evaluates a finished run again, its start against its result, by its own protocol or the one given here.

    Or, with `what`, something else that is there.
    """
    if cfg.get("what"):
        return measure(cfg, folder)
    started = time.monotonic()
    run, of_run = Path(cfg.run), run_config(cfg)
    if cfg.metrics != OmegaConf.load(CONF / "metrics" / "default.yaml"):  # else by the run's own protocol
        of_run.metrics = cfg.metrics
    if lead():
        record.start(folder, plain(cfg), sys.argv)
    job, evaluator = assemble(of_run), create(of_run.metrics)
    before = evaluate_once(job, evaluator, folder / "evaluation" / "before.safetensors", title="evaluate base")
    load_trained(job.policy, run, create(of_run.callbacks))
    after = evaluate_once(job, evaluator, folder / "evaluation" / "after.safetensors", title="evaluate trained")
    return conclude(job, evaluator, before, after, folder, run / "export", time.monotonic() - started)


def run_config(cfg: DictConfig) -> DictConfig:
    """The configuration of a run, on the hardware asked for now."""
    of_run = OmegaConf.load(Path(cfg.run) / "resolved.yaml")
    of_run.hardware = cfg.hardware
    return of_run


def load_run(
    cfg: DictConfig, hardware: Hardware, weights: str, resolution: int | None, *, control: bool = True
) -> tuple[Policy, str]:
    """The model of a run at a resolution (None: its own), and what identifies its weights.

    weights: trained, start (those that the run started from) or the place of another ControlNet. control: whether the
    run has to have a ControlNet, or has to have none.
    """
    of_run = run_config(cfg)
    if bool(of_run.get("control")) != control:
        has, works = ("without", "controlnet") if control else ("with", "none")
        raise UserError(f"run={cfg.run}: {has} a ControlNet; what works: a run with control={works}")
    of_run.model.resolution = resolution or of_run.model.resolution
    if weights not in ("trained", "start"):
        of_run.control.weights, of_run.control.subfolder = weights, None
    policy, identity = policy_of(of_run, hardware)
    if weights == "trained":
        load_trained(policy, Path(cfg.run), create(of_run.callbacks))
        identity = digest(f"{cfg.run}/export")
    return policy, identity


def measure(cfg: DictConfig, folder: Path) -> dict:
    """Measures folders, or draws with the model of a run; writes report.json and prints the means."""
    quiet()
    hardware: Hardware = create(cfg.hardware)
    hardware.join()
    asked = signature(cfg.what._target_)
    live = {"load": partial(load_run, cfg, hardware)} if asked and asked["load"] else {}
    with located("what"), hardware.autocast() if live else nullcontext():
        result = create(cfg.what, **live)(folder, hardware.device)
    for name, metric in result["metrics"].items():
        low, high = metric["ci95"]
        say(f"{name:20}{metric['mean']:9.4f} [{low:.4f}, {high:.4f}]  of {metric['count']}")
    for reason, names in result["left_out"].items():
        if names:
            say(f"{len(names)} {reason}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    say(f"report  {folder / 'report.json'}")
    return result


def prepare(cfg: DictConfig, folder: Path) -> None:
    """Computes everything frozen of the training samples, losing conditions included, into the cache.

    With `export` also into a folder that others can read. With `pose`, instead, the poses of a folder of pictures.
    """
    if cfg.pose is not None:
        return extract_poses(cfg)
    job = assemble(cfg)
    rows = job.rows(force=cfg.force)
    if cfg.export is not None:
        if not isinstance(rows, ConditionPairs):
            raise UserError(f"export={cfg.export}: method={title(cfg)} has no pairs of conditions; use method=cpo")
        export_pairs(job.data.train, rows, Path(cfg.export).expanduser())
    if rows is None:
        say(f"method={title(cfg)} makes its samples while it trains: there is nothing to prepare")
    else:
        say(f"{len(rows)} training samples are ready in {cfg.export or rows.cache.folder}")


def extract_poses(cfg: DictConfig) -> None:
    """Keypoints, skeletons and lines of photographs; toy scenes are those that task.detector=toy asks for."""
    quiet()
    hardware: Hardware = create(cfg.hardware)
    hardware.join()
    task: Pose = create(cfg.task, resolution=cfg.model.resolution, toy=False)
    found = extract(cfg.pose, Path(cfg.export).expanduser(), task, hardware.device)
    say(" | ".join(filter(None, [f"{cfg.export}: train.jsonl, test.jsonl for data=jsonl", found.line()])))


def evaluate_once(job: Job, evaluator: Evaluator, file: Path, *, title: str) -> Evaluation:
    """The policy as it is now; read from the file if an interrupted run has measured it already."""
    if agree(file.exists()):
        return Evaluation.load(file)
    result = job.measure(evaluator, title=title)
    if lead():
        result.save(file)
    return result


def load_trained(policy: Policy, run: Path, settings: Callbacks) -> None:
    """Gives the policy the weights that a run exported: their average, or the raw ones."""
    averaged = settings.evaluate == "ema" and settings.ema_decay is not None
    restore(policy, run / "export", "_ema" if averaged else "")


def conclude(
    job: Job,
    evaluator: Evaluator,
    before: Evaluation,
    after: Evaluation,
    folder: Path,
    exported: Path,
    seconds: float,
) -> dict:
    """Writes result.json, the items, the pictures and the report, and prints the table: on the first process."""
    if not lead():
        return {}
    metrics = evaluator.compare(before, after, job.task)
    samples = evaluator.items(job.data if isinstance(evaluator, PairEvaluator) else job.drawn)
    write_items(folder / "evaluation" / "items.jsonl", samples, before, after)
    if after.images is not None:
        save_pictures(folder / "samples", before, after)
    paths = {"export": str(exported), "report": str(folder / "report.html")}
    record.finish(folder, metrics, len(samples), seconds, paths, job.cfg.seed)
    page = report.write_report(folder)
    say(f"\n{table(metrics)}\n\n{len(samples)} held-out items, the same noise before and after.")
    say(f"report  {page}\nexport  {exported}")
    return metrics


def track(cfg: DictConfig, folder: Path) -> wandb.Guest | None:
    if not cfg.get("logger"):
        return None
    sweep = (folder.parent / "sweep.json").exists()
    return wandb.connect(
        folder,
        project=cfg.logger.project,
        entity=cfg.logger.entity,
        name=cfg.name or folder.name,
        group=folder.parent.name if sweep else cfg.name or folder.parent.name,
        job_type=cfg.method._target_.rsplit(".", 1)[-1].lower(),
        tags=[cfg.model.name, *([get_class(cfg.task._target_).name] if cfg.get("task") else [])],
        config=plain(cfg),
    )


def tell(guest: wandb.Guest | None, metrics: dict, folder: Path) -> None:
    """The result as W&B shows it: numbers that a sweep of W&B can steer by, the table and the grid of the report."""
    if guest is None:
        return
    guest.log_metrics({f"eval/{name}": m["after"] for name, m in metrics.items()})
    columns = ["metric", "before", "after", "difference", "low", "high"]
    rows = [[name, m["before"], m["after"], m["difference"], *m["ci95"]] for name, m in metrics.items()]
    wandb.log_table(guest, "eval/table", columns, rows)
    grid = folder / "samples" / "grid.png"
    if grid.is_file():  # a reward model draws nothing
        wandb.log_images(guest, "eval/grid", [str(grid)], ["condition, base, trained, re-detected"])


def plain(cfg: DictConfig) -> dict:
    return OmegaConf.to_container(cfg, resolve=True)


def title(cfg: DictConfig) -> str:
    return cfg.method._target_.rsplit(".", 1)[-1].lower()


def say(text: str) -> None:
    """A line for the person at the terminal, which also stands in the log; the first process speaks for all."""
    if not lead():
        return
    log.info(text.strip())
    print(text, file=sys.stderr, flush=True)


def quiet() -> None:
    """Libraries speak up when something is wrong, not to introduce themselves."""
    import diffusers
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()  # it tells of every retry; the last one ends in our one message
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="`FluxPosEmbed` is deprecated")  # diffusers warns of its own import
