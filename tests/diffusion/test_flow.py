"""The flow process against diffusers' scheduler, Flow-GRPO's formulas and the marginals of a Gaussian world."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux_controlnet import calculate_shift
from toys.flow_grpo import flow_grpo

from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.diffusion.flow import Flow
from lpo_platform.diffusion.rollout import rollout
from lpo_platform.diffusion.weighting import steps

DEV = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
SCHEDULES = {
    "dev": (FlowMatchEulerDiscreteScheduler(shift=3.0, **DEV), 4096),
    "tiny": (FlowMatchEulerDiscreteScheduler(shift=3.0, **DEV), 64),
    "linear": (FlowMatchEulerDiscreteScheduler(time_shift_type="linear", **DEV), 1024),
    "schnell": (FlowMatchEulerDiscreteScheduler(shift=1.0), 4096),
    "sd3": (FlowMatchEulerDiscreteScheduler(shift=3.0), 4096),
}


@pytest.mark.parametrize("num_steps", [1, 4, 7, 20, 50])
@pytest.mark.parametrize("name", SCHEDULES)
def test_sampling_is_the_stock_schedulers(name: str, num_steps: int) -> None:
    """Times, where each leads, and Euler's step, as FluxPipeline asks for them."""
    scheduler, tokens = SCHEDULES[name]
    sigmas = torch.linspace(1, 1 / num_steps, num_steps).tolist()
    scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift(tokens))
    flow = Flow.from_config(scheduler.config, tokens)
    times = flow.times(num_steps)
    torch.testing.assert_close(times, scheduler.timesteps, atol=1e-3, rtol=0)
    assert times[0] == 1000
    leads_to = flow.previous(times, num_steps, eta=0.7)
    assert torch.equal(leads_to, torch.cat([times[1:], torch.zeros(1)]))
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn(2, 2, 4, 4, 4, generator=generator)
    for t, sigma in zip(times, scheduler.timesteps, strict=True):
        ours = flow.step(v, t.expand(2), flow.previous(t.expand(2), num_steps, eta=0), x, eta=0)
        theirs = scheduler.step(v, sigma, x).prev_sample
        torch.testing.assert_close(ours.mean, theirs, atol=1e-5, rtol=1e-5)
        assert not ours.std.any()
        x = theirs


@pytest.mark.parametrize("option", ["shift_terminal", "use_karras_sigmas", "invert_sigmas"])
def test_other_schedules_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"^{option}: only shifted sigmas"):
        Flow.from_config({"shift": 1.0, option: True}, 64)


def test_noising_target_and_estimate_agree() -> None:
    """The velocity is the derivative of the path, and from it both ends can be told at any t."""
    flow, generator = Flow(), torch.Generator().manual_seed(0)
    x0, e = torch.randn(2, 3, 4, 2, 2, generator=generator)
    t = torch.tensor([1000.0, 250.0, 1e-3])
    x, v = flow.add_noise(x0, e, t), flow.target(x0, e, t)
    torch.testing.assert_close(x[0], e[0])
    torch.testing.assert_close(x[1], 0.75 * x0[1] + 0.25 * e[1])
    torch.testing.assert_close(x[2], x0[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(flow.add_noise(x0, e, t - 8)[0] - x[0], -0.008 * v[0], atol=1e-5, rtol=0)
    for found, given in zip(flow.clean(v, t, x), (x0, e), strict=True):
        torch.testing.assert_close(found, given)
    half = flow.add_noise(x0.half(), e.half(), t)
    assert half.dtype == torch.float32


def test_training_times_are_logit_normal() -> None:
    """Quantiles of sigmoid(N(0, 1)); each a function of its key alone, never 0, which CPO masks out."""
    t = Flow(shift=3.0).training_times(range(4000), seed=0, stream="t")
    expected = 1000 * torch.sigmoid(torch.special.ndtri(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])))
    torch.testing.assert_close(t.quantile(torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])), expected, atol=20, rtol=0)
    assert t.min() > 0 and t.max() < 1000
    assert torch.equal(Flow().training_times([7, 3], seed=0, stream="t"), t[[7, 3]])
    whole = DDIM().training_times(range(500), seed=0, stream="t")
    assert whole.dtype == torch.int64 and whole.min() >= 0 and whole.max() < 1000


