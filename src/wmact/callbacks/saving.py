"""The newest state of a training, in one file."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from wmact.callbacks.common import at_least


class LastCheckpoint(ModelCheckpoint):
    """Keep ``<run folder>/checkpoints/last.ckpt``: the state after the newest iteration, or one of the newest.

    Lightning's own, told to keep a last.ckpt, writes a second file of the same each time, nothing of the iterations
    after the last multiple of its interval, and nothing of one that took no step. To keep older states too, add a
    `ModelCheckpoint`.

    Args:
        every: iterations from one writing to the next. The last iteration is written whatever its number.
    """

    def __init__(self, every: int = 1) -> None:
        self.every = at_least(1, every=every)
        # With a version counter a run that was moved would go on in last-v1.ckpt, beside an old last.ckpt.
        super().__init__(save_top_k=0, save_last=True, save_on_train_epoch_end=True, enable_version_counter=False)
        self._written: int | None = None  # after which batch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, if it is time, after the iteration's validation: killed in that, a run plays the iteration again."""
        if (trainer.current_epoch + 1) % self.every == 0:
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the interval has left over."""
        if self._written != trainer.fit_loop.total_batch_idx:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self._written = trainer.fit_loop.total_batch_idx
