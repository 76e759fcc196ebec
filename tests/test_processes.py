"""Two processes do what one does: same levels, losses, gradients, weights, checkpoints. And they end together."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import ranks
import tiny_worlds
from wmact import cli, processes
from wmact.engines import EngineFailed
from wmact.lora import LoRA

ROOT = Path(__file__).resolve().parent.parent
FSDP = ("--config", str(ROOT / "configs" / "strategies" / "fsdp.yaml"))
DDP = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
ALONE = ("--trainer.devices", "1", "--trainer.strategy", "auto")


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_worlds.write_model(tmp_path_factory.mktemp("models") / "doors")


# One training step

# of (tokens given, tokens sampled, reward): 7, 3, 5, 6, 9, 11, 3 and 7 sampled tokens
EPISODES = [
    [(3, 4, 0.0), (2, 3, 1.0)],
    [(4, 3, 0.25)],
    [(2, 1, 0.0), (5, 2, 0.0), (1, 2, 0.5)],
    [(6, 6, 0.0)],
    [(3, 9, 1.0)],
    [(2, 2, 0.0), (9, 9, 0.3)],
    [(2, 3, 0.0)],
    [(20, 7, 0.7)],
    [(1, 2, math.nan)],
    [(2, 3, 0.0), (4, 2, 0.2)],
    [(3, 4, 0.2)],
    [(2, 5, 0.2)],
]


class Case(NamedTuple):
    """Settings, and the episodes of each of two processes. One process has them all, in `order`."""

    settings: dict[str, Any]
    shares: tuple[list[int], list[int]] = ([0, 1, 2], [3, 4, 5, 6, 7])
    order: list[int] = [0, 1, 2, 3, 4, 5, 6, 7]


GRPO = {"algorithm": "GRPO"}
GROUPS = ([0, 1, 2], [3, 4, 5, 6, 7])
CASES = {
    # at most 25 tokens at once: 12 + 7 | 13 are two micro-batches, 12 + 12 | 22 | 5 | 27 four
    "separate critic, uneven micro-batches": Case({"token_budget": 25}),
    "shared critic": Case({"critic": "shared", "entropy_coef": 0.1, "token_budget": 25}),
    "a second pass, all terms": Case({"epochs": 2, "clip_low": 0.05, "kl_coef": 0.3, "importance_cap": 1.1}),
    "clipped gradients": Case({"max_grad_norm": 0.5, "gradient_checkpointing": True}),
    "a process without an episode": Case({"token_budget": 25}, ([0, 1, 2, 3, 4, 5, 6, 7], [])),
    # a minibatch is a share of every process's: the first is 0 and 2, the second 1 and 3
    "minibatches": Case({"minibatches": 2}, ([0, 1], [2, 3]), [0, 2, 1, 3]),
    "more minibatches than episodes": Case({"minibatches": 3}, ([0, 1, 2], [3, 4]), [0, 1]),
    "adapters": Case({"lora": LoRA(r=4, alpha=4), "epochs": 2, "kl_coef": 0.3, "token_budget": 25}),
    "a skipped step": Case({}, ([0, 1], [2, 8]), [0, 1, 2, 8]),
    "skipped too often": Case({"max_skipped": 1}, ([8, 1], [2, 3]), [8, 1, 2, 3]),
    "engine and trainer disagree": Case({"max_mismatch_kl": 1e-3}),
    # three episodes are a level: 0 to 2 and 3 to 5, then 6 and 7, and 9 to 11 of equal reward
    "groups": Case(GRPO | {"epochs": 2, "clip_low": 0.05, "kl_coef": 0.3, "token_budget": 25}, GROUPS),
    "minibatches of groups": Case(GRPO | {"minibatches": 3}, ([0, 1, 2], [3, 4, 5]), [0, 3, 1, 4, 2, 5]),
    "adapters by groups": Case(GRPO | {"lora": LoRA(r=4, alpha=4), "epochs": 2, "kl_coef": 0.3}, GROUPS),
    "a process without contrast": Case(GRPO | {"token_budget": 25}, ([0, 1, 2], [9, 10, 11]), [0, 1, 2, 9, 10, 11]),
    "no contrast": Case(GRPO, ([9, 10, 11], []), [9, 10, 11]),
    "idle too often": Case(GRPO | {"max_idle": 1}, ([], [9, 10, 11]), [9, 10, 11]),
    "observations": Case({"echo_coef": 0.5, "token_budget": 25}),
    "observations without contrast": Case(GRPO | {"echo_coef": 0.5}, ([0, 1, 2], [9, 10, 11]), [0, 1, 2, 9, 10, 11]),
    "every level alone": Case(GRPO, ([0], [3]), [0, 3]),
}


@pytest.fixture(scope="module")
def one(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds in each case."""
    out = tmp_path_factory.mktemp("one") / "found"
    shares = [{n: EPISODES[n] for n in case.order} for case in CASES.values()]
    settings = [{"model": str(tiny_model)} | case.settings for case in CASES.values()]
    ranks.steps("auto", 1, shares, settings, out)
    return dict(zip(CASES, torch.load(out), strict=True))


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def two(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of two processes finds in each case."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = [{"model": str(tiny_model)} | case.settings for case in CASES.values()]
    shares = [[{n: EPISODES[n] for n in case.shares[rank]} for case in CASES.values()] for rank in (0, 1)]
    arguments = [(request.param, 2, shares[rank], settings, folder / f"found{rank}") for rank in (0, 1)]
    group = ranks.Group(folder / "group", ranks.steps, *arguments)
    assert group.codes() == [0, 0], group.printed()
    return [dict(zip(CASES, torch.load(folder / f"found{rank}"), strict=True)) for rank in (0, 1)]


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """To 1e-6, of the largest entry where that is above 1."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert (got[name] - value).abs().max() <= 1e-6 * max(1, value.abs().max()), name


@pytest.mark.parametrize("name", CASES)
def test_two_processes_step_as_one(name: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    expected = one[name]
    for found in (each[name] for each in two):
        assert found["stopped"] == expected["stopped"]
        assert len(found["gradients"]) == len(expected["gradients"])
        for got, wanted in zip(found["gradients"], expected["gradients"], strict=True):
            assert_close(got, wanted)
        assert_close(found["weights"], expected["weights"])
        for figure, value in expected["logged"].items():
            if not figure.startswith("performance/"):
                assert found["logged"][figure] == pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True), figure


def test_the_cases_are_what_they_are_called(one: dict[str, Any]) -> None:
    """Else the comparisons above would compare nothing."""
    assert [len(each["gradients"]) for each in one.values()] == [
        1, 1, 2, 1, 1, 2, 0, 2, 0, 0, 0, 2, 3, 2, 1, 0, 0, 1, 1, 0
    ]  # fmt: skip
    assert one["a second pass, all terms"]["logged"]["stability/clip_fraction"] > 0.1
    assert one["a second pass, all terms"]["logged"]["stability/kl"] > 1e-3
    assert one["clipped gradients"]["logged"]["stability/grad_norm/policy"] > 0.5
    assert one["shared critic"]["logged"]["stability/masked_tokens"] > 0
    assert one["adapters"]["logged"]["stability/kl"] > 1e-6
    assert all(".lora_" in name or "critic.head" in name for each in one["adapters"]["gradients"] for name in each)
    assert one["a skipped step"]["logged"]["stability/skipped_steps"] == 1
    assert "1 optimizer steps in a row" in one["skipped too often"]["stopped"]
    assert "above max_mismatch_kl=0.001" in one["engine and trainer disagree"]["stopped"]
    assert one["groups"]["logged"]["stability/clip_fraction"] > 0.01
    zero_variance = {name: each["logged"].get("stability/zero_variance_groups") for name, each in one.items()}
    assert (zero_variance["groups"], zero_variance["a process without contrast"], zero_variance["no contrast"]) == (
        0,
        1,
        1,
    )
    assert one["no contrast"]["weights"]["idle"].tolist() == [1]
    assert "in 1 batches in a row no level had episodes of different reward" in one["idle too often"]["stopped"]
    assert one["observations"]["logged"]["stability/observation_nll"] > 1
    assert "every level has one episode only" in one["every level alone"]["stopped"]
    assert one["more minibatches than episodes"]["stopped"] == "minibatches=3: the batch has only 2 episodes"


def test_demonstrations_are_shared_too(tiny_model: Path, tmp_path: Path) -> None:
    ranks.demonstrate("auto", 1, str(tiny_model), tmp_path / "one")
    alone, expected = torch.load(tmp_path / "one.0"), load_file(tmp_path / "one" / "model.safetensors")
    for strategy in ("ddp", "fsdp"):
        out = tmp_path / strategy
        arguments = (strategy, 2, str(tiny_model), out)
        group = ranks.Group(tmp_path / "groups" / strategy, ranks.demonstrate, arguments, arguments)
        assert group.codes() == [0, 0], group.printed()
        first, second = (torch.load(tmp_path / f"{strategy}.{rank}") for rank in (0, 1))
        assert first["nll"] == second["nll"] == pytest.approx(alone["nll"], rel=1e-6)
        for levels, mine, others in zip(alone["levels"], first["levels"], second["levels"], strict=True):
            assert (levels[0::2], levels[1::2]) == (mine, others)
        got = load_file(out / "model.safetensors")
        assert got.keys() == expected.keys()
        for name, weights in expected.items():  # after three steps of Adam of up to 1e-3
            torch.testing.assert_close(got[name], weights, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


# Whole runs


class Run:
    """A run of the command line, in processes that may be others each time it goes on."""

    def __init__(self, folder: Path, model: str, **changes: Any) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.config = tiny_worlds.write_settings(folder / "doors.yaml", model, **changes)
        self.path = folder / "runs" / "doors" / "version_0"
        self.starts = 0

    def start(self, *words: str, processes: int = 2, rank0: Any = (), rank1: Any = ()) -> ranks.Group:
        """`rank0` and `rank1`: further arguments of `ranks.run` in that process."""
        last = self.path / "checkpoints" / "last.ckpt"
        go_on = ["--ckpt_path", str(last)] if last.exists() else []
        line = ["fit", "--config", self.config, *words, *go_on]
        self.starts += 1
        folder = self.folder / f"processes{self.starts}"
        return ranks.Group(folder, ranks.run, *[(line, *rank0), (line, *rank1)][:processes])

    def fit(self, *words: str, processes: int = 2) -> ranks.Group:
        """Wait for the end, which is a good one."""
        group = self.start(*words, processes=processes)
        assert group.codes() == [0] * processes, group.printed()
        return group

    def metrics(self) -> list[dict[str, float]]:
        with (self.path / "metrics.csv").open() as file:
            rows = [{name: float(x) for name, x in row.items() if x} for row in csv.DictReader(file)]
        return [{name: x for name, x in row.items() if not name.startswith("performance/")} for row in rows]

    def episodes(self, rank: int = 0) -> list[dict[str, Any]]:
        path = self.path / (f"episodes.rank{rank}.jsonl" if rank else "episodes.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]


def by_place(episodes: list[dict[str, Any]]) -> dict[tuple[int, int, int], list[int]]:
    """Token ids by iteration, level and sample, of which each is there once."""
    found = {(e["iteration"], e["level"], e["sample"]): e["ids"] for e in episodes}
    assert len(found) == len(episodes)
    return found


def assert_same_weights(run: Run, other: Run) -> None:
    """To 1e-3: Adam makes much of the rounding errors of small gradients."""
    got, expected = (
        torch.load(one.path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for one in (run, other)
    )
    assert got.keys() == expected.keys()
    for name, weights in expected.items():
        torch.testing.assert_close(got[name], weights, rtol=0, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def assert_same(run: Run, straight: Run) -> None:
    """Figures to 1e-5, and the same episodes, token by token, whoever has played them.

    Where a run ended before it went on, its weights were evaluated too.
    """
    for got, expected in zip(run.metrics(), straight.metrics(), strict=True):
        assert {name: got.get(name) for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-5, nan_ok=True)
        assert all(name.startswith("eval/") for name in got.keys() - expected.keys())
    assert by_place(run.episodes(0) + run.episodes(1)) == by_place(straight.episodes())


@pytest.fixture(scope="module")
def straight(doors: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of one process: 4 iterations of 3 levels × 2 samples."""
    run = Run(tmp_path_factory.mktemp("straight"), doors, groups=3)
    run.fit(processes=1)
    return run


def test_a_run_goes_on_with_another_number_of_processes(straight: Run, doors: str, tmp_path: Path) -> None:
    run = Run(tmp_path, doors, groups=3)
    run.fit("--trainer.max_epochs", "1", *DDP)
    run.fit("--trainer.max_epochs", "2", processes=1)
    run.fit("--trainer.max_epochs", "3", *FSDP)
    run.fit("--trainer.max_epochs", "4", *DDP)
    assert_same(run, straight)
    levels = [[{e["level"] for e in run.episodes(rank) if e["iteration"] == i} for i in range(4)] for rank in (0, 1)]
    assert [list(map(len, of_rank)) for of_rank in levels] == [[2, 3, 2, 2], [1, 0, 1, 1]]
    assert len(set().union(*levels[0], *levels[1])) == 12
    # the budget was lowered after iteration 2, and in both processes: the second one's episodes are the same too
    assert [row["train/turn_budget"] for row in straight.metrics()[:-1]] == [5, 5, 4, 4]


def test_shards_of_shared_weights_go_on_in_one_piece(tiny_model: Path, tmp_path: Path) -> None:
    """Output layer and embedding are one parameter, and policy and critic share a trunk."""
    words = ("--model.critic", "shared", "--model.entropy_coef", "1.0")  # else nothing is learnt: it finds no door
    runs = [Run(tmp_path / name, str(tiny_model)) for name in ("straight", "run")]
    runs[0].fit("--trainer.max_epochs", "2", *words, processes=1)
    runs[1].fit("--trainer.max_epochs", "1", *words, *FSDP)
    runs[1].fit("--trainer.max_epochs", "2", *words, processes=1)
    assert_same_weights(*runs)


def test_shards_of_adapters_go_on_in_one_piece(doors: str, tmp_path: Path) -> None:
    words = ("--model.lora.r", "4", "--model.kl_coef", "0.1")
    runs = [Run(tmp_path / name, doors) for name in ("straight", "run")]
    runs[0].fit("--trainer.max_epochs", "2", *words, processes=1)
    runs[1].fit("--trainer.max_epochs", "1", *words, *FSDP)
    runs[1].fit("--trainer.max_epochs", "2", *words, *FSDP)
    assert_same(runs[1], runs[0])
    assert_same_weights(*runs)


def test_only_the_first_process_writes_but_for_episodes(doors: str, tmp_path: Path) -> None:
    run = Run(tmp_path, doors, engine=None)  # vLLM where it is installed, one in each process
    group = run.fit("--trainer.max_epochs", "1", *FSDP)
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    (events,) = (name for name in files if "tfevents" in name)
    assert files - {events} == {
        "lock", "config.yaml", "metrics.csv", "episodes.jsonl", "episodes.rank1.jsonl", "checkpoints/last.ckpt",
    }  # fmt: skip
    assert [path.name for path in run.path.parent.iterdir()] == ["version_0"]
    assert {path.name for path in group.folders[1].iterdir()} == {"stdout", "stderr"}  # where it works
    assert not (group.folders[1] / "stdout").read_text()
    assert not group.printed()


# Together to the end


def refused(run: Run, *words: str, codes: list[int], rank0: Any = (), rank1: Any = ()) -> str:
    """The one line that all processes end with, and within seconds: none has to be killed."""
    group = run.start(*words, *DDP, rank0=rank0, rank1=rank1)
    assert group.codes(timeout=40) == codes, group.printed()
    (line,) = group.printed()
    return line


@pytest.mark.parametrize("how", [[], ["--trainer.logger", "false"], ["--trainer.fast_dev_run", "true"]])
def test_processes_with_different_settings(how: list[str], doors: str, tmp_path: Path) -> None:
    run = Run(tmp_path, doors)
    words = ["fit", "--config", run.config, *DDP, *how]
    group = ranks.Group(tmp_path / "group", ranks.run, (words,), ([*words, "--data.samples", "4"],))
    assert group.codes() == [2, 0]
    assert group.printed() == [
        "wmact: processes with different settings: data.init_args.samples is 2 in process 0 and 4 in process 1; start "
        "all of them with the same command"
    ]
    assert not (run.path / "config.yaml").exists()


def test_too_few_levels_to_share(doors: str, tmp_path: Path) -> None:
    line = refused(Run(tmp_path, doors, groups=1), codes=[2, 0])
    assert line == "wmact: data.groups=1: each of the 2 processes needs at least one"


def test_other_strategies_are_refused(
    doors: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["wmact"])
    overlay = tmp_path / "other.yaml"
    overlay.write_text("trainer: {strategy: {class_path: lightning.pytorch.strategies.ModelParallelStrategy}}")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["fit", "--config", Run(tmp_path, doors).config, "--config", str(overlay)])
    assert capsys.readouterr().err == (
        "wmact: trainer.strategy is ModelParallelStrategy: use ddp, or for weights in shards --config "
        "configs/strategies/fsdp.yaml\n"
    )


