"""Curves of runs as a picture:  python -m wmact plot RUN [RUN …] --out docs/maze.png

Left, the paper's Figure 4: success in one turn and within the initial turn budget, on held-out levels, over training.
Right, the turn budget and the share of effective actions. Several runs (seeds) are drawn faintly, their mean strongly;
the band of a single run is the 95 % Wilson interval of its evaluation.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wmact.commands import CommandParser
from wmact.loggers import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[np.ndarray, np.ndarray]
"""Steps (n,), ascending, and the values there (n,)."""

COLOURS = {"multi_turn": "tab:blue", "single_turn": "tab:orange"}
"""Success within the initial turn budget and in one turn, by their names in metrics.csv."""


def read_curve(run: Path, metric: str) -> Curve:
    """Return steps and values of one metric of a run's metrics.csv, where it was logged.

    Raises:
        ValueError: the run has no metrics.csv, or it never logged this metric.
    """
    path = run / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"{run}: no metrics.csv there; give the folder of a run, such as runs/maze/version_0")
    rows = read_metrics(path)
    points = [(step, float(row[metric])) for step, row in rows.items() if metric in row]
    if not points:
        kind = Path(metric).name  # of another variant it may be there
        others = sorted({name for row in rows.values() for name in row if Path(name).name == kind})
        way_out = f"there is {', '.join(others)}" if others else "is it the folder of a training?"
        raise ValueError(f"{path}: nothing logged as {metric!r}; {way_out}")
    steps, values = zip(*sorted(points), strict=True)
    return np.array(steps), np.array(values)


def require_matplotlib() -> None:
    """Raise ImportError, with the way out, where there is nothing to draw with."""
    if not importlib.util.find_spec("matplotlib"):
        raise ImportError("figures need matplotlib: pip install matplotlib")


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean of curves, one a seed, at the steps that all of them have."""
    common = sorted(set.intersection(*(set(steps.tolist()) for steps, _ in curves)))
    return np.array(common), np.mean([values[np.isin(steps, common)] for steps, values in curves], axis=0)


def draw_success(axes: "Axes", curves: Mapping[str, Sequence[Curve]]) -> None:
    """Draw success over training, by the names of `COLOURS`: the mean over seeds, each seed faintly."""
    for name, colour in COLOURS.items():
        for steps, values in curves[name] if len(curves[name]) > 1 else []:
            axes.plot(steps, values, color=colour, alpha=0.3, lw=1)
        label = name.replace("_", "-")
        axes.plot(*mean_curve(curves[name]), color=colour, lw=2, marker=".", label=label)  # one point makes no line
    axes.set(xlabel="training iteration", ylabel="success on held-out levels", ylim=(0, 1))


def internalisation(runs: Sequence[Path], variant: str = "standard") -> "Figure":
    """Draw the curves of one or more runs of one configuration."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_success(left, {name: [read_curve(run, f"eval/{variant}/{name}") for run in runs] for name in COLOURS})
    for name, colour in COLOURS.items() if len(runs) == 1 else []:
        (steps, low), (_, high) = (read_curve(runs[0], f"eval/{variant}/{name}_{end}") for end in ("low", "high"))
        left.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
    left.legend(loc="lower right", frameon=False)
    share = right.twinx()
    for run in runs:
        right.step(*read_curve(run, "train/turn_budget"), where="post", color="black", lw=1.5, alpha=0.7)
        share.plot(*read_curve(run, "train/effective_share"), color="tab:green", lw=1, alpha=0.6)
    right.set(xlabel="training iteration", ylabel="turn budget L_max (black)", ylim=(0, None))
    share.set(ylabel="share of effective actions (green)", ylim=(0, 1))
    return figure


def main(args: Sequence[str]) -> None:
    """Draw what the command line names.

    Raises:
        ValueError: a run without these curves, or a picture of an unknown kind.
        OSError: the picture cannot be written.
        ImportError: there is no matplotlib.
    """
    parser = CommandParser("plot", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of one configuration, one a seed")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png, .svg, .pdf)")
    parser.add_argument("--variant", default="standard", help="evaluation variant")
    options = parser.parse_args(args)
    require_matplotlib()
    figure = internalisation(options.runs, options.variant)
    kinds = figure.canvas.get_supported_filetypes()
    if options.out.suffix.removeprefix(".").lower() not in kinds:
        parser.error(f"--out {options.out}: the name of a picture ends in one of .{', .'.join(kinds)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=150)
    print(options.out)
