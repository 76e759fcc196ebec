"""What a study file says: the arms of a comparison, their seeds, and what the paper found."""

import functools
import hashlib
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from wmact.cli import reason
from wmact.models import BUNDLED
from wmact.settings import by_name, read_yaml


@dataclass(frozen=True)
class Study:
    """A study file.

    Args:
        name: of the study, and of its folders.
        base: configurations that all arms share, as several --config.
        arms: name → what the arm adds to the command line; "" is the base itself, and {seed} in it is the run's seed.
        seeds: every arm is run with each of them.
        common: what all arms add to the command line, before their own words.
        compare: the arm that the others are tested against.
        paper: arm → test variant → success in percent that the paper reports, for the report to show beside ours.
        note: a sentence that the report begins with.
    """

    name: str
    base: list[str]
    arms: dict[str, str]
    seeds: list[int]
    common: str = ""
    compare: str = "wmact"
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        for name in (self.name, *self.arms):
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise ValueError(f"name {name!r}: a name is one of a folder, of letters, digits and any of _ . + -")
        if not self.arms or not self.seeds:
            raise ValueError("a study has at least one arm and one seed")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: one stands there twice")
        for key, arms in {"compare": [self.compare], "paper": self.paper}.items():
            for arm in arms:
                if arm not in self.arms:
                    raise ValueError(f"{key}: there is no arm {arm!r}; the arms are {', '.join(self.arms)}")

    def words(self, arm: str, seed: int) -> list[str]:
        """Return the arguments of `fit` that make a run what it is; where it is written is not among them."""
        bases = [word for base in self.base for word in ("--config", base)]
        try:
            added = f"{self.common} {self.arms[arm]}".replace("{seed}", str(seed))  # such as the model it starts from
            return [*bases, *shlex.split(added), "--seed_everything", str(seed)]
        except ValueError as error:
            raise ValueError(f"arm {arm!r}: {error} in {self.common} {self.arms[arm]}") from None


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        ValueError: it cannot be read, is no YAML, or is not as `Study` wants it.
    """
    content = read_yaml(path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Study)
    keys = ", ".join(key.name for key in fields(Study))
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a study file is a mapping with the keys {keys}")
    try:
        return Study(**parser.parse_object(content).as_dict())
    except ArgumentError as error:
        raise ValueError(f"{path}: {reason(error)} (a study has the keys {keys})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def fingerprint(words: Sequence[str]) -> str:
    """Name what words mean: the words, and what stands in the configuration files they name (comments apart).

    Raises:
        ValueError: one of the files cannot be read.
    """
    return hashlib.sha256(json.dumps([list(words), _configs(words)]).encode()).hexdigest()[:12]


def weights(words: Sequence[str]) -> str:
    """Name the weights in the model folders that are named by what words mean in the end; "" where there are none.

    A folder that a later file or word replaces by another is not looked at.

    Raises:
        ValueError: one of the files cannot be read.
    """
    meant: dict[str, Any] = {}
    for option, value in _options(words):
        name = option.removeprefix("--").replace(".init_args", "")
        for key, content in by_name(read_yaml(value) if name == "config" else {name: value}):
            meant = {other: held for other, held in meant.items() if not f"{other}.".startswith(f"{key}.")}
            meant[key] = content
    texts = dict.fromkeys(text for content in meant.values() for text in _texts(content))
    folders = [BUNDLED.get(text, Path(text)) for text in texts if text in BUNDLED or (text and os.path.isdir(text))]
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    sums = [_checksum(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return hashlib.sha256("".join(sums).encode()).hexdigest()[:12] if sums else ""


def _configs(words: Sequence[str]) -> list[Any]:
    return [read_yaml(path) for option, path in _options(words) if option == "--config"]


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every option with its value, which is the next word or stands behind a sign: --model.model=FOLDER."""
    parts = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return ((option, value) for option, value in itertools.pairwise(parts) if option.startswith("--"))


def _texts(content: Any) -> Iterator[str]:
    """Every text in plain data."""
    if isinstance(content, str):
        yield content
    for inner in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _texts(inner)


@functools.cache
def _checksum(file: Path, mtime_ns: int, size: int) -> str:
    """Of a file, once as long as it stays the same: those of a large model take long to read."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
