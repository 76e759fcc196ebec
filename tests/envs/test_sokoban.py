"""Sokoban: rules and solver against plain text, deadlocks by exhaustion, levels by properties, the env by fuzzing."""

import copy
import functools
import heapq
import json
import os
import random
import re
import subprocess
import sys
import warnings
from itertools import combinations, islice

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from wmact_envs import frozen, sokoban, sokoban_levels, splits
from wmact_envs.grid import MOVES
from wmact_envs.sokoban import HARD_1, HARD_2, ONE_BOX, STANDARD, Settings, SokobanEnv
from wmact_envs.sokoban_levels import RAGEN, XSB, Level, State, draw, level_id, list_cells, move, parse, room_id
from wmact_envs.sokoban_search import (
    board,
    deadlocked,
    least_pushes,
    places,
    pulls,
    reach,
    search_back,
    solve,
    union,
)

PRESETS = [ONE_BOX, STANDARD, HARD_1, HARD_2]
BY_HAND = """\
#######
#__O__#
#_#X#_#
#__PX_#
#_#_#O#
#_____#
#######"""
# The first level of Microban, by David W. Skinner.
MICROBAN_1 = """\
####
# .#
#  ###
#*@  #
#  $ #
#  ###
####"""
FUZZ = [
    "",
    " ",
    "\n",
    "\x00",
    "\ud800",
    "👆",
    "x" * 2**20,
    "UP",
    " up",
    "up\n",
    "up,down",
    "ｕｐ",
    "0",
    "</action>",
    "√",
]


def text_move(drawing: str, action: str) -> str:
    """Make a move on an XSB drawing by replacing symbols: not by the code under test."""
    step = {"up": -1, "down": 1, "left": 0, "right": 0}[action] * (drawing.index("\n") + 1)
    step += {"left": -1, "right": 1}.get(action, 0)
    at = max(drawing.find("@"), drawing.find("+"))
    line = [at, at + step, at + 2 * step]
    before = "".join(drawing[i] if 0 <= i < len(drawing) else "#" for i in line)
    on_target = [symbol in ".*+" for symbol in before]
    if before[1] in " .":
        things = " @" + before[2]
    elif before[1] in "$*" and before[2] in " .":
        things = " @$"
    else:
        return drawing
    cells = list(drawing)
    for i, thing, target in zip(line, things, on_target, strict=True):
        if thing in " @$":
            cells[i] = {" ": " .", "@": "@+", "$": "$*"}[thing][target]
    return "".join(cells)


def text_cost(drawing: str, walking: int) -> int | None:
    """Return the least cost to get rid of every `$`, a push costing 1 and a step without one `walking`: by Dijkstra."""
    best, queue = {drawing: 0}, [(0, drawing)]
    while queue:
        cost, drawing = heapq.heappop(queue)
        if "$" not in drawing:
            return cost
        if cost > best[drawing]:
            continue
        for action in MOVES:
            after = text_move(drawing, action)
            moved = [symbol in "$*" for symbol in after] != [symbol in "$*" for symbol in drawing]
            if cost + (1 if moved else walking) < best.get(after, 10**9):
                best[after] = cost + (1 if moved else walking)
                heapq.heappush(queue, (best[after], after))
    return None


def images(drawing: str) -> set[str]:
    """Return the up to eight symmetric drawings, by turning and mirroring text: not by the code under test."""
    rows = drawing.splitlines()
    found = set()
    for _ in range(4):
        rows = ["".join(column) for column in zip(*rows[::-1], strict=True)]  # a quarter turn clockwise
        found |= {"\n".join(rows), "\n".join(row[::-1] for row in rows)}
    return found


def wander(level: Level, rng: random.Random, steps: int) -> State:
    state = level.start
    for _ in range(steps):
        state = move(level.walls, state, rng.choice(list(MOVES)))
    return state


def every_state(level: Level) -> list[State]:
    """Return all ways to place the boxes and the player on the floor."""
    floor = [(r, c) for r, c in np.argwhere(~level.walls).tolist()]
    return [
        State(player, boxes)
        for boxes in combinations(floor, len(level.targets))
        for player in floor
        if player not in boxes
    ]


def solvable_states(level: Level) -> set[State]:
    """Return all states from which moves lead to a solved one, by following every move of every state backwards."""
    states = every_state(level)
    before: dict[State, list[State]] = {state: [] for state in states}
    for state in states:
        for action in MOVES:
            before[move(level.walls, state, action)].append(state)
    found = {state for state in states if set(state.boxes) == level.targets}
    stack = list(found)
    while stack:
        new = set(before[stack.pop()]) - found
        found |= new
        stack += new
    return found


def small_levels(count: int, settings: Settings) -> list[Level]:
    return [sokoban.level(settings, "train", number).level for number in range(count)]


# ------------------------------------------------------------------------------------------------- rules, by hand


def test_moves_by_hand():
    level = parse(BY_HAND)
    assert (level.targets, level.start) == ({(1, 3), (4, 5)}, State((3, 3), ((2, 3), (3, 4))))
    walls, start = level.walls, level.start
    assert move(walls, start, "up") == State((2, 3), ((1, 3), (3, 4)))  # pushes the box onto the target
    assert move(walls, start, "right") == State((3, 4), ((2, 3), (3, 5)))
    assert move(walls, start, "down") == State((4, 3), start.boxes)  # away from a box: no pull
    assert move(walls, State((4, 3), start.boxes), "left") == State((4, 3), start.boxes)  # a wall
    two = State((3, 2), ((3, 3), (3, 4)))
    assert move(walls, two, "right") is two  # a box behind the box
    against = State((3, 4), ((2, 3), (3, 5)))
    assert move(walls, against, "right") is against  # a wall behind the box
    assert move(walls, State((1, 2), ((1, 3), (3, 4))), "right") == State((1, 3), ((1, 4), (3, 4)))  # off its target


