"""What an experiment takes: memory, tokens and time, told without its weights and without its devices.

    python -m wmact estimate --config configs/paper/maze_qwen3_8b.yaml
    python -m wmact estimate --config configs/paper/maze_qwen3_8b.yaml --model.model configs/paper/qwen3_8b --devices 16

It is the dry run too: the settings are parsed as `fit` parses them, the networks are built on the meta device, for
which a folder with a config.json is enough, environments are made and a few levels read. What does not fit is told at
the end; then the exit code is 1. Every option that is not listed below is one of `fit`.

Episodes are taken to be at their limits, in tokens and turns, unless --sampled and --turns say otherwise. Seconds rest
on assumptions that stand beside them: measure a few iterations and set --mfu and --mbu by them.
"""

import copy
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from wmact import models, protocol
from wmact.chat import Chat
from wmact.cli import CLI, build
from wmact.collate import collate
from wmact.commands import CommandParser
from wmact.data import EnvSpec, default_engine
from wmact.engines import TransformersEngine, VLLMEngine
from wmact.engines.base import context_length
from wmact.models import LOGIT_BUDGET, Policy, decoder_layers, load_model, load_tokenizer, resolve_model
from wmact.module import trainable
from wmact.policy_gradient import PolicyGradient
from wmact.ppo import PPO
from wmact.rollout import NO_ACTION
from wmact.strategies import FSDP2
from wmact.types import Episode

GIB = 2**30
LEVELS = 8  # whose texts are read
MARKUP = 16  # tokens that a chat template puts around a message, where there is no template to look at
RESERVE = 5 * GIB  # of a GPU, for what is not counted: CUDA, NCCL, the engine's own buffers, fragmentation
BYTES = {"32-true": (4, 4), "bf16-mixed": (4, 2), "bf16-true": (2, 2)}
"""Precision of the trainer → bytes of a weight that is trained, and of one that computes."""
DTYPES = {4: torch.float32, 2: torch.bfloat16}


class Machine(NamedTuple):
    """One of the devices."""

    memory: float  # bytes
    flops: float  # a second
    bandwidth: float  # bytes a second between the device and its memory
    mfu: float  # share of `flops` that training and the reading of prompts reach
    mbu: float  # share of `bandwidth` that generation reaches


