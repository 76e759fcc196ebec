"""vLLM inside the training process: fast, and new weights are handed over in memory.

Written for vLLM 0.32. The traps of weight synchronisation on a CPU, each with a test: most parameters of the model are
empty, their weights prepacked, so the model's own ``load_weights`` fails half way; a tied output layer keeps a packed
copy of the old embedding; and prefixes cached under the old weights would be used on.
"""

import gc
import importlib.util
import logging
import os
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .base import (
    Completion,
    Dtype,
    EngineFailed,
    Request,
    check_request,
    check_sampling,
    check_sizes,
    context_length,
    match_weights,
    require_idle,
)
from .process import guest, preserve_environment, preserve_rng

ENVIRONMENT = {  # read when vllm is imported; what the user has set stays
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "CRITICAL",  # what fails raises; on errors it would print pages
    "VLLM_NO_USAGE_STATS": "1",
}


class VLLMEngine:
    """Generates with vLLM on the CPU, where it was measured and is tested, or on one GPU, where it was never run.

    On a GPU it shares the device with the training, and with `sleep_mode` they take turns; or it has one of its own
    (`first_gpu`).

    In float32 the logprobs agree with transformers to about 1e-5. In bfloat16 both are off by about 0.1 for single
    tokens, so that even on-policy importance weights differ from 1. Mixtures of experts were not tried. Start it after
    the trainer has set up its processes: where there is no process group it makes one of its own.

    Args:
        dtype: Of weights and arithmetic; "auto" is that of the checkpoint, also where vLLM would lower a float32.
        max_model_len: Most tokens of prompt and continuation together; the model's own limit if not given.
        max_num_seqs: Most requests generated at once; the others wait.
        kv_cache_gib: GiB for keys and values. Not given: 1 on CPU, what gpu_memory_utilization leaves on GPU.
        gpu_memory_utilization: Share of the GPU's memory for vLLM in all; training needs the rest. Without effect where
            kv_cache_gib is given.
        sleep_mode: Give weights, keys and values back while the policy is trained. Needs a GPU, and does not go with
            expandable segments in PYTORCH_CUDA_ALLOC_CONF.
        first_gpu: The engine of the process that trains on GPU k runs on GPU first_gpu + k. Needs processes of a
            strategy; not given: on the GPU that the process trains on.
        enforce_eager: Do not compile the model. Not given: eager on CPU, where compiling takes 30 s or more.
        trust_remote_code: Run code that comes with the model. It can do anything on this machine.
        extra: Further arguments of vllm.EngineArgs; they win over those above.
    """

    def __init__(
        self,
        dtype: Dtype = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int = 128,
        kv_cache_gib: float | None = None,
        gpu_memory_utilization: float = 0.4,
        sleep_mode: bool = False,
        first_gpu: int | None = None,
        enforce_eager: bool | None = None,
        trust_remote_code: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> None:
        check_sizes(max_num_seqs, max_model_len)
        if kv_cache_gib is not None and kv_cache_gib <= 0:
            raise ValueError(f"kv_cache_gib={kv_cache_gib} must be positive")
        if not 0 < gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization={gpu_memory_utilization} must be in (0, 1]")
        if first_gpu is not None and first_gpu < 0:
            raise ValueError(f"first_gpu={first_gpu} must not be negative")
        self.dtype, self._max_model_len, self.max_num_seqs = dtype, max_model_len, max_num_seqs
        self.kv_cache_gib, self.gpu_memory_utilization = kv_cache_gib, gpu_memory_utilization
        self.sleep_mode, self.first_gpu = sleep_mode, first_gpu
        self.enforce_eager, self.trust_remote_code, self.extra = enforce_eager, trust_remote_code, extra or {}
        self._llm: Any = None  # vllm.LLMEngine
        self._source = self._failure = ""
        self._in_flight: set[int] = set()
        self._asleep = False

    def start(self, model: str | Path, *, stop_token_ids: Sequence[int], temperature: float = 1.0) -> None:
        if self._llm is None:
            self._load(str(model))
        elif str(model) != self._source:
            raise RuntimeError(f"the engine holds {self._source}; close it before starting {model}")
        check_sampling(stop_token_ids, temperature, self._vocab_size)
        self._stop_token_ids, self._temperature = list(stop_token_ids), temperature

    def _load(self, source: str) -> None:
        if not importlib.util.find_spec("vllm"):
            way_out = "pip install --no-deps -r requirements-cpu.txt, or -e '.[gpu]' where there is a GPU"
            without = "--data.engine wmact.engines.TransformersEngine plays without it, more slowly"
            raise ModuleNotFoundError(f"VLLMEngine needs vLLM: {way_out}; {without}", name="vllm")
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
            raise RuntimeError("VLLM_ENABLE_V1_MULTIPROCESSING must be 0: weights are handed over within this process")
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # vLLM does so only after its first words
        self._keep_group = torch.distributed.is_initialized()
        self._gpu = self._own_gpu()
        several = self._keep_group and torch.distributed.get_world_size() > 1
        self._launched = several or self.first_gpu is not None
        with guest(self._keep_group, self._gpu), preserve_rng(), preserve_environment(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it looks into every module, deprecated names too
            from transformers import AutoConfig, AutoModelForCausalLM
            from vllm import EngineArgs, LLMEngine
            from vllm.distributed import cleanup_dist_env_and_memory

            config = AutoConfig.from_pretrained(source, trust_remote_code=self.trust_remote_code)
            with torch.device("meta"):  # no memory: only the names and shapes of the weights are wanted
                skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=self.trust_remote_code)
            if not torch.cuda.is_available():
                _register(config.architectures or [])
            if self._launched:  # vLLM looks there for its place in the group and for the GPU to take
                os.environ |= {"RANK": str(torch.distributed.get_rank()), "LOCAL_RANK": str(self._gpu or 0)}
            try:
                llm = LLMEngine.from_engine_args(EngineArgs(**self._arguments(source, config)))
            except BaseException as error:
                cleanup_dist_env_and_memory()
                if isinstance(error, ValueError):
                    size = f"max_model_len={self._max_model_len}, kv_cache_gib={self.kv_cache_gib}"
                    raise ValueError(f"vLLM cannot serve {source} with {size}: {error}") from error
                raise
        self._llm, self._skeleton, self._source, self._failure, self._asleep = llm, skeleton, source, "", False
        self._vocab_size = config.get_text_config().vocab_size
        # Runs at exit too if nobody closes: vLLM's own finalizer would fail there, outside of guest().
        self._shutdown = weakref.finalize(self, _shut_down, llm.engine_core, self._keep_group, self._gpu)

    def _own_gpu(self) -> int | None:
        """The GPU to run on; None: a CPU.

        Raises:
            ValueError: there is no such GPU, or no process group to tell it by.
        """
        if not torch.cuda.is_available():
            for name, asked in {"sleep_mode": self.sleep_mode, "first_gpu": self.first_gpu is not None}.items():
                if asked:
                    raise ValueError(f"{name}={getattr(self, name)} needs a GPU; leave it out where there is none")
            return None
        if self.first_gpu is None:
            return torch.cuda.current_device()
        if not self._keep_group:
            raise ValueError(f"first_gpu={self.first_gpu} needs processes of a strategy: --trainer.strategy ddp")
        gpu, there_are = self.first_gpu + torch.cuda.current_device(), torch.cuda.device_count()
        if gpu >= there_are:
            raise ValueError(f"first_gpu={self.first_gpu}: there is no GPU {gpu}, only {there_are}; lower devices")
        return gpu

    def _arguments(self, source: str, config: Any) -> dict[str, Any]:
        """Of vllm.EngineArgs."""
        cuda = torch.cuda.is_available()
        self._eager = not cuda if self.enforce_eager is None else self.enforce_eager
        gib = self.kv_cache_gib or (None if cuda else 1.0)  # eager and of a given size: vLLM skips its warm-up
        dtype = str(config.dtype or torch.float32).removeprefix("torch.") if self.dtype == "auto" else self.dtype
        length = context_length(config, self._max_model_len)
        return {
            "model": source,
            "dtype": dtype,
            "max_model_len": length,
            "max_num_seqs": self.max_num_seqs,
            "kv_cache_memory_bytes": int(gib * 2**30) if gib else None,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "enable_sleep_mode": self.sleep_mode,
            "enforce_eager": self._eager,
            "trust_remote_code": self.trust_remote_code,
            "block_size": None if cuda else 32,  # the least on CPU; its default of 128 shares fewer prefixes
            "enable_prefix_caching": True,
            # On CPU vLLM dies on a prompt read in parts whose request has a seed: a CPU generator cannot be wound back.
            "enable_chunked_prefill": cuda,
            "max_num_batched_tokens": None if cuda else max(4096, length + self.max_num_seqs),
            "logprobs_mode": "processed_logprobs",  # after the temperature: what was sampled from
            "skip_tokenizer_init": True,
            "use_tqdm_on_load": False,
            "disable_log_stats": True,
            "distributed_executor_backend": "external_launcher" if self._launched else None,
            **self.extra,
        }

    @property
    def max_model_len(self) -> int:
        self._check_alive()
        return self._llm.model_config.max_model_len

    def submit(self, request: Request) -> None:
        if self._asleep:
            raise RuntimeError("the engine is asleep; load_weights() wakes it")
        check_request(request, self.max_model_len, self._vocab_size, self._in_flight)
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            max_tokens=request.max_tokens,
            seed=request.seed,
            temperature=self._temperature,
            stop_token_ids=self._stop_token_ids,
            ignore_eos=True,  # else the end tokens of the generation config stop as well
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        with self._call():
            self._llm.add_request(str(request.id), {"prompt_token_ids": request.prompt_ids}, params)
        self._in_flight.add(request.id)

    def step(self) -> list[Completion]:
        self._check_alive()
        if not self._in_flight:
            return []
        # Sampling draws from torch's global state even where every request has a seed; and in eager mode too vLLM
        # would compile a helper for logprobs, which takes seconds and a C++ compiler.
        stance = "force_eager" if self._eager else "default"
        with self._call(), torch.random.fork_rng([]), torch.compiler.set_stance(stance):
            done = [_completion(output) for output in self._llm.step() if output.finished]
        self._in_flight -= {completion.id for completion in done}
        return done

    def abort(self) -> None:
        aborted, self._in_flight = self._in_flight, set()
        if aborted and not self._failure:
            with self._call():
                self._llm.abort_request([str(request_id) for request_id in aborted])

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._check_alive()
        require_idle(len(self._in_flight))
        matched = match_weights(weights, self._skeleton)
        with self._call():
            if self._asleep:  # room for keys and values only after what the reload needs has been given back
                self._llm.wake_up(["weights"])
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": matched})
            if self._asleep:
                self._llm.wake_up(["kv_cache"])
                self._asleep = False
            if not torch.cuda.is_available():
                self._llm.apply_model(_repack_output_layer)
            if not self._llm.reset_prefix_cache():
                raise RuntimeError("what was cached under the old weights could not be dropped")

    def sleep(self) -> None:
        if not self.sleep_mode or self._asleep or self._llm is None:
            return
        self._check_alive()
        require_idle(len(self._in_flight))
        with self._call():
            self._llm.sleep(level=2)  # 1 would keep the weights in the CPU's memory; new ones come anyway
        self._asleep = True

    def close(self) -> None:
        if self._llm is None:
            return
        self._llm, self._in_flight = None, set()
        self._shutdown()
        gc.collect()  # the model is part of reference cycles

    def _check_alive(self) -> None:
        if self._llm is None:
            raise RuntimeError("the engine is not started")
        if self._failure:
            raise EngineFailed(f"vLLM failed ({self._failure}); close() the engine and start() it again")

    @contextmanager
    def _call(self) -> Iterator[None]:
        """A call of vLLM. One that fails or is interrupted may leave it in any state: it is not called again."""
        try:
            with guest(self._keep_group, self._gpu):
                yield
        except BaseException as error:
            self._failure = f"{type(error).__name__}: {error}"
            if isinstance(error, Exception):
                raise EngineFailed(f"vLLM failed: {self._failure}") from error
            raise


def _shut_down(engine_core: Any, keep_group: bool, gpu: int | None) -> None:
    with guest(keep_group, gpu):
        engine_core.shutdown()


def _register(architectures: Sequence[str]) -> None:
    """Look at the model's class here. vLLM would start a process for it, lest CUDA be initialised in this one."""
    from vllm import ModelRegistry

    for name in set(architectures) & ModelRegistry.models.keys():
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def _repack_output_layer(model: torch.nn.Module) -> None:
    """On CPU the output layer multiplies by a packed copy, which a reload leaves as it is when the layer is tied."""
    layers: Iterable[Any] = model.modules()
    for layer in layers:
        if type(layer).__name__ == "ParallelLMHead" and hasattr(layer, "cpu_linear"):
            layer.quant_method.process_weights_after_loading(layer)


def _completion(output: Any) -> Completion:
    """Of a finished vllm.RequestOutput."""
    sampled = output.outputs[0]
    if sampled.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"request {output.request_id} ended with {sampled.finish_reason!r}")
    stopped = sampled.finish_reason == "stop"
    return Completion(int(output.request_id), list(sampled.token_ids), list(sampled.logprobs.logprobs), stopped)
