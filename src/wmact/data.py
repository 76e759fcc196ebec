"""The rollout DataModule: it owns environments, engine, levels and the turn budget, and yields one Batch an epoch.

One Lightning epoch is one training iteration of the paper. `train_dataloader` returns a *sized* iterable of length one
whose iteration plays: Lightning prefetches from an unsized one, and episodes would be trained one step late.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from transformers import AutoConfig

from wmact import protocol, rewards, world_model
from wmact.chat import Chat
from wmact.collate import collate
from wmact.engines import Engine, Request, generate
from wmact.engines.base import context_length
from wmact.environments import EnvSpec, Pools, Variant
from wmact.models import load_tokenizer, resolve_model
from wmact.module import AgentModule
from wmact.processes import gather, largest, merged, place, share, together, told_to_stop, total
from wmact.rollout import Limits, Task, deadline, play
from wmact.strategies import PRECISIONS
from wmact.types import Batch, Episode, Mean, Played, RolloutInterrupted, TrainingStopped
from wmact.weight_sync import SyncedEngine, default_engine, too_short

TRAINING, EVALUATION = 0, 1  # mark the random streams, so that those of evaluation are never those of training


@dataclass(frozen=True)
class Evaluation:
    """How evaluation is played.

    Args:
        levels: levels of each variant; null: all that it has.
        samples: episodes a level; with more than one, pass@samples is reported.
        curve: turn budgets at which success is reported. All are read from one rollout with the largest.
        world_model: ask the model about one transition of each level too, and check what its thoughts claim
            (`world_model.py`). It needs environments of wmact_envs, and a model that speaks nano's words.
    """

    levels: int | None = 200
    samples: int = 1
    curve: tuple[int, ...] = (1, 2, 3, 5, 10)
    world_model: bool = False

    def __post_init__(self) -> None:
        if (self.levels is not None and self.levels < 1) or self.samples < 1:
            given = f"levels={self.levels}, samples={self.samples}"
            raise ValueError(f"data.validation, data.testing: {given}: both must be at least 1")
        if list(self.curve) != sorted(set(self.curve)) or not self.curve or self.curve[0] < 1:
            raise ValueError(
                f"data.validation, data.testing: curve={list(self.curve)}: turn budgets of at least 1, ascending"
            )


class Plays:
    """A sized iterable of items, each made when it is asked for; of one by default."""

    def __init__(self, make: Callable[[], Any], number: int = 1) -> None:
        self.make, self.number = make, number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.number):
            yield self.make()


class RolloutData(L.LightningDataModule):
    """Fresh episodes of the current policy, one batch an epoch, and evaluation episodes.

    Args:
        model: the model that plays; set by the trainer's model.
        env: environment that is trained on.
        val: variants for `validate` and for the evaluations during training, by name.
        test: variants for `test`, by name.
        groups: levels a batch, of all processes together. Levels do not repeat within a batch.
        samples: episodes a level.
        max_turns: initial turn budget L_max (WMAct: 30); 1 is the entire-plan baseline.
        limits: token and time limits.
        temperature: of sampling.
        tell_rules: open every episode with the rules and the answer format; off for "nano", which knows them.
        rescale: scale the outcome by the share of effective actions (WMAct's reward rescaling).
        step_penalty: taken off for every action (WMAct's comparison: 0.1, in place of annealing).
        engine: what generates; null takes vLLM where it is installed, else transformers, computing in what the
            trainer computes in.
        concurrency: most episodes under way at once, of one process.
        validation: how the evaluations during training are played.
        testing: how `test` and `predict` play.
        max_logprob_gap: after each weight load the engine's log-probabilities of a few sampled tokens are compared
            with the trainer's; a mean difference above this stops the run. float32 measures about 1e-5, bfloat16 0.05.
            An engine that is one step behind may be below it: of nano, after a step of 3e-4, it is off by 4e-4 to 4e-3
            in float32, where 1e-3 is a good limit; in bfloat16 its difference cannot be told from that of rounding
            (both 4e-4 to 1e-2), and only weights of many steps before are found.
        max_error_share: stop when more of a batch's episodes than this end in an error of the environment.
        seed: of levels and sampling; set by seed_everything.
        trust_remote_code: set by the trainer's.
        chat_template: set by the trainer's.
    """

    def __init__(
        self,
        model: str = "nano",
        env: EnvSpec = EnvSpec(),
        val: dict[str, Variant] | None = None,
        test: dict[str, Variant] | None = None,
        groups: int = 32,
        samples: int = 8,
        max_turns: int = 30,
        limits: Limits = Limits(),
        temperature: float = 1.0,
        tell_rules: bool = True,
        rescale: bool = True,
        step_penalty: float = 0.0,
        engine: Engine | None = None,
        concurrency: int = 256,
        validation: Evaluation = Evaluation(),
        testing: Evaluation = Evaluation(levels=1000),
        max_logprob_gap: float = 0.2,
        max_error_share: float = 0.25,
        seed: int = 0,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
    ) -> None:
        super().__init__()
        counts = {"groups": groups, "samples": samples, "max_turns": max_turns, "concurrency": concurrency}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"data.{name}={value}: must be at least 1")
        if temperature <= 0:
            raise ValueError(f"data.temperature={temperature}: must be above 0; on-policy training needs sampling")
        for name in (*(val or {}), *(test or {})):
            if "/" in name or name == "world_model":  # figures are eval/<variant>/<figure> and eval/world_model/…
                raise ValueError(f"data.val, data.test: a variant is named {name!r}: give it another name, without '/'")
        self.model = model
        self.env = env
        self.val, self.test = ({name: v.of(env) for name, v in (some or {}).items()} for some in (val, test))
        self.groups, self.samples, self.max_turns = groups, samples, max_turns
        self.limits, self.temperature, self.tell_rules = limits, temperature, tell_rules
        self.rescale, self.step_penalty = rescale, step_penalty
        self.engine = engine
        self.concurrency = concurrency
        self.validation, self.testing = validation, testing
        self.max_logprob_gap, self.max_error_share = max_logprob_gap, max_error_share
        self.seed, self.trust_remote_code, self.chat_template = seed, trust_remote_code, chat_template
        self.turn_budget = max_turns
        self.cursor = 0  # levels drawn so far
        self.episodes: list[Episode] = []
        self.performance: dict[str, float] = {}
        self.figures: dict[str, float] = {}  # of what `judge` finds out about a training batch
        self._pools = Pools(limits.step_seconds)
        self._questions: dict[str, list[world_model.Question]] = {}
        self._synced: SyncedEngine | None = None
        self._told_of_context = False

    # What Lightning asks for

    def setup(self, stage: str) -> None:
        """Check what can be checked before the engine starts: tokenizer, chat template, environments."""
        _ = self.chat
        for spec in [self.env, *self.val.values(), *self.test.values()]:
            spec.make().close()

    def train_dataloader(self) -> Plays:
        """One batch of fresh episodes, played when it is asked for."""
        self._require_a_share("groups", self.groups)
        return Plays(self._training_batch)

    def val_dataloader(self) -> list[Plays]:
        """One item a variant: its evaluation episodes."""
        return self._variants(self.val, self.validation)

    def test_dataloader(self) -> list[Plays]:
        """One item a variant: its evaluation episodes."""
        return self._variants(self.test, self.testing)

    def predict_dataloader(self) -> list[Plays]:
        """What `test` plays."""
        return self.test_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches go to the device; evaluation episodes are no tensors."""
        return batch.to_device(device) if isinstance(batch, Batch) else batch

    def teardown(self, stage: str) -> None:
        """Give everything back."""
        try:
            if self.engine is not None:
                self.engine.close()
        finally:
            self._pools.close()
            self._synced = None

    def on_exception(self, exception: BaseException) -> None:
        """Give everything back: Lightning calls no teardown after an error."""
        self.teardown("")

    def state_dict(self) -> dict[str, int]:
        """Where the level sequence stands, and the turn budget with the value it started from."""
        return {"cursor": self.cursor, "turn_budget": self.turn_budget, "max_turns": self.max_turns}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on from there; a `max_turns` other than the checkpoint's was asked for by the user and wins."""
        self.cursor = state_dict["cursor"]
        if state_dict["max_turns"] == self.max_turns:
            self.turn_budget = state_dict["turn_budget"]

    @cached_property
    def chat(self) -> Chat:
        """The model's chat format."""
        return Chat(load_tokenizer(self.model, self.trust_remote_code, self.chat_template))

    @cached_property
    def context(self) -> int:
        """Most tokens of a conversation with the model; an engine, which demonstrations do without, may hold fewer."""
        config = AutoConfig.from_pretrained(resolve_model(self.model), trust_remote_code=self.trust_remote_code)
        return context_length(config, None)

    def judge(self, spec: EnvSpec, episodes: list[Episode]) -> dict[str, Mean]:
        """Settle what episodes are worth that the environment could not tell, once all of a rollout are played.

        Here that is nothing: the environment's rewards stand. Only this process's episodes are given.

        Returns:
            Figure → its part of these episodes: of a training batch logged as ``train/<figure>``, of an evaluation as
            ``eval/world_model/<variant>/<figure>``, shares with their interval; the same names on every process.
        """
        return {}

    # Playing

    def _variants(self, specs: dict[str, EnvSpec], how: Evaluation) -> list[Plays]:
        return [Plays(partial(self._evaluate, name, spec, how)) for name, spec in specs.items()]

    def _require_a_share(self, name: str, number: int) -> None:
        _, world_size = place()
        with together():
            if number < world_size:
                raise ValueError(f"data.{name}={number}: each of the {world_size} processes needs at least one")

    def _training_batch(self) -> Batch:
        version = self._module().global_step
        rank, _ = place()
        with together():  # drawn by one process, lest a slow or faulty environment give each of them another list
            levels = self._draw_levels() if rank == 0 else []
        levels, self.cursor = gather((levels, self.cursor))[0]
        samples = range(self.samples)
        iteration = self._trainer().current_epoch  # not the weights' version, which a skipped step leaves as it is
        tasks = [self._task(level, sample, TRAINING, iteration) for level in share(levels) for sample in samples]
        started = time.perf_counter()
        self.episodes = self._play(self.env, tasks, self.turn_budget)
        self._rest()
        in_envs = sum(episode.env_seconds for episode in self.episodes)
        seconds, in_envs = largest([time.perf_counter() - started, in_envs])
        (sampled,) = total([sum(turn.end - turn.start for e in self.episodes for turn in e.turns)])
        self.performance = {
            "rollout_seconds": seconds,
            "env_seconds": in_envs,  # of the rollout's
            "tokens_per_second": sampled / seconds,
        }
        with together():
            judged = self.judge(self.env, self.episodes)
        self.figures = {name: mean.total / mean.number for name, mean in merged(judged).items() if mean.number}
        self._reward(self.episodes)
        return self._packed(version)

    def _reward(self, episodes: list[Episode]) -> None:
        """Give each turn its reward; in an evaluation it is for those who read the episodes."""
        for episode in episodes:
            rewards.shape(episode, rescale=self.rescale, step_penalty=self.step_penalty)

    def _packed(self, version: int = 0) -> Batch:
        """The episodes as a batch, without those that ended in an error.

        Raises:
            TrainingStopped: there are too many of these.
            ValueError: there is nothing to train on.
        """
        self._check_errors(self.episodes)
        with together():
            batch = collate([episode for episode in self.episodes if episode.error is None], version)
        trained_on, played = total([int(batch.valid_S.sum()), len(self.episodes)])
        if not trained_on:
            ends = sum(gather(Counter(str(episode.stop_reason) for episode in self.episodes)), Counter())
            told = ", ".join(f"{count} × {reason}" for reason, count in ends.most_common())
            with together():
                raise ValueError(f"none of {played} episodes holds a token to train on; they ended as {told}")
        return batch

    def _evaluate(self, variant: str, spec: EnvSpec, how: Evaluation) -> Played:
        with together():
            mine, samples = share(range(self._number_of_levels(variant, spec, how))), range(how.samples)
        tasks = [self._task(level, sample, EVALUATION) for level in mine for sample in samples]
        longest = max(self.max_turns, *how.curve)
        episodes = self._play(spec, tasks, longest)
        with together():
            known = self.judge(spec, episodes)
        self._check_errors(episodes)
        self._reward(episodes)
        if how.world_model:
            known |= self._ask_about_the_world(variant, spec, episodes, mine)
        everywhere = gather({episode.category for episode in episodes} - {""})
        categories = tuple(sorted(set().union(*everywhere)))
        return Played(variant, episodes, self.max_turns, self.turn_budget, how.curve, known, categories)

    def _number_of_levels(self, variant: str, spec: EnvSpec, how: Evaluation) -> int:
        there_are: int | None = getattr(self._pools.one(spec).unwrapped, "num_levels", None)
        name = "data.testing.levels" if how is self.testing else "data.validation.levels"
        if how.levels is None:
            if there_are is None:
                raise ValueError(f"{name}=null: {variant!r} has levels without end; give a number")
            return there_are
        if there_are is not None and how.levels > there_are:
            raise ValueError(f"{name}={how.levels}: {variant!r} has {there_are}; give that, fewer, or null for all")
        return how.levels

    def _ask_about_the_world(
        self, variant: str, spec: EnvSpec, episodes: list[Episode], levels: Sequence[int]
    ) -> dict[str, Mean]:
        env: Any = self._pools.one(spec).unwrapped
        with together():
            if not hasattr(env, "read_place"):
                raise ValueError(
                    f"world_model=True: {spec.id} has no places to ask about; set data.validation.world_model and "
                    "data.testing.world_model to false, or take an environment of wmact_envs"
                )
            rules = protocol.instructions(env.rules, env.action_names, env.example_actions) if self.tell_rules else None
            tally = world_model.read_thoughts(env, episodes)
            key = repr((spec, levels))  # an evaluation asks what the one before has asked
            asked = self._questions[key] = self._questions.get(key) or world_model.questions(env, levels)
            prompts = [world_model.ask(self.chat, question, rules) for question in asked]
        for question, reply in zip(asked, self._sync().restarting(lambda: self._complete(prompts)), strict=True):
            tally += world_model.mark(question, reply)
        areas = ("question", "thought")
        read = [area for area, n in zip(areas, total([tally[f"{area}/read"] for area in areas]), strict=True) if n]
        if not read:
            rank_zero_only(print)(
                f"world_model=true, but nothing can be read: {variant!r} has no thought and no answer in the words of "
                "wmact.world_model; for a model that will not learn them set it to false",
                flush=True,
            )
        return world_model.figures(Counter({name: n for name, n in tally.items() if name.startswith(tuple(read))}))

    def _complete(self, prompts: list[list[int]]) -> list[str]:
        """The likeliest continuations."""
        synced = self._sync()
        synced.ready(self._module())
        engine = synced.start(temperature=0.0)
        longest = max(map(len, prompts), default=0)
        room = min(world_model.ANSWER_TOKENS, engine.max_model_len - longest)
        if room < 1:
            raise too_short(engine, longest)
        completions = generate(engine, [Request(i, ids, room, 0) for i, ids in enumerate(prompts)])
        return [self.chat.decode(completion.token_ids) for completion in completions]

    def _play(self, spec: EnvSpec, tasks: list[Task], max_turns: int) -> list[Episode]:
        return self._sync().restarting(lambda: self._play_once(spec, tasks, max_turns))

    def _play_once(self, spec: EnvSpec, tasks: list[Task], max_turns: int) -> list[Episode]:
        module, trainer = self._module(), self._trainer()
        engine = self._sync().ready(module)
        if not tasks:
            return []
        bar = getattr(trainer.progress_bar_callback, "rollout_progress", lambda done, total: None)
        episodes = play(
            self._pools.of(spec, min(self.concurrency, len(tasks))),
            tasks,
            engine,
            self.chat,
            max_turns=max_turns,
            limits=self.limits,
            tell_rules=self.tell_rules,
            policy_version=module.global_step,
            progress=bar,
            stop=self._told_to_stop,
            renew=partial(self._pools.renewed, spec),
        )
        if episodes and all(episode.stop_reason == "context" and not episode.turns for episode in episodes):
            raise too_short(engine, min(len(episode.ids) for episode in episodes))
        cut = sum(episode.stop_reason == "context" for episode in episodes)
        if cut and not self._told_of_context:
            self._told_of_context = True
            print(
                f"{cut} of {len(episodes)} episodes came to the end of the engine's context of {engine.max_model_len} "
                "tokens before their limits (stop/context): lower data.limits or data.max_turns, or raise its "
                "max_model_len",
                flush=True,
            )
        return episodes

    def _sync(self) -> SyncedEngine:
        """The engine with the current weights in it."""
        if self._synced is None:
            computes_in = PRECISIONS[self.trainer.precision] if self.trainer else "auto"
            self.engine = self.engine or default_engine(computes_in, self.trust_remote_code)
            how = (self.temperature, self.max_logprob_gap, self.seed)
            self._synced = SyncedEngine(self.engine, self.model, self.chat, *how)
        return self._synced

    def _rest(self) -> None:
        """Let the engine, if there is one that is awake, give its memory to the update."""
        if self._synced is not None and self._synced.version is not None:
            self._synced.restarting(self._synced.sleep)

    def _told_to_stop(self) -> bool:
        return bool(self.trainer and self.trainer.received_sigterm) or told_to_stop()

    def _draw_levels(self) -> list[int]:
        """Numbers of the next levels of this seed's endless sequence, none twice by level_id."""
        probe: Any = self._pools.one(self.env)
        levels = getattr(probe.unwrapped, "num_levels", None) or 2**31
        if levels < self.groups:
            raise ValueError(f"data.groups={self.groups}: the environment has only {levels} different levels")
        seen: dict[str, int] = {}
        for _ in range(1000 * self.groups):
            level = int(np.random.SeedSequence([self.seed, self.cursor]).generate_state(1)[0]) % levels
            self.cursor += 1
            try:
                with deadline(self.limits.step_seconds, self._told_to_stop):
                    _, info = probe.reset(seed=level, options={"level": level})
            except RolloutInterrupted:
                raise
            except Exception:  # an environment that fails here fails again when played, where it is recorded
                info = {}
            seen.setdefault(str(info.get("level_id", level)), level)
            if len(seen) == self.groups:
                return list(seen.values())
        raise ValueError(f"data.groups={self.groups}: the environment has only {len(seen)} different levels")

    def _task(self, level: int, sample: int, *stream: int) -> Task:
        seed = np.random.SeedSequence([self.seed, *stream, level, sample]).generate_state(1)[0]
        return Task(level, sample, int(seed))

    def _check_errors(self, episodes: Sequence[Episode]) -> None:
        """Stop when too many ended in an error: what is left says nothing, as when a server has gone down."""
        errors = [episode.fault for episode in episodes if episode.error]
        (played,) = total([len(episodes)])
        found = sum(gather(Counter(errors)), Counter())
        if found.total() > self.max_error_share * played:
            often = "; ".join(f"{count} × {line}" for line, count in found.most_common(3))
            with together():
                raise TrainingStopped(f"{found.total()} of {played} episodes ended in an error: {often}")

    def _trainer(self) -> L.Trainer:
        assert self.trainer is not None, "a rollout needs a trainer"
        return self.trainer

    def _module(self) -> AgentModule:
        module = self._trainer().lightning_module
        assert isinstance(module, AgentModule)
        return module
