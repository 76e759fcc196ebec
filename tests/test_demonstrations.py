"""What a demonstrator claims is true, and what it does is what it thought."""

import math
import re
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import tiny_worlds
from wmact import protocol
from wmact.chat import Chat
from wmact.collate import collate
from wmact.demonstrations import (
    BLOCKED,
    DemonstrationData,
    Manner,
    Walkthrough,
    Wording,
    World,
    demonstrate,
    play_demonstration,
)
from wmact.environments import EnvSpec
from wmact.nano import build_model, build_tokenizer, learn_tokenizer
from wmact.rollout import Limits, Player, Task
from wmact.types import RolloutInterrupted, TrainingStopped
from wmact_envs.maze import MazeEnv, draw, list_cells, move, parse

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "warmstart" / "smollm2.yaml"
ENGLISH = Wording(**yaml.safe_load(CONFIG.read_text())["data"]["init_args"]["worlds"]["maze"]["wording"])
SLIPPING = Manner(patience=0.3, short_mean=6, slip=0.4, careless=0.5, impulse=1.0)
DOORS = EnvSpec("tiny_worlds:tiny/Doors-v0")
NANOS = {"thought": "{action}", "reply": "<think> {thought} </think> <action> {plan} </action>"}
REPLY = re.compile(r"<think> (.*?) </think> <action> (.*?) ?</action>")


def maze(level: int) -> MazeEnv:
    env = MazeEnv(size=7, layout="cells")
    env.reset(options={"level": level})
    return env


def read(reply: str) -> tuple[list[str], list[str]]:
    """The words of the thought and of the plan."""
    match = REPLY.fullmatch(reply)
    assert match is not None, reply
    return match[1].split(), match[2].split()


def cell(word: str) -> tuple[int, int]:
    row, column = map(int, word.strip("()").split(","))
    return row, column


def steps(words: list[str]) -> list[tuple[str, list[str], str]]:
    """(action, what was claimed and taken back, outcome) of every simulated move."""
    found, i = [], 0
    while i < len(words):
        action, claims, outcome = words[i], [], words[i + 1]
        i += 2
        while i < len(words) and words[i] == "no":
            claims.append(outcome)
            outcome, i = words[i + 1], i + 2
        found.append((action, claims, outcome))
    return found


