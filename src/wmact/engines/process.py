"""vLLM as a guest of the training process. It expects to own its process; what it changes there is undone here."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

INHERITED = ("LD_PRELOAD", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")  # set by or for vLLM, and for nobody else
REPLACED: tuple[tuple[Any, str], ...] = (  # by vllm/v1/worker/cpu/shm.py, once, when imported, and by its CPUWorker
    (torch, "Event"),
    (torch, "set_num_threads"),
    (torch.Tensor, "pin_memory"),
    (torch.Tensor, "record_stream"),
    (torch.accelerator, "empty_cache"),
    (torch.accelerator, "get_memory_info"),
    (torch.accelerator, "synchronize"),
    (torch.cuda, "Event"),
    (torch.cuda, "Stream"),
    (torch.cuda, "current_stream"),
    (torch.cuda, "set_stream"),
    (torch.cuda, "stream"),
)
_replacements: list[Any] = []  # what vLLM put there; empty until it has run


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Leave the global random states of Python, numpy and torch as they are found."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def preserve_environment() -> Iterator[None]:
    """Hide from later child processes what vLLM's platform code puts in the environment."""
    before = {name: os.environ.get(name) for name in INHERITED}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def guest(keep_group: bool, gpu: int | None = None) -> Iterator[None]:
    """Where vLLM runs.

    Args:
        keep_group: torch's default process group is not of its making and has to outlive it.
        gpu: the one it takes for the current one; training may have another.
    """
    device = nullcontext() if gpu is None else torch.cuda.device(gpu)
    with device, _cpu_torch(), _process_group_kept() if keep_group else nullcontext():
        yield


@contextmanager
def _cpu_torch() -> Iterator[None]:
    """Give vLLM's CPU worker the torch it made for itself, with streams and events that do nothing, only for this long.

    On a GPU it replaces nothing that training could miss.
    """
    if torch.cuda.is_available():
        yield
        return
    originals = [getattr(owner, name) for owner, name in REPLACED]
    _assign(_replacements)
    try:
        yield
    finally:
        _replacements[:] = [getattr(owner, name) for owner, name in REPLACED]
        _assign(originals)


def _assign(values: list[Any]) -> None:
    for (owner, name), value in zip(REPLACED, values, strict=False):  # none before vLLM has run
        setattr(owner, name, value)


@contextmanager
def _process_group_kept() -> Iterator[None]:
    """vLLM's shutdown would destroy torch's default process group, whoever made it."""
    distributed: Any = torch.distributed
    destroy = distributed.destroy_process_group
    distributed.destroy_process_group = lambda group=None: None if group is None else destroy(group)
    try:
        yield
    finally:
        distributed.destroy_process_group = destroy
