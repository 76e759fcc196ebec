"""Taxi: fetch the passenger and bring them to the destination. First the rules as pure functions, then the env.

The rules are those of gymnasium's Taxi-v4, read from its own table of transitions: a town of 5 x 5 cells that is always
the same, with four pads. Two harder variants are gymnasium's as well. In rain a move goes astray with probability 0.2.
A fickle passenger, with probability 0.3, names another destination as soon as the taxi has carried them one cell.

Reward is 1 for the delivery and 0 for anything else, as in a maze. Gymnasium's own rewards, -1 a step, -10 for a wrong
pickup or dropoff and +20 at the end, shape the behaviour that an agent here shall learn from the outcome, and would
count once more what the rollout counts already: how many of its actions changed anything.

A level is a start: 25 cells for the taxi, 4 pads for the passenger and 3 others for the destination make 300. By their
hashes 214 of them are "train", 34 "val" and 52 "test", the same in all variants. An agent that drives about in training
passes through states that are starts of a test level. So success on "test" tells that the task was learnt, and not that
unseen states are mastered; a town has too few for that.
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict, deque
from itertools import permutations
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text
from numpy.typing import NDArray

from . import pictures, splits
from .grid import Cell, told
from .text import TextEnv

ACTIONS = ("south", "north", "east", "west", "pickup", "dropoff")
"""In gymnasium's order, which also breaks ties between equally short solutions."""
DIRECTIONS = {(1, 0): "south", (-1, 0): "north", (0, 1): "east", (0, -1): "west"}
MAP = """\
+---------+
|R: | : :G|
| : | : : |
| : : : : |
| | : | : |
|Y| : |B: |
+---------+"""
SIZE = 5
CELLS = [(row, column) for row in range(SIZE) for column in range(SIZE)]
PADS: dict[str, Cell] = {"R": (0, 0), "G": (0, 4), "Y": (4, 0), "B": (4, 3)}
WALLS = [((r, c), (r, c + 1)) for r, c in CELLS if c + 1 < SIZE and MAP.splitlines()[r + 1][2 * c + 2] == "|"]
"""Neighbours in a row that are kept apart. Between rows there are no walls."""
ABOARD = "in"
"""Where the passenger is who is at no pad."""
FICKLE = 0.3
"""Probability that a fickle passenger names another destination: gymnasium's."""


class State(NamedTuple):
    """One of gymnasium's 500 states."""

    taxi: Cell
    passenger: str
    """A pad, or `ABOARD`."""
    destination: str


@functools.cache
def transitions(rainy: bool) -> dict[tuple[State, str], list[tuple[float, State]]]:
    """Return gymnasium's table: for every state and action, with their probabilities, the states that may follow."""
    game: Any = gymnasium.make("Taxi-v4", is_rainy=rainy, disable_env_checker=True).unwrapped
    places, pads = (*PADS, ABOARD), tuple(PADS)
    codes = [game.decode(number) for number in range(len(CELLS) * len(places) * len(pads))]
    states = [State((row, column), places[passenger], pads[pad]) for row, column, passenger, pad in codes]
    return {
        (state, action): [(probability, states[target]) for probability, target, *_ in game.P[number][index]]
        for number, state in enumerate(states)
        for index, action in enumerate(ACTIONS)
    }


def act(state: State, action: str, rainy: bool = False, chance: float = 0.0) -> State:
    """Return the state that `action` leads to; in rain `chance`, from 0 up to 1, decides which of several."""
    *others, (_, last) = transitions(rainy)[state, action]
    for probability, after in others:
        chance -= probability
        if chance < 0:
            return after
    return last


def whim(destination: str, chance: float) -> str | None:
    """Return the other destination that a fickle passenger will name, or None if they will not; `chance` decides."""
    others = [pad for pad in PADS if pad != destination]
    return others[int(chance / FICKLE * len(others))] if chance < FICKLE else None


@functools.cache
def distances() -> dict[State, int]:
    """Return the least number of actions that delivers from each state, in dry weather and to a fixed destination."""
    before = defaultdict(list)
    for (state, _), [(_, after)] in transitions(False).items():
        before[after].append(state)
    field = {state: 0 for state in before if state.passenger == state.destination}
    queue = deque(field)
    while queue:
        state = queue.popleft()
        for earlier in before[state]:
            if earlier not in field:
                field[earlier] = field[state] + 1
                queue.append(earlier)
    return field


