"""The load that is measured: episodes of the maze experiment whose numbers of tokens depend on no weights.

Reply lengths are drawn from the seed of each request, and no token ends a reply. The ids of a reply are those that the
engine sampled, but what the environment is given to execute is a script's, so that the number of turns is fixed too.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import torch
from transformers.utils.logging import disable_progress_bar

from wmact.chat import Chat
from wmact.engines import Completion, Engine, Request
from wmact.models import load_tokenizer
from wmact.rollout import Limits, Task, play
from wmact.types import Episode, Turn

disable_progress_bar()

LIMITS = Limits(turn_tokens=160, episode_tokens=1024)  # as configs/maze.yaml has it
TURNS = 6
SAMPLES = 8
ACTIONS = ("up", "down", "left", "right")


class ScriptedChat(Chat):
    """Decodes a reply, and then tells the environment one to four moves that depend on the reply's length only."""

    def decode(self, ids: list[int]) -> str:
        """A text for the environment, at the cost of decoding the real one."""
        super().decode(ids)
        draw = random.Random(len(ids))
        moves = ", ".join(draw.choice(ACTIONS) for _ in range(draw.randint(1, 4)))
        return f"<think> still </think> <action> {moves} </action>"


class Prescribed:
    """An engine whose replies have lengths drawn from the requests' seeds, uniformly from `shortest` to `longest`."""

    def __init__(self, engine: Engine, shortest: int = 16, longest: int = 80) -> None:
        self.engine, self.shortest, self.longest = engine, shortest, longest
        self.submitted: list[Request] = []

    @property
    def max_model_len(self) -> int:
        """The engine's."""
        return self.engine.max_model_len

    def start(self, model: str | Path, *, stop_token_ids: Sequence[int] = (), temperature: float = 1.0) -> None:
        """Start the engine without stop tokens."""
        self.engine.start(model, stop_token_ids=(), temperature=temperature)

    def submit(self, request: Request) -> None:
        """Submit the request with its drawn length, and remember it."""
        length = random.Random(request.seed).randint(self.shortest, self.longest)
        request = request._replace(max_tokens=min(length, request.max_tokens))
        self.submitted.append(request)
        self.engine.submit(request)

    def step(self) -> list[Completion]:
        """The engine's, told as if a stop token had ended them."""
        return [completion._replace(stopped=True) for completion in self.engine.step()]

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """The engine's; and forget what was submitted."""
        self.submitted = []
        self.engine.load_weights(weights)

    def abort(self) -> None:
        """The engine's."""
        self.engine.abort()

    def sleep(self) -> None:
        """The engine's."""
        self.engine.sleep()

    def close(self) -> None:
        """The engine's."""
        self.engine.close()


@dataclass
class RandomEngine:
    """Writes random ids at once, for where the engine's work is not what is measured."""

    max_model_len: int = 1536
    vocabulary: int = 200

    def __post_init__(self) -> None:
        self.requests: list[Request] = []

    def start(self, model: str | Path, *, stop_token_ids: Sequence[int], temperature: float = 1.0) -> None:
        """Nothing to start."""

    def submit(self, request: Request) -> None:
        """Queue it."""
        self.requests.append(request)

    def step(self) -> list[Completion]:
        """Answer all that is queued."""
        requests, self.requests = self.requests, []
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Completion:
        ids = random.Random(request.seed).choices(range(6, self.vocabulary), k=request.max_tokens)
        return Completion(request.id, ids, [-5.0] * len(ids), False)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """There are none."""

    def abort(self) -> None:
        """Forget what is queued."""
        self.requests = []

    def sleep(self) -> None:
        """There is nothing to give back."""

    def close(self) -> None:
        """Nothing to close."""


def tasks(levels: int, samples: int = SAMPLES) -> list[Task]:
    """`samples` episodes of each of the first levels, each with a seed of its own."""
    return [Task(level, sample, 1000 * level + sample) for level in range(levels) for sample in range(samples)]


def make_envs(count: int) -> list[gymnasium.Env[str, str]]:
    """Mazes as in configs/maze.yaml."""
    make: Any = gymnasium.make
    return [make("wmact_envs:wmact/Maze-v0", layout="cells", disable_env_checker=True) for _ in range(count)]


def random_episodes(levels: int, model: str) -> list[Episode]:
    """Episodes played by `RandomEngine` in real mazes; a quarter of them are given a reward, so there is contrast."""
    chat, todo = ScriptedChat(load_tokenizer(model)), tasks(levels)
    engine: Engine = Prescribed(RandomEngine())
    episodes = play(make_envs(len(todo)), todo, engine, chat, max_turns=TURNS, limits=LIMITS, tell_rules=False)
    for episode in episodes[::4]:
        episode.turns[-1].reward = 1.0
    return episodes


def predictions(levels: int, prompt: int = 360, reply: int = 32, vocabulary: int = 200) -> list[Episode]:
    """Episodes of one turn of random ids, as RWML's are: the samples of a level share their prompt, most of them."""
    draw = random.Random(0)
    played = []
    for level in range(levels):
        told = draw.choices(range(6, vocabulary), k=prompt)
        for sample in range(SAMPLES):
            ids = told + draw.choices(range(6, vocabulary), k=reply)
            turn = Turn(prompt, prompt + reply, "", "valid", reward=float(sample % 4 == 0))
            played.append(
                Episode("predictions", level, "", sample, 0, 0, ids=ids, logprobs=[-5.0] * len(ids), turns=[turn])
            )
    return played
