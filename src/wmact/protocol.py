"""What the model is told and how its answer is read.

An answer is free thinking and then a set of one or more actions: ``<think>…</think> <action>up, left</action>``. The
reader is generous about the form, because a language model's first attempts are what it learns from, and strict about
the content: a word in the action tags that names no action is returned too, and counts as an unreadable action in the
N of WMAct's reward rescaling. Only what the model wrote is ever read here, never an observation.

Where an environment takes sentences or JSON, an answer holds one action, and it is what stands in the tags, letter by
letter.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Literal, NamedTuple

MAX_ACTIONS = 1000  # of one answer
MAX_BROKEN = 20  # JSON objects of one answer that are none, before no other is looked for: each costs a reading
MAX_WORD = 40  # characters kept of a word that names no action

# Every repetition below is bounded or cannot overlap its neighbours, so that reading takes linear time.
TAG = re.compile(r"<\s{0,3}([/\\]?)\s{0,3}(think|thinking|thought|actions?|answer)\s{0,3}>", re.IGNORECASE)
FENCE = re.compile(r"\s*(?:```(?:json\b|\w{0,20}\s*\n)?\s*)?")  # or only blanks
JSON = json.JSONDecoder(strict=False)  # line breaks in strings are what models write
COMMENT = re.compile(r"\([^()]*\)")
LIST_NUMBER = re.compile(r"\b\d+\s?[.):]")
BULLET = re.compile(r"^(?:\d+\s?[.):]|[-*•+])\s")
WORD = re.compile(r"[^\s,;:|/\\<>=()\[\]{}\"'`“”‘’«»*#~•·….!?–—→⇒]+")
SEPARATORS = "\n;|,"  # of actions that may be several words
MARKS = ((",", "commas"), (";", "semicolons"), ("|", "bars"))
"""What a model is told to put between actions: the first that is no part of one."""
ARROWS = {"→": "right", "➡": "right", "←": "left", "⬅": "left", "↑": "up", "⬆": "up", "↓": "down", "⬇": "down"}
FILLERS = frozenset(
    "move moves go then and to the a i will my is are next finally first lastly step steps action actions answer "
    "turn walk push head towards toward direction final".split()
)


class Answer(NamedTuple):
    """One reply as it was read. Whether it was too long is for the rollout to say, which knows how it ended."""

    thinking: str
    actions: list[str]
    format: Literal["valid", "unreadable"]


def parse(text: str, action_names: Sequence[str], one_action: bool = False) -> Answer:
    """Read a reply; the last action block after the thinking counts. Never raises, takes linear time.

    Args:
        text: what the model wrote.
        action_names: every action of the environment; empty for an open vocabulary. If all are single words, anything
            may stand between actions; otherwise they are separated by line breaks, ``;``, ``|`` or commas.
        one_action: the whole block is one action, as it was written but for a code fence around it; `action_names` are
            not looked at. Tags inside a JSON object that the block begins with are part of it.

    Returns:
        Actions in the environment's own spelling, and among them, lower-cased, words that name no action. The format
        is "unreadable" if there are no tags or nothing in them.
    """
    tags = _tags_around_json(text) if one_action else list(TAG.finditer(text))
    thinking_ends = max((tag.end() for tag in tags if _closes_thinking(tag)), default=0)
    blocks = _blocks(text, tags)
    # A block inside the thinking is a draft, unless the thinking is all there is.
    finals = [block for block in blocks if block[0] >= thinking_ends] or blocks
    names = tuple(action_names)
    for start, content in reversed(finals):
        found = _whole(content) if one_action else _read(content, names) if content.strip() else ()
        actions = list(islice(found, MAX_ACTIONS))
        if actions:
            return Answer(_untagged(text[: min(thinking_ends, start) or start]), actions, "valid")
    return Answer(_untagged(text[: thinking_ends or None]), [], "unreadable")


def instructions(
    rules: str, action_names: Sequence[str], example_actions: Sequence[str], one_action: bool = False
) -> str:
    """The text that opens the first user message: rules, actions, and the format of an answer with an example.

    With `one_action` each of the example actions is an example of its own.
    """
    parts = [rules.strip()]
    mark, marks = next((pair for pair in MARKS if not any(pair[0] in name for name in action_names)), MARKS[-1])
    if action_names:
        parts.append(f"Actions: {f'{mark} '.join(action_names)}.")
    if one_action:
        return "\n\n".join(parts + _one_action(example_actions or action_names[:1])).strip()
    example = f"{mark} ".join(example_actions or action_names[:2])
    parts.append(
        "First think, between <think> and </think>: work out what each action will change before you choose. Then "
        f"write your actions between <action> and </action>. You may give one action or several, separated by {marks}; "
        "they are executed in order, and then you are told what came of them."
    )
    if example:
        parts.append(
            "An answer looks like this:\n"
            "<think>I follow each action in my mind, and check that nothing is in its way.</think>\n"
            f"<action>{example}</action>"
        )
    return "\n\n".join(parts).strip()


def _one_action(examples: Sequence[str]) -> list[str]:
    asked = (
        "First think, between <think> and </think>: work out what your action will change before you choose. Then "
        "write one action, and nothing else, between <action> and </action>; then you are told what came of it."
    )
    thought = "<think>I work out what this changes, and whether it is what I want.</think>"
    answers = [f"{thought}\n<action>{example}</action>" for example in examples]
    return [asked, "An answer looks like this:\n" + "\nor like this:\n".join(answers)] if answers else [asked]


def first_message(instructions: str | None, observation: str) -> str:
    """The first user message; None for a model that was trained to know the rules."""
    return observation if instructions is None else f"{instructions}\n\n{observation}"


def _closes_thinking(tag: re.Match[str]) -> bool:
    return bool(tag[1]) and tag[2].lower().startswith("th")


def _opens_action(tag: re.Match[str]) -> bool:
    return not tag[1] and tag[2].lower().startswith("a")


def _tags_around_json(text: str) -> list[re.Match[str]]:
    """The tags, but for those inside a JSON object that an action block begins with."""
    tags: list[re.Match[str]] = []
    end = broken = 0  # of the last object; how many were none
    for tag in TAG.finditer(text):
        if tag.start() < end:
            continue
        tags.append(tag)
        begin = FENCE.match(text, tag.end())
        if begin and _opens_action(tag) and broken < MAX_BROKEN and text.startswith("{", begin.end()):
            try:
                _, end = JSON.raw_decode(text, begin.end())
            except (ValueError, RecursionError):  # no JSON, too many digits, too many brackets
                broken += 1
    return tags


def _untagged(text: str) -> str:
    return TAG.sub("", text).strip()


def _blocks(text: str, tags: Sequence[re.Match[str]]) -> list[tuple[int, str]]:
    """Where each action block begins, and what is in it: everything up to the next tag of any kind, or to the end."""
    ends = [*(tag.start() for tag in tags), len(text)][1:]
    return [(tag.start(), text[tag.end() : end]) for tag, end in zip(tags, ends, strict=True) if _opens_action(tag)]


def _whole(content: str) -> list[str]:
    """What a block says, without a code fence around it; [] if that is nothing."""
    said = content.strip()
    if said.startswith("```"):
        said = FENCE.sub("", said, count=1).removesuffix("```").strip()
    return [said] if said else []


def _read(content: str, action_names: tuple[str, ...]) -> Iterator[str]:
    if not action_names:
        return (piece.strip() for piece in re.split(f"[{SEPARATORS}]", content) if piece.strip())
    if all(WORD.fullmatch(name) for name in action_names):
        return _read_words(content, _spellings(action_names))
    return _read_pieces(content, action_names)


@lru_cache(maxsize=16)
def _spellings(action_names: tuple[str, ...]) -> dict[str, str]:
    """Accepted spelling → action; an exact one goes before one that differs in case, hyphens or spaces."""
    forms = (_bare, _single_spaced, str)
    return {form(name): name for form in forms for name in action_names}


def _bare(text: str) -> str:
    return text.lower().replace("-", "").replace("_", "")


def _single_spaced(text: str) -> str:
    return " ".join(text.lower().split())


def _read_words(content: str, names: dict[str, str]) -> Iterator[str]:
    """Actions of one word: numbers of lists, comments in parentheses and filler words are left out."""
    text = _without_comments(content).replace("\ufe0f", "")  # which makes an arrow an emoji
    text = LIST_NUMBER.sub(lambda match: match[0] if match[0].rstrip(".): ") in names else " ", text)
    text = text.replace("->", " ").replace("=>", " ")
    # "up → down" says what comes next; only a row of nothing but arrows means "right" by it.
    spelled = any(_name(word, names) for word in WORD.findall(text))
    for arrow, meaning in ARROWS.items():
        separates = meaning not in names or (spelled and meaning == "right")
        text = text.replace(arrow, " " if separates else f" {meaning} ")
    return _joined(_words(text, names), names)


def _words(text: str, names: dict[str, str]) -> Iterator[str]:
    for match in WORD.finditer(text):
        word = _name(match[0], names) or _shown(match[0])
        if word and (word in names or word not in FILLERS):
            yield word


def _joined(words: Iterable[str], names: dict[str, str]) -> Iterator[str]:
    """Join two words of which neither is an action but both together are: pick up → pickup."""
    held: str | None = None
    for word in words:
        if held is not None and word not in names and held + word in names:
            yield names[held + word]
            held = None
            continue
        if held is not None:
            yield held
        held = None if word in names else word
        if held is None:
            yield word
    if held is not None:
        yield held


def _name(word: str, names: dict[str, str]) -> str | None:
    return names.get(word) or names.get(word.lower()) or names.get(_bare(word))


def _read_pieces(content: str, action_names: tuple[str, ...]) -> Iterator[str]:
    """Actions that may be several words; a separator that is part of a name does not separate."""
    names = _spellings(action_names)
    separators = "".join(mark for mark in SEPARATORS if not any(mark in name for name in action_names))
    for piece in re.split(f"[{separators}]", content) if separators else [content]:
        written = piece.strip()
        plain = BULLET.sub("", _without_comments(written).strip()).strip(" \t\"'`[]{}“”‘’*.!")
        action = names.get(written) or names.get(plain) or names.get(_single_spaced(plain)) or _shown(plain)
        if action:
            yield action


def _shown(text: str) -> str:
    """A word that names no action, as it goes to the log."""
    return _single_spaced(text)[:MAX_WORD].strip(" -_+")


def _without_comments(text: str) -> str:
    for _ in range(3):  # levels of nesting
        text = COMMENT.sub(" ", text)
    return text
