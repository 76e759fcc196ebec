"""Sokoban: push every box onto a target, seeing the whole warehouse. Generator and env.

A room is carved by a random walk that leaves small patterns of floor behind it, as in Weber et al. (2017,
arXiv:1707.06203) and gym-sokoban. Targets are any floor cells. A level starts from one of the states that pulls lead to
from the solved ones, `min_pushes` pulls or more away and with no box on a target: so every level can be solved.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text
from numpy.typing import NDArray

from . import frozen, grid, pictures, sokoban_levels, splits
from .grid import MOVES, Walls
from .sokoban_levels import RAGEN, Level, Listed, State, draw, level_id, list_cells, move, parse, room_id, solved
from .sokoban_search import deadlocked, lay_out, places, search_back, solve
from .text import TextEnv


class Settings(NamedTuple):
    """What decides the distribution of levels.

    height, width: cells, borders included; at least 3.
    boxes: number of boxes, and of targets.
    min_pushes: least number of pushes that solve a level.
    search_limit: states looked at in search of a start, and again of the shortest solution; what takes more is redrawn.
    max_pushes: most pushes that the shortest way to solve a level takes, counted in pushes; None: as it comes.
    """

    height: int = 7
    width: int = 7
    boxes: int = 2
    min_pushes: int = 3
    search_limit: int = 4000
    max_pushes: int | None = None


ONE_BOX = Settings(7, 7, boxes=1, min_pushes=2)
"""Ours: for models that two boxes are too much for."""
STANDARD = Settings(7, 7, boxes=2)
HARD_1 = Settings(10, 10, boxes=2)
HARD_2 = Settings(7, 7, boxes=3)
FROZEN = {
    ONE_BOX: "sokoban_one_box_test",
    STANDARD: "sokoban_standard_test",
    HARD_1: "sokoban_hard_1_test",
    HARD_2: "sokoban_hard_2_test",
}
"""The presets, and the file that holds the test split of each."""
FROZEN_COUNT = 1000
WORK = 400_000
"""States looked at for one level before giving up: some seconds. A room counts as `ROOM` of them besides."""
ROOM = 100

TURN = 0.35
"""Probability that the walk takes a new direction before a step: gym-sokoban's, as is the number of steps."""
PATTERNS = (
    ((0, 0), (0, -1), (0, 1)),
    ((0, 0), (-1, 0), (1, 0)),
    ((0, 0), (0, -1), (1, 0)),
    ((0, 0), (0, 1), (1, 0)),
    ((0, 0), (0, -1), (1, -1), (1, 0)),
)
"""What a step of the walk opens, around where it leads to; gym-sokoban's."""


class Puzzle(NamedTuple):
    """A level with its canonical hash and the least number of actions that solve it."""

    level_id: str
    optimal_length: int
    level: Level


def check(settings: Settings) -> None:
    """Raise ValueError, with the offending value and the way out, for settings that no level can meet."""
    height, width, boxes, min_pushes, search_limit, max_pushes = settings
    for name, value, least in zip(Settings._fields, settings, (3, 3, 1, 1, 2, 1), strict=True):
        if name == "max_pushes" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r}: an integer of at least {least}; {getattr(STANDARD, name)} by default")
    inner = (height - 2) * (width - 2)
    if 2 * boxes + 1 > inner:
        raise ValueError(
            f"boxes={boxes}: the boxes, as many targets and the player need {2 * boxes + 1} cells, but {height} x "
            f"{width} has {inner} inside its border: at most {(inner - 1) // 2} boxes, or a larger room"
        )
    if min_pushes >= search_limit:
        raise ValueError(
            f"min_pushes={min_pushes}: states so far from a solved one are not among the search_limit={search_limit} "
            "nearest: lower min_pushes or raise search_limit"
        )
    if max_pushes is not None and max_pushes < max(min_pushes, boxes):
        raise ValueError(
            f"max_pushes={max_pushes}: levels take min_pushes={min_pushes} at least, and one for each of boxes={boxes}"
            ": raise max_pushes, or lower these"
        )


def carve(rng: np.random.Generator, height: int, width: int) -> Walls:
    """Return the walls (height, width) of a random room, whose floor is in one piece."""
    steps, directions = int(1.7 * (height + width)), tuple(MOVES.values())
    first, *chances = rng.random((steps + 1, 3)).tolist()
    r, c = 1 + int(first[0] * (height - 2)), 1 + int(first[1] * (width - 2))
    down, right = directions[int(first[2] * len(directions))]
    walls = np.ones((height, width), dtype=bool)
    for turn, direction, pattern in chances:
        if turn < TURN:
            down, right = directions[int(direction * len(directions))]
        r, c = min(max(r + down, 1), height - 2), min(max(c + right, 1), width - 2)
        for i, j in PATTERNS[int(pattern * len(PATTERNS))]:
            if 0 < r + i < height - 1 and 0 < c + j < width - 1:
                walls[r + i, c + j] = False
    return walls


