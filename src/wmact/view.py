"""An episode as text that a person can read and that can do nothing else.

Replies and observations are written by a model and by environments. What they contain must not move a cursor, ring
a bell, reorder a line or end a code block: characters that control a terminal are shown, never sent.
"""

import unicodedata
from itertools import zip_longest

from wmact.types import Episode, Turn

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
    head = (
        f"{episode.env} level {episode.level} ({episode.level_id[:12]}), sample {episode.sample}, seed {episode.seed}"
    )
    lines = [f"{head}, policy version {episode.policy_version}"]
    for number, (observation, turn) in enumerate(zip_longest(episode.observations, episode.turns), start=1):
        if turn is not None:
            lines.append(f"── turn {number} of {len(episode.turns)} ──")
        lines += [] if observation is None else ["observation:", _indent(observation)]
        lines += [] if turn is None else _told(turn)
    lines.append(_outcome(episode))
    return printable("\n".join(lines))


def markdown(text: str) -> str:
    """Return ``text`` as a Markdown code block. It is indented, not fenced, so nothing within can end it."""
    return "\n" + "\n".join("    " + line for line in printable(text).split("\n"))


def _told(turn: Turn) -> list[str]:
    # on one line: what is not indented is told by us
    fates = ", ".join(f"{' '.join(action.text.split())} → {action.kind}" for action in turn.actions)
    heading = f"reply ({turn.format}, {turn.end - turn.start} tokens):"
    return [heading, _indent(turn.text), f"actions: {fates or 'none'}", f"reward: {turn.reward:g}"]


def _outcome(episode: Episode) -> str:
    optimal = f", optimal {episode.optimal_length}" if episode.optimal_length else ""
    outcome = f"{episode.stop_reason}: reward {episode.reward:g}, scaled {episode.scaled_reward:g}"
    outcome += f", {episode.num_effective} of {len(episode.actions)} actions effective{optimal}"
    return outcome + (f"\nerror:\n{_indent(episode.error)}" if episode.error else "")


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.replace("\r\n", "\n").split("\n"))
