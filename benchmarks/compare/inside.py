"""A way into a real training step: what PPO.training_step needs of Lightning exists only while a fit runs."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L

from wmact.data import Plays
from wmact.ppo import PPO
from wmact.types import Batch

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", module="lightning")


class Host(PPO):
    """A PPO whose training step is somebody else's, and in which PPO's own can be taken.

    The learning rates are 0: a step does all its work and changes no weight.
    """

    act: Callable[["Host", Batch], None]

    def __init__(self, **options: Any) -> None:
        super().__init__(lr=0.0, critic_lr=0.0, max_mismatch_kl=float("inf"), **options)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Do what is to be measured."""
        self.act(self, batch)

    def take_step(self, batch: Batch) -> None:
        """PPO's own training step."""
        super().training_step(batch._replace(policy_version=self.global_step), 0)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Nothing was played for this batch, so there is nothing to log."""


class Given(L.LightningDataModule):
    """A batch that is there already."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.batch = batch

    def train_dataloader(self) -> Plays:
        """One batch."""
        return Plays(lambda: self.batch)


def fit(host: Host, batch: Batch, act: Callable[[Host, Batch], None], precision: Any = "32-true") -> None:
    """Call `act` with the host and the batch inside a training step of Lightning's trainer."""
    host.act = act
    trainer = L.Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(host, Given(batch))
