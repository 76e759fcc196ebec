"""A run that was stopped, killed or moved goes on as if nothing had happened: bit for bit, in the same folder."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny_worlds
from command_line import run as main
from wmact import cli
from wmact.checkpoints import AtomicCheckpointIO
from wmact.data import RolloutData
from wmact.ppo import PPO
from wmact.rollout import RolloutInterrupted
from wmact.types import Batch

ITERATIONS = 4
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def called_from_a_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["wmact"])
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_worlds.write_model(tmp_path_factory.mktemp("models") / "doors")


@pytest.fixture
def doors(tmp_path: Path, model: str) -> str:
    """The file of a run of 4 iterations."""
    return tiny_worlds.write_settings(tmp_path / "doors.yaml", model)


class Straight:
    """The run that nothing interrupted."""

    def __init__(self, folder: Path, model: str) -> None:
        before = tiny_worlds.steps
        assert main("fit", "--config", tiny_worlds.write_settings(folder / "doors.yaml", model)) == 0
        self.steps = tiny_worlds.steps - before
        self.run = folder / "runs" / "doors" / "version_0"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, model: str) -> Straight:
    return Straight(tmp_path_factory.mktemp("straight"), model)


def run_of(folder: Path, version: int = 0) -> Path:
    return folder / "runs" / "doors" / f"version_{version}"


def told_to_go_on(line: str) -> list[str]:
    """The arguments of the command that the last line of a stopped run names."""
    words = shlex.split(line.rpartition("go on with: ")[2])
    assert words[:3] == ["python", "-m", "wmact"]
    return words[3:]


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if not k.startswith("performance/")} for row in csv.DictReader(file)]


def episodes(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]


def differences(a: Any, b: Any, at: str = "") -> Iterator[str]:
    """Where two checkpoints differ, but for the paths in them."""
    if isinstance(a, torch.Tensor):
        if not torch.equal(a, b):
            yield at
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a:
            yield from differences(a[key], b[key], f"{at}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for number, pair in enumerate(zip(a, b, strict=True)):
            yield from differences(*pair, f"{at}/{number}")
    elif a != b and not at.endswith(("path", "model_path")):
        yield at


def assert_same(run: Path, other: Path) -> None:
    """Weights, optimizer, counters, figures, episodes."""
    ours, theirs = (torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (run, other))
    assert list(differences(ours, theirs)) == []
    assert metrics(run) == metrics(other)
    assert (run / "episodes.jsonl").read_bytes() == (other / "episodes.jsonl").read_bytes()


def stop_at(iteration: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a run is given up in the rollout of this iteration."""
    play = _PLAY

    def give_up(self: RolloutData) -> Batch:
        if self._trainer().current_epoch == iteration:
            raise RolloutInterrupted
        return play(self)

    monkeypatch.setattr(RolloutData, "_training_batch", give_up)


_PLAY = RolloutData._training_batch


# Repetition


def test_the_straight_run_trains_something(straight: Straight) -> None:
    """Else the comparisons below would compare nothing."""
    rows = metrics(straight.run)
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4"]
    # A row is of one version of the weights: what they score, what they play, what the update finds.
    assert [bool(row["eval/standard/single_turn"]) for row in rows] == [True, False, True, False, True]
    assert [bool(row["train/success"]) for row in rows] == [True, True, True, True, False]
    assert len({row["stability/entropy"] for row in rows[:-1]}) == ITERATIONS
    assert {e["stop_reason"] for e in episodes(straight.run)} >= {"solved"}
    assert float(rows[3]["train/turn_budget"]) < float(rows[0]["train/turn_budget"])


def test_levels_come_once(straight: Straight) -> None:
    by_iteration = [{e["level"] for e in episodes(straight.run) if e["iteration"] == i} for i in range(ITERATIONS)]
    assert [len(levels) for levels in by_iteration] == [2, 2, 2, 2]
    assert len(set().union(*by_iteration)) == 8
    seeds = [e["seed"] for e in episodes(straight.run)]
    assert len(set(seeds)) == len(seeds) == 16


