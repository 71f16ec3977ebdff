"""Trains methods at toy size in any number of processes, through what hardware=ddp and hardware=fsdp set up."""

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor
from toys import ddpo as toy_ddpo
from toys import forked
from toys import lpo as toy_lpo
from toys import policy as toy_policy
from toys import shapes as toy_shapes
from toys import size as toy_size
from toys import stable_diffusion as toy_stable_diffusion
from toys.readable import Readable

from lpo_platform.commands.job_log import quiet
from lpo_platform.data.prepared.rounds import Rounds
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.hardware.sharding import whole
from lpo_platform.methods.control import Control as Supervised
from lpo_platform.methods.control_reward import ControlReward
from lpo_platform.methods.cpo import CPO
from lpo_platform.methods.lpo import LPO
from lpo_platform.methods.lrm import LRM
from lpo_platform.methods.method import Method
from lpo_platform.methods.nft import NFT
from lpo_platform.methods.online import Online
from lpo_platform.methods.optim import AdamW
from lpo_platform.methods.rollouts import Rollouts
from lpo_platform.models.export import export
from lpo_platform.models.policy import Policy
from lpo_platform.models.random_weights import RandomStableDiffusion
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_3 import StableDiffusion3
from lpo_platform.models.tuning import Control, Full, Lora, Reward
from lpo_platform.tasks.hed import Hed
from lpo_platform.tracking.callbacks.checkpoint import Checkpoint, newest
from lpo_platform.tracking.callbacks.ema import EMA

BATCH = 4
BRANCHES = {"control": toy_size.controlnet, "dino": toy_size.controlnet_dino}
TUNES = {"control": Control, "dino": Control, "full": Full, "lora": lambda: Lora(rank=2)}


@dataclass(frozen=True)
class Job:
    """`steps` optimiser steps, or rounds, of a method; with a folder it checkpoints there and exports.

    It goes on from what it finds in the folder, and ends early after `stop` of the steps. double: with denoisers in
    float64, which leaves nothing of what the order of sums makes of a gradient. model: an embedded one, in the place of
    a random UNet.
    """

    method: str
    tune: str = "full"
    strategy: str = "ddp"
    steps: int = 2
    micro_batch: int | None = None
    folder: Path | None = None
    stop: int | None = None
    double: bool = False
    checkpointing: bool = False
    model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


class Rows(Readable):
    """Ten rows of everything that a method on cached samples reads; they count unequally where `weighted`."""

    def __init__(self, adapter: Any, *, weighted: bool) -> None:
        generator = torch.Generator().manual_seed(5)
        draw = lambda *shape: torch.randn(10, *shape, generator=generator)  # noqa: E731
        channels, *size = adapter.latent_shape
        self.columns = {
            "moments": 0.5 * draw(*((2,) if weighted else ()), 2 * channels, *size),
            "text": draw(6, 32),
            "control": draw(3, 4 * size[0], 4 * size[1]).sigmoid(),
            "loser": draw(3, 4 * size[0], 4 * size[1]).sigmoid(),
            "target": draw(1, 4 * size[0], 4 * size[1]).sigmoid(),
        }
        if weighted:
            self.columns["tokens"] = adapter.tokenize([f"a {'red ' * (i % 3)}circle" for i in range(10)])
            first = torch.rand(10, generator=generator)
            self.columns["labels"] = torch.stack([0.5 + 0 * first, first, 1 - first, 0.5 + 0 * first], 1).view(10, 2, 2)
            self.weights = torch.tensor([1, 1 / 2, 1 / 4, 1 / 4, 1, 1 / 3, 1, 1, 1 / 2, 1 / 5])

    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: column[row] for name, column in self.columns.items()}


def method(job: Job) -> Method:
    torch.manual_seed(0)
    shared: dict[str, Any] = {"optim": AdamW(lr=1e-4), "batch": BATCH}
    if job.method in ("lpo", "ddpo", "nft"):
        # one prompt at a time on any number of processes: torch rounds larger batches otherwise, and the difference of
        # two log-probabilities magnifies that
        shared |= {"prompts": 4, "sample_batch": 1, "num_steps": 3}
    if job.method == "lrm":
        adapter = StableDiffusion(weights="tiny", **toy_stable_diffusion.SETTINGS)
        return LRM(policy=Policy(adapter, Reward()), seed=0, steps=job.steps, **shared | job.options)
    tune = TUNES[job.tune]()
    if job.model is not None:
        policy = Policy(StableDiffusion3.from_pretrained(job.model), tune)
        kind, reward = {"lpo": (LPO, toy_lpo.Brightness()), "nft": (NFT, toy_ddpo.Red())}[job.method]
        shared |= {"guidance": 1.0, "rounds": job.steps, "reward": reward}
        return kind(policy=policy, seed=0, **shared | job.options)
    if job.method == "lpo":
        shared |= {"threshold": (0.0, 0.0), "moved": 0.003, "beta": 20.0}
        return toy_lpo.method(tune, rounds=job.steps, **shared | job.options)
    if job.method == "ddpo":
        shared |= {"clip": 0.1, "group": 2, "rounds": job.steps}
        return toy_ddpo.method(tune, **shared | job.options)
    pictures = job.method == "control_reward"
    parts = RandomStableDiffusion(toy_shapes.TOY) if pictures else toy_policy.adapter()
    control = BRANCHES[job.tune](parts.unet) if job.tune in BRANCHES else None
    shared |= {"task": Hed(toy=True)} if pictures else {}
    policy = Policy(parts, tune, control)
    kind = {"cpo": CPO, "control": Supervised, "control_reward": ControlReward}[job.method]
    return kind(policy=policy, seed=0, steps=job.steps, **shared | job.options)


