"""One episode, told while it is played: by a model here, by a model that is served, or by a person.

    python -m wmact play maze-agent --env wmact/Maze-v0 --split test
    python -m wmact play maze-agent --env wmact/Maze-v0 --url http://127.0.0.1:8000/v1
    python -m wmact play --env wmact/Maze-v0 --url http://127.0.0.1:8000/v1 --model NAME
    python -m wmact play --env wmact/Maze-v0 --human

The first generates in this process. The second asks the server of that very model, in token ids, which vLLM serves: it
sees what it saw in training. The third asks any OpenAI-compatible server, in messages; OPENAI_API_KEY is sent along
where it is set. A folder that `export` wrote says how its model was trained to play (wmact.json): the environment's
arguments, whether it is told the rules, limits, turns and temperature, as far as the command line does not.

Exit code 0 if the level was solved, 1 if it was not, 2 if it could not be played.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from wmact import rewards, view
from wmact.chat import Chat
from wmact.commands import CommandParser
from wmact.endpoint import ChatCompletions, Endpoint, Messages, OneByOne, TokenCompletions
from wmact.engines import Completion, Request
from wmact.environments import EnvSpec
from wmact.models import KNOWN, load_tokenizer, resolve_model
from wmact.protocol import TAG
from wmact.rollout import Conversation, Sampler, Task, play
from wmact.terms import Terms, read_terms
from wmact.types import Episode
from wmact.weight_sync import default_engine


class Person(OneByOne):
    """Reads replies from stdin: actions, in or without their tags.

    Args:
        messages: where the conversation is kept.
        ask: prints what it is given and returns a line.
    """

    def __init__(self, messages: Messages, ask: Callable[[str], str] = input) -> None:
        super().__init__()
        self.messages, self.ask = messages, ask

    def complete(self, request: Request) -> Completion:
        """Ask for the next reply."""
        try:
            text = self.ask("your actions: ")
        except EOFError:
            raise ValueError("the input ended before the episode did") from None
        reply = text if TAG.search(text) else f"<action>{text}</action>"
        return Completion(request.id, self.messages.say("assistant", reply), [], stopped=True)


class Teller:
    """Prints an episode as `view.transcript` tells it, each time as far as it has got since the last.

    Args:
        max_turns: the turn budget.
        tokens: whether the lengths of replies are numbers of tokens.
    """

    def __init__(self, max_turns: int, tokens: bool) -> None:
        self.max_turns, self.tokens = max_turns, tokens
        self.turns = self.observations = -1

    def __call__(self, episode: Episode) -> None:
        """Print what is new."""
        parts: list[str] = []
        if self.turns < 0:
            self.turns = self.observations = 0
            parts.append(view.heading(episode))
        if episode.stop_reason:  # before that, no turn has a reward
            rewards.shape(episode, rescale=True, step_penalty=0)
        parts += [view.answered(turn, self.tokens) for turn in episode.turns[self.turns :]]
        self.turns = len(episode.turns)
        for observation in episode.observations[self.observations :]:
            parts += [f"── turn {self.turns + 1} of {self.max_turns} ──", view.observed(observation)]
        self.observations = len(episode.observations)
        parts += [view.outcome(episode)] if episode.stop_reason and not episode.error else []
        print("\n".join(parts), flush=True)


def seat(
    options: argparse.Namespace, model: str | None, terms: Terms, stack: contextlib.ExitStack
) -> tuple[Sampler, Conversation]:
    """Return who plays, and how that one is talked to; what is to be closed afterwards goes onto `stack`.

    Raises:
        ValueError: the model or its tokenizer cannot be used, or the server does not have it.
        OSError: the server does not answer.
    """
    messages = Messages()
    if options.human:
        return Person(messages), messages
    endpoint = Endpoint(options.url, options.timeout) if options.url else None
    if endpoint and not model:
        return ChatCompletions(endpoint, options.name, messages, temperature=terms.temperature), messages
    assert model is not None
    chat = Chat(load_tokenizer(model))
    how: dict[str, Any] = {"stop_token_ids": chat.stop_token_ids, "temperature": terms.temperature}
    if endpoint:
        return TokenCompletions(endpoint, options.name, **how), chat
    engine = default_engine()
    stack.callback(engine.close)
    engine.start(model, **how)
    return engine, chat


def mapping(text: str) -> dict[str, Any]:
    """Read a JSON object; the error for anything else is argparse's to tell."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object, such as {{}}")
    return value


