"""Making environments, and keeping those that are made."""

import importlib
import inspect
import itertools
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from wmact.rollout import deadline


@dataclass(frozen=True)
class EnvSpec:
    """An environment: what `gymnasium.make` is called with.

    Args:
        id: gymnasium id, with the module that registers it before a colon; without one it is wmact_envs.
        kwargs: arguments of the environment.
    """

    id: str = "wmact_envs:wmact/Maze-v0"
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The id with its module."""
        return self.id if ":" in self.id else f"wmact_envs:{self.id}"

    @property
    def arguments(self) -> list[str]:
        """The names of the arguments that it takes; [] where there is no such environment.

        Raises:
            ImportError: there is no such module.
        """
        module, _, name = self.name.rpartition(":")
        importlib.import_module(module)
        entry = getattr(gymnasium.registry.get(name), "entry_point", None)
        make = load_env_creator(entry) if isinstance(entry, str) else entry
        return list(inspect.signature(make).parameters) if make else []

    def make(self) -> gymnasium.Env[str, str]:
        """Make one.

        Raises:
            ValueError: there is no such environment, or it refuses its arguments.
        """
        try:
            return gymnasium.make(self.name, disable_env_checker=True, **self.kwargs)
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            reason, known = " ".join(str(error).split()), ""
            with suppress(ImportError):
                if names := self.arguments:
                    known = f": {', '.join(names)}"
            raise ValueError(
                f"environment {self.id!r} with {self.kwargs}: {reason} (an id has its module before a colon, as in "
                f"wmact_envs:wmact/Maze-v0; kwargs are arguments of the environment's class{known})"
            ) from error


@dataclass(frozen=True)
class Variant:
    """An environment that is evaluated on, told by what sets it apart from the one that is trained on.

    Args:
        id: another environment, made with `kwargs` alone; null is the one that is trained on.
        kwargs: arguments; without an id they are laid over those of the environment that is trained on.
    """

    id: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    def of(self, env: EnvSpec) -> EnvSpec:
        """Return this variant of the environment that is trained on."""
        return EnvSpec(self.id, self.kwargs) if self.id else EnvSpec(env.id, env.kwargs | self.kwargs)


class Pools:
    """Environments that stay open: of each kind as many as were ever asked for at once.

    Args:
        step_seconds: most seconds that closing, or making anew, a broken one may take.
    """

    def __init__(self, step_seconds: float) -> None:
        self.step_seconds = step_seconds
        self._pools: dict[str, list[gymnasium.Env[str, str]]] = {}

    def __len__(self) -> int:
        """How many are open."""
        return sum(map(len, self._pools.values()))

    def of(self, spec: EnvSpec, number: int) -> list[gymnasium.Env[str, str]]:
        """At least so many of a kind, always the same."""
        pool = self._pools.setdefault(repr(spec), [])
        pool += [spec.make() for _ in range(number - len(pool))]
        return pool

    def one(self, spec: EnvSpec) -> gymnasium.Env[str, str]:
        """The first of a kind."""
        return self.of(spec, 1)[0]

    def renewed(self, spec: EnvSpec, broken: gymnasium.Env[str, str]) -> gymnasium.Env[str, str]:
        """A new environment in the place of one that failed: what it holds, such as a process, may be gone for good."""
        pool = self.of(spec, 1)
        place = pool.index(broken)
        with suppress(Exception), deadline(self.step_seconds):
            broken.close()
        with suppress(Exception), deadline(self.step_seconds):  # else it fails again, and is counted again
            pool[place] = spec.make()
        return pool[place]

    def close(self) -> None:
        """Close them all; one that fails or hangs is given up, and hides no other error."""
        pools, self._pools = self._pools, {}
        with suppress(Exception), deadline(self.step_seconds):
            for env in itertools.chain(*pools.values()):
                with suppress(Exception):  # a deadline's too, which comes again every second
                    env.close()
