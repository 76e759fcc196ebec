"""Generators for rollouts. Importing this imports neither vllm nor transformers; ``start`` does."""

from .base import Completion, Dtype, Engine, EngineFailed, Request, generate
from .transformers import TransformersEngine
from .vllm import VLLMEngine

__all__ = ["Completion", "Dtype", "Engine", "EngineFailed", "Request", "TransformersEngine", "VLLMEngine", "generate"]
