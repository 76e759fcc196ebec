"""GRPO's step, and observation tokens in the loss, against their formulas written out."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from literal import Literal, Watching, assert_close, fit, part
from wmact.collate import collate
from wmact.grpo import GRPO
from wmact.lora import LoRA
from wmact.ppo import PPO
from wmact.sft import SFT
from wmact.types import Episode, TrainingStopped


class Watched(Watching, GRPO):
    """GRPO that is watched."""


class WatchedPPO(Watching, PPO):
    """PPO that is watched."""


class WatchedSFT(Watching, SFT):
    """SFT that is watched."""


@pytest.fixture
def episodes(make_episode: Callable[..., Episode]) -> list[Episode]:
    """Level 0 has outcomes 1, 0 and 0.25 in 7, 3 and 4 sampled tokens, 14 in all; level 1 has 0.5 twice."""
    return [
        make_episode((3, 4, 0.0), (2, 3, 1.0), level=0, seed=1),
        make_episode((4, 3, 0.0), level=0, seed=2),
        make_episode((2, 1, 0.0), (5, 2, 0.5), level=1, seed=3),
        make_episode((2, 1, 0.25), (4, 3, 0.0), level=0, seed=4),
        make_episode((6, 6, 0.5), level=1, seed=5),
    ]


CONTRAST = [0, 1, 3]  # the episodes of level 0
# outcomes 1, 0, 0.25: mean 5/12; less it 7/12, -5/12, -2/12; variance (49 + 25 + 4)/144/3 = 78/432
CENTRED = [7 / 12, -5 / 12, -2 / 12]
STD = math.sqrt(78 / 432)


@pytest.fixture
def make(tiny_model: Path) -> Callable[..., Watched]:
    def build(**kwargs: Any) -> Watched:
        return Watched(str(tiny_model), **({"max_grad_norm": math.inf, "kl_coef": 0.0} | kwargs))

    return build


def a_token(values: list[float]) -> torch.Tensor:
    """(14,) of an episode's value for each of its tokens."""
    return torch.tensor(values).repeat_interleave(torch.tensor([7, 3, 4]))


def logged(module: Watching) -> dict[str, float]:
    return {name.removeprefix("stability/"): values[-1] for name, values in module.logged.items()}


@pytest.mark.parametrize("token_budget", [10_000, 1])
@pytest.mark.parametrize("scale", [True, False])
def test_gradients_are_the_formulas(
    make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path, scale: bool, token_budget: int
) -> None:
    module = make(scale_by_std=scale, token_budget=token_budget)
    fit(module, episodes)
    (step,) = module.steps
    literal = Literal(tiny_model, step.before, [episodes[e] for e in CONTRAST])
    advantages = a_token([c / STD if scale else c for c in CENTRED])
    assert_close(step.gradients, literal.gradients(-(advantages * literal.logprobs).sum() / 14))
    figures = logged(module)
    assert figures["policy_loss"] == pytest.approx(-float(advantages.mean()), abs=1e-5)  # at ratio 1
    assert figures["entropy"] == pytest.approx(literal.entropies.mean().item(), abs=1e-5)  # of tokens in the loss
    assert figures["zero_variance_groups"] == 1
    assert figures["zero_variance_share"] == 0.5
    assert module.logged["performance/tokens"] == [12 + 7 + 10 + 10 + 12]  # the rollout's, dropped ones too


def test_the_kl_term_is_of_the_tokens_in_the_loss(
    make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path
) -> None:
    module = make(kl_coef=0.5)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    with torch.no_grad():  # at the start weights the term and its gradient would be 0
        for i, parameter in enumerate(module.policy.parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    fit(module, episodes)
    (step,) = module.steps
    some = [episodes[e] for e in CONTRAST]
    literal, reference = (Literal(tiny_model, weights, some) for weights in (step.before, start))
    d = reference.logprobs.detach() - literal.logprobs
    kl = (d.exp() - d - 1).sum() / 14
    advantages = a_token([c / STD for c in CENTRED])
    assert_close(step.gradients, literal.gradients(-(advantages * literal.logprobs).sum() / 14 + 0.5 * kl))
    assert logged(module)["kl"] == pytest.approx(kl.item(), rel=1e-4)


def test_the_kl_term_is_on_by_default(tiny_model: Path) -> None:
    assert GRPO(str(tiny_model)).reference is not None


def test_the_second_pass_is_clipped_against_the_weights_that_played(
    make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path
) -> None:
    module = make(epochs=2, lr=7e-4, clip_low=0.1, clip_high=0.2, token_budget=20)
    assert fit(module, episodes).global_step == 2
    first, second = (Literal(tiny_model, step.before, [episodes[e] for e in CONTRAST]) for step in module.steps)
    advantages = a_token([c / STD for c in CENTRED])
    assert_close(module.steps[0].gradients, first.gradients(-(advantages * first.logprobs).sum() / 14))
    ratio = (second.logprobs - first.logprobs.detach()).exp()
    clipped = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.9))
    assert 1 <= int(clipped.sum()) <= 12  # both kinds are there to be told apart
    loss = -torch.where(clipped, 0.0, ratio * advantages).sum() / 14
    assert_close(module.steps[1].gradients, second.gradients(loss))


