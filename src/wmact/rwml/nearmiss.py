"""What a reward shall tell apart: of a true next state, the same in other words, and what is nearly it but false.

Everything is made by rule from the triplets of a file, and is None where a rule does not apply. A random number decides
which of several places is changed.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np

from wmact.rwml.state import as_json, same
from wmact.rwml.triplets import Triplet

ITEM = r"(?:an? |the )?[a-z]+ \d+"
LIST = re.compile(rf"{ITEM}(?:, (?:and )?{ITEM}| and {ITEM})+")
CELLS = re.compile(r"\(\d+,\d+\)(?: \(\d+,\d+\))+")
NUMBER = re.compile(r"(?<=[a-z] )\d+\b|(?<=[#\w(,])\d+\b|\b\d+\b")
SWITCHES = {"open": "closed", "on": "off", "hot": "cold", "heat": "cool", "pending": "cancelled", "true": "false"}
FLIPPED = SWITCHES | {b: a for a, b in SWITCHES.items()}
FLIP = re.compile(
    r"(?<=\bturn )(?:on|off)\b|(?<=\bswitched )(?:on|off)\b|"
    r"\b(?:open|closed|hot|cold|heat|cool|pending|cancelled|true|false)\b"
)
REWORDED = [
    (
        re.compile(r"You open the ([a-z]+ \d+)\. The \1 is open\. In it, you see"),
        r"The \1 is open now. In it there is",
    ),
    (re.compile(r"You close the ([a-z]+ \d+)\."), r"The \1 is closed now."),
    (re.compile(r"You pick up the ([a-z]+ \d+) from the ([a-z]+ \d+)\."), r"You take the \1 from the \2."),
    (re.compile(r"You (?:move|put) the ([a-z]+ \d+) (?:to|in/on) the ([a-z]+ \d+)\."), r"The \1 is at the \2 now."),
    (re.compile(r"You arrive at (?:loc )?([a-z]+ \d+)\."), r"You are at \1 now."),
    (re.compile(r"You (heat|cool|clean) the ([a-z]+ \d+) using the ([a-z]+ \d+)\."), r"With the \3 you \1 the \2."),
    (re.compile(r"You turn on the ([a-z]+ \d+)\."), r"The \1 is switched on now."),
    (re.compile(r"Nothing happens\."), r"Nothing changes."),
]
"""Sentences of ALFWorld → the same in other words."""


class Pairs(NamedTuple):
    """Pairs of texts of one kind: what it is, whether they say the same, the texts."""

    name: str
    same: bool
    truths: list[str]
    others: list[str]


def reordered(text: str, rng: np.random.Generator) -> str | None:
    """The same things in another order: JSON fields, or the items of lists."""
    value = as_json(text)
    if isinstance(value, dict) and len(value) > 1:
        return json.dumps(dict(reversed(value.items())))
    new = LIST.sub(lambda match: _rejoined(match[0]), text)
    new = CELLS.sub(lambda match: " ".join(reversed(match[0].split())), new)
    return new if new != text else None


def reworded(text: str, rng: np.random.Generator) -> str | None:
    """The same in other words, where it is a sentence whose like is known."""
    new = text
    for pattern, words in REWORDED:
        new = pattern.sub(words, new)
    return new if new != text else None


def id_swapped(text: str, rng: np.random.Generator) -> str | None:
    """One number one higher or lower: mug 2 for mug 1, (1,2) for (1,1)."""
    places = list(NUMBER.finditer(text))
    if not places:
        return None
    place = places[int(rng.integers(len(places)))]
    number = int(place[0][-9:])
    changed = number + 1 if number == 0 or rng.random() < 0.5 else number - 1
    return f"{text[: place.start()]}{place[0][:-9]}{changed}{text[place.end() :]}"


def flipped(text: str, rng: np.random.Generator) -> str | None:
    """One state turned into its opposite: open and closed, on and off, pending and cancelled, true and false."""
    places = list(FLIP.finditer(text))
    if not places:
        return None
    place = places[int(rng.integers(len(places)))]
    return f"{text[: place.start()]}{FLIPPED[place[0]]}{text[place.end() :]}"


def dropped(text: str, rng: np.random.Generator) -> str | None:
    """One thing left out: a field of JSON, an item of a list, a cell."""
    value = as_json(text)
    if isinstance(value, dict | list) and len(value) > 1:
        gone = int(rng.integers(len(value)))
        if isinstance(value, list):
            return json.dumps(value[:gone] + value[gone + 1 :])
        return json.dumps({key: each for i, (key, each) in enumerate(value.items()) if i != gone})
    places = [*LIST.finditer(text), *CELLS.finditer(text)]
    if not places:
        return None
    place = places[int(rng.integers(len(places)))]
    cells = place[0].startswith("(")
    items = place[0].split() if cells else re.findall(ITEM, place[0])
    gone = int(rng.integers(len(items)))
    items = items[:gone] + items[gone + 1 :]
    return f"{text[: place.start()]}{' '.join(items) if cells else _listed(items)}{text[place.end() :]}"


def echoes(triplets: Sequence[Triplet]) -> Iterator[tuple[str, str]]:
    """Each next state with what the world said last before it, where that is another."""
    for each, last in zip(triplets, said_before(triplets), strict=True):
        if last is not None and same(last) != same(each.next):
            yield each.next, last


def said_before(triplets: Sequence[Triplet]) -> list[str | None]:
    """What the world said last before each action, without what an observation adds around it, such as a history.

    It is the `next` of the step before. Where observations add nothing it is the observation, also where that step is
    not among the triplets; else it is None there.
    """
    said = {(each.game, each.source, each.seed, each.step): each.next for each in triplets}
    last = [said.get((each.game, each.source, each.seed, each.step - 1)) for each in triplets]
    pairs = list(zip(triplets, last, strict=True))
    plain = all(text in (None, each.observation) for each, text in pairs)
    return [each.observation if plain else text for each, text in pairs]


def of_same_verb(triplets: Sequence[Triplet], rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Each next state with that of another action of the same first word, where it is another."""
    by_verb: dict[str, list[Triplet]] = defaultdict(list)
    for each in triplets:
        by_verb[verb(each.action)].append(each)
    for each in triplets:
        like = by_verb[verb(each.action)]
        other = like[int(rng.integers(len(like)))]
        if same(other.next) != same(each.next):
            yield each.next, other.next


