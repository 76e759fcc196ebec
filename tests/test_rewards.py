"""Reward rescaling and step penalty against numbers worked out by hand."""

import pytest

from wmact import rewards
from wmact.types import Action, ActionKind, Episode, Turn


def shaped(episode: Episode, *, rescale: bool, step_penalty: float) -> list[float]:
    rewards.shape(episode, rescale=rescale, step_penalty=step_penalty)
    return [turn.reward for turn in episode.turns]


def episode(reward: float, *turns: list[ActionKind]) -> Episode:
    played = Episode("env", 0, "id", 0, 0, 0, reward=reward)
    played.turns = [Turn(0, 0, "", "valid", [Action("up", kind) for kind in kinds]) for kinds in turns]
    return played


@pytest.mark.parametrize(
    ("outcome", "effective", "actions", "scaled"),
    [
        (1.0, 5, 5, 1.0),  # nothing wasted
        (1.0, 3, 4, 0.75),  # 1 · 3/4
        (10.0, 1, 8, 1.25),  # 10 · 1/8
        (0.0, 3, 4, 0.0),
        (1.0, 0, 4, 0.0),
        (1.0, 0, 0, 0.0),  # no action at all: 0/0 counts as 0
    ],
)
def test_rescaled(outcome: float, effective: int, actions: int, scaled: float) -> None:
    assert rewards.rescaled(outcome, effective, actions) == scaled


def test_every_action_counts_in_n() -> None:
    # N = 2 + 0 + 3 = 5, N_eff = 1 + 1 = 2: 1 · 2/5 on the last turn
    played = episode(1.0, ["effective", "blocked"], [], ["unreadable", "effective", "after_end"])
    assert shaped(played, rescale=True, step_penalty=0.0) == [0.0, 0.0, pytest.approx(0.4)]


def test_without_rescaling_the_outcome_is_whole() -> None:
    played = episode(1.0, ["effective", "blocked"], ["unreadable"])
    assert shaped(played, rescale=False, step_penalty=0.0) == [0.0, 1.0]


def test_step_penalty_falls_on_the_turn_of_the_action() -> None:
    # −0.1 · 2, −0.1 · 0, 1 − 0.1 · 3: unreadable actions and those after the end cost too
    played = episode(1.0, ["effective", "blocked"], [], ["unreadable", "effective", "after_end"])
    assert shaped(played, rescale=False, step_penalty=0.1) == pytest.approx([-0.2, 0.0, 0.7])


def test_both_together() -> None:
    # 1 · 1/2 − 0.1 · 2; the penalty is not rescaled
    assert shaped(episode(1.0, ["effective", "blocked"]), rescale=True, step_penalty=0.1) == pytest.approx([0.3])


def test_no_turn_no_reward() -> None:
    assert shaped(episode(1.0), rescale=True, step_penalty=0.1) == []


def test_shaping_twice_is_shaping_once() -> None:
    played = episode(1.0, ["effective", "blocked"], ["effective"])
    assert shaped(played, rescale=True, step_penalty=0.1) == shaped(played, rescale=True, step_penalty=0.1)


def test_a_negative_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step_penalty=-0\.1: it is subtracted, so give the paper's −0\.1 as 0\.1"):
        rewards.shape(episode(1.0), rescale=False, step_penalty=-0.1)
