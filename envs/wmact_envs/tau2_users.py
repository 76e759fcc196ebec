"""Who the agent of τ²-bench talks to: a user by rules, or a model on a server.

A user is told what the agent says and answers with words or with calls of tools of its own, whose results it is told
before it goes on. It sees nothing of the agent's tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from .endpoint import Endpoint, Unreadable, unexpected

STOP, TRANSFER = "###STOP###", "###TRANSFER###"
FAREWELL = re.compile(r"\b(good-?bye|bye|farewell|have a (great|good|nice|wonderful|lovely) \w+)\b", re.IGNORECASE)
TRANSFERRED = re.compile(r"\btransferred to a human\b", re.IGNORECASE)
REPLY_TOKENS = 512


class Call(NamedTuple):
    """A call of one of the user's tools."""

    name: str
    arguments: dict[str, Any]


class Said(NamedTuple):
    """What a user does: it calls tools, or, where there are no calls, says something."""

    text: str
    calls: tuple[Call, ...] = ()


class User(Protocol):
    """One user, for one episode after the other."""

    def begin(self, instructions: Any, prompt: str, tools: Sequence[Any], seed: int) -> None:
        """Take on a scenario.

        Args:
            instructions: those of the package's scenario: text, or fields.
            prompt: the same as the package tells it to a model.
            tools: the user's own, of the package.
            seed: of whatever is drawn.
        """

    def hear(self, text: str) -> Said:
        """Answer the agent."""

    def told(self, results: Sequence[str]) -> Said:
        """Go on after the calls, given what each returned."""


class ScriptedUser:
    """A user by rules, the same every time; for tests and for collecting, no stand-in for a model.

    In the words of its scenario it says why it calls, at the next question all that it knows of itself, then how it
    wants things done, and from then on that the agent may go ahead. Named one of its own tools, as ``toggle_data`` or
    "toggle data", it uses it, with the JSON object that follows the name as arguments, and reports the result. It
    hangs up at a farewell, and when it is told that it is transferred to a human.
    """

    def begin(self, instructions: Any, prompt: str, tools: Sequence[Any], seed: int) -> None:
        """Take on a scenario."""
        if isinstance(instructions, str):
            self.lines = [instructions]
        else:
            fields = (instructions.reason_for_call, instructions.known_info, instructions.task_instructions)
            self.lines = [line.strip() for line in fields if line and line.strip()]
        names = "|".join(re.escape(tool.name).replace("_", "[ _]") for tool in tools)
        self.tool = re.compile(rf"\b({names})\b", re.IGNORECASE) if names else None

    def hear(self, text: str) -> Said:
        """Answer the agent."""
        if TRANSFERRED.search(text):
            return Said(TRANSFER)
        if FAREWELL.search(text):
            return Said(STOP)
        if self.tool and (asked := self.tool.search(text)):
            name = asked[1].lower().replace(" ", "_")
            return Said("", (Call(name, _arguments(text[asked.end() :])),))
        return Said(self.lines.pop(0) if self.lines else "Yes, please go ahead.")

    def told(self, results: Sequence[str]) -> Said:
        """Report what the tools returned."""
        return Said("I have done that. " + " ".join(results))


class EndpointUser:
    """A model behind a server of OpenAI's API, prompted as the package prompts it.

    Args:
        endpoint: the server.
        model: its name there, or None for the only one.
        temperature: of sampling; the package's is 0.

    Raises:
        OSError: the server does not answer.
        ValueError: it does not have the model.
    """

    def __init__(self, endpoint: Endpoint, model: str | None, temperature: float = 0.0) -> None:
        self.endpoint, self.model, self.temperature = endpoint, model, temperature
        self.messages: list[dict[str, Any]] = []

    def begin(self, instructions: Any, prompt: str, tools: Sequence[Any], seed: int) -> None:
        """Take on a scenario."""
        self.model = self.model or self.endpoint.only_model
        self.messages = [{"role": "system", "content": prompt}]
        self.tools = [tool.openai_schema for tool in tools]
        self.seed = seed

    def hear(self, text: str) -> Said:
        """Answer the agent; errors are those of `_ask`."""
        self.messages.append({"role": "user", "content": text})
        return self._ask()

    def told(self, results: Sequence[str]) -> Said:
        """Go on after the calls; errors are those of `_ask`."""
        calls = self.messages[-1]["tool_calls"]
        self.messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": result}
            for call, result in zip(calls, results, strict=True)
        ]
        return self._ask()

    def _ask(self) -> Said:
        """Ask for the next message, again when it cannot be used.

        Raises:
            OSError: the server does not answer, or `tries` times with nothing that can be used.
        """
        body = {"model": self.model, "messages": self.messages, "temperature": self.temperature}
        body |= {"max_tokens": REPLY_TOKENS} | ({"tools": self.tools} if self.tools else {})
        where = f"{self.endpoint.url}/chat/completions"
        trouble: Unreadable | None = None
        for attempt in range(self.endpoint.tries):  # another seed, for a server that takes it to heart
            try:
                answer = self.endpoint.ask("chat/completions", body | {"seed": self.seed + attempt})
                said = _read(answer)
                if said:
                    self.messages.append(self._spoken(said))
                    return said
                trouble = unexpected(where, answer)
            except Unreadable as error:
                trouble = error
        raise OSError(f"{trouble} (tried {self.endpoint.tries} times)")

    def _spoken(self, said: Said) -> dict[str, Any]:
        """What was said, as a message of the API."""
        if not said.calls:
            return {"role": "assistant", "content": said.text}
        functions = [{"name": call.name, "arguments": json.dumps(call.arguments)} for call in said.calls]
        number = len(self.messages)
        calls = [{"id": f"call_{number}_{n}", "type": "function", "function": f} for n, f in enumerate(functions)]
        return {"role": "assistant", "content": None, "tool_calls": calls}


def _read(answer: Any) -> Said | None:
    """What a completion says, without thoughts that a server left in; None if it cannot be used."""
    match answer:
        case {"choices": [{"message": {"tool_calls": [_, *_] as calls}}]}:
            read = [_call(call) for call in calls]
            known = tuple(call for call in read if call)
            return Said("", known) if len(known) == len(read) else None
        case {"choices": [{"message": {"content": str(text)}}]}:
            spoken = text.rpartition("</think>")[2].strip()
            return Said(spoken) if spoken else None
        case _:
            return None


def _call(call: Any) -> Call | None:
    match call:
        case {"function": {"name": str(name), "arguments": str(written)}}:
            try:
                arguments = json.loads(written or "{}")
            except (ValueError, RecursionError):
                return None
            return Call(name, arguments) if isinstance(arguments, dict) else None
        case _:
            return None


def _arguments(text: str) -> dict[str, Any]:
    """The JSON object that text begins with, if there is one."""
    try:
        found, _ = json.JSONDecoder(strict=False).raw_decode(text.lstrip(" :(`"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
