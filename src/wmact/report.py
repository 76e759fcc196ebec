"""The report of a study: words, tables, figures, computed from the result files and from nothing else.

Several studies, one an environment, stand side by side in one report.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wmact.plot import COLOURS, Curve, draw_success, mean_curve
from wmact.results import FILES, Results, Row, read_results
from wmact.statistics import FLIPS, RESAMPLES, Estimate, Floats, crossed_bootstrap, sign_flip
from wmact.study_file import Study, read_study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TABLES = {
    "Ablation (the paper's Table 3)": {
        "interactive": "PPO-Interactive",
        "rescale_only": "+ reward rescaling",
        "wmact": "+ annealing = WMAct",
    },
    "A penalty for every action instead of annealing (the paper's Table 4)": {
        "step_penalty": "step penalty",
        "wmact": "annealing (WMAct)",
    },
}
"""Title of a table of success → its arms, as studies name them, and what they are called there."""
SCHEDULES = ("tau_", "adaptive")
"""How the names of arms begin that differ from "wmact" in their schedule only."""

KNOWN = {
    "question_exact": "asked: next place right",
    "question_effect": "asked: whether anything changes",
    "thought_exact": "thought: next place right",
    "thought_opening": "thought: begins where it is",
    "thought_moves": "simulated moves a thought",
}
"""Figure of `world_model.py` → head of its column."""

SERIES = (("single_turn", 1, -0.12), ("multi_turn", None, 0.12))
"""Success in one turn and within L_max: its name, the budget for `Outcomes.success`, how far aside it is drawn."""


# What the tables are made of


class Outcomes:
    """What one arm did on one variant. Levels are those that all its seeds were tested on.

    Args:
        rows: of outcomes.csv.gz.
        max_turns: the arm's initial turn budget.
    """

    def __init__(self, rows: Iterable[Row], max_turns: int) -> None:
        by_seed: dict[int, dict[int, list[list[int]]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            numbers = [int(row[name]) for name in ("solved_at", "actions", "effective")]
            by_seed[int(row["seed"])][int(row["level"])].append(numbers)
        self.max_turns = max_turns
        self.seeds = sorted(by_seed)
        self.levels = np.array(sorted(set.intersection(*(set(levels) for levels in by_seed.values()))))
        table = np.array([[by_seed[seed][level] for level in self.levels] for seed in self.seeds])
        self.solved_at, self.actions, self.effective = np.moveaxis(table, -1, 0)  # each (seeds, levels, samples)

    def success(self, budget: int | None = None) -> Floats:
        """Return (seeds, levels): the share of samples solved within `budget` turns (default: the initial budget)."""
        budget = self.max_turns if budget is None else budget
        return ((self.solved_at > 0) & (self.solved_at <= budget)).mean(-1)

    def paired(self, other: "Outcomes", budget: int | None = None) -> tuple[Floats, Floats]:
        """Return `success` of both on the levels that both have."""
        _, ours, theirs = np.intersect1d(self.levels, other.levels, return_indices=True)
        return self.success(budget)[:, ours], other.success(budget)[:, theirs]

    def per_episode(self) -> Floats:
        """Return (seeds,): mean number of actions."""
        return self.actions.mean((1, 2))

    def effective_share(self) -> Floats:
        """Return (seeds,): N_eff / N, over all actions."""
        return self.effective.sum((1, 2)) / np.maximum(1, self.actions.sum((1, 2)))


class Part:
    """One study of a report: its arms in the order of the study file, as far as they have results."""

    def __init__(self, study: Study, results: Results) -> None:
        self.study, self.results = study, results
        planned = {(arm, str(seed)) for arm in study.arms for seed in study.seeds}
        self.runs = [row for row in results.runs if (row["arm"], row["seed"]) in planned]
        finished = {(row["arm"], row["seed"]) for row in self.runs}
        self.missing = [
            f"{arm} {seed}" for arm in study.arms for seed in study.seeds if (arm, str(seed)) not in finished
        ]
        self.arms = [arm for arm in study.arms if any(row["arm"] == arm for row in self.runs)]
        budgets = {row["arm"]: int(row["max_turns"]) for row in self.runs}
        outcomes: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in results.outcomes:
            if (row["arm"], row["seed"]) in finished:
                outcomes[row["variant"]][row["arm"]].append(row)
        self.tests = {
            variant: {arm: Outcomes(rows[arm], budgets[arm]) for arm in self.arms if arm in rows}
            for variant, rows in outcomes.items()
        }
        self.curves: dict[str, dict[str, list[Row]]] = {arm: defaultdict(list) for arm in self.arms}
        for row in results.curves:
            if (row["arm"], row["seed"]) in finished:
                self.curves[row["arm"]][row["seed"]].append(row)

    def only(self, *arms: str) -> "Part":
        """Return the same with these arms, in this order.

        Raises:
            ValueError: one of them has no results.
        """
        for arm in arms:
            if arm not in self.arms:
                raise ValueError(f"{self.study.name} has no results of an arm {arm!r}, only of {', '.join(self.arms)}")
        compare = self.study.compare if self.study.compare in arms else arms[-1]
        kept: dict[str, Any] = {"arms": {arm: self.study.arms[arm] for arm in arms}, "compare": compare}
        paper = {arm: figures for arm, figures in self.study.paper.items() if arm in arms}
        return Part(dataclasses.replace(self.study, **kept, paper=paper), self.results)

    @property
    def model(self) -> str:
        """The model's name and size."""
        return ", ".join(dict.fromkeys(f"{row['model']}, {size(int(row['parameters']))}" for row in self.runs))

    def distinct(self, column: str) -> str:
        """Return what stands in a column of runs.csv."""
        return ", ".join(dict.fromkeys(row[column] for row in self.runs))

    def iterations(self) -> str:
        """Return how many training iterations the runs had; their last row may be of an evaluation alone."""
        runs = [rows for of_arm in self.curves.values() for rows in of_arm.values()]
        trained = {sum(any(name.startswith("train/") for name in row) for row in rows) for rows in runs}
        return ", ".join(map(str, sorted(trained)))

    def paper(self, arm: str, variant: str) -> float | None:
        """Return the paper's success in percent."""
        return self.study.paper.get(arm, {}).get(variant)

    def curve(self, arm: str, metric: str) -> list[Curve]:
        """Return a metric's curve, one a seed, where there is one."""
        found = []
        for rows in self.curves[arm].values():
            points = [(int(row["step"]), float(row[metric])) for row in rows if metric in row]
            if points:
                found.append((np.array([step for step, _ in points]), np.array([value for _, value in points])))
        return found

    def shown_variant(self) -> str | None:
        """Return the variant of the evaluations during training: "standard" where there is one, else the first."""
        rows = [row for of_arm in self.curves.values() for rows in of_arm.values() for row in rows]
        names = [name.split("/")[1] for row in rows for name in row if name.startswith("eval/")]
        names = [name for name in names if name != "world_model"]
        return "standard" if "standard" in names else next(iter(names), None)


