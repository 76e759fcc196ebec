"""Imperfect demonstrations for the warm start: a solver whose attention wanders thinks aloud and acts.

A thought simulates moves: where am I, where does this action take me, or is there a wall. The demonstrator takes an
optimal action only now and then and any action otherwise, notices walls, goes back from dead ends, sometimes claims
something false and corrects it ("no"), and stops thinking early more often than not. So what a model learns from it is
*how to simulate*, which is right nearly always; *what to do* with it is left to reinforcement.

Nothing here knows a particular environment: the environment's own copy is the simulator, and its words tell the state.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from wmact.chat import Chat
from wmact.collate import collate
from wmact.data import RolloutData
from wmact.engines import Completion, Request
from wmact.rollout import Limits, Player, Task
from wmact.types import Batch, Episode

BLOCKED = "(wall)"


@dataclass(frozen=True)
class Manner:
    """How a demonstrator thinks and acts. Probabilities unless said otherwise.

    Args:
        short_mean: mean number of simulated moves of a short thought.
        short_best: chance that a move of a short thought is an optimal one; any action otherwise.
        long_share: share of long thoughts.
        long_mean: mean number of simulated moves of a long thought.
        long_best: chance that a move of a long thought is an optimal one.
        slip: chance that a simulated move is first told wrongly and then corrected; 0 shows no reflection.
        careless: chance that a blocked action stands before an action of the plan.
    """

    short_mean: float = 2.5
    short_best: float = 0.4
    long_share: float = 0.15
    long_mean: float = 15.0
    long_best: float = 0.35
    slip: float = 0.02
    careless: float = 0.2


def demonstrate(env: Any, rng: np.random.Generator, manner: Manner) -> str:
    """Return one reply for the environment's current state: a thought, and an action set that follows from it.

    Args:
        env: a TextEnv (unwrapped); it is not changed.
    """
    long = rng.random() < manner.long_share
    mean, best = (manner.long_mean, manner.long_best) if long else (manner.short_mean, manner.short_best)
    simulator = copy.copy(env)
    thought = [simulator.place()]
    last_exit: dict[Any, str] = {}  # state → the action that left it for the last time
    for _ in range(rng.geometric(1 / mean)):
        solution = simulator.solution() if rng.random() < best else None
        action = solution[0] if solution else str(rng.choice(env.action_names))
        before, before_place = simulator.state, simulator.place()
        _, _, terminated, _, info = simulator.step(action)
        outcome = simulator.place() if info["effective"] else BLOCKED
        thought.append(action)
        if rng.random() < manner.slip:
            thought += [before_place if outcome == BLOCKED else BLOCKED, "no"]
        thought.append(outcome)
        if info["effective"]:
            last_exit[before] = action
        if terminated:
            break
    plan = []
    actor = copy.copy(env)
    while actor.state != simulator.state:  # following the last exits leaves out every detour of the thought
        if rng.random() < manner.careless:
            action = str(rng.choice(env.action_names))
            if not copy.copy(actor).step(action)[-1]["effective"]:
                plan += [action, BLOCKED]
        action = last_exit[actor.state]
        actor.step(action)
        plan += [action, actor.place()]
    return f"<think> {' '.join(thought)} </think> <action> {' '.join(plan)} </action>"


def play_demonstration(env: Any, task: Task, chat: Chat, limits: Limits, max_turns: int, manner: Manner) -> Episode:
    """Play one level with the demonstrator in the model's place; what it writes counts as sampled."""
    rng = np.random.default_rng(task.seed)
    player = Player(env, task, chat, limits, told=False)
    player.reset()
    while player.episode.stop_reason is None:
        ids = chat.encode(demonstrate(env.unwrapped, rng, manner)) + [chat.end_of_turn]
        request = Request(0, player.episode.ids, limits.turn_tokens, 0)
        player.answer(Completion(0, ids, [0.0] * len(ids), stopped=True), request, max_turns)
    return player.episode


class DemonstrationData(RolloutData):
    """Batches of demonstrations for supervised training; evaluation is that of `RolloutData`.

    Args:
        batches: batches an epoch.
        episodes_a_batch: demonstrated episodes a batch.
        manner: how the demonstrator thinks and acts.
        rollout: everything else is passed on to `RolloutData`.
    """

    def __init__(
        self,
        batches: int = 100,
        episodes_a_batch: int = 32,
        manner: Manner = Manner(),
        **rollout: Any,  # noqa: B008
    ) -> None:
        super().__init__(**rollout)
        self.batches, self.episodes_a_batch, self.manner = batches, episodes_a_batch, manner

    def train_dataloader(self) -> "Demonstrations":  # type: ignore[override]
        """Fresh demonstrations of levels that come only once."""
        return Demonstrations(self)

    def demonstrated_batch(self) -> Batch:
        """The next levels of the sequence, played by the demonstrator."""
        pool = self._pools.setdefault(repr(self.env), [])
        pool = pool or [self.env.make()]
        episodes = []
        for _ in range(self.episodes_a_batch):
            level, seed = np.random.SeedSequence([self.seed, self.cursor]).generate_state(2).tolist()
            self.cursor += 1
            task = Task(level % 2**31, 0, seed)
            assert self._chat is not None
            episodes.append(play_demonstration(pool[0], task, self._chat, self.limits, self.max_turns, self.manner))
        self.episodes = episodes
        return collate(episodes)


class Demonstrations:
    """A sized iterable of batches of demonstrations."""

    def __init__(self, data: DemonstrationData) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.batches

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(len(self)):
            yield self.data.demonstrated_batch()
