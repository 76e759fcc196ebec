"""RWML (arXiv 2602.05842): learn to predict next states by reinforcement, rewarded in an embedding space.

The order of use is collect → calibrate → filter → train (`PredictionData`) → policy RL; docs/rwml.md goes through it.
"""

from gymnasium.envs.registration import register

from wmact.rwml.data import NextStateData, PredictionData
from wmact.rwml.distances import Exact, JSONFields, RougeL, SentenceEmbedding, ServedEmbedding
from wmact.rwml.rewards import All, ByKind, Judge, SameState, Within

register(id="wmact/Prediction-v0", entry_point="wmact.rwml.env:PredictionEnv")
register(id="wmact/Semantic-v0", entry_point="wmact.rwml.efficacy:semantic")

__all__ = [
    "All",
    "ByKind",
    "Exact",
    "JSONFields",
    "Judge",
    "NextStateData",
    "PredictionData",
    "RougeL",
    "SameState",
    "SentenceEmbedding",
    "ServedEmbedding",
    "Within",
]
