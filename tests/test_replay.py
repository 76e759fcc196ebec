"""Episodes played again: the right ones, the right boards, and a page in which a model can do nothing but be read."""

import base64
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from hostile import HOSTILE
from wmact import replay
from wmact.callbacks.episodes import append_episodes, episode_of
from wmact.chat import Chat
from wmact.nano import build_tokenizer
from wmact.rollout import Limits, Task, play
from wmact.types import Action, Episode, Turn
from wmact.world_model import Claim
from wmact_envs import maze
from wmact_envs.maze import MazeEnv
from wmact_envs.taxi import TaxiEnv

# Level 1 of the test split; its goal is G, its start P.
LEVEL = """\
#######
#.....#
#P###.#
#.#..G#
#.#.###
#.#...#
#######"""
REPLIES = (
    "<think> (2,1) right (2,2) no (none) up (1,1) </think> <action> right wall up </action>",
    "<think> (1,1) right (1,2) right (1,3) down (2,3) </think> <action> right right down </action>",
    "<think> (1,2) right (1,3) </think> <action> right right down down up </action>",
)
PATHS = [  # cells before and after every action
    [(2, 1), (2, 1), (2, 1), (1, 1)],
    [(1, 1), (1, 2), (1, 3), (1, 3)],
    [(1, 3), (1, 4), (1, 5), (2, 5), (3, 5), (3, 5)],
]


def played(engine: Any, env: Any, level: int, replies: Sequence[str]) -> Episode:
    """An episode of these replies, as the rollout makes it."""
    left = iter(replies)
    limits = Limits(turn_tokens=64)
    task, chat = Task(level, sample=0, seed=0), Chat(build_tokenizer())
    scripted = engine(lambda request: next(left), context=4096)
    return play([env], [task], scripted, chat, max_turns=len(replies), limits=limits, tell_rules=False)[0]


@pytest.fixture
def episode(scripted: Any) -> Episode:
    return played(scripted, MazeEnv(split="test", layout="cells"), 1, REPLIES)


@pytest.fixture
def run(tmp_path: Path, episode: Episode) -> Path:
    """A run's folder: the episode as one of a test, and in iterations 3 and 4 of training ones that took no turn."""
    spec = {"id": "wmact_envs:wmact/Maze-v0", "kwargs": {"layout": "cells"}}
    test = {"standard": spec | {"kwargs": spec["kwargs"] | {"split": "test"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"env": spec, "test": test}}}))
    log = tmp_path / "episodes.jsonl"
    append_episodes(log, 0, [episode], variant="standard")
    for iteration, reasons in ((3, ["solved", "turns"]), (4, ["turns", "solved", "turns"])):
        for level, reason in enumerate(reasons):
            append_episodes(log, iteration, [Episode("e", level, "", 0, 0, 0, stop_reason=reason)])  # type: ignore[arg-type]
    return tmp_path


def test_an_episode_is_chosen_by_iteration_and_outcome(run: Path) -> None:
    def level(**chosen: Any) -> tuple[int, int]:
        record = replay.choose(run / "episodes.jsonl", **chosen)
        return record["iteration"], record["level"]

    assert level() == (4, 0)
    assert level(number=2) == (4, 2)
    assert level(solved=True) == (4, 1)
    assert level(solved=False, number=1) == (4, 2)
    assert level(iteration=3, solved=False) == (3, 1)
    assert level(iteration=0) == (0, 1)
    for chosen, words in (
        ({"number": 3}, "iteration 4 has 3 episodes, and none of number 3"),
        ({"number": -1}, "none of number -1"),
        ({"iteration": 3, "solved": True, "number": 1}, "iteration 3 has 1 solved episodes, and none of number 1"),
        ({"iteration": 9, "solved": False}, "iteration 9 has 0 unsolved episodes, and none of number 0"),
    ):
        with pytest.raises(ValueError, match=words):
            level(**chosen)


def test_the_newest_run_is_the_one_written_to_last(run: Path) -> None:
    with pytest.raises(ValueError, match=r"no episodes.jsonl below .*nowhere: `make maze` trains"):
        replay.newest_run(run / "nowhere")
    for name, written in (("a/version_9", 30), ("b/seed_0/version_0", 50), ("a/version_10", 40)):
        (run / name).mkdir(parents=True)
        (run / name / "episodes.jsonl").touch()
        os.utime(run / name / "episodes.jsonl", (written, written))
    os.utime(run / "episodes.jsonl", (10, 10))
    assert replay.newest_run(run) == run / "b/seed_0/version_0"


def test_boards_are_those_of_the_episode(run: Path, episode: Episode) -> None:
    record = replay.choose(run / "episodes.jsonl", iteration=0)
    scenes = replay.replay(replay.environment(run, record["variant"]), episode_of(record))
    room = maze.parse(LEVEL)
    shown = [[scene.board, *(shot.board for shot in scene.shots)] for scene in scenes]
    for boards, cells in zip(shown, PATHS, strict=True):
        for board, cell in zip(boards, cells, strict=True):
            assert board.shape == (7 * 32, 7 * 32, 3)
            assert np.array_equal(board, maze.picture(room, cell))
    assert [[(shot.action, shot.kind) for shot in scene.shots] for scene in scenes] == [
        [("right", "blocked"), ("wall", "unreadable"), ("up", "effective")],
        [("right", "effective"), ("right", "effective"), ("down", "blocked")],
        [*[("right", "effective")] * 2, *[("down", "effective")] * 2, ("up", "after_end")],
    ]
    assert scenes[0].thinking == "(2,1) right (2,2) no (none) up (1,1)"
    # A claim is judged where the agent then stood: turn 3 begins at (1,3), and believes it is at (1,2)
    assert [[claim.right for claim in scene.claims if claim.kind != "retracted"] for scene in scenes] == [
        [True, True, True],
        [True, True, True, False],
        [False, True],
    ]


