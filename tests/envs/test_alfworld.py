"""ALFWorld on its own engine: games that can be won, the stock engine's words, and failures that stay one episode's."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from wmact import cli
from wmact.demonstrations import Walkthrough
from wmact.endpoint import Messages
from wmact.play import Person
from wmact.rollout import Limits, Task, play
from wmact_envs import alfworld
from wmact_envs import alfworld_games as games
from wmact_envs.alfworld import ALFWorldEnv
from wmact_envs.alfworld_plan import House, plan, search
from wmact_envs.alfworld_plan import Task as Errand
from wmact_envs.workers import WorkerFailed

INSTALLED = importlib.util.find_spec("fast_downward") is not None
needs_engine = pytest.mark.skipif(not INSTALLED, reason="the extra alfworld is not installed")
HELPERS = Path(__file__).resolve().parent.parent / "helpers"
APPLE = 3
"""A level of the training games: heat an apple and put it on a counter top."""


@pytest.fixture(scope="module")
def env() -> Iterator[ALFWorldEnv]:
    env = ALFWorldEnv(data="composed")
    yield env
    env.close()


def told_by(side: str, *words: str, seed: str = "0") -> dict[str, Any]:
    """What an engine says, without the times."""
    said = json.loads(run(str(HELPERS / "stock_alfworld.py"), side, *words, seed=seed))
    return {name: value for name, value in said.items() if name not in ("start", "again", "step")}


def run(*args: str, seed: str = "0") -> str:
    """What a Python process prints."""
    path = os.pathsep.join([str(HELPERS), *sys.path])
    variables = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *args], env=variables, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Games


@needs_engine
@pytest.mark.parametrize("split", games.SPLITS)
def test_levels_are_the_same_in_every_process(split: str) -> None:
    code = (
        "from wmact_envs import alfworld_games as g\n"
        f"print(*(g.compose({split!r}, n).level_id for n in (0, 5, 2**31 - 1)))"
    )
    here = [games.compose(split, number).level_id for number in (0, 5, 2**31 - 1)]
    assert run("-c", code, seed="1").split() == run("-c", code, seed="2").split() == here
    assert len(set(here)) == 3


@needs_engine
def test_splits_share_neither_rooms_nor_tasks() -> None:
    drawn = {split: [games.compose(split, n).name.split("/")[0] for n in range(240)] for split in games.SPLITS}
    rooms = {split: {int(name.rpartition("-")[2]) for name in names} for split, names in drawn.items()}
    # ALFRED's rooms are 1-30, 201-230, 301-330 and 401-430; the first six of each are the unseen ones
    assert {room % 100 <= 6 for room in rooms["valid_unseen"]} == {True}
    assert {room % 100 > 6 for room in rooms["train"] | rooms["valid_seen"]} == {True}
    assert rooms["train"] & rooms["valid_seen"]
    assert not set(drawn["train"]) & set(drawn["valid_seen"])
    for names in drawn.values():  # 240 levels, six types in turn
        types = [name.partition("-")[0] for name in names]
        assert {kind: types.count(kind) for kind in games.TASK_TYPES} == dict.fromkeys(games.TASK_TYPES, 40)


@needs_engine
@pytest.mark.parametrize("level", range(6))
def test_the_walkthrough_wins_with_its_last_command_and_not_before(env: ALFWorldEnv, level: int) -> None:
    env.split = "valid_unseen"
    _, info = env.reset(options={"level": level})
    env.split = "train"
    assert info["category"] == info["task_type"] == games.TASK_TYPES[level]
    commands = env.solution()
    assert commands
    assert info["optimal_length"] == len(commands)
    while commands:
        assert commands[0] in info["admissible"]
        _, reward, done, truncated, info = env.step(commands[0])
        assert info["valid"]
        assert info["effective"]
        assert not truncated
        commands = commands[1:]
        assert (reward, done, info["success"]) == ((0.0, False, False) if commands else (1.0, True, True))
        assert env.solution() == commands  # from each state what is left, and nothing when it is won


@needs_engine
def test_there_is_a_plan_after_a_detour(env: ALFWorldEnv) -> None:
    _, info = env.reset(options={"level": APPLE})
    for wanted in ("go to", "take", "go to countertop 1"):  # with something in hand that nobody asked for
        for place in [c for c in info["admissible"] if c.startswith(wanted) and "apple" not in c]:
            _, _, _, _, info = env.step(place)
            if wanted != "go to" or any(c.startswith("take") and "apple" not in c for c in info["admissible"]):
                break
    commands = env.solution()
    assert commands
    for command in commands:
        _, _, done, _, info = env.step(command)
        assert info["valid"]
    assert done


@needs_engine
@pytest.mark.parametrize("level", range(6))
def test_who_searches_takes_nothing_unseen_and_wins(level: int) -> None:
    env = ALFWorldEnv(data="composed", search=True)
    told, info = env.reset(options={"level": level})
    done, commands, given = False, [], 0
    while not done:
        commands = commands or env.solution() or []
        command, *commands = commands
        if command.startswith("take"):
            assert command.removeprefix("take ").partition(" from ")[0] in told
        observation, _, done, truncated, step = env.step(command)
        told, given = told + observation, given + 1
        assert step["valid"]
        assert not truncated
    env.close()
    assert step["success"]
    assert given >= info["optimal_length"]


def test_a_search_looks_where_the_thing_can_be_then_elsewhere_then_gives_up() -> None:
    errand = Errand("pick_and_place_simple", "mug", "desk", "")
    facts = [("atlocation", ("agent", "door")), ("objecttype", ("m", "mugtype")), ("inreceptacle", ("m", "bed"))]
    for receptacle, kind in {"shelf2": "shelf", "shelf1": "shelf", "bed": "bed", "desk": "desk"}.items():
        facts += [("receptacletype", (receptacle, f"{kind}type")), ("receptacleatlocation", (receptacle, receptacle))]
    facts += [
        ("cancontain", ("shelftype", "mugtype")),
        ("cancontain", ("desktype", "mugtype")),
        ("openable", ("shelf1",)),
    ]
    names = {"m": "mug 1", "shelf1": "shelf 1", "shelf2": "shelf 2", "bed": "bed 1", "desk": "desk 1"}
    house = House(facts, names, "move {o} to {r}")
    lot = ["shelf1", "bed", "shelf2", "desk"].index
    assert search(errand, house, set(), lot) == ["go to shelf 1", "open shelf 1"]
    assert search(errand, house, {"shelf1"}, lot) == ["go to shelf 2"]
    assert search(errand, house, {"shelf1", "shelf2", "desk"}, lot) == ["go to bed 1"]  # where a mug is not expected
    found = ["go to bed 1", "take mug 1 from bed 1", "go to desk 1", "move mug 1 to desk 1"]
    assert search(errand, house, {"bed"}, lot) == found
    beside = ("receptacleatlocation", ("shelf2", "shelf1"))  # one place for both shelves, where it stands
    there = [beside if fact[1][0] == "shelf2" and fact[0] == beside[0] else fact for fact in facts[1:]]
    shared = House([("atlocation", ("agent", "shelf1")), *there], names, "move {o} to {r}")
    assert search(errand, shared, {"shelf1", "desk"}, lot) == ["examine shelf 2"]
    gone = House([fact for fact in facts if fact[0] != "inreceptacle"], names, "move {o} to {r}")
    assert search(errand, gone, set(names), lot) is None


def test_a_plan_takes_the_shortest_of_its_choices() -> None:
    """Two books; that in the open is fetched in 4 commands, that in the drawer in 5: go, open, take, go, move."""
    facts = [
        ("atlocation", ("agent1", "middle")),
        ("receptacleatlocation", ("shelf1", "a")),
        ("receptacleatlocation", ("drawer1", "b")),
        ("receptacleatlocation", ("desk1", "c")),
        ("openable", ("drawer1",)),
        ("objecttype", ("book1", "booktype")),
        ("objecttype", ("book2", "booktype")),
        ("receptacletype", ("shelf1", "shelftype")),
        ("receptacletype", ("drawer1", "drawertype")),
        ("receptacletype", ("desk1", "desktype")),
        ("cancontain", ("desktype", "booktype")),
        ("inreceptacle", ("book1", "drawer1")),
        ("inreceptacle", ("book2", "shelf1")),
    ]
    names = {name: name for _, arguments in facts for name in arguments}
    errand = Errand("pick_and_place_simple", "book", "desk", "")
    told = plan(errand, House(facts, names, "put {o} in/on {r}"))
    assert told == ["go to shelf1", "take book2 from shelf1", "go to desk1", "put book2 in/on desk1"]
    both = plan(errand._replace(task_type="pick_two_obj_and_place"), House(facts, names, "move {o} to {r}"))
    assert both is not None
    assert len(both) == 9
    assert plan(errand._replace(parent="safe"), House(facts, names, "move {o} to {r}")) is None


# The engine


@needs_engine
@pytest.mark.parametrize("hashes", ["0", "7"])
def test_the_faster_engine_says_what_the_stock_engine_says(hashes: str) -> None:
    """Three games, 12 steps each: feedback, admissible commands, whether a fact changed, of the start and each step.

    `benchmarks/alfworld_engine.py` compares more of them.
    """
    levels = ["train", "12", "1", "2", "5"]
    ours = told_by("ours", *levels, seed=hashes)
    assert ours["told"] == 3 * 13
    assert ours["kinds"] > 5  # it is not one answer all the time
    assert 3 < ours["changed"] < 36
    if hashes == "0":
        assert ours == told_by("stock", *levels)
    else:
        assert ours == told_by("ours", *levels, seed="0")


@needs_engine
def test_the_engine_keeps_nothing_of_earlier_games() -> None:
    code = (
        "from wmact_envs.alfworld_engine import Proposition, _engine, games, mementos\n"
        "for level in (0, 2, 0):\n"
        "    _engine.start(_engine.prepare(('train', level, games.TASK_TYPES)))\n"
        "    print(sum(key[0] is Proposition for key in mementos._memento_cache))\n"
    )
    kept = [int(line) for line in run("-c", code).split()]
    assert kept[2] == kept[0] > 0
    assert kept[1] != kept[0]


# What the agent sees


@needs_engine
def test_what_changes_nothing_is_not_effective(env: ALFWorldEnv) -> None:
    env.reset(options={"level": APPLE})
    for command, valid in {"look": True, "inventory": True, "help": True, "go to the moon": False}.items():
        observation, reward, done, _, info = env.step(command)
        assert (info["valid"], info["effective"], info["success"], reward, done) == (valid, False, False, 0.0, False)
        assert (observation == "Nothing happens.") != valid
        assert info["feedback"] == observation
    _, _, _, _, info = env.step("  go to fridge 1 ")
    assert (info["valid"], info["effective"]) == (True, True)
    _, _, _, _, info = env.step("go to fridge 1")  # there it stands already
    assert (info["valid"], info["effective"], info["feedback"]) == (False, False, "Nothing happens.")
    _, _, _, _, info = env.step("open fridge 1")
    assert info["effective"]
    _, _, _, _, info = env.step("examine fridge 1")
    assert (info["valid"], info["effective"]) == (True, False)


@needs_engine
def test_check_env() -> None:
    env = gymnasium.make("wmact/ALFWorld-v0", disable_env_checker=True)
    try:
        check_env(env.unwrapped)  # asserts
        assert env.reset(options={"level": APPLE})[0] in env.observation_space
    finally:
        env.close()


@needs_engine
def test_any_text_is_an_action(env: ALFWorldEnv) -> None:
    start, _ = env.reset(options={"level": APPLE})
    assert start.endswith("Your task is to: heat some apple and put it in countertop.")
    for text in ("", "\0", "LOOK", "go to fridge 1\ngo to fridge 1", "冷蔵庫", "\ud800", "x" * 2**20, "<|im_end|>"):
        observation, _, _, _, info = env.step(text)
        assert (observation, info["valid"]) == ("Nothing happens.", False)
    with pytest.raises(TypeError, match="an action is a str, not int"):
        env.step(3)  # type: ignore[arg-type]


@needs_engine
def test_the_protocol_of_verl_agent() -> None:
    env: Any = gymnasium.make("wmact_envs:wmact/ALFWorldVerl-v0", disable_env_checker=True, data="composed")
    start, info = env.reset(options={"level": APPLE})
    listed = "\nAdmissible actions: " + "; ".join(info["admissible"])
    assert start == info["feedback"] + listed
    assert "; help; inventory; look" in listed
    told = ["", "You arrive at fridge 1. The fridge 1 is closed."]
    for command in ("go to fridge 1", "walk", "open fridge 1"):
        observation, _, _, truncated, info = env.step(command)
        told.append(info["feedback"])
    assert observation == (
        "Your task is to: heat some apple and put it in countertop.\n"
        "You have taken 3 steps. The last of them:\n"
        "[Observation 2: 'You arrive at fridge 1. The fridge 1 is closed.', Action 2: 'walk']\n"
        "[Observation 3: 'Nothing happens.', Action 3: 'open fridge 1']\n"
        f"The current observation: {info['feedback']}\n"
        f"Admissible actions: {'; '.join(info['admissible'])}"
    )
    for step in range(4, 51):
        assert not truncated
        _, _, done, truncated, info = env.step("look")
        assert not done, step
    assert truncated  # by the 50th
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.unwrapped.step("look")
    env.close()


def test_settings_that_there_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    for settings, told in {
        ("split", "test"): "split='test': use one of train, valid_seen, valid_unseen",
        ("data", "mine"): "data='mine': use one of auto, official, composed",
        ("data", "official"): r"data='official': no games in \$ALFWORLD_DATA/json_2.1.1",
        ("num_games", 0): "num_games=0: at least 1, or null for all",
        ("task_types", ("pick",)): "task_types='pick': use one of pick_and_place_simple, ",
        ("task_types", "pick"): "task_types='pick': give a list of pick_and_place_simple, ",
        ("max_steps", 0): "history=0, max_steps=0: at least 0 and 1",
    }.items():
        with pytest.raises(ValueError, match=f"^{told}"):
            ALFWorldEnv(**dict([settings]))  # type: ignore[arg-type]


def test_a_missing_extra_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as left:
        cli.main(["play", "--env", "wmact/ALFWorld-v0", "--human"])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "alfworld is not installed: pip install -e '.[alfworld]'" in line


# Official games


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the official data is, with composed games for want of official ones; of one, an older grammar."""
    for number, (task, solvable) in enumerate(
        [
            ("", True),  # pick_and_place_simple, as level 0 is
            ("look_at_obj_in_light-Book-None-DeskLamp-301", True),
            ("pick_and_place_simple-AppleSliced-None-Fridge-10", True),
            ("pick_and_place_with_movable_recep-Pen-Mug-Shelf-310", True),
            ("pick_and_place_simple-Mug-None-Shelf-7", False),
        ]
    ):
        game = games.compose("train", number)
        data = game.data | {"solvable": solvable}
        data["grammar"] = data["grammar"].replace('"move {o} to {r}"', '"put {o} in/on {r}"')
        folder = tmp_path / "json_2.1.1" / "train" / (task or game.name.split("/")[0]) / f"trial_T{number}"
        folder.mkdir(parents=True)
        (folder / "game.tw-pddl").write_text(json.dumps(data))
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path))
    return tmp_path