def read_part(file: Path, where: Path) -> Part:
    """Read a study and its results.

    Args:
        file: the study file.
        where: folder of all results.

    Raises:
        ValueError: the file is not as it should be, or there is not one finished run.
    """
    study = read_study(file)
    part = Part(study, read_results(where / study.name))
    if not part.runs:
        raise ValueError(
            f"no results of {study.name} in {where} yet: python -m wmact study {file} makes them; in minutes, "
            "`make study` makes those of configs/study/small.yaml, in runs/results"
        )
    return part


# In words


def compared(part: Part, variant: str, arm: str, other: str, budget: int | None = None) -> str:
    """Tell how the success of one arm differs from that of another, and what may be concluded from it.

    Args:
        budget: allowed turns; None: each arm's initial turn budget.
    """
    ours, theirs = part.tests[variant][arm].paired(part.tests[variant][other], budget)
    levels = ours.mean(0) - theirs.mean(0)
    difference, p = crossed_bootstrap(ours, theirs), sign_flip(levels)
    apart = difference.low > 0 or difference.high < 0
    if not levels.any():
        told = "No level differs, so these levels **do not tell them apart**."
    elif apart and p < 0.05:
        told = f"The interval leaves out 0, and p is small: **{arm if difference.value > 0 else other} solves more**."
    elif apart or p < 0.05:
        told = "Interval (any seeds) and p (these seeds) do not agree: which of them solves more **stays open**."
    else:
        most = 100 * max(abs(difference.low), abs(difference.high))
        told = f"Which of them solves more **stays open**; a difference of more than {most:.1f} points is unlikely."
    told += "" if min(len(ours), len(theirs)) > 1 else " With one seed, this speaks of these trained models only."
    within = "in one turn" if budget == 1 else f"within {budget or 'L_max'} turns"
    figures = f"{percent(difference, '+')} points, p = {p:.4f}"
    return f"{part.study.name} {variant}, {within}: {arm} less {other} is {figures}. {told}"


