"""Latent reward models on disk: the original's layout (Kwai-Kolors/LPO), ours, and what is refused."""

import copy
import json
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from toys import stable_diffusion as toy
from toys.instances import first

from lpo_platform.config.errors import UserError
from lpo_platform.diffusion import noise
from lpo_platform.models.latent_reward import UP, LatentReward
from lpo_platform.models.random_weights import SD15, SDXL, Shape, random_model
from lpo_platform.models.reward_folder import UNET_FILE, load_reward, save_reward
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_xl import StableDiffusionXL
from lpo_platform.rewards.lrm import LRM

PROMPTS = ["a red circle", "two small blue squares"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StableDiffusion]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "sd21": StableDiffusion(weights=str(toy.stable_diffusion_21(folder / "sd21")), **toy.SETTINGS),
        "sdxl": StableDiffusionXL(weights=str(toy.stable_diffusion_xl(folder / "xl")), **toy.SETTINGS),
    }


@pytest.fixture(params=["sd21", "sdxl"])
def adapter(request: pytest.FixtureRequest, adapters: dict[str, StableDiffusion]) -> StableDiffusion:
    return adapters[request.param]


def trained(adapter: StableDiffusion, **settings: object) -> LatentReward:
    """A model whose every weight has left its start, as training leaves it."""
    torch.manual_seed(1)
    model = LatentReward.start(adapter, **settings)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape)
    return model.eval()


@torch.no_grad()
def scores(adapter: StableDiffusion, model: LatentReward) -> torch.Tensor:
    x = noise.normal(range(2), adapter.latent_shape, seed=0, stream="test")
    return model(x, torch.tensor([951, 1]), model.encode(adapter.tokenize(PROMPTS)))


def original(
    adapter: StableDiffusion, model: LatentReward, folder: Path, *, logit_scale: object, dtype=torch.float32
) -> Path:
    """The folder as the original's trainer writes it: whole UNet, text encoders, one pickle of the projections."""
    whole = copy.deepcopy(adapter.unet).to(memory_format=torch.contiguous_format)
    missing, unknown = whole.load_state_dict(model.unet.state_dict(), strict=False)
    assert not unknown and all(name.startswith(UP) for name in missing)
    whole.to(dtype).save_pretrained(folder / "unet")
    for encoder, name in zip(model.text_encoders, ("text_encoder", "text_encoder_2"), strict=False):
        copy.deepcopy(encoder).to(dtype).save_pretrained(folder / name)
    state = {"visual_projection": OrderedDict(copy.deepcopy(model.visual_projection).to(dtype).state_dict())}
    if model.text_projection is not None:
        state["text_projection"] = OrderedDict(copy.deepcopy(model.text_projection).to(dtype).state_dict())
    torch.save(state | {"logit_scale": logit_scale}, folder / "state_dict.pt")
    return folder


@pytest.mark.parametrize(
    "settings",
    first([{}, {"guidance": 3.0, "multi_scale": False}, {"multi_scale_guidance": True, "guidance": 2.0}], keep=1),
)
def test_what_is_saved_comes_back(adapter: StableDiffusion, tmp_path: Path, settings: dict[str, object]) -> None:
    model = trained(adapter, **settings)
    save_reward(model, tmp_path / "reward", adapter.unet)
    loaded = load_reward(adapter, str(tmp_path / "reward"))
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {name: getattr(loaded, name) for name in settings} == settings
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(scores(adapter, loaded), scores(adapter, model))
    if not settings:
        assert load_reward(adapter, str(tmp_path / "reward"), guidance=1.0).guidance == 1.0


def test_a_trained_model_by_its_class(tmp_path: Path) -> None:
    tiny = LatentReward.from_pretrained("tiny/lrm", "tiny")
    same = load_reward(StableDiffusion.from_pretrained("tiny"), "auto")
    assert all(torch.equal(value, tiny.state_dict()[name]) for name, value in same.state_dict().items())
    assert LatentReward.from_pretrained("tiny/lrm", "tiny", guidance=1.0).guidance == 1.0
    with pytest.raises(UserError, match="model=tinyy: no such option; did you mean 'tiny'"):
        LatentReward.from_pretrained(str(tmp_path), "tinyy")


def test_our_folder_has_the_originals_layout(adapter: StableDiffusion, tmp_path: Path) -> None:
    model = trained(adapter)
    save_reward(model, tmp_path, adapter.unet)
    two = ["text_encoder_2"] if len(adapter.text_encoders) == 2 else []
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == sorted(["unet", "text_encoder", *two, "state_dict.pt", "reward.safetensors", "reward.json"])
    stored = torch.load(tmp_path / "state_dict.pt", weights_only=True)
    assert set(stored) == {"visual_projection", "logit_scale", *([] if two else ["text_projection"])}
    assert stored["visual_projection"].keys() == {"weight"} and isinstance(stored["logit_scale"], float)
    linear = nn.Linear(*reversed(stored["visual_projection"]["weight"].shape), bias=False)
    linear.load_state_dict(stored["visual_projection"])  # what the original's loader does
    assert torch.equal(linear.weight, model.visual_projection.weight)


