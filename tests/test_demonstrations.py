"""What a demonstrator claims is true, and what it does is what it thought."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from wmact import protocol
from wmact.chat import Chat
from wmact.data import EnvSpec
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
from wmact.nano import build_tokenizer
from wmact.rollout import Limits, Task
from wmact_envs.maze import MazeEnv, draw, list_cells, move, parse

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "warmstart" / "smollm2.yaml"
ENGLISH = Wording(**yaml.safe_load(CONFIG.read_text())["data"]["init_args"]["worlds"]["maze"]["wording"])
SLIPPING = Manner(patience=0.3, short_mean=6, slip=0.4, careless=0.5, impulse=1.0)
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
        r"No, it (.*?)\.": r"no \1",
        r"Going (\w+) (.*?)\.": r"\1 \2",
        r"leads to (\S+)": r"\1",
        "hits a wall": BLOCKED,
        r"I am at (\S+)\.": r"\1",
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
            assert in_nanos_words(english).split() == thought
            answer = protocol.parse(english, env.action_names)
            assert answer.format == "valid"
            assert answer.actions == [word for word in plan if not word.startswith("(")]


def test_english_word_by_word() -> None:
    env = maze(0)
    env._loaded = parse("#####\n#P#G#\n#.#.#\n#...#\n#####")
    env.state = env.maze.start
    surest = Manner(patience=1.0, insight=1.0, slip=0.0, careless=0.0, impulse=0.0, longest=2)
    assert demonstrate(env, np.random.default_rng(0), surest, ENGLISH) == (
        "<think>I am at (1,1). Going down leads to (2,1). Going down leads to (3,1).</think>\n"
        "<action>down, down</action>"
    )
    blundering = Manner(patience=0.0, short_mean=1.0, insight=0.0, notice=0.0, slip=1.0, impulse=0.0)
    said = {demonstrate(env, np.random.default_rng(seed), blundering, ENGLISH).splitlines()[0] for seed in range(40)}
    assert said == {
        "<think>I am at (1,1). Going down hits a wall. No, it leads to (2,1).</think>",
        *(
            f"<think>I am at (1,1). Going {action} leads to (1,1). No, it hits a wall.</think>"
            for action in ("up", "left", "right")
        ),
    }


@pytest.mark.parametrize(
    ("name", "text", "known"),
    [
        ("step", "Going {move}", "{action} and {outcome}"),
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


def play(level: int = 5, seed: int = 11, max_turns: int = 8, manner: Manner = Manner()) -> Any:  # noqa: B008 (frozen)
    chat = Chat(build_tokenizer())
    return play_demonstration(MazeEnv(layout="cells"), Task(level, 0, seed), chat, Limits(), max_turns, manner)


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
    assert [len(pool) for pool in made._pools.values()] == [1]  # and teardown closes it


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


def test_no_worlds(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="at least one environment"):
        DemonstrationData(worlds={}, model=str(tiny_model))


@pytest.mark.parametrize("level", range(3))
def test_a_walkthrough_is_the_solution_and_solves(level: int) -> None:
    env = EnvSpec("wmact_envs:wmact/Maze-v0", {"layout": "cells"}).make()
    how = Walkthrough(thought="{action}", reply="<think> {thought} </think> <action> {plan} </action>")
    chat, limits = Chat(build_tokenizer()), Limits(turn_tokens=160)
    episode = play_demonstration(env, Task(level, 0, 7), chat, limits, 6, Manner(), walkthrough=how)
    solution = maze(level).solution()
    assert solution
    assert [action.text for action in episode.actions] == solution
    assert (len(episode.turns), episode.stop_reason) == (1, "solved")


def test_where_a_reply_holds_one_action_a_walkthrough_gives_one() -> None:
    env: Any = maze(0)
    first = env.solution()[0]
    env.one_action = True
    assert (
        Walkthrough().follow(env, {}, np.random.default_rng(0))
        == f"<think>Next: {first}.</think> <action>{first}</action>"
    )


def test_a_walkthrough_needs_a_solution() -> None:
    with pytest.raises(ValueError, match=r"^object tells no solution that a walkthrough could follow"):
        Walkthrough().follow(object(), {}, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"^walkthrough.thought='\{plan\}': what can be filled in is \{action\}"):
        Walkthrough(thought="{plan}")


def test_a_detour_is_any_action_and_the_solution_finds_back() -> None:
    env: Any = maze(0)
    env.one_action = True
    solution, rng = env.solution(), np.random.default_rng(0)
    taken = {Walkthrough(thought="", detour=1.0).follow(env, {}, rng) for _ in range(100)}
    assert taken == {f"<think></think> <action>{action}</action>" for action in env.action_names}
    listed: Any = SimpleNamespace(action_names=(), solution=lambda: ["look"])
    listed.unwrapped = listed
    assert "<action>open box</action>" in Walkthrough(detour=1.0).follow(listed, {"admissible": ["open box"]}, rng)
    with pytest.raises(ValueError, match="no action can be taken at random"):
        Walkthrough(detour=1.0).follow(listed, {}, rng)
    half = [Walkthrough(detour=0.5).follow(env, {}, rng) for _ in range(400)]
    # one in two is no detour, and of the detours one in four is the solution's action all the same: 5/8 of 400
    assert 220 < sum(f"<action>{solution[0]}</action>" in reply for reply in half) < 280
    chat, limits = Chat(build_tokenizer()), Limits(turn_tokens=160)
    world = EnvSpec("wmact_envs:wmact/Maze-v0", {"layout": "cells"}).make()
    how = Walkthrough(thought="{action}", reply="<think> {thought} </think> <action> {plan} </action>", detour=0.5)
    episodes = [play_demonstration(world, Task(0, 0, s), chat, limits, 40, Manner(), walkthrough=how) for s in range(9)]
    assert all(episode.success for episode in episodes)
    assert len({len(episode.actions) for episode in episodes}) > 1
    with pytest.raises(ValueError, match=r"walkthrough.detour=1.5: a share of the replies"):
        Walkthrough(detour=1.5)
