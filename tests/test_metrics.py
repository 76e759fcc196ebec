"""Evaluation figures of episodes made by hand."""

import copy
import itertools
from typing import Any

import pytest
import torch

from wmact.metrics import EpisodeMetrics, pass_at_k, pass_hat_k
from wmact.statistics import wilson
from wmact.types import Action, ActionKind, Episode, StopReason, Turn


@pytest.mark.parametrize(
    ("n", "correct", "k", "expected"),
    [
        (4, 0, 2, 0.0),
        (4, 4, 2, 1.0),
        (4, 1, 1, 0.25),
        (4, 1, 2, 0.5),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
        (5, 2, 3, 0.9),  # 1 - C(3,3)/C(5,3) = 1 - 1/10
        (5, 3, 3, 1.0),  # only two are wrong, so three hold a right one
        (8, 1, 8, 1.0),
    ],
)
def test_pass_at_k(n: int, correct: int, k: int, expected: float) -> None:
    assert pass_at_k(n, correct, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_samples(k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} needs"):
        pass_at_k(4, 1, k)


@pytest.mark.parametrize(
    ("n", "correct", "k", "expected"),
    [
        (4, 4, 4, 1.0),
        (4, 3, 4, 0.0),
        (4, 3, 1, 0.75),
        (4, 3, 2, 0.5),  # C(3,2)/C(4,2) = 3/6
        (5, 3, 3, 0.1),  # C(3,3)/C(5,3) = 1/10
        (4, 0, 1, 0.0),
    ],
)
def test_pass_hat_k(n: int, correct: int, k: int, expected: float) -> None:
    assert pass_hat_k(n, correct, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_hat_k_needs_k_samples(k: int) -> None:
    with pytest.raises(ValueError, match=rf"pass\^{k} needs at least {k} samples"):
        pass_hat_k(4, 1, k)


def played(
    level: int, turns: int, stop: StopReason = "turns", *, optimal: int = 0, kinds: tuple[ActionKind, ...] = ()
) -> Episode:
    """Turns of 3 tokens; `kinds` are the actions of the last turn, the others hold one effective action."""
    episode = Episode("maze", level, str(level), 0, 0, 0, optimal_length=optimal, stop_reason=stop)
    for t in range(turns):
        actions = [Action("up", kind) for kind in kinds] if t == turns - 1 else [Action("up", "effective")]
        episode.turns.append(Turn(4 * t + 1, 4 * t + 4, "", "valid", actions))
    episode.error = "boom" if stop == "error" else None
    return episode


EPISODES = [
    played(0, 1, "solved", optimal=2, kinds=("effective", "effective")),
    played(1, 2, "solved", optimal=2, kinds=("effective", "blocked", "effective", "after_end")),
    played(2, 5, "solved", optimal=4, kinds=("effective",)),
    played(3, 3, "turns", kinds=("blocked",)),
    played(4, 1, "error"),
]


def test_actions_that_cannot_be_read() -> None:
    metrics = EpisodeMetrics(max_turns=3, curve=(1,))
    metrics.update(
        [played(0, 1, "turns", kinds=("unreadable", "blocked")), played(1, 1, "solved", kinds=("unreadable",))]
    )
    assert metrics.compute()["invalid_share"] == pytest.approx(2 / 3)


def test_the_curve_and_everything_beside_it() -> None:
    metrics = EpisodeMetrics(max_turns=3, curve=(1, 2, 4, 5))
    metrics.turn_budget = 2
    metrics.update(EPISODES)
    figures = metrics.compute()
    # solved by turn 1: one of five, by turn 2: two, by turn 3 and 4: two, by turn 5: three
    expected = {
        "episodes": 5, "levels": 5, "turn_budget": 2,
        "single_turn": 0.2, "multi_turn": 0.4, "current_budget": 0.4, "gap": 0.2,
        "success_at/01": 0.2, "success_at/02": 0.4, "success_at/04": 0.4, "success_at/05": 0.6,
        # within 3 turns: 1 + 2 + 3 + 3 + 1 = 10 turns of 3 tokens
        "turns_mean": 2.0, "tokens_mean": 6.0,
        # actions: 2, 1 + 4, 3 (the last two turns are beyond three), 2 + 1, 0 = 13; effective: 2, 1 + 2, 3, 2, 0 = 10
        "actions_mean": 2.6, "effective_share": 10 / 13, "invalid_share": 0,
        "errors": 0.2,
        # 2/2 and 4/2 (the action after the end is not one it took); solved after turn 3 does not count
        "length_over_optimal": 1.5,
    }  # fmt: skip
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value), name
    assert (figures["multi_turn_low"], figures["multi_turn_high"]) == pytest.approx(wilson(2, 5))
    assert (figures["single_turn_low"], figures["single_turn_high"]) == pytest.approx(wilson(1, 5))
    ends = {f"{name}_{end}" for name in ("single_turn", "multi_turn", "current_budget") for end in ("low", "high")}
    assert figures.keys() == expected.keys() | ends


def test_intervals_count_levels_and_pass_at_k_counts_samples() -> None:
    metrics = EpisodeMetrics(max_turns=3, curve=(1,))
    solved = {(0, 0), (0, 1), (1, 0)}  # two of level 0, one of level 1, none of level 2
    metrics.update(
        [
            played(level, 1, "solved" if (level, s) in solved else "turns")
            for level, s in itertools.product(range(3), range(2))
        ]
    )
    figures = metrics.compute()
    assert figures["episodes"] == 6
    assert figures["levels"] == 3
    assert figures["multi_turn"] == figures["pass_at_1"] == 0.5  # 3/6
    assert figures["pass_at_2"] == pytest.approx(2 / 3)  # levels 0 and 1
    assert figures["pass_hat_1"] == 0.5
    assert figures["pass_hat_2"] == pytest.approx(1 / 3)  # only one of the three levels twice
    assert "pass_hat_3" not in figures
    assert "do_nothing" not in figures
    assert (figures["multi_turn_low"], figures["multi_turn_high"]) == pytest.approx(wilson(1.5, 3))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_pass_hat_stops_at_four_and_doing_nothing_is_told_beside() -> None:
    metrics = EpisodeMetrics(max_turns=2, curve=(1,))
    episodes = [
        Episode("e", level, str(level), sample, 0, 0, stop_reason="solved" if sample < 5 - level else "dead")
        for level in range(2)
        for sample in range(5)
    ]
    for episode in episodes:
        episode.baseline_success = episode.level == 1
    metrics.update(episodes)
    figures = metrics.compute()
    # level 0: 5 of 5; level 1: 4 of 5, and C(4,k)/C(5,k) = 4/5, 6/10, 4/10, 1/5
    for k, second in enumerate((0.8, 0.6, 0.4, 0.2), start=1):
        assert figures[f"pass_hat_{k}"] == pytest.approx((1 + second) / 2)
    assert "pass_hat_5" not in figures
    assert figures["do_nothing"] == 0.5
    assert 0 < figures["do_nothing_low"] < 0.5 < figures["do_nothing_high"] < 1


def test_no_episode_no_figures() -> None:
    metrics = EpisodeMetrics(max_turns=3, curve=(1,))
    assert metrics.compute() == {"episodes": 0, "levels": 0, "turn_budget": 3}


def test_an_episode_that_took_no_action_and_no_turn() -> None:
    metrics = EpisodeMetrics(max_turns=3, curve=(1, 3))
    metrics.update([played(0, 0, "context")])
    figures = metrics.compute()
    assert figures["effective_share"] == figures["multi_turn"] == figures["turns_mean"] == 0
    assert "length_over_optimal" not in figures


def test_a_curve_beyond_the_budget_and_a_budget_beyond_the_curve() -> None:
    for max_turns, curve in ((2, (1, 10)), (10, (1, 2))):
        metrics = EpisodeMetrics(max_turns, curve)
        metrics.update([played(0, 10, "solved"), played(1, 1, "solved")])
        figures = metrics.compute()
        assert figures["multi_turn"] == (0.5 if max_turns == 2 else 1.0)
        assert figures[f"success_at/{curve[-1]:02d}"] == (1.0 if curve[-1] == 10 else 0.5)


def merged(first: EpisodeMetrics, second: EpisodeMetrics, how: str) -> EpisodeMetrics:
    if how == "merge_state":
        first.merge_state(second)
        return first
    result: Any = copy.deepcopy(first)  # what a reduction over processes does: every state is a sum
    for name in first._defaults:
        setattr(result, name, torch.stack([getattr(first, name), getattr(second, name)]).sum(0))
    result._computed = None
    return result


@pytest.mark.parametrize("how", ["merge_state", "sum"])
def test_two_processes_merge_to_one(how: str) -> None:
    whole, left, right = (EpisodeMetrics(max_turns=3, curve=(1, 2, 4, 5)) for _ in range(3))
    whole.update(EPISODES)
    left.update(EPISODES[:2])
    right.update(EPISODES[2:])
    assert merged(left, right, how).compute() == pytest.approx(whole.compute())


def test_several_updates_add_up() -> None:
    whole, parts = EpisodeMetrics(3, (1,)), EpisodeMetrics(3, (1,))
    whole.update(EPISODES)
    for episode in EPISODES:
        parts.update([episode])
    assert parts.compute() == pytest.approx(whole.compute())


def test_success_by_category() -> None:
    """Level 0 is solved in one of two samples, level 1 in none of its one, level 2 failed at its reset."""
    episodes = [played(0, 1, "solved"), played(0, 3), played(1, 3), played(2, 1, "error"), played(3, 2, "solved")]
    for episode, category in zip(episodes, ["hot", "hot", "hot", "", "cold"], strict=True):
        episode.category = category
    metrics = EpisodeMetrics(max_turns=3, curve=(1,), categories=("cold", "hot"))
    metrics.update(episodes[:2])
    metrics.update(episodes[2:])
    figures = metrics.compute()
    assert figures["category/hot"] == pytest.approx(1 / 3)
    assert (figures["category/hot_low"], figures["category/hot_high"]) == pytest.approx(wilson(2 / 3, 2))
    assert (figures["category/hot_levels"], figures["category/cold_levels"]) == (2, 1)
    assert figures["category/cold"] == 1.0
    assert figures["levels"] == 4
