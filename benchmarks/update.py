"""PPO.training_step against a bare forward and backward pass of policy and critic on the same tokens.

The bare pass takes the same micro-batches of the same packed episodes through the same attention, and the output layer
on the sampled positions only; it has no advantages, statistics, entropy, guards, clipping, optimizer or logging. Beside
it, for information, the naive way: episodes padded to the longest of their micro-batch, masked attention, and logits
for every position; the bare pass in the other of the two precisions, as not every CPU gains by bfloat16; and that of
RWML's predictions, where the samples of a level share their prompt, and where each reads it for itself.

Everything runs inside one Lightning training step, so that the measured one is a real one.
"""

from collections.abc import Callable
from itertools import pairwise

import compare
import torch
from compare import load
from compare.inside import Host, fit
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForCausalLM

from wmact.attention import fold, hidden_before
from wmact.collate import collate
from wmact.models import resolve_model
from wmact.ppo import PPO
from wmact.types import Batch


class Bare:
    """The least that has to be computed."""

    def __init__(self, ppo: PPO, micros: list[Batch]) -> None:
        self.policy, self.critic, self.head = ppo.policy.lm, ppo.critic.trunk, ppo.critic.head
        self.micros = [(micro, torch.randn(len(micro.token_S))) for micro in micros]

    def __call__(self) -> None:
        """Forward and backward, critic first, as PPO does it."""
        for micro, goal_S in self.micros:
            hidden_SH = hidden_before(self.critic, micro, micro.token_S)
            mse_loss(self.head(hidden_SH)[:, 0], goal_S, reduction="sum").backward()
        for micro, goal_S in self.micros:
            logits_SV = self.policy.lm_head(hidden_before(self.policy.model, micro, micro.token_S))
            (cross_entropy(logits_SV, micro.targets_S, reduction="none") * goal_S).sum().backward()


class Naive:
    """Padded episodes and full logits, with the attention that transformers chooses."""

    def __init__(self, model: str, micros: list[Batch]) -> None:
        self.policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.critic = AutoModel.from_pretrained(model, dtype=torch.float32)
        self.head = torch.nn.Linear(self.critic.config.hidden_size, 1)
        self.padded = [self._pad(micro) for micro in micros]

    @staticmethod
    def _pad(micro: Batch) -> tuple[Tensor, Tensor, Tensor]:
        sampled_T = torch.zeros(micro.num_tokens, dtype=torch.bool)
        sampled_T[micro.token_S] = True
        cuts = list(pairwise(micro.starts_E.tolist()))
        ids = [micro.ids_T[a:b] for a, b in cuts]
        return (
            pad_sequence(ids, batch_first=True),
            pad_sequence([torch.ones_like(x) for x in ids], batch_first=True),
            pad_sequence([sampled_T[a:b] for a, b in cuts], batch_first=True),
        )

    def __call__(self) -> None:
        """Forward and backward."""
        for ids, mask, sampled in self.padded:
            hidden = self.critic(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            values = self.head(hidden)[:, :-1, 0]
            (values**2 * sampled[:, 1:]).sum().backward()
        for ids, mask, sampled in self.padded:
            logits = self.policy(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            (losses * sampled[:, 1:]).sum().backward()


def main() -> None:
    report = compare.Report(__doc__ or "", pairs=5, levels=5, token_budget=16384, model="nano", precision="32-true")
    model, lower = report.args.model, report.args.precision == "32-true"
    other = "bare in bfloat16" if lower else "bare in float32"
    batch = collate(load.random_episodes(report.args.levels, model))
    short = collate(load.predictions(report.args.levels))
    timings: dict[str, list[compare.Timing]] = {}

    def act(host: Host, batch: Batch) -> None:
        micros = batch.split(host.settings.token_budget)
        bare = Bare(host, micros)
        together = short.split(host.settings.token_budget)
        alone = [micro._replace(group_E=torch.arange(len(micro.group_E))) for micro in together]

        def bare_in_the_other() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=lower):
                bare()

        sides: dict[str, Callable[[], None]] = {
            "training_step": lambda: host.take_step(batch),
            "bare": bare,
            other: bare_in_the_other,
            "naive": Naive(resolve_model(model), micros),
            "predictions": Bare(host, together),
            "predictions, nothing shared": Bare(host, alone),
        }
        timings.update(compare.interleave(sides, report.args.pairs, before=host.zero_grad))

    fit(Host(model=model, token_budget=report.args.token_budget), batch, act, report.args.precision)

    micros = batch.split(report.args.token_budget)
    padded = sum(int(micro.starts_E.diff().max()) * (len(micro.starts_E) - 1) for micro in micros)
    report.add("episodes", len(batch.starts_E) - 1)
    report.add("tokens", batch.num_tokens, f"{len(batch.token_S)} of them sampled; {padded} with padding")
    report.add("micro-batches", len(micros), f"of at most {report.args.token_budget} tokens")
    read = len(fold(short).read_R)
    report.add("tokens of predictions", short.num_tokens, f"{len(short.token_S)} of them sampled; {read} are read")
    for name, runs in timings.items():
        tokens = (short if name.startswith("predictions") else batch).num_tokens
        report.add(f"{name}: tokens a second", compare.Spread.of([tokens / run.wall for run in runs]))
    for name, aim in (("bare", "aim: at least 0.85"), ("naive", "for information")):
        ratio = compare.ratios(timings, name, "training_step")
        report.add(f"training_step ÷ {name}", ratio["wall"], aim)
        report.add(f"training_step ÷ {name}, processor time", ratio["cpu"])
    for slow, fast in (("bare", other), ("predictions, nothing shared", "predictions")):
        ratio = compare.ratios(timings, slow, fast)
        report.add(f"{fast} ÷ {slow}", ratio["wall"], "for information")
        report.add(f"{fast} ÷ {slow}, processor time", ratio["cpu"])
    report.finish()


if __name__ == "__main__":
    main()