class Seen(Callback):
    """The gradients of every step as the optimiser is about to see them, not yet clipped, and what is logged."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.logged: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Method, optimizer: torch.optim.Optimizer) -> None:
        self.gradients.append(flat(p.grad if p.grad is not None else 0 * p for p in module.policy.trainable().values()))

    def on_train_batch_end(self, trainer: L.Trainer, module: Method, *_: Any) -> None:
        self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def flat(tensors: Any) -> Tensor:
    return torch.cat([whole(tensor.detach()).flatten().clone() for tensor in tensors])


def local(weight: Tensor) -> Tensor:
    """What this process holds of a weight."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def train(job: Job, hardware: Hardware) -> dict[str, Any]:
    """As build.fit trains, without a command line: start, gradients, weights and their average as flat vectors."""
    step, seen, ema = method(job), Seen(), EMA()
    if job.double:
        for module in (step.policy, step.policy.adapter.unet, *step.policy.frozen):
            module.double()
    for module in (step.policy, *step.policy.frozen):
        module.to(memory_format=torch.channels_last)  # as the adapters load what learns
    hardware.prepare(step.policy.networks)
    step.train()
    micro_batch, accumulation = hardware.split(step.batch)
    if isinstance(step, Online):
        source = toy_ddpo.Pictures() if step.pictures else Captions()
        rounds: L.LightningDataModule = Rollouts(source, step, micro_batch=micro_batch, seed=0)
    else:
        rows = Rows(step.policy.adapter, weighted=job.method == "lrm")
        text = "tokens" if step.policy.reads_tokens else "text"  # as commands/job.py chooses them
        needs = tuple(text if name == "text" else name for name in step.needs)
        columns = tuple(name for name in needs if name != "control" or job.tune in BRANCHES)
        rounds = Rounds(rows, columns, batch=step.batch, micro_batch=micro_batch, steps=job.steps, every=1, seed=0)
    start = flat(step.policy.trainable().values())
    more = [Checkpoint(job.folder / "checkpoints")] if job.folder else []
    trainer = L.Trainer(
        **hardware.trainer(find_unused_parameters="reward" in step.policy.learning),
        max_epochs=job.stop or job.steps,
        reload_dataloaders_every_n_epochs=1,
        accumulate_grad_batches=accumulation,
        use_distributed_sampler=False,
        logger=False,
        callbacks=[seen, ema, *more],
        default_root_dir=job.folder or Path("."),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(step, rounds, ckpt_path=newest(job.folder / "checkpoints") if job.folder else None, weights_only=True)
    weights = step.policy.trainable()
    found = {"start": start, "gradients": seen.gradients, "logged": seen.logged, "weights": flat(weights.values())}
    found["held"] = sum(local(weight).numel() for weight in weights.values())
    if job.folder:
        export(step.policy, job.folder / "export")
        with ema.averaged(weights):
            found["average"] = flat(weights.values())
            export(step.policy, job.folder / "export", "_ema")
    return found


class Captions(toy_ddpo.Pictures):
    """Of methods that want no pictures."""


def together(jobs: dict[str, Job], size: int, folder: Path) -> list[dict[str, Any]]:
    """What each of `size` processes found of each job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = forked.context()
    folder.mkdir(parents=True, exist_ok=True)
    started = [context.Process(target=_process, args=(jobs, rank, size, port, folder)) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def _process(jobs: dict[str, Job], rank: int, size: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    quiet()
    if size > 1:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ |= {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "127.0.0.1"}
    os.chdir(folder)
    found = {}
    for name, job in jobs.items():
        strategy = job.strategy if size > 1 else "single"
        hardware = Hardware(
            "cpu", "32-true", job.micro_batch, strategy=strategy, devices=size, gradient_checkpointing=job.checkpointing
        )
        hardware.join()
        found[name] = train(job, hardware)
    torch.save(found, folder / f"{rank}.pt")
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()
