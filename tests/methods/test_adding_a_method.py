"""The example of methods/README.md: its options pass the check, and its loss is that of the preferred picture."""

import re
from pathlib import Path

import pytest
import torch

import lpo_platform
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.sources import find_module
from lpo_platform.methods.losses import denoising_error
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.tuning import Full

README = (Path(lpo_platform.__file__).parent / "methods" / "README.md").read_text(encoding="utf-8")
IMPORTS = """
import torch
from lpo_platform.methods.diffusion_dpo import winner_and_loser
from lpo_platform.methods.losses import denoising_error
from lpo_platform.methods.method import Method
"""


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)
    return found


def test_the_options_pass_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    find_module.cache_clear()
    Path("best_of_pair.py").write_text(f"{IMPORTS}\n\n{block('python')}")
    Path("conf/method").mkdir(parents=True)
    Path("conf/method/best_of_pair.yaml").write_text(block("yaml"))
    conf = [str(tmp_path / "conf")]
    assert diagnose("train", ["method=best_of_pair", "debug=smoke"], conf) == []
    (problem,) = diagnose("train", ["method=best_of_pair", "data=toy"], conf)
    assert "needs data=image_pairs" in problem


def test_the_loss_is_that_of_the_preferred_picture() -> None:
    names: dict[str, type] = {}
    exec(f"{IMPORTS}\n\n{block('python')}", names)
    adapter = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=4)
    method = names["BestOfPair"](policy=Policy(adapter, Full()), optim=AdamW(), seed=0, steps=1, batch=2)
    labels = torch.tensor([[[0.5, 1.0], [0.0, 0.5]], [[0.5, 0.0], [1.0, 0.5]]])
    channels, *side = adapter.latent_shape
    moments, text = torch.randn(2, 2, 2 * channels, *side), adapter.embed(adapter.tokenize(["a circle", "a square"]))
    batch = {"position": torch.arange(2), "moments": moments, "labels": labels, "text": text}
    z = adapter.sample_latents(torch.stack([moments[0, 0], moments[1, 1]]), method.normal(batch, "vae"))
    e, t = method.normal(batch, "noise"), method.times(batch, "noise")
    output = adapter.unet(adapter.process.add_noise(z, e, t), t, text).sample
    expected = denoising_error(output, adapter.process.target(z, e, t)).mean()
    torch.testing.assert_close(method.loss(batch)[0], expected, rtol=1e-4, atol=0)
