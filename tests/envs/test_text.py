"""What every `TextEnv` of `wmact_envs` has to keep to, each in both layouts."""

import copy
from typing import Any

import gymnasium
import numpy as np
import pytest

import wmact_envs  # noqa: F401 (registers)

IDS = sorted(
    id
    for id, spec in gymnasium.registry.items()
    if str(spec.entry_point).startswith(("wmact_envs.maze:", "wmact_envs.sokoban:", "wmact_envs.taxi:"))
    and "Hard" not in id
)


@pytest.fixture(params=IDS)
def env(request: pytest.FixtureRequest) -> Any:
    return gymnasium.make(request.param, layout="cells", disable_env_checker=True).unwrapped


def walk(env: Any, levels: int = 5, steps: int = 30) -> Any:
    """Yield the environment at every state of random walks."""
    rng = np.random.default_rng(0)
    for level in range(levels):
        env.reset(seed=level, options={"level": level})
        yield env
        for action in rng.choice(env.action_names, size=steps):
            if env.step(str(action))[2]:
                break
            yield env


def test_all_are_here() -> None:
    names = ("Maze", "Sokoban", "SokobanOneBox", "Taxi", "TaxiFickle", "TaxiRainy")
    assert tuple(IDS) == tuple(f"wmact/{name}-v0" for name in names)


def test_a_place_says_all_of_the_state(env: Any) -> None:
    for at in walk(env):
        assert at.read_place(at.place()) == at.state
        assert all(word.startswith("(") and word.endswith(")") for word in at.place().split(" "))


def test_what_is_no_place(env: Any) -> None:
    for at in walk(env, levels=2, steps=5):
        place = at.place()
        for text in ("", " ", "(0,0) (0,0) (0,0)", "(99,99)", "(none)", f"{place} {place}", f" {place}", "nowhere"):
            assert at.read_place(text) is None


def test_a_copy_is_a_simulator(env: Any) -> None:
    for at in walk(env, levels=3, steps=10):
        before = (at.state, at.observe(), at.place())
        simulator = copy.copy(at)
        for action in env.action_names:
            if simulator.step(action)[2]:
                break
        assert (at.state, at.observe(), at.place()) == before


def test_a_state_that_is_set_is_the_state(env: Any) -> None:
    states = [at.state for at in walk(env, levels=1)]
    for state in states:
        simulator = copy.copy(env)
        simulator.state = state
        assert simulator.read_place(simulator.place()) == state
        assert isinstance(simulator.observe(), str)
