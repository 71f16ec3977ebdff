"""model.revision: which files of a hub repository are read."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from toys.published import diffusion
from toys.published.cache import publish

from lpo_platform.config.errors import UserError
from lpo_platform.models.hub import look
from lpo_platform.models.stable_diffusion import StableDiffusion

NAME = "owner/stable-diffusion"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub where the revision `second` has a UNet of twice the weights."""
    folder = tmp_path_factory.mktemp("hub")
    for revision, factor in (("main", 1), ("second", 2)):
        diffusion.sd15(folder / revision)
        for file in (folder / revision / "unet").glob("*.safetensors"):
            state = {name: factor * value for name, value in load_file(file).items()}
            save_file(state, file, {"format": "pt"})
        publish(folder / "cache", NAME, folder / revision, revision=revision)
    return folder / "cache"


@pytest.fixture(autouse=True)
def reachable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    look.cache_clear()


def weight(**settings: str) -> torch.Tensor:
    return StableDiffusion(weights=NAME, **diffusion.SETTINGS, **settings).unet.conv_in.weight.detach()


def test_a_revision_is_read_for_every_part_and_an_unknown_one_is_named() -> None:
    torch.testing.assert_close(weight(revision="second"), 2 * weight(), rtol=0, atol=0)
    with pytest.raises(UserError, match=f"^model.weights={NAME}: no usable weights: .*was not downloaded before"):
        weight(revision="third")