def test_boxes_stay_in_reading_order():
    level = parse("######\n#_PX_#\n#_X__#\n#OO__#\n######")
    state = move(level.walls, level.start, "down")
    assert state == State((2, 2), ((1, 3), (3, 2)))
    walls = parse("######\n#__X_#\n#__P_#\n#_X__#\n#OO__#\n######").walls
    assert move(walls, State((2, 2), ((2, 3), (2, 4))), "up") == State((1, 2), ((2, 3), (2, 4)))
    assert move(walls, State((1, 3), ((2, 3), (3, 2))), "down") == State(
        (2, 3), ((3, 2), (3, 3))
    )  # the first is now last


@hypothesis_settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(PRESETS), st.lists(st.sampled_from(sorted(MOVES)), max_size=80))
def test_moves_are_those_of_plain_text(number, settings, actions):
    level = sokoban.level(settings, "train", number % 50).level
    state, drawing = level.start, draw(level, symbols=XSB)
    for action in actions:
        after = move(level.walls, state, action)
        drawing = text_move(drawing, action)
        assert draw(level, after, XSB) == drawing
        assert drawing.count("$") + drawing.count("*") == settings.boxes  # none lost, none on another
        assert (after == state) == (after.player == state.player)
        gone, come = set(state.boxes) - set(after.boxes), set(after.boxes) - set(state.boxes)
        assert len(gone) == len(come) <= 1
        if gone:  # a push: the player is where the box was, the box one further in the same direction
            down, right = MOVES[action]
            assert gone == {after.player}
            assert come == {(after.player[0] + down, after.player[1] + right)}
            assert state.player == (after.player[0] - down, after.player[1] - right)
        state = after


# ----------------------------------------------------------------------------------------------------------- text


def test_observations_by_hand():
    level = parse(BY_HAND)
    assert draw(level) == BY_HAND
    assert draw(level, symbols=XSB) == BY_HAND.translate(str.maketrans("_OXP", " .$@"))
    state = State((4, 5), ((1, 3), (3, 5)))
    assert draw(level, state) == "#######\n#__√__#\n#_#_#_#\n#____X#\n#_#_#S#\n#_____#\n#######"
    assert draw(level, state, XSB) == "#######\n#  *  #\n# # # #\n#    $#\n# # #+#\n#     #\n#######"
    walls = "(2,2) (2,4) (4,2) (4,4)"
    cells = [f"({r},{c})" for r in range(1, 6) for c in range(1, 6) if f"({r},{c})" not in walls]
    assert len(cells) == 5 * 5 - 4
    told = f"wall {walls} open {' '.join(cells)} target (1,3) (4,5) box"
    assert list_cells(level, level.start) == f"{told} (2,3) (3,4) you (3,3)"
    assert list_cells(level, state) == f"{told} (1,3) (3,5) you (4,5)"
    corridor = parse("#####\n#PXO#\n#####")  # the example of the docstring: no inner walls
    assert list_cells(corridor, corridor.start) == "wall open (1,1) (1,2) (1,3) target (1,3) box (1,2) you (1,1)"


@hypothesis_settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(0, 49), st.sampled_from([*PRESETS, Settings(6, 9, 3, 1)]), st.integers(0, 999), st.data())
def test_parse_reads_what_draw_writes(number, settings, seed, data):
    level = sokoban.level(settings, "val", number).level
    state = wander(level, random.Random(seed), 40)
    symbols = data.draw(st.sampled_from([RAGEN, XSB]))
    drawing = draw(level, state, symbols)
    back = parse(drawing)
    assert np.array_equal(back.walls, level.walls)
    assert (back.targets, back.start) == (level.targets, state)
    assert draw(back, symbols=symbols) == drawing
    # Another hand writes other blanks, indents, and leaves out what is not needed at the ends of rows.
    blank = data.draw(st.sampled_from(" -_"))
    rows = drawing.replace(symbols[1], blank).splitlines()
    indent = blank * data.draw(st.integers(0, 3))
    rows = [indent + row + blank * data.draw(st.integers(0, 2)) for row in rows]
    again = parse("\n".join([blank * data.draw(st.integers(0, 12)), *rows]))
    assert np.array_equal(again.walls, level.walls)
    assert (again.targets, again.start) == (level.targets, state)


def test_every_symbol_is_read():
    for symbols in (RAGEN, XSB):
        drawing = "#########\n#_PO_X√X#\n#__O____#\n#########".translate(str.maketrans(RAGEN, symbols))
        level = parse(drawing)
        assert level.targets == {(1, 3), (1, 6), (2, 3)}
        assert level.start == State((1, 2), ((1, 5), (1, 6), (1, 7)))
        on_target = parse(drawing.replace(symbols[5] + symbols[2], symbols[1] + symbols[6]))
        assert on_target.start.player == (1, 3)
        assert on_target.targets == level.targets


