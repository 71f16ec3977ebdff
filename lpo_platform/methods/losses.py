"""The formulas of the methods, as pure functions of tensors."""

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
    """The weight s = stopgrad sigmoid(beta / 2 (d - r)) of CPO's hinge: four of (B,) -> (B,) in (0, 1).

    d = winner - loser under the policy, and r is the same under the reference. s is 0.5 while they agree. It is larger
    where the policy separates winner and loser less well than the reference does.
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
    """The loss of condition preference optimisation, a scalar (arXiv:2511.04753 as released, train/reward_CPO*.py).

    The first four arguments are denoising errors (B,), means over C, H, W, of the same noised image under the winning
    and the losing condition. The margin m is inside the hinge and applies to the policy's own difference d:
        hard:  s max(0, d + m)
        soft:  0.9 s max(0, d + m) + 0.1 (1 - s) max(0, -d + m)
    Samples at t = 0 are left out of the mean, and the loss is 0 if every t is 0.
    Raises ValueError for an unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r}: must be one of {', '.join(FORMS)}")
    s = preference_weight(winner, loser, reference_winner, reference_loser, beta=beta)
    d = winner - loser
    loss = s * (d + margin).clamp_min(0)
    if form == "soft":
        loss = 0.9 * loss + 0.1 * (1 - s) * (margin - d).clamp_min(0)
    return masked_mean(loss, t > 0)


def pair_preference(scores: Tensor, labels: Tensor) -> Tensor:
    """KL divergence from the labels to softmax(s_i, s_j), the mean over pairs i < j: (B, n), (B, n, n) -> (B,).

    labels[b, i, j] in [0, 1] is the probability that i is preferred to j. Labels 0 and 1 give the cross entropy of
    PickScore (arXiv:2305.01569). A label of 0.5 is a tie, whose loss is 0 at equal scores. Pick-a-Pic has n = 2.
    """
    first, second = torch.triu_indices(scores.shape[1], scores.shape[1], 1, device=scores.device)
    gap, y = (scores[:, first] - scores[:, second]).float(), labels[:, first, second].float()
    entropy = -(torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y))
    return (-y * F.logsigmoid(gap) - (1 - y) * F.logsigmoid(-gap) - entropy).mean(1)


def thurstone(
    scores: Tensor, labels: Tensor, share: Tensor, *, form: str, scale: float = 2.0, floor: float = 0.05
) -> Tensor:
    """A loss of Thurstone's model, the mean over pairs i < j: (B, n), (B, n, n), noise shares (B,) -> (B,).

    A score is a normal variable whose variance scale s^2 + floor rises with the share s of noise in the latents, so
    that i is preferred to j with probability P = Phi((s_i - s_j) / sqrt(2 variance)) (DiNa-LRM, arXiv:2602.11146).
        fidelity:  1 - sqrt(y P) - sqrt((1 - y) (1 - P)), which is bounded
        nll:       KL divergence from the label y to P, as pair_preference has it
    Raises ValueError for another form.
    """
    first, second = torch.triu_indices(scores.shape[1], scores.shape[1], 1, device=scores.device)
    gap, y = (scores[:, first] - scores[:, second]).float(), labels[:, first, second].float()
    z = gap / (2 * (scale * share.float().square() + floor) + 1e-6).sqrt()[:, None]
    p, q = torch.special.ndtr(z) + 1e-6, torch.special.ndtr(-z) + 1e-6
    if form == "nll":
        entropy = -(torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y))
        return (-y * p.log() - (1 - y) * q.log() - entropy).mean(1)
    if form != "fidelity":
        raise ValueError(f"form={form!r}: must be fidelity or nll")
    return (1 - y.sqrt() * p.sqrt() - (1 - y).sqrt() * q.sqrt()).mean(1)  # the root of y P has no slope at y = 0


