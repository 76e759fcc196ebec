"""Schedules of the turn budget: WMAct's interaction-frequency annealing (arXiv 2511.23476), and one without a τ.

How the paper's is read where it is silent:
- "Mean turns per prompt" is taken over episodes, of all processes, since the last update.
- (L̄ + L'_max) / 2 is rounded down. Rounded up it would stay at 2 for ever while one episode of a batch takes 2 turns.
- Episodes that ended in an error of the environment or engine are left out, as they are of the loss.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple, get_args

from lightning.pytorch import Callback, LightningModule, Trainer

from wmact.callbacks.common import at_least, log, rollouts, share
from wmact.processes import gather, total
from wmact.statistics import wilson
from wmact.types import Episode

Rounding = Literal["floor", "nearest", "ceil"]


class TurnCount(NamedTuple):
    """Turns of a set of episodes: all that annealing needs to know of them."""

    total: int = 0
    episodes: int = 0
    longest: int = 0

    @classmethod
    def of(cls, turns: Sequence[int]) -> "TurnCount":
        """Count ``turns``, one number an episode."""
        return cls(sum(turns), len(turns), max(turns, default=0))

    def plus(self, other: "TurnCount") -> "TurnCount":
        """Count two disjoint sets together."""
        return TurnCount(self.total + other.total, self.episodes + other.episodes, max(self.longest, other.longest))

    def over_processes(self) -> "TurnCount":
        """Count the episodes of all processes."""
        return reduce(TurnCount.plus, gather(self))

    def next_budget(self, budget: int, rounding: Rounding = "floor", minimum: int = 1) -> int:
        """WMAct's annealing, L_max ← (L̄ + L'_max) / 2, from the turns of every episode since the last update.

        Args:
            budget: L_max so far. The result is never above it; with no episodes it stays.
            rounding: "nearest" rounds halves up.
            minimum: the result is not below it, unless ``budget`` is.
        """
        if not self.episodes:
            return budget
        # (total / episodes + longest) / 2 as one fraction of integers, so that no rounding error decides a floor
        above, below = self.total + self.longest * self.episodes, 2 * self.episodes
        rounded = {"floor": above // below, "nearest": (2 * above + below) // (2 * below), "ceil": -(-above // below)}
        return min(budget, max(minimum, rounded[rounding]))


class TurnSchedule(Callback):
    """Sets the turn budget of the next rollout; this one leaves it as it is (PPO-Interactive, PPO-EntirePlan).

    Logs, each iteration, ``train/turn_budget`` (under which it was played), ``train/turns_mean``, ``train/turns_max``.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log this iteration's turns and set the budget of the next."""
        data = rollouts(trainer)
        episodes = [episode for episode in data.episodes if episode.error is None]
        turns = TurnCount.of([len(episode.turns) for episode in episodes]).over_processes()
        log(pl_module, turn_metrics(turns, data.turn_budget))
        data.turn_budget = self.next_budget(trainer, episodes, turns, data.turn_budget)

    def next_budget(self, trainer: Trainer, episodes: Sequence[Episode], turns: TurnCount, budget: int) -> int:
        """Return the budget of the next iteration.

        Args:
            episodes: those of this process.
            turns: of the episodes of all processes.
            budget: that of this iteration.
        """
        return budget


class TurnAnnealing(TurnSchedule):
    """Lower the turn budget every τ iterations to what the policy still needs (WMAct, interaction-frequency annealing).

    Args:
        every: τ, iterations between updates. 0 or null never lowers the budget.
        rounding: How (L̄ + L'_max) / 2 becomes an integer. "ceil" stays at 2 while any episode takes 2 turns.
        minimum: Least turn budget.
    """

    def __init__(self, every: int | None = 100, rounding: Rounding = "floor", minimum: int = 1) -> None:
        self.every = at_least(0, every=every or 0)
        self.minimum = at_least(1, minimum=minimum)
        if rounding not in get_args(Rounding):
            raise ValueError(f"rounding={rounding!r}: use one of {', '.join(get_args(Rounding))}")
        self.rounding: Rounding = rounding
        self.seen = TurnCount()

    def next_budget(self, trainer: Trainer, episodes: Sequence[Episode], turns: TurnCount, budget: int) -> int:
        """Return a lower budget after every τ-th iteration, else the same."""
        return self.after(trainer.current_epoch, turns, budget)

    def after(self, iteration: int, turns: TurnCount, budget: int) -> int:
        """Count the turns of an iteration; return the budget of the next, lower than ``budget`` in every τ-th at most.

        Args:
            iteration: Counts from 0, so that the first update is after iteration τ - 1.
        """
        self.seen = self.seen.plus(turns)
        if self.every and (iteration + 1) % self.every == 0:
            budget, self.seen = self.seen.next_budget(budget, self.rounding, self.minimum), TurnCount()
        return budget

    def state_dict(self) -> dict[str, int]:
        """Return what was counted since the last update."""
        return self.seen._asdict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting from there."""
        self.seen = TurnCount(**state_dict)


class AdaptiveAnnealing(TurnSchedule):
    """Lower the turn budget by one whenever the last turn is not worth having: a schedule of ours, without a τ.

    Over the last so many episodes played under a budget L, success within L - 1 turns is compared with success within
    L. If it is no lower than the lower end of the latter's Wilson interval, the last turn adds nothing that these
    episodes can show, and the budget becomes L - 1. While nothing at all is solved there is nothing to compare, and
    the budget stays. It never grows.

    Args:
        episodes: Episodes compared at a time, of all processes. More make it ask for better proof of being superfluous.
        minimum: Least turn budget.
    """

    def __init__(self, episodes: int = 512, minimum: int = 1) -> None:
        self.episodes = at_least(1, episodes=episodes)
        self.minimum = at_least(1, minimum=minimum)
        self.seen = self.solved = self.solved_last = 0

    def next_budget(self, trainer: Trainer, episodes: Sequence[Episode], turns: TurnCount, budget: int) -> int:
        """Return the budget lowered by one once the last turn has proved superfluous."""
        solved_at = [len(episode.turns) for episode in episodes if episode.success]
        solved, solved_last = total([len(solved_at), solved_at.count(budget)])
        return self.after(turns.episodes, int(solved), int(solved_last), budget)

    def after(self, episodes: int, solved: int, solved_last: int, budget: int) -> int:
        """Count an iteration's episodes: those solved, and those of them that were solved in turn ``budget``."""
        self.seen += episodes
        self.solved += solved
        self.solved_last += solved_last
        if self.seen < self.episodes:
            return budget
        low, _ = wilson(self.solved, self.seen)
        superfluous = self.solved > 0 and (self.solved - self.solved_last) / self.seen >= low
        self.seen = self.solved = self.solved_last = 0
        return budget - 1 if superfluous and budget > self.minimum else budget

    def state_dict(self) -> dict[str, int]:
        """Return what was counted since the last comparison."""
        return {"seen": self.seen, "solved": self.solved, "solved_last": self.solved_last}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting from there."""
        self.seen, self.solved, self.solved_last = (state_dict[name] for name in ("seen", "solved", "solved_last"))


def turn_metrics(turns: TurnCount, budget: int) -> dict[str, float]:
    """Return ``train/turn_budget``, ``train/turns_mean`` (NaN without an episode) and ``train/turns_max``."""
    mean = share(turns.total, turns.episodes)
    return {"train/turn_budget": budget, "train/turns_mean": mean, "train/turns_max": turns.longest}
