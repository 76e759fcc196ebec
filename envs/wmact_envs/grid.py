"""A board of cells with walls: how cells are named, moved between and told. Mazes, warehouses and the town share it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Cell = tuple[int, int]
"""(row, column), counted from the upper left corner."""
Walls = NDArray[np.bool_]
"""(h, w), True where a wall is; the border is all wall, so a neighbour of a floor cell is always on the board."""

MOVES: dict[str, Cell] = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
"""Actions as (row, column) steps. Their order breaks ties between equally short solutions."""


def ahead(cell: Cell, action: str) -> Cell:
    """Return the cell next to `cell` that `action` aims at, be it a wall or not."""
    down, right = MOVES[action]
    return cell[0] + down, cell[1] + right


def told(cell: Cell) -> str:
    """Return a cell as it is told, as in "(1,2)"."""
    row, column = cell
    return f"({row},{column})"


def floor(walls: Walls) -> dict[str, Cell]:
    """Return every cell without a wall under the name it is told by, in reading order."""
    return {told((r, c)): (r, c) for r, c in np.argwhere(~walls).tolist()}


def listed(walls: Walls, **things: Iterable[Cell]) -> str:
    """Tell a board as coordinates: inner walls and open cells in reading order, then the cells of each of `things`.

    Walls are told although they follow from the rest: to find a thing is easier than to find that it is absent.
    """
    return " ".join([_board(walls.tobytes(), walls.shape), *_lists(things)])


def labelled(walls: Walls, **things: Iterable[Cell]) -> str:
    """Tell a board with every inner cell's kind beside its name, then the cells of each of `things`.

    What stands beside a name that was just said is what a language model finds most easily (Olsson et al. 2022, arXiv
    2209.11895: induction heads).
    """
    return " ".join([_labels(walls.tobytes(), walls.shape), *_lists(things)])


@lru_cache(maxsize=1024)
def _labels(walls: bytes, shape: tuple[int, int]) -> str:
    board = np.frombuffer(walls, bool).reshape(shape)
    rows, columns = (range(1, length - 1) for length in shape)
    kinds = (f"{told((r, c))} {'wall' if board[r, c] else 'open'}" for r in rows for c in columns)
    return " ".join(["cells", *kinds])


@lru_cache(maxsize=1024)
def _board(walls: bytes, shape: tuple[int, int]) -> str:
    """The part that no action changes: most of the text, and of the time to make it."""
    inner = np.frombuffer(walls, bool).reshape(shape)[1:-1, 1:-1]
    return " ".join(_lists({"wall": np.argwhere(inner) + 1, "open": np.argwhere(~inner) + 1}))


def _lists(things: Mapping[str, Iterable[Cell]]) -> Iterator[str]:
    return (" ".join([word, *map(told, cells)]) for word, cells in things.items())