def test_ragged_levels_and_what_cannot_be_reached():
    level = parse(MICROBAN_1)
    # Outside, and inside the walls only what the player can reach: 2 + 2 + 4 + 4 + 2 cells.
    assert draw(level) == "######\n#_O###\n#__###\n#√P__#\n#__X_#\n#__###\n######"
    # A closed chamber with a box on its target is as good as a wall. The wall below it goes: nothing is there.
    sealed = parse("  #####\n  #@$.#\n###   #\n#*#####\n###\n")
    assert draw(sealed, symbols=XSB) == "#######\n###@$.#\n###   #\n#######\n#######"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("#####\n#PXO#\n#_x_#\n#####", r"^line 3, column 3: unknown symbol 'x'; a cell is one of # _ O X √ P S$"),
        ("#####\n#@$.#\n# O #\n#####", r"^line 3, column 3: unknown symbol 'O'; a cell is one of #   \. \$ \* @ \+$"),
        ("#####\n#@\t.#\n#####", r"^line 2, column 3: unknown symbol '\\t'"),
        ("#####\n#_XO#\n#####", "^lines 1 to 3: 0 cells with the player: there must be exactly one"),
        ("#####\n#PXO#\n#P_S#\n#####", "^lines 1 to 4: 3 cells with the player"),
        ("#####\n#PXO#\n#__\n#####", "^line 3, column 5: the player can walk out here; close the wall"),
        ("# ###\n#PXO#\n#####", "^line 1, column 2: the player can walk out here"),
        ("PXO", "^line 1, column 1: the player can walk out here"),
        ("#####\n#PX_#\n#####", "^lines 1 to 3: boxes=1, targets=0: there must be as many, at least one"),
        ("#####\n#P__#\n#####", "^lines 1 to 3: boxes=0, targets=0"),
        ("######\n#PX√√#\n######", "^lines 1 to 3: boxes=3, targets=2"),
        ("#######\n#PXO#X#\n#######", "^line 2, column 6: a box that the player cannot reach"),
        ("#######\n#O#PXX#\n#######", "^line 2, column 2: a target that the player cannot reach"),
        ("", "^lines 1 to 1: 0 cells with the player"),
    ],
)
def test_parse_names_the_line_at_fault(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_parse_counts_lines_from_where_the_level_begins():
    with pytest.raises(ValueError, match=r"^line 12, column 1: the player can walk out here"):
        parse("####\nPXO#\n####", line=11)
    with pytest.raises(ValueError, match=r"^lines 11 to 13: 0 cells with the player"):
        parse("####\n#XO#\n####", line=11)


# ---------------------------------------------------------------------------------------------------- level files

FILE = f"""\
; Two levels by hand and the first of Microban
Title: corridor
#####
#@$.#
#####

{MICROBAN_1}
Author: David W. Skinner

----

  ######
  #P_XO#
  ######
end
"""


@pytest.mark.parametrize("encode", [str.encode, lambda s: b"\xef\xbb\xbf" + s.replace("\n", "\r\n").encode()])
def test_level_files(tmp_path, encode):
    path = tmp_path / "three.txt"
    path.write_bytes(encode("#####\n#@$.#\n#####"))  # nothing but a level, and perhaps a byte order mark
    assert [entry.where for entry in sokoban_levels.read(str(path))] == [f"{path}, lines 1 to 3"]
    path.write_bytes(encode(FILE) + b"; a title in Latin-1: \xe9\n")
    levels = sokoban_levels.read(str(path))
    assert [entry.where for entry in levels] == [
        f"{path}, lines {lines}" for lines in ("3 to 5", "7 to 13", "18 to 20")
    ]
    assert draw(levels[0].level) == "#####\n#PXO#\n#####"
    assert draw(levels[1].level) == draw(parse(MICROBAN_1))
    assert draw(levels[2].level) == "######\n#P_XO#\n######"
    for split in splits.SPLITS:
        env = gymnasium.make("wmact_envs:wmact/SokobanHard1-v0", levels=str(path), split=split).unwrapped
        assert env.num_levels == 3
        lengths = []
        for number in range(3):
            observation, info = env.reset(options={"level": number})
            assert observation == draw(levels[number].level)
            assert observation in env.observation_space
            assert info["level_id"] == level_id(levels[number].level)
            lengths.append(info["optimal_length"])
        assert lengths == [1, 33, 2]  # Microban's first level is known to take 33 moves
    with pytest.raises(IndexError, match=r"level 3 .* there are 3"):
        env.reset(options={"level": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layout in ("grid", "cells"):
            env = gymnasium.make("wmact/Sokoban-v0", levels=str(path), layout=layout, render_mode="rgb_array")
            check_env(env.unwrapped)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("; nothing\n", " holds no level: a level is rows of"),
        ("", " holds no level"),
        (FILE.replace("#@$.#", "#@$x#"), r", line 4, column 4: unknown symbol 'x'"),
        (FILE.replace("#P_XO#", "#P_XX#"), ", lines 18 to 20: boxes=2, targets=0"),
        (FILE.replace("#@$.#", " @$.#"), ", line 4, column 1: the player can walk out here"),  # a row of symbols only
        (FILE.replace("#@$.#", "#@$.# # a corridor"), ", line 4, column 9: unknown symbol 'a'"),
    ],
)
def test_faulty_files_are_refused_at_once(tmp_path, text, message):
    path = tmp_path / "levels.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="^" + re.escape(str(path)) + message):
        SokobanEnv(levels=str(path))


def test_levels_that_cannot_be_solved_are_refused_when_played(tmp_path, monkeypatch):
    path = tmp_path / "levels.txt"
    path.write_text("#####\n#@$.#\n#####\n\n; a corner\n#####\n#@ $#\n#.  #\n#####\n\n#####\n#@ *#\n#####\n")
    env = SokobanEnv(levels=str(path))
    where = "^" + re.escape(str(path))
    with pytest.raises(ValueError, match=f"{where}, lines 6 to 9: the level cannot be solved$"):
        env.reset(options={"level": 1})
    with pytest.raises(ValueError, match=f"{where}, lines 11 to 13: the level is solved already$"):
        env.reset(options={"level": 2})
    monkeypatch.setattr(sokoban, "solve", functools.partial(solve, limit=0))
    with pytest.raises(
        ValueError, match=f"{where}, lines 1 to 3: no solution found among 0 states .* take the level out"
    ):
        env.reset(options={"level": 0})
    monkeypatch.undo()
    assert env.reset(options={"level": 0})[1]["optimal_length"] == 1


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="no/such/file"):
        SokobanEnv(levels="no/such/file")


