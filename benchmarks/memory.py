"""Peak memory of PPO's update against weights + gradients + optimizer states, by token budget; aim: at most 1.5.

A CPU has no allocator that keeps count, so two figures are taken, each in a process of its own for every case:
- tensors: the most bytes of live tensors, from torch.profiler's record of every allocation in the step, added to what
  was there before.
- resident: the most resident memory of the process in the step (Linux's VmHWM, reset before it) less what it was before
  there was a model. It also holds freed memory that the C library keeps and libraries' own buffers; it is what a
  machine must have. The profiler is off, for it needs more memory than it watches.

The measured step has one full micro-batch, and finds gradients of an earlier one, as a step of many micro-batches does.
Gradients, weights and AdamW's two states are 16 bytes a parameter of policy and critic; activations grow with tokens
and are what the token budget bounds. For a model as small as "nano" they are nearly everything, so the same is shown
for a random model of 27 million parameters, with and without gradient checkpointing; and for any other --model alone.
"""

import json
import os
import subprocess
import sys
import tempfile
from itertools import accumulate
from pathlib import Path
from typing import Any

import compare

LEVELS = 8  # of 8 episodes each: more tokens than the largest budget


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process: VmRSS now, VmHWM the most since the last reset."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(field)))


def measure(model: str, token_budget: int, gradient_checkpointing: bool, precision: str, what: str) -> dict[str, float]:
    """Take one step in this process, and tell the peak of `what` ("tensors" or "resident") in bytes."""
    import torch
    from compare import load
    from compare.inside import Host, fit
    from torch.profiler import ProfilerActivity, profile

    from wmact.collate import collate
    from wmact.types import Batch

    batch = collate(load.random_episodes(LEVELS, model))
    full, small = batch.split(token_budget)[0], batch.episodes(0, 1)
    before = resident()
    host = Host(model=model, token_budget=token_budget, gradient_checkpointing=gradient_checkpointing)
    found: dict[str, float] = {}

    def act(host: Host, batch: Batch) -> None:
        host.take_step(small)  # the optimizer's states exist from here on
        (host.policy(small)[0].sum() + host.critic(small).sum()).backward()  # and so do gradients
        parameters = list(host.parameters())
        state = 4 * sum(p.numel() * p.element_size() for p in parameters)
        there = sum(t.numel() * t.element_size() for t in batch if isinstance(t, torch.Tensor))
        found.update(parameters=sum(p.numel() for p in parameters), tokens=full.num_tokens, state=state)
        if what == "resident":
            Path("/proc/self/clear_refs").write_text("5")
            host.take_step(full)
            found["peak"] = resident("VmHWM") - before
            return
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
            host.take_step(full)
        internal: Any = profiler.profiler
        events = [event for event in internal.kineto_results.events() if event.name() == "[memory]"]
        live = accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
        found["peak"] = state + there + max(live)

    fit(host, full, act, precision)
    return found


def in_new_process(*case: Any) -> dict[str, float]:
    """What `measure` finds in a process of its own."""
    command = [sys.executable, __file__, "--measure", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def save_larger(folder: str) -> str:
    """A model like "nano" in everything but size, with random weights."""
    from wmact.nano import build_model, build_tokenizer

    build_model(hidden_size=512, layers=8).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def main() -> None:
    if "--measure" in sys.argv:
        print(json.dumps(measure(*json.loads(sys.argv[-1]))))
        return
    report = compare.Report(
        __doc__ or "", pairs=1, budgets="2048,4096,8192,16384", larger_budgets="2048", model="nano", precision="32-true"
    )
    with tempfile.TemporaryDirectory() as scratch:
        model, budgets, more = report.args.model, report.args.budgets, report.args.larger_budgets
        cases = [(model, model, False, budgets), (model, model, True, budgets)]
        if model == "nano":
            larger = save_larger(scratch)
            cases[1:] = [("larger", larger, False, more), ("larger", larger, True, more)]
        for name, folder, checkpointing, listed in cases:
            for budget in map(int, filter(None, listed.split(","))):
                case = f"{name}, {budget} tokens" + (", gradient checkpointing" if checkpointing else "")
                for what in ("tensors", "resident"):
                    found = in_new_process(folder, budget, checkpointing, report.args.precision, what)
                    note = f"{found['peak'] / 2**20:.0f} MiB ÷ {found['state'] / 2**20:.0f} MiB"
                    report.add(f"{case}: {what} ÷ state", found["peak"] / found["state"], note)
    report.finish()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
