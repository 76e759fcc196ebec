"""What the episodes of an iteration were like: success, raw and scaled reward, and what became of every action."""

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from lightning.pytorch import Callback, LightningModule, Trainer

from wmact.callbacks.common import log, rollouts, share
from wmact.processes import total
from wmact.types import ActionKind, Episode, StopReason

_KINDS = [f"actions/{kind}" for kind in get_args(ActionKind)]
_FORMATS = [f"turns/{name}" for name in ("valid", "unreadable", "overlong")]
_STOPS = [f"stop/{reason}" for reason in get_args(StopReason)]
_SUMS = ["episodes", "played", "success", "reward_raw", "reward_scaled", "effective_share", "actions", "turns"]
_SUMS += _KINDS + _FORMATS + _STOPS


def episode_sums(episodes: Iterable[Episode]) -> dict[str, float]:
    """Add up what `episode_metrics` needs; sums, so that those of several processes can be added.

    The keys are the same whatever the episodes. Those that ended in an error count for ``episodes`` and their stop
    reason only: they are left out of the loss.
    """
    sums = dict.fromkeys(_SUMS, 0.0)
    for episode in episodes:
        sums["episodes"] += 1
        if episode.stop_reason is not None:
            sums[f"stop/{episode.stop_reason}"] += 1
        if episode.error is not None:
            continue
        kinds = [action.kind for action in episode.actions]
        sums["played"] += 1
        sums["success"] += episode.success
        sums["reward_raw"] += episode.reward
        sums["reward_scaled"] += episode.scaled_reward
        sums["effective_share"] += episode.num_effective / max(len(kinds), 1)
        sums["actions"] += len(kinds)
        sums["turns"] += len(episode.turns)
        for kind in kinds:
            sums[f"actions/{kind}"] += 1
        for turn in episode.turns:
            sums[f"turns/{turn.format}"] += 1
    return sums


def episode_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Turn `episode_sums` into means and shares; NaN where there is nothing to take the mean of.

    - ``train/success``, ``train/reward_raw``, ``train/reward_scaled``, ``train/actions_mean``: means over episodes.
    - ``train/effective_share``: mean over episodes of N_eff / N, the factor that rescaling multiplied outcomes by;
      0 for an episode without an action.
    - ``actions/…``: shares of all actions, so long episodes weigh more. ``actions/effective`` is N_eff / N, pooled.
    - ``turns/unreadable``, ``turns/overlong``: shares of all turns.
    - ``stop/…``: shares of all episodes, those that ended in an error included; they sum to 1.
    """
    means = ("success", "reward_raw", "reward_scaled", "effective_share")
    metrics = {f"train/{name}": share(sums[name], sums["played"]) for name in means}
    metrics["train/actions_mean"] = share(sums["actions"], sums["played"])
    for of, names in (("actions", _KINDS), ("turns", _FORMATS[1:]), ("episodes", _STOPS)):
        metrics |= {name: share(sums[name], sums[of]) for name in names}
    return metrics


class RewardRescalingLogger(Callback):
    """Log, each iteration, success, raw and scaled reward, and what became of actions, turns and episodes.

    The figures are those of `episode_metrics`, over the episodes of all processes.
    """

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Log this iteration's figures."""
        sums = episode_sums(rollouts(trainer).episodes)
        log(pl_module, episode_metrics(dict(zip(sums, total([*sums.values()]), strict=True))))
