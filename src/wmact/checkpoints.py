"""Checkpoint files: written whole or not at all, by one run at a time, and looked at before they change anything.

Lightning writes to a temporary folder and moves the file, which is a copy where that is another filesystem: killed in
the middle, it leaves half a checkpoint under the name of the last good one. It also holds the file in memory once more.
"""

import fcntl
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule

from wmact.files import new_file

UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, UnpicklingError, BadZipFile)
"""What reading a file raises that is no checkpoint, or a damaged one."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the old file, and takes its place when everything is on the disk. Remote paths are Lightning's."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: it cannot be written; what was at `path` is still there.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with new_file(Path(path)) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
            reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
            raise OSError(f"checkpoint {path} cannot be written ({reason}); the one before is intact") from error


def lock(folder: Path) -> IO[str]:
    """Hold a folder for this process, until the returned file is closed or the process ends in whatever way.

    Raises:
        OSError: another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OSError(f"{folder} is being written by another process: wait for its end, or end it") from None
    return file


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint as data, never as code; its tensors stay in the file until they are used.

    Raises:
        ValueError: it is missing, damaged, holds more than data, or no training state.
    """
    if not Path(path).is_file():
        raise ValueError(f"ckpt_path={path!r}: no such file; give a checkpoint file, such as RUN/checkpoints/last.ckpt")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with ZipFile(path) as parts:
            if damaged := parts.testzip():  # torch writes checksums and does not look at them
                raise ValueError(f"{damaged} is not as it was written")
    except UNREADABLE as error:
        unsafe = "GLOBAL" in str(error) or "Unsupported global" in str(error)
        what = "holds more than data, and is not loaded" if unsafe else "is damaged, or no checkpoint"
        raise ValueError(
            f"ckpt_path={path!r}: the file {what}; give another one, or begin anew without --ckpt_path"
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"ckpt_path={path!r}: the file holds no training state; give one that `fit` has written")
    return checkpoint


def check_checkpoint(path: str, model: LightningModule) -> None:
    """Read a checkpoint and compare it with the model that is to take its weights.

    Raises:
        ValueError: it cannot be read (`read_checkpoint`), or is another model's; the message names the first parameter
            that does not fit and both shapes.
    """
    checkpoint = read_checkpoint(path)
    weights = checkpoint["state_dict"]
    for name in ("critic", "lora"):
        before, now = (dict(each).get(name) for each in (checkpoint.get("hyper_parameters", {}), model.hparams))
        if before != now:
            trained_by = checkpoint["hyper_parameters"].get("_class_path", "another class")
            raise ValueError(
                f"ckpt_path={path!r} was trained by {trained_by} with {name}={before!r}, but model is "
                f"{type(model).__name__} with {name}={now!r}; give it with the config.yaml of its run"
            )
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in [*ours, *theirs]:
        there, here = theirs.get(name, "missing"), ours.get(name, "missing")
        if there != here:
            raise ValueError(
                f"ckpt_path={path!r} is of another model: {name} is {there} in the checkpoint and {here} in the model; "
                "give it with the settings it was trained with, which are in the config.yaml of its run"
            )
    if "base_model" in weights and not torch.equal(weights["base_model"], model.state_dict()["base_model"]):
        raise ValueError(f"ckpt_path={path!r} has adapters for another base: give model.model the weights it had then")
