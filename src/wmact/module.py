"""What every training algorithm here shares: the policy, the one optimizer step, evaluation and guards."""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from transformers import PreTrainedModel

from wmact import losses
from wmact.lora import LoRA, Weights, fingerprint
from wmact.metrics import EpisodeMetrics
from wmact.models import Critic, Policy, load_model, shard
from wmact.processes import largest, merged, several, sum_gradients, together, whole
from wmact.statistics import with_interval
from wmact.types import Batch, Mean, Played, TrainingStopped


def require_not_negative(name: str, value: float) -> None:
    """Refuse a setting that is below 0, infinite or NaN: torch checks a rate of its own only, not those of groups.

    Raises:
        ValueError: it is.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}={value}: must be a number, and not negative")


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer is for: all, or with LoRA the adapters'."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


class AgentModule(L.LightningModule):
    """Base of PPO, GRPO and supervised training. Manual optimization, one optimizer, evaluation by played episodes.

    A subclass writes `training_step` and, where it has more than a policy, `groups`.
    """

    policy: Policy
    skipped: Tensor
    base_model: Tensor | None

    def __init__(self, max_grad_norm: float, max_skipped: int) -> None:
        super().__init__()
        if max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm={max_grad_norm}: must be above 0; inf switches clipping off")
        if max_skipped < 1:
            raise ValueError(f"max_skipped={max_skipped}: must be at least 1")
        self.automatic_optimization = False
        self.trained = False  # whether there was anything left to train
        self.max_grad_norm = max_grad_norm
        self.max_skipped = max_skipped
        self.register_buffer("skipped", torch.zeros(2, dtype=torch.long))  # in a row, in all
        self.register_buffer("base_model", None)  # with LoRA: (1,) int64, which base the adapters are for
        # By variant, made when its first episodes come. No ModuleDict: it refuses names such as "train" or "maze.11".
        self.evaluation: dict[str, EpisodeMetrics] = {}
        self.world_model: dict[str, Mean] = {}  # by variant/figure

    @property
    def settings(self) -> Any:
        """The arguments of the constructor, by name; Lightning's `hparams`, which has no type."""
        return self.hparams

    def configure_model(self) -> None:
        """Cut the networks into shards, where the strategy does (`strategies.FSDP2`)."""
        if self.device_mesh is not None:
            # Lightning's autocast alone would gather float32 and keep a copy of every weight for the backward pass.
            computes_in = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
            for network in self.children():
                if isinstance(network, Policy | Critic):
                    shard(network, self.device_mesh["data_parallel"], computes_in)

    def load_base(self, model: str, lora: LoRA | None, trust_remote_code: bool) -> str | PreTrainedModel:
        """What networks start from: the name of the model; with LoRA the model itself, loaded once and frozen."""
        self.settings["lora"] = lora and asdict(lora)  # a checkpoint holds data only
        if lora is None:
            return model
        base = load_model(model, trust_remote_code).requires_grad_(False)
        self.base_model, self.strict_loading = fingerprint(base), False
        return base

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One AdamW for all groups (two optimizers would double global_step)."""
        return torch.optim.AdamW(self.groups(), betas=self.settings.betas, weight_decay=self.settings.weight_decay)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups, each with its name and learning rate."""
        return [{"name": "policy", "params": trainable(self.policy), "lr": self.settings.lr}]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Of what is trained, and what counts; with LoRA the base is left out, which nothing changes."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        if self.base_model is None:
            return state
        frozen = {name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {name: value for name, value in state.items() if name not in frozen}

    def weights(self) -> Mapping[str, Tensor]:
        """The policy's parameters by their Hugging Face names, for an engine; all processes must call it.

        Adapters are added to what they adapt when it is looked up; shards are put together at once.
        """
        weights = Weights(self.policy.lm)
        return weights if self.device_mesh is None else dict(weights)

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """(S,) log-probabilities of the sampled tokens under the current weights; all processes must call it."""
        training = self.policy.training
        logprobs_S, _ = self.policy.eval()(batch.to_device(self.device))
        self.policy.train(training)
        return logprobs_S

    def micro_batches(self, batch: Batch, minibatches: int = 1, kept_E: Tensor | None = None) -> list[list[Batch]]:
        """Cut each minibatch into micro-batches of at most `token_budget` tokens, on every process into as many.

        A process with fewer goes along with empty ones: with FSDP2 every pass of one is a pass of all.

        Args:
            kept_E: (E,) bool, the episodes that are to go through the networks; None: all.
        """
        with together():
            whole_parts = batch.minibatches(minibatches)
            if kept_E is not None:
                kept = kept_E.split([len(part.group_E) for part in whole_parts])
                whole_parts = [part.select(marked_E) for part, marked_E in zip(whole_parts, kept, strict=True)]
            parts = [part.split(self.settings.token_budget) for part in whole_parts]
        most = largest([len(part) for part in parts])
        return [part + [batch.nothing()] * int(number - len(part)) for part, number in zip(parts, most, strict=True)]

    def score_parts(self, micro: Batch, observed: Tensor | float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Score a micro-batch for an update: its sampled tokens, and with `echo_coef` its observation tokens too.

        Args:
            observed: observation tokens of the minibatch, of all processes.

        Returns:
            (S,) log-probabilities and (S,) entropies of the sampled tokens, and this micro-batch's part in the mean
            cross-entropy of the observation tokens; None where they are left out.
        """
        if not self.settings.echo_coef:
            return *self.policy(micro), None
        logprobs, entropies = self.policy(micro, torch.cat([micro.token_S, micro.token_O]))
        logprobs_S, logprobs_O = logprobs.tensor_split([len(micro.token_S)])
        echo_loss = losses.cross_entropy(logprobs_O, torch.ones_like(micro.token_O).bool(), observed)
        return logprobs_S, entropies[: len(micro.token_S)], echo_loss

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward pass of this process. DDP's sums expect every parameter in every pass: see `apply_gradients`.

        Raises:
            SIGTERMException: one was received: an update can take minutes, and a job that is to end has seconds. Of
                several processes each ends its update, or others would wait for it.
        """
        strategy = self.trainer.strategy
        with strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext():
            super().manual_backward(loss, *args, **kwargs)
        if self.trainer.received_sigterm and not several():
            raise SIGTERMException

    def apply_gradients(self) -> dict[str, float]:
        """Clip each parameter group by its own norm and step; with a non-finite gradient, skip the step and count it.

        Gradients of all processes are added up before, so that all have the same and decide alike.

        Returns:
            The gradient norm of each group before clipping, and what was skipped.

        Raises:
            TrainingStopped: `max_skipped` steps in a row were skipped.
        """
        optimizer = self.optimizers()
        assert isinstance(optimizer, L.pytorch.core.optimizer.LightningOptimizer)
        sum_gradients(parameter for group in optimizer.param_groups for parameter in group["params"])
        norms = {
            f"grad_norm/{group['name']}": float(whole(nn.utils.clip_grad_norm_(group["params"], self.max_grad_norm)))
            for group in optimizer.param_groups
        }
        if all(map(math.isfinite, norms.values())):
            optimizer.step()
            self.skipped[0] = 0
        else:
            self.skipped += 1
        optimizer.zero_grad(set_to_none=True)
        with together():
            if self.skipped[0] >= self.max_skipped:
                raise TrainingStopped(
                    f"{self.max_skipped} optimizer steps in a row had NaN or infinite gradients; the weights are those "
                    "before them: lower the learning rate or look at stability/ in TensorBoard"
                )
        return norms | {"skipped_steps": float(self.skipped[1])}

    def log_area(self, area: str, stats: dict[str, Any]) -> None:
        """Log figures as `area/name`, once a step."""
        self.log_dict({f"{area}/{name}": float(value) for name, value in stats.items()}, on_step=True, on_epoch=False)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Log what the rollout of this batch took, and what was found out about it."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.log_area("performance", data.performance)
        self.log_area("train", data.figures)

    # Evaluation: the data module plays, the metrics count.

    def on_train_start(self) -> None:
        """Take learning rates, betas and weight decay from the settings; a checkpoint has just put back its own.

        Then evaluate the start weights: a curve without its first point says little.
        """
        groups = self.optimizers().param_groups  # type: ignore[union-attr]
        for group, asked in zip(groups, self.configure_optimizers().param_groups, strict=True):
            group |= {name: value for name, value in asked.items() if name != "params"}
        self.trained = True
        if self.trainer.current_epoch == 0:
            self._validate()

    def on_train_end(self) -> None:
        """Evaluate the trained weights, if the last iteration was not one to be evaluated."""
        if self.trainer.current_epoch % (self.trainer.check_val_every_n_epoch or 1):
            self._validate()

    def _validate(self) -> None:
        """Run a validation inside a fit, where validation is on."""
        if self.trainer.enable_validation and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.trainer.validating = True
            self.trainer.fit_loop.epoch_loop.val_loop.run()
            self.trainer.training = True

    def validation_step(self, played: Played, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the episodes of one variant."""
        if played.variant not in self.evaluation:
            metrics = EpisodeMetrics(played.max_turns, played.curve, played.categories)
            self.evaluation[played.variant] = metrics.to(self.device)
        metrics = self.evaluation[played.variant]
        metrics.turn_budget = played.turn_budget
        metrics.update(played.episodes)
        self.world_model |= {f"{played.variant}/{name}": mean for name, mean in played.world_model.items()}

    def on_validation_epoch_end(self) -> None:
        """Log `eval/<variant>/<figure>`, and forget the episodes.

        In a fit the step is the number of batches trained on. Lightning's own would be that of the batch before, whose
        episodes other weights have played, and the start would share it with what came of the first batch.
        """
        figures: dict[str, float] = {}
        for variant, metrics in self.evaluation.items():
            figures |= {f"eval/{variant}/{name}": value for name, value in metrics.compute().items()}
        for name, mean in merged(self.world_model).items():
            if mean.number:
                name, value = f"eval/world_model/{name}", mean.total / mean.number
                figures |= with_interval(name, value, mean.trials) if mean.trials else {name: value}
        self.evaluation, self.world_model = {}, {}
        fitting = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking
        self.log_dict(figures, logger=not fitting, sync_dist=True)  # equal on all ranks; Lightning warns without
        for logger in self.trainer.loggers if fitting else []:
            logger.log_metrics(figures, self.trainer.fit_loop.total_batch_idx + 1)
            logger.save()

    def test_step(self, played: Played, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the episodes of one variant."""
        self.validation_step(played, batch_idx, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Log `eval/<variant>/<figure>`."""
        self.on_validation_epoch_end()

    def predict_step(self, played: Played, batch_idx: int, dataloader_idx: int = 0) -> Played:
        """Return the played episodes."""
        return played
