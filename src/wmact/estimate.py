"""What an experiment takes: memory, tokens and time, told without its weights and without its devices.

    python -m wmact estimate --config configs/paper/maze_qwen3_8b.yaml
    python -m wmact estimate --config configs/paper/maze_qwen3_8b.yaml --model.model configs/paper/qwen3_8b --devices 16

It is the dry run too: the settings are parsed as `fit` parses them, the networks are built on the meta device, for
which a folder with a config.json is enough, environments are made and a few levels read. What does not fit is told at
the end; then the exit code is 1. Every option that is not listed below is one of `fit`.

Episodes are taken to be at their limits, in tokens and turns, unless --sampled and --turns say otherwise. Seconds rest
on assumptions that stand beside them: measure a few iterations and set --mfu and --mbu by them.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from wmact import protocol
from wmact.chat import Chat
from wmact.cli import read_experiment
from wmact.commands import CommandParser
from wmact.costs import (
    Episodes,
    Machine,
    Sizes,
    activations,
    count,
    count_trainable,
    generation_seconds,
    logits,
    matrices,
    unsharded,
    update_flops,
)
from wmact.engines import TransformersEngine, VLLMEngine
from wmact.engines.base import context_length
from wmact.environments import EnvSpec
from wmact.models import LOGIT_BUDGET, load_model, load_tokenizer, resolve_model
from wmact.policy_gradient import PolicyGradient
from wmact.ppo import PPO
from wmact.rollout import NO_ACTION
from wmact.strategies import FSDP2, PRECISIONS, check_precision
from wmact.weight_sync import default_engine

GIB = 2**30
LEVELS = 8  # whose texts are read
MARKUP = 16  # tokens that a chat template puts around a message, where there is no template to look at
RESERVE = 5 * GIB  # of a GPU, for what is not counted: CUDA, NCCL, the engine's own buffers, fragmentation
STORED = 4  # bytes of a weight that is trained


# The experiment


class Experiment:
    """What there is to be estimated, with networks on the meta device.

    Args:
        args: the words that would follow `fit`.

    Raises:
        ValueError: it cannot be run, or is none of the experiments that can be estimated.
    """

    def __init__(self, args: Sequence[str]) -> None:
        cli = read_experiment(args)
        module, self.data, self.trainer = (cli._get(cli.config_init, key) for key in ("model", "data", "trainer"))
        if not isinstance(module, PolicyGradient):
            raise ValueError(f"estimate knows PPO and GRPO, and model is {type(module).__name__}")
        self.precision = self.trainer["precision"] or "32-true"
        check_precision(self.precision, torch.device("cpu"))  # the devices meant are not here
        self.computing = getattr(torch, PRECISIONS[self.precision])
        engine = self.data.engine or default_engine(PRECISIONS[self.precision], self.data.trust_remote_code)
        if not isinstance(engine, VLLMEngine | TransformersEngine):
            raise ValueError(f"estimate knows VLLMEngine and TransformersEngine, and not {type(engine).__name__}")
        self.module, self.engine = module, engine
        self.on_gpu = self.trainer["accelerator"] != "cpu"
        strategy = self.trainer["strategy"]
        self.sharded = isinstance(strategy, FSDP2)
        if not self.sharded and strategy not in ("auto", "ddp"):
            raise ValueError(f"trainer.strategy is {strategy}: use ddp, or --config configs/strategies/fsdp.yaml")
        self.processes = self._processes()
        if self.data.groups < self.processes:
            few = f"data.groups={self.data.groups}"
            raise ValueError(f"{few}: each of the {self.processes} processes needs at least one")
        self.share = math.ceil(self.data.groups / self.processes) * self.data.samples
        self.config = self.module.policy.lm.config
        self.sizes = Sizes.of(self.config)
        with torch.device("meta"):
            self.served = count(load_model(self.data.model, self.data.trust_remote_code))  # without adapters
        self.context = context_length(self.config, self.engine._max_model_len)
        self.texts = self._texts()

    def _processes(self) -> int:
        devices = self.trainer["devices"]
        number = len(devices) if isinstance(devices, list) else 1 if devices == "auto" and not self.on_gpu else devices
        if not str(number).isdecimal() or int(number) < 1:
            raise ValueError(f"trainer.devices={devices!r}: give a number from 1 on with --devices")
        return int(number) * int(self.trainer["num_nodes"])

    def _texts(self) -> dict[str, tuple[int, int]]:
        """Most tokens of a first and of a later message, by variant; "" is what is trained on."""
        folder, chat = Path(resolve_model(self.data.model)), None
        self.has_tokenizer = not folder.is_dir() or any(folder.glob("tokenizer*"))
        if self.has_tokenizer:
            chat = Chat(load_tokenizer(self.data.model, self.data.trust_remote_code, self.data.chat_template))
        specs = {"": self.data.env, **self.data.val, **self.data.test}
        return {name: read_texts(spec, chat, self.data.tell_rules) for name, spec in specs.items()}

    def episodes(self, variant: str = "") -> Episodes:
        """Those of an iteration, at their limits."""
        data = self.data
        sampled = min(data.limits.episode_tokens, data.max_turns * data.limits.turn_tokens)
        return Episodes(data.groups * data.samples, *self.texts[variant], data.max_turns, sampled, data.samples)

    @property
    def longest(self) -> int:
        """Most tokens of an episode that is trained on."""
        return int(min(self.episodes().length, self.context))

    @property
    def micro_batch(self) -> int:
        """Most tokens that go through a network at once: an episode is not cut (`Batch.split`)."""
        return max(self.longest, min(self.module.settings.token_budget, self.share * self.longest))


def read_texts(spec: EnvSpec, chat: Chat | None, tell_rules: bool) -> tuple[int, int]:
    """Most tokens of a first message and of a later one, in a few levels, each action taken in turn.

    Without a tokenizer a token is a byte: a byte-level tokenizer makes no more.
    """
    env: Any = spec.make()
    rules, names, example = (getattr(env.unwrapped, key, ()) for key in ("rules", "action_names", "example_actions"))
    one_action = getattr(env.unwrapped, "one_action", False)
    told = protocol.instructions(rules or "", names, example, one_action) if tell_rules else None
    first, later = [], []
    for level in range(min(LEVELS, getattr(env.unwrapped, "num_levels", None) or LEVELS)):
        observation, _ = env.reset(seed=level, options={"level": level})
        first.append(protocol.first_message(told, observation))
        later.append(observation)
        for action in names:
            observation, _, terminated, truncated, _ = env.step(action)
            later.append(observation)
            if terminated or truncated:
                break
    env.close()
    later = [NO_ACTION * tell_rules + text for text in later]
    if chat is None:
        return max(map(_bytes, first)), max(map(_bytes, later))
    return max(len(chat.open(text)) for text in first), max(len(chat.reply_to(text)) for text in later)


def _bytes(text: str) -> int:
    return len(text.encode()) + MARKUP


class Training(NamedTuple):
    """Bytes of a device that trains."""

    weights: float
    gradients: float
    optimizer: float
    whole: float  # of what is cut into shards, put together for a pass
    activations: float  # as configured
    alternative: float  # activations with gradient checkpointing if it is off, without if it is on
    logits: float

    @property
    def state(self) -> float:
        """What stays between updates; gradients do not."""
        return self.weights + self.optimizer

    @property
    def peak(self) -> float:
        """In an update: in a pass, or in the step, for which AdamW makes as much as another copy of the gradients."""
        return self.state + self.gradients + max(self.whole + self.activations + self.logits, self.gradients)


def training_memory(run: Experiment) -> Training:
    """Of weights that are trained by AdamW with its two averages."""
    module, trunk = run.module, run.module.policy.lm.base_model
    computing = run.computing.itemsize
    shards = run.processes if run.sharded else 1
    gradients = STORED * count_trainable(module) / shards
    if run.precision == "bf16-mixed" and not run.sharded:
        # Autocast lowers single operations: told is the most, as if all were float32 and every matrix had its copy.
        kept = activations(module.policy, run.micro_batch, torch.float32) + computing * matrices(trunk)
        computing = STORED
    else:
        kept = activations(module.policy, run.micro_batch, run.computing)
    # What goes into each layer, and one layer at a time (Chen et al. 2016, arXiv 1604.06174, section 4).
    layers = run.sizes.layers
    recomputed = computing * layers * run.sizes.hidden * run.micro_batch + kept / layers
    as_configured = (recomputed, kept) if module.settings.gradient_checkpointing else (kept, recomputed)
    # FSDP2 puts every network's shards into memory of their own, those of a base that they share too.
    held = sum(map(count, module.children())) if run.sharded else count(module)
    return Training(
        weights=STORED * held / shards,
        gradients=gradients,
        optimizer=2 * gradients,
        whole=unsharded(module.policy, computing) if run.sharded else 0,
        activations=as_configured[0],
        alternative=as_configured[1],
        logits=logits(run.sizes.vocabulary, run.micro_batch),
    )


class Serving(NamedTuple):
    """Bytes of an engine, of which every process has one."""

    itemsize: int
    weights: float
    kv_cache: float
    during_update: float  # what stays on the device that trains
    apart: bool  # on a device of its own

    @property
    def awake(self) -> float:
        """While it generates."""
        return self.weights + self.kv_cache


def engine_memory(run: Experiment, machine: Machine) -> Serving:
    """Of vLLM, whose cache is of a given size, or of `TransformersEngine`, whose cache grows as needed."""
    engine = run.engine
    dtype: Any = (run.config.dtype or torch.float32) if engine.dtype == "auto" else getattr(torch, engine.dtype)
    weights = dtype.itemsize * run.served
    if isinstance(engine, TransformersEngine):
        rows = min(engine.max_num_seqs, run.share)
        kv_cache = rows * run.longest * run.sizes.kv_bytes(dtype.itemsize)
        return Serving(dtype.itemsize, weights, kv_cache, weights, False)
    given = engine.kv_cache_gib or (None if run.on_gpu else 1.0)
    kv_cache = given * GIB if given else max(engine.gpu_memory_utilization * machine.memory - weights, 0)
    apart = engine.first_gpu is not None
    return Serving(dtype.itemsize, weights, kv_cache, 0 if apart or engine.sleep_mode else weights + kv_cache, apart)


class Estimate(NamedTuple):
    """What an experiment takes; seconds are of one iteration."""

    training: Training
    serving: Serving
    expected: Episodes
    under_way: float  # episodes that an engine has room for at once, as they are expected to be
    generation: float
    update: float
    flops: float  # of the update, of all devices
    evaluation: float  # seconds of one evaluation

    @property
    def rollout_peak(self) -> float:
        """Bytes of a device that trains, while episodes are played."""
        return self.training.state + (0 if self.serving.apart else self.serving.awake)

    @property
    def update_peak(self) -> float:
        """Bytes of a device that trains, while it trains."""
        return self.training.peak + self.serving.during_update


def estimate(run: Experiment, machine: Machine, sampled: float | None = None, turns: float | None = None) -> Estimate:
    """Tell what an experiment takes.

    Args:
        sampled: tokens that an episode samples on average; None: as many as it may.
        turns: turns of an episode on average; None: as many as it may have.
    """
    limits = run.episodes()
    expected = limits._replace(
        sampled=min(sampled or limits.sampled, limits.sampled), turns=min(turns or limits.turns, limits.turns)
    )
    serving = engine_memory(run, machine)
    room = serving.kv_cache / run.sizes.kv_bytes(serving.itemsize) / (expected.given + expected.sampled / 2)
    under_way = max(1.0, min(run.engine.max_num_seqs, run.data.concurrency, run.share, room))
    one = expected._replace(number=run.share)
    generation = generation_seconds(run.module.policy, run.sizes, serving.itemsize, one, under_way, machine)
    flops = update_flops(run.module, run.sizes, expected)
    if run.data.validation.levels is None:
        raise ValueError("data.validation.levels=null: give a number of levels to estimate with")
    evaluated = run.data.validation.levels * run.data.validation.samples * len(run.data.val)
    return Estimate(
        training=training_memory(run),
        serving=serving,
        expected=expected,
        under_way=under_way,
        generation=generation,
        update=flops / (run.processes * machine.flops * machine.mfu),
        flops=flops,
        evaluation=generation * evaluated / (run.processes * run.share),
    )


def misfits(run: Experiment, machine: Machine, found: Estimate) -> list[str]:
    """What does not fit, one line each."""
    told = []
    peaks = {"rollout": found.rollout_peak, "update": found.update_peak}
    if found.serving.apart:
        peaks["engine"] = found.serving.awake
    for what, peak in peaks.items():
        if peak + RESERVE * run.on_gpu > machine.memory:
            told.append(f"{what}: {gib(peak)} and the reserve are more than the {gib(machine.memory)} of a device")
    request = run.context * run.sizes.kv_bytes(found.serving.itemsize)
    if isinstance(run.engine, VLLMEngine) and found.serving.kv_cache < request:
        told.append(f"KV cache: vLLM starts only with room for max_model_len={run.context} tokens, {gib(request)}")
    return told


def notes(run: Experiment) -> list[str]:
    """What works, and may not be meant."""
    told = []
    for variant in run.texts:
        length = run.episodes(variant).length
        if length > run.context:
            of = f" of {variant!r}" if variant else ""
            told.append(
                f"context: an episode{of} may take {length:,.0f} tokens, and the engine holds {run.context:,}: it ends "
                "there (stop reason context)"
            )
    if run.data.groups % run.processes:
        told.append(
            f"data.groups={run.data.groups} on {run.processes} processes: some play a level more, and the others wait"
        )
    return told


# What is printed


def gib(size: float) -> str:
    """Bytes as GiB, or MiB where they are few."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.2f} MiB"


