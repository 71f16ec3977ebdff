"""The DDIM process against diffusers' schedulers and values computed in float64 from its formulas."""

import inspect
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.diffusion.rollout import rollout

CONFIG = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
X = torch.tensor([0.5, -1, 0.25, 2]).view(1, 4, 1, 1)
NOISE = torch.tensor([0.1, -0.2, 0.3, 0.4]).view(1, 4, 1, 1)
PREVIOUS_X = torch.tensor([0.48, -0.95, 0.2, 1.9]).view(1, 4, 1, 1)


def at(*t: int) -> torch.Tensor:
    return torch.tensor(t)


def test_schedule_and_forward_noise() -> None:
    process = DDIM.from_config(CONFIG)
    for t, value in {0: 0.999150, 200: 0.753692, 600: 0.160782, 999: 0.00466010}.items():
        assert process.alphas_cumprod[t].item() == pytest.approx(value, abs=1e-6)
    x0, e = torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), -1.0)
    noised = process.add_noise(x0, e, at(200))
    assert noised.item() == pytest.approx(-0.062217, abs=1e-6)
    x0_hat, _ = process.clean(torch.full((1, 1, 1, 1), -0.9), at(200), noised)
    assert x0_hat.item() == pytest.approx(0.442833, abs=1e-6)


def test_half_precision_tables_would_lose_the_noise() -> None:
    """Why the process is float32: cast to bf16, sigma is exactly 0 at two timesteps; ours never is."""
    process = DDIM.from_config(CONFIG)
    lossy = (1 - process.alphas_cumprod.bfloat16()).sqrt()
    assert (lossy == 0).nonzero().flatten().tolist() == [0, 1]
    assert ((1 - process.alphas_cumprod.half()).sqrt() > 0).all()
    noised = process.add_noise(torch.zeros(2, 1, 1, 1).bfloat16(), torch.ones(2, 1, 1, 1).bfloat16(), at(0, 1))
    assert noised.dtype == torch.float32 and (noised > 0.02).all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_the_published_half_precision_schedule_is_an_option(half: torch.dtype) -> None:
    """What diffusers' scheduler does to latents and noise of half precision."""
    process, theirs = DDIM.from_config(CONFIG, half=half), DDPMScheduler.from_config(CONFIG)
    x0, e = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = at(0, 1, 2, 200, 500, 999)
    expected = theirs.add_noise(x0.to(half), e.to(half), t)
    noised = process.add_noise(x0, e, t)
    assert expected.dtype == half and noised.dtype == torch.float32 and torch.equal(noised, expected.float())
    assert torch.equal(process.target(x0, e, t), e.to(half).float())
    assert torch.equal(noised[0], x0[0].to(half).float()) is (half == torch.bfloat16), "sigma is 0 at t = 0 in bf16"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_and_target_agree_with_diffusers(prediction: str) -> None:
    config = CONFIG | {"prediction_type": prediction}
    process, theirs = DDIM.from_config(config), DDPMScheduler.from_config(config)
    x0, e = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = at(0, 1, 200, 500, 981, 999)
    torch.testing.assert_close(process.add_noise(x0, e, t), theirs.add_noise(x0, e, t))
    expected = e if prediction == "epsilon" else theirs.get_velocity(x0, e, t)
    torch.testing.assert_close(process.target(x0, e, t), expected)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("final_is_one", [False, True])
