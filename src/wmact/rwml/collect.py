"""Collect triplets: play an environment and keep, of every action, what was seen before and what the world said.

    python -m wmact collect --config configs/maze.yaml --out runs/rwml/maze.jsonl --episodes 1000
    python -m wmact collect --config configs/maze.yaml --out runs/rwml/random.jsonl --episodes 1000 --source random

The configuration is one of `fit`: environment, model, engine, limits and turns are its own, and every option that is
not listed below is one of `fit` (--data.env.kwargs.split val --data.max_turns 50). Who acts is --source: the model;
"random", uniform over the environment's actions, or over info["admissible"] where the vocabulary is open;
"walkthrough", the environment's own solution; the last two take one action a turn. Episode after episode takes another
level, and a level comes again only when all have come.

The file is JSON lines (`wmact.rwml.triplets`); its first line says how it was made. It is written when all is played,
every ten minutes before, and when the engine fails or somebody stops it (Ctrl-C, SIGTERM): then it holds the episodes
that have ended, and the same command plays the others. It takes the place of no other file.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, get_args

import gymnasium
import numpy as np

from wmact.commands import CommandParser
from wmact.data import RolloutData
from wmact.demonstrations import at_random
from wmact.endpoint import Messages, OneByOne
from wmact.engines import Completion, Request
from wmact.rollout import Limits, Task, play
from wmact.rwml.offline import by_model, closing_engine, provenance, read_data
from wmact.rwml.triplets import Said, Source, Triplet, feedback, read_triplets, write_triplets
from wmact.study_file import fingerprint, weights
from wmact.types import Episode

SAVED_EVERY = 600.0  # seconds
Choose = Callable[[gymnasium.Env[str, str], Mapping[str, Any], np.random.Generator], str | None]
"""What acts without a model: the environment, the last info and random numbers → an action; None: it gives up."""


class Recorder(gymnasium.Wrapper[str, str, str, str]):
    """Keeps a triplet of every action that is taken in an environment.

    Args:
        make: makes the environment, and another one where it has failed.
        source, policy: who acts.
        history: most steps of the history that are kept; None keeps all.

    Attributes:
        tasks: what is played, by level; each comes once.
        kept: triplets by level, in order.
        last_info: of the last reset or step.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[str, str]],
        source: Source,
        policy: str,
        history: int | None = None,
    ) -> None:
        super().__init__(make())
        self.make, self.source, self.policy, self.steps = make, source, policy, history
        self.tasks: Mapping[int, Task] = {}
        self.kept: dict[int, list[Triplet]] = {}
        self.last_info: dict[str, Any] = {}
        self._history: list[Said] = []

    def renewed(self) -> Self:
        """Go on with a new environment in the place of one that failed; what was kept stays."""
        with suppress(Exception):
            self.env.close()
        with suppress(Exception):  # else the old one fails again, and is counted again
            self.env = self.make()
        return self

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin a level."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._level: int = (options or {})["level"]
        self._game = str(info.get("level_id", self._level))
        self._taken = 0
        self.kept[self._level] = []
        self._history, self.last_info = [Said("observation", observation)], info
        return observation, info

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        """Take an action and keep what came of it."""
        before = self._history[-1].text
        observation, reward, terminated, truncated, info = self.env.step(action)
        triplet = Triplet(
            env=self.env.spec.id if self.env.spec else type(self.env.unwrapped).__name__,
            game=self._game,
            split=str(getattr(self.env.unwrapped, "split", "")),
            step=self._taken,
            history=tuple(self._history),
            action=action,
            next=feedback(observation, info),
            kind=str(info.get("kind", "world")),
            effective=bool(info.get("effective", observation != before)),
            success=bool(info.get("success", float(reward) > 0)),
            source=self.source,
            policy=self.policy,
            seed=self.tasks[self._level].seed,
        )
        self.kept[self._level].append(triplet)
        self._taken += 1
        self._history += [Said("action", action), Said("observation", observation)]
        if self.steps is not None and len(self._history) > 2 * self.steps + 1:
            first = self._history[:1]  # it tells the task
            self._history = [*first, *self._history[len(self._history) - 2 * self.steps - 1 :]]
        self.last_info = info
        return observation, reward, terminated, truncated, info


class Chooser(OneByOne):
    """Acts without a model, in the one environment that it is given, through the same loop as a model."""

    def __init__(self, env: Recorder, choose: Choose, messages: Messages, task: Task) -> None:
        super().__init__()
        self.env, self.choose, self.messages = env, choose, messages
        self.rng = np.random.default_rng(task.seed)

    def complete(self, request: Request) -> Completion:
        """Say the next action; one that gives up says nothing any more until its turns are over."""
        try:
            action = self.choose(self.env, self.env.last_info, self.rng)
        except RuntimeError:  # the engine behind a solution failed, or its search gave up: nothing leads further here
            action = None
        said = "" if action is None else f"<action>{action}</action>"
        return Completion(request.id, self.messages.say("assistant", said), [], stopped=True)


