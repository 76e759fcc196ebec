"""What every engine promises, of each engine; the oracle is one forward pass of transformers over the same ids."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from wmact.engines import Completion, Engine, Request, generate

EXACT = 5e-5  # nats: float32 rounding, measured 1e-5


def play(engine: Engine, turns: dict[int, int], max_tokens: dict[int, int]) -> tuple[dict[int, Any], list[int]]:
    """Episodes of so many turns each, every next turn submitted when the last came back.

    Returns of each episode the prompt and completion of its turns, and the order in which episodes came back.
    """
    prompts = {i: [3 + (5 * i + k) % 60 for k in range(40)] for i in turns}
    played: dict[int, Any] = {i: [] for i in turns}
    order = []
    for i in turns:
        engine.submit(Request(i, prompts[i], max_tokens[i], i))
    while any(len(played[i]) < turns[i] for i in turns):
        for completion in engine.step():
            i = completion.id
            played[i].append((prompts[i], completion))
            order.append(i)
            prompts[i] = prompts[i] + completion.token_ids + [10, 11, 12, 13 + i]
            if len(played[i]) < turns[i]:
                engine.submit(Request(i, prompts[i], max_tokens[i], 100 * len(played[i]) + i))
    return played, order


@pytest.mark.parametrize("name", ["tied", "untied", "qwen2", "qwen3"])
def test_logprobs_of_whole_episodes_and_after_a_sync(
    engine: Engine, models: Any, hold: Callable[..., None], name: str
) -> None:
    old = models[name]
    hold(engine, old)
    new = old.perturbed()
    turns, max_tokens = dict.fromkeys(range(5), 3), {i: 10 + i for i in range(5)}
    before, _ = play(engine, turns, max_tokens)
    engine.load_weights(new.module.named_parameters())
    after, _ = play(engine, turns, max_tokens)  # the same first prompts: cached under the old weights
    for i in turns:
        assert max(old.gap(*turn) for turn in before[i]) < EXACT
        assert max(new.gap(*turn) for turn in after[i]) < EXACT
        assert max(old.gap(*turn) for turn in after[i]) > 0.1


def test_temperature_and_greedy(engine: Engine, models: Any, requests: list[Request]) -> None:
    model = models["tied"]
    engine.start(model.folder, stop_token_ids=[], temperature=0.7)
    hot = generate(engine, requests)
    engine.start(model.folder, stop_token_ids=[], temperature=0)
    greedy = generate(engine, requests)
    for request, sampled, likeliest in zip(requests, hot, greedy, strict=True):
        assert model.gap(request.prompt_ids, sampled, temperature=0.7) < EXACT
        assert model.gap(request.prompt_ids, likeliest) < EXACT
        ids = torch.tensor([request.prompt_ids + likeliest.token_ids])
        best = model.module(ids).logits[0, len(request.prompt_ids) - 1 : -1].argmax(-1)
        assert best.tolist() == likeliest.token_ids


def test_samples_follow_the_distribution(engine: Engine, models: Any) -> None:
    """Of 4,000 draws each token's share is within 5 standard errors of its probability; the seeds are 0…3999."""
    drawn = generate(engine, [Request(i, [5, 9], 1, i) for i in range(4000)])
    count = torch.bincount(torch.tensor([completion.token_ids[0] for completion in drawn]), minlength=64)
    p = models["tied"].module(torch.tensor([[5, 9]])).logits[0, -1].softmax(-1).detach()
    assert ((count / 4000 - p).abs() <= 5 * (p * (1 - p) / 4000).sqrt() + 1e-3).all()


def test_a_request_depends_on_its_seed_only(engine: Engine, requests: list[Request]) -> None:
    together = generate(engine, requests)
    assert generate(engine, requests) == together  # and prefixes are cached now
    backwards = generate(engine, requests[::-1])[::-1]
    alone = [generate(engine, [request])[0] for request in requests[::3]]
    reseeded = generate(engine, [request._replace(seed=request.seed + 1) for request in requests])
    assert [c.token_ids for c in backwards] == [c.token_ids for c in together]
    assert [c.token_ids for c in alone] == [c.token_ids for c in together[::3]]
    assert all(a.token_ids != b.token_ids for a, b in zip(reseeded, together, strict=True))
    for same, other in zip(together, backwards, strict=True):
        np.testing.assert_allclose(same.logprobs, other.logprobs, atol=EXACT)


def test_more_requests_than_slots(engine: Engine, requests: list[Request]) -> None:
    many = [request._replace(id=10 * k + request.id) for k in range(4) for request in requests]  # 40 for 16 slots
    once = generate(engine, requests)
    assert [c.token_ids for c in generate(engine, many)] == [c.token_ids for c in once] * 4


def test_stop_tokens(engine: Engine, models: Any, requests: list[Request]) -> None:
    free = generate(engine, requests)
    assert [(len(c.token_ids), c.stopped) for c in free] == [(r.max_tokens, False) for r in requests]
    assert any(7 in c.token_ids for c in free)  # the end token of the model's config is one like any other
    stop = free[3].token_ids[4]
    engine.start(models["tied"].folder, stop_token_ids=[stop])
    for without, with_stop in zip(free, generate(engine, requests), strict=True):
        ids = without.token_ids
        end = ids.index(stop) + 1 if stop in ids else len(ids)
        assert with_stop.token_ids == ids[:end]
        assert len(with_stop.logprobs) == end
        assert with_stop.stopped == (stop in ids)


