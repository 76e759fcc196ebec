"""Episodes of chosen shape."""

import random

from wmact.types import Episode, Turn

Shape = tuple[int, int, float]
"""Of a turn: tokens that were given before it, tokens of it that were sampled, reward at its end."""


def make_episode(*shape: Shape, level: int = 0, seed: int = 0) -> Episode:
    """An episode of random ids below 50; its logprobs are -1 for sampled tokens."""
    draw = random.Random(seed)
    episode = Episode("env", level, str(level), 0, seed, 0, stop_reason="turns")
    for given, sampled, reward in shape:
        start = len(episode.ids) + given
        episode.ids += [draw.randrange(50) for _ in range(given + sampled)]
        episode.logprobs += [0.0] * given + [-1.0] * sampled
        episode.turns.append(Turn(start, start + sampled, "", "valid", reward=reward))
    return episode
