"""No step of any method waits for the GPU: the host queues the next step while the last one is computed.

On the meta device, whose tensors have no values to wait for; on a GPU torch itself watches.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from toys.shapes import TOY, TOY_XL

from lpo_platform.commands.benchmark import ddpo, lpo
from lpo_platform.commands.benchmark.bench import Bench
from lpo_platform.commands.benchmark.control_reward import ControlRewardStep
from lpo_platform.commands.benchmark.cpo import CPOStep
from lpo_platform.commands.benchmark.cpo_dino import CPODinoStep
from lpo_platform.commands.benchmark.generate import Generation
from lpo_platform.commands.benchmark.lrm import LRMStep
from lpo_platform.commands.benchmark.waits import host_waits
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.methods.control import Control
from lpo_platform.methods.diffusion_dpo import DiffusionDPO
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.random_weights import Shape, random_model
from lpo_platform.models.tuning import Full

# kornia's canny makes numbers on the device; it runs once a step
STEPS = [
    (CPOStep, "exact", set()),
    (CPOStep, "shared", set()),
    (CPODinoStep, "cached", set()),
    (ControlRewardStep, "exact", {"tasks/canny.py"}),
    (LRMStep, "exact", set()),
    (lpo.Update, "exact", set()),
    (ddpo.Update, "exact", set()),
    (Generation, "exact", set()),
]


def lines(work: Callable[[], object]) -> dict[str, int]:
    """Files of the package that let the host wait, the second time."""
    host_waits(work)  # what is made once and kept may wait once
    found: dict[str, int] = {}
    for place, count in host_waits(work).items():
        file = place.split(" in ")[1].split(":")[0]
        found[file] = found.get(file, 0) + count
    return found


@pytest.mark.parametrize(
    ("shape", "kind", "variant", "known"), [(TOY, *step) for step in STEPS] + [(TOY_XL, LRMStep, "exact", set())]
)
def test_no_step_waits(shape: Shape, kind: type[Bench], variant: str, known: set[str]) -> None:
    bench = kind.build(shape, batch=2, device="meta", **({"steps": 2} if "steps" in kind.options else {}))
    assert set(lines(lambda: bench.step(variant))) == known


@pytest.mark.parametrize("kind", [Control, DiffusionDPO])
def test_no_step_of_supervised_methods_waits(kind: type) -> None:
    model = random_model(TOY, device="meta")
    method = kind(policy=Policy(model, Full()), optim=AdamW(), seed=0, steps=1, batch=2).to("meta")
    if kind is DiffusionDPO:
        method.policy.freeze_reference()
    images = (2,) if kind is DiffusionDPO else ()
    meta = lambda *size: torch.empty(size, device="meta")  # noqa: E731
    text = model.embed(model.tokenize(["a", "b"])).detach()
    batch = {"moments": meta(2, *images, 8, *model.latent_shape[1:]), "text": text, "labels": meta(2, 2, 2)}
    batch = {"position": torch.arange(2)} | batch
    assert lines(lambda: method.loss(batch)[0].backward()) == {}


def test_a_trajectory_waits_once_for_all_its_steps() -> None:
    """To learn how many pairs are valid; the steps and the scores are queued before."""
    bench = lpo.Rollout.build(TOY, batch=2, steps=3, device="meta")
    with torch.no_grad():
        assert lines(lambda: bench.method.collect(bench.captions, range(2))) == {"methods/lpo.py": 1}
        text = bench.method.embed(bench.captions)
        assert lines(lambda: bench.method.explore(text, range(2))) == {}


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: torch.zeros(2).to(x.device),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x.copy_(torch.zeros(3)),
    ],
)
def test_what_waits_is_found(work: Callable[[Tensor], object]) -> None:
    assert sum(host_waits(lambda: work(torch.empty(3, device="meta"))).values()) >= 1


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "variant", "known"), STEPS)
def test_torch_sees_no_wait_either(kind: type[Bench], variant: str, known: set[str]) -> None:
    if known:
        pytest.skip("kornia waits")
    steps = {"steps": 2} if "steps" in kind.options else {}
    bench = kind.build(TOY, batch=2, hardware=Hardware(accelerator="gpu"), **steps)
    bench.step(variant)
    torch.cuda.set_sync_debug_mode("error")
    try:
        bench.step(variant)
    finally:
        torch.cuda.set_sync_debug_mode("default")