@pytest.mark.parametrize("a", [0.3, 0.7, 1.0])
def test_noisy_steps_are_flow_grpos(a: float) -> None:
    flow, x, v = Flow(shift=1.6), 0.4, -1.3
    t = flow.times(10)
    ahead = flow.previous(t, 10, eta=a)
    ones = torch.ones(10, 1, 1, 1)
    gaussian = flow.step(v * ones, t, ahead, x * ones, eta=a)
    expected = [flow_grpo(x, v, s, f, a) for s, f in zip((t / 1000).tolist(), (ahead / 1000).tolist(), strict=True)]
    torch.testing.assert_close(torch.cat([gaussian.mean, gaussian.std], 1).flatten(1), torch.tensor(expected))
    assert (gaussian.std > 0).all()


def test_the_numbers_of_flow_grpos_function() -> None:
    """Values that yifan123/flow_grpo's own function gives at s = 0.6, next 0.5, a = 0.7."""
    row = lambda *values: torch.tensor(values).view(1, -1, 1, 1)  # noqa: E731
    x, v, following = row(0.5, -1, 0.25, 2), row(0.1, -0.2, 0.3, 0.4), row(0.48, -0.95, 0.2, 1.9)
    gaussian = Flow().step(v, torch.tensor([600.0]), torch.tensor([500.0]), x, eta=0.7)
    assert gaussian.std.item() == pytest.approx(0.8573215 * math.sqrt(0.1), abs=1e-5)
    torch.testing.assert_close(gaussian.mean, row(0.456925, -0.91385, 0.1973375, 1.8277), atol=1e-5, rtol=0)
    assert gaussian.log_prob(following).item() == pytest.approx(0.3742664, abs=1e-5)


def test_derivative_of_a_step_is_what_weighting_reads() -> None:
    flow = Flow(shift=1.6)
    t, slope, std = steps(flow, 8, 0.7)
    output = torch.zeros(8, 1, 1, 1, requires_grad=True)
    gaussian = flow.step(output, t, flow.previous(t, 8, eta=0.7), torch.full((8, 1, 1, 1), 0.3), eta=0.7)
    (found,) = torch.autograd.grad(gaussian.mean.sum(), output)
    torch.testing.assert_close(slope, found.flatten())
    torch.testing.assert_close(std, gaussian.std.flatten())


@pytest.mark.parametrize("a", [0.0, 0.7])
def test_noise_leaves_the_marginals_as_they_are(a: float) -> None:
    """Data N(0, 0.25): the optimal velocity is linear in x, so the variance along the chain is a recursion; with and
    without noise it follows (1 - s)^2 / 4 + s^2. Below s = 0.9: at 1, where the noise has no bound, steps overshoot."""
    flow, num_steps, one = Flow(), 1000, torch.ones(1, 1, 1, 1)
    marginal = lambda s: (1 - s) ** 2 / 4 + s**2  # noqa: E731
    variance = marginal(0.9)
    for t in flow.times(num_steps)[100:]:
        s = t.item() / 1000
        velocity = (s - (1 - s) / 4) / marginal(s)  # E[e - x0 | x] / x
        ahead = flow.previous(t[None], num_steps, eta=a)
        gaussian = flow.step(velocity * one, t[None], ahead, one, eta=a)
        variance = gaussian.mean.item() ** 2 * variance + gaussian.std.item() ** 2
        assert variance == pytest.approx(marginal(ahead.item() / 1000), rel=5e-3)


def test_one_euler_step_of_a_constant_velocity_is_exact() -> None:
    """Straight paths: for a single data point any number of steps ends there."""
    point, e = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1), torch.randn(3, 2, 1, 1)
    for num_steps in (1, 5):
        predict = lambda x, t: (x - point) / (t / 1000).view(-1, 1, 1, 1)  # noqa: E731
        *_, last = rollout(predict, Flow(shift=2.0), e, num_steps=num_steps)
        torch.testing.assert_close(last.following, point.expand(3, -1, -1, -1), atol=1e-5, rtol=1e-5)
