"""A Sokoban level: what it is, what a move does to it, and how it is written down."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import grid, splits
from .grid import MOVES, Cell, Walls

RAGEN = "#_OX√PS"
XSB = "# .$*@+"
"""Symbols of wall, floor, target, box, box on target, player, player on target: RAGEN's, and those of level files."""
BLANK = " -_"
"""Floor in either notation, and in level files also what is outside."""
WALL, TARGET, BOX, PLAYER = 1, 2, 4, 8
"""What is in a cell, as summands."""
CODES = (WALL, 0, TARGET, BOX, BOX + TARGET, PLAYER, PLAYER + TARGET)
"""What each symbol of a notation says."""


class State(NamedTuple):
    """Where everything is that can move."""

    player: Cell
    boxes: tuple[Cell, ...]
    """In reading order, so that equal positions are equal states."""


@dataclass(frozen=True, eq=False)
class Level:
    """A level: walls (h, w), border all wall, as many targets as boxes, and where everything starts."""

    walls: Walls
    targets: frozenset[Cell]
    start: State


class Listed(NamedTuple):
    """A level of a file, and where in the file it stands: the words that open a complaint about it."""

    where: str
    level: Level


def move(walls: Walls, state: State, action: str) -> State:
    """Return the state that `action` leads to: `state` itself when a wall, or a box that cannot move, is in the way."""
    cell = grid.ahead(state.player, action)
    if walls[cell]:
        return state
    if cell not in state.boxes:
        return State(cell, state.boxes)
    beyond = grid.ahead(cell, action)
    if walls[beyond] or beyond in state.boxes:
        return state
    return State(cell, tuple(sorted(beyond if box == cell else box for box in state.boxes)))


def solved(level: Level, state: State) -> bool:
    """Tell whether every box stands on a target."""
    return level.targets.issuperset(state.boxes)


def codes(walls: Walls, targets: Iterable[Cell], state: State | None = None) -> NDArray[np.uint8]:
    """Return (h, w): the sum of what is in each cell; without a state, of what is always there."""
    board = walls.astype(np.uint8) * WALL
    things = [(cell, TARGET) for cell in targets]
    if state is not None:
        things += [*((cell, BOX) for cell in state.boxes), (state.player, PLAYER)]
    for cell, code in things:
        board[cell] += code
    return board


def level_id(level: Level) -> str:
    """Return the canonical hash of a level: equal for its rotations and reflections, boxes and player included."""
    return splits.level_id("sokoban", codes(level.walls, level.targets, level.start))


def room_id(walls: Walls, targets: frozenset[Cell]) -> str:
    """Return the canonical hash of walls and targets alone, which decides the split.

    By their own hashes, one in ten 7 x 7 test levels would differ from one of 12,000 training levels in nothing but the
    player's cell. This way no state of a training level is one of a test level.
    """
    return splits.level_id("sokoban room", codes(walls, targets))


def draw(level: Level, state: State | None = None, symbols: str = RAGEN) -> str:
    """Draw the level, one row a line, in a `state` of it (default: the start) and with `RAGEN` or `XSB` symbols."""
    names = dict(zip(CODES, symbols, strict=True))
    board = codes(level.walls, level.targets, state or level.start)
    return "\n".join("".join(names[code] for code in row) for row in board.tolist())


def list_cells(level: Level, state: State) -> str:
    """Tell the level as coordinates: inner walls and open cells in reading order, then targets, boxes and the player.

    A 3 x 5 corridor reads, for example, `wall open (1,1) (1,2) (1,3) target (1,3) box (1,2) you (1,1)`. What can move
    comes last, and `open` are all cells that can be stood on, whatever is on them, so that most of a text stays the
    same while it is played.
    """
    return grid.listed(level.walls, target=sorted(level.targets), box=state.boxes, you=[state.player])


