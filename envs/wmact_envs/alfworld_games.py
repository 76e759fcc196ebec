"""Which game is level n of ALFWorld: the official ones where they have been downloaded, else games composed here.

A composed game is a real ALFWorld game, made of what the package `alfworld` ships: its 120 rooms (which receptacles
stand where, which kinds of things there are), what can contain what, what can be heated, cooled or cleaned, the goals
of the six task types with their wording, the PDDL domain and the grammar. What is drawn is the task, where things lie
and how many of them there are. Stove burners, coffee machines and toasters have no place in the room files, so they
are given one. Every game can be won: the target stands apart from where it has to go, and everything that the task
needs is in the room.

Levels are functions of (split, number, task types) and of nothing else, the same in every process and on every machine.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

SPLITS = ("train", "valid_seen", "valid_unseen")
"""As the official data has them."""
TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
ROOMS = {
    "pick_and_place_simple": ("Kitchen", "LivingRoom", "Bedroom", "Bathroom"),
    "look_at_obj_in_light": ("LivingRoom", "Bedroom"),
    "pick_clean_then_place_in_recep": ("Kitchen", "Bathroom"),
    "pick_heat_then_place_in_recep": ("Kitchen",),
    "pick_cool_then_place_in_recep": ("Kitchen",),
    "pick_two_obj_and_place": ("Kitchen", "LivingRoom", "Bedroom", "Bathroom"),
}
CHANGES = {
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
"""Task type → what the target has to be, and where it is made so. A bathtub's basin cleans nothing."""
LAMPS = ("DeskLamp", "FloorLamp")
LAMP_STANDS = "Desk SideTable Dresser Shelf CoffeeTable DiningTable TVStand Bed Sofa ArmChair".split()
PLACELESS = {"StoveBurner": 4, "CoffeeMachine": 1, "Toaster": 1}
"""Receptacles that the room files name without a place, and how many of each there are."""
MOST_OF_A_KIND = 3  # things, as in the official games (MAX_NUM_OF_OBJ_INSTANCES)
SEEN_SHARE = 0.1  # of the goals in training rooms that are kept for valid_seen
MANGLED = (("-", "_minus_"), ("#", "-"), ("|", "_bar_"), ("+", "_plus_"), (".", "_dot_"), (",", "_comma_"))
"""How ALFWorld writes ids in PDDL."""


class Game(NamedTuple):
    """One game, as the engine loads it.

    name: task type, target, destination or lamp, room, and what tells it from others like it; as official folders are.
    data: pddl_domain, grammar, pddl_problem and more: what `textworld.envs.PddlEnv.load` takes.
    """

    name: str
    task_type: str
    data: dict[str, Any]

    @property
    def level_id(self) -> str:
        """sha256 of all that makes two games differ: the problem, and the task's wording in the grammar."""
        told = json.dumps([self.data["pddl_problem"], self.data["grammar"]])
        return hashlib.sha256(told.encode()).hexdigest()


class Scene(NamedTuple):
    """What came of a command, or of the start.

    feedback: what the engine said.
    admissible: every command that it knows in this state, sorted.
    effective: a fact changed, other than that something was looked at.
    won: the task is done.
    """

    feedback: str
    admissible: tuple[str, ...]
    effective: bool
    won: bool


class Start(NamedTuple):
    """A game that begins; `length` is that of its plan."""

    name: str
    task_type: str
    level_id: str
    length: int
    scene: Scene


class Goal(NamedTuple):
    """What is to be done where. `parent` is the kind of receptacle that the target goes to, or "" with a lamp."""

    task_type: str
    scene: int
    target: str
    parent: str
    lamp: str

    @property
    def name(self) -> str:
        """As the official folders are named."""
        return f"{self.task_type}-{self.target}-None-{self.parent or self.lamp}-{self.scene}"

    @property
    def kept(self) -> bool:
        """Whether it is kept for valid_seen, if its room is one of training."""
        return int(hashlib.sha256(self.name.encode()).hexdigest()[:8], 16) / 2**32 < SEEN_SHARE


class Room(NamedTuple):
    """A room as the package ships it."""

    receptacles: dict[str, str]
    """Id → the location one stands at to reach it, both as PDDL has them before mangling."""
    kinds: list[str]
    """Kinds of things there are."""

    @property
    def receptacle_kinds(self) -> list[str]:
        """Kinds of receptacles there are."""
        return sorted({kind_of(receptacle) for receptacle in self.receptacles})


# Official games


def official_root() -> Path | None:
    """Where the official games are, if they have been downloaded: $ALFWORLD_DATA/json_2.1.1."""
    root = Path(os.environ.get("ALFWORLD_DATA") or "~/.cache/alfworld").expanduser() / "json_2.1.1"
    return root if any((root / split).is_dir() for split in SPLITS) else None