# --------------------------------------------------------------------------------------------------------- search


def test_solutions_by_hand():
    level = parse(BY_HAND)
    # The box on (3,4) goes right, then down, from (2,5). Only row 1 leads there, so the other box goes up last.
    there = ["right"] + ["left"] * 3 + ["up"] * 2 + ["right"] * 4 + ["down"] * 2  # 1 + 3 + 2 + 4 + 2 = 12
    assert solve(level) == there + ["left"] * 2 + ["up"]  # 15 moves,
    assert least_pushes(level) == 3  # of which the first, the last of `there` and the last are pushes
    pushed = move(level.walls, level.start, "right")
    assert solve(level, pushed) == solve(level)[1:]
    assert least_pushes(level, pushed) == 2
    microban = parse(MICROBAN_1)
    assert len(solve(microban)) == 33  # the known best
    assert least_pushes(microban) == 8
    assert solve(parse("#####\n#P_√#\n#####")) == []
    assert least_pushes(parse("#####\n#P_√#\n#####")) == 0


def test_ties_are_broken_alike_in_every_process():
    code = "from wmact_envs.sokoban import *; print([solve(level(HARD_1, 'train', n).level) for n in range(20)])"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(runs) == 1


@pytest.mark.parametrize(("settings", "count"), [(STANDARD, 40), (HARD_2, 10), (HARD_1, 5), (Settings(6, 6, 2, 1), 40)])
def test_solutions_are_shortest(settings, count):
    rng = random.Random(0)
    for level in small_levels(count, settings):
        for state in (level.start, wander(level, rng, 8)):
            drawing = draw(level, state, XSB)
            least, solution = text_cost(drawing, walking=1), solve(level, state)
            assert least_pushes(level, state) == text_cost(drawing, walking=0)
            if solution is None:
                assert least is None
                assert least_pushes(level, state) is None
                continue
            assert len(solution) == least
            for action in solution:
                drawing = text_move(drawing, action)
            assert "$" not in drawing


def test_a_search_gives_up_at_its_limit():
    level = parse(MICROBAN_1)
    with pytest.raises(RuntimeError, match="no solution found among 10 states searched, and there may be none"):
        solve(level, limit=10)
    with pytest.raises(RuntimeError, match="1 states"):
        least_pushes(level, limit=1)
    assert solve(parse("#####\n#PXO#\n#####"), limit=1) == ["right"]


@pytest.mark.parametrize("settings", [STANDARD, HARD_2, Settings(6, 9, 3, 1)])
def test_a_push_undoes_a_pull(settings):
    done = 0
    for level in small_levels(30, settings):
        b = board(level)
        actions = {step: action for action, step in b.steps.items()}
        for boxes, region, _ in search_back(b, 200):
            for pulled, player in pulls(b, boxes, region):
                at, end = State(places(player, b.width)[0], places(pulled, b.width)), places(boxes, b.width)
                back = [move(level.walls, at, action) for action in actions.values()]
                # One of the four moves pushes that box back where it was, and leaves the player where they pulled from.
                (undone,) = [state for state in back if state.boxes == end]
                assert union([undone.player], b.width) & region
                done += 1
    assert done > 1000


