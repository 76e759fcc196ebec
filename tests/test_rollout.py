"""The interaction loop, with scripted replies: what is stored, in which order things happen, why episodes end."""

import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Text

from wmact import rollout
from wmact.chat import Chat
from wmact.collate import collate
from wmact.engines import Completion, Request
from wmact.nano import build_tokenizer
from wmact.rollout import Limits, RolloutInterrupted, Task, play
from wmact.types import Episode
from wmact_envs.maze import MazeEnv, list_cells

CHAT = Chat(build_tokenizer())
TOKENIZER = build_tokenizer()


class Corridor(gymnasium.Env[str, str]):
    """Cells 0 to `goal`, start at 1; in cell 0 is a trap if `trap`, else a wall before it. A level is a number.

    `twist(env, action)` may return something else than `step` would, raise, or hang.
    """

    observation_space, action_space = Text(99), Text(99)
    rules, action_names, example_actions = "Go right.", ("left", "right"), ("right",)
    log: list[tuple[int, str]]

    def __init__(
        self,
        goal: int = 3,
        trap: bool = False,
        last: int = 99,
        twist: Callable[["Corridor", str], Any] = lambda *_: None,
    ) -> None:
        self.goal, self.trap, self.last, self.twist = goal, trap, last, twist
        self.resets: list[int] = []
        self.seeds: list[int | None] = []

    def observe(self) -> str:
        return f"you {self.cell} goal {self.goal}"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        assert options is not None
        self.level, self.cell, self.taken = options["level"], 1, 0
        self.resets.append(self.level)
        self.seeds.append(seed)
        twisted = self.twist(self, "reset")
        return (self.observe(), {"level_id": f"L{self.level}", "optimal_length": 2}) if twisted is None else twisted

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        twisted = self.twist(self, action)
        if twisted is not None:
            return twisted
        before, self.taken = self.cell, self.taken + 1
        self.cell += {"left": -1, "right": 1}[action]
        if self.cell == 0 and not self.trap:
            self.cell = 1
        solved, dead = self.cell == self.goal, self.cell == 0
        info = {"success": solved, "effective": self.cell != before}
        return self.observe(), float(solved), solved or dead, self.taken >= self.last, info


def acting(*actions: str) -> str:
    return f"<think> you </think> <action> {' '.join(actions)} </action>"


def encoded(text: str) -> list[int]:
    return CHAT.encode(text) + [CHAT.end_of_turn]


def tasks(count: int, samples: int = 1) -> list[Task]:
    return [Task(level, sample, 100 * level + sample) for level in range(count) for sample in range(samples)]


def replies(*texts: str) -> Callable[[Request], str]:
    """One reply a turn, the last one again and again; every episode counts for itself."""
    turns: dict[int, int] = {}

    def script(request: Request) -> str:
        turns[request.id] = turns.get(request.id, -1) + 1
        return texts[min(turns[request.id], len(texts) - 1)]

    return script


def one(env: gymnasium.Env[str, str], engine: Any, **kwargs: Any) -> Episode:
    (episode,) = several([env], tasks(1), engine, **kwargs)
    return episode


def several(envs: Sequence[Any], todo: Sequence[Task], engine: Any, **kwargs: Any) -> list[Episode]:
    settings: dict[str, Any] = {"max_turns": 10, "limits": Limits(turn_tokens=64), "tell_rules": False} | kwargs
    return play(envs, todo, engine, CHAT, **settings)


# What is stored


def words(text: str) -> list[int]:
    return build_tokenizer().encode(text, add_special_tokens=False)


