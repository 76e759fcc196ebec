"""Environments beside those of other packages: steps a second, and the time that a new level takes.

Every ratio is to a yardstick that runs in turn with ours:
- steps: Maze beside gymnasium's FrozenLake and Taxi beside gymnasium's Taxi, which answer with a number; Sokoban beside
  gym-sokoban, which answers with a picture, here its smallest, of a pixel a cell. Ours answer with the whole board as
  text, in either layout. "rules" is the pure function underneath, which answers with the next state.
- levels: a reset to a level that was not there before. Ours is drawn, assigned to its split, solved and told.
  FrozenLake's is a random map with a path, and an environment that holds it; gym-sokoban's a room played backwards and
  painted small; reasoning-gym's a puzzle that is drawn and solved. Taxi has no new levels.

gym-sokoban and reasoning-gym are left out where they are not installed. What matters is the share of a rollout, which
rollout.py tells.
"""

import importlib
import io
import itertools
import random
import statistics
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from typing import Any

import compare
import gymnasium
import numpy as np
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv, generate_random_map

from wmact_envs import maze, sokoban, sokoban_levels, taxi

OPTIONAL = {
    "gym-sokoban==0.0.6": ("gym_sokoban.envs.sokoban_env", "SokobanEnv"),
    "reasoning-gym==0.1.25": ("reasoning_gym.games.contrib.sokoban.src.generator", "generate"),
}
HARDEST = sokoban.HARD_1._replace(boxes=3)  # no preset, but the setting that other generators are slowest at
WALK = ("up", "right", "down", "down", "left", "up")  # into walls and holes now and then: every kind of step
Sides = dict[str, Callable[[], Any]]
Makers = dict[str, Callable[[int], Any]]


def installed() -> dict[str, Any]:
    """Import the optional yardsticks; return those that there are by the names of their packages."""
    found, missing = {}, {}
    for package, (module, name) in OPTIONAL.items():
        try:
            with redirect_stderr(io.StringIO()):  # gym announces there that it is unmaintained
                found[package.partition("=")[0]] = getattr(importlib.import_module(module), name)
        except Exception as error:  # packages of that age break in more ways than by being absent
            missing[package] = error
    if missing:
        why = ", ".join(f"{package.partition('=')[0]} ({error})" for package, error in missing.items())
        print(f"Left out: {why}. To compare with these too: pip install {' '.join(missing)}")
    return found


def make(name: str, **arguments: Any) -> Any:
    """The bare environment of an id."""
    return gymnasium.make(name, disable_env_checker=True, **arguments).unwrapped


# -------------------------------------------------------------------------------------------------------------- steps


def step_often(env: Any, actions: tuple[Any, ...], steps: int) -> None:
    """Walk, starting again at the start of the same level whenever an episode ends."""
    options = {"level": 0} if isinstance(actions[0], str) else None
    env.reset(seed=0, options=options)
    for i in range(steps):
        _, _, terminated, truncated, _ = env.step(actions[i % len(actions)])
        if terminated or truncated:
            env.reset(options=options)


def step_rules(act: Callable[[Any, str], Any], state: Any, actions: tuple[str, ...], steps: int) -> None:
    """Walk on whatever happens."""
    for i in range(steps):
        state = act(state, actions[i % len(actions)])


def step_room(env: Any, actions: tuple[int, ...], steps: int) -> None:
    """Walk in a room of gym-sokoban on whatever happens: its reset would make a new room."""
    for i in range(steps):
        env.step(actions[i % len(actions)], observation_mode="tiny_rgb_array")


def compare_steps(report: compare.Report, found: dict[str, Any]) -> None:
    """Time every environment of ours, told in both layouts and not at all, beside its yardstick."""
    steps = report.args.steps
    board, town = maze.level(maze.STANDARD, "train", 0), taxi.levels("train")[0]
    room = sokoban.level(sokoban.STANDARD, "train", 0).level
    lake: Sides = {"FrozenLake": partial(step_often, make("FrozenLake-v1"), (0, 3, 1, 2), steps)}
    cab: Sides = {"gymnasium's Taxi": partial(step_often, make("Taxi-v4"), tuple(range(6)), steps)}
    other: Sides = {}
    if "gym-sokoban" in found:
        peer = found["gym-sokoban"]((7, 7), num_boxes=2, reset=False)
        new_room(peer, 0)
        other["gym-sokoban 7×7"] = partial(step_room, peer, (1, 4, 2, 2, 3, 1), steps)  # the same walk
    for ids, yardsticks, walk, act, start in (
        (("Maze", "MazeHard"), lake, WALK, partial(maze.move, board.walls), board.start),
        (("Taxi", "TaxiRainy"), cab, taxi.ACTIONS, taxi.act, town),
        (("Sokoban", "SokobanHard1"), other, WALK, partial(sokoban_levels.move, room.walls), room.start),
    ):
        ours: Sides = {f"{ids[0]} rules": partial(step_rules, act, start, walk, steps)}
        for name, layout in itertools.product(ids, ("cells", "grid")):
            env = make(f"wmact_envs:wmact/{name}-v0", layout=layout)
            ours[f"{name} {layout}"] = partial(step_often, env, walk, steps)
        timings = compare.interleave(yardsticks | ours, report.args.pairs)
        for name, timed in timings.items():
            shares = [f"× {peer}: {compare.ratios(timings, peer, name)['cpu']}" for peer in yardsticks if peer != name]
            rate = compare.Spread.of([steps / timing.cpu for timing in timed])
            report.add(f"{name}: steps a second", rate, ", ".join(shares))


