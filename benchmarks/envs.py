"""Mazes against gymnasium's FrozenLake: steps and resets a second.

FrozenLake answers with a number and keeps its map; a maze writes its whole observation as text at every step and draws
a new level, solved and hashed, at every reset. What matters is the share of a rollout, which rollout.py tells.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import compare
import gymnasium
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv, generate_random_map

STEPS, RESETS = 20_000, 300


def step_often(env: Any, actions: list[Any]) -> None:
    """Walk, starting again at the start of the same level whenever an episode ends."""
    options = {"level": 0} if isinstance(actions[0], str) else None
    env.reset(seed=0, options=options)
    for i in range(STEPS):
        _, _, terminated, truncated, _ = env.step(actions[i % len(actions)])
        if terminated or truncated:
            env.reset(options=options)


def reset_often(env: Any, told: bool) -> None:
    """A new level every time."""
    for level in range(RESETS):
        env.reset(seed=level, options={"level": level} if told else None)


def make_lakes() -> None:
    """What a new level costs there: a random map with a path, and an environment that holds it."""
    for seed in range(RESETS):
        FrozenLakeEnv(desc=generate_random_map(7, seed=seed)).reset(seed=0)


def main() -> None:
    report = compare.Report(__doc__ or "", pairs=5)
    lake = gymnasium.make("FrozenLake-v1", disable_env_checker=True).unwrapped
    # Into walls and holes now and then: every kind of step is among them.
    walk = ["up", "right", "down", "down", "left", "up"]
    steps: dict[str, Callable[[], None]] = {"FrozenLake": partial(step_often, lake, [0, 3, 1, 2])}
    resets: dict[str, Callable[[], None]] = {"FrozenLake": partial(reset_often, lake, False)}
    resets["FrozenLake, a new 7×7 map"] = make_lakes
    for layout in ("cells", "grid"):
        for size in ("Maze", "MazeHard"):
            env = gymnasium.make(f"wmact_envs:wmact/{size}-v0", layout=layout, disable_env_checker=True).unwrapped
            steps[f"{size} {layout}"] = partial(step_often, env, walk)
            resets[f"{size} {layout}"] = partial(reset_often, env, True)
    for what, count, sides in (("steps", STEPS, steps), ("resets", RESETS, resets)):
        timings = compare.interleave(sides, report.args.pairs)
        for name in sides:
            rate = compare.Spread.of([count / timing.cpu for timing in timings[name]])
            share = compare.ratios(timings, "FrozenLake", name)["cpu"]
            report.add(f"{name}: {what} a second", rate, "" if name == "FrozenLake" else f"× FrozenLake: {share}")
    report.finish()


if __name__ == "__main__":
    main()
