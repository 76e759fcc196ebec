"""What vLLM 0.32 does that the engine works around. A test of a trap fails when vLLM has repaired it: simplify then."""

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from wmact.engines import Request, VLLMEngine, generate
from wmact.engines.process import REPLACED, guest

EXACT = 5e-5  # nats
PROMPT = [3 + k % 50 for k in range(100)]  # three cached blocks of 32 tokens

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these are the traps of the CPU")


def gap(engine: VLLMEngine, model: Any) -> float:
    """From the logprobs of ``model``, over 4 completions of the same prompt."""
    return max(model.gap(PROMPT, c) for c in generate(engine, [Request(i, PROMPT, 20, i) for i in range(4)]))


def reload(engine: VLLMEngine, model: Any) -> None:
    """What vLLM offers, and no more."""
    weights = list(model.module.named_parameters())
    with guest(keep_group=False):
        engine._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})


def test_trap_the_models_own_load_weights_fails_half_way(vllm: VLLMEngine, models: Any) -> None:
    new = models["tied"].perturbed()
    weights = list(new.module.named_parameters())
    with guest(keep_group=False), pytest.raises(AttributeError, match="weight_loader"):
        vllm._llm.apply_model(lambda model: model.load_weights(weights))
    vllm.load_weights(weights)
    assert gap(vllm, new) < EXACT


def test_trap_a_tied_output_layer_stays_stale(vllm: VLLMEngine, models: Any) -> None:
    new = models["tied"].perturbed()
    reload(vllm, new)
    assert vllm._llm.reset_prefix_cache()
    assert gap(vllm, new) > 0.1
    vllm.load_weights(new.module.named_parameters())
    assert gap(vllm, new) < EXACT