Row = tuple[str, str, str]
"""What it is, how much, and a note."""


def table(run: Experiment, machine: Machine, found: Estimate) -> str:
    """Everything, a line each."""
    rows = [*memory_rows(run, machine, found), *work_rows(run, found)]
    wide, broad = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{name:{wide}}  {value:>{broad}}  {note}".rstrip() for name, value, note in rows]
    assumed = (
        f"assumed: {machine.flops / 1e12:,.4g} TFLOPS of which updates and prompts reach {machine.mfu:.0%}, "
        f"{machine.bandwidth / 1e9:,.4g} GB/s of which generation reaches {machine.mbu:.0%}; "
        + (f"{gib(RESERVE)} of a device are for CUDA, NCCL and the engine's own buffers; " if run.on_gpu else "")
        + "not counted: environments, traffic between devices, checkpoints"
    )
    return "\n".join([*lines, "", assumed])


def memory_rows(run: Experiment, machine: Machine, found: Estimate) -> list[Row]:
    """Parameters, and the memory of a device and of the host."""
    training, serving, module, sizes = found.training, found.serving, run.module, run.sizes
    checkpointing = "without" if module.settings.gradient_checkpointing else "with"
    kv_token = sizes.kv_bytes(serving.itemsize)
    cut = f"in {run.processes} shards" if run.sharded else "whole on each device"
    learnt = count_trainable(module)
    frozen = count(module.reference) if module.reference and module.settings.lora is None else 0
    shared = "a head on the policy's trunk" if module.settings.get("critic") == "shared" else ""
    engine_stays = "gone during the update" if not serving.during_update else "stays during the update"
    return [
        ("parameters", "", ""),
        ("  policy", f"{count(module.policy):,}", ""),
        *([("  critic", f"{count(module.critic):,}", shared)] if isinstance(module, PPO) else []),
        *([("  reference", f"{count(module.reference):,}", "for the KL term")] if module.reference else []),
        ("memory of a device", gib(machine.memory), f"{run.processes} devices, {run.precision}"),
        ("  weights", gib(training.weights), cut),
        ("  gradients", gib(training.gradients), cut),
        ("  optimizer", gib(training.optimizer), f"AdamW, {cut}"),
        ("  put together for a pass", gib(training.whole), "weights and gradients of two layers and of the rest"),
        ("  activations", gib(training.activations), f"{run.micro_batch:,} tokens at once"),
        (f"    {checkpointing} checkpointing", gib(training.alternative), ""),
        ("  logits", gib(training.logits), f"{max(1, LOGIT_BUDGET // sizes.vocabulary):,} tokens at once at most"),
        ("  engine: weights", gib(serving.weights), engine_stays),
        (
            "  engine: KV cache",
            gib(serving.kv_cache),
            f"{serving.kv_cache / kv_token:,.0f} tokens × {kv_token:,} bytes",
        ),
        ("  at most, rollout", gib(found.rollout_peak), "weights, optimizer" + ("" if serving.apart else ", engine")),
        ("  at most, update", gib(found.update_peak), ""),
        *([("  at most, engine's device", gib(serving.awake), "")] if serving.apart else []),
        ("memory of the host", "", "all processes together"),
        ("  weights, at the start", gib(run.processes * STORED * _loaded(module)), "every process reads them whole"),
        ("  weights, to the engines", gib(run.processes * STORED * run.served), "once an iteration"),
        ("  a checkpoint", gib(STORED * (3 * learnt + frozen)), "on the disk too"),
    ]


