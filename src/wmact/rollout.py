"""The only interaction loop: environments and an engine play episodes, each at its own pace.

Tokens are append-only. What the model sampled is stored as sampled, what the environment says is appended to it, and
nothing is ever rendered or tokenised a second time (WMAct, section on interaction: the history H_<t is kept whole,
earlier thinking included).
"""

import math
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np

from wmact import protocol
from wmact.chat import Following
from wmact.engines import Completion, Request
from wmact.types import Action, Episode, RolloutInterrupted, StopReason, Turn

NO_ACTION = "Your answer held no readable action set. Write your actions between <action> and </action>.\n\n"
UNKNOWN_ACTION = "Your answer held words that name no action. They changed nothing.\n\n"


@dataclass(frozen=True)
class Limits:
    """What ends an episode besides the turn budget; each limit is a stop reason of its own.

    Args:
        turn_tokens: most tokens of one reply. A longer one is not executed and ends the episode.
        episode_tokens: most sampled tokens of an episode (WMAct: 16k).
        step_seconds: an environment that takes longer for one reset or step ends its episode as an error.
    """

    turn_tokens: int = 512
    episode_tokens: int = 16384
    step_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("turn_tokens", "episode_tokens", "step_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"limits.{name}={getattr(self, name)}: must be above 0")


class Task(NamedTuple):
    """One episode to play: which level, which of its samples, and the seed of its sampling."""

    level: int
    sample: int
    seed: int


class Conversation(Protocol):
    """What an episode asks of `wmact.chat.Chat`."""

    def open(self, text: str) -> list[int]:
        """Ids of a conversation's beginning."""

    def following(self, text: str, hint: str = "") -> Following:
        """Ids to append after a reply, for a hint and an observation; and where the observation stands in them."""

    def decode(self, ids: list[int]) -> str:
        """A reply's text."""


class Sampler(Protocol):
    """What a rollout asks of `wmact.engines.Engine`: to continue prompts with the weights that it has."""

    def submit(self, request: Request) -> None:
        """Queue a request."""

    def step(self) -> list[Completion]:
        """Go on for a while; return what has finished."""

    def abort(self) -> None:
        """Forget every request in flight."""

    @property
    def max_model_len(self) -> int:
        """Most ids of prompt and continuation together."""


class EnvironmentFault(Exception):
    """An environment raised, hung or returned rubbish; the cause says which."""


@contextmanager
def deadline(seconds: float, stop: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`, RolloutInterrupted within a second of `stop` coming true.

    Only in the main thread, where signals come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    until = time.monotonic() + seconds

    def look(*_: Any) -> None:
        if stop():
            raise RolloutInterrupted
        if time.monotonic() >= until:
            raise TimeoutError(f"the environment took more than {seconds} s (data.limits.step_seconds)")

    previous = signal.signal(signal.SIGALRM, look)
    others = signal.setitimer(signal.ITIMER_REAL, min(seconds, 1), min(seconds, 1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, *others)  # somebody else's alarm, such as a test's timeout, goes on


class Player:
    """One episode under way: an environment, the tokens so far, and what it told last (`observation`, `info`)."""

    def __init__(
        self,
        env: gymnasium.Env[str, str],
        task: Task,
        chat: Conversation,
        limits: Limits,
        told: bool,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.env, self.chat, self.limits, self.told, self.stop = env, chat, limits, told, stop
        text: Any = env.unwrapped
        self.action_names: Sequence[str] = getattr(text, "action_names", ())
        self.one_action = bool(getattr(text, "one_action", False))
        # An environment that asks for something else than actions in their tags reads its replies itself.
        self.read: Callable[[str], protocol.Answer] = getattr(text, "read_reply", self._read_actions)
        self.episode = Episode(
            env=env.spec.id if env.spec else type(text).__name__,
            level=task.level,
            level_id=str(task.level),
            sample=task.sample,
            seed=task.seed,
            policy_version=-1,
        )
        self.observation = ""
        self.info: dict[str, Any] = {}

    def reset(self) -> None:
        """Load the level and write the first prompt."""
        level, text = self.episode.level, self.env.unwrapped
        with self.foreign():
            observation, info = self.env.reset(seed=level, options={"level": level})
            self.observation, self.info = _text(observation), info
            self.episode.level_id = str(info.get("level_id", self.episode.level_id))
            self.episode.optimal_length = int(info.get("optimal_length") or 0)
            self.episode.category = str(info.get("category", ""))
            if "baseline_success" in info:
                self.episode.baseline_success = bool(info["baseline_success"])
        self.episode.observations.append(self.observation)
        rules, example = getattr(text, "rules", ""), getattr(text, "example_actions", ())
        told = protocol.instructions(rules, self.action_names, example, self.one_action) if self.told else None
        self._append(self.chat.open(protocol.first_message(told, self.observation)))

    def request(self, key: int, max_model_len: int) -> Request | StopReason:
        """The next request to the engine, or the reason why there can be none."""
        episode = self.episode
        left_context = max_model_len - len(episode.ids)
        left_episode = self.limits.episode_tokens - sum(turn.end - turn.start for turn in episode.turns)
        if left_context <= 0:
            return "context"
        if left_episode <= 0:
            return "episode_tokens"
        # Python's own hash of a tuple of ints is not salted, but differs between builds; SeedSequence never does.
        seed = int(np.random.SeedSequence([episode.seed, len(episode.turns)]).generate_state(1)[0])
        max_tokens = min(self.limits.turn_tokens, left_episode, left_context)
        return Request(key, list(episode.ids), max_tokens, seed)

    def answer(self, completion: Completion, request: Request, max_turns: int) -> None:
        """Store the reply, execute its actions, and either end the episode or append the next observation."""
        episode = self.episode
        start = len(episode.ids)
        self._append(completion.token_ids, completion.logprobs)
        text = self.chat.decode(completion.token_ids)
        turn = Turn(start, len(episode.ids), text, "overlong")
        episode.turns.append(turn)
        if not completion.stopped:
            episode.stop_reason = self._limit_reached(request)
            return
        with self.foreign():
            answer = self.read(text)
        turn.format = answer.format
        for action in answer.actions:
            turn.actions.append(self._act(action))
        if episode.stop_reason is None and len(episode.turns) >= max_turns:
            episode.stop_reason = "turns"
        if episode.stop_reason is None:
            told = self.chat.following(self.observation, self._hint(answer) if self.told else "")
            episode.told.append((len(episode.ids) + told.start, len(episode.ids) + told.end))
            self._append(told.ids)
            episode.observations.append(self.observation)

    def say(self, ids: list[int], context: int, max_turns: int, learnt: bool = True) -> None:
        """Answer in the model's place. What goes over the limits ends the episode as it would end the model's.

        Such a reply is cut off and has no log-probabilities: it is in no loss, for it ends in no end of turn.

        Args:
            ids: the reply's, with its end of turn.
            context: most ids of the conversation.
            learnt: whether the reply is in the loss; what the environment says to it may be, either way.
        """
        request = self.request(0, context)
        if not isinstance(request, Request):
            self.episode.stop_reason = request
            return
        fits = len(ids) <= request.max_tokens
        known = [0.0] * len(ids) if fits and learnt else []
        self.answer(Completion(0, ids[: request.max_tokens], known, stopped=fits), request, max_turns)

    @contextmanager
    def foreign(self) -> Iterator[None]:
        """Around other people's code and what it returned: whatever goes wrong there ends that episode only."""
        if self.stop():
            raise RolloutInterrupted
        started = time.perf_counter()
        try:
            with deadline(self.limits.step_seconds, self.stop):
                yield
        except RolloutInterrupted:
            raise
        except Exception as error:
            raise EnvironmentFault from error
        finally:
            self.episode.env_seconds += time.perf_counter() - started

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Around a part of an episode: a fault in it ends the episode as an error, which is left out of the loss."""
        try:
            yield
        except EnvironmentFault as fault:
            self.episode.stop_reason = "error"
            self.episode.error = "".join(traceback.format_exception(fault.__cause__))

    def _hint(self, answer: protocol.Answer) -> str:
        """What was wrong with an answer; the observation after it would tell of the action before once more."""
        if answer.format == "unreadable":
            return NO_ACTION
        return UNKNOWN_ACTION if self.action_names and not {*answer.actions} <= {*self.action_names} else ""

    def _read_actions(self, text: str) -> protocol.Answer:
        return protocol.parse(text, self.action_names, self.one_action)

    def _act(self, action: str) -> Action:
        episode = self.episode
        if episode.stop_reason is not None:
            return Action(action, "after_end")
        if self.action_names and action not in self.action_names:
            return Action(action, "unreadable")
        before = self.observation
        with self.foreign():
            observation, given, terminated, truncated, info = self.env.step(action)
            self.observation, self.info, reward = _text(observation), info, _finite(given)
            terminated, truncated, success = bool(terminated), bool(truncated), bool(info.get("success", reward > 0))
            valid, effective = bool(info.get("valid", True)), bool(info.get("effective", self.observation != before))
        episode.reward += reward
        if terminated:
            episode.stop_reason = "solved" if success else "dead"
        elif truncated:
            episode.stop_reason = "env_truncated"
        if not valid:
            return Action(action, "unreadable")
        return Action(action, "effective" if effective else "blocked")

    def _limit_reached(self, request: Request) -> StopReason:
        if request.max_tokens == self.limits.turn_tokens:
            return "turn_tokens"
        used = sum(turn.end - turn.start for turn in self.episode.turns)
        return "episode_tokens" if used >= self.limits.episode_tokens else "context"

    def _append(self, ids: list[int], logprobs: list[float] | None = None) -> None:
        self.episode.ids.extend(ids)
        known = [0.0] * len(ids) if logprobs is None else logprobs
        self.episode.logprobs.extend([*known, *[math.nan] * (len(ids) - len(known))])  # NaN: left out of the loss


def _text(observation: Any) -> str:
    if not isinstance(observation, str):
        raise TypeError(f"an observation is a str, but the environment returned {type(observation).__name__}")
    return observation


def _finite(reward: Any) -> float:
    if not math.isfinite(reward):
        raise ValueError(f"the environment returned the reward {reward}")
    return float(reward)


def play(
    envs: Sequence[gymnasium.Env[str, str]],
    tasks: Sequence[Task],
    engine: Sampler,
    chat: Conversation,
    *,
    max_turns: int,
    limits: Limits,
    tell_rules: bool = True,
    policy_version: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[Episode], None] = lambda episode: None,
    stop: Callable[[], bool] = lambda: False,
    renew: Callable[[gymnasium.Env[str, str]], gymnasium.Env[str, str]] = lambda env: env,
) -> list[Episode]:
    """Play every task to its end and return the episodes in the order of the tasks.

    As many episodes run at once as there are environments; each asks for its next reply as soon as it has read the
    last one, so nobody waits for the slowest (no lockstep over turns).

    Args:
        envs: environments of one kind, at least one. Each is reset for every task it gets.
        max_turns: the turn budget L_max; an unsolved episode ends there as truncated.
        tell_rules: open the first message with the rules; off for a model whose warm start has taught them.
        policy_version: written on every episode: the training iteration whose weights the engine holds.
        progress: called with (episodes done, episodes in all).
        watch: called with an episode when it has begun and after each of its turns; at its end it has a stop reason.
        stop: polled at every step of the engine or an environment; when true the rollout is given up.
        renew: called with an environment that has failed; returns the one that plays in its place.

    Raises:
        RolloutInterrupted: `stop` said so.
        ValueError: there is no environment.
    """
    if not envs:
        raise ValueError("nothing can be played without an environment")
    waiting = deque(enumerate(tasks))
    idle = list(envs)
    players: dict[int, Player] = {}
    requests: dict[int, Request] = {}
    done: dict[int, Episode] = {}

    def go_on(key: int) -> None:
        """Ask for the next reply, or close the episode."""
        player = players[key]
        request = player.episode.stop_reason or player.request(key, engine.max_model_len)
        if isinstance(request, Request):
            requests[key] = request
            engine.submit(request)
        else:
            player.episode.stop_reason = request
            done[key] = players.pop(key).episode
            idle.append(renew(player.env) if player.episode.error else player.env)
            progress(len(done), len(tasks))
        watch(player.episode)

    try:
        while waiting or players:
            if stop():
                raise RolloutInterrupted
            while waiting and idle:
                key, task = waiting.popleft()
                players[key] = player = Player(idle.pop(), task, chat, limits, tell_rules, stop)
                player.episode.policy_version = policy_version
                with player.failing():
                    player.reset()
                go_on(key)
            if players:
                for completion in engine.step():
                    player, request = players[completion.id], requests.pop(completion.id)
                    with player.failing():
                        player.answer(completion, request, max_turns)
                    go_on(completion.id)
    except (RolloutInterrupted, KeyboardInterrupt, SystemExit):
        engine.abort()
        raise
    return [done[key] for key in range(len(tasks))]
