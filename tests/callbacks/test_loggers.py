"""One run folder for all loggers, and curves that go on where the checkpoint was."""

import csv
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.util.tensor_util import make_ndarray

from wmact.callbacks import EpisodeSamples
from wmact.loggers import LAYOUT, CSVMetrics, TensorBoard, open_run_folder, read_metrics, run_folder_of


def test_run_folder_of() -> None:
    assert run_folder_of("/runs/maze/version_3/checkpoints/last.ckpt") == Path("/runs/maze/version_3")
    assert run_folder_of(Path("runs/a/version_0/checkpoints/x.ckpt")) == Path.cwd() / "runs/a/version_0"
    assert run_folder_of("/models/x.ckpt") is None
    assert run_folder_of("s3://bucket/run/checkpoints/x.ckpt") is None
    assert run_folder_of("last") is None
    assert run_folder_of(None) is None


def test_a_new_run_gets_one_new_folder_for_all(tmp_path: Path) -> None:
    # Left alone, the second would see the first one's folder and take the next number.
    for number in range(2):
        loggers = [TensorBoard(str(tmp_path), "maze"), CSVMetrics(), CSVLogger(tmp_path / "other")]
        assert open_run_folder(loggers) == tmp_path / "maze" / f"version_{number}"
        for logger in loggers[:2]:
            assert logger.log_dir == str(tmp_path / "maze" / f"version_{number}")
    assert not (tmp_path / "wmact").exists()
    assert open_run_folder([CSVLogger(tmp_path)]) is None


def test_the_folder_is_the_one_that_a_logger_asks_for(tmp_path: Path) -> None:
    """The default's is asked for by nobody, even where it comes first."""
    loggers = [TensorBoard(), CSVMetrics(str(tmp_path), "maze")]
    assert open_run_folder(loggers) == tmp_path / "maze" / "version_0"
    assert {Path(logger.log_dir) for logger in loggers} == {tmp_path / "maze" / "version_0"}


def test_two_runs_that_start_together_share_nothing(tmp_path: Path) -> None:
    first, second = CSVMetrics(str(tmp_path)), CSVMetrics(str(tmp_path))
    assert first.version == second.version == 0  # both have looked
    assert open_run_folder([first]) == tmp_path / "wmact" / "version_0"


def test_a_run_takes_the_next_number_if_another_was_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = CSVMetrics(str(tmp_path))
    monkeypatch.setattr(logger, "_get_next_version", lambda: 0)  # what it saw before the other made its folder
    (tmp_path / "wmact" / "version_0").mkdir(parents=True)
    assert open_run_folder([logger]) == tmp_path / "wmact" / "version_1"


def test_a_version_that_exists_is_not_written_over(tmp_path: Path) -> None:
    assert open_run_folder([CSVMetrics(str(tmp_path), version=4)]) == tmp_path / "wmact" / "version_4"
    with pytest.raises(FileExistsError, match="version_4 exists: leave version out for a new run"):
        open_run_folder([CSVMetrics(str(tmp_path), version=4)])


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/../../x", "x" * 300, "ok/" + "é" * 130])
@pytest.mark.parametrize("logger", [CSVMetrics, TensorBoard])
def test_a_name_stays_below_the_folder_of_runs(logger: Any, name: str) -> None:
    with pytest.raises(ValueError, match="a run's name is a relative path without") as caught:
        logger("runs", name)
    assert len(str(caught.value)) < 200


def test_one_row_a_step_and_columns_that_grow(tmp_path: Path) -> None:
    logger = CSVMetrics(str(tmp_path))
    logger.log_metrics({"b": torch.tensor(0.5), "epoch": 0}, 0)
    logger.save()
    path = tmp_path / "wmact" / "version_0" / "metrics.csv"
    assert path.read_text() == "step,epoch,b\n0,0,0.5\n"
    logger.log_metrics({"a,x": 1}, 0)
    logger.log_metrics({"b": float("nan"), "epoch": 1}, 1)
    logger.save()
    assert path.read_text() == 'step,epoch,"a,x",b\n0,0,1,0.5\n1,1,,nan\n'
    assert read_metrics(path) == {
        0: {"step": "0", "epoch": "0", "a,x": "1", "b": "0.5"},
        1: {"step": "1", "epoch": "1", "b": "nan"},
    }
    assert logger.experiment is logger


def test_a_killed_write_leaves_the_file_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = CSVMetrics(str(tmp_path))
    logger.log_metrics({"a": 1}, 0)
    logger.save()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    logger.log_metrics({"a": 2}, 1)
    with pytest.raises(KeyboardInterrupt):
        logger.save()
    assert Path(logger.log_dir, "metrics.csv").read_text() == "step,a\n0,1\n"


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    logger = CSVMetrics(str(tmp_path))
    logger.log_metrics({"a": 1}, 0)
    folder = Path(logger.log_dir)
    folder.mkdir(parents=True)
    (folder / "metrics.csv.half").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics.csv'"):
        logger.save()


def shown(folder: Path) -> EventAccumulator:
    """What TensorBoard shows of a run folder."""
    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.step, float(make_ndarray(point.tensor_proto))) for point in shown(folder).Tensors(tag)]