def nap(tmp_path: Path, at: int) -> dict[str, str]:
    """From that step of an environment on, each step takes a minute."""
    return {"DOORS_NAP": f"{at}:60:{tmp_path / 'napping'}"}


def test_an_error_in_one_rollout_ends_the_others(doors: str, tmp_path: Path) -> None:
    broken = ({}, "wmact.data:play", OSError("no such device"))
    line = refused(Run(tmp_path, doors), codes=[2, 0], rank0=(nap(tmp_path, 1),), rank1=broken)
    assert line == "wmact: no such device"


def test_an_error_in_one_update_ends_the_others(doors: str, tmp_path: Path) -> None:
    """A fault of the program: its traceback is shown, once, and not what it makes of the other process's calls."""
    group = Run(tmp_path, doors).start(*DDP, rank1=({}, "wmact.ppo:losses.value_loss", KeyError("a fault")))
    assert group.codes(timeout=40) == [1, 1]
    assert not (group.folders[0] / "stderr").read_text()
    assert [line for line in group.printed() if "Error" in line] == ["KeyError: 'a fault'"]


def test_a_checkpoint_that_cannot_be_written(doors: str, tmp_path: Path) -> None:
    full = ({}, "wmact.checkpoints:AtomicCheckpointIO.save_checkpoint", OSError("no space left"))
    assert refused(Run(tmp_path, doors), codes=[2, 0], rank0=full) == "wmact: no space left"


