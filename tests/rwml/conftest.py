"""Shared by the tests of RWML: triplets and files of them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wmact.rwml.triplets import Said, Triplet, write_triplets

PLAIN = Triplet(
    env="wmact/Maze-v0",
    game="g0",
    split="train",
    step=0,
    history=(Said("observation", "You are in the middle of a room. You see a desk 1, and a drawer 1."),),
    action="go to desk 1",
    next="You arrive at desk 1. On the desk 1, you see a mug 1, and a pen 2.",
    kind="world",
    effective=True,
    success=False,
    source="random",
    policy="random",
    seed=1,
)


@pytest.fixture
def triplet() -> Callable[..., Triplet]:
    def build(**changes: Any) -> Triplet:
        return dataclasses.replace(PLAIN, **changes)

    return build


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def build(*triplets: Triplet, name: str = "triplets.jsonl", **provenance: Any) -> str:
        write_triplets(tmp_path / name, provenance, triplets)
        return str(tmp_path / name)

    return build
