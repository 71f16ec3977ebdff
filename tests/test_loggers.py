"""No test and no shared fixture leaves levels or handlers of loggers behind, which would change what others record."""

import logging

import pytest
from hydra.core.utils import configure_log
from omegaconf import OmegaConf
from toys.runs import REPO

OURS = logging.getLogger("lpo_platform")


def as_a_command_does() -> None:
    """What hydra.main does before a job, without the file."""
    cfg = OmegaConf.load(REPO / "conf" / "hydra" / "job_logging" / "run.yaml")
    del cfg.handlers.file
    cfg.root.handlers = ["console"]
    configure_log(cfg)
    OURS.setLevel(logging.ERROR)


def untouched() -> bool:
    return logging.root.level == logging.WARNING and OURS.level == logging.NOTSET


@pytest.fixture(scope="module")
def shared() -> None:
    as_a_command_does()


@pytest.mark.parametrize("time", range(2))
def test_nothing_is_left_behind(shared: None, time: int) -> None:
    assert untouched()
    as_a_command_does()
    assert logging.root.level == logging.INFO and not untouched()
