"""Advantages: pure functions of tensors.

What differs from the textbook: a state is a position where the model is about to write a token. Tokens that the
environment wrote are no decisions, so the recursion steps from sampled token to sampled token and observations of any
length leave every advantage as it is.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Total = Callable[[Sequence[float]], Sequence[float]]
"""Sums figures over all processes that hold a share of the batch; `list` where one holds it whole."""


def gae(
    rewards_S: Tensor, values_S: Tensor, episode_S: Tensor, gamma: float = 1.0, lam: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over sampled tokens (Schulman et al. 2016, eq. 16).

    δ_s = r_s + γ·V_{s+1} - V_s and A_s = δ_s + γλ·A_{s+1}, where s+1 is the next sampled token of the same episode,
    across turns. After the last one V and A are 0, also where a limit cut the episode off: the turn budget is part of
    the task, so not to be done in time is worth nothing more.

    Args:
        rewards_S: (S,) reward after each sampled token.
        values_S: (S,) V of the state in which each token was sampled.
        episode_S: (S,) episode of each token, in blocks.

    Returns:
        advantages_S, returns_S (the value targets A + V), both (S,) float32 and without gradient.
    """
    values_S = values_S.detach().float()
    rewards, values, episodes = rewards_S.tolist(), values_S.tolist(), episode_S.tolist()
    advantages = [0.0] * len(rewards)
    # A plain loop in double precision: S is some ten thousand, and this takes milliseconds beside seconds of update.
    for s in range(len(rewards) - 1, -1, -1):
        last = s + 1 == len(rewards) or episodes[s + 1] != episodes[s]
        next_value, next_advantage = (0.0, 0.0) if last else (values[s + 1], advantages[s + 1])
        advantages[s] = rewards[s] + gamma * next_value - values[s] + gamma * lam * next_advantage
    advantages_S = torch.tensor(advantages, dtype=torch.float32, device=values_S.device)
    return advantages_S, advantages_S + values_S


def moments(values_S: Tensor, mask_S: Tensor, total: Total = list) -> tuple[float, float]:
    """Mean and standard deviation of the masked entries, in double precision; 0 and 0 where there are none."""
    kept = values_S[mask_S].cpu().double()
    count, summed = total([float(kept.numel()), float(kept.sum())])
    mean = summed / max(count, 1)
    (squares,) = total([float(((kept - mean) ** 2).sum())])
    return mean, math.sqrt(squares / max(count, 1))


def whiten(values_S: Tensor, mask_S: Tensor, total: Total = list, eps: float = 1e-6) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the masked entries; masked-out entries become 0.

    All equal (a batch without any contrast) gives zeros, not noise blown up: a deviation below `eps` of the values'
    root mean square is rounding.
    """
    mean, std = moments(values_S, mask_S, total)
    if std <= eps * math.hypot(mean, std):
        return torch.zeros_like(values_S)
    return torch.where(mask_S, (values_S - mean) / std, 0.0)


def explained_variance(advantages_S: Tensor, returns_S: Tensor, mask_S: Tensor, total: Total = list) -> float:
    """1 - Var(return - value) / Var(return): 1 is a perfect critic, 0 knows the mean only.

    NaN when all returns are equal.
    """
    variance, left = (moments(values_S, mask_S, total)[1] ** 2 for values_S in (returns_S, advantages_S))
    return 1 - left / variance if variance > 1e-8 else math.nan


def group_relative(rewards_E: Tensor, group_E: Tensor, scale: bool = True, eps: float = 1e-6) -> Tensor:
    """GRPO's advantages: reward minus the mean of its group, over the group's standard deviation if `scale`.

    Args:
        rewards_E: (E,) total reward of each episode.
        group_E: (E,) group numbers; episodes of one prompt share one.

    Returns:
        (E,) advantages; 0 throughout a group whose rewards are all equal, and for a group of one.
    """
    centred_E, std_E, _ = group_moments(rewards_E, group_E)
    return torch.where(std_E <= eps, 0.0, centred_E / (std_E + eps) if scale else centred_E).float()


def has_contrast(rewards_E: Tensor, group_E: Tensor, eps: float = 1e-6) -> Tensor:
    """(E,) bool: whether the rewards of an episode's group differ; where one is NaN they do."""
    _, std_E, _ = group_moments(rewards_E, group_E)
    return ~(std_E <= eps)


def group_moments(rewards_E: Tensor, group_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reward minus the mean of its group, the group's standard deviation, and its size; each (E,).

    In float64, where the mean of equal rewards is that reward; in float32 it can be off by more than they may differ.
    """
    rewards_E = rewards_E.double()
    _, index_E = torch.unique(group_E, return_inverse=True)
    groups = int(index_E.max()) + 1
    count = rewards_E.new_zeros(groups).scatter_add_(0, index_E, torch.ones_like(rewards_E))
    mean = rewards_E.new_zeros(groups).scatter_add_(0, index_E, rewards_E) / count
    centred_E = rewards_E - mean[index_E]
    std = (rewards_E.new_zeros(groups).scatter_add_(0, index_E, centred_E**2) / count).sqrt()
    return centred_E, std[index_E], count[index_E]
