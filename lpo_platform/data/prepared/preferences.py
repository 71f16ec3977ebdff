"""Preference data with everything frozen already computed: VAE moments of the pictures, tokens and text of the prompt.

The parameters of the posterior are in half precision (64 KiB for a picture of 512 px), and it is sampled anew at every
step.
"""

from collections.abc import Collection
from functools import partial

import numpy as np
import torch

from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.rows import Preparation
from lpo_platform.data.prepared.store import Columns
from lpo_platform.data.source import Preference, Preferences
from lpo_platform.models.adapter import Adapter
from lpo_platform.runs.files import fingerprint

VERSION = 2  # raise it when the columns change their meaning
TIE = "row that names no winner"


def preparation(
    source: Preferences, adapter: Adapter, *, columns: Collection[str], title: str, decided: bool = False
) -> Preparation:
    """How the columns that a method needs are computed. decided: leaves out rows whose labels name no winner."""
    text = "text" in columns
    key = fingerprint("preferences", VERSION, source.fingerprint, adapter.fingerprint, text)
    encode = partial(_encode, source=source, adapter=adapter, text=text)
    numbers, accepts = (_with_winner(source), _winner) if decided else (None, None)
    weights = torch.ones(len(source)) if source.weights is None else source.weights
    return Preparation(source, key, encode, title, numbers, weights, accepts)


def _with_winner(source: Preferences) -> np.ndarray | None:
    """The rows that name a winner, None where that is not known before they are read. UserError if there is none."""
    preferred = getattr(source, "preferred", None)
    if preferred is None:
        return None
    found = np.flatnonzero(np.asarray(preferred) != 0.5)
    if not len(found):
        raise UserError(f"all {len(source)} usable preferences are ties; the method needs rows with a winner")
    return found


def _winner(row: Columns) -> str:
    preferred = row["labels"].mean(1)
    return "" if preferred.amax() > preferred.amin() else TIE


def _encode(items: list[object], source: Preferences, adapter: Adapter, text: bool) -> Columns:
    rows: list[Preference] = source.draw(items) if hasattr(source, "draw") else items
    tokens = adapter.tokenize([row.caption for row in rows])
    columns = {
        "moments": torch.stack([adapter.encode_moments(row.images.to(adapter.device)) for row in rows]).half(),
        "tokens": tokens,
        "labels": torch.stack([row.labels for row in rows]),
        "gaps": torch.tensor([row.gaps or (torch.nan,) * 3 for row in rows]),
    }
    return columns | ({"text": adapter.embed(tokens)} if text else {})
