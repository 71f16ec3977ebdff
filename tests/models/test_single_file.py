"""Stable Diffusion 3 from one file in Stability AI's names: the folder that it was made of, and stock loading."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import save_file
from toys import sd3 as toy
from transformers import CLIPTextModelWithProjection

from lpo_platform.commands.weights import setting_of
from lpo_platform.config.errors import UserError
from lpo_platform.models.single_file import SingleFile
from lpo_platform.models.stable_diffusion_3 import StableDiffusion3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.folder(tmp_path_factory.mktemp("sd3"))


def equal(one: StableDiffusion3, other: StableDiffusion3) -> bool:
    """Whether all weights are the same, bit for bit."""
    pairs = [(a.state_dict(), b.state_dict()) for a, b in zip(one.parts, other.parts, strict=True)]
    return len(pairs) == 5 and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


@pytest.mark.parametrize("texts", [True, False], ids=["with text encoders", "without"])
def test_a_file_is_the_folder_that_it_was_made_of(folder: Path, texts: bool, tmp_path: Path) -> None:
    """Text encoders that are not in the file are those of the folder with the configurations."""
    place = tmp_path / "model.safetensors"
    save_file(toy.single_file(folder, texts=texts), place)
    ours, same = toy.load(place, config=str(folder)), toy.load(folder)
    assert equal(ours, same) and ours.fingerprint != same.fingerprint and setting_of(str(place)) == "model.weights"
    stock = StableDiffusion3Pipeline.from_single_file(
        str(place), config=str(folder), local_files_only=True, text_encoder=ours.clip, text_encoder_2=ours.clip_2,
        text_encoder_3=ours.text_encoder,
    )  # fmt: skip
    for own, theirs in ((ours.unet, stock.transformer), (ours.vae, stock.vae)):
        torch.testing.assert_close(own.state_dict(), theirs.state_dict(), atol=0, rtol=0)


def test_a_file_with_t5_in_eight_bits(folder: Path, tmp_path: Path) -> None:
    """As Stability AI publishes it; a first CLIP without a projection has the identity, as in diffusers."""
    state = toy.single_file(folder)
    names = [name for name in state if name.startswith("text_encoders.t5xxl.")]
    state |= {name: state[name].to(torch.float8_e4m3fn) for name in names}
    save_file(state, tmp_path / "eight.safetensors")
    t5 = toy.load(tmp_path / "eight.safetensors", config=str(folder)).text_encoder
    assert t5.shared.weight.dtype == torch.float32 and t5.encoder.embed_tokens.weight is t5.shared.weight
    expected = state["text_encoders.t5xxl.transformer.shared.weight"].float()
    torch.testing.assert_close(t5.shared.weight.detach(), expected, atol=0, rtol=0)
    config = toy.toy.text_config(toy.toy.tokenizer(), 24, projection_dim=24).to_dict()
    del state["text_encoders.clip_l.transformer.text_projection.weight"]
    save_file(state, tmp_path / "plain.safetensors")
    clip = SingleFile(tmp_path / "plain.safetensors", "weights").part(
        CLIPTextModelWithProjection, "text_encoder", config
    )
    assert torch.equal(clip.text_projection.weight, torch.eye(24))


def test_a_file_that_is_not_of_this_model_is_named(folder: Path, tmp_path: Path) -> None:
    state = toy.single_file(folder)

    def said(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, tmp_path / "wrong.safetensors")
        with pytest.raises(UserError) as error:
            toy.load(tmp_path / "wrong.safetensors", config=str(folder))
        return str(error.value)

    deeper = {name.replace("joint_blocks.2.", "joint_blocks.3."): value for name, value in state.items()}
    assert "holds no transformer of this kind" in said(deeper)
    unet = {"model.diffusion_model.out.2.weight": torch.zeros(2)}
    assert "holds no transformer of this kind" in said(unet)
    clip = "text_encoders.clip_g.transformer.text_model.final_layer_norm.bias"
    assert "missing: text_model.final_layer_norm.bias" in said({k: v for k, v in state.items() if k != clip})
    with pytest.raises(UserError, match=r"no tokenizer; add model\.config="):
        toy.load(tmp_path / "wrong.safetensors")
