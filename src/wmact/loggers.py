"""Where a run is written: one folder, ``<save_dir>/<name>/version_N``, for all loggers, and the same one on resume.

Why Lightning's own loggers do not do:
- Each picks the next free version when first asked, so two of them may end up in two folders, and a resumed run in a
  third; and two runs started together share one. `open_run_folder` takes one folder for all, once.
- ``CSVLogger`` deletes metrics.csv when it opens a folder that has one. `CSVMetrics` goes on where the file ended.
- Points after the checkpoint are drawn twice by a resumed run. Both loggers drop them at the first step they log again
  (not when they open: until then nothing has replaced them), but for the evaluation of the weights that go on.
- Each writes hparams.yaml, with every value resolved. config.yaml has the configuration; a second copy is only a
  second place where a secret may end up. Neither is written here.
"""

import csv
import io
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from wmact.files import new_file

Layout = dict[str, dict[str, list[str]]]
"""Category → title of a chart → the metrics drawn in it."""

LAYOUT: Layout = {
    "internalisation": {
        "success over many turns and in one": [
            "train/success",
            "eval/standard/multi_turn",
            "eval/standard/single_turn",
        ],
        "turn budget": ["train/turn_budget", "train/turns_max", "train/turns_mean"],
    },
    "reward": {
        "raw and scaled": ["train/reward_raw", "train/reward_scaled"],
        "effective actions": ["train/effective_share", "actions/effective"],
    },
}
"""The paper's Figure 4 as one chart: single-turn success rises to multi-turn success while L_max falls."""


BEGINNINGS = re.compile(r"lock|config\.yaml|events\.out\.tfevents\..+")
"""Files that are there before anything has come of a run."""


