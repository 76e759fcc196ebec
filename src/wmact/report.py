"""The report of a study: words, tables, figures, computed from the result files and from nothing else.

Several studies, one an environment, stand side by side in one report.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from wmact.figures import budget_figure, success_figure, turns_figure
from wmact.plot import mean_curve
from wmact.results import FILES, Part
from wmact.statistics import FLIPS, RESAMPLES, Estimate, crossed_bootstrap, sign_flip

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


def success_table(parts: Sequence[Part], arms: dict[str, str], known: int = 1) -> list[str]:
    """Tabulate success within each arm's initial turn budget, a column a variant.

    The paper's numbers stand beside it where there are at least `known`; of a comparison, one alone says nothing.
    """
    columns = [
        (part, variant, sum(part.paper(arm, variant) is not None for arm in arms) >= known)
        for part in parts
        for variant in part.tests
    ]
    head = ["arm"]
    for part, variant, beside in columns:
        head += [f"{part.study.name} {variant} ({part.model})", *(["paper (8 B)"] if beside else [])]
    rows = []
    for arm, label in arms.items():
        row = [label]
        for part, variant, beside in columns:
            tested = part.tests[variant].get(arm)
            row.append(percent(crossed_bootstrap(tested.success())) if tested else "")
            row += [number(part.paper(arm, variant))] if beside else []
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


# The document

READING = """\
Success is in percent: the mean over seeds, never the best of them. In brackets stands its 95 % interval, of a bootstrap
that draws seeds and levels anew ({resamples:,} times, percentiles); where every episode ended alike it is Wilson's, of
as many trials as levels. This bootstrap can overstate the noise of single episodes up to threefold (Owen 2007), and it
understates the spread between seeds when there are as few as three; with one seed the interval reflects levels only.

L_max is an arm's initial turn budget. One rollout gives the success at every budget: a model is not told its budget,
so success within L turns is the share of episodes solved by turn L.

The paper's numbers are of a model of 8 billion parameters, on levels of its own, with an L_max of 30: they cannot be
compared with ours in size. Its Tables 3 and 4 are about Sokoban.

N_eff/N is the share of actions that changed the state. tau_N is WMAct with the budget lowered every N iterations.
"Asked": the model is shown a state and an action, and has to say what follows. "Thought": the same, of the moves that
its own thoughts simulate (`src/wmact/world_model.py`)."""

PAIRED = """\
Difference to `{compare}` in points, on the levels that both were tested on. p is of a two-sided sign-flip permutation
test ({flips:,} flips) of the levels' differences, each the mean over seeds: it asks whether these trained models differ
on such levels. It says nothing about other seeds (the interval does), and is not corrected for the number of
comparisons."""


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
            yield title, success_table(parts, chosen, known=2)
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
    shared = "The machine may have been shared: times of different arms are not comparable."
    yield "Time: means of an iteration, and of a run without its evaluations", [shared, "", *by_part(parts, time_table)]
    yield "Arms", by_part(parts, arms_table)


def by_part(parts: Iterable[Part], make: Callable[[Part], list[str]]) -> list[str]:
    """Return a table a study, each under its name."""
    return [line for part in parts for line in (f"**{part.study.name}**", "", *make(part), "")]


def by_variant(parts: Iterable[Part], make: Callable[[Part, str], list[str]]) -> list[str]:
    """Return a table a test variant, each under its name."""
    tables = [(f"**{part.study.name} {variant}**", make(part, variant)) for part in parts for variant in part.tests]
    return [line for title, lines in tables for line in (title, "", *lines, "")]
