"""Which actions are effective where only texts are compared."""

import copy
from collections.abc import Sequence

import gymnasium
import pytest

from wmact.rwml.efficacy import SemanticEfficacy


class ByLength:
    """The distance of texts is that of their lengths."""

    def __call__(self, predicted: Sequence[str], observed: Sequence[str]) -> list[float]:
        return [float(abs(len(a) - len(b))) for a, b in zip(predicted, observed, strict=True)]


class Told(gymnasium.Env[str, str]):
    """Says what it is told, and claims that everything has an effect."""

    def reset(self, *, seed=None, options=None):
        return "a", {}

    def step(self, action):
        return action, 0.0, False, False, {"effective": True, "kept": 1}


def test_an_action_is_effective_if_the_observation_moves_by_more_than_the_threshold():
    env = SemanticEfficacy(Told(), ByLength(), 1.0)
    env.reset()
    found = [env.step(text)[-1] for text in ("ab", "abcd", "abcd", "a")]
    assert found == [{"effective": effective, "kept": 1} for effective in (False, True, False, True)]
    with pytest.raises(ValueError, match="threshold=-1"):
        SemanticEfficacy(Told(), ByLength(), -1)


def test_what_an_observation_adds_is_not_looked_at():
    class Listing(Told):
        def reset(self, *, seed=None, options=None):
            return "a, and you can go", {"feedback": "a"}

        def step(self, action):
            return f"{action}, after all", 0.0, False, False, {"feedback": action}

    env = SemanticEfficacy(Listing(), ByLength(), 0.0)
    env.reset()
    assert [env.step(text)[-1]["effective"] for text in ("b", "bc", "bd")] == [False, True, False]


def test_it_is_an_environment_of_the_configuration():
    env = gymnasium.make(
        "wmact.rwml:wmact/Semantic-v0", disable_env_checker=True, env="wmact_envs:wmact/Maze-v0", threshold=0.0, size=5
    )
    env.reset(seed=0, options={"level": 0})
    truth = [copy.copy(env.unwrapped).step(action)[-1]["effective"] for action in env.unwrapped.action_names]
    assert set(truth) == {True, False}
    for action, effective in zip(env.unwrapped.action_names, truth, strict=True):
        env.reset(seed=0, options={"level": 0})
        assert env.step(action)[-1]["effective"] is effective  # any change of the board is a change of its embedding