def test_the_search_back_counts_pushes():
    for level in small_levels(12, STANDARD):
        b = board(level)
        found = search_back(b, 10**6)
        assert [far for *_, far in found] == sorted(far for *_, far in found)
        assert search_back(b, 7) == found[:7]
        for boxes, region, far in found[:: max(1, len(found) // 12)]:
            for player in places(region, b.width):
                assert least_pushes(level, State(player, places(boxes, b.width))) == far
        # All of them: as many (boxes, region) as the states solvable by following every move, sorted into regions.
        states = {
            (state.boxes, reach(b, union(state.boxes, b.width), union([state.player], b.width)))
            for state in solvable_states(level)
        }
        assert len(found) == len(states)


# ------------------------------------------------------------------------------------------------------ deadlocks


@pytest.mark.parametrize(
    ("drawing", "expected"),
    [
        ("#####\n#X__#\n#_PO#\n#####", True),  # in a corner
        ("#####\n#P__#\n#_O_#\n#_X_#\n#####", True),  # along a wall without a target
        ("#####\n#_P_#\n#___#\n#OX_#\n#####", False),  # along a wall with one
        ("######\n#____#\n#_XX_#\n#_XXP#\n#OOOO#\n######", True),  # four in a square
        ("######\n#P___#\n#_XX_#\n#____#\n#OO__#\n######", False),  # two side by side can still move
        ("######\n#_##_#\n#PXX_#\n#____#\n#_OO_#\n######", True),  # two side by side below a wall
        ("######\n#_##_#\n#P√√_#\n#____#\n######", False),  # they hold each other, but on targets
        ("######\n#_##_#\n#P√X_#\n#____#\n#_O__#\n######", True),  # and one of them off its target
        # The left box can be pushed up or down only, into a corner either way; so it holds the right one.
        ("######\n##P#_#\n##√X_#\n##__O#\n######", True),
        # A zigzag of which no two make a square: each is held by a wall in one direction, by another in the other.
        ("#######\n#P_#__#\n#_#X__#\n#__X#_#\n#OO#__#\n#_____#\n#######", True),
    ],
)
def test_deadlocks_by_hand(drawing, expected):
    level = parse(drawing)
    assert deadlocked(level, level.start) is expected
    assert (solve(level) is None) is expected
    for image in images(drawing):
        other = parse(image)
        assert deadlocked(other, other.start) is expected


def test_dead_cells_by_hand():
    b = board(parse("######\n#P___#\n#_X__#\n#O___#\n######"))
    # Row 1 and column 4 lie along walls without a target, and nothing is pushed out of the corners (1,1) and (3,4).
    assert places(b.live, 6) == ((2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 3))
    # Cell by cell: rows and columns from the target, and its own row is pushed along to it.
    assert {places(cell, 6)[0]: pushes for cell, pushes in b.away.items()} == {
        (2, 1): 1, (2, 2): 2, (2, 3): 3, (3, 1): 0, (3, 2): 1, (3, 3): 2
    }  # fmt: skip


@pytest.mark.parametrize("settings", [Settings(5, 6, 2, 1), Settings(6, 6, 2, 1), Settings(6, 6, 3, 1)])
def test_no_solvable_state_is_called_a_deadlock(settings):
    flagged = unsolvable = 0
    for level in small_levels(15, settings):
        solvable = solvable_states(level)
        for state in every_state(level):
            if deadlocked(level, state):
                flagged += 1
                assert state not in solvable
        unsolvable += len(every_state(level)) - len(solvable)
        for state in every_state(level)[::50]:
            assert (solve(level, state) is None) == (state not in solvable)
    assert flagged > 0.8 * unsolvable  # and it is not for want of flags: four in five, at the least, are seen


def test_a_box_on_a_dead_cell_is_lost():
    dead = 0
    for level in small_levels(20, Settings(7, 7, 1, 1)):
        b, solvable = board(level), solvable_states(level)
        for box in places(b.floor & ~b.live, b.width):
            dead += 1
            assert not any(state.boxes == (box,) for state in solvable)
    assert dead > 100


# ------------------------------------------------------------------------------------------------------ generator


@pytest.mark.parametrize(
    "settings", [*PRESETS, Settings(10, 10, 3), Settings(3, 6, 1, 2), Settings(6, 9, 2, 8), Settings(12, 5, 1)]
)
def test_generated_levels(settings):
    for number in range(30):
        name, length, level = sokoban.level(settings, "train", number)
        walls, (player, boxes) = level.walls, level.start
        assert walls.shape == (settings.height, settings.width)
        assert walls.dtype == bool
        assert walls[[0, -1]].all()
        assert walls[:, [0, -1]].all()
        b = board(level)
        assert reach(b, 0, union([player], b.width)) == b.floor  # connected
        assert len(boxes) == len(set(boxes)) == len(level.targets) == settings.boxes
        assert len({player, *boxes, *level.targets} - level.targets) == settings.boxes + (player not in level.targets)
        assert not any(walls[cell] for cell in (player, *boxes, *level.targets))
        assert boxes == tuple(sorted(boxes))
        assert name == level_id(level)
        assert length == len(solve(level))
        assert least_pushes(level) >= settings.min_pushes
        assert not deadlocked(level, level.start)


def test_levels_take_no_more_pushes_than_asked_for():
    pushes = [least_pushes(sokoban.level(Settings(min_pushes=2, max_pushes=4), "train", n).level) for n in range(40)]
    assert set(pushes) == {2, 3, 4}


def test_a_level_that_takes_too_long_to_solve_is_redrawn():
    settings = Settings(7, 7, 2, 1, search_limit=6)
    lengths = []
    for number in range(30):
        _, length, level = sokoban.level(settings, "train", number)
        assert length == len(solve(level, limit=6))  # which raises if it takes more
        lengths.append(length)
    assert max(lengths) > 3


@pytest.mark.parametrize(("settings", "moves"), [(ONE_BOX, 7), (STANDARD, 10), (HARD_1, 15), (HARD_2, 13)])
def test_lengths_of_the_presets(settings, moves):
    # Half of the levels need no more than about these moves; min_pushes are the least that is asked for.
    lengths = [sokoban.level(settings, "train", number).optimal_length for number in range(300)]
    assert min(lengths) >= settings.min_pushes
    assert abs(np.median(lengths) - moves) <= 1
    # The search back from the targets is never cut short: no start is out of its reach.
    for number in range(100):
        assert len(search_back(board(sokoban.level(settings, "train", number).level), 10**6)) < settings.search_limit


def test_rooms_reach_every_corner():
    rng = np.random.default_rng(0)
    opened = sum((~sokoban.carve(rng, 6, 8)).astype(int) for _ in range(500))
    assert (opened[1:-1, 1:-1] > 0).all()
    assert opened.sum() == opened[1:-1, 1:-1].sum()


def test_no_global_generator_is_touched():
    before = random.getstate(), np.random.get_state()[1].tolist()
    SokobanEnv(height=6).reset(seed=0)
    sokoban.generate(np.random.default_rng(0), HARD_1, "val")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 2}, "height=2: an integer of at least 3; 7 by default"),
        ({"width": 7.0}, r"width=7\.0: an integer"),
        ({"height": True}, "height=True"),
        ({"boxes": 0}, "boxes=0: an integer of at least 1; 2 by default"),
        ({"boxes": "2"}, "boxes='2'"),
        ({"min_pushes": 0}, "min_pushes=0"),
        ({"search_limit": 1}, "search_limit=1: an integer of at least 2"),
        # 5 * 5 = 25 cells hold 12 boxes, 12 targets and the player: 13 boxes need 27.
        (
            {"boxes": 13},
            "boxes=13: .* need 27 cells, but 7 x 7 has 25 inside its border: at most 12 boxes, or a larger",
        ),
        ({"height": 3, "width": 4, "boxes": 1}, "boxes=1: .* need 3 cells, but 3 x 4 has 2 .* at most 0 boxes"),
        ({"min_pushes": 50, "search_limit": 50}, "min_pushes=50: .* search_limit=50 nearest: lower .* or raise"),
        ({"max_pushes": 2}, "max_pushes=2: levels take min_pushes=3 at least, .* raise max_pushes, or lower"),
        ({"max_pushes": 1, "min_pushes": 1}, "max_pushes=1: .* one for each of boxes=2"),
        ({"max_pushes": 4.0}, r"max_pushes=4\.0: an integer of at least 1; None by default"),
        # 12 boxes fill the room, so that nothing can be pushed; and no box takes 60 pushes in 9 cells.
        ({"boxes": 12}, "no level of split 'train' with boxes=12 and min_pushes=3 found at 7 x 7: lower boxes or"),
        ({"height": 5, "width": 5, "boxes": 1, "min_pushes": 60}, "no level .* min_pushes=60 found at 5 x 5"),
        ({"split": "dev"}, "split='dev': use one of train, val, test"),
        ({"split": "dev", "boxes": 1}, "split='dev': use one of train, val, test"),
        ({"layout": "json"}, "layout='json': use one of grid, cells"),
        ({"render_mode": "human"}, "render_mode='human': use None or one of ansi, rgb_array"),
    ],
)
def test_impossible_settings_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        SokobanEnv(**arguments)


