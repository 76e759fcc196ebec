"""The maze: its rules by hand, its generator by properties, its splits by exhaustion, its env under fuzzing."""

import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from wmact_envs import frozen, maze, splits
from wmact_envs.maze import HARD, MOVES, STANDARD, MazeEnv, Settings

# Open cells by row: 1: columns 1 2 3 5; 2: 1 3 5; 3: 1 3 4 5; 4: 1 5; 5: 1 to 5 — 4 + 3 + 4 + 2 + 5 = 18.
BY_HAND = """\
#######
#P..#.#
#.#.#.#
#.#...#
#.###.#
#..G..#
#######"""

NEAR_MISSES = ["UP", "Up", " up", "up ", "up\n", "up,down", "ｕｐ", "0", "</action>", "<|im_end|>"]
FUZZ = ["", " ", "\n", "\x00", "\x1b[2J", "\ud800", "👆", "حرك", "x" * 2**20, *NEAR_MISSES]


def level_ids(split: str, settings: Settings, count: int) -> set[str]:
    return {maze.level_id(maze.level(settings, split, number)) for number in range(count)}


def images(drawing: str) -> set[str]:
    """Return the up to eight symmetric drawings, by turning and mirroring text: not by the code under test."""
    rows = drawing.splitlines()
    found = set()
    for _ in range(4):
        rows = ["".join(column) for column in zip(*rows[::-1], strict=True)]  # a quarter turn clockwise
        found |= {"\n".join(rows), "\n".join(row[::-1] for row in rows)}
    return found


def edges(walls: np.ndarray) -> int:
    """Count pairs of neighbouring floor cells."""
    floor = ~walls
    return int((floor[1:] & floor[:-1]).sum() + (floor[:, 1:] & floor[:, :-1]).sum())


# ---------------------------------------------------------------------------------------------------- rules, by hand


def test_distances_by_hand():
    m = maze.parse(BY_HAND)
    assert (m.start, m.goal) == ((1, 1), (5, 3))
    # From the goal along row 5: 1 left 1, 2 left 2, then up column 1: 3 4 5 6. To the right: 1 2, then up column 5:
    # 3 4, and from (3,5): 5 on (2,5), 6 on (1,5); 5 on (3,4), 6 on (3,3), 7 8 up column 3. (1,2) lies next to 6 and 8.
    assert maze.distances(m.walls, m.goal).tolist() == [
        [-1, -1, -1, -1, -1, -1, -1],
        [-1, 6, 7, 8, -1, 6, -1],
        [-1, 5, -1, 7, -1, 5, -1],
        [-1, 4, -1, 6, 5, 4, -1],
        [-1, 3, -1, -1, -1, 3, -1],
        [-1, 2, 1, 0, 1, 2, -1],
        [-1, -1, -1, -1, -1, -1, -1],
    ]
    assert maze.solve(m) == ["down"] * 4 + ["right"] * 2
    assert maze.solve(m, (1, 3)) == ["down"] * 2 + ["right"] * 2 + ["down"] * 2 + ["left"] * 2  # 8 moves


def test_move_by_hand():
    walls = maze.parse(BY_HAND).walls
    assert [maze.move(walls, (1, 1), action) for action in ("up", "down", "left", "right")] == [
        (1, 1),  # the border
        (2, 1),
        (1, 1),  # the border
        (1, 2),
    ]


def test_ties_are_broken_in_the_order_of_actions():
    # A ring of 8 cells: both ways from corner to corner take 4 moves; "down" comes before "right" in MOVES.
    assert maze.solve(maze.parse("#####\n#P..#\n#.#.#\n#..G#\n#####")) == ["down", "down", "right", "right"]


def test_no_way():
    assert maze.solve(maze.parse("#####\n#P#.#\n###.#\n#..G#\n#####")) is None


