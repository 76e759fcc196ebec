"""Advantages against numbers worked out by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wmact.advantages import explained_variance, gae, group_relative, has_contrast, whiten
from wmact.collate import collate
from wmact.types import Episode

ONE = torch.zeros(3, dtype=torch.long)  # three tokens of one episode


def close(values: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(values, torch.tensor(expected, dtype=values.dtype), rtol=0, atol=1e-6)


def test_gae_undiscounted() -> None:
    # γ = λ = 1: the advantage is the reward that is still to come, less the value
    advantages, returns = gae(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.2, 0.4, 0.7]), ONE)
    close(advantages, [1.5 - 0.2, 1.5 - 0.4, 1.0 - 0.7])
    close(returns, [1.5, 1.5, 1.0])


def test_gae_discounted() -> None:
    # γ = 0.9, λ = 0.8, γλ = 0.72
    # δ_2 = 1 - 0.7 = 0.3                       A_2 = 0.3
    # δ_1 = 0.5 + 0.9 · 0.7 - 0.4 = 0.73        A_1 = 0.73 + 0.72 · 0.3 = 0.946
    # δ_0 = 0 + 0.9 · 0.4 - 0.2 = 0.16          A_0 = 0.16 + 0.72 · 0.946 = 0.84112
    advantages, returns = gae(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.2, 0.4, 0.7]), ONE, 0.9, 0.8)
    close(advantages, [0.84112, 0.946, 0.3])
    close(returns, [0.84112 + 0.2, 0.946 + 0.4, 1.0])


def test_lambda_zero_is_one_step() -> None:
    # only δ is left: 0 + 0.9 · 0.4 - 0.2, 0.5 + 0.9 · 0.7 - 0.4, 1 - 0.7
    advantages, _ = gae(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.2, 0.4, 0.7]), ONE, 0.9, 0.0)
    close(advantages, [0.16, 0.73, 0.3])


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("lam", [1.0, 0.8, 0.0])
def test_gae_with_a_constant_critic(gamma: float, lam: float) -> None:
    """Every reward 1 and every value V: the advantage is a geometric sum of δ = 1 + γV - V, and 1 - V at the end."""
    n, v = 5, 0.3
    advantages, returns = gae(torch.ones(n), torch.full((n,), v), torch.zeros(n, dtype=torch.long), gamma, lam)
    expected = [
        sum((gamma * lam) ** k * (1 + gamma * v - v) for k in range(n - 1 - s)) + (gamma * lam) ** (n - 1 - s) * (1 - v)
        for s in range(n)
    ]
    close(advantages, expected)
    close(returns, [a + v for a in expected])


def test_episodes_do_not_touch() -> None:
    # two episodes of two tokens: γ = λ = 1, V = 0, so each advantage is its own episode's reward to come
    advantages, _ = gae(torch.tensor([0.0, 1.0, 0.0, -3.0]), torch.zeros(4), torch.tensor([0, 0, 1, 1]))
    close(advantages, [1, 1, -3, -3])


def test_two_turns_are_one_recursion(make_episode: Callable[..., Episode]) -> None:
    # turns of 2 and 1 tokens with rewards 0.5 and 1, V = 0.1 throughout, γ = 0.9, λ = 0.8:
    # A_2 = 1 - 0.1 = 0.9
    # A_1 = 0.5 + 0.09 - 0.1 + 0.72 · 0.9 = 1.138     (the end of turn 1 sees into turn 2)
    # A_0 = 0.09 - 0.1 + 0.72 · 1.138 = 0.80936
    batch = collate([make_episode((3, 2, 0.5), (4, 1, 1.0))])
    advantages, returns = gae(batch.rewards_S, torch.full((3,), 0.1), batch.episode_S, 0.9, 0.8)
    close(advantages, [0.80936, 1.138, 0.9])
    close(returns, [0.90936, 1.238, 1.0])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.95, 0.9)])
def test_the_length_of_observations_changes_nothing(
    make_episode: Callable[..., Episode], gamma: float, lam: float
) -> None:
    """Peers bootstrap from the tokens of observations; here an advantage is a matter of sampled tokens only."""
    values = torch.tensor([0.3, -0.2, 0.5, 0.1, 0.9])
    seen = []
    for length in (1, 10, 100):
        batch = collate([make_episode((length, 2, 0.0), (length, 3, 1.0))])
        assert batch.num_tokens == 2 * length + 5
        seen.append(gae(batch.rewards_S, values, batch.episode_S, gamma, lam)[0])
    assert seen[0].equal(seen[1])
    assert seen[0].equal(seen[2])


def test_a_last_turn_of_zero_reward_has_advantages_too(make_episode: Callable[..., Episode]) -> None:
    # γ = λ = 1, V = 0.25: turn 1 earned 1 and nothing comes after: 1 - 0.25, 1 - 0.25, 0 - 0.25, 0 - 0.25
    batch = collate([make_episode((2, 2, 1.0), (2, 2, 0.0))])
    advantages, returns = gae(batch.rewards_S, torch.full((4,), 0.25), batch.episode_S)
    close(advantages, [0.75, 0.75, -0.25, -0.25])
    close(returns, [1, 1, 0, 0])


def test_gae_gives_no_gradient() -> None:
    values = torch.tensor([0.2, 0.4, 0.7], requires_grad=True)
    advantages, returns = gae(torch.ones(3), values, ONE)
    assert not advantages.requires_grad
    assert not returns.requires_grad


def test_gae_of_nothing() -> None:
    """A micro-batch may hold an episode without a turn and nothing else."""
    nothing = torch.zeros(0)
    advantages, returns = gae(nothing, nothing, torch.zeros(0, dtype=torch.long))
    assert advantages.shape == returns.shape == (0,)


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_gae_equals_its_definition(rows: list[tuple[float, float, bool]]) -> None:
    """A_s = Σ_k (γλ)^k δ_{s+k} within the episode (eq. 16), summed literally."""
    rewards, values = torch.tensor([r for r, _, _ in rows]), torch.tensor([v for _, v, _ in rows])
    episode = torch.tensor([new for _, _, new in rows]).cumsum(0)
    gamma, lam = 0.97, 0.9
    n = len(rows)
    delta = [
        float(rewards[s])
        + (gamma * float(values[s + 1]) if s + 1 < n and episode[s + 1] == episode[s] else 0.0)
        - float(values[s])
        for s in range(n)
    ]
    expected = [
        sum((gamma * lam) ** (k - s) * delta[k] for k in range(s, n) if episode[k] == episode[s]) for s in range(n)
    ]
    torch.testing.assert_close(gae(rewards, values, episode, gamma, lam)[0], torch.tensor(expected))


def test_whiten_by_hand() -> None:
    # mean of 1, 2, 6 is 3, variance (4 + 1 + 9)/3 = 14/3
    std = math.sqrt(14 / 3)
    whitened = whiten(torch.tensor([1.0, 100.0, 2.0, 6.0]), torch.tensor([True, False, True, True]))
    close(whitened, [-2 / std, 0, -1 / std, 3 / std])


def test_whiten_ignores_what_is_masked_even_if_it_is_no_number() -> None:
    values = torch.tensor([1.0, math.nan, 3.0, math.inf])
    close(whiten(values, torch.tensor([True, False, True, False])), [-1, 0, 1, 0])  # mean 2, deviation 1


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, -123.456, 1e6])
@pytest.mark.parametrize("size", [1, 7, 4096, 10007])
def test_whiten_of_equal_values_is_zero(value: float, size: int) -> None:
    """No contrast gives no gradient: rounding errors of the mean must not be blown up to ±1."""
    whitened = whiten(torch.full((size,), value), torch.ones(size, dtype=torch.bool))
    assert whitened.abs().max() == 0


def test_whiten_of_nothing() -> None:
    assert whiten(torch.tensor([1.0, math.nan]), torch.tensor([False, False])).tolist() == [0, 0]
    assert whiten(torch.zeros(0), torch.zeros(0, dtype=torch.bool)).shape == (0,)


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 3.0, 5.0, 99.0])
    mask = torch.tensor([True, True, True, False])
    # Var(returns) = 8/3. A critic that is right leaves nothing; one that knows the mean only leaves it all;
    # errors -1, 1, 0 have variance 2/3: 1 - (2/3)/(8/3)
    assert explained_variance(torch.tensor([0.0, 0.0, 0.0, 7.0]), returns, mask) == pytest.approx(1.0)
    assert explained_variance(returns - 3, returns, mask) == pytest.approx(0.0)
    assert explained_variance(torch.tensor([-1.0, 1.0, 0.0, 7.0]), returns, mask) == pytest.approx(0.75)


def test_explained_variance_of_equal_returns_is_not_a_number() -> None:
    # Divided by a clamped variance it was -346,938 for a batch in which every episode failed: a ruined plot.
    everything = torch.ones(3, dtype=torch.bool)
    assert math.isnan(explained_variance(torch.tensor([0.5, 0.1, 0.9]), torch.ones(3), everything))


def test_a_share_is_whitened_with_the_moments_of_all() -> None:
    # Here are 1 and 2, elsewhere 6: count 3, sum 9, so the mean is 3; squares 4 + 1 here and 9 there, as above
    there = iter([[1.0, 6.0], [9.0]])
    whitened = whiten(
        torch.tensor([1.0, 2.0]),
        torch.tensor([True, True]),
        lambda here: [a + b for a, b in zip(here, next(there), strict=True)],
    )
    std = math.sqrt(14 / 3)
    close(whitened, [-2 / std, -1 / std])


def test_group_relative_by_hand() -> None:
    # group 0: 1, 0, 0, 0 has mean 1/4 and variance (9/16 + 3/16)/4 = 3/16; group 7: 2, 4 has mean 3, deviation 1
    std = math.sqrt(3) / 4
    rewards, group = torch.tensor([1.0, 2.0, 0.0, 0.0, 4.0, 0.0]), torch.tensor([0, 7, 0, 0, 7, 0])
    expected = [0.75 / std, -1, -0.25 / std, -0.25 / std, 1, -0.25 / std]
    torch.testing.assert_close(group_relative(rewards, group), torch.tensor(expected), rtol=0, atol=1e-5)
    close(group_relative(rewards, group, scale=False), [0.75, -1, -0.25, -0.25, 1, -0.25])


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 0.7])
def test_equal_rewards_have_no_advantage(reward: float, scale: bool) -> None:
    advantages = group_relative(torch.full((8,), reward), torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]), scale)
    assert advantages.abs().max() < 1e-6


@pytest.mark.parametrize("scale", [True, False])
def test_a_group_of_one_has_no_advantage(scale: bool) -> None:
    close(group_relative(torch.tensor([5.0, 1.0, 0.0]), torch.tensor([3, 1, 2]), scale), [0, 0, 0])


@pytest.mark.parametrize("size", [3, 5, 6, 7, 12])
def test_equal_rewards_are_no_contrast_whatever_they_are(size: int) -> None:
    for reward in torch.arange(0.0, 50.0, 0.1).tolist():
        rewards, groups = torch.full((size,), reward), torch.zeros(size, dtype=torch.long)
        assert not has_contrast(rewards, groups).any()
        assert group_relative(rewards, groups).tolist() == [0.0] * size


def test_group_relative_takes_any_precision() -> None:
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert group_relative(rewards, torch.tensor([0, 0]), scale=False).tolist() == [0.5, -0.5]
