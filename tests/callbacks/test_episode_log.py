"""episodes.jsonl: complete, strict JSON, inert, and right again after a kill and a resume."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wmact.callbacks import EpisodeLog, EpisodeSamples, read_episodes
from wmact.callbacks.episodes import append_episodes, cut_episodes, episode_of, episode_record, samples
from wmact.loggers import CSVMetrics, TensorBoard, open_run_folder
from wmact.types import Episode, Played


def iterations(path: Path) -> list[int]:
    return [record["iteration"] for record in read_episodes(path)]


def test_a_record_holds_the_whole_episode(make_episode: Callable[..., Episode]) -> None:
    played = make_episode(1, ["effective", "blocked"], reward=1.0, optimal_length=3)
    played.turns[0].reward = 0.5
    assert episode_record(4, played) == {
        "iteration": 4,
        "policy_version": 0,
        "variant": None,
        "env": "env",
        "level": 0,
        "level_id": "id",
        "sample": 0,
        "seed": 0,
        "optimal_length": 3,
        "category": "",
        "baseline_success": None,
        "stop_reason": "turns",
        "reward": 1.0,
        "scaled_reward": 0.5,
        "error": None,
        "observations": ["start"],
        "turns": [
            {
                "start": 1,
                "end": 2,
                "text": "hm",
                "format": "valid",
                "actions": [{"text": "up", "kind": "effective"}, {"text": "up", "kind": "blocked"}],
                "reward": 0.5,
            }
        ],
        "ids": [5, 6],
        "logprobs": [0.0, -0.123457],
    }
    assert not {"ids", "logprobs"} & episode_record(4, played, token_ids=False).keys()


def test_a_record_gives_its_episode_back(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    played = make_episode(2, ["effective", "blocked"], reward=1.0, optimal_length=3, logprobs=[0.0, -0.5, 0.0, -0.25])
    append_episodes(tmp_path / "e.jsonl", 0, [played, make_episode(reward=math.nan, logprobs=[0.0, -math.inf])])
    append_episodes(tmp_path / "e.jsonl", 1, [played], variant="hard", token_ids=False)
    whole, broken, bare = map(episode_of, read_episodes(tmp_path / "e.jsonl"))
    assert whole == played
    assert math.isnan(broken.reward)
    assert math.isnan(broken.logprobs[1])
    assert bare == replace(played, ids=[], logprobs=[])


def test_lines_are_strict_ascii_json(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    text = "\x1b[2J\u2028<script>\ud800 é\n\x00"
    played = make_episode(reward=math.nan, logprobs=[0.0, -math.inf], observations=[text])
    played.turns[0].text = text
    append_episodes(tmp_path / "e.jsonl", 0, [played])
    written = (tmp_path / "e.jsonl").read_bytes()
    assert written.isascii()
    assert written.count(b"\n") == 1
    assert not set(range(32)) - {10} & set(written)
    record = json.loads(written, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["reward"] is None
    assert record["logprobs"] == [0.0, None]
    assert record["observations"] == [text] == [record["turns"][0]["text"]]


@pytest.mark.parametrize("half", [b"", b'{"iteration": 2, "po', b'{"iteration": 2}'])
def test_a_half_written_line_is_passed_over_and_cut(
    tmp_path: Path, make_episode: Callable[..., Episode], half: bytes
) -> None:
    path = tmp_path / "e.jsonl"
    for iteration in (0, 0, 1):
        append_episodes(path, iteration, [make_episode()])
    whole = path.read_bytes()
    path.write_bytes(whole + half)
    assert iterations(path) == [0, 0, 1]
    cut_episodes(path, 5)
    assert path.read_bytes() == whole


def test_cut_from_an_iteration_on(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    path = tmp_path / "e.jsonl"
    for iteration in (0, 2, 2, 3):
        append_episodes(path, iteration, [make_episode()])
    cut_episodes(path, 2)
    assert iterations(path) == [0]
    cut_episodes(path, 0)
    assert path.read_bytes() == b""
    cut_episodes(tmp_path / "none.jsonl", 0)  # nothing to cut


def test_a_broken_line_within_is_named(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text('{"iteration": 0}\noops\n{"iteration": 1}\n')
    with pytest.raises(ValueError, match=r"e\.jsonl, line 2 is no JSON"):
        list(read_episodes(tmp_path / "e.jsonl"))


def test_a_disk_that_refuses_is_named(make_episode: Callable[..., Episode]) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        append_episodes(Path("/dev/full"), 0, [make_episode()])


@pytest.mark.parametrize("save_after_validation", [False, True])
def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(
    fit: Callable[..., Any], tmp_path: Path, make_episode: Callable[..., Episode], save_after_validation: bool
) -> None:
    def run(name: str, last: int, ckpt: Path | None = None) -> Path:
        logger = CSVMetrics(str(tmp_path), name)
        folder = open_run_folder([logger], ckpt)
        assert folder is not None
        plan = lambda i, _: [make_episode(level=i, sample=s) for s in range(2)]  # noqa: E731
        settings = {"loggers": logger, "ckpt_path": ckpt, "checkpoints": folder / "checkpoints"}
        fit([EpisodeLog()], last, plan=plan, save_after_validation=save_after_validation, **settings)
        return folder

    whole = run("whole", 5)
    killed = run("killed", 4)
    log = killed / "episodes.jsonl"
    log.write_bytes(log.read_bytes() + b'{"iteration": 4, ')
    assert run("killed", 5, killed / "checkpoints" / "epoch=1.ckpt") == killed
    assert log.read_bytes() == (whole / "episodes.jsonl").read_bytes()
    assert iterations(log) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_what_is_tested_is_written_with_its_variant(tmp_path: Path, make_episode: Callable[..., Episode]) -> None:
    log, trainer = EpisodeLog(), Trainer(accelerator="cpu", logger=CSVMetrics(str(tmp_path)))
    for variant, count in (("standard", 2), ("hard", 1)):
        played = Played(variant, [make_episode(level=level) for level in range(count)], 5, 5, (1,), {})
        log.on_test_batch_end(trainer, LightningModule(), None, played, 0)
    records = list(read_episodes(tmp_path / "wmact" / "version_0" / "episodes.jsonl"))
    assert [(r["variant"], r["level"]) for r in records] == [("standard", 0), ("standard", 1), ("hard", 0)]
    assert not {"ids", "logprobs"} & records[0].keys()
    assert records[0]["turns"][0]["text"] == "hm"


def test_every_thins_out(fit: Callable[..., Any], tmp_path: Path) -> None:
    fit([EpisodeLog(every=3, token_ids=False)], 5, loggers=CSVMetrics(str(tmp_path)))
    records = list(read_episodes(tmp_path / "wmact" / "version_0" / "episodes.jsonl"))
    assert [record["iteration"] for record in records] == [0, 3]
    assert "ids" not in records[0]


@pytest.mark.parametrize("settings", [{"loggers": False}, {"fast_dev_run": True}])
def test_without_a_run_folder_nothing_is_written(
    fit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    fit([EpisodeLog()], 1, **({"loggers": CSVMetrics("runs")} | settings))
    assert not list(tmp_path.rglob("*.jsonl"))
    assert not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize(("callback", "name"), [(EpisodeLog, "EpisodeLog"), (EpisodeSamples, "EpisodeSamples")])
def test_every_is_checked(callback: Any, name: str) -> None:
    with pytest.raises(ValueError, match="every=0: give an integer of at least 1"):
        callback(every=0)


def test_samples(make_episode: Callable[..., Episode]) -> None:
    solved, failed = make_episode(stop_reason="solved"), make_episode()
    assert samples([failed, solved, failed]) == {"first": failed, "solved": solved, "failed": failed}
    assert samples([solved]) == {"first": solved, "solved": solved}
    assert samples([]) == {}


def test_samples_go_to_tensorboard_as_code(
    fit: Callable[..., Any], tmp_path: Path, make_episode: Callable[..., Episode]
) -> None:
    played = make_episode(observations=["\x1b[2J```\n<script>"])
    board = TensorBoard(str(tmp_path))
    fit([EpisodeSamples(every=2)], 4, plan=lambda *_: [played], loggers=[board])
    events = EventAccumulator(board.log_dir).Reload()
    assert {tag for tag in events.Tags()["tensors"] if tag.startswith("episodes/")} == {
        "episodes/first/text_summary",
        "episodes/failed/text_summary",
    }
    texts = events.Tensors("episodes/first/text_summary")
    assert [text.step for text in texts] == [0, 2]
    shown = texts[0].tensor_proto.string_val[0].decode()
    assert shown.startswith("\n    env level 0")
    assert "      \\x1b[2J```\n      <script>\n" in shown
