"""Supervised training on demonstrations: the warm start that teaches a model the protocol and how to simulate.

It is the same line as reinforcement with another end: episodes → collate → batch → cross-entropy of the sampled
tokens, where "sampled" is what the demonstrator wrote. The cross-entropy is taken over these tokens alone.
"""

import math
from pathlib import Path

import torch

from wmact import losses
from wmact.files import new_folder, require_replaceable
from wmact.loggers import run_folder
from wmact.lora import LoRA, adapted
from wmact.models import Policy, load_model, load_tokenizer
from wmact.module import AgentModule, require_not_negative
from wmact.processes import total, whole
from wmact.types import Batch

WARM_UP = 0.05


def one_cycle(done: float) -> float:
    """Return the share of the peak learning rate when a share of the steps is done: linearly up, a cosine to zero."""
    return min(done / WARM_UP, (1 + math.cos(math.pi * max(0.0, done - WARM_UP) / (1 - WARM_UP))) / 2)


class SFT(AgentModule):
    """Next-token training on the tokens of demonstrated replies.

    Args:
        model: folder of a Hugging Face causal language model, a hub id, "nano" or "smollm2".
        from_scratch: start from random weights of the model's configuration.
        echo_coef: weight of the cross-entropy of observation tokens, those the environment wrote in answer to a reply,
            as a mean over them; 0 leaves them out. With it, what the world says is learnt beside what to do.
        lr: peak learning rate; linear warm-up over 5 % of the trainer's steps, then cosine to zero. A resumed run goes
            on where it is among the steps that the trainer has now.
        betas: AdamW's averaging coefficients.
        weight_decay: AdamW's decoupled weight decay.
        save_to: folder for the trained model, written at the end as a Hugging Face folder, over the model that may be
            there; null: `<run folder>/model`.
        token_budget: most tokens of a micro-batch; bounds memory, does not change the result.
        max_grad_norm: gradients are clipped to this norm.
        max_skipped: stop after this many steps in a row with non-finite gradients.
        lora: train low-rank adapters and leave the model itself as it is (`wmact.lora.LoRA`: r, alpha, target_modules);
            null trains all weights. What is saved in the end is the model with the adapters added.
        chat_template: file of another chat template than the model's own; "plain" for the bundled one, which serves
            models that have none.
        temperature: of sampling in evaluations; set by the data's temperature.
        gradient_checkpointing: recompute activations in the backward pass.
        trust_remote_code: allow code that comes with a model, in the trainer and in the engine.
    """

    def __init__(
        self,
        model: str = "nano",
        from_scratch: bool = False,
        echo_coef: float = 0.0,
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.01,
        save_to: str | None = None,
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
        for name, value in {"lr": lr, "echo_coef": echo_coef}.items():
            require_not_negative(name, value)
        if save_to is not None:
            require_replaceable(Path(save_to))
        if from_scratch and lora:
            raise ValueError("model.from_scratch=True with model.lora: random weights are to be trained, all of them")
        self.save_hyperparameters()
        base = self.load_base(model, lora, trust_remote_code)
        if from_scratch:
            base = load_model(model, trust_remote_code, from_scratch)
        self.policy = Policy(adapted(base, lora), temperature, gradient_checkpointing, trust_remote_code)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW.

        Raises:
            ValueError: the training has no end, towards which its learning rate could fall.
        """
        if math.isinf(self.trainer.estimated_stepping_batches):
            raise ValueError(
                f"trainer.max_epochs={self.trainer.max_epochs}: the learning rate falls to zero over all steps of a "
                "supervised training, so it needs an end; give --trainer.max_epochs or --trainer.max_steps"
            )
        return super().configure_optimizers()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One optimizer step on a batch of demonstrations."""
        (group,) = self.optimizers().param_groups  # type: ignore[union-attr]
        # Not a scheduler's state: a resumed run may have another number of steps, and another learning rate.
        done = (self.global_step + 1) / (self.trainer.estimated_stepping_batches + 1)
        group["lr"] = self.settings.lr * one_cycle(done)
        echo_coef = self.settings.echo_coef
        (micros,) = self.micro_batches(batch)
        observed = float(sum(len(micro.token_O) for micro in micros)) if echo_coef else 0.0
        count, observed = total([float(batch.valid_S.sum()), observed])
        nll = observation_nll = 0.0
        for micro in micros:
            logprobs_S, _, echo_loss = self.score_parts(micro, max(observed, 1))
            loss = losses.cross_entropy(logprobs_S, micro.valid_S, count)
            nll += float(loss.detach())
            if echo_loss is not None:
                observation_nll += float(echo_loss.detach())
                loss = loss + echo_coef * echo_loss
            self.manual_backward(loss)
        self.log_area("stability", self.apply_gradients())
        nll, observation_nll = total([nll, observation_nll])
        self.log("train/nll", nll, on_step=True, on_epoch=False, prog_bar=True)
        if echo_coef:
            self.log("train/observation_nll", observation_nll, on_step=True, on_epoch=False)

    def on_train_end(self) -> None:
        """Write the model as a Hugging Face folder."""
        super().on_train_end()
        self._save()

    def on_fit_end(self) -> None:
        """Write it again if it is missing though nothing was left to train: who was killed while writing comes back."""
        if not self.trained and not self._target().exists():
            self._save()

    def _target(self) -> Path:
        return Path(self.settings.save_to or (run_folder(self.trainer) or Path()) / "model")

    def _save(self) -> None:
        lm = self.policy.lm
        buffers = dict(lm.named_buffers())
        weights = dict(self.weights()) | {name: whole(b) for name, b in lm.state_dict().items() if name in buffers}
        cfg = self.settings
        target = self._target()
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            with new_folder(target, replace=True) as folder:
                lm.save_pretrained(folder, state_dict=weights)
                load_tokenizer(cfg.model, cfg.trust_remote_code, cfg.chat_template).save_pretrained(folder)
