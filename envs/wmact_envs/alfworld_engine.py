"""The engine of ALFWorld (textworld's PDDL games), as a worker process runs it: nobody else imports this.

It is the stock engine with what it does again and again kept: the texts are the same to the letter, which
tests/envs/test_alfworld.py compares. In the order of what they save:

- The translation of a game, which stock makes four times for each start, is made once, by another process than those
  that play: it depends on the game alone, and takes memory that is not given back. The replanner's own translation is
  left out, since nothing here asks the replanner.
- The command of an operator is derived once a game. It depends on the operator and on which receptacle stands where,
  which nothing can change.
- Grammar and queries are parsed once, and copied no deeper than they are changed.
"""

from __future__ import annotations

import copy
import functools
import os
import pickle
import re
import zlib
from pathlib import Path
from typing import Any

from . import alfworld_games as games
from .alfworld_games import Scene, Start
from .alfworld_plan import House, Task, plan, search

os.environ["ALFWORLD_DATA"] = os.curdir  # which the package would make otherwise, to put nothing in it here

import fast_downward
import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from mementos import core as mementos
from textworld.envs import PddlEnv
from textworld.envs.pddl import logic, textgen
from textworld.logic import Proposition, Rule, State

IGNORED = "checked"
"""The predicate that looking, examining and listing change, and nothing else depends on."""
LOOKS = re.compile("(?:go to|open|examine) (.+)")
"""Commands that tell what is in a receptacle, if it is open."""


# The faster engine


class QuickState(logic.PddlState):
    """A state that keeps the actions it has made of operators, and knows whether the last one changed anything."""

    def __init__(self, *args: Any) -> None:
        self._made: dict[str, Any] = {}  # by the operator's name
        self.effective = False
        super().__init__(*args)

    def all_applicable_actions(self) -> list[Any]:
        """What stock returns, in its order, and the same object for the same operator."""
        count = self.downward_lib.get_applicable_operators_count()
        operators = (fast_downward.Operator * count)()
        self.downward_lib.get_applicable_operators(operators)
        self._operators = {}
        applicable: dict[str, Any] = {}
        for operator in operators:
            self._operators[operator.id] = operator
            name = operator.name
            if name not in applicable:
                if name not in self._made:
                    self._made[name] = self._make(name)
                applicable[name] = self._made[name]
                applicable[name].id = operator.id
        return list(applicable.values())

    def _make(self, operator: str) -> Any:
        name, *arguments = operator.split()
        action = textworld.logic.Action(name=name, preconditions=[], postconditions=[])
        action.mapping = {
            textworld.logic.Placeholder(p.name.strip("?"), p.type_name): textworld.logic.Variable(argument, p.type_name)
            for p, argument in zip(self._actions[name].parameters, arguments, strict=False)
        }
        action.command_template = self._logic.actions[name].template
        action.feedback_rule = self._logic.actions[name].feedback_rule
        action.command = None
        return action

    def apply(self, action: Any) -> Any:
        """Apply it, and compare: stock also writes down as news that what was false is false."""
        before = {fact for fact in self.facts if not fact.is_negation}
        changes = super().apply(action)
        told = [change for change in changes if change.name.removeprefix("not_") != IGNORED]
        self.effective = any(c.negate() in before if c.is_negation else c not in before for c in told)
        return changes


class QuickEnv(PddlEnv):
    """An environment that derives each command once."""

    def _gather_infos(self) -> None:
        state, facts = self._pddl_state, self._pddl_state.facts
        self.state["won"], self.state["lost"] = state.check_goal(), False
        self.state["_valid_actions"] = state.all_applicable_actions()
        for action in self.state["_valid_actions"]:
            if action.command is None:
                names = {placeholder: info.name for placeholder, info in self._entity_infos.items()}
                context = {
                    "state": state,
                    "facts": facts,
                    "variables": {ph.name: self._entity_infos[var.name] for ph, var in action.mapping.items()},
                    "mapping": action.mapping,
                    "entity_infos": self._entity_infos,
                }
                action.command_template = self._logic.grammar.derive(action.command_template, context)
                action.command = action.format_command(names)
        self.state["_valid_commands"] = [action.command for action in self.state["_valid_actions"]]
        self.state["admissible_commands"] = sorted(set(self.state["_valid_commands"]))


class Translator:
    """In place of fast_downward.pddl2sas: it returns what it was given, and translates nothing."""

    def __init__(self) -> None:
        self.translate = fast_downward.pddl2sas
        self.given: tuple[Any, str] | None = None

    def __call__(self, domain: str, problem: str, verbose: bool = False, optimize: bool = False) -> Any:
        """The task and its translation; the same for the replanner."""
        return self.given


def quicken() -> Translator:
    """Put the faster parts into textworld, for this process."""
    textgen._parse_and_convert = _parsed_once(textgen._parse_and_convert)
    textgen.copy_context, textgen.Symbol.copy = _same_context, _copied
    textgen.ContextSensitiveGrammar.replace = _replaced
    Rule.parse_conjunctive_query = staticmethod(functools.lru_cache(maxsize=4096)(Rule.parse_conjunctive_query))
    logic.PddlState = QuickState
    fast_downward.pddl2sas = translator = Translator()
    return translator


