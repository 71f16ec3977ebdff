"""Latent reward models of transformers: features against hooks on the stock forward, the head, folders, refusals."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toys import flux as toy_flux
from toys import sd3 as toy_sd3
from toys.instances import first

from lpo_platform.config.errors import UserError
from lpo_platform.methods.lrm import LRM
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.latent_reward import LatentReward
from lpo_platform.models.policy import Policy
from lpo_platform.models.random_flux import FLUX
from lpo_platform.models.random_sd3 import SD3, SD35M, RandomStableDiffusion3
from lpo_platform.models.reward_folder import load_reward, save_reward, start_reward
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_xl import unpack
from lpo_platform.models.transformer_reward import TransformerReward, default_blocks, empty_trunk, taps_of, trunk_of
from lpo_platform.models.tuning import Reward

PROMPTS = ["a red circle", "two small blue squares"]
TOYS = {"sd3": toy_sd3, "flux": toy_flux}
STOCK = {"sd3": ((1, 2), 2, 22), "flux": ((1, 2), 2, 20)}  # taps, blocks and pooled width of the toys


@pytest.fixture(scope="module", params=TOYS)
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    made = TOYS[request.param].load(TOYS[request.param].folder(tmp_path_factory.mktemp(request.param)))
    made.kind = request.param
    return made


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1000.0, 250.0])


def hooked(adapter: StableDiffusion, x: Tensor, t: Tensor, text: Tensor, taps: tuple[int, ...]) -> list[Tensor]:
    """The mean picture token after each tapped block of the whole stock transformer."""
    seen, unet = [], copy.deepcopy(adapter.unet)
    for number in taps:
        block = unet.transformer_blocks[number - 1]
        block.register_forward_hook(lambda _, __, output: seen.append(output[1].float().mean(1)))
    sequence, pooled = unpack(text, STOCK[adapter.kind][2])
    if adapter.kind == "sd3":
        unet(hidden_states=x, timestep=t, encoder_hidden_states=sequence, pooled_projections=pooled)
    else:
        ids = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        unet(
            hidden_states=torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).mT, timestep=t / 1000,
            encoder_hidden_states=sequence, pooled_projections=pooled, guidance=torch.full((len(x),), 3.5),
            img_ids=torch.nn.functional.pad(ids, (1, 0)), txt_ids=torch.zeros(sequence.shape[1], 3),
        )  # fmt: skip
    return seen


@torch.no_grad()
@pytest.mark.parametrize("guidance", first([1.0, 7.5], keep=1))
def test_features_are_those_of_the_stock_forward(adapter: StableDiffusion, guidance: float) -> None:
    """Scales from the prompted pass alone, the last one enhanced away from the empty prompt."""
    model, (x, t) = start_reward(adapter, guidance=guidance).eval(), inputs()
    taps, blocks, width = STOCK[adapter.kind]
    assert model.taps == taps and len(model.unet.transformer_blocks) == blocks
    text = adapter.embed(adapter.tokenize(PROMPTS))
    prompted = hooked(adapter, x, t, text, taps)
    empty = hooked(adapter, x, t, adapter.empty_text().expand(2, -1, -1), taps)
    expected = torch.cat([*prompted[:-1], empty[-1] + guidance * (prompted[-1] - empty[-1])], 1)
    told = model.encode(adapter.tokenize(PROMPTS))
    torch.testing.assert_close(model.features(x, t, told["context"]), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(told["target"], text[:, -1, :width])
    cosine = torch.cosine_similarity(model.visual_projection(expected), told["target"])
    torch.testing.assert_close(model(x, t, told), torch.tensor(2.6592).exp() * cosine, atol=1e-4, rtol=1e-4)


def test_the_head() -> None:
    """Four taps of width 1536 and a pooled text of 2048, in float64."""
    for guidance, begins, score in (
        (7.5, [7.44233466, -2.67976371], -0.18004366),
        (1.0, [2.40391332, 0.55701584], -0.15083150),
    ):
        head = LatentReward.__new__(LatentReward)
        nn.Module.__init__(head)
        head._build_head([1536] * 4, 2048, torch.eye(2048), guidance=guidance)
        head.double()
        count, rows = torch.arange(6144.0).double(), torch.arange(2048.0).double()[:, None]
        weight = torch.cos(0.001 * (rows + 1) * (count + 1)) / 6144**0.5
        head.visual_projection.weight = nn.Parameter(weight)
        head.logit_scale = nn.Parameter(torch.tensor(2.6592).double())
        scales = (0.01 * count).sin().split(1536)[:3]
        middle = torch.stack([(0.01 * count[:1536]).sin(), (0.01 * count[:1536]).cos()])
        features = head.combine([torch.stack([scale, scale]) for scale in scales], middle, 1)
        target = (0.1 * (rows + 1)).sin().T
        visual = head.visual_projection(features)[0, :2]
        assert visual.tolist() == pytest.approx(begins, abs=1e-7)
        assert head.score(features, target).item() == pytest.approx(score, abs=1e-6)


def test_a_model_comes_back_from_its_folder(adapter: StableDiffusion, tmp_path: Path) -> None:
    model, (x, t) = start_reward(adapter, guidance=3.0).eval(), inputs()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    save_reward(model, tmp_path, adapter.unet)
    again = load_reward(adapter, str(tmp_path))
    told = model.encode(adapter.tokenize(PROMPTS))
    with torch.no_grad():
        assert torch.equal(again(x, t, told), model(x, t, told))
    assert again.guidance == 3.0 and again.taps == model.taps
    copied = copy.deepcopy(again)
    assert copied.text is again.text and copied.visual_projection is not again.visual_projection
    other = copy.copy(adapter)
    other.vae = copy.deepcopy(adapter.vae)
    other.vae.register_to_config(scaling_factor=0.5)
    with pytest.raises(UserError, match=r"weights=.*: it scores other latents than those of model=toy"):
        load_reward(other, str(tmp_path))
    tiny = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=10)
    with pytest.raises(UserError, match=r"weights=.*: made for another kind of model than model=tiny"):
        load_reward(tiny, str(tmp_path))
    with pytest.raises(UserError, match=r"weights=tiny/lrm: made for another kind of model than model=toy"):
        load_reward(adapter, "tiny/lrm")


@pytest.mark.parametrize("form", ["pair", "fidelity", "nll"])
@pytest.mark.parametrize("noise", ["independent", "shared"])
def test_every_weight_that_learns_has_a_gradient(adapter: StableDiffusion, form: str, noise: str) -> None:
    """So that no process waits for one; the text encoders have none."""
    policy = Policy(adapter, Reward())
    method = LRM(policy=policy, optim=AdamW(), seed=0, steps=1, batch=2, num_steps=4, form=form, noise=noise)
    assert not policy.reads_tokens
    text = adapter.embed(adapter.tokenize(PROMPTS)).detach()
    labels = torch.tensor([[[0.5, 1.0], [0.0, 0.5]]]).repeat(2, 1, 1)
    batch = {"position": torch.arange(2), "moments": torch.randn(2, 2, 8, 8, 8), "text": text, "labels": labels}
    loss, _ = method.loss(batch | {"weight": torch.full((2,), 0.5)})
    loss.backward()
    assert all(weight.grad is not None for weight in policy.trainable().values()) and torch.isfinite(loss)
    assert not any(weight.requires_grad for encoder in adapter.text_encoders for weight in encoder.parameters())


def test_a_text_encoder_that_learns_is_not_the_rewards(tmp_path: Path) -> None:
    adapter = toy_sd3.load(toy_sd3.folder(tmp_path))
    adapter.text_encoder.requires_grad_(True)
    model, tokens = start_reward(adapter), adapter.tokenize(PROMPTS)
    before = model.encode(tokens)["context"]
    with torch.no_grad():
        adapter.text_encoder.shared.weight.add_(1.0)
    assert torch.equal(model.encode(tokens)["context"], before)
    assert not torch.equal(adapter.embed(tokens), before)


@pytest.mark.slow
def test_published_sizes() -> None:
    """Half of the blocks of Stable Diffusion 3.5-medium, 18 of those of 3-medium, the double blocks of FLUX."""
    model = RandomStableDiffusion3(SD35M, device="meta")
    trunk = empty_trunk(type(model.unet), model.unet.config, default_blocks(model.unet))
    assert sum(weight.numel() for weight in trunk.parameters()) == 1_232_739_840 and taps_of(trunk) == (4, 8, 12)
    model = RandomStableDiffusion3(SD3, device="meta")
    for blocks, expected in ((12, 1_034_425_344), (18, 1_544_309_760)):
        trunk = empty_trunk(type(model.unet), model.unet.config, blocks)
        assert sum(weight.numel() for weight in trunk.parameters()) == expected
    assert taps_of(trunk) == (6, 12, 18)
    flux = toy_flux.transformer(num_layers=FLUX.unet["num_layers"], num_single_layers=1)
    assert default_blocks(flux) == 19 and taps_of(trunk_of(flux, 19)) == (5, 10, 15, 19)


def test_the_number_of_blocks_is_a_setting(adapter: StableDiffusion) -> None:
    assert isinstance(start_reward(adapter, blocks=1), TransformerReward)
    assert start_reward(adapter, blocks=1).taps == (1,)
    with pytest.raises(UserError, match=r"^tune\.blocks=9: what works for model=toy: 1 to [23]$"):
        start_reward(adapter, blocks=9)
    tiny = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=10)
    with pytest.raises(UserError, match=r"^tune\.blocks=2: model=tiny has no transformer"):
        start_reward(tiny, blocks=2)