def verb(action: str) -> str:
    """The first word of an action; of a JSON call, the name of what is called."""
    call = as_json(action)
    if isinstance(call, dict) and isinstance(call.get("name"), str):
        return str(call["name"])
    return (action.split() or [""])[0].lower()


def by_hand() -> tuple[Pairs, Pairs]:
    """The pairs that were written by hand and come with the package: those that say the same, and those that do not."""
    lines = files("wmact").joinpath("assets", "paraphrases.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    alike, unlike = ([row for row in rows if row["same"] is is_same] for is_same in (True, False))
    return (
        Pairs("by hand", True, [row["a"] for row in alike], [row["b"] for row in alike]),
        Pairs("by hand, other", False, [row["a"] for row in unlike], [row["b"] for row in unlike]),
    )


Rule = Callable[[str, np.random.Generator], str | None]
PARAPHRASES: dict[str, Rule] = {"reordered": reordered, "reworded": reworded}
NEAR_MISSES: dict[str, Rule] = {"id swapped": id_swapped, "state flipped": flipped, "thing dropped": dropped}
GROSS = ("echo", "same verb")


def all_pairs(triplets: Sequence[Triplet], most: int, seed: int) -> list[Pairs]:
    """Make all pairs that the rules make of some triplets.

    Args:
        triplets: of one file.
        most: pairs of one kind.
        seed: of every choice.
    """
    rng = np.random.default_rng(seed)
    chosen = [triplets[i] for i in rng.permutation(len(triplets))]
    told = list(dict.fromkeys(each.next for each in chosen))
    made: list[Pairs] = []
    for name, rule in (PARAPHRASES | NEAR_MISSES).items():
        pairs = [(text, other) for text in told[: 4 * most] if (other := rule(text, rng)) is not None][:most]
        made.append(Pairs(name, name in PARAPHRASES, *_columns(pairs)))
    gross = {"echo": echoes(chosen), "same verb": of_same_verb(chosen, rng)}
    made += [Pairs(name, False, *_columns([*dict.fromkeys(pairs)][:most])) for name, pairs in gross.items()]
    return made


def _columns(pairs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


def _rejoined(found: str) -> str:
    return _listed(list(reversed(re.findall(ITEM, found))))


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])}, and {items[-1]}"