def work_rows(run: Experiment, found: Estimate) -> list[Row]:
    """Tokens of an episode, work of an iteration, hours of the run."""
    expected, limits, iterations = found.expected, run.episodes(), run.trainer["max_epochs"] or -1
    rows: list[Row] = [
        ("tokens of an episode", "", "" if run.has_tokenizer else "no tokenizer: a token a byte, which is the most"),
        ("  first message", f"{expected.prompt:,}", "the longest of a few levels"),
        ("  each later message", f"{expected.message:,}", "the longest of a few levels"),
        ("  turns", f"{expected.turns:,.5g}", f"of at most {limits.turns}"),
        ("  sampled", f"{expected.sampled:,.0f}", f"of at most {limits.sampled:,}"),
        ("  at its limits", f"{limits.length:,.0f}", f"of a context of {run.context:,}"),
        ("an iteration", "", f"{expected.number:,} episodes, {found.under_way:.3g} at once on each engine"),
        ("  tokens", f"{expected.number * expected.length:,.0f}", f"{expected.number * expected.sampled:,.0f} sampled"),
        ("  FLOPs of the update", f"{found.flops:.3g}", ""),
        ("  generation", f"{found.generation:,.3g} s", ""),
        ("  update", f"{found.update:,.3g} s", ""),
    ]
    if iterations > 0:
        every = run.trainer["check_val_every_n_epoch"] or 1
        evaluations = 1 + math.ceil(iterations / every)
        training_hours = iterations * (found.generation + found.update) / 3600
        hours = evaluations * found.evaluation / 3600
        rows += [
            ("the run", f"{training_hours + hours:,.3g} h", f"{iterations} iterations"),
            (
                "  of it evaluations",
                f"{hours:,.3g} h",
                f"{evaluations} × {run.data.validation.levels} levels a variant",
            ),
        ]
    return rows