class Sizes(NamedTuple):
    """Of a decoder."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> "Sizes":
        """Of a model with this `config` of transformers."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        return cls(
            layers=text.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            hidden=text.hidden_size,
            vocabulary=text.vocab_size,
        )

    def kv_bytes(self, itemsize: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * itemsize


class Episodes(NamedTuple):
    """What the episodes of one iteration are like."""

    number: int
    prompt: int  # tokens of the first message
    message: int  # tokens of each later one
    turns: float
    sampled: float  # tokens

    @property
    def given(self) -> float:
        """Tokens of an episode that the model did not write."""
        return self.prompt + (self.turns - 1) * self.message

    @property
    def length(self) -> float:
        """Tokens of an episode."""
        return self.given + self.sampled


# Memory


def count(network: nn.Module) -> int:
    """Parameters; tied ones once."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_trainable(network: nn.Module) -> int:
    """Parameters that an optimizer is for."""
    return sum(parameter.numel() for parameter in trainable(network))


class _Flash(torch.autograd.Function):
    """What attention keeps for its backward pass on a GPU (Dao et al. 2022, arXiv 2205.14135, algorithm 2).

    Queries, keys, values, output, and one float32 a row and head. On the meta device scaled_dot_product_attention would
    take the way that keeps the whole T × T matrix.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out


def activations(policy: Policy, tokens: int, computes_in: torch.dtype) -> int:
    """Bytes that autograd keeps of a forward pass up to the last hidden state, without gradient checkpointing.

    Counted, not derived: the pass is run on the meta device, for one episode of so many tokens, and what it saves is
    added up; each storage once, parameters not at all.
    """
    policy = copy.deepcopy(policy).to(computes_in)
    if policy.lm.is_gradient_checkpointing:
        policy.lm.gradient_checkpointing_disable()
    own = {parameter.untyped_storage()._cdata for parameter in policy.parameters()}
    kept: dict[int, Tensor] = {}  # kept, so that no two storages share an address

    def keep(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage()._cdata
        if tensor.is_meta and address not in own:
            kept[address] = tensor
        return tensor

    episode = collate([Episode("none", -1, "none", 0, 0, 0, ids=[0] * tokens, logprobs=[0.0] * tokens)])
    batch = episode.to_device(torch.device("meta"))._replace(starts_E=episode.starts_E)  # which is read as numbers
    original = models.scaled_dot_product_attention
    models.scaled_dot_product_attention = lambda query, key, value, **_: _Flash.apply(query, key, value)
    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            policy.hidden(batch)
    finally:
        models.scaled_dot_product_attention = original
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def unsharded(network: nn.Module, itemsize: int) -> int:
    """Bytes of weights and gradients in one piece while a network that is cut into shards computes.

    FSDP2 (`models.shard`) puts together what is outside of the decoder layers for the whole pass, and of the layers the
    one that computes and the next one.
    """
    layers = [count(module) for module in decoder_layers(network)]
    return 2 * itemsize * (count(network) - sum(layers) + 2 * max(layers, default=0))


def logits(vocabulary: int, sampled: float) -> int:
    """Bytes while a chunk of logits is scored (`Policy._score`): seven arrays of float32, forward and backward."""
    return 7 * 4 * min(LOGIT_BUDGET, vocabulary * math.ceil(sampled))


# Arithmetic


def matrices(trunk: nn.Module) -> int:
    """Parameters of a trunk that each token is multiplied with: all but embeddings, norms and biases."""
    embeddings = {id(module.weight) for module in trunk.modules() if isinstance(module, nn.Embedding)}
    return sum(p.numel() for p in trunk.parameters() if p.dim() > 1 and id(p) not in embeddings)


def forward_flops(trunk: nn.Module, sizes: Sizes, tokens: float) -> float:
    """FLOPs of a forward pass of a trunk over an episode of so many tokens.

    2 for each token and parameter of a matrix, and 2 · layers · heads · head_dim · tokens² for queries × keys and
    weights × values, halved because attention is causal (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
    """
    return 2 * matrices(trunk) * tokens + 2 * sizes.layers * sizes.heads * sizes.head_dim * tokens**2


def update_flops(module: PolicyGradient, sizes: Sizes, episodes: Episodes) -> float:
    """FLOPs of one training step.

    A backward pass takes twice a forward pass, and checkpointing another forward pass. The output layer is applied to
    sampled tokens only (with ECHO to those of later messages too), and twice, where their logits come in chunks
    (`Policy.forward`). GRPO is taken to drop no group.
    """
    cfg = module.settings
    forward = forward_flops(module.policy.lm.base_model, sizes, episodes.length)
    scored = episodes.sampled + (episodes.given - episodes.prompt if cfg.echo_coef else 0)
    output = 2 * sizes.hidden * sizes.vocabulary * scored
    in_chunks = scored * sizes.vocabulary > LOGIT_BUDGET
    networks = 1 + isinstance(module, PPO)  # policy and critic; a shared trunk saves memory, not compute
    both = 3 if cfg.lora is None else 2  # passes there and back; what is frozen has no gradient of its own
    passes = networks * (both + cfg.gradient_checkpointing) * forward + (both + in_chunks) * output
    without_gradient = (cfg.epochs * cfg.minibatches > 1) + (module.reference is not None)
    before = forward + 2 * sizes.hidden * sizes.vocabulary * episodes.sampled
    return episodes.number * (cfg.epochs * passes + without_gradient * before)


# Time


def generation_seconds(
    policy: Policy, sizes: Sizes, itemsize: int, episodes: Episodes, at_once: float, machine: Machine
) -> float:
    """Seconds in which one engine plays its share of the episodes.

    Every given token is read once, because prefixes are cached, at the speed of arithmetic. Then, step by step, each of
    the episodes `at_once` under way gets a token, in the time that all weights and their keys and values take from
    memory, or that arithmetic takes if that is longer (Pope et al. 2022, arXiv 2211.05102, section 2). A finished
    episode makes room for the next one at once.
    """
    weights = matrices(policy.lm.base_model) + sizes.hidden * sizes.vocabulary
    reading = episodes.number * forward_flops(policy.lm.base_model, sizes, episodes.given)
    average = episodes.given + episodes.sampled / 2  # tokens before the one that is written
    moved = itemsize * weights + at_once * average * sizes.kv_bytes(itemsize)
    attention = 4 * sizes.layers * sizes.heads * sizes.head_dim * average
    computed = at_once * (2 * weights + attention)
    step = max(moved / (machine.bandwidth * machine.mbu), computed / (machine.flops * machine.mfu))
    return reading / (machine.flops * machine.mfu) + episodes.sampled * max(1, episodes.number / at_once) * step


# The experiment


class Unweighed(CLI):
    """Parses as `fit` does and builds networks on the meta device; there is no trainer, and nothing is run."""

    def instantiate_classes(self) -> None:
        """Build all but the trainer, which would ask for its devices."""
        with torch.device("meta"):
            self.config_init = self.parser.instantiate_classes(self.config)

    def after_instantiate_classes(self) -> None:
        """There is no run to prepare."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


def read_experiment(words: Sequence[str]) -> CLI:
    """Return the experiment that `fit` would run with these words, without weights and without a trainer.

    Raises:
        ValueError: it is none.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        return build(["fit", *words], cli=Unweighed)


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
        engine = self.data.engine or default_engine(self.data.trust_remote_code)
        if not isinstance(engine, VLLMEngine | TransformersEngine):
            raise ValueError(f"estimate knows VLLMEngine and TransformersEngine, and not {type(engine).__name__}")
        self.module, self.engine = module, engine
        self.on_gpu = self.trainer["accelerator"] != "cpu"
        self.precision = self.trainer["precision"] or "32-true"
        if self.precision not in BYTES:
            raise ValueError(f"trainer.precision={self.precision!r}: estimate knows {', '.join(BYTES)}")
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
            raise ValueError(f"trainer.devices={devices!r}: say how many with --devices")
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
        return Episodes(data.groups * data.samples, *self.texts[variant], data.max_turns, sampled)

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
    for level in range(LEVELS):
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
    stored, computing = BYTES[run.precision]
    shards = run.processes if run.sharded else 1
    gradients = stored * count_trainable(module) / shards
    if run.precision == "bf16-mixed" and not run.sharded:
        # Autocast lowers single operations: told is the most, as if all were float32 and every matrix had its copy.
        kept = activations(module.policy, run.micro_batch, torch.float32) + computing * matrices(trunk)
        computing = stored
    else:
        kept = activations(module.policy, run.micro_batch, DTYPES[computing])
    # What goes into each layer, and one layer at a time (Chen et al. 2016, arXiv 1604.06174, section 4).
    layers = run.sizes.layers
    recomputed = computing * layers * run.sizes.hidden * run.micro_batch + kept / layers
    as_configured = (recomputed, kept) if module.settings.gradient_checkpointing else (kept, recomputed)
    return Training(
        weights=stored * count(module) / shards,
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
    for variant in run.texts:
        length = run.episodes(variant).length
        if length > run.context:
            of = f" of {variant!r}" if variant else ""
            told.append(
                f"context: an episode{of} may take {length:,.0f} tokens, and the engine holds {run.context:,}: it ends "
                "there (stop reason context)"
            )
    request = run.context * run.sizes.kv_bytes(found.serving.itemsize)
    if isinstance(run.engine, VLLMEngine) and found.serving.kv_cache < request:
        told.append(f"KV cache: vLLM starts only with room for max_model_len={run.context} tokens, {gib(request)}")
    if run.data.groups % run.processes:
        told.append(
            f"data.groups={run.data.groups} on {run.processes} processes: some play a level more, and the others wait"
        )
    return told


# What is printed


def gib(size: float) -> str:
    """Bytes as GiB, or MiB where they are few."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.2f} MiB"


def table(run: Experiment, machine: Machine, found: Estimate) -> str:
    """Everything, a line each."""
    training, serving, expected, limits = found.training, found.serving, found.expected, run.episodes()
    module, sizes, iterations = run.module, run.sizes, run.trainer["max_epochs"] or -1
    checkpointing = "without" if module.settings.gradient_checkpointing else "with"
    kv_token = sizes.kv_bytes(serving.itemsize)
    cut = f"in {run.processes} shards" if run.sharded else "whole on each device"
    stored = BYTES[run.precision][0]
    learnt = count_trainable(module)
    frozen = count(module.reference) if module.reference and module.settings.lora is None else 0
    shared = "a head on the policy's trunk" if module.settings.get("critic") == "shared" else ""
    engine_stays = "gone during the update" if not serving.during_update else "stays during the update"
    rows: list[tuple[str, str, str]] = [
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
        ("  weights, at the start", gib(run.processes * stored * _loaded(module)), "every process reads them whole"),
        ("  weights, to the engines", gib(run.processes * stored * run.served), "once an iteration"),
        ("  a checkpoint", gib(stored * (3 * learnt + frozen)), "on the disk too"),
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
    wide, broad = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{name:{wide}}  {value:>{broad}}  {note}".rstrip() for name, value, note in rows]
    assumed = (
        f"assumed: {machine.flops / 1e12:,.4g} TFLOPS of which updates and prompts reach {machine.mfu:.0%}, "
        f"{machine.bandwidth / 1e9:,.4g} GB/s of which generation reaches {machine.mbu:.0%}; "
        + (f"{gib(RESERVE)} of a device are for CUDA, NCCL and the engine's own buffers; " if run.on_gpu else "")
        + "not counted: environments, traffic between devices, checkpoints"
    )
    return "\n".join([*lines, "", assumed])


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
    told = misfits(run, machine, found)
    print("\n".join(f"does not fit: {line}" for line in told) or "fits", flush=True)
    if told:
        sys.exit(1)
