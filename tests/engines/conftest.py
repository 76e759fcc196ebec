"""Tiny random models in folders, and engines that hold them."""

import copy
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from wmact.engines import Completion, Engine, Request, TransformersEngine, VLLMEngine

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # sharp enough that another policy samples other tokens
}


class Model(NamedTuple):
    folder: Path
    module: PreTrainedModel

    def logprobs(self, prompt_ids: list[int], token_ids: list[int], temperature: float = 1.0) -> torch.Tensor:
        """Of each of ``token_ids`` after ``prompt_ids``, by one forward pass over all."""
        ids = torch.tensor([prompt_ids + token_ids])
        with torch.no_grad():
            logits = self.module(ids).logits[0, len(prompt_ids) - 1 : -1] / temperature
        return logits.log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0]

    def gap(self, prompt_ids: list[int], completion: Completion, temperature: float = 1.0) -> float:
        """Largest difference between the engine's logprobs and the forward pass."""
        expected = self.logprobs(prompt_ids, completion.token_ids, temperature)
        return float((expected - torch.tensor(completion.logprobs)).abs().max())

    def perturbed(self) -> "Model":
        """Another policy: every weight moved by a fifth of its tensor's spread."""
        module = copy.deepcopy(self.module)
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                step = torch.randn(parameter.shape, generator=noise) * (parameter.std() + 0.1)
                parameter.add_(0.2 * step)
        return Model(self.folder, module)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Without a tokenizer: engines need none."""
    made = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, module in {
            "tied": LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, eos_token_id=7)),
            "untied": LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
            "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZES)),  # with biases, which `perturbed` moves from zero
            "qwen3": Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True)),
        }.items():
            folder = tmp_path_factory.mktemp(name)
            module.save_pretrained(folder)
            made[name] = Model(folder, module.eval())
    return made


@pytest.fixture(scope="session")
def the_vllm() -> Iterator[VLLMEngine]:
    """The one engine of vLLM of the test run; there can be only one at a time in a process."""
    if not importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is not installed")
    engine = VLLMEngine(dtype="float32", max_num_seqs=16, kv_cache_gib=0.03)
    yield engine
    engine.close()


def hold(engine: Engine, model: Model, stop_token_ids: tuple[int, ...] = (), temperature: float = 1.0) -> None:
    """Make ``engine`` hold ``model`` with its original weights, whatever it held before."""
    engine.abort()
    try:
        engine.start(model.folder, stop_token_ids=stop_token_ids, temperature=temperature)
    except RuntimeError:  # another model, or it failed in an earlier test
        engine.close()
        engine.start(model.folder, stop_token_ids=stop_token_ids, temperature=temperature)
    engine.load_weights(model.module.named_parameters())


@pytest.fixture(name="hold")
def _hold() -> Callable[..., None]:
    return hold


@pytest.fixture
def vllm(the_vllm: VLLMEngine, models: dict[str, Model]) -> VLLMEngine:
    hold(the_vllm, models["tied"])
    return the_vllm


@pytest.fixture(params=["transformers", "vllm"])
def engine(request: pytest.FixtureRequest, models: dict[str, Model]) -> Iterator[Engine]:
    """Either engine, holding the tied model in float32."""
    if request.param == "vllm":
        yield request.getfixturevalue("vllm")
        return
    engine = TransformersEngine(dtype="float32", device="cpu", max_num_seqs=16)
    hold(engine, models["tied"])
    yield engine
    engine.close()


@pytest.fixture
def requests() -> list[Request]:
    """Ten of different lengths, prompts of 1 to 46 tokens."""
    lengths = range(1, 50, 5)
    return [Request(i, [3 + (i + k) % 60 for k in range(n)], 8 + 3 * i, 100 + i) for i, n in enumerate(lengths)]