def generate(rng: np.random.Generator, settings: Settings = STANDARD, split: str | None = None) -> Puzzle:
    """Draw rooms until one has a start that meets the settings and, if asked, makes a level of `split`.

    Raises:
        ValueError: none did within `WORK`.
    """
    height, width, boxes, min_pushes, search_limit, max_pushes = settings
    most = search_limit if max_pushes is None else max_pushes
    left = WORK
    while left > 0:
        walls = carve(rng, height, width)
        floor = np.argwhere(~walls)
        left -= ROOM
        if len(floor) < 2 * boxes + 1:
            continue
        targets = frozenset((r, c) for r, c in floor[rng.random(len(floor)).argsort()[:boxes]].tolist())
        chance, other = rng.random(2).tolist()
        if split is not None and splits.split_of(room_id(walls, targets)) != split:
            continue
        board = lay_out(walls, targets)
        found = search_back(board, search_limit)
        left -= len(found)
        starts = [(at, region) for at, region, far in found if min_pushes <= far <= most and not at & board.targets]
        if not starts:
            continue
        at, region = starts[int(chance * len(starts))]
        player = places(region, width)
        level = Level(walls, targets, State(player[int(other * len(player))], places(at, width)))
        try:
            solution = solve(level, limit=search_limit)
        except RuntimeError:
            left -= search_limit
            continue
        assert solution is not None, "what was pulled can be pushed back"
        return Puzzle(level_id(level), len(solution), level)
    raise ValueError(
        f"no level of split {split!r} with boxes={boxes} and min_pushes={min_pushes} found at {height} x {width}: "
        "lower boxes or min_pushes, or take a larger room"
    )


@functools.lru_cache(maxsize=1024)
def level(settings: Settings, split: str, number: int) -> Puzzle:
    """Return level `number` (from 0) of the endless sequence of a split: the same in every process."""
    known = (value for value in settings if value is not None)
    return generate(splits.level_rng(split, number, *known), settings, split)


@functools.lru_cache(maxsize=1024)
def listed(entry: Listed) -> Puzzle:
    """Solve a level of a file.

    Raises:
        ValueError: it cannot be solved, or the search gave up, or it is solved already.
    """
    try:
        solution = solve(entry.level)
    except RuntimeError as error:
        raise ValueError(f"{entry.where}: {error}; take the level out of the file") from error
    if solution is None:
        raise ValueError(f"{entry.where}: the level cannot be solved")
    if not solution:
        raise ValueError(f"{entry.where}: the level is solved already")
    return Puzzle(level_id(entry.level), len(solution), entry.level)


def freeze(settings: Settings, count: int = FROZEN_COUNT) -> Iterator[frozen.FrozenLevel]:
    """Return the first `count` distinct levels of the test sequence; `frozen.distinct` says what it raises."""
    puzzles = (level(settings, "test", number) for number in itertools.count())
    return frozen.distinct(
        (frozen.FrozenLevel(p.level_id, p.optimal_length, draw(p.level).splitlines()) for p in puzzles), count
    )


def picture(level: Level, state: State, pixels: int = 32) -> NDArray[np.uint8]:
    """Paint the level with `pixels` a cell: (h * pixels, w * pixels, 3) RGB.

    Targets: green diamonds, whose tips are seen around what stands on them; boxes: brown squares; player: blue disc.
    """
    things = [
        *((cell, pictures.diamond, pictures.GREEN) for cell in level.targets),
        *((cell, pictures.square, pictures.BROWN) for cell in state.boxes),
        (state.player, pictures.disc, pictures.BLUE),
    ]
    return pictures.paint(level.walls, things, pixels)


RULES = """\
You are in a warehouse and must push every box onto a target, any box onto any target, in as few moves as you can.
Each action moves you one cell: up, down, left or right. If a box is there, you push it one cell further, provided \
that neither a wall nor another box is behind it. Otherwise, and against a wall, nothing moves. You cannot pull a box, \
so one that is in a corner stays there.
{layout}"""

LAYOUTS = {
    "grid": """\
The warehouse is drawn with one line a row and one symbol a cell:
# wall, _ floor, O target, X box, √ box on a target, P you, S you on a target.""",
    "cells": """\
Cells are written (row,column), counted from (0,0) in the upper left corner. \
Up takes one from the row, down adds one to it; left takes one from the column, right adds one to it.
After "wall" come the walls, except those around the warehouse, after "open" the cells that are no wall, whatever is \
on them, after "target" the targets, after "box" the boxes, after "you" your cell.""",
}


