"""A plan for a task of ALFWorld from any of its states: a pure function of the engine's facts.

A plan fetches what is wanted, changes it where the task says so, and brings it where it has to go: all ways of choosing
the things, the places and the appliance are tried, and the one with the fewest commands is taken. It knows where
everything lies, which an agent has to find out; `search` finds it out.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

CHANGES = {
    "pick_clean_then_place_in_recep": ("clean", "isclean", "sinkbasin"),
    "pick_heat_then_place_in_recep": ("heat", "ishot", "microwave"),
    "pick_cool_then_place_in_recep": ("cool", "iscool", "fridge"),
}
"""Task type → the verb, the fact that comes of it, and the kind of receptacle it takes."""


class Task(NamedTuple):
    """What is to be done. Kinds are in lower case, as in the facts; "" is none."""

    task_type: str
    target: str
    parent: str
    lamp: str

    @classmethod
    def read(cls, task_type: str, problem: str) -> Task:
        """Read it from the goal of a PDDL problem, which is one of ALFWorld's own templates."""
        goal = problem.partition("(:goal")[2]
        kinds = dict(re.findall(r"\(objectType \?(\w+) (\w+)Type\)", goal))
        lamp = kinds.pop("ot", "").lower()
        parent = re.search(r"\(receptacleType \?\w+ (\w+)Type\)", goal)
        return cls(task_type, next(iter(kinds.values()), "").lower(), parent[1].lower() if parent else "", lamp)


class House:
    """A state, sorted by what a plan asks for.

    Args:
        facts: (predicate, arguments), in the engine's lower case.
        names: id → what it is called in commands.
        put: how a thing is put down: "move {o} to {r}", in older games "put {o} in/on {r}".
    """

    def __init__(self, facts: Iterable[tuple[str, Sequence[str]]], names: Mapping[str, str], put: str) -> None:
        self.names, self.put = names, put
        self.facts: dict[str, set[str]] = {}  # predicate → its first arguments
        pairs: dict[str, list[tuple[str, str]]] = {}
        for name, (first, *rest) in facts:
            self.facts.setdefault(name, set()).add(first)
            if len(rest) == 1:
                pairs.setdefault(name, []).append((first, rest[0]))
        self.place = dict(pairs.get("inreceptacle", []))
        self.spot = dict(pairs.get("receptacleatlocation", []))
        self.contains = set(pairs.get("cancontain", []))
        self.kinds = dict(pairs.get("objecttype", [])) | dict(pairs.get("receptacletype", []))
        ((_, self.at),) = pairs["atlocation"]
        self.held = next((thing for _, thing in pairs.get("holds", [])), None)

    def true(self, fact: str, of: str) -> bool:
        """Whether a fact of one argument holds."""
        return of in self.facts.get(fact, ())

    def all(self, kind: str) -> list[str]:
        """Things or receptacles of a kind, sorted."""
        return sorted(name for name, of in self.kinds.items() if of == f"{kind}type")

    def seen(self, looked_at: Collection[str]) -> House:
        """The same, without the things that lie in other receptacles than these."""
        known = copy.copy(self)
        known.kinds = {
            name: kind
            for name, kind in self.kinds.items()
            if name in self.spot or name == self.held or self.place.get(name) in looked_at
        }
        return known


