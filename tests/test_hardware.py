"""What hardware=... does to a model: recomputed activations and compiled blocks leave its gradients as they are."""

from functools import partialmethod

import pytest
import test_policy
import torch
import toy_size
import toy_stable_diffusion
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D
from torch import Tensor, nn
from toy_processes import Rows

from lpo_platform.hardware import Hardware
from lpo_platform.methods.lrm import LRM
from lpo_platform.methods.method import Method
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.tuning import Control, Reward


def cpo() -> tuple[Method, dict[str, Tensor]]:
    parts = test_policy.adapter()
    return test_policy.method(Policy(parts, Control(), toy_size.controlnet(parts.unet))), test_policy.batch()


def lrm() -> tuple[Method, dict[str, Tensor]]:
    adapter = StableDiffusion(weights="tiny", **toy_stable_diffusion.SETTINGS)
    torch.manual_seed(0)
    columns = Rows(adapter, weighted=True).columns
    batch = {name: column[:3] for name, column in columns.items()}
    step = LRM(policy=Policy(adapter, Reward()), optim=AdamW(), seed=0, steps=1, batch=3)
    return step, batch | {"position": torch.arange(3), "weight": torch.ones(3)}


def gradient(made: tuple[Method, dict[str, Tensor]], hardware: Hardware) -> Tensor:
    step, batch = made
    hardware.prepare(step.policy)
    step.train()
    step.loss(batch)[0].backward()
    return torch.cat([p.grad.flatten() for p in step.policy.trainable().values() if p.grad is not None])


@pytest.mark.parametrize("make", [cpo, lrm])
def test_recomputed_activations_give_the_same_gradient(make) -> None:
    """And they are recomputed: a block runs its layers again while it goes backwards."""
    counts = {}
    for asked in (False, True):
        made, calls = make(), []
        for module in (made[0].policy, made[0].policy.adapter.unet):
            for block in module.modules():
                if isinstance(block, CrossAttnDownBlock2D):
                    block.resnets[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        counts[asked] = gradient(made, Hardware("cpu", gradient_checkpointing=asked)), len(calls)
    (plain, once), (again, twice) = counts[False], counts[True]
    assert twice > once > 0
    assert plain.norm() > 0 and (again - plain).norm() < 1e-4 * plain.norm()


@pytest.mark.slow
def test_compiled_blocks_give_the_same_gradient_under_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced for forward and backward, but run by torch: the code generator would take minutes."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    plain = cpo()
    expected, names = gradient(plain, Hardware("cpu")), list(plain[0].policy.state_dict())
    made = cpo()
    found = gradient(made, Hardware("cpu", compile=True))
    assert (found - expected).norm() < 1e-5 * expected.norm()
    assert list(made[0].policy.state_dict()) == names
    blocks = made[0].policy.control.down_blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