@needs_engine
def test_official_games_are_read_where_there_are_any(official: Path) -> None:
    env = ALFWorldEnv()
    assert (env.data, env.num_levels) == ("official", 2)  # not the sliced, the movable and the unsolvable one
    named = {env.reset(options={"level": level})[1]["game"]: level for level in range(2)}
    assert {name.partition("-")[0] for name in named} == {"pick_and_place_simple", "look_at_obj_in_light"}
    with pytest.raises(IndexError, match="levels count from 0, and there are 2"):
        env.reset(options={"level": 2})
    (simple,) = (level for name, level in named.items() if name.startswith("pick"))
    env.reset(options={"level": simple})
    commands = env.solution()
    assert commands
    assert commands[-1].startswith("put ")  # the older games' word
    for command in commands:
        _, _, done, _, info = env.step(command)
        assert info["valid"]
    assert done
    assert "put X in/on Y" in env.rules
    env.close()
    assert [ALFWorldEnv(num_games=n).num_levels for n in (None, 1, 9)] == [2, 1, 2]
    assert [ALFWorldEnv(data="composed", num_games=n).num_levels for n in (None, 3)] == [None, 3]
    assert ALFWorldEnv(task_types=["look_at_obj_in_light"]).num_levels == 1
    with pytest.raises(ValueError, match="holds no game"):
        ALFWorldEnv(split="valid_seen")