class Walk:
    """Commands, and what they have changed so far of what a plan depends on."""

    def __init__(self, house: House) -> None:
        self.house, self.at, self.opened = house, house.at, set(house.facts.get("opened", ()))
        self.commands: list[str] = []

    def go(self, receptacle: str) -> None:
        """Stand before it. Several may share a place, and there is no way to where one is."""
        if self.at != self.house.spot[receptacle]:
            self.commands.append(f"go to {self.house.names[receptacle]}")
            self.at = self.house.spot[receptacle]

    def reach_into(self, receptacle: str) -> None:
        """Stand before it, open."""
        self.go(receptacle)
        if self.house.true("openable", receptacle) and receptacle not in self.opened:
            self.commands.append(f"open {self.house.names[receptacle]}")
            self.opened.add(receptacle)

    def take(self, thing: str) -> None:
        """Fetch it from where it is."""
        receptacle = self.house.place[thing]
        self.reach_into(receptacle)
        self.commands.append(f"take {self.house.names[thing]} from {self.house.names[receptacle]}")

    def put(self, thing: str, receptacle: str) -> None:
        """Bring it there."""
        self.reach_into(receptacle)
        self.commands.append(self.house.put.format(o=self.house.names[thing], r=self.house.names[receptacle]))

    def do(self, verb: str, thing: str, receptacle: str) -> None:
        """Clean, heat or cool what is held."""
        self.go(receptacle)
        self.commands.append(f"{verb} {self.house.names[thing]} with {self.house.names[receptacle]}")

    def free_hands(self) -> None:
        """Put down what is held, where it takes least."""
        held = self.house.held
        if held is None:
            return
        ways = []
        for receptacle, kind in sorted(self.house.kinds.items()):
            if (kind, self.house.kinds[held]) in self.house.contains and receptacle in self.house.spot:
                way = Walk(self.house)
                way.put(held, receptacle)
                ways.append(way)
        best = min(ways, key=lambda way: len(way.commands))
        self.at, self.opened, self.commands = best.at, best.opened, best.commands


def plan(task: Task, house: House) -> list[str] | None:
    """Return commands that win, [] if nothing is left to do, or None if there is no plan of this kind."""
    walks = light(task, house) if task.lamp else bring(task, house)
    return min((walk.commands for walk in walks), key=len, default=None)


def search(task: Task, house: House, looked_at: Collection[str], lot: Callable[[str], float]) -> list[str] | None:
    """Return what one does who knows only what was seen: all that is left to do, or a look at one more place.

    The next place is one that can hold what is wanted, and any when there are none of them left.

    Args:
        looked_at: receptacles whose contents have been seen.
        lot: of a receptacle; the lowest is looked at first.

    Returns:
        Commands; None if everything was looked at in vain.
    """
    if (way := plan(task, house.seen(looked_at))) is not None:
        return way
    wanted = {f"{kind}type" for kind in (task.target, task.lamp) if kind}
    looks = []
    for receptacle in house.spot.keys() - looked_at:
        walk = Walk(house)
        walk.reach_into(receptacle)
        unlikely = not any((house.kinds[receptacle], kind) in house.contains for kind in wanted)
        # Where it stands already, with nothing to open, it has not looked at this one: two can share a place.
        looks.append((unlikely, lot(receptacle), walk.commands or [f"examine {house.names[receptacle]}"]))
    return min(looks)[-1] if looks else None


def bring(task: Task, house: House) -> Iterator[Walk]:
    """Every way to bring one thing, or two, to a receptacle."""
    verb, changed, where = CHANGES.get(task.task_type, ("", "", ""))
    for goal in house.all(task.parent):
        targets = house.all(task.target)
        there = {t for t in targets if house.place.get(t) == goal and (not verb or house.true(changed, t))}
        missing = max(0, (2 if task.task_type == "pick_two_obj_and_place" else 1) - len(there))
        left = [thing for thing in targets if thing not in there]
        for things, appliance in itertools.product(itertools.permutations(left, missing), house.all(where) or [""]):
            if house.held in left and things[:1] != (house.held,):
                continue  # what is in the hand goes first
            walk = Walk(house)
            if house.held not in things and missing:
                walk.free_hands()
            for thing in things:
                if thing != house.held:
                    walk.take(thing)
                if verb and not house.true(changed, thing):
                    walk.do(verb, thing, appliance)
                walk.put(thing, goal)
            yield walk


def light(task: Task, house: House) -> Iterator[Walk]:
    """Every way to hold a thing beside a lamp that has been switched on."""
    for thing, lamp in itertools.product(house.all(task.target), house.all(task.lamp)):
        if house.held in house.all(task.target) and thing != house.held:
            continue
        walk = Walk(house)
        if thing != house.held:
            walk.free_hands()
            walk.take(thing)
        walk.go(house.place[lamp])
        if not house.true("istoggled", lamp):
            walk.commands.append(f"use {house.names[lamp]}")
        yield walk
