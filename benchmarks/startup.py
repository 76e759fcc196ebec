"""Seconds from launching `python -m wmact fit --config configs/maze.yaml` to its first optimizer step; aim: at most 20.

The command is run as a user runs it, in a fresh process and folder, for one iteration: with the evaluation of the start
weights that the config asks for, and without. A callback of this file, named on the command line, tells the times:
- imports: from the launch until the command line is parsed that far
- set-up: the models, the environments, the run folder
- engine: its start, vLLM's import included
- evaluation and rollout: what they take apart from the engine's start
- update: the first training step, until the optimizer has stepped

Beside them, as a yardstick: a Python that does nothing but import torch, lightning, transformers and vllm.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import compare

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "maze.yaml"
MARKS = "WMACT_BENCHMARK_MARKS"  # the file that a measured run writes to; nothing is measured without
LIBRARIES = """
import torch, lightning.pytorch.cli, transformers.models.llama.modeling_llama
from wmact.engines.process import guest
with guest(False):
    from vllm import LLMEngine
"""
STATIONS = ("imports", "set-up", "engine", "evaluation", "rollout", "update")


def mark(station: str) -> None:
    """Write down that a station ends now; Linux's monotonic clock is the same for all processes."""
    with open(os.environ[MARKS], "a", encoding="utf-8") as file:
        file.write(f"{time.monotonic()} {station}\n")


if MARKS in os.environ:
    import lightning as L

    class Clock(L.Callback):
        """Marks the stations of a run's beginning."""

        def __init__(self) -> None:
            mark("imports")

        def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            """Watch the engine's start, which is the first thing of the first evaluation or rollout."""
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            start = data.engine.start

            def watched(*args: Any, **kwargs: Any) -> None:
                mark("set-up")
                start(*args, **kwargs)
                mark("engine")

            data.engine.start = watched

        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            """The start weights are evaluated."""
            mark("evaluation")

        def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
            """The rollout is played."""
            mark("rollout")

        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            """The optimizer has stepped; what comes after is of no interest."""
            mark("update")
            os._exit(0)


def start_training(*options: str) -> dict[str, float]:
    """Run one iteration; return the seconds of each station."""
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks"
        command = [sys.executable, "-m", "wmact", "fit", "--config", str(CONFIG), "--trainer.max_epochs=1"]
        # The engine that would be chosen by itself: named, it exists before the first rollout and can be watched.
        command += ["--data.engine=wmact.engines.VLLMEngine", "--trainer.callbacks+=startup.Clock", *options]
        environment = os.environ | {MARKS: str(marks), "PYTHONPATH": str(Path(__file__).parent)}
        last = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        seconds: dict[str, float] = defaultdict(float)
        for line in marks.read_text(encoding="utf-8").splitlines():
            at, _, station = line.partition(" ")
            seconds[station] += float(at) - last
            last = float(at)
        return seconds


def import_libraries() -> float:
    """Seconds of a Python that imports and ends."""
    started = time.monotonic()
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "CRITICAL", "VLLM_NO_USAGE_STATS": "1"}
    subprocess.run([sys.executable, "-c", LIBRARIES], env=environment, capture_output=True, check=True)
    return time.monotonic() - started


def main() -> None:
    report = compare.Report(__doc__ or "", pairs=2)
    import_libraries()  # from the disk, once
    evaluated, direct, bare = [], [], []
    for _ in range(report.args.pairs):
        evaluated.append(start_training())
        direct.append(start_training("--trainer.limit_val_batches=0"))
        bare.append(import_libraries())
    for case, runs in (("with the first evaluation", evaluated), ("without", direct)):
        for station in STATIONS:
            if any(run[station] for run in runs):
                report.add(f"{case}: {station}", compare.Spread.of([run[station] for run in runs]))
        report.add(
            f"{case}: first optimizer step after", compare.Spread.of([sum(run.values()) for run in runs]), "aim: ≤ 20"
        )
    report.add("importing the libraries only", compare.Spread.of(bare))
    parts = [sum(run.values()) / seconds for run, seconds in zip(direct, bare, strict=True)]
    report.add("without evaluation ÷ importing the libraries", compare.Spread.of(parts))
    report.finish()


if __name__ == "__main__":
    main()