def test_stock_diffusers_opens_the_unet_with_the_bases_up_blocks(adapter: StableDiffusion, tmp_path: Path) -> None:
    model = trained(adapter)
    save_reward(model, tmp_path, adapter.unet)
    stock, report = UNet2DConditionModel.from_pretrained(tmp_path / "unet", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    learned, base = model.unet.state_dict(), adapter.unet.state_dict()
    for name, weight in stock.state_dict().items():
        assert torch.equal(weight, base[name] if name.startswith(UP) else learned[name])
    assert not torch.equal(stock.conv_in.weight, adapter.unet.conv_in.weight)


def test_our_pickle_alone_gives_the_same_model(adapter: StableDiffusion, tmp_path: Path) -> None:
    """reward.safetensors is read first; without it the pickle gives the same model."""
    model = trained(adapter)
    save_reward(model, tmp_path, adapter.unet)
    (tmp_path / "reward.safetensors").unlink()
    (tmp_path / "reward.json").unlink()
    torch.testing.assert_close(scores(adapter, load_reward(adapter, str(tmp_path))), scores(adapter, model))


@pytest.mark.parametrize("kind", first(["float", "tensor", "parameter"], keep=1))
def test_a_folder_of_the_original_loads(adapter: StableDiffusion, tmp_path: Path, kind: str) -> None:
    model = trained(adapter)
    value = model.logit_scale.detach().clone()
    scale = {"float": value.item(), "tensor": value, "parameter": nn.Parameter(value)}[kind]
    loaded = load_reward(adapter, str(original(adapter, model, tmp_path, logit_scale=scale)))
    assert (loaded.guidance, loaded.multi_scale, loaded.multi_scale_guidance) == (7.5, True, False)
    torch.testing.assert_close(scores(adapter, loaded), scores(adapter, model))


def test_bf16_weights_are_computed_with_in_float32(adapter: StableDiffusion, tmp_path: Path) -> None:
    model = trained(adapter)
    scale = model.logit_scale.detach().bfloat16()
    loaded = load_reward(adapter, str(original(adapter, model, tmp_path, logit_scale=scale, dtype=torch.bfloat16)))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name].bfloat16().float()), name
    model.load_state_dict({name: weight.bfloat16().float() for name, weight in model.state_dict().items()})
    torch.testing.assert_close(scores(adapter, loaded), scores(adapter, model))


def test_up_blocks_are_not_read(adapter: StableDiffusion, tmp_path: Path) -> None:
    """A folder whose up path has been made nonsense loads as well, and one without it, too."""
    model = trained(adapter)
    save_reward(model, tmp_path, adapter.unet)
    file = tmp_path / "unet" / UNET_FILE
    state = load_file(file)
    assert any(name.startswith(UP) for name in state)
    save_file({name: torch.zeros(1) if name.startswith(UP) else value for name, value in state.items()}, file)
    torch.testing.assert_close(scores(adapter, load_reward(adapter, str(tmp_path))), scores(adapter, model))
    save_reward(model, tmp_path / "half")
    torch.testing.assert_close(scores(adapter, load_reward(adapter, str(tmp_path / "half"))), scores(adapter, model))


def test_a_unet_in_several_files_loads(adapter: StableDiffusion, tmp_path: Path) -> None:
    model = trained(adapter)
    original(adapter, model, tmp_path, logit_scale=model.logit_scale.item())
    whole = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    shutil.rmtree(tmp_path / "unet")
    whole.save_pretrained(tmp_path / "unet", max_shard_size="200KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 1
    torch.testing.assert_close(scores(adapter, load_reward(adapter, str(tmp_path))), scores(adapter, model))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [SD15, SDXL])
def test_names_at_full_size(shape: Shape) -> None:
    """What is stored under unet/ is a whole stock UNet, and the head's names and shapes are the original's."""
    adapter = random_model(shape, device="meta")
    model = LatentReward.start(adapter)
    up = {name for name in adapter.unet.state_dict() if name.startswith(UP)}
    assert set(model.unet.state_dict()) | up == set(adapter.unet.state_dict())
    head = {n: tuple(w.shape) for n, w in model.state_dict().items() if not n.startswith(("unet.", "text_encoders."))}
    expected = {"visual_projection.weight": (1280, 3520) if shape is SDXL else (768, 4800), "logit_scale": ()}
    assert head == expected | ({} if shape is SDXL else {"text_projection.weight": (768, 768)})
    kinds = [type(encoder).__name__ for encoder in model.text_encoders]
    assert kinds == ["CLIPTextModel", "CLIPTextModelWithProjection"][: len(kinds)]