def test_observations_by_hand():
    m = maze.parse(BY_HAND)
    assert maze.draw(m) == BY_HAND
    assert maze.draw(m, (3, 4)) == "#######\n#...#.#\n#.#.#.#\n#.#.P.#\n#.###.#\n#..G..#\n#######"
    assert maze.draw(m, (5, 3)) == "#######\n#...#.#\n#.#.#.#\n#.#...#\n#.###.#\n#..*..#\n#######"
    open_cells = (
        "(1,1) (1,2) (1,3) (1,5) (2,1) (2,3) (2,5) (3,1) (3,3) (3,4) (3,5) (4,1) (4,5) (5,1) (5,2) (5,3) (5,4) (5,5)"
    )
    walls = "(1,4) (2,2) (2,4) (3,2) (4,2) (4,3) (4,4)"  # the 5 * 5 = 25 inner cells less 18 open ones
    assert maze.list_cells(m, (1, 1)) == f"wall {walls} open {open_cells} goal (5,3) you (1,1)"
    assert maze.list_cells(m, (5, 3)) == f"wall {walls} open {open_cells} goal (5,3) you (5,3)"
    labels = " ".join(
        f"({r},{c}) {'wall' if f'({r},{c})' in walls else 'open'}" for r in range(1, 6) for c in range(1, 6)
    )
    assert maze.label_cells(m, (1, 1)) == f"cells {labels} goal (5,3) you (1,1)"
    assert maze.label_cells(m, (5, 3)) == f"cells {labels} goal (5,3) you (5,3)"


def test_parse_reads_what_draw_writes():
    for number in range(20):
        m = maze.level(HARD, "train", number)
        for position in [tuple(cell) for cell in np.argwhere(~m.walls).tolist()]:  # the goal too: a "*"
            back = maze.parse(maze.draw(m, position))
            assert np.array_equal(back.walls, m.walls)
            assert (back.start, back.goal) == (position, m.goal)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#####\n#P..#\n#.#.\n#..G#\n#####", "row 2 has 4 cells, but there are 5 rows"),
        ("#####\n#P..#\n#.x.#\n#..G#\n#####", "row 2, column 2: unknown symbol 'x'"),
        ("#####\n#P..#\n#.#..\n#..G#\n#####", r"row 2, column 4: '\.' on the border"),
        ("#####\n#P..#\n#.#.#\n#...#\n#####", r"0 cells with the goal \(rows 0 to 4\)"),
        ("#####\n#P.P#\n#.#.#\n#P.G#\n#####", r"3 cells with the player \(row 1, row 1, row 3\)"),
        ("#####\n#P..#\n#.#.#\n#*..#\n#####", r"2 cells with the player \(row 1, row 3\)"),
        ("", "0 cells with the player"),
    ],
)
def test_parse_names_the_row_at_fault(text, message):
    with pytest.raises(ValueError, match=message):
        maze.parse(text)


# ------------------------------------------------------------------------------------------------------- generator


@pytest.mark.parametrize("settings", [STANDARD, HARD, Settings(5, 0.0, 1), Settings(9, 0.5, 6), Settings(21, 0.0, 20)])
def test_generated_mazes(settings):
    m = settings.size // 2
    for number in range(40):
        level = maze.level(settings, "train", number)
        walls, floor = level.walls, ~level.walls
        assert walls.shape == (settings.size, settings.size)
        assert walls.dtype == bool
        assert walls[[0, -1]].all()
        assert walls[:, [0, -1]].all()
        assert floor[1::2, 1::2].all()  # every cell with two odd coordinates is floor,
        assert walls[::2, ::2].all()  # and every one with two even coordinates is wall
        field = maze.distances(walls, level.goal)
        assert ((field >= 0) == floor).all()  # connected
        assert field[level.start] >= settings.min_length
        # m*m odd cells and at least m*m - 1 openings; the floor is a tree exactly when there are no more than these.
        assert floor.sum() >= 2 * m * m - 1
        if settings.loops == 0:
            assert edges(walls) == floor.sum() - 1 == 2 * m * m - 2
        assert maze.draw(level).count("P") == maze.draw(level).count("G") == 1


def test_loops_is_a_probability_of_opening():
    rng = np.random.default_rng(0)
    # 11 x 11: 5 * 5 = 25 odd cells, 2 * 5 * 4 = 40 walls between them, 24 opened by the tree, 16 left. With loops 0.25
    # the mean opened is 16 * 0.25 = 4; one maze deviates by sqrt(16 * 0.25 * 0.75) = 1.73, the mean of 400 by 0.087.
    opened = [(~maze.carve(rng, 11, 0.25)).sum() - 25 - 24 for _ in range(400)]
    assert abs(np.mean(opened) - 4) < 4 * 0.087
    assert (~maze.carve(rng, 11, 1.0)).sum() == 25 + 40


def test_depth_first_search_reaches_all_its_trees():
    # Of the 192 spanning trees of the 3 x 3 grid, depth-first search can make 88, the rarest with probability 1 / 144
    # (by following all of its choices in exact fractions). 4,000 draws miss one with a chance below
    # 88 * (143 / 144)^4000 = 7e-11.
    rng = np.random.default_rng(0)
    assert len({maze.carve(rng, 7, 0.0).tobytes() for _ in range(4000)}) == 88


