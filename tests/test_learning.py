"""The whole machine must learn: reinforcement, the paper's annealing included, and the warm start."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import tiny_worlds
from literal import trainer
from wmact.callbacks import TurnAnnealing
from wmact.data import RolloutData
from wmact.demonstrations import DemonstrationData, World
from wmact.engines import TransformersEngine
from wmact.environments import EnvSpec
from wmact.grpo import GRPO
from wmact.models import load_tokenizer
from wmact.nano import build_model, build_tokenizer
from wmact.ppo import PPO
from wmact.rollout import Limits
from wmact.sft import SFT


class Watch(L.Callback):
    """What every iteration was like."""

    def __init__(self) -> None:
        self.single_turn: list[float] = []
        self.budgets: list[int] = []
        self.nll: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        solved = [e.success and len(e.turns) == 1 for e in data.episodes]
        self.single_turn.append(sum(solved) / len(solved))
        self.budgets.append(data.turn_budget)
        self.nll.append(float(trainer.callback_metrics.get("train/nll", 0)))


def trained(module: L.LightningModule, data: RolloutData, iterations: int, folder: Path) -> Watch:
    watch = Watch()
    run = trainer(iterations, devices=1, callbacks=[TurnAnnealing(every=6), watch], default_root_dir=folder)
    run.fit(module, datamodule=data)
    return watch


ppo = partial(PPO, critic_lr=0.02)


@pytest.mark.parametrize(("algorithm", "seed"), [(ppo, 0), (ppo, 1), (ppo, 2), (GRPO, 0)])
def test_reinforcement_learns_to_do_in_one_turn_what_took_five(algorithm: Any, seed: int, tmp_path: Path) -> None:
    """Four doors: a guess is right one time in four, and at first five turns of guessing are allowed.

    14 seeds ended above 0.9, most of them above 0.98, with one turn allowed.
    """
    model = tiny_worlds.write_model(tmp_path / "model", hidden_size=32)
    L.seed_everything(seed, verbose=False)
    data = RolloutData(
        model=model,
        env=EnvSpec("tiny_worlds:tiny/Doors-v0"),
        groups=32,
        samples=4,
        max_turns=5,
        limits=Limits(turn_tokens=6),
        tell_rules=False,
        engine=TransformersEngine(),
        seed=seed,
    )
    watch = trained(algorithm(model=model, lr=0.02), data, 30, tmp_path)
    assert sum(watch.single_turn[:3]) / 3 < 0.4
    assert sum(watch.single_turn[-5:]) / 5 > 0.8
    assert watch.budgets[0] == 5
    assert watch.budgets[-1] == 1
    assert watch.budgets == sorted(watch.budgets, reverse=True)


def test_the_warm_start_learns_to_speak(tmp_path: Path) -> None:
    """40 steps on 8 demonstrations each. A model that knows nothing has a loss of ln 312 = 5.74 nats a token."""
    torch.manual_seed(0)
    build_model(hidden_size=64, layers=1, context=1024).save_pretrained(tmp_path / "start")
    build_tokenizer().save_pretrained(tmp_path / "start")
    L.seed_everything(0, verbose=False)
    start = str(tmp_path / "start")
    data = DemonstrationData(
        batches=40,
        episodes_a_batch=8,
        model=start,
        worlds={"maze": World(EnvSpec("wmact_envs:wmact/Maze-v0", {"layout": "cells"}))},
        max_turns=3,
        tell_rules=False,
        limits=Limits(turn_tokens=128, episode_tokens=1024),
    )
    module = SFT(model=start, from_scratch=True, lr=5e-3, save_to=str(tmp_path / "end"))
    watch = trained(module, data, 1, tmp_path)
    assert len(watch.nll) == 40
    assert watch.nll[0] == pytest.approx(5.74, abs=0.3)
    assert sum(watch.nll[-5:]) / 5 < 3.0  # 2.3 when this was written
    saved = PPO(model=str(tmp_path / "end"))  # the folder is a model like any other
    for name, weight in module.weights().items():
        assert torch.equal(saved.weights()[name], weight)
    assert load_tokenizer(str(tmp_path / "end")).get_vocab() == load_tokenizer(start).get_vocab()
