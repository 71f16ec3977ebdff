"""The pretended device: what it allows, what it refuses, and that it computes what the CPU computes."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toys import pretended_streams, size
from toys.pretended_autocast import operators
from toys.pretended_cuda import GPU, GpuTensor, OtherDevice, pretended_cuda

from lpo_platform.methods.overlap import Overlap


@pytest.fixture
def gpu():
    with pretended_cuda():
        yield GPU
    assert not torch.cuda.is_available() or torch.cuda.device_count() > 0


def step(module: UNet2DConditionModel, device: torch.device) -> list[Tensor]:
    x, t, text, _ = (value.to(device) for value in size.inputs())
    loss = module(x, t, text).sample.square().mean()
    loss.backward()
    return [weight.grad for weight in module.parameters() if weight.grad is not None]


def test_a_whole_network_has_the_gradients_of_the_cpu(gpu: torch.device) -> None:
    module = size.unet()
    expected = step(copy.deepcopy(module), torch.device("cpu"))
    found = step(module.to(gpu), gpu)
    assert all(isinstance(gradient, GpuTensor) for gradient in found)
    assert len(found) == len(expected) > 100
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)


@pytest.mark.parametrize("weighted", [True, False])
def test_what_only_cuda_has_is_right(gpu: torch.device, weighted: bool) -> None:
    def gradients(device: torch.device) -> list[Tensor]:
        torch.manual_seed(0)
        x = torch.randn(3, 5, 4).to(device).requires_grad_()
        weight = torch.randn(4).to(device).requires_grad_() if weighted else None
        (F.rms_norm(x, (4,), weight, 1e-6) * torch.randn(3, 5, 4).to(device)).sum().backward()
        return [x.grad.cpu(), *([weight.grad.cpu()] if weighted else [])]

    torch.testing.assert_close(gradients(gpu), gradients(torch.device("cpu")))


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: nn.Linear(3, 2)(x),
        lambda x: torch.ones(3)[x.long()],
        lambda x: torch.where(x > 0, x, torch.zeros(3)),
        lambda x: torch.randn(3, device=x.device, generator=torch.Generator()),
        lambda x: x.numpy(),
        lambda x: setattr(x, "data", torch.ones(3)),
        lambda x: x + torch.empty(3, device="meta"),
        lambda x: torch.empty(3, device="meta").to(x.device),
    ],
)
def test_what_cuda_refuses_is_refused(gpu: torch.device, work: object) -> None:
    with pytest.raises((OtherDevice, TypeError, NotImplementedError)):
        work(torch.ones(3, device=gpu))


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x * torch.tensor(2.0),
        lambda x: x[torch.tensor([0, 2])],
        lambda x: x[[0, 2]],
        lambda x: torch.ones(3).to(x),
        lambda x: torch.ones(3).copy_(x),
        lambda x: x.new_zeros(3),
        lambda x: torch.full_like(x, 2.0),
        lambda x: x.type_as(x.double()),
        lambda x: torch.tensor(1.0, device=x.device.type),
        lambda x: torch.ones(2, device=str(x.device)),
    ],
)
def test_what_cuda_allows_is_allowed(gpu: torch.device, work: object) -> None:
    torch.testing.assert_close(work(torch.ones(3, device=gpu)).cpu(), work(torch.ones(3)))


def test_meta_stays_meta(gpu: torch.device) -> None:
    with torch.device("meta"):
        assert nn.Linear(2, 2).weight.is_meta
        assert nn.Conv2d(2, 2, 1).to(memory_format=torch.channels_last).weight.is_meta
        x = torch.ones(1, 1, 2, 4)
        assert F.scaled_dot_product_attention(x, x, x, is_causal=True).is_meta
    assert torch.empty(2, device="meta").is_meta and torch.ones(2).to("meta").is_meta


@pytest.mark.parametrize("move", [{"device": "cuda"}, {"memory_format": torch.channels_last}, {"dtype": torch.float16}])
def test_parameters_keep_their_identity(gpu: torch.device, move: dict) -> None:
    module = nn.Conv2d(2, 3, 3).to(gpu if "device" not in move else "cpu")
    weight, optimizer = module.weight, torch.optim.AdamW(module.parameters(), fused=True)
    module.to(**move)
    assert module.weight is weight and isinstance(weight, nn.Parameter) and weight.is_cuda
    if "dtype" not in move:
        before = weight.detach().clone()
        module(torch.ones(1, 2, 4, 4, device=gpu)).sum().backward()
        optimizer.step()
        assert not torch.equal(before, module.weight)
    module.cpu()
    assert module.weight is weight and type(weight) is nn.Parameter


def test_a_view_that_is_changed_in_place_has_its_own_gradient(gpu: torch.device) -> None:
    def gradient(device: torch.device) -> Tensor:
        x = torch.ones(2, 4, device=device, requires_grad=True)
        y = x * 1
        y[1, 2:] *= 3
        y.sum().backward()
        return x.grad.cpu()

    torch.testing.assert_close(gradient(gpu), gradient(torch.device("cpu")))


LOWER, FULL = torch.float16, torch.float32
SQUARE = torch.eye(4)[None]


@pytest.mark.parametrize(
    ("work", "dtype"),
    [
        (lambda x: x @ x, LOWER),
        (lambda x: torch.einsum("bij,bjk->bik", x, x), LOWER),
        (lambda x: F.linear(x, x[0]), LOWER),
        (lambda x: F.conv2d(x[:, None], x[:, None]), LOWER),
        (lambda x: F.conv_transpose2d(x[:, None], x[:, None]), LOWER),
        (lambda x: F.scaled_dot_product_attention(x, x, x), LOWER),
        (lambda x: torch.baddbmm(x, x, x), LOWER),
        (lambda x: x.half().softmax(-1), FULL),
        (lambda x: F.log_softmax(x.half(), -1), FULL),
        (lambda x: x.half().sum(), FULL),
        (lambda x: x.half().sum(-1), FULL),
        (lambda x: x.half().sum(-1, dtype=torch.float16), LOWER),
        (lambda x: x.half().exp(), FULL),
        (lambda x: x.half() ** 2, FULL),
        (lambda x: x.half().norm(), FULL),
        (lambda x: torch.linalg.vector_norm(x.half()), FULL),
        (lambda x: F.mse_loss(x.half(), x.half()), FULL),
        (lambda x: F.group_norm(x.half(), 1), FULL),
        (lambda x: F.layer_norm(x.half(), (4,)), FULL),
        (lambda x: F.interpolate(x[:, None].half(), scale_factor=2.0, mode="bilinear"), FULL),
        (lambda x: torch.cat([x.half(), x]), FULL),
        (lambda x: F.grid_sample(x[:, None].half(), torch.zeros_like(x[..., :2])[:, None], align_corners=False), FULL),
        (lambda x: F.silu(x.half()), LOWER),
        (lambda x: x.half().mean(), LOWER),
        (lambda x: x.double() @ x.double(), torch.float64),
    ],
)
def test_autocast_chooses_as_torchs_documentation_says(gpu: torch.device, work: object, dtype: torch.dtype) -> None:
    with torch.autocast("cuda", torch.float16):
        found = work(SQUARE.to(gpu))
    assert found.is_cuda and found.dtype == dtype


def test_the_operators_are_read_from_torchs_header() -> None:
    found = {rule: len(operators(rule)) for rule in ("LOWER_PRECISION_FP", "FP32", "FP32_SET_OPT_DTYPE", "PROMOTE")}
    assert all(found.values()) and sum(found.values()) > 60


def test_mixed_halves_are_an_error_where_autocast_promotes(gpu: torch.device) -> None:
    half, other = torch.ones(2, device=gpu, dtype=torch.float16), torch.ones(2, device=gpu, dtype=torch.bfloat16)
    with torch.autocast("cuda", torch.float16):
        assert torch.dot(half, half.float()).dtype == torch.float32
        with pytest.raises(RuntimeError, match="Unexpected floating ScalarType"):
            torch.dot(half, other)
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            F.binary_cross_entropy(half, half)


def test_casts_of_weights_are_kept_as_cudas_are(gpu: torch.device) -> None:
    """A cast that was made without a gradient serves until autocast ends; without the cache each is made anew."""
    layer, x = nn.Linear(2, 2).to(gpu), torch.ones(1, 2, device=gpu)
    for keep in (True, False):
        layer.zero_grad()
        with torch.autocast("cuda", torch.float16, cache_enabled=keep):
            with torch.no_grad():
                layer(x)
            y = layer(x)
        assert y.requires_grad != keep


def test_checkpointed_work_is_recomputed_on_the_device_in_its_precision(gpu: torch.device) -> None:
    layer, x = nn.Linear(2, 2).to(gpu), torch.ones(1, 2, device=gpu, requires_grad=True)
    seen = []

    def work(x: Tensor) -> Tensor:
        y = layer(x) + torch.zeros(2, device=gpu)
        seen.append((y.is_cuda, layer(x).dtype))
        return y * y

    with torch.autocast("cuda", torch.float16):
        loss = checkpoint(work, x, use_reentrant=False).sum()
    loss.backward()
    assert seen == [(True, torch.float16)] * 2 and x.grad.is_cuda


def test_a_thread_sees_the_device(gpu: torch.device) -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.tensor(1.0, device="cuda") + torch.ones(2, device=gpu)))
    thread.start()
    thread.join()
    assert found[0].is_cuda


def test_a_stream_that_does_not_wait_is_found(gpu: torch.device) -> None:
    side = torch.cuda.Stream()
    x = torch.ones(2, device=gpu) * 2
    with torch.cuda.stream(side), pytest.raises(pretended_streams.Race):
        x + 1
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y = x + 1
    with pytest.raises(pretended_streams.Race):
        y + 1
    with pytest.raises(pretended_streams.Race):
        y.cpu()
    torch.cuda.current_stream().wait_event(side.record_event())
    assert y.tolist() == [3, 3]


@pytest.mark.parametrize("wait", ["event", "query", "stream", "device", "value"])
def test_a_copy_to_the_host_arrives_when_it_is_waited_for(gpu: torch.device, wait: str) -> None:
    x = torch.ones(2, device=gpu)
    host, event = x.to("cpu", non_blocking=True), torch.cuda.current_stream().record_event()
    x.mul_(3)
    assert host.isnan().all()
    if wait == "query":
        assert not event.query() and event.query()
    elif wait == "value":
        float(x[0])
    else:
        waits = {"event": event, "stream": torch.cuda.current_stream(), "device": torch.cuda}
        waits[wait].synchronize()
    assert host.tolist() == [1, 1]


def test_work_beside_waits_for_what_it_reads(gpu: torch.device) -> None:
    aside = Overlap()
    aside(dict, gpu)()
    x, ends = torch.ones(2, device=gpu), []
    for _ in range(3):
        x = x * 2
        ends.append(aside(lambda x=x: {"sum": x.sum()}, gpu))
    assert [float(end()["sum"]) for end in ends] == [4, 8, 16]


def test_everything_is_as_before_afterwards() -> None:
    with pretended_cuda():
        torch.ones(2, device="cuda")
    assert not torch.cuda.is_available()
    assert torch.cuda.Stream is not pretended_streams.Stream
    assert not torch.__future__.get_swap_module_params_on_conversion()
    linear, before = nn.Linear(2, 2), nn.Linear(2, 2).weight
    assert linear.double().weight.dtype == torch.float64 and type(before) is nn.Parameter
