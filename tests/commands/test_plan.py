"""lpo-plan: sizes and FLOPs against the specifications and the benchmark, advice that makes a run fit."""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from toys.instances import first
from toys.shapes import TOY

from lpo_platform.commands.benchmark import lpo, lrm
from lpo_platform.commands.benchmark.bench import Bench
from lpo_platform.commands.benchmark.control import ControlStep
from lpo_platform.commands.benchmark.cpo import CPOStep
from lpo_platform.commands.plan import known
from lpo_platform.commands.plan.budget import ROOM, largest
from lpo_platform.commands.plan.bytes import counts, exported, memory, size
from lpo_platform.commands.plan.count import flops, peak, tensors
from lpo_platform.commands.plan.plan import advice, plan, text
from lpo_platform.commands.plan.rates import DEVICES
from lpo_platform.commands.plan.settings import Settings, settings_of
from lpo_platform.commands.plan.work import activations, assemble, rollout_flops, steps, update
from lpo_platform.config.errors import UserError
from lpo_platform.config.options import shipped
from lpo_platform.config.schema import CONF
from lpo_platform.models.random_weights import SD15, tiny


def configuration(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def test_sd15_against_the_specification() -> None:
    """A ControlNet of 361.3 M weights; the frozen UNet, CLIP-L and VAE."""
    job = assemble(configuration("experiment=cpo_canny_sd15", "hardware.micro_batch=1"))
    found = counts(job)
    assert found.trained == found.reference == 361_279_120
    assert found.frozen == pytest.approx(859.5e6 + 123.1e6 + 83.7e6, rel=1e-3)
    assert exported(job.policy) == 4 * 361_279_120


@pytest.mark.slow
def test_sd15_as_the_benchmark_counts() -> None:
    """8.0 TFLOP a sample, reckoned from the parts' forwards, which the count corrects by 2 %."""
    job = assemble(configuration("experiment=cpo_canny_sd15", "hardware.micro_batch=1"))
    bench = CPOStep.build(SD15, batch=1, device="meta")
    per_sample = update(job) / job.method.batch
    assert per_sample == flops(lambda: bench.step("exact")) == pytest.approx(8.0e12, rel=0.03)


def test_cpo_as_the_benchmark_counts() -> None:
    job = assemble(configuration("method=cpo", "method.batch=4"))
    bench = CPOStep.build(tiny(), batch=4, device="meta")
    assert update(job) == flops(lambda: bench.step("exact"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "trained"),
    [
        ("pose_ddpo", 1251e6),  # SDXL's ControlNet
        ("lrm_sd15", 348.7e6 + 123.1e6 + 3.7e6 + 0.6e6),  # the half that is used, CLIP-L, the head
        ("lrm_sdxl", 1243.4e6 + 123.1e6 + 694.7e6 + 4.1e6),
        ("diffusion_dpo_sdxl", 2567.5e6),
    ],
)
def test_published_sizes(experiment: str, trained: float) -> None:
    assert counts(assemble(configuration(f"experiment={experiment}"))).trained == pytest.approx(trained, rel=1e-3)


@pytest.mark.slow
def test_lpo_as_the_benchmark_counts() -> None:
    words = ("method.candidates=2", "method.num_steps=3", "method.guidance=5.0", "method.batch=10")
    job = assemble(configuration("method=lpo", "tune=lora", "tune.rank=4", "tune.alpha=4", *words))
    settings = {"candidates": 2, "steps": 3}
    bench = lpo.Rollout.build(tiny(), batch=1, device="meta", **settings)
    assert rollout_flops(job) == pytest.approx(flops(lambda: bench.step("exact")), rel=0.01)
    bench = lpo.Update.build(tiny(), batch=10, device="meta")
    assert update(job) == pytest.approx(flops(lambda: bench.step("exact")), rel=0.01)


def test_lrm_as_the_benchmark_counts() -> None:
    job = assemble(configuration("method=lrm", "method.batch=6", "data.num_images=2"))
    bench = lrm.LRMStep.build(tiny(), batch=6, device="meta")
    assert update(job) == flops(lambda: bench.step("exact"))


def test_bytes_by_hand() -> None:
    """AdamW: 4 for the weight, 4 for its gradient, 8 for the moments, 4 for the average, 4 for the reference."""
    job = assemble(configuration("method=cpo"))
    found, trained = memory(job, 0, half=True), counts(job).trained
    learning = ("trained weights", "gradients", "optimiser moments", "moving average", "reference copy")
    assert sum(found[name] for name in learning) == 24 * trained
    assert found["frozen weights"] == 2 * counts(job).frozen
    job = assemble(configuration("method=cpo", "hardware=fsdp", "hardware.devices=4", "optim=adamw8bit"))
    assert memory(job, 0, half=True)["optimiser moments"] == 2 * trained / 4


def test_the_peak_is_that_of_what_lives_at_once() -> None:
    x = torch.empty(1000, device="meta")

    def work() -> None:
        y = x + 1
        z = y + 1
        del y
        _ = z + 1

    assert peak(work) == 2 * 4000


@pytest.mark.parametrize(
    "words",
    [
        ["method=lpo", "tune=lora"],
        *(
            pytest.param(words, marks=pytest.mark.slow)
            for words in (["method=cpo", "hardware.gradient_checkpointing=true"], ["method=ddpo"])
        ),
    ],
)
def test_what_is_known_of_operations_counts_as_what_is_computed(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLOPs are those of torch's own counter, and bytes those of a run in which nothing is known."""
    job = assemble(configuration(*words, "method.batch=2"))
    ((share, batch),) = job.method.examples(job, job.micro)
    with FlopCounterMode(display=False) as counter:
        job.method.loss(batch)[0].backward()
    update(job)
    assert update(job) == share * job.method.batch / job.micro * counter.get_total_flops() > 0
    monkeypatch.setattr(known, "KNOWN", {})
    assert activations(job) == activations(job) > 0


def test_each_operation_makes_the_same_from_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole step, in which what is known stands beside what is computed."""

    def look(result: Any) -> list[tuple[Any, ...]]:
        return [(t.shape, t.stride(), t.dtype, t.device, t.untyped_storage().nbytes()) for t in tensors(result)]

    def both(func: Any, args: Any, kwargs: Any) -> tuple[Any, int]:
        computed, count = known.run(func, args, kwargs)
        if known.pure(func):
            again, counted = known.run(func, args, kwargs)
            same.append((look(again), counted) == (look(computed), count))
        return computed, count

    same: list[bool] = []
    monkeypatch.setattr("lpo_platform.commands.plan.count.run", both)
    monkeypatch.setattr(known, "KNOWN", {})
    assert update(assemble(configuration("method=control", "method.batch=2"))) > 0
    assert len(same) > 1000 and all(same)


def test_views_of_what_was_there_are_no_bytes() -> None:
    weight = torch.empty(1000, device="meta")
    assert peak(lambda: weight.view(10, 100).T * 1) == 4000


@pytest.mark.parametrize(
    ("kind", "variant"), first([(CPOStep, "exact"), (ControlStep, "exact-ckpt"), (lrm.LRMStep, "exact")], keep=1)
)
def test_the_counted_peak_is_what_the_allocator_records(kind: type[Bench], variant: str) -> None:
    """Within 2 %: what kernels take for themselves while they run is not counted."""
    counted, computed = kind.build(TOY, batch=4, device="meta"), kind.build(TOY, batch=4)
    assert peak(lambda: counted.step(variant)) == pytest.approx(recorded(lambda: computed.step(variant)), rel=0.02)


def recorded(work: Callable[[], object]) -> int:
    """Most bytes that torch's allocator had given out at once since the start of `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.slow
def test_checkpointing_and_smaller_micro_batches_save_activations() -> None:
    needed = [
        activations(assemble(configuration("method=cpo", *words)))
        for words in ((), ("hardware.micro_batch=8",), ("hardware.gradient_checkpointing=true",))
    ]
    assert needed[1] < 0.6 * needed[0] and needed[2] < 0.8 * needed[0]


@pytest.mark.slow
def test_what_does_not_fit_gets_advice_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan(configuration("method=cpo"), Settings("h100"))
    assert found.fits and "fits" in text(found).splitlines()[-1]
    needed = sum(found.memory.values())
    small = replace(found, device=replace(found.device, memory=0.4 * needed / ROOM))
    words, then = advice(small)
    assert words and then <= 0.4 * needed
    job = assemble(configuration("method=cpo", *" ".join(words).split()))
    assert sum(memory(job, activations(job), half=True).values()) == then
    assert f"does not fit; what works: {' '.join(words)}" in text(small)


@pytest.mark.slow
def test_the_text_without_a_gpu_or_data() -> None:
    cfg = configuration("experiment=cpo_canny_sd15", "hardware=ddp", "hardware.devices=8")
    cfg.metrics.num_samples = 10
    found = plan(cfg, Settings("h200"))
    said = text(found)
    assert "sd15 on 8 x H200" in said and "361,279,120" in said
    assert "256 samples a step = 8 processes x 4 micro-batches of 8; 10,000 steps" in said
    assert found.seconds == pytest.approx(found.flops / (8 * 989e12 * 0.4))


@pytest.mark.slow
def test_the_largest_micro_batch_that_fits() -> None:
    words = ("method=lrm", "method.batch=6", "data.num_images=2")
    needed = {}
    for micro in (1, 2, 3, 6):
        job = assemble(configuration(*words, f"hardware.micro_batch={micro}"))
        needed[micro] = sum(memory(job, activations(job), half=False).values()) / ROOM
    auto = configuration(*words, "hardware.micro_batch=auto")
    for micro, least in needed.items():
        assert largest(auto, least + 1, half=False) == micro
    with pytest.raises(UserError, match=r"hardware\.micro_batch=auto: one sample needs .* there are "):
        largest(auto, needed[1] - 100, half=False)  # the times, 80 bytes, are there from the first count on
    auto.hardware.memory_gb = 1e-9 * needed[3] + 1e-6
    assert plan(auto, Settings("cpu")).job.micro == 3


@pytest.mark.slow
def test_steps_of_a_round() -> None:
    assert steps(assemble(configuration("method=ddpo"))) == 12 * 24 * 8 * 10 / 960
    paper = configuration("experiment=pose_ddpo_paper", "task.weights=w")
    assert steps(assemble(paper)) == 22_525  # 901 rounds of 25


@pytest.mark.parametrize("method", shipped("method"))
def test_every_method_is_planned(method: str) -> None:
    """On a flow transformer, which each of them trains."""
    found = plan(configuration(f"method={method}", "model=tiny_sd3"), Settings(device="h100"))
    assert found.flops > 0 and sum(found.memory.values()) > 0


def test_settings() -> None:
    assert settings_of(["+plan.device=a100", "seed=1"]) == (Settings("a100"), ["seed=1"])
    with pytest.raises(UserError, match=r"plan.devise=x: .*what works: plan.device, plan.utilisation"):
        settings_of(["plan.devise=x"])
    with pytest.raises(UserError, match="above 0 and at most 1"):
        settings_of(["plan.utilisation=2"])
    with pytest.raises(UserError, match="did you mean 'h100'"):
        settings_of(["plan.device=h10"])
    assert all(device.gpu for device in DEVICES.values())


def test_a_shape_that_is_not_known() -> None:
    with pytest.raises(UserError, match="pass a folder in diffusers' layout"):
        assemble(configuration("method=lpo", "model.weights=somebody/else", "model.name=other"))


@pytest.mark.parametrize(("number", "said"), [(12, "12 B"), (1.45e9, "1.45 GB"), (2.1e12, "2.1 TB"), (999, "999 B")])
def test_size(number: float, said: str) -> None:
    assert size(number) == said


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "gflop"), [(6, 103_022), (12, 128_807)])
def test_cpo_on_stable_diffusion_3(layers: int, gflop: float) -> None:
    """Per sample at 1024 px with cached latents and text, as the stock classes' forwards and backwards add up.

    Without cached features the autoencoder looks at both conditions in every step.
    """
    words = ("hardware.micro_batch=1", "hardware.gradient_checkpointing=false", f"model.control_layers={layers}")
    recipe = ("experiment=cpo_canny_sd3", "data.path=x", *words)
    for cached, more in ((True, 0), (False, 2 * 4883)):
        job = assemble(configuration(*recipe, f"method.cache_features={str(cached).lower()}"))
        assert update(job) / job.method.batch == pytest.approx(1e9 * (gflop + more), rel=0.002)


@pytest.mark.slow
def test_flow_methods_at_full_size_are_planned() -> None:
    """Everything that such a run computes is counted, and its weights are those of the published classes."""
    head = 3 * 1536 * 2048 + 2048**2 + 1
    unread = 1536 * 1536 * 2 + 1536 * 2 + 64 + 2 * 4 * 1536**2 + 5 * 1536  # behind the last tap, of the text alone
    expected = {
        "lrm_sd35m": 1_232_739_840 - unread + head, "ddpo_sd35m": 18_776_064, "nft_sd35m": 18_776_064,
        "lpo_sd3": 2 * 18_776_064, "step_grpo_sd15": None,
    }  # fmt: skip
    for name, trained in expected.items():
        found = plan(configuration(f"experiment={name}", "data.path=x"), Settings(device="h100"))
        assert found.flops > 0 and sum(found.memory.values()) > 1e9
        if trained is not None:
            assert counts(found.job).trained == trained, name