def internalised(part: Part, variant: str, arm: str) -> str:
    """Tell how far success in one turn is from success in many: on the test levels, and how it went in training."""
    tested = part.tests[variant][arm]
    one, many = tested.success(1), tested.success()
    in_one, in_many, gap = (percent(crossed_bootstrap(each)) for each in (one, many, many - one))
    told = f"{part.study.name} {variant}, {arm}: {in_one} in one turn, {in_many} within {tested.max_turns}; "
    told += f"the gap is **{gap}** points."
    curves = [part.curve(arm, f"eval/{variant}/{name}") for name in ("single_turn", "multi_turn")]
    if not all(curves):  # training evaluates few of the variants
        return told
    ends = [100 * mean_curve(each)[1][[0, -1]] for each in curves]
    (one_before, one_after), (many_before, many_after) = ends
    told += f" In training, on validation levels, one turn went {one_before:.1f} → {one_after:.1f} and many turns "
    told += f"{many_before:.1f} → {many_after:.1f}: "
    if many_after - one_after >= many_before - one_before:
        return told + "**the gap did not shrink**."
    if many_after < many_before:
        return told + "**the gap shrank because many turns became worse**, at least in part."
    return told + "**the gap shrank from below**, as it does when a world is internalised."


# Tables


def success_table(parts: Sequence[Part], arms: dict[str, str]) -> list[str]:
    """Tabulate success within each arm's initial turn budget beside the paper's, a column a variant."""
    columns = [(part, variant) for part in parts for variant in part.tests]
    head = ["arm"]
    for part, variant in columns:
        head += [f"{part.study.name} {variant} ({part.model})"]
        head += ["paper (8 B)"] if any(part.paper(arm, variant) is not None for arm in arms) else []
    rows = []
    for arm, label in arms.items():
        row = [label]
        for part, variant in columns:
            tested = part.tests[variant].get(arm)
            row.append(percent(crossed_bootstrap(tested.success())) if tested else "")
            if any(part.paper(each, variant) is not None for each in arms):
                row.append(number(part.paper(arm, variant)))
        rows.append(row)
    return table(head, rows)


def internalisation_table(part: Part, variant: str) -> list[str]:
    """Tabulate success in one turn and in many, with each seed's."""
    rows = []
    for arm, tested in part.tests[variant].items():
        one, many = tested.success(1), tested.success()
        seeds = [" ".join(f"{100 * value:.1f}" for value in success.mean(1)) for success in (one, many)]
        gap = f"{100 * (many.mean() - one.mean()):.1f}"
        budget = str(tested.max_turns)
        rows.append(
            [arm, percent(crossed_bootstrap(one)), seeds[0], budget, percent(crossed_bootstrap(many)), seeds[1], gap]
        )
    return table(["arm", "in one turn", "seeds", "L_max", "within L_max", "seeds", "gap"], rows)