@needs_engine
def test_a_file_that_is_no_game_is_that_episodes_error(official: Path) -> None:
    env = ALFWorldEnv()
    broken = next(iter((official / "json_2.1.1/train").glob("look*/*/game.tw-pddl")))
    broken.write_text('{"solvable": true}')
    wrong = env._files.index(broken)
    with pytest.raises(WorkerFailed, match=r"game\.tw-pddl is no game of ALFWorld: KeyError 'pddl_domain'$"):
        env.reset(options={"level": wrong})
    env.reset(options={"level": 1 - wrong})
    env.close()


# Failures


def kill(env: ALFWorldEnv) -> None:
    signal.pidfd_send_signal(env._worker._process, signal.SIGKILL)


@needs_engine
def test_a_crash_ends_one_episode_only(env: ALFWorldEnv) -> None:
    env.reset(options={"level": APPLE})
    solved = env.solution()
    assert solved
    replies = iter(["go to fridge 1", "open fridge 1", *solved])

    def answer(_: str) -> str:
        reply = next(replies)
        if reply == "open fridge 1":
            kill(env)
        return reply

    messages = Messages()
    tasks = [Task(APPLE, sample, 0) for sample in range(2)]
    failed, second = play([env], tasks, Person(messages, answer), messages, max_turns=20, limits=Limits())
    assert failed.stop_reason == "error"
    assert "the process of wmact_envs.alfworld_engine died" in (failed.error or "")
    assert (second.stop_reason, second.num_effective, second.reward) == ("solved", len(solved), 1.0)
    assert second.category == "pick_heat_then_place_in_recep"