def test_steps_agree_with_diffusers(prediction: str, eta: float, final_is_one: bool) -> None:
    config = CONFIG | {"prediction_type": prediction, "set_alpha_to_one": final_is_one}
    process, theirs = DDIM.from_config(config), DDIMScheduler.from_config(config)
    theirs.set_timesteps(20)
    assert process.times(20).tolist() == theirs.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    for t in theirs.timesteps.tolist():
        x, output, noise = torch.randn(3, 2, 4, 8, 8, generator=generator)
        ours = process.step(output, at(t, t), at(t - 50, t - 50), x, eta=eta)
        expected = theirs.step(output, t, x, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(ours.sample(noise), expected, atol=2e-5, rtol=2e-5)


def test_times_and_sigmas() -> None:
    process = DDIM.from_config(CONFIG)
    times = process.times(50).tolist()
    assert times[0] == 981 and times[-3:] == [41, 21, 1]
    assert process.times(30).tolist()[:3] == [958, 925, 892] and process.times(30).tolist()[-2:] == [34, 1]
    for t, value in {1: 0.9982960, 501: 0.2749991, 981: 0.0057755}.items():
        assert process.alphas_cumprod[t].item() == pytest.approx(value, abs=1e-6)
    for t, value in {981: 0.454463, 501: 0.294785, 21: 0.039480, 1: 0.0206484}.items():
        assert process.sigma(at(t), at(t - 20), 1.0).item() == pytest.approx(value, abs=1e-5)
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    for t, coefficients in {501: (1.0484563, -0.1111879), 981: (1.1228517, -0.2329358)}.items():
        mean = [process.step(e, at(t), at(t - 20), x, eta=1.0).mean.item() for x, e in ((one, zero), (zero, one))]
        assert mean == pytest.approx(coefficients, abs=1e-5)


@pytest.mark.parametrize(
    ("t", "eta", "expected", "tolerance"),
    [
        (981, 1.0, -0.1806608, 1e-5),
        (501, 1.0, 0.2580230, 1e-5),
        (501, 0.5, 0.7734447, 1e-5),
        (1, 1.0, -0.840572, 1e-4),
    ],
)
def test_log_probability(t: int, eta: float, expected: float, tolerance: float) -> None:
    gaussian = DDIM.from_config(CONFIG).step(NOISE, at(t), at(t - 20), X, eta=eta)
    assert gaussian.log_prob(PREVIOUS_X).item() == pytest.approx(expected, abs=tolerance)
    if (t, eta) == (501, 1.0):
        expected_mean = [0.5131094, -1.0262187, 0.2287577, 2.0524374]
        assert gaussian.mean.flatten().tolist() == pytest.approx(expected_mean, abs=1e-5)


def test_log_probability_is_that_of_torch() -> None:
    gaussian = DDIM.from_config(CONFIG).step(NOISE, at(501), at(481), X, eta=1.0)
    normal = torch.distributions.Normal(gaussian.mean, gaussian.std.expand_as(gaussian.mean))
    torch.testing.assert_close(gaussian.log_prob(PREVIOUS_X), normal.log_prob(PREVIOUS_X).flatten(1).mean(1))


@pytest.mark.parametrize(("offset", "final_is_one", "eta"), [(1, False, 0.0), (0, True, 1.0)])
def test_deterministic_steps_have_no_log_probability(offset: int, final_is_one: bool, eta: float) -> None:
    """eta = 0, or a last step that reaches alpha = 1: an error that says so, never NaN."""
    process = DDIM.from_config(CONFIG | {"steps_offset": offset, "set_alpha_to_one": final_is_one})
    t = process.times(20)[-1:]
    gaussian = process.step(NOISE, t, t - 50, X, eta=eta)
    assert torch.isfinite(gaussian.mean).all()
    with pytest.raises(ValueError, match="deterministic step"):
        gaussian.log_prob(PREVIOUS_X)


def test_rollout_repeats_diffusers_sampling_loop() -> None:
    """A whole trajectory, eta 1, closed-form model: diffusers' scheduler on the same noise ends at the same x."""
    process, theirs = DDIM.from_config(CONFIG), DDIMScheduler.from_config(CONFIG)
    theirs.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    start, noises = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(10, 2, 4, 8, 8, generator=generator)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * (t.view(-1, 1, 1, 1) / 1000).cos()

    *_, last = rollout(model, process, start, num_steps=10, eta=1.0, noise=lambda i: noises[i])
    x = start
    for i, t in enumerate(theirs.timesteps):
        x = theirs.step(model(x, t.expand(2)), t, x, eta=1.0, variance_noise=noises[i]).prev_sample
    torch.testing.assert_close(last.following, x, atol=1e-4, rtol=1e-4)


def test_rollout_refuses_to_forget_noise() -> None:
    with pytest.raises(ValueError, match="pass noise="):
        next(rollout(lambda x, t: x, DDIM.from_config(CONFIG), X, num_steps=2, eta=1.0))


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_times_says_its_range(num_steps: int) -> None:
    with pytest.raises(ValueError, match="1000"):
        DDIM.from_config(CONFIG).times(num_steps)


FIELDS = {  # of DDIMScheduler, each with values that change what it does
    "num_train_timesteps": (500,),
    "beta_start": (0.001,),
    "beta_end": (0.02,),
    "beta_schedule": ("linear", "squaredcos_cap_v2"),
    "trained_betas": ([0.001 * (1 + t / 100) for t in range(1000)],),
    "clip_sample": (True,),
    "clip_sample_range": (0.5,),
    "set_alpha_to_one": (True,),
    "steps_offset": (0, 3),
    "prediction_type": ("v_prediction", "sample"),
    "timestep_spacing": ("trailing", "linspace"),
    "rescale_betas_zero_snr": (True,),
}
REFUSED = {
    "beta_schedule": "sigmoid",
    "thresholding": True,
    "prediction_type": "flow_prediction",
    "timestep_spacing": "cosine",
    "steps_offset": -1,
}
WITHOUT_THRESHOLDING = {"dynamic_thresholding_ratio", "sample_max_value"}


def like_stock(config: dict, num_steps: int = 7, *, eta: float = 0.5) -> None:
    """A whole chain of steps from one x, noised targets, and times are those of diffusers' scheduler."""
    process, theirs = DDIM.from_config(config), DDIMScheduler.from_config(config)
    theirs.set_timesteps(num_steps)
    assert process.times(num_steps).tolist() == theirs.timesteps.tolist()
    torch.testing.assert_close(process.alphas_cumprod, theirs.alphas_cumprod, atol=1e-6, rtol=1e-5)
    generator = torch.Generator().manual_seed(0)
    for t in theirs.timesteps.tolist():
        x, output, noise = torch.randn(3, 2, 4, 8, 8, generator=generator)
        pair = at(t, t)
        ours = process.step(output, pair, process.previous(pair, num_steps, eta=0), x, eta=eta).sample(noise)
        expected = theirs.step(output, t, x, eta=eta, variance_noise=noise).prev_sample
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, expected, atol=3e-5, rtol=3e-5)
        torch.testing.assert_close(process.add_noise(x, noise, pair), theirs.add_noise(x, noise, pair))
        if process.prediction == "v_prediction":
            torch.testing.assert_close(process.target(x, noise, pair), theirs.get_velocity(x, noise, pair))