def test_an_episode_token_by_token(scripted: Any) -> None:
    engine = scripted(replies(acting("right", "left"), acting("right"), acting("right", "right")))
    episode = one(Corridor(goal=4), engine, policy_version=5, max_turns=3)
    texts = [acting("right", "left"), acting("right"), acting("right", "right")]
    parts = [
        CHAT.open("you 1 goal 4"), encoded(texts[0]),
        CHAT.reply_to("you 1 goal 4"), encoded(texts[1]),
        CHAT.reply_to("you 2 goal 4"), encoded(texts[2]),
    ]  # fmt: skip
    assert episode.ids == list(itertools.chain(*parts))
    bounds = [0, *itertools.accumulate(map(len, parts))]
    assert [(turn.start, turn.end) for turn in episode.turns] == [
        (bounds[1], bounds[2]), (bounds[3], bounds[4]), (bounds[5], bounds[6])
    ]  # fmt: skip
    assert [episode.ids[start:end] for start, end in episode.told] == [
        words("you 1 goal 4"), words("you 2 goal 4")
    ]  # fmt: skip
    assert [bounds[2] < start < end < bounds[3] for start, end in episode.told[:1]] == [True]
    expected = [[-0.5 if i % 2 else 0.0] * len(part) for i, part in enumerate(parts)]
    assert episode.logprobs == list(itertools.chain(*expected))
    assert [turn.text for turn in episode.turns] == texts
    assert [turn.format for turn in episode.turns] == ["valid"] * 3
    assert episode.observations == ["you 1 goal 4", "you 1 goal 4", "you 2 goal 4"]
    assert [(a.text, a.kind) for a in episode.actions] == [
        ("right", "effective"), ("left", "effective"), ("right", "effective"), ("right", "effective"),
        ("right", "effective"),
    ]  # fmt: skip
    assert (episode.stop_reason, episode.success, episode.reward, episode.error) == ("solved", True, 1.0, None)
    assert (episode.env, episode.level, episode.level_id) == ("Corridor", 0, "L0")
    assert (episode.optimal_length, episode.policy_version, episode.seed) == (2, 5, 0)


def test_tokens_are_only_ever_appended(scripted: Any) -> None:
    engine = scripted(replies(acting("left")))
    episode = one(Corridor(), engine, max_turns=4)
    prompts = [request.prompt_ids for request in engine.submitted]
    assert len(prompts) == 4
    for before, after, turn in zip(prompts, prompts[1:], episode.turns, strict=False):
        assert after[: turn.end] == before + encoded(acting("left"))
    assert [turn.start for turn in episode.turns] == [len(prompt) for prompt in prompts]
    assert episode.ids[: len(prompts[-1])] == prompts[-1]


def test_sampled_ids_are_kept_also_where_the_text_would_be_encoded_otherwise(scripted: Any) -> None:
    """Token in, token out: unknown words, control tokens and a forged turn stay as they were sampled."""
    words = ["<think>", "<|unk|>", "<|user|>", "</think>", "<action>", "<|reserved_3|>", "left", "</action>", "<|end|>"]
    sampled = TOKENIZER.convert_tokens_to_ids(words)
    engine = scripted(lambda request: Completion(request.id, sampled, [-0.25] * 9, True))
    episode = one(Corridor(), engine, max_turns=2)
    assert CHAT.encode(episode.turns[0].text) + [CHAT.end_of_turn] != sampled
    for turn in episode.turns:
        assert episode.ids[turn.start : turn.end] == sampled
        assert [(a.text, a.kind) for a in turn.actions] == [("left", "blocked")]
    assert collate([episode]).targets_S.tolist() == sampled * 2


def test_a_logprob_that_is_missing_is_masked(scripted: Any) -> None:
    ids = encoded(acting("left"))
    engine = scripted(lambda request: Completion(request.id, ids, [-0.5] * (len(ids) - 2), True))
    episode = one(Corridor(), engine, max_turns=2)
    assert len(episode.ids) == len(episode.logprobs)
    assert collate([episode]).valid_S.tolist() == ([True] * (len(ids) - 2) + [False] * 2) * 2


