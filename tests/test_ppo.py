"""The training step, in a real Trainer, against its formulas written out with transformers' own forward pass."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from literal import Fixed, Literal, Watching, assert_close, fit, part, trainer
from wmact.collate import collate
from wmact.ppo import PPO
from wmact.types import Batch, Episode, Played, TrainingStopped


class Watched(Watching, PPO):
    """PPO that is watched."""


@pytest.fixture
def episodes(make_episode: Callable[..., Episode]) -> list[Episode]:
    """Four episodes of 7, 3, 5 and 6 sampled tokens: S = 21."""
    return [
        make_episode((3, 4, 0.0), (2, 3, 1.0), level=0, seed=1),
        make_episode((4, 3, 0.25), level=0, seed=2),
        make_episode((2, 1, 0.0), (5, 2, 0.0), (1, 2, 0.5), level=1, seed=3),
        make_episode((6, 6, 0.0), level=1, seed=4),
    ]


@pytest.fixture
def make(tiny_model: Path) -> Callable[..., Watched]:
    """PPO whose critic has an opinion: a head of random weights."""

    def build(**kwargs: Any) -> Watched:
        torch.manual_seed(7)
        module = Watched(str(tiny_model), **({"max_grad_norm": math.inf} | kwargs))
        torch.nn.init.normal_(module.critic.head.weight, std=0.5)
        torch.nn.init.constant_(module.critic.head.bias, 0.1)
        return module

    return build


# The formulas, written out


def literal_gae(episodes: list[Episode], values: Tensor, gamma: float, lam: float) -> Tensor:
    """A_s = Σ_k (γλ)^k δ_{s+k}, summed episode by episode."""
    advantages, offset = [], 0
    for episode in episodes:
        rewards = [r for turn in episode.turns for r in [0.0] * (turn.end - turn.start - 1) + [turn.reward]]
        n = len(rewards)
        v = [*values[offset : offset + n].tolist(), 0.0]
        delta = [rewards[s] + gamma * v[s + 1] - v[s] for s in range(n)]
        advantages += [sum((gamma * lam) ** k * delta[s + k] for k in range(n - s)) for s in range(n)]
        offset += n
    return torch.tensor(advantages)


def whitened(advantages: Tensor) -> Tensor:
    mean = advantages.mean()
    return (advantages - mean) / ((advantages - mean) ** 2).mean().sqrt()


# On policy


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8)])
def test_gradients_are_the_formulas(
    make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path, gamma: float, lam: float
) -> None:
    module = make(gamma=gamma, lam=lam)
    fit(module, episodes)
    (step,) = module.steps
    literal = Literal(tiny_model, step.before, episodes)
    raw = literal_gae(episodes, literal.values.detach(), gamma, lam)
    returns = raw + literal.values.detach()
    policy_loss = -(whitened(raw) * literal.logprobs).sum() / 21
    value_loss = 0.5 * ((literal.values - returns) ** 2).sum() / 21
    assert_close(part(step.gradients, "policy"), literal.gradients(policy_loss))
    assert_close(part(step.gradients, "critic"), literal.gradients(value_loss))
    logged = {name.removeprefix("stability/"): values[-1] for name, values in module.logged.items()}
    # at ratio 1 the surrogate is the mean of whitened advantages, which is 0
    assert logged["policy_loss"] == pytest.approx(0.0, abs=1e-6)
    assert logged["value_loss"] == pytest.approx(value_loss.item(), abs=1e-6)
    assert logged["entropy"] == pytest.approx(literal.entropies.mean().item(), abs=1e-5)
    assert logged["value_mean"] == pytest.approx(literal.values.mean().item(), abs=1e-6)
    assert logged["ratio_mean"] == pytest.approx(1.0)
    assert logged["clip_fraction"] == 0
    assert logged["mismatch_kl"] == pytest.approx(0.0, abs=1e-9)
    variance = 1 - raw.var(correction=0) / returns.var(correction=0)
    assert logged["explained_variance"] == pytest.approx(float(variance), rel=1e-4)
    norm = torch.cat([g.flatten() for g in part(step.gradients, "policy").values()]).norm()
    assert logged["grad_norm/policy"] == pytest.approx(float(norm), rel=1e-5)
    assert module.logged["performance/rollout_seconds"] == [1.5]
    assert module.logged["performance/tokens"] == [44]  # 12 + 7 + 13 + 12


@pytest.mark.parametrize("value_coef", [1.0, 0.1])
def test_a_shared_critic_adds_its_gradient_to_the_trunk(
    value_coef: float, make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path
) -> None:
    module = make(critic="shared", value_coef=value_coef)
    fit(module, episodes)
    (step,) = module.steps
    literal = Literal(tiny_model, step.before, episodes, shared=True)
    raw = literal_gae(episodes, literal.values.detach(), 1.0, 1.0)
    loss = -(whitened(raw) * literal.logprobs).sum() / 21
    loss = loss + value_coef * 0.5 * ((literal.values - raw - literal.values.detach()) ** 2).sum() / 21
    assert_close(step.gradients, literal.gradients(loss))
    assert module.global_step == 1


def test_one_adam_step_an_iteration_at_each_groups_own_rate(
    make: Callable[..., Watched], episodes: list[Episode]
) -> None:
    """The first step of Adam without weight decay is -lr · g/(|g| + ε), whatever the betas."""
    module = make(lr=1e-4, critic_lr=3e-3)
    run = fit(module, episodes)
    assert run.global_step == 1
    (step,) = module.steps
    for name, parameter in module.named_parameters():
        lr = 1e-4 if name.startswith("policy") else 3e-3
        g = step.gradients[name]
        expected = step.before[name] - lr * g / (g.abs() + 1e-8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6, msg=lambda m, n=name: n + m)
        assert not parameter.detach().equal(step.before[name]), name


def test_global_step_counts_iterations(make: Callable[..., Watched], episodes: list[Episode]) -> None:
    module = make(lr=1e-4)
    run = fit(module, episodes, epochs=3)
    assert run.global_step == run.current_epoch == len(module.steps) == 3
    (optimizer,) = run.optimizers
    assert {int(state["step"]) for state in optimizer.state.values()} == {3}
    assert [group["name"] for group in optimizer.param_groups] == ["policy", "critic"]


def test_every_parameter_is_in_one_group(make: Callable[..., Watched]) -> None:
    for critic in ("separate", "shared"):
        module = make(critic=critic)
        grouped = [id(p) for group in module.configure_optimizers().param_groups for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in module.parameters())


@pytest.mark.parametrize("settings", [{}, {"critic": "shared", "entropy_coef": 0.1}])
def test_micro_batches_change_nothing(
    make: Callable[..., Watched], episodes: list[Episode], settings: dict[str, Any], make_episode: Any
) -> None:
    # one episode without a turn: alone in its micro-batch it has no sampled token at all
    empty = Episode("env", 2, "2", 0, 0, 0, ids=[4] * 9, logprobs=[0.0] * 9, stop_reason="context")
    modules = [make(token_budget=budget, **settings) for budget in (10_000, 25, 1)]
    for module in modules:
        # not Adam, whose first step makes as much of a rounding error as of a gradient
        groups = [
            {name: group[name] for name in ("name", "params")} for group in module.configure_optimizers().param_groups
        ]
        module.configure_optimizers = lambda groups=groups: torch.optim.SGD(groups, lr=0.1)
        fit(module, [*episodes[:2], empty, *episodes[2:]])
    for other in modules[1:]:
        assert_close(other.steps[0].gradients, modules[0].steps[0].gradients, atol=2e-6)
        assert_close(dict(other.state_dict()), dict(modules[0].state_dict()), atol=1e-6)
        for name, values in modules[0].logged.items():
            if not name.endswith("_seconds"):
                assert other.logged[name] == pytest.approx(values, rel=1e-4, abs=1e-6), name


def test_gradients_are_clipped_each_group_by_its_own_norm(
    make: Callable[..., Watched], episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(max_grad_norm=0.01)
    seen: dict[str, float] = {}

    def step(self: torch.optim.AdamW, closure: Any = None) -> None:
        if closure is not None:
            closure()
        for group in self.param_groups:
            seen[group["name"]] = float(torch.cat([p.grad.flatten() for p in group["params"]]).norm())

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    fit(module, episodes)
    assert seen == pytest.approx({"policy": 0.01, "critic": 0.01}, rel=1e-4)
    assert module.logged["stability/grad_norm/policy"][0] > 0.02  # what is logged is the norm before


# Terms that are off by default


def test_entropy_bonus_by_formula(make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path) -> None:
    module = make(entropy_coef=0.3)
    fit(module, episodes)
    (step,) = module.steps
    literal = Literal(tiny_model, step.before, episodes)
    advantages = whitened(literal_gae(episodes, literal.values.detach(), 1.0, 1.0))
    loss = -(advantages * literal.logprobs).sum() / 21 - 0.3 * literal.entropies.sum() / 21
    assert_close(part(step.gradients, "policy"), literal.gradients(loss))


def test_kl_term_by_formula(make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path) -> None:
    module = make(kl_coef=0.5)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():  # at the start weights the term and its gradient would be 0
        for i, parameter in enumerate(module.policy.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    fit(module, episodes)
    (step,) = module.steps
    literal, reference = (Literal(tiny_model, weights, episodes) for weights in (step.before, start))
    advantages = whitened(literal_gae(episodes, literal.values.detach(), 1.0, 1.0))
    d = reference.logprobs.detach() - literal.logprobs
    kl = (d.exp() - d - 1).sum() / 21
    assert kl.item() > 0.01
    loss = -(advantages * literal.logprobs).sum() / 21 + 0.5 * kl
    assert_close(part(step.gradients, "policy"), literal.gradients(loss))
    assert module.logged["stability/kl"] == [pytest.approx(kl.item(), rel=1e-4)]
    after = dict(module.named_parameters())
    reference_names = [name for name in after if name.startswith("reference.")]
    assert reference_names
    assert all(after[name].equal(start[name]) for name in reference_names)  # it is never trained


def test_importance_weights_by_formula(make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path) -> None:
    shift = torch.linspace(-0.5, 0.5, 21)
    module = make(importance_cap=1.2, max_mismatch_kl=1.0)
    fit(module, episodes, change=lambda b, _: b._replace(behaviour_logprobs_S=b.behaviour_logprobs_S - shift))
    (step,) = module.steps
    literal = Literal(tiny_model, step.before, episodes)
    advantages = whitened(literal_gae(episodes, literal.values.detach(), 1.0, 1.0))
    weights = shift.exp().clamp(max=1.2)  # π/π_engine = e^shift
    loss = -(weights * advantages * literal.logprobs).sum() / 21
    assert_close(part(step.gradients, "policy"), literal.gradients(loss))
    # mean of e^d - d - 1 with d = shift
    assert module.logged["stability/mismatch_kl"] == [pytest.approx(float((shift.exp() - shift - 1).mean()), rel=1e-3)]
    assert module.logged["stability/mismatch_max"] == [pytest.approx(0.5, rel=1e-4)]


def test_without_a_cap_the_engines_logprobs_change_nothing(
    make: Callable[..., Watched], episodes: list[Episode]
) -> None:
    modules = [make(max_mismatch_kl=1.0) for _ in range(2)]
    for module, shift in zip(modules, (0.0, 0.3), strict=True):
        fit(module, episodes, change=lambda b, _, s=shift: b._replace(behaviour_logprobs_S=b.behaviour_logprobs_S - s))
    assert_close(modules[1].steps[0].gradients, modules[0].steps[0].gradients, atol=0)


# Several passes over a batch


def test_the_second_pass_is_clipped_against_the_first_policy(
    make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path
) -> None:
    module = make(epochs=2, lr=3e-3, clip_low=0.1, clip_high=0.2)
    run = fit(module, episodes)
    assert run.global_step == 2
    first, second = (Literal(tiny_model, step.before, episodes) for step in module.steps)
    raw = literal_gae(episodes, first.values.detach(), 1.0, 1.0)
    advantages, returns = whitened(raw), raw + first.values.detach()
    ratio = (second.logprobs - first.logprobs.detach()).exp()
    clipped = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.9))
    assert 2 <= int(clipped.sum()) <= 19  # both kinds are there to be told apart
    loss = -torch.where(clipped, 0.0, ratio * advantages).sum() / 21
    assert_close(part(module.steps[1].gradients, "policy"), second.gradients(loss), atol=1e-5)
    # the critic's second pass goes for the returns of the first
    value_loss = 0.5 * ((second.values - returns) ** 2).sum() / 21
    assert_close(part(module.steps[1].gradients, "critic"), second.gradients(value_loss), atol=1e-5)
    outside = ((ratio > 1.2) | (ratio < 0.9)).float().mean()
    # the first pass has ratio 1 throughout; logged is the mean of both
    assert module.logged["stability/clip_fraction"] == [pytest.approx(float(outside) / 2, abs=1e-5)]
    assert module.logged["stability/ratio_mean"] == [pytest.approx((1 + float(ratio.detach().mean())) / 2, rel=1e-4)]


@pytest.mark.parametrize("token_budget", [10_000, 1])
def test_minibatches_are_optimizer_steps(
    make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path, token_budget: int
) -> None:
    """Two of two episodes each (10 and 11 sampled tokens), however many micro-batches these are computed in."""
    module = make(minibatches=2, lr=1e-3, token_budget=token_budget)
    assert fit(module, episodes).global_step == 2
    first, second = (Literal(tiny_model, step.before, episodes) for step in module.steps)
    advantages = whitened(literal_gae(episodes, first.values.detach(), 1.0, 1.0))
    loss = -(advantages * first.logprobs)[:10].sum() / 10
    assert_close(part(module.steps[0].gradients, "policy"), first.gradients(loss), atol=1e-5)
    ratio = (second.logprobs - first.logprobs.detach()).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    assert_close(part(module.steps[1].gradients, "policy"), second.gradients(-surrogate[10:].sum() / 11), atol=1e-5)


@pytest.mark.parametrize("minibatches", [1, 2, 3, 4])
def test_epochs_and_minibatches(make: Callable[..., Watched], episodes: list[Episode], minibatches: int) -> None:
    module = make(epochs=2, minibatches=minibatches, lr=1e-3, token_budget=25)
    run = fit(module, episodes, epochs=2)
    assert run.global_step == 2 * 2 * minibatches
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert module.logged["stability/ratio_mean"][0] != pytest.approx(1.0, abs=1e-6)


def test_more_minibatches_than_episodes(make: Callable[..., Watched], episodes: list[Episode]) -> None:
    with pytest.raises(ValueError, match=r"minibatches=5: the batch has only 4 episodes"):
        fit(make(minibatches=5), episodes)


# Guards


def nan_reward(batch: Batch, bad: bool) -> Batch:
    rewards = batch.rewards_S.clone()
    rewards[6] = math.nan if bad else rewards[6]
    return batch._replace(rewards_S=rewards)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_without_finite_gradients_is_skipped(
    make: Callable[..., Watched], episodes: list[Episode], value: float
) -> None:
    module = make(lr=1e-3)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}

    def change(batch: Batch, epoch: int) -> Batch:
        rewards = batch.rewards_S.clone()
        rewards[-1] = value
        return batch._replace(rewards_S=rewards)

    run = fit(module, episodes, change=change)
    assert run.global_step == 0
    assert all(p.detach().equal(before[name]) for name, p in module.named_parameters())
    assert module.skipped.tolist() == [1, 1]
    assert module.logged["stability/skipped_steps"] == [1]


def test_skipped_steps_in_a_row_stop_the_run(make: Callable[..., Watched], episodes: list[Episode]) -> None:
    module = make(lr=1e-3, max_skipped=3)
    with pytest.raises(TrainingStopped, match=r"^3 optimizer steps in a row had NaN or infinite gradients"):
        fit(module, episodes, epochs=9, change=lambda batch, epoch: nan_reward(batch, epoch != 2))
    # skipped 0 and 1, trained 2, skipped 3, 4 and 5
    assert len(module.steps) == 6
    assert module.skipped.tolist() == [3, 5]
    assert all(p.isfinite().all() for p in module.parameters())


def test_skipped_steps_are_remembered_by_a_checkpoint(make: Callable[..., Watched]) -> None:
    module, resumed = make(), make()
    module.skipped += 2
    resumed.load_state_dict(module.state_dict())
    assert resumed.skipped.tolist() == [2, 2]


def test_weights_that_are_no_numbers_stop_the_run(make: Callable[..., Watched], episodes: list[Episode]) -> None:
    module = make(lr=1e-3)
    engine_logprobs = module.score(collate(episodes))
    with torch.no_grad():
        next(module.policy.parameters())[:] = math.nan
    critic = module.critic.head.weight.detach().clone()
    with pytest.raises(TrainingStopped, match="is nan"):
        fit(module, episodes, change=lambda b, _: b._replace(behaviour_logprobs_S=engine_logprobs))
    assert module.critic.head.weight.equal(critic)


def test_tokens_without_an_engine_logprob_are_left_out_and_counted(
    make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path
) -> None:
    masked = [2, 11]

    def change(batch: Batch, epoch: int) -> Batch:
        valid, behaviour = batch.valid_S.clone(), batch.behaviour_logprobs_S.clone()
        valid[masked], behaviour[masked] = False, 0.0
        return batch._replace(valid_S=valid, behaviour_logprobs_S=behaviour)

    module = make()
    fit(module, episodes, change=change)
    (step,) = module.steps
    literal = Literal(tiny_model, step.before, episodes)
    keep = torch.ones(21, dtype=torch.bool)
    keep[masked] = False
    raw = literal_gae(episodes, literal.values.detach(), 1.0, 1.0)
    loss = -(whitened(raw[keep]) * literal.logprobs[keep]).sum() / 19
    assert_close(part(step.gradients, "policy"), literal.gradients(loss))
    returns = raw + literal.values.detach()
    value_loss = 0.5 * ((literal.values - returns)[keep] ** 2).sum() / 19
    assert_close(part(step.gradients, "critic"), literal.gradients(value_loss))
    assert module.logged["stability/masked_tokens"] == [2]


@pytest.mark.parametrize("lag", [-1, 1])
def test_a_batch_of_other_weights_is_refused(make: Callable[..., Watched], episodes: list[Episode], lag: int) -> None:
    module = make(lr=1e-3)
    with pytest.raises(TrainingStopped, match=rf"weights of step {1 + lag}, but the trainer is at step 1"):
        fit(module, episodes, 2, lambda b, epoch: b._replace(policy_version=b.policy_version + lag * epoch))
    assert len(module.steps) == 1


@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize("where", [slice(0, 10), slice(10, 21)])
def test_an_engine_with_other_weights_stops_the_run_before_a_step(
    make: Callable[..., Watched], episodes: list[Episode], minibatches: int, where: slice
) -> None:
    module = make(lr=1e-3, max_mismatch_kl=0.1, minibatches=minibatches)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}

    def change(batch: Batch, epoch: int) -> Batch:
        behaviour = batch.behaviour_logprobs_S.clone()
        behaviour[where] -= 1  # d = 1 on about half of the tokens: (e - 2)/2 = 0.36
        return batch._replace(behaviour_logprobs_S=behaviour)

    with pytest.raises(TrainingStopped, match=r"above max_mismatch_kl=0.1: the engine plays with other weights"):
        fit(module, episodes, change=change)
    assert all(p.detach().equal(before[name]) for name, p in module.named_parameters())
    assert not module.steps


def test_equal_rewards_and_a_blank_critic_train_nothing(tiny_model: Path, make_episode: Callable[..., Episode]) -> None:
    """A new critic says 0 everywhere; if every episode earns the same there is nothing to tell them apart."""
    module = Watched(str(tiny_model), lr=1e-3)
    fit(module, [make_episode((2, n, 0.7), seed=n) for n in (3, 5, 9)])
    (step,) = module.steps
    assert all(not gradient.any() for gradient in part(step.gradients, "policy").values())


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("epochs", 0), ("minibatches", 0), ("token_budget", 0), ("gamma", 1.1), ("gamma", -0.1), ("lam", 2.0),
        ("max_grad_norm", 0.0), ("max_skipped", 0), ("temperature", 0.0), ("clip_low", -0.1), ("clip_high", -0.1),
        ("importance_cap", 0.0), ("max_mismatch_kl", -1.0),
    ],
)  # fmt: skip
def test_bad_arguments(tiny_model: Path, argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{argument}={value}: ") as error:
        PPO(str(tiny_model), **{argument: value})
    assert "\n" not in str(error.value)


# What all modules share


def test_scoring_leaves_the_mode_as_it_was(make: Callable[..., Watched], episodes: list[Episode]) -> None:
    module = make(kl_coef=0.1)
    module.reference.eval()
    for training in (True, False):
        module.policy.train(training)
        modes = {name: m.training for name, m in module.named_modules()}
        module.score(collate(episodes))
        assert {name: m.training for name, m in module.named_modules()} == modes


def test_weights_have_the_names_of_the_model_folder(make: Callable[..., Watched], tiny_model: Path) -> None:
    weights = dict(make(kl_coef=0.1).weights())
    assert weights.keys() == {name for name, _ in AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters()}
    assert not any(w.requires_grad for w in weights.values())


@pytest.mark.parametrize("variant", ["standard", "train", "maze.11x11", "keys", "with space"])
def test_evaluation_logs_each_variant_whatever_its_name(
    make: Callable[..., Watched], make_episode: Callable[..., Episode], variant: str
) -> None:
    module, run = make(), trainer(1)
    episodes = [make_episode((1, 2, 0.0), level=level) for level in range(4)]
    episodes[0].stop_reason = "solved"
    data = Fixed(episodes, lambda batch, epoch: batch)
    data.test_dataloader = lambda: [Plays([Played(variant, episodes, 3, 2, (1, 3), {})])]  # type: ignore[method-assign]
    (figures,) = run.test(module, datamodule=data, verbose=False)
    assert figures[f"eval/{variant}/single_turn"] == 0.25
    assert figures[f"eval/{variant}/turn_budget"] == 2
    assert not module.evaluation


class Plays(list):  # type: ignore[type-arg]
    """A dataloader."""
