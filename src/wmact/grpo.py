"""GRPO: the policy gradient without a critic, on the outcomes of several episodes of one level (arXiv 2402.03300).

RWML's training algorithm (arXiv 2602.05842), for both of its stages: next-state prediction, in episodes of one turn,
and policy RL on task success. What differs from DeepSeekMath's, and what the papers leave open:
- The outcome of an episode is the sum of its turns' rewards, and its advantage is that of each of its sampled tokens.
- One optimizer step a batch of fresh episodes (`epochs=1, minibatches=1`), as in `ppo.py`: the ratio is 1 then.
- The loss is a mean over the sampled tokens of all episodes, as DAPO's (arXiv 2503.14476), not first over those of
  each: a token of a long failure would count less than one of a short one (Dr. GRPO, arXiv 2503.20783).
- A group of equal rewards says nothing, and is dropped: its tokens are in no term, also not in the KL's, and do not go
  through the networks. With `echo_coef` they do, for their observations. A batch of nothing else takes no step.
- There is no leave-one-out mean: it is the same advantage times n/(n - 1), a learning rate.
- With several processes the groups of each are whole, because levels are what is shared out; counts are those of all.
"""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from wmact.advantages import group_moments, group_relative, has_contrast
from wmact.policy_gradient import PolicyGradient, Update
from wmact.processes import together, total
from wmact.types import Batch, TrainingStopped


class GRPO(PolicyGradient):
    """Group relative policy optimization of a language model on whole episodes; a group is the episodes of a level.

    Args:
        model: folder of a Hugging Face causal language model, a hub id, "nano" (bundled) or "smollm2" (`smollm2.py`).
        kl_coef: weight of KL(policy ‖ start weights); RWML has such a term, its weight is not known.
        scale_by_std: divide advantages by the standard deviation of their group; false: Dr. GRPO.
        max_idle: stop after this many batches in a row in which no group's rewards differed; not with `echo_coef`.
        kwargs: the settings of `PolicyGradient`.
    """

    idle: Tensor

    def __init__(
        self,
        model: str = "nano",
        kl_coef: float = 0.01,
        scale_by_std: bool = True,
        max_idle: int = 20,
        **kwargs: Any,
    ) -> None:
        if max_idle < 1:
            raise ValueError(f"max_idle={max_idle}: must be at least 1")
        super().__init__(model, kl_coef=kl_coef, **kwargs)
        self.register_buffer("idle", torch.zeros(1, dtype=torch.long))  # batches in a row without a step

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One iteration: outcomes → advantages → losses → step."""
        cfg = self.settings
        self.require_version(batch)
        outcomes_E = batch.outcomes_E
        advantages_E = group_relative(outcomes_E, batch.group_E, cfg.scale_by_std)
        contrast_E = has_contrast(outcomes_E, batch.group_E)
        figures = self.count_groups(batch, contrast_E)
        trained = batch._replace(valid_S=batch.valid_S & contrast_E[batch.episode_S])
        kept_E = trained.sampled_E | trained.observed_E if cfg.echo_coef else trained.sampled_E
        update = self.begin(self.micro_batches(trained, cfg.minibatches, kept_E))
        advantages_S = advantages_E[batch.episode_S][kept_E[batch.episode_S]]
        advantages = advantages_S.split([len(micro.token_S) for micro in update.micros])
        for _ in range(cfg.epochs):
            self.improve(update, advantages)
        self.finish(batch, update, figures)
        self.require_contrast(update)

    def count_groups(self, batch: Batch, contrast_E: Tensor) -> dict[str, float]:
        """How many groups there are, of all processes, and in how many of them all rewards are equal.

        Raises:
            ValueError: every episode is alone with its level: nothing can be compared.
        """
        _, _, size_E = group_moments(batch.outcomes_E, batch.group_E)
        weight_E = (size_E > 1) / size_E  # an episode whose others ended in errors is no group
        groups, flat = map(round, total([float(weight_E.sum()), float(weight_E[~contrast_E].sum())]))
        with together():
            if not groups:
                raise ValueError(
                    "every level has one episode only, and GRPO compares those of a level: raise data.samples"
                )
        return {"zero_variance_groups": flat, "zero_variance_share": flat / groups}

    def require_contrast(self, update: Update) -> None:
        """Say so when there was nothing to learn from.

        Raises:
            TrainingStopped: that is so for the `max_idle`-th batch in a row.
        """
        if update.counts.any() or update.observed.any():
            self.idle.zero_()
            return
        self.idle += 1
        rank_zero_only(print)("no step: in no level do the rewards of its episodes differ", flush=True)
        with together():
            if self.idle >= self.settings.max_idle:
                raise TrainingStopped(
                    f"in {self.settings.max_idle} batches in a row no level had episodes of different reward: the task "
                    "is too hard or too easy for this model, or the reward tells nothing apart; the weights are those "
                    "of the last step"
                )
