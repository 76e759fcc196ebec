"""What PPO and GRPO share: passes over a batch of fresh episodes in which the policy takes clipped steps.

An algorithm says what the advantages are; `PolicyGradient.improve` is the rest of it, with every term of its loss.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wmact import losses
from wmact.lora import LoRA, adapted
from wmact.models import Policy
from wmact.module import AgentModule, require_not_negative
from wmact.processes import largest, together, total
from wmact.types import Batch, TrainingStopped


@dataclass
class Update:
    """A batch on its way through an update: its micro-batches, what is known of them before, and figures.

    Attributes:
        parts: micro-batches of each minibatch.
        counts: (minibatches,) valid sampled tokens of each, of all processes.
        observed: (minibatches,) tokens of observations of each, of all processes; 0 where they are in no loss.
        old: (S,) log-probabilities under the weights that played, a micro-batch; None: those of the only pass.
        reference: (S,) log-probabilities under the start weights, a micro-batch; None without a KL term.
        figures: sums over this process's micro-batches, each with its share of the batch.
        norms: the largest that its optimizer steps found.
    """

    parts: list[list[Batch]]
    counts: Tensor
    observed: Tensor
    old: list[Tensor] | None = None
    reference: list[Tensor] | None = None
    figures: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @property
    def micros(self) -> list[Batch]:
        """All micro-batches."""
        return [micro for part in self.parts for micro in part]

    @property
    def count(self) -> Tensor:
        """Valid sampled tokens of the batch, of all processes, to divide by."""
        return self.counts.sum().clamp(min=1)

    def add(self, figures: dict[str, Tensor], share: float) -> None:
        """Add figures of a micro-batch; they are already divided by the number of tokens they shall be a mean over."""
        for name, value in figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + share * float(value.detach())


class PolicyGradient(AgentModule):
    """Clipped policy-gradient steps on the sampled tokens of whole multi-turn episodes.

    Args:
        model: folder of a Hugging Face causal language model, a hub id, "nano" (bundled) or "smollm2" (`smollm2.py`).
        lr: learning rate of the policy.
        betas: AdamW's averaging coefficients.
        weight_decay: AdamW's decoupled weight decay.
        clip_low: the ratio is clipped below 1 - clip_low; binds only with several epochs or minibatches.
        clip_high: the ratio is clipped above 1 + clip_high.
        kl_coef: weight of KL(policy ‖ start weights), of which there is a copy then; with LoRA they are there anyway.
        entropy_coef: weight of the entropy bonus.
        echo_coef: weight of the cross-entropy of observation tokens, those the environment wrote in answer to a reply
            (ECHO, arXiv 2605.24517), as a mean over them; 0 leaves them out.
        epochs: passes over a batch.
        minibatches: optimizer steps a pass.
        importance_cap: truncate importance weights π/π_engine at this value; null leaves them out.
        max_mismatch_kl: stop when KL(engine ‖ trainer) on the sampled tokens exceeds this: the engine holds other
            weights. float32 engines measure about 1e-9, bfloat16 ones about 1e-3.
        token_budget: most tokens of a micro-batch, of one process; bounds memory, does not change the result.
        max_grad_norm: gradients are clipped to this norm, each network's apart.
        max_skipped: stop after this many steps in a row with non-finite gradients.
        lora: train low-rank adapters and leave the model itself as it is (`wmact.lora.LoRA`: r, alpha, target_modules);
            null trains all weights. A critic has adapters of its own.
        chat_template: file of another chat template than the model's own; "plain" for the bundled one, which serves
            models that have none.
        temperature: of sampling; set by the data's temperature.
        gradient_checkpointing: recompute activations in the backward pass.
        trust_remote_code: allow code that comes with a model, in the trainer and in the engine.
    """

    def __init__(
        self,
        model: str = "nano",
        lr: float = 1e-6,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_coef: float = 0.0,
        entropy_coef: float = 0.0,
        echo_coef: float = 0.0,
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
        super().__init__(max_grad_norm, max_skipped)
        for name, value in {"epochs": epochs, "minibatches": minibatches, "token_budget": token_budget}.items():
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        bounds = {"lr": lr, "clip_low": clip_low, "clip_high": clip_high, "kl_coef": kl_coef, "echo_coef": echo_coef}
        for name, bound in bounds.items():
            require_not_negative(name, bound)
        if max_mismatch_kl < 0:
            raise ValueError(f"max_mismatch_kl={max_mismatch_kl}: must not be negative")
        if importance_cap is not None and importance_cap <= 0:
            raise ValueError(f"importance_cap={importance_cap}: must be above 0; null leaves the weights out")
        self.save_hyperparameters()
        self.reference: Policy | None = None
        self.build(self.load_base(model, lora, trust_remote_code), lora)

    def build(self, base: str | PreTrainedModel, lora: LoRA | None) -> None:
        """Make the networks, which start from `base`."""
        cfg = self.settings
        self.policy = Policy(adapted(base, lora), cfg.temperature, cfg.gradient_checkpointing, cfg.trust_remote_code)
        if cfg.kl_coef:
            reference = Policy(base, cfg.temperature, False, cfg.trust_remote_code)
            self.reference = reference.requires_grad_(False)  # no eval(): with LoRA it is the base of all

    def require_version(self, batch: Batch) -> None:
        """Refuse episodes of other weights than the current ones: on-policy means this very version."""
        if batch.policy_version != self.global_step:
            raise TrainingStopped(
                f"the batch was played with the weights of step {batch.policy_version}, but the trainer is at step "
                f"{self.global_step}: the engine was not given the current weights"
            )

    def begin(self, parts: list[list[Batch]]) -> Update:
        """Count what an update is over, and take the log-probabilities that it needs from before its first step.

        Raises:
            TrainingStopped: the engine plays with other weights than the trainer's.
        """
        cfg = self.settings
        sampled = [float(sum(micro.valid_S.sum() for micro in part)) for part in parts]
        observed = [float(sum(len(micro.token_O) for micro in part)) if cfg.echo_coef else 0.0 for part in parts]
        counts = torch.tensor(total([*sampled, *observed]))
        update = Update(parts, *counts.split(len(parts)))
        if cfg.epochs * cfg.minibatches > 1:
            update.old = self.logprobs(self.policy, update.micros)
            self.require_match(update, update.old)
        if self.reference is not None:
            update.reference = self.logprobs(self.reference, update.micros)
        return update

    def require_match(self, update: Update, logprobs: list[Tensor]) -> None:
        """Log how far the trainer's log-probabilities are from the engine's, and stop before training on a gap.

        Args:
            logprobs: (S,) of each micro-batch, of the weights that played.

        Raises:
            TrainingStopped: the mismatch is above `max_mismatch_kl`.
        """
        found = [
            losses.mismatch(logprobs_S, micro.behaviour_logprobs_S, micro.valid_S, update.count)
            for logprobs_S, micro in zip(logprobs, update.micros, strict=True)
        ]
        (kl,) = total([float(sum(stats["mismatch_kl"] for stats in found))])
        (gap,) = largest([max(float(stats["mismatch_max"]) for stats in found)])
        self.log_area("stability", {"mismatch_kl": kl, "mismatch_max": gap})
        with together():
            if not kl <= (most := self.settings.max_mismatch_kl):
                raise TrainingStopped(
                    f"KL(engine ‖ trainer) on the sampled tokens is {kl:.3g}, above max_mismatch_kl={most}: the engine "
                    "plays with other weights or another precision than the trainer"
                )

    def improve(self, update: Update, advantages: Sequence[Tensor]) -> None:
        """One pass over the batch: an optimizer step a minibatch, but for one without a token in the loss.

        Args:
            advantages: (S,) of each micro-batch.

        Raises:
            TrainingStopped: the engine plays with other weights than the trainer's, or too many steps were skipped.
        """
        cfg = self.settings
        m = 0  # micro-batches before this one
        played: list[Tensor] = []
        for part, count, observed in zip(update.parts, update.counts, update.observed, strict=True):
            share = float(count / update.count) / cfg.epochs  # of this minibatch in the figures that are logged
            share_observed = float(observed / update.observed.sum().clamp(min=1)) / cfg.epochs
            if not count + observed:
                m += len(part)
                continue
            count, observed = count.clamp(min=1), observed.clamp(min=1)
            for micro in part:
                logprobs_S, entropy_S, echo_loss = self.score_parts(micro, observed)
                old_S = logprobs_S.detach() if update.old is None else update.old[m]
                weights_S = None
                if cfg.importance_cap is not None:
                    weights_S = losses.importance_weights(old_S, micro.behaviour_logprobs_S, cfg.importance_cap)
                policy_loss, policy_stats = losses.policy_loss(
                    logprobs_S, old_S, advantages[m], micro.valid_S, count, cfg.clip_low, cfg.clip_high, weights_S
                )
                entropy_loss, entropy_stats = losses.entropy_loss(entropy_S, micro.valid_S, count)
                loss = policy_loss + cfg.entropy_coef * entropy_loss
                if update.reference is not None:
                    kl_loss, kl_stats = losses.kl_loss(logprobs_S, update.reference[m], micro.valid_S, count)
                    loss = loss + cfg.kl_coef * kl_loss
                    update.add(kl_stats, share)
                if echo_loss is not None:
                    loss = loss + cfg.echo_coef * echo_loss
                    update.add({"observation_nll": echo_loss}, share_observed)
                self.manual_backward(loss)
                update.add({"policy_loss": policy_loss} | policy_stats | entropy_stats, share)
                played.append(old_S)
                m += 1
            if update.old is None:
                self.require_match(update, played)
            found = self.apply_gradients()
            update.norms = {name: max(value, update.norms.get(name, 0.0)) for name, value in found.items()}

    def finish(self, batch: Batch, update: Update, figures: dict[str, float]) -> None:
        """Log the figures of an update of `batch`, those of all processes; `figures` are more of them."""
        found = dict(zip(update.figures, total(list(update.figures.values())), strict=True)) | update.norms | figures
        masked, tokens = total([float((~batch.valid_S).sum()), batch.num_tokens])
        (seconds,) = largest([time.perf_counter() - update.started])
        self.log_area("stability", found | {"masked_tokens": masked})
        self.log_area("performance", {"update_seconds": seconds, "tokens": tokens})

    @torch.no_grad()
    def logprobs(self, policy: Policy, micros: list[Batch]) -> list[Tensor]:
        """(S,) log-probabilities of the sampled tokens of each micro-batch, without gradient."""
        return [policy(micro)[0] for micro in micros]
