"""What only the portable engine does: it reuses slots, reads prompts in batches, and knows what it can serve."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from wmact.engines import Request, TransformersEngine, generate, transformers


def read(engine: TransformersEngine, request: Request) -> tuple[list[int], list[tuple[int, ...]]]:
    """The tokens sampled for ``request``, and the shapes (B, T) of the ids of each forward pass."""
    shapes = []
    handle = engine._model.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    token_ids = generate(engine, [request])[0].token_ids
    handle.remove()
    return token_ids, shapes


def test_the_next_turn_reads_only_what_is_new(models: Any) -> None:
    engine = TransformersEngine(max_num_seqs=2)
    engine.start(models["tied"].folder, stop_token_ids=[])
    prompt = list(range(3, 43))
    first, shapes = read(engine, Request(0, prompt, 3, 0))
    assert shapes == [(1, 40), (1, 1), (1, 1)]
    other, _ = read(engine, Request(0, [50, *prompt], 3, 1))  # of another episode, into the second slot
    second, shapes = read(engine, Request(0, [*prompt, *first, 9, 8], 2, 2))
    assert shapes == [(1, 3), (1, 1)]  # the last token of the first turn was sampled and not read yet, then 9 and 8
    _, shapes = read(engine, Request(0, [60, 61], 1, 3))  # a third episode takes the slot unused for longest
    assert shapes == [(1, 2)]
    assert read(engine, Request(0, [*prompt, *first, 9, 8, *second, 7], 1, 4))[1] == [(1, 2)]
    assert read(engine, Request(0, [50, *prompt, *other, 7], 1, 5))[1] == [(1, 45)]
    engine.load_weights(models["tied"].module.named_parameters())
    assert read(engine, Request(0, [*prompt, *first, 9, 8, *second, 7], 1, 4))[1] == [(1, 48)]


def test_a_prompt_that_several_have_is_read_once(models: Any) -> None:
    """The samples of a level: each gets the tokens and floats that it gets by itself, and slots are taken as ever."""
    prompt, other = list(range(3, 43)), list(range(5, 20))
    asked = [Request(n, other if n == 1 else prompt, 3 + n, n) for n in range(4)]
    engine = TransformersEngine()
    engine.start(models["tied"].folder, stop_token_ids=[])
    alone = [generate(engine, [request])[0] for request in asked]
    engine.load_weights(models["tied"].module.named_parameters())  # forgets what it has read
    shapes: list[tuple[int, ...]] = []
    handle = engine._model.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    together = generate(engine, asked)
    handle.remove()
    assert shapes[:2] == [(2, 40), (4, 1)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    for got, expected in zip(together, alone, strict=True):
        assert got.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    _, shapes = read(engine, Request(9, [*prompt, *together[3].token_ids, 8], 1, 9))
    assert shapes == [(1, 2)]  # the copy is a slot like any other: only what is new is read


def test_prompts_are_read_in_batches_of_bounded_size(
    models: Any, requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TransformersEngine()
    engine.start(models["qwen3"].folder, stop_token_ids=[])
    expected = generate(engine, requests)  # prompts of 1, 6, 11, … 46 tokens
    monkeypatch.setattr(transformers, "READ_AT_ONCE", 60)
    rows = [transformers._Row(request, frozenset(), 1.0) for request in requests]
    sizes = [[len(row.ids) for row in batch] for batch in transformers._batches(rows)]
    assert sizes == [[1, 6, 11], [16, 21], [26], [31], [36], [41], [46]]  # 3·11 and 2·21, not 4·16, 3·26 or 2·31
    assert [c.token_ids for c in generate(engine, requests)] == [c.token_ids for c in expected]


def test_layers_that_see_a_window_only(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
    config = MistralConfig(**sizes, **heads, sliding_window=16, max_position_embeddings=64)
    with torch.random.fork_rng():
        MistralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot serve sliding_attention layers over 64 tokens; use VLLMEngine"):
        TransformersEngine().start(tmp_path, stop_token_ids=[])
    TransformersEngine(max_model_len=16).start(tmp_path, stop_token_ids=[])
    with pytest.raises(ValueError, match="max_model_len=65 is over the model's own limit of 64"):
        TransformersEngine(max_model_len=65).start(tmp_path, stop_token_ids=[])