def parse(args: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ValueError: it does not say who plays, or contradicts itself.
    """
    parser = CommandParser("play", __doc__)
    parser.add_argument("model", nargs="?", help=f"who plays: a model folder, a hub id, {KNOWN}; or a URL")
    parser.add_argument("--env", required=True, metavar="ID", help="gymnasium id: wmact/Maze-v0, module:Env-v0")
    parser.add_argument("--env.kwargs", dest="kwargs", type=mapping, default={}, metavar="JSON", help="its arguments")
    parser.add_argument("--split", help="its argument of this name: train, val or test")
    parser.add_argument("--level", type=int, default=0, help="number of the level (0)")
    parser.add_argument("--seed", type=int, default=0, help="of sampling (0)")
    parser.add_argument("--turns", type=int, help="turn budget (as the model was trained, else 30)")
    parser.add_argument("--tokens", type=int, help="most tokens of a reply (as the model was trained, else 512)")
    parser.add_argument("--temperature", type=float, help="of sampling (as the model was trained, else 1)")
    parser.add_argument("--url", help="address of a server's API: it plays, not this process")
    parser.add_argument("--model", dest="name", metavar="NAME", help="which of the models there (the only one)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds that the server may be silent (120)")
    parser.add_argument("--human", action="store_true", help="you play")
    options = parser.parse_args(args)
    if options.model and "://" in options.model:
        if options.url:
            parser.error(f"{options.model} and --url {options.url}: give one address")
        options.model, options.url = None, options.model
    if options.human == bool(options.model or options.url):
        parser.error("who plays? Give either a model (or --url), or --human")
    if options.name and not options.url:
        parser.error(f"--model {options.name}: it is a model of a server, so give --url too; a folder stands alone")
    if options.level < 0 or options.seed < 0:
        parser.error(f"--level {options.level} --seed {options.seed}: both count from 0")
    return options


def changed(settings: Any, **asked: Any) -> Any:
    """Return a dataclass with what was asked for, which None was not."""
    return dataclasses.replace(settings, **{name: value for name, value in asked.items() if value is not None})


def main(args: Sequence[str]) -> None:
    """Play an episode. Exit codes: those of the command line, and 1 when the level was not solved.

    Raises:
        ValueError: the environment, the level, the model or the server's model is not there or cannot be used, or the
            environment failed on the way.
        OSError: the server does not answer, or not as it should.
    """
    options = parse(args)
    model = resolve_model(options.model) if options.model else None
    terms = read_terms(model) if model else Terms()
    terms = changed(terms, max_turns=options.turns, temperature=options.temperature)
    terms = changed(terms, limits=changed(terms.limits, turn_tokens=options.tokens))
    split = {"split": options.split} if options.split else {}
    name = EnvSpec(options.env).name
    env = EnvSpec(name, terms.kwargs(name) | options.kwargs | split).make()
    with contextlib.ExitStack() as stack:
        stack.callback(env.close)
        levels = getattr(env.unwrapped, "num_levels", None)
        if levels is not None and options.level >= levels:
            raise ValueError(f"--level {options.level}: there are {levels} levels, which count from 0")
        sampler, chat = seat(options, model, terms, stack)
        if options.human:
            rules, names = getattr(env.unwrapped, "rules", ""), getattr(env.unwrapped, "action_names", ())
            print(view.printable(f"{rules}\nActions: {', '.join(names)}" if names else rules), flush=True)
        (episode,) = play(
            [env],
            [Task(options.level, 0, options.seed)],
            sampler,
            chat,
            max_turns=terms.max_turns,
            limits=terms.limits,
            tell_rules=terms.tell_rules,
            watch=Teller(terms.max_turns, tokens=not isinstance(chat, Messages)),
        )
    if episode.error:
        raise ValueError(f"{name} failed: {episode.fault}") from RuntimeError(episode.error)
    if not episode.success:
        sys.exit(1)
