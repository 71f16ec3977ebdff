"""What hardware=... does to a model: recomputed activations and compiled blocks leave its gradients as they are."""

from collections.abc import Iterator
from functools import partialmethod

import psutil
import pytest
import torch
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toys import policy as toy_policy
from toys import size as toy_size
from toys import stable_diffusion as toy_stable_diffusion
from toys.processes import Rows

from lpo_platform.config.check import check
from lpo_platform.config.errors import UserError
from lpo_platform.config.schema import CONF
from lpo_platform.hardware.hardware import KERNELS, Hardware
from lpo_platform.methods.lrm import LRM
from lpo_platform.methods.method import Method
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.tuning import Control, Reward


def cpo() -> tuple[Method, dict[str, Tensor]]:
    parts = toy_policy.adapter()
    return toy_policy.method(Policy(parts, Control(), toy_size.controlnet(parts.unet))), toy_policy.batch()


def lrm() -> tuple[Method, dict[str, Tensor]]:
    adapter = StableDiffusion(weights="tiny", **toy_stable_diffusion.SETTINGS)
    torch.manual_seed(0)
    columns = Rows(adapter, weighted=True).columns
    batch = {name: column[:3] for name, column in columns.items()}
    step = LRM(policy=Policy(adapter, Reward()), optim=AdamW(), seed=0, steps=1, batch=3)
    return step, batch | {"position": torch.arange(3), "weight": torch.ones(3)}


def gradient(made: tuple[Method, dict[str, Tensor]], hardware: Hardware) -> Tensor:
    step, batch = made
    hardware.prepare(step.policy.networks)
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


class Operations(TorchDispatchMode):
    """seen: the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def kernels() -> Iterator[None]:
    cuda = torch.backends.cuda
    before = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()
    yield
    for enable, was in zip(KERNELS.values(), before, strict=True):
        enable(was)


def test_every_kernel_of_attention_gives_the_same_gradient(kernels: None) -> None:
    found, used = {}, {}
    for name in ("auto", "flash", "math"):
        with Operations() as operations:
            found[name] = gradient(cpo(), Hardware("cpu", attention=name))
        used[name] = any("flash_attention" in operation for operation in operations.seen)
    assert used == {"auto": True, "flash": True, "math": False}
    for name in ("flash", "math"):
        assert (found[name] - found["auto"]).norm() < 1e-4 * found["auto"].norm()
    with pytest.raises(UserError, match=r"hardware\.attention=cudnn: for GPUs only"):
        Hardware("cpu", attention="cudnn")


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


def test_a_budget_of_memory_is_what_is_said_or_what_is_free() -> None:
    assert Hardware("cpu", memory_gb=1.5).memory == 1.5e9
    free = Hardware("cpu", strategy="ddp", devices=2).memory
    assert 0 < free <= psutil.virtual_memory().total / 2


def test_a_micro_batch_is_chosen_or_said() -> None:
    choices = {"method": "cpo", "task": "canny"}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        asked = {m: compose("train", ["method=cpo", f"hardware.micro_batch={m}"]) for m in ("auto", "often")}
    assert not any("micro_batch" in problem for problem in check(asked["auto"], choices))
    assert any("hardware.micro_batch=often" in problem for problem in check(asked["often"], choices))