@needs_engine
def test_a_hang_ends_one_episode_only(env: ALFWorldEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    env.reset(options={"level": APPLE})
    signal.pidfd_send_signal(env._worker._process, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(alfworld, "SECONDS", 0.5)
        with pytest.raises(WorkerFailed, match=r"did not answer within 0\.5 s"):
            env.step("look")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("look")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.solution()
    env.reset(options={"level": APPLE})
    assert env.step("look")[4]["valid"]


@needs_engine
def test_the_engine_stays_out_of_this_process(env: ALFWorldEnv) -> None:
    env.reset(options={"level": APPLE})
    assert not {"textworld", "fast_downward", "wmact_envs.alfworld_engine"} & set(sys.modules)


# By hand, and by walkthrough


@needs_engine
def test_play_by_a_person(
    env: ALFWorldEnv, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env.reset(options={"level": APPLE})
    replies = iter(env.solution() or [])
    monkeypatch.setattr("builtins.input", lambda _: next(replies))
    monkeypatch.setattr(Person.__init__, "__defaults__", (lambda _: next(replies),))
    words = ["play", "--env", "wmact/ALFWorld-v0", "--env.kwargs", '{"data": "composed"}', "--level", str(APPLE)]
    cli.main([*words, "--human"])
    told = capsys.readouterr().out
    assert "Your task is to: heat some apple and put it in countertop." in told
    assert "go to microwave 1 → effective" in told
    assert "solved: reward 1" in told


@needs_engine
def test_a_walkthrough_gives_one_command_a_reply(env: ALFWorldEnv) -> None:
    env.reset(options={"level": APPLE})
    first = (env.solution() or [""])[0]
    rng = np.random.default_rng(0)
    player: Any = SimpleNamespace(env=env, info={}, one_action=True)
    said = f"<think>Next: {first}.</think> <action>{first}</action>"
    assert next(Walkthrough().replies(player, rng)) == (said, True)
