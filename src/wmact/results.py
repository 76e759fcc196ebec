"""What a study keeps: three small files, all that its report is computed from.

- ``runs.csv``, a row a finished run: the words it was started with, the model, the machine.
- ``outcomes.csv.gz``, a row a test episode: `solved_at` is the turn in which it was solved, 0 if it was not; `actions`
  and `effective` count those within the arm's initial turn budget, as the figures of `test` do.
- ``curves.csv``, a row an iteration and a last one for what came of it, its columns named as in metrics.csv.

Equal results are equal bytes: rows are in the order of arms and seeds, whenever they were added.
"""

import csv
import gzip
import io
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from wmact.callbacks import read_episodes
from wmact.files import new_file
from wmact.loggers import read_metrics

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
    config: Any = OmegaConf.to_container(OmegaConf.load(trained / "config.yaml"))
    data, model = config["data"]["init_args"], config["model"]["init_args"]["model"]
    episodes = [record for path in sorted(tested.glob("episodes*.jsonl")) for record in read_episodes(path)]
    metrics = read_metrics(trained / "metrics.csv")
    if not episodes:
        raise ValueError(f"{tested} has no episodes: wmact.callbacks.EpisodeLog must be among trainer.callbacks")
    if not metrics:
        raise ValueError(f"{trained} has no metrics.csv: it trained no iteration")
    run = {
        "model": Path(model).name if Path(model).is_dir() else model,  # where it lies is of no interest to others
        "parameters": str(count_parameters(trained / "checkpoints" / "last.ckpt")),
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


def count_parameters(checkpoint: Path) -> int:
    """Count the policy's parameters in a checkpoint; those that two names share count once."""
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    policy = {tensor.data_ptr(): tensor.numel() for name, tensor in weights.items() if name.startswith("policy.")}
    return sum(policy.values())


def machine() -> str:
    """Tell the kind of this machine: processor, cores this process may use, GPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.exists() else "", re.MULTILINE)
    gpu = f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ""
    return f"{found[1].strip() if found else 'unknown processor'}, {len(os.sched_getaffinity(0))} cores{gpu}"


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