def test_trap_keys_cached_under_the_old_weights_are_used(
    vllm: VLLMEngine, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = models["tied"].perturbed()
    assert gap(vllm, models["tied"]) < EXACT
    with monkeypatch.context() as patch:
        patch.setattr(vllm._llm, "reset_prefix_cache", lambda: True)
        vllm.load_weights(new.module.named_parameters())
    assert gap(vllm, new) > 0.1
    vllm.load_weights(new.module.named_parameters())
    assert gap(vllm, new) < EXACT


def test_trap_a_prompt_read_in_pieces_needs_a_generator_that_can_be_set_back(
    vllm: VLLMEngine, models: Any, hold: Callable[..., None]
) -> None:
    requests = [Request(i, [3 + i, *PROMPT * 4], 4, i) for i in range(16)]  # 6416 tokens, 4096 are read at once
    expected = generate(vllm, requests[:1])
    assert [len(c.token_ids) for c in generate(vllm, requests)] == [4] * 16
    vllm.close()
    chunked = VLLMEngine(kv_cache_gib=0.03, max_num_seqs=16, extra={"enable_chunked_prefill": True})
    hold(chunked, models["tied"])
    with pytest.raises(RuntimeError, match="vLLM failed: RuntimeError: CPU Generator does not use offset"):
        generate(chunked, requests)
    with pytest.raises(RuntimeError, match="CPU Generator"):  # it is dead, and says so
        chunked.submit(requests[0])
    chunked.abort()
    chunked.close()
    hold(chunked, models["tied"])
    assert generate(chunked, requests[:1]) == expected
    chunked.close()


def test_requests_pushed_out_for_want_of_memory_come_back_the_same(
    vllm: VLLMEngine, models: Any, hold: Callable[..., None]
) -> None:
    requests = [Request(i, [3 + i, *PROMPT], 200, i) for i in range(16)]
    expected = generate(vllm, requests)
    vllm.close()
    block = 32 * 2 * 2 * 32 * 4  # tokens, layers, keys and values, head size, bytes: 16 KiB
    small = VLLMEngine(max_num_seqs=16, kv_cache_gib=40 * block / 2**30)  # 16 requests end at 10 blocks each
    hold(small, models["tied"])
    scheduler = small._llm.engine_core.engine_core.scheduler
    for request in requests:
        small.submit(request)
    done = {}
    preempted = False
    while len(done) < len(requests):
        done |= {c.id: c for c in small.step()}
        preempted = preempted or any(r.num_preemptions for r in scheduler.requests.values())
    assert preempted
    assert [done[r.id].token_ids for r in requests] == [c.token_ids for c in expected]
    small.close()


def test_the_process_is_left_as_it_was(vllm: VLLMEngine) -> None:
    functions = [getattr(owner, name) for owner, name in REPLACED]
    generate(vllm, [Request(0, PROMPT, 4, 0)])
    assert functions == [getattr(owner, name) for owner, name in REPLACED]
    assert not [f for f in functions if getattr(f, "__module__", None) and f.__module__.startswith("vllm")]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert "libgomp" not in os.environ.get("LD_PRELOAD", "")
    with guest(keep_group=False):
        assert torch.cuda.Stream.__module__.startswith("vllm")
    for module in (torch, torch.accelerator, torch.cuda, torch.Tensor):  # nothing that the list does not name
        for name, value in vars(module).items():
            if callable(value):
                assert not str(getattr(value, "__module__", "")).startswith("vllm."), name


def test_a_process_group_of_the_trainer_outlives_the_engine(vllm: VLLMEngine, models: Any, tmp_path: Path) -> None:
    vllm.close()
    assert not torch.distributed.is_initialized()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", world_size=1, rank=0)
    engine = VLLMEngine(kv_cache_gib=0.03)
    engine.start(models["tied"].folder, stop_token_ids=[])
    assert gap(engine, models["tied"]) < EXACT
    engine.close()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_auto_is_the_dtype_of_the_checkpoint_and_a_forgotten_engine_is_closed(vllm: VLLMEngine, models: Any) -> None:
    vllm.close()
    forgotten = VLLMEngine(kv_cache_gib=0.03)
    forgotten.start(models["tied"].folder, stop_token_ids=[])
    assert forgotten._llm.model_config.dtype == torch.float32  # vLLM's own "auto" would make it bfloat16
    assert torch.distributed.is_initialized()
    del forgotten
    gc.collect()
    assert not torch.distributed.is_initialized()


def test_a_start_that_fails_can_be_repeated(vllm: VLLMEngine, models: Any) -> None:
    folder = models["tied"].folder
    vllm.close()
    with pytest.raises(ValueError, match=r"vLLM cannot serve .* with max_model_len=None, kv_cache_gib=0.0001: "):
        VLLMEngine(kv_cache_gib=1e-4).start(folder, stop_token_ids=[])
    with pytest.raises(ValueError, match="max_model_len=513 is over the model's own limit of 512"):
        VLLMEngine(max_model_len=513).start(folder, stop_token_ids=[])
    vllm.start(folder, stop_token_ids=[])
    assert gap(vllm, models["tied"]) < EXACT


class Asleep:
    """In vLLM's place, which can sleep on a GPU only: writes down what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.model_config = type("Config", (), {"max_model_len": 512})

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake up", *tags))

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self.calls.append((method, len(list(kwargs["weights_iterator"]))))

    def apply_model(self, function: Callable[..., None]) -> None:
        """The CPU's repair."""

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset_prefix_cache")
        return True

    def add_request(self, *_: Any) -> None:
        self.calls.append("add_request")


def test_it_wakes_for_new_weights(models: Any) -> None:
    """Weights first, keys and values when they are loaded; what was cached is dropped."""
    engine, llm = VLLMEngine(sleep_mode=True), Asleep()
    engine.sleep()  # not started: nothing to do
    engine._llm, engine._skeleton, engine._vocab_size = llm, models["tied"].module, 64
    engine._keep_group, engine._gpu, engine._stop_token_ids, engine._temperature = False, None, [], 1.0
    parameters = list(models["tied"].module.named_parameters())
    engine.load_weights(parameters)
    assert llm.calls == [("reload_weights", len(parameters)), "reset_prefix_cache"]
    llm.calls.clear()
    engine.sleep()
    engine.sleep()
    with pytest.raises(RuntimeError, match=r"asleep; load_weights\(\) wakes it"):
        engine.submit(Request(0, PROMPT, 4, 0))
    with pytest.raises(ValueError, match="weights do not fit"):
        engine.load_weights(parameters[1:])
    assert llm.calls == [("sleep", 2)]
    engine.load_weights(parameters)
    expected = [("wake up", "weights"), ("reload_weights", len(parameters)), ("wake up", "kv_cache")]
    assert llm.calls == [("sleep", 2), *expected, "reset_prefix_cache"]
    engine.submit(Request(0, PROMPT, 4, 0))
    with pytest.raises(RuntimeError, match="1 requests are in flight"):
        engine.sleep()
    never = VLLMEngine()
    never._llm = llm = Asleep()
    never.sleep()
    assert llm.calls == []


def test_which_gpu_it_takes(monkeypatch: pytest.MonkeyPatch, models: Any) -> None:
    """Told by what torch says, there being no GPU here."""
    for name, engine in {
        "sleep_mode=True": VLLMEngine(sleep_mode=True),
        "first_gpu=4": VLLMEngine(first_gpu=4),
    }.items():
        with pytest.raises(ValueError, match=f"{name} needs a GPU; leave it out"):
            engine.start(models["tied"].folder, stop_token_ids=[])
    with pytest.raises(ValueError, match="first_gpu=-1 must not be negative"):
        VLLMEngine(first_gpu=-1)
    cuda = {"is_available": True, "current_device": 3, "device_count": 8}
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert VLLMEngine()._own_gpu() == 3
    engine = VLLMEngine(first_gpu=4)
    engine._keep_group = False
    with pytest.raises(ValueError, match="first_gpu=4 needs processes of a strategy"):
        engine._own_gpu()
    engine._keep_group = True
    assert engine._own_gpu() == 7
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 7)
    with pytest.raises(ValueError, match="there is no GPU 7, only 7; lower devices"):
        engine._own_gpu()


def test_settings_and_what_must_be_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kv_cache_gib=0"):
        VLLMEngine(kv_cache_gib=0)
    with pytest.raises(ValueError, match="gpu_memory_utilization=2"):
        VLLMEngine(gpu_memory_utilization=2)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "vllm", None)
        told = (
            "needs vLLM: pip install --no-deps -r requirements.*; --data.engine wmact.engines.TransformersEngine plays"
        )
        with pytest.raises(ModuleNotFoundError, match=told):
            VLLMEngine().start(tmp_path, stop_token_ids=[])
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(RuntimeError, match="must be 0"):
        VLLMEngine().start(tmp_path, stop_token_ids=[])
