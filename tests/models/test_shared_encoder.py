"""The UNet in two halves is the UNet; sharing the first half changes no loss and no gradient."""

import pytest
import torch
from toys import size as toy_size
from toys.instances import first

from lpo_platform.models.shared_encoder import decode, encode


@pytest.mark.parametrize("size", [8, 6, 7])
def test_halves_are_the_whole(size: int) -> None:
    """Also where the latent size is not a multiple of the down-sampling and diffusers resizes on the way up."""
    unet = toy_size.unet()
    x, t, text, _ = toy_size.inputs(size=size)
    with torch.no_grad():
        expected = unet(x, t, text).sample
        assert torch.equal(decode(unet, encode(unet, x, t, text)), expected)


def test_residuals_enter_where_diffusers_adds_them() -> None:
    unet = toy_size.unet()
    control = toy_size.controlnet(unet)
    x, t, text, image = toy_size.inputs()
    with torch.no_grad():
        down, middle = control(x, t, text, image, return_dict=False)
        whole = unet(x, t, text, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
        assert torch.equal(decode(unet, encode(unet, x, t, text), (down, middle)), whole)
        assert not torch.allclose(whole, unet(x, t, text).sample)


def test_one_encoder_pass_for_winner_and_loser() -> None:
    unet = toy_size.unet().requires_grad_(False)
    control = toy_size.controlnet(unet)
    x, t, text, winner = toy_size.inputs()
    loser = winner.flip(-1)

    def gradient(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        loss = outputs[0].square().mean() - outputs[1].square().mean()
        return torch.autograd.grad(loss, list(control.parameters()))

    plain = []
    for image in (winner, loser):
        down, middle = control(x, t, text, image, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        plain.append(unet(x, t, text, **residuals).sample)
    with torch.no_grad():
        encoded = encode(unet, x, t, text)
    rows = torch.tensor([0, 1, 0, 1])
    both = encoded[rows]
    residuals = control(both.x, both.t, both.text, torch.cat([winner, loser]), return_dict=False)
    shared = list(decode(unet, both, residuals).chunk(2))
    for ours, theirs in zip(shared, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for ours, theirs in zip(gradient(shared), gradient(plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=0)


FIRST_BLOCKS = [
    {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D")},
    {"down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "use_linear_projection": True},
    {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "transformer_layers_per_block": 2},
    {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")},
    {"down_block_types": ("DownBlock2D", "DownBlock2D")},
]


@pytest.mark.parametrize("changes", first(FIRST_BLOCKS, keep=2))
@pytest.mark.parametrize("closed", [None, "checkpointed", "sharded"])
def test_rows_that_differ_in_their_text_alone_share_what_precedes_it(changes: dict, closed: str | None) -> None:
    """Against the stock UNet on all rows: output and gradient; and what is shared is computed on fewer rows, a first
    attention block's parts only where they may be called apart."""
    unet = toy_size.unet(layers_per_block=2, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **changes)
    if closed == "checkpointed":
        unet.enable_gradient_checkpointing()
    if closed == "sharded":
        first = unet.down_blocks[0]
        first.__class__ = type("FSDP", (type(first),), {})  # as fully_shard does
    x, t, text, _ = toy_size.inputs(batch=4)
    x, t = x[:2], t[:2]
    rows = []
    unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))

    def gradient(output: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad(output.square().mean(), list(unet.parameters()), allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    shared = decode(unet, encode(unet, x, t, text))
    stock = unet(x.repeat(2, 1, 1, 1), t.repeat(2), text).sample
    torch.testing.assert_close(shared, stock, atol=1e-5, rtol=1e-5)
    ours, theirs = gradient(shared), gradient(stock)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    inside = changes["down_block_types"][0] == "CrossAttnDownBlock2D"
    assert rows[:2] == [4 if inside and closed else 2, 4]