@pytest.mark.parametrize("settings", [STANDARD, HARD])
def test_lengths_of_the_presets(settings):
    # Half of the Standard levels need no more than about 6 moves, half of the Hard ones no more than about 11.
    lengths = [len(maze.solve(maze.level(settings, "train", number))) for number in range(300)]
    assert min(lengths) == 3
    assert abs(np.median(lengths) - {STANDARD: 6, HARD: 11}[settings]) <= 1


def test_no_global_generator_is_touched():
    before = random.getstate(), np.random.get_state()[1].tolist()
    MazeEnv().reset(seed=0)
    maze.level(HARD, "val", 0)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 8}, "size=8: .* odd .* try 7 or 11"),
        ({"size": 3}, "size=3"),
        ({"size": -7}, "size=-7"),
        ({"size": 7.0}, r"size=7\.0"),
        ({"loops": -0.1}, r"loops=-0\.1: .* between 0"),
        ({"loops": 1.5}, r"loops=1\.5"),
        ({"loops": float("nan")}, "loops=nan"),
        ({"min_length": 0}, "min_length=0"),
        ({"min_length": 17}, "min_length=17: .* 1 to 16 moves; lower"),  # 3 * 3 odd cells in a line: 2 * 8 = 16
        ({"min_length": 9, "loops": 1.0}, "min_length=9: .* 1 to 8 moves"),  # corner to corner of the open grid: 4 + 4
        ({"split": "dev"}, "split='dev': use one of train, val, test"),
        ({"layout": "json"}, "layout='json': use one of grid, cells, labels"),
        ({"render_mode": "human"}, "render_mode='human': use None or one of ansi, rgb_array"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MazeEnv(**arguments)


def test_a_split_without_levels_is_refused(monkeypatch):
    # 5 x 5 without loops is one corridor of 7 cells, up to symmetry: a single level has all 2 * 3 = 6 moves, and a
    # single split owns it.
    monkeypatch.setattr(maze, "TRIES", 200)
    owner = splits.split_of(maze.level_id(maze.parse("#####\n#P#G#\n#.#.#\n#...#\n#####")))
    for split in splits.SPLITS:
        env = MazeEnv(size=5, loops=0, min_length=6, split=split)
        if split == owner:
            assert env.reset(seed=0)[1]["optimal_length"] == 6
        else:
            message = f"split '{split}' with min_length=6 in 200 tries at size=5, loops=0: lower min_length"
            with pytest.raises(ValueError, match=message):
                env.reset(seed=0)


# ---------------------------------------------------------------------------------------------------------- splits


def test_level_id_is_one_for_all_symmetries_and_no_others():
    for number in range(50):
        m = maze.level(HARD, "train", number)
        assert {maze.level_id(maze.parse(image)) for image in images(maze.draw(m))} == {maze.level_id(m)}
    assert len(images(BY_HAND)) == 8
    m = maze.parse(BY_HAND)
    others = [
        m,
        maze.Maze(m.walls, m.goal, m.start),  # the way back
        maze.Maze(m.walls, (1, 2), m.goal),
        maze.Maze(m.walls, m.start, (5, 4)),
        maze.parse(BY_HAND.replace("#.#...#", "#.....#")),
    ]
    assert len({maze.level_id(other) for other in others}) == len(others)


def test_splits_are_disjoint_over_whole_orbits():
    # 5 x 5 is so small that every split shows nearly all of its levels: any leak would be seen. With loops the 4
    # odd cells form a corridor of 7 cells (7 * 6 = 42 ordered pairs, mirrored by 2: 21 levels) or a ring of 8
    # (8 * 7 = 56 pairs; of 8 symmetries a pair keeps the identity, or also the diagonal mirror on which both lie).
    drawings = {split: set() for split in splits.SPLITS}
    for split in splits.SPLITS:
        for number in range(150):
            m = maze.level(Settings(5, 0.5, 1), split, number)
            assert splits.split_of(maze.level_id(m)) == split
            drawings[split] |= images(maze.draw(m))
    train, val, test = drawings.values()
    assert train
    assert val
    assert test
    assert not train & val
    assert not train & test
    assert not val & test
    # Corridors: 4 trees, each with 42 pairs; the ring: 56. In all 4 * 42 + 56 = 224 drawings, and every one is owned.
    assert len(train | val | test) == 224


def test_shares_of_the_splits():
    owners = [splits.split_of(splits.level_id("test", np.array([[i % 256, i // 256]], np.uint8))) for i in range(5000)]
    # 5,000 levels: the standard deviation of a share is at most sqrt(0.7 * 0.3 / 5000) = 0.0065.
    shares = [owners.count(split) / 5000 for split in splits.SPLITS]
    assert np.allclose(shares, [0.7, 0.1, 0.2], atol=4 * 0.0065)


def test_sequences_differ_between_splits_settings_and_numbers():
    names = [level_ids(split, settings, 5) for split in splits.SPLITS for settings in (HARD, HARD._replace(loops=0.2))]
    assert len(set().union(*names)) == 6 * 5


# --------------------------------------------------------------------------------------------------- frozen levels


@pytest.mark.parametrize(("settings", "name"), maze.FROZEN.items())
def test_frozen_levels(settings, name):
    levels = frozen.read(name)
    assert len({level.level_id for level in levels}) == len(levels) == 1000
    for level in levels:
        m = maze.parse("\n".join(level.rows))
        assert m.walls.shape == (settings.size, settings.size)
        assert maze.level_id(m) == level.level_id
        assert splits.split_of(level.level_id) == "test"
        assert maze.distances(m.walls, m.goal)[m.start] == level.optimal_length >= settings.min_length


def test_the_frozen_7x7_levels_have_few_boards():
    """README says so: they are new combinations of board, start and goal, and the boards are those of training."""
    walls = [maze.parse("\n".join(each.rows)).walls for each in frozen.read("maze_standard_test")]
    told = {board.tobytes() for board in walls}
    alike = {min(np.rot90(each, k).tobytes() for each in (board, board.T) for k in range(4)) for board in walls}
    assert (len(walls), len(told), len(alike)) == (1000, 267, 42)


def test_frozen_levels_can_be_made_again(tmp_path):
    command = [sys.executable, "-m", "wmact_envs.freeze", "--folder", str(tmp_path / "new")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    files = ["SHA256SUMS", *(f"{name}.jsonl" for name in maze.FROZEN.values())]
    for file in files:
        assert (tmp_path / "new" / file).read_bytes() == (frozen.FOLDER / file).read_bytes()


def test_changed_levels_are_refused(tmp_path):
    shutil.copytree(frozen.FOLDER, tmp_path / "levels")
    path = tmp_path / "levels" / "maze_standard_test.jsonl"
    assert len(frozen.read("maze_standard_test", tmp_path / "levels")) == 1000
    path.write_bytes(path.read_bytes().replace(b'"optimal_length":9', b'"optimal_length":8', 1))
    frozen.read.cache_clear()
    with pytest.raises(ValueError, match=r"maze_standard_test\.jsonl was changed: its sha256 is [0-9a-f]{64}, but"):
        frozen.read("maze_standard_test", tmp_path / "levels")


def test_freezing_more_levels_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"distinct levels in 220: ask for fewer than 22"):
        list(maze.freeze(Settings(5, 0.0, 1), count=22))  # a corridor of 7 cells: 7 * 6 / 2 = 21 levels in all splits


# ------------------------------------------------------------------------------------------------------ environment


@pytest.mark.parametrize("env_id", ["wmact/Maze-v0", "wmact/MazeHard-v0"])
@pytest.mark.parametrize("layout", maze.LAYOUTS)
@pytest.mark.parametrize("split", splits.SPLITS)
def test_check_env(env_id, layout, split):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(f"wmact_envs:{env_id}", layout=layout, split=split, render_mode="rgb_array")
        check_env(env.unwrapped)
        assert "TimeLimit" not in str(env)
        env.reset(seed=0)
        for action in env.unwrapped.solution():  # through gymnasium's own passive checker too
            step = env.step(action)
    assert step[1:4] == (1.0, True, False)


def test_made_with_arguments():
    env = gymnasium.make("wmact_envs:wmact/Maze-v0", size=9).unwrapped
    assert env.settings == Settings(size=9)
    assert gymnasium.make("wmact_envs:wmact/MazeHard-v0").unwrapped.settings == HARD
    assert env.action_names == ("up", "down", "left", "right")
    assert set(env.example_actions) <= set(env.action_names)
    assert all(action in env.action_space for action in env.action_names)
    assert "9 rows and 9 columns" in env.rules


def test_the_cell_ahead_by_hand(monkeypatch):
    monkeypatch.setattr(maze, "level", lambda *_: maze.parse(BY_HAND))
    env = MazeEnv()
    env.reset(seed=0)
    assert {action: env.ahead(action) for action in MOVES} == {
        "up": "(0,1)",
        "down": "(2,1)",
        "left": "(1,0)",
        "right": "(1,2)",
    }


def test_rules_explain_the_layout_in_use():
    grid, cells, labels = (MazeEnv(layout=layout).rules for layout in ("grid", "cells", "labels"))
    assert all(symbol in grid for symbol in ("# wall", ". floor", "P you", "G the goal", "* you on the goal"))
    assert all(word in cells for word in ("(row,column)", "(0,0)", '"you"', '"goal"', '"open"', '"wall"'))
    assert all(word in labels for word in ("(row,column)", "(0,0)", '"you"', '"goal"', "Beside each cell", "open"))
    assert "#" not in cells + labels
    assert '"open"' not in grid


def test_an_episode_on_a_frozen_level_word_for_word():
    # Level 2 of the shipped Standard test split.
    env = MazeEnv(split="test")
    rows = frozen.read("maze_standard_test")[2].rows
    observation, info = env.reset(seed=3, options={"level": 2})
    assert observation == "\n".join(rows)
    expected = {"level": 2, "level_id": frozen.read("maze_standard_test")[2].level_id}
    expected["optimal_length"] = frozen.read("maze_standard_test")[2].optimal_length
    assert info == expected
    solution = env.solution()
    for action in solution:
        observation, reward, terminated, truncated, info = env.step(action)
        done = action is solution[-1] and env.solution() == []
        assert (reward, terminated, truncated) == (float(done), done, False)
        assert info == expected | {"valid": True, "effective": True, "success": done, "deadlock": False}
    assert "*" in observation


@pytest.mark.parametrize("layout", maze.LAYOUTS)
def test_steps_by_hand(layout, monkeypatch):
    monkeypatch.setattr(maze, "level", lambda *_: maze.parse(BY_HAND))
    env = MazeEnv(layout=layout)
    observation, info = env.reset(seed=0)
    assert info["optimal_length"] == 6
    start = observation
    if layout == "grid":
        assert start == BY_HAND
    else:
        assert start.startswith(
            {
                "cells": "wall (1,4) (2,2) (2,4) (3,2) (4,2) (4,3) (4,4) open (1,1) (1,2) (1,3) (1,5) (2,1) ",
                "labels": "cells (1,1) open (1,2) open (1,3) open (1,4) wall (1,5) open (2,1) open (2,2) wall ",
            }[layout]
        )
        assert start.endswith(" goal (5,3) you (1,1)")
    for action, valid in (("up", True), ("left", True), ("jump", False), ("", False)):  # two walls, two non-actions
        observation, reward, terminated, truncated, info = env.step(action)
        assert (observation, reward, terminated, truncated) == (start, 0.0, False, False)
        assert (info["valid"], info["effective"], info["success"]) == (valid, False, False)
    observation, *_, info = env.step("right")
    assert info["effective"]
    if layout == "grid":
        assert observation.splitlines()[1] == "#.P.#.#"
    else:
        assert observation == start.replace("you (1,1)", "you (1,2)")
    assert env.solution() == ["left"] + ["down"] * 4 + ["right"] * 2
    for action in env.solution():
        observation, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    if layout == "grid":
        assert observation.splitlines()[5] == "#..*..#"
    else:
        assert observation == start.replace("you (1,1)", "you (5,3)")
    assert env.solution() == []
    with pytest.raises(ResetNeeded, match=r"call reset\(\)"):
        env.step("up")


def test_nothing_before_reset():
    env = MazeEnv(render_mode="ansi")
    for call in (lambda: env.step("up"), env.solution, env.render):
        with pytest.raises(ResetNeeded, match=r"call reset\(\)"):
            call()


@pytest.mark.parametrize("action", [None, 0, b"up", ["up"], np.int64(1)])
def test_an_action_is_a_string(action):
    env = MazeEnv()
    env.reset(seed=0)
    with pytest.raises(TypeError, match=f"an action is a str, not {type(action).__name__}"):
        env.step(action)


@pytest.mark.parametrize("layout", maze.LAYOUTS)
def test_ten_thousand_random_and_fuzzed_actions(layout):
    rng = random.Random(0)
    env = MazeEnv(layout=layout)
    observation, _ = env.reset(seed=0)
    finished = 0
    for turn in range(10_000):
        noise = "".join(chr(rng.randrange(sys.maxunicode + 1)) for _ in range(rng.randrange(20)))
        action = rng.choice(list(MOVES)) if turn % 4 else rng.choice([*FUZZ, noise])
        before, position = observation, env.state
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        assert info["valid"] == (action in MOVES)
        assert info["effective"] == (env.state != position) == (observation != before)
        assert info["effective"] <= info["valid"]
        assert (reward, terminated, truncated) == (float(info["success"]), env.state == env.maze.goal, False)
        if terminated:
            finished += 1
            observation, _ = env.reset()
    assert finished > 20


@pytest.mark.parametrize("settings", [STANDARD, HARD])
@pytest.mark.parametrize("split", splits.SPLITS)
def test_every_level_is_solved_by_its_solution(settings, split):
    env = MazeEnv(*settings, split=split)
    for number in range(60):
        _, info = env.reset(options={"level": number})
        solution = env.solution()
        assert len(solution) == info["optimal_length"] >= settings.min_length
        for step, action in enumerate(solution, start=1):
            _, reward, terminated, _, info = env.step(action)
            assert info["effective"]
            assert terminated == info["success"] == (reward == 1.0) == (step == len(solution))


TRAJECTORY = """
import hashlib, random, wmact_envs.maze as m
text = []
for split in ("train", "val", "test"):
    for size in (7, 9):
        env, rng = m.MazeEnv(size=size, split=split), random.Random(0)
        text.append(env.reset(seed=5))
        for _ in range(300):
            text.append(env.step(rng.choice(list(m.MOVES))))
            if text[-1][2]:
                text.append(env.reset())
print(hashlib.sha256(repr(text).encode()).hexdigest())
"""


def test_same_seed_and_actions_same_trajectory_in_every_process():
    digests = {
        subprocess.run(
            [sys.executable, "-c", TRAJECTORY],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("0", "1", "12345")
    }
    assert len(digests) == 1


def test_levels_by_number():
    env = MazeEnv()
    first, info = env.reset(options={"level": 7})
    assert info["level"] == 7
    assert env.num_levels is None
    assert MazeEnv().reset(seed=99, options={"level": np.int64(7)})[0] == first
    assert MazeEnv(split="test", loops=0.2).num_levels is None  # not a preset: generated
    assert MazeEnv(split="test").num_levels == MazeEnv(size=11, split="test").num_levels == 1000
    # A given number leaves the generator alone: the next draw is the same as without it.
    env.reset(seed=1)
    drawn = env.reset()[1]["level"]
    env.reset(seed=1)
    env.reset(options={"level": 3})
    assert env.reset()[1]["level"] == drawn


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"level": 1000}, IndexError, "level 1000 of split 'test': levels count from 0, and there are 1000"),
        ({"level": -1}, IndexError, "level -1"),
        ({"level": "3"}, ValueError, "level='3': a level number is an int"),
        ({"level": 3.0}, ValueError, r"level=3\.0"),
        ({"level": True}, ValueError, "level=True"),
        ({"level": None}, ValueError, "level=None"),
        ({"lvl": 3}, ValueError, "unknown reset option 'lvl': the only option is 'level'"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    env = MazeEnv(split="test")
    before, _ = env.reset(seed=0)
    with pytest.raises(error, match=message):
        env.reset(options=options)
    env.step("jump")  # and the episode goes on
    assert env.observe() == before


def test_render(monkeypatch):
    monkeypatch.setattr(maze, "level", lambda *_: maze.parse(BY_HAND))
    env = MazeEnv(layout="cells", render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == BY_HAND
    env = MazeEnv(render_mode="rgb_array")
    env.reset(seed=0)
    image = env.render()
    assert image.shape == (7 * 32, 7 * 32, 3)
    assert image.dtype == np.uint8
    middles = {cell: tuple(image[32 * cell[0] + 16, 32 * cell[1] + 16]) for cell in ((0, 0), (1, 1), (1, 2), (5, 3))}
    assert len(set(middles.values())) == 4  # wall, player, floor, goal
    env = MazeEnv()
    env.reset(seed=0)
    assert env.render() is None


def test_frozen_file_is_plain_json():
    line = (Path(frozen.FOLDER) / "maze_standard_test.jsonl").read_text().splitlines()[0]
    assert list(json.loads(line)) == ["level_id", "optimal_length", "rows"]


def test_the_package_needs_gymnasium_and_numpy_only():
    code = "import sys, wmact_envs.maze; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"wmact", "torch", "lightning", "transformers"} & set(loaded)
