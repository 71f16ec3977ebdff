"""SDXL against stock diffusers at toy size: text, time_ids, UNet, pictures; sizes of the published models."""

from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionXLPipeline
from toys import flux
from toys import stable_diffusion as toy

from lpo_platform.config.errors import UserError
from lpo_platform.diffusion import noise
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.random_weights import SD15, SD21, SDXL, RandomStableDiffusion, RandomStableDiffusionXL, Shape
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.models.shared_encoder import conditions, decode, encode
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_xl import StableDiffusionXL, pack, unpack
from lpo_platform.models.tuning import Control, Full, Lora

PROMPTS = ["a red circle", "two small blue squares on a green ground"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.stable_diffusion_xl(tmp_path_factory.mktemp("xl"))


@pytest.fixture(scope="module")
def xl(folder: Path) -> StableDiffusionXL:
    return StableDiffusionXL(weights=str(folder), **toy.SETTINGS)


@pytest.fixture(scope="module")
def stock(folder: Path) -> StableDiffusionXLPipeline:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def test_packed_text_holds_both_and_gives_both_back() -> None:
    sequence, pooled = torch.randn(2, 5, 8), torch.randn(2, 3)
    text = pack(sequence, pooled)
    assert text.shape == (2, 6, 8) and not text[:, -1, 3:].any()
    for ours, given in zip(unpack(text, 3), (sequence, pooled), strict=True):
        assert torch.equal(ours, given)


@pytest.mark.parametrize("kind", ["sd21", "sdxl", "flux"])
def test_every_weight_of_the_text_encoder_that_learns_has_a_gradient(kind: str, tmp_path: Path) -> None:
    """And what has none is not trained: several processes would wait for its gradient."""
    if kind == "sdxl":
        model = StableDiffusionXL(weights=str(toy.stable_diffusion_xl(tmp_path)), **toy.SETTINGS)
    else:
        folder = flux.folder(tmp_path) if kind == "flux" else toy.stable_diffusion_21(tmp_path)
        model = flux.load(folder) if kind == "flux" else StableDiffusion(weights=str(folder), **toy.SETTINGS)
    encoder = Full(text_encoder=True).learns(model, None)["text_encoder"]
    text = model.embed(model.tokenize(PROMPTS))
    (text * torch.randn_like(text)).sum().backward()
    learns = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    reached = {name for name, weight in encoder.named_parameters() if weight.grad is not None}
    assert learns == reached and len(learns) > 5


@torch.no_grad()
def test_text_is_the_stock_pipelines(xl: StableDiffusionXL, stock: StableDiffusionXLPipeline) -> None:
    sequence, empty, pooled, empty_pooled = stock.encode_prompt(PROMPTS, do_classifier_free_guidance=True)
    torch.testing.assert_close(xl.embed(xl.tokenize(PROMPTS)), pack(sequence, pooled))
    assert torch.equal(xl.empty_text().expand(2, -1, -1), pack(empty, empty_pooled))


@torch.no_grad()
def test_the_sequence_is_what_goes_into_each_last_layer(xl: StableDiffusionXL) -> None:
    seen = []
    last = [xl.text_encoder.encoder.layers[-1], xl.text_encoder_2.text_model.encoder.layers[-1]]
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for layer in last]
    text = xl.embed(xl.tokenize(PROMPTS))
    for hook in hooks:
        hook.remove()
    assert torch.equal(text[:, :-1], torch.cat(seen, -1))


def test_tokenizers_pad_as_each_encoder_was_trained(xl: StableDiffusionXL) -> None:
    tokens = xl.tokenize(PROMPTS)
    assert tokens.shape == (2, 2, 24) and tokens.dtype == torch.int64
    assert (tokens[:, 0, -1] == xl.tokenizer.eos_token_id).all()
    assert (tokens[:, 1, -1] == xl.tokenizer_2.convert_tokens_to_ids("!")).all()
    assert torch.equal(tokens[0, 0, :4], tokens[0, 1, :4])


def test_the_schedule_is_stable_diffusions(xl: StableDiffusionXL, stock: StableDiffusionXLPipeline) -> None:
    """The folder names an Euler sampler; its schedule gives DDIM the timesteps 951, 901, ..., 1."""
    stock.scheduler.set_timesteps(20)
    assert xl.process.times(20).tolist() == stock.scheduler.timesteps.tolist() == list(range(951, 0, -50))
    assert xl.process.prediction == "epsilon" and xl.process.final == xl.process.alphas_cumprod[0]
    assert xl.process.alphas_cumprod[951].item() == pytest.approx(0.00815500, abs=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (10, 6)])
