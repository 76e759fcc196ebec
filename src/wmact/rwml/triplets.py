"""Triplets (history up to s_t, action, what the world said), of which a world model is learnt, as JSON lines.

The first line of a file is its provenance: how it was made, and with what. Every other line is a triplet:

    {"env": gymnasium id, "game": level_id, "split": str, "step": int, "history": [{"role": "observation" or "action",
     "text": str}, …] ending in the observation s_t, "action": str, "next": str, "kind": str, "effective": bool,
     "success": bool, "source": "model", "random" or "walkthrough", "policy": str, "seed": int}

Training and validation are cut by game, never by row: states of one game are near copies of each other.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from wmact.files import new_file

Role = Literal["observation", "action"]
Source = Literal["model", "random", "walkthrough"]
Part = Literal["all", "train", "held_out"]


class Said(NamedTuple):
    """One entry of a history."""

    role: Role
    text: str


def feedback(observation: str, info: Mapping[str, Any]) -> str:
    """What the world said, without what the observation may add around it, such as a history."""
    return str(info.get("feedback", observation))


@dataclass(frozen=True)
class Triplet:
    """One transition.

    env: gymnasium id of the environment.
    game: level_id of the level.
    split: of the environment.
    step: actions taken before.
    history: what was seen and done before, ending in the observation s_t; of several actions in one reply each is a
        step of its own, with the observation that the agent was not shown.
    action: a_t.
    next: what the world said in answer, without what an observation adds around it (`info["feedback"]`).
    kind: what answered: "world", "tool" or "user".
    effective, success: as the environment told.
    source, policy: who chose the action.
    seed: of the episode.
    """

    env: str
    game: str
    split: str
    step: int
    history: tuple[Said, ...]
    action: str
    next: str
    kind: str
    effective: bool
    success: bool
    source: Source
    policy: str
    seed: int

    @cached_property
    def digest(self) -> str:
        """sha256 of what a prediction is made from: triplets that ask the same share it."""
        asked = json.dumps([self.env, self.history, self.action])
        return hashlib.sha256(asked.encode(errors="surrogatepass")).hexdigest()

    @property
    def observation(self) -> str:
        """s_t."""
        return self.history[-1].text


class TripletFile(NamedTuple):
    """What a file holds."""

    provenance: dict[str, Any]
    triplets: tuple[Triplet, ...]


def held_out(triplet: Triplet, share: float) -> bool:
    """Tell whether the triplet's game is one of the `share` that are for validation; it is the same in every file."""
    return drawn(f"{triplet.env} {triplet.game}", share)


def drawn(name: str, share: float) -> bool:
    """Tell whether a name is among a share of all names, by its hash: the same on every machine."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def part_of(triplets: Iterable[Triplet], part: Part, share: float) -> list[Triplet]:
    """Return those of all games, of those for training, or of the `share` of games that are held out."""
    return [each for each in triplets if part == "all" or held_out(each, share) == (part == "held_out")]


def write_triplets(path: Path, provenance: Mapping[str, Any], triplets: Iterable[Triplet]) -> None:
    """Write a file, whole or not at all. Only ASCII is written.

    Raises:
        OSError: it cannot be written; what was at `path` is still there.
    """
    with new_file(path) as file:
        for line in [{"provenance": provenance}, *map(_plain, triplets)]:
            file.write((json.dumps(line) + "\n").encode("ascii"))


def _plain(triplet: Triplet) -> dict[str, Any]:
    return dataclasses.asdict(triplet) | {"history": [entry._asdict() for entry in triplet.history]}


def read_triplets(path: str | os.PathLike[str]) -> TripletFile:
    """Read a file; once a process, as long as it stays the same. Several that were put together (`cat`) are one.

    Raises:
        OSError: there is no such file.
        ValueError: a line is not as it should be; it names line and column.
    """
    found = Path(path).expanduser()
    if not found.is_file():
        raise FileNotFoundError(f"triplets={str(path)!r}: no such file; python -m wmact collect writes one")
    state = found.stat()
    return _read(found.absolute(), state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=4)
def _read(path: Path, mtime_ns: int, size: int) -> TripletFile:
    triplets = []
    provenance: dict[str, Any] | None = None
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                record = _record(line, where)
                if provenance is None or record.keys() == {"provenance"}:  # again where files were put together
                    provenance = _joined(provenance, record, where)
                else:
                    triplets.append(_triplet(record, where))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text ({error}); a file of triplets is what python -m wmact collect writes"
        ) from None
    if not triplets:
        raise ValueError(f"{path} holds no triplets")
    return TripletFile(provenance or {}, tuple(triplets))


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where} is no JSON object, but {type(record).__name__}")
    return record


def _joined(before: dict[str, Any] | None, record: dict[str, Any], where: str) -> dict[str, Any]:
    """The provenance that a first line tells, beside that of the files before it."""
    told = record.get("provenance")
    if not isinstance(told, dict):
        names = ", ".join(map(repr, record)) or "none"
        raise ValueError(
            f"{where}: no provenance, which the first line of a file of triplets is; its columns are {names}"
        )
    if before is None:
        return told
    return before | {
        "rules": before.get("rules", {}) | told.get("rules", {}),
        "joined": [*before.get("joined", []), told],
    }


COLUMNS = {"step": int, "seed": int, "effective": bool, "success": bool, "history": list}
"""Types of columns that are not text."""


def _triplet(record: dict[str, Any], where: str) -> Triplet:
    names = [field.name for field in dataclasses.fields(Triplet)]
    if unknown := record.keys() - set(names):
        raise ValueError(f"{where}: column {min(unknown)!r} is unknown; the columns are {', '.join(names)}")
    for name in names:
        wanted = COLUMNS.get(name, str)
        if name not in record:
            raise ValueError(f"{where}: column {name!r} is missing")
        if type(record[name]) is not wanted:  # a bool is an int
            raise ValueError(f"{where}: column {name!r} is {type(record[name]).__name__}, not {wanted.__name__}")
    if record["source"] not in get_args(Source):
        raise ValueError(f"{where}: column 'source' is {record['source']!r}, not one of {', '.join(get_args(Source))}")
    return Triplet(**record | {"history": _history(record["history"], where)})


def _history(entries: list[Any], where: str) -> tuple[Said, ...]:
    for i, entry in enumerate(entries):
        match entry:
            case {"role": "observation" | "action", "text": str()} if len(entry) == 2:
                continue
        raise ValueError(f"{where}: column 'history', entry {i} is not {{role: observation or action, text: str}}")
    if not entries or entries[-1]["role"] != "observation":
        raise ValueError(f"{where}: column 'history' does not end in an observation")
    return tuple(Said(entry["role"], entry["text"]) for entry in entries)