def _parsed_once(parse: Any) -> Any:
    known = functools.lru_cache(maxsize=4096)(lambda text, rule: parse(text, rule_name=rule))
    return lambda text, rule_name, **trace: [_clone(symbol) for symbol in known(text, rule_name)]


def _clone(symbol: Any) -> Any:
    """A copy down to what deriving writes to: contexts."""
    twin = copy.copy(symbol)
    if isinstance(twin, textgen.ListSymbol):
        twin.symbol = _clone(twin.symbol)
    elif isinstance(twin, textgen.ConditionalSymbol):
        twin.expression = _clone(twin.expression)
    return twin


def _copied(symbol: Any, context: dict[str, Any]) -> Any:
    twin = _clone(symbol)
    twin.context = textgen.copy_context(context)
    return twin


def _same_context(context: dict[str, Any]) -> dict[str, Any]:
    return context | {"variables": dict(context["variables"]), "mapping": dict(context["mapping"])}


def _replaced(grammar: Any, start: Any) -> list[Any]:
    """The first rule that applies; stock asks all of them, and each for all its matches."""
    rules = grammar._rules.get(str(start))
    if not rules:
        raise textgen.CSGUnknownSymbolError(start)
    state: State = start.context["state"]
    for rule in rules:
        query = rule.condition and Rule.parse_conjunctive_query(rule.condition)
        if not query or any(True for _ in state.all_assignments(query, start.context["mapping"])):
            return [_copied(symbol, start.context) for symbol in rule.rhs]
    raise IndexError(f"no rule for {start}")


def forget() -> None:
    """Let go of the propositions of earlier games: textworld would keep each of them, about 0.4 MB a game.

    They are equal by value, so nothing depends on there being one object of each.
    """
    kept = mementos._memento_cache
    for key in [key for key in kept if key[0] is Proposition]:
        del kept[key]


# What a worker does


class Engine:
    """One game at a time."""

    def __init__(self) -> None:
        self._translator = quicken()
        self._env = AlfredDemangler(QuickEnv(textworld.EnvInfos()))
        self._game: games.Game | None = None
        self._state: Any = None
        self._looked_at: set[str] = set()  # names of receptacles whose contents have been told

    def prepare(self, source: str | tuple[str, int, tuple[str, ...]]) -> bytes:
        """Return a game, that of a file or level (split, number, task types), translated: about 40 kB for `start`."""
        forget()
        game = games.read_official(Path(source)) if isinstance(source, str) else games.compose(*source)
        translated = self._translator.translate(game.data["pddl_domain"], game.data["pddl_problem"])
        return zlib.compress(pickle.dumps((game, translated)), level=1)

    def start(self, prepared: bytes) -> Start:
        """Begin a game."""
        forget()
        self._game, self._translator.given = pickle.loads(zlib.decompress(prepared))
        assert self._game is not None
        self._env.load(self._game.data)
        self._state, self._looked_at = self._env.reset(), set()
        length = len(self.plan() or ())
        return Start(self._game.name, self._game.task_type, self._game.level_id, length, self._scene(False))

    def act(self, command: str) -> Scene:
        """Carry out one of the admissible commands."""
        self._state, _, _ = self._env.step(command)
        if (looks := LOOKS.fullmatch(command)) and "you see" in self._state.feedback:  # what is closed tells nothing
            self._looked_at.add(looks[1])
        return self._scene(self._inner._pddl_state.effective)

    def plan(self, searching: bool = False) -> list[str] | None:
        """Return commands that win from here, or lead to a look at one more place."""
        assert self._game is not None
        env = self._inner
        so = [fact for fact in env._pddl_state.facts if not fact.is_negation]
        facts = [(fact.name, [variable.name for variable in fact.arguments]) for fact in so]
        names = {name: info.name.strip() for name, info in env._entity_infos.items()}
        put = env._logic.actions["putobject"].template
        task = Task.read(self._game.task_type, self._game.data["pddl_problem"])
        house, level = House(facts, names, put), self._game.level_id
        if searching:  # in an order that is another in each game, and the same whenever it is asked for
            looked_at = {name for name, called in names.items() if called in self._looked_at}
            return search(task, house, looked_at, lambda receptacle: zlib.crc32(f"{level} {receptacle}".encode()))
        return plan(task, house)

    @property
    def _inner(self) -> Any:
        return self._env.unwrapped

    def _scene(self, effective: bool) -> Scene:
        state = self._state
        return Scene(str(state.feedback), tuple(state["admissible_commands"]), effective, bool(state["won"]))


_engine = Engine()
_engine.start(_engine.prepare(("train", 0, games.TASK_TYPES)))  # before the fork: parsed grammars are for all workers


def serve(what: str, *arguments: Any) -> Any:
    """Answer a request: prepare, start, act or plan."""
    return getattr(_engine, what)(*arguments)
