"""Imperfect demonstrations for the warm start: an explorer that loses patience thinks aloud and acts.

A thought simulates moves: where am I, where does this action take me, or does nothing come of it ("(none)"). The
explorer goes into what it has not tried yet, sometimes into a wall or the wrong way, and turns back from dead ends;
where there is no way back it says "stuck" and begins again. Now and then it claims something false and corrects it
("no"). It could find any goal by thought alone, but it seldom has the patience: most thoughts stop after a few moves,
and it acts on what it has. So a model learns from it *how to simulate*, which is right nearly always, and a habit of
thinking too little, which is for reinforcement to break.

Nothing here knows a particular environment: the environment's own copy is the simulator, and its words tell the state.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from wmact.chat import Chat
from wmact.collate import collate
from wmact.data import EnvSpec, RolloutData
from wmact.engines import Completion, Request
from wmact.processes import share, together
from wmact.rollout import Limits, Player, Task
from wmact.types import Batch, Episode, RolloutInterrupted
from wmact.world_model import BLOCKED, RETRACTED, STUCK


@dataclass(frozen=True)
class Manner:
    """How a demonstrator thinks and acts. Probabilities unless said otherwise.

    Args:
        patience: share of thoughts that go on until the level is solved in thought.
        short_mean: mean number of simulated moves of all other thoughts.
        insight: chance that a move is an optimal one.
        memory: chance that any other move is chosen among the actions not tried yet from where it stands.
        notice: chance that any other move is chosen among the actions that change something.
        retreat: chance that a thought that has spoilt the level, as far as can be seen without a search, begins again.
        slip: chance that a simulated move is first told wrongly and then corrected; 0 shows no reflection.
        careless: chance that a random action that turns out to be blocked stands before an action of the plan.
        impulse: chance that one or two random actions, foreseen by no thought, follow the plan, as they always do if it
            is empty. Without them a model learns to believe that it is where it meant to go, instead of reading where
            it is.
        longest: most simulated moves of a thought.
    """

    patience: float = 0.07
    short_mean: float = 2.0
    insight: float = 0.25
    memory: float = 0.9
    notice: float = 0.8
    retreat: float = 0.8
    slip: float = 0.02
    careless: float = 0.2
    impulse: float = 0.3
    longest: int = 40


def demonstrate(env: Any, rng: np.random.Generator, manner: Manner) -> str:
    """Return one reply for the environment's current state: a thought, and an action set that follows from it.

    Args:
        env: a TextEnv (unwrapped); it is not changed.
    """
    patient = rng.random() < manner.patience
    moves = manner.longest if patient else min(manner.longest, int(rng.geometric(1 / manner.short_mean)))
    simulator = copy.copy(env)
    thought = [simulator.place()]
    tried: dict[Any, list[str]] = {}  # state → actions taken from it in thought, the last one last
    for _ in range(moves):
        before, before_place = simulator.state, simulator.place()
        action = choose(simulator, tried.setdefault(before, []), rng, manner)
        _, _, terminated, _, info = simulator.step(action)
        outcome = simulator.place() if info["effective"] else BLOCKED
        thought.append(action)
        if rng.random() < manner.slip:
            thought += [before_place if outcome == BLOCKED else BLOCKED, RETRACTED]
        thought.append(outcome)
        tried[before].append(action)
        if terminated:
            break
        if info["deadlock"] and rng.random() < manner.retreat:
            simulator = copy.copy(env)
            thought += [STUCK, simulator.place()]
    plan = []
    actor = copy.copy(env)
    while actor.state != simulator.state:  # following the last exits leaves out every detour of the thought
        if rng.random() < manner.careless:
            action = str(rng.choice(env.action_names))
            if not copy.copy(actor).step(action)[-1]["effective"]:
                plan += [action, BLOCKED]
        action = next(a for a in reversed(tried[actor.state]) if copy.copy(actor).step(a)[-1]["effective"])
        actor.step(action)
        plan += [action, actor.place()]
    if not plan or rng.random() < manner.impulse:
        plan += rng.choice(env.action_names, size=rng.integers(1, 3)).tolist()
    return f"<think> {' '.join(thought)} </think> <action> {' '.join(plan)} </action>"


def choose(simulator: Any, tried: list[str], rng: np.random.Generator, manner: Manner) -> str:
    """Return the explorer's next action from the simulator's state, where `tried` are those it took before."""
    if rng.random() < manner.insight and (solution := simulator.solution()):
        return str(solution[0])
    options = list(simulator.action_names)
    if rng.random() < manner.notice:
        options = [a for a in options if copy.copy(simulator).step(a)[-1]["effective"]] or options
    if rng.random() < manner.memory:
        options = [a for a in options if a not in tried] or options
    return str(rng.choice(options))


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


@dataclass(frozen=True)
class World:
    """An environment that is demonstrated, and how.

    Args:
        env: the environment.
        manner: how the demonstrator thinks and acts in it.
    """

    env: EnvSpec
    manner: Manner = Manner()


class DemonstrationData(RolloutData):
    """Batches of demonstrations for supervised training; evaluation is that of `RolloutData`.

    Args:
        worlds: what is demonstrated, by name; every batch has episodes of each in turn.
        batches: batches an epoch.
        episodes_a_batch: demonstrated episodes a batch, of all processes together.
        rollout: everything else is passed on to `RolloutData`.
    """

    def __init__(
        self,
        worlds: dict[str, World],
        batches: int = 100,
        episodes_a_batch: int = 32,
        **rollout: Any,
    ) -> None:
        if not worlds:
            raise ValueError("data.worlds={}: give at least one environment to demonstrate")
        super().__init__(env=next(iter(worlds.values())).env, **rollout)
        self.worlds, self.batches, self.episodes_a_batch = worlds, batches, episodes_a_batch

    def setup(self, stage: str) -> None:
        """Check the demonstrated environments too."""
        super().setup(stage)
        for world in self.worlds.values():
            world.env.make().close()

    def train_dataloader(self) -> "Demonstrations":  # type: ignore[override]
        """Fresh demonstrations of levels that come only once."""
        self._require_a_share("episodes_a_batch", self.episodes_a_batch)
        return Demonstrations(self)

    def demonstrated_batch(self) -> Batch:
        """The next levels of the sequence, played by the demonstrator."""
        assert self._chat is not None
        worlds, episodes = list(self.worlds.values()), []
        first, self.cursor = self.cursor, self.cursor + self.episodes_a_batch
        with together():
            for number in share(range(first, self.cursor)):
                if self._told_to_stop():
                    raise RolloutInterrupted
                world = worlds[number % len(worlds)]
                (env,) = self._pool(world.env, 1)[:1]
                level, seed = np.random.SeedSequence([self.seed, number]).generate_state(2).tolist()
                level %= getattr(env.unwrapped, "num_levels", None) or 2**31
                turns = 1 + seed % self.max_turns  # of all lengths: a board told again and again teaches little
                task = Task(level, 0, seed)
                episodes.append(play_demonstration(env, task, self._chat, self.limits, turns, world.manner))
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
