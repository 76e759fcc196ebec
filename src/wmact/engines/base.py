"""What the rollout asks of a text generator: token ids in, token ids and their logprobs out.

An engine holds its own copy of the policy and advances all submitted requests together, one ``step`` at a time. Whoever
plays the episodes submits the next turn of an episode the moment the last one came back, so that no episode waits for
the slowest of its batch.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""Of weights and arithmetic; "auto" is the checkpoint's."""


class EngineFailed(RuntimeError):
    """The engine broke down and answers no more; after ``close`` and ``start`` it is as new."""


class Request(NamedTuple):
    """One continuation to sample."""

    id: int  # unique among the requests in flight
    prompt_ids: list[int]  # at least one
    max_tokens: int  # len(prompt_ids) + max_tokens <= Engine.max_model_len
    seed: int  # 0 <= seed < 2**63; the continuation depends on the prompt, the weights and this only


class Completion(NamedTuple):
    """What was sampled for the request of the same id."""

    id: int
    token_ids: list[int]  # 1…max_tokens ids, the stop token included
    logprobs: list[float]  # nats, one a token, of the distribution it was sampled from (temperature applied)
    stopped: bool  # True: the last id is a stop token; False: ran out of max_tokens


class Engine(Protocol):
    """``start`` first, then any order; every engine agrees with the forward pass of transformers up to rounding."""

    def start(self, model: str | Path, *, stop_token_ids: Sequence[int], temperature: float = 1.0) -> None:
        """Load ``model``, a folder or a hub id.

        When it is loaded already, only the other two arguments change, for requests submitted from now on.

        Args:
            model: Folder or hub id in Hugging Face format.
            stop_token_ids: A continuation ends with the first of these; nothing else ends it, not even the end token of
                the model's own generation config.
            temperature: Logits are divided by it. 0 takes the likeliest token and reports its logprob at temperature 1.

        Raises:
            RuntimeError: Another model is loaded; ``close`` first.
        """

    def submit(self, request: Request) -> None:
        """Queue a request; ValueError if it does not fit the context or its id is in flight."""

    def step(self) -> list[Completion]:
        """Advance every request by about one token; return what has finished, often nothing.

        Raises:
            EngineFailed: it broke down, now or before.
        """

    def abort(self) -> None:
        """Forget every request in flight."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights, and drop whatever was cached under the old ones.

        Args:
            weights: ``named_parameters()`` of the Hugging Face model, of any dtype and device. A tied copy such as
                ``lm_head.weight`` may be present and is ignored.

        Raises:
            ValueError: A name is missing or unknown or a shape is wrong; the old weights are still there.
            RuntimeError: Requests are in flight; they would mix two policies.
        """

    def sleep(self) -> None:
        """Give back what memory it can until ``load_weights``; nothing may be submitted before. Harmless when closed.

        Raises:
            RuntimeError: Requests are in flight.
        """

    def close(self) -> None:
        """Give everything back. Harmless when closed; ``start`` works again afterwards."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of prompt and continuation together; known once started."""


def generate(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Sample ``requests`` to the end, in their order. Nothing else may be in flight."""
    done: dict[int, Completion] = {}
    for request in requests:
        engine.submit(request)
    while len(done) < len(requests):
        done |= {completion.id: completion for completion in engine.step()}
    return [done[request.id] for request in requests]


def check_sizes(max_num_seqs: int, max_model_len: int | None) -> None:
    """Raise ValueError for an engine that could not serve a single request."""
    if max_num_seqs < 1:
        raise ValueError(f"max_num_seqs={max_num_seqs} must be at least 1")
    if max_model_len is not None and max_model_len < 2:
        raise ValueError(f"max_model_len={max_model_len} must be at least 2, a prompt and a continuation")


def context_length(config: Any, max_model_len: int | None) -> int:
    """``max_model_len``, or the limit of a model with this transformers ``config``; ValueError if it is over that."""
    limit: int = config.get_text_config().max_position_embeddings
    if max_model_len is not None and max_model_len > limit:
        raise ValueError(f"max_model_len={max_model_len} is over the model's own limit of {limit}")
    return max_model_len or limit


def require_idle(in_flight: int) -> None:
    """Raise RuntimeError if so many requests, more than none, are in flight."""
    if in_flight:
        raise RuntimeError(f"{in_flight} requests are in flight; abort() them first")


def check_request(request: Request, max_model_len: int, vocab_size: int, in_flight: Iterable[int]) -> None:
    """Raise ValueError for a request that no engine could serve."""
    room = max(max_model_len - len(request.prompt_ids), 0)
    if request.id in in_flight:
        raise ValueError(f"request {request.id} is already in flight")
    if not request.prompt_ids or min(request.prompt_ids) < 0 or max(request.prompt_ids) >= vocab_size:
        raise ValueError(f"request {request.id}: prompt_ids must be one or more ids in 0…{vocab_size - 1}")
    if not 1 <= request.max_tokens <= room:
        raise ValueError(
            f"request {request.id}: max_tokens={request.max_tokens} must be 1…{room}, what a prompt of "
            f"{len(request.prompt_ids)} tokens leaves of max_model_len={max_model_len}"
        )
    if not 0 <= request.seed < 2**63:
        raise ValueError(f"request {request.id}: seed={request.seed} must be in 0…2**63-1")


def check_sampling(stop_token_ids: Sequence[int], temperature: float, vocab_size: int) -> None:
    """Raise ValueError for settings that cannot be sampled with."""
    if temperature != 0 and not 0.01 <= temperature < float("inf"):  # vLLM would raise a lower one to 0.01
        raise ValueError(f"temperature={temperature} must be 0 or from 0.01 up")
    if wrong := [token for token in stop_token_ids if not 0 <= token < vocab_size]:
        raise ValueError(f"stop_token_ids {wrong} are not in 0…{vocab_size - 1}")


def match_weights(
    weights: Iterable[tuple[str, torch.Tensor]], model: torch.nn.Module
) -> Iterator[tuple[str, torch.Tensor]]:
    """The ``weights`` that are parameters of ``model``, each exactly once.

    Tied copies and buffers are left out. Everything is looked at before anything is loaded, so that a wrong name cannot
    leave an engine with half of the new weights. What is made when it is asked for is made twice, not kept.

    Raises:
        ValueError: A name is missing or unknown, or a shape is wrong.
    """
    if not isinstance(weights, Collection):  # can be gone through only once
        weights = list(weights)
    given, shapes = ({name: p.shape for name, p in each} for each in (weights, model.named_parameters()))
    problems = {
        "missing": shapes.keys() - given.keys(),
        "unknown": given.keys() - model.state_dict().keys(),
        "of another shape": {name for name, shape in shapes.items() if name in given and given[name] != shape},
    }
    if found := [f"{len(names)} {what}, such as {min(names)}" for what, names in problems.items() if names]:
        raise ValueError(f"weights do not fit {type(model).__name__}: {'; '.join(found)}")
    return ((name, tensor.detach()) for name, tensor in weights if name in shapes)
