"""A pretended CUDA device: tensors that say cuda:0, refuse what CUDA refuses, and compute on the CPU.

It shows on any machine what else only a GPU shows: tensors of two devices that meet, weights that were left behind,
types that autocast does not expect (pretended_autocast.py), a stream that does not wait (pretended_streams.py), a
generator of the wrong device, a copy to the host that is read too early. It does not show speed, memory, races or the
GPU's own rounding, and it has no Triton, no NCCL and no CUDA graphs.

A pretended tensor holds the real one, on the CPU, as `host`. For torch's C++ it is a tensor of the meta device with the
same shape and strides, so nothing there looks for a driver; Python sees cuda:0. Operators reach `run` below autograd.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # it looks at torch.cuda while it is imported, which a call of a mode may do
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from toys import pretended_streams as streams
from toys.pretended_autocast import autocast

GPU = torch.device("cuda", 0)
MEMORY = 80 * 2**30
aten = torch.ops.aten

INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
"""A tensor on the GPU may be indexed by one on the CPU, though the host then waits."""
BETWEEN = {aten.copy_, aten._to_copy, aten.set_, aten.is_same_size, aten.lift_fresh}
SCALARS = {aten.where, aten.masked_fill, aten.masked_fill_, aten.fill_, aten.fill, aten.lerp, aten.lerp_,
           aten._foreach_mul_, aten._foreach_mul, aten._foreach_add_, aten._foreach_div_, aten._foreach_lerp_,
           aten._foreach_addcdiv_, aten._foreach_pow, aten._foreach_norm, aten._fused_adamw_}  # fmt: skip
"""Beside the pointwise operators those that take a CPU tensor without dimensions as a number."""
VALUES = {aten._local_scalar_dense, aten.equal}


def _rms_norm_backward(
    gradient: Tensor, x: Tensor, shape: list[int], rstd: Tensor, weight: Tensor | None, mask: list[bool]
) -> tuple[Tensor, Tensor | None]:
    """The gradients of rms_norm's input and weight."""
    gradient, along, before = gradient.float(), tuple(range(-len(shape), 0)), tuple(range(x.ndim - len(shape)))
    normal = x.float() * rstd
    scaled = gradient if weight is None else gradient * weight.float()
    of_x = (scaled - normal * (scaled * normal).mean(along, keepdim=True)) * rstd
    return of_x.to(x.dtype), None if weight is None else (gradient * normal).sum(before).to(weight.dtype)


ONLY_ON_CUDA = {aten._fused_rms_norm_backward: _rms_norm_backward}
"""Operators that torch's CPU has not."""


class OtherDevice(RuntimeError):
    """What CUDA refuses because a tensor or a generator is elsewhere."""


