"""A cache on disk, built in parts, that may be stopped at any moment and never returns what is not its own.

Layout: `<folder>/<first 16 digits of the fingerprint>/<first item>-<past the last item>.safetensors`, one
file per shard, tensors and texts together. A cache of another fingerprint lies in another folder; a file that
was cut short, altered or copied from elsewhere fails its digest and counts as missing. Any may be deleted.

Item i depends on the fingerprint and on i only, so a cache that grows keeps the whole shards it has.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.runs.files import write_atomically

FORMAT = "1"  # raise it when the meaning of a shard changes: older files then count as missing
Shard = tuple[dict[str, Tensor], dict[str, list[str]]]


class CacheError(UserError):
    """A cache cannot be written or read; the message names the file and what to do."""


class Damaged(Exception):
    """A shard file is torn, altered or foreign; the message says in which way."""


def _digest(tensors: dict[str, Tensor], described: dict[str, str]) -> str:
    """sha256 over names, types, shapes and bytes of the tensors and over the description beside them."""
    result = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        result.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        result.update(value.reshape(-1).view(torch.uint8).numpy())
    return result.hexdigest()


class Cache:
    """`total` items in shards of `shard_size`; several processes may build disjoint shards."""

    def __init__(self, folder: str | Path, fingerprint: str, total: int, shard_size: int) -> None:
        if total < 0 or shard_size < 1:
            raise ValueError(f"Cache needs total >= 0 and shard_size >= 1, got {total} and {shard_size}")
        self.fingerprint = fingerprint
        self.total = total
        self.folder = Path(folder) / fingerprint[:16]
        self.shards = [range(i, min(i + shard_size, total)) for i in range(0, total, shard_size)]
        self._checked: dict[range, tuple[int, int]] = {}  # size and time of files that passed their digest

    def path(self, shard: range) -> Path:
        """The file of one shard."""
        return self.folder / f"{shard.start:08d}-{shard.stop:08d}.safetensors"

    def missing(self) -> list[range]:
        """Shards that are not there or not whole, in order: what is still to build."""
        return [shard for shard in self.shards if not self._is_whole(shard)]

    def complete(self) -> bool:
        """True when `load` can give everything."""
        return not self.missing()

    def write(self, shard: range, tensors: dict[str, Tensor], texts: dict[str, list[str]]) -> None:
        """Store one shard, atomically.

        Every tensor has the shard's items on its first axis (any dtype: uint8 for maps), every list one text
        per item. Raises ValueError for a shard or length that does not fit, CacheError when writing fails.
        """
        self._check_lengths(shard, tensors, texts)
        # Copies, because safetensors refuses tensors that share storage.
        values = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        described = self._description(shard, texts)
        content = save(values, {**described, "digest": _digest(values, described)})
        try:
            write_atomically(self.path(shard), content)
        except OSError as error:
            raise CacheError(
                f"{self.path(shard)}: cannot write {len(content) / 1e6:.1f} MB ({error.strerror}); "
                "free space or choose another cache folder, then run the command again: it goes on from here"
            ) from error

    def load(self) -> Shard:
        """All tensors and texts, concatenated in order.

        Raises CacheError when shards are missing or damaged, or do not hold the same names, types and shapes.
        """
        if not self.shards:
            return {}, {}
        absent = [shard for shard in self.shards if not self.path(shard).exists()]
        if absent:
            raise CacheError(
                f"{self.folder}: {len(absent)} of {len(self.shards)} shards are not built yet, first "
                f"{self.path(absent[0]).name}; run lpo-prepare with the same arguments, it builds them"
            )
        parts = [self._read_or_explain(shard) for shard in self.shards]
        self._check_alike(parts)
        tensors = {name: torch.cat([part[0][name] for part in parts]) for name in parts[0][0]}
        texts = {name: [text for part in parts for text in part[1][name]] for name in parts[0][1]}
        return tensors, texts

    def _description(self, shard: range, texts: dict[str, list[str]]) -> dict[str, str]:
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "items": f"{shard.start}-{shard.stop}",
            "texts": json.dumps(texts),
        }

    def _check_lengths(self, shard: range, tensors: dict[str, Tensor], texts: dict[str, list[str]]) -> None:
        if shard not in self.shards:
            raise ValueError(f"{shard} is not a shard; they are {self.shards[:2]} and so on to {self.total}")
        lengths = {name: value.shape[0] if value.ndim else 0 for name, value in tensors.items()}
        lengths |= {name: len(value) for name, value in texts.items()}
        wrong = {name: length for name, length in lengths.items() if length != len(shard)}
        if wrong:
            raise ValueError(f"items {shard.start}-{shard.stop} need first axes of {len(shard)}, got {wrong}")

    def _read(self, shard: range) -> Shard:
        """One shard, checked against its digest. Raises Damaged or OSError."""
        try:
            with safe_open(self.path(shard), framework="pt") as file:
                described = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise Damaged(f"is not a whole safetensors file ({error})") from error
        digest = described.pop("digest", None)
        expected = {"format": FORMAT, "fingerprint": self.fingerprint, "items": f"{shard.start}-{shard.stop}"}
        for key, value in expected.items():
            if described.get(key) != value:
                raise Damaged(f"belongs to another cache ({key} {described.get(key)!r}, expected {value!r})")
        if _digest(tensors, described) != digest:
            raise Damaged("does not match its digest")
        return tensors, json.loads(described["texts"])

    def _is_whole(self, shard: range) -> bool:
        try:
            status = self.path(shard).stat()
            state = (status.st_size, status.st_mtime_ns)
            if self._checked.get(shard) != state:
                self._read(shard)
                self._checked[shard] = state
        except (OSError, Damaged):
            return False
        return True

    def _read_or_explain(self, shard: range) -> Shard:
        try:
            return self._read(shard)
        except Damaged as error:
            raise CacheError(
                f"{self.path(shard)}: {error}; run lpo-prepare with the same arguments, it rebuilds it"
            ) from error
        except OSError as error:
            raise CacheError(f"{self.path(shard)}: cannot be read ({error.strerror}); check its permissions") from error

    def _check_alike(self, parts: list[Shard]) -> None:
        def form(part: Shard) -> tuple[dict[str, tuple[torch.dtype, torch.Size]], set[str]]:
            return {name: (value.dtype, value.shape[1:]) for name, value in part[0].items()}, set(part[1])

        for shard, part in zip(self.shards, parts, strict=True):
            if form(part) != form(parts[0]):
                raise CacheError(
                    f"{self.path(shard)}: holds {form(part)}, but {self.path(self.shards[0]).name} holds "
                    f"{form(parts[0])}; delete {self.folder} and build it again"
                )