def test_the_same_seed_repeats_and_another_differs(straight: Straight, doors: str, tmp_path: Path) -> None:
    assert main("fit", "--config", doors) == 0
    assert_same(run_of(tmp_path), straight.run)
    assert main("fit", "--config", doors, "--seed_everything", "2") == 0
    other = run_of(tmp_path, 1)
    assert not {e["level"] for e in episodes(other)} & {e["level"] for e in episodes(straight.run)}
    assert metrics(other) != metrics(straight.run)


# Stopped and resumed


@pytest.mark.parametrize("stops", [[2], [1, 3]], ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one(
    stops: list[int],
    straight: Straight,
    doors: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    go_on = ["fit", "--config", doors]
    for stop in stops:
        stop_at(stop, monkeypatch)
        assert main(*go_on) == 143
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("wmact: terminated; go on with: python -m wmact fit --config /")
        assert {e["iteration"] for e in episodes(run_of(tmp_path))} == set(range(stop))
        go_on = told_to_go_on(line)
    run = run_of(tmp_path)
    assert go_on == ["fit", "--config", f"{run}/config.yaml", "--ckpt_path", f"{run}/checkpoints/last.ckpt"]
    monkeypatch.setattr(RolloutData, "_training_batch", _PLAY)
    assert main(*go_on) == 0
    assert_same(run, straight.run)
    assert list(run.parent.iterdir()) == [run]  # it went on where it was
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]


ANOTHER = {
    "adapters": ["--model.lora.r", "4", "--model.kl_coef", "0.1"],  # of the base the checkpoint holds nothing
    "GRPO": ["--config", str(ROOT / "configs" / "rwml" / "grpo.yaml"), "--model.lr", "0.01"],
}


@pytest.mark.parametrize("words", ANOTHER.values(), ids=ANOTHER)
def test_a_resumed_run_of_another_kind(
    words: list[str], doors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main("fit", "--config", doors, *words) == 0
    stop_at(2, monkeypatch)
    assert main("fit", "--config", doors, *words) == 143
    run = run_of(tmp_path, 1)
    monkeypatch.setattr(RolloutData, "_training_batch", _PLAY)
    last = str(run / "checkpoints" / "last.ckpt")
    assert main("fit", "--config", str(run / "config.yaml"), "--ckpt_path", last) == 0
    assert_same(run, run_of(tmp_path))


def test_a_run_goes_on_in_a_folder_that_was_moved(
    straight: Straight, doors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(2, monkeypatch)
    assert main("fit", "--config", doors) == 143
    moved = tmp_path / "elsewhere with a blank"
    shutil.move(run_of(tmp_path), moved)
    monkeypatch.setattr(RolloutData, "_training_batch", _PLAY)
    options = ["--config", str(moved / "config.yaml"), "--ckpt_path", str(moved / "checkpoints" / "last.ckpt")]
    assert main("fit", *options) == 0
    assert_same(moved, straight.run)  # in its last.ckpt, and not in another beside it
    assert not list(run_of(tmp_path).parent.iterdir())


def test_nothing_to_go_on_with(doors: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stop_at(0, monkeypatch)
    assert main("fit", "--config", doors) == 143
    assert capsys.readouterr().err == "wmact: terminated; nothing was saved yet\n"


def test_more_iterations_than_first_asked_for(straight: Straight, doors: str, tmp_path: Path) -> None:
    assert main("fit", "--config", doors, "--trainer.max_epochs", "2") == 0
    run = run_of(tmp_path)
    options = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    assert main("fit", *options, "--trainer.max_epochs", "4") == 0
    assert_same(run, straight.run)


def test_other_settings_than_before_are_told_and_the_old_ones_kept(
    doors: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("fit", "--config", doors, "--trainer.max_epochs", "2") == 0
    run = run_of(tmp_path)
    config, last = str(run / "config.yaml"), str(run / "checkpoints" / "last.ckpt")
    first = (run / "config.yaml").read_bytes()
    capsys.readouterr()
    assert main("fit", "--config", config, "--ckpt_path", last) == 0  # nothing to do
    assert "other settings" not in capsys.readouterr().out
    assert main("fit", "--config", config, "--ckpt_path", last, "--trainer.max_epochs", "3", "--model.lr", "0.1") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "other settings" in line]
    assert told == ["other settings than before: trainer.max_epochs 2 → 3, model.lr 0.01 → 0.1"]
    assert (run / "config_until_2.yaml").read_bytes() == first
    assert yaml.safe_load(Path(config).read_text())["model"]["init_args"]["lr"] == 0.1
    assert main("fit", "--config", config, "--ckpt_path", last, "--trainer.max_epochs", "4") == 0
    assert {path.name for path in run.glob("config*")} == {"config.yaml", "config_until_2.yaml", "config_until_3.yaml"}


def test_a_sigterm_in_an_update(
    straight: Straight, doors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = PPO.training_step
    reached: list[int] = []

    def terminated(self: PPO, batch: Batch, batch_idx: int) -> None:
        if self.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            train(self, batch, batch_idx)
        finally:
            reached.append(self.global_step)

    monkeypatch.setattr(PPO, "training_step", terminated)
    assert main("fit", "--config", doors) == 143
    assert reached[-1] == 2  # it was given up before its step
    monkeypatch.setattr(PPO, "training_step", train)
    assert main(*told_to_go_on(capsys.readouterr().err.splitlines()[-1])) == 0
    assert_same(run_of(tmp_path), straight.run)


# The process


def _heed_ctrl_c() -> None:
    """In a background job SIGINT comes ignored, and children would ignore it too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def started(doors: str, tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "wmact", "fit", "--config", doors],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,  # whichever checkout is tested
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        preexec_fn=_heed_ctrl_c,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_it_naps(process: subprocess.Popen[str], ready: Path) -> None:
    while not ready.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)


def test_kill_9_in_the_middle_of_an_iteration(straight: Straight, doors: str, tmp_path: Path) -> None:
    killed = started(doors, tmp_path, DOORS_KILL=str(straight.steps * 2 // 3))
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    run = run_of(tmp_path)
    assert 0 < len(metrics(run)) < ITERATIONS
    options = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]
    assert main("fit", *options) == 0
    assert_same(run, straight.run)


def test_sigterm_in_a_slow_rollout(straight: Straight, doors: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = started(doors, tmp_path, DOORS_NAP=f"{straight.steps * 2 // 3}:50:{ready}")
    until_it_naps(process, ready)
    process.terminate()
    begun = time.monotonic()
    _, err = process.communicate(timeout=20)  # a step takes 50 s
    assert time.monotonic() - begun < 20
    assert process.returncode == 143
    (line,) = err.splitlines()
    torch.load(run_of(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert main(*told_to_go_on(line)) == 0
    assert_same(run_of(tmp_path), straight.run)


def test_ctrl_c_twice(straight: Straight, doors: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = started(doors, tmp_path, DOORS_NAP=f"{straight.steps * 2 // 3}:50:{ready}")
    until_it_naps(process, ready)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    (line,) = err.splitlines()
    assert line.startswith("wmact: interrupted; go on with: python -m wmact fit")


# Checkpoint files


def saved(path: Path, value: float) -> None:
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"weight": torch.full((1000,), value)}}, path)


def value_in(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["state_dict"]["weight"][0])


def test_the_trainer_writes_checkpoints_in_place(doors: str) -> None:
    built = cli.build(["fit", "--config", doors, "--trainer.fast_dev_run", "true"])
    assert type(built.trainer.strategy.checkpoint_io) is AtomicCheckpointIO


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_while_a_checkpoint_is_written(moment: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved(path, 1.0)
    child = os.fork()
    if not child:
        setattr(os, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        saved(path, 2.0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert value_in(path) == 1.0
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".ckpt"] == ["last.ckpt"]
    saved(path, 3.0)  # what lies there does not get in the way
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]
    assert value_in(path) == 3.0


def test_no_temporary_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    saved(tmp_path / "last.ckpt", 1.0)
    assert value_in(tmp_path / "last.ckpt") == 1.0


def test_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    saved(path, 1.0)
    (tmp_path / "last.ckpt.half").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"last.ckpt cannot be written \(No space left on device\); the one before"):
        saved(path, 2.0)
    assert value_in(path) == 1.0
    assert list(tmp_path.iterdir()) == [path]


# On-policy, or not at all


def test_episodes_of_other_weights_stop_the_run(
    doors: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        RolloutData, "_training_batch", lambda self: (b := _PLAY(self))._replace(policy_version=b.policy_version // 2)
    )
    assert main("fit", "--config", doors) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "played with the weights of step 0, but the trainer is at step 1" in line
    assert told_to_go_on(line)
