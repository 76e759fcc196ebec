"""A run in which nothing is learnt: a module of one weight, and a DataModule that hands out episodes made by hand."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from wmact.types import Action, ActionKind, Episode, Turn

Plan = Callable[[int, int], list[Episode]]


def episode(turns: int = 1, kinds: Sequence[ActionKind] = ("effective",), **fields: Any) -> Episode:
    """An episode of so many turns, each with actions of these kinds."""
    made = Episode("env", 0, "id", 0, 0, 0, ids=[5, 6], logprobs=[0.0, -0.1234567891])
    made.turns = [Turn(1, 2, "hm", "valid", [Action("up", kind) for kind in kinds]) for _ in range(turns)]
    made.observations, made.stop_reason = ["start"], "turns"
    for name, value in fields.items():
        setattr(made, name, value)
    return made


class Data(LightningDataModule):
    """`plan(iteration, turn budget)` are the episodes of each iteration."""

    def __init__(self, plan: Plan, turn_budget: int) -> None:
        super().__init__()
        self.plan, self.turn_budget = plan, turn_budget
        self.episodes: list[Episode] = []
        self.budgets: list[int] = []

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[torch.Tensor]:
        assert self.trainer is not None
        self.budgets.append(self.turn_budget)
        self.episodes = self.plan(self.trainer.current_epoch, self.turn_budget)
        yield torch.ones(1)

    def train_dataloader(self) -> "Data":
        return self

    def val_dataloader(self) -> list[torch.Tensor]:
        return [torch.ones(1)]

    def state_dict(self) -> dict[str, int]:
        return {"turn_budget": self.turn_budget}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.turn_budget = state_dict["turn_budget"]


class Module(LightningModule):
    """One weight, one optimizer step an iteration, or none."""

    def __init__(self, steps: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.steps = steps
        self.weight = torch.nn.Parameter(torch.ones(1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("train/iteration", float(self.trainer.current_epoch))
        self.optimizers().zero_grad()  # type: ignore[union-attr]
        self.manual_backward(self.weight.sum())
        if self.steps:
            self.optimizers().step()  # type: ignore[union-attr]

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.log("eval/standard/single_turn", 0.25)


class Run:
    """What a test looks at after a fit: the trainer, its data, and every value that was logged."""

    def __init__(self, trainer: Trainer, data: Data, seen: "Seen") -> None:
        self.trainer, self.data, self.logged = trainer, data, seen.logged


class Seen(Callback):
    """Every iteration's metrics."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logged.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    return episode


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Run]:
    """Train to iteration `iterations`; a checkpoint of every iteration lands in `checkpoints` as epoch=<n>.ckpt."""

    def run(
        callbacks: Sequence[Callback],
        iterations: int,
        *,
        plan: Plan = lambda iteration, budget: [episode()],
        turn_budget: int = 30,
        loggers: Any = False,
        ckpt_path: Path | None = None,
        checkpoints: Path = tmp_path / "checkpoints",
        save_after_validation: bool = False,
        steps: bool = True,
        **kwargs: Any,
    ) -> Run:
        seen, data = Seen(), Data(plan, turn_budget)
        saves = ModelCheckpoint(
            checkpoints, "{epoch}", save_top_k=-1, save_on_train_epoch_end=not save_after_validation
        )
        settings: dict[str, Any] = {"enable_progress_bar": False, "accelerator": "cpu", "num_sanity_val_steps": 0}
        settings |= {"log_every_n_steps": 1, "enable_model_summary": False, "default_root_dir": tmp_path}
        trainer = Trainer(
            max_epochs=iterations, logger=loggers, callbacks=[*callbacks, seen, saves], **(settings | kwargs)
        )
        trainer.fit(Module(steps), datamodule=data, ckpt_path=ckpt_path)
        return Run(trainer, data, seen)

    return run
