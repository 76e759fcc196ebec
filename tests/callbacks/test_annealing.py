"""Interaction-frequency annealing (WMAct) against numbers worked out by hand, and inside a real trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmact.callbacks import AdaptiveAnnealing, TurnAnnealing, TurnSchedule
from wmact.callbacks.annealing import TurnCount


@pytest.mark.parametrize(
    ("turns", "rounding", "budget"),
    [
        ([1, 2, 2, 3, 6], "floor", 4),  # mean 14/5 = 2.8, max 6: (2.8 + 6) / 2 = 4.4
        ([1, 2, 2, 3, 6], "nearest", 4),
        ([1, 2, 2, 3, 6], "ceil", 5),
        ([1, 1, 1, 2], "floor", 1),  # (1.25 + 2) / 2 = 1.625
        ([1, 1, 1, 2], "nearest", 2),
        ([1, 1, 1, 2], "ceil", 2),
        ([2, 3], "nearest", 3),  # (2.5 + 3) / 2 = 2.75
        ([2, 4], "nearest", 4),  # (3 + 4) / 2 = 3.5, halves go up
        ([4, 4], "floor", 4),  # exactly 4
        ([4, 4], "ceil", 4),
        ([0, 0], "floor", 1),  # the minimum
        ([], "floor", 6),  # nothing was seen
    ],
)
def test_next_turn_budget(turns: list[int], rounding: Any, budget: int) -> None:
    assert TurnCount.of(turns).next_budget(6, rounding) == budget


def test_thirds_are_exact() -> None:
    # mean 4/3, max 2: (4/3 + 2) / 2 = 5/3; and mean 10, max 10 of three: 10, where 3.333… · 3 might fall short of it
    assert TurnCount.of([1, 1, 2]).next_budget(9, "nearest") == 2
    assert TurnCount.of([10, 10, 10]).next_budget(30, "floor") == 10


def test_minimum_is_kept_unless_the_budget_is_below_it() -> None:
    assert TurnCount.of([1, 1]).next_budget(6, minimum=3) == 3
    assert TurnCount.of([1, 1]).next_budget(2, minimum=3) == 2


@given(st.lists(st.integers(0, 50)), st.integers(1, 50), st.sampled_from(["floor", "nearest", "ceil"]))
def test_it_never_grows_and_needs_no_list(turns: list[int], budget: int, rounding: Any) -> None:
    new = TurnCount.of(turns).next_budget(budget, rounding)
    assert 1 <= new <= budget
    halves = TurnCount.of(turns[: len(turns) // 2]).plus(TurnCount.of(turns[len(turns) // 2 :]))
    assert halves.next_budget(budget, rounding) == new


def run_down(rounding: Any, budget: int, updates: int) -> int:
    """An easy environment: of 8 episodes, one takes all turns it may, up to 2, and the others 1."""
    for _ in range(updates):
        budget = TurnCount.of([min(budget, 2)] + [1] * 7).next_budget(budget, rounding)
    return budget


def test_ceil_is_stuck_at_two_where_floor_reaches_one() -> None:
    assert run_down("ceil", 6, updates=50) == 2  # (1.125 + 2) / 2 = 1.5625 → 2, for ever
    assert run_down("floor", 6, updates=1) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": -1}, "every=-1: give an integer of at least 0"),
        ({"every": 1.5}, "every=1.5: give an integer of at least 0"),
        ({"minimum": 0}, "minimum=0: give an integer of at least 1"),
        ({"rounding": "down"}, "rounding='down': use one of floor, nearest, ceil"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TurnAnnealing(**arguments)


@pytest.fixture
def plan(make_episode: Callable[..., Any]) -> Callable[[int, int], list[Any]]:
    """Of three episodes the first takes every turn it may, the second 2, the third 1; a fourth broke in its 30th."""
    return lambda iteration, budget: [
        make_episode(budget),
        make_episode(min(budget, 2)),
        make_episode(1),
        make_episode(30, stop_reason="error", error="boom"),
    ]


def test_a_new_budget_governs_the_next_rollout(fit: Callable[..., Any], plan: Any) -> None:
    run = fit([TurnAnnealing(every=2)], 7, plan=plan, turn_budget=12)
    # played under 12: mean (12+2+1)/3 = 5, (5 + 12) / 2 = 8.5 → 8; under 8: mean 11/3, (11/3 + 8) / 2 = 5.83 → 5;
    # under 5: mean 8/3, (8/3 + 5) / 2 = 3.83 → 3. Each after two iterations.
    assert run.data.budgets == [12, 12, 8, 8, 5, 5, 3]
    assert [logged["train/turn_budget"] for logged in run.logged] == run.data.budgets
    assert [logged["train/turns_max"] for logged in run.logged] == run.data.budgets
    assert [logged["train/turns_mean"] for logged in run.logged] == pytest.approx(
        [5, 5, 11 / 3, 11 / 3, 8 / 3, 8 / 3, 2]
    )


def test_all_episodes_since_the_last_update_count(fit: Callable[..., Any], make_episode: Callable[..., Any]) -> None:
    # turns 6 and 1, 1, 1 in the second iteration: mean 9/4, (2.25 + 6) / 2 = 4.125 → 4; the last one alone would give 1
    turns = {0: [6], 1: [1, 1, 1], 2: [1]}
    run = fit([TurnAnnealing(every=2)], 3, plan=lambda i, _: [make_episode(n) for n in turns[i]], turn_budget=6)
    assert run.data.budgets == [6, 6, 4]


@pytest.mark.parametrize("every", [0, None])
def test_switched_off_it_only_logs(fit: Callable[..., Any], plan: Any, every: int | None) -> None:
    run = fit([TurnAnnealing(every=every)], 3, plan=plan, turn_budget=12)
    assert run.data.budgets == [12, 12, 12]
    assert run.logged[-1]["train/turns_max"] == 12


@pytest.mark.parametrize("save_after_validation", [False, True])
@pytest.mark.parametrize("iteration", range(1, 6))
def test_a_resumed_run_anneals_as_an_uninterrupted_one(
    fit: Callable[..., Any], plan: Any, tmp_path: Path, iteration: int, save_after_validation: bool
) -> None:
    whole = fit([TurnAnnealing(every=3)], 7, plan=plan, turn_budget=12)
    half = {"plan": plan, "turn_budget": 12, "checkpoints": tmp_path / "half"}
    fit([TurnAnnealing(every=3)], iteration, save_after_validation=save_after_validation, **half)
    last = tmp_path / "half" / f"epoch={iteration - 1}.ckpt"
    resumed = fit([TurnAnnealing(every=3)], 7, ckpt_path=last, **half)
    assert resumed.data.budgets == whole.data.budgets[iteration:]


def test_state_is_plain() -> None:
    annealing = TurnAnnealing(every=5)
    assert annealing.after(0, TurnCount.of([1, 2, 6]), 6) == 6
    assert annealing.state_dict() == {"total": 9, "episodes": 3, "longest": 6}
    assert {type(value) for value in annealing.state_dict().values()} == {int}


def test_a_data_module_without_episodes_is_named(fit: Callable[..., Any]) -> None:
    from lightning.pytorch import LightningDataModule, Trainer

    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    trainer.datamodule = LightningDataModule()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="LightningDataModule plays no episodes"):
        TurnAnnealing().on_train_batch_end(trainer, None)  # type: ignore[arg-type]


def adapt(schedule: AdaptiveAnnealing, budget: int, *iterations: tuple[int, int, int]) -> list[int]:
    """Budgets after each iteration of (episodes, solved, solved in the last turn allowed)."""
    budgets = []
    for episodes, solved, solved_last in iterations:
        budget = schedule.after(episodes, solved, solved_last, budget)
        budgets.append(budget)
    return budgets


def test_adaptive_lowers_when_the_last_turn_adds_nothing_visible() -> None:
    # 100 episodes, 50 solved: Wilson's interval is 0.404–0.596, so 9 of them in the last turn (0.41 without) are
    # too few to matter, and 10 (0.40 without) are not
    assert adapt(AdaptiveAnnealing(episodes=100), 5, (100, 50, 9)) == [4]
    assert adapt(AdaptiveAnnealing(episodes=100), 5, (100, 50, 10)) == [5]


def test_adaptive_waits_for_enough_episodes_and_then_counts_anew() -> None:
    # 60 + 60 = 120 ≥ 100: 60 solved, 0.412–0.588; 60 - 2 in the last turn = 58 / 120 = 0.483. Then 40 + 60 = 100 of
    # them 50 solved, 40 in the last turn: 0.1 is below 0.404
    iterations = [(60, 30, 1), (60, 30, 1), (40, 20, 10), (60, 30, 30)]
    assert adapt(AdaptiveAnnealing(episodes=100), 3, *iterations) == [3, 2, 2, 2]


def test_adaptive_does_not_lower_blindly() -> None:
    assert adapt(AdaptiveAnnealing(episodes=10), 6, (100, 0, 0)) == [6]  # nothing solved says nothing
    assert adapt(AdaptiveAnnealing(episodes=10), 1, (100, 90, 90)) == [1]
    assert adapt(AdaptiveAnnealing(episodes=10, minimum=3), 3, (100, 90, 0)) == [3]


def test_adaptive_in_a_trainer(fit: Callable[..., Any], make_episode: Callable[..., Any]) -> None:
    # 4 episodes solved in turns 1, 1, 1 and 1: the last turn of 3, then of 2, is superfluous; the failed one counts too
    episodes = [make_episode(1, stop_reason="solved")] * 4 + [make_episode(1, stop_reason="turns")]
    run = fit([AdaptiveAnnealing(episodes=5)], 4, plan=lambda i, _: episodes, turn_budget=3)
    assert run.data.budgets == [3, 2, 1, 1]


def test_adaptive_goes_on_counting_after_a_resume() -> None:
    first, second = AdaptiveAnnealing(episodes=100), AdaptiveAnnealing(episodes=100)
    first.after(60, 30, 1, 3)
    second.load_state_dict(first.state_dict())
    assert second.after(60, 30, 1, 3) == first.after(60, 30, 1, 3) == 2


def test_a_fixed_schedule_only_logs(fit: Callable[..., Any], plan: Any) -> None:
    run = fit([TurnSchedule()], 3, plan=plan, turn_budget=12)
    assert run.data.budgets == [12, 12, 12]
    assert [logged["train/turn_budget"] for logged in run.logged] == [12, 12, 12]
