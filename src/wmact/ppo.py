"""WMAct's training algorithm: strictly on-policy PPO with a critic (arXiv 2511.23476, section on training).

What differs from textbook PPO, and why:
- One optimizer step a batch of fresh episodes (`epochs=1, minibatches=1`). Old and new policy are then the same, the
  ratio is exactly 1 and no pass for old log-probabilities is needed. More epochs or minibatches bring that pass back.
- No KL term and no entropy bonus by default (as in the paper); both are settings.
- γ = λ = 1 by default: the outcome of the episode is the return of every token.
- Advantages are whitened over the whole batch; observations are no decisions and take no part (`advantages.py`).
- The critic is fitted in the very pass that gives the advantages: its loss needs nothing of the policy. With several
  epochs it is fitted once an epoch, on the returns of the first pass.
- Gradients of policy and critic are clipped each by its own norm, so that a critic far off cannot hold the policy back.
  With a shared trunk they are one there, and `value_coef` weighs them.
- With several processes nothing of this changes: each goes through its own episodes, and counts, whitening, gradients
  and figures are those of all (`total`). Only a minibatch is made of other episodes: a share of every process's.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wmact import losses
from wmact.advantages import explained_variance, gae, whiten
from wmact.lora import LoRA, adapted
from wmact.models import Critic
from wmact.module import require_not_negative, trainable
from wmact.policy_gradient import PolicyGradient
from wmact.processes import total
from wmact.types import Batch


class PPO(PolicyGradient):
    """Proximal policy optimization of a language model on whole multi-turn episodes.

    Args:
        model: folder of a Hugging Face causal language model, a hub id, "nano" (bundled) or "smollm2" (`smollm2.py`).
        critic: "separate" network started from the policy's weights (the paper's lineage), or "shared": a value head
            on the policy's trunk, which saves memory but not compute. Either way its vocabulary is the policy's: there
            is no critic of another model.
        critic_lr: learning rate of the critic.
        value_coef: weight of the critic's loss on a trunk that it shares with the policy.
        gamma: discount factor a sampled token.
        lam: λ of GAE, a sampled token.
        kwargs: the settings of `PolicyGradient`.
    """

    def __init__(
        self,
        model: str = "nano",
        critic: Literal["separate", "shared"] = "separate",
        critic_lr: float = 5e-6,
        value_coef: float = 1.0,
        gamma: float = 1.0,
        lam: float = 1.0,
        **kwargs: Any,
    ) -> None:
        for name, share in {"gamma": gamma, "lam": lam}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: must be between 0 and 1")
        require_not_negative("critic_lr", critic_lr)
        require_not_negative("value_coef", value_coef)
        super().__init__(model, **kwargs)

    def build(self, base: str | PreTrainedModel, lora: LoRA | None) -> None:
        """Make the networks, the critic too."""
        super().build(base, lora)
        cfg = self.settings
        if cfg.critic == "separate":
            self.critic = Critic.from_pretrained(adapted(base, lora), cfg.gradient_checkpointing, cfg.trust_remote_code)
        else:
            self.critic = Critic(self.policy, self.policy.lm.config.get_text_config().hidden_size)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of policy and critic."""
        critic = {"name": "critic", "params": trainable(self.critic), "lr": self.settings.critic_lr}
        return [*super().groups(), critic]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One iteration: values → advantages → losses → step."""
        cfg = self.settings
        self.require_version(batch)
        update = self.begin(self.micro_batches(batch, cfg.minibatches))
        raw: list[Tensor] = []
        returns: list[Tensor] = []
        for epoch in range(cfg.epochs):
            for m, micro in enumerate(update.micros):
                values_S = self.critic(micro)
                if epoch == 0:
                    advantages_S, returns_S = gae(micro.rewards_S, values_S, micro.episode_S, cfg.gamma, cfg.lam)
                    raw.append(advantages_S)
                    returns.append(returns_S)
                value_loss, value_stats = losses.value_loss(values_S, returns[m], micro.valid_S, update.count)
                self.manual_backward(value_loss * (cfg.value_coef if cfg.critic == "shared" else 1.0))
                update.add({"value_loss": value_loss} | value_stats, 1 / cfg.epochs)
            if epoch == 0:
                advantages = whiten(torch.cat(raw), batch.valid_S, total).split([len(each_S) for each_S in raw])
            self.improve(update, advantages)
        explained = explained_variance(torch.cat(raw), torch.cat(returns), batch.valid_S, total)
        self.finish(batch, update, {"explained_variance": explained})
