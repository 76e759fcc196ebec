"""Maze: walk from a random cell to a goal, seeing the whole maze. First the rules as pure functions, then the env.

A maze is a square of `size` x `size` cells, size odd. Cells with two odd coordinates are always floor; iterative
depth-first search opens the walls between them into a tree (a perfect maze: one path between any two cells), then each
wall left between two such cells is opened with probability `loops`. Start and goal are any two floor cells at least
`min_length` moves apart.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text
from numpy.typing import NDArray

from . import frozen, grid, pictures, splits
from .grid import MOVES, Cell, Walls
from .text import TextEnv


class Settings(NamedTuple):
    """What decides the distribution of levels.

    size: cells a side, borders included; odd, at least 5.
    loops: probability that a wall the perfect maze left standing is opened, 0 to 1.
    min_length: least number of moves from start to goal.
    """

    size: int = 7
    loops: float = 0.1
    min_length: int = 3


STANDARD = Settings(size=7)
HARD = Settings(size=11)
FROZEN = {STANDARD: "maze_standard_test", HARD: "maze_hard_test"}
"""The presets, and the file that holds the test split of each."""
FROZEN_COUNT = 1000
TRIES = 20_000
"""Mazes drawn for one level before giving up. A setting that one maze in a thousand meets fails once in 10^9 levels."""


@dataclass(frozen=True, eq=False)
class Maze:
    """A level: the walls (n, n) and two floor cells."""

    walls: Walls
    start: Cell
    goal: Cell


def move(walls: Walls, position: Cell, action: str) -> Cell:
    """Return the cell that `action` leads to: `position` itself when a wall is in the way."""
    target = grid.ahead(position, action)
    return position if walls[target] else target


def distances(walls: Walls, goal: Cell) -> NDArray[np.int64]:
    """Return (n, n): the least number of moves from each cell to `goal`; -1 for walls and cells without a path."""
    field = np.full(walls.shape, -1)
    field[goal] = 0
    queue = deque([goal])
    while queue:
        cell = queue.popleft()
        for action in MOVES:
            neighbour = move(walls, cell, action)
            if field[neighbour] < 0:
                field[neighbour] = field[cell] + 1
                queue.append(neighbour)
    return field


def solve(maze: Maze, position: Cell | None = None) -> list[str] | None:
    """Return a shortest list of actions from `position` (default: the start) to the goal, or None if there is none."""
    field = distances(maze.walls, maze.goal)
    cell = position or maze.start
    if field[cell] < 0:
        return None
    actions: list[str] = []
    while cell != maze.goal:
        action = next(name for name in MOVES if field[move(maze.walls, cell, name)] == field[cell] - 1)
        actions.append(action)
        cell = move(maze.walls, cell, action)
    return actions


def level_id(maze: Maze) -> str:
    """Return the canonical hash of a maze: equal for its rotations and reflections, start and goal included."""
    codes = maze.walls.astype(np.uint8)
    codes[maze.start] += 2
    codes[maze.goal] += 4
    return splits.level_id("maze", codes)


def draw(maze: Maze, position: Cell | None = None) -> str:
    """Draw the maze, one row a line, with the player at `position` (default: the start).

    `#` wall, `.` floor, `P` player, `G` goal, `*` player on the goal.
    """
    position = position or maze.start
    symbols = np.where(maze.walls, "#", ".")
    symbols[maze.goal] = "G"
    symbols[position] = "*" if position == maze.goal else "P"
    return "\n".join("".join(row) for row in symbols)


def list_cells(maze: Maze, position: Cell) -> str:
    """Tell the maze as coordinates: inner walls and open cells in reading order, then the goal, then the player.

    A 5 x 5 maze reads, for example, `wall (2,2) (3,2) open (1,1) (1,2) (1,3) (2,1) (2,3) (3,1) (3,3) goal (3,3) you
    (1,1)`.
    """
    return grid.listed(maze.walls, goal=[maze.goal], you=[position])


def label_cells(maze: Maze, position: Cell) -> str:
    """Tell the maze as inner cells in reading order, each with what it is, then the goal, then the player.

    A 5 x 5 maze reads, for example, `cells (1,1) open (1,2) open (1,3) open (2,1) open (2,2) wall … goal (3,3) you
    (1,1)`.
    """
    return grid.labelled(maze.walls, goal=[maze.goal], you=[position])


def parse(text: str) -> Maze:
    """Read what `draw` wrote; the player's cell becomes the start.

    Raises:
        ValueError: not such a drawing; the message names the row, counted from 0.
    """
    rows = text.splitlines()
    found: dict[str, list[Cell]] = {"player": [], "goal": []}
    for r, row in enumerate(rows):
        if len(row) != len(rows):
            raise ValueError(f"row {r} has {len(row)} cells, but there are {len(rows)} rows: a maze is square")
        for c, symbol in enumerate(row):
            if symbol not in "#.PG*":
                raise ValueError(f"row {r}, column {c}: unknown symbol {symbol!r}; a cell is one of # . P G *")
            if symbol != "#" and (r in (0, len(rows) - 1) or c in (0, len(rows) - 1)):
                raise ValueError(f"row {r}, column {c}: {symbol!r} on the border, which must be all wall")
            if symbol in "P*":
                found["player"].append((r, c))
            if symbol in "G*":
                found["goal"].append((r, c))
    for who, cells in found.items():
        if len(cells) != 1:
            where = ", ".join(f"row {r}" for r, _ in cells) or f"rows 0 to {len(rows) - 1}"
            raise ValueError(f"{len(cells)} cells with the {who} ({where}): there must be exactly one")
    walls = np.array([[symbol == "#" for symbol in row] for row in rows])
    return Maze(walls, start=found["player"][0], goal=found["goal"][0])


def check(settings: Settings) -> None:
    """Raise ValueError, with the offending value and the way out, for settings that no level can meet."""
    size, loops, min_length = settings
    if not isinstance(size, int) or size < 5 or size % 2 == 0:
        raise ValueError(f"size={size!r}: a maze has an odd number of cells a side, at least 5; try 7 or 11")
    if not 0 <= loops <= 1:
        raise ValueError(f"loops={loops!r}: a probability, so between 0 (one path only) and 1 (all inner walls open)")
    # The longest path visits all m*m odd cells, two moves apart. With every wall open it is the way across instead.
    m = size // 2
    longest = 4 * (m - 1) if loops == 1 else 2 * (m * m - 1)
    if not isinstance(min_length, int) or not 1 <= min_length <= longest:
        raise ValueError(
            f"min_length={min_length!r}: at size={size} and loops={loops} paths have 1 to {longest} moves; "
            "lower min_length or raise size"
        )


def carve(rng: np.random.Generator, size: int, loops: float) -> Walls:
    """Return the walls (size, size) of a random maze: a depth-first tree, then loops."""
    m = size // 2
    chances = rng.random((m * m, 2)).tolist()  # one draw for all choices: a call each would cost more than the maze
    closed = [[True] * size for _ in range(size)]
    r, c = (2 * int(chance * m) + 1 for chance in chances[0])
    closed[r][c] = False
    stack = [(r, c)]
    for choice, _ in chances[1:]:
        while True:
            r, c = stack[-1]
            options = [
                (down, right)
                for down, right in MOVES.values()
                if 0 < r + 2 * down < size and 0 < c + 2 * right < size and closed[r + 2 * down][c + 2 * right]
            ]
            if options:
                break
            stack.pop()
        down, right = options[int(choice * len(options))]
        closed[r + down][c + right] = closed[r + 2 * down][c + 2 * right] = False
        stack.append((r + 2 * down, c + 2 * right))
    walls = np.array(closed)
    opened = rng.random(walls.shape) < loops
    # Only cells between two odd cells: row and column of different parity, off the border.
    parity = np.add.outer(np.arange(size), np.arange(size)) % 2
    walls[1:-1, 1:-1] &= ~(opened & (parity == 1))[1:-1, 1:-1]
    return walls


def generate(rng: np.random.Generator, settings: Settings = STANDARD, split: str | None = None) -> Maze:
    """Draw mazes until one has start and goal `min_length` apart and, if asked, belongs to `split`.

    Raises:
        ValueError: none did in `TRIES` tries.
    """
    size, loops, min_length = settings
    for _ in range(TRIES):
        walls = carve(rng, size, loops)
        floor = np.argwhere(~walls)
        goal = _cell(floor, rng)
        far = np.argwhere(distances(walls, goal) >= min_length)
        if not len(far):
            continue
        maze = Maze(walls, start=_cell(far, rng), goal=goal)
        if split is None or splits.split_of(level_id(maze)) == split:
            return maze
    raise ValueError(
        f"no maze of split {split!r} with min_length={min_length} in {TRIES} tries at size={size}, loops={loops}: "
        "lower min_length or raise size"
    )


def _cell(cells: NDArray[np.int64], rng: np.random.Generator) -> Cell:
    """Choose one row of `cells` (k, 2)."""
    r, c = cells[int(rng.random() * len(cells))].tolist()
    return r, c


def level(settings: Settings, split: str, number: int) -> Maze:
    """Return level `number` (from 0) of the endless sequence of a split: the same in every process."""
    size, loops, min_length = settings
    return generate(splits.level_rng(split, number, size, round(loops * 1e6), min_length), settings, split)


def freeze(settings: Settings, count: int = FROZEN_COUNT) -> Iterator[frozen.FrozenLevel]:
    """Return the first `count` distinct levels of the test sequence; `frozen.distinct` says what it raises."""

    def described(maze: Maze) -> frozen.FrozenLevel:
        length = int(distances(maze.walls, maze.goal)[maze.start])
        return frozen.FrozenLevel(level_id(maze), length, draw(maze).splitlines())

    return frozen.distinct((described(level(settings, "test", number)) for number in itertools.count()), count)


def picture(maze: Maze, position: Cell, pixels: int = 32) -> NDArray[np.uint8]:
    """Paint the maze with `pixels` a cell: (n * pixels, n * pixels, 3) RGB. Player: blue disc; goal: green diamond."""
    things = ((maze.goal, pictures.diamond, pictures.GREEN), (position, pictures.disc, pictures.BLUE))
    return pictures.paint(maze.walls, things, pixels)


RULES = """\
You are in a maze of {size} rows and {size} columns and must reach the goal in as few moves as you can.
Each action moves you one cell: up, down, left or right. A move into a wall leaves you where you are.
{layout}"""

LAYOUTS = {
    "grid": """\
