"""ALFWorld's engine as it is shipped beside ours: processor time of a start and of a step, and whether they agree.

Each side plays the same games with the same random commands in a process of its own, one after the other, so the ratio
is of processor time. A start is a game that was not there before: composed, translated, loaded, told; "again" is the
next start of the same game, as the samples of a group are. Needs the extra alfworld.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import compare

STOCK = Path(__file__).resolve().parent.parent / "tests" / "helpers" / "stock_alfworld.py"
SIDES = ("stock", "ours")


def play(side: str, steps: int, levels: list[str]) -> dict[str, Any]:
    """What one side says and takes."""
    command = [sys.executable, str(STOCK), side, "train", str(steps), *levels]
    env = os.environ | {"PYTHONHASHSEED": "0"}
    told: dict[str, Any] = json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout)
    return told


def main() -> None:
    compare.LIBRARIES += ("alfworld", "textworld", "fast-downward-textworld")
    report = compare.Report(__doc__ or "", pairs=2, games=6, steps=20)
    levels = [str(level) for level in range(report.args.games)]
    found = [{side: play(side, report.args.steps, levels) for side in SIDES} for _ in range(report.args.pairs)]
    for name in ("start", "again", "step"):
        times = {side: [1000 * statistics.median(pair[side][name]) for pair in found] for side in SIDES}
        for side, values in times.items():
            report.add(f"{name}, {side}: ms", compare.Spread.of(values))
        shares = [stock / ours for stock, ours in zip(times["stock"], times["ours"], strict=True)]
        report.add(f"{name}: stock ÷ ours", compare.Spread.of(shares))
    same = all(pair["stock"]["digest"] == pair["ours"]["digest"] for pair in found)
    report.add("says the same", "yes" if same else "NO")
    report.finish()


if __name__ == "__main__":
    main()
