"""What a run computes on: devices, precision, processes, and how a batch is cut to fit."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Literal

import psutil
import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lpo_platform.config.batch_size import batch_problem
from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Positive, Whole
from lpo_platform.hardware.sharding import Sharded, parts

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": torch.float32}
KERNELS = {  # diffusers' own switch reaches FLUX alone: its UNets call torch's attention
    "flash": torch.backends.cuda.enable_flash_sdp,
    "efficient": torch.backends.cuda.enable_mem_efficient_sdp,
    "cudnn": torch.backends.cuda.enable_cudnn_sdp,
}
PATIENCE = timedelta(days=2)  # processes wait for each other while one writes a report or a large file


@dataclass(frozen=True)
class Hardware:
    """Devices, precision and processes of a run. The README of this folder says more.

    Attributes:
        accelerator: `auto` takes a GPU if there is one.
        precision: of the forward passes; `auto` is bf16-mixed on a GPU, else 32-true. Weights that learn are float32.
        micro_batch: samples of one forward of one process. Null is its whole share of the batch; `auto` is as many as
            fit into memory_gb by lpo-plan's count. The gradient is the same.
        num_workers: processes that read data ahead, for each process of the run; null starts one for each free core, or
            none where all reading takes less than 5 s.
        strategy: `single` process, `ddp` (each process holds all weights) or `fsdp` (each holds its share of them).
        devices: processes of a node, one for each GPU; null for as many as the node has GPUs.
        num_nodes: nodes, all with as many processes.
        gradient_checkpointing: computes activations again in the backward pass instead of keeping them.
        compile: applies torch.compile to every block of the denoiser.
        attention: the kernel of torch's attention for the whole process; `auto` leaves the choice to torch. What the
            kernel cannot compute falls back to math.
        memory_gb: memory of a process in GB (10^9 bytes) for micro_batch=auto; null is what is free.
    """

    unsharded: ClassVar[dict[str, str]] = {
        "precision=16-mixed": "the gradient scaler does not know sharded gradients; use bf16-mixed",
        "compile": "compiled blocks are not sharded; use hardware.compile=false",
    }

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = "auto"
    micro_batch: Count | Literal["auto"] | None = None
    num_workers: Whole | None = None
    strategy: Literal["single", "ddp", "fsdp"] = "single"
    devices: Count | None = 1
    num_nodes: Count = 1
    gradient_checkpointing: bool = False
    compile: bool = False
    attention: Literal["auto", "flash", "efficient", "cudnn", "math"] = "auto"
    memory_gb: Positive | None = None

    def __post_init__(self) -> None:
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise UserError("hardware=gpu: torch finds no CUDA device here; use hardware=cpu or hardware=auto")
        if self.precision == "16-mixed" and not self.gpu:
            raise UserError("hardware.precision=16-mixed: for GPUs only; on a CPU use 32-true or bf16-mixed")
        if self.attention in ("efficient", "cudnn") and not self.gpu:
            raise UserError(f"hardware.attention={self.attention}: for GPUs only; on a CPU use auto, flash or math")
        if self.devices is None and not self.gpu:
            raise UserError(
                "hardware.devices=null: torch finds no GPU to count; say how many, as in hardware.devices=2"
            )
        if self.gpu and self.local_processes > torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise UserError(f"hardware.devices={self.devices}: torch finds {count} here; use hardware.devices={count}")

    @property
    def gpu(self) -> bool:
        return self.accelerator != "cpu" and torch.cuda.is_available()

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if self.gpu else torch.device("cpu")

    @property
    def local_processes(self) -> int:
        return torch.cuda.device_count() if self.devices is None else self.devices

    @property
    def processes(self) -> int:
        return self.local_processes * self.num_nodes

    @property
    def memory(self) -> float:
        """Bytes that a process may use. On a CPU it is this process's share of the free memory."""
        if self.memory_gb is not None:
            return 1e9 * self.memory_gb
        if self.gpu:
            return torch.cuda.mem_get_info(self.device)[0]
        return psutil.virtual_memory().available / self.local_processes

    @property
    def chosen_precision(self) -> str:
        if self.precision != "auto":
            return self.precision
        return "bf16-mixed" if self.gpu else "32-true"

    @property
    def frozen_dtype(self) -> torch.dtype:
        """The precision of frozen parts, which need no float32 weights: that in which they compute."""
        return DTYPES[self.chosen_precision]

    def join(self) -> None:
        """Connects to the other processes of the run, if there are any. UserError if another number was started."""
        started = int(os.environ.get("WORLD_SIZE", 1))
        if started != self.processes:
            wanted = f"hardware.devices={self.local_processes} hardware.num_nodes={self.num_nodes}"
            raise UserError(f"{wanted}: {self.processes} processes, but {started} started; make the two agree")
        if started == 1 or dist.is_initialized():
            return
        if self.gpu:
            torch.cuda.set_device(self.device)
        # gloo beside nccl moves what lies on the CPU: pictures and scores of evaluations, notes between processes
        dist.init_process_group("cpu:gloo,cuda:nccl" if self.gpu else "gloo", timeout=PATIENCE)

    def prepare(self, networks: Iterable[nn.Module]) -> None:
        """Sets gradient checkpointing, compiled blocks and the kernel of attention, as configured, in each network."""
        if self.attention != "auto":
            for name, enable in KERNELS.items():
                enable(name == self.attention)
        for module in networks:
            if self.gradient_checkpointing:
                _checkpoint(module)
            if self.compile:
                for part in parts(module):
                    part.compile()

    def trainer(self, *, find_unused_parameters: bool = False) -> dict[str, Any]:
        """The arguments of Lightning's Trainer."""
        options: dict[str, Any] = {
            "accelerator": self.device.type,
            "devices": self.local_processes if self.processes > 1 else 1,
            "num_nodes": self.num_nodes,
            "precision": self.chosen_precision,
        }
        if self.processes == 1:
            return options
        if self.strategy == "fsdp":
            strategy: DDPStrategy = Sharded()
        else:
            strategy = DDPStrategy(gradient_as_bucket_view=True, find_unused_parameters=find_unused_parameters)
        # whoever started the processes (launch.py, torchrun, Slurm) has set torchrun's variables
        return options | {"strategy": strategy, "plugins": [TorchElasticEnvironment()]}

    def autocast(self) -> AbstractContextManager:
        """The precision of forwards outside the Trainer, equal to that inside it."""
        if self.frozen_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.frozen_dtype)

    def split(self, batch: int) -> tuple[int, int]:
        """(micro-batch, accumulation) of each process; UserError with the sizes that do if a batch does not divide."""
        problem = batch_problem(batch, self.micro_batch, self.processes)
        if problem is not None:
            raise UserError(problem)
        own = batch // self.processes
        micro = min(self.micro_batch or own, own)
        return micro, own // micro

    def arithmetic(self, batch: int) -> str:
        """How a step's batch is made: `64 samples a step = 2 processes x 4 micro-batches of 8`."""
        micro, accumulation = self.split(batch)
        many = lambda count, noun: f"{count} {noun}" + ("" if count == 1 else "es")  # noqa: E731
        return (
            f"{batch} samples a step = {many(self.processes, 'process')} x "
            f"{many(accumulation, 'micro-batch')} of {micro}"
        )

    def describe(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.gpu else f"{torch.get_num_threads()} CPU threads"
        many = f"{self.processes} processes ({self.strategy}), each " if self.processes > 1 else ""
        return f"{many}{name}, {self.chosen_precision}"


def _checkpoint(module: nn.Module) -> None:
    """diffusers' blocks check the gradient mode themselves, transformers' the training mode."""
    for part in module.modules():
        if hasattr(part, "enable_gradient_checkpointing"):
            part.enable_gradient_checkpointing()
        elif hasattr(part, "gradient_checkpointing_enable"):
            part.gradient_checkpointing_enable({"use_reentrant": False})
