"""Evaluation figures of played episodes, as a torchmetrics Metric whose states are sums: they merge over processes."""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from wmact.statistics import with_interval
from wmact.types import Episode

MOST_HATS = 4  # τ-bench reports pass^1 to pass^4


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from n samples (Chen et al. 2021)."""
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs at least {k} samples of a level, but there are {n}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def pass_hat_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that k samples are all right, from n samples (pass^k: Yao et al. 2024)."""
    if not 1 <= k <= n:
        raise ValueError(f"pass^{k} needs at least {k} samples of a level, but there are {n}")
    return math.comb(correct, k) / math.comb(n, k)


class EpisodeMetrics(Metric):
    """Success at several turn budgets, and how it was reached.

    Intervals are Wilson's with the number of *levels* as n: several samples of one level are not independent, and to
    count each as if it were would make the interval too short.

    Args:
        max_turns: the initial turn budget; success within it is "multi-turn".
        curve: turn budgets at which success is reported.
        categories: kinds of levels whose success is also reported apart. Every process must name the same.
    """

    higher_is_better = True
    full_state_update = False
    solved_at: Tensor
    sums: Tensor
    levels: Tensor
    passed: Tensor
    by_category: Tensor
    hats: Tensor

    def __init__(self, max_turns: int, curve: Sequence[int], categories: Sequence[str] = ()) -> None:
        super().__init__()
        self.max_turns = max_turns
        self.turn_budget = max_turns
        self.curve = tuple(curve)
        self.categories = tuple(categories)
        longest = max(max_turns, *self.curve)
        self.add_state("solved_at", torch.zeros(longest + 1, dtype=torch.float64), dist_reduce_fx="sum")
        names = ["episodes", "turns", "actions", "effective", "tokens", "ratio", "ratio_n", "errors", "samples"]
        names += ["baseline", "baseline_n", "unreadable"]
        self.names = names
        self.add_state("sums", torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("levels", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("passed", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        # solved, episodes, levels
        self.add_state("by_category", torch.zeros(len(categories), 3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("hats", torch.zeros(MOST_HATS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, episodes: Sequence[Episode]) -> None:
        """Count episodes; all samples of a level must come in one call."""
        by_level: dict[tuple[str, int], list[bool]] = defaultdict(list)
        category: dict[tuple[str, int], str] = {}
        for episode in episodes:
            solved = episode.success and len(episode.turns) <= self.max_turns
            if episode.success and len(episode.turns) < len(self.solved_at):
                self.solved_at[len(episode.turns)] += 1
            turns = episode.turns[: self.max_turns]
            actions = [action for turn in turns for action in turn.actions]
            row: dict[str, float] = {
                "episodes": 1,
                "turns": len(turns),
                "actions": len(actions),
                "effective": sum(action.kind == "effective" for action in actions),
                "unreadable": sum(action.kind == "unreadable" for action in actions),
                "tokens": sum(turn.end - turn.start for turn in turns),
                "errors": episode.error is not None,
            }
            if solved and episode.optimal_length:
                taken = sum(action.kind != "after_end" for action in actions)
                row |= {"ratio": taken / episode.optimal_length, "ratio_n": 1}
            if episode.baseline_success is not None:
                row |= {"baseline": episode.baseline_success, "baseline_n": 1}
            self.sums += torch.tensor([float(row.get(n, 0)) for n in self.names], dtype=torch.float64).to(self.device)
            by_level[episode.env, episode.level].append(solved)
            if episode.category in self.categories:  # that of an episode that failed at its reset is not known
                category[episode.env, episode.level] = episode.category
        for level, results in by_level.items():
            self.levels += 1
            if level in category:
                counted = torch.tensor([sum(results), len(results), 1], dtype=torch.float64)
                self.by_category[self.categories.index(category[level])] += counted.to(self.device)
            self.sums[self.names.index("samples")] += len(results)
            self.passed += pass_at_k(len(results), sum(results), len(results))
            for k in range(1, min(len(results), MOST_HATS) + 1):
                self.hats[k - 1] += pass_hat_k(len(results), sum(results), k)

    def compute(self) -> dict[str, float]:
        """Return the figures; names of the intervals' ends carry `_low` and `_high`."""
        total = dict(zip(self.names, self.sums.tolist(), strict=True))
        n, levels = total["episodes"], float(self.levels)
        within = self.solved_at.cumsum(0).tolist()
        figures: dict[str, float] = {"episodes": n, "levels": levels, "turn_budget": float(self.turn_budget)}
        if n == 0:
            return figures
        budgets = {"single_turn": 1, "multi_turn": self.max_turns, "current_budget": self.turn_budget}
        for name, budget in budgets.items():
            figures |= with_interval(name, within[min(budget, len(within) - 1)] / n, levels)
        figures |= {f"success_at/{budget:02d}": within[budget] / n for budget in self.curve}
        for category, (solved, played, of_levels) in zip(self.categories, self.by_category.tolist(), strict=True):
            name = f"category/{category}"
            figures |= with_interval(name, solved / played, of_levels) | {f"{name}_levels": of_levels}
        figures |= {
            "gap": figures["multi_turn"] - figures["single_turn"],
            "turns_mean": total["turns"] / n,
            "actions_mean": total["actions"] / n,
            "effective_share": total["effective"] / max(1.0, total["actions"]),
            "invalid_share": total["unreadable"] / max(1.0, total["actions"]),
            "tokens_mean": total["tokens"] / n,
            "errors": total["errors"] / n,
        }
        if total["ratio_n"]:
            figures["length_over_optimal"] = total["ratio"] / total["ratio_n"]
        if total["baseline_n"]:
            figures |= with_interval("do_nothing", total["baseline"] / total["baseline_n"], levels)
        samples = round(total["samples"] / levels)
        if samples > 1:
            figures |= {"pass_at_1": figures["multi_turn"], f"pass_at_{samples}": float(self.passed) / levels}
            hats = self.hats.tolist()[:samples]
            figures |= {f"pass_hat_{k}": total_k / levels for k, total_k in enumerate(hats, start=1)}
        return figures
