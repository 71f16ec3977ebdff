"""ControlNet++ against its plain form and the specification's losses, and whole runs at toy size."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from kornia.filters import canny
from omegaconf import OmegaConf
from torch import Tensor
from toys.instances import first

from lpo_platform.commands import train
from lpo_platform.config import compose
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.errors import UserError
from lpo_platform.config.schema import CONF
from lpo_platform.data.prepared import conditions
from lpo_platform.data.prepared.conditions import from_uint8
from lpo_platform.data.toy import Toy
from lpo_platform.methods.control_reward import ControlReward
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.tuning import Control
from lpo_platform.tasks.canny import Canny
from lpo_platform.tasks.depth import Depth
from lpo_platform.tasks.hed import Hed
from lpo_platform.tasks.lineart import Lineart
from lpo_platform.tasks.seg_ade20k import SegAde20k
from lpo_platform.tasks.seg_coco import SegCoco
from lpo_platform.tasks.task import Task
from lpo_platform.tracking.callbacks.checkpoint import checkpoints, newest

TASKS = {
    "canny": Canny,
    "hed": lambda: Hed(toy=True),
    "lineart": lambda: Lineart(toy=True),
    "depth": lambda: Depth(toy=True),
    "seg_ade20k": lambda: SegAde20k(toy=True),
    "seg_coco": lambda: SegCoco(toy=True),
}
POSITIONS = range(41, 49)


def made(task: Task, **options: object) -> ControlReward:
    """On the embedded model with its canny ControlNet, whatever the task."""
    adapter = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=4)
    policy = Policy(adapter, Control(), adapter.load_control("", "tiny/controlnet_canny"))
    return ControlReward(policy=policy, task=task, optim=AdamW(), seed=0, steps=1, batch=16, **options)


def batch_of(method: ControlReward) -> dict[str, Tensor]:
    """Eight toy scenes, as they are prepared and as a batch reaches the loss."""
    source, adapter, sampling = Toy(8, 1).train, method.policy.adapter, Sampling(1)
    options = {"columns": method.needs, "control_digest": None, "sampling": sampling}
    what = conditions.preparation(source, method.policy, method.task, **options)
    with torch.no_grad():
        columns = what.encode([source[i] for i in range(8)])
    columns |= {"control": from_uint8(columns["control"]), "position": torch.tensor(POSITIONS)}
    assert adapter.device.type == "cpu" and columns["target"].dtype == torch.half
    return columns


def plain(method: ControlReward, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """L_pre, the task's loss of every sample's picture (B,), and which are rewarded: everything decoded, one by one."""
    adapter, t = method.policy.adapter, method.times(batch, "pretrain")
    e, draws = method.normal(batch, "pretrain"), method.normal(batch, "vae")
    pretraining, rewards = [], []
    for i in range(len(t)):
        mean, log_variance = batch["moments"][i].chunk(2)
        z = (mean + torch.exp(0.5 * log_variance) * draws[i]) * adapter.vae.config.scaling_factor
        abar = adapter.process.alphas_cumprod[t[i]]
        x = (abar.sqrt() * z + (1 - abar).sqrt() * e[i])[None]
        text = batch["text"][i][None]
        down, middle = method.policy.control(x, t[i], text, batch["control"][i][None], return_dict=False)
        output = adapter.unet(
            x, t[i], text, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        pretraining.append((output - e[i]).square().mean())
        clean = (x - (1 - abar).sqrt() * output) / abar.sqrt()
        picture = (adapter.vae.decode(clean / adapter.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        rewards.append(method.task.loss(picture, batch["target"][i][None].float())[0])
    return torch.stack(pretraining).mean(), torch.stack(rewards), t <= 200


def gradient(method: ControlReward, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(method.policy.trainable().values()), retain_graph=True)
    return torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize("name", first(TASKS, keep=2))
def test_the_loss_is_that_of_the_plain_form(name: str) -> None:
    """And only rewarded samples are decoded. The original's masked mean differs by the number rewarded alone."""
    method = made(TASKS[name](), reward_weight=3.0)
    batch = batch_of(method)
    decoded: list[int] = []
    hook = method.policy.adapter.vae.decoder.register_forward_hook(lambda _, inputs, __: decoded.append(len(inputs[0])))
    loss, report = method.loss(batch)
    hook.remove()
    pretraining, rewards, mask = plain(method, batch)
    assert 0 < mask.sum() < 8 and decoded == [int(mask.sum())]
    masked_mean = (mask * rewards).sum() / (mask.sum() + 1e-10)
    expected = pretraining + 3.0 * masked_mean * mask.sum() / (8 * 201 / 1000)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    assert report["control_reward/reward"] * 3 > 0.01 * loss and not report["control_reward/reward"].requires_grad
    ours, theirs = gradient(method, loss), gradient(method, expected)
    alone = gradient(method, pretraining)
    assert (ours - theirs).norm() < 0.01 * (theirs - alone).norm() > 0


def test_the_gradient_reaches_the_control_branch_only() -> None:
    method = made(Hed(toy=True))
    loss, _ = method.loss(batch_of(method))
    loss.backward()
    adapter = method.policy.adapter
    frozen = [*adapter.unet.parameters(), *adapter.vae.parameters(), *method.task.detector.network.parameters()]
    assert all(weight.grad is None for weight in frozen)
    assert all(weight.grad is not None for weight in method.policy.control.parameters())


