"""The grid of Stable Diffusion 3 and the four kinds of noise of a flow step, against values computed by hand."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.diffusion.flow import Flow, shifted
from lpo_platform.diffusion.gaussian import Gaussian
from lpo_platform.diffusion.weighting import steps

X, V, NEXT = 0.5, -0.25, 0.4
STATIC = {"shift": 3.0}


def sd3(**options: object) -> Flow:
    return Flow.from_config(STATIC, 0, own_grid=True, **options)


def near(values: Tensor, expected: list[float], tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(values.double().flatten(), torch.tensor(expected).double(), atol=tolerance, rtol=0)


def step(flow: Flow, t: Tensor, ahead: Tensor, eta: float) -> Gaussian:
    one = torch.ones(len(t), 1, 1, 1)
    return flow.step(V * one, t, ahead, X * one, eta=eta)


def test_the_shift() -> None:
    near(torch.tensor([shifted(u, 3.0) for u in (0.1, 0.25, 0.5, 0.75, 0.9)]), [0.25, 0.5, 0.75, 0.9, 0.964286])
    assert sd3().last == pytest.approx(0.002994, abs=5e-7) and Flow.from_config(STATIC, 0).last is None


def test_the_grid_is_shifted_twice() -> None:
    """Stable Diffusion 3 leaves the times to the scheduler, whose own end has been shifted before; FLUX does not."""
    near(sd3().times(28)[[0, 1, 7, 14, 20, 27]] / 1000, [1, 0.987381, 0.895900, 0.737056, 0.515072, 0.008929])
    flux = Flow.from_config(STATIC, 0).times(28) / 1000
    near(flux[[1, 7, 14, 20, 27]], [0.987805, 0.9, 0.75, 0.545455, 0.1])
    ten = [1, 0.960129, 0.913349, 0.857692, 0.790368, 0.707278, 0.602151, 0.464876, 0.278049, 0.008929]
    near(sd3().times(10) / 1000, ten)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 28, 50])
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_grid_is_the_stock_schedulers(num_steps: int, dynamic: bool) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    config, tokens = scheduler.config, 1024
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (tokens - config.base_image_seq_len) if dynamic else None
    scheduler.set_timesteps(num_steps, mu=mu)
    flow = Flow.from_config(config, tokens, own_grid=True)
    times = flow.times(num_steps)
    torch.testing.assert_close(times, scheduler.timesteps, atol=1e-3, rtol=0)
    assert torch.equal(flow.previous(times, num_steps, eta=0.7), torch.cat([times[1:], torch.zeros(1)]))


STEPS = {
    "sde": (0.7, 0.473188, 0.469574, -0.175156),
    "posterior": (1.0, 0.406250, 0.519615, -0.264344),
    "cps": (0.7, 0.394173, 0.534604, -0.292769),
    "constant": (0.3, 0.533562, 0.116190, 0.572893),
}


@pytest.mark.parametrize("noise", STEPS)
def test_a_step_from_075_to_06(noise: str) -> None:
    eta, mean, std, log_prob = STEPS[noise]
    found = step(Flow(noise=noise), torch.tensor([750.0]), torch.tensor([600.0]), eta)
    near(torch.cat([found.mean, found.std], 1), [mean, std])
    near(found.log_prob(torch.full((1, 1, 1, 1), NEXT)), [log_prob])


@pytest.mark.parametrize(
    ("index", "mean", "std", "log_prob", "error"),
    [
        (0, 0.387468, 0.7, -0.562424, 1e-6),
        (5, 0.488726, 0.352797, 0.091299, 1e-6),
        (9, 0.501675, 0.006278, -126.992, 2e-2),
    ],
)
def test_steps_of_flow_grpo(index: int, mean: float, std: float, log_prob: float, error: float) -> None:
    flow = sd3()
    t = flow.times(10)[[index]]
    found = step(flow, t, flow.previous(t, 10, eta=0.7), 0.7)
    near(torch.cat([found.mean, found.std], 1), [mean, std])
    near(found.log_prob(torch.full((1, 1, 1, 1), NEXT)), [log_prob], error)


def test_slopes_of_flow_grpo() -> None:
    _, slope, std = steps(sd3(), 10, 0.7)
    chosen = [0, 1, 5, 8]
    near(slope[chosen], [-0.039871, -0.058242, -0.130884, -0.335055])
    near((slope / std)[chosen], [-0.056958, -0.078391, -0.370990, -1.486750], 2e-6)


@pytest.mark.parametrize("noise", STEPS)
def test_slope_and_noise_are_what_weighting_reads(noise: str) -> None:
    flow, eta = sd3(noise=noise), STEPS[noise][0]
    t, slope, std = steps(flow, 8, eta)
    output = torch.zeros(8, 1, 1, 1, requires_grad=True)
    found = flow.step(output, t, flow.previous(t, 8, eta=eta), torch.full((8, 1, 1, 1), 0.3), eta=eta)
    (gradient,) = torch.autograd.grad(found.mean.sum(), output)
    torch.testing.assert_close(slope, gradient.flatten())
    torch.testing.assert_close(std, found.std.flatten())


@pytest.mark.parametrize("noise", STEPS)
def test_without_noise_every_kind_is_eulers_step(noise: str) -> None:
    flow = sd3(noise=noise)
    t = flow.times(6)
    ahead = flow.previous(t, 6, eta=0)
    found = step(flow, t, ahead, 0.0)
    torch.testing.assert_close(found.mean.flatten(), X + (ahead - t) / 1000 * V, atol=1e-6, rtol=0)
    assert not found.std.any()


def test_the_last_step_of_two_kinds_has_no_noise() -> None:
    """So it has no density; the sde keeps a little."""
    t, ahead = sd3().times(20)[-1:], torch.zeros(1)
    stds = {noise: sd3(noise=noise).sigma(t, ahead, STEPS[noise][0]).item() for noise in STEPS}
    assert stds["posterior"] == stds["cps"] == 0 < stds["sde"] < stds["constant"]
    with pytest.raises(ValueError, match="deterministic step"):
        step(sd3(noise="cps"), t, ahead, 0.7).log_prob(torch.zeros(1, 1, 1, 1))


def test_the_noise_of_twenty_steps() -> None:
    t = sd3().times(20)
    for noise, eta, expected in (
        ("sde", 0.7, [0.7, 0.7192, 0.5133, 0.1103, 0.0063]),
        ("posterior", 1.0, [0.9819, 0.8483, 0.7329, 0.0089, 0.0]),
    ):
        flow = sd3(noise=noise)
        near(flow.sigma(t, flow.previous(t, 20, eta=eta), eta).flatten()[[0, 1, 2, 18, 19]], expected, 5e-5)


def test_posterior_is_ddims_and_stays_below_the_next_noise() -> None:
    """On the path of DDIM, where alpha^2 + sigma^2 = 1, the same formula is DDIM's; put literally into the linear path
    DDIM's would exceed the noise of the next time."""
    ddim, t, ahead = DDIM(), torch.tensor([751]), torch.tensor([701])
    a, b = ddim.alphas_cumprod[t].sqrt(), ddim.alphas_cumprod[ahead].sqrt()
    s, p = (1 - a**2).sqrt(), (1 - b**2).sqrt()
    general = p * (1 - (p * a / (s * b)) ** 2).sqrt()
    torch.testing.assert_close(ddim.sigma(t, ahead, 1.0).flatten(), general, atol=1e-6, rtol=1e-4)
    s, p = 0.75, 0.6
    assert p / s * math.sqrt(1 - ((1 - s) / (1 - p)) ** 2) == pytest.approx(0.6245, abs=1e-4)
    assert Flow(noise="posterior").sigma(torch.tensor([750.0]), torch.tensor([600.0]), 1.0).item() < p
    with pytest.raises(UserError, match=r"eta=1\.2: noise=posterior"):
        Flow(noise="posterior").sigma(torch.tensor([750.0]), torch.tensor([600.0]), 1.2)
    with pytest.raises(ValueError, match="noise='ddim': must be one of sde, posterior"):
        Flow(noise="ddim")


