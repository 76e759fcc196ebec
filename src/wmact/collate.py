"""Episodes → one packed batch. The only code of the project that shifts, masks or packs."""

import math
from collections.abc import Sequence

import torch

from wmact.types import Batch, Episode


def collate(episodes: Sequence[Episode], policy_version: int = 0) -> Batch:
    """Lay the episodes end to end, without padding.

    The loss mask is exactly the tokens the model sampled: `token_S` lists where they stand, turn by turn. The reward
    of a turn stands on its last token, and every turn has its end marked, also one of zero reward. `token_O` lists the
    tokens of observations that answered a reply (`Episode.told`). Without an episode there is one token all the same,
    not sampled: the process goes along with the others, which may have some.

    Raises:
        ValueError: a turn lies outside its episode, holds no token, or opens the episode.
    """
    episodes = episodes or [Episode("none", -1, "none", 0, 0, policy_version, ids=[0], logprobs=[0.0])]
    ids: list[int] = []
    positions: list[int] = []
    starts = [0]
    tokens: list[int] = []
    told: list[int] = []
    owner: list[int] = []
    turn_end: list[bool] = []
    rewards: list[float] = []
    logprobs: list[float] = []
    for e, episode in enumerate(episodes):
        offset = len(ids)
        ids += episode.ids
        positions += range(len(episode.ids))
        starts.append(len(ids))
        for turn in episode.turns:
            if not 0 < turn.start < turn.end <= len(episode.ids):
                raise ValueError(
                    f"a turn from tokens {turn.start} to {turn.end} of {len(episode.ids)}: it needs a token, and one "
                    "before it that predicts it"
                )
            length = turn.end - turn.start
            tokens += range(offset + turn.start, offset + turn.end)
            owner += [e] * length
            turn_end += [False] * (length - 1) + [True]
            rewards += [0.0] * (length - 1) + [turn.reward]
            logprobs += episode.logprobs[turn.start : turn.end]
        for start, end in episode.told:
            told += range(offset + start, offset + end)
    groups = {key: g for g, key in enumerate(dict.fromkeys((episode.env, episode.level) for episode in episodes))}
    return Batch(
        ids_T=torch.tensor(ids),
        positions_T=torch.tensor(positions),
        starts_E=torch.tensor(starts, dtype=torch.int32),
        token_S=torch.tensor(tokens, dtype=torch.int64),
        episode_S=torch.tensor(owner, dtype=torch.int64),
        turn_end_S=torch.tensor(turn_end, dtype=torch.bool),
        rewards_S=torch.tensor(rewards, dtype=torch.float32),
        behaviour_logprobs_S=torch.tensor([lp if math.isfinite(lp) else 0.0 for lp in logprobs]),
        valid_S=torch.tensor([math.isfinite(lp) for lp in logprobs], dtype=torch.bool),
        token_O=torch.tensor(told, dtype=torch.int64),
        group_E=torch.tensor([groups[episode.env, episode.level] for episode in episodes]),
        policy_version=policy_version,
    )
