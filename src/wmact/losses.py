"""Losses: pure functions of tensors; most return (loss, stats). Nothing is logged and nothing is weighted here.

Every loss is a sum over sampled tokens divided by `count`, the number of tokens in the *whole* batch, so that losses
of micro-batches add up to the loss of the batch.
"""

import torch
from torch import Tensor

Stats = dict[str, Tensor]


def difference(a_S: Tensor, b_S: Tensor, mask_S: Tensor) -> Tensor:
    """a - b, and 0 where it is masked out: what may be NaN there must not reach the gradient either (0 · NaN = NaN)."""
    return torch.where(mask_S, a_S - b_S, 0.0)


def masked_mean(values_S: Tensor, mask_S: Tensor, count: Tensor | float) -> Tensor:
    """Sum over the masked entries, divided by `count`; what is masked out may be NaN.

    Raises:
        ValueError: the shapes differ, as after (S,) and (S, 1) were broadcast to (S, S).
    """
    if values_S.shape != mask_S.shape:
        raise ValueError(f"values of shape {tuple(values_S.shape)} under a mask of shape {tuple(mask_S.shape)}")
    return torch.where(mask_S, values_S, 0.0).sum() / count


def policy_loss(
    logprobs_S: Tensor,
    old_logprobs_S: Tensor,
    advantages_S: Tensor,
    mask_S: Tensor,
    count: Tensor | float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    weights_S: Tensor | None = None,
) -> tuple[Tensor, Stats]:
    """PPO's clipped surrogate (Schulman et al. 2017, eq. 7), with separate bounds.

    Strictly on-policy (WMAct) old and new log-probabilities are equal, the ratio is 1, and its gradient is the policy
    gradient A·∇log π; the bounds then never bind.

    Args:
        weights_S: optional importance weights against the engine that sampled, without gradient.
    """
    ratio_S = difference(logprobs_S, old_logprobs_S, mask_S).exp()
    clipped_S = ratio_S.clamp(1 - clip_low, 1 + clip_high)
    objective_S = torch.minimum(ratio_S * advantages_S, clipped_S * advantages_S)
    if weights_S is not None:
        objective_S = objective_S * weights_S
    objective = masked_mean(objective_S, mask_S, count)
    loss = -objective
    with torch.no_grad():
        stats = {
            "clip_fraction": masked_mean((ratio_S != clipped_S).float(), mask_S, count),
            "ratio_mean": masked_mean(ratio_S, mask_S, count),
        }
    return loss, stats


def value_loss(values_S: Tensor, returns_S: Tensor, mask_S: Tensor, count: Tensor | float) -> tuple[Tensor, Stats]:
    """Half the squared error of the critic. Both arguments are (S,): a (S, 1) would broadcast to (S, S)."""
    if values_S.shape != returns_S.shape:
        raise ValueError(f"values {tuple(values_S.shape)} and returns {tuple(returns_S.shape)} differ in shape")
    error_S = difference(values_S, returns_S, mask_S)
    loss = 0.5 * masked_mean(error_S**2, mask_S, count)
    return loss, {"value_mean": masked_mean(values_S.detach(), mask_S, count)}


def kl_loss(
    logprobs_S: Tensor, reference_logprobs_S: Tensor, mask_S: Tensor, count: Tensor | float
) -> tuple[Tensor, Stats]:
    """KL(π ‖ reference), by the estimator e^d - d - 1 with d = log ref - log π, which is never negative."""
    log_ratio_S = difference(reference_logprobs_S, logprobs_S, mask_S)
    loss = masked_mean(log_ratio_S.exp() - log_ratio_S - 1, mask_S, count)
    return loss, {"kl": loss.detach()}


def entropy_loss(entropy_S: Tensor, mask_S: Tensor, count: Tensor | float) -> tuple[Tensor, Stats]:
    """Minus the mean entropy of the next-token distribution: a bonus when its coefficient is positive."""
    entropy = masked_mean(entropy_S, mask_S, count)
    return -entropy, {"entropy": entropy.detach()}


def cross_entropy(logprobs_S: Tensor, mask_S: Tensor, count: Tensor | float) -> Tensor:
    """Negative log-likelihood of the marked tokens, for supervised training."""
    return -masked_mean(logprobs_S, mask_S, count)


def importance_weights(logprobs_S: Tensor, behaviour_logprobs_S: Tensor, cap: float) -> Tensor:
    """Truncated importance weights min(π / π_engine, cap) that correct for the engine's other arithmetic."""
    return (logprobs_S.detach() - behaviour_logprobs_S).exp().clamp(max=cap)


def mismatch(logprobs_S: Tensor, behaviour_logprobs_S: Tensor, mask_S: Tensor, count: Tensor | float) -> Stats:
    """How far the trainer's log-probabilities are from those of the engine that sampled, on the sampled tokens.

    `mismatch_kl` estimates KL(engine ‖ trainer) by e^d - d - 1 with d = trainer - engine; `mismatch_max` is max |d|.
    """
    gap_S = difference(logprobs_S.detach(), behaviour_logprobs_S, mask_S)
    return {
        "mismatch_kl": masked_mean(gap_S.exp() - gap_S - 1, mask_S, count),
        "mismatch_max": gap_S.abs().max() if len(gap_S) else gap_S.sum(),  # an episode without a turn has no token
    }