# --------------------------------------------------------------------------------------------------------- splits


def test_ids_are_one_for_all_symmetries_and_no_others():
    for settings in (HARD_2, Settings(6, 9, 2, 1)):
        for level in small_levels(30, settings):
            copies = [parse(image) for image in images(draw(level))]
            assert {level_id(copy) for copy in copies} == {level_id(level)}
            assert {room_id(copy.walls, copy.targets) for copy in copies} == {room_id(level.walls, level.targets)}
    level = parse(BY_HAND)
    assert len(images(BY_HAND)) == 8
    others = [
        level,
        Level(level.walls, level.targets, State((3, 2), level.start.boxes)),
        Level(level.walls, level.targets, State((3, 3), ((1, 2), (3, 4)))),
        Level(level.walls, frozenset({(1, 3), (5, 5)}), level.start),
        parse(BY_HAND.replace("#_#X#_#", "#_#X__#")),
    ]
    assert len({level_id(other) for other in others}) == len(others)
    assert len({room_id(other.walls, other.targets) for other in others}) == 3  # the first three share a room


def test_a_rectangle_is_named_with_its_shape():
    ones = [np.ones(shape, np.uint8) for shape in ((2, 6), (6, 2), (3, 4), (4, 3))]
    names = [splits.level_id("sokoban", grid) for grid in ones]
    assert names[0] == names[1] != names[2] == names[3]


def test_splits_are_disjoint_over_whole_orbits():
    # 5 x 5 with one box is so small that the splits show much of what there is: any leak would be seen. Rooms are
    # compared as drawings without boxes and player, in all their images.
    rooms = {split: set() for split in splits.SPLITS}
    levels = {split: set() for split in splits.SPLITS}
    for split in splits.SPLITS:
        for number in range(500):
            name, _, level = sokoban.level(Settings(5, 5, 1, 1), split, number)
            assert splits.split_of(room_id(level.walls, level.targets)) == split
            empty = draw(level).translate(str.maketrans("XPS", "__O"))
            assert set(empty) == set("#_O\n")
            rooms[split] |= images(empty)
            levels[split].add(name)
    for found in (rooms, levels):
        train, val, test = found.values()
        assert min(map(len, found.values())) >= 10
        assert not train & val
        assert not train & test
        assert not val & test


def test_sequences_differ_between_splits_settings_and_numbers():
    some = [HARD_1, HARD_1._replace(min_pushes=4), HARD_1._replace(search_limit=3999)]
    names = {
        sokoban.level(settings, split, number).level_id
        for split in splits.SPLITS
        for settings in some
        for number in range(5)
    }
    assert len(names) == 3 * 3 * 5


# --------------------------------------------------------------------------------------------------- frozen levels


@pytest.mark.parametrize(("settings", "name"), sokoban.FROZEN.items())
def test_frozen_levels(settings, name):
    levels = frozen.read(name)
    assert len({level.level_id for level in levels}) == len(levels) == 1000
    for number, frozen_level in enumerate(levels):
        level = parse("\n".join(frozen_level.rows))
        assert draw(level).splitlines() == frozen_level.rows
        assert level.walls.shape == (settings.height, settings.width)
        assert len(level.targets) == settings.boxes
        assert level_id(level) == frozen_level.level_id
        assert splits.split_of(room_id(level.walls, level.targets)) == "test"
        assert len(solve(level)) == frozen_level.optimal_length
        if number % 10 == 0:
            assert least_pushes(level) >= settings.min_pushes
    # That the whole file comes out the same is tested with that of the maze; here it is the same in this process.
    assert list(islice(sokoban.freeze(settings), 30)) == list(levels[:30])


