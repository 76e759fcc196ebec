"""Searching Sokoban: forwards for the shortest solution, backwards for levels that have one.

Sets of cells are bit masks, Python integers: cell (r, c) is bit r * width + c. A shift by `width` moves a whole set one
row down, a shift by one moves it one column to the right. The border is wall, so nothing is shifted round a corner.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from .grid import MOVES, Cell
from .sokoban_levels import Level, State

LIMIT = 200_000
"""States from which `solve` looks on before it gives up: some seconds."""


class Board(NamedTuple):
    """What stays the same in a level, as masks."""

    width: int
    steps: dict[str, int]
    """How far each action moves, in bits."""
    floor: int
    targets: int
    away: dict[int, int]
    """Cell → pushes that bring a box from there to the nearest target if nothing else is in the way."""
    live: int
    """The cells of `away`. The rest of the floor is dead: a box that stands there is lost."""
    dead_beside: int
    dead_above: int
    """Cells with dead floor on either side, in the row and in the column: a push that way loses the box."""


class Push(NamedTuple):
    """One push: from a state, the player walks to a cell and makes one step against a box."""

    boxes: int
    player: int
    cell: int
    step: int


def shifted(mask: int, step: int) -> int:
    """Return every cell moved by `step` bits."""
    return mask << step if step > 0 else mask >> -step


def around(mask: int, width: int) -> int:
    """Return the neighbours of all cells of a mask."""
    return mask << 1 | mask >> 1 | mask << width | mask >> width


def cells(mask: int) -> Iterator[int]:
    """Yield the cells of a mask one by one, in reading order."""
    while mask:
        cell = mask & -mask
        yield cell
        mask ^= cell


def union(cells: Iterable[Iterable[int]], width: int) -> int:
    """Return the mask of some cells (row, column)."""
    mask = 0
    for r, c in cells:
        mask |= 1 << r * width + c
    return mask


def places(mask: int, width: int) -> tuple[Cell, ...]:
    """Return the cells of a mask as (row, column), in reading order."""
    return tuple(divmod(cell.bit_length() - 1, width) for cell in cells(mask))


def lay_out(walls: np.ndarray, targets: Iterable[Cell]) -> Board:
    """Return the board of some walls (h, w) and targets."""
    width = walls.shape[1]
    steps = {action: down * width + right for action, (down, right) in MOVES.items()}
    floor = union(np.argwhere(~walls).tolist(), width)
    goals = live = frontier = union(targets, width)
    away: dict[int, int] = {}
    distance = 0
    while frontier:
        away |= dict.fromkeys(cells(frontier), distance)
        distance += 1
        # A box is pulled from its cell onto the next one by a player who backs off to the one after.
        pulled = 0
        for step in steps.values():
            pulled |= shifted(frontier, step) & shifted(floor, -step)
        frontier = pulled & floor & ~live
        live |= frontier
    dead = floor & ~live
    return Board(width, steps, floor, goals, away, live, dead << 1 & dead >> 1, dead << width & dead >> width)


@functools.lru_cache(maxsize=256)
def board(level: Level) -> Board:
    """Return the board of a level, which is asked for again at every step."""
    return lay_out(level.walls, level.targets)


def reach(board: Board, boxes: int, player: int) -> int:
    """Return the cells that the player can walk to without pushing."""
    free = board.floor & ~boxes
    seen = frontier = player
    while frontier:
        frontier = around(frontier, board.width) & free & ~seen
        seen |= frontier
    return seen


def lost(board: Board, boxes: int) -> bool:
    """Tell whether some box can be seen never to reach a target.

    A box is held in one direction by a wall or another held box on either side, or if a push either way takes it to a
    dead cell; held in both directions it is there for good. To begin with all boxes count as held. Those that are not
    by what is held are let go, until the rest holds itself: whichever of these is the first to move is lost. A box on a
    dead cell is always held, since it cannot be pushed to any but dead ones.
    """
    width, held = board.width, boxes
    while True:
        solid = ~board.floor | held
        still = held & (solid << 1 | solid >> 1 | board.dead_beside)
        still &= solid << width | solid >> width | board.dead_above
        if still == held:
            return bool(held & ~board.targets)
        held = still


def pushes(board: Board, boxes: int, player: int) -> Iterator[tuple[int, int, int]]:
    """Yield every push that does not end on a dead cell: (steps walked before it, the player's cell then, step)."""
    free, open_ = board.floor & ~boxes, board.live & ~boxes
    ready = [(step, shifted(boxes, -step) & shifted(open_, -2 * step)) for step in board.steps.values()]
    seen = frontier = player
    walked = 0
    while frontier:
        for step, starts in ready:
            for cell in cells(frontier & starts):
                yield walked, cell, step
        frontier = around(frontier, board.width) & free & ~seen
        seen |= frontier
        walked += 1


def pulls(board: Board, boxes: int, region: int) -> Iterator[tuple[int, int]]:
    """Yield every pull a player in `region` can make: (boxes, player) after it. The push back undoes it."""
    free = board.floor & ~boxes
    for step in board.steps.values():
        for cell in cells(shifted(boxes, step) & region & shifted(free, -step)):
            yield boxes ^ cell ^ shifted(cell, -step), shifted(cell, step)


def search_back(board: Board, limit: int) -> list[tuple[int, int, int]]:
    """Return, breadth first by pulls from all solved states, up to `limit` states: (boxes, player's region, pulls).

    The pulls are the least number of pushes that solve the state.
    """
    found: list[tuple[int, int, int]] = []
    regions: dict[int, list[int]] = {board.targets: []}
    for player in cells(board.floor & ~board.targets):
        if not any(player & region for region in regions[board.targets]):
            region = reach(board, board.targets, player)
            regions[board.targets].append(region)
            found.append((board.targets, region, 0))
    for boxes, region, distance in found:  # which grows meanwhile: it is the queue as well
        for after, player in pulls(board, boxes, region):
            known = regions.setdefault(after, [])
            if not any(player & region for region in known):
                if len(found) >= limit:
                    return found
                known.append(reach(board, after, player))
                found.append((after, known[-1], distance + 1))
    return found


def solve(level: Level, state: State | None = None, limit: int = LIMIT) -> list[str] | None:
    """Return a shortest list of actions from `state` (default: the start) to a solved one, or None if there is none.

    Raises:
        RuntimeError: after `limit` states the search had found neither a solution nor that there is none.
    """
    path = _search(level, state or level.start, limit, walking=1)
    if path is None:
        return None
    actions: list[str] = []
    names = {step: action for action, step in board(level).steps.items()}
    for push in path:
        walk = _walk(board(level), push.boxes, push.player, push.cell)
        actions += [names[step] for step in (*walk, push.step)]
    return actions


def least_pushes(level: Level, state: State | None = None, limit: int = LIMIT) -> int | None:
    """Return the least number of pushes that solve `state` (default: the start), or None if it cannot be solved.

    Raises:
        RuntimeError: as `solve`.
    """
    path = _search(level, state or level.start, limit, walking=0)
    return None if path is None else len(path)


def deadlocked(level: Level, state: State) -> bool:
    """Tell whether `state` can be seen, without any search, to be unsolvable. False says nothing."""
    return lost(board(level), union(state.boxes, level.walls.shape[1]))


def _search(level: Level, state: State, limit: int, walking: int) -> list[Push] | None:
    """Return the pushes that solve `state` at the least cost: 1 a push, and `walking` a step between pushes.

    A* over whole pushes. What is left is at least the pushes that take every box to its nearest target; a push changes
    that by one at most, so the first way by which a state leaves the queue is a cheapest one.
    """
    b = board(level)
    boxes, player = union(state.boxes, b.width), union([state.player], b.width)
    if lost(b, boxes):
        return None
    left = sum(b.away[box] for box in cells(boxes))
    costs = {(boxes, player): 0}
    came: dict[tuple[int, int], Push] = {}
    queue = [(left, left, boxes, player)]
    looked = 0
    while queue:
        total, left, boxes, player = heapq.heappop(queue)
        cost = total - left
        if boxes == b.targets:
            path = []
            while push := came.get((boxes, player)):
                path.append(push)
                boxes, player = push.boxes, push.player
            return path[::-1]
        if cost > costs[boxes, player]:
            continue
        if looked == limit:
            raise RuntimeError(f"no solution found among {limit:,} states searched, and there may be none")
        looked += 1
        for walked, cell, step in pushes(b, boxes, player):
            box = shifted(cell, step)
            to = shifted(box, step)
            key = boxes ^ box ^ to, box
            after = cost + 1 + walking * walked
            if after < costs.get(key, after + 1) and not lost(b, key[0]):
                costs[key] = after
                came[key] = Push(boxes, player, cell, step)
                rest = left - b.away[box] + b.away[to]
                heapq.heappush(queue, (after + rest, rest, *key))
    return None


def _walk(board: Board, boxes: int, start: int, end: int) -> list[int]:
    """Return the steps of a shortest walk from one cell to another around the boxes."""
    free = board.floor & ~boxes
    layers = [end]  # at 0, 1, 2, … steps from the end
    seen = end
    while not layers[-1] & start:
        layers.append(around(layers[-1], board.width) & free & ~seen)
        seen |= layers[-1]
    path = []
    for layer in layers[-2::-1]:
        path.append(next(step for step in board.steps.values() if shifted(start, step) & layer))
        start = shifted(start, path[-1])
    return path