def test_xl_halves_are_the_whole(xl: StableDiffusionXL, stock: StableDiffusionXLPipeline, size: tuple) -> None:
    """Also for a picture that is not square, with the stock pipeline's own time_ids."""
    x, t = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0)), torch.tensor([951, 3])
    text = xl.embed(xl.tokenize(PROMPTS))
    sequence, pooled = unpack(text, 20)
    pixels = (8 * size[0], 8 * size[1])
    time_ids = stock._get_add_time_ids(pixels, (0, 0), pixels, torch.float32, text_encoder_projection_dim=20)
    added = {"text_embeds": pooled, "time_ids": time_ids.repeat(2, 1)}
    expected = stock.unet(x, t, sequence, added_cond_kwargs=added).sample
    torch.testing.assert_close(decode(xl.unet, encode(xl.unet, x, t, text)), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(conditions(xl.unet, x, text)[1]["time_ids"], added["time_ids"])


def test_rows_of_an_encoding_are_rows(xl: StableDiffusionXL) -> None:
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([951, 3]), xl.embed(xl.tokenize(PROMPTS))
    encoded, rows = encode(xl.unet, x, t, text), torch.tensor([1, 1, 0])
    both = decode(xl.unet, encoded)
    torch.testing.assert_close(decode(xl.unet, encoded[rows]), both[rows], atol=1e-5, rtol=1e-5)


def test_guided_pictures_are_the_stock_pipelines(xl: StableDiffusionXL, stock: StableDiffusionXLPipeline) -> None:
    policy = Policy(StableDiffusionXL(weights=xl.weights, **toy.SETTINGS), Lora())  # B = 0: the model itself
    adapter, ids = policy.adapter, ["one", "two"]
    condition = Condition(adapter.embed(adapter.tokenize(PROMPTS)).detach())
    latents = sample_latents(policy, condition, ids, Sampling(4, guidance=5.0), seed=3, stream="test")
    start = noise.normal(ids, adapter.latent_shape, seed=3, stream="test")
    options = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 64, "width": 64, "output_type": "pt"}
    expected = stock(PROMPTS, latents=start, **options).images
    torch.testing.assert_close(adapter.decode(latents), expected, atol=1e-3, rtol=0)
    weaker = sample_latents(policy, condition, ids, Sampling(4, guidance=2.0), seed=3, stream="test")
    assert (adapter.decode(weaker) - expected).abs().max() > 1e-2


@torch.no_grad()
def test_a_controlnet_of_xl_gets_the_same_conditions(folder: Path) -> None:
    xl = StableDiffusionXL(weights=str(folder), **toy.SETTINGS)
    control = xl.load_control("", "unet")
    for name, weight in control.named_parameters():
        if "controlnet_" in name:
            torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(0))
    x, t, image = torch.randn(2, 4, 8, 8), torch.tensor([951, 3]), torch.rand(2, 3, 64, 64)
    text = xl.embed(xl.tokenize(PROMPTS))
    sequence, pooled = unpack(text, 20)
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
    assert isinstance(control, ControlNetModel)
    down, middle = control(x, t, sequence, image, added_cond_kwargs=added, return_dict=False)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    expected = xl.unet(x, t, sequence, added_cond_kwargs=added, **residuals).sample
    predicted = Policy(xl, Control(), control).predict(x, t, Condition(text, image))
    torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=1e-5)


def test_another_autoencoder_takes_its_place(xl: StableDiffusionXL, tmp_path: Path) -> None:
    other = toy.vae()
    with torch.no_grad():
        other.decoder.conv_out.bias.fill_(0.25)
    other.save_pretrained(tmp_path / "parts" / "fixed")
    changed = StableDiffusionXL(weights=xl.weights, vae=f"{tmp_path}/parts::fixed", **toy.SETTINGS)
    assert (changed.vae.decoder.conv_out.bias == 0.25).all() and changed.fingerprint != xl.fingerprint
    assert torch.equal(changed.unet.conv_in.weight, xl.unet.conv_in.weight)
    with pytest.raises(UserError, match=r"^model\.vae=/no/such/vae: no such folder$"):
        StableDiffusionXL(weights=xl.weights, vae="/no/such/vae", **toy.SETTINGS)


@torch.no_grad()
def test_21_draws_the_stock_pipelines_noise(tmp_path: Path) -> None:
    """Linear projections and a list of heads, as in SD-2.1."""
    sd = StableDiffusion(weights=str(toy.stable_diffusion_21(tmp_path)), **toy.SETTINGS)
    x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([951, 3])
    text = sd.embed(sd.tokenize(PROMPTS))
    assert torch.equal(decode(sd.unet, encode(sd.unet, x, t, text)), sd.unet(x, t, text).sample)
    assert torch.equal(sd.empty_text(), sd.embed(sd.tokenize([""])))
    assert sd.process.times(20).tolist() == list(range(951, 0, -50))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "unet", "texts", "rank", "size", "tensors"),
    [
        (SD15, 859.5, [123.1], 4, 797_184, 256),
        (SD21, 865.9, [340.4], 4, 829_952, 256),
        (SDXL, 2567.5, [123.1, 694.7], 64, 92_897_280, 1120),
    ],
    ids=["sd15", "sd21", "sdxl"],
)
def test_published_sizes(shape: Shape, unet: float, texts: list[float], rank: int, size: int, tensors: int) -> None:
    """Parameters of the published models, counted without a byte of weights; 340.4 M is SD-2.1's own text."""
    kind = RandomStableDiffusionXL if shape is SDXL else RandomStableDiffusion
    model = kind(shape, device="meta")
    parts = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.unet, *model.text_encoders)]
    assert parts == pytest.approx([unet, *texts], abs=0.05)
    learning = Policy(model, Lora(rank=rank, alpha=rank)).trainable()
    assert (sum(p.numel() for p in learning.values()), len(learning)) == (size, tensors)
    assert "learning.unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.lora_A.default.weight" in learning
