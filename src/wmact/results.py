"""What a study keeps: three small files, all that its report is computed from.

- ``runs.csv``, a row a finished run: the words it was started with, the model, the machine.
- ``outcomes.csv.gz``, a row a test episode: `solved_at` is the turn in which it was solved, 0 if it was not; `actions`
  and `effective` count those within the arm's initial turn budget, as the figures of `test` do.
- ``curves.csv``, a row an iteration and a last one for what came of it, its columns named as in metrics.csv.

Equal results are equal bytes: rows are in the order of arms and seeds, whenever they were added. A `Part` is a study
with what is finished of it, as arrays: report and figures are made of it.
"""

import csv
import dataclasses
import gzip
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wmact.callbacks import read_episodes
from wmact.costs import count
from wmact.files import new_file
from wmact.loggers import read_metrics
from wmact.models import load_model
from wmact.plot import Curve
from wmact.settings import read_yaml
from wmact.statistics import Floats
from wmact.study_file import Study, read_study

Row = dict[str, str]

FILES = {"runs": "runs.csv", "outcomes": "outcomes.csv.gz", "curves": "curves.csv"}
KEPT = re.compile(
    r"train/(success|turn_budget|turns_mean|effective_share|actions_mean)|performance/\w+"
    r"|eval/[^/]+/(single_turn|multi_turn|current_budget|effective_share|actions_mean)|eval/world_model/.+(?<!_low)(?<!_high)"
)
"""The metrics that curves.csv takes over."""


@dataclass
class Results:
    """The rows of the three files; each row begins with the arm and the seed of its run."""

    runs: list[Row] = field(default_factory=list)
    outcomes: list[Row] = field(default_factory=list)
    curves: list[Row] = field(default_factory=list)

    def run(self, arm: str, seed: int) -> Row | None:
        """Return the row of a run, or None if it is not finished."""
        return next((row for row in self.runs if (row["arm"], row["seed"]) == (arm, str(seed))), None)

    def add(self, others: "Results") -> None:
        """Take over all rows of other runs, in place of what was known of the same runs."""
        new = {(row["arm"], row["seed"]) for row in others.runs}
        for name in FILES:
            kept = [row for row in getattr(self, name) if (row["arm"], row["seed"]) not in new]
            rows = kept + getattr(others, name)
            setattr(self, name, sorted(rows, key=lambda row: (row["arm"], int(row["seed"]))))  # stable


def read_results(folder: Path) -> Results:
    """Read what `write_results` wrote; no rows where there is no file."""
    return Results(**{name: _read(folder / file) for name, file in FILES.items()})


def write_results(folder: Path, results: Results) -> None:
    """Replace the three files. The one that says what is finished comes last, so that a kill leaves no half run."""
    for name in reversed(FILES):
        path, content = folder / FILES[name], _csv(getattr(results, name)).encode()
        with new_file(path) as file:
            file.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)  # no date in the file


def collect(arm: str, seed: int, trained: Path, tested: Path, facts: Row) -> Results:
    """Gather the results of one run.

    Args:
        trained: folder of its training, with the last checkpoint.
        tested: folder of its test.
        facts: more columns for its row of runs.csv.

    Raises:
        ValueError: its test wrote no episodes, or its training no metrics.
    """
    config = read_yaml(trained / "config.yaml")
    data, settings = config["data"]["init_args"], config["model"]["init_args"]
    model = settings["model"]
    episodes = [record for path in sorted(tested.glob("episodes*.jsonl")) for record in read_episodes(path)]
    metrics = read_metrics(trained / "metrics.csv")
    if not episodes:
        raise ValueError(f"{tested} has no episodes: wmact.callbacks.EpisodeLog must be among trainer.callbacks")
    if not metrics:
        raise ValueError(f"{trained} has no metrics.csv: it trained no iteration")
    run = {
        "model": Path(model).name if Path(model).is_dir() else model,  # where it lies is of no interest to others
        "parameters": str(count_parameters(model, settings["trust_remote_code"])),
        "max_turns": str(data["max_turns"]),
        "curve": " ".join(map(str, data["testing"]["curve"])),
        "errors": str(sum(record["error"] is not None for record in episodes)),
        "machine": machine(),
    }
    owner = {"arm": arm, "seed": str(seed)}
    return Results(
        runs=[owner | facts | run],
        outcomes=[owner | outcome(record, data["max_turns"]) for record in episodes],
        curves=[owner | {"step": str(step)} | _kept(row) for step, row in sorted(metrics.items())],
    )


def outcome(record: Mapping[str, Any], max_turns: int) -> Row:
    """Return what outcomes.csv.gz keeps of an episode (`wmact.callbacks.episodes.episode_record`)."""
    kinds = [action["kind"] for turn in record["turns"][:max_turns] for action in turn["actions"]]
    return {
        "variant": record["variant"],
        "level": str(record["level"]),
        "optimal_length": str(record["optimal_length"]),
        "solved_at": str(len(record["turns"]) if record["stop_reason"] == "solved" else 0),
        "actions": str(len(kinds)),
        "effective": str(kinds.count("effective")),
    }


def count_parameters(model: str, trust_remote_code: bool = False) -> int:
    """Count the parameters of a policy, tied ones once and adapters not: those of the model that it starts from."""
    with torch.device("meta"):
        return count(load_model(model, trust_remote_code))


def machine() -> str:
    """Tell the kind of this machine: processor, cores this process may use, GPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.exists() else "", re.MULTILINE)
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{found[1].strip() if found else 'unknown processor'}, {len(os.sched_getaffinity(0))} cores{gpu}"


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


def size(parameters: int) -> str:
    """Tell a number of parameters in millions or billions."""
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def _kept(row: Row) -> Row:
    return {name: f"{float(value):.6g}" for name, value in sorted(row.items()) if KEPT.fullmatch(name)}


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def _csv(rows: Iterable[Row]) -> str:
    rows = list(rows)
    columns = dict.fromkeys(name for row in rows for name in row)  # in the order in which they first come
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