def by_solution(env: gymnasium.Env[str, str]) -> Choose:
    """Follow the environment's own solution; ask for another when it is used up, until there is none.

    It is not asked at every step: some environments know a solution from the beginning only.
    """
    unwrapped: Any = env.unwrapped
    plans = iter(lambda: list(unwrapped.solution() or []), [])
    steps = itertools.chain.from_iterable(plans)
    return lambda *_: next(steps, None)


def tasks(env: gymnasium.Env[str, str], episodes: int, seed: int) -> Iterator[list[Task]]:
    """Yield what is played, in passes in which no level comes twice."""
    levels = getattr(env.unwrapped, "num_levels", None)
    for again in itertools.count():
        if episodes <= 0:
            return
        rng = np.random.default_rng([seed, again])
        if levels is not None:
            chosen = rng.permutation(levels)[:episodes].tolist()
        else:
            chosen = list(dict.fromkeys(rng.integers(2**31, size=episodes).tolist()))
        seeds = np.random.SeedSequence([seed, again]).generate_state(len(chosen)).tolist()
        yield [Task(level, again, each) for level, each in zip(chosen, seeds, strict=True)]
        episodes -= len(chosen)


class Played:
    """What was played: its triplets in the order of the episodes, the episodes' ends and the rules that were told.

    Attributes:
        before: triplets that a file held.
        done: numbers of the episodes that have ended, counted through all passes.
    """

    def __init__(self) -> None:
        self.before: Sequence[Triplet] = ()
        self.ends: dict[str, int] = {}
        self.rules: dict[str, str] = {}
        self.errors: list[str] = []
        self.done: set[int] = set()
        self._new: dict[int, list[Triplet]] = {}

    @property
    def triplets(self) -> list[Triplet]:
        """All of them."""
        return [*self.before, *(triplet for _, some in sorted(self._new.items()) for triplet in some)]

    def add(self, number: int, episode: Episode, triplets: list[Triplet]) -> None:
        """Add an episode that has ended."""
        self.done.add(number)
        self._new[number] = triplets
        end = str(episode.stop_reason)
        self.ends[end] = self.ends.get(end, 0) + 1
        if episode.error:
            self.errors.append(episode.fault)


def record(
    data: RolloutData,
    source: Source,
    episodes: int,
    history: int | None = None,
    told: Callable[[str], None] = print,
    played: Played | None = None,
    save: Callable[[], None] = lambda: None,
) -> Played:
    """Play so many episodes of the environment that is trained on, and keep their triplets.

    Args:
        data: environment, model, engine, limits, turns and seed. The engine is closed in the end.
        history: most steps of the history that are kept; None keeps all.
        told: called with a line of progress.
        played: what was played before and is not played again; whatever ends this, it has all episodes that have ended.
        save: called whenever an episode has ended.

    Raises:
        ValueError: the source does not suit the environment.
        EngineFailed: the engine broke down.
    """
    played = played or Played()
    policy, at_once = (data.model, data.concurrency) if source == "model" else (source, 1)
    recorders = [Recorder(data.env.make, source, policy, history)]
    try:
        if source == "walkthrough" and not hasattr(recorders[0].unwrapped, "solution"):
            raise ValueError(f"--source walkthrough: {data.env.id} has no solution()")
        recorders += [Recorder(data.env.make, source, policy, history) for _ in range(min(at_once, episodes) - 1)]
        name = recorders[0].spec.id if recorders[0].spec else type(recorders[0].unwrapped).__name__
        played.rules[name] = str(getattr(recorders[0].unwrapped, "rules", ""))
        before = 0
        for some in tasks(recorders[0], episodes, data.seed):
            left = {task: number for number, task in enumerate(some, start=before) if number not in played.done}
            if left:
                play_pass(data, recorders, left, played, lambda n: told(f"{n} of {episodes}"), save)
            before += len(some)
    finally:
        with closing_engine(data):
            for recorder in recorders:
                recorder.close()
    return played


