"""What a world model is asked, and how its prediction is read.

A prediction is free thinking and then what the world will say, in tags of its own: ``<think>…</think> <next_state>You
open the drawer 1…</next_state>``. The reader is as generous about the form as `wmact.protocol`. What others wrote, the
history, the action and the true answer, is made `harmless` first: no tag can come of it.
"""

import re
from collections.abc import Iterable
from functools import lru_cache

from wmact.protocol import Answer
from wmact.rwml.triplets import Said

TAG = "next_state"
TOLD = (
    "You are shown what an agent has seen and done in a world, and the action that it takes next. Tell what the world "
    "answers to it. First think, between <think> and </think>: what does the action need, what does it change, and "
    "what stays as it is? Then write the answer of the world in its own words, and nothing else, between <{tag}> and "
    "</{tag}>."
)
EXAMPLE = (
    "An answer looks like this:\n"
    "<think>I work out what comes of the action from what has been seen.</think>\n"
    "<{tag}>what the world says</{tag}>"
)


def instructions(rules: str = "", tag: str = TAG) -> str:
    """The text that opens the prompt: the rules of the world, where there are any, the task and the answer's form."""
    parts = [f"The world's own rules, as the agent was told them:\n{harmless(rules.strip(), tag)}"] if rules else []
    return "\n\n".join([TOLD.format(tag=tag), EXAMPLE.format(tag=tag), *parts])


def question(history: Iterable[Said], action: str, tag: str = TAG) -> str:
    """The rest of the prompt: the history and the action, each text in tags that nothing in it can close."""
    said = [*history, Said("action", action)]
    return "\n".join(f"<{role}>\n{harmless(text.strip(), tag)}\n</{role}>" for role, text in said)


def recent(history: tuple[Said, ...], steps: int | None) -> list[Said]:
    """Return the first observation, which tells the task, and the last `steps` actions with what surrounds them.

    None returns all of it.
    """
    if steps is None or len(history) <= 2 * steps + 1:
        return list(history)
    return [history[0], *history[len(history) - 2 * steps - 1 :]] if steps else [history[0], history[-1]]


def written(text: str, thought: str, tag: str = TAG) -> tuple[str, str, str]:
    """A reply that predicts `text`: what stands before it, the text made harmless, and what stands behind it."""
    thinking = f"<think>{thought}</think>\n" if thought else ""
    return f"{thinking}<{tag}>\n", harmless(text.strip(), tag), f"\n</{tag}>"


def harmless(text: str, tag: str = TAG) -> str:
    """Text in which no tag that is read or written here can occur: the angle bracket before one is another one."""
    return _tags(tag, quoted=True).sub(lambda match: "‹" + match[0][1:], text)


def parse(text: str, tag: str = TAG) -> Answer:
    """Read a reply; the last prediction after the thinking counts. Never raises, takes linear time.

    Returns:
        The prediction as the only action; none, and "unreadable", if there are no tags or nothing in them. A missing
        closing tag is forgiven: such a reply was ended by the model.
    """
    tags = list(_tags(tag).finditer(text))
    thinking_ends = max((t.end() for t in tags if t[1] and not _predicts(t)), default=0)
    ends = [*(t.start() for t in tags), len(text)][1:]
    blocks = [(t, text[t.end() : e]) for t, e in zip(tags, ends, strict=True) if not t[1] and _predicts(t)]
    finals = [block for block in blocks if block[0].start() >= thinking_ends] or blocks
    for opening, content in reversed(finals):
        if predicted := content.strip():
            until = min(thinking_ends, opening.start()) or opening.start()
            return Answer(_tags(tag).sub("", text[:until]).strip(), [predicted], "valid")
    return Answer(_tags(tag).sub("", text[: thinking_ends or None]).strip(), [], "unreadable")


def _predicts(found: re.Match[str]) -> bool:
    return not found[2].lower().startswith("th")  # as no tag of predictions does


@lru_cache(maxsize=8)
def _tags(tag: str, quoted: bool = False) -> re.Pattern[str]:
    """Every repetition is bounded, so that reading takes linear time."""
    own = re.escape(tag).replace("_", r"[\s_-]?")
    names = rf"think|thinking|thought|{own}" + ("|observation|action" if quoted else "")
    return re.compile(rf"<\s{{0,3}}([/\\]?)\s{{0,3}}({names})\s{{0,3}}>", re.IGNORECASE)
