"""The jobs that must run on a GPU: every method on every kind of model in every precision, and what else matters."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toys import stable_diffusion
from toys.whole_runs import configured

from lpo_platform.commands.build import create
from lpo_platform.config.options import offered, shipped
from lpo_platform.config.signature import attribute
from lpo_platform.models.reward_folder import save_reward, start_reward
from lpo_platform.models.stable_diffusion_xl import StableDiffusionXL

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
TEXT_TO_IMAGE = ("control=none", "task=none", "data=toy_prompts", "reward=toy", "metrics=attributes")
CHECKPOINTING = "hardware.gradient_checkpointing=true"
VARIANTS = {
    "tiny": [
        ("method=control", "control=none", "task=none", "tune=full"),
        ("method=ddpo", *TEXT_TO_IMAGE, "tune=lora"),
        ("method=lpo", "tune=lora", "method.refresh_reward=1", "method.refresh.steps=1", "method.refresh.num_images=2"),
        ("method=spo", "tune=lora", CHECKPOINTING),
        ("method=diffusion_dpo", "tune=lora", "tune.merged=true"),
        ("method=diffusion_dpo", "tune.text_encoder=true", CHECKPOINTING),
        ("method=cpo", "control=controlnet_dino"),
        ("method=cpo", "method.losers=online", CHECKPOINTING),
        ("method=spo", "callbacks.samples=1", "callbacks.sentinel.items=2"),
    ],
    "tiny_flux": [
        ("method=ddpo", *TEXT_TO_IMAGE, "tune=lora", CHECKPOINTING),
        ("method=control", "control=none", "task=none", "tune=full"),
    ],
    "tiny_sd3": [
        ("method=ddpo", *TEXT_TO_IMAGE, "tune=lora", CHECKPOINTING),
        ("method=nft", "tune=lora"),
        ("method=nft", "control=controlnet", "task=canny", "tune=control", "reward=consistency", "data=toy"),
        ("method=lpo", "tune=lora", CHECKPOINTING, "model.noise=posterior"),
        ("method=lrm", "method.form=fidelity", "method.noise=shared", CHECKPOINTING),
        ("method=cpo", "control=controlnet_dino"),
        ("method=control", "control=none", "task=none", "tune=full", "tune.text_encoder=true"),
    ],
    "sdxl": [
        ("method=diffusion_dpo", "tune.text_encoder=true"),
        ("method=spo", "tune=lora", CHECKPOINTING),
    ],
}


@dataclass(frozen=True)
class Cell:
    """A job: its model, its words and its precision."""

    model: str
    words: tuple[str, ...]
    precision: str

    def __str__(self) -> str:
        return f"{self.model} {' '.join(self.words)} {self.precision}"

    def line(self, folder: Path) -> list[str]:
        """The command line; a model that is not embedded is made in the folder."""
        return [*model(self.model, folder), *self.words, f"hardware.precision={self.precision}"]


def cells() -> Iterator[Cell]:
    for name, variants in VARIANTS.items():
        lines = [(f"method={method}",) for method in shipped("method")]
        lines += [(f"method={method}", CHECKPOINTING) for method in shipped("method")] if name == "tiny" else []
        for words in [*lines, *variants]:
            yield from (Cell(name, words, precision) for precision in PRECISIONS)


def line_of(method: str) -> list[str]:
    """The words for a method, with an embedded model that it can train where the default one is of another kind."""
    kinds = attribute(dict(offered("method"))[method], "denoisers")
    return [f"method={method}", *([] if "unet" in kinds else ["model=tiny_sd3"])]


def refused(cell: Cell) -> bool:
    """Whether the class of a cell's method says that it trains no such model."""
    method, model = (dict(offered(group)) for group in ("method", "model"))
    name = next(word.split("=")[1] for word in cell.words if word.startswith("method="))
    return attribute(model[cell.model], "denoiser") not in attribute(method[name], "denoisers")


def model(name: str, folder: Path) -> list[str]:
    """The words for a model. Toy-size SDXL, and a reward model for each that has none of its own, lie in the folder."""
    if name == "sdxl":
        return _sdxl(folder / "toy-xl")
    if name == "tiny":
        return ["model=tiny"]
    place = folder / f"reward-{name}"
    if not place.exists():
        save_reward(start_reward(create(configured(f"model={name}").model)), place)
    return [f"model={name}", f"model.reward={place}"]


def _sdxl(place: Path) -> list[str]:
    if not place.exists():
        stable_diffusion.stable_diffusion_xl(place)
        loaded = StableDiffusionXL(weights=str(place), **stable_diffusion.SETTINGS)
        save_reward(start_reward(loaded, guidance=1.0), place / "reward", loaded.unet)
    return [
        "model=sdxl", f"model.weights={place}", "model.vae=null", "model.resolution=64", "model.controls={}",
        f"model.reward={place / 'reward'}",
    ]  # fmt: skip