def split(plan: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """The planned actions with what they lead to, and the impulsive ones after them, of which nothing is foretold."""
    foretold = max((i + 1 for i, word in enumerate(plan) if word.startswith("(")), default=0)
    return list(zip(plan[:foretold:2], plan[1:foretold:2], strict=True)), plan[foretold:]


@pytest.mark.parametrize("manner", [Manner(), SLIPPING])
@pytest.mark.parametrize("level", range(8))
def test_thoughts_tell_what_is_true_or_take_it_back(level: int, manner: Manner) -> None:
    env, rng, slips = maze(level), np.random.default_rng(level), 0
    walls = env.maze.walls
    for _ in range(10):
        thought, _ = read(demonstrate(env, rng, manner))
        assert thought[0] == env.place()
        position = env.state
        for action, claims, outcome in steps(thought[1:]):
            after = move(walls, position, action)
            assert outcome == (BLOCKED if after == position else f"({after[0]},{after[1]})")
            assert outcome not in claims
            assert len(claims) <= 1
            slips += len(claims)
            position = after
    if manner is SLIPPING:
        assert slips > 5


def test_without_slips_nothing_is_taken_back() -> None:
    manner = Manner(patience=1.0, slip=0.0)
    assert not any(
        "no" in demonstrate(maze(level), np.random.default_rng(level), manner).split() for level in range(20)
    )


@pytest.mark.parametrize("manner", [Manner(), SLIPPING])
@pytest.mark.parametrize("level", range(8))
def test_the_plan_goes_where_the_thought_ended_without_a_detour(level: int, manner: Manner) -> None:
    env, rng = maze(level), np.random.default_rng(level)
    walls = env.maze.walls
    for _ in range(10):
        thought, plan = read(demonstrate(env, rng, manner))
        position = env.state
        for action, _, _ in steps(thought[1:]):
            position = move(walls, position, action)
        thought_ends, position = position, env.state
        seen = [position]
        planned, impulsive = split(plan)
        assert len(impulsive) in ((1, 2) if manner.impulse == 1 or not planned else (0, 1, 2))
        for action, told in planned:
            after = move(walls, position, action)
            assert told == (BLOCKED if after == position else f"({after[0]},{after[1]})")
            if after != position:
                seen.append(after)
            position = after
        assert position == thought_ends
        assert len(seen) == len(set(seen))  # no cell twice


def test_blocked_actions_stand_in_a_plan_only_where_it_is_careless() -> None:
    careful, careless = (Manner(patience=1.0, careless=share) for share in (0.0, 1.0))
    blocked = [
        sum(
            read(demonstrate(maze(level), np.random.default_rng(level), manner))[1].count(BLOCKED)
            for level in range(20)
        )
        for manner in (careful, careless)
    ]
    assert blocked[0] == 0
    assert blocked[1] > 10


def test_a_demonstrator_of_pure_insight_walks_the_shortest_way() -> None:
    for level in range(10):
        env = maze(level)
        solution = env.solution()
        _, plan = read(
            demonstrate(env, np.random.default_rng(0), Manner(patience=1.0, insight=1.0, slip=0, careless=0))
        )
        assert plan[::2] == solution


def test_a_patient_one_thinks_until_the_goal_and_no_further() -> None:
    manner = Manner(patience=1.0, insight=0.5, longest=10_000, slip=0.0)
    for level in range(10):
        env = maze(level)
        thought, plan = read(demonstrate(env, np.random.default_rng(level), manner))
        planned, _ = split(plan)
        assert cell(thought[-1]) == cell(planned[-1][1]) == env.maze.goal
        assert thought[1:-1].count(thought[-1]) == 0  # the goal is reached once


def test_no_thought_is_longer_than_allowed() -> None:
    manner = Manner(patience=1.0, insight=0.0, longest=3, slip=0.0)
    thoughts = [read(demonstrate(maze(level), np.random.default_rng(level), manner))[0] for level in range(20)]
    assert max(map(len, thoughts)) == 7  # where it stands, and three moves with their outcomes


def test_memory_tries_everything_before_it_repeats_itself() -> None:
    """In a dead end of one open neighbour: with memory and without notice, four moves are all that there are."""
    env = maze(0)
    env._loaded = parse("#####\n#P#G#\n#.#.#\n#...#\n#####")
    env.state = env.maze.start
    manner = Manner(patience=0.0, short_mean=1.0, insight=0.0, memory=1.0, notice=0.0, slip=0.0)
    for seed in range(20):
        thought, _ = read(demonstrate(env, np.random.default_rng(seed), manner))
        action, outcome = thought[1:]
        assert (outcome != BLOCKED) == (action == "down")
    noticing = Manner(patience=0.0, short_mean=1.0, insight=0.0, memory=1.0, notice=1.0, slip=0.0)
    assert {read(demonstrate(env, np.random.default_rng(s), noticing))[0][1] for s in range(20)} == {"down"}


def test_the_same_seed_says_the_same_and_another_something_else() -> None:
    replies = [demonstrate(maze(1), np.random.default_rng(seed), Manner()) for seed in (3, 3, 4)]
    assert replies[0] == replies[1] != replies[2]


# In other words


def in_nanos_words(english: str) -> str:
    """The thought of a reply, translated back."""
    (thought,) = re.findall(r"<think>(.*)</think>", english)
    for pattern, nano in {
        r" to (\S+) open\. No, wall\.": f" claim no {BLOCKED}",  # of the cell ahead; nano claims the one it is on
        r" to (\S+) wall\. No, open\.": rf" {BLOCKED} no \1",
        r" to (\S+) open\.": r" \1",
        r" to (\S+) wall\.": f" {BLOCKED}",
        r"I am at (\S+) and must reach \S+\.": r"\1",
    }.items():
        thought = re.sub(pattern, nano, thought)
    return thought


@pytest.mark.parametrize("manner", [Manner(), SLIPPING])
def test_english_says_what_nanos_words_say(manner: Manner) -> None:
    for level in range(8):
        for seed in range(10):
            env = maze(level)
            nano, english = (
                demonstrate(env, np.random.default_rng(seed), manner, wording) for wording in (Wording(), ENGLISH)
            )
            thought, plan = read(nano)
            assert in_nanos_words(english) == re.sub(
                rf"\S+ no {re.escape(BLOCKED)}", f"claim no {BLOCKED}", " ".join(thought)
            )
            answer = protocol.parse(english, env.action_names)
            assert answer.format == "valid"
            assert answer.actions == [word for word in plan if not word.startswith("(")]


def test_english_word_by_word() -> None:
    env = maze(0)
    env._loaded = parse("#####\n#P#G#\n#.#.#\n#...#\n#####")
    env.state = env.maze.start
    surest = Manner(patience=1.0, insight=1.0, slip=0.0, careless=0.0, impulse=0.0, longest=2)
    assert demonstrate(env, np.random.default_rng(0), surest, ENGLISH) == (
        "<think>I am at (1,1) and must reach (1,3). down to (2,1) open. down to (3,1) open.</think>\n"
        "<action>down (2,1), down (3,1)</action>"
    )
    blundering = Manner(patience=0.0, short_mean=1.0, insight=0.0, notice=0.0, slip=1.0, impulse=0.0)
    said = {demonstrate(env, np.random.default_rng(seed), blundering, ENGLISH).splitlines()[0] for seed in range(40)}
    assert said == {
        "<think>I am at (1,1) and must reach (1,3). down to (2,1) wall. No, open.</think>",
        "<think>I am at (1,1) and must reach (1,3). up to (0,1) open. No, wall.</think>",
        "<think>I am at (1,1) and must reach (1,3). left to (1,0) open. No, wall.</think>",
        "<think>I am at (1,1) and must reach (1,3). right to (1,2) open. No, wall.</think>",
    }


@pytest.mark.parametrize(
    ("name", "text", "known"),
    [
        ("step", "Going {move}", "{action} and {ahead} and {outcome}"),
        ("start", "{}", "{place}"),
        ("leads", "{place", "{place}"),
        ("reply", "{thought.text}", "{thought} and {plan}"),
        ("blocked", "{place}", "nothing"),
    ],
)
def test_a_template_that_cannot_be_filled(name: str, text: str, known: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"wording.{name}={text!r}: what can be filled in is {known}")):
        Wording(**{name: text})