def test_errors_of_environments_are_counted_over_processes(doors: str, tmp_path: Path) -> None:
    run = Run(tmp_path, doors, env={"id": "tiny_worlds:tiny/Doors-v0", "kwargs": {"fault": 1}})
    line = refused(run, codes=[1, 0])
    assert re.match(
        r"wmact: training stopped: ([34]) of 4 episodes ended in an error: \1 × RuntimeError: hinge 0 is", line
    )


def test_an_engine_that_fails_once_in_one_process(straight: Run, doors: str, tmp_path: Path) -> None:
    run = Run(tmp_path, doors, groups=3)
    group = run.start(*DDP, rank1=({}, "wmact.data:play", EngineFailed("out of memory")))
    assert group.codes() == [0, 0], group.printed()
    assert [line for line in group.printed("stdout") if "out of memory" in line] == [
        "out of memory; starting it anew, once, and playing this rollout again"
    ]
    assert_same(run, straight)


def test_an_engine_that_fails_again(doors: str, tmp_path: Path) -> None:
    broken = ({}, "wmact.data:play", EngineFailed("out of memory"), 2)
    line = refused(Run(tmp_path, doors), codes=[1, 0], rank1=broken)
    assert line.startswith("wmact: training stopped: the engine failed again after a new start: out of memory;")


