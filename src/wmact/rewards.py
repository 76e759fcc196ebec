"""From the outcome of an episode to a reward a turn: WMAct's reward rescaling, and the step penalty it is set against.

What differs from the paper (arXiv 2511.23476), which gives the two formulas and no more:
- An episode without an action has N = 0; its scaled reward is 0.
- N counts everything the model wrote into an action set: an action no environment knows and an action written after
  the level was over are actions without effect, not omitted ones.
- Rescaling multiplies. A negative outcome would shrink with wasted actions, so it suits outcomes ≥ 0, as the
  environments here give.
"""

from wmact.types import Episode


def rescaled(outcome: float, num_effective: int, num_actions: int) -> float:
    """R · N_eff / N (WMAct, "Reward Rescaling"): the outcome times the share of actions that changed the state.

    Args:
        outcome: R, the reward of the whole episode.
        num_effective: N_eff, actions after which the state differs from the state before.
        num_actions: N, all actions of the episode. With none the result is 0.0.
    """
    return outcome * num_effective / num_actions if num_actions else 0.0


def shape(episode: Episode, *, rescale: bool, step_penalty: float) -> None:
    """Give each turn its reward: the outcome on the last, less ``step_penalty`` for every action, on the turn it is of.

    Args:
        episode: Its turns' ``reward`` is set; one that ended before its first turn has none to set.
        rescale: Multiply the outcome by N_eff / N (WMAct, "Reward Rescaling").
        step_penalty: Subtracted an action, whatever its kind; 0.1 is the −0.1 of WMAct's step-penalty baseline.

    Raises:
        ValueError: ``step_penalty`` is negative and would pay for actions.
    """
    if step_penalty < 0:
        raise ValueError(f"step_penalty={step_penalty}: it is subtracted, so give the paper's −0.1 as 0.1")
    outcome = episode.reward
    if rescale:
        outcome = rescaled(outcome, episode.num_effective, len(episode.actions))
    last = len(episode.turns) - 1
    for t, turn in enumerate(episode.turns):
        turn.reward = (outcome if t == last else 0.0) - step_penalty * len(turn.actions)
