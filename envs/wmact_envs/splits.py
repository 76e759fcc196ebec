"""Which split a level belongs to: a function of the level alone, the same for its eight rotations and reflections.

A level is named by the sha256 of its canonical form, and a name decides the split: that of the level, or of the part of
it that must not be shared (Sokoban's walls and targets). So no mirrored training level can come back as a test level,
whoever draws it, from whatever seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")


def symmetries(grid: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Yield the grid (h, w) under the eight symmetries of the square: four rotations, each also transposed."""
    for turns in range(4):
        turned = np.rot90(grid, turns)
        yield turned
        yield turned.T


def level_id(kind: str, grid: NDArray[np.uint8]) -> str:
    """Name a level, equally for all its symmetries.

    Args:
        kind: the environment, e.g. "maze"; keeps the levels of two environments apart.
        grid: (h, w) uint8, one code a cell; must hold everything that makes two levels differ.

    Returns:
        64 hexadecimal digits: sha256 of the least, as bytes, of the eight symmetric grids, of those that are not higher
        than wide.
    """
    (height, width), canonical = min((image.shape, image.tobytes()) for image in symmetries(grid))
    # 2 x 6 and 3 x 4 cells may be the same bytes. Of a square their number says which.
    size = "" if height == width else f"{height}x{width}:"
    return hashlib.sha256(f"{kind}:{size}".encode() + canonical).hexdigest()


def split_of(name: str) -> str:
    """Return the split of the level named so: about 70 % of all levels are "train", 10 % "val" and 20 % "test".

    The smallest boards decide these shares: of the 8,526 different Standard mazes a test share of 10 % would be 854,
    fewer than the 1,000 levels wanted.
    """
    share = int(name[:8], 16) / 2**32
    return "train" if share < 0.7 else "val" if share < 0.8 else "test"


def level_rng(split: str, number: int, *settings: int) -> np.random.Generator:
    """Return the generator that draws level `number` of a split: a function of the arguments and of nothing else."""
    return np.random.default_rng(np.random.SeedSequence([*settings, SPLITS.index(split), number]))