def test_micro_batches_average_to_the_batch() -> None:
    """Also those of one sample, most of which have none that is rewarded and yet a gradient for every weight."""
    method = made(Canny())
    batch = batch_of(method)
    whole, _ = method.loss(batch)
    parts = [method.loss({name: column[i : i + 1] for name, column in batch.items()}) for i in range(8)]
    unrewarded = [loss for loss, report in parts if report["control_reward/reward"] == 0]
    assert 4 < len(unrewarded) < 8
    assert all(gradient(method, loss).isfinite().all() for loss in unrewarded[:2])
    mean = torch.stack([loss for loss, _ in parts]).mean()
    torch.testing.assert_close(mean, whole, rtol=1e-4, atol=0)
    assert (gradient(method, mean) - gradient(method, whole)).norm() < 2e-3 * gradient(method, whole).norm()


def test_the_last_rewarded_timestep_is_inclusive_and_the_estimate_unbiased() -> None:
    method = made(Canny())
    positions = torch.arange(10000)
    t = method.drawn_times({"position": positions}, "pretrain")
    rewarded = (t <= method.max_timestep).sum().item()
    assert method.expected(1000) == 201 and rewarded == pytest.approx(method.expected(10000), rel=0.05)
    assert set(t[t <= 200].tolist()) == set(range(201))


# --- the losses of section 4, written from the specification ----------------------------------------------------------


@pytest.fixture(scope="module")
def pictures() -> tuple[Tensor, Tensor]:
    """Two by three toy scenes."""
    drawn = torch.stack([Toy(6, 1).train[i].image for i in range(6)])
    return drawn[:3], drawn[3:]


def test_canny_compares_magnitudes_after_suppression(pictures: tuple[Tensor, Tensor]) -> None:
    seen, wanted = pictures
    magnitudes = [canny(images, 0.1, 0.2, kernel_size=(5, 5))[0] for images in pictures]
    expected = (magnitudes[0] - magnitudes[1]).square().mean((1, 2, 3))
    for task in (Canny(), Canny(form="magnitude")):
        torch.testing.assert_close(task.loss(seen, task.target(wanted, task.detect(wanted))), expected)


@pytest.mark.parametrize("kind", [Hed, Lineart])
def test_edges_compare_what_the_network_says(kind: type[Hed | Lineart], pictures: tuple[Tensor, Tensor]) -> None:
    """Lines not inverted in the loss; a difference of inverses is the same."""
    seen, wanted = pictures
    task = kind("published", pretrained=False)
    with torch.no_grad():
        expected = (task.detector.network(seen) - task.detector.network(wanted)).square().mean((1, 2, 3))
    torch.testing.assert_close(task.loss(seen, task.target(wanted, task.detect(wanted))), expected)


def test_depth_is_divided_by_its_maximum(pictures: tuple[Tensor, Tensor]) -> None:
    seen, wanted = pictures
    task = Depth("published", pretrained=False)
    control = task.render(task.detect(wanted))
    expected = []
    for i in range(3):
        found = task.detector.network.model(2 * seen[i : i + 1] - 1).predicted_depth[None]
        found = F.interpolate(found, (64, 64), mode="bilinear", antialias=True)[0, 0]
        label = control[i].mean(0)
        expected.append((found / found.max() - label / label.max()).square().mean())
    torch.testing.assert_close(task.loss(seen, task.target(wanted, task.parse(control))), torch.stack(expected))


@pytest.mark.parametrize("kind", [SegAde20k, SegCoco])
def test_segmentation_ignores_unlabelled_pixels(kind: type, pictures: tuple[Tensor, Tensor]) -> None:
    seen, _ = pictures
    task = kind("published", pretrained=False)
    labels = torch.randint(0, task.classes + 1, (3, 1, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    wanted = labels[:, 0].long() - 1
    wanted[wanted == -1] = 255
    logits = task.detector.network(seen)
    expected = [F.cross_entropy(logits[i : i + 1], wanted[i : i + 1], ignore_index=255) for i in range(3)]
    torch.testing.assert_close(task.loss(seen, task.target(seen, labels)), torch.stack(expected))


# --- the command line -----------------------------------------------------------------------------------------------


def test_a_task_without_a_gradient_is_refused() -> None:
    (line,) = diagnose("train", ["method=control_reward", "task=pose", "control.weights=unet"])
    assert line.startswith("method=control_reward needs task=canny or task=depth or task=hed or task=lineart or task=")
    assert line.endswith(", not task=pose")
    with pytest.raises(UserError, match="task=hed, as it is set, has no gradient"):
        made(Hed(toy=True, uint8_floor=True))


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the checkpoint in the middle of a straight run, copied into a folder of its own."""
    monkeypatch.chdir(tmp_path)
    overrides = [
        "method=control_reward", "task=hed", "control.weights=tiny/controlnet_canny", "method.steps=4",
        "method.batch=8", "hardware.micro_batch=4", "data.num_train=16", "data.num_test=4", "metrics.num_samples=4",
        "model.num_inference_steps=2", "callbacks.every=2", "callbacks.samples=0", "callbacks.log_every=1",
        "logger=none", "hardware=cpu",
    ]  # fmt: skip
    cfg = OmegaConf.create(compose.compose("train", overrides, [], CONF).values)
    train.train(copy.deepcopy(cfg), tmp_path / "straight")
    lines = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    assert sum("control_reward/reward" in line for line in lines) == 4

    middle, _ = checkpoints(tmp_path / "straight" / "checkpoints")
    (tmp_path / "resumed" / "checkpoints").mkdir(parents=True)
    shutil.copy(middle, tmp_path / "resumed" / "checkpoints")
    train.train(copy.deepcopy(cfg), tmp_path / "resumed")
    ends = [torch.load(newest(tmp_path / name / "checkpoints"), weights_only=True) for name in ("straight", "resumed")]
    weights = [end["state_dict"] for end in ends]
    assert weights[0].keys() == weights[1].keys() != set()
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())
