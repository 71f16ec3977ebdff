"""The step-aware preference model: PickScore at its start, then a time-conditioned CLIP written out by hand."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from toys import rewards as toy_rewards

from lpo_platform.config.errors import UserError
from lpo_platform.rewards.pickscore import PickScore
from lpo_platform.rewards.reward import PredictionReward, predicted
from lpo_platform.rewards.spm import SPM

PROMPTS = ["a red cat", "a blue dog on a red cat", "a red cat"]
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(toy_rewards.clip(tmp_path_factory.mktemp("clip"), width=24))


@pytest.fixture(scope="module")
def loud(clip: str) -> dict[str, Tensor]:
    """State of a trained one, in the names of the published file: every modulation away from where it starts."""
    state = {f"model.{name}": value for name, value in SPM(None, clip, clip).model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for name, value in state.items():
        if "adaLN" in name or "t_embedder" in name:
            value += 0.1 * torch.randn(value.shape, generator=generator)
    return state | {"model.vision_model.embeddings.position_ids": torch.arange(50)[None]}


def pictures(side: int = 224) -> Tensor:
    """8-bit values, so that nothing is lost where a reward rounds."""
    coarse = torch.rand(3, 3, 9, 9, generator=torch.Generator().manual_seed(5))
    return F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1).mul(255).round() / 255


def test_an_untrained_one_is_pickscore_at_any_time(clip: str) -> None:
    spm, pickscore = SPM(None, clip, clip, batch=2), PickScore(clip, clip)
    expected = pickscore(pictures(), PROMPTS)
    assert expected.std() > 0.01
    for t in (torch.zeros(3), torch.tensor([1, 401, 951])):
        torch.testing.assert_close(spm.at(pictures(), PROMPTS, t), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(spm(pictures(), PROMPTS), expected, rtol=1e-5, atol=1e-5)
    assert all(not weight.requires_grad for weight in spm.parameters())


def by_hand(state: dict[str, Tensor], images: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """spec 7.1 on a ViT of 2 heads: every layer x + gate f(LN(x) (1 + scale) + shift), for attention and MLP."""
    s = {name.removeprefix("model."): value for name, value in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], 1e-5)

    frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angles = t[:, None].float() * frequencies
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))))
    v = "vision_model"
    patches = F.conv2d(images, s[f"{v}.embeddings.patch_embedding.weight"], stride=32).flatten(2).transpose(1, 2)
    x = torch.cat([s[f"{v}.embeddings.class_embedding"].expand(len(images), 1, -1), patches], 1)
    x = norm(f"{v}.pre_layrnorm", x + s[f"{v}.embeddings.position_embedding.weight"])
    for i in range(2):
        layer = f"{v}.encoder.layers.{i}"
        six = linear(f"{layer}.adaLN_modulation.1", F.silu(time)).view(len(t), 6, 1, -1)
        hidden = norm(f"{layer}.layer_norm1", x) * (1 + six[:, 1]) + six[:, 0]
        q, k, value = (
            linear(f"{layer}.self_attn.{n}_proj", hidden).unflatten(2, (2, 16)).transpose(1, 2) for n in "qkv"
        )
        mixed = torch.softmax(q @ k.transpose(2, 3) / 4, -1) @ value
        x = x + six[:, 2] * linear(f"{layer}.self_attn.out_proj", mixed.transpose(1, 2).flatten(2))
        hidden = norm(f"{layer}.layer_norm2", x) * (1 + six[:, 4]) + six[:, 3]
        hidden = linear(f"{layer}.mlp.fc1", hidden)
        x = x + six[:, 5] * linear(f"{layer}.mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))
    two = linear(f"{v}.adaLN_modulation.1", F.silu(time)).view(len(t), 2, -1)
    pooled = norm(f"{v}.post_layernorm", x[:, 0]) * (1 + two[:, 1]) + two[:, 0]
    return s["logit_scale"].exp() * F.cosine_similarity(linear("visual_projection", pooled), text)


@pytest.mark.parametrize("kind", ["file", "safetensors", "folder"])
def test_a_trained_one_by_hand(kind: str, clip: str, loud: dict[str, Tensor], tmp_path: Path) -> None:
    if kind == "file":
        torch.save(loud, tmp_path / "spm.bin")
    elif kind == "safetensors":
        save_file(loud, tmp_path / "spm.safetensors")
    else:
        torch.save({name.removeprefix("model."): value for name, value in loud.items()}, tmp_path / NAME)
    places = {"file": "spm.bin", "safetensors": "spm.safetensors", "folder": ""}
    spm = SPM(str(tmp_path / places[kind]), clip, clip, batch=2)
    t = torch.tensor([0, 251, 951])
    with torch.no_grad():
        text = spm.model.get_text_features(**spm._tokens(PROMPTS)).pooler_output
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    expected = by_hand(loud, (pictures() - mean) / std, t, text)
    found = spm.at(pictures(), PROMPTS, t)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - spm.at(pictures(), PROMPTS, t.flip(0))).abs().max() > 0.01
    assert isinstance(spm, PredictionReward) and torch.equal(predicted(spm, pictures(), PROMPTS, t), found)


NAME = "pytorch_model.bin"


def test_pictures_become_224_pixels_as_in_its_training(clip: str) -> None:
    """Shorter side to 224 by bicubic without antialiasing, then the central square and both limits."""
    spm = SPM(None, clip, clip)
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    found = spm._resized(images)[0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    large = F.interpolate(2 * images - 1, (224, 336), mode="bicubic", align_corners=False)[0, :, :, 56:280]
    torch.testing.assert_close(found, (large / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-5)


def test_other_weights_are_refused_in_one_line(clip: str, loud: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file, nor a folder with model.safetensors or pytorch_model.bin"):
        SPM(str(tmp_path / "nothing.bin"), clip, clip)
    plain = {name: value for name, value in loud.items() if "adaLN" not in name}
    torch.save(plain, tmp_path / "plain.bin")
    with pytest.raises(UserError, match=r"not the weights of a step-aware preference model: no .*adaLN_modulation"):
        SPM(str(tmp_path / "plain.bin"), clip, clip)
    (tmp_path / "text.bin").write_text("not a pickle")
    with pytest.raises(UserError, match=r"not the weights of a step-aware preference model\. Reason: "):
        SPM(str(tmp_path / "text.bin"), clip, clip)
    torch.save([1, 2], tmp_path / "list.bin")
    with pytest.raises(UserError, match=r"not the weights of a step-aware preference model\. Reason: "):
        SPM(str(tmp_path / "list.bin"), clip, clip)