def lpo(log_ratio_winner: Tensor, log_ratio_loser: Tensor, *, beta: float, clip: float) -> Tensor:
    """-log sigmoid(beta (log r_w - log r_l)) with r = clamp(exp(log ratio), 1 - clip, 1 + clip): (B,), (B,) -> (B,).

    A log ratio is log p(x' | x_t) under the policy minus that under the reference, the mean over C, H, W. A sample
    whose ratio has left the band has no gradient (arXiv:2502.01051 as released, lpo/train_scripts/train_lpo.py). The
    release takes the logarithm of a sigmoid, which is NaN below -88; logsigmoid is not.
    """
    low, high = math.log1p(-clip), math.log1p(clip)
    return -F.logsigmoid(beta * (log_ratio_winner.clamp(low, high) - log_ratio_loser.clamp(low, high)))


def diffusion_dpo(
    winner: Tensor, loser: Tensor, reference_winner: Tensor, reference_loser: Tensor, *, beta: float
) -> Tensor:
    """-log sigmoid(-beta / 2 (d - r)) with d = winner - loser and r the same under the reference: (B,).

    This is eq. 14 of arXiv:2311.12908. The arguments are denoising errors (B,), means over C, H, W, of two pictures at
    the same noise and timestep.
    """
    return -F.logsigmoid(-0.5 * beta * ((winner - loser) - (reference_winner - reference_loser)))


def ppo(log_ratio: Tensor, advantage: Tensor, *, clip: float) -> Tensor:
    """max(-A r, -A clamp(r, 1 - clip, 1 + clip)) with r = exp(log ratio): (B,), (B,) -> (B,).

    A log ratio is log p(x' | x_t) under the policy minus that under the policy that sampled, the mean over C, H, W, as
    in kvablack/ddpo-pytorch; a clip of 1e-4 allows 1e-4 C H W nats. There is no gradient where A > 0 and r > 1 + clip,
    or A < 0 and r < 1 - clip.
    """
    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def nft(
    output: Tensor, old: Tensor, target: Tensor, share: Tensor, optimality: Tensor, *, beta: float, adaptive: bool
) -> Tensor:
    """r l(v+) + (1 - r) l(v-) of implicit good and bad policies (arXiv:2509.16117, eq. 5): (B, ...), (B,) -> (B,).

    v+ = beta v + (1 - beta) v_old and v- = (1 + beta) v_old - beta v, with the optimality r (B,). l is the mean squared
    error to the velocity. adaptive: as in NVlabs/DiffusionNFT, l is that of x_0, s times the velocity's at a share s
    (B,) of noise, divided by its own mean absolute value, which has no gradient, and the sum is divided by beta.
    """
    v, old, target = output.double(), old.double(), target.double()

    def error(of: Tensor) -> Tensor:
        wrong = (of - target).flatten(1)
        if not adaptive:
            return wrong.square().mean(1)
        wrong = share.double()[:, None] * wrong
        return wrong.square().mean(1) / wrong.detach().abs().mean(1).clamp_min(1e-5)

    good, bad = error(beta * v + (1 - beta) * old), error((1 + beta) * old - beta * v)
    total = optimality * good + (1 - optimality) * bad
    return (total / beta if adaptive else total).float()


def score_function(log_prob: Tensor, advantage: Tensor) -> Tensor:
    """-A log p(x' | x_t), REINFORCE: (B,), (B,) -> (B,). It is valid for the first update after sampling only."""
    return -advantage * log_prob


def kl_estimate(form: str, log_ratio: Tensor) -> Tensor:
    """One-sample estimates of KL(q || p) from log r = log p(x) - log q(x), where x is drawn from q: (B,) -> (B,).

    k1 = -log r is unbiased. k2 = (log r)^2 / 2 is DDPO's approx_kl. k3 = r - 1 - log r is unbiased and never negative.
    Raises ValueError for another form.
    """
    if form == "k1":
        return -log_ratio
    if form == "k2":
        return 0.5 * log_ratio.square()
    if form == "k3":
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"form={form!r}: must be k1, k2 or k3")


def gaussian_kl(mean: Tensor, reference: Tensor, std: Tensor) -> Tensor:
    """KL of two Gaussians with the same std, |m - m_ref|^2 / (2 std^2), the mean over C, H, W: (B, ...) -> (B,)."""
    return (0.5 * ((mean - reference) / std).square()).flatten(1).mean(1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (B,) where mask (B,) is true. It is 0 where the mask is false everywhere, and never waits."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp_min(1)
