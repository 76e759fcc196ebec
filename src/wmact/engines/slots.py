"""A key-value cache of slots, one a sequence, each as long as its sequence. Imports transformers."""

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import get_layer_types_and_kwargs


class SlotCache(Cache):
    """Keys and values of every layer, (slots, heads, columns, head size), growing as needed.

    ``place`` says where the next forward pass writes and reads; slots that it does not name keep what they hold.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._stores: dict[tuple[str, int], torch.Tensor] = {}

    def place(self, slots: list[int], columns: torch.Tensor, length: int) -> None:
        """Row b writes its T new tokens in ``columns[b]`` (B, T) of ``slots[b]`` and reads the first ``length``."""
        self._slots = torch.tensor(slots, device=columns.device)
        self._in_order = slots == list(range(len(slots)))
        self._columns, self._length = columns, length
        self._size = max(slots) + 1, (length // 128 + 1) * 128  # one column more than is read, at least

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._put(("keys", layer_idx), key_states), self._put(("values", layer_idx), value_states)

    def copy(self, source: int, target: int, length: int) -> None:
        """Let slot `target` begin with the first `length` columns of slot `source`."""
        for name, store in self._stores.items():
            store = self._stores[name] = _grown(store, target + 1, length)
            store[target, :, :length] = store[source, :, :length]

    def _put(self, name: tuple[str, int], new: torch.Tensor) -> torch.Tensor:
        store = self._stores.get(name, new[:0, :, :0])
        store = self._stores[name] = _grown(store, *self._size)
        store[self._slots[:, None], :, self._columns] = new.transpose(1, 2)
        read = store[:, :, : self._length]
        return read[: len(self._slots)] if self._in_order else read.index_select(0, self._slots)


def _grown(store: torch.Tensor, slots: int, columns: int) -> torch.Tensor:
    """`store` itself if it has so many slots and columns, else a larger one that begins with it."""
    if slots <= store.shape[0] and columns <= store.shape[2]:
        return store
    slots, columns = max(slots, store.shape[0]), max(columns, store.shape[2])
    larger = store.new_zeros(slots, store.shape[1], columns, store.shape[3])
    larger[: store.shape[0], :, : store.shape[2]] = store
    return larger


def check_attention(config: Any, length: int) -> None:
    """Raise ValueError for a model with layers that do not see all ``length`` tokens before."""
    for kind, settings in zip(*get_layer_types_and_kwargs(config.get_text_config()), strict=True):
        if kind != "full_attention" and settings.get("sliding_window", 0) < length:
            raise ValueError(f"TransformersEngine cannot serve {kind} layers over {length} tokens; use VLLMEngine")
