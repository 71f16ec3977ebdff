"""Image-DPO for control against its formula, its pairs against drawing every picture alone, and a run at toy size."""

import copy
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from lpo_platform.commands import train
from lpo_platform.config import compose
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.errors import UserError
from lpo_platform.config.schema import CONF
from lpo_platform.data.prepared import alignment_pairs
from lpo_platform.data.prepared.conditions import from_uint8
from lpo_platform.data.toy import Toy
from lpo_platform.methods.dpo_control import DPOControl
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.tuning import Control
from lpo_platform.rewards.toy import ToyAttributes
from lpo_platform.tasks.canny import Canny
from lpo_platform.tracking.callbacks.checkpoint import checkpoints, newest

SAMPLING = Sampling(3)
BETA = 500.0


def drawing_policy() -> Policy:
    adapter = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=3)
    return Policy(adapter, Control(), adapter.load_control("canny", "tiny/controlnet_canny"))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return drawing_policy()


@torch.no_grad()
def rows_of(policy: Policy, *, batch: int) -> list[dict[str, Tensor]]:
    """Three scenes, groups of four, judged by their captions."""
    source, options = Toy(3, 1).train, {"settings": None, "control_digest": "", "sampling": SAMPLING, "gap": 0.0}
    what = alignment_pairs.preparation(source, policy, Canny(), ToyAttributes(), group=4, batch=batch, **options)
    columns = what.encode([source[i] for i in range(3)])
    return [{name: column[i] for name, column in columns.items()} for i in range(3)]


def test_a_pair_is_the_best_and_the_worst_aligned_of_its_group(policy: Policy) -> None:
    """Every picture drawn alone; then in batches that do not divide the group, from which the pairs are the same."""
    source, task, adapter = Toy(3, 1).train, Canny(), policy.adapter
    rows = {batch: rows_of(policy, batch=batch) for batch in (3, 12)}
    assert len(rows[3]) == len(rows[12]) == 3
    for i in range(3):
        sample, found = source[i], rows[12][i]
        maps = task.detect(sample.image[None])
        text = adapter.embed(adapter.tokenize([sample.caption]))
        pictures, distances = [], []
        for n in range(4):
            condition, ids = Condition(text, task.render(maps)), [f"{sample.id}/{n}"]
            latents = sample_latents(policy, condition, ids, SAMPLING, seed=0, stream="group")
            pictures.append((adapter.decode(latents) * 255).round() / 255)
            distances.append((task.detect(pictures[-1]) - maps).square().mean().item())
        ends = [distances.index(min(distances)), distances.index(max(distances))]
        assert found["distance"].tolist() == pytest.approx([distances[n] for n in ends], abs=1e-3)
        for place, n in enumerate(ends):
            moments = adapter.encode_moments(pictures[n])[0]
            assert (found["moments"][place].float() - moments).abs().mean() < 0.02 * moments.abs().mean()
            quality = ToyAttributes()(pictures[n], [sample.caption])[0]
            torch.testing.assert_close(found["quality"][place], quality, rtol=0, atol=0.02)
        assert torch.equal(from_uint8(found["control"][None])[:, :1], maps)
        torch.testing.assert_close(rows[3][i]["distance"], found["distance"], rtol=0, atol=2e-3)


def test_the_reward_must_agree_and_ties_are_left_out(policy: Policy) -> None:
    distance = torch.tensor([[0.1, 0.2], [0.1, 0.1], [0.1, 0.3], [0.2, 0.4]])
    quality = torch.tensor([[0.5, 0.4], [0.9, 0.1], [0.3, 0.4], [torch.nan, torch.nan]])

    def left(gap: float) -> list[int]:
        options = {"settings": None, "control_digest": "", "sampling": SAMPLING, "gap": gap}
        what = alignment_pairs.preparation(Toy(3, 1).train, policy, Canny(), None, group=4, batch=4, **options)
        rows = [{"distance": d, "quality": q} for d, q in zip(distance, quality, strict=True)]
        return [i for i, row in enumerate(rows) if not what.accepts(row)]

    assert {gap: left(gap) for gap in (-0.2, 0.0, 0.3)} == {-0.2: [0, 2, 3], 0.0: [0, 3], 0.3: [3]}
    assert alignment_pairs.WINNER_FIRST.tolist() == [[0.5, 1.0], [0.0, 0.5]]


def test_a_group_is_more_than_one(policy: Policy) -> None:
    with pytest.raises(UserError, match=r"^method.group=1: must be at least 2"):
        options = {"settings": None, "control_digest": "", "sampling": SAMPLING, "gap": 0.0}
        alignment_pairs.preparation(Toy(3, 1).train, policy, Canny(), None, group=1, batch=1, **options)


