"""Training steps in a real Trainer, and the formulas they are compared with, by transformers' own forward pass."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from transformers import AutoModelForCausalLM

from wmact.collate import collate
from wmact.types import Batch, Episode

Change = Callable[[Batch, int], Batch]


class Fixed(LightningDataModule):
    """The same episodes every epoch, sampled by the current weights as far as the trainer can tell."""

    def __init__(self, episodes: list[Episode], change: Change) -> None:
        super().__init__()
        self.episodes, self.change = episodes, change
        self.performance = {"rollout_seconds": 1.5}
        self.figures: dict[str, float] = {}

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        batch = collate(self.episodes, module.global_step)
        batch = batch._replace(behaviour_logprobs_S=module.score(batch))
        yield self.change(batch, self.trainer.current_epoch)

    def train_dataloader(self) -> "Fixed":
        return self


class Step(NamedTuple):
    """What an optimizer step found: gradients and weights before it, by name."""

    gradients: dict[str, Tensor]
    before: dict[str, Tensor]


class Watching(LightningModule):
    """Laid over an algorithm: keeps what each of its optimizer steps found, and everything it logged."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[Step] = []
        self.logged: dict[str, list[float]] = {}

    def apply_gradients(self) -> dict[str, float]:
        named = dict(self.named_parameters())
        gradients = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
        self.steps.append(Step(gradients, {name: p.detach().clone() for name, p in named.items()}))
        return super().apply_gradients()

    def log_dict(self, dictionary: Any, **kwargs: Any) -> None:
        for name, value in dictionary.items():
            self.logged.setdefault(name, []).append(float(value))
        super().log_dict(dictionary, **kwargs)


def trainer(epochs: int, **kwargs: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **kwargs,
    )  # fmt: skip


def fit(
    module: LightningModule, episodes: list[Episode], epochs: int = 1, change: Change = lambda batch, epoch: batch
) -> Trainer:
    run = trainer(epochs)
    run.fit(module, datamodule=Fixed(episodes, change))
    return run


class Literal:
    """One plain forward pass an episode with given weights, and the figures of every sampled token.

    `told` are the log-probabilities of observation tokens, `values` those of a critic, where the weights have one.
    """

    def __init__(self, folder: Path, weights: dict[str, Tensor], episodes: list[Episode], shared: bool = False) -> None:
        self.policy = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
        self.policy.load_state_dict(
            {name.removeprefix("policy.lm."): w for name, w in weights.items() if name.startswith("policy.lm.")},
            strict=False,  # the tied output layer
        )
        self.trunk = self.policy.base_model if shared else copy.deepcopy(self.policy.base_model)
        trunk = {n.removeprefix("critic.trunk."): w for n, w in weights.items() if n.startswith("critic.trunk.")}
        if trunk:
            self.trunk.load_state_dict(trunk)
        self.head = torch.nn.Linear(32, 1)
        self.has_critic = "critic.head.weight" in weights
        if self.has_critic:
            self.head.load_state_dict({name: weights[f"critic.head.{name}"] for name in ("weight", "bias")})
        logprobs, entropies, values, told = [], [], [], []
        for episode in episodes:
            ids = torch.tensor([episode.ids])
            log_p = self.policy(input_ids=ids).logits[0].log_softmax(-1)
            hidden = self.trunk(input_ids=ids).last_hidden_state[0]
            for i in (i for turn in episode.turns for i in range(turn.start, turn.end)):
                logprobs.append(log_p[i - 1, episode.ids[i]])
                entropies.append(-(log_p[i - 1].exp() * log_p[i - 1]).sum())
                values.append(self.head(hidden[i - 1])[0])
            told += [log_p[i - 1, episode.ids[i]] for start, end in episode.told for i in range(start, end)]
        self.logprobs, self.entropies, self.values = map(torch.stack, (logprobs, entropies, values))
        self.told = torch.stack(told) if told else torch.zeros(0)

    def gradients(self, objective: Tensor) -> dict[str, Tensor]:
        """Of the objective to every weight, by the module's names; None where it has none."""
        modules = {"policy.lm": self.policy}
        if self.has_critic:
            modules |= {"critic.trunk": self.trunk, "critic.head": self.head}
        if self.trunk is self.policy.base_model:
            del modules["critic.trunk"]
        named = {f"{m}.{name}": p for m, module in modules.items() for name, p in module.named_parameters()}
        found = torch.autograd.grad(objective, list(named.values()), retain_graph=True, allow_unused=True)
        return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-5) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def part(named: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: x for name, x in named.items() if name.startswith(prefix)}