@functools.cache
def official_games(root: Path, split: str, task_types: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the game files of a split that can be played, in an order that mixes task types and is always the same.

    As ALFWorld itself does it leaves out tasks with movable receptacles and with slices, and games that its own planner
    could not solve.

    Raises:
        ValueError: there are none.
    """
    found = []
    for path in (root / split).glob("*/*/game.tw-pddl"):
        task = path.parent.parent.name
        if task.partition("-")[0] in task_types and "movable" not in task and "Sliced" not in task:
            head = path.read_text(encoding="utf-8")
            if '"solvable": true' in head or json.loads(head).get("solvable"):
                found.append(path)
    if not found:
        raise ValueError(f"{root / split} holds no game (*/*/game.tw-pddl) of {', '.join(task_types)}")
    return tuple(sorted(found, key=lambda path: hashlib.sha256(_name(path).encode()).digest()))


def read_official(path: Path) -> Game:
    """Read a game file.

    Raises:
        ValueError: it is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["pddl_domain"], data["grammar"], data["pddl_problem"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no game of ALFWorld: {type(error).__name__} {error}") from error
    return Game(_name(path), path.parent.parent.name.partition("-")[0], data)


def _name(path: Path) -> str:
    return f"{path.parent.parent.name}/{path.parent.name}"


# Composed games


def compose(split: str, number: int, task_types: Sequence[str] = TASK_TYPES) -> Game:
    """Compose level `number` of a split; task types take turns. Needs the package alfworld."""
    task_type = task_types[number % len(task_types)]
    seed = np.random.SeedSequence([SPLITS.index(split), TASK_TYPES.index(task_type), number])
    rng = np.random.default_rng(seed)
    goal = draw_goal(rng, split, task_type)
    return furnish(rng, goal, f"trial_{split}_{number:08d}")


def draw_goal(rng: np.random.Generator, split: str, task_type: str) -> Goal:
    """Draw a room of the split, and something to do in it that belongs to the split."""
    constants = _alfworld("gen.constants")
    numbers = constants.TEST_SCENE_NUMBERS if split == "valid_unseen" else constants.TRAIN_SCENE_NUMBERS
    while True:
        scenes = constants.SCENE_TYPE[_pick(rng, ROOMS[task_type])]
        goals = goals_in(_pick(rng, [number for number in scenes if number in numbers]), task_type)
        if split != "valid_unseen":
            goals = [goal for goal in goals if goal.kept == (split == "valid_seen")]
        if goals:
            return _pick(rng, goals)


@functools.lru_cache(maxsize=1024)
def goals_in(scene: int, task_type: str) -> list[Goal]:
    """Return everything that there is to do in a room."""
    room, things = load_room(scene), _things(scene)
    kinds = room.receptacle_kinds
    if task_type == "look_at_obj_in_light":
        return [Goal(task_type, scene, thing, "", lamp) for thing in things for lamp in LAMPS if lamp in room.kinds]
    quality, where = CHANGES.get(task_type, ("", ""))
    if quality:
        able = _alfworld("gen.constants").VAL_ACTION_OBJECTS[quality]
        things = [thing for thing in things if thing in able and where in kinds]
    return [
        Goal(task_type, scene, thing, parent, "")
        for thing in things
        for parent in kinds
        # a place to go to, that is not where the change is made, and another to begin at
        if fits(thing, parent) and parent != where and any(fits(thing, kind) for kind in kinds if kind != parent)
    ]


def furnish(rng: np.random.Generator, goal: Goal, trial: str) -> Game:
    """Put things into the goal's room, the target somewhere else than it has to go, and write the game."""
    room = load_room(goal.scene)
    place: dict[str, str] = {}  # thing → receptacle

    def put(kind: str, stands: Sequence[str]) -> str:
        thing = _new_id(rng, kind)
        while thing in place:
            thing = _new_id(rng, kind)
        place[thing] = _pick(rng, stands)
        return thing

    elsewhere = [r for r in room.receptacles if fits(goal.target, kind_of(r)) and kind_of(r) != goal.parent]
    _, where = CHANGES.get(goal.task_type, ("", ""))
    two = goal.task_type == "pick_two_obj_and_place"
    for _ in range(int(rng.integers(2, 4) if two else rng.integers(1, 3))):
        put(goal.target, [r for r in elsewhere if kind_of(r) != where] or elsewhere)
    for kind in _things(goal.scene):
        if kind != goal.target:
            stands = [r for r in room.receptacles if fits(kind, kind_of(r))]
            for _ in range(int(rng.integers(1, MOST_OF_A_KIND + 1))):
                put(kind, stands)
    if goal.lamp:
        stands = [r for r in room.receptacles if kind_of(r) in LAMP_STANDS] or list(room.receptacles)
        put(goal.lamp, stands)
    task = _alfworld("gen.goal_library").gdict[goal.task_type]
    words = {"obj": goal.target, "recep": goal.parent, "toggle": goal.lamp, "mrecep": ""}
    told = _pick(rng, task["templates"]).format(**{name: word.lower() for name, word in words.items()})
    # next to nothing: the first look finds the middle of the room
    start = f"loc|{int(rng.integers(-3, 4)) + 40}|{int(rng.integers(-3, 4))}|{int(rng.integers(4))}|30"
    problem = _problem(room, place, start, trial) + task["pddl"].format(**words)
    data = {
        "pddl_domain": _shipped("data/alfred.pddl"),
        "grammar": _shipped("data/alfred.twl2").replace("UNKNOWN GOAL", told),
        "pddl_problem": _mangle(problem),
        "solvable": True,
    }
    return Game(f"{goal.name}/{trial}", goal.task_type, data)


def fits(thing: str, receptacle: str) -> bool:
    """Whether ALFRED lets things of this kind be put into receptacles of that one."""
    return thing in _alfworld("gen.constants").VAL_RECEPTACLE_OBJECTS.get(receptacle, ())


def kind_of(name: str) -> str:
    """The kind of a thing or receptacle: Sink|-01.90|+00.97|-01.50|SinkBasin is a SinkBasin."""
    parts = name.split("|")
    return parts[-1] if parts[-1].endswith("Basin") else parts[0]


@functools.cache
def load_room(scene: int) -> Room:
    """Read a room from the files that the package ships."""
    constants = _alfworld("gen.constants")
    fixed = constants.RECEPTACLES - constants.MOVABLE_RECEPTACLES_SET
    layout = json.loads(_shipped(f"gen/layouts/FloorPlan{scene}-openable.json"))
    kinds = sorted(json.loads(_shipped(f"gen/layouts/FloorPlan{scene}-objects.json")))
    receptacles = {name: _location(*spot) for name, spot in sorted(layout.items()) if kind_of(name) in fixed}
    beyond = max(spot[0] for spot in layout.values()) + 1
    for row, (kind, count) in enumerate(PLACELESS.items()):
        for column in range(count if kind in kinds else 0):
            x, z = beyond + column / 4, row + 2.0
            receptacles[f"{kind}|{x:+06.2f}|+00.90|{z:+06.2f}"] = _location(x, z, 0, 45)
    return Room(receptacles, kinds)


def _things(scene: int) -> list[str]:
    """Kinds of things of a room that can be put somewhere in it, and so be picked up."""
    room = load_room(scene)
    return [kind for kind in room.kinds if any(fits(kind, receptacle) for receptacle in room.receptacle_kinds)]


def _problem(room: Room, place: dict[str, str], start: str, trial: str) -> str:
    """The PDDL problem without its goal, before mangling."""
    constants = _alfworld("gen.constants")
    things, receptacles = sorted(place), sorted(room.receptacles)
    kinds, receptacle_kinds = sorted({kind_of(thing) for thing in things}), room.receptacle_kinds
    objects = ["agent1 # agent"]
    objects += [f"{kind}Type # otype" for kind in kinds] + [f"{kind}Type # rtype" for kind in receptacle_kinds]
    objects += [f"{thing} # object" for thing in things] + [f"{name} # receptacle" for name in receptacles]
    objects += [f"{spot} # location" for spot in sorted({start, *room.receptacles.values()})]
    facts = [f"receptacleType {name} {kind_of(name)}Type" for name in receptacles]
    facts += [f"objectType {thing} {kind_of(thing)}Type" for thing in things]
    facts += [f"canContain {r}Type {kind}Type" for r in receptacle_kinds for kind in kinds if fits(kind, r)]
    for thing in things:
        kind = kind_of(thing)
        facts += [f"pickupable {thing}"] if kind not in LAMPS else []
        facts += [f"isReceptacleObject {thing}"] if kind in constants.MOVABLE_RECEPTACLES_SET else []
        able = constants.VAL_ACTION_OBJECTS
        facts += [f"{quality.lower()} {thing}" for quality in sorted(able) if kind in able[quality]]
    facts += [f"openable {name}" for name in receptacles if kind_of(name) in constants.OPENABLE_CLASS_SET]
    facts += [f"atLocation agent1 {start}"]
    for thing in things:
        facts += [f"inReceptacle {thing} {place[thing]}", f"objectAtLocation {thing} {room.receptacles[place[thing]]}"]
    facts += [f"receptacleAtLocation {name} {room.receptacles[name]}" for name in receptacles]
    listed = "\n    ".join(f"({fact})" for fact in facts)
    told = "\n    ".join(objects)
    return f"(define (problem {trial})\n(:domain alfred)\n(:objects\n    {told}\n)\n(:init\n    {listed}\n)\n"


def _location(x: float, z: float, rotation: float, horizon: float) -> str:
    return f"loc|{round(x / 0.25)}|{round(z / 0.25)}|{round(rotation / 90) % 4}|{round(horizon)}"


def _new_id(rng: np.random.Generator, kind: str) -> str:
    x, y, z = rng.uniform(-4, 4), rng.uniform(0, 2), rng.uniform(-4, 4)
    return f"{kind}|{x:+06.2f}|{y:+06.2f}|{z:+06.2f}"


def _mangle(text: str) -> str:
    for mark, word in MANGLED:
        text = text.replace(mark, word)
    return text


def _pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _alfworld(module: str) -> Any:
    return importlib.import_module(f"alfworld.{module}")


@functools.cache
def _shipped(path: str) -> str:
    spec = importlib.util.find_spec("alfworld")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]) / path).read_text(encoding="utf-8")
