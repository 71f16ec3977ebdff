"""What a run reads of its training samples: how many there are, how often each is made, and what is kept."""

from dataclasses import dataclass
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from lpo_platform.config.schema import KEPT


@dataclass(frozen=True)
class Reading:
    """Samples of an offline run.

    Attributes:
        rows: that the data have; None where nobody knows, and every sample is taken for another one.
        reads: samples of all steps.
        distinct: rows that are read at all.
        kept: rows that the cache holds in the end.
        makes: how often a row is made; more than once where it is read again and was not kept.
    """

    rows: int | None
    reads: int
    distinct: int
    kept: int
    makes: int


def reading_of(cfg: DictConfig, row: float) -> Reading:
    """What a configuration reads; row: bytes of one that is kept."""
    settings = KEPT | OmegaConf.to_container(cfg.data, resolve=True)
    reads, rows = cfg.method.steps * cfg.method.batch, rows_of(cfg.data)
    passes, rest = divmod(reads, rows or reads)
    distinct = min(rows or reads, reads)
    again = {0: 0, 1: rest}.get(passes, rows or reads)  # a pass has every row once
    wanted = {"auto": again, "all": distinct, "none": 0}[settings["cache"]]
    kept = min(wanted, int(1e9 * settings["cache_gb"] // max(1, row)))
    makes = reads if not again else distinct + round((reads - distinct) * (1 - min(kept, again) / again))
    return Reading(rows, reads, distinct, kept, makes)


def rows_of(data: DictConfig) -> int | None:
    """The rows to train on, as far as the data option can count them without reading them."""
    settings: dict[str, Any] = OmegaConf.to_container(data, resolve=True)
    count = getattr(get_class(data._target_), "count", None)
    return None if count is None or "???" in settings.values() else count(settings)
