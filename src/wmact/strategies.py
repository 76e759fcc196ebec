"""Where Lightning's way with several processes does not suit a rollout that takes minutes, or a checkpoint of ours."""

import atexit
import subprocess
import time
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector

from wmact.processes import several, stop_all

GRACE = 10.0  # seconds that the other processes have to end after the first
PRECISIONS: dict[Any, Literal["float32", "bfloat16"]] = {"32-true": "float32", "bf16-mixed": "bfloat16"}
"""What each computes in; weights are float32 in both.

With bf16-true rewards and counts of tokens would be bfloat16 too, and a step of a usual learning rate would change no
weight; with 16-mixed gradients would be clipped while they are scaled up.
"""


class FSDP2(ModelParallelStrategy):
    """Weights, gradients and optimizer state cut into as many shards as there are processes.

    A checkpoint is one file, as without shards: a run can go on with another number of processes, or with one.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Take all processes for the one dimension along which there are shards."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()


class Signals(_SignalConnector):
    """SIGTERM asks all processes to give up what they are playing, and they do so together.

    Lightning's handler broadcasts it from within itself; where a process waits in another collective call, all hang.
    """

    def _sigterm_notifier_fn(self, *args: Any) -> None:
        if several():
            stop_all()
        else:
            super()._sigterm_notifier_fn(*args)


def check_strategy(strategy: Strategy) -> None:
    """Refuse what the training step was not written for.

    Raises:
        ValueError: it is such a strategy.
    """
    start_method = getattr(strategy, "_start_method", "popen")  # by another, environments and engine would be copied
    if start_method != "popen" or not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FSDP2):
        how = "" if start_method == "popen" else f" with start_method={start_method!r}"
        raise ValueError(
            f"trainer.strategy is {type(strategy).__name__}{how}: use ddp, or for weights in shards "
            "--config configs/strategies/fsdp.yaml"
        )


def check_loops(trainer: Trainer) -> None:
    """Refuse a 0 that Lightning takes, and of which nothing comes.

    Raises:
        ValueError: a setting is 0.
    """
    for name in ("max_epochs", "max_steps", "limit_train_batches", "check_val_every_n_epoch"):
        if getattr(trainer, name) == 0:
            raise ValueError(f"trainer.{name}=0: must be at least 1, or left out")


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that the training step was not written for, or that the device lacks.

    Raises:
        ValueError: it is such a precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={precision}: use {' or '.join(PRECISIONS)}")
    if precision == "bf16-mixed" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"trainer.precision={precision}: {name} does not compute in bfloat16; use 32-true")


def end_others_at_exit(strategy: Strategy) -> None:
    """End the processes that Lightning has started for this one when it ends: an error may have left them waiting."""
    if strategy.launcher is not None:
        atexit.register(_end, strategy.launcher)


def _end(launcher: Any) -> None:
    until = time.monotonic() + GRACE
    for process in getattr(launcher, "procs", ()):
        try:
            process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
