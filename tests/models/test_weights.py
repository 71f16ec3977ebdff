"""Weights that are missing, of another shape, unknown or not finite are one error that names them, for every part."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from toys import sd3 as toy_sd3
from toys import stable_diffusion as toy
from transformers import Dinov2Model

from lpo_platform.config.errors import UserError
from lpo_platform.models.control import ControlNet, ControlNetDino
from lpo_platform.models.controlnet_dino import config_of
from lpo_platform.models.flux import Flux
from lpo_platform.models.hub import look
from lpo_platform.models.reward_folder import load_reward, read_text_projection
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.stable_diffusion_xl import StableDiffusionXL
from lpo_platform.models.weights import ASSETS, check_finite, listed
from lpo_platform.tasks.detector import from_file

State = dict[str, Tensor]
SETTINGS = {"name": "tiny", "resolution": 64, "guidance": 1.0, "num_inference_steps": 10}
ELSEWHERE = {"vae": "tiny::vae", "text_encoder": "tiny::text_encoder", "tokenizer": "tiny::tokenizer"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    made = {"xl": toy.stable_diffusion_xl(root / "xl"), "sd3": toy_sd3.folder(root / "sd3")}
    return {"tiny": ASSETS / "tiny", "flux": ASSETS / "tiny_flux"} | made


def stable_diffusion(folder: Path) -> object:
    return StableDiffusion(**SETTINGS, weights=str(folder))


def control(folder: Path) -> object:
    return ControlNet(str(folder / "controlnet_canny")).load(StableDiffusion(**SETTINGS, weights="tiny"), "canny")


def reward(folder: Path) -> object:
    return load_reward(StableDiffusion(**SETTINGS, weights="tiny"), str(folder / "lrm"))


def xl(folder: Path) -> object:
    return StableDiffusionXL(**toy.SETTINGS, weights=str(folder))


def flux(folder: Path) -> object:
    return Flux(**SETTINGS, weights=str(folder), max_tokens=16, **ELSEWHERE)


PARTS: dict[str, tuple[str, str, Callable[[Path], object], str]] = {
    "unet": ("tiny", "unet", stable_diffusion, "conv_in.weight"),
    "vae": ("tiny", "vae", stable_diffusion, "decoder.conv_in.weight"),
    "text_encoder": ("tiny", "text_encoder", stable_diffusion, "encoder.layers.1.mlp.fc1.weight"),
    "controlnet": ("tiny", "controlnet_canny", control, "controlnet_mid_block.weight"),
    "reward's unet": ("tiny", "lrm/unet", reward, "conv_in.weight"),
    "reward's text": ("tiny", "lrm/text_encoder", reward, "encoder.layers.1.mlp.fc1.weight"),
    "sdxl's second text encoder": ("xl", "text_encoder_2", xl, "text_projection.weight"),
    "transformer": ("flux", "transformer", flux, "x_embedder.weight"),
    "sd3's transformer": ("sd3", "transformer", toy_sd3.load, "pos_embed.proj.weight"),
    "sd3's text encoder": ("sd3", "text_encoder", toy_sd3.load, "text_projection.weight"),
    "sd3's T5": ("sd3", "text_encoder_3", toy_sd3.load, "encoder.block.0.layer.1.DenseReluDense.wo.weight"),
    "T5": ("flux", "text_encoder_2", flux, "encoder.block.0.layer.1.DenseReluDense.wo.weight"),
}


def spoiled(folder: Path, part: str, tensor: str, spoil: Callable[[State, str], object]) -> None:
    file = next((folder / part).glob("*.safetensors"))
    state = load_file(file)
    (name,) = [own for own in state if own.endswith(tensor)]
    spoil(state, name)
    save_file(state, file, {"format": "pt"})


def infinite(state: State, name: str) -> None:
    state[name].view(-1)[-1] = float("inf")


FAULTS: dict[str, tuple[Callable[[State, str], object], str]] = {
    "missing": (lambda state, name: state.pop(name), "missing"),
    "shape": (lambda state, name: state.update({name: torch.zeros(3, 5)}), r"shape|size mismatch"),
    "not finite": (infinite, "not finite"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("part", PARTS)
def test_a_fault_is_one_error_that_names_the_tensor(
    part: str, fault: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    source, subfolder, load, tensor = PARTS[part]
    folder, (spoil, message) = shutil.copytree(folders[source], tmp_path / "model"), FAULTS[fault]
    spoiled(folder, subfolder, tensor, spoil)
    with pytest.raises(UserError, match=rf"(?i)weights={tmp_path}.*({message})") as caught:
        load(folder)
    assert tensor in str(caught.value) and "\n" not in str(caught.value)


def test_tensors_that_a_denoiser_does_not_have_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    """Such as those of a UNet that is told more than its configuration says."""
    folder = shutil.copytree(folders["tiny"], tmp_path / "model")
    extra = lambda state, name: state.update({"time_embedding.cond_proj.weight": state[name].clone()})  # noqa: E731
    spoiled(folder, "unet", "conv_in.weight", extra)
    with pytest.raises(UserError, match=r"1 is unknown to the model: time_embedding.cond_proj.weight"):
        stable_diffusion(folder)


def test_a_dino_with_gaps_is_refused(tmp_path: Path) -> None:
    Dinov2Model(config_of("tiny")).save_pretrained(tmp_path / "dino")
    file = tmp_path / "dino" / "model.safetensors"
    state = load_file(file)
    state.pop("layernorm.weight")
    save_file(state, file, {"format": "pt"})
    dino = ControlNetDino(dino=str(tmp_path / "dino"))
    with pytest.raises(UserError, match=r"control\.dino=.*1 is missing: layernorm\.weight"):
        dino.load(StableDiffusion(**SETTINGS, weights="tiny", controls={"canny": "tiny/controlnet_canny"}), "canny")


def test_a_text_projection_with_gaps_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["xl"] / "text_encoder_2", tmp_path / "clip")
    spoiled(folder, "", "text_projection.weight", lambda state, name: state.pop(name))
    with pytest.raises(UserError, match=r"tune\.text_projection=.*1 is missing: text_projection\.weight"):
        read_text_projection(str(folder))


def test_weights_in_a_plain_file_that_are_not_finite_are_named(tmp_path: Path) -> None:
    state = nn.Linear(2, 3).state_dict()
    state["bias"][1] = float("nan")
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"weights\.safetensors: of its tensors 1 is not finite: bias"):
        from_file(lambda: nn.Linear(2, 3), str(tmp_path / "weights.safetensors"), pretrained=True)


def test_many_tensors_are_counted_and_the_first_ones_named() -> None:
    assert listed({"missing": list("abcdef"), "not finite": ["x"], "of another shape": []}) == (
        "of its tensors 6 are missing: a, b, c, d and 2 more; 1 is not finite: x"
    )
    with pytest.raises(UserError, match="here: of its tensors 1 is not finite: x"):
        check_finite({"x": torch.tensor([1.0, float("nan")]), "n": torch.tensor([1]), "e": torch.empty(0)}, "here")


def test_whole_weights_load_without_a_word(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    for load, folder in ((stable_diffusion, "tiny"), (flux, "flux"), (xl, "xl"), (control, "tiny"), (reward, "tiny")):
        load(folders[folder])
    assert not caplog.records


def as_variant(folder: Path, name: str) -> None:
    for file in [*folder.rglob("*.safetensors")]:
        half = {key: value.half() if value.is_floating_point() else value for key, value in load_file(file).items()}
        save_file(half, file.with_suffix(f".{name}.safetensors"), {"format": "pt"})


class TestVariants:
    def copy(self, folders: dict[str, Path], tmp_path: Path) -> Path:
        folder = tmp_path / "model"
        for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
            shutil.copytree(folders["tiny"] / part, folder / part)
        as_variant(folder, "fp16")
        return folder

    def test_the_only_variant_is_found(self, folders: dict[str, Path], tmp_path: Path) -> None:
        folder = self.copy(folders, tmp_path)
        for file in [f for f in folder.rglob("*.safetensors") if ".fp16." not in f.name]:
            file.unlink()
        found, plain = stable_diffusion(folder), stable_diffusion(folders["tiny"])
        assert all(weight.dtype == torch.float32 for part in found.parts for weight in part.parameters())
        for ours, theirs in zip(found.unet.parameters(), plain.unet.parameters(), strict=True):
            assert torch.equal(ours, theirs.half().float())

    def test_it_can_be_asked_for(self, folders: dict[str, Path], tmp_path: Path) -> None:
        folder = self.copy(folders, tmp_path)
        spoiled_file = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
        state = load_file(spoiled_file)
        state["conv_in.bias"].zero_()
        save_file(state, spoiled_file, {"format": "pt"})
        assert stable_diffusion(folder).unet.conv_in.bias.any()
        chosen = StableDiffusion(**SETTINGS, weights=str(folder), variant="fp16")
        assert not chosen.unet.conv_in.bias.any()
        assert chosen.fingerprint != stable_diffusion(folder).fingerprint

    def test_several_and_nothing_else_must_be_chosen_from(self, folders: dict[str, Path], tmp_path: Path) -> None:
        folder = self.copy(folders, tmp_path)
        as_variant(folder / "unet", "bf16")
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(UserError, match=r"holds only the variants bf16, fp16; choose one by model.variant"):
            stable_diffusion(folder)


class TestHub:
    """A hub id without a network, and what was downloaded before."""

    @pytest.fixture(autouse=True)
    def forgotten(self) -> None:
        look.cache_clear()

    def cached(self, home: Path, source: Path, name: str = "owner/model") -> None:
        """As huggingface_hub keeps a repository."""
        root = home / f"models--{name.replace('/', '--')}"
        shutil.copytree(source, root / "snapshots" / "abc")
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text("abc")

    def test_what_was_downloaded_before_is_read(
        self, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        self.cached(tmp_path, folders["tiny"])
        found, plain = StableDiffusion(**SETTINGS, weights="owner/model"), stable_diffusion(folders["tiny"])
        assert torch.equal(found.unet.conv_in.weight, plain.unet.conv_in.weight)

    def test_an_id_out_of_reach_says_why(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UserError, match=r"^model\.weights=owner/nothing: .*HF_HUB_OFFLINE is set"):
            StableDiffusion(**SETTINGS, weights="owner/nothing")
