"""Further flags of Lightning's Trainer: every one of them can be set, or is refused with the reason."""

import inspect
from dataclasses import fields
from pathlib import Path

import lightning as L
import pytest

from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.signature import signature
from lpo_platform.hardware.trainer_flags import PROFILERS, TrainerFlags

FLAGS = set(inspect.signature(L.Trainer.__init__).parameters) - {"self"}
TAKEN = {field.name for field in fields(TrainerFlags)}


def test_every_flag_of_the_trainer_is_taken_or_refused() -> None:
    assert TAKEN | set(TrainerFlags.refused) == FLAGS
    assert TAKEN & set(TrainerFlags.refused) == set()


@pytest.mark.parametrize("sign", ["+", "++", ""])
def test_a_flag_that_would_break_a_guarantee_is_refused_with_the_reason(sign: str) -> None:
    line = ["method=lpo", *(f"{sign}trainer.{flag}=1" for flag in TrainerFlags.refused)]
    assert diagnose("train", line) == [
        f"trainer.{flag}: not to be set here: {reason}" for flag, reason in TrainerFlags.refused.items()
    ]


def test_a_reason_names_settings_that_there_are() -> None:
    for flag, reason in TrainerFlags.refused.items():
        for name in (word.strip(";,") for word in reason.split() if word.startswith("hardware.")):
            assert signature("lpo_platform.hardware.hardware.Hardware")[name.removeprefix("hardware.")], flag


@pytest.mark.parametrize("name", PROFILERS)
def test_a_profiler_writes_into_the_run_folder(name: str, tmp_path: Path) -> None:
    options = TrainerFlags(profiler=name).options(tmp_path)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    assert type(trainer.profiler) is PROFILERS[name] and trainer.profiler.dirpath == tmp_path
