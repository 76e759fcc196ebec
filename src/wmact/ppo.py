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
- With several processes nothing of this changes: each goes through its own episodes, and counts, whitening, gradients
  and figures are those of all (`total`). Only a minibatch is made of other episodes: a share of every process's.
"""

import itertools
import time
from collections import defaultdict
from typing import Literal

import torch
from torch import Tensor

from wmact import losses
from wmact.advantages import explained_variance, gae, whiten
from wmact.lora import LoRA, adapted
from wmact.models import Critic, Policy
from wmact.module import AgentModule, trainable
from wmact.processes import largest, total
from wmact.types import Batch


class PPO(AgentModule):
    """Proximal policy optimization of a language model on whole multi-turn episodes.

    Args:
        model: folder of a Hugging Face causal language model, a hub id, "nano" (bundled) or "smollm2" (`smollm2.py`).
        critic: "separate" network started from the policy's weights (the paper's lineage), or "shared": a value head
            on the policy's trunk, which saves memory but not compute.
        lr: learning rate of the policy.
        critic_lr: learning rate of the critic.
        betas: AdamW's averaging coefficients.
        weight_decay: AdamW's decoupled weight decay.
        gamma: discount factor a sampled token.
        lam: λ of GAE, a sampled token.
        clip_low: the ratio is clipped below 1 - clip_low; binds only with several epochs or minibatches.
        clip_high: the ratio is clipped above 1 + clip_high.
        kl_coef: weight of KL(policy ‖ start weights), of which there is a copy then; with LoRA they are there anyway.
        entropy_coef: weight of the entropy bonus.
        epochs: passes over a batch.
        minibatches: optimizer steps a pass.
        importance_cap: truncate importance weights π/π_engine at this value; null leaves them out.
        max_mismatch_kl: stop when KL(engine ‖ trainer) on the sampled tokens exceeds this: the engine holds other
            weights. float32 engines measure about 1e-9, bfloat16 ones about 1e-3.
        token_budget: most tokens of a micro-batch, of one process; bounds memory, does not change the result.
        max_grad_norm: gradients are clipped to this norm, policy and critic apart.
        max_skipped: stop after this many steps in a row with non-finite gradients.
        lora: train low-rank adapters and leave the model itself as it is (`wmact.lora.LoRA`: r, alpha, target_modules);
            null trains all weights. Policy and critic have adapters of their own.
        chat_template: file of another chat template than the model's own; "plain" for the bundled one, which serves
            models that have none.
        temperature: of sampling; set by the data's temperature.
        gradient_checkpointing: recompute activations in the backward pass.
        trust_remote_code: allow code that comes with a model, in the trainer and in the engine.
    """

    def __init__(
        self,
        model: str = "nano",
        critic: Literal["separate", "shared"] = "separate",
        lr: float = 1e-6,
        critic_lr: float = 5e-6,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        gamma: float = 1.0,
        lam: float = 1.0,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_coef: float = 0.0,
        entropy_coef: float = 0.0,
        epochs: int = 1,
        minibatches: int = 1,
        importance_cap: float | None = None,
        max_mismatch_kl: float = 0.1,
        token_budget: int = 16384,
        max_grad_norm: float = 1.0,
        max_skipped: int = 5,
        lora: LoRA | None = None,
        chat_template: str | None = None,
        temperature: float = 1.0,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(max_grad_norm, max_skipped, max_mismatch_kl)
        for name, value in {"epochs": epochs, "minibatches": minibatches, "token_budget": token_budget}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        for name, share in {"gamma": gamma, "lam": lam}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share}: must be between 0 and 1")
        for name, bound in {"clip_low": clip_low, "clip_high": clip_high}.items():
            if bound < 0:
                raise ValueError(f"{name}={bound}: must not be negative")
        if importance_cap is not None and importance_cap <= 0:
            raise ValueError(f"importance_cap={importance_cap}: must be above 0; null leaves the weights out")
        self.save_hyperparameters()
        base = self.load_base(model, lora, trust_remote_code)
        self.policy = Policy(adapted(base, lora), temperature, gradient_checkpointing, trust_remote_code)
        if critic == "separate":
            self.critic = Critic.from_pretrained(adapted(base, lora), gradient_checkpointing, trust_remote_code)
        else:
            self.critic = Critic(self.policy, self.policy.lm.config.get_text_config().hidden_size)
        self.reference: Policy | None = None
        if kl_coef:
            self.reference = Policy(base, temperature, False, trust_remote_code).requires_grad_(False).eval()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One AdamW with a group for the policy and one for the critic (two optimizers would double global_step)."""
        groups = [
            {"name": "policy", "params": trainable(self.policy), "lr": self.settings.lr},
            {"name": "critic", "params": trainable(self.critic), "lr": self.settings.critic_lr},
        ]
        return torch.optim.AdamW(groups, betas=self.settings.betas, weight_decay=self.settings.weight_decay)

    def on_train_start(self) -> None:
        """Take learning rates, betas and weight decay from the settings; a checkpoint has just put back its own."""
        groups = self.optimizers().param_groups  # type: ignore[union-attr]
        for group, asked in zip(groups, self.configure_optimizers().param_groups, strict=True):
            group |= {name: value for name, value in asked.items() if name != "params"}
        super().on_train_start()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One iteration: values → advantages → losses → step."""
        cfg = self.settings
        self.require_version(batch)
        started = time.perf_counter()
        stats: dict[str, float] = defaultdict(float)
        norms: dict[str, float] = {}
        parts = self.micro_batches(batch, cfg.minibatches)
        micros = list(itertools.chain.from_iterable(parts))
        part_counts = torch.tensor(total([float(sum(micro.valid_S.sum() for micro in part)) for part in parts]))
        count = part_counts.sum()
        strictly_on_policy = cfg.epochs * cfg.minibatches == 1
        old = None if strictly_on_policy else self.logprobs(self.policy, micros)
        if old is not None:  # before the first of several steps
            self.require_match(old, micros, count)
        reference = self.logprobs(self.reference, micros) if self.reference else None
        advantages: list[Tensor] = []
        returns: list[Tensor] = []
        scored: list[Tensor] = []
        for epoch in range(cfg.epochs):
            for m, micro in enumerate(micros):
                values_S = self.critic(micro)
                if epoch == 0:
                    micro_advantages_S, micro_returns_S = gae(
                        micro.rewards_S, values_S, micro.episode_S, cfg.gamma, cfg.lam
                    )
                    advantages.append(micro_advantages_S)
                    returns.append(micro_returns_S)
                value_loss, value_stats = losses.value_loss(values_S, returns[m], micro.valid_S, count)
                self.manual_backward(value_loss)
                accumulate(stats, {"value_loss": value_loss} | value_stats, 1 / cfg.epochs)
            if epoch == 0:
                whitened = whiten(torch.cat(advantages), batch.valid_S, total).split([len(a) for a in advantages])
            minibatches = torch.arange(len(micros)).split([len(part) for part in parts])
            for minibatch, part_count in zip(minibatches, part_counts, strict=True):
                share = float(part_count / count) / cfg.epochs  # of this minibatch in the figures that are logged
                for m in minibatch.tolist():
                    micro = micros[m]
                    logprobs_S, entropy_S = self.policy(micro)
                    old_S = logprobs_S.detach() if old is None else old[m]
                    weights_S = None
                    if cfg.importance_cap is not None:
                        weights_S = losses.importance_weights(old_S, micro.behaviour_logprobs_S, cfg.importance_cap)
                    policy_loss, policy_stats = losses.policy_loss(
                        logprobs_S,
                        old_S,
                        whitened[m],
                        micro.valid_S,
                        part_count,
                        cfg.clip_low,
                        cfg.clip_high,
                        weights_S,
                    )
                    entropy_loss, entropy_stats = losses.entropy_loss(entropy_S, micro.valid_S, part_count)
                    loss = policy_loss + cfg.entropy_coef * entropy_loss
                    if reference is not None:
                        kl_loss, kl_stats = losses.kl_loss(logprobs_S, reference[m], micro.valid_S, part_count)
                        loss = loss + cfg.kl_coef * kl_loss
                        accumulate(stats, kl_stats, share)
                    self.manual_backward(loss)
                    accumulate(stats, {"policy_loss": policy_loss} | policy_stats | entropy_stats, share)
                    scored.append(old_S)
                if old is None:
                    self.require_match(scored, micros, count)
                norms = self.apply_gradients()
        figures = dict(zip(stats, total(list(stats.values())), strict=True)) | norms
        explained = explained_variance(torch.cat(advantages), torch.cat(returns), batch.valid_S, total)
        masked, tokens = total([float((~batch.valid_S).sum()), batch.num_tokens])
        (seconds,) = largest([time.perf_counter() - started])
        self.log_area("stability", figures | {"explained_variance": explained, "masked_tokens": masked})
        self.log_area("performance", {"update_seconds": seconds, "tokens": tokens})

    @torch.no_grad()
    def logprobs(self, policy: Policy, micros: list[Batch]) -> list[Tensor]:
        """(S,) log-probabilities of the sampled tokens of each micro-batch, without gradient."""
        return [policy(micro)[0] for micro in micros]


def accumulate(stats: dict[str, float], new: dict[str, Tensor], share: float) -> None:
    """Add figures of a micro-batch; they are already divided by the number of tokens they shall be a mean over."""
    for name, value in new.items():
        stats[name] += share * float(value.detach())
