"""Every loss against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from wmact import losses

ALL = torch.ones(3, dtype=torch.bool)
NAN = math.nan


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def close(value: Tensor, expected: float | list[float]) -> None:
    torch.testing.assert_close(value.detach(), torch.tensor(expected, dtype=value.dtype), rtol=0, atol=1e-6)


def test_masked_mean() -> None:
    values, mask = torch.tensor([1.0, NAN, 4.0]), torch.tensor([True, False, True])
    close(losses.masked_mean(values, mask, 2), 2.5)  # 5/2
    close(losses.masked_mean(values, mask, 10), 0.5)  # 5/10
    close(losses.masked_mean(values, torch.zeros(3, dtype=torch.bool), 1), 0.0)  # of nothing


def test_policy_loss_unclipped() -> None:
    # ratios 0.5/0.5 = 1, 0.22/0.2 = 1.1, 0.09/0.1 = 0.9; bounds 0.8 and 1.2 bind nowhere
    # -(1 · 2 + 1.1 · (-1) + 0.9 · 3)/3 = -3.6/3
    loss, stats = losses.policy_loss(logs(0.5, 0.22, 0.09), logs(0.5, 0.2, 0.1), torch.tensor([2.0, -1.0, 3.0]), ALL, 3)
    close(loss, -1.2)
    close(stats["clip_fraction"], 0.0)
    close(stats["ratio_mean"], 1.0)  # (1 + 1.1 + 0.9)/3


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [
        (1.5, 1.0, 1.28, 0.0),  # above 1 + clip_high and good: no more to gain
        (1.5, -1.0, -1.5, -1.5),  # above and bad: the unclipped one is smaller, and pulls back
        (1.25, 1.0, 1.25, 1.25),  # between 1.2 and 1.28: the upper bound is its own
        (0.5, 1.0, 0.5, 0.5),  # below and good: pulls back
        (0.5, -1.0, -0.9, 0.0),  # below 1 - clip_low and bad: nothing more to lose
        (0.95, -1.0, -0.95, -0.95),
    ],
)
def test_policy_loss_clips_each_side_by_its_own_bound(
    ratio: float, advantage: float, objective: float, slope: float
) -> None:
    logprobs = torch.tensor([math.log(0.1 * ratio)], requires_grad=True)
    loss, stats = losses.policy_loss(
        logprobs, logs(0.1), torch.tensor([advantage]), ALL[:1], 1, clip_low=0.1, clip_high=0.28
    )
    loss.backward()
    close(loss, -objective)
    assert logprobs.grad is not None
    close(logprobs.grad, [-slope])  # d(ratio · A)/d log π = ratio · A where it is not clipped
    close(stats["clip_fraction"], float(not 0.9 <= ratio <= 1.28))


def test_policy_loss_on_policy_is_the_policy_gradient() -> None:
    logprobs = logs(0.5, 0.2, 0.1).requires_grad_()
    loss, _ = losses.policy_loss(logprobs, logprobs.detach(), torch.tensor([2.0, -1.0, 3.0]), ALL, 4)
    loss.backward()
    close(loss, -1.0)  # ratios are 1: -(2 - 1 + 3)/4
    assert logprobs.grad is not None
    close(logprobs.grad, [-0.5, 0.25, -0.75])  # -A/4


def test_policy_loss_with_importance_weights() -> None:
    # on-policy; weights 0.5, 1, 2: -(0.5 · 2 + 1 · (-1) + 2 · 3)/3
    old = logs(0.5, 0.2, 0.1)
    loss, _ = losses.policy_loss(
        old, old, torch.tensor([2.0, -1.0, 3.0]), ALL, 3, weights_S=torch.tensor([0.5, 1.0, 2.0])
    )
    close(loss, -2.0)


def test_value_loss() -> None:
    # errors 0.5, -1, 2: (0.25 + 1 + 4)/2/3
    loss, stats = losses.value_loss(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.5, 1.0, 1.0]), ALL, 3)
    close(loss, 0.875)
    close(stats["value_mean"], 4 / 3)


@pytest.mark.parametrize(("values", "returns"), [((3,), (3, 1)), ((3, 1), (3,)), ((3,), (1,))])
def test_value_loss_refuses_to_broadcast(values: tuple[int, ...], returns: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        losses.value_loss(torch.zeros(values), torch.zeros(returns), ALL, 3)


@pytest.mark.parametrize("wrong", ["old_logprobs_S", "advantages_S", "mask_S", "weights_S"])
def test_policy_loss_refuses_to_broadcast(wrong: str) -> None:
    arguments = {name: torch.zeros(3) for name in ("logprobs_S", "old_logprobs_S", "advantages_S", "weights_S")}
    arguments |= {"mask_S": ALL}
    arguments[wrong] = arguments[wrong][:, None]
    with pytest.raises(ValueError, match="shape"):
        losses.policy_loss(**arguments, count=3)


def test_kl_loss() -> None:
    # d = log(0.4/0.5), log(0.2/0.2), log(0.3/0.1): e^d - d - 1 = 0.8 - log 0.8 - 1, 0, 3 - log 3 - 1
    expected = (0.8 - math.log(0.8) - 1 + 0 + 3 - math.log(3) - 1) / 3
    loss, stats = losses.kl_loss(logs(0.5, 0.2, 0.1), logs(0.4, 0.2, 0.3), ALL, 3)
    close(loss, expected)
    close(stats["kl"], expected)


def test_kl_estimator_is_unbiased() -> None:
    """Over the whole distribution, weighted by π, it is the textbook KL(π ‖ reference)."""
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    exact = float((policy * (policy / reference).log()).sum())
    one = [losses.kl_loss(policy.log()[[i]], reference.log()[[i]], ALL[:1], 1)[0] for i in range(3)]
    close(sum(p * k for p, k in zip(policy, one, strict=True)), exact)
    assert min(float(k) for k in one) >= 0


def test_entropy_loss_and_cross_entropy() -> None:
    loss, stats = losses.entropy_loss(torch.tensor([0.5, 1.0, 3.0]), ALL, 3)
    close(loss, -1.5)
    close(stats["entropy"], 1.5)
    # -(log 0.5 + log 0.25)/2 = 1.5 · log 2; the third is masked out
    close(losses.cross_entropy(logs(0.5, 0.25, 0.9), torch.tensor([True, True, False]), 2), 1.5 * math.log(2))


def test_importance_weights_are_capped_from_above_only() -> None:
    logprobs = logs(0.4, 0.1, 0.01).requires_grad_()
    weights = losses.importance_weights(logprobs, logs(0.1, 0.1, 0.1), cap=2.0)
    close(weights, [2.0, 1.0, 0.1])  # min(4, 2), 1, 0.1
    assert not weights.requires_grad


def test_mismatch() -> None:
    # d = log 1 = 0 and log(0.1/0.2) = -log 2; the third is masked: (e^-log2 + log 2 - 1)/2
    stats = losses.mismatch(
        logs(0.5, 0.1, 0.9), torch.tensor([math.log(0.5), math.log(0.2), NAN]), torch.tensor([True, True, False]), 2
    )
    close(stats["mismatch_kl"], (0.5 + math.log(2) - 1) / 2)
    close(stats["mismatch_max"], math.log(2))


def test_mismatch_of_nothing() -> None:
    """A micro-batch may hold an episode without a turn and nothing else."""
    nothing = torch.zeros(0)
    stats = losses.mismatch(nothing, nothing, nothing.bool(), 5)
    close(stats["mismatch_kl"], 0.0)
    close(stats["mismatch_max"], 0.0)


def call(name: str, x: Tensor, other: Tensor, mask: Tensor, count: int) -> Tensor:
    """Each loss as a function of the logprobs, values or entropies `x`, and of what it compares them with."""
    if name == "policy":
        return losses.policy_loss(x, other, other, mask, count, weights_S=other)[0]
    if name == "value":
        return losses.value_loss(x, other, mask, count)[0]
    if name == "kl":
        return losses.kl_loss(x, other, mask, count)[0]
    if name == "entropy":
        return losses.entropy_loss(x, mask, count)[0]
    return losses.cross_entropy(x, mask, count)


NAMES = ["policy", "value", "kl", "entropy", "cross_entropy"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_what_is_masked_does_no_harm_in_value_and_gradient(name: str, bad: float) -> None:
    mask = torch.tensor([True, True, False])
    clean = torch.tensor([-0.5, -1.0, -0.2], requires_grad=True)
    expected = call(name, clean, torch.tensor([-0.4, -1.2, -0.3]), mask, 2)
    expected.backward()
    for x_bad, other_bad in ((-0.2, bad), (bad, -0.3), (bad, bad)):
        x = torch.tensor([-0.5, -1.0, x_bad], requires_grad=True)
        loss = call(name, x, torch.tensor([-0.4, -1.2, other_bad]), mask, 2)
        loss.backward()
        assert loss.equal(expected)
        assert x.grad is not None
        assert clean.grad is not None
        assert x.grad.equal(clean.grad)
        assert x.grad[2] == 0


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_micro_batches_add_up(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, other = -torch.rand(2, 10, generator=generator)
    mask = torch.rand(10, generator=generator) < 0.7
    count = int(mask.sum())
    whole = call(name, x, other, mask, count)
    parts = [
        call(name, *part, count)
        for part in zip(x.split([3, 1, 6]), other.split([3, 1, 6]), mask.split([3, 1, 6]), strict=True)
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-6, atol=1e-6)