class GpuTensor(Tensor):
    """A tensor that says cuda:0."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, requires_grad: bool = False, **_: Any) -> "GpuTensor":
        if isinstance(host, GpuTensor):  # accelerate makes a parameter again by the class of the old one
            return nn.Parameter(host, requires_grad)
        self = Tensor._make_subclass(cls, _shell(host), False, device_for_backend_keys=GPU)
        self.host = host
        return self

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, kwargs or {})

    @property
    def data(self) -> "GpuTensor":
        return self.detach()

    @data.setter
    def data(self, value: "GpuTensor") -> None:
        if not isinstance(value, GpuTensor):
            raise OtherDevice("incompatible tensor type: .data of a CUDA tensor cannot become a CPU tensor")
        Tensor.data.__set__(self, value)
        self.host = value.host

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        return self.to("cpu")

    def cuda(self, *_: Any, **__: Any) -> "GpuTensor":
        return self

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(device or GPU).requires_grad_(requires_grad)

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def type(self, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        return Tensor.type(self.host).replace("torch.", "torch.cuda.") if dtype is None else self.to(dtype)

    def record_stream(self, stream: Any) -> None: ...

    def __getitem__(self, index: Any) -> "GpuTensor":
        return Tensor.__getitem__(self, _indices(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        Tensor.__setitem__(self, _indices(index), value)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.host!r})"

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.host.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict) -> "GpuTensor":
        if id(self) not in memo:
            with torch.no_grad():
                copy = self.detach().clone()
            parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(copy) if parameter else copy
            memo[id(self)].requires_grad_(self.requires_grad)
        return memo[id(self)]


def _indices(index: Any) -> Any:
    """Lists of numbers as tensors, which C++ would make on the meta device."""
    if isinstance(index, tuple):
        return tuple(map(_indices, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _shell(host: Tensor) -> Tensor:
    """A meta tensor that lies in memory as the real one does: autograd replays views by strides and offset."""
    shape, stride, offset = host.shape, host.stride(), host.storage_offset()
    if not offset:
        return torch.empty_strided(shape, stride, dtype=host.dtype, device="meta")
    room = torch.empty(host.untyped_storage().nbytes() // host.itemsize, dtype=host.dtype, device="meta")
    return room.as_strided(shape, stride, offset)


class Meant:
    """Whether a device is Python's own word: C++ says "meta" where it copies a pretended tensor's device."""

    local = threading.local()

    @classmethod
    def cuda(cls, device: Any, *, copied: bool) -> bool:
        """copied: whether a pretended tensor can be where C++ has it from."""
        kind = torch.device(device).type
        return kind == "cuda" or (kind == "meta" and copied and not getattr(cls.local, "meta", False))


def run(func: Any, args: tuple, kwargs: dict) -> Any:
    """One operator: refuses as CUDA would, computes on the CPU, and wraps what comes out if it belongs on the GPU."""
    if func is torch.ops.prim.device.default:
        return args[0].device
    packet, device = func.overloadpacket, kwargs.get("device")
    there, here = _sorted((*args, *kwargs.values()))
    meta = any(value.is_meta for value in here) if here else False
    if there and here:
        if meta:
            raise OtherDevice(f"{func}: a tensor on cuda:0 and one on meta")
        if packet not in BETWEEN:
            _refuse_mixed(func, args, there, here)
    to_gpu = bool(there) if device is None else Meant.cuda(device, copied=not meta)
    if packet is aten.copy_:
        to_gpu = isinstance(args[0], GpuTensor)
    if "generator" in kwargs:
        _refuse_others(func, kwargs["generator"], to_gpu=bool(there) or to_gpu)
    if streams.Stream.count > 1:
        streams.read([_storage(value) for value in there], str(func))
    if kwargs and (there or to_gpu):
        kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory" or not value}
        if "device" in kwargs and to_gpu:
            kwargs["device"] = torch.device("cpu")
    if there and (packet in VALUES or not to_gpu):
        if kwargs.pop("non_blocking", False):
            return streams.send(func(*map(_host, args), **kwargs))
        streams.arrive(streams.current().sent)  # the host waits for all that the stream has to do
    work = ONLY_ON_CUDA.get(packet, func)
    out = work(*map(_host, args), **({name: _host(value) for name, value in kwargs.items()} if kwargs else {}))
    if packet in VALUES or not to_gpu:
        return out
    return _wrapped(func, out, {id(value.host): value for value in there})


def _wrapped(func: Any, out: Any, known: dict[int, GpuTensor]) -> Any:
    """Results as tensors of the GPU; one that was changed in place is the one that came in."""

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, GpuTensor):
            return value
        if (same := known.get(id(value))) is None:
            return GpuTensor(value)
        if same.shape != value.shape or same.dtype != value.dtype:
            raise NotImplementedError(f"{func} changes the shape of a pretended tensor in place")
        return same

    wrapped = type(out)(map(wrap, out)) if isinstance(out, (list, tuple)) else wrap(out)
    if streams.Stream.count > 1:
        views = {_storage(value) for value in known.values()} if not func._schema.is_mutable else set()
        made = _tensors(wrapped if isinstance(wrapped, (list, tuple)) else (wrapped,))
        streams.write([storage for value in made if (storage := _storage(value)) not in views])
    return wrapped


def _tensors(values: Iterable) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _sorted(values: Iterable) -> tuple[list[GpuTensor], list[Tensor]]:
    """(the tensors on the GPU, those elsewhere)."""
    there, here = [], []
    for value in _tensors(values):
        (there if isinstance(value, GpuTensor) else here).append(value)
    return there, here


def _host(value: Any) -> Any:
    if isinstance(value, GpuTensor):
        return value.host
    return type(value)(map(_host, value)) if isinstance(value, (list, tuple)) else value


def _storage(value: GpuTensor) -> int:
    return value.host.untyped_storage()._cdata


def _refuse_mixed(func: Any, args: tuple, there: list[GpuTensor], here: list[Tensor]) -> None:
    if func.overloadpacket in INDEXED:
        if not isinstance(args[0], GpuTensor):
            raise OtherDevice(f"{func}: indices should be on cpu as the indexed tensor is, not on cuda:0")
        values = args[2] if len(args) > 2 else None
        if isinstance(values, Tensor) and not isinstance(values, GpuTensor) and values.ndim:
            raise OtherDevice(f"{func}: Expected all tensors to be on the same device, the values are on cpu")
    elif any(value.ndim for value in here) or not (torch.Tag.pointwise in func.tags or func.overloadpacket in SCALARS):
        raise OtherDevice(
            f"{func}: Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"On cuda:0 {[tuple(value.shape) for value in there]}, on cpu {[tuple(value.shape) for value in here]}"
        )


def _refuse_others(func: Any, generator: Any, *, to_gpu: bool) -> None:
    if isinstance(generator, torch.Generator) and to_gpu and generator.device.type == "cpu":
        raise OtherDevice(f"{func}: Expected a 'cuda' device type for generator but found 'cpu'")


class Operators(TorchDispatchMode):
    """Brings the operators that make a tensor on the GPU, and those without a pretended tensor, to run()."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch would put two calls in front of each operator, so that a compiler leaves it alone; nothing compiles."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return run(func, args, kwargs or {})


