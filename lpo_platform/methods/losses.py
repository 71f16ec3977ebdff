"""The formulas. Pure functions of tensors: no Lightning, no configuration, no model."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FORMS = ("soft", "hard")


def denoising_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all axes but the first, in float32: (B, ...) -> (B,)."""
    return (output.float() - target.float()).square().flatten(1).mean(1)


def preference_weight(
    winner: Tensor, loser: Tensor, reference_winner: Tensor, reference_loser: Tensor, *, beta: float
) -> Tensor:
    """s = stopgrad sigmoid(beta/2 (d - r)), the DPO weight of CPO's hinge; all (B,), result in (0, 1).

    d = winner - loser under the policy, r the same under the reference. s is 0.5 while they agree and grows where the
    policy tells winner from loser less well than the reference does.
    """
    with torch.no_grad():
        return torch.sigmoid(0.5 * beta * ((winner - loser) - (reference_winner - reference_loser)))


def cpo(
    winner: Tensor,
    loser: Tensor,
    reference_winner: Tensor,
    reference_loser: Tensor,
    t: Tensor,
    *,
    beta: float,
    margin: float,
    form: str = "hard",
) -> Tensor:
    """Condition preference optimisation (arXiv:2511.04753, as released): a scalar.

    The first four are per-sample denoising errors (B,), means over C, H, W, of the same noised image under the winning
    and the losing condition. The margin is inside the hinge and on the policy's own difference d:
        hard:  s max(0, d + m)
        soft:  0.9 s max(0, d + m) + 0.1 (1 - s) max(0, -d + m)
    Samples at t = 0 are masked out; the loss is 0 if every t is 0.
    Raises ValueError for an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r}: CPO has {', '.join(FORMS)}")
    s = preference_weight(winner, loser, reference_winner, reference_loser, beta=beta)
    d = winner - loser
    loss = s * (d + margin).clamp_min(0)
    if form == "soft":
        loss = 0.9 * loss + 0.1 * (1 - s) * (margin - d).clamp_min(0)
    return masked_mean(loss, t > 0)


def pair_preference(scores: Tensor, labels: Tensor) -> Tensor:
    """KL from the labels to softmax(s_i, s_j), the mean over the pairs i < j of each row: (B, n), (B, n, n) -> (B,).

    labels[b, i, j] in [0, 1] is the probability that i is preferred to j; 0 and 1 give PickScore's cross entropy, 0.5 a
    tie, whose loss is 0 at equal scores. n = 2 for Pick-a-Pic.
    """
    first, second = torch.triu_indices(scores.shape[1], scores.shape[1], 1, device=scores.device)
    gap, y = (scores[:, first] - scores[:, second]).float(), labels[:, first, second].float()
    entropy = -(torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y))
    return (-y * F.logsigmoid(gap) - (1 - y) * F.logsigmoid(-gap) - entropy).mean(1)


def lpo(log_ratio_winner: Tensor, log_ratio_loser: Tensor, *, beta: float, clip: float) -> Tensor:
    """-log sigmoid(beta (log r_w - log r_l)) with r = clamp(exp(log ratio), 1 - clip, 1 + clip): (B,), (B,) -> (B,).

    A log ratio is log p(x'|x_t) under the policy less that under the reference, the mean over C, H, W. A sample whose
    ratio has left the band has no gradient (arXiv:2502.01051 as released). The original takes the
    logarithm of the sigmoid, which is NaN below -88; this does not.
    """
    low, high = math.log1p(-clip), math.log1p(clip)
    return -F.logsigmoid(beta * (log_ratio_winner.clamp(low, high) - log_ratio_loser.clamp(low, high)))


def diffusion_dpo(
    winner: Tensor, loser: Tensor, reference_winner: Tensor, reference_loser: Tensor, *, beta: float
) -> Tensor:
    """-log sigmoid(-beta/2 (d - r)), d = winner - loser, r the same under the reference (arXiv:2311.12908): (B,).

    The four are denoising errors (B,), means over C, H, W, of two pictures at the same noise and timestep.
    """
    return -F.logsigmoid(-0.5 * beta * ((winner - loser) - (reference_winner - reference_loser)))


def ppo(log_ratio: Tensor, advantage: Tensor, *, clip: float) -> Tensor:
    """max(-A r, -A clamp(r, 1 - clip, 1 + clip)) with r = exp(log ratio): (B,), (B,) -> (B,).

    A log ratio is log p(x'|x_t) under the policy less that under the one that sampled, the mean over C, H, W: clip
    1e-4 allows 1e-4 C H W nats (arXiv:2305.13301 as released). No gradient where A > 0 and
    r > 1 + clip, or A < 0 and r < 1 - clip; elsewhere -A r.
    """
    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def score_function(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """-A log p(x'|x_t), the REINFORCE form: (B,), (B,) -> (B,). Right for the one update after sampling only."""
    return -advantage * log_prob


def kl_estimate(form: str, log_ratio: Tensor) -> Tensor:
    """A sample's estimate of KL(q || p) from log p(x) - log q(x), x drawn from q: (B,) -> (B,).

    k1 = -log r has no bias and any sign, k2 = (log r)^2 / 2 is DDPO's approx_kl, k3 = r - 1 - log r has no bias and is
    never negative. Raises ValueError for another form.
    """
    if form == "k1":
        return -log_ratio
    if form == "k2":
        return 0.5 * log_ratio.square()
    if form == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"form={form!r}: there are k1, k2, k3")


def gaussian_kl(mean: Tensor, reference: Tensor, std: Tensor) -> Tensor:
    """KL of two Gaussians of equal std, |m - m_ref|^2 / (2 std^2) (DPOK), the mean over C, H, W: (B, ...) -> (B,)."""
    return (0.5 * ((mean - reference) / std).square()).flatten(1).mean(1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (B,) where mask (B,) holds; exactly 0 where it holds nowhere, without a host sync."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp_min(1)