The maze is drawn with one line a row and one symbol a cell:
# wall, . floor, P you, G the goal, * you on the goal.""",
    "cells": """\
Cells are written (row,column), counted from (0,0) in the upper left corner. \
Up takes one from the row, down adds one to it; left takes one from the column, right adds one to it.
After "wall" come the walls, except those around the maze, after "open" the cells you can stand on, \
after "goal" the cell to reach, after "you" your cell.""",
    "labels": """\
Cells are written (row,column), counted from (0,0) in the upper left corner. \
Up takes one from the row, down adds one to it; left takes one from the column, right adds one to it.
Beside each cell stands whether it is wall or open; around them all is wall. \
After "goal" comes the cell to reach, after "you" your cell.""",
}
TELLERS: dict[str, Callable[[Maze, Cell], str]] = {"grid": draw, "cells": list_cells, "labels": label_cells}
"""How each layout tells a maze with the player somewhere."""


class MazeEnv(TextEnv):
    """Walk through a fully visible maze to the goal. Reward 1 on the goal, which ends the episode; else 0."""

    action_names = tuple(MOVES)
    example_actions = ("right", "down", "down")
    state: Cell

    def __init__(
        self,
        size: int = STANDARD.size,
        loops: float = STANDARD.loops,
        min_length: int = STANDARD.min_length,
        split: str = "train",
        layout: str = "grid",
        render_mode: str | None = None,
    ) -> None:
        """Choose the levels and how they are told.

        Args:
            size: cells a side, borders included: odd, at least 5. Standard is 7, Hard is 11.
            loops: probability that an inner wall of the perfect maze is opened, 0 (one path only) to 1.
            min_length: least number of moves from start to goal.
            split: "train", "val" or "test". No level of one split is in another, not even turned or mirrored; but
                of 7×7 there are few boards, and splits share them, with other starts and goals. The test split of the
                presets Standard and Hard is shipped with the package: 1,000 levels each.
            layout: "grid" draws the maze; "cells" lists coordinates, for models that read a drawing badly; "labels"
                tells beside each coordinate what is there, for those that find it badly in a list.
            render_mode: None, "ansi" (the drawing, whatever the layout) or "rgb_array".

        Raises:
            ValueError: settings that no level can meet, or an unknown split, layout or render mode.
        """
        self.settings = Settings(size, loops, min_length)
        check(self.settings)
        if layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r}: use one of {', '.join(LAYOUTS)}")
        self.layout = layout
        self.rules = RULES.format(size=size, layout=LAYOUTS[layout])
        super().__init__(observation_space(size, layout), split, render_mode)
        self._frozen = frozen.read(FROZEN[self.settings]) if split == "test" and self.settings in FROZEN else None
        self.num_levels = None if self._frozen is None else len(self._frozen)
        self._loaded: Maze | None = None

    @property
    def maze(self) -> Maze:
        """The level being played; ResetNeeded if there is none yet."""
        if self._loaded is None:
            raise ResetNeeded("there is no maze yet: call reset() first")
        return self._loaded

    def solution(self) -> list[str] | None:
        """Return a shortest list of actions from the current cell."""
        return solve(self.maze, self.state)

    def observe(self) -> str:
        """Return the maze as `layout` has it."""
        return TELLERS[self.layout](self.maze, self.state)

    def place(self) -> str:
        """Return the current cell, as in "(1,2)"."""
        return grid.told(self.state)

    def task(self) -> str:
        """Return what is to be done, as in "reach (3,3)"."""
        return f"reach {grid.told(self.maze.goal)}"

    def ahead(self, action: str) -> str:
        """Return the cell that an action aims at, be it a wall or not."""
        return grid.told(grid.ahead(self.state, action))

    def read_place(self, text: str) -> Cell | None:
        """Return the cell written so, or None if it is no floor of this maze."""
        return grid.floor(self.maze.walls).get(text)

    def render(self) -> str | NDArray[np.uint8] | None:
        """Return the drawing ("ansi") or an image (n * 32, n * 32, 3) ("rgb_array")."""
        if self.render_mode == "ansi":
            return draw(self.maze, self.state)
        return picture(self.maze, self.state) if self.render_mode == "rgb_array" else None

    def _load(self, number: int) -> tuple[str, int]:
        if self._frozen is not None:
            name, length, rows = self._frozen[number]
            self._loaded = parse("\n".join(rows))
        else:
            self._loaded = level(self.settings, self.split, number)
            name = level_id(self.maze)
            length = int(distances(self.maze.walls, self.maze.goal)[self.maze.start])
        self.state = self.maze.start
        return name, length

    def _act(self, action: str) -> float:
        self.state = move(self.maze.walls, self.state, action)
        return float(self._solved())

    def _solved(self) -> bool:
        return self.state == self.maze.goal


def observation_space(size: int, layout: str) -> Text:
    """Return the space of all observations at a size: exact length for "grid", an upper bound for the others."""
    if layout == "grid":
        length = size * (size + 1) - 1  # rows, and a newline between them
        return Text(min_length=length, max_length=length, charset="#.PG*\n")
    longest_cell = len(f" ({size - 1},{size - 1})")
    words = "cells wall open goal you"
    length = (
        len(words) + (2 + size * size) * longest_cell + (size - 2) ** 2 * len(" open" if layout == "labels" else "")
    )
    return Text(max_length=length, charset=frozenset(words + " (,) 0123456789"))
