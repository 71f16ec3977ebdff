"""What a command line offers for a search, as Optuna's distributions."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from hydra_plugins.lpo_optuna import distribution
from lpo_platform.config.diagnose import diagnose

pytest.importorskip("optuna")


@pytest.mark.parametrize(
    ("words", "kind", "settings"),
    [
        ("optim.lr=interval(0.1,0.5)", "Float", {"low": 0.1, "high": 0.5}),
        ("optim.lr=tag(log,interval(1e-6,1e-3))", "Float", {"low": 1e-6, "high": 1e-3, "log": True}),
        ("method.steps=int(interval(1,9))", "Int", {"low": 1, "high": 9}),
        ("method.steps=tag(log,int(interval(1,9)))", "Int", {"low": 1, "high": 9, "log": True}),
        ("method.steps=range(10,31,10)", "Int", {"low": 10, "high": 30, "step": 10}),
        ("method.margin=range(0,1,0.25)", "Float", {"low": 0.0, "high": 0.75, "step": 0.25}),
        ("method=cpo,control", "Categorical", {"choices": ("cpo", "control")}),
        ("method.beta=choice(1.5,20)", "Categorical", {"choices": ("1.5", "20")}),
    ],
)
def test_a_sweep_as_a_distribution(words: str, kind: str, settings: dict[str, object]) -> None:
    (override,) = OverridesParser.create().parse_overrides([words])
    found = distribution(override)
    assert type(found).__name__ == f"{kind}Distribution"
    assert {name: getattr(found, name) for name in settings} == settings


def test_the_settings_of_the_sweeper_are_checked() -> None:
    search = ["hydra/sweeper=optuna", "method=cpo", "task=canny", "optim.lr=interval(1e-6,1e-3)"]
    assert diagnose("train", search, multirun=True) == []
    (line,) = diagnose("train", [*search, "hydra.sweeper.n_trialz=3"], multirun=True)
    assert "n_trialz" in line
    assert diagnose("train", [*search, "hydra.sweeper.n_trials=3"], multirun=True) == []