def test_the_environment_is_not_changed() -> None:
    env = maze(2)
    before: Any = (env.state, draw(env.maze), env._running, env.np_random.bit_generator.state)
    for seed in range(20):
        demonstrate(env, np.random.default_rng(seed), SLIPPING)
    assert (env.state, draw(env.maze), env._running, env.np_random.bit_generator.state) == before


# Played


def play(level: int = 5, seed: int = 11, max_turns: int = 8, manner: Manner = Manner()) -> Any:
    return demonstrated(MazeEnv(layout="cells"), Task(level, 0, seed), max_turns, manner=manner)


def demonstrated(
    env: Any,
    task: Task,
    max_turns: int,
    limits: Limits = Limits(),
    stop: Any = lambda: False,
    context: int = 2**31,
    **how: Any,
) -> Any:
    """An episode in nano's words."""
    player = Player(env, task, Chat(build_tokenizer()), limits, told=False, stop=stop)
    return play_demonstration(World(EnvSpec(), **how), player, max_turns, context)


def test_a_played_demonstration_counts_as_sampled() -> None:
    chat = Chat(build_tokenizer())
    episode = play()
    assert episode.stop_reason in ("solved", "turns")
    assert 1 <= len(episode.turns) <= 8
    for turn in episode.turns:
        assert episode.ids[turn.end - 1] == chat.end_of_turn
        assert chat.decode(episode.ids[turn.start : turn.end]) == turn.text
        thought, plan = read(turn.text)
        actions = [a for a in plan if not a.startswith("(")]
        assert [a.text for a in turn.actions] == actions
        # what the plan says of its own actions is what becomes of them
        planned, _ = split(plan)
        kinds = ["blocked" if told == BLOCKED else "effective" for _, told in planned]
        assert [a.kind for a in turn.actions][: len(kinds)] == kinds
        assert thought
    assert build_tokenizer().unk_token_id not in episode.ids  # the bundled model has a word for all of it


def test_playing_repeats_itself() -> None:
    assert play().ids == play().ids
    assert play(seed=11).ids != play(seed=12).ids


def test_a_demonstration_plays_on_from_where_it_was() -> None:
    episode = play(
        manner=Manner(patience=0.0, short_mean=1.0, insight=1.0, careless=0.0, slip=0.0, impulse=0.0), max_turns=30
    )
    assert episode.stop_reason == "solved"
    assert len(episode.turns) > 1
    # one thought of one or more shortest moves a turn: in all the shortest way
    assert len(episode.actions) == episode.optimal_length
    env = MazeEnv(layout="cells")
    env.reset(options={"level": 5})
    assert episode.observations[0] == list_cells(env.maze, env.state)


