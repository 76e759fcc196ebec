"""Frozen test levels: one JSON object a line, checked against `levels/SHA256SUMS` before any is used.

`freeze.py` makes them again.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "levels"


class FrozenLevel(NamedTuple):
    """A held-out level: its canonical hash, the least number of actions that solve it, and its drawing, row by row."""

    level_id: str
    optimal_length: int
    rows: list[str]


@functools.cache
def read(name: str, folder: Path = FOLDER) -> tuple[FrozenLevel, ...]:
    """Read the levels of `<folder>/<name>.jsonl`; the same object on every call.

    Raises:
        OSError: the file or SHA256SUMS is missing.
        ValueError: the file is not the one that SHA256SUMS lists.
    """
    path = folder / f"{name}.jsonl"
    content = path.read_bytes()
    expected, found = _checksums(folder).get(path.name), hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} was changed: its sha256 is {found}, but {folder / 'SHA256SUMS'} lists {expected}. Scores on it "
            "cannot be compared: install the package again, or restore the file."
        )
    return tuple(FrozenLevel(**json.loads(line)) for line in content.decode().splitlines())


def write(name: str, levels: Iterable[FrozenLevel], folder: Path = FOLDER) -> None:
    """Write `<folder>/<name>.jsonl` and its line in SHA256SUMS."""
    # Bytes, not text: newlines must not depend on the platform, or the checksum would.
    content = "".join(json.dumps(level._asdict(), separators=(",", ":")) + "\n" for level in levels).encode()
    (folder / f"{name}.jsonl").write_bytes(content)
    sums = _checksums(folder) | {f"{name}.jsonl": hashlib.sha256(content).hexdigest()}
    (folder / "SHA256SUMS").write_bytes("".join(f"{sums[file]}  {file}\n" for file in sorted(sums)).encode())


def distinct(levels: Iterable[FrozenLevel], count: int) -> Iterator[FrozenLevel]:
    """Yield the first `count` levels that differ in more than symmetry, out of 10 * count at most.

    Raises:
        ValueError: these hold fewer.
    """
    seen: set[str] = set()
    for level in islice(levels, 10 * count):
        if level.level_id not in seen:
            seen.add(level.level_id)
            yield level
        if len(seen) == count:
            return
    raise ValueError(f"{len(seen)} distinct levels in {10 * count}: ask for fewer than {count}")


def _checksums(folder: Path) -> dict[str, str]:
    """Read SHA256SUMS (the format of `sha256sum`) as {file name: hexadecimal digest}; {} if there is none yet."""
    path = folder / "SHA256SUMS"
    lines = path.read_text().splitlines() if path.exists() else []
    return {file: digest for digest, file in (line.split() for line in lines)}
