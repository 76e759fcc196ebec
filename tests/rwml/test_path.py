"""The whole path on a tiny world: collect → calibrate → world-model SFT → filter → RWML → evaluate, as one types it.

The world says which of four doors is the goal, and says it again whatever one tries: it is learnt in seconds.
"""

import itertools
import json
import os
import re
import signal
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import yaml
from gymnasium.envs.registration import EnvSpec

import tiny_worlds
from wmact.cli import main
from wmact.engines import Completion, EngineFailed, TransformersEngine
from wmact.loggers import read_metrics
from wmact.rollout import Task
from wmact.rwml import collect, prediction
from wmact.rwml import filter as rwml_filter
from wmact.rwml.calibrate import THRESHOLDS
from wmact.rwml.collect import Recorder, record
from wmact.rwml.offline import predict, read_data, read_prediction_data
from wmact.rwml.triplets import Triplet, read_triplets
from wmact.terms import read_terms
from wmact.types import Episode

ROOT = Path(__file__).resolve().parent.parent.parent


def run(*words: Any) -> None:
    main([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configurations beside what they make: the world, its prediction, and its prediction as SFT."""
    folder = tmp_path_factory.mktemp("path")
    model = tiny_worlds.write_model(folder / "model")
    base = tiny_worlds.settings(model, folder / "runs", max_turns=3)
    (folder / "world.yaml").write_text(yaml.safe_dump(base))
    engine = base["data"]["init_args"]["engine"]
    distance = {"class_path": "wmact.rwml.Exact"}
    asked = {
        "triplets": str(folder / "doors.jsonl"),
        "reward": {"class_path": "wmact.rwml.Within", "init_args": {"threshold": 0.5, "distance": distance}},
        "held_out": 0.25,
        "history": 0,
        "tag": "action",
        "tell_rules": False,
        "limits": {"turn_tokens": 8},
        "validation": {"levels": 8, "curve": [1]},
        "testing": {"levels": 8, "samples": 4, "curve": [1]},
        "engine": engine,
    }
    rwml = {**base, "annealing": None, "seed_everything": 1}
    rwml["trainer"] = base["trainer"] | {"max_epochs": 2}
    rwml["data"] = {"class_path": "wmact.rwml.PredictionData", "init_args": asked | {"groups": 4, "samples": 4}}
    (folder / "rwml.yaml").write_text(yaml.safe_dump(rwml))
    sft = {**rwml, "model": {"class_path": "wmact.sft.SFT", "init_args": {"model": "nano", "lr": 0.003}}}
    shown = asked | {"batches": 40, "episodes_a_batch": 16}
    sft["data"] = {"class_path": "wmact.rwml.NextStateData", "init_args": shown}
    (folder / "sft.yaml").write_text(yaml.safe_dump(sft))
    run("collect", "--config", folder / "world.yaml", "--out", folder / "doors.jsonl", "--episodes", 60)
    return folder


def test_collected_by_the_model(folder: Path) -> None:
    found = read_triplets(folder / "doors.jsonl")
    assert found.provenance["source"] == "model"
    assert found.provenance["rules"] == {"tiny/Doors-v0": tiny_worlds.Doors.rules}
    assert sum(found.provenance["ends"].values()) == 60
    assert len({each.game for each in found.triplets}) > 50  # levels come once
    for each in found.triplets:
        assert each.next == each.observation  # this world says the same again
        assert each.effective == each.success == (each.next == f"goal {each.action}")
        assert [said.role for said in each.history] == ["observation", "action"] * each.step + ["observation"]
    steps = [each.step for each in found.triplets]
    assert max(steps) == 2
    solved = sum(each.success for each in found.triplets)
    assert solved == found.provenance["ends"]["solved"]


def test_the_same_command_collects_the_same(folder: Path, tmp_path: Path) -> None:
    run("collect", "--config", folder / "world.yaml", "--out", tmp_path / "again.jsonl", "--episodes", 60)
    assert read_triplets(tmp_path / "again.jsonl").triplets == read_triplets(folder / "doors.jsonl").triplets


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (EngineFailed("vLLM failed: out of memory"), 2, "vLLM failed: out of memory"),
        (KeyboardInterrupt(), 130, "interr"),
        (None, 143, "terminated"),
    ],
)
def test_what_was_collected_stays_when_it_ends_early_and_the_rest_follows(
    error: BaseException | None,
    code: int,
    told: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, steps = tmp_path / "doors.jsonl", TransformersEngine.step
    words = ["collect", "--config", folder / "world.yaml", "--out", file, "--episodes", 60, "--data.concurrency", 8]
    count = itertools.count(1)

    def fail(self: TransformersEngine) -> list[Completion]:
        if next(count) == 30:  # an episode takes 4 to 24 tokens, each a step
            if error is None:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                raise error
        return steps(self)

    monkeypatch.setattr(TransformersEngine, "step", fail)
    with pytest.raises(SystemExit) as left:
        run(*words)
    monkeypatch.undo()
    assert left.value.code == code
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1
    assert f"wmact: {told}" in shown.err
    half = read_triplets(file)
    done = half.provenance["done"]
    assert 0 < len(done) < 60
    assert sum(half.provenance["ends"].values()) == len(done)
    assert f"; {60 - len(done)} are missing, which the same command plays" in shown.out
    run(*words)
    whole, straight = read_triplets(file), read_triplets(folder / "doors.jsonl")
    assert whole.triplets[: len(half.triplets)] == half.triplets
    key = attrgetter("game", "step")
    assert sorted(whole.triplets, key=key) == sorted(straight.triplets, key=key)
    assert whole.provenance["ends"] == straight.provenance["ends"]
    assert "done" not in whole.provenance
    before = file.read_bytes()
    capsys.readouterr()
    run(*words)
    assert f"nothing to do: {file} holds all 60 episodes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(*words, "--history", 0)
    assert f"--out {file} was written by another command (python -m wmact collect" in capsys.readouterr().err
    assert file.read_bytes() == before
    file.write_bytes(before.replace(whole.provenance["weights"].encode(), b"of-before"))
    with pytest.raises(SystemExit):
        run(*words)
    assert f"--out {file} was written with other weights of the model than there are now: " in capsys.readouterr().err


@pytest.mark.parametrize("source", ["random", "walkthrough"])
def test_collected_without_a_model(folder: Path, tmp_path: Path, source: str) -> None:
    words = ["collect", "--config", folder / "world.yaml", "--episodes", 9, "--source", source]
    run(*words, "--out", tmp_path / "a.jsonl", "--history", 0, "--data.env.kwargs.levels", 4)
    found = read_triplets(tmp_path / "a.jsonl")
    games = [each.game for each in found.triplets if each.step == 0]
    # four levels, nine episodes: each level comes once, then each again, and one a third time
    assert sorted(games[:4]) == sorted(games[4:8]) == ["doors0", "doors1", "doors2", "doors3"]
    assert len(games) == 9
    assert all(len(each.history) <= 2 for each in found.triplets)
    if source == "walkthrough":
        assert all(each.success for each in found.triplets)
        assert len(found.triplets) == 9
    assert {each.policy for each in found.triplets} == {source}


def test_what_is_collected_is_written_now_and_then(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(collect, "SAVED_EVERY", 0.0)
    words = ["collect", "--config", folder / "world.yaml", "--episodes", 4, "--source", "walkthrough"]
    run(*words, "--out", tmp_path / "a.jsonl")
    told = [line for line in capsys.readouterr().out.splitlines() if "triplets of" in line]
    # and twice in the end: after the last episode, and when all is done
    assert [re.findall(r"(\d) are missing", line) for line in told] == [["3"], ["2"], ["1"], [], []]
    assert len(read_triplets(tmp_path / "a.jsonl").triplets) == 4


def test_a_solution_that_cannot_be_found_ends_its_episode_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when ALFWorld's engine fails, or Sokoban's search gives up."""
    found = tiny_worlds.Doors.solution

    def solution(self: tiny_worlds.Doors) -> list[str] | None:
        if next(asked) == 1:
            raise RuntimeError("the search gave up")
        return found(self)

    asked = itertools.count()
    monkeypatch.setattr(tiny_worlds.Doors, "solution", solution)
    words = ["collect", "--config", folder / "world.yaml", "--episodes", 4, "--source", "walkthrough"]
    run(*words, "--out", tmp_path / "a.jsonl")
    about, triplets = read_triplets(tmp_path / "a.jsonl")
    assert about["ends"] == {"solved": 3, "turns": 1}
    assert len(triplets) == 3


def test_trained_calibrated_filtered_and_evaluated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sft = folder / "runs" / "doors" / "version_0"
    run("fit", "--config", folder / "sft.yaml")
    assert re.search(r"^iteration 2/2  loss \d\.\d{3}$", capsys.readouterr().out, re.MULTILINE)
    rows = [*read_metrics(sft / "metrics.csv").values()]
    exact = "eval/world_model/held_out/exact"
    known = [float(row[exact]) for row in rows if exact in row]
    assert known[0] < 0.5
    assert known[-1] == 1.0  # on games that it was never shown
    model = ["--model.model", sft / "model"]

    capsys.readouterr()
    run("calibrate", "--config", folder / "rwml.yaml", *model, "--groups", 6, "--samples", 4, "--pairs", 20)
    told = capsys.readouterr().out
    result = json.loads((folder / "doors.calibration.json").read_text())
    exact = result["distances"]["exact"]
    assert result["start_model"] | {"model": ""} == {
        "model": "",
        "groups": 6,
        "samples": 4,
        "missing": 0.0,
        "own_reward": {"reward": 1.0, "zero_variance": 1.0},
    }
    assert "the configuration's own reward: no signal to start from: 100% of the start model's groups" in told
    assert [row["zero_variance"] for row in exact["start_model"]] == [1.0] * len(THRESHOLDS)
    assert "exact: τ_d = 0.005" in told
    assert (
        "no signal to start from: 100% of the start model's groups have no variance (its mean reward is 1.00)" in told
    )
    assert result["knowable"] == {"words": 1.0, "things": None, "all_things": None}
    # the world's text never changes, whatever the engine says of effects: nothing is told, nothing is found
    assert exact["efficacy"][0] == {"threshold": 0.0, "precision": None, "recall": 0.0}

    out = folder / "filtered.jsonl"
    words = ["filter", "--config", folder / "rwml.yaml", *model, "--samples", 2, "--right", 2, "--keep", 0.3]
    run(*words, "--out", out)
    whole, kept = (read_triplets(path) for path in (folder / "doors.jsonl", out))
    about = kept.provenance
    assert about["filtered"] == whole.provenance
    assert about["dropped"] == len(whole.triplets) - len(kept.triplets)
    assert about["too_easy"] == sum(about["triplets_by_right_samples"])  # all that are trained on
    assert 0.1 < 1 - about["dropped"] / about["too_easy"] < 0.5  # 0.3 are kept
    run(*words, "--out", folder / "again.jsonl")
    assert read_triplets(folder / "again.jsonl").triplets == kept.triplets
    with pytest.raises(SystemExit):
        run(*words[:-1], 0, "--out", out)
    assert "triplets are too easy" in capsys.readouterr().err
    counted_in_parts(words, folder, kept.triplets, capsys)

    before = folder / "runs" / "doors" / "version_1"
    run("fit", "--config", folder / "rwml.yaml", "--data.triplets", out)
    row = read_metrics(before / "metrics.csv")[1]
    assert {"train/reward", "train/zero_variance", "performance/reward_seconds"} <= row.keys()
    assert float(row["train/reward"]) == float(row["train/reward_scaled"])
    capsys.readouterr()
    run("test", "--config", folder / "rwml.yaml", *model)
    told = capsys.readouterr().out
    # 32 of 32 samples, of 8 triplets: from 8/(8 + 1.96²) = 0.676
    assert re.search(r"^predicted: exact +1\.000 \[0\.676, 1\.000\]$", told, re.MULTILINE)
    assert "single-turn" not in told
    run("export", before / "checkpoints" / "last.ckpt", folder / "agent")
    assert "Prediction-v0" in (folder / "agent" / "README.md").read_text()
    assert str(folder) not in (folder / "agent" / "wmact.json").read_text()
    terms = read_terms(folder / "agent")
    trained_on = read_prediction_data(["--config", str(folder / "rwml.yaml"), *map(str, model)])
    assert terms.envs[0].kwargs["told"] == trained_on.env.kwargs["told"]
    assert not terms.tell_rules  # else the instructions of acting would stand around it


def counted_in_parts(
    words: list[Any], folder: Path, kept: tuple[Triplet, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """A filter that is stopped goes on with the next triplets; another --keep counts nothing anew."""
    out, asked = folder / "parts.jsonl", list[Sequence[int]]()

    def stopping(data: Any, levels: Sequence[int], samples: int) -> list[Episode]:
        asked.append(levels)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return predict(data, levels, samples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rwml_filter, "BLOCK", 5)
        patch.setattr(rwml_filter, "predict", stopping)
        with pytest.raises(SystemExit, match="130"):
            run(*words, "--out", out)
        run(*words, "--out", out)
        assert read_triplets(out).triplets == kept
        number = read_triplets(out).provenance["too_easy"]
        assert asked == [range(i, min(i + 5, number)) for i in (0, 5, 10, *range(10, number, 5))]
        del asked[:]
        run(*words[:-1], 1, "--out", out)
        assert not asked
    assert len(read_triplets(out).triplets) > len(kept)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(*words, "--out", out, "--samples", 3)
    assert f"{out}.right.json was counted with other samples: give another --out" in capsys.readouterr().err
    for damaged in ("half a fi", "[1, 2]", '{"of": {}, "right": []}'):
        Path(f"{out}.right.json").write_text(damaged)
        with pytest.raises(SystemExit):
            run(*words, "--out", out)
        assert f"{out}.right.json holds no counts of `filter`: give another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["filter", "--config", "configs/maze.yaml", "--out", "x"],
            "give a configuration whose data is wmact.rwml.Pre",
        ),
        (["filter", "--out", "x", "--right", "9"], "--right 9 --samples 8"),
        (["calibrate"], "give --triplets FILE, or --config"),
        (["calibrate", "--triplets", "none.jsonl"], "triplets='none.jsonl': no such file"),
        (["collect", "--out", "x", "--episodes", "0"], "--episodes 0: at least 1"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


class Counting(gymnasium.Env[str, str]):
    """Says how many steps were taken."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.taken = 0
        return "0", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        return str(self.taken), 0.0, False, False, {}


@pytest.mark.parametrize("steps", [0, 1, 3, 9])
def test_a_short_history_is_what_a_prediction_would_show_of_the_whole(steps: int) -> None:
    whole, short = (Recorder(Counting, "random", "random", kept) for kept in (None, steps))
    for recorder in (whole, short):
        recorder.tasks = {0: Task(0, 0, 1)}
        recorder.reset(options={"level": 0})
        for i in range(8):
            recorder.step(f"action {i}")
    assert len(whole.kept[0][-1].history) == 15  # 0, and seven times an action and its answer
    for all_of_it, part in zip(whole.kept[0], short.kept[0], strict=True):
        assert list(part.history) == prediction.recent(all_of_it.history, steps)


class Fragile(Counting):
    """Fails for good in its third step, as one does whose process has died."""

    spec = EnvSpec("Fragile-v0")
    action_names = ("go",)
    broken = False

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.broken |= self.taken == 2
        if self.broken:
            raise RuntimeError("gone")
        return super().step(action)


def test_collecting_goes_on_when_an_environment_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    data = read_data(["--config", str(ROOT / "configs" / "maze.yaml"), "--data.max_turns", "9"])
    monkeypatch.setattr(type(data.env), "make", lambda _: Fragile())
    played = record(data, "random", episodes=5)
    assert [triplet.next for triplet in played.triplets] == 5 * ["1", "2"]
    assert played.errors == 5 * ["RuntimeError: gone"]


def test_a_solution_that_is_known_from_the_beginning_only_is_followed_to_its_end() -> None:
    pytest.importorskip("tau2")
    config = ["--config", str(ROOT / "configs" / "tau2.yaml"), "--model.model", "nano", "--data.engine", "null"]
    data = read_data([*config, "--data.env.kwargs.domain", "mock"])
    data.env.kwargs["split"] = "base"
    played = record(data, "walkthrough", episodes=3)
    assert played.ends == {"solved": 3}
    assert len(played.triplets) > 3