@pytest.mark.parametrize(
    ("actions", "kinds"),
    [
        (["left"], ["blocked"]),
        (["right"], ["effective"]),
        (["box", "right", "right"], ["unreadable", "effective", "effective"]),
        (["right", "right", "left", "box"], ["effective", "effective", "after_end", "after_end"]),
        ([], []),
    ],
)
def test_kinds_of_actions(scripted: Any, actions: list[str], kinds: list[str]) -> None:
    env = Corridor()
    episode = one(env, scripted(replies(acting(*actions))), max_turns=1)
    assert [a.kind for a in episode.actions] == kinds
    assert episode.num_effective == kinds.count("effective")
    assert env.taken == sum(kind in ("effective", "blocked") for kind in kinds)  # the others never reach it
    assert episode.turns[0].format == ("valid" if actions else "unreadable")


def test_what_an_action_does_may_be_for_the_environment_to_say(scripted: Any) -> None:
    """`valid` and `effective` in info win over the list of names and over a change of the observation."""

    def twist(env: Corridor, action: str) -> Any:
        answers = {
            "left": ("new", 0.5, False, False, {"effective": False}),
            "right": ("x", 0, False, False, {"valid": False}),
        }
        return answers.get(action)

    episode = one(Corridor(twist=twist), scripted(replies(acting("left", "right"))), max_turns=1)
    assert [a.kind for a in episode.actions] == ["blocked", "unreadable"]
    assert episode.reward == 0.5


class Plain(gymnasium.Env[str, str]):
    """A text environment as anybody writes one: no action names, no rules, nothing of use in info."""

    observation_space, action_space = Text(99), Text(99)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.goal = "north"
        return "you in wall", {"optimal_length": None}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        done = action == "try north"
        return ("goal" if done else "you in wall"), float(done), done, False, {}


@pytest.mark.parametrize("told", [True, False])
def test_a_plain_text_environment(scripted: Any, told: bool) -> None:
    reply = "<action> check ; try north ; plan </action>"
    engine = scripted(lambda request: reply)
    episode = one(Plain(), engine, tell_rules=told)
    # its words are no matter of a list, an action is effective where the observation changes, reward > 0 is success
    assert [a.kind for a in episode.actions] == ["blocked", "effective", "after_end"]
    assert (episode.stop_reason, episode.level_id, episode.optimal_length) == ("solved", "0", 0)
    assert (episode.error, episode.baseline_success) == (None, None)


class Talk(Plain):
    """Plain, where an answer is one action, whatever stands in it."""

    one_action = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        return "you", {"baseline_success": False}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return f"heard {action}", float(";" in action), ";" in action, False, {"valid": "wall" not in action}


class Rubbish(Plain):
    """Plain, but its word of what was effective is an array, or its reader fails."""

    def __init__(self, reader: bool) -> None:
        super().__init__()
        if reader:
            self.read_reply = lambda text: 1 / 0

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "x", 0.0, False, False, {"effective": np.array([True, False])}


@pytest.mark.parametrize(("reader", "told"), [(True, "ZeroDivisionError"), (False, "truth value of an array")])
def test_rubbish_from_an_environment_ends_its_episode_only(scripted: Any, reader: bool, told: str) -> None:
    episode = one(Rubbish(reader), scripted(lambda request: "<action>up</action>"))
    assert episode.stop_reason == "error"
    assert told in str(episode.error)


def test_one_action_is_played_as_it_stands(scripted: Any) -> None:
    engine = scripted(replies("<action> wall , you </action>", "<action> </action>", "<action> up ; down up </action>"))
    episode = one(Talk(), engine, tell_rules=True)
    assert [(a.text, a.kind) for a in episode.actions] == [("wall , you", "unreadable"), ("up ; down up", "effective")]
    assert [turn.format for turn in episode.turns] == ["valid", "unreadable", "valid"]
    assert episode.stop_reason == "solved"
    assert episode.baseline_success is False


# The maze


