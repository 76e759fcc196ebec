"""The data that flows through the house: actions → turns → episodes → one packed batch.

Axis letters are those of CONTRIBUTING.md: E episodes, T tokens of all episodes laid end to end, S sampled tokens
(those the model wrote), O observation tokens (those the environment wrote in answer to a reply), U turns.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

ActionKind = Literal["effective", "blocked", "unreadable", "after_end"]
"""What became of one action: it changed the state; it did not; it is no action's name; the level was over before it."""

StopReason = Literal["solved", "dead", "turns", "turn_tokens", "episode_tokens", "context", "env_truncated", "error"]
"""Why an episode ended. Only ``solved`` and ``dead`` are terminations; the limits are truncations."""


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message is one line that says why and what to do. The last checkpoint is good."""


class RolloutInterrupted(Exception):
    """The rollout was given up because the process is asked to stop; nothing of it was trained on."""


@dataclass
class Action:
    """One action of an action set. ``text`` is what the model wrote, ``kind`` what became of it."""

    text: str
    kind: ActionKind


@dataclass
class Turn:
    """One reply: tokens ``start`` to ``end`` (exclusive) of the episode's ids, and what it did."""

    start: int
    end: int
    text: str
    format: Literal["valid", "unreadable", "overlong"]
    actions: list[Action] = field(default_factory=list)
    reward: float = 0.0
    """Reward the trainer sees at the end of this turn, after shaping; the raw outcome is on the episode."""


@dataclass
class Episode:
    """One played level, with every token as it was sampled or given.

    ids, logprobs: one entry a token; logprobs are the engine's for sampled tokens and 0.0 for given ones.
    reward: the outcome reward before shaping.
    turns: in order; a turn of zero reward is still a turn.
    told: first token and end (exclusive) of each observation that answered a reply: what the environment said, without
        the chat template around it and without hints of ours. The first prompt is none: nothing led to it.
    optimal_length: least number of actions that solve the level; 0 if the environment does not tell.
    category: kind of level, of which success is told apart; "" if the environment does not tell.
    baseline_success: an agent that does nothing solves the level; None if the environment does not tell.
    env_seconds: time spent in the environment. The same episode may take another time, so it is in no comparison.
    """

    env: str
    level: int
    level_id: str
    sample: int
    seed: int
    policy_version: int
    optimal_length: int = 0
    category: str = ""
    baseline_success: bool | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    told: list[tuple[int, int]] = field(default_factory=list)
    observations: list[str] = field(default_factory=list)
    reward: float = 0.0
    stop_reason: StopReason | None = None
    error: str | None = None
    env_seconds: float = field(default=0.0, compare=False)

    @property
    def success(self) -> bool:
        """The level was solved."""
        return self.stop_reason == "solved"

    @property
    def fault(self) -> str:
        """The last line of the error, "" where there is none."""
        return (self.error or "").strip().rpartition("\n")[2]

    @property
    def actions(self) -> list[Action]:
        """Every action of the episode, in order."""
        return [action for turn in self.turns for action in turn.actions]

    @property
    def num_effective(self) -> int:
        """N_eff of WMAct's reward rescaling."""
        return sum(action.kind == "effective" for action in self.actions)

    @property
    def scaled_reward(self) -> float:
        """The sum of what the trainer sees."""
        return sum(turn.reward for turn in self.turns)


class Mean(NamedTuple):
    """A figure in parts that add up over processes; its value is total / number.

    trials: of a share, how many independent things it is of, for its interval; 0 where it is no share.
    """

    total: float
    number: float
    trials: float = 0


class Played(NamedTuple):
    """Evaluation episodes of one variant of the environment, and the turn budgets they are to be read at.

    They are played once, with the largest budget. The model is not told its budget, so the success of a smaller budget
    L is the share of episodes solved within L turns: one rollout gives the whole curve.
    """

    variant: str
    episodes: list[Episode]
    max_turns: int  # the initial L_max: "multi-turn"
    turn_budget: int  # the current L_max
    curve: tuple[int, ...]  # budgets of the success curve, ascending
    world_model: dict[str, Mean]  # figures of `world_model.py` or of `RolloutData.judge`; {}: not asked
    categories: tuple[str, ...] = ()  # of the episodes of all processes, sorted; (): the environment tells none


