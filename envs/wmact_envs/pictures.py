"""Painting boards of cells, in one look for all environments."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Shape = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]]
"""Which points of a cell to paint: x to the right and y down, in cells, from its middle."""
Colour = tuple[int, int, int]

FLOOR, WALL = (244, 241, 232), (52, 58, 70)
GREEN, BLUE, BROWN = (46, 160, 67), (31, 111, 235), (176, 124, 68)


def disc(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A player."""
    return x**2 + y**2 < 0.25**2


def diamond(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A place to reach: larger than what may stand on it, so that both are seen."""
    return abs(x) + abs(y) < 0.45


def square(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A box."""
    return np.maximum(abs(x), abs(y)) < 0.3


def paint(
    walls: NDArray[np.bool_], things: Iterable[tuple[tuple[int, int], Shape, Colour]], pixels: int = 32
) -> NDArray[np.uint8]:
    """Paint walls (h, w) and things on them, each over those before it: (h * pixels, w * pixels, 3) RGB."""
    colours = np.array([FLOOR, WALL], dtype=np.uint8)
    image: NDArray[np.uint8] = colours[walls.astype(int)].repeat(pixels, axis=0).repeat(pixels, axis=1)
    across = (np.arange(pixels) + 0.5) / pixels - 0.5
    x, y = np.meshgrid(across, across)
    for (r, c), shape, colour in things:
        image[r * pixels : (r + 1) * pixels, c * pixels : (c + 1) * pixels][shape(x, y)] = colour
    return image
