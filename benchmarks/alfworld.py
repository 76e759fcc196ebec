"""ALFWorld's engine as it is shipped beside ours: processor time of a start and of a step, and whether they say the same.

Each side plays the same games with the same random commands in a process of its own, one after the other, so the ratio is
of processor time. A start is a game that was not there before: composed, translated, loaded, told; "again" is the next
start of the same game, as the samples of a group are. Needs the extra alfworld.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import compare

STOCK = Path(__file__).resolve().parent.parent / "tests" / "helpers" / "stock_alfworld.py"


def play(side: str, steps: int, levels: list[str]) -> dict[str, object]:
    """What one side says and takes."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "0"}
    command = [sys.executable, str(STOCK), side, "train", str(steps), *levels]
    told: dict[str, object] = json.loads(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
    return told


def main() -> None:
    compare.LIBRARIES += ("alfworld", "textworld", "fast-downward-textworld")
    report = compare.Report(__doc__ or "", pairs=2, games=6, steps=20)
    levels = [str(level) for level in range(report.args.games)]
    found = [
        {side: play(side, report.args.steps, levels) for side in ("stock", "ours")} for _ in range(report.args.pairs)
    ]
    for name in ("start", "again", "step"):
        times = {side: [1000 * statistics.median(pair[side][name]) for pair in found] for side in ("stock", "ours")}  # type: ignore[call-overload]
        for side, values in times.items():
            report.add(f"{name}, {side}: ms", compare.Spread.of(values))
        ratio = compare.Spread.of([a / b for a, b in zip(times["stock"], times["ours"], strict=True)])
        report.add(f"{name}: stock ÷ ours", ratio)
    report.add(
        "says the same", float(all(pair["stock"]["digest"] == pair["ours"]["digest"] for pair in found)), "1 is yes"
    )
    report.finish()


if __name__ == "__main__":
    main()