def _loaded(module: PolicyGradient) -> int:
    """Parameters that a process reads: without LoRA, the whole model again for a critic of its own and a reference."""
    if module.settings.lora is not None:
        return count(module)
    critic = module.settings.get("critic") == "separate"
    return count(module.policy) * (1 + critic + (module.reference is not None))


def main(args: Sequence[str]) -> None:
    """Print what an experiment takes. Ends with exit code 1 if something does not fit.

    Raises:
        ValueError: the experiment cannot be run.
    """
    parser = CommandParser("estimate", __doc__)
    parser.add_argument("--devices", type=int, help="stands for --trainer.devices")
    parser.add_argument("--device_memory", type=float, default=79.0, help="GiB of a device (79: sold as 80 GB)")
    parser.add_argument("--flops", type=float, default=989.0, help="TFLOPS of a device (989: H100 SXM, dense bfloat16)")
    parser.add_argument("--bandwidth", type=float, default=3350.0, help="GB/s of its memory (3350: H100 SXM)")
    parser.add_argument("--mfu", type=float, default=0.35, help="share of the FLOPS that updates and prompts reach")
    parser.add_argument("--mbu", type=float, default=0.5, help="share of the bandwidth that generation reaches")
    parser.add_argument("--sampled", type=float, help="mean tokens that an episode samples (as many as it may)")
    parser.add_argument("--turns", type=float, help="mean turns of an episode (as many as it may have)")
    options, words = parser.parse_known_args(args)
    for name in ("device_memory", "flops", "bandwidth", "mfu", "mbu", "sampled", "turns"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            raise ValueError(f"--{name} {getattr(options, name)}: must be above 0")
    if options.devices is not None:
        words += ["--trainer.devices", str(options.devices)]
    run = Experiment(words)
    machine = Machine(
        options.device_memory * GIB, options.flops * 1e12, options.bandwidth * 1e9, options.mfu, options.mbu
    )
    found = estimate(run, machine, options.sampled, options.turns)
    print(table(run, machine, found))
    print("".join(f"note: {line}\n" for line in notes(run)), end="")
    told = misfits(run, machine, found)
    print("\n".join(f"does not fit: {line}" for line in told) or "fits", flush=True)
    if told:
        sys.exit(1)