def test_luck_repeats_itself(scripted: Any) -> None:
    class Watched(TaxiEnv):
        seen: ClassVar[list[Any]] = []

        def step(self, action: str) -> Any:
            told = super().step(action)
            self.seen.append(self.render())
            return told

    reply = "<think> </think> <action> south east north west south east north west </action>"
    episode = played(scripted, Watched(rainy=True, render_mode="rgb_array"), 3, [reply] * 3)
    scenes = replay.replay(TaxiEnv(rainy=True, render_mode="rgb_array"), episode)
    boards = [shot.board for scene in scenes for shot in scene.shots]
    assert len({board.tobytes() for board in boards}) > 4
    assert all(np.array_equal(*pair) for pair in zip(boards, Watched.seen, strict=True))


def test_what_is_not_as_in_the_log_is_told(episode: Episode, run: Path) -> None:
    with pytest.raises(ValueError, match=r"^level 1 of MazeEnv is another one than in the log: .*config.yaml"):
        replay.replay(MazeEnv(split="val", layout="cells", render_mode="rgb_array"), episode)
    env = MazeEnv(split="test", layout="cells", render_mode="rgb_array")
    episode.turns[1].actions[2].kind = "effective"
    with pytest.raises(ValueError, match=r"^'down' is blocked here, and was effective in the log: "):
        replay.replay(env, episode)
    with pytest.raises(ValueError, match=r"config.yaml: No such file"):
        replay.environment(run / "none", None)
    assert replay.environment(run, None).split == "train"
    assert replay.environment(run, "standard").split == "test"


# The page


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall('<img src="data:image/png;base64,([^"]+)">', page)
    return [imread(io.BytesIO(base64.b64decode(code)), format="png") for code in found]


def test_the_page_shows_every_board_and_marks_every_claim(episode: Episode) -> None:
    page = replay.page(replay.replay(MazeEnv(split="test", layout="cells", render_mode="rgb_array"), episode))
    room = maze.parse(LEVEL)
    shown, cells = pictures(page), [cell for path in PATHS for cell in path]
    for picture, cell in zip(shown, cells, strict=True):
        assert np.array_equal((picture[..., :3] * 255).round(), maze.picture(room, cell))
    titles = re.findall("<b>(.*?)</b>", page)
    assert titles == [
        "turn 1 of 3: 3 of 3 claims true",
        "turn 2 of 3: 3 of 4 claims true",
        "turn 3 of 3: 1 of 2 claims true",
    ]
    assert (
        '<mark>(1,1)</mark> right <mark>(1,2)</mark> right <mark>(1,3)</mark> down <mark class="false" '
        'title="true would be (none)">(2,3) ✗</mark></div>'
    ) in page
    assert "<mark>(2,1)</mark> right <s>(2,2) no</s> <mark>(none)</mark>" in page
    captions = re.findall('<figure class="(.*?)"><img[^>]*>(.*?)</figure>', page)
    assert captions[:4] == [
        ("before", "<br>before"),
        ("blocked", "right<br>blocked"),
        ("unreadable", "wall<br>unreadable"),
        ("effective", "up<br>effective"),
    ]
    assert captions[-1] == ("after_end", "up<br>after end")


def test_a_claim_of_a_state_that_does_not_exist() -> None:
    told = replay.marked("a (9,9)", [Claim("outcome", 2, 7, ["(9,9)"], None, False)])
    assert told == 'a <mark class="false" title="true would be nothing: there is no such state">(9,9) ✗</mark>'


@pytest.mark.parametrize("text", [*HOSTILE, '(1,1) right (" onmouseover="alert(1))'])
def test_what_a_model_wrote_is_text_and_nothing_else(text: str) -> None:
    env = MazeEnv(split="test", layout="cells", render_mode="rgb_array")
    first, _ = env.reset(options={"level": 1})
    turn = Turn(0, 1, f"<think> (2,1) {text} </think>", "valid", [Action(text, "unreadable")])
    page = replay.page(replay.replay(env, Episode("e", 1, "", 0, 1, 0, turns=[turn], observations=[first])))
    tags = {re.sub('="[^"]*"', "", tag) for tag in re.findall("<[^>]*>?", page.removeprefix(replay.STYLE))}
    ours = {"<div class>", "</div>", "<b>", "</b>", "<mark>", "</mark>", "<mark class title>", "<s>", "</s>"}
    assert tags <= ours | {"<figure class>", "</figure>", "<img src>", "<br>"}
    assert set(page) & {"\x1b", "\x00", "\x07", "\u202e", "\u2028", "\ud800"} == set()
