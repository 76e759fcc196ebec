"""What a text says of things and states: entities, states, JSON fields. For guard, distances and figures."""

import json
import re
from typing import Any

PIECE = re.compile(r"\b[a-z]+ \d+\b|\([\w,.-]+\)|[#\w-]+", re.IGNORECASE)  # read in linear time
STATES = frozenset(
    "closed off hot cold cool nothing not pending cancelled delivered returned false disabled disconnected inactive "
    "locked missing".split()
)
WORD = re.compile(r"[a-z]+")


def entities(text: str) -> frozenset[str]:
    """The things a text names: those with a number (mug 1), coordinates in parentheses, identifiers, bare numbers."""
    found = (piece.lower() for piece in PIECE.findall(text))
    return frozenset(piece for piece in found if piece.startswith("(") or any(map(str.isdigit, piece)))


def states(text: str) -> frozenset[str]:
    """The states a text tells. Open counts where nothing is closed: "open" stands in many sentences that only look."""
    words = frozenset(WORD.findall(text.lower()))
    return (words & STATES) | ({"open"} if {"open", "opened"} & words and "closed" not in words else frozenset())


def same(text: str) -> str:
    """A text as it is compared exactly: as sorted JSON, if it is a JSON object or list, else in single spaces."""
    value = as_json(text)
    return " ".join(text.split()) if value is None else json.dumps(value, sort_keys=True)


def as_json(text: str) -> Any:
    """The object or list that a text is, or None."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        value = json.loads(text)
        json.dumps(value)  # what is nested too deeply to be written is no answer of anything
    except (ValueError, RecursionError):
        return None
    return value


def fields(value: Any) -> dict[str, str]:
    """Every leaf of plain data by its path; an empty list or object is a leaf too."""
    found: dict[str, str] = {}
    waiting = [("", value)]
    while waiting:
        path, each = waiting.pop()
        items = each.items() if isinstance(each, dict) else enumerate(each) if isinstance(each, list) else ()
        below = [(f"{path}/{key}", one) for key, one in items]
        waiting += below
        if not below:
            found[path] = json.dumps(each)
    return found


def agree(one: str, other: str) -> bool:
    """Tell whether two texts name the same things and tell the same states."""
    return entities(one) == entities(other) and states(one) == states(other)