def run_folder_of(ckpt_path: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder of the run that wrote ``<run>/checkpoints/x.ckpt``; None for any other path, and for None."""
    folder = Path(ckpt_path or "").absolute().parent
    return folder.parent if ckpt_path and folder.name == "checkpoints" and "://" not in str(ckpt_path) else None


def open_run_folder(loggers: Iterable[Logger], ckpt_path: str | os.PathLike[str] | None = None) -> Path | None:
    """Give all loggers of this file the same run folder; call it once, before the trainer starts.

    The folder is that of the checkpoint, if it is in one (a resumed run), else a new version of the
    ``<save_dir>/<name>`` that a logger asks for, created at once so that no other run takes it.

    Returns:
        The folder, or None if none of the loggers is of this file.

    Raises:
        FileExistsError: A version was asked for that exists.
        ValueError: Two loggers ask for different folders.
        OSError: The folder cannot be made.
    """
    ours = [logger for logger in loggers if isinstance(logger, CSVMetrics | TensorBoard)]
    if not ours:
        return None
    resumed = run_folder_of(ckpt_path)
    asked = [logger for logger in ours if Path(logger.root_dir) != Path("runs", "wmact")] or ours  # not the default
    homes = dict.fromkeys(str(Path(logger.root_dir)) for logger in asked)
    if len(homes) > 1 and resumed is None:
        raise ValueError(f"loggers of one run in {' and '.join(homes)}: give all of them the same save_dir and name")
    folder = resumed or _new_folder(asked[0])
    for logger in ours:
        logger.enter(folder, resumed=resumed is not None)
    return folder


def discard(folder: Path) -> None:
    """Remove a run folder that holds no more than every run begins with."""
    if all(BEGINNINGS.fullmatch(path.name) for path in folder.iterdir()):
        shutil.rmtree(folder)


def run_folder(trainer: Trainer) -> Path | None:
    """Return the folder of the trainer's run, or None if it has none (fast_dev_run); all processes must call it.

    Not ``trainer.log_dir``: with another logger in front that is the folder of all runs, with none the current one.
    """
    folders = [each.log_dir for each in trainer.loggers if isinstance(each, CSVLogger | TensorBoardLogger)]
    folder = trainer.strategy.broadcast(folders[0] if folders else None)
    return Path(folder) if folder else None


class CSVMetrics(CSVLogger):
    """metrics.csv in the run folder: a row a step, a column a metric.

    Values of one step stand in one row whenever they were logged, empty where a step has none; columns are ``step``,
    ``epoch`` and the rest by name, so that equal runs give equal files. The file is replaced whole, so it can be read
    and the run can be killed at any time.

    Args:
        save_dir: Folder of all runs.
        name: Folder of this experiment's runs, below ``save_dir``.
        version: Number of the run; by default the next free one.
    """

    def __init__(self, save_dir: str = "runs", name: str = "wmact", version: int | None = None) -> None:
        super().__init__(save_dir, _checked(name), version)
        self._resumed = False
        self._columns: list[str] = []
        self._rows: dict[int, dict[str, str]] = {}
        self._lines: dict[int, str] = {}  # the rows as they stand in the file

    def enter(self, folder: Path, *, resumed: bool) -> None:
        """Write into ``folder`` from now on; if ``resumed``, behind the rows that are there."""
        self._save_dir = self._root_dir = str(folder.parent.parent)
        self._name, self._version = folder.parent.name, folder.name
        self._resumed = resumed
        self._rows = read_metrics(folder / "metrics.csv") if resumed else {}
        self._lay_out()

    @property
    def experiment(self) -> "CSVMetrics":  # type: ignore[override]  # the base class's would delete metrics.csv
        """This logger; there is no other writer behind it."""
        return self

    @rank_zero_only
    def log_hyperparams(self, params: Any = None) -> None:
        """Write nothing: config.yaml holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:  # type: ignore[override]
        """Merge ``metrics`` into the row of ``step``. The first call after a resume drops what comes again."""
        step = max(self._rows, default=-1) + 1 if step is None else step
        if self._resumed:
            evaluated = evaluation(self._rows, step)
            self._rows = {old: row for old, row in self._rows.items() if old < step}
            self._rows |= {step: {"step": str(step)} | evaluated} if evaluated else {}
            self._resumed = False
            self._lay_out()
        row = self._rows.setdefault(step, {"step": str(step)})
        row |= {name: str(value.item() if hasattr(value, "item") else value) for name, value in metrics.items()}
        if row.keys() <= set(self._columns):
            self._lines[step] = _csv_line(row.get(column, "") for column in self._columns)
        else:
            self._lay_out()

    @rank_zero_only
    def save(self) -> None:
        """Replace metrics.csv. Lightning calls this after each `log_metrics`: once an iteration, twice with an eval."""
        if not self._rows or self._resumed:
            return
        with new_file(Path(self.log_dir, "metrics.csv")) as file:
            file.write((_csv_line(self._columns) + "".join(self._lines.values())).encode())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is not written yet."""
        self.save()

    def _lay_out(self) -> None:
        names = {name for row in self._rows.values() for name in row}
        self._columns = sorted(names, key=lambda name: (name != "step", name != "epoch", name))
        self._lines = {s: _csv_line(row.get(c, "") for c in self._columns) for s, row in self._rows.items()}


class TensorBoard(TensorBoardLogger):
    """Event files in the run folder, with the paper's curves together in the CUSTOM SCALARS tab.

    Args:
        save_dir: Folder of all runs.
        name: Folder of this experiment's runs, below ``save_dir``.
        version: Number of the run; by default the next free one.
        layout: Category → title of a chart → metrics in it; by default success in one turn and in many, the turn
            budget, and the rewards. {} writes none.
    """

    def __init__(
        self, save_dir: str = "runs", name: str = "wmact", version: int | None = None, layout: Layout | None = None
    ) -> None:
        super().__init__(save_dir, _checked(name), version, default_hp_metric=False)
        self._layout = LAYOUT if layout is None else layout
        self._begun = False
        self._rows: dict[int, dict[str, str]] = {}  # of metrics.csv, in a resumed run

    def enter(self, folder: Path, *, resumed: bool) -> None:
        """Write into ``folder`` from now on; points of a resumed run take the place of those it logs again."""
        self._root_dir = str(folder.parent.parent)
        self._name, self._version = folder.parent.name, folder.name
        self._rows = read_metrics(folder / "metrics.csv") if resumed else {}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The ``SummaryWriter``, made when first asked for."""
        fresh = self._experiment is None
        writer = super().experiment
        if fresh and self._layout:
            layout = {c: {title: ["Multiline", tags] for title, tags in self._layout[c].items()} for c in self._layout}
            writer.add_custom_scalars(layout)
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Add a point to each metric's curve."""
        self._begin_at(step or 0)
        super().log_metrics(metrics, step)

    @rank_zero_only
    def log_text(self, tag: str, text: str, step: int) -> None:
        """Add a text. TensorBoard reads it as Markdown: what others wrote goes through `view.markdown`."""
        self._begin_at(step)
        self.experiment.add_text(tag, text, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Write nothing: config.yaml holds the configuration."""

    @rank_zero_only
    def save(self) -> None:
        """Flush the event file."""
        if self._experiment is not None:
            self._experiment.flush()

    def _begin_at(self, step: int) -> None:
        """Tell TensorBoard, before the first point, that what earlier files say of ``step`` and later holds no longer.

        A fresh run says so too: TensorBoard takes the first such event of a folder for its beginning. SummaryWriter's
        ``purge_step`` would write the same, but Lightning makes the writer before the step is known.
        """
        if not self._begun:
            from tensorboard.compat.proto.event_pb2 import Event, SessionLog

            start = Event(step=step, session_log=SessionLog(status=SessionLog.START))
            self.experiment._get_file_writer().add_event(start)
            self._begun = True
            for name, value in evaluation(self._rows, step).items():
                self.experiment.add_scalar(name, float(value), step)


def read_metrics(path: Path) -> dict[int, dict[str, str]]:
    """Read a metrics.csv: step → the values of its row, as written, without the empty ones; {} if there is no file.

    Raises:
        ValueError: it is damaged.
    """
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return {int(row["step"]): {k: v for k, v in row.items() if v} for row in csv.DictReader(file)}
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: the file is damaged, each row must begin with its step") from error


def evaluation(rows: Mapping[int, Mapping[str, str]], step: int) -> dict[str, str]:
    """What the row of a step tells of the weights that it began with: a run that goes on from there keeps it."""
    return {name: value for name, value in rows.get(step, {}).items() if name.startswith("eval/")}


def _csv_line(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _checked(name: str) -> str:
    """Return ``name`` if it stays below the folder of all runs."""
    parts = Path(name).parts
    if Path(name).is_absolute() or ".." in parts or any(len(os.fsencode(part)) > 255 for part in parts):
        short = name if len(name) < 60 else name[:57] + "..."
        raise ValueError(f"name={short!r}: a run's name is a relative path without '..', each part at most 255 bytes")
    return name


def _new_folder(logger: CSVMetrics | TensorBoard) -> Path:
    chosen = logger._version is not None
    number, parent = int(logger.version), Path(logger.log_dir).absolute().parent
    while getattr(rank_zero_only, "rank", 0) == 0:
        try:
            Path(parent, f"version_{number}").mkdir(parents=True)
            break
        except FileExistsError:  # another run took it since Lightning looked
            if chosen:
                way_out = "leave version out for a new run, or give fit a --ckpt_path of this one to go on with it"
                raise FileExistsError(f"{parent}/version_{number} exists: {way_out}") from None
            number += 1
    return parent / f"version_{number}"  # other processes write nothing here, and Lightning tells them its name