def parse(text: str, line: int = 1) -> Level:
    """Read one level in either notation: what `draw` wrote, or one of a level file.

    It is taken for the notation that more of its symbols belong to. Rows may be ragged, and blanks may surround the
    level. What the player cannot reach becomes wall, and so does a box there that stands on a target.

    Args:
        line: number of the first row, for the messages.

    Raises:
        ValueError: not a level; the message names the line and the column, counted from 1.
    """
    rows = text.splitlines() or [""]
    lines = f"lines {line} to {line + len(rows) - 1}"
    symbols = max(RAGEN, XSB, key=lambda symbols: sum(map(text.count, symbols[2:])))
    meaning = dict.fromkeys(BLANK, 0) | dict(zip(symbols, CODES, strict=True))
    board = np.zeros((len(rows) + 2, max(map(len, rows)) + 2), dtype=np.uint8)  # with a rim, which is outside
    for r, row in enumerate(rows):
        for c, symbol in enumerate(row):
            if symbol not in meaning:
                raise ValueError(
                    f"line {line + r}, column {c + 1}: unknown symbol {symbol!r}; a cell is one of {' '.join(symbols)}"
                )
            board[r + 1, c + 1] = meaning[symbol]
    players = _cells(board & PLAYER)
    if len(players) != 1:
        raise ValueError(f"{lines}: {len(players)} cells with the player: there must be exactly one")
    inside = _enclosed(board == WALL, players[0], line)
    for what, code in (("box", BOX), ("target", TARGET)):
        for r, c in _cells((board & (BOX + TARGET) == code) & ~inside):
            raise ValueError(f"line {line + r - 1}, column {c}: a {what} that the player cannot reach")
    used = np.argwhere(board == WALL)  # walls enclose the rest
    frame = tuple(slice(first, last + 1) for first, last in zip(used.min(axis=0), used.max(axis=0), strict=True))
    board = np.where(inside, board, WALL)[frame]
    targets, boxes = _cells(board & TARGET), _cells(board & BOX)
    if len(boxes) != len(targets) or not boxes:
        raise ValueError(f"{lines}: boxes={len(boxes)}, targets={len(targets)}: there must be as many, at least one")
    return Level(board == WALL, frozenset(targets), State(_cells(board & PLAYER)[0], tuple(boxes)))


def _cells(mask: NDArray[Any]) -> list[Cell]:
    """Return the cells where `mask` is not zero, in reading order."""
    return [(r, c) for r, c in np.argwhere(mask).tolist()]


def _enclosed(walls: Walls, player: Cell, line: int) -> Walls:
    """Return the cells that the player could walk to if there were no boxes; ValueError if the rim is one of them."""
    inside = np.zeros_like(walls)
    inside[player] = True
    stack = [player]
    while stack:
        r, c = stack.pop()
        for down, right in MOVES.values():
            cell = r + down, c + right
            if cell[0] in (0, len(walls) - 1) or cell[1] in (0, walls.shape[1] - 1):
                raise ValueError(f"line {line + r - 1}, column {c}: the player can walk out here; close the wall")
            if not walls[cell] and not inside[cell]:
                inside[cell] = True
                stack.append(cell)
    return inside


def read(path: str) -> tuple[Listed, ...]:
    """Read the levels of a file in the usual text format.

    The rows of a level follow each other without a gap. Blank lines separate levels, and so does any other line that
    is no row: a title, a name, a comment after `;`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no level, or one that is wrong; the message names file and line.
    """
    # A published file may have any encoding, but what is not ASCII is in its titles.
    return _read(path, Path(path).read_text(encoding="utf-8-sig", errors="replace"))


@functools.lru_cache(maxsize=16)
def _read(path: str, text: str) -> tuple[Listed, ...]:
    """Read the levels in `text`: once for all the environments that play the same file."""
    levels: list[Listed] = []
    rows: list[str] = []
    for number, row in enumerate([*text.split("\n"), ""], start=1):
        # A row begins with a wall. A faulty one may not, but then it is still made of nothing but symbols.
        if row.lstrip(BLANK + "\t").startswith("#") or (rows and row.strip() and set(row) <= {*RAGEN, *XSB, *BLANK}):
            rows.append(row)
        elif rows:
            try:
                level = parse("\n".join(rows), number - len(rows))
            except ValueError as error:
                raise ValueError(f"{path}, {error}") from error
            levels.append(Listed(f"{path}, lines {number - len(rows)} to {number - 1}", level))
            rows = []
    if not levels:
        raise ValueError(f"{path} holds no level: a level is rows of {' '.join(XSB)} or of {' '.join(RAGEN)}")
    return tuple(levels)
