"""Claims about the world against what the environment does."""

import copy
from collections import Counter
from typing import Any

import gymnasium
import pytest

from wmact import world_model
from wmact.types import Action, Episode, Turn

MAZE = """\
#######
#P..#G#
###.#.#
#...#.#
#.###.#
#.....#
#######"""
# From (1,1) to (1,3), down to (3,3), left to (3,1), down to (5,1), right to (5,5), up to the goal at (1,5)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Any:
    from wmact_envs import maze

    monkeypatch.setattr(maze, "level", lambda settings, split, number: maze.parse(MAZE))
    made: Any = gymnasium.make("wmact_envs:wmact/Maze-v0", layout="cells", disable_env_checker=True).unwrapped
    made.reset(options={"level": 0})
    return made


def test_a_true_thought(env: Any) -> None:
    tally = world_model.read_thought(env, "(1,1) right (1,2) up (none) right (1,3)")
    assert tally == Counter(
        {
            "thought/thoughts": 1,
            "thought/opened": 1,
            "thought/opened_right": 1,
            "thought/read": 4,  # where it begins, and the three claims
            "thought/claims": 3,
            "thought/exact": 3,
            "thought/effect": 3,
            "thought/pieces": 3,
            "thought/pieces_right": 3,
        }
    )


def test_claims_are_judged_from_the_place_claimed_last(env: Any) -> None:
    # (1,1) down is a wall: "(2,1)" is wrong in place and in effect, and is no floor, so nothing true can be said from
    # it; (3,1) as if it were there: right (3,2) is true of (3,1)
    tally = world_model.read_thought(env, "(1,1) down (2,1) down (3,1) right (3,2) right (none)")
    assert (tally["thought/claims"], tally["thought/exact"]) == (4, 1)
    # effects: down from (1,1) is blocked but said to move; from nowhere: no; right moves: yes; right moves again: no
    assert tally["thought/effect"] == 1


def test_a_claim_taken_back_does_not_count(env: Any) -> None:
    tally = world_model.read_thought(env, "(1,1) right (none) no (1,2)")
    assert (tally["thought/claims"], tally["thought/exact"], tally["thought/retracted"]) == (1, 1, 1)


def test_claims_one_by_one(env: Any) -> None:
    thought = "(1,2) down (none) right (1,4) no (1,3)\nright (2,9) up (none) stuck (1,1)"
    assert [(c.kind, thought[c.start : c.end], c.truth, c.right) for c in world_model.claims(env, thought)] == [
        ("opening", "(1,2)", "(1,1)", False),
        ("outcome", "(none)", "(none)", True),
        ("retracted", "(1,4) no", None, False),
        ("outcome", "(1,3)", "(1,3)", True),
        ("outcome", "(2,9)", "(none)", False),  # (1,4) is a wall
        ("outcome", "(none)", None, False),  # there is no (2,9) to go up from
        ("opening", "(1,1)", "(1,1)", True),
    ]
    assert world_model.claims(env, "(1,1) right (1,2) (3,3) down")[1].pieces == ["(1,2)", "(3,3)"]
    # outcomes: down and right are right; nothing that follows (1,4)'s wall is
    tally = world_model.read_thought(env, thought)
    assert (tally["thought/claims"], tally["thought/exact"], tally["thought/effect"]) == (4, 2, 2)
    assert (tally["thought/opened"], tally["thought/opened_right"], tally["thought/retracted"]) == (2, 1, 1)


def test_a_thought_that_begins_elsewhere_or_again(env: Any) -> None:
    tally = world_model.read_thought(env, "(1,2) left (1,1) stuck (1,1) right (1,2)")
    assert (tally["thought/opened"], tally["thought/opened_right"]) == (2, 1)
    assert (tally["thought/claims"], tally["thought/exact"]) == (2, 2)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("I go right (perhaps) and then down (there).", 0),  # a place that there is not, and two outcomes of nothing
        ("(perhaps) right (1,2)", 0),
        ("(1,1) and then some words", 1),
        ("(1,2) right (perhaps)", 1),  # not where it is, but the outcome is wrong of a place that there is
        ("(2,2) right (2,3)", 0),  # a wall
    ],
)
def test_what_can_be_read_is_of_a_place_that_there_is(env: Any, text: str, read: int) -> None:
    assert world_model.read_thought(env, text)["thought/read"] == read