class Batch(NamedTuple):
    """Episodes packed without padding. `collate.py` makes it and is the only code that shifts, masks or packs.

    Sampled token s stands at ``ids_T[token_S[s]]`` and is predicted from position ``token_S[s] - 1``.
    """

    ids_T: Tensor  # (T,) int64, all tokens of all episodes
    positions_T: Tensor  # (T,) int64, position within the episode
    starts_E: Tensor  # (E + 1,) int32: where each episode begins in T; the last entry is T
    token_S: Tensor  # (S,) int64, where each sampled token stands in T
    episode_S: Tensor  # (S,) int64, its episode
    turn_end_S: Tensor  # (S,) bool, the last token of its turn
    rewards_S: Tensor  # (S,) float32, non-zero only where turn_end_S
    behaviour_logprobs_S: Tensor  # (S,) float32, of the engine that sampled
    valid_S: Tensor  # (S,) bool, False where the engine's logprob is missing or not finite: left out of the loss
    token_O: Tensor  # (O,) int64, where each observation token stands in T
    group_E: Tensor  # (E,) int64, episodes of one level share a number
    policy_version: int  # of the weights that played; must be the trainer's when it trains

    @property
    def num_tokens(self) -> int:
        """T."""
        return int(self.ids_T.numel())

    def to_device(self, device: torch.device) -> "Batch":
        """All tensors on `device`."""
        moved: dict[str, Any] = {name: x.to(device) for name, x in self._asdict().items() if isinstance(x, Tensor)}
        return self._replace(**moved)

    @property
    def targets_S(self) -> Tensor:
        """(S,) ids of the sampled tokens."""
        return self.ids_T[self.token_S]

    @property
    def outcomes_E(self) -> Tensor:
        """(E,) sum of the rewards of each episode."""
        return self.rewards_S.new_zeros(len(self.group_E)).index_add_(0, self.episode_S, self.rewards_S)

    @property
    def sampled_E(self) -> Tensor:
        """(E,) bool: which episodes hold a valid sampled token."""
        return torch.zeros_like(self.group_E, dtype=torch.bool).index_fill_(0, self.episode_S[self.valid_S], True)

    @property
    def observed_E(self) -> Tensor:
        """(E,) bool: which episodes hold an observation token."""
        episode_O = torch.bucketize(self.token_O, self.starts_E[1:], right=True)
        return torch.zeros_like(self.group_E, dtype=torch.bool).index_fill_(0, episode_O, True)

    def split(self, token_budget: int) -> "list[Batch]":
        """Cut into runs of whole episodes of at most ``token_budget`` tokens (one episode may exceed it alone)."""
        starts = self.starts_E.tolist()
        cuts, begin = [0], 0
        for e in range(1, len(starts) - 1):
            if starts[e + 1] - starts[begin] > token_budget:
                cuts.append(e)
                begin = e
        cuts.append(len(starts) - 1)
        return [self.episodes(first, last) for first, last in itertools.pairwise(cuts)]

    def minibatches(self, number: int) -> "list[Batch]":
        """Cut into ``number`` runs of whole episodes, as equal in their number of episodes as can be.

        Raises:
            ValueError: there are fewer episodes than that.
        """
        count = self.group_E.numel()
        if number > count:
            raise ValueError(f"minibatches={number}: the batch has only {count} episodes")
        return [
            self.episodes(first, last)
            for first, last in itertools.pairwise(count * i // number for i in range(number + 1))
        ]

    def nothing(self) -> "Batch":
        """A batch of one token that is not sampled: it goes through the networks and counts for nothing."""
        of_tokens = {name: x[:1] for name, x in self._asdict().items() if name in ("ids_T", "positions_T", "group_E")}
        sampled = {name: x[:0] for name, x in self._asdict().items() if name.endswith(("_S", "_O"))}
        return self._replace(starts_E=self.starts_E.new_tensor([0, 1]), **of_tokens, **sampled)

    def episodes(self, first: int, last: int) -> "Batch":
        """Episodes ``first`` to ``last`` (exclusive) as a batch of their own."""
        number_E = torch.arange(len(self.group_E), device=self.group_E.device)
        return self.select((first <= number_E) & (number_E < last))

    def select(self, kept_E: Tensor) -> "Batch":
        """The episodes that are marked as a batch of their own, or `nothing` where none is."""
        if not kept_E.any():
            return self.nothing()
        lengths_E = self.starts_E.diff()
        kept_T = kept_E.repeat_interleave(lengths_E.to(kept_E.device))
        kept_S, kept_O = kept_T[self.token_S], kept_T[self.token_O]
        place_T, place_E = kept_T.cumsum(0) - 1, kept_E.cumsum(0) - 1
        sampled = {name: x[kept_S] for name, x in self._asdict().items() if name.endswith("_S")}
        sampled |= {"token_S": place_T[sampled["token_S"]], "episode_S": place_E[sampled["episode_S"]]}
        starts_E = torch.cat([self.starts_E[:1], lengths_E[kept_E.to(lengths_E.device)].cumsum(0)])
        return self._replace(
            ids_T=self.ids_T[kept_T],
            positions_T=self.positions_T[kept_T],
            starts_E=starts_E.to(self.starts_E.dtype),
            token_O=place_T[self.token_O[kept_O]],
            group_E=self.group_E[kept_E],
            **sampled,
        )
