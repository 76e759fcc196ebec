"""The portable engine: transformers' own forward pass with continuous batching, in two screens of code.

It is the oracle that the fast engine is tested against, and runs wherever transformers does. Every sequence has a slot
of the key-value cache. A step decodes one token of each running request and reads the prompts of new ones; a finished
request leaves its keys and values in its slot, where the next turn of the same episode finds them.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .base import (
    Completion,
    Dtype,
    Request,
    check_request,
    check_sampling,
    check_sizes,
    context_length,
    match_weights,
    require_idle,
)
from .process import preserve_rng

READ_AT_ONCE = 8192  # tokens of prompts, padding included, in one forward pass: bounds its memory


class _Row:
    """A request being generated."""

    def __init__(self, request: Request, stop_token_ids: frozenset[int], temperature: float) -> None:
        self.request, self.stop_token_ids, self.temperature = request, stop_token_ids, temperature
        # All its chance is drawn here, so that what else is in the batch cannot change its tokens.
        generator = torch.Generator().manual_seed(request.seed)
        self.uniforms = torch.rand(request.max_tokens, dtype=torch.float64, generator=generator).tolist()
        self.ids = list(request.prompt_ids)
        self.logprobs: list[float] = []
        self.slot = -1
        self.cached = 0  # of ids, so many are in the slot

    @property
    def token_ids(self) -> list[int]:
        return self.ids[len(self.request.prompt_ids) :]

    @property
    def stopped(self) -> bool:
        return self.ids[-1] in self.stop_token_ids

    @property
    def finished(self) -> bool:
        return self.stopped or len(self.logprobs) == self.request.max_tokens


class TransformersEngine:
    """Generates with any causal language model of transformers whose layers attend to all earlier tokens.

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
        dtype: Dtype = "auto",
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
        self._forget()

    def _forget(self) -> None:
        self._waiting: list[_Row] = []
        self._running: list[_Row] = []
        self._cache: Any = None  # a SlotCache
        self._slots: list[list[int]] = []  # the ids whose keys and values a slot holds
        self._free: list[int] = []  # slots without a running request, the longest unused first

    def start(self, model: str | Path, *, stop_token_ids: Sequence[int], temperature: float = 1.0) -> None:
        if self._model is None:
            self._load(str(model))
        elif str(model) != self._source:
            raise RuntimeError(f"the engine holds {self._source}; close it before starting {model}")
        check_sampling(stop_token_ids, temperature, self._vocab_size)
        self._stop_token_ids, self._temperature = frozenset(stop_token_ids), temperature

    def _load(self, source: str) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        from .slots import check_attention

        config = AutoConfig.from_pretrained(source, trust_remote_code=self.trust_remote_code)
        self._limit = context_length(config, self._max_model_len)
        check_attention(config, self._limit)
        self._vocab_size = config.get_text_config().vocab_size
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            torch.zeros(1, device=device).item()
        except (RuntimeError, AssertionError) as error:
            told = str(error).partition("\n")[0]
            raise ValueError(f"device={device!r} cannot be used ({told}): take 'auto', 'cpu' or 'cuda'") from error
        with preserve_rng():
            model: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=self.dtype, trust_remote_code=self.trust_remote_code
            )
        self._model, self._source = model.to(device).eval().requires_grad_(False), source

    @property
    def max_model_len(self) -> int:
        self._check_started()
        return self._limit

    def submit(self, request: Request) -> None:
        self._check_started()
        in_flight = {row.request.id for row in self._waiting + self._running}
        check_request(request, self._limit, self._vocab_size, in_flight)
        self._waiting.append(_Row(request, self._stop_token_ids, self._temperature))

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        self._check_started()
        room = self.max_num_seqs - len(self._running)
        new, self._waiting = self._waiting[:room], self._waiting[room:]
        for row in new:
            self._take_slot(row)
        readers = _readers(new)
        batches = [self._running] if self._running else []
        batches += _batches([row for row in new if row not in readers])
        self._running = [row for batch in batches for row in batch]
        if not batches:
            return []
        logits = torch.cat([self._forward(batch) for batch in batches])
        if readers:
            logits = torch.cat([logits, logits[[self._running.index(reader) for reader in readers.values()]]])
            for row, reader in readers.items():
                self._cache.copy(reader.slot, row.slot, reader.cached)
                row.cached = reader.cached
            self._running += readers
        self._sample(logits)
        done = [row for row in self._running if row.finished]
        self._running = sorted((row for row in self._running if not row.finished), key=lambda row: row.slot)
        for row in done:
            self._slots[row.slot] = row.ids[: row.cached]
            self._free.append(row.slot)
        return [Completion(row.request.id, row.token_ids, row.logprobs, row.stopped) for row in done]

    def abort(self) -> None:
        self._forget()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._check_started()
        require_idle(len(self._waiting + self._running))
        parameters = dict(self._model.named_parameters())
        for name, tensor in match_weights(weights, self._model):
            parameters[name].copy_(tensor)
        self._forget()

    def sleep(self) -> None:
        require_idle(len(self._waiting + self._running))
        self._forget()

    def close(self) -> None:
        self._model = None
        self._forget()

    def _check_started(self) -> None:
        if self._model is None:
            raise RuntimeError("the engine is not started")

    def _take_slot(self, row: _Row) -> None:
        """The free slot that holds most of the prompt, else an empty one, else the longest unused."""
        prompt, held = row.request.prompt_ids, self._slots
        prefixes = [slot for slot in self._free if held[slot] == prompt[: len(held[slot])] and held[slot] != prompt]
        if prefixes:
            row.slot = max(prefixes, key=lambda slot: len(held[slot]))
            row.cached = len(held[row.slot])
        elif len(held) < self.max_num_seqs:
            row.slot = len(held)
            held.append([])
            return
        else:
            row.slot = self._free[0]
        self._free.remove(row.slot)

    def _forward(self, rows: list[_Row]) -> torch.Tensor:
        """Read the ids of ``rows`` that are not cached yet; logits (B, vocabulary) of the token after them."""
        from .slots import SlotCache

        if self._cache is None:
            self._cache = SlotCache()
        length, width = max(len(row.ids) for row in rows), max(len(row.ids) - row.cached for row in rows)
        ids, columns = [], []
        for row in rows:
            padding = width - (len(row.ids) - row.cached)
            ids.append([0] * padding + row.ids[row.cached :])
            columns.append([length] * padding + list(range(row.cached, len(row.ids))))  # padding: a column not read
            row.cached = len(row.ids)
        device, dtype = self._model.device, self._model.dtype
        place = torch.tensor(columns, device=device)
        hidden = torch.arange(length, device=device) > place[:, None, :, None]  # (B, 1, T, length)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)
        self._cache.place([row.slot for row in rows], place, length)
        out = self._model(
            torch.tensor(ids, device=device),
            attention_mask=mask,
            position_ids=place.clamp(max=length - 1),
            past_key_values=self._cache,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()

    def _sample(self, logits: torch.Tensor) -> None:
        """Draw the next token of each row by inverting the cumulative distribution at its next uniform number."""
        temperature = torch.tensor([[row.temperature] for row in self._running], device=logits.device)
        logprobs = (logits / temperature.where(temperature > 0, 1)).log_softmax(-1)
        cumulative = logprobs.double().exp().cumsum(-1)
        uniforms = [[row.uniforms[len(row.logprobs)]] for row in self._running]
        # The sum is 1 up to rounding. The first index beyond the threshold has a positive probability.
        threshold = torch.tensor(uniforms, dtype=torch.float64, device=logits.device) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, threshold, right=True)
        tokens = tokens.where(temperature > 0, logprobs.argmax(-1, keepdim=True))
        chosen = logprobs.gather(1, tokens)
        for row, token, logprob in zip(self._running, tokens[:, 0].tolist(), chosen[:, 0].tolist(), strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)


def _readers(rows: list[_Row]) -> dict[_Row, _Row]:
    """Rows whose whole prompt, unread so far, another row has too, and that one: it reads for them."""
    unread: dict[tuple[int, ...], _Row] = {}
    first = {row: unread.setdefault(tuple(row.ids), row) for row in rows if not row.cached}
    return {row: reader for row, reader in first.items() if row is not reader}


def _batches(rows: list[_Row]) -> Iterator[list[_Row]]:
    """``rows`` in groups to be read at once, each padded to its longest."""
    batch: list[_Row] = []
    for row in rows:
        longest = max(len(other.ids) - other.cached for other in [*batch, row])
        if batch and longest * (len(batch) + 1) > READ_AT_ONCE:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
