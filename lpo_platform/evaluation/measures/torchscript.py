"""The weights of a TorchScript archive, without running anything that is in it."""

import pickle
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORAGES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "DoubleStorage": torch.float64,
            "LongStorage": torch.int64}  # fmt: skip


def read_archive(path: Path) -> dict[str, Tensor]:
    """Returns parameters and buffers by their dotted names.

    Raises pickle.UnpicklingError where the archive asks for anything else, zipfile.BadZipFile or KeyError where the
    file is no such archive.
    """
    with zipfile.ZipFile(path) as archive:
        (index,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
        return dict(_flat(_Reader(archive, index).load()))


class _Module:
    """What stands for a module of the archive: its attributes."""


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, index: str) -> None:
        super().__init__(BytesIO(archive.read(index)))
        self.archive, self.data = archive, index.removesuffix("data.pkl") + "data/"

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return type(name, (_Module,), {})
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch.jit._pickle", "build_intlist"): list,
            **{("torch", storage): dtype for storage, dtype in STORAGES.items()},
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not needed for weights")
        return known[module, name]

    def persistent_load(self, identity: tuple) -> Tensor:
        _, dtype, key, _, count = identity
        return torch.frombuffer(bytearray(self.archive.read(self.data + key)), dtype=dtype, count=count)


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _flat(module: _Module, prefix: str = "") -> Any:
    for name, value in vars(module).items():
        if isinstance(value, _Module):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield prefix + name, value
