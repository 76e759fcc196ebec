"""The figures of a study, drawn from its results: for its report and for notebooks."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wmact.plot import COLOURS, draw_success, mean_curve
from wmact.results import Part
from wmact.statistics import crossed_bootstrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = (("single_turn", 1, -0.12), ("multi_turn", None, 0.12))
"""Success in one turn and within L_max: its name, the budget for `Outcomes.success`, how far aside it is drawn."""


def success_figure(parts: Sequence[Part]) -> "Figure | None":
    """Draw the paper's Figure 4: success in one turn and in many over training, a row an environment, a panel an arm.

    Arms of the schedule sweep are left out. Returns None if there are no others, or nothing was evaluated in training.
    """
    arms = list(dict.fromkeys(arm for part in parts for arm in part.arms if not arm.startswith("tau_")))
    if not arms:
        return None
    figure, panels = _panels(len(parts), len(arms))
    for part, row in zip(parts, panels, strict=True):
        variant = part.shown_variant()
        for arm, axes in zip(arms, row, strict=True):
            curves = {name: part.curve(arm, f"eval/{variant}/{name}") if arm in part.arms else [] for name in COLOURS}
            axes.set_visible(all(curves.values()))
            if all(curves.values()):
                draw_success(axes, curves)
                _paper_line(axes, part, arm, str(variant))
                axes.set_title(f"{part.study.name}: {arm}\n{part.model}", fontsize=9)
        for axes in [axes for axes in row if axes.get_visible()][1:]:  # studies differ in their iterations
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)
    _legend(figure)
    return figure if any(axes.get_visible() for axes in figure.axes) else None


def turns_figure(parts: Sequence[Part]) -> "Figure":
    """Draw success against allowed turns, a panel a variant, a line an arm."""
    columns, colours = [(part, variant) for part in parts for variant in part.tests], _colours(parts)
    figure, (row,) = _panels(1, len(columns), width=3.6)
    for (part, variant), axes in zip(columns, row, strict=True):
        budgets = range(1, max(int(budget) for run in part.runs for budget in run["curve"].split()) + 1)
        for arm, tested in part.tests[variant].items():
            axes.plot(
                budgets,
                [tested.success(budget).mean() for budget in budgets],
                marker=".",
                label=arm,
                color=colours[arm],
            )
        _paper_line(axes, part, part.study.compare, variant)
        axes.set(xlabel="allowed turns", ylabel="success on test levels", ylim=(0, 1.02))
        axes.set_title(f"{part.study.name} {variant}\n{part.model}", fontsize=9)
    _legend(figure)
    return figure


def budget_figure(parts: Sequence[Part]) -> "Figure":
    """Draw the turn budget over training, a panel an environment, a line an arm."""
    colours = _colours(parts)
    figure, (row,) = _panels(1, len(parts), width=3.6)
    for part, axes in zip(parts, row, strict=True):
        for arm in part.arms:
            if curves := part.curve(arm, "train/turn_budget"):
                axes.step(*mean_curve(curves), where="post", label=arm, color=colours[arm])
        axes.set(xlabel="training iteration", ylabel="turn budget L_max, mean over seeds", ylim=(0, None))
        axes.set_title(f"{part.study.name}\n{part.model}", fontsize=9)
    _legend(figure)
    return figure


def arms_figure(part: Part) -> "Figure":
    """Draw success on the test levels in one turn and within L_max, a panel a variant.

    The dot is the mean over seeds with its interval, the dashes are the seeds.
    """
    figure, (row,) = _panels(1, len(part.tests), width=4.5)
    for (variant, tests), axes in zip(part.tests.items(), row, strict=True):
        for name, budget, aside in SERIES:
            success = [tested.success(budget) for tested in tests.values()]
            places, (means, lows, highs) = (
                np.arange(len(tests)) + aside,
                np.transpose([*map(crossed_bootstrap, success)]),
            )
            axes.plot(places, means, "o", color=COLOURS[name], label=name.replace("_", "-"))
            axes.vlines(places, lows, highs, color=COLOURS[name])
            for place, values in zip(places, success, strict=True):
                axes.plot(np.full(len(values), place), values.mean(1), "_", color=COLOURS[name], ms=9, alpha=0.6)
        axes.set_xticks(range(len(tests)), list(tests), rotation=20)
        axes.set(ylabel="success on test levels", ylim=(0, 1.02))
        axes.set_title(f"{part.study.name} {variant}\n{part.model}", fontsize=9)
    _legend(figure)
    return figure


def differences_figure(part: Part, pairs: Sequence[tuple[str, str]]) -> "Figure":
    """Draw the differences in success of pairs of arms, first less second, with their intervals, a panel a variant."""
    figure, (row,) = _panels(1, len(part.tests), width=4.5)
    for (variant, tests), axes in zip(part.tests.items(), row, strict=True):
        for name, budget, aside in SERIES:
            estimates = [crossed_bootstrap(*tests[arm].paired(tests[other], budget)) for arm, other in pairs]
            places, (means, lows, highs) = np.arange(len(pairs)) + aside, 100 * np.transpose(estimates)
            axes.plot(means, places, "o", color=COLOURS[name], label=name.replace("_", "-"))
            axes.hlines(places, lows, highs, color=COLOURS[name])
        axes.axvline(0, color="black", lw=1)
        axes.set_yticks(range(len(pairs)), [f"{arm}\nless {other}" for arm, other in pairs])
        axes.invert_yaxis()
        axes.set(xlabel="difference in success, points")
        axes.label_outer()
        axes.set_title(f"{part.study.name} {variant}\n{part.model}", fontsize=9)
    _legend(figure)
    return figure


def training_figure(part: Part, metrics: Mapping[str, str]) -> "Figure":
    """Draw metrics over training, by their names in metrics.csv, a panel each, a line an arm, its seeds faintly.

    Args:
        metrics: name → label of its axis.
    """
    colours = _colours([part])
    figure, (row,) = _panels(1, len(metrics), width=3.6)
    for (metric, label), axes in zip(metrics.items(), row, strict=True):
        for arm in part.arms:
            if curves := part.curve(arm, metric):
                for curve in curves:
                    axes.plot(*curve, color=colours[arm], lw=0.8, alpha=0.3)
                axes.plot(*mean_curve(curves), color=colours[arm], lw=2, label=arm)
        axes.set(xlabel="training iteration", ylabel=label, ylim=(0, None))
    _legend(figure)
    return figure


def _panels(rows: int, columns: int, width: float = 2.6) -> "tuple[Figure, NDArray[Any]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, 2.8 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _colours(parts: Sequence[Part]) -> dict[str, Any]:
    """Give every arm its colour, the same in all panels: ten strong ones, and then the same ones light."""
    from matplotlib import color_sequences

    strong_and_light = color_sequences["tab20"]
    arms = dict.fromkeys(arm for part in parts for arm in part.arms)
    return dict(zip(arms, itertools.cycle(strong_and_light[::2] + strong_and_light[1::2]), strict=False))


def _legend(figure: "Figure") -> None:
    """Name every line of a figure once, beside the panels."""
    named = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
    lines = {label: line for pairs in named for line, label in pairs}
    figure.legend(list(lines.values()), list(lines), loc="outside right upper", frameon=False, fontsize=8)


def _paper_line(axes: "Axes", part: Part, arm: str, variant: str) -> None:
    if (percent := part.paper(arm, variant)) is not None:
        axes.axhline(percent / 100, color="black", ls=":", lw=1)
        place: Any = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        axes.text(0.98, percent / 100, f"{arm} in the paper, 8 B", fontsize=7, **place)
