"""Stable Diffusion 1.x and 2.x, and anything else in their layout: the embedded tiny model among them."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from lpo_platform.config.compose import compose
from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Guidance, SamplingSteps
from lpo_platform.config.options import offered
from lpo_platform.config.schema import CONF
from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.hardware.transfer import upload
from lpo_platform.models import fields
from lpo_platform.models.controlnet_dino import KINDS
from lpo_platform.models.lora import ATTENTION, merge, read_all
from lpo_platform.models.single_file import SingleFile
from lpo_platform.models.weights import digest, load, load_config, load_model, load_tokenizer, locate, split

INDEX_FILE = "model_index.json"
CLIPPING = ("DDIMScheduler", "DDPMScheduler")  # schedulers that know clip_sample
HALF = {None: None, "fp16": torch.float16, "bf16": torch.bfloat16}


class StableDiffusion:
    """Loads a StableDiffusionPipeline folder or hub id and owns its parts, all frozen unless `tune` trains them.

    Places of weights are written <folder or hub id>[::<subfolder>].

    Args:
        name: of the model, in reports and folders.
        weights: of the whole pipeline; or one file in the original names (models/single_file.py).
        config: of one file, the folder or hub id with the configurations, tokenizers and scheduler that it lacks.
        resolution: side of the pictures in pixels.
        guidance: classifier-free guidance of evaluations; 0 to 1 are none.
        num_inference_steps: steps of evaluations.
        controls: by task, the ControlNet that control.weights=auto takes.
        unet: the UNet from elsewhere.
        vae: the autoencoder from elsewhere.
        lora: an adapter that is merged into the UNet (models/lora.py lists the files). Training then starts at the
            merged weights, and an exported adapter is relative to them.
        reward: the latent reward model that reward.weights=auto takes.
        half_schedule: adds noise in `fp16` or `bf16`, as the authors of CPO do; null does it in float32.
        variant: of the files, such as fp16; null takes the plain files, or the only ones.
        revision: of the hub id `weights`.
        toy: whether the model draws toy scenes; tasks then use the embedded detectors.
    """

    denoiser: ClassVar[str] = "unet"
    pipelines: ClassVar[tuple[str, str]] = ("StableDiffusionPipeline", "StableDiffusionControlNetPipeline")
    """Its pipelines in diffusers, without and with a ControlNet, for an export."""
    scheduler: ClassVar[str] = "DDIMScheduler"
    """Theirs."""
    branch: ClassVar[type[nn.Module]] = ControlNetModel
    lora_targets: ClassVar[tuple[str, ...]] = ATTENTION
    toy: bool = False
    folders: ClassVar[dict[str, str]] = {"unet": "unet", "text_encoder": "text_encoder"}
    """What the parts that can learn are called in this pipeline's folder."""
    index: ClassVar[fields.Fields] = fields.INDEX
    branch_fields: ClassVar[fields.Fields] = fields.CONTROLNET

    def __init__(
        self,
        *,
        name: str,
        weights: str,
        resolution: Count,
        guidance: Guidance,
        num_inference_steps: SamplingSteps,
        controls: dict[str, str] | None = None,
        unet: str | None = None,
        vae: str | None = None,
        lora: str | None = None,
        reward: str | None = None,
        half_schedule: Literal["fp16", "bf16"] | None = None,
        variant: str | None = None,
        revision: str | None = None,
        config: str | None = None,
        toy: bool = False,
    ) -> None:
        self.name, self.weights, self.resolution = name, weights, resolution
        self.guidance, self.num_inference_steps, self.toy = guidance, num_inference_steps, toy
        self.controls, self.reward, self.half_schedule = dict(controls or {}), reward, half_schedule
        self.changes = {key: place for key, place in (("unet", unet), ("vae", vae), ("lora", lora)) if place}
        self.variant, self.revision, self.config = variant, revision, config
        file = Path(weights).expanduser()
        self.single = SingleFile(file, "model.weights") if file.is_file() else None
        if self.single is not None and config is None:
            raise UserError(
                f"model.weights={weights}: one file has no configurations and no tokenizer; add model.config=<a folder "
                "or hub id in diffusers' layout>, of the model that it was made from"
            )
        self._read_index()
        self._load_denoiser()
        self.vae = self._load_model(AutoencoderKL, "vae", fields.VAE)
        self._load_text()
        self._check_fit()
        if lora:
            self._merge(lora)
        self._finish()
        self._load_process()

    @classmethod
    def from_pretrained(cls, place: str, **settings: Any) -> "StableDiffusion":
        """The model of an option ("tiny"), or a folder or hub id with the settings of the first option of this class.

        settings: those of the class, in place of the option's.
        """
        own = [name for name, target in offered("model") if target == f"{cls.__module__}.{cls.__name__}"]
        if not own:
            raise UserError(f"{cls.__name__}: no option of conf/model; its settings have no defaults")
        option = place if place in own else own[0]
        values = compose("train", [f"model={option}"], [], CONF).values["model"]
        values = {key: value for key, value in values.items() if key != "_target_"}
        return cls(**values | ({} if place in own else {"weights": place}) | settings)

    def _place(self, part: str) -> tuple[str, str, dict[str, Any]]:
        """Where a part of the pipeline is, or what `unet=`, `vae=` put in its place: the setting that says so, the
        folder or hub id, and the options of from_pretrained."""
        if part in self.changes:
            weights, subfolder = split(self.changes[part])
            return f"model.{part}", weights, {"subfolder": subfolder} if subfolder else {}
        return *self._described, {"subfolder": part, "revision": self.revision}

    @property
    def _described(self) -> tuple[str, str]:
        """The setting and the folder or hub id that says how the pipeline is made."""
        return ("model.config", self.config) if self.single is not None else ("model.weights", self.weights)

    def _load(self, from_pretrained: Callable[..., Any], part: str) -> Any:
        """A part without weights: a tokenizer, or a configuration."""
        setting, weights, options = self._place(part)
        return load(from_pretrained, weights, setting=setting, **options)

    def _load_model(self, kind: type[Any], part: str, known: fields.Fields) -> Any:
        """A part with weights, whole and in float32; UserError for a field of its configuration that is not `known`."""
        setting, weights, options = self._place(part)
        if self.single is not None and part not in self.changes and self.single.holds(part):
            return self.single.part(kind, part, load_config(kind, weights, known, setting=setting, **options))
        return load_model(kind, weights, known, setting=setting, variant=self.variant, **options)

    def _read_index(self) -> None:
        """UserError where the folder is another kind of pipeline; `self.settings` is then its model_index.json."""
        self.settings: dict[str, Any] = {}
        setting, place = self._described
        folder = Path(locate(place))
        if folder.is_dir() and not (folder / INDEX_FILE).is_file():
            return
        read = DiffusionPipeline.load_config
        self.settings = load(read, place, setting=setting, revision=self.revision)
        where = f"model={self.name}: {setting}={place}: {INDEX_FILE}"
        fields.check_index(self.index, self.settings, where, replaced=tuple(self.changes))

    def _load_denoiser(self) -> None:
        self.unet = self._load_model(UNet2DConditionModel, "unet", fields.UNET)

    def _load_process(self) -> None:
        config = self._scheduler_config(DDIMScheduler, fields.DDIM)
        if "clip_sample" not in config and config.get("_class_name") not in CLIPPING:
            config["clip_sample"] = False  # DDIM's own default, where the file's sampler clips nothing
        with self._named("scheduler"):
            self._check_scheduler(config)
            self.process = DDIM.from_config(config, half=HALF[self.half_schedule])

    def _scheduler_config(self, kind: type[Any], known: fields.Fields) -> dict[str, Any]:
        config = dict(self._load(kind.load_config, "scheduler"))
        fields.check(known, config, f"model.weights={self.weights}: scheduler")
        return config

    def _check_scheduler(self, config: Mapping[str, Any]) -> None:
        """Raises ValueError for what StableDiffusionPipeline rewrites and its pipeline with a ControlNet does not."""
        offset = config.get("steps_offset", 0)
        if offset != 1 and config.get("timestep_spacing", "leading") == "leading":
            raise ValueError(f"steps_offset={offset}: stock pipelines disagree about it; what works: 1")
        if config.get("clip_sample", True):
            raise ValueError("clip_sample=true: stock pipelines disagree about it; what works: false")

    @contextmanager
    def _named(self, part: str) -> Iterator[None]:
        """A ValueError about a field of this part as a UserError that says which file it stands in."""
        try:
            yield
        except ValueError as error:
            raise UserError(f"model.weights={self.weights}: {part}: {error}") from error

    def _load_text(self) -> None:
        self.text_encoder = self._load_model(CLIPTextModel, "text_encoder", fields.CLIP_TEXT)
        self.tokenizer = self._load_tokenizer(CLIPTokenizer, "tokenizer", self.text_encoder)

    def _load_tokenizer(self, kind: type[Any], part: str, encoder: nn.Module) -> Any:
        """UserError for a tokenizer with words or places that its text encoder does not have."""
        setting, weights, options = self._place(part)
        tokenizer = load_tokenizer(kind.from_pretrained, weights, setting=setting, **options)
        where = f"model.weights={weights}: {part}"
        fields.check(fields.TOKENIZER, {"padding_side": tokenizer.padding_side}, where)
        words, places = encoder.config.vocab_size, getattr(encoder.config, "max_position_embeddings", None)
        if len(tokenizer) > words:
            raise UserError(f"{where}: {len(tokenizer)} words, and its text encoder knows {words}")
        if places is not None and tokenizer.model_max_length > places:
            length = tokenizer.model_max_length
            raise UserError(f"{where}: model_max_length={length}, and its text encoder has {places} places")
        return tokenizer

    def _check_fit(self) -> None:
        """UserError where the parts do not belong together, which the first forward would say by its shapes only."""
        config, latents = self.unet.config, self.vae.config.latent_channels
        text = sum(encoder.config.hidden_size for encoder in self.text_encoders)
        widths = config.cross_attention_dim
        self._fits("in_channels", config.in_channels, latents, "the autoencoder's latents have")
        self._fits("out_channels", config.out_channels, latents, "the autoencoder's latents have")
        for width in widths if isinstance(widths, list | tuple) else [widths]:
            self._fits("cross_attention_dim", width, text, "its text has")
        self._check_added()

    def _check_added(self) -> None:
        """UserError for a UNet that is told more than its text: that of SDXL."""
        if self.unet.config.addition_embed_type is not None:
            raise UserError(
                f"model={self.name}: model.weights={self.weights}: unet: addition_embed_type="
                f"{self.unet.config.addition_embed_type}: this UNet is SDXL's; what works: model=sdxl"
            )

    def _fits(self, name: str, found: object, wanted: object, who: str) -> None:
        if found != wanted:
            part = self.folders["unet"]
            setting, weights, _ = self._place(part)
            raise UserError(
                f"model={self.name}: {setting}={weights}: {part}: {name}={found}, and {who} {wanted}: "
                "the parts belong to different models"
            )

    def _merge(self, lora: str) -> None:
        """Adds the adapters of a LoRA file to the parts that it names."""
        denoiser = self.folders["unet"]
        for part, factors in read_all(lora, self.unet, setting="model.lora", part=denoiser).items():
            module = self.unet if part == denoiser else self._encoders.get(part)
            if module is None:
                raise UserError(f"model.lora={lora}: adapts a {part}, which model={self.name} does not have")
            if part != denoiser and not hasattr(module, "text_model"):  # transformers has taken this level away
                factors = {name.removeprefix("text_model."): pair for name, pair in factors.items()}
            merge(module, factors, setting=f"model.lora={lora}")

    @property
    def _encoders(self) -> dict[str, nn.Module]:
        """The text encoders by their folders."""
        return {"text_encoder": self.text_encoder}

    def _finish(self) -> None:
        """Freezes the parts and works out the shape of latents."""
        for part in self.parts:
            part.requires_grad_(False).eval()
        for part in (self.unet, self.vae):
            part.to(memory_format=torch.channels_last)  # a fifth faster on CPUs, more on GPUs
        size = self.resolution // self.factor
        self.latent_shape = (self.vae.config.latent_channels, size, size)

    def stock_parts(self) -> dict[str, Any]:
        """What its pipeline in diffusers gets beside denoiser, autoencoder, tokenizer and scheduler."""
        checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return {"text_encoder": self.text_encoder} | checker

    def stock_scheduler(self, found: Any) -> Any:
        """The scheduler of its folder, set as it samples here."""
        return type(found).from_config(found.config, clip_sample=self.process.clip is not None)

    def stock_call(self, latents: Tensor) -> dict[str, Any]:
        """What that pipeline is called with, beside prompts and steps, to draw what is drawn here from `latents`."""
        return {"guidance_scale": self.guidance, "latents": latents}

    def stock_control(self, pipeline: Any, images: Tensor) -> dict[str, Any]:
        """What it is called with for conditions in [0, 1]."""
        return {"image": images}

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        return (self.text_encoder,)

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        return self.unet, self.vae, *self.text_encoders

    @property
    def device(self) -> torch.device:
        return self.process.device

    @property
    def _shift(self) -> float:
        """What FLUX's autoencoder subtracts from latents before it scales them."""
        return self.vae.config.shift_factor or 0.0

    @property
    def latent_space(self) -> tuple[float, ...]:
        """What tells the latents of autoencoders apart: their channels, scale and shift."""
        return self.vae.config.latent_channels, self.vae.config.scaling_factor, self._shift

    @property
    def fingerprint(self) -> str:
        """Changes with every weight file, the resolution and the frozen precision: the model's part of a cache key."""
        changes = [f"{key}={digest(place)}" for key, place in self.changes.items()]
        changes += [f"{key}={name}" for key in ("variant", "revision") if (name := getattr(self, key, None))]
        changes += [digest(self.config)] if self.single is not None else []
        changes += [] if self.vae.dtype == torch.float32 else [str(self.vae.dtype)]
        changes += [] if self.text_encoder.dtype == self.vae.dtype else [str(self.text_encoder.dtype)]
        return hashlib.sha256(json.dumps([digest(self.weights), self.resolution, *changes]).encode()).hexdigest()

    @property
    def unread_text(self) -> tuple[nn.Module, ...]:
        """Parts of `text_encoder` that embed() does not read, so that they cannot learn."""
        return ()

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "StableDiffusion":
        """Moves every part; dtype is that of the frozen parts (a trained UNet keeps its own)."""
        for part in self.parts:
            learns = any(p.requires_grad for p in part.parameters())
            part.to(device, dtype=None if learns else self.kept_in(part, dtype))
        self.process.to(device)
        return self

    def kept_in(self, part: nn.Module, dtype: torch.dtype | None) -> torch.dtype | None:
        """The precision of a frozen part where frozen parts are in dtype."""
        return torch.float32 if part is self.vae and dtype == torch.float16 and self._vae_overflows else dtype

    @property
    def _vae_overflows(self) -> bool:
        """Whether the autoencoder has to stay in float32 where the other frozen parts are in float16."""
        return False

    def _vae_precision(self) -> AbstractContextManager:
        """An autoencoder that overflows keeps its precision where everything else computes in a lower one."""
        keeps = self._vae_overflows and self.vae.dtype == torch.float32 and self.device.type != "meta"
        return torch.autocast(self.device.type, enabled=False) if keeps else nullcontext()

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Token ids padded to the tokenizer's length, (B, L) int64 on the CPU."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return self.tokenizer(prompts, **options).input_ids

    def embed(self, tokens: Tensor) -> Tensor:
        """Last hidden state of the text encoder: (B, L) -> (B, L, D)."""
        return self.text_encoder(upload(tokens, self.device)).last_hidden_state

    def empty_text(self) -> Tensor:
        """What guidance leads away from, (1, L, D): the embedding of the empty prompt."""
        return self.embed(self.tokenize([""]))

    @torch.no_grad()
    def encode_moments(self, pixels: Tensor) -> Tensor:
        """VAE posterior of pixels (B, 3, H, W) in [0, 1]: mean and log-variance, (B, 2C, h, w) float32."""
        pixels = pixels.to(self.device, self.vae.dtype)
        with self._vae_precision():
            return self.vae.encode(2 * pixels - 1).latent_dist.parameters.float()

    def sample_latents(self, moments: Tensor, noise: Tensor) -> Tensor:
        """A draw of the posterior in the UNet's scale: (B, 2C, h, w), (B, C, h, w) -> (B, C, h, w) float32."""
        mean, log_variance = moments.float().chunk(2, 1)
        std = torch.exp(0.5 * log_variance.clamp(-30, 20))
        return (mean + std * noise - self._shift) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Latents in the UNet's scale -> pixels (B, 3, H, W) float32 in [0, 1]; a gradient of latents passes."""
        latents = (latents / self.vae.config.scaling_factor + self._shift).to(self.vae.dtype)
        with self._vae_precision():
            return (self.vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)

    def load_control(self, task: str, weights: str, subfolder: str | None = None) -> ControlNetModel:
        """The ControlNet that a run starts from.

        weights: "auto" is the model's own for this task, "unet" a fresh one initialised from the denoiser, else a
        folder or hub id, of a ControlNet with DINO too. UserError when "auto" knows none.
        """
        if weights == "unet":
            return self._control_from_denoiser().to(memory_format=torch.channels_last)
        if weights == "auto":
            if task not in self.controls:
                known = ", ".join(sorted(self.controls)) or "none"
                raise UserError(
                    f"control.weights=auto: model={self.name} names no ControlNet for task={task} (it has: {known}). "
                    "Pass control.weights=<folder or hub id>, or control.weights=unet to start a new one"
                )
            weights, subfolder = split(self.controls[task])
        options = {"setting": "control.weights"} | ({"subfolder": subfolder} if subfolder else {})
        dino = "adapter_size" in load(self.branch.load_config, weights, **options)
        kind, known = self.branch, self.branch_fields
        if dino:
            kind, known = KINDS[kind], fields.with_dino(known)
        control = load_model(kind, weights, known, **options)
        self._check_control(control, f"control.weights={weights}")
        return control.to(memory_format=torch.channels_last)

    def _check_control(self, control: nn.Module, where: str) -> None:
        """UserError for a ControlNet of another denoiser."""
        same = (
            "in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type",
            "projection_class_embeddings_input_dim",
        )  # fmt: skip
        plain = lambda value: list(value) if isinstance(value, tuple) else value  # noqa: E731 (JSON knows lists)
        for name in same:
            own, wanted = (plain(model.config.get(name)) for model in (control, self.unet))
            if own != wanted:
                raise UserError(
                    f"{where}: {name}={own}, and the UNet of model={self.name} has {wanted}: this ControlNet was made "
                    "for another model"
                )
        factor = 2 ** (len(control.config.conditioning_embedding_out_channels) - 1)
        if factor != self.factor:
            raise UserError(
                f"{where}: conditioning_embedding_out_channels: it makes a condition {factor} times smaller, and the "
                f"autoencoder of model={self.name} makes pictures {self.factor} times smaller"
            )

    @property
    def factor(self) -> int:
        """How much smaller latents are than pictures."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _control_from_denoiser(self) -> ControlNetModel:
        """from_unet, its condition embedding as deep as this VAE's down-sampling.

        The last layer of that embedding starts at N(0, 0.1) instead of 0: behind the zero convolutions a second zero
        leaves the condition without a gradient for the first hundred steps of a short training.
        """
        depth = len(self.vae.config.block_out_channels)
        channels = (16, 32, 96, 256)[:depth] if depth >= 4 else (8, 16, 32)[:depth]
        control = ControlNetModel.from_unet(self.unet, conditioning_embedding_out_channels=channels)
        if depth < 4:
            nn.init.normal_(control.controlnet_cond_embedding.conv_out.weight, std=0.1)
        return control


@torch.no_grad()
def without_spread(vae: AutoencoderKL) -> None:
    """Makes the posterior of an autoencoder as narrow as it can be.

    The pipelines of flow transformers encode a condition with noise of their own; here it is the posterior's mean.
    """
    last = vae.encoder.conv_out if vae.quant_conv is None else vae.quant_conv
    half = len(last.weight) // 2
    last.weight[half:], last.bias[half:] = 0.0, -30.0
