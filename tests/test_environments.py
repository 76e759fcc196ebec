"""Environments that stay open, and those that cannot be closed."""

import time
from typing import Any

import pytest

import tiny_worlds
from wmact.environments import EnvSpec, Pools

DOORS = EnvSpec("tiny_worlds:tiny/Doors-v0")


def test_an_id_without_a_module_is_ours() -> None:
    maze, same = (EnvSpec(name, {"layout": "cells"}).make() for name in ("wmact/Maze-v0", "wmact_envs:wmact/Maze-v0"))
    assert maze.reset(seed=1)[0] == same.reset(seed=1)[0]


def test_a_misspelt_argument_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"'siez'.*class: size, loops, min_length, split, layout, render_mode\)$"):
        EnvSpec("wmact/Maze-v0", {"siez": 9}).make()
    with pytest.raises(ValueError, match=r"kwargs are arguments of the environment's class\)$"):
        EnvSpec("wmact/Nowhere-v0").make()


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_one_that_cannot_be_closed_hides_nothing_and_ends(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []

    def close(self: tiny_worlds.Doors) -> None:
        closed.append(self)
        if len(closed) == 1:
            if how == "fails":
                raise BrokenPipeError
            time.sleep(60)

    monkeypatch.setattr(tiny_worlds.Doors, "close", close)
    pools = Pools(step_seconds=0.3)
    assert len(pools.of(DOORS, 3)) == len(pools) == 3
    pools.close()
    assert len(closed) == 3  # the others too
    assert len(pools) == 0
