"""What `python -m wmact estimate` says against what is measured here: peak memory and seconds of an update.

- Memory: live tensors at the peak of a step, as benchmarks/memory.py measures them.
- Arithmetic: FLOPs of the update by the estimate, and as PyTorch counts them in the step; attention is left out of
  both, because PyTorch's count of it depends on the kernel.
- Time: seconds of the step, and those of the estimate at the speed of a large float32 multiplication on this machine.
  Their ratio is what --mfu stands for.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import compare
import memory
import torch
from compare import load
from compare.inside import Host, fit
from torch.utils.flop_counter import FlopCounterMode

from wmact.collate import collate
from wmact.costs import Episodes, Sizes, update_flops
from wmact.estimate import Experiment, training_memory
from wmact.types import Batch

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "maze.yaml"


class Packed(Experiment):
    """An experiment whose micro-batches have as many tokens as were measured."""

    tokens: int

    @property
    def micro_batch(self) -> int:
        """Most tokens that go through a network at once."""
        return self.tokens


def peak_flops(size: int = 1024, times: int = 5) -> float:
    """FLOPs a second of the fastest of a few multiplications of square matrices."""
    a, b = torch.randn(2, size, size)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def main() -> None:
    report = compare.Report(__doc__ or "", pairs=3, levels=1, budgets="2048,16384")
    with tempfile.TemporaryDirectory() as folder:
        larger = memory.save_larger(folder)
        for name, model, checkpointing, budgets in (
            ("nano", "nano", False, report.args.budgets),
            ("larger", larger, False, "2048"),
            ("larger", larger, True, "2048"),
        ):
            words = ["--config", str(CONFIG), "--model.model", model]
            run = Packed([*words, "--model.gradient_checkpointing", str(checkpointing).lower()])
            for budget in map(int, budgets.split(",")):
                found = memory.in_new_process(model, budget, checkpointing, "32-true", "tensors")
                run.tokens = int(found["tokens"])
                said = training_memory(run).peak
                case = f"{name}, {budget} tokens" + (", gradient checkpointing" if checkpointing else "")
                note = f"{said / 2**20:.0f} MiB ÷ {found['peak'] / 2**20:.0f} MiB"
                report.add(f"{case}: memory, estimate ÷ measured", said / found["peak"], note)
        time_of_update(report, "nano", "nano")
        time_of_update(report, "larger", larger)
    report.finish()


def time_of_update(report: compare.Report, name: str, model: str) -> None:
    """Add what a step takes and what the estimate says of it."""
    played = load.random_episodes(report.args.levels, model)
    batch = collate(played)
    seconds: list[float] = []
    counted: list[int] = []
    host = Host(model=model)
    sizes = Sizes.of(host.policy.lm.config)

    def act(host: Host, batch: Batch) -> None:
        with FlopCounterMode(display=False) as counter:
            host.take_step(batch)
        attention = [flops for op, flops in counter.get_flop_counts()["Global"].items() if "attention" in str(op)]
        counted.append(counter.get_total_flops() - sum(attention))
        for _ in range(report.args.pairs):
            started = time.perf_counter()
            host.take_step(batch)
            seconds.append(time.perf_counter() - started)

    fit(host, batch, act)
    lengths = [(len(e.ids), sum(turn.end - turn.start for turn in e.turns)) for e in played]
    said: Any = sum(update_flops(host, sizes, Episodes(1, n - s, 0, 1, s)) for n, s in lengths)
    attention = sum(2 * 3 * 2 * sizes.layers * sizes.heads * sizes.head_dim * n**2 for n, _ in lengths)
    report.add(
        f"{name}: FLOPs but attention's, estimate ÷ counted", (said - attention) / counted[0], f"{said:.3g} in all"
    )
    speed = peak_flops()
    report.add(f"{name}: seconds of an update", compare.Spread.of(seconds))
    at_full_speed = said / speed
    note = f"at {speed / 1e9:.0f} GFLOPS of a multiplication {at_full_speed:.3g} s"
    report.add(f"{name}: share of that speed, as --mfu", compare.Spread.of([at_full_speed / s for s in seconds]), note)


if __name__ == "__main__":
    main()
