"""An episode as text that a person can read and that can do nothing else.

Replies and observations are written by a model and by environments. What they contain must not move a cursor, ring
a bell, reorder a line or end a code block: characters that control a terminal are shown, never sent.
"""

import unicodedata
from collections.abc import Sequence
from itertools import zip_longest

from wmact.types import Action, Episode, Turn

_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories without a glyph: controls, formats (direction marks, zero widths), lone surrogates, separators."""


def printable(text: str) -> str:
    r"""Return `text` with line ends as \n, tabs as spaces, and every other unseen character as its escape (\x1b)."""
    text = text.replace("\r\n", "\n").expandtabs(4)
    return "".join(
        c.encode("unicode_escape").decode() if c != "\n" and unicodedata.category(c) in _UNSEEN else c for c in text
    )


def transcript(episode: Episode) -> str:
    """Tell an episode: every observation, reply, action with what became of it, and reward.

    Returns:
        Plain text of printable characters and line ends. It is not markup: give it to ``print``, not to ``rich.print``,
        and escape it before it enters HTML.
    """
    parts = [f"{heading(episode)}, policy version {episode.policy_version}"]
    for number, (observation, turn) in enumerate(zip_longest(episode.observations, episode.turns), start=1):
        parts += [] if turn is None else [f"── turn {number} of {len(episode.turns)} ──"]
        parts += [] if observation is None else [observed(observation)]
        parts += [] if turn is None else [answered(turn)]
    return "\n".join([*parts, outcome(episode)])


def heading(episode: Episode) -> str:
    """Tell what is played."""
    return printable(
        f"{episode.env} level {episode.level} ({episode.level_id[:12]}), sample {episode.sample}, seed {episode.seed}"
    )


def observed(observation: str) -> str:
    """Tell an observation."""
    return printable(f"observation:\n{_indent(observation)}")


def answered(turn: Turn, tokens: bool = True) -> str:
    """Tell a reply, what became of its actions, and the reward; without `tokens` not how long it was."""
    # on one line: what is not indented is told by us
    fates = ", ".join(f"{' '.join(action.text.split())} → {_fate(action)}" for action in turn.actions)
    length = f", {turn.end - turn.start} tokens" if tokens else ""
    lines = [f"reply ({turn.format}{length}):", _indent(turn.text), f"actions: {fates or 'none'}"]
    return printable("\n".join([*lines, f"reward: {turn.reward:g}"]))


def outcome(episode: Episode) -> str:
    """Tell how an episode ended."""
    optimal = f", optimal {episode.optimal_length}" if episode.optimal_length else ""
    told = f"{episode.stop_reason}: reward {episode.reward:g}, scaled {episode.scaled_reward:g}"
    told += f", {episode.num_effective} of {len(episode.actions)} actions effective{optimal}"
    return printable(told + (f"\nerror:\n{_indent(episode.error)}" if episode.error else ""))


def markdown(text: str) -> str:
    """Return ``text`` as a Markdown code block. It is indented, not fenced, so nothing within can end it."""
    return "\n" + "\n".join("    " + line for line in printable(text).split("\n"))


def _fate(action: Action) -> str:
    """Its kind; that of what a wall stops is also that of what cannot change anything, such as looking around."""
    return "no effect" if action.kind == "blocked" else action.kind


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.replace("\r\n", "\n").split("\n"))
