"""Loading: the embedded model, SD-1.5's shapes on the meta device, and one clear message where there are no weights."""

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from lpo_platform.config.errors import UserError
from lpo_platform.models.control import ControlNet
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.weights import digest

SETTINGS = {"name": "tiny", "resolution": 64, "guidance": 1.0, "num_inference_steps": 10}
SD15 = {"cross_attention_dim": 768, "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8}


@pytest.fixture(scope="module")
def tiny() -> StableDiffusion:
    return StableDiffusion(weights="tiny", controls={"canny": "tiny/controlnet_canny"}, **SETTINGS)


def test_embedded_model_is_frozen_float32(tiny: StableDiffusion) -> None:
    for part in tiny.parts:
        assert not part.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in part.parameters())
    assert tiny.latent_shape == (4, 16, 16)


def test_moments_and_decoding_are_the_autoencoders(tiny: StableDiffusion) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    posterior = tiny.vae.encode(2 * pixels - 1).latent_dist
    moments = tiny.encode_moments(pixels)
    torch.testing.assert_close(moments, torch.cat([posterior.mean, posterior.logvar], 1))
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    latents = tiny.sample_latents(moments, noise)
    expected = (posterior.mean + posterior.std * noise) * tiny.vae.config.scaling_factor
    torch.testing.assert_close(latents, expected)
    decoded = tiny.decode(latents)
    assert decoded.shape == pixels.shape and decoded.min() >= 0 and decoded.max() <= 1


def test_any_prompt_tokenises(tiny: StableDiffusion) -> None:
    tokens = tiny.tokenize(["a red circle", "", "Zażółć 火 \N{FIRE}", "word " * 500])
    assert tokens.shape == (4, 24) and tokens.max() < tiny.text_encoder.config.vocab_size
    assert tiny.embed(tokens).shape == (4, 24, 64)


def test_a_new_controlnet_changes_nothing_until_it_learns(tiny: StableDiffusion) -> None:
    control = tiny.load_control("canny", "unet")
    x, t = torch.randn(1, 4, 16, 16), torch.tensor([5])
    down, middle = control(x, t, torch.randn(1, 24, 64), torch.rand(1, 3, 64, 64), return_dict=False)
    assert not any(part.any() for part in (*down, middle))


@pytest.mark.parametrize("weights", ["/no/such/folder", "nobody/nothing"])
def test_missing_weights_are_one_message(weights: str) -> None:
    with pytest.raises(UserError) as caught:
        StableDiffusion(weights=weights, **SETTINGS)
    assert f"model.weights={weights}" in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_starting_controlnet_names_the_ways_out(tiny: StableDiffusion) -> None:
    with pytest.raises(UserError, match=r"task=depth \(it has: canny\).*control.weights=unet"):
        tiny.load_control("depth", "auto")


def test_cache_keys_follow_the_weights(tiny: StableDiffusion, tmp_path) -> None:
    tiny.unet.save_pretrained(tmp_path / "unet")
    before = digest(str(tmp_path / "unet"))
    with torch.no_grad():
        tiny.unet.conv_in.bias[0] += 1
        tiny.unet.save_pretrained(tmp_path / "unet")
        tiny.unet.conv_in.bias[0] -= 1
    assert digest(str(tmp_path / "unet")) != before
    assert ControlNet().digest(tiny, "canny") != ControlNet("unet").digest(tiny, "canny")


def test_sd15_has_the_published_size() -> None:
    """859.5 M in the UNet, 361.3 M in its ControlNet, counted without a byte of weights."""
    with torch.device("meta"):
        unet, control = UNet2DConditionModel(**SD15), ControlNetModel(**SD15)
    millions = [sum(p.numel() for p in model.parameters()) / 1e6 for model in (unet, control)]
    assert millions == pytest.approx([859.52, 361.28], abs=0.01)
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert {attention, "mid_block.resnets.0.conv1.weight"} <= set(unet.state_dict())
    assert len([name for name in control.state_dict() if name.startswith("controlnet_down_blocks.")]) == 24
