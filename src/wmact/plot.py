"""Curves of runs as a picture:  python -m wmact.plot RUN [RUN …] --out docs/maze.png

Left, the paper's Figure 4: success in one turn and within the initial turn budget, on held-out levels, over training.
Right, the turn budget and the share of effective actions. Several runs (seeds) are drawn faintly, their mean strongly;
the band of a single run is the 95 % Wilson interval of its evaluation.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[np.ndarray, np.ndarray]


def read_curve(run: Path, metric: str) -> Curve:
    """Return steps and values of one metric of a run's metrics.csv, where it was logged.

    Raises:
        ValueError: the run has no metrics.csv, or it never logged this metric.
    """
    path = run / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"{run}: no metrics.csv there; give the folder of a run, such as runs/maze/version_0")
    with path.open(newline="") as file:
        points = [(int(row["step"]), float(row[metric])) for row in csv.DictReader(file) if row.get(metric)]
    if not points:
        raise ValueError(f"{path}: nothing logged as {metric!r}")
    steps, values = zip(*sorted(points), strict=True)
    return np.array(steps), np.array(values)


def internalisation(runs: Sequence[Path], variant: str = "standard") -> "Figure":
    """Draw the curves of one or more runs of one configuration."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in (("multi_turn", "tab:blue"), ("single_turn", "tab:orange")):
        curves = [read_curve(run, f"eval/{variant}/{name}") for run in runs]
        for steps, values in curves if len(curves) > 1 else []:
            left.plot(steps, values, color=colour, alpha=0.3, lw=1)
        common = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in curves)))
        mean = np.mean([[values[list(steps).index(s)] for s in common] for steps, values in curves], axis=0)
        left.plot(common, mean, color=colour, lw=2, label=name.replace("_", "-"))
        if len(runs) == 1:
            low, high = (read_curve(runs[0], f"eval/{variant}/{name}_{end}")[1] for end in ("low", "high"))
            left.fill_between(curves[0][0], low, high, color=colour, alpha=0.15, lw=0)
    left.set(xlabel="training iteration", ylabel="success on held-out levels", ylim=(0, 1))
    left.legend(loc="lower right", frameon=False)
    share = right.twinx()
    for run in runs:
        right.step(*read_curve(run, "train/turn_budget"), where="post", color="black", lw=1.5, alpha=0.7)
        share.plot(*read_curve(run, "train/effective_share"), color="tab:green", lw=1, alpha=0.6)
    right.set(xlabel="training iteration", ylabel="turn budget L_max (black)", ylim=(0, None))
    share.set(ylabel="share of effective actions (green)", ylim=(0, 1))
    return figure


def main(args: Sequence[str] | None = None) -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m wmact.plot", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of one configuration, one a seed")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png, .svg, .pdf)")
    parser.add_argument("--variant", default="standard", help="evaluation variant")
    options = parser.parse_args(args)
    try:
        figure = internalisation(options.runs, options.variant)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(options.out, dpi=150)
    except (ValueError, OSError) as error:
        parser.exit(2, f"wmact.plot: {error}\n")
    print(options.out)


if __name__ == "__main__":
    main()
