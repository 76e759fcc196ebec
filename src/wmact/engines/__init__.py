"""Generators for rollouts. Importing this imports neither vllm nor transformers; ``start`` does."""

from .base import Completion, Engine, Request, generate
from .transformers import TransformersEngine

__all__ = ["Completion", "Engine", "Request", "TransformersEngine", "generate"]
