"""LastCheckpoint: one file, written every few iterations and at the end, from which training goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from wmact.callbacks import LastCheckpoint, TurnAnnealing
from wmact.loggers import CSVMetrics

LAST = Path("version_0", "checkpoints", "last.ckpt")


class Writings(Callback):
    """After which iterations the file was written, seen at the start of the next one and at the end."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.look(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.look(trainer)

    def look(self, trainer: Trainer) -> None:
        path = Path(str(trainer.log_dir), "checkpoints", "last.ckpt")
        if path.is_file() and (step := torch.load(path, weights_only=False)["global_step"]) not in self.steps:
            self.steps.append(step)


@pytest.fixture
def train(fit: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Train with a LastCheckpoint; the other checkpoints of `fit` are elsewhere."""

    def run(iterations: int, every: int = 1, folder: str = "run", **settings: Any) -> tuple[Any, list[int], Path]:
        logger = CSVMetrics(tmp_path / folder, name="", version=0)
        writings = Writings()
        callbacks = [TurnAnnealing(every=2), writings, LastCheckpoint(every)]
        done = fit(callbacks, iterations, loggers=logger, checkpoints=tmp_path / "every", **settings)
        return done, writings.steps, tmp_path / folder / LAST

    return run


@pytest.mark.parametrize(
    ("every", "written"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (7, [5])], ids=lambda value: str(value)
)
@pytest.mark.parametrize("validated", [1, 2, 100])
def test_one_file_is_written_in_time_and_at_the_end(
    train: Callable[..., Any], every: int, written: list[int], validated: int
) -> None:
    _, steps, path = train(5, every, check_val_every_n_epoch=validated)
    assert steps == written
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("validated", [1, 2])
@pytest.mark.parametrize("every", [1, 2, 7])
@pytest.mark.parametrize("stopped", [1, 3])
def test_a_run_goes_on_from_its_end_as_if_it_had_not_stopped(
    train: Callable[..., Any], make_episode: Callable[..., Any], stopped: int, every: int, validated: int
) -> None:
    settings = {"plan": lambda i, _: [make_episode(10 - i)], "turn_budget": 12, "check_val_every_n_epoch": validated}
    whole, _, end = train(6, every, "whole", **settings)
    _, _, half = train(stopped, every, **settings)
    resumed, steps, path = train(6, every, ckpt_path=half, **settings)
    assert resumed.data.budgets == whole.data.budgets[stopped:]
    assert steps[-1] == 6
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]
    ends = [torch.load(each, weights_only=False) for each in (end, path)]
    for part in ("state_dict", "optimizer_states", "Data", "global_step", "epoch"):
        assert ends[0][part] == ends[1][part], part


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None])
def test_an_interval_is_a_number_of_iterations(every: Any) -> None:
    with pytest.raises(ValueError, match=f"every={every!r}: give an integer of at least 1"):
        LastCheckpoint(every)


def test_iterations_that_took_no_step_are_kept_too(train: Callable[..., Any], make_episode: Callable[..., Any]) -> None:
    """Their episodes have been counted."""
    settings = {"plan": lambda i, _: [make_episode(10 - i)], "turn_budget": 12, "steps": False}
    whole, _, _ = train(6, folder="whole", **settings)
    _, steps, half = train(3, **settings)
    assert steps == [0]
    assert torch.load(half, weights_only=False)["epoch"] == 2
    resumed, _, _ = train(6, ckpt_path=half, **settings)
    assert resumed.data.budgets == whole.data.budgets[3:]
