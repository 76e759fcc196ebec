"""The portable engine: transformers' own forward pass with continuous batching, in a screen of code.

It is the oracle that the fast engine is tested against, and runs wherever transformers does. The running requests are
the rows of one left-padded key-value cache. Every step decodes one token of each row; new requests are prefilled
together and become rows, finished ones are dropped and the padding that only they needed is cut off.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional as F

from .base import Completion, Request, check_request, check_sampling, check_sizes, context_length, match_weights
from .process import preserve_rng


class _Row:
    """A request being generated."""

    def __init__(self, request: Request, stop_token_ids: frozenset[int], temperature: float) -> None:
        self.request, self.stop_token_ids, self.temperature = request, stop_token_ids, temperature
        # All its chance is drawn here, so that what else is in the batch cannot change its tokens.
        generator = torch.Generator().manual_seed(request.seed)
        self.uniforms = torch.rand(request.max_tokens, dtype=torch.float64, generator=generator).tolist()
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []

    @property
    def stopped(self) -> bool:
        return self.token_ids[-1] in self.stop_token_ids

    @property
    def finished(self) -> bool:
        return self.stopped or len(self.token_ids) == self.request.max_tokens


class TransformersEngine:
    """Generates with any causal language model of transformers that keeps keys and values (no state-space models).

    In float32 a request gives the same tokens whatever else is in the batch, up to rounding; the same submissions in
    the same order give the same floats on a CPU.

    Args:
        dtype: Of the weights and of all arithmetic up to the logits; "auto" is that of the checkpoint.
        device: "auto" is the GPU if there is one.
        max_num_seqs: Most requests generated at once; the others wait.
        max_model_len: Most tokens of prompt and continuation together; the model's own limit if not given.
        trust_remote_code: Run code that comes with the model. It can do anything on this machine.
    """

    def __init__(
        self,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        device: str = "auto",
        max_num_seqs: int = 128,
        max_model_len: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        check_sizes(max_num_seqs, max_model_len)
        self.dtype, self.device, self.trust_remote_code = dtype, device, trust_remote_code
        self.max_num_seqs, self._max_model_len = max_num_seqs, max_model_len
        self._model: Any = None
        self._source = ""
        self._waiting: list[_Row] = []
        self._rows: list[_Row] = []
        self._cache: Any = None  # of the rows: keys and values (B, heads, T, head size) a layer
        self._mask = torch.empty(0)  # (B, T): 1 where the cache holds a token, 0 in the padding on its left

    def start(self, model: str | Path, *, stop_token_ids: Sequence[int], temperature: float = 1.0) -> None:
        if self._model is None:
            self._load(str(model))
        elif str(model) != self._source:
            raise RuntimeError(f"the engine holds {self._source}; close it before starting {model}")
        check_sampling(stop_token_ids, temperature, self._vocab_size)
        self._stop_token_ids, self._temperature = frozenset(stop_token_ids), temperature

    def _load(self, source: str) -> None:
        from transformers import AutoModelForCausalLM

        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        with preserve_rng():
            model: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=self.dtype, trust_remote_code=self.trust_remote_code
            )
        self._limit = context_length(model.config, self._max_model_len)
        self._vocab_size = model.config.get_text_config().vocab_size
        self._model, self._source = model.to(device).eval().requires_grad_(False), source

    @property
    def max_model_len(self) -> int:
        self._check_started()
        return self._limit

    def submit(self, request: Request) -> None:
        self._check_started()
        in_flight = {row.request.id for row in self._waiting + self._rows}
        check_request(request, self._limit, self._vocab_size, in_flight)
        self._waiting.append(_Row(request, self._stop_token_ids, self._temperature))

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        self._check_started()
        room = self.max_num_seqs - len(self._rows)
        new, self._waiting = self._waiting[:room], self._waiting[room:]
        logits = ([self._decode()] if self._rows else []) + ([self._prefill(new)] if new else [])
        if not logits:
            return []
        self._sample(torch.cat(logits))
        done = [row for row in self._rows if row.finished]
        if done:
            self._keep([i for i, row in enumerate(self._rows) if not row.finished])
        return [Completion(row.request.id, row.token_ids, row.logprobs, row.stopped) for row in done]

    def abort(self) -> None:
        self._waiting, self._rows, self._cache = [], [], None

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._check_started()
        if self._rows or self._waiting:
            raise RuntimeError(f"{len(self._rows + self._waiting)} requests are in flight; abort() them first")
        parameters = dict(self._model.named_parameters())
        for name, tensor in match_weights(weights, self._model):
            parameters[name].copy_(tensor)

    def close(self) -> None:
        self._model = None
        self.abort()

    def _check_started(self) -> None:
        if self._model is None:
            raise RuntimeError("the engine is not started")

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits (B, vocabulary) of the token after ``ids`` (B, T), whose keys and values are appended to ``cache``."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self._model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
        return out.logits[:, -1].float()

    def _decode(self) -> torch.Tensor:
        """One more token for each running row."""
        self._mask = F.pad(self._mask, (0, 1), value=1)
        ids = torch.tensor([row.token_ids[-1:] for row in self._rows], device=self._model.device)
        return self._forward(ids, self._mask, self._cache)

    def _prefill(self, rows: list[_Row]) -> torch.Tensor:
        """Read the prompts of ``rows`` and add them to the running ones."""
        from transformers import DynamicCache

        longest = max(len(row.request.prompt_ids) for row in rows)
        pads = [longest - len(row.request.prompt_ids) for row in rows]
        prompts = [[0] * pad + row.request.prompt_ids for pad, row in zip(pads, rows, strict=True)]
        ids = torch.tensor(prompts, device=self._model.device)
        mask = (torch.arange(longest) >= torch.tensor(pads)[:, None]).long().to(ids.device)
        cache = DynamicCache()
        logits = self._forward(ids, mask, cache)
        if self._rows:
            _merge(self._cache, cache)
            longest = max(longest, self._mask.shape[1])
            self._mask = torch.cat([_pad_left(self._mask, longest, 1), _pad_left(mask, longest, 1)])
        else:
            self._cache, self._mask = cache, mask
        self._rows += rows
        return logits

    def _sample(self, logits: torch.Tensor) -> None:
        """Draw the next token of each row by inverting the cumulative distribution at its next uniform number."""
        temperature = torch.tensor([[row.temperature] for row in self._rows], device=logits.device)
        logprobs = (logits / temperature.where(temperature > 0, 1)).log_softmax(-1)
        cumulative = logprobs.double().exp().cumsum(-1)
        uniforms = [[row.uniforms[len(row.token_ids)]] for row in self._rows]
        # The sum is 1 up to rounding. The first index beyond the threshold has a positive probability.
        threshold = torch.tensor(uniforms, dtype=torch.float64, device=logits.device) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, threshold, right=True)
        tokens = tokens.where(temperature > 0, logprobs.argmax(-1, keepdim=True))
        chosen = logprobs.gather(1, tokens)
        for row, token, logprob in zip(self._rows, tokens[:, 0].tolist(), chosen[:, 0].tolist(), strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)

    def _keep(self, indices: list[int]) -> None:
        """Drop the other rows, and the columns that are padding in all that stay."""
        if not indices:
            self._rows, self._cache = [], None
            return
        self._rows = [self._rows[i] for i in indices]
        index = torch.tensor(indices, device=self._mask.device)
        self._mask = self._mask[index]
        start = int(self._mask.any(0).nonzero()[0])
        self._mask = self._mask[:, start:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[index, :, start:], layer.values[index, :, start:]


def _merge(running: Any, new: Any) -> None:
    """Append the rows of cache ``new`` to ``running``, the shorter one padded on the left."""
    for old, layer in zip(running.layers, new.layers, strict=True):
        longest = max(old.keys.shape[-2], layer.keys.shape[-2])
        old.keys = torch.cat([_pad_left(old.keys, longest, -2), _pad_left(layer.keys, longest, -2)])
        old.values = torch.cat([_pad_left(old.values, longest, -2), _pad_left(layer.values, longest, -2)])


def _pad_left(tensor: torch.Tensor, length: int, dim: int) -> torch.Tensor:
    missing = length - tensor.shape[dim]
    return F.pad(tensor, (0, 0, missing, 0) if dim == -2 else (missing, 0))