@pytest.fixture
def data(tiny_model: Path) -> Callable[..., DemonstrationData]:
    def build(**kwargs: Any) -> DemonstrationData:
        env = EnvSpec(kwargs={"layout": "cells", "size": 5})
        kwargs = {"worlds": {"maze": World(env)}} | kwargs
        made = DemonstrationData(batches=2, episodes_a_batch=3, model=str(tiny_model), max_turns=4, **kwargs)
        made.setup("fit")
        return made

    return build


def test_batches_of_demonstrations(data: Callable[..., DemonstrationData]) -> None:
    made = data(seed=1)
    loader: Any = made.train_dataloader()
    assert len(loader) == 2
    first, second = loader
    assert made.cursor == 6
    assert first.group_E.tolist() == [0, 1, 2]
    assert not first.ids_T.equal(second.ids_T)
    again = list(data(seed=1).train_dataloader())
    assert again[0].ids_T.equal(first.ids_T)
    assert again[1].ids_T.equal(second.ids_T)
    assert not next(iter(data(seed=2).train_dataloader())).ids_T.equal(first.ids_T)


def test_a_resumed_run_goes_on_with_the_next_level(data: Callable[..., DemonstrationData]) -> None:
    made, resumed = data(), data()
    _, second = made.train_dataloader()
    resumed.load_state_dict(made.state_dict() | {"cursor": 3})
    assert next(iter(resumed.train_dataloader())).ids_T.equal(second.ids_T)