def solve(state: State) -> list[str]:
    """Return a shortest list of actions to the delivery, in dry weather and to a fixed destination."""
    actions: list[str] = []
    while left := distances()[state]:
        actions.append(next(action for action in ACTIONS if distances()[act(state, action)] == left - 1))
        state = act(state, actions[-1])
    return actions


def level_id(start: State) -> str:
    """Name a start by its hash. The town looks the same from no other side, so there are no symmetric copies."""
    (row, column), passenger, destination = start
    return hashlib.sha256(f"taxi:{row},{column}:{passenger}:{destination}".encode()).hexdigest()


@functools.cache
def levels(split: str) -> tuple[State, ...]:
    """Return the starts that belong to a split in the order of their hashes, which is as good as shuffled."""
    starts = [State(taxi, *pads) for taxi in CELLS for pads in permutations(PADS, 2)]
    return tuple(sorted((start for start in starts if splits.split_of(level_id(start)) == split), key=level_id))


def event(before: State, action: str, after: State) -> tuple[str, str]:
    """Name what an action did: a key of `EVENTS`, and the direction or pad that goes with it."""
    if action == "pickup":
        return ("aboard" if before.passenger == ABOARD else "picked up" if after != before else "nobody"), ""
    if action == "dropoff":
        if after == before:
            return ("no pad" if before.passenger == ABOARD else "empty"), ""
        return ("delivered" if after.passenger == after.destination else "put down"), after.passenger
    if after.taxi == before.taxi:
        return "blocked", ""
    # In rain not always the direction of the action.
    return "moved", DIRECTIONS[after.taxi[0] - before.taxi[0], after.taxi[1] - before.taxi[1]]


def report(before: State, action: str, after: State, layout: str) -> str:
    """Tell what an action did, and whether the passenger has changed the destination, in the words of a layout."""
    kind, detail = event(before, action, after)
    told = EVENTS[layout][kind].format(detail)
    if after.destination != before.destination:
        told += " " + EVENTS[layout]["changed"].format(after.destination)
    return told


def draw(state: State) -> str:
    """Draw the town, with `T` for the taxi, and tell below it in words where everything is."""
    (row, column), passenger, destination = state
    lines = MAP.splitlines()
    line, place = lines[row + 1], 2 * column + 1
    lines[row + 1] = f"{line[:place]}T{line[place + 1 :]}"
    where = "in your taxi" if passenger == ABOARD else f"at {passenger} {told(PADS[passenger])}"
    lines.append(f"Taxi: {told(state.taxi)}. Passenger: {where}.")
    lines.append(f"Destination: {destination} {told(PADS[destination])}.")
    return "\n".join(lines)


def list_cells(state: State) -> str:
    """Tell the town as coordinates: walls as pairs of cells, pads, destination, passenger, and last the taxi."""
    taxi, passenger, destination = state
    return f"{_town()} destination {destination} passenger {passenger} taxi {told(taxi)}"


@functools.cache
def _town() -> str:
    """Tell what never changes."""
    walls = (f"{told(west)} | {told(east)}" for west, east in WALLS)
    pads = (f"{pad} {told(cell)}" for pad, cell in PADS.items())
    return " ".join(["wall", *walls, "pads", *pads])


TINTS = {"R": (245, 183, 177), "G": (183, 225, 190), "Y": (249, 231, 159), "B": (174, 203, 240)}
ORANGE = (219, 109, 40)