# ------------------------------------------------------------------------------------------------------------- levels


class Levels:
    """Makes new levels, some in every round, and keeps the processor time in milliseconds of each."""

    def __init__(self, new: Callable[[int], Any], count: int) -> None:
        self.new, self.count = new, count
        self.rounds: list[list[float]] = []

    def __call__(self) -> None:
        first = len(self.rounds) * self.count  # never the same again: levels may be cached
        times = [time.process_time()]
        for number in range(first, first + self.count):
            self.new(number)
            times.append(time.process_time())
        self.rounds.append([1000 * (end - start) for start, end in itertools.pairwise(times)])

    def medians(self) -> list[float]:
        """Of every round but the first, which warms up."""
        return [statistics.median(times) for times in self.rounds[1:]]

    def tail(self) -> float:
        """Longer than 99 of 100 levels took, those of the first round left out."""
        return float(np.quantile(list(itertools.chain(*self.rounds[1:])), 0.99))


def new_level(env: Any, number: int) -> None:
    """Ours."""
    env.reset(options={"level": number})


def new_lake(size: int, number: int) -> None:
    """A random map with a path, and an environment that holds it."""
    FrozenLakeEnv(desc=generate_random_map(size, seed=number)).reset(seed=0)


def new_room(env: Any, number: int) -> None:
    """One of gym-sokoban, which draws from the global generators, and prints when it starts over."""
    random.seed(number)
    np.random.seed(number)
    with redirect_stdout(io.StringIO()):
        env.reset(render_mode="tiny_rgb_array")


def new_puzzle(generate: Callable[..., Any], settings: sokoban.Settings, number: int) -> None:
    """One of reasoning-gym, whose sizes include the border as ours do."""
    height, width, boxes = settings[:3]
    generate(
        random.Random(number), min_w=width, max_w=width, min_h=height, max_h=height, min_boxes=boxes, max_boxes=boxes
    )


def compare_levels(report: compare.Report, what: str, new: Makers, count: int) -> None:
    """Time new levels of ours, whose name in `new` is empty, beside those of yardsticks."""
    sides = {f"{what}, {name}" if name else what: Levels(side, count) for name, side in new.items()}
    compare.interleave(dict(sides), report.args.pairs)
    ours = sides[what].medians()
    for name, side in sides.items():
        ratio = compare.Spread.of([theirs / mine for theirs, mine in zip(side.medians(), ours, strict=True)])
        report.add(f"{name}: ms a level", compare.Spread.of(side.medians()), "" if name == what else f"{ratio} × ours")
        report.add(f"{name}: ms that 99 % of levels stay below", side.tail())


def compare_presets(report: compare.Report, found: dict[str, Any]) -> None:
    """Time new levels of every preset beside those of its yardsticks."""
    for size in (maze.STANDARD.size, maze.HARD.size):
        mazes: Makers = {"": partial(new_level, maze.MazeEnv(size)), "FrozenLake": partial(new_lake, size)}
        compare_levels(report, f"Maze {size}×{size}", mazes, report.args.mazes)
    for settings in (sokoban.STANDARD, sokoban.HARD_1, sokoban.HARD_2, HARDEST):
        height, width, boxes = settings[:3]
        rooms: Makers = {"": partial(new_level, sokoban.SokobanEnv(*settings))}
        if "gym-sokoban" in found:
            room = found["gym-sokoban"]((height, width), num_boxes=boxes, reset=False)
            rooms["gym-sokoban"] = partial(new_room, room)
        if "reasoning-gym" in found:
            rooms["reasoning-gym"] = partial(new_puzzle, found["reasoning-gym"], settings)
        compare_levels(report, f"Sokoban {height}×{width}, {boxes} boxes", rooms, report.args.rooms)


def main() -> None:
    compare.LIBRARIES += tuple(package.partition("=")[0] for package in OPTIONAL)
    report = compare.Report(__doc__ or "", pairs=5, steps=20_000, mazes=300, rooms=30)
    found = installed()
    compare_steps(report, found)
    compare_presets(report, found)
    report.finish()


if __name__ == "__main__":
    main()