@pytest.mark.parametrize(("noise", "after"), [("sde", 0.948), ("posterior", 0.837), ("cps", None)])
def test_what_is_left_of_standard_normal_data(noise: str, after: float | None) -> None:
    """From .960 to .913 data N(0, 1) have the variance .842; the sde leaves more, the others at most that."""
    flow = sd3(noise=noise)
    t = flow.times(10)[[1]]
    ahead, one = flow.previous(t, 10, eta=0.7), torch.ones(1, 1, 1, 1)
    s, p = t.item() / 1000, ahead.item() / 1000
    velocity = (s - (1 - s)) / ((1 - s) ** 2 + s**2)
    eta = 0.7 if noise != "posterior" else 1.0
    gaussian = flow.step(velocity * one, t, ahead, one, eta=eta)
    variance = gaussian.mean.item() ** 2 * ((1 - s) ** 2 + s**2) + gaussian.std.item() ** 2
    assert (1 - p) ** 2 + p**2 == pytest.approx(0.842, abs=5e-4)
    assert variance == pytest.approx(after, abs=1e-3) if after else variance <= 0.842


def test_times_of_ddim_have_a_match() -> None:
    """By the ratio of noise to signal: what control_reward rewards, where SPO starts, what its reward has learned."""
    last, share = sd3().up_to(200)
    assert last == pytest.approx(363.733, abs=1e-3)
    drawn = Flow().training_times(range(20000), seed=0, stream="t")
    assert (drawn <= last).double().mean().item() == pytest.approx(share, abs=0.01)
    assert DDIM().up_to(200) == (200, 0.201)
    t = sd3().times(20)
    matched = sd3().as_ddim(t)
    assert (matched > 751).sum() == 9 and matched[8] > 751 >= matched[9]  # 0.8057 and 0.7702, where 751 is 0.8046
    assert sd3().as_ddim(torch.zeros(1)) == 0
    ratio = (sd3().noise_share(t) / (1 - sd3().noise_share(t)))[5:15]
    abar = DDIM().alphas_cumprod[matched[5:15]]
    torch.testing.assert_close(((1 - abar) / abar).sqrt(), ratio, rtol=0.01, atol=0)
    assert torch.equal(DDIM().as_ddim(torch.tensor([3, 7])), torch.tensor([3, 7]))
