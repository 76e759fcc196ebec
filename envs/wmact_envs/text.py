"""The contract all text environments here share: what the agent is told, and what every reset and step reports."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Space, Text

from .splits import SPLITS

ENDLESS = 2**32
"""Level numbers are drawn below this where a split is generated and has no end."""


class AnyText(Space[str]):
    """Every text; gymnasium's own `Text` wants to know its characters, and takes letters and digits if it does not."""

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Return a text of up to eight letters."""
        return "".join(chr(97 + int(i)) for i in self.np_random.integers(26, size=self.np_random.integers(9)))

    def contains(self, x: Any) -> bool:
        """Whether it is a text."""
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        """It is not."""
        return False


class TextEnv(gymnasium.Env[str, str]):
    """A puzzle told and played in words: one primitive action a `step`, text in and text out.

    A subclass sets the attributes below and writes `_load`, `_act`, `_solved`, `observe`, `solution`, `place` and
    `read_place`. The base checks actions and options, draws level numbers and decides what was effective, so that this
    means the same in every environment.

    `info` of `reset` and `step` holds
        level: int, the number of the level within its split;
        level_id: str, sha256 of the level, equal for its symmetric copies;
        optimal_length: int, the least number of actions from the level's start;
    and of `step` also
        valid: bool, the action is one of `action_names`;
        effective: bool, the state after differs from the state before;
        success: bool, the puzzle is solved;
        deadlock: bool, the state after can be seen to be unsolvable. It ends no episode: an agent shall find out.

    A string that names no action is answered with the unchanged observation, reward 0 and valid = effective = False.
    `truncated` is always False: the turn budget belongs to the rollout.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    rules: str
    """The rules in words, with the meaning of every symbol of the observation."""
    action_names: tuple[str, ...]
    """Every action there is, as `step` wants it."""
    example_actions: tuple[str, ...]
    """A few actions for a worked example of the answer format; not a solution of anything."""
    num_levels: int | None = None
    """How many levels the split has; None: it is generated and endless."""
    state: Any
    """Everything that `step` can change, as one immutable value: replaced, never changed in place."""

    def __init__(self, observation_space: Text, split: str, render_mode: str | None) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: use one of {', '.join(SPLITS)}")
        modes = self.metadata["render_modes"]
        if render_mode is not None and render_mode not in modes:
            raise ValueError(f"render_mode={render_mode!r}: use None or one of {', '.join(modes)}")
        self.split = split
        self.render_mode = render_mode
        self.observation_space = observation_space
        self.action_space = Text(
            max_length=max(map(len, self.action_names)), charset=frozenset("".join(self.action_names))
        )
        self._level_info: dict[str, Any] = {}
        self._running = False

    def solution(self) -> list[str] | None:
        """Return optimal actions from the current state ([] when solved), or None if it cannot be solved any more."""
        raise NotImplementedError

    def observe(self) -> str:
        """Describe `state` to the agent."""
        raise NotImplementedError

    def place(self) -> str:
        """Tell `state` in the fewest words, as someone who simulates moves would note it.

        Every word is in parentheses, which make it a comment wherever it stands among actions.
        """
        raise NotImplementedError

    def read_place(self, text: str) -> Any | None:
        """Return the state that `place` tells so, its pieces separated by single spaces, or None if there is none."""
        raise NotImplementedError

    def _load(self, number: int) -> tuple[str, int]:
        """Set `state` to the start of level `number` of the split; return its level_id and optimal_length."""
        raise NotImplementedError

    def _act(self, action: str) -> float:
        """Replace `state` by what the known `action` makes of it; return the reward."""
        raise NotImplementedError

    def _solved(self) -> bool:
        """Tell whether `state` is solved."""
        raise NotImplementedError

    def _deadlocked(self) -> bool:
        """Tell whether `state` can be seen, without a search, to be unsolvable. False, as by default, says nothing."""
        return False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a level: number `options["level"]` of the split, or one drawn with the environment's own generator.

        Raises:
            ValueError: an option that is unknown or not an integer.
            IndexError: the split has no level of that number.
        """
        number = level_option(options or {}, self.split, self.num_levels)
        super().reset(seed=seed)
        if number is None:
            number = int(self.np_random.integers(self.num_levels or ENDLESS))
        level_id, optimal_length = self._load(number)
        self._level_info = {"level": number, "level_id": level_id, "optimal_length": optimal_length}
        self._running = True
        return self.observe(), dict(self._level_info)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one action; return observation, reward, terminated, truncated (always False) and info.

        Raises:
            TypeError: the action is not a string. Any string is accepted.
            ResetNeeded: the episode has ended, or none was started.
        """
        if not isinstance(action, str):
            raise TypeError(f"an action is a str, not {type(action).__name__}: give one of {self.action_names}")
        if not self._running:
            raise ResetNeeded("no episode is running (solved, or never started): call reset() before step()")
        before = self.state
        valid = action in self.action_names
        reward = self._act(action) if valid else 0.0
        success = self._solved()
        self._running = not success
        info = self._level_info | {
            "valid": valid,
            "effective": bool(self.state != before),
            "success": success,
            "deadlock": self._deadlocked(),
        }
        return self.observe(), reward, success, False, info


def level_option(options: dict[str, Any], split: str, num_levels: int | None) -> int | None:
    """Return the level number that the options of a reset ask for, or None if they leave it open.

    Raises:
        ValueError: an option that is unknown or not an integer.
        IndexError: the split has no level of that number.
    """
    for key in options:
        if key != "level":
            raise ValueError(f"unknown reset option {key!r}: the only option is 'level'")
    if "level" not in options:
        return None
    number = options["level"]
    if not isinstance(number, int | np.integer) or isinstance(number, bool):
        raise ValueError(f"reset option level={number!r}: a level number is an int")
    if number < 0 or (num_levels is not None and number >= num_levels):
        count = "endless" if num_levels is None else num_levels
        raise IndexError(f"level {number} of split {split!r}: levels count from 0, and there are {count}")
    return int(number)
