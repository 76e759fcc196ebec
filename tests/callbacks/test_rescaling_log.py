"""The figures of an iteration's episodes against numbers worked out by hand, on one process and over two."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wmact.callbacks import RewardRescalingLogger
from wmact.callbacks.rescaling import episode_metrics, episode_sums
from wmact.types import Episode


@pytest.fixture
def episodes(make_episode: Callable[..., Episode]) -> list[Episode]:
    """Solved with 2 of 4 actions effective; failed with 0 of 1; failed without any action; broken."""
    solved = make_episode(2, ["effective", "blocked"], reward=1.0, stop_reason="solved")
    solved.turns[-1].reward = 0.5
    failed = make_episode(1, ["unreadable"])
    silent = make_episode(1, [], stop_reason="turn_tokens")
    silent.turns[0].format = "overlong"
    broken = make_episode(9, ["after_end"], stop_reason="error", error="boom", reward=7.0)
    return [solved, failed, silent, broken]


def test_figures(episodes: list[Episode]) -> None:
    expected = {
        "train/success": 1 / 3,  # of the three that did not break
        "train/reward_raw": 1 / 3,
        "train/reward_scaled": 0.5 / 3,
        "train/effective_share": 0.5 / 3,  # mean of 2/4, 0/1 and (no action) 0
        "train/actions_mean": 5 / 3,  # 4, 1, 0
        "actions/effective": 2 / 5,  # pooled
        "actions/blocked": 2 / 5,
        "actions/unreadable": 1 / 5,
        "actions/after_end": 0.0,  # the broken episode's are not counted
        "turns/unreadable": 0.0,
        "turns/overlong": 1 / 4,  # 2 + 1 + 1 turns
        "stop/solved": 1 / 4,  # of all four
        "stop/turns": 1 / 4,
        "stop/turn_tokens": 1 / 4,
        "stop/error": 1 / 4,
    }
    found = episode_metrics(episode_sums(episodes))
    rest = {name: found[name] for name in found.keys() - expected.keys()}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert all(name.startswith("stop/") and value == 0 for name, value in rest.items())


def test_nothing_to_average_is_nan_not_zero(make_episode: Callable[..., Episode]) -> None:
    found = episode_metrics(episode_sums([make_episode(stop_reason="error", error="boom")]))
    assert math.isnan(found["train/success"])
    assert math.isnan(found["actions/effective"])
    assert found["stop/error"] == 1


def test_the_callback_logs_them_each_iteration(fit: Callable[..., Any], episodes: list[Episode]) -> None:
    run = fit([RewardRescalingLogger()], 2, plan=lambda iteration, _: episodes[iteration:])
    assert [logged["train/success"] for logged in run.logged] == pytest.approx([1 / 3, 0])
    assert [logged["stop/error"] for logged in run.logged] == pytest.approx([1 / 4, 1 / 3])


TWO = """
import json, sys
from lightning.pytorch import Trainer
sys.path.insert(0, sys.argv[1])
from conftest import Data, Module, Seen, episode
from wmact.callbacks import EpisodeLog, RewardRescalingLogger, TurnAnnealing
from wmact.loggers import CSVMetrics, open_run_folder

class Ranked(Data):  # rank 0 plays three episodes of 6 turns, solved; rank 1 one of 1 turn, failed
    def __iter__(self):
        rank = self.trainer.global_rank
        self.plan = lambda i, b: [episode(1)] if rank else [episode(min(b, 6), stop_reason="solved", reward=1.0)] * 3
        return super().__iter__()

def main():
    logger, seen, data = CSVMetrics(sys.argv[2]), Seen(), Ranked(None, 6)
    open_run_folder([logger])
    callbacks = [TurnAnnealing(every=1), RewardRescalingLogger(), EpisodeLog(), seen]
    trainer = Trainer(max_epochs=2, devices=2, accelerator="cpu", strategy="ddp_fork", callbacks=callbacks,
        logger=logger, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, num_sanity_val_steps=0, log_every_n_steps=1)
    trainer.fit(Module(), datamodule=data)

def tell(self, *args):
    open(f"{sys.argv[2]}/rank{self.rank}.json", "w").write(json.dumps({"logged": self.logged, "budgets": self.budgets}))

def on_train_end(self, trainer, module):
    self.rank, self.budgets = trainer.global_rank, trainer.datamodule.budgets
    tell(self)

Seen.on_train_end = on_train_end
main()
"""


def test_two_processes_log_the_figures_of_all_episodes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TWO, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for rank in ranks:
        first = rank["logged"][0]
        assert first["train/success"] == 0.75  # 3 of 4; the mean of the ranks' means would be 0.5
        assert first["train/turns_mean"] == 4.75  # (3 · 6 + 1) / 4
        assert first["train/turns_max"] == 6
        assert rank["budgets"] == [6, 5]  # (4.75 + 6) / 2 = 5.375, the same on both
    run = tmp_path / "wmact" / "version_0"
    lines = {path.name: len(path.read_text().splitlines()) for path in run.glob("*.jsonl")}
    assert lines == {"episodes.jsonl": 6, "episodes.rank1.jsonl": 2}
    assert (run / "metrics.csv").read_text().count("\n") == 3