def turns_table(part: Part, variant: str) -> list[str]:
    """Tabulate success against allowed turns."""
    budgets = sorted({int(budget) for row in part.runs for budget in row["curve"].split()})
    rows = [
        [arm, *(percent(crossed_bootstrap(tested.success(budget))) for budget in budgets)]
        for arm, tested in part.tests[variant].items()
    ]
    return table(["arm", *map(str, budgets)], rows)


def paired_table(part: Part, variant: str) -> list[str]:
    """Tabulate each arm's difference to the arm that is compared with, in one turn and within the initial budget."""
    tests = part.tests[variant]
    rows = []
    for arm, tested in tests.items() if part.study.compare in tests else []:
        row = [arm]
        for budget in (1, None):
            ours, theirs = tested.paired(tests[part.study.compare], budget)
            differences = ours.mean(0) - theirs.mean(0)
            p = f"{sign_flip(differences):.4f}"
            row += [percent(crossed_bootstrap(ours, theirs), "+"), p] if differences.any() else ["no level differs", ""]
        rows += [row] if arm != part.study.compare else []
    return table(["arm", "in one turn", "p", "within L_max", "p"], rows)


def schedule_table(part: Part, variant: str) -> list[str]:
    """Tabulate the arms that differ in their schedule only: what came of them, and when the budget had become 1."""
    rows = []
    for arm, tested in part.tests[variant].items():
        if arm == "wmact" or arm.startswith(SCHEDULES):
            reached = [
                next((str(step) for step, budget in zip(*curve, strict=True) if budget <= 1), "never")
                for curve in part.curve(arm, "train/turn_budget")
            ]
            figures = [percent(crossed_bootstrap(tested.success(1))), percent(crossed_bootstrap(tested.success()))]
            rows.append([arm, *figures, " ".join(reached), f"{tested.per_episode().mean():.1f}"])
    return table(["arm", "in one turn", "within L_max", "L_max was 1 after (iterations, by seed)", "actions"], rows)


def actions_table(part: Part) -> list[str]:
    """Tabulate how many actions an episode takes, and the share of them that change the state."""
    rows = []
    for arm in part.arms:
        row = [arm]
        for tests in part.tests.values():
            tested = tests.get(arm)
            row += (
                [f"{tested.per_episode().mean():.1f}", f"{tested.effective_share().mean():.3f}"] if tested else ["", ""]
            )
        rows.append(row)
    return table(["arm", *(head for variant in part.tests for head in (f"{variant}: actions", "N_eff/N"))], rows)


def knowledge_table(part: Part) -> list[str]:
    """Tabulate the world-model figures of the evaluations during training: before it, and at its end."""
    variant, rows = part.shown_variant(), []
    for arm in part.arms:
        cells = []
        for figure in KNOWN:
            curves = [values for _, values in part.curve(arm, f"eval/world_model/{variant}/{figure}")]
            ends = [float(np.mean([values[end] for values in curves])) for end in (0, -1)] if curves else []
            cells.append(" → ".join(f"{end:.3g}" for end in ends))
        rows += [[arm, *cells]] if any(cells) else []
    return table(["arm", *KNOWN.values()], rows) if rows else []


def time_table(part: Part) -> list[str]:
    """Tabulate what an iteration takes, and how long a run trains."""
    rows = []
    for arm in part.arms:
        names = ("rollout_seconds", "update_seconds", "tokens_per_second")
        curves = {name: part.curve(arm, f"performance/{name}") for name in names}
        if all(curves.values()):
            means = [np.mean([values.mean() for _, values in curves[name]]) for name in names]
            minutes = sum(np.mean([values.sum() for _, values in curves[name]]) for name in names[:2]) / 60
            rows.append([arm, f"{means[0]:.2f}", f"{means[1]:.2f}", f"{means[2]:,.0f}", f"{minutes:.1f}"])
    return table(["arm", "rollout, s", "update, s", "sampled tokens a second", "a run, min"], rows)


