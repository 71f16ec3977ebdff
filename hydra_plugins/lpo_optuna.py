"""A sweeper of Hydra that lets Optuna propose values: hydra/sweeper=optuna.

The study is an SQLite file in the folder of the sweep. A sweep that was killed goes on in the same hydra.sweep.dir: the
job that was at work goes on from its newest checkpoint, and then come the trials that are missing. The number of a job
is that of its trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial


class OptunaSweeper(Sweeper):
    """Proposes values for what a command line gives as interval(a, b), choice(...) or range(...).

    Args:
        direction: of what the jobs return, the gain of their first metric.
        n_trials: jobs of the whole study, those of before included.
        n_jobs: jobs that are started together.
        sampler: tpe models what is good; random does not.
        seed: of the sampler.
        storage: the address of a database; null is study.db in the folder of the sweep.
        study_name: in that database.
        params: what is searched, by key, beside what the command line says.
    """

    def __init__(
        self,
        direction: Literal["maximize", "minimize"],
        n_trials: int,
        n_jobs: int,
        sampler: Literal["tpe", "random"],
        seed: int,
        storage: str | None,
        study_name: str,
        params: dict[str, str] | None,
    ) -> None:
        self.direction, self.n_trials, self.n_jobs = direction, n_trials, n_jobs
        self.sampler, self.seed, self.storage, self.study_name = sampler, seed, storage, study_name
        self.params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        found = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        fixed = [item.input_line for item in found if not item.is_sweep_override()]
        space = {item.get_key_element(): distribution(item) for item in found if item.is_sweep_override()}
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        study = self._study(folder)
        for trials in self._due(study, space):
            lines = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
            self.validate_batch_is_legal(lines)
            for trial, job in zip(trials, self.launcher.launch(lines, trials[0].number), strict=True):
                _tell(study, trial, job.return_value)
        _save_best(study, folder)

    def _study(self, folder: Path) -> Study:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return optuna.create_study(
            storage=self.storage or f"sqlite:///{folder.resolve() / 'study.db'}",
            study_name=self.study_name, direction=self.direction, load_if_exists=True,
        )  # fmt: skip

    def _due(self, study: Study, space: dict[str, BaseDistribution]) -> Iterator[Sequence[Trial | FrozenTrial]]:
        """Trials that a killed process has left, then new ones, as many at a time as are started together."""
        import optuna

        kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
        study.sampler = kinds[self.sampler](seed=self.seed + len(study.trials))  # not the same draws once more
        yield from ([trial] for trial in study.trials if trial.state == optuna.trial.TrialState.RUNNING)
        while (missing := self.n_trials - len(study.trials)) > 0:
            yield [study.ask(space) for _ in range(min(missing, self.n_jobs))]


def distribution(item: Override) -> BaseDistribution:
    """Where the values of a sweep come from; an interval or a range keeps its order."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = item.value()
    if item.is_interval_sweep():
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        return (IntDistribution if whole else FloatDistribution)(value.start, value.end, log="log" in value.tags)
    if item.is_range_sweep():
        values = [float(text) for text in item.sweep_string_iterator()]
        low, high, step = min(values), max(values), abs(float(value.step))
        if all(number.is_integer() for number in (low, high, step)):
            return IntDistribution(int(low), int(high), step=int(step))
        return FloatDistribution(low, high, step=step)
    return CategoricalDistribution(list(item.sweep_string_iterator()))


def _tell(study: Study, trial: Trial | FrozenTrial, value: float | None) -> None:
    """A job without a number has failed; its trial counts, and is not proposed again."""
    from optuna.trial import TrialState

    study.tell(trial.number, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)


def _save_best(study: Study, folder: Path) -> None:
    from optuna.trial import TrialState

    if done := [trial for trial in study.trials if trial.state == TrialState.COMPLETE]:
        best = (max if study.direction.name == "MAXIMIZE" else min)(done, key=lambda trial: trial.value)
        found: dict[str, Any] = {"job": best.number, "value": best.value, "params": dict(best.params)}
        OmegaConf.save(OmegaConf.create({"best": found}), folder / "optimization_results.yaml")