def test_a_loaded_reward_scores_each_latent_for_its_prompt(adapter: StableDiffusion, tmp_path: Path) -> None:
    """In pieces of any size, with prompts in any order."""
    model = trained(adapter)
    save_reward(model, tmp_path)
    x = noise.normal(range(5), adapter.latent_shape, seed=0, stream="test")
    t, prompt = torch.tensor([951, 1, 451, 1, 1]), torch.tensor([1, 0, 0, 1, 1])
    found = {}
    for batch in (256, 2):
        reward = LRM(adapter=adapter, weights=str(tmp_path), batch=batch)
        found[batch] = reward(x, t, reward.encode(PROMPTS), prompt)
    torch.testing.assert_close(found[2], found[256], atol=1e-4, rtol=1e-4)
    for i in range(5):
        with torch.no_grad():
            text = model.encode(adapter.tokenize([PROMPTS[prompt[i]]]))
            alone = model(x[i : i + 1], t[i : i + 1], text)
        torch.testing.assert_close(found[2][i : i + 1], alone, atol=1e-4, rtol=1e-4)
    assert not found[2].requires_grad


# What is refused.


def refused(adapter: StableDiffusion, folder: Path | str, **settings: object) -> str:
    with pytest.raises(UserError) as found:
        load_reward(adapter, str(folder), **settings)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_no_folder(adapter: StableDiffusion, tmp_path: Path) -> None:
    assert f"weights={tmp_path}/none: no latent reward model there" in refused(adapter, tmp_path / "none")
    assert "no latent reward model there (a folder with unet/" in refused(adapter, tmp_path)
    (tmp_path / "a").mkdir()
    assert "no latent reward model there" in refused(adapter, f"{tmp_path}::a")


def test_a_hub_id_without_network_says_what_to_do(adapter: StableDiffusion) -> None:
    message = refused(adapter, "somebody/lrm::sd15")
    assert message.startswith("weights=somebody/lrm::sd15: no such folder, and the hub does not give it")


def test_auto_without_a_published_model(adapter: StableDiffusion) -> None:
    message = refused(adapter, "auto")
    assert "model=toy names no latent reward model" in message and "lpo-train method=lrm model=toy" in message


def test_another_kind_of_model(adapters: dict[str, StableDiffusion], tmp_path: Path) -> None:
    save_reward(trained(adapters["sd21"]), tmp_path)
    assert "made for another kind of model than model=toy" in refused(adapters["sdxl"], tmp_path)


def test_a_subfolder(adapters: dict[str, StableDiffusion], tmp_path: Path) -> None:
    adapter = adapters["sd21"]
    model = trained(adapter)
    save_reward(model, tmp_path / "lrm_sd15")
    torch.testing.assert_close(scores(adapter, load_reward(adapter, f"{tmp_path}::lrm_sd15")), scores(adapter, model))


def test_other_scales_than_it_was_trained_with(adapters: dict[str, StableDiffusion], tmp_path: Path) -> None:
    save_reward(trained(adapters["sd21"]), tmp_path)
    message = refused(adapters["sd21"], tmp_path, multi_scale=False)
    assert "visual_projection is (32, 80), multi_scale=False makes it (32, 32)" in message


@pytest.mark.parametrize(
    "broken",
    [
        "no head",
        "half a head",
        "no scale",
        "torn pickle",
        "no unet",
        "no config",
        "torn unet",
        "part of a unet",
        "no encoder",
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(
    adapters: dict[str, StableDiffusion], tmp_path: Path, broken: str
) -> None:
    adapter = adapters["sd21"]
    model = trained(adapter)
    original(adapter, model, tmp_path, logit_scale=2.0)
    pickle, unet = tmp_path / "state_dict.pt", next((tmp_path / "unet").glob("*.safetensors"))
    if broken == "no head":
        pickle.unlink()
    elif broken in ("half a head", "no scale"):
        stored = torch.load(pickle, weights_only=True)
        del stored["visual_projection" if broken == "half a head" else "logit_scale"]
        torch.save(stored, pickle)
    elif broken == "torn pickle":
        pickle.write_bytes(pickle.read_bytes()[:100])
    elif broken == "no unet":
        unet.unlink()
    elif broken == "no config":
        (tmp_path / "unet" / "config.json").unlink()
    elif broken == "torn unet":
        unet.write_bytes(unet.read_bytes()[:1000])
    elif broken == "part of a unet":
        state = load_file(unet)
        del state["conv_in.weight"]
        save_file(state, unet)
    else:
        shutil.rmtree(tmp_path / "text_encoder")
    message = refused(adapter, tmp_path)
    assert str(tmp_path) in message


def test_a_pickle_that_runs_code_is_not_opened(adapters: dict[str, StableDiffusion], tmp_path: Path) -> None:
    adapter = adapters["sd21"]

    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    original(adapter, trained(adapter), tmp_path, logit_scale=Attack())
    refused(adapter, tmp_path)
    assert not (tmp_path / "run").exists()


def test_settings_are_plain_json(adapters: dict[str, StableDiffusion], tmp_path: Path) -> None:
    save_reward(trained(adapters["sd21"], guidance=2.0), tmp_path)
    stored = json.loads((tmp_path / "reward.json").read_text())
    assert stored == {"guidance": 2.0, "multi_scale": True, "multi_scale_guidance": False}