def test_a_minibatch_without_contrast_is_no_step(make: Callable[..., Watched], episodes: list[Episode]) -> None:
    module = make(minibatches=5, lr=1e-3)
    assert fit(module, episodes).global_step == 3  # 2 and 4 are of level 1
    assert [bool(step.gradients) for step in module.steps] == [True] * 3


# A batch without contrast


def flat(make_episode: Callable[..., Episode]) -> list[Episode]:
    return [make_episode((2, n, 0.7), level=n % 2, seed=n) for n in (2, 3, 4, 5)]


@pytest.mark.parametrize("settings", [{}, {"epochs": 2, "kl_coef": 0.1}])
def test_a_batch_without_contrast_takes_no_step_and_says_so(
    make: Callable[..., Watched],
    make_episode: Callable[..., Episode],
    settings: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = make(lr=1e-3, **settings)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    run = fit(module, flat(make_episode), epochs=3)
    assert (run.global_step, run.current_epoch, module.steps) == (0, 3, [])
    assert all(p.detach().equal(before[name]) for name, p in module.named_parameters())
    assert module.idle.tolist() == [3]
    assert module.skipped.tolist() == [0, 0]
    assert module.logged["stability/zero_variance_groups"] == [2, 2, 2]
    assert capsys.readouterr().out.splitlines() == 3 * ["no step: in no level do the rewards of its episodes differ"]


def test_it_stops_when_that_repeats(make: Callable[..., Watched], make_episode: Callable[..., Episode]) -> None:
    module = make(max_idle=3)
    contrast = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])

    def change(batch: Any, epoch: int) -> Any:
        ends = torch.where(batch.turn_end_S, contrast[batch.episode_S], 0.0)
        return batch._replace(rewards_S=ends) if epoch == 2 else batch

    with pytest.raises(TrainingStopped, match=r"^in 3 batches in a row no level had episodes of different reward"):
        fit(module, flat(make_episode), epochs=9, change=change)
    assert len(module.logged["stability/zero_variance_groups"]) == 6  # 0 and 1, a step, 3, 4 and 5
    assert len(module.steps) == 1


def test_idle_batches_are_remembered_by_a_checkpoint(make: Callable[..., Watched]) -> None:
    module, resumed = make(), make()
    module.idle += 2
    resumed.load_state_dict(module.state_dict())
    assert resumed.idle.tolist() == [2]


def test_a_level_of_one_episode_is_nothing_to_compare(
    make: Callable[..., Watched], episodes: list[Episode], make_episode: Callable[..., Episode]
) -> None:
    module = make()
    fit(module, [*episodes, make_episode((2, 3, 1.0), level=7)])
    assert logged(module)["zero_variance_share"] == 0.5  # of two groups: the lonely one is none
    with pytest.raises(ValueError, match=r"^every level has one episode only, and GRPO compares those of a level"):
        fit(make(), [episodes[0], episodes[2]])


def test_a_reward_that_is_no_number_skips_the_step(make: Callable[..., Watched], episodes: list[Episode]) -> None:
    episodes[1].turns[0].reward = math.nan
    module = make(lr=1e-3)
    assert fit(module, episodes).global_step == 0
    assert module.skipped.tolist() == [1, 1]


