"""The engine of a training run: it holds the trainer's weights, checked after each load, and survives one failure."""

import importlib.util
from collections.abc import Callable
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_only

from wmact.chat import Chat
from wmact.collate import collate
from wmact.engines import Dtype, Engine, EngineFailed, Request, TransformersEngine, VLLMEngine, generate
from wmact.models import resolve_model
from wmact.module import AgentModule
from wmact.processes import gather, stop_all, together
from wmact.types import Batch, Episode, TrainingStopped, Turn

T = TypeVar("T")
PROBES, PROBE_TOKENS = 4, 8  # what is sampled to compare log-probabilities


class SyncedEngine:
    """An engine that samples from the policy as it is trained now.

    Args:
        engine: the engine.
        model: the model that it is started with, a folder or a hub id.
        chat: the model's chat format.
        temperature: of sampling, the same as the module's, whose log-probabilities are compared.
        max_logprob_gap: most nats by which those of a sampled token may differ on average.
        seed: of what is sampled for the comparison.

    Attributes:
        version: `global_step` of the weights that the engine holds; None if it holds none.
    """

    def __init__(
        self, engine: Engine, model: str, chat: Chat, temperature: float, max_logprob_gap: float, seed: int
    ) -> None:
        self.engine, self.model, self.chat = engine, model, chat
        self.temperature, self.max_logprob_gap, self.seed = temperature, max_logprob_gap, seed
        self.version: int | None = None

    def start(self, temperature: float) -> Engine:
        """Start it; one that is started takes on the temperature."""
        with together():
            model, stop_token_ids = resolve_model(self.model), self.chat.stop_token_ids
            self.engine.start(model, stop_token_ids=stop_token_ids, temperature=temperature)
        return self.engine

    def ready(self, module: AgentModule) -> Engine:
        """The engine, started, with the module's current weights: the first act of every rollout.

        Raises:
            TrainingStopped: it does not sample as these weights would.
            ValueError: its context holds no prompt.
        """
        self.start(self.temperature)
        if self.version != module.global_step:
            weights = module.weights()
            with together():
                self.engine.load_weights(weights.items())
            self._verify(module)
            self.version = module.global_step
        return self.engine

    def sleep(self) -> None:
        """Let it give its memory to the update; its weights are gone then."""
        self.engine.sleep()
        self.version = None

    def restarting(self, use: Callable[[], T]) -> T:
        """Use the engine; if that of any process fails, start all of them anew, once, and do it again.

        Raises:
            TrainingStopped: it failed again.
        """
        for again in (False, True):
            failure = ""
            with together():
                try:
                    result = use()
                except EngineFailed as error:
                    failure = str(error)
                except Exception:
                    stop_all()  # the others need not play theirs to the end
                    raise
            failures = [each for each in gather(failure) if each]
            if not failures:
                return result
            if not again:
                what_now = "starting it anew, once, and playing this rollout again"
                rank_zero_only(print)(f"{failures[0]}; {what_now}", flush=True)
                self.engine.close()
                self.version = None
        with together():
            raise TrainingStopped(f"the engine failed again after a new start: {failures[0]}")

    def _verify(self, module: AgentModule) -> None:
        """Compare the engine's log-probabilities of a few sampled tokens with the trainer's.

        The prompt is the same each time on purpose: an engine that kept the keys of older weights is found out too.
        """
        with together():
            batch = self._probes(module.global_step)
        gap_S = (module.score(batch).cpu() - batch.behaviour_logprobs_S).abs()
        gap = float(gap_S.masked_fill(~batch.valid_S, float("nan")).mean())  # an engine without logprobs is no match
        with together():
            if not gap <= self.max_logprob_gap:
                raise TrainingStopped(
                    f"after loading the weights the engine's log-probabilities differ from the trainer's by {gap:.3g} "
                    f"a token (data.max_logprob_gap={self.max_logprob_gap}): the engine does not hold these weights, "
                    "or one of them computes in bfloat16, where 0.2 is a usual limit"
                )

    def _probes(self, version: int) -> Batch:
        prompt = self.chat.open("1 2 3 4 5 6 7 8 9 10 " * 8)
        if len(prompt) + PROBE_TOKENS > self.engine.max_model_len:
            raise too_short(self.engine, len(prompt))
        requests = [Request(i, list(prompt), PROBE_TOKENS, self.seed + i) for i in range(PROBES)]
        probes = []
        for completion in generate(self.engine, requests):
            probe = Episode("probe", completion.id, "probe", 0, 0, version)
            probe.ids = prompt + completion.token_ids
            probe.turns = [Turn(len(prompt), len(probe.ids), "", "valid")]
            probe.logprobs = [0.0] * len(prompt) + completion.logprobs
            probes.append(probe)
        return collate(probes)


def default_engine(dtype: Dtype = "auto", trust_remote_code: bool = False) -> Engine:
    """vLLM where it is installed, else transformers, saying so in one line."""
    if importlib.util.find_spec("vllm"):
        return VLLMEngine(dtype, trust_remote_code=trust_remote_code)
    way_out = "pip install --no-deps -r requirements-cpu.txt, or -e '.[gpu]' where there is a GPU"
    rank_zero_only(print)(f"vLLM is not installed: playing with the transformers engine, more slowly ({way_out})")
    return TransformersEngine(dtype, trust_remote_code=trust_remote_code)


def too_short(engine: Engine, prompt: int) -> ValueError:
    """The error for a context that holds no prompt."""
    return ValueError(
        f"the engine's context of {engine.max_model_len} tokens has no room for an answer after a first prompt of "
        f"{prompt} tokens: take a model with a longer context, or raise max_model_len (--data.engine "
        f"wmact.engines.{type(engine).__name__} --data.engine.init_args.max_model_len N)"
    )