def arms_table(part: Part) -> list[str]:
    """Tabulate the words that each arm was run with."""
    words = {row["arm"]: row["words"].rpartition(" --seed_everything ")[0] for row in part.runs}
    return table(["arm", "words of `fit`, but for the seed"], [[arm, f"`{words[arm]}`"] for arm in part.arms])


def facts_table(parts: Sequence[Part]) -> list[str]:
    """Tabulate what was run, a column a study."""
    facts: dict[str, Callable[[Part], str]] = {
        "model": lambda part: part.distinct("model"),
        "parameters": lambda part: ", ".join(dict.fromkeys(f"{int(row['parameters']):,}" for row in part.runs)),
        "seeds": lambda part: ", ".join(map(str, part.study.seeds)),
        "training iterations": Part.iterations,
        "test levels": lambda part: ", ".join(
            f"{v} {len(next(iter(t.values())).levels):,}" for v, t in part.tests.items()
        ),
        "machine": lambda part: part.distinct("machine"),
        "test episodes that ended in an error": lambda part: str(sum(int(row["errors"]) for row in part.runs)),
        "runs that are missing": lambda part: ", ".join(part.missing) or "none",
    }
    return table(
        ["", *(part.study.name for part in parts)], [[name, *map(fact, parts)] for name, fact in facts.items()]
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def percent(estimate: Estimate, sign: str = "") -> str:
    """Tell an estimate in percent, as in 88.1 [86.0, 90.2]."""
    value, low, high = (100 * each for each in estimate)
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def number(value: float | None) -> str:
    """Tell a number as the paper prints it, two decimals; nothing where there is none."""
    return "" if value is None else f"{value:.2f}"


def size(parameters: int) -> str:
    """Tell a number of parameters in millions or billions."""
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


# Figures


def success_figure(parts: Sequence[Part]) -> "Figure | None":
    """Draw the paper's Figure 4: success in one turn and in many over training, a row an environment, a panel an arm.

    Arms of the schedule sweep are left out. Returns None if nothing was evaluated during training.
    """
    arms = list(dict.fromkeys(arm for part in parts for arm in part.arms if not arm.startswith("tau_")))
    figure, panels = _panels(len(parts), len(arms))
    for part, row in zip(parts, panels, strict=True):
        variant = part.shown_variant()
        for arm, axes in zip(arms, row, strict=True):
            curves = {name: part.curve(arm, f"eval/{variant}/{name}") if arm in part.arms else [] for name in COLOURS}
            axes.set_visible(all(curves.values()))
            if all(curves.values()):
                draw_success(axes, curves)
                _paper_line(axes, part, arm, str(variant))
                axes.label_outer()
                axes.set_title(f"{part.study.name}: {arm}\n{part.model}", fontsize=9)
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


def _colours(parts: Sequence[Part]) -> dict[str, str]:
    """Give every arm its colour, the same in all panels."""
    return {arm: f"C{n}" for n, arm in enumerate(dict.fromkeys(arm for part in parts for arm in part.arms))}


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


# The document

READING = """\
Success is in percent: the mean over seeds, never the best of them. In brackets stands its 95 % interval, of a bootstrap
that draws seeds and levels anew ({resamples:,} times, percentiles); where every episode ended alike it is Wilson's, of
as many trials as levels. Drawing both ways counts the noise of single episodes up to three times (Owen 2007), and the
spread of as few as three seeds too little; with one seed an interval tells of levels only.

L_max is an arm's initial turn budget. One rollout gives the success at every budget: a model is not told its budget,
so success within L turns is the share of episodes solved by turn L.

The paper's numbers are of a model of 8 billion parameters, on levels of its own, with an L_max of 30. Sizes cannot be
compared with ours, only the order of the arms."""

PAIRED = """\
Difference to `{compare}` in points, on the levels that both were tested on. p is of a two-sided sign-flip permutation
test ({flips:,} flips) of the levels' differences, each the mean over seeds: it asks whether these trained models differ
on such levels. It does not speak of other seeds, as the interval does, and it is not corrected for their number."""


def write_report(parts: Sequence[Part], where: Path, command: str) -> Path:
    """Write report.md and its figures, and return the path of the former.

    Args:
        parts: a study each; those without a finished run are only named.
        where: folder of all results; the report goes below it, into a folder with the names of the studies.
        command: what writes this report.

    Raises:
        ValueError: there is not one finished run.
    """
    names = [part.study.name for part in parts]
    told = [part for part in parts if part.runs]
    if not told:
        raise ValueError(f"no results of {', '.join(names)} in {where} yet: leave out --report, and it is run")
    folder = where / "+".join(names)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"internalisation": success_figure(told), "turns": turns_figure(told), "budget": budget_figure(told)}
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=120)
    files = f"{', '.join(FILES.values())} in {' and '.join(str(where / name) for name in names)}"
    lines = [f"# {', '.join(names)}: {', '.join(dict.fromkeys(part.model for part in told))}", ""]
    lines += [line for part in parts if part.study.note for line in (part.study.note.strip(), "")]
    lines += [f"Every number below is computed from {files}, by", "", f"    {command}", ""]
    lines += [*facts_table(parts), "", READING.format(resamples=RESAMPLES)]
    for title, content in sections(told, {name for name, figure in figures.items() if figure is not None}):
        lines += ["", f"## {title}", "", *content]
    path = folder / "report.md"
    path.write_text(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n", encoding="utf-8")
    return path


def sections(parts: Sequence[Part], figures: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield title and lines of every section that these studies have the arms for."""
    arms = list(dict.fromkeys(arm for part in parts for arm in part.arms))
    yield "Success within L_max (the paper's Table 1)", success_table(parts, {arm: arm for arm in arms})
    for title, labels in TABLES.items():
        chosen = {arm: label for arm, label in labels.items() if arm in arms}
        if len(chosen) > 1:
            yield title, success_table(parts, chosen)
    if "internalisation" in figures:
        yield "Over training (the paper's Figure 4)", ["![success in one turn and in many](internalisation.png)"]
    yield "One turn and many", by_variant(parts, internalisation_table)
    picture = "![success against allowed turns](turns.png)"
    yield "Success against allowed turns", [picture, "", *by_variant(parts, turns_table)]
    for compare in dict.fromkeys(part.study.compare for part in parts):
        asked = [
            part for part in parts if part.study.compare == compare and len(part.arms) > 1 and compare in part.arms
        ]
        if asked:
            tests = [PAIRED.format(compare=compare, flips=FLIPS), "", *by_variant(asked, paired_table)]
            yield f"Against {compare}", tests
    swept = [part for part in parts if any(arm.startswith(SCHEDULES) for arm in part.arms)]
    picture = "![turn budget over training](budget.png)"
    yield "Turn budget", [picture, "", *by_variant(swept, schedule_table)]
    yield "Actions of an episode, within L_max", by_part(parts, actions_table)
    knowing = [part for part in parts if knowledge_table(part)]
    if knowing:
        yield "World model: start → end of training, means over seeds", by_part(knowing, knowledge_table)
    yield "Time: means of an iteration, and of a run without its evaluations", by_part(parts, time_table)
    yield "Arms", by_part(parts, arms_table)


def by_part(parts: Iterable[Part], make: Callable[[Part], list[str]]) -> list[str]:
    """Return a table a study, each under its name."""
    return [line for part in parts for line in (f"**{part.study.name}**", "", *make(part), "")]


def by_variant(parts: Iterable[Part], make: Callable[[Part, str], list[str]]) -> list[str]:
    """Return a table a test variant, each under its name."""
    tables = [(f"**{part.study.name} {variant}**", make(part, variant)) for part in parts for variant in part.tests]
    return [line for title, lines in tables for line in (title, "", *lines, "")]