@pytest.mark.parametrize("text", ["", "I go right, then (perhaps) down.", ") ( no no", "right", "(1,1)", "no"])
def test_other_words_make_no_true_claims(env: Any, text: str) -> None:
    tally = world_model.read_thought(env, text)
    assert tally["thought/exact"] == 0
    assert tally["thought/thoughts"] == 1


def test_thoughts_are_judged_where_the_episode_stood(env: Any) -> None:
    def turn(text: str, *actions: str) -> Turn:
        return Turn(
            0, 1, f"<think> {text} </think> <action> x </action>", "valid", [Action(a, "effective") for a in actions]
        )

    episode = Episode(
        "maze", 0, "0", 0, 0, 0, turns=[turn("(1,1) right (1,2)", "right", "right"), turn("(1,3) up (none)")]
    )
    broken = Episode("maze", 0, "0", 0, 0, 0, turns=[turn("(9,9)")], error="boom")
    tally = world_model.read_thoughts(env, [episode, broken])
    assert (tally["thought/opened_right"], tally["thought/exact"], tally["thought/thoughts"]) == (2, 2, 2)


def test_every_reachable_state_is_asked_about(env: Any) -> None:
    # 9 cells from (1,1) to (5,1), 4 more to (5,5), 3 up to (2,5); the goal (1,5) is solved and is no state to act in
    states = world_model.reachable(env)
    assert len(states) == len(set(states)) == 9 + 4 + 3
    assert states[:3] == [(1, 1), (1, 2), (1, 3)]
    assert (1, 5) not in states
    assert env.state == (1, 1)


def test_questions_tell_the_truth(env: Any) -> None:
    asked = world_model.questions(env, range(40))
    assert asked == world_model.questions(env, range(40))
    assert len({question.beginning for question in asked}) > 20
    for question in asked:
        _, place, action = question.beginning.split()
        assert question.observation.endswith(f"you {place}")
        simulator = copy.copy(env)
        simulator.state = env.read_place(place)
        _, _, _, _, info = simulator.step(action)
        assert question.truth == (simulator.place() if info["effective"] else "(none)")
    assert {question.truth == "(none)" for question in asked} == {True, False}


@pytest.mark.parametrize(
    ("reply", "exact", "effect", "pieces_right"),
    [
        ("(1,2) (3,3) up (1,1)", 1, 1, 2),
        (" (1,2) (3,4) </think>", 0, 1, 1),
        ("(1,2)", 0, 1, 1),
        ("(none) up", 0, 0, 0),
        ("up (1,2) (3,3)", 0, 1, 0),
        ("", 0, 1, 0),
    ],
)
def test_marks(reply: str, exact: int, effect: int, pieces_right: int) -> None:
    tally = world_model.mark(world_model.Question("", "", "(1,2) (3,3)"), reply)
    assert (tally["question/exact"], tally["question/effect"], tally["question/pieces_right"]) == (
        exact,
        effect,
        pieces_right,
    )
    assert (tally["question/claims"], tally["question/pieces"]) == (1, 2)


def test_figures() -> None:
    tally = Counter({"question/claims": 4, "question/exact": 3, "thought/thoughts": 2, "thought/claims": 7})
    figures = world_model.figures(tally)
    assert figures["question_exact"] == (3, 4, 4)
    assert figures["thought_exact"] == (0, 7, 0)  # claims of one thought are not independent: no interval
    assert figures["thought_moves"] == (7, 2, 0)
    assert figures["thought_opening"] == (0, 0, 0)