def test_freezing_more_levels_than_there_are_is_refused():
    # Three pushes in a corridor of five cells: there is but one such level, up to symmetry, and "test" owns its room.
    only = Settings(3, 7, boxes=1, min_pushes=3)
    with pytest.raises(ValueError, match=r"1 distinct levels in 20: ask for fewer than 2"):
        list(sokoban.freeze(only, count=2))
    assert {frozen_level.level_id for frozen_level in sokoban.freeze(only, count=1)} == {
        level_id(parse("#######\n#PX__O#\n#######"))
    }
    for split in ("train", "val"):
        with pytest.raises(
            ValueError, match=f"no level of split '{split}' with boxes=1 and min_pushes=3 found at 3 x 7"
        ):
            SokobanEnv(*only, split=split)


# ----------------------------------------------------------------------------------------------------- environment


@pytest.mark.parametrize(
    "env_id", ["wmact/SokobanOneBox-v0", "wmact/Sokoban-v0", "wmact/SokobanHard1-v0", "wmact/SokobanHard2-v0"]
)
@pytest.mark.parametrize("layout", ["grid", "cells"])
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
    made = [gymnasium.make(f"wmact_envs:wmact/Sokoban{name}-v0").unwrapped for name in ("OneBox", "", "Hard1", "Hard2")]
    assert [env.settings for env in made] == PRESETS == list(sokoban.FROZEN)
    assert [tuple(settings)[:3] for settings in PRESETS] == [(7, 7, 1), (7, 7, 2), (10, 10, 2), (7, 7, 3)]
    assert gymnasium.make("wmact_envs:wmact/Sokoban-v0", width=9).unwrapped.settings == Settings(width=9)
    env = made[0]
    assert env.action_names == ("up", "down", "left", "right")
    assert set(env.example_actions) <= set(env.action_names)
    assert all(action in env.action_space for action in env.action_names)


def test_rules_explain_the_layout_in_use():
    grid, cells = SokobanEnv(layout="grid").rules, SokobanEnv(layout="cells").rules
    symbols = ("# wall", "_ floor", "O target", "X box", "√ box on a target", "P you", "S you on a target")
    assert all(symbol in grid for symbol in symbols)
    assert all(word in cells for word in ("(row,column)", '"wall"', '"open"', '"target"', '"box"', '"you"'))
    assert "√" not in cells
    assert '"open"' not in grid


def test_an_episode_on_a_frozen_level_word_for_word():
    env = SokobanEnv(split="test")
    level = frozen.read("sokoban_standard_test")[2]
    observation, info = env.reset(seed=3, options={"level": 2})
    assert observation == "\n".join(level.rows)
    expected = {"level": 2, "level_id": level.level_id, "optimal_length": level.optimal_length}
    assert info == expected
    solution = env.solution()
    assert len(solution) == level.optimal_length
    for turn, action in enumerate(solution, start=1):
        observation, reward, terminated, truncated, info = env.step(action)
        done = turn == len(solution)
        assert (reward, terminated, truncated) == (float(done), done, False)
        assert info == expected | {"valid": True, "effective": True, "success": done, "deadlock": False}
    assert observation.count("√") == 2
    assert env.solution() == []
    with pytest.raises(ResetNeeded, match=r"call reset\(\)"):
        env.step("up")


@pytest.mark.parametrize("layout", ["grid", "cells"])
def test_steps_by_hand(layout, monkeypatch):
    puzzle = sokoban.Puzzle("name", 15, parse(BY_HAND))
    monkeypatch.setattr(sokoban, "level", lambda *_: puzzle)
    env = SokobanEnv(layout=layout)
    start, info = env.reset(seed=0)
    assert (info["level_id"], info["optimal_length"]) == ("name", 15)
    assert start == (BY_HAND if layout == "grid" else list_cells(puzzle.level, puzzle.level.start))
    assert env.place() == "(3,3) (2,3) (3,4)"
    assert env.solution()[0] == "right"
    # A push, and another onto the target; back down, where the box stays; along the wall into the corner: lost.
    steps = [
        ("jump", "(3,3) (2,3) (3,4)", False),
        ("right", "(3,4) (2,3) (3,5)", False),
        ("right", "(3,4) (2,3) (3,5)", False),  # a wall behind the box
        ("left", "(3,3) (2,3) (3,5)", False),  # the box is not pulled
        ("up", "(2,3) (1,3) (3,5)", False),
        ("up", "(2,3) (1,3) (3,5)", False),  # the border behind the box
        ("down", "(3,3) (1,3) (3,5)", False),
        ("left", "(3,2) (1,3) (3,5)", False),
        ("left", "(3,1) (1,3) (3,5)", False),
        ("up", "(2,1) (1,3) (3,5)", False),
        ("up", "(1,1) (1,3) (3,5)", False),
        ("right", "(1,2) (1,3) (3,5)", False),
        ("right", "(1,3) (1,4) (3,5)", False),
        ("right", "(1,4) (1,5) (3,5)", True),  # the corner
        ("left", "(1,3) (1,5) (3,5)", True),  # and it stays lost
    ]
    for action, place, deadlock in steps:
        before = env.place()
        observation, reward, terminated, truncated, info = env.step(action)
        assert env.place() == place
        assert observation == (draw if layout == "grid" else list_cells)(puzzle.level, env.state)
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert (info["valid"], info["effective"], info["success"]) == (action != "jump", place != before, False)
        assert info["deadlock"] is deadlock
    assert env.solution() is None