def gradient(loss: Tensor, policy: Policy) -> Tensor:
    found = torch.autograd.grad(loss, list(policy.trainable().values()))
    return torch.cat([part.flatten() for part in found])


def test_the_loss_is_diffusion_dpo_under_the_condition() -> None:
    """One forward at a time through diffusers' own UNet and ControlNets, the reference a copy of the untouched one."""
    policy = drawing_policy()
    rows = rows_of(policy, batch=12)
    method = DPOControl(policy=policy, optim=AdamW(), seed=0, steps=1, batch=3, beta=BETA, drop_text=0.0)
    reference = drawing_policy().control
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    batch = {name: torch.stack([rows[i][name] for i in range(3)]) for name in method.needs}
    batch |= {"control": from_uint8(batch["control"]), "position": torch.arange(5, 8)}
    adapter, e, t = policy.adapter, method.normal(batch, "pair"), method.times(batch, "pair")
    draws = [method.normal(batch, f"vae/{name}") for name in ("winner", "loser")]
    terms = []
    for i in range(3):
        text, abar, errors = batch["text"][i][None], adapter.process.alphas_cumprod[t[i]], {}
        for side in (0, 1):
            mean, log_variance = batch["moments"][i, side].float().chunk(2)
            z = (mean + torch.exp(0.5 * log_variance) * draws[side][i]) * adapter.vae.config.scaling_factor
            x = (abar.sqrt() * z + (1 - abar).sqrt() * e[i])[None]
            for name, branch in (("policy", policy.control), ("reference", reference)):
                with torch.set_grad_enabled(name == "policy"):
                    down, middle = branch(x, t[i], text, batch["control"][i][None], return_dict=False)
                    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
                    errors[name, side] = (adapter.unet(x, t[i], text, **residuals).sample - e[i]).square().mean()
        d, r = (errors[name, 0] - errors[name, 1] for name in ("policy", "reference"))
        terms.append(-torch.nn.functional.logsigmoid(-0.5 * BETA * (d - r)))
    expected = torch.stack(terms).mean()
    loss, report = method.loss(batch)
    assert abs(loss.item() - math.log(2)) > 0.01, "policy and reference must differ"
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    ours, theirs = gradient(loss, policy), gradient(expected, policy)
    assert 0 < (ours - theirs).norm() < 5e-3 * theirs.norm()
    assert set(report) == {"dpo/accuracy", "dpo/margin", "dpo/winner", "dpo/loser"}
    assert not any(weight.requires_grad for weight in adapter.unet.parameters())


@pytest.mark.slow
def test_a_run_from_pictures_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a reward that filters; the resumed run finds its pairs in the cache."""
    monkeypatch.chdir(tmp_path)
    overrides = [
        "method=dpo_control", "task=canny", "reward=toy", "method.group=3", "method.gap=-0.5", "method.steps=4",
        "method.batch=4", "hardware.micro_batch=2", "data.num_train=6", "data.num_test=4", "metrics.num_samples=4",
        "model.num_inference_steps=2", "callbacks.every=2", "callbacks.samples=0", "callbacks.log_every=1",
        "logger=none", "hardware=cpu",
    ]  # fmt: skip
    assert diagnose("train", overrides) == []
    cfg = OmegaConf.create(compose.compose("train", overrides, [], CONF).values)
    metrics = train.train(copy.deepcopy(cfg), tmp_path / "straight")
    assert {"canny/f1", "reward/toy"} <= set(metrics)
    lines = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    assert sum("dpo/accuracy" in line for line in lines) == 4

    files = {file: file.stat().st_mtime_ns for file in Path("outputs/cache").rglob("*.safetensors")}
    (tmp_path / "resumed" / "checkpoints").mkdir(parents=True)
    shutil.copy(checkpoints(tmp_path / "straight" / "checkpoints")[0], tmp_path / "resumed" / "checkpoints")
    train.train(copy.deepcopy(cfg), tmp_path / "resumed")
    assert files == {file: file.stat().st_mtime_ns for file in Path("outputs/cache").rglob("*.safetensors")} != {}
    ends = [torch.load(newest(tmp_path / name / "checkpoints"), weights_only=True) for name in ("straight", "resumed")]
    weights = [end["state_dict"] for end in ends]
    assert weights[0].keys() == weights[1].keys() != set()
    assert all(torch.equal(weights[1][name], weight) for name, weight in weights[0].items())
