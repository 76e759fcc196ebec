"""Packing, on episodes small enough to write out every number."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wmact.collate import collate
from wmact.types import Batch, Episode, Turn


def written_out() -> list[Episode]:
    """Two turns with an observation between them and one after; then an episode of one turn, on another level."""
    first = Episode("env", 3, "a", 0, 0, 7)
    #             prompt      | turn 1 | observation  | turn 2      | observation
    first.ids = [10, 11, 12] + [20, 21] + [30, 31, 32] + [40, 41, 42] + [50, 51]
    first.logprobs = [0.0] * 3 + [-0.1, -0.2] + [0.0] * 3 + [-0.3, -0.4, -0.5] + [0.0] * 2
    first.turns = [Turn(3, 5, "", "valid", reward=0.0), Turn(8, 11, "", "valid", reward=0.75)]
    first.told = [(6, 8), (11, 12)]  # the rest of both is the chat template's
    second = Episode("env", 9, "b", 0, 0, 7)
    second.ids, second.logprobs = [60] + [70, 71], [0.0] + [-0.6, -0.7]
    second.turns = [Turn(1, 3, "", "valid", reward=-0.5)]
    return [first, second]


def test_every_number_of_two_episodes() -> None:
    batch = collate(written_out(), policy_version=7)
    assert batch.ids_T.tolist() == [10, 11, 12, 20, 21, 30, 31, 32, 40, 41, 42, 50, 51, 60, 70, 71]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 1, 2]
    assert batch.starts_E.tolist() == [0, 13, 16]
    assert batch.token_S.tolist() == [3, 4, 8, 9, 10, 14, 15]  # 14, 15 = 13 + 1, 13 + 2
    assert batch.episode_S.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert batch.turn_end_S.tolist() == [False, True, False, False, True, False, True]
    assert batch.rewards_S.tolist() == [0, 0, 0, 0, 0.75, 0, -0.5]
    assert batch.behaviour_logprobs_S.tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.7])
    assert batch.valid_S.tolist() == [True] * 7
    assert batch.targets_S.tolist() == [20, 21, 40, 41, 42, 70, 71]
    assert batch.token_O.tolist() == [6, 7, 11]  # ids 31, 32 and 50
    assert batch.group_E.tolist() == [0, 1]
    assert batch.outcomes_E.tolist() == [0.75, -0.5]
    assert batch.sampled_E.tolist() == [True, True]
    assert batch.observed_E.tolist() == [True, False]
    assert batch.num_tokens == 16
    assert batch.policy_version == 7


def test_kinds_of_numbers() -> None:
    batch = collate(written_out())
    kinds = {name: x.dtype for name, x in batch._asdict().items() if isinstance(x, torch.Tensor)}
    int64, float32 = torch.int64, torch.float32
    assert kinds == {
        "ids_T": int64, "positions_T": int64, "starts_E": torch.int32, "token_S": int64, "episode_S": int64,
        "turn_end_S": torch.bool, "rewards_S": float32, "behaviour_logprobs_S": float32, "valid_S": torch.bool,
        "token_O": int64, "group_E": int64,
    }  # fmt: skip


def test_a_turn_of_zero_reward_keeps_its_end(make_episode: Callable[..., Episode]) -> None:
    batch = collate([make_episode((2, 3, 0.0), (4, 1, 0.0), (1, 2, 0.0))])
    # turns of 3, 1 and 2 tokens end at the sampled tokens 2, 3 and 5
    assert batch.turn_end_S.nonzero()[:, 0].tolist() == [2, 3, 5]
    assert batch.rewards_S.tolist() == [0] * 6


def test_a_turn_of_one_token_carries_its_reward(make_episode: Callable[..., Episode]) -> None:
    batch = collate([make_episode((2, 1, 0.25), (3, 1, 0.5))])
    assert batch.rewards_S.tolist() == [0.25, 0.5]
    assert batch.turn_end_S.tolist() == [True, True]


def test_trained_ids_are_the_sampled_ids(make_episode: Callable[..., Episode]) -> None:
    episodes = [make_episode((3, 4, 0.0), (5, 2, 1.0), seed=1), make_episode((7, 1, 0.0), seed=2)]
    sampled = [token for episode in episodes for turn in episode.turns for token in episode.ids[turn.start : turn.end]]
    assert collate(episodes).targets_S.tolist() == sampled


@pytest.mark.parametrize("missing", [math.nan, -math.inf, math.inf])
def test_a_token_without_a_usable_logprob_is_masked_and_kept(missing: float) -> None:
    episodes = written_out()
    episodes[0].logprobs[9] = missing  # the second of turn 2: sampled token 3
    batch = collate(episodes)
    assert batch.valid_S.tolist() == [True, True, True, False, True, True, True]
    assert batch.behaviour_logprobs_S[3] == 0
    assert batch.targets_S[3] == 41  # still a token of the episode: positions and rewards stay where they are
    assert batch.rewards_S.tolist() == [0, 0, 0, 0, 0.75, 0, -0.5]


def test_episodes_of_a_level_are_a_group(make_episode: Callable[..., Episode]) -> None:
    episodes = [make_episode((1, 1, 0.0), level=level) for level in (5, 5, 2, 5, 2, 8)]
    episodes[5].level, episodes[5].env = 5, "another"  # the same number in another environment is another level
    assert collate(episodes).group_E.tolist() == [0, 0, 1, 0, 1, 2]


def test_an_episode_without_a_turn_holds_its_place(make_episode: Callable[..., Episode]) -> None:
    empty = Episode("env", 1, "1", 0, 0, 0, ids=[1, 2], logprobs=[0.0, 0.0], stop_reason="context")
    batch = collate([make_episode((1, 1, 0.0)), empty, make_episode((1, 2, 0.0), level=2)])
    assert batch.starts_E.tolist() == [0, 2, 4, 7]
    assert batch.episode_S.tolist() == [0, 2, 2]
    assert batch.token_S.tolist() == [1, 5, 6]


def test_nothing_to_train_on() -> None:
    """One token that is not sampled: with several processes one may have nothing, and goes along with the others."""
    batch = collate([], policy_version=4)
    assert (batch.ids_T.tolist(), batch.positions_T.tolist(), batch.starts_E.tolist()) == ([0], [0], [0, 1])
    assert (batch.group_E.tolist(), batch.policy_version) == ([0], 4)
    assert all(len(x) == 0 for name, x in batch._asdict().items() if name.endswith(("_S", "_O")))
    some = collate([Episode("env", 1, "1", 0, 0, 0, ids=[1, 2], logprobs=[0.0, 0.0])])
    for name, x in batch._asdict().items():
        if isinstance(x, torch.Tensor):
            assert x.dtype == getattr(some, name).dtype, name


def test_nothing_of_a_batch(make_episode: Callable[..., Episode]) -> None:
    batch = collate([make_episode((3, 2, 1.0)), make_episode((1, 1, 0.0))], policy_version=4)
    nothing = batch.nothing()
    assert nothing.ids_T.tolist() == batch.ids_T[:1].tolist()
    assert (nothing.starts_E.tolist(), nothing.positions_T.tolist(), nothing.policy_version) == ([0, 1], [0], 4)
    assert all(len(x) == 0 for name, x in nothing._asdict().items() if name.endswith(("_S", "_O")))
    assert [part.num_tokens for part in nothing.split(8)] == [1]


@pytest.mark.parametrize(("start", "end"), [(2, 2), (3, 2), (0, 2), (2, 4)])
def test_a_turn_that_cannot_be_trained_on_is_refused(start: int, end: int) -> None:
    """Without a token, or with none before it to predict it from: either would shift what comes after."""
    episode = Episode("env", 1, "1", 0, 0, 0, ids=[1, 2, 3], logprobs=[-1.0] * 3)
    episode.turns = [Turn(start, end, "", "valid")]
    with pytest.raises(ValueError, match=f"tokens {start} to {end}"):
        collate([episode])


def test_split_by_hand(make_episode: Callable[..., Episode]) -> None:
    batch = collate([make_episode((1, n - 1, float(n)), level=n, seed=n) for n in (4, 3, 3, 9, 2)])
    # 4 + 3 = 7 fit into 8, the next 3 does not; 9 exceeds the budget alone; 2 is left
    assert [micro.starts_E.tolist() for micro in batch.split(8)] == [[0, 4, 7], [0, 3], [0, 9], [0, 2]]
    second = batch.split(8)[1]
    assert second.token_S.tolist() == [1, 2]
    assert second.episode_S.tolist() == [0, 0]
    assert second.rewards_S.tolist() == [0, 3]
    assert second.ids_T.tolist() == batch.ids_T[7:10].tolist()
    assert second.group_E.tolist() == [1]  # the batch drew its numbers 0, 1, 1, … from levels 4, 3, 3, …


def test_selected_episodes_are_those_of_a_batch_of_their_own(make_episode: Callable[..., Episode]) -> None:
    episodes = [make_episode((2, n, 0.0), (3, 2, float(n)), level=n, seed=n) for n in (1, 2, 3, 4)]
    for episode in episodes:
        episode.told = [(episode.turns[0].end + 1, episode.turns[1].start)]
    whole = collate(episodes, policy_version=5)
    some = whole.select(torch.tensor([False, True, False, True]))
    own = collate([episodes[1], episodes[3]], policy_version=5)._replace(group_E=torch.tensor([1, 3]))
    for name, x in own._asdict().items():
        got = getattr(some, name)
        assert got.equal(x) and got.dtype == x.dtype if isinstance(x, torch.Tensor) else got == x, name
    assert whole.select(torch.zeros(4, dtype=torch.bool)).num_tokens == 1
    assert whole.select(torch.ones(4, dtype=torch.bool)).ids_T.equal(whole.ids_T)


shapes = st.lists(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6), st.floats(-1, 1, width=32)), max_size=3),
    min_size=1,
    max_size=6,
).filter(any)


@given(shapes, st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_split_loses_nothing(make_episode: Callable[..., Episode], shape: list[list[tuple]], budget: int) -> None:
    episodes = [make_episode((2, 0, 0.0), *turns, level=i % 3, seed=i) for i, turns in enumerate(shape)]
    for episode in episodes:
        del episode.turns[0]  # a prompt of two tokens without a turn
    for episode in episodes:  # what lies between two turns was told
        between = itertools.pairwise(episode.turns)
        episode.told = [(before.end, after.start) for before, after in between]
    whole = collate(episodes, policy_version=3)
    parts = whole.split(budget)
    for part in parts:
        lengths = part.starts_E.diff().tolist()
        assert part.num_tokens <= budget or len(lengths) == 1
        assert part.policy_version == 3
        assert part.starts_E[0] == 0
        assert part.starts_E[-1] == part.num_tokens
    assert all(
        a.num_tokens + int(b.starts_E[1]) > budget for a, b in itertools.pairwise(parts)
    )  # none was cut without need
    for name in ("ids_T", "positions_T", "turn_end_S", "rewards_S", "behaviour_logprobs_S", "valid_S", "group_E"):
        assert torch.cat([getattr(part, name) for part in parts]).equal(getattr(whole, name)), name
    assert torch.cat([part.targets_S for part in parts]).equal(whole.targets_S)
    assert joined(parts, "episode_S", [len(part.group_E) for part in parts]).equal(whole.episode_S)
    lengths = [part.num_tokens for part in parts]
    assert joined(parts, "token_S", lengths).equal(whole.token_S)
    assert joined(parts, "token_O", lengths).equal(whole.token_O)


def joined(parts: list[Batch], name: str, sizes: list[int]) -> torch.Tensor:
    """Indices of the parts as indices into the whole."""
    offsets = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    return torch.cat([getattr(part, name) + offset for part, offset in zip(parts, offsets, strict=True)])
