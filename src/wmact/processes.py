"""Several processes that act as one: what one of them finds out all of them know, and what ends one of them ends all.

Each plays its own levels with an engine of its own; in between they train as one (DDP, FSDP2). A collective call waits
for every process, so an error in one of them would leave the others waiting. Hence:
- What a process does alone stands in `together`: an error of one is raised by all of them, at the same place.
- Others may have minutes of a rollout before them: who fails in one says so in the group's store (`stop_all`).
- One process tells the user: the first, of an error that all raise; else the one that had its error first (`tells`).

With one process all of this is nothing. Sums are of Python's floats in the order of the ranks: all get the same bits.
"""

import pickle
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist
from torch import Tensor, zeros_like
from torch.distributed.distributed_c10d import _get_default_store
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from wmact.types import Mean, RolloutInterrupted, TrainingStopped

T = TypeVar("T")
FAILED, STOP = "wmact/failed", "wmact/stop"  # in the store: how many processes have failed; whether all shall stop


class Elsewhere(Exception):
    """The cause of an error that another process had: its traceback."""


class Failure(NamedTuple):
    """An error on its way to the other processes."""

    error: Exception
    trace: str


def place() -> tuple[int, int]:
    """Return the rank of this process and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def several() -> bool:
    """Whether there are other processes. (An engine may have made a group of one.)"""
    return place()[1] > 1


def share(items: Sequence[T]) -> Sequence[T]:
    """Return what falls to this process: every n-th item, so that shares differ by one at most."""
    rank, world_size = place()
    return items[rank::world_size]


# Figures


def gather(mine: T) -> list[T]:
    """Return what each process gives, in the order of their ranks; all of them must call it.

    Raises:
        TrainingStopped: another process is gone.
    """
    if not several():
        return [mine]
    everyones: list[Any] = [None] * place()[1]
    with _in_touch():
        dist.all_gather_object(everyones, mine)
    return everyones


def total(figures: Sequence[float]) -> list[float]:
    """Return each figure summed over processes; all of them must call it."""
    return [sum(column) for column in zip(*gather(list(figures)), strict=True)]


def merged(means: Mapping[str, Mean]) -> dict[str, Mean]:
    """Return means over processes, of which each gives its parts by the same names; all of them must call it."""
    everyones = gather(dict(means))
    return {name: Mean(*map(sum, zip(*(each[name] for each in everyones), strict=True))) for name in means}


def largest(figures: Sequence[float]) -> list[float]:
    """Return each figure's maximum over processes; all of them must call it."""
    return [max(column) for column in zip(*gather(list(figures)), strict=True)]


def require_same(settings: Mapping[str, str]) -> None:
    """Refuse processes that were started with different settings.

    Raises:
        ValueError: they were; the message names the first setting that differs.
    """
    everyones = gather(dict(settings))
    with together():
        for rank, others in enumerate(everyones):
            for name in everyones[0] | others:
                here, there = (each.get(name, "missing") for each in (everyones[0], others))
                if here != there:
                    raise ValueError(
                        f"processes with different settings: {name} is {here} in process 0 and {there} in process "
                        f"{rank}; start all of them with the same command"
                    )


# Weights


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor in one piece: one that is cut into shards is put together, in the CPU's memory."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def sum_gradients(parameters: Iterable[Parameter]) -> None:
    """Add up the gradients of all processes; those of shards are sums already, from the backward pass."""
    if not several():
        return
    plain = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    somewhere = largest([float(parameter.grad is not None) for parameter in plain])  # an expert may be used in one only
    pending = []
    for parameter, used in zip(plain, somewhere, strict=True):
        if used:
            parameter.grad = zeros_like(parameter) if parameter.grad is None else parameter.grad
            pending.append(dist.all_reduce(parameter.grad, async_op=True))
    for work in pending:
        work.wait()


# Errors


@contextmanager
def together() -> Iterator[None]:
    """What each process does alone: an error of one is raised by all of them.

    Collective calls in the block are for what cannot fail in one process only, or stand in a `together` of their own.
    """
    mine = None
    try:
        yield
    except Exception as error:
        if not several():
            raise
        mine = error
    if several():
        _raise_one(mine)


def _raise_one(mine: Exception | None) -> None:
    _wait_for_all()
    told = mine and Failure(_portable(mine), "".join(traceback.format_exception(mine)))
    failures = {rank: failure for rank, failure in enumerate(gather(told)) if failure}
    if failures:  # who gave up because of another's error is not its cause
        rank = min(failures, key=lambda rank: isinstance(failures[rank].error, RolloutInterrupted))
        error = mine if mine and rank == place()[0] else failures[rank].error
        error.__cause__ = error.__cause__ if error is mine else Elsewhere(failures[rank].trace)
        error.known_to_all = True  # type: ignore[attr-defined]
        raise error


def _wait_for_all() -> None:
    """Wait in Python: a collective call that waits does not let the handlers of signals run."""
    with _in_touch():
        all_here: Any = dist.barrier(async_op=True)
        pause = 0.0005
        while not all_here.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        all_here.wait()


@contextmanager
def _in_touch() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition(" This is")[0].rpartition("] ")[2]
        raise TrainingStopped(f"another process is gone ({reason})") from error


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def tells(error: BaseException) -> bool:
    """Whether it is for this process to tell the user of an error that ends it."""
    if not several():
        return True
    if getattr(error, "known_to_all", False) or isinstance(error, KeyboardInterrupt | SystemExit):
        return place()[0] == 0
    try:
        return _get_default_store().add(FAILED, 1) == 1
    except RuntimeError:  # process 0 keeps the store, and has gone: it had an error before this one
        return False


def stop_all() -> None:
    """Ask all processes to give up what they are playing."""
    if several():
        _get_default_store().set(STOP, "")


def told_to_stop() -> bool:
    """Whether somebody has called `stop_all`; looked up once a second at most."""
    return several() and _stopped(int(time.monotonic()))


@lru_cache(maxsize=1)
def _stopped(second: int) -> bool:
    return bool(_get_default_store().check([STOP]))
