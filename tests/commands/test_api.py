"""The Python interface: the same checks as the command line, and the four examples as a reader runs them."""

import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

import lpo_platform as lpo
from lpo_platform.config.errors import ConfigError, UserError
from lpo_platform.config.options import offered

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((REPO / "launchers" / "examples").glob("*.py"))


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, lpo_platform; assert dir(lpo_platform); "
        "print([name for name in ('torch', 'hydra', 'omegaconf', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = lpo.trian


def test_classes_are_imported_from_their_package() -> None:
    """Every class that an option names, and a typing error is an AttributeError."""
    from lpo_platform.tasks import Canny

    assert Canny.__module__ == "lpo_platform.tasks.canny" and lpo.Policy.__module__ == "lpo_platform.models.policy"
    targets = {target for group in ("task", "reward", "method", "model", "data") for _, target in offered(group)}
    for target in targets - {None}:
        module, _, name = target.rpartition(".")
        package = import_module(".".join(module.split(".")[:2]))
        assert name in dir(package) and getattr(package, name) is getattr(import_module(module), name)
    with pytest.raises(ImportError, match="cannot import name 'Cany'"):
        exec("from lpo_platform.tasks import Cany")


def test_a_model_by_the_name_of_its_option_or_by_its_place() -> None:
    from lpo_platform.models import StableDiffusion
    from lpo_platform.models.weights import ASSETS

    tiny, same = StableDiffusion.from_pretrained("tiny"), lpo.load("tiny", "hardware=cpu").policy.adapter
    assert (tiny.name, tiny.resolution, tiny.toy, tiny.fingerprint) == ("tiny", 64, True, same.fingerprint)
    placed = StableDiffusion.from_pretrained(str(ASSETS / "tiny"), resolution=64, reward=None)
    assert (placed.name, placed.num_inference_steps, placed.reward) == ("sd15", 20, None)
    assert all(torch.equal(placed.unet.state_dict()[key], value) for key, value in tiny.unet.state_dict().items())


def test_a_wrong_override_is_the_error_of_the_command() -> None:
    with pytest.raises(ConfigError) as error:
        lpo.train("method=cp0", "seed=abc")
    assert error.value.problems[0].startswith("method=cp0: no such option; did you mean 'cpo'?")
    assert error.value.problems[1] == "seed=abc: must be int"
    for call, words in (
        (lambda: lpo.compose("optim.lr=fast"), "optim.lr=fast: must be"),
        (lambda: lpo.task("cany"), "task=cany: no such option; did you mean 'canny'?"),
        (lambda: lpo.task("canny", lwo=0.1), "task.lwo: Canny has no such option; did you mean 'low'?"),
        (lambda: lpo.reward("pickscor"), "reward=pickscor: no such option; did you mean 'pickscore'?"),
        (lambda: lpo.dataset("toi"), "data=toi: no such option; did you mean 'toy'?"),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert words in str(error.value)
    with pytest.raises(UserError, match="one configuration at a time"):
        lpo.train("sweep=seeds")


def test_a_place_that_says_nothing_of_its_model_is_refused() -> None:
    with pytest.raises(UserError, match="nope: neither a run folder nor an option of model; what works: a run folder"):
        lpo.load("nope")


def test_a_configuration_is_that_of_the_command() -> None:
    cfg = lpo.compose("method=cpo", "task=hed", "optim.lr=1e-3")
    assert (cfg.task._target_.split(".")[-1], cfg.optim.lr, "hydra" in cfg) == ("Hed", 1e-3, False)


def test_a_picture_depends_on_its_seed_and_number_alone() -> None:
    model = lpo.load("tiny", "hardware=cpu")
    scenes = lpo.dataset("toy", num_train=2, resolution=64).train
    prompts = [scenes.caption(0), scenes.caption(1)]
    both = model.sample(prompts, seed=3, num_steps=4)
    assert both.shape == (2, 3, 64, 64) and both.min() >= 0 and both.max() <= 1
    assert torch.allclose(model.sample(prompts[0], seed=3, num_steps=4), both[:1], atol=1e-4)
    assert not torch.allclose(model.sample(prompts[0], seed=4, num_steps=4), both[:1], atol=1e-2)
    with pytest.raises(UserError, match=r"the model has no ControlNet: sample\(\) takes no control="):
        model.sample(prompts, control=torch.zeros(2, 3, 64, 64))
    assert model.encode(both).shape == (2, *model.policy.adapter.latent_shape)
    real = torch.stack([scenes[0].image, scenes[1].image])
    better, worse = lpo.reward("toy")(real, prompts), lpo.reward("toy")(real, prompts[::-1])
    assert better.sum() > worse.sum()


@pytest.mark.parametrize(
    "example",
    # those with a class of the user's train, as tests of such classes do
    [pytest.param(path, marks=pytest.mark.slow if path.stem.startswith("own_") else ()) for path in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_an_example_runs_as_it_stands(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example)])
    monkeypatch.setattr(sys, "path", [str(example.parent), *sys.path])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_there_are_four_examples() -> None:
    assert len(EXAMPLES) == 4
