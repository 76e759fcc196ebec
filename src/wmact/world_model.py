"""What a model knows of its world, found out in two ways and logged as ``eval/world_model/<variant>/…``.

- **In its own thoughts.** Where a thought simulates moves (a place, an action, the place it leads to, …), every claim
  is compared with what the environment would do. A thought in other words makes no claims, and no figures.
- **By question.** Transitions are drawn uniformly from the states that can be reached in held-out levels. The model is
  shown the state, its reply is begun for it (``<think> place action``), and it has to say what comes of the action.
  That is the form of the warm start's thoughts, so the question is fair only for models that had it.

A place is written as `TextEnv.place` writes it: pieces in parentheses. "(wall)" says that an action changes nothing.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from wmact import protocol
from wmact.chat import Chat
from wmact.types import Episode

BLOCKED = "(wall)"
RETRACTED = "no"
STUCK = "stuck"  # and then the thought begins again
WORD = re.compile(r"\([^()]*\)|[^\s()]+")
MOST_STATES = 1000  # of a level, nearest to its start, that questions are drawn from
ANSWER_TOKENS = 32  # of a reply to a question: some places in a large model's small tokens

Tally = Counter[str]
"""Sums by name; `figures` divides them."""


class Question(NamedTuple):
    """A transition: the state as the agent would see it, what the reply begins with, and the right answer."""

    observation: str
    beginning: str
    truth: str


def questions(env: Any, levels: Sequence[int]) -> list[Question]:
    """Draw one transition from each of the levels: a state that is not solved, and an action. Always the same ones.

    Args:
        env: a TextEnv (unwrapped); it is reset.
    """
    drawn = []
    for level in levels:
        rng = np.random.default_rng(level)
        env.reset(seed=level, options={"level": level})
        states = reachable(env)
        simulator = copy.copy(env)
        simulator.state = states[int(rng.integers(len(states)))]
        place, action = simulator.place(), str(rng.choice(env.action_names))
        observation = simulator.observe()
        drawn.append(Question(observation, f"<think> {place} {action}", outcome(simulator, action)))
    return drawn


def reachable(env: Any) -> list[Any]:
    """Return the unsolved states that lead on from the current one, breadth first, at most `MOST_STATES`."""
    states, seen = [env.state], {env.state}
    for state in states:  # which grows while it is read
        for action in env.action_names:
            simulator = copy.copy(env)
            simulator.state = state
            _, _, terminated, _, _ = simulator.step(action)
            if simulator.state not in seen and not terminated:
                seen.add(simulator.state)
                states.append(simulator.state)
        if len(states) >= MOST_STATES:
            break
    return states[:MOST_STATES]


def outcome(simulator: Any, action: str) -> str:
    """Take the action; return the place it leads to, or "(wall)"."""
    *_, info = simulator.step(action)
    return simulator.place() if info["effective"] else BLOCKED


def ask(chat: Chat, question: Question, rules: str | None) -> list[int]:
    """Return the prompt's ids: the state as the first user message, and the beginning of the reply."""
    return chat.open(protocol.first_message(rules, question.observation)) + chat.encode(question.beginning)


def mark(question: Question, reply: str) -> Tally:
    """Compare the beginning of a reply with the truth."""
    claimed = []
    for word in WORD.findall(reply):
        if not word.startswith("("):
            break
        claimed.append(word)
    return _judged("question", claimed, question.truth)


def read_thoughts(env: Any, episodes: Iterable[Episode]) -> Tally:
    """Judge every claim that the thoughts of the episodes make.

    Args:
        env: a TextEnv (unwrapped) of the episodes' kind; it is reset and played.
    """
    tally: Tally = Counter()
    for episode in episodes:
        if episode.error is not None:
            continue
        env.reset(seed=episode.level, options={"level": episode.level})
        for turn in episode.turns:
            tally += read_thought(env, protocol.parse(turn.text, env.action_names).thinking)
            for action in turn.actions:
                if action.kind in ("effective", "blocked"):
                    env.step(action.text)
    return tally


def read_thought(env: Any, thinking: str) -> Tally:
    """Judge the claims of one thought in the environment's current state."""
    tally: Tally = Counter()
    state, action, pieces = None, None, []  # the place claimed last; the action whose outcome the pieces tell
    for word in [*WORD.findall(thinking), ""]:
        if word.startswith("("):
            pieces.append(word)
            continue
        if word == RETRACTED:
            tally["thought/retracted"] += 1
        elif action is not None and pieces:
            tally += _judged("thought", pieces, _truth(env, state, action))
            state = state if pieces == [BLOCKED] else env.read_place(" ".join(pieces))
        elif pieces:
            state = env.read_place(" ".join(pieces))
            tally["thought/opened"] += 1
            tally["thought/opened_right"] += state == env.state
        else:
            state = None
        if word != RETRACTED:
            action = word if word in env.action_names else None
        pieces = []
    return tally + Counter({"thought/thoughts": 1})


def _truth(env: Any, state: Any, action: str) -> str | None:
    """What comes of the action in a claimed state; None where there is no such state."""
    if state is None:
        return None
    simulator = copy.copy(env)
    simulator.state = state
    return outcome(simulator, action)


def _judged(area: str, claimed: Sequence[str], truth: str | None) -> Tally:
    right = WORD.findall(truth or "(nothing)")
    return Counter(
        {
            f"{area}/claims": 1,
            f"{area}/exact": int(list(claimed) == right),
            f"{area}/effect": int(truth is not None and (list(claimed) == [BLOCKED]) == (truth == BLOCKED)),
            f"{area}/pieces": max(len(right), len(claimed)),
            f"{area}/pieces_right": sum(a == b for a, b in zip(claimed, right, strict=False)),
        }
    )


RATIOS = {
    "question_exact": ("question/exact", "question/claims"),
    "question_per_piece": ("question/pieces_right", "question/pieces"),
    "question_effect": ("question/effect", "question/claims"),
    "thought_exact": ("thought/exact", "thought/claims"),
    "thought_per_piece": ("thought/pieces_right", "thought/pieces"),
    "thought_effect": ("thought/effect", "thought/claims"),
    "thought_opening": ("thought/opened_right", "thought/opened"),
    "thought_moves": ("thought/claims", "thought/thoughts"),
    "thought_retracted": ("thought/retracted", "thought/claims"),
}
"""Figure → what is divided by what. The next place said exactly; piece by piece; whether the action changes anything at
all; whether a thought begins where the agent is; simulated moves a thought; claims taken back a claim."""


def figures(tally: Tally) -> dict[str, tuple[float, float]]:
    """Return each figure's numerator and denominator; all of them, so that processes can add theirs."""
    return {name: (tally[above], tally[below]) for name, (above, below) in RATIOS.items()}
