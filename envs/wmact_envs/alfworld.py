"""ALFWorld: household tasks in a text world, played by the real engine, in a process of its own.

The engine and its games come with the extra `alfworld`; docs/alfworld.md says what they are. Which game is level n, and
how games are composed where the official ones have not been downloaded, is a matter of `alfworld_games.py`.

Reward is 1 when the task is done and 0 for anything else. An episode that is not done after `max_steps` is truncated.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import gymnasium
from gymnasium.error import DependencyNotInstalled, ResetNeeded

from . import alfworld_games as games
from .text import ENDLESS, AnyText, level_option
from .workers import Worker

ENGINE = f"{__package__}.alfworld_engine"
SECONDS = 60.0
"""The longest that the engine may take for an answer: a start takes it about half of one, a step milliseconds."""
NOTHING_HAPPENS = "Nothing happens."
"""What the engine says to a command that it does not know, or not here."""
DATA = ("auto", "official", "composed")
RULES = """\
You are in a house and have a task to do. What you see around you is told after each of your commands. Everything has a
number, as in "cabinet 2". The commands are:
go to X: walk up to a receptacle. Only there can you see what is in or on it, and use it.
open X, close X: a receptacle that has a door or a lid; what is in a closed one cannot be seen or taken.
take X from Y, move X to Y: pick up a thing, or put it in or on a receptacle. You can carry one thing at a time.
clean X with Y, heat X with Y, cool X with Y: what you carry, with a sinkbasin, a microwave or a fridge.
use X: switch a lamp on or off.
examine X, look, inventory, help: these change nothing.
A command that is not known, or cannot be carried out where you are, is answered with "Nothing happens."
"""
OLD_GAMES = "In some of these games it is put X in/on Y in place of move X to Y.\n"

MOST_PREPARED = 1024  # games that are kept, of about 40 kB: the samples of a group play the same


class ALFWorldEnv(gymnasium.Env[str, str]):
    """One house and one task at a time; a command a `step`.

    `info` of `reset` and `step` holds
        level: int, the number of the game within its split;
        level_id: str, sha256 of the game;
        game: str, its name: task type, target, destination, room, trial;
        task_type, category: str, one of `alfworld_games.TASK_TYPES`;
        optimal_length: int, commands of the shortest plan that there is for the task's usual order of doing things;
        admissible: tuple[str, ...], every command that can be carried out now;
        feedback: str, what the engine said, without what the observation adds;
    and of `step` also
        valid: bool, the command could be carried out;
        effective: bool, a fact of the world changed, other than that something was looked at;
        success: bool, the task is done.

    Raises:
        DependencyNotInstalled: the extra is missing.
        ValueError: a setting that there is not, or official games that there are not.

    Args:
        split: train, valid_seen (rooms of training, tasks that are not) or valid_unseen (other rooms).
        data: "official" games, "composed" ones, or "auto": official where they have been downloaded.
        task_types: those that are played.
        history: how many of the last observations, with the commands given then, an observation repeats. A rollout
            keeps the whole conversation anyway.
        admissible: end each observation with the list of commands that can be carried out.
        max_steps: commands after which an episode is truncated, valid or not.
        search: `solution` looks for things as an agent has to, in the places that can hold them, in place of knowing
            where they are. Who imitates one that knows learns to take what is not there.
        num_games: play the first so many of the split; null: all. A game that comes again starts five times as fast.
        render_mode: None or "ansi".
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}
    action_names: tuple[str, ...] = ()
    example_actions = ("go to cabinet 2",)
    one_action = True

    def __init__(
        self,
        split: str = "train",
        data: str = "auto",
        task_types: Sequence[str] = games.TASK_TYPES,
        history: int = 0,
        admissible: bool = False,
        max_steps: int = 50,
        search: bool = False,
        num_games: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        _require("split", split, games.SPLITS)
        _require("data", data, DATA)
        if isinstance(task_types, str) or not task_types:
            raise ValueError(f"task_types={task_types!r}: give a list of {', '.join(games.TASK_TYPES)}")
        for task_type in task_types:
            _require("task_types", task_type, games.TASK_TYPES)
        if history < 0 or max_steps < 1:
            raise ValueError(f"history={history}, max_steps={max_steps}: at least 0 and 1")
        if num_games is not None and num_games < 1:
            raise ValueError(f"num_games={num_games}: at least 1, or null for all")
        if render_mode is not None:
            _require("render_mode", render_mode, self.metadata["render_modes"])
        missing = [name for name in ("alfworld", "textworld", "fast_downward") if not importlib.util.find_spec(name)]
        if missing:
            raise DependencyNotInstalled(f"{missing[0]} is not installed: pip install -e '.[alfworld]'")
        self.split, self.task_types = split, tuple(task_types)
        self.history, self.admissible, self.max_steps, self.render_mode = history, admissible, max_steps, render_mode
        self.search = search
        root = games.official_root() if data != "composed" else None
        if data == "official" and root is None:
            raise ValueError("data='official': no games in $ALFWORLD_DATA/json_2.1.1; docs/alfworld.md says where from")
        self.data = "official" if root else "composed"
        self._files = games.official_games(root, split, self.task_types)[:num_games] if root else ()
        self.num_levels = len(self._files) or num_games
        self.rules = RULES + (OLD_GAMES if root else "")
        self.observation_space = self.action_space = AnyText()
        self._worker = Worker(ENGINE)
        self._running = False
        self._past: list[tuple[str, str]] = []  # feedback and the command given then, of every step
        self._feedback = self._task = ""
        self._admissible: tuple[str, ...] = ()
        self._level_info: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a game: number `options["level"]` of the split, or one drawn with the environment's own generator.

        Raises:
            ValueError: an option that is unknown or not an integer.
            IndexError: the split has no level of that number.
            workers.WorkerFailed: the engine failed. The next reset starts it anew.
        """
        number = level_option(options or {}, self.split, self.num_levels)
        super().reset(seed=seed)
        if number is None:
            number = int(self.np_random.integers(self.num_levels or ENDLESS))
        source = str(self._files[number]) if self._files else (self.split, number, self.task_types)
        self._running = False
        start = self._worker.ask("start", _prepared(os.getpid(), source), seconds=SECONDS)
        self._past, self._running = [], True
        self._hear(start.scene)
        self._task = (re.findall(r"Your task is to: (.*)", self._feedback) or [""])[-1]
        self._level_info = {
            "level": number,
            "level_id": start.level_id,
            "game": start.name,
            "task_type": start.task_type,
            "category": start.task_type,
            "optimal_length": start.length,
        }
        return self.observe(), self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Give one command; return observation, reward, terminated, truncated and info.

        Raises:
            TypeError: the action is not a string. Any string is accepted.
            ResetNeeded: the episode has ended, or none was started.
            workers.WorkerFailed: the engine failed, and with it this episode.
        """
        if not isinstance(action, str):
            raise TypeError(f"an action is a str, not {type(action).__name__}: give a command such as 'look'")
        if not self._running:
            raise ResetNeeded("no episode is running (ended, or never started): call reset() before step()")
        command, before = action.strip(), self._feedback
        valid, effective, success = command in self._admissible, False, False
        if valid:
            self._running = False
            scene = self._worker.ask("act", command, seconds=SECONDS)
            self._running = not scene.won
            self._hear(scene)
            effective, success = scene.effective, scene.won
        else:  # as the engine answers, without asking it
            self._feedback = NOTHING_HAPPENS
        self._past.append((before, command))
        truncated = not success and len(self._past) >= self.max_steps
        self._running = self._running and not truncated
        info = self._info() | {"valid": valid, "effective": effective, "success": success}
        return self.observe(), float(success), success, truncated, info

    def solution(self) -> list[str] | None:
        """Return commands that do the task from here, [] when it is done, or None if there is no plan.

        It knows where everything is. With `search` it does not, and the commands may lead to the next look only: ask
        again when they are carried out.

        Raises:
            ResetNeeded: no episode was started.
            workers.WorkerFailed: the engine failed.
        """
        if not self._level_info or not self._worker.running:
            raise ResetNeeded("no episode was started: call reset() before solution()")
        plan: list[str] | None = self._worker.ask("plan", self.search, seconds=SECONDS)
        return plan

    def task(self) -> str:
        """Return what is to be done, in the game's own words."""
        return self._task

    def observe(self) -> str:
        """Tell what the engine said last, with the history and the commands that were asked for."""
        told = self._feedback
        if self.history and self._past:
            first = max(0, len(self._past) - self.history)
            pairs = [
                f"[Observation {number}: '{feedback}', Action {number}: '{command}']"
                for number, (feedback, command) in enumerate(self._past[first:], start=first + 1)
            ]
            told = (
                f"Your task is to: {self._task}\nYou have taken {len(self._past)} steps. The last of them:\n"
                + "\n".join(pairs)
                + f"\nThe current observation: {told}"
            )
        if self.admissible:
            told += f"\nAdmissible actions: {'; '.join(self._admissible)}"
        return told

    def render(self) -> str | None:  # type: ignore[override]
        """Return the observation, with render_mode="ansi"."""
        return self.observe() if self.render_mode == "ansi" else None

    def close(self) -> None:
        """End the engine's process."""
        self._worker.close()
        self._running = False

    def _hear(self, scene: Any) -> None:
        self._feedback, self._admissible = scene.feedback.strip(), scene.admissible

    def _info(self) -> dict[str, Any]:
        return self._level_info | {"admissible": self._admissible, "feedback": self._feedback}


@functools.lru_cache(maxsize=MOST_PREPARED)
def _prepared(process: int, source: str | tuple[str, int, tuple[str, ...]]) -> bytes:
    """A game that is ready to start, for all environments of this process."""
    prepared: bytes = _preparer(process).ask("prepare", source, seconds=SECONDS)
    return prepared


@functools.cache
def _preparer(process: int) -> Worker:
    """One worker for all environments: it needs much memory, and resets come one after the other."""
    return Worker(ENGINE)


def _require(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r}: use one of {', '.join(known)}")