class Calls(TorchFunctionMode):
    """Calls of Python, where a device is the caller's own word."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.to, Tensor.cuda):
            return _to(func, args, kwargs)
        if (device := kwargs.get("device")) is None:
            first = args[0] if args else None
            on_meta = isinstance(first, Tensor) and not isinstance(first, GpuTensor) and first.is_meta
            return _on_purpose(func, args, kwargs) if on_meta else func(*args, **kwargs)
        work = _on_purpose if torch.device(device).type == "meta" else lambda func, args, kwargs: func(*args, **kwargs)
        return work(func, args, kwargs | {"device": _numbered(device)})


def _to(func: Any, args: tuple, kwargs: dict) -> Tensor:
    """Tensor.to and Tensor.cuda."""
    if func is Tensor.cuda:
        return args[0].to(GPU)
    values = [*args[1:], *kwargs.values()]
    if any(isinstance(value, (str, torch.device)) and torch.device(value).type == "meta" for value in values):
        return _on_purpose(func, args, kwargs)
    if others := [value for value in values if isinstance(value, GpuTensor)]:
        rest = {name: value for name, value in kwargs.items() if name != "other"}
        return args[0].to(GPU, others[0].dtype, **rest)
    return func(args[0], *map(_numbered, args[1:]), **{name: _numbered(value) for name, value in kwargs.items()})


def _numbered(value: Any) -> Any:
    """`cuda` as cuda:0: C++ would ask the driver for the number."""
    return GPU if isinstance(value, (str, torch.device)) and torch.device(value).type == "cuda" else value


def _on_purpose(func: Callable, args: tuple, kwargs: dict) -> Any:
    before, Meant.local.meta = getattr(Meant.local, "meta", False), True
    try:
        return func(*args, **kwargs)
    finally:
        Meant.local.meta = before


@contextmanager
def modes() -> Iterator[None]:
    """What each thread has of its own."""
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is made on the CPU and moved
    try:
        with Operators(), Calls():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def _in_threads() -> Any:
    """Threads have no modes of their own: one that is started meanwhile gets them, as every thread sees a GPU."""
    start = threading.Thread.run

    def begin(self: threading.Thread) -> None:
        with modes():
            start(self)

    return mock.patch.object(threading.Thread, "run", begin)


def _cuda() -> dict[str, Any]:
    """What torch.cuda answers of this device."""
    name = "Pretended H100"  # whose FLOP/s the plan knows, and need not measure
    properties = SimpleNamespace(name=name, major=9, minor=0, total_memory=MEMORY, multi_processor_count=132)
    nothing = lambda *_, **__: None  # noqa: E731
    return {
        "_lazy_init": nothing, "is_available": lambda: True, "is_initialized": lambda: False, "device_count": lambda: 1,
        "current_device": lambda: 0, "set_device": nothing, "get_device_name": lambda *_: properties.name,
        "get_device_properties": lambda *_: properties, "get_device_capability": lambda *_: (9, 0),
        "is_bf16_supported": lambda *_, **__: True, "mem_get_info": lambda *_: (MEMORY, MEMORY),
        "memory_allocated": lambda *_: 0, "max_memory_allocated": lambda *_: 0, "memory_stats": lambda *_: {},
        "reset_peak_memory_stats": nothing, "empty_cache": nothing,
        "synchronize": lambda *_: streams.DEFAULT.synchronize(), "manual_seed": nothing, "manual_seed_all": nothing,
        "get_rng_state_all": list, "set_rng_state_all": nothing, "is_current_stream_capturing": lambda: False,
        "Stream": streams.Stream, "Event": streams.Event, "stream": streams.On, "current_stream": streams.current,
    }  # fmt: skip


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """Inside, torch finds one GPU."""
    streams.forget()
    swap = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as stack:
        for name, value in _cuda().items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for owner, name, value in (
            (torch._C, "_cuda_clearCublasWorkspaces", lambda: None),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch.amp.grad_scaler, "amp_definitely_not_available", lambda: False),
            (torch.accelerator, "current_accelerator", lambda *_, **__: GPU),
            (torch.accelerator, "is_available", lambda: True),
            (torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None),
            (torch.optim.Optimizer, "_cuda_graph_capture_health_check", lambda self: None),
            (Tensor, "pin_memory", lambda self, *_, **__: self),
            (Tensor, "is_pinned", lambda self, *_: False),
        ):
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        stack.enter_context(_in_threads())
        stack.enter_context(autocast(lambda value: isinstance(value, GpuTensor)))
        torch.__future__.set_swap_module_params_on_conversion(True)  # so that .to keeps a parameter's identity
        try:
            with modes():
                yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swap)