def test_places_are_comments():
    env = SokobanEnv()
    for number in range(20):
        env.reset(options={"level": number})
        assert all(re.fullmatch(r"\([^()]+\)", word) for word in env.place().split(" "))


def test_a_copy_goes_its_own_way():
    # Whoever simulates moves steps a copy.
    env = SokobanEnv()
    env.reset(seed=0)
    state = env.state
    hash(state)
    other = copy.copy(env)
    for action in env.solution():
        other.step(action)
    assert other.solution() == []
    assert env.state == state
    assert env.step(env.solution()[0])[-1]["effective"]


def test_nothing_before_reset():
    env = SokobanEnv(render_mode="ansi")
    for call in (lambda: env.step("up"), env.solution, env.render):
        with pytest.raises(ResetNeeded, match=r"call reset\(\)"):
            call()


@pytest.mark.parametrize("layout", ["grid", "cells"])
def test_ten_thousand_random_and_fuzzed_actions(layout):
    rng = random.Random(0)
    env = SokobanEnv(layout=layout)
    observation, _ = env.reset(seed=0)
    finished = dead = 0
    for turn in range(10_000):
        noise = "".join(chr(rng.randrange(sys.maxunicode + 1)) for _ in range(rng.randrange(20)))
        action = rng.choice(list(MOVES)) if turn % 4 else rng.choice([*FUZZ, noise])
        before, state = observation, env.state
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        assert info["valid"] == (action in MOVES)
        assert info["effective"] == (env.state != state) == (observation != before)
        assert info["effective"] <= info["valid"]
        assert (reward, terminated) == (float(info["success"]), set(env.state.boxes) == env.room.targets)
        assert not truncated
        assert not (info["success"] and info["deadlock"])
        finished += terminated
        dead += info["deadlock"]
        if terminated or turn % 40 == 0:
            observation, _ = env.reset()
    assert finished > 5
    assert dead > 1000


@pytest.mark.parametrize("settings", PRESETS)
@pytest.mark.parametrize("split", splits.SPLITS)
def test_every_level_is_solved_by_its_solution(settings, split):
    env = SokobanEnv(*settings, split=split)
    for number in range(40):
        _, info = env.reset(options={"level": number})
        solution = env.solution()
        assert len(solution) == info["optimal_length"]
        for step, action in enumerate(solution, start=1):
            _, reward, terminated, _, info = env.step(action)
            assert info["effective"]
            assert not info["deadlock"]
            assert terminated == info["success"] == (reward == 1.0) == (step == len(solution))


TRAJECTORY = """
import hashlib, random, wmact_envs.sokoban as s
text = []
for split in ("train", "val", "test"):
    for settings in (s.STANDARD, s.HARD_1, s.Settings(6, 8, 3)):
        env, rng = s.SokobanEnv(*settings, split=split), random.Random(0)
        for seed in range(3):
            text.append((env.reset(seed=seed), env.solution()))
            for _ in range(50):
                text.append(env.step(rng.choice(list(s.MOVES))))
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
    env = SokobanEnv()
    first, info = env.reset(options={"level": 7})
    assert info["level"] == 7
    assert env.num_levels is None
    assert SokobanEnv().reset(seed=99, options={"level": np.int64(7)})[0] == first
    assert SokobanEnv(split="test", min_pushes=4).num_levels is None  # not a preset: generated
    assert {SokobanEnv(*settings, split="test").num_levels for settings in PRESETS} == {1000}


@pytest.mark.parametrize("layout", ["grid", "cells"])
def test_render(layout, monkeypatch):
    level = parse("######\n#X_√##\n#O_XS#\n######")
    monkeypatch.setattr(sokoban, "level", lambda *_: sokoban.Puzzle("", 1, level))
    env = SokobanEnv(layout=layout, render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == draw(level)
    env = SokobanEnv(layout=layout, render_mode="rgb_array")
    env.reset(seed=0)
    image = env.render()
    assert image.shape == (4 * 32, 6 * 32, 3)
    assert image.dtype == np.uint8

    def colour(cell: tuple[int, int], down: int) -> tuple[int, ...]:
        return tuple(image[32 * cell[0] + down, 32 * cell[1] + 16])

    wall, floor, target, box, box_on, player_on = (0, 0), (1, 2), (2, 1), (2, 3), (1, 3), (2, 4)
    assert len({colour(cell, 16) for cell in (wall, floor, target, box, player_on)}) == 5  # in the middle of the cell
    assert colour(box, 16) == colour(box_on, 16)
    # Three pixels below the upper edge only a target is painted, also under a box or the player.
    assert colour(target, 3) == colour(box_on, 3) == colour(player_on, 3) != colour(floor, 3) == colour(box, 3)
    env = SokobanEnv()
    env.reset(seed=0)
    assert env.render() is None


def test_frozen_file_is_plain_json():
    line = (frozen.FOLDER / "sokoban_standard_test.jsonl").read_text(encoding="ascii").splitlines()[0]
    assert list(json.loads(line)) == ["level_id", "optimal_length", "rows"]


def test_the_package_needs_gymnasium_and_numpy_only():
    code = "import sys, wmact_envs.sokoban; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"wmact", "torch", "lightning", "transformers"} & set(loaded)
