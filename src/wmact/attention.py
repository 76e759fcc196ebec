"""Attention over packed batches: every episode by itself, and what samples of one level begin with only once.

Packing means that all episodes lie in one row of tokens. Attention runs episode by episode, so no token is spent on
padding and none sees another episode; everything else of the network sees one long row. The samples of a level begin
with the same prompt, which would be most of the row where replies are short, as RWML's predictions are. So an episode
leaves out what its level's first episode has read already, and attends to it there; the result is the same.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from wmact.types import Batch


class Segment(NamedTuple):
    """What a row has of one episode: `length` tokens, after the first `shared` tokens of segment `leader`."""

    length: int
    leader: int
    shared: int


class Row(NamedTuple):
    """The tokens of a batch that a network reads, each position of a level's prompt once.

    Attributes:
        read_R: (R,) where the tokens of the row stand in the batch.
        place_T: (T,) where the tokens of the batch stand in the row.
        segments: of each episode, in order; their lengths add up to R.
    """

    read_R: Tensor
    place_T: Tensor
    segments: list[Segment]


def fold(batch: Batch) -> Row:
    """Leave out of each episode what it begins with like the first of the episodes of its level before it.

    A level is a run of equal `group_E`. Where less than half of an episode is shared, it is read as a whole: the mask
    that a shared beginning needs costs more than reading it.
    """
    groups = batch.group_E.tolist()
    ids = batch.ids_T.numpy(force=True) if len(set(groups)) < len(groups) else None
    place, segments = np.empty(batch.num_tokens, np.int64), []
    leader, end = 0, 0  # of the level, and of the row so far
    bounds = batch.starts_E.tolist()
    for e, (start, stop) in enumerate(itertools.pairwise(bounds)):
        shared = 0
        if ids is not None and e and groups[e] == groups[leader]:
            first = bounds[leader]
            most = min(stop - start - 1, bounds[leader + 1] - first)
            differ = ids[start : start + most] != ids[first : first + most]
            common = int(differ.argmax()) if differ.any() else most
            shared = common if 2 * common >= stop - start else 0
            place[start : start + shared] = place[first : first + shared]
        else:
            leader = e
        length = stop - start - shared
        place[start + shared : stop] = np.arange(end, end + length)
        segments.append(Segment(length, leader, shared))
        end += length
    kept = np.concatenate(
        [np.arange(stop - segment.length, stop) for stop, segment in zip(bounds[1:], segments, strict=True)]
    )
    device = batch.ids_T.device
    return Row(torch.from_numpy(kept).to(device), torch.from_numpy(place).to(device), segments)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: list[Segment],
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of the segments that lie end to end in one row, and to what it shares.

    One call a segment beats one call with a block mask by far: the mask would be R × R, the segments are short.

    Args:
        query: (1, heads, R, head_dim); key and value: (1, kv_heads, R, head_dim).
        segments: their lengths add up to R.

    Returns:
        (1, R, heads, head_dim), and None for the attention weights.
    """
    if kwargs.get("softcap") or kwargs.get("s_aux") is not None:
        raise ValueError(f"{type(module).__name__} caps its attention logits or has sinks, which is not supported here")
    window, longest = kwargs.get("sliding_window"), max(segment.shared + segment.length for segment in segments)
    if window is not None and longest > window:
        raise ValueError(f"an episode of {longest} tokens exceeds the model's sliding window of {window}")
    how: dict[str, Any] = {"scale": scaling, "enable_gqa": query.size(1) != key.size(1)}
    queries, keys, values = (x.split([segment.length for segment in segments], dim=2) for x in (query, key, value))
    parts = []
    for (length, leader, shared), q, k, v in zip(segments, queries, keys, values, strict=True):
        if not shared:
            parts.append(scaled_dot_product_attention(q, k, v, is_causal=True, **how))
            continue
        k, v = (torch.cat([own[leader][:, :, :shared], x], dim=2) for own, x in ((keys, k), (values, v)))
        q, k = q.to(v.dtype), k.to(v.dtype)  # what autocast does, which the mask does not wait for
        mask: Any = causal_lower_right(length, shared + length)
        parts.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, **how))
    return torch.cat(parts, dim=2).transpose(1, 2), None


AttentionInterface.register("wmact_packed", packed_attention)


def hidden_before(trunk: nn.Module, batch: Batch, token_S: Tensor) -> Tensor:
    """(S, hidden): the last hidden state at the position before each of the tokens, which predicts it."""
    row = fold(batch)
    hidden = trunk(
        input_ids=batch.ids_T[row.read_R][None],
        position_ids=batch.positions_T[row.read_R][None],
        use_cache=False,
        segments=row.segments,
    ).last_hidden_state
    return hidden[0, row.place_T[token_S - 1]]
