"""The networks of the tasks: where their weights come from, and how a task runs them."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, PretrainedConfig

from lpo_platform.config.errors import UserError
from lpo_platform.models.hub import OutOfReach, hub_file
from lpo_platform.models.weights import check_finite, digest, load, locate, split, whole
from lpo_platform.tasks.task import unmixed
from lpo_platform.tasks.toy_detector import FOLDER, Found, fingerprint, toy_detector

Choice = Literal["auto", "toy", "published"]
SETTING = "task.weights"
UNREADABLE = (
    OSError, RuntimeError, TypeError, AttributeError, EOFError, SafetensorError, pickle.UnpicklingError,
)  # fmt: skip
T = TypeVar("T", bound=nn.Module)


def wants_toy(detector: Choice, toy: bool) -> bool:
    """Whether a task uses the embedded detector. For auto, `toy` decides: whether model or data are embedded."""
    return toy if detector == "auto" else detector == "toy"


class Detector:
    """A frozen network that computes in float32 on the device of the pictures, whatever autocast the caller is in.

    Args:
        network: (B, 3, H, W) in [0, 1] -> what it finds.
        identity: stands for the network in keys of caches.
    """

    def __init__(self, network: nn.Module, identity: str) -> None:
        self.network, self.identity = network.requires_grad_(False).eval(), identity

    def __call__(self, images: Tensor, **options: object) -> Tensor:
        with unmixed(images):
            return self.network.to(images.device)(images.float(), **options)


class Embedded(Detector):
    """A detector of toy pictures."""

    def __init__(self, folder: Path = FOLDER) -> None:
        super().__init__(toy_detector(folder), json.dumps(["toy", fingerprint(folder)]))

    def __call__(self, images: Tensor) -> Found:
        return super().__call__(images)


def identity_of(weights: str, pretrained: bool) -> str:
    """Identifies a published network in keys of caches. Random weights follow from their class alone."""
    return digest("::".join(filter(None, split(weights)))) if pretrained else f"random {weights}"


def with_random_weights(build: Callable[[], T]) -> T:
    """Builds a network with the same random weights every time. The global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def from_file(build: Callable[[], T], weights: str, pretrained: bool) -> T:
    """Builds a network with the weights of a .pth or .safetensors file, or with random ones."""
    path = weight_file(weights) if pretrained else None  # before the time that building takes
    network = with_random_weights(build)
    if path is not None:
        try:
            network.load_state_dict(read_weights(path))
        except UNREADABLE as e:
            reason = " ".join(str(e).split())[:200]
            name = type(network).__name__
            raise UserError(f"{SETTING}={weights}: not the weights of a {name}. Reason: {reason}") from e
    return network


def read_weights(path: Path) -> dict[str, Tensor]:
    """What a file of weights holds. UserError, which names the tensors, where they hold NaN or infinity."""
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    inner = state.get("state_dict", state) if isinstance(state, dict) else {}
    check_finite({name: value for name, value in inner.items() if isinstance(value, Tensor)}, str(path))
    return state


def weight_file(weights: str, *, setting: str = SETTING) -> Path:
    """The file that "<file>", "<folder>::<file>" or "<hub id>::<file>" names; "spaces/<id>" is a space of the hub.

    Raises UserError where there is none.
    """
    place, name = split(weights)
    path = Path(locate(place), name or "").expanduser()
    if path.is_file():
        return path
    help_ = f"download it on a machine with network and pass {setting}=<file>"
    if name is None or Path(place).expanduser().is_dir():
        raise UserError(f"{setting}={weights}: no such file; {help_}, or pass {setting}=<hub id>::<file>")
    space = place.startswith("spaces/")
    try:
        return hub_file(place.removeprefix("spaces/"), name, kind="space" if space else "model")
    except OutOfReach as error:
        raise UserError(
            f"{setting}={weights}: no such file, and the hub does not give it; {help_}. Reason: {error}"
        ) from error


def from_transformers(
    auto: Callable[[PretrainedConfig], type],
    weights: str,
    pretrained: bool,
    small: Callable[[], PretrainedConfig],
    *,
    setting: str = SETTING,
) -> nn.Module:
    """A model of transformers: with the weights of a folder or hub id, or the same class with random ones.

    auto: which auto class a configuration asks for. Random weights take the configuration of the folder `weights`, and
    without one a small configuration.
    """
    if pretrained or Path(locate(weights)).is_dir():
        config = load(AutoConfig.from_pretrained, weights, setting=setting)
    else:
        config = small()
    if pretrained:
        return whole(auto(config).from_pretrained, weights, setting=setting)
    model = auto(config)  # a class of one model has no from_config, an auto class nothing else
    return with_random_weights(lambda: getattr(model, "from_config", model)(config))


class Preprocessing(nn.Module):
    """(B, 3, H, W) in [0, 1] -> normalised as the published network was trained; size: (height, width) it asks for."""

    IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def __init__(self, weights: str, *, default: tuple = IMAGENET, setting: str = SETTING, pretrained: bool) -> None:
        super().__init__()
        (mean, std), self.size = default, {}
        if pretrained or Path(locate(weights), "preprocessor_config.json").is_file():
            found = load(AutoImageProcessor.from_pretrained, weights, setting=setting)
            self.size = dict(getattr(found, "size", None) or {})
            if found.do_normalize:
                mean, std = found.image_mean, found.image_std
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std
