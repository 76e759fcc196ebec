"""Every episode on disk, as JSON lines, and a few of those of training as text in TensorBoard."""

import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from wmact import view
from wmact.callbacks.common import at_least, rollouts
from wmact.loggers import TensorBoard, run_folder
from wmact.processes import place
from wmact.types import Action, Episode, Played, Turn


class EpisodeLog(Callback):
    """Append every training episode to ``<run folder>/episodes.jsonl``, one JSON object a line (`episode_record`).

    What `test` and `predict` play is written there too, as iteration 0 of a folder of its own; of `test` without token
    ids. The evaluations during training are not.

    The file only grows, except that a resumed run, before its first new line, cuts off the iterations it plays again.
    With several processes each writes its own episodes: the first as above, the others ``episodes.rank1.jsonl``, ….
    These stay, and are cut off likewise, when a run goes on with fewer processes.
    Nothing is written without a run folder (no logger, or fast_dev_run).

    Args:
        every: Log the episodes of every n-th iteration only, from the first on.
        token_ids: Write token ids and logprobs too: most of the file, and what a diagnosis of token drift needs.
            Of training and `predict` only.
    """

    def __init__(self, every: int = 1, token_ids: bool = True) -> None:
        self.every = at_least(1, every=every)
        self.token_ids = token_ids
        self._path: Path | None = None
        self._cut = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the file, and note that it may hold lines of iterations that come again."""
        self._path, self._cut = episode_log(trainer), True

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Append this iteration's episodes."""
        iteration, self._cut, cut = trainer.current_epoch, False, self._cut
        if self._path and cut:
            for path in logs_to_cut(self._path.parent):
                cut_episodes(path, iteration)
        if self._path and iteration % self.every == 0:
            append_episodes(self._path, iteration, rollouts(trainer).episodes, token_ids=self.token_ids)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Played, *args: Any
    ) -> None:
        """Append what was played."""
        if path := episode_log(trainer):
            append_episodes(path, 0, batch.episodes, variant=batch.variant, token_ids=False)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Played, *args: Any) -> None:
        """Append what was played."""
        if path := episode_log(trainer):
            append_episodes(path, 0, outputs.episodes, variant=outputs.variant, token_ids=self.token_ids)


def episode_log(trainer: Trainer) -> Path | None:
    """Return this process's episodes.jsonl, or None if the run has no folder; all processes must call it."""
    folder = run_folder(trainer)
    return folder / log_name(place()[0]) if folder else None


def log_name(rank: int) -> str:
    """Return the name of a process's log."""
    return f"episodes.rank{rank}.jsonl" if rank else "episodes.jsonl"


def logs_to_cut(folder: Path) -> Iterator[Path]:
    """Yield the logs that this process cuts off: its own, and its share of those of processes that are no more."""
    rank, world_size = place()
    logs = (folder / log_name(number) for number in itertools.count(rank, world_size))
    return itertools.takewhile(Path.exists, logs)


def episode_record(
    iteration: int, episode: Episode, *, variant: str | None = None, token_ids: bool = True
) -> dict[str, Any]:
    """Return an episode as plain data for JSON: what is not finite is None, logprobs have six digits.

    ``variant`` is the name under ``data.test`` of the environment it was played in; None for a training episode.
    ``reward`` is the outcome, ``scaled_reward`` the sum over turns of what the trainer sees. ``ids`` and ``logprobs``
    are left out without ``token_ids``; each turn's ``start`` and ``end`` refer to them.
    """
    tokens = {"ids": episode.ids, "logprobs": [_finite(round(x, 6)) for x in episode.logprobs]} if token_ids else {}
    return {
        "iteration": iteration,
        "policy_version": episode.policy_version,
        "variant": variant,
        "env": episode.env,
        "level": episode.level,
        "level_id": episode.level_id,
        "sample": episode.sample,
        "seed": episode.seed,
        "optimal_length": episode.optimal_length,
        "category": episode.category,
        "baseline_success": episode.baseline_success,
        "stop_reason": episode.stop_reason,
        "reward": _finite(episode.reward),
        "scaled_reward": _finite(episode.scaled_reward),
        "error": episode.error,
        "observations": episode.observations,
        "turns": [_turn_record(turn) for turn in episode.turns],
        **tokens,
    }


def episode_of(record: Mapping[str, Any]) -> Episode:
    """Return the episode that a record of `episode_record` tells; what was not finite is NaN."""
    known = {name: record[name] for name in Episode.__dataclass_fields__ if name in record}
    logprobs = [_number(value) for value in record.get("logprobs", [])]
    turns = [_turn_of(turn) for turn in record["turns"]]
    return Episode(**(known | {"turns": turns, "reward": _number(record["reward"]), "logprobs": logprobs}))


def _turn_of(record: Mapping[str, Any]) -> Turn:
    actions = [Action(**action) for action in record["actions"]]
    return Turn(**{**record, "actions": actions, "reward": _number(record["reward"])})


def _turn_record(turn: Turn) -> dict[str, Any]:
    actions = [{"text": action.text, "kind": action.kind} for action in turn.actions]
    return {
        "start": turn.start,
        "end": turn.end,
        "text": turn.text,
        "format": turn.format,
        "actions": actions,
        "reward": _finite(turn.reward),
    }


def append_episodes(
    path: Path, iteration: int, episodes: Iterable[Episode], *, variant: str | None = None, token_ids: bool = True
) -> None:
    """Append one line an episode. Only ASCII is written, so control characters in replies lie inert as \\u escapes."""
    records = (episode_record(iteration, episode, variant=variant, token_ids=token_ids) for episode in episodes)
    lines = "".join(json.dumps(record, ensure_ascii=True, allow_nan=False) + "\n" for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="ascii") as file:
            file.write(lines)
    except OSError as error:
        error.filename = str(path)  # a full disk does not name the file
        raise


def read_episodes(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Yield the episodes of an episodes.jsonl, in order; a half-written last line is passed over.

    Raises:
        ValueError: Another line is no JSON.
    """
    return (record for _, record in _records(Path(path)))


def cut_episodes(path: Path, iteration: int) -> None:
    """Cut a log off before the first line of ``iteration`` or later, and a half-written last line in any case."""
    if path.exists():
        end = 0
        for end_of_line, record in _records(path):
            if record["iteration"] >= iteration:
                break
            end = end_of_line
        os.truncate(path, end)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each line's end, in bytes from the file's start, and its record."""
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # a writer was killed, or is at it
            end += len(line)
            try:
                yield end, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is no JSON: {error}") from None


class EpisodeSamples(Callback):
    """Show a few episodes as text in TensorBoard: the first of an iteration, the first solved, the first failed.

    Args:
        every: Iterations from one set of samples to the next, beginning with the first.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = at_least(1, every=every)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Write this iteration's samples."""
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoard)]
        if boards and trainer.is_global_zero and trainer.current_epoch % self.every == 0:
            # The curves' steps: TensorBoard drops what comes after a step that it goes back to.
            step = trainer.fit_loop.total_batch_idx
            for tag, episode in samples(rollouts(trainer).episodes).items():
                boards[0].log_text(f"episodes/{tag}", view.markdown(view.transcript(episode)), step)


def samples(episodes: Sequence[Episode]) -> dict[str, Episode]:
    """Return the ``first`` episode, the first ``solved`` and the first ``failed``, as far as there are any."""
    chosen = {"first": episodes[:1]}
    chosen |= {"solved": [e for e in episodes if e.success][:1], "failed": [e for e in episodes if not e.success][:1]}
    return {tag: found[0] for tag, found in chosen.items() if found}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