def play_pass(
    data: RolloutData,
    recorders: Sequence[Recorder],
    left: Mapping[Task, int],
    played: Played,
    told: Callable[[int], None],
    save: Callable[[], None],
) -> None:
    """Play tasks, given with their numbers, no two of one level; what has ended is added at once.

    `told` is called with the number of episodes that have been played, those of other passes among them.
    """
    numbers, source = {task.level: number for task, number in left.items()}, recorders[0].source
    for recorder in recorders:
        recorder.tasks, recorder.kept = {task.level: task for task in left}, {}
    before = len(played.done)

    def watch(episode: Episode) -> None:
        if episode.stop_reason:
            kept = next((each.kept.pop(episode.level) for each in recorders if episode.level in each.kept), [])
            played.add(numbers[episode.level], episode, kept)
            save()

    if source == "model":
        by_model(data, recorders, list(left), lambda n: told(before + n), renew=Recorder.renewed, watch=watch)
    else:
        for task in left:
            watch(alone(data, recorders[0], task, source))


def alone(data: RolloutData, recorder: Recorder, task: Task, source: Source) -> Episode:
    """Play an episode without a model."""
    messages = Messages()
    sampler = Chooser(recorder, at_random if source == "random" else by_solution(recorder), messages, task)
    limits = Limits(step_seconds=data.limits.step_seconds)  # those of tokens mean nothing here
    (episode,) = play(
        [recorder],
        [task],
        sampler,
        messages,
        max_turns=data.max_turns,
        limits=limits,
        tell_rules=False,
        renew=lambda _: recorder.renewed(),
    )
    return episode


def begun(path: Path, now: Mapping[str, Any]) -> Played:
    """Return what a command has played before, from the file that it left; nothing where there is none.

    Args:
        now: the provenance of what is to be played.

    Raises:
        ValueError: it is the file of another command, of other settings or weights, or of none.
    """
    played = Played()
    if path.exists():
        about, triplets = read_triplets(path)
        way_out = "give another file, or remove this one"
        if about.get("command") != now["command"]:
            raise ValueError(f"--out {path} was written by another command ({about.get('command')}): {way_out}")
        for name, what in {"settings": "configuration files", "weights": "weights of the model"}.items():
            if about.get(name, now[name]) != now[name]:
                raise ValueError(f"--out {path} was written with other {what} than there are now: {way_out}")
        played.before, played.ends, played.rules = triplets, about["ends"], about["rules"]
        played.errors, played.done = about["errors"], set(about.get("done", range(about["episodes"])))
    return played


def write(path: Path, played: Played, about: dict[str, Any]) -> None:
    """Write what was played, and tell of it; as long as episodes are missing, with the numbers of those it holds."""
    missing = about["episodes"] - len(played.done)
    about |= {"rules": played.rules, "ends": played.ends, "errors": sorted(set(played.errors))[:10]}
    write_triplets(path, about | ({"done": sorted(played.done)} if missing else {}), played.triplets)
    games = len({triplet.game for triplet in played.triplets})
    ends = ", ".join(f"{number} {end}" for end, number in sorted(played.ends.items()))
    told = f"{path}: {len(played.triplets)} triplets of {games} games; episodes ended as {ends}"
    print(told + (f"; {missing} are missing, which the same command plays" if missing else ""), flush=True)


def main(args: Sequence[str]) -> None:
    """Collect triplets.

    Raises:
        ValueError: the environment or the model is not there or cannot be used, every episode failed, or the file is
            another command's.
        OSError: the file cannot be written.
        EngineFailed: the engine broke down.
    """
    parser = CommandParser("collect", __doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the file that is written")
    parser.add_argument("--episodes", required=True, type=int, help="how many are played")
    parser.add_argument("--source", choices=get_args(Source), default="model", help="who acts (model)")
    parser.add_argument("--history", type=int, help="most steps of the history that a triplet keeps (all)")
    options, words = parser.parse_known_args(args)
    if options.episodes < 1:
        parser.error(f"--episodes {options.episodes}: at least 1")
    if options.history is not None and options.history < 0:
        parser.error(f"--history {options.history}: must not be negative")
    data = read_data(words)
    about = provenance(
        "collect",
        args,
        env={"id": data.env.id, "kwargs": data.env.kwargs},
        source=options.source,
        policy=data.model if options.source == "model" else options.source,
        seed=data.seed,
        max_turns=data.max_turns,
        episodes=options.episodes,
        settings=fingerprint(words),
        weights=weights(words),
    )
    played = begun(options.out, about)
    before, saved = len(played.done), time.monotonic()
    if before == options.episodes:
        print(f"nothing to do: {options.out} holds all {before} episodes of this command; remove it to play them anew")
        return

    def save() -> None:
        nonlocal saved
        if time.monotonic() - saved > SAVED_EVERY:
            write(options.out, played, about)
            saved = time.monotonic()

    try:
        record(data, options.source, options.episodes, options.history, partial(print, flush=True), played, save)
        if not played.triplets:
            why = (played.errors or ["no action taken"])[0]
            raise ValueError(f"no triplets came of {options.episodes} episodes: {why}")
    finally:
        if played.triplets and len(played.done) > before:
            write(options.out, played, about)
