"""Low-rank adapters (LoRA, Hu et al. 2021, by peft): the base model stays as it is, and is in memory once.

Policy, critic and the reference of the KL term are networks of their own over the parameters of one base: two with
adapters, the reference without. None is switched on and off, so each can be called, differentiated and checkpointed
whenever it likes. (FSDP2 makes shards of its own for each of them, so there the base is in memory once for each.)
Engines and exported folders know nothing of adapters: they get weights with the adapters added.
"""

import copy
import importlib.util
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from wmact.processes import whole

ADAPTER = "default"  # peft's own name for the only one
Base = TypeVar("Base", str, PreTrainedModel, str | PreTrainedModel)


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on linear layers. There is no dropout: what is trained would not be what has played.

    Args:
        r: rank of an adapter.
        alpha: what an adapter adds is scaled by alpha / r.
        target_modules: last names of the layers that get one, such as [q_proj, v_proj]; null: all linear layers but
            the output layer.
    """

    r: int = 16
    alpha: int = 32
    target_modules: list[str] | None = None

    def __post_init__(self) -> None:
        for name in ("r", "alpha"):
            if getattr(self, name) <= 0:
                raise ValueError(f"model.lora.{name}={getattr(self, name)}: must be above 0")


def adapted(base: Base, lora: LoRA | None) -> Base:
    """Return a network with adapters of its own; every other parameter is that of `base`, the very same, and frozen.

    The adapters are drawn from torch's global generator, and add nothing yet. Without `lora` it is `base` itself.

    Raises:
        ImportError: peft is not installed.
        ValueError: a layer that is asked for does not exist, or can have no adapter.
    """
    if lora is None or isinstance(base, str):
        return base
    if not importlib.util.find_spec("peft"):
        way_out = "pip install --no-deps -r requirements-cpu.txt, or -e '.[lora]'"
        raise ModuleNotFoundError(f"model.lora needs peft: {way_out}", name="peft")
    from peft import LoraConfig, inject_adapter_in_model

    targets = _targets(base, lora.target_modules)
    shared = {id(parameter): parameter for parameter in base.parameters()}
    network = copy.deepcopy(base, shared).requires_grad_(False)
    transposed = all(isinstance(base.get_submodule(name), Conv1D) for name in targets)  # GPT-2
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=targets, fan_in_fan_out=transposed)
    inject_adapter_in_model(config, network)
    return network


def _targets(base: PreTrainedModel, names: list[str] | None) -> list[str]:
    """The full names of the layers that get an adapter."""
    tied = {id(base.get_input_embeddings().weight)}
    output = base.get_output_embeddings()
    linear = {
        name: layer
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear | Conv1D) and id(layer.weight) not in tied
    }
    if names is None:
        return [name for name, layer in linear.items() if layer is not output]
    for asked in names:
        if not any(_is_called(name, asked) for name in linear):
            there_are = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear))
            raise ValueError(
                f"model.lora.target_modules: {asked!r} is no linear layer, or tied to the embedding; there are "
                f"{there_are}"
            )
    return [name for name in linear if any(_is_called(name, asked) for asked in names)]


def _is_called(name: str, asked: str) -> bool:
    return name == asked or name.endswith(f".{asked}")


class Weights(Mapping[str, Tensor]):
    """The parameters of a model by their Hugging Face names, with adapters added to what they adapt.

    A parameter is put together when it is looked up, so that no second model is in memory; the model stays as it is.
    Where it is cut into shards, all processes must look up the same.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {
            name.replace(".base_layer.", "."): parameter
            for name, parameter in model.named_parameters()
            if ".lora_A." not in name and ".lora_B." not in name
        }
        adapters: dict[str, Any] = {f"{n}.weight": m for n, m in model.named_modules() if hasattr(m, "base_layer")}
        self._adapters = adapters

    def __getitem__(self, name: str) -> Tensor:
        weight = whole(self._parameters[name].detach())
        layer = self._adapters.get(name)
        if layer is None:
            return weight
        a, b = (whole(matrix[ADAPTER].weight.detach()) for matrix in (layer.lora_A, layer.lora_B))
        delta = layer.scaling[ADAPTER] * (b @ a)
        return weight + (delta.T if layer.fan_in_fan_out else delta)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)


def fingerprint(base: nn.Module) -> Tensor:
    """Return (1,) int64 that tells one base from another: a checksum of all bytes of its parameters, in their order."""
    found = 0
    for parameter in base.parameters():
        if parameter.is_meta:  # it has no bytes
            continue
        found = zlib.crc32(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data, found)
    return torch.tensor([found])
