"""On what terms a model plays: what a folder that `export` wrote tells of the episodes that its model was trained on.

A model that was never told the rules, or reads mazes as coordinates only, looks stupid when it is played otherwise.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from wmact.cli import reason
from wmact.environments import EnvSpec
from wmact.rollout import Limits

FILE = "wmact.json"


@dataclass(frozen=True)
class Terms:
    """What an episode is played with besides a model and a level; the names are those of `wmact.data.RolloutData`.

    Args:
        envs: the environments that the model was trained on.
        tell_rules: open the episode with the rules and the answer format.
        max_turns: the turn budget.
        limits: token and time limits.
        temperature: of sampling.
    """

    envs: list[EnvSpec] = field(default_factory=list)
    tell_rules: bool = True
    max_turns: int = 30
    limits: Limits = field(default_factory=Limits)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise ValueError(f"max_turns={self.max_turns}: must be at least 1")

    def kwargs(self, env: str) -> dict[str, Any]:
        """Return the arguments of an environment as in training; of one that is new to the model only the layout.

        That is the layout of the others of its module, if it has layouts: how it is told is the model's matter, what it
        is is not.

        Args:
            env: gymnasium id with its module before a colon.
        """
        module = env.partition(":")[0]
        known = {spec.name: spec.kwargs for spec in self.envs if spec.name.startswith(f"{module}:")}
        layouts = [{"layout": kwargs["layout"]} for kwargs in known.values() if "layout" in kwargs]
        return dict(known.get(env, layouts[0] if layouts and "layout" in EnvSpec(env).arguments else {}))


def terms_of(content: Any, source: Path) -> Terms:
    """Check what was read from `source`.

    Raises:
        ValueError: it is not as `Terms` wants it.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Terms)
    try:
        values = parser.parse_object(content).as_dict()
        envs = [EnvSpec(**dict(spec)) for spec in values["envs"]]
        return Terms(**values | {"envs": envs, "limits": Limits(**values["limits"])})
    except (ArgumentError, AttributeError, TypeError, ValueError) as error:  # the second and third: no mapping
        raise ValueError(f"{source}: {reason(error)}") from None


def read_terms(model: str | Path) -> Terms:
    """Read the terms of a model folder; what is usual where it tells none, and for a hub id.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(model) / FILE
    if not path.is_file():
        return Terms()
    try:
        return terms_of(json.loads(path.read_text(encoding="utf-8")), path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None


def write_terms(folder: Path, terms: Terms) -> None:
    """Write the terms into a model folder."""
    text = json.dumps(dataclasses.asdict(terms), indent=2)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
