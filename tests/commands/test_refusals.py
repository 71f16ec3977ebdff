"""What a method refuses about its settings it refuses before the base is evaluated, which takes hours at full size."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from toys.whole_runs import configured

from lpo_platform.commands import train
from lpo_platform.config.errors import UserError, users
from lpo_platform.methods import optim

REFUSED = {
    "method.group=1 with method.baseline=group": ("method=ddpo", "method.group=1"),
    "method.group=1 with method.baseline=round": (
        "method=ddpo", "method.group=1", "method.baseline=round", "method.prompts=1",
    ),
    "method.history=4: never holds": ("method=ddpo", "method.baseline=history", "method.history=4"),
    "method.fraction=0.1: trains 0 of 3 steps": ("method=ddpo", "method.num_steps=3", "method.fraction=0.1"),
    "method.form=score allows one update": ("method=ddpo", "method.form=score", "method.inner_epochs=2"),
    "method.window=[2, 9]": ("method=ddpo", "method.window=[2,9]"),
    "method.group=1: a reward": ("method=nft", "model=tiny_sd3", "method.group=1"),
    "method.fraction=0.1: trains 0 of 3 times": ("method=nft", "model=tiny_sd3", "method.fraction=0.1"),
    "method=nft with tune.text_encoder=true": ("method=nft", "model=tiny_sd3", "tune.text_encoder=true"),
    "method.window=[1, 9]": ("method=lpo", "method.window=[1,9]"),
    "method.eta=0": ("method=lpo", "method.eta=0"),
    "method.skip_steps=3": ("method=spo", "method.skip_steps=3"),
}  # fmt: skip


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    def evaluated(*_: object) -> None:
        raise AssertionError("the base was evaluated first")

    def run(*words: str) -> str:
        with pytest.raises((UserError, InstantiationException)) as error:
            train.train(configured("hardware=cpu", *words), tmp_path / "run")
        found = users(error.value)
        assert isinstance(found, UserError)
        return str(found)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "evaluate_once", evaluated)
    return run


@pytest.mark.parametrize("said", REFUSED)
def test_settings_are_refused_before_the_base_is_evaluated(said: str, refusal: Callable[..., str]) -> None:
    assert refusal(*REFUSED[said]).startswith(said)


def test_so_is_what_an_optimiser_lacks(refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "find_spec", lambda name: None)
    assert refusal("method=cpo", "optim=adamw8bit") == (
        "optim=adamw8bit: bitsandbytes is not installed here; pip install 'lpo-platform[8bit]', or optim=adamw"
    )
