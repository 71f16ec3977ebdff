"""Preference data with everything frozen already computed: VAE moments of the pictures, tokens and text of the prompt.

The parameters of the posterior are kept in half precision (64 KiB for a picture of 512 px), and it is sampled anew at
every step. Rows that cannot be read are counted, reported and left out.
"""

import copy
import logging
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.cache import Cache
from lpo_platform.data.prepared.conditions import ConditionPairs
from lpo_platform.data.source import Preference, Preferences
from lpo_platform.data.tables.decode import Unusable
from lpo_platform.hardware.distributed import deal, everywhere, wait
from lpo_platform.models.adapter import Adapter
from lpo_platform.runs.files import fingerprint

VERSION = 1  # raise it when the columns change their meaning
log = logging.getLogger(__name__)


class PreferenceRows(Dataset):
    """The usable rows of a complete cache: column name -> tensor. weights (N,): how much each counts."""

    def __init__(self, cache: Cache) -> None:
        self.stored = ConditionPairs(cache)
        self._keep(self._column("usable").nonzero().flatten())

    def decided(self) -> "PreferenceRows":
        """The rows whose labels name a winner. UserError if there is none."""
        preferred = self._column("labels").mean(2)
        winner = preferred.amax(1) > preferred.amin(1)
        decided = copy.copy(self)
        decided._keep(self.rows[winner[self.rows]])
        if len(decided) == 0:
            raise UserError(f"all {len(self)} usable preferences are ties; the method needs rows with a winner")
        return decided

    def _keep(self, rows: Tensor) -> None:
        self.rows, self.weights = rows, self._column("weight")[rows]

    def _column(self, name: str) -> Tensor:
        return torch.cat([self.stored.column(shard, name) for shard in self.stored.cache.shards])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return self.stored[int(self.rows[row])]


def cache_of(source: Preferences, adapter: Adapter, *, text: bool, folder: Path) -> Cache:
    """The cache of a split's rows; `text` says whether it holds the embedded prompt."""
    key = fingerprint("preferences", VERSION, source.fingerprint, adapter.fingerprint, text)
    return Cache(folder, key, len(source), shard_size=64)


@torch.no_grad()
def prepare(cache: Cache, source: Preferences, adapter: Adapter, *, text: bool, title: str) -> PreferenceRows:
    """Builds what is missing of the cache, with a progress bar, and opens it. UserError if no row is usable."""
    missing = deal(cache.missing())
    reasons: list[str] = []
    with tqdm(total=len(source), desc=title, unit="row", initial=len(source) - sum(map(len, missing))) as bar:
        for shard in missing:
            rows = [_read(source, i, reasons) for i in shard]
            cache.write(shard, _encode(rows, adapter, text), {"caption": [r.caption if r else "" for r in rows]})
            bar.update(everywhere(len(rows), bar.total - bar.n))
    for reason in reasons[:5]:
        log.warning("left out: %s", reason)
    if len(reasons) > 5:
        log.warning("left out: %d more rows", len(reasons) - 5)
    wait()
    opened = PreferenceRows(cache)
    if len(opened) == 0:
        raise UserError(f"none of the {len(source)} {title} could be read")
    return opened


def _read(source: Preferences, i: int, reasons: list[str]) -> Preference | None:
    try:
        return source[i]
    except Unusable as error:
        reasons.append(str(error))
        return None


def _encode(rows: list[Preference | None], adapter: Adapter, text: bool) -> dict[str, Tensor]:
    """Columns of a shard; a row that could not be read is zeros and not usable."""
    count = next((len(row.images) for row in rows if row), 2)
    tokens = adapter.tokenize([row.caption if row else "" for row in rows])
    moments = torch.zeros(len(rows), count, 2 * adapter.latent_shape[0], *adapter.latent_shape[1:], dtype=torch.half)
    for i, row in enumerate(rows):
        if row:
            moments[i] = adapter.encode_moments(row.images.to(adapter.device)).half().cpu()
    columns = {
        "moments": moments,
        "tokens": tokens,
        "labels": torch.stack([row.labels if row else torch.full((count, count), 0.5) for row in rows]),
        "weight": torch.tensor([row.weight if row else 0.0 for row in rows]),
        "gaps": torch.tensor([row.gaps if row and row.gaps else (torch.nan,) * 3 for row in rows]),
        "usable": torch.tensor([row is not None for row in rows]),
    }
    return columns | ({"text": adapter.embed(tokens).cpu()} if text else {})
