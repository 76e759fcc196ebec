"""What the callbacks share: the episodes of the iteration, and how a figure is logged."""

import math
from collections.abc import Mapping
from typing import Protocol, cast

from lightning.pytorch import LightningModule, Trainer

from wmact.types import Episode


class Rollouts(Protocol):
    """What the callbacks ask of a DataModule that plays episodes."""

    episodes: list[Episode]
    """Those of this iteration and this process."""
    turn_budget: int
    """L_max of the next rollout."""


def rollouts(trainer: Trainer) -> Rollouts:
    """Return the trainer's DataModule.

    Raises:
        TypeError: It plays no episodes.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not hasattr(data, "episodes"):
        raise TypeError(f"{type(data).__name__} plays no episodes: this callback needs one that does, as RolloutData")
    return cast(Rollouts, data)


def log(module: LightningModule, metrics: Mapping[str, float]) -> None:
    """Log figures of this iteration that are already those of all processes."""
    module.log_dict(dict(metrics), on_step=True, on_epoch=False, batch_size=1)


def share(part: float, whole: float) -> float:
    """Return part / whole, NaN where there is nothing to have a share of."""
    return part / whole if whole else math.nan


def at_least(least: int, **setting: int) -> int:
    """Return the value of the one setting given by name, if it is an integer of at least ``least``."""
    ((name, value),) = setting.items()
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}: give an integer of at least {least}")
    return value