def test_every_field_of_the_stock_scheduler_is_honoured_or_refused() -> None:
    known = {*FIELDS, *REFUSED, *WITHOUT_THRESHOLDING}
    assert known == set(inspect.signature(DDIMScheduler.__init__).parameters) - {"self"}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in FIELDS.items() for value in values])
def test_a_honoured_field_does_what_it_does_in_the_stock_scheduler(field: str, value: object) -> None:
    config = CONFIG | ({"clip_sample": True} if field == "clip_sample_range" else {}) | {field: value}
    like_stock(config)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("final_is_one", [False, True])
def test_chains_without_signal_at_their_start_are_those_of_diffusers(spacing: str, final_is_one: bool) -> None:
    """As the models that predict v with zero terminal signal-to-noise ratio are drawn (arXiv:2305.08891)."""
    fields = {"timestep_spacing": spacing, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    for num_steps in (1, 4, 20, 30):
        like_stock(CONFIG | fields | {"set_alpha_to_one": final_is_one}, num_steps, eta=0.0)


def test_the_default_of_a_field_that_is_not_in_the_file_is_that_of_the_stock_scheduler() -> None:
    like_stock({})


@pytest.mark.parametrize(("field", "value"), REFUSED.items())
def test_a_field_that_is_not_implemented_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{field}"):
        DDIM.from_config(CONFIG | {field: value})


def test_noise_prediction_cannot_start_where_there_is_no_signal() -> None:
    with pytest.raises(ValueError, match=r"^timestep_spacing='trailing' with rescale_betas_zero_snr.*v_prediction"):
        DDIM.from_config(CONFIG | {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True})


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_times_are_the_stock_schedulers_for_every_number_of_steps(spacing: str) -> None:
    """But where rounding gives the stock scheduler one step more than it was asked for."""
    config = CONFIG | {"timestep_spacing": spacing}
    process, theirs = DDIM.from_config(config), DDIMScheduler.from_config(config)
    for num_steps in range(1, 1000):
        theirs.set_timesteps(num_steps)
        assert process.times(num_steps).tolist() == theirs.timesteps[:num_steps].tolist()


def test_more_steps_than_the_offset_leaves_room_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steps_offset=1.*take fewer steps"):
        DDIM.from_config(CONFIG).times(1000)


def test_gaussian_samples_have_its_moments() -> None:
    gaussian = DDIM.from_config(CONFIG).step(NOISE, at(501), at(481), X, eta=1.0)
    draws = gaussian.sample(torch.randn(20_000, *X.shape, generator=torch.Generator().manual_seed(0)))
    bound = 5 * gaussian.std.item() / math.sqrt(20_000)
    torch.testing.assert_close(draws.mean(0), gaussian.mean, atol=bound, rtol=0)
    torch.testing.assert_close(draws.std(0), gaussian.std.expand_as(X), atol=bound, rtol=0)
