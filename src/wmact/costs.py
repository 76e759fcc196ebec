"""What training and playing take of a machine: bytes, FLOPs and seconds, as functions of a network and of its episodes.

Weights, optimizer state, activations, FLOPs and tokens are held against measurements, in the tests or in
`benchmarks/estimate.py`; the cache of the engine, the shares of FSDP2 and the seconds of generation are computed only.
`estimate.py` adds them up.
"""

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from wmact import attention
from wmact.collate import collate
from wmact.models import LOGIT_BUDGET, Policy, decoder_layers
from wmact.module import trainable
from wmact.policy_gradient import PolicyGradient
from wmact.ppo import PPO
from wmact.types import Episode


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
    samples: int = 1  # episodes of a level, which have their first message in common

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
    batch = episode.to_device(torch.device("meta"))
    batch = batch._replace(starts_E=episode.starts_E, group_E=episode.group_E)  # which are read as numbers
    original = attention.scaled_dot_product_attention
    attention.scaled_dot_product_attention = lambda query, key, value, **_: _Flash.apply(query, key, value)
    try:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            policy.hidden(batch)
    finally:
        attention.scaled_dot_product_attention = original
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def unsharded(network: nn.Module, itemsize: int) -> int:
    """Bytes of weights and gradients in one piece while a network that is cut into shards computes.

    FSDP2 (`wmact.models.shard`) puts together what is outside of the decoder layers for the whole pass, and of the
    layers the one that computes and the next one.
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


def reading_flops(trunk: nn.Module, sizes: Sizes, episodes: Episodes, tokens: float) -> float:
    """FLOPs of a forward pass over the first tokens of an episode, if one sample of a level reads its first message."""
    others = 1 - 1 / episodes.samples
    return forward_flops(trunk, sizes, tokens) - others * forward_flops(trunk, sizes, episodes.prompt)


def update_flops(module: PolicyGradient, sizes: Sizes, episodes: Episodes) -> float:
    """FLOPs of one training step.

    A backward pass takes twice a forward pass, and checkpointing another forward pass. The output layer is applied to
    sampled tokens only (with ECHO to those of later messages too), and twice, where their logits come in chunks
    (`Policy.forward`). Samples share a first message that is half of an episode (`attention.fold`). GRPO is taken to
    drop no group.
    """
    cfg = module.settings
    shared = episodes if 2 * episodes.prompt >= episodes.length else episodes._replace(samples=1)
    forward = reading_flops(module.policy.lm.base_model, sizes, shared, episodes.length)
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

    Every given token is read once, because prefixes are cached, and a level's first message by one of its samples, at
    the speed of arithmetic. Then, step by step, each of the episodes `at_once` under way gets a token, in the time that
    all weights and their keys and values take from memory, or that arithmetic takes if that is longer (Pope et al.
    2022, arXiv 2211.05102, section 2). A finished episode makes room for the next one at once.
    """
    weights = matrices(policy.lm.base_model) + sizes.hidden * sizes.vocabulary
    reading = episodes.number * reading_flops(policy.lm.base_model, sizes, episodes, episodes.given)
    average = episodes.given + episodes.sampled / 2  # tokens before the one that is written
    moved = itemsize * weights + at_once * average * sizes.kv_bytes(itemsize)
    attention = 4 * sizes.layers * sizes.heads * sizes.head_dim * average
    computed = at_once * (2 * weights + attention)
    step = max(moved / (machine.bandwidth * machine.mbu), computed / (machine.flops * machine.mfu))
    return reading / (machine.flops * machine.mfu) + episodes.sampled * max(1, episodes.number / at_once) * step