def test_one_environment_serves_all_batches(
    data: Callable[..., DemonstrationData], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, count = data(), []
    make = EnvSpec.make
    monkeypatch.setattr(EnvSpec, "make", lambda self: count.append(1) or make(self))
    list(made.train_dataloader())
    assert len(count) == 1
    assert len(made._pools) == 1  # and teardown closes it


def test_rules_are_told_where_they_are_to_be(data: Callable[..., DemonstrationData]) -> None:
    silent, telling = (data(tell_rules=told) for told in (False, True))
    for made in (silent, telling):
        next(iter(made.train_dataloader()))
    # every episode is longer by the same rules, which stand in its first prompt
    pairs = zip(silent.episodes, telling.episodes, strict=True)
    (rules,) = {told.turns[0].start - untold.turns[0].start for untold, told in pairs}
    assert rules > 100


def test_worlds_take_turns(data: Callable[..., DemonstrationData]) -> None:
    small, large = (EnvSpec(kwargs={"layout": "cells", "size": size}) for size in (5, 7))
    made = data(worlds={"small": World(small), "large": World(large)})
    list(made.train_dataloader())  # two batches of three
    sizes = ["large" if "(5," in episode.observations[0] else "small" for episode in made.episodes]
    assert sizes == ["large", "small", "large"]  # the batch before ended with the small one


def test_worlds_may_have_several_episodes_a_turn(data: Callable[..., DemonstrationData]) -> None:
    small, large = (EnvSpec(kwargs={"layout": "cells", "size": size}) for size in (5, 7))
    made = data(worlds={"small": World(small), "large": World(large, episodes=2)})
    sizes = ["large" if "(5," in made.shown(number).observations[0] else "small" for number in range(6)]
    assert sizes == ["small", "large", "large"] * 2
    with pytest.raises(ValueError, match=r"^worlds: episodes=0: at least 1 in a row$"):
        World(small, episodes=0)


def test_no_worlds(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="at least one environment"):
        DemonstrationData(worlds={}, model=str(tiny_model))


@pytest.mark.parametrize("level", range(3))
def test_a_walkthrough_is_the_solution_and_solves(level: int) -> None:
    env = EnvSpec("wmact_envs:wmact/Maze-v0", {"layout": "cells"}).make()
    how = Walkthrough(**NANOS)
    episode = demonstrated(env, Task(level, 0, 7), 6, Limits(turn_tokens=160), walkthrough=how)
    solution = maze(level).solution()
    assert solution
    assert [action.text for action in episode.actions] == solution
    assert (len(episode.turns), episode.stop_reason) == (1, "solved")


def replies(env: Any, how: Walkthrough, number: int = 1, seed: int = 0, **info: Any) -> list[str]:
    """The first replies of a walkthrough whose actions are not carried out."""
    player: Any = SimpleNamespace(env=env, info=info, one_action=getattr(env.unwrapped, "one_action", False))
    return [text for text, _ in islice(how.replies(player, np.random.default_rng(seed)), number)]


def test_where_a_reply_holds_one_action_a_walkthrough_gives_one() -> None:
    env: Any = maze(0)
    solution = env.solution()
    env.one_action = True
    said = [f"<think>Next: {action}.</think> <action>{action}</action>" for action in solution]
    assert replies(env, Walkthrough(), len(solution)) == said


def test_a_solution_that_is_known_at_the_beginning_alone_is_followed_to_its_end() -> None:
    env: Any = SimpleNamespace(one_action=True, solution=iter([["look", "take"], None]).__next__)
    env.unwrapped = env
    assert replies(env, Walkthrough(thought="", reply="{plan}"), 9) == ["look", "take"]


def test_a_walkthrough_can_say_the_task_again() -> None:
    env: Any = SimpleNamespace(
        one_action=True, solution=iter([["look", "take"], None]).__next__, task=lambda: "find a key"
    )
    env.unwrapped = env
    retelling = Walkthrough(thought="I must {task}, so I {action}.", reply="{thought} {plan}")
    assert replies(env, retelling, 9) == ["I must find a key, so I look. look", "I must find a key, so I take. take"]


def test_a_walkthrough_needs_a_solution() -> None:
    unsolvable: Any = SimpleNamespace(solution=lambda: None)
    unsolvable.unwrapped = unsolvable
    assert replies(unsolvable, Walkthrough()) == []
    with pytest.raises(ValueError, match=r"^walkthrough.thought='\{plan\}': what can be filled in is \{action\}"):
        Walkthrough(thought="{plan}")


def test_a_detour_is_any_action_and_the_solution_finds_back() -> None:
    env: Any = maze(0)
    env.one_action = True
    solution = env.solution()
    taken = set(replies(env, Walkthrough(thought="", detour=1.0), 100))
    assert taken == {f"<think></think> <action>{action}</action>" for action in env.action_names}
    listed: Any = SimpleNamespace(action_names=(), solution=lambda: ["look"])
    listed.unwrapped = listed
    (reply,) = replies(listed, Walkthrough(detour=1.0), admissible=["open box"])
    assert "<action>open box</action>" in reply
    with pytest.raises(ValueError, match="no action can be taken at random"):
        replies(listed, Walkthrough(detour=1.0))
    first = [replies(env, Walkthrough(detour=0.5), seed=seed)[0] for seed in range(400)]
    # one in two is no detour, and of the detours one in four is the solution's action all the same: 5/8 of 400
    assert 220 < sum(f"<action>{solution[0]}</action>" in reply for reply in first) < 280
    world = EnvSpec("wmact_envs:wmact/Maze-v0", {"layout": "cells"}).make()
    how = Walkthrough(detour=0.5, **NANOS)
    limits = Limits(turn_tokens=160)
    episodes = [demonstrated(world, Task(0, 0, s), 40, limits, walkthrough=how) for s in range(9)]
    assert all(episode.success for episode in episodes)
    assert len({len(episode.actions) for episode in episodes}) > 1
    with pytest.raises(ValueError, match=r"walkthrough.detour=1.5: a share of the replies"):
        Walkthrough(detour=1.5)


def test_a_detour_is_not_learnt_and_what_the_world_says_to_it_is() -> None:
    env: Any = EnvSpec("wmact_envs:wmact/Maze-v0", {"layout": "cells"}).make()
    env.unwrapped.one_action = True
    how = Walkthrough(detour=0.5, **NANOS)
    episodes = [demonstrated(env, Task(n, 0, n), 40, walkthrough=how) for n in range(9)]
    learnt = strayed = 0
    for episode in episodes:
        env.reset(options={"level": episode.level})
        for turn in episode.turns:
            best, (action,) = env.unwrapped.solution()[0], turn.actions
            known = {math.isnan(value) for value in episode.logprobs[turn.start : turn.end]}
            assert known in ({True}, {False})
            learnt += known == {False}
            strayed += known == {True}
            assert known == {True} or action.text == best
            env.step(action.text)
    assert 0.4 < strayed / (learnt + strayed) < 0.6
    batch = collate(episodes)
    assert int(batch.valid_S.sum()) < len(batch.token_S)
    told = sum(end - start for episode in episodes for start, end in episode.told)
    assert len(batch.token_O) == told  # what was said to detours too


def test_a_detour_that_spoils_the_level_ends_the_demonstration() -> None:
    env = EnvSpec("wmact_envs:wmact/SokobanOneBox-v0", {"layout": "cells"}).make()
    how = Walkthrough(detour=0.5, **NANOS)
    episode = demonstrated(env, Task(12, 0, 12), 20, walkthrough=how)
    assert env.unwrapped.solution() is None  # type: ignore[attr-defined]
    assert (len(episode.turns), episode.stop_reason) == (3, "turns")  # of 20


# Where there is chance


def test_in_rain_a_plan_ends_where_it_leads_to_what_was_not_thought_of() -> None:
    """Foreseen is what happens if exactly the thought is carried out; 27 of 60 episodes go another way."""
    env = EnvSpec("wmact_envs:wmact/TaxiRainy-v0", {"layout": "cells"}).make()
    manner = Manner(patience=0.07, short_mean=3.0, insight=0.5)
    ends = [demonstrated(env, Task(i, 0, i), 6, manner=manner).stop_reason for i in range(60)]
    assert set(ends) == {"solved", "turns"}


def test_prompts_are_learnt_where_asked_for(data: Callable[..., DemonstrationData]) -> None:
    """All that stands before the first reply, but for the first token, which nothing predicts."""
    batches = {
        learnt: data(worlds={"a": World(DOORS, walkthrough=Walkthrough(**NANOS))}, learn_prompts=learnt).shown_batch()
        for learnt in (False, True)
    }
    starts = batches[True].starts_E[:-1].tolist()
    firsts = [int(batches[True].token_S[batches[True].episode_S == e][0]) for e in range(len(starts))]
    prompts = {place for start, first in zip(starts, firsts, strict=True) for place in range(start + 1, first)}
    told, more = (set(batches[learnt].token_O.tolist()) for learnt in (False, True))
    assert prompts
    assert not prompts & told
    assert more == told | prompts


# Faults, and limits


def test_an_environment_that_fails_ends_its_own_episode(
    data: Callable[..., DemonstrationData], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = DOORS, EnvSpec(DOORS.id, {"fault": 1})
    worlds = {name: World(spec, walkthrough=Walkthrough(**NANOS)) for name, spec in (("a", whole), ("b", broken))}
    made = data(worlds=worlds, max_error_share=0.4)
    before = [made._pools.one(spec) for spec in (whole, broken)]
    batch = made.shown_batch()
    assert [episode.stop_reason for episode in made.episodes] == ["solved", "error", "solved"]
    assert made.episodes[1].fault == "RuntimeError: hinge 0 is stuck"
    assert len(batch.group_E) == 2
    after = [made._pools.one(spec) for spec in (whole, broken)]
    assert [env is other for env, other in zip(before, after, strict=True)] == [True, False]
    strict = data(worlds=worlds)  # 0.25, and one of three is more
    with pytest.raises(
        TrainingStopped, match=r"^1 of 3 episodes ended in an error: 1 × RuntimeError: hinge 0 is stuck"
    ):
        strict.shown_batch()


@pytest.mark.parametrize("how", [Walkthrough(), None], ids=["walkthrough", "explorer"])
def test_a_demonstrator_that_hangs_or_fails_while_it_thinks(
    how: Walkthrough | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_worlds.Doors, "solution", lambda self: time.sleep(30))
    limits = Limits(step_seconds=0.2)
    episode = demonstrated(DOORS.make(), Task(0, 0, 0), 5, limits, walkthrough=how)
    assert episode.fault.startswith("TimeoutError: the environment took more than 0.2 s")
    monkeypatch.setattr(tiny_worlds.Doors, "solution", lambda self: 1 // 0)
    episode = demonstrated(DOORS.make(), Task(0, 0, 0), 5, limits, walkthrough=how)
    assert episode.fault.startswith("ZeroDivisionError")


def test_a_demonstration_is_given_up_when_the_process_is_to_end() -> None:
    with pytest.raises(RolloutInterrupted):
        demonstrated(DOORS.make(), Task(0, 0, 0), 5, stop=lambda: True)


@pytest.mark.parametrize(
    ("limits", "context", "end", "sampled"),
    [
        # "<action> up </action> <|end|>": four tokens a reply, after a prompt of five and between observations of five
        ({"turn_tokens": 3}, 99, "turn_tokens", [3]),
        ({"turn_tokens": 4, "episode_tokens": 8}, 99, "episode_tokens", [4, 4]),
        ({"turn_tokens": 4, "episode_tokens": 10}, 99, "episode_tokens", [4, 4, 2]),
        ({"turn_tokens": 4}, 12, "context", [4]),
        ({"turn_tokens": 4}, 16, "context", [4, 2]),
        ({"turn_tokens": 4}, 5, "context", []),
    ],
)
def test_limits_are_a_demonstrators_too(
    limits: dict[str, int], context: int, end: str, sampled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_worlds.Doors, "solution", lambda self: ["up"])
    how = Walkthrough(thought="", reply="<action> {plan} </action>")
    task = Task(1, 0, 0)  # another door is the right one
    episode = demonstrated(DOORS.make(), task, 5, Limits(**limits), context=context, walkthrough=how)
    assert episode.stop_reason == end
    assert [turn.end - turn.start for turn in episode.turns] == sampled
    whole = [4] * sampled.count(4)
    assert len(episode.actions) == len(whole)  # what is cut off is not carried out …
    assert int(collate([episode]).valid_S.sum()) == sum(whole)  # … nor learnt from
    assert all(turn.end <= context for turn in episode.turns)


def test_the_context_is_the_models(data: Callable[..., DemonstrationData]) -> None:
    assert data().context == 512


def test_limits_that_leave_nothing_to_learn_from(data: Callable[..., DemonstrationData]) -> None:
    made = data(worlds={"doors": World(DOORS, walkthrough=Walkthrough(**NANOS))}, limits=Limits(turn_tokens=3))
    with pytest.raises(ValueError, match=r"^none of 3 episodes holds a token to train on; they ended as 3 × turn_tok"):
        made.shown_batch()


def test_a_world_that_cannot_be_demonstrated_so(tiny_model: Path) -> None:
    cart = EnvSpec("CartPole-v1")
    retelling = Walkthrough(thought="{task}: {action}")
    for world, told in (
        (World(cart), r"place\(\) to demonstrate with; give it a walkthrough"),
        (World(cart, walkthrough=Walkthrough()), r"solution\(\) to demonstrate with"),
        (World(DOORS, wording=ENGLISH), r"ahead\(\) to demonstrate with; leave \{ahead\} out of the wording"),
        (
            World(DOORS, walkthrough=retelling),
            r"task\(\) to demonstrate with; leave \{task\} out of walkthrough.thought",
        ),
    ):
        made = DemonstrationData(worlds={"it": world}, model=str(tiny_model))
        with pytest.raises(ValueError, match=f"^data.worlds.it: {world.env.id} has no {told}$"):
            made.setup("fit")


# τ²-bench, whose solution is known at the beginning alone


@pytest.mark.parametrize(("domain", "levels"), [("mock", 9), ("telecom", 2)])
def test_a_walkthrough_of_a_task_earns_its_reward(domain: str, levels: int, tmp_path: Path) -> None:
    pytest.importorskip("tau2")
    spec = EnvSpec("wmact_envs:wmact/Tau2-v0", {"domain": domain, "split": "base"})
    learn_tokenizer(["<think> </think> <action> </action>"], context=32768).save_pretrained(tmp_path)
    build_model(hidden_size=32, layers=1, context=32768).config.save_pretrained(tmp_path)
    limits = Limits(turn_tokens=4096, episode_tokens=32768)
    world = World(spec, walkthrough=Walkthrough())
    made = DemonstrationData(
        worlds={domain: world},
        episodes_a_batch=levels,
        model=str(tmp_path),
        max_turns=60,
        limits=limits,
        tell_rules=False,
    )
    made.setup("fit")
    batch = made.shown_batch()
    env: Any = spec.make().unwrapped
    for episode in made.episodes:
        env.reset(options={"level": episode.level})
        solution = env.solution()
        if solution is None:  # one of mock: there are none of its actions, and nothing is shown
            assert (episode.turns, episode.reward, episode.stop_reason) == ([], 0.0, "turns")
        else:
            assert [action.text for action in episode.actions] == solution
            assert (episode.reward, episode.stop_reason) == (1.0, "solved")
    assert batch.valid_S.all()
    assert any(len(episode.turns) > 1 for episode in made.episodes)
    made.teardown("fit")