@pytest.mark.parametrize("asked", [0, 1])
def test_sigterm_while_one_waits_for_the_other(asked: int, doors: str, tmp_path: Path) -> None:
    """The one that waits hears it, and the one whose environment takes a minute gives up."""
    slow = 1 - asked
    naps: dict[str, Any] = {f"rank{slow}": (nap(tmp_path, 1),)}
    group = Run(tmp_path, doors).start(*DDP, **naps)
    while not (tmp_path / "napping").exists():
        assert group.processes[slow].is_alive(), group.printed()
        time.sleep(0.05)
    time.sleep(1)  # the other one's rollout takes less
    os.kill(group.processes[asked].pid or 0, signal.SIGTERM)
    begun = time.monotonic()
    assert group.codes(timeout=20) == [143, 0]
    assert time.monotonic() - begun < 20
    assert group.printed() == ["wmact: terminated; nothing was saved yet"]


def test_a_process_that_is_killed(doors: str, tmp_path: Path) -> None:
    line = refused(Run(tmp_path, doors), codes=[1, -signal.SIGKILL], rank1=({"DOORS_KILL": "12"},))
    assert line.startswith("wmact: training stopped: another process is gone (")
    assert "; go on with: python -m wmact fit --config " in line


def test_lightning_starts_them(straight: Run, doors: str, tmp_path: Path) -> None:
    """And ends them: after a signal to the first process none is left, and the line says how to go on."""
    run = Run(tmp_path, doors, groups=3)
    environment = os.environ | nap(tmp_path, 22) | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "wmact", "fit", "--config", run.config, *DDP]
    process = subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "napping").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.terminate()
    out, err = process.communicate(timeout=20)  # when all who could write there have ended
    assert process.returncode == 143
    assert out.count("run folder") == 1
    last = run.path / "checkpoints" / "last.ckpt"
    assert (
        err
        == f"wmact: terminated; go on with: python -m wmact fit --config {run.path}/config.yaml --ckpt_path {last}\n"
    )
    run.fit(*DDP)
    assert_same(run, straight)


# What processes share, with one of them


def test_one_process_needs_no_group() -> None:
    assert processes.place() == (0, 1)
    assert processes.gather("mine") == ["mine"]
    assert processes.total([1.5, 2]) == processes.largest([1.5, 2]) == [1.5, 2]
    assert processes.share([3, 1, 4]) == [3, 1, 4]
    processes.require_same({"a": "1"})
    assert not processes.told_to_stop()
    with pytest.raises(KeyError) as error, processes.together():
        raise KeyError("a fault")
    assert processes.tells(error.value)
