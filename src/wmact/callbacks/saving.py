"""The newest state of a training, in one file."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from wmact.callbacks.common import at_least


class LastCheckpoint(ModelCheckpoint):
    """Keep ``<run folder>/checkpoints/last.ckpt``: the state after the newest iteration, or one of the newest.

    Lightning's own writes a second file of the same each time that it keeps a last.ckpt, and nothing of the iterations
    after the last multiple of its interval. To keep older states too, add a `ModelCheckpoint`.

    Args:
        every: iterations from one writing to the next. The last iteration is written whatever its number.
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__(
            filename="last",
            every_n_epochs=at_least(1, every=every),
            save_on_train_epoch_end=True,  # before a validation, which takes long and changes nothing
            enable_version_counter=False,  # else a run that was moved goes on in last-v1.ckpt, beside an old last.ckpt
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the interval has left over."""
        if not self._should_skip_saving_checkpoint(trainer):  # among other things: it is written already
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
