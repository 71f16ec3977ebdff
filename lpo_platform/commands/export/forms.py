"""The forms that trained weights can take: how each is written, and how stock diffusers reads it back."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import single_file_utils as original
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lpo_platform.commands.export import keys
from lpo_platform.commands.export.pipelines import again, pipeline_of, stock
from lpo_platform.commands.export.trained import Trained
from lpo_platform.models import lora
from lpo_platform.models.export import forget_origin
from lpo_platform.models.single_file import text
from lpo_platform.models.stable_diffusion import StableDiffusion

FILE = "model.safetensors"


class Form:
    """What was trained (`modules`, or of a LoRA the denoiser with it merged) around an adapter as it was before."""

    def __init__(self, trained: Trained, adapter: StableDiffusion) -> None:
        self.trained, self.adapter, self.denoiser = trained, adapter, adapter.folders["unet"]
        self.lora = "lora" in trained.parts
        if self.lora:
            self.factors = lora.read_factors(str(trained.parts["lora"]), setting="run", part=self.denoiser)
            self.modules = {self.denoiser: lora.merged(adapter.unet, self.factors)}
        else:
            self.modules = {name: stock(folder) for name, folder in trained.parts.items()}

    def write(self, folder: Path, metadata: Mapping[str, str]) -> None:
        raise NotImplementedError

    def read(self, folder: Path) -> DiffusionPipeline:
        """A stock pipeline with what write() left there."""
        raise NotImplementedError

    def _with_lora(self, place: Path) -> DiffusionPipeline:
        pipeline = pipeline_of(self.adapter, {})
        pipeline.load_lora_weights(place)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        return pipeline


class Diffusers(Form):
    """Copies of the exported parts, of one part in the folder itself."""

    def write(self, folder: Path, metadata: Mapping[str, str]) -> None:
        for place, part in self._places(folder).items():
            shutil.copytree(part, place, dirs_exist_ok=True)
        forget_origin(folder)

    def read(self, folder: Path) -> DiffusionPipeline:
        if self.lora:
            return self._with_lora(folder)
        places = zip(self.modules, self._places(folder), strict=True)
        return pipeline_of(self.adapter, {name: stock(place) for name, place in places})

    def _places(self, folder: Path) -> dict[Path, Path]:
        parts = self.trained.parts
        return {folder if len(parts) == 1 else folder / name: part for name, part in parts.items()}


class Merged(Form):
    """The whole pipeline."""

    def write(self, folder: Path, metadata: Mapping[str, str]) -> None:
        pipeline = pipeline_of(self.adapter, self.modules)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.to(memory_format=torch.contiguous_format)  # safetensors knows no other
        pipeline.save_pretrained(folder)
        forget_origin(folder)

    def read(self, folder: Path) -> DiffusionPipeline:
        return DiffusionPipeline.from_pretrained(folder)


class ComfyUI(Form):
    """One file in the original names: a LoRA, a ControlNet, or a checkpoint with autoencoder and text encoders."""

    def write(self, folder: Path, metadata: Mapping[str, str]) -> None:
        _save(self._state(), folder, metadata)

    def _state(self) -> keys.State:
        if self.lora:
            return keys.kohya(self.factors)
        if control := self.modules.get("controlnet"):
            return keys.prefixed("control_model", keys.unet(control.state_dict(), control.config))
        parts = pipeline_of(self.adapter, self.modules).components
        unet, texts = parts["unet"], [parts[name] for name in ("text_encoder", "text_encoder_2") if name in parts]
        return (
            keys.prefixed("model.diffusion_model", keys.unet(unet.state_dict(), unet.config))
            | keys.prefixed("first_stage_model", keys.vae(parts["vae"].state_dict()))
            | keys.text([(encoder.state_dict(), encoder.config.to_dict()) for encoder in texts])
        )

    def read(self, folder: Path) -> DiffusionPipeline:
        """By diffusers' own readers of such files."""
        if self.lora:
            return self._with_lora(folder / FILE)
        flat = load_file(folder / FILE)
        if control := self.modules.get("controlnet"):
            state = original.convert_controlnet_checkpoint(dict(flat), control.config)
            if control.config.addition_embed_type:  # which that reader knows, but leaves out
                table = original.DIFFUSERS_TO_LDM_MAPPING["controlnet"]["addition_embed_type"]
                state |= {name: flat[f"control_model.{old}"] for name, old in table.items()}
            return pipeline_of(self.adapter, {"controlnet": again(control, state)})
        whole = pipeline_of(self.adapter, self.modules).components
        return pipeline_of(
            self.adapter,
            {
                "unet": again(whole["unet"], original.convert_ldm_unet_checkpoint(flat, whole["unet"].config)),
                "vae": again(whole["vae"], original.convert_ldm_vae_checkpoint(flat, whole["vae"].config)),
                **{n: again(whole[n], text(flat, whole[n], n)) for n in whole if n.startswith("text_encoder")},
            },
        )


class SafeTensors(Form):
    """One file in diffusers' names, those of several parts with the part before them."""

    def write(self, folder: Path, metadata: Mapping[str, str]) -> None:
        if self.lora:
            state = load_file(next(self.trained.parts["lora"].glob("*.safetensors")))
        else:
            state = {f"{p}{name}": v for p, m in self._prefixes().items() for name, v in m.state_dict().items()}
        _save(state, folder, metadata)

    def read(self, folder: Path) -> DiffusionPipeline:
        if self.lora:
            return self._with_lora(folder / FILE)
        return pipeline_of(self.adapter, self.again(folder))

    def again(self, folder: Path) -> dict[str, nn.Module]:
        """The parts anew, from the file."""
        flat = load_file(folder / FILE)
        own = {p: {n.removeprefix(p): v for n, v in flat.items() if n.startswith(p)} for p in self._prefixes()}
        return {name: again(m, own[p]) for (p, m), name in zip(self._prefixes().items(), self.modules, strict=True)}

    def _prefixes(self) -> dict[str, nn.Module]:
        return {f"{name}." if len(self.modules) > 1 else "": module for name, module in self.modules.items()}


FORMS = {"diffusers": Diffusers, "merged": Merged, "comfyui": ComfyUI, "safetensors": SafeTensors}


def _save(state: Mapping[str, Tensor], folder: Path, metadata: Mapping[str, str]) -> None:
    plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(plain, folder / FILE, metadata={"format": "pt", **metadata})
