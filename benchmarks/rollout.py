"""Multi-turn rollout (play, mazes, VLLMEngine) against raw vLLM generate on the same tokens: tokens a second.

Raw vLLM gets exactly the prompts that the rollout submitted, with the same seeds and numbers of new tokens, and knows
all of them beforehand, which no rollout can. It is called in two ways:
- turn by turn: one generate() for the first turns of all episodes, then one for the second turns, and so on. Every
  prompt then finds its prefix in the cache, but each call waits for its slowest reply.
- all at once: a single generate(), with as many replies under way as the rollout has episodes. The batch is always
  full, but a turn may start before the one that it extends has ended, and then finds less of its prefix in the cache.
Both engines have the same settings, and their caches are emptied before every run.
"""

import time
import warnings
from collections import Counter
from typing import Any

import compare
from compare import load
from transformers import AutoConfig

from wmact.engines import Request, VLLMEngine
from wmact.engines.process import guest
from wmact.models import Policy, load_tokenizer, resolve_model
from wmact.rollout import play


class Raw:
    """vLLM's own LLM class, with the settings of a VLLMEngine that is started."""

    def __init__(self, model: str, engine: VLLMEngine) -> None:
        from vllm import LLM

        with guest(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.llm = LLM(**engine._arguments(model, AutoConfig.from_pretrained(model)))

    def generate(self, *batches: list[Request]) -> int:
        """Sample each batch with one call; return the number of new tokens."""
        from vllm import SamplingParams

        new = 0
        for requests in batches:
            prompts: list[Any] = [{"prompt_token_ids": request.prompt_ids} for request in requests]
            params = [
                SamplingParams(
                    max_tokens=request.max_tokens,
                    seed=request.seed,
                    temperature=1.0,
                    ignore_eos=True,
                    logprobs=0,
                    flat_logprobs=True,
                    detokenize=False,
                )
                for request in requests
            ]
            with guest(False):
                outputs = self.llm.generate(prompts, params, use_tqdm=False)
            new += sum(len(output.outputs[0].token_ids) for output in outputs)
        return new

    def close(self) -> None:
        """Shut down where vLLM's replacements of torch's functions are in place."""
        with guest(keep_group=True):
            self.llm.llm_engine.engine_core.shutdown()


class Stopwatch:
    """Seconds spent in other people's methods."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, owner: Any, *names: str) -> None:
        """Time these methods of `owner` from now on."""
        for name in names:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, method: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


def main() -> None:
    report = compare.Report(__doc__ or "", pairs=4, levels=8, model="nano", dtype="float32")
    model = resolve_model(report.args.model)
    chat, tasks = load.ScriptedChat(load_tokenizer(model)), load.tasks(report.args.levels)
    inner = VLLMEngine(dtype=report.args.dtype, max_model_len=1536, max_num_seqs=len(tasks))
    engine = load.Prescribed(inner)
    engine.start(model)
    raw = Raw(model, inner)
    weights = list(Policy(model).lm.named_parameters())
    envs = load.make_envs(len(tasks))
    in_envs, in_engine = Stopwatch(), Stopwatch()
    for env in envs:
        in_envs.watch(env, "reset", "step")
    in_engine.watch(inner, "submit", "step")
    shares: list[tuple[float, float]] = []

    def forget() -> None:
        engine.load_weights(weights)  # as before every rollout
        assert raw.llm.reset_prefix_cache()

    def rollout() -> None:
        in_envs.seconds = in_engine.seconds = 0.0
        started = time.perf_counter()
        play(envs, tasks, engine, chat, max_turns=load.TURNS, limits=load.LIMITS, tell_rules=False)
        seconds = time.perf_counter() - started
        shares.append((in_envs.seconds / seconds, in_engine.seconds / seconds))

    forget()
    rollout()  # to know the requests
    requests = engine.submitted
    turn: Counter[int] = Counter()
    turns: list[list[Request]] = [[] for _ in range(load.TURNS)]
    for request in requests:  # those of an episode come in the order of its turns
        turns[turn[request.id]].append(request)
        turn[request.id] += 1
    new = sum(request.max_tokens for request in requests)
    assert raw.generate(requests) == new

    timings = compare.interleave(
        {
            "rollout": rollout,
            "generate, turn by turn": lambda: raw.generate(*turns),
            "generate, all at once": lambda: raw.generate(requests),
        },
        report.args.pairs,
        before=forget,
    )
    report.add("episodes", len(tasks))
    report.add("replies", len(requests))
    report.add("new tokens", new)
    report.add("prompt tokens", sum(len(request.prompt_ids) for request in requests), "with their cached prefixes")
    for name, runs in timings.items():
        report.add(f"{name}: tokens a second", compare.Spread.of([new / run.wall for run in runs]))
    for name in list(timings)[1:]:
        ratio = compare.ratios(timings, name, "rollout")
        report.add(f"rollout ÷ {name}", ratio["wall"], "aim: at least 0.9")
        report.add(f"rollout ÷ {name}, processor time", ratio["cpu"])
    counted = shares[-report.args.pairs :]
    report.add("share of the rollout in environments", compare.Spread.of([env for env, _ in counted]))
    report.add("share of the rollout in vLLM", compare.Spread.of([engine for _, engine in counted]))
    report.finish()
    raw.close()
    engine.close()


if __name__ == "__main__":
    main()