def test_the_maze_solved_in_one_turn_and_in_several(scripted: Any) -> None:
    look = MazeEnv(size=5, layout="cells")
    plans = {}
    for level in range(6):
        look.reset(options={"level": level})
        plans[level] = look.solution()
    levels = {i: task.level for i, task in enumerate(tasks(6, samples=2))}
    turns: dict[int, int] = {}

    def script(request: Request) -> str:
        turns[request.id] = turns.get(request.id, -1) + 1
        plan = plans[levels[request.id]]
        return acting(*plan) if request.id % 2 == 0 else acting(plan[turns[request.id]])

    envs = [MazeEnv(size=5, layout="cells") for _ in range(3)]
    episodes = several(envs, tasks(6, samples=2), scripted(script), max_turns=30)
    for i, episode in enumerate(episodes):
        best = len(plans[episode.level])
        assert (episode.level, episode.sample) == (i // 2, i % 2)
        assert episode.stop_reason == "solved"
        assert episode.optimal_length == episode.num_effective == len(episode.actions) == best
        assert len(episode.turns) == (1 if i % 2 == 0 else best)
        look.reset(options={"level": episode.level})
        assert episode.observations[0] == list_cells(look.maze, look.state)
        assert len(episode.observations) == len(episode.turns)  # none is appended after the end
    assert episodes[0].level_id == episodes[1].level_id
    _, info = look.reset(options={"level": 3})
    assert episodes[6].level_id == info["level_id"]


# Why episodes end


def stop_of(
    scripted: Any, *, context: int = 512, env: Any = None, text: str = acting("left"), **kwargs: Any
) -> Episode:
    return one(env or Corridor(), scripted(replies(text), context=context), **kwargs)


def test_solved_dead_turns_and_truncated(scripted: Any) -> None:
    assert stop_of(scripted, text=acting("right", "right")).stop_reason == "solved"
    dead = stop_of(scripted, env=Corridor(trap=True))
    assert (dead.stop_reason, dead.success, dead.reward) == ("dead", False, 0.0)
    out = stop_of(scripted, max_turns=3)
    assert (out.stop_reason, len(out.turns), len(out.observations)) == ("turns", 3, 3)
    cut = stop_of(scripted, env=Corridor(last=2), text=acting("left", "left", "left"))
    assert (cut.stop_reason, [a.kind for a in cut.actions]) == ("env_truncated", ["blocked", "blocked", "after_end"])


def test_solved_in_the_last_turn_is_solved(scripted: Any) -> None:
    assert stop_of(scripted, text=acting("right"), max_turns=2).stop_reason == "solved"
    # solved and out of the environment's own budget at once: a termination
    assert stop_of(scripted, text=acting("right"), env=Corridor(last=2)).stop_reason == "solved"


def test_token_limits(scripted: Any) -> None:
    reply = len(encoded(acting("left")))
    assert reply == 7  # <think> you </think> <action> left </action> and the end of turn
    prompt, again = len(CHAT.open("you 1 goal 3")), len(CHAT.reply_to("you 1 goal 3"))

    exact = stop_of(scripted, limits=Limits(turn_tokens=7), max_turns=2)
    assert exact.stop_reason == "turns"
    turn = stop_of(scripted, limits=Limits(turn_tokens=6))
    assert (turn.stop_reason, turn.turns[0].format, turn.actions) == ("turn_tokens", "overlong", [])
    assert len(turn.ids) == prompt + 6

    # 7 + 7 fit into 17, of the third turn 3 tokens
    tokens = stop_of(scripted, limits=Limits(turn_tokens=10, episode_tokens=17))
    assert (tokens.stop_reason, [t.end - t.start for t in tokens.turns]) == ("episode_tokens", [7, 7, 3])
    assert [t.format for t in tokens.turns] == ["valid", "valid", "overlong"]
    used_up = stop_of(scripted, limits=Limits(turn_tokens=10, episode_tokens=14))  # nothing is left for a third
    assert (used_up.stop_reason, [t.end - t.start for t in used_up.turns]) == ("episode_tokens", [7, 7])

    # prompt, turn and observation fit, and 4 tokens of the second turn
    context = stop_of(scripted, context=prompt + 7 + again + 4, limits=Limits(turn_tokens=10))
    assert (context.stop_reason, [t.end - t.start for t in context.turns]) == ("context", [7, 4])
    full = stop_of(scripted, context=prompt + 7 + again, limits=Limits(turn_tokens=10))
    assert (full.stop_reason, [t.end - t.start for t in full.turns]) == ("context", [7])
    never = stop_of(scripted, context=prompt, limits=Limits(turn_tokens=10))
    assert (never.stop_reason, never.turns, never.error) == ("context", [], None)


def test_a_word_that_names_no_action_is_told(scripted: Any) -> None:
    """Else what is told of the action before would seem to have come of it."""
    answers = acting("up"), acting("right", "up"), acting("right")
    for tell, hint in ((True, rollout.UNKNOWN_ACTION), (False, "")):
        episode = one(Corridor(), scripted(replies(*answers)), tell_rules=tell)
        first, second, third = episode.turns
        assert [action.kind for turn in episode.turns for action in turn.actions] == [
            "unreadable",
            "effective",
            "unreadable",
            "effective",
        ]
        assert episode.ids[first.end : second.start] == CHAT.reply_to(hint + "you 1 goal 3")
        assert episode.ids[second.end : third.start] == CHAT.reply_to(hint + "you 2 goal 3")


def test_an_unreadable_answer_goes_on_and_is_told(scripted: Any) -> None:
    told, untold = (
        one(Corridor(), scripted(replies("left", acting("right", "right"))), tell_rules=tell) for tell in (True, False)
    )
    for episode, hint in ((told, rollout.NO_ACTION), (untold, "")):
        assert episode.turns[0].format == "unreadable"
        assert episode.turns[0].actions == []
        between = episode.ids[episode.turns[0].end : episode.turns[1].start]
        assert between == CHAT.reply_to(hint + "you 1 goal 3")
        ((start, end),) = episode.told  # without the hint, which is ours
        assert episode.ids[start:end] == words("you 1 goal 3")
        assert episode.stop_reason == "solved"
        assert episode.observations == ["you 1 goal 3"] * 2


# Nobody waits for the slowest


def test_no_lockstep(scripted: Any) -> None:
    """Three environments, six tasks. Task 0 is answered 5 steps later than the others, which do not wait for it."""
    engine = scripted(replies(acting("left")), delay=lambda request: 5 if request.id == 0 else 0)
    done: list[tuple[int, int]] = []
    episodes = several(
        [Corridor() for _ in range(3)], tasks(6), engine, max_turns=2, progress=lambda n, of: done.append((n, of))
    )
    # Task 1 and 2 play both turns and make room for 3 and 4, which make room for 5, while 0 waits for its first answer:
    # its second request goes out after 5 + 1 steps.
    assert [request.id for request in engine.submitted] == [0, 1, 2, 1, 2, 3, 4, 3, 4, 5, 5, 0]
    assert [episode.level for episode in episodes] == [0, 1, 2, 3, 4, 5]  # in the order of the tasks all the same
    assert done == [(n, 6) for n in range(1, 7)]


def test_environments_are_used_again_and_never_by_two_episodes_at_once(scripted: Any) -> None:
    running: dict[int, int] = {}

    def twist(env: Corridor, action: str) -> None:
        if action == "reset":
            running[id(env)] = env.level
        assert running[id(env)] == env.level

    envs = [Corridor(twist=twist) for _ in range(2)]
    engine = scripted(replies(acting("right")), delay=lambda request: request.id % 3)
    episodes = several(envs, tasks(7), engine)
    assert {episode.stop_reason for episode in episodes} == {"solved"}
    assert sorted(envs[0].resets + envs[1].resets) == list(range(7))
    assert all(env.seeds == env.resets for env in envs)  # the level seeds whatever else an environment draws
    assert len(engine.submitted) == 14


def test_no_more_requests_are_in_flight_than_environments(scripted: Any) -> None:
    engine = scripted(replies(acting("left")), delay=lambda request: request.id % 4)
    seen = []
    step = engine.step
    engine.step = lambda: seen.append(len(engine._requests)) or step()
    several([Corridor() for _ in range(3)], tasks(9), engine, max_turns=2)
    assert max(seen) == 3


def test_seeds_differ_by_turn_sample_and_level_and_repeat(scripted: Any) -> None:
    def seeds(todo: list[Task], count: int) -> list[tuple[int, int]]:
        engine = scripted(replies(acting("left")))
        several([Corridor() for _ in range(count)], todo, engine, max_turns=3)
        return sorted((request.id, request.seed) for request in engine.submitted)

    first = seeds(tasks(4, samples=3), 12)
    assert len(first) == len({seed for _, seed in first}) == 4 * 3 * 3
    assert all(0 <= seed < 2**63 for _, seed in first)
    assert seeds(tasks(4, samples=3), 12) == first
    assert seeds(tasks(4, samples=3), 2) == first  # whatever order things happen in


# Environments at fault


def boom(env: Corridor, action: str) -> Any:
    raise RuntimeError("lost the connection")


RUBBISH: dict[str, Any] = {
    "no tuple": 3,
    "nothing": False,
    "short": ("you", 0.0, False),
    "observation": (7, 0.0, False, False, {}),
    "reward text": ("you", "much", False, False, {}),
    "reward none": ("you", None, False, False, {}),
    "reward nan": ("you", math.nan, False, False, {}),
    "info none": ("you", 0.0, False, False, None),
    "info list": ("you", 0.0, False, False, []),
}
RESETS: dict[str, Any] = {
    "text alone": "ab",
    "nothing": False,
    "observation": (None, {}),
    "info none": ("you", None),
    "three": ("you", {}, 1),
    "length": ("you", {"optimal_length": "long"}),
}


def among_others(scripted: Any, twist: Callable[[Corridor, str], Any], **kwargs: Any) -> Episode:
    """Play five levels on two environments; only level 1 is twisted. The others must be solved; return the culprit."""

    def only_level_one(env: Corridor, action: str) -> Any:
        return twist(env, action) if env.level == 1 else None

    envs = [Corridor(twist=only_level_one) for _ in range(2)]
    episodes = several(envs, tasks(5), scripted(replies(acting("right"))), **kwargs)
    assert [e.stop_reason for e in episodes] == ["solved", "error", "solved", "solved", "solved"]
    assert [e.error is None for e in episodes] == [True, False, True, True, True]
    return episodes[1]


@pytest.mark.parametrize("when", ["reset", "right"])
def test_an_environment_that_raises_ends_its_own_episode_only(scripted: Any, when: str) -> None:
    episode = among_others(scripted, lambda env, action: boom(env, action) if action == when else None)
    assert episode.error is not None
    assert episode.error.startswith("Traceback (most recent call last)")
    assert "in boom" in episode.error
    assert episode.error.rstrip().endswith("RuntimeError: lost the connection")
    assert len(episode.turns) == (0 if when == "reset" else 1)


def test_an_environment_is_used_again_after_its_fault(scripted: Any) -> None:
    def twist(env: Corridor, action: str) -> Any:
        return boom(env, action) if env.level == 1 and action == "right" else None

    env = Corridor(twist=twist)
    episodes = several([env], tasks(3), scripted(replies(acting("right"))))
    assert [episode.stop_reason for episode in episodes] == ["solved", "error", "solved"]
    assert env.resets == [0, 1, 2]


def test_what_happened_before_the_fault_is_kept(scripted: Any) -> None:
    def twist(env: Corridor, action: str) -> Any:
        return boom(env, action) if action != "reset" and env.cell == 2 else None

    episode = among_others(scripted, twist)
    assert [a.kind for a in episode.actions] == ["effective"]
    assert len(episode.turns) == 2
    assert episode.turns[1].text == acting("right")


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_from_step_ends_its_own_episode_only(scripted: Any, kind: str) -> None:
    episode = among_others(scripted, lambda env, action: RUBBISH[kind] if action == "right" else None)
    assert "Error" in str(episode.error)
    assert math.isfinite(episode.reward)


@pytest.mark.parametrize("kind", RESETS)
def test_rubbish_from_reset_ends_its_own_episode_only(scripted: Any, kind: str) -> None:
    episode = among_others(scripted, lambda env, action: RESETS[kind] if action == "reset" else None)
    assert "Error" in str(episode.error)


@pytest.mark.parametrize("when", ["reset", "right"])
def test_an_environment_that_hangs_ends_its_own_episode_only(scripted: Any, when: str) -> None:
    def hang(env: Corridor, action: str) -> Any:
        if action == when:
            while True:
                time.sleep(0.01)

    started = time.perf_counter()
    episode = among_others(scripted, hang, limits=Limits(turn_tokens=64, step_seconds=0.2))
    assert 0.2 <= episode.env_seconds <= time.perf_counter() - started < 5
    assert "TimeoutError: the environment took more than 0.2 s" in str(episode.error)
    assert "in hang" in str(episode.error)


@pytest.fixture
def own_alarm() -> Iterator[list[float]]:
    """When SIGALRM came, instead of what the test runner does with it."""
    came: list[float] = []
    handler = signal.signal(signal.SIGALRM, lambda *_: came.append(time.perf_counter()))
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    yield came
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


def test_the_deadline_leaves_nothing_behind(own_alarm: list[float]) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError), rollout.deadline(0.01):
        time.sleep(5)
    with rollout.deadline(0.01):
        pass
    assert signal.getsignal(signal.SIGALRM) == handler
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    time.sleep(0.03)
    assert own_alarm == []  # nothing comes after the block


