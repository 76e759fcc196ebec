"""Policy and critic: Hugging Face models that read packed batches (`attention.py`)."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from wmact import smollm2
from wmact.attention import hidden_before
from wmact.types import Batch

LOGIT_BUDGET = 2**24  # entries of logits in memory at once: 64 MiB in float32
ASSETS = Path(__file__).parent / "assets"
BUNDLED = {name: ASSETS / name for name in ("nano", "nano-maze", "nano-sokoban")}
KNOWN = f"{', '.join(map(repr, BUNDLED))} or 'smollm2'"
"""The models that need no hub and no folder, as errors name them."""
TEMPLATES = {"plain": ASSETS / "plain.jinja"}


def resolve_model(model: str) -> str:
    """Return the folder of a bundled model ("nano") or "smollm2", a local folder, checked, or a hub id as it is.

    Raises:
        ValueError: a path that does not exist, or a folder that holds no model.
        ModuleNotFoundError, OSError: "smollm2" cannot be made here (`smollm2.py`).
    """
    if model in BUNDLED:
        return str(BUNDLED[model])
    if model == "smollm2":
        return smollm2.folder()
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"model={model!r}: the folder has no config.json; give a Hugging Face model folder")
        return str(path)
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ValueError(f"model={model!r}: no such folder; give a model folder, a hub id, {KNOWN}")
    return model


@contextmanager
def _one_line_errors(model: str, what: str) -> Iterator[None]:
    """Turn the many ways in which loading fails into one line that names the model and the ways out."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        reason = textwrap.shorten(str(error), 200, placeholder=" …")
        there = "" if Path(model).is_dir() else f" (such as `hf download {model} --local-dir FOLDER` writes)"
        raise ValueError(
            f"model={model!r}: {what} cannot be loaded; give a Hugging Face model folder{there}, an id that the hub "
            f"(or its local cache) has, or {KNOWN} ({reason})"
        ) from error


