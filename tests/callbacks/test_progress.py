"""One line an iteration without a terminal, a bar with one."""

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from wmact.callbacks import IterationProgress, RewardRescalingLogger, TurnAnnealing
from wmact.callbacks.progress import eval_line, eval_table, progress_figures


def test_figures_as_they_are_shown() -> None:
    metrics = {
        "train/success": 0.431,
        "eval/standard/single_turn": 0.12,
        "train/turn_budget": 6,
        "train/effective_share": 0.7149,
        "performance/tokens_per_second": 5400.4,
        "performance/rollout_seconds": 3.21,
        "performance/update_seconds": 4.08,
    }
    assert "  ".join(progress_figures(metrics)) == (
        "success 0.43  single-turn 0.12  L_max 6  N_eff/N 0.71  5,400 tok/s  3.2 s rollout + 4.1 s update"
    )
    assert progress_figures({"performance/update_seconds": 1.0}) == ["1.0 s update"]
    assert progress_figures({}) == []


def test_a_line_tells_what_the_algorithm_has() -> None:
    """Supervised training has a loss; a prediction has no turns, effects or budget, whatever else was logged."""
    metrics = {"train/nll": 1.25, "train/success": 1.0, "eval/standard/single_turn": 0.5}
    assert progress_figures(metrics) == ["loss 1.250", "single-turn 0.50"]
    predicted = {"reward": 0.25, "exact": 0.125, "missing_tag": 0.0625, "zero_variance": 0.5}
    metrics = {f"train/{name}": value for name, value in predicted.items()}
    metrics |= {"train/success": 0.25, "train/reward_scaled": 0.25, "train/effective_share": 1.0}
    metrics |= {"performance/tokens_per_second": 90.0, "performance/rollout_seconds": 3.0}
    told = "reward 0.250  exact 0.125  no prediction 0.062  groups without variance 0.50"
    assert "  ".join(progress_figures(metrics)) == f"{told}  90 tok/s  3.0 s rollout"
    metrics = {f"eval/world_model/held_out/{name}": value for name, value in predicted.items()}
    metrics |= {"eval/held_out/single_turn": 0.25, "eval/held_out/multi_turn": 0.25, "eval/held_out/turns_mean": 1.0}
    assert eval_line(1, metrics) == f"evaluation after 1 iterations  held_out:  {told}"


def test_the_table_of_predictions() -> None:
    played = ("levels", "single_turn", "single_turn_low", "single_turn_high", "turns_mean", "errors", "success_at/01")
    metrics = {f"eval/held_out/{name}": 1.0 for name in played}
    known = {"reward": 0.5, "reward_low": 0.25, "reward_high": 0.75, "length": 1.5}
    metrics |= {f"eval/world_model/held_out/{name}": value for name, value in known.items()}
    assert eval_table(metrics).splitlines() == [
        "                             held_out",
        "levels                       1",
        "errors                       1.000",
        "predicted: reward            0.500 [0.250, 0.750]",
        "predicted: length over true  1.50",
    ]


def test_evaluation_line() -> None:
    metrics = {"eval/standard/single_turn": 0.1234, "eval/hard/multi_turn": 0.5, "train/success": 1.0}
    assert eval_line(10, metrics) == (
        "evaluation after 10 iterations  standard:  single-turn 0.123  hard:  multi-turn 0.500"
    )


def test_evaluation_table() -> None:
    standard = {"levels": 1000.0, "single_turn": 0.862, "single_turn_low": 0.8392, "single_turn_high": 0.882}
    standard |= {"turns_mean": 1.137, "success_at/02": 0.915, "success_at/10": 0.925}
    metrics = {f"eval/standard/{name}": value for name, value in standard.items()}
    metrics |= {"eval/hard/levels": 10, "eval/hard/turns_mean": 4.2659, "train/success": 1.0}
    assert eval_table(metrics).splitlines() == [
        "                     standard              hard",
        "levels               1,000                 10",
        "single-turn success  0.862 [0.839, 0.882]",
        "turns                1.14                  4.27",
        "success within 2     0.915",
        "success within 10    0.925",
    ]


def run(fit: Callable[..., Any], **settings: Any) -> Any:
    callbacks = [TurnAnnealing(), RewardRescalingLogger(), IterationProgress()]
    return fit(callbacks, 3, turn_budget=6, enable_progress_bar=True, check_val_every_n_epoch=2, **settings)


def test_plain_lines_without_a_terminal(fit: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    trainer = run(fit).trainer
    trainer.progress_bar_callback.rollout_progress(3, 8)
    shown = capsys.readouterr()
    assert [line for line in shown.out.splitlines() if re.match("iteration|evaluation", line)] == [
        "iteration 1/3  success 0.00  L_max 6  reward 0.00  N_eff/N 1.00",
        "iteration 2/3  success 0.00  L_max 6  reward 0.00  N_eff/N 1.00",
        "evaluation after 2 iterations  standard:  single-turn 0.250",
        "iteration 3/3  success 0.00  single-turn 0.25  L_max 6  reward 0.00  N_eff/N 1.00",
    ]
    assert "\x1b" not in shown.out + shown.err
    assert "\r" not in shown.out + shown.err


def test_a_bar_on_a_terminal(
    fit: Callable[..., Any],
    make_episode: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = IterationProgress()

    def play(iteration: int, budget: int) -> list[Any]:
        bar.rollout_progress(1, 2)
        return [make_episode()]

    fit([RewardRescalingLogger(), bar], 2, plan=play, enable_progress_bar=True, max_steps=-1)
    shown = capsys.readouterr()
    assert "playing 1/2" in shown.err
    assert "2/2" in shown.err
    assert "success 0.00" in shown.err
    assert "evaluation after 2 iterations" in shown.out
    assert "iteration 1/2" not in shown.out


def test_no_line_for_an_epoch_that_only_ends(fit: Callable[..., Any], capsys: Any, tmp_path: Any) -> None:
    fit([], 2, save_after_validation=True)
    capsys.readouterr()
    fit([IterationProgress()], 3, enable_progress_bar=True, ckpt_path=tmp_path / "checkpoints" / "epoch=0.ckpt")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("iteration")]
    assert [line.split()[1] for line in lines] == ["2/3", "3/3"]