@pytest.mark.parametrize(("argument", "value"), [("max_idle", 0), ("echo_coef", -0.1), ("clip_low", -1.0)])
def test_bad_arguments(tiny_model: Path, argument: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{argument}={value}: "):
        GRPO(str(tiny_model), **{argument: value})


def test_only_adapters_are_trained_and_kept(
    make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path
) -> None:
    module = make(lora=LoRA(r=2, alpha=4), kl_coef=0.1, lr=1e-2, gradient_checkpointing=True)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    fit(module, episodes, epochs=2)
    changed = {name for name, p in module.named_parameters() if not p.detach().equal(start[name])}
    assert changed == {name for name in start if ".lora_" in name}
    assert {name for name in module.state_dict() if not name.startswith("policy.lm.")} == {
        "skipped",
        "base_model",
        "idle",
    }
    assert logged(module)["kl"] > 0


# Observation tokens (ECHO)


@pytest.mark.parametrize("token_budget", [10_000, 1])
def test_echo_by_formula(
    make: Callable[..., Watched], episodes: list[Episode], tiny_model: Path, token_budget: int
) -> None:
    """Of 1, 4 and 3 observation tokens: those of episode 2, whose level has no contrast, count too."""
    module = make(echo_coef=0.3, token_budget=token_budget)
    fit(module, episodes)
    (step,) = module.steps
    literal = Literal(tiny_model, step.before, [episodes[e] for e in CONTRAST])
    told = Literal(tiny_model, step.before, episodes).told
    assert len(told) == 8
    advantages = a_token([c / STD for c in CENTRED])
    expected = literal.gradients(-(advantages * literal.logprobs).sum() / 14)
    everything = Literal(tiny_model, step.before, episodes)
    echo = everything.gradients(-everything.told.sum() / 8)
    assert_close(step.gradients, {name: gradient + 0.3 * echo[name] for name, gradient in expected.items()})
    assert logged(module)["observation_nll"] == pytest.approx(-float(told.mean()), rel=1e-4)


def test_echo_goes_on_without_contrast(
    make: Callable[..., Watched], make_episode: Callable[..., Episode], tiny_model: Path
) -> None:
    episodes = [make_episode((2, 2, 0.0), (3, 2, 0.5), seed=seed) for seed in (1, 2)]
    module = make(echo_coef=0.3)
    fit(module, episodes)
    (step,) = module.steps
    literal = Literal(tiny_model, step.before, episodes)
    assert_close(step.gradients, literal.gradients(-0.3 * literal.told.sum() / 4))
    assert module.idle.tolist() == [0]


def test_echo_in_ppo(episodes: list[Episode], tiny_model: Path) -> None:
    """The term adds its own gradient to the policy's, and nothing to the critic's."""
    without, with_echo = (WatchedPPO(str(tiny_model), max_grad_norm=math.inf, echo_coef=c) for c in (0.0, 0.3))
    for module in (without, with_echo):
        fit(module, episodes)
    literal = Literal(tiny_model, part(without.steps[0].before, "policy"), episodes)
    echo = literal.gradients(-literal.told.sum() / 8)
    expected = {n: g + 0.3 * echo.get(n, torch.zeros(())) for n, g in without.steps[0].gradients.items()}
    assert_close(with_echo.steps[0].gradients, expected)
    assert "stability/observation_nll" not in without.logged


@pytest.mark.parametrize("token_budget", [10_000, 1])
def test_echo_in_sft(episodes: list[Episode], tiny_model: Path, tmp_path: Path, token_budget: int) -> None:
    """Each kind of token is a mean of its own: 23 of replies, 8 of observations."""
    words: dict[str, Any] = {"max_grad_norm": math.inf, "token_budget": token_budget, "save_to": str(tmp_path / "end")}
    without, with_echo = (WatchedSFT(str(tiny_model), echo_coef=c, **words) for c in (0.0, 0.3))
    for module in (without, with_echo):
        fit(module, episodes)
    literal = Literal(tiny_model, part(without.steps[0].before, "policy"), episodes)
    assert (len(literal.logprobs), len(literal.told)) == (23, 8)
    assert_close(without.steps[0].gradients, literal.gradients(-literal.logprobs.sum() / 23))
    loss = -literal.logprobs.sum() / 23 - 0.3 * literal.told.sum() / 8
    assert_close(with_echo.steps[0].gradients, literal.gradients(loss))
    assert "train/observation_nll" not in without.logged


def test_without_echo_no_observation_is_scored(
    make: Callable[..., Watched], episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make()
    scored: list[int] = []
    score = module.policy._score
    monkeypatch.setattr(module.policy, "_score", lambda h, t: scored.append(len(t)) or score(h, t))
    batch = collate(episodes)
    assert len(batch.token_O) == 8
    fit(module, episodes)
    assert scored == [23, 14]  # Fixed's own scoring of all, and the step's