def load_tokenizer(
    model: str, trust_remote_code: bool = False, chat_template: str | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or hub id.

    Args:
        chat_template: file of another chat template than the tokenizer's own, or "plain" for the bundled one.

    Raises:
        ValueError: there is none, or no such file.
    """
    folder = resolve_model(model)
    with _one_line_errors(model, "a tokenizer"):
        if Path(folder).is_dir() and not list(Path(folder).glob("tokenizer*")):
            raise ValueError("the folder holds no tokenizer files (tokenizer.json, tokenizer_config.json)")
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if chat_template is not None:
        path = TEMPLATES.get(chat_template, Path(chat_template).expanduser())
        if not path.is_file():
            raise ValueError(f"model.chat_template={chat_template!r}: no such file; give a Jinja file, or 'plain'")
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    return tokenizer


def load_model(model: str, trust_remote_code: bool = False, from_scratch: bool = False) -> PreTrainedModel:
    """Load a causal language model that reads packed batches, in training mode, from a model folder or hub id.

    On the meta device it has no weights, and a folder with a config.json is enough.

    Args:
        from_scratch: take its configuration only, and draw weights from torch's global generator.

    Raises:
        ValueError: there is none, or it is of an architecture that cannot read packed batches.
    """
    folder = resolve_model(model)
    config_only = from_scratch or torch.get_default_device().type == "meta"
    how: dict[str, Any] = {
        "dtype": torch.float32,  # the weights that are trained; the trainer's precision decides what computes
        "attn_implementation": "wmact_packed",
        "trust_remote_code": trust_remote_code,
    }
    with _one_line_errors(model, "its configuration" if config_only else "its weights"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        text = config.get_text_config()
        for name, value in text.to_dict().items():
            if "drop" in name and isinstance(value, float):
                setattr(text, name, 0.0)  # what is trained is what has played, and the engine drops nothing
        if config_only:
            loaded = AutoModelForCausalLM.from_config(config, **how)
        else:
            loaded = AutoModelForCausalLM.from_pretrained(folder, config=config, **how)
    _require_packable(loaded, model)
    return loaded.train()  # it comes in evaluation mode, which checkpoints no gradients, and Lightning leaves it so


def _require_packable(lm: PreTrainedModel, model: str) -> None:
    """Refuse a network in which one episode of a packed row would reach into the next."""
    kinds = {*(getattr(lm.config.get_text_config(), "layer_types", None) or ())}
    kinds -= {"full_attention", "sliding_attention"}
    if kinds or lm._is_stateful or not lm.is_backend_compatible():
        of = f" ({', '.join(sorted(kinds))})" if kinds else ""
        raise ValueError(
            f"model={model!r}: {type(lm).__name__} has layers{of} that cannot be kept to one episode of a packed row; "
            "take a model whose layers are all ordinary attention"
        )


class Policy(nn.Module):
    """A causal language model that scores packed batches.

    Args:
        model: folder, hub id, "nano" or "smollm2"; or a model that is there already, with attention "wmact_packed".
        temperature: of the sampling whose distribution is scored.
        gradient_checkpointing: recompute activations in the backward pass; less memory, a third more compute.
    """

    def __init__(
        self,
        model: str | PreTrainedModel,
        temperature: float = 1.0,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature={temperature}: must be above 0")
        self.lm = load_model(model, trust_remote_code) if isinstance(model, str) else model
        self.temperature = temperature
        if gradient_checkpointing:
            self.lm.gradient_checkpointing_enable()

    def forward(self, batch: Batch, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return log-probability of every sampled token and entropy of its distribution, both (S,) float32.

        Args:
            tokens: where the tokens stand that are scored, in place of the sampled ones.
        """
        tokens = batch.token_S if tokens is None else tokens
        hidden_SH = hidden_before(self.lm.base_model, batch, tokens)
        targets_S = batch.ids_T[tokens]
        head = self.lm.get_output_embeddings()
        chunk = max(1, LOGIT_BUDGET // head.weight.size(0))
        if hidden_SH.size(0) <= chunk:
            return self._score(hidden_SH, targets_S)
        # The logits of a chunk live only while it is scored, and are computed again in the backward pass.
        parts = [
            checkpoint(self._score, h, t, use_reentrant=False)
            for h, t in zip(hidden_SH.split(chunk), targets_S.split(chunk), strict=True)
        ]
        logprobs, entropies = zip(*parts, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def hidden(self, batch: Batch) -> Tensor:
        """Return (S, hidden): what `forward` predicts each sampled token from. For a critic that shares the trunk."""
        return hidden_before(self.lm.base_model, batch, batch.token_S)

    def _score(self, hidden_SH: Tensor, targets_S: Tensor) -> tuple[Tensor, Tensor]:
        config = self.lm.config.get_text_config()
        scale = (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
        logits_SV = scale * self.lm.get_output_embeddings()(hidden_SH).float()  # scaled in Cohere's and Granite's
        softcap = getattr(config, "final_logit_softcapping", None)
        if softcap:  # Gemma
            logits_SV = softcap * torch.tanh(logits_SV / softcap)
        log_p_SV = torch.log_softmax(logits_SV / self.temperature, dim=-1)
        logprobs_S = log_p_SV.gather(1, targets_S[:, None])[:, 0]
        return logprobs_S, -(log_p_SV.exp() * log_p_SV).sum(-1)


class Critic(nn.Module):
    """State values: a transformer trunk and a linear head that starts at zero.

    Args:
        trunk: the network below the head: its own copy (WMAct's lineage), or a policy, to share its trunk. That stays
            the policy's: it is trained, saved and sharded as a part of it, and no part of the critic.
    """

    def __init__(self, trunk: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self._lender = (trunk,) if isinstance(trunk, Policy) else ()  # in a tuple it is no part of this module
        if not self._lender:
            self.trunk = trunk
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_pretrained(
        cls, model: str | PreTrainedModel, gradient_checkpointing: bool = False, trust_remote_code: bool = False
    ) -> "Critic":
        """A critic whose trunk starts from a model's weights, or is that of a model that is there already."""
        # Not by AutoModel, which for an untied model reports at length that it has no use for the output layer.
        lm = load_model(model, trust_remote_code) if isinstance(model, str) else model
        trunk: Any = lm.base_model
        if gradient_checkpointing:
            trunk.gradient_checkpointing_enable()
        return cls(trunk, trunk.config.get_text_config().hidden_size)

    def forward(self, batch: Batch) -> Tensor:
        """Return (S,) float32: the value of the state in which each sampled token was about to be written."""
        hidden_SH = self._lender[0].hidden(batch) if self._lender else hidden_before(self.trunk, batch, batch.token_S)
        return self.head(hidden_SH).float()[:, 0]


def shard(network: Policy | Critic, mesh: DeviceMesh, computes_in: torch.dtype | None = None) -> None:
    """Cut the weights of a network into shards (FSDP2): decoder layer by decoder layer, then what is left of it.

    Between passes every parameter is a shard, the outermost ones too. Gradients are added up over processes, not
    averaged, because a loss is divided by the tokens of all of them.

    Args:
        computes_in: weights are put together in this precision for a pass; their gradients are added up in their own.
    """
    if isinstance(network, FSDPModule):
        return
    precision = MixedPrecisionPolicy(param_dtype=computes_in, reduce_dtype=computes_in and torch.float32)
    for part in [*decoder_layers(network), network]:
        sharded = fully_shard(part, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
        sharded.set_gradient_divide_factor(1)
        sharded.set_force_sum_reduction_for_comms(True)
    if isinstance(network, Policy):
        register_fsdp_forward_method(network, "hidden")


def decoder_layers(network: nn.Module) -> list[nn.Module]:
    """The parts that its architecture says are not to be divided."""
    models = [module for module in network.modules() if isinstance(module, PreTrainedModel)]
    names = {name for model in models for name in model._no_split_modules or ()}
    return [module for module in network.modules() if type(module).__name__ in names]
