"""Which actions are effective where states are text: those whose observation is far from the one before.

WMAct rescales rewards by the share of effective actions (arXiv 2511.23476), and says an action is effective if the
state changes. An environment of grids knows its state; of one that only speaks, the distance of what is observed before
and after has to stand for it. `python -m wmact calibrate` compares the rule with an engine that knows (`effective` of a
file of triplets) and tells its precision and recall.

    env: {id: "wmact.rwml:wmact/Semantic-v0", kwargs: {env: "wmact_envs:wmact/ALFWorld-v0", threshold: 0.1}}

Other kwargs, such as split, are the environment's own.
"""

from functools import lru_cache
from typing import Any

import gymnasium

from wmact.rwml.distances import BUNDLED, Distance, SentenceEmbedding
from wmact.rwml.triplets import feedback


class SemanticEfficacy(gymnasium.Wrapper[str, str, str, str]):
    """Says of each action whether what the world says moved by more than a threshold; the engine is not asked.

    Args:
        env: the environment. What its observations add around `info["feedback"]`, such as a history, is not looked at.
        distance: of what the world says before and after.
        threshold: an action is effective above it.
    """

    def __init__(self, env: gymnasium.Env[str, str], distance: Distance, threshold: float) -> None:
        super().__init__(env)
        if threshold < 0:
            raise ValueError(f"threshold={threshold}: must not be negative")
        self.distance, self.threshold = distance, threshold
        self._before = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a level."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._before = feedback(observation, info)
        return observation, info

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        """Take an action."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        said = feedback(observation, info)
        (moved,) = self.distance([self._before], [said])
        self._before = said
        return observation, reward, terminated, truncated, info | {"effective": moved > self.threshold}


def semantic(env: str, threshold: float, embedder: str = BUNDLED, **kwargs: Any) -> SemanticEfficacy:
    """Make an environment whose efficacy is that of sentence embeddings.

    Args:
        env: gymnasium id with its module before a colon.
        threshold: an action is effective above this cosine distance.
        embedder: as `SentenceEmbedding.model`.
        kwargs: arguments of the environment.
    """
    inner = gymnasium.make(env, disable_env_checker=True, **kwargs)
    return SemanticEfficacy(inner, _shared(embedder), threshold)


@lru_cache(maxsize=2)
def _shared(embedder: str) -> SentenceEmbedding:
    """One model for all environments of a process."""
    return SentenceEmbedding(embedder)