class Interrupted:
    """A run that is killed after iteration 4 and resumed from the checkpoint of iteration 1, and one that is not."""

    def __init__(self, fit: Callable[..., Any], save_dir: Path, **settings: Any) -> None:
        self.fit, self.save_dir, self.settings = fit, save_dir, settings
        self.whole = self.run("whole", 6)
        self.resumed = self.run("killed", 4)
        self.before = (self.resumed / "metrics.csv").read_text()
        again = self.run("a new name in the config changes nothing", 6, self.resumed / "checkpoints" / "epoch=1.ckpt")
        assert again == self.resumed

    def run(self, name: str, last: int, ckpt: Path | None = None) -> Path:
        loggers = [TensorBoard(str(self.save_dir), name), CSVMetrics()]
        folder = open_run_folder(loggers, ckpt)
        assert folder is not None
        settings = {"loggers": loggers, "ckpt_path": ckpt, "checkpoints": folder / "checkpoints"}
        self.fit([EpisodeSamples(every=1)], last, check_val_every_n_epoch=2, **settings, **self.settings)
        return folder


@pytest.fixture(params=[False, True], ids=["saved at the end", "saved after validation"])
def interrupted(request: pytest.FixtureRequest, fit: Callable[..., Any], tmp_path: Path) -> Interrupted:
    return Interrupted(fit, tmp_path, save_after_validation=request.param)


def test_a_resumed_run_gives_the_csv_of_an_uninterrupted_one(interrupted: Interrupted) -> None:
    written = (interrupted.resumed / "metrics.csv").read_text()
    assert written == (interrupted.whole / "metrics.csv").read_text()
    rows = list(csv.DictReader(written.splitlines()))
    assert [row["step"] for row in rows] == list("012345")
    assert [row["eval/standard/single_turn"] for row in rows] == ["", "0.25"] * 3
    assert interrupted.before.count("\n") == 5


def test_a_resumed_run_draws_no_point_twice(interrupted: Interrupted) -> None:
    curve = [(step, float(step)) for step in range(6)]
    assert points(interrupted.resumed, "train/iteration") == points(interrupted.whole, "train/iteration") == curve
    assert [text.step for text in shown(interrupted.resumed).Tensors("episodes/first/text_summary")] == list(range(6))


def test_the_evaluation_of_the_weights_that_a_run_goes_on_with_stays(tmp_path: Path) -> None:
    """The row of step 2 begins with it; the rest of the row comes again."""
    table = CSVMetrics(str(tmp_path), "maze")
    loggers = [TensorBoard(str(tmp_path), "maze"), table]
    folder = open_run_folder(loggers)
    assert folder is not None
    for logger in loggers:
        logger.log_metrics({"eval/standard/single_turn": 0.5}, 2)
        for step in range(4):
            logger.log_metrics({"train/success": float(step)}, step)
        logger.log_metrics({"eval/standard/single_turn": 0.75}, 4)
        logger.finalize("success")
    table.save()
    loggers = [TensorBoard(), CSVMetrics()]
    open_run_folder(loggers, folder / "checkpoints" / "last.ckpt")
    for logger in loggers:
        logger.log_metrics({"train/success": 20.0}, 2)
        logger.save()
    assert points(folder, "eval/standard/single_turn") == [(2, 0.5)]
    assert points(folder, "train/success") == [(0, 0.0), (1, 1.0), (2, 20.0)]
    rows = read_metrics(folder / "metrics.csv")
    assert rows[2] == {"step": "2", "eval/standard/single_turn": "0.5", "train/success": "20.0"}
    assert list(rows) == [0, 1, 2]


def test_the_charts_of_the_paper(interrupted: Interrupted) -> None:
    for folder in (interrupted.whole, interrupted.resumed):
        (config,) = shown(folder).Tensors("custom_scalars__config__")[-1].tensor_proto.string_val
        layout = layout_pb2.Layout.FromString(config)
        charts = {c.title: {chart.title: list(chart.multiline.tag) for chart in c.chart} for c in layout.category}
        assert charts == LAYOUT


def test_the_layout_can_be_set(tmp_path: Path) -> None:
    board = TensorBoard(str(tmp_path), layout={})
    board.log_metrics({"a": 1.0}, 0)
    board.finalize("success")
    assert "custom_scalars__config__" not in shown(Path(board.log_dir)).Tags()["tensors"]


def test_no_hyperparameter_is_written(fit: Callable[..., Any], tmp_path: Path) -> None:
    loggers = [TensorBoard(str(tmp_path)), CSVMetrics()]
    folder = open_run_folder(loggers)
    assert folder is not None
    for logger in loggers:
        logger.log_hyperparams({"token": "hf_s3cr3t"})
    fit([], 1, loggers=loggers)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sorted(re.sub(r"\.tfevents.*", "", path.name) for path in files) == ["events.out", "metrics.csv"]
    assert not any(b"s3cr3t" in path.read_bytes() for path in files)
    assert "hp_metric" not in shown(folder).Tags()["tensors"]


def test_a_resume_that_fails_before_it_logs_loses_nothing(tmp_path: Path) -> None:
    logger = CSVMetrics(str(tmp_path))
    open_run_folder([logger])
    for step in range(3):
        logger.log_metrics({"a": step}, step)
    logger.save()
    again = CSVMetrics()
    open_run_folder([again], Path(logger.log_dir, "checkpoints", "x.ckpt"))
    again.finalize("failed")
    assert len(read_metrics(Path(logger.log_dir, "metrics.csv"))) == 3
    again.log_metrics({"a": 7}, 1)
    again.save()
    assert Path(logger.log_dir, "metrics.csv").read_text() == "step,a\n0,0\n1,7\n"
