"""DiffusionNFT: its loss through stock forwards, the trailing policy, and what resumes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from toys import flux as toy_flux
from toys import lpo as toy_lpo
from toys import sd3 as toy_sd3
from toys.ddpo import Red
from toys.instances import first

from lpo_platform.config.errors import UserError
from lpo_platform.data.source import Sample
from lpo_platform.diffusion import noise
from lpo_platform.hardware.sharding import shard, whole
from lpo_platform.methods.ddpo import DDPO
from lpo_platform.methods.nft import NFT
from lpo_platform.methods.optim import AdamW
from lpo_platform.methods.rollouts import Items
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.models.stable_diffusion_xl import unpack
from lpo_platform.models.tuning import Control, Full, Lora, Tune
from lpo_platform.tasks.canny import Canny

SMALL = {"group": 2, "num_steps": 4, "rounds": 3, "prompts": 2, "batch": 12, "kl": 0.5}
CAPTIONS = ["a red circle", "two small blue squares"]
TUNES = [Full(), Lora(rank=2), Control()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_sd3.folder(tmp_path_factory.mktemp("sd3"))


class Pictures:
    def __len__(self) -> int:
        return 2

    def caption(self, i: int) -> str:
        return CAPTIONS[i]

    def __getitem__(self, i: int) -> Sample:
        image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i))
        return Sample(f"picture {i}", image, CAPTIONS[i])


def method(folder: Path, tune: Tune, **options: object) -> NFT:
    model = toy_sd3.load(folder)
    control, task = (model.load_control("", "unet"), Canny()) if isinstance(tune, Control) else (None, None)
    settings = SMALL | {"reward": Red(), "task": task, "optim": AdamW(), "seed": 0} | options
    return NFT(policy=Policy(model, tune, control), **settings)


def play(step: NFT, number: int = 0) -> list[dict]:
    return step.sample_round(number, Items(Pictures(), (0, 1)) if step.pictures else CAPTIONS, 12)


def test_pictures_are_drawn_by_the_trailing_policy_without_noise(folder: Path) -> None:
    step = method(folder, Full())
    with torch.no_grad():
        for weight in step.policy.reference_weights("old").values():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    play(step)
    plain = toy_sd3.load(folder)
    plain.unet.load_state_dict(step.policy.references["old"]["unet"].state_dict())
    prompts = [caption for caption in CAPTIONS for _ in range(2)]
    condition = Condition(plain.embed(plain.tokenize(prompts)).detach())
    ids = [f"{prompt}/{member}" for prompt in range(2) for member in range(2)]
    expected = sample_latents(Policy(plain, Full()), condition, ids, Sampling(4), seed=0, stream="rollout")
    torch.testing.assert_close(step.samples["latents"], expected, atol=1e-5, rtol=1e-4)


def test_the_loss_is_that_of_stock_forwards(folder: Path) -> None:
    """Policy, trailing policy and start are three transformers of diffusers here."""
    step = method(folder, Full(), strength=0.3, scale=2.0)
    (batch,) = play(step)
    stocks = {}
    for place, name in enumerate(("start", "old", "policy")):
        stocks[name] = toy_sd3.load(folder).unet
        with torch.no_grad():
            for weight in stocks[name].parameters():
                weight += 0.02 * place * torch.randn(weight.shape, generator=torch.Generator().manual_seed(place))
    step.policy.adapter.unet.load_state_dict(stocks["policy"].state_dict())
    step.policy.references["old"]["unet"].load_state_dict(stocks["old"].state_dict())
    assert len(batch["sample"]) == 2 * 2 * 3  # three of four times each
    scores = step.samples["reward/score"].flatten().double()
    center = scores.view(2, 2).mean(1).repeat_interleave(2)
    good = 0.5 + ((scores - center) / (scores.std(correction=0) + 1e-4)).clamp(-5, 5) / 10
    times, total = step.policy.adapter.process.times(4), []
    for row in range(12):
        sample, number = batch["sample"][row].item(), batch["step"][row].item()
        s, clean = (times[number] / 1000).item(), step.samples["latents"][sample]
        (e,) = noise.normal([batch["position"][row].item()], (4, 8, 8), seed=0, stream="nft/0")
        x, target = (1 - s) * clean + s * e, e - clean
        sequence, pooled = unpack(step.samples["text"][sample // 2][None], toy_sd3.POOLED)
        given = {"hidden_states": x[None], "encoder_hidden_states": sequence, "pooled_projections": pooled}
        with torch.no_grad():
            v = {name: unet(**given, timestep=times[number][None]).sample[0] for name, unet in stocks.items()}
        better, worse = 0.3 * v["policy"] + 0.7 * v["old"], 1.3 * v["old"] - 0.3 * v["policy"]
        sides = (better, good[sample]), (worse, 1 - good[sample])
        errors = (weight * s * (side - target).square().mean() / (side - target).abs().mean() for side, weight in sides)
        total.append(2.0 * sum(errors) / 0.3 + 0.5 * (v["policy"] - v["start"]).square().mean())
    loss, report = step.loss(batch)
    torch.testing.assert_close(loss.detach().double(), torch.stack(total).double().mean(), atol=1e-5, rtol=1e-4)
    assert report["nft/from_old"] > 0 and report["nft/from_start"] > 0


@pytest.mark.parametrize("tune", first(TUNES, keep=1), ids=lambda tune: type(tune).__name__)
def test_references_are_the_weights_of_their_time(folder: Path, tune: Tune) -> None:
    """The start stays, the trailing one moves by its share, what learns is untouched by looking at either."""
    step = method(folder, tune)
    policy = step.policy
    (batch,) = play(step)
    learning = {name: weight.detach().clone() for name, weight in policy.trainable().items()}
    assert all(torch.equal(weight, learning[name]) for name, weight in policy.reference_weights("old").items())
    step.loss(batch)[0].backward()
    assert all(torch.equal(weight, learning[name]) for name, weight in policy.trainable().items())
    toy_lpo.move(policy, 0.05)
    policy.blend("old", 0.25)
    for name, weight in policy.reference_weights("old").items():
        expected = 0.25 * learning[name] + 0.75 * policy.trainable()[name].detach()
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-5)
    with policy.reference("old"):
        trailing = step.loss(batch)[1]["nft/from_old"]
    assert trailing < 1e-10 < step.loss(batch)[1]["nft/from_old"]
    with pytest.raises(RuntimeError, match="reference\\('best'\\) before"), policy.reference("best"):
        pass


def test_the_share_that_the_trailing_policy_keeps(folder: Path) -> None:
    usual, delayed = method(folder, Lora(rank=2)), {"trail_rise": 0.0075, "trail_most": 0.999, "trail_after": 75}
    assert [usual.keep(u) for u in (0, 1, 100, 600)] == pytest.approx([0, 0.001, 0.1, 0.5])
    late = method(folder, Lora(rank=2), **delayed)
    assert [late.keep(u) for u in (75, 100, 208, 300)] == pytest.approx([0, 0.1875, 0.9975, 0.999])
    advantage = torch.tensor([-1.078662, -0.539331, 0, 1.617992, 9.0])
    assert usual.optimality(advantage).tolist() == pytest.approx([0.392134, 0.446067, 0.5, 0.661799, 1.0], abs=1e-6)


@pytest.mark.parametrize("kind", [NFT, DDPO])
def test_conditions_are_encoded_once_for_all_weights(kind: type, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frozen autoencoder encodes them; the loss is that of separate encodings, bit for bit."""
    model = toy_sd3.load(folder)
    policy = Policy(model, Control(), model.load_control("", "unet"))
    step = kind(policy=policy, reward=Red(), task=Canny(), optim=AdamW(), seed=0, **SMALL)
    batch = play(step)[0]
    toy_lpo.move(policy, 0.05)
    calls: list[int] = []
    model.vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    shared = step.loss(batch)[0]
    assert len(calls) == 1
    monkeypatch.setattr(Policy, "learns_features", True)
    assert torch.equal(step.loss(batch)[0], shared) and len(calls) == 1 + {NFT: 3, DDPO: 2}[kind]