class SokobanEnv(TextEnv):
    """Push every box onto a target. Reward 1 when all are there, which ends the episode; else 0."""

    action_names = tuple(MOVES)
    example_actions = ("right", "up", "up")
    state: State

    def __init__(
        self,
        height: int = STANDARD.height,
        width: int = STANDARD.width,
        boxes: int = STANDARD.boxes,
        min_pushes: int = STANDARD.min_pushes,
        search_limit: int = STANDARD.search_limit,
        max_pushes: int | None = None,
        split: str = "train",
        levels: str | None = None,
        layout: str = "grid",
        render_mode: str | None = None,
    ) -> None:
        """Choose the levels and how they are told.

        Args:
            height: rows, borders included. Standard is 7 x 7 with 2 boxes, Hard-1 10 x 10 with 2, Hard-2 7 x 7 with 3.
            width: columns, borders included.
            boxes: number of boxes, and of targets.
            min_pushes: least number of pushes that solve a level.
            search_limit: states that the search for a start may look at, and that for the shortest solution. Where
                there are more (in the presets there are about a thousand at most) starts are nearer to the end.
            max_pushes: most pushes that the way with fewest takes; for easier levels than the presets'.
            split: "train", "val" or "test". No walls and targets of one split are in another, not even turned, mirrored
                or with another start. The test split of the presets is shipped with the package: 1,000 levels each.
            levels: a text file of levels to play instead, in the symbols of the layout "grid" or the usual `#@$.*+`.
                Level numbers count them from 0. All settings above say nothing then: a file is one set, whatever the
                split. It is read at once, but a level is solved when it is first played: that may take seconds.
            layout: "grid" draws the warehouse; "cells" lists coordinates, for models that read a drawing badly.
            render_mode: None, "ansi" (the drawing, whatever the layout) or "rgb_array".

        Raises:
            ValueError: settings that no level can meet, an unknown split, layout or render mode, or a faulty file;
                also from `reset`, at a level of a file that cannot be solved.
            OSError: the file cannot be read.
        """
        self.settings = Settings(height, width, boxes, min_pushes, search_limit, max_pushes)
        if layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r}: use one of {', '.join(LAYOUTS)}")
        self.layout = layout
        self.rules = RULES.format(layout=LAYOUTS[layout])
        self._levels = None if levels is None else sokoban_levels.read(levels)
        if self._levels is None:
            check(self.settings)
            shapes = [(height, width, boxes)]
        else:
            shapes = [(*entry.level.walls.shape, len(entry.level.targets)) for entry in self._levels]
        super().__init__(observation_space(shapes, layout), split, render_mode)
        preset = FROZEN.get(self.settings)
        self._frozen = frozen.read(preset) if preset and split == "test" and self._levels is None else None
        if self._levels is None and preset is None:
            level(self.settings, split, 0)  # settings that no room meets are refused here rather than in mid-rollout
        fixed = self._levels or self._frozen
        self.num_levels = None if fixed is None else len(fixed)
        self._loaded: Level | None = None

    @property
    def room(self) -> Level:
        """The level being played; ResetNeeded if there is none yet."""
        if self._loaded is None:
            raise ResetNeeded("there is no level yet: call reset() first")
        return self._loaded

    def solution(self) -> list[str] | None:
        """Return a shortest list of actions from the current state, or None if it cannot be solved any more.

        Raises:
            RuntimeError: the search gave up; the presets are far from that.
        """
        return solve(self.room, self.state)

    def observe(self) -> str:
        """Return the warehouse as `layout` has it."""
        return (draw if self.layout == "grid" else list_cells)(self.room, self.state)

    def place(self) -> str:
        """Return the player's cell and then the boxes', as in "(2,3) (2,4) (3,3)"."""
        return " ".join(map(grid.told, (self.state.player, *self.state.boxes)))

    def read_place(self, text: str) -> State | None:
        """Return the state of that player and those boxes, or None if they are too few, too many, or in each other."""
        floor = grid.floor(self.room.walls)
        words = text.split(" ")
        known = [floor[word] for word in dict.fromkeys(words) if word in floor]
        if not len(known) == len(words) == 1 + len(self.state.boxes):
            return None
        return State(known[0], tuple(sorted(known[1:])))

    def render(self) -> str | NDArray[np.uint8] | None:
        """Return the drawing ("ansi") or an image (h * 32, w * 32, 3) ("rgb_array")."""
        if self.render_mode == "ansi":
            return draw(self.room, self.state)
        return picture(self.room, self.state) if self.render_mode == "rgb_array" else None

    def _load(self, number: int) -> tuple[str, int]:
        if self._levels is not None:
            name, length, self._loaded = listed(self._levels[number])
        elif self._frozen is not None:
            name, length, rows = self._frozen[number]
            self._loaded = parse("\n".join(rows))
        else:
            name, length, self._loaded = level(self.settings, self.split, number)
        self.state = self.room.start
        return name, length

    def _act(self, action: str) -> float:
        self.state = move(self.room.walls, self.state, action)
        return float(self._solved())

    def _solved(self) -> bool:
        return solved(self.room, self.state)

    def _deadlocked(self) -> bool:
        return deadlocked(self.room, self.state)


def observation_space(shapes: Iterable[tuple[int, int, int]], layout: str) -> Text:
    """Return the space of all observations of levels (height, width, boxes): exact lengths for "grid", else bounds."""
    if layout == "grid":
        lengths = [height * (width + 1) - 1 for height, width, _ in shapes]  # rows, and a newline between them
        return Text(min_length=min(lengths), max_length=max(lengths), charset=RAGEN + "\n")
    words = "wall open target box you"
    length = max(
        len(words) + (height * width + 2 * boxes + 1) * len(f" ({height - 1},{width - 1})")
        for height, width, boxes in shapes
    )
    return Text(max_length=length, charset=frozenset(words + " (,) 0123456789"))
