"""What a model knows of its world, found out in two ways and logged as ``eval/world_model/<variant>/…``.

- **In its own thoughts.** Where a thought simulates moves (a place, an action, the place it leads to, …), every claim
  is compared with what the environment would do. A thought in other words makes no claims, and no figures.
- **By question.** Transitions are drawn uniformly from the states that can be reached in held-out levels. The model is
  shown the state, its reply is begun for it (``<think> place action``), and it has to say what comes of the action.
  That is the form of the warm start's thoughts, so the question is fair only for models that had it.

Where no thought, or no reply, says anything of this kind there are no figures of thoughts, or of questions, and not
figures of 0.

A place is written as `TextEnv.place` writes it: pieces in parentheses. "(none)" says that an action changes nothing.
"""

import copy
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from wmact import protocol
from wmact.chat import Chat
from wmact.types import Episode, Mean

BLOCKED = "(none)"
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


class Claim(NamedTuple):
    """What a thought says of the world: where it begins, what comes of an action, or something that it takes back.

    kind: the last is not judged.
    start, end: its characters in the thought.
    pieces: the place as it is told.
    truth: what it should be; None where nothing can be true: the action is taken in a state that does not exist.
    """

    kind: Literal["opening", "outcome", "retracted"]
    start: int
    end: int
    pieces: list[str]
    truth: str | None
    right: bool


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
    """Take the action; return the place it leads to, or "(none)"."""
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
    return _judged("question", claimed, question.truth) + Counter({"question/read": int(bool(claimed))})


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
    tally: Tally = Counter({"thought/thoughts": 1})
    for claim in claims(env, thinking):
        if claim.kind == "retracted":
            tally["thought/retracted"] += 1
        elif claim.kind == "opening":
            tally["thought/opened"] += 1
            tally["thought/opened_right"] += claim.right
            tally["thought/read"] += claim.right
        else:
            tally["thought/read"] += claim.truth is not None  # it is said of a place that there is
            tally += _judged("thought", claim.pieces, claim.truth)
    return tally


def claims(env: Any, thinking: str) -> list[Claim]:
    """Return every claim of one thought, in order, judged in the environment's current state."""
    found: list[Claim] = []
    state, action = None, None  # the place claimed last; the action whose outcome the pieces tell
    pieces: list[re.Match[str]] = []
    for match in [*WORD.finditer(thinking), None]:
        word = match[0] if match else ""
        if match and word.startswith("("):
            pieces.append(match)
            continue
        claimed = [piece[0] for piece in pieces]
        span = (pieces[0].start(), pieces[-1].end()) if pieces else (0, 0)
        if match and word == RETRACTED:
            found.append(Claim("retracted", span[0] if pieces else match.start(), match.end(), claimed, None, False))
        elif action is not None and pieces:
            truth = _truth(env, state, action)
            found.append(Claim("outcome", *span, claimed, truth, truth is not None and claimed == WORD.findall(truth)))
            state = state if claimed == [BLOCKED] else env.read_place(" ".join(claimed))
        elif pieces:
            state = env.read_place(" ".join(claimed))
            found.append(Claim("opening", *span, claimed, env.place(), state == env.state))
        else:
            state = None
        if word != RETRACTED:
            action = word if word in env.action_names else None
        pieces = []
    return found


def _truth(env: Any, state: Any, action: str) -> str | None:
    """What comes of the action in a claimed state; None where there is no such state."""
    if state is None:
        return None
    simulator = copy.copy(env)
    simulator.state = state
    return outcome(simulator, action)


def _judged(area: str, claimed: Sequence[str], truth: str | None) -> Tally:
    right = WORD.findall(truth or "")  # where nothing can be true, "(none)" is not either
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


SHARES = {"question_exact", "question_effect"}
"""The figures that are shares of independent things: each question is of another level. A thought's claims are not."""


def figures(tally: Tally) -> dict[str, Mean]:
    """Return all figures, those too that nothing was found for, so that processes can add theirs."""
    return {
        name: Mean(tally[above], tally[below], tally[below] if name in SHARES else 0)
        for name, (above, below) in RATIOS.items()
    }