@pytest.mark.parametrize("tune", first(TUNES, keep=1), ids=lambda tune: type(tune).__name__)
def test_a_checkpoint_holds_the_trailing_policy(folder: Path, tune: Tune) -> None:
    step = method(folder, tune)
    toy_lpo.move(step.policy, 0.05)
    step.policy.blend("old", 0.5)
    checkpoint = {"state_dict": {f"policy.{name}": weight for name, weight in step.policy.state_dict().items()}}
    step.on_save_checkpoint(checkpoint)
    again = method(folder, tune)
    again.on_load_checkpoint(checkpoint)
    mine, theirs = (of.policy.reference_weights("old") for of in (again, step))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_noise_is_fresh_in_every_round_and_the_first_keeps_nothing_of_the_old(folder: Path) -> None:
    step = method(folder, Lora(rank=2))
    first = step.loss(play(step)[0])[0]
    toy_lpo.move(step.policy, 0.05)
    play(step, 1)
    old = step.policy.reference_weights("old")
    assert all(torch.equal(old[name], weight) for name, weight in step.policy.trainable().items())  # keep(0) is 0
    assert step.number == 1 and not torch.equal(first, step.loss(play(step, 1)[0])[0])


def test_what_it_cannot_train(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^method=nft with tune\.text_encoder=true: "):
        method(folder, Full(text_encoder=True))
    flux = toy_flux.load(toy_flux.folder(tmp_path))
    flux.unet.register_to_config(guidance_embeds=False)
    with pytest.raises(UserError, match=r"^method=nft with model=toy: .*distilled"):
        NFT(policy=Policy(flux, Full()), reward=Red(), task=None, optim=AdamW(), seed=0, **SMALL)
    with pytest.raises(UserError, match=r"^method\.fraction=0\.1: trains 0 of 4 times; what works: 1 to all$"):
        method(folder, Full(), fraction=0.1)


@pytest.mark.parametrize("tune", first([Full(), Control()], keep=1), ids=lambda tune: type(tune).__name__)
def test_sharded_weights_trail_and_resume_as_whole_ones_do(folder: Path, tune: Tune, tmp_path: Path) -> None:
    """hardware=fsdp on one process."""
    found = []
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for sharded in (False, True):
            step = method(folder, tune)
            if sharded:
                shard(step.policy, "cpu")
            (batch,) = play(step)
            loss = step.loss(batch)[0]
            loss.backward()
            with torch.no_grad():
                for weight in step.policy.trainable().values():
                    weight -= 0.1 * weight.grad
            step.policy.blend("old", 0.25)
            checkpoint = {"state_dict": {}}
            step.on_save_checkpoint(checkpoint)
            again = method(folder, tune)
            if sharded:
                shard(again.policy, "cpu")
            again.on_load_checkpoint(checkpoint)
            old = [whole(weight).clone() for weight in again.policy.reference_weights("old").values()]
            found.append([loss.detach(), *old, *checkpoint["old"].values()])
    finally:
        dist.destroy_process_group()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