def test_episodes_go_on_at_their_own_pace(engine: Engine) -> None:
    played, order = play(engine, turns={0: 1, 1: 5}, max_tokens={0: 100, 1: 4})
    assert order == [1, 1, 1, 1, 1, 0]  # five turns of 4 tokens while one of 100 runs
    assert len(played[0][0][1].token_ids) == 100


def test_nothing_to_do(engine: Engine) -> None:
    assert engine.step() == []
    assert generate(engine, []) == []


def test_abort(engine: Engine, requests: list[Request]) -> None:
    expected = generate(engine, requests[:2])
    for request in requests:
        engine.submit(request)
    engine.step()
    engine.step()
    engine.abort()
    assert engine.step() == []
    assert generate(engine, requests[:2]) == expected  # the same ids again


def test_requests_that_cannot_be_served(engine: Engine) -> None:
    good = Request(0, [5] * 500, 12, 0)
    assert engine.max_model_len == 512
    for wrong, message in [
        ({"prompt_ids": []}, "request 0: prompt_ids must be one or more ids in 0…63"),
        ({"prompt_ids": [64]}, "prompt_ids must be"),
        ({"prompt_ids": [-1]}, "prompt_ids must be"),
        ({"max_tokens": 0}, "max_tokens=0 must be 1…12"),
        ({"max_tokens": 13}, "max_tokens=13 must be 1…12, what a prompt of 500 tokens leaves of max_model_len=512"),
        ({"prompt_ids": [5] * 512}, "max_tokens=12 must be 1…0"),
        ({"seed": -1}, "seed=-1 must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.submit(good._replace(**wrong))
    engine.submit(good)
    with pytest.raises(ValueError, match="request 0 is already in flight"):
        engine.submit(good)
    engine.abort()
    assert len(generate(engine, [good])[0].token_ids) == 12


def test_settings_that_cannot_be_started(engine: Engine, models: Any) -> None:
    folder = models["tied"].folder
    with pytest.raises(ValueError, match="temperature=-1"):
        engine.start(folder, stop_token_ids=[], temperature=-1)
    with pytest.raises(ValueError, match=r"stop_token_ids \[64\] are not in 0…63"):
        engine.start(folder, stop_token_ids=[64])
    with pytest.raises(RuntimeError, match="close it before starting"):
        engine.start(models["untied"].folder, stop_token_ids=[])
    with pytest.raises(ValueError, match="max_num_seqs=0"):
        type(engine)(max_num_seqs=0)
    with pytest.raises(RuntimeError, match="not started"):
        type(engine)().submit(Request(0, [5], 1, 0))


def test_weights_that_do_not_fit_leave_the_old_ones(engine: Engine, models: Any, requests: list[Request]) -> None:
    expected, new = generate(engine, requests), models["tied"].perturbed()
    weights = dict(new.module.named_parameters())
    without = {name: weight for name, weight in weights.items() if name != "model.norm.weight"}
    for wrong, message in [
        (without, "LlamaForCausalLM: 1 missing, such as model.norm.weight$"),
        (without | {"norm": weights["model.norm.weight"]}, "1 missing, .*; 1 unknown, such as norm$"),
        (without | {"model.norm.weight": torch.zeros(3)}, "1 of another shape, such as model.norm.weight$"),
    ]:
        with pytest.raises(ValueError, match=message):
            engine.load_weights(wrong.items())
    engine.submit(requests[0])
    with pytest.raises(RuntimeError, match="1 requests are in flight"):
        engine.load_weights(weights.items())
    engine.abort()
    assert generate(engine, requests) == expected
    engine.load_weights(new.module.state_dict().items())  # with the tied lm_head.weight
    assert new.gap(requests[9].prompt_ids, generate(engine, requests[9:])[0]) < EXACT


def random_states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def training_step(model: Any) -> list[torch.Tensor]:
    model.module.zero_grad()
    ids = torch.arange(3, 43)[None]
    model.module(ids, labels=ids).loss.backward()
    return [parameter.grad.clone() for parameter in model.module.parameters()]


def test_training_in_the_same_process(engine: Engine, models: Any, requests: list[Request]) -> None:
    model = models["qwen3"]
    gradients, states = training_step(model), random_states()
    engine.close()
    engine.close()
    engine.start(model.folder, stop_token_ids=[])
    first: list[Completion] = generate(engine, requests)
    assert random_states() == states
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.get_default_dtype() == torch.float32
    for before, after in zip(gradients, training_step(model), strict=True):
        assert torch.equal(before, after)
    engine.load_weights(model.module.named_parameters())
    engine.close()
    with pytest.raises(RuntimeError, match="not started"):
        engine.step()
    assert random_states() == states
    engine.start(model.folder, stop_token_ids=[])
    assert generate(engine, requests) == first