def test_the_deadline_lets_somebody_elses_alarm_go_on(own_alarm: list[float]) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    with rollout.deadline(50):
        time.sleep(0.01)
    assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.1
    time.sleep(0.15)
    assert len(own_alarm) == 1


def test_outside_the_main_thread_there_is_no_deadline_and_no_error(scripted: Any) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(stop_of(scripted).stop_reason))
    thread.start()
    thread.join()
    assert found == ["turns"]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_fault_of_the_environment(scripted: Any, interrupt: type[BaseException]) -> None:
    def twist(env: Corridor, action: str) -> Any:
        raise interrupt

    with pytest.raises(interrupt):
        stop_of(scripted, env=Corridor(twist=twist))


# Giving up


def test_stop_gives_the_rollout_up(scripted: Any) -> None:
    engine = scripted(replies(acting("left")), delay=lambda request: 1000)
    asked = itertools.count()
    with pytest.raises(RolloutInterrupted):
        several([Corridor() for _ in range(2)], tasks(4), engine, stop=lambda: next(asked) == 5)
    assert engine.aborted == 1
    assert not engine._requests
    assert next(asked) == 6  # it was asked at every step of the engine


@pytest.mark.parametrize("when", ["reset", "right"])
def test_stop_reaches_into_an_environment_that_takes_long(scripted: Any, when: str) -> None:
    """It is a second at most until it is noticed, not the environment's minute."""
    stopped: list[float] = []

    def twist(env: Corridor, action: str) -> Any:
        if action == when:
            stopped.append(time.perf_counter())
            time.sleep(20)

    engine = scripted(replies(acting("right")))
    with pytest.raises(RolloutInterrupted):
        several([Corridor(twist=twist)], tasks(1), engine, stop=lambda: bool(stopped))
    assert time.perf_counter() - stopped[0] < 5
    assert engine.aborted == 1


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_leaves_no_request_in_the_engine(scripted: Any, interrupt: type[BaseException]) -> None:
    engine = scripted(replies(acting("right")))

    def twist(env: Corridor, action: str) -> Any:
        if action == "right":
            raise interrupt

    with pytest.raises(interrupt):
        several([Corridor(twist=twist) for _ in range(3)], tasks(3), engine)
    assert engine.aborted == 1


def test_nothing_to_play(scripted: Any) -> None:
    assert several([Corridor()], [], scripted(replies(acting("left")))) == []
    with pytest.raises(ValueError, match="without an environment"):
        several([], tasks(1), scripted(replies(acting("left"))))


@pytest.mark.parametrize("name", ["turn_tokens", "episode_tokens", "step_seconds"])
def test_bad_limits(name: str) -> None:
    with pytest.raises(ValueError, match=f"^limits.{name}=0: must be above 0$"):
        Limits(**{name: 0})