def picture(state: State, pixels: int = 64) -> NDArray[np.uint8]:
    """Paint the town with `pixels` a cell: (5 * pixels, 5 * pixels, 3) RGB.

    Taxi: blue disc; destination: green diamond; passenger: small orange disc, in a corner of the pad or on the taxi.
    """
    taxi, passenger, destination = state
    aside = 0.0 if passenger == ABOARD else 0.6
    things: list[tuple[Cell, pictures.Shape, pictures.Colour]] = [
        *((cell, lambda x, _: x < 1, TINTS[pad]) for pad, cell in PADS.items()),  # the whole cell
        (PADS[destination], pictures.diamond, pictures.GREEN),
        (taxi, pictures.disc, pictures.BLUE),
        (PADS.get(passenger, taxi), lambda x, y: pictures.disc(2 * x + aside, 2 * y + aside), ORANGE),
    ]
    image = pictures.paint(np.zeros((SIZE, SIZE), dtype=bool), things, pixels)
    half = max(1, pixels // 16)  # of a wall's thickness
    for _, (r, c) in WALLS:
        image[r * pixels : (r + 1) * pixels, c * pixels - half : c * pixels + half] = pictures.WALL
    image[:half] = image[-half:] = image[:, :half] = image[:, -half:] = pictures.WALL
    return image


EVENTS = {
    "grid": {
        "moved": "You moved {}.",
        "blocked": "A wall stopped you.",
        "picked up": "You picked up the passenger.",
        "nobody": "There is no passenger here.",
        "aboard": "The passenger is in your taxi already.",
        "delivered": "You delivered the passenger at {}.",
        "put down": "You dropped the passenger off at {}, which is not the destination.",
        "empty": "There is no passenger in your taxi.",
        "no pad": "You cannot drop off here: this is no pad.",
        "changed": "The passenger now wants to go to {}.",
    },
    "cells": {  # in words of the small model
        "moved": "moved {}",
        "blocked": "blocked",
        "picked up": "pickup done",
        "nobody": "no passenger",
        "aboard": "passenger still in taxi",
        "delivered": "dropoff {} solved",
        "put down": "dropoff {} done",
        "empty": "no passenger in taxi",
        "no pad": "no pad",
        "changed": "now destination {}",
    },
}
"""What the observation opens with after an action, by layout."""

RULES = """\
You drive a taxi in a town of 5 rows and 5 columns. Pick up the passenger and drop them off at the destination, in as \
few actions as you can.
Cells are written (row,column), counted from (0,0) in the upper left corner. South adds one to the row, north takes \
one from it; east adds one to the column, west takes one from it. A move into a wall, or out of the town, leaves you \
where you are.
There are four pads: R (0,0), G (0,4), Y (4,0) and B (4,3). pickup works on the pad where the passenger waits. dropoff \
works on every pad while the passenger is in your taxi; at the destination it ends the ride, at another pad the \
passenger waits there to be picked up again.
{variants}{layout}"""

VARIANTS = {
    "rainy": """\
It rains. Where the way ahead is free, 2 of 10 moves slide to the side instead, half of them to the left and half to \
the right, and end where they began if a wall is there.
""",
    "fickle": """\
The passenger is fickle: once in a ride, when you have carried them one cell, they may name another destination.
""",
}

LAYOUTS = {
    "grid": """\
You are told what your last action did. Then the town is drawn with one line a row, inside a frame: T your taxi (it \
hides the pad it stands on), R G Y B the pads, | a wall and : a free way between two cells of a row. From row to row \
the way is always free. Below the drawing you read where everything is.""",
    "cells": """\
You are told what your last action did. After "wall" come the walls except those around the town, each as the two \
cells it stands between, joined by |. After "pads" comes every pad with its cell, after "destination" the pad to go \
to, after "passenger" the pad where the passenger is, or "in" for in your taxi, after "taxi" your cell.""",
}


class TaxiEnv(TextEnv):
    """Fetch a passenger and drop them off at the destination. Reward 1 for that, which ends the episode; else 0.

    In the rainy and the fickle variant, the same level, reset seed and actions make the same episode; a reset without a
    seed brings other luck than the one before. A copy of the environment has the luck of the original.
    `optimal_length` and `solution` are those of dry weather and of a passenger who keeps to the current destination.
    """

    action_names = ACTIONS
    example_actions = ("south", "west", "pickup")
    state: State
    # Not part of the state, or every action would change it: what to tell of the last action, and how many actions
    # there were, which is the place in the stream of luck. (A generator would be shared by copies of the environment.)
    _event: str
    _actions: int
    _seed: tuple[int, int]
    _origin: str
    _whim: str | None

    def __init__(
        self,
        rainy: bool = False,
        fickle: bool = False,
        split: str = "train",
        layout: str = "grid",
        render_mode: str | None = None,
    ) -> None:
        """Choose the variant, the levels and how they are told.

        Args:
            rainy: a move whose way is free goes ahead with probability 0.8 only, and to either side with 0.1.
            fickle: with probability 0.3 the passenger names another destination after the first cell of the ride.
            split: "train" (214 levels), "val" (34) or "test" (52). No start of one split is in another.
            layout: "grid" draws the town; "cells" lists coordinates, for models that read a drawing badly.
            render_mode: None, "ansi" (the drawing, whatever the layout) or "rgb_array".

        Raises:
            ValueError: an unknown split, layout or render mode, or a variant that is neither True nor False.
        """
        for name, value in (("rainy", rainy), ("fickle", fickle)):
            if not isinstance(value, bool):  # the text "false" would otherwise mean True
                raise ValueError(f"{name}={value!r}: use True or False")
        if layout not in LAYOUTS:
            raise ValueError(f"layout={layout!r}: use one of {', '.join(LAYOUTS)}")
        self.rainy, self.fickle, self.layout = rainy, fickle, layout
        variants = VARIANTS["rainy"] * rainy + VARIANTS["fickle"] * fickle
        self.rules = RULES.format(variants=variants, layout=LAYOUTS[layout])
        super().__init__(observation_space(layout), split, render_mode)
        self.num_levels = len(levels(split))

    @property
    def ride(self) -> State:
        """The current state; ResetNeeded if there is none yet."""
        if not self._level_info:
            raise ResetNeeded("there is no ride yet: call reset() first")
        return self.state

    def solution(self) -> list[str]:
        """Return a shortest list of actions from the current state."""
        return solve(self.ride)

    def observe(self) -> str:
        """Return what the last action did, if there was one, and the town as `layout` has it."""
        if self.layout == "grid":
            return f"{self._event}\n{draw(self.state)}" if self._event else draw(self.state)
        return f"{self._event} {list_cells(self.state)}" if self._event else list_cells(self.state)

    def place(self) -> str:
        """Return the taxi's cell, as in "(1,2)", and the passenger's place, "(in)" or "(B)", once it is another one."""
        taxi, passenger, _ = self.ride
        return told(taxi) + (f" ({passenger})" if passenger != self._origin else "")

    def read_place(self, text: str) -> State | None:
        """Return the state of that taxi and passenger, with the current destination, or None if there is none such."""
        cell, _, passenger = text.partition(" ")
        taxi = next((each for each in CELLS if told(each) == cell), None)
        where = passenger[1:-1] if passenger else self._origin
        if taxi is None or where not in (*PADS, ABOARD) or (passenger and passenger != f"({where})"):
            return None
        return State(taxi, where, self.ride.destination)

    def render(self) -> str | NDArray[np.uint8] | None:
        """Return the drawing ("ansi") or an image (320, 320, 3) ("rgb_array")."""
        if self.render_mode == "ansi":
            return draw(self.ride)
        return picture(self.ride) if self.render_mode == "rgb_array" else None

    def _load(self, number: int) -> tuple[str, int]:
        start = self.state = levels(self.split)[number]
        self._origin = start.passenger
        self._event = ""
        self._actions = 0
        # A child's numbers leave the environment's own generator, which draws the levels, where it was.
        self._seed = int(self.np_random.spawn(1)[0].integers(2**63)), number
        self._whim = whim(start.destination, self._chance()) if self.fickle else None
        return level_id(start), distances()[start]

    def _act(self, action: str) -> float:
        before = self.state
        self._actions += 1
        after = act(before, action, self.rainy, self._chance() if self.rainy else 0.0)
        if self._whim and before.passenger == after.passenger == ABOARD and after.taxi != before.taxi:
            after = after._replace(destination=self._whim)  # changes nothing from the second cell on
        self.state, self._event = after, report(before, action, after, self.layout)
        return float(self._solved())

    def _chance(self) -> float:
        """Return the number from 0 up to 1 that decides the action under way."""
        return int(np.random.SeedSequence([*self._seed, self._actions]).generate_state(1)[0]) / 2**32

    def _solved(self) -> bool:
        return self.state.passenger == self.state.destination


def observation_space(layout: str) -> Text:
    """Return the space of all observations in a layout, with an upper bound of their length."""
    show = draw if layout == "grid" else list_cells
    towns = [show(State((4, 3), passenger, pad)) for passenger in (*PADS, ABOARD) for pad in PADS]
    events = "".join(EVENTS[layout].values()) + "south"
    charset = frozenset("".join((*towns, events, *ACTIONS, "01234 ")))
    return Text(max_length=len(events) + 1 + max(map(len, towns)), charset=charset)
