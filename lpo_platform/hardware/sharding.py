"""hardware=fsdp: every process keeps its share of each weight (FSDP2) and gathers a block's while the block computes.

The parts of a denoiser are sharded one by one and no root is, because rollouts and shared encodings call the parts and
never the whole. Checkpoints and exports hold whole tensors, as those of a single process do: a run goes on from them on
any number of processes, sharded or not.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


class Sharded(DDPStrategy):
    """DDP's set-up of processes, with the policy sharded where DDP would wrap it."""

    def configure_ddp(self) -> None:
        shard(self.lightning_module.policy, self.root_device.type)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {name: kept(value) for name, value in super().lightning_module_state_dict().items()}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return apply_to_collection(super().optimizer_state(optimizer), DTensor, kept)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            state = {
                i: {name: like(value, weights[i]) for name, value in entries.items()}
                for i, entries in saved["state"].items()
            }
            optimizer.load_state_dict(saved | {"state": state})


def shard(policy: nn.Module, device_type: str) -> None:
    """Shards the trained weights and their frozen reference among all processes."""
    mesh = init_device_mesh(device_type, (dist.get_world_size(),))
    for module in (*policy.learning.values(), *policy.frozen):
        module.to(memory_format=torch.contiguous_format)  # FSDP2 shards no other
        for part in parts(module):
            if any(True for _ in part.parameters()):
                fully_shard(part, mesh=mesh, reshard_after_forward=True)


def parts(module: nn.Module) -> list[nn.Module]:
    """What a UNet's or ControlNet's forward calls, one after another: its blocks and the layers around them."""
    children = list(module.children())
    return [part for child in children for part in (child if isinstance(child, nn.ModuleList) else [child])]


def whole(value: Tensor) -> Tensor:
    """The whole of a sharded tensor, on every process; any other as it is. Every process has to ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Any, weight: Tensor) -> Any:
    """A whole tensor sharded as a weight of its shape is; anything else as it is."""
    if not (isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape):
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


def kept(value: Any) -> Any:
    """For a file that only the first process writes: there the whole tensor, elsewhere none."""
    if not isinstance(value, DTensor):
        return value
    gathered = whole(value.detach())
    return gathered.cpu() if dist.get_rank() == 0 else torch.empty(0)
