"""Taxi: its dynamics against gymnasium's, its chances against theirs, its splits by listing, its env under fuzzing."""

import copy
import os
import random
import statistics
import subprocess
import sys
import warnings
from collections import Counter
from itertools import pairwise
from math import sqrt

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from wmact_envs import splits, taxi
from wmact_envs.taxi import ACTIONS, MAP, PADS, State, TaxiEnv

IDS = ["wmact/Taxi-v0", "wmact/TaxiRainy-v0", "wmact/TaxiFickle-v0"]
LAYOUTS = ["grid", "cells"]
FUZZ = [
    "",
    " ",
    "\n",
    "\x00",
    "\ud800",
    "👆",
    "x" * 2**20,
    "NORTH",
    " north",
    "north ",
    "up",
    "pick up",
    "0",
    "</action>",
]

STATE = State((2, 3), "R", "Y")
TOWN = """\
+---------+
|R: | : :G|
| : | : : |
| : : :T: |
| | : | : |
|Y| : |B: |
+---------+
Taxi: (2,3). Passenger: at R (0,0).
Destination: Y (4,0)."""
# The walls of the map, counted by eye: rows 0 and 1 have one after column 1, rows 3 and 4 after columns 0 and 2.
WALLS = "(0,1) | (0,2) (1,1) | (1,2) (3,0) | (3,1) (3,2) | (3,3) (4,0) | (4,1) (4,2) | (4,3)"
CELLS = f"wall {WALLS} pads R (0,0) G (0,4) Y (4,0) B (4,3) destination Y passenger R taxi (2,3)"


def gymnasiums(**arguments):
    return gymnasium.make("Taxi-v4", disable_env_checker=True, **arguments).unwrapped


def number(state: State) -> int:
    """Encode a state as gymnasium's documentation says, not with the code under test."""
    (row, column), passenger, destination = state
    return ((row * 5 + column) * 5 + ["R", "G", "Y", "B", "in"].index(passenger)) * 4 + "RGYB".index(destination)


def all_states() -> list[State]:
    return [State(cell, passenger, pad) for cell in taxi.CELLS for passenger in [*PADS, "in"] for pad in PADS]


def started(state: State, **arguments) -> TaxiEnv:
    """An environment that stands in `state`."""
    env = TaxiEnv(**arguments)
    env.reset(seed=0)
    env.state = state
    env._origin = state.passenger
    return env


# ------------------------------------------------------------------------------------------------------------- rules


def test_every_dry_step_is_gymnasiums():
    theirs = gymnasiums()
    theirs.reset(seed=0)
    env = started(STATE)
    assert len({number(state) for state in all_states()}) == 500
    for state in all_states():
        for index, action in enumerate(ACTIONS):
            theirs.s = number(state)
            target, reward, terminated, _, _ = theirs.step(index)
            env.state, env._running = state, True
            _, ours, done, _, told = env.step(action)
            assert number(env.state) == target
            if state.passenger != state.destination:  # where it is, the ride is over
                assert (ours, done) == (float(reward == 20), terminated)
                assert told["effective"] == (target != number(state))


@pytest.mark.parametrize("rainy", [False, True])
def test_every_probability_is_gymnasiums(rainy):
    table = gymnasiums(is_rainy=rainy).P
    for state in all_states():
        for index, action in enumerate(ACTIONS):
            ours, theirs = Counter(), Counter()
            for probability, after in taxi.transitions(rainy)[state, action]:
                ours[number(after)] += probability
            for probability, after, _, _ in table[number(state)][index]:
                theirs[after] += probability
            assert ours == theirs
            assert abs(sum(ours.values()) - 1) < 1e-12


def test_the_map_is_gymnasiums():
    theirs = gymnasiums(fickle_passenger=True)
    assert MAP.splitlines() == ["".join(row) for row in theirs.desc.astype(str).tolist()]
    assert list(PADS.values()) == theirs.locs
    assert all(MAP.splitlines()[row + 1][2 * column + 1] == pad for pad, (row, column) in PADS.items())
    assert theirs.fickle_probability == taxi.FICKLE


@pytest.mark.parametrize(
    ("state", "action", "after"),
    [
        (STATE, "south", State((3, 3), "R", "Y")),
        (STATE, "north", State((1, 3), "R", "Y")),
        (STATE, "east", State((2, 4), "R", "Y")),
        (STATE, "west", State((2, 2), "R", "Y")),
        (STATE, "pickup", STATE),
        (STATE, "dropoff", STATE),
        (State((0, 1), "R", "Y"), "east", State((0, 1), "R", "Y")),  # a wall
        (State((0, 1), "R", "Y"), "north", State((0, 1), "R", "Y")),  # the edge of the town
        (State((0, 0), "R", "Y"), "pickup", State((0, 0), "in", "Y")),
        (State((0, 4), "in", "Y"), "dropoff", State((0, 4), "G", "Y")),
        (State((4, 0), "in", "Y"), "dropoff", State((4, 0), "Y", "Y")),
        (State((2, 0), "in", "Y"), "dropoff", State((2, 0), "in", "Y")),
    ],
)
def test_act_by_hand(state, action, after):
    assert taxi.act(state, action) == after


def test_chance_chooses_in_rain():
    # Northwards from (2,3): ahead with 0.8, then west and then east with 0.1 each.
    for chance, cell in [
        (0, (1, 3)),
        (0.79, (1, 3)),
        (0.81, (2, 2)),
        (0.89, (2, 2)),
        (0.91, (2, 4)),
        (1 - 1e-16, (2, 4)),
    ]:
        assert taxi.act(STATE, "north", True, chance).taxi == cell
    # At (3,3) a wall is to the west: what would slide into it stays. Blocked ahead at (0,3), nothing slides at all.
    assert taxi.act(State((3, 3), "R", "Y"), "north", True, 0.85).taxi == (3, 3)
    assert taxi.act(State((0, 3), "R", "Y"), "north", True, 0.85).taxi == (0, 3)


def test_whim_by_hand():
    # Below 0.3 in three equal parts, in the order of the pads without the destination; from 0.3 on none.
    told = [taxi.whim("G", chance) for chance in (0, 0.099, 0.101, 0.199, 0.201, 0.299, 0.3, 0.999)]
    assert told == ["R", "R", "Y", "Y", "B", "B", None, None]


# ------------------------------------------------------------------------------------------------- shortest solutions


def test_solutions_by_hand():
    # To R: 3 cells west and 2 north, 5 moves, where row 2 passes the wall of the rows above; from (2,1) on north comes
    # before west in ACTIONS. Pickup; 4 south to Y, with no wall between; dropoff: 5 + 1 + 4 + 1 = 11.
    assert taxi.solve(STATE) == ["west", "west", "north", "north", "west", "pickup", *["south"] * 4, "dropoff"]
    # From Y to B there are 3 columns, but walls close row 4 and row 3: up to row 2 and down again, 3 + 2 + 2 = 7 moves.
    assert taxi.solve(State((4, 0), "Y", "B")) == [
        "pickup", *["north"] * 2, *["east"] * 3, *["south"] * 2, "dropoff"
    ]  # fmt: skip
    assert taxi.solve(State((4, 3), "B", "B")) == []


def test_distances_agree_with_value_iteration():
    # Another algorithm on gymnasium's table: relax every state until nothing gets less.
    table = gymnasiums().P
    least = [0 if number_ // 4 % 5 == number_ % 4 else 99 for number_ in range(500)]
    for _ in range(40):
        for s in range(500):
            least[s] = min(least[s], 1 + min(least[after] for [(_, after, _, _)] in table[s].values()))
    assert {number(state): length for state, length in taxi.distances().items()} == dict(enumerate(least))


@pytest.mark.parametrize("split", splits.SPLITS)
def test_every_level_is_solved_by_its_solution(split):
    env = TaxiEnv(split=split)
    lengths = []
    for level in range(env.num_levels):
        _, info = env.reset(options={"level": level})
        solution = env.solution()
        lengths.append(len(solution))
        assert len(solution) == info["optimal_length"]
        for step, action in enumerate(solution, start=1):
            assert len(env.solution()) == len(solution) - step + 1
            _, reward, terminated, _, info = env.step(action)
            assert info["effective"]
            assert terminated == info["success"] == (reward == 1.0) == (step == len(solution))
    # The shortest ride is R to Y or back, 4 cells, with the taxi beside the passenger: 4 + 2 = 6.
    assert 6 <= min(lengths) < max(lengths) <= 18


# ------------------------------------------------------------------------------------------------------------ splits


def test_splits_share_out_all_starts():
    counts = [len(taxi.levels(split)) for split in splits.SPLITS]
    assert counts == [214, 34, 52]  # as the documentation says; 210, 30 and 60 are expected
    assert [TaxiEnv(split=split).num_levels for split in splits.SPLITS] == counts
    everything = [start for split in splits.SPLITS for start in taxi.levels(split)]
    # 25 cells, 4 pads to wait at and 3 others to go to: 300, and gymnasium starts from the same.
    assert len(set(everything)) == len(everything) == 25 * 4 * 3
    assert {number(start) for start in everything} == set(np.flatnonzero(gymnasiums().initial_state_distrib).tolist())
    assert len({taxi.level_id(start) for start in everything}) == 300
    for split in splits.SPLITS:
        assert all(splits.split_of(taxi.level_id(start)) == split for start in taxi.levels(split))
    assert statistics.median(taxi.distances()[start] for start in everything) == 13


def test_levels_come_shuffled_and_are_the_same_in_all_variants():
    starts = [start.taxi for start in taxi.levels("train")]
    descents = sum(a > b for a, b in pairwise(starts))
    # Sorted there would be none. In a random order half of the 213 pairs without a tie descend, 213 * 24/25 / 2 = 102,
    # with a deviation of about sqrt(214 / 12) = 4.2.
    assert abs(descents - 102) < 4 * 4.2
    infos = [gymnasium.make(f"wmact_envs:{name}").reset(seed=0, options={"level": 5})[1] for name in IDS]
    assert infos[0] == infos[1] == infos[2]


# ------------------------------------------------------------------------------------------------------------ chances


def within(count: int, tries: int, probability: float) -> bool:
    """Within 4 standard deviations of the mean: beyond them is one draw in 16,000, and the seeds are fixed."""
    return abs(count - tries * probability) <= 4 * sqrt(tries * probability * (1 - probability))


def test_rain_within_an_episode_and_from_reset_to_reset():
    # At (2,3) all four ways are free, so every outcome shows.
    sides = {
        "north": ("west", "east"),
        "south": ("west", "east"),
        "east": ("north", "south"),
        "west": ("north", "south"),
    }
    env = started(STATE, rainy=True, layout="cells")
    for action, lateral in sides.items():
        along, across = Counter(), Counter()
        for _ in range(2000):
            env.state = STATE
            along[env.step(action)[0].split()[1]] += 1
        for seed in range(2000):
            env.reset(seed=seed, options={"level": 0})
            env.state = STATE
            across[env.step(action)[0].split()[1]] += 1
        for seen in (along, across):
            assert seen.keys() == {action, *lateral}
            assert within(seen[action], 2000, 0.8)
            assert all(within(seen[side], 2000, 0.1) for side in lateral)
    # The other actions always do what they say.
    env.state = State((0, 0), "R", "Y")
    for action, passenger in [("pickup", "in"), ("dropoff", "R")] * 50:
        env.step(action)
        assert env.state == State((0, 0), passenger, "Y")


def test_whims_from_reset_to_reset_and_from_level_to_level():
    env = TaxiEnv(fickle=True)
    level = next(number_ for number_, start in enumerate(taxi.levels("train")) if start.destination == "Y")

    def named(**reset) -> str:
        """The destination after the first cell with the passenger aboard."""
        env.reset(**reset)
        env.state = State((2, 3), "in", env.state.destination)
        env.step("north")
        return env.state.destination

    seeded = Counter(named(seed=seed, options={"level": level}) for seed in range(3000))
    unseeded = Counter(named(options={"level": level}) for _ in range(3000))
    for seen in (seeded, unseeded):
        assert within(seen["Y"], 3000, 0.7)
        assert all(within(seen[pad], 3000, 0.1) for pad in "RGB")
    # One seed for all levels is not one luck for all levels.
    changed = sum(
        named(seed=0, options={"level": number_}) != start.destination
        for number_, start in enumerate(taxi.levels("train"))
    )
    assert within(changed, 214, 0.3)


def test_a_whim_comes_when_gymnasiums_does():
    # Gymnasium's passenger always changes their mind here. Ours is given the same other destination, and must name it
    # after the same action, in rides by a driver who does the right thing every other time.
    theirs = gymnasiums(fickle_passenger=True, fickle_probability=1.0)
    state_of = {number(state): state for state in all_states()}
    rng = random.Random(0)
    changed = 0
    for seed in range(60):
        code, _ = theirs.reset(seed=seed)
        codes, actions, done = [code], [], False
        while not done:
            actions.append(rng.choice([rng.choice(ACTIONS), taxi.solve(state_of[codes[-1]])[0]]))
            code, _, done, _, _ = theirs.step(ACTIONS.index(actions[-1]))
            codes.append(code)
        env = started(state_of[codes[0]], fickle=True)
        env._whim = state_of[codes[-1]].destination
        for action, (before, code) in zip(actions, pairwise(codes), strict=True):
            observation, _, _, _, info = env.step(action)
            assert number(env.state) == code
            assert info["effective"] == (before != code)
            told = "The passenger now wants to go to" in observation.splitlines()[0]
            assert told == (before % 4 != code % 4)
            changed += told
        assert info["success"]
    assert changed == 60  # in every ride, once


# ------------------------------------------------------------------------------------------------------ what is told


def test_observations_by_hand():
    assert taxi.draw(STATE) == TOWN
    assert taxi.list_cells(STATE) == CELLS
    riding = taxi.draw(State((4, 3), "in", "B")).splitlines()
    assert riding[5] == "|Y| : |T: |"
    assert riding[7:] == ["Taxi: (4,3). Passenger: in your taxi.", "Destination: B (4,3)."]
    assert taxi.list_cells(State((4, 3), "in", "B")).endswith(" destination B passenger in taxi (4,3)")


@pytest.mark.parametrize(
    ("state", "action", "grid", "cells"),
    [
        (STATE, "north", "You moved north.", "moved north"),
        (STATE, "south", "You moved south.", "moved south"),
        (STATE, "east", "You moved east.", "moved east"),
        (STATE, "west", "You moved west.", "moved west"),
        (State((0, 2), "R", "Y"), "west", "A wall stopped you.", "blocked"),
        (State((0, 2), "R", "Y"), "north", "A wall stopped you.", "blocked"),
        (STATE, "pickup", "There is no passenger here.", "no passenger"),
        (STATE, "dropoff", "There is no passenger in your taxi.", "no passenger in taxi"),
        (State((0, 0), "R", "Y"), "pickup", "You picked up the passenger.", "pickup done"),
        (State((0, 0), "in", "Y"), "pickup", "The passenger is in your taxi already.", "passenger still in taxi"),
        (State((2, 2), "in", "Y"), "dropoff", "You cannot drop off here: this is no pad.", "no pad"),
        (
            State((4, 3), "in", "Y"),
            "dropoff",
            "You dropped the passenger off at B, which is not the destination.",
            "dropoff B done",
        ),
        (State((4, 0), "in", "Y"), "dropoff", "You delivered the passenger at Y.", "dropoff Y solved"),
    ],
)
def test_events_by_hand(state, action, grid, cells):
    for layout, told in (("grid", grid + "\n"), ("cells", cells + " ")):
        env = started(state, layout=layout)
        observation, *_, info = env.step(action)
        show = taxi.draw if layout == "grid" else taxi.list_cells
        assert observation == told + show(env.state)
        assert info["effective"] == (env.state != state)


def test_a_whim_is_told_by_hand():
    for layout, told in [
        ("grid", "You moved east. The passenger now wants to go to B.\n"),
        ("cells", "moved east now destination B "),
    ]:
        env = started(State((2, 3), "in", "Y"), fickle=True, layout=layout)
        env._whim = "B"
        assert env.step("east")[0].startswith(told)
        assert env.state == State((2, 4), "in", "B")
        assert "now" not in env.step("west")[0]  # once


def test_an_episode_word_for_word():
    # From (3,1) north, west and south into the corner of Y; then up to row 2, east, and down to B.
    env = started(State((3, 1), "Y", "B"), layout="cells")
    town = CELLS.partition(" destination")[0]
    told = [
        ("north", "moved north", "Y taxi (2,1)", "(2,1)"),
        ("west", "moved west", "Y taxi (2,0)", "(2,0)"),
        ("south", "moved south", "Y taxi (3,0)", "(3,0)"),
        ("east", "blocked", "Y taxi (3,0)", "(3,0)"),
        ("south", "moved south", "Y taxi (4,0)", "(4,0)"),
        ("jump", "moved south", "Y taxi (4,0)", "(4,0)"),  # no action: the observation stays as it was
        ("pickup", "pickup done", "in taxi (4,0)", "(4,0) (in)"),
        ("dropoff", "dropoff Y done", "Y taxi (4,0)", "(4,0)"),
        ("pickup", "pickup done", "in taxi (4,0)", "(4,0) (in)"),
        ("north", "moved north", "in taxi (3,0)", "(3,0) (in)"),
        ("north", "moved north", "in taxi (2,0)", "(2,0) (in)"),
        ("north", "moved north", "in taxi (1,0)", "(1,0) (in)"),
        ("north", "moved north", "in taxi (0,0)", "(0,0) (in)"),
        ("dropoff", "dropoff R done", "R taxi (0,0)", "(0,0) (R)"),
        ("south", "moved south", "R taxi (1,0)", "(1,0) (R)"),
    ]
    for action, event, state, place in told:
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation == f"{event} {town} destination B passenger {state}"
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert info["valid"] == (action != "jump")
        assert info["effective"] == (event != "blocked" and action != "jump")
        assert env.place() == place
    # Back, pickup, two down, three across, two down, dropoff.
    assert env.solution() == ["north", "pickup", *["south"] * 2, *["east"] * 3, *["south"] * 2, "dropoff"]
    for action in env.solution():
        observation, reward, terminated, truncated, info = env.step(action)
    assert observation == f"dropoff B solved {town} destination B passenger B taxi (4,3)"
    assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
    assert (env.solution(), env.place()) == ([], "(4,3) (B)")
    with pytest.raises(ResetNeeded, match=r"call reset\(\)"):
        env.step("north")


def test_rules_explain_the_layout_and_the_variant_in_use():
    grid, cells = TaxiEnv(layout="grid").rules, TaxiEnv(layout="cells").rules
    assert all(words in grid for words in ("T your taxi", "| a wall", ": a free way", "R G Y B the pads"))
    assert all(f'"{word}"' in cells for word in ("wall", "pads", "destination", "passenger", "taxi", "in"))
    assert '"wall"' not in grid
    assert "drawn" not in cells
    for rules in (grid, cells):
        assert "R (0,0), G (0,4), Y (4,0) and B (4,3)" in rules
        assert not {"rains", "fickle"} & set(rules.split())
    assert "It rains." in TaxiEnv(rainy=True).rules
    assert "fickle" not in TaxiEnv(rainy=True).rules
    assert "fickle" in TaxiEnv(fickle=True).rules
    assert "rains" not in TaxiEnv(fickle=True).rules


def test_the_small_model_knows_every_word_of_the_cells():
    from wmact.nano import build_tokenizer

    tokenizer = build_tokenizer()
    observations = [taxi.list_cells(state) for state in all_states()]
    events = [taxi.report(s, a, taxi.act(s, a), "cells") for s in all_states() for a in ACTIONS]
    changed = [taxi.report(STATE, "north", State((1, 3), "R", pad), "cells") for pad in PADS]
    for text in {*observations, *events, *changed, *ACTIONS}:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == len(text.split())  # a word, a coordinate or a bar: one token each
    assert tokenizer.unk_token_id in tokenizer.encode("taxi driver")  # it can tell


# ------------------------------------------------------------------------------------------------------- environment


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", splits.SPLITS)
def test_check_env(env_id, layout, split):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(f"wmact_envs:{env_id}", layout=layout, split=split, render_mode="rgb_array")
        check_env(env.unwrapped)
        assert "TimeLimit" not in str(env)
        env.reset(seed=0)
        step = ("", 0.0, False)
        for _ in range(300):  # through gymnasium's own passive checker too; the rain may take a while
            if not step[2]:
                step = env.step(env.unwrapped.solution()[0])
    assert step[1:4] == (1.0, True, False)


def test_made_by_id():
    made = [gymnasium.make(f"wmact_envs:{name}").unwrapped for name in IDS]
    assert [(env.rainy, env.fickle) for env in made] == [(False, False), (True, False), (False, True)]
    assert made[0].action_names == ("south", "north", "east", "west", "pickup", "dropoff")
    assert set(made[0].example_actions) <= set(made[0].action_names)
    assert all(action in made[0].action_space for action in made[0].action_names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rainy": "false"}, "rainy='false': use True or False"),
        ({"fickle": 0.3}, r"fickle=0\.3: use True or False"),
        ({"split": "dev"}, "split='dev': use one of train, val, test"),
        ({"layout": "json"}, "layout='json': use one of grid, cells"),
        ({"render_mode": "human"}, "render_mode='human': use None or one of ansi, rgb_array"),
    ],
)
def test_unknown_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TaxiEnv(**arguments)


def test_wrong_levels_are_refused():
    env = TaxiEnv(split="test")
    env.reset(options={"level": 51})
    for level in (52, -1):
        with pytest.raises(IndexError, match=f"level {level} of split 'test': levels count from 0, and there are 52"):
            env.reset(options={"level": level})


def test_nothing_before_reset():
    env = TaxiEnv(render_mode="ansi")
    for call in (lambda: env.step("north"), env.solution, env.place, env.render):
        with pytest.raises(ResetNeeded, match=r"call reset\(\)"):
            call()


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ten_thousand_random_and_fuzzed_actions(env_id, layout):
    rng = random.Random(0)
    env = gymnasium.make(f"wmact_envs:{env_id}", layout=layout).unwrapped
    observation, _ = env.reset(seed=0)
    finished = 0
    for turn in range(10_000):
        noise = "".join(chr(rng.randrange(sys.maxunicode + 1)) for _ in range(rng.randrange(20)))
        action = rng.choice([*FUZZ, noise]) if turn % 4 == 0 else rng.choice([rng.choice(ACTIONS), env.solution()[0]])
        before, state = observation, env.state
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        assert info["valid"] == (action in ACTIONS)
        assert info["effective"] == (env.state != state)
        assert info["valid"] or observation == before
        assert (reward, terminated, truncated) == (float(info["success"]), env.solution() == [], False)
        if terminated:
            finished += 1
            observation, _ = env.reset()
            assert observation.startswith(("+---------+\n", "wall (0,1)"))  # nothing has happened yet
            assert observation in env.observation_space
    assert finished > 100


@pytest.mark.parametrize("env_id", IDS)
def test_a_copy_is_a_simulator_of_its_own(env_id):
    rng = random.Random(0)
    env = gymnasium.make(f"wmact_envs:{env_id}").unwrapped
    for level in range(50):
        env.reset(seed=level, options={"level": level})
        before = env.state, env.observe(), env.place()
        simulator = copy.copy(env)
        actions = rng.choices(ACTIONS[:5], k=30)  # no dropoff, so that no episode ends
        simulated = [simulator.step(action) for action in actions]
        assert (env.state, env.observe(), env.place()) == before
        assert [env.step(action) for action in actions] == simulated  # the rain falls on both alike


def test_luck_follows_the_seed_and_leaves_the_levels_alone():
    def episode(env: TaxiEnv, **reset) -> list[str]:
        env.reset(**reset)
        return [env.step(action)[0] for action in ["north", "south", "east", "west"] * 10]

    env = TaxiEnv(rainy=True)
    first = episode(env, seed=1, options={"level": 3})
    assert episode(env, options={"level": 3}) != first
    assert episode(env, seed=2, options={"level": 3}) != first
    assert episode(TaxiEnv(rainy=True), seed=1, options={"level": 3}) == first
    # What is drawn for luck does not move the generator that draws the levels: not even a level given by number does.
    for env in (TaxiEnv(), TaxiEnv(rainy=True), TaxiEnv(fickle=True)):
        env.reset(seed=1)
        drawn = [env.reset()[1]["level"] for _ in range(5)]
        env.reset(seed=1)
        episode(env, options={"level": 3})
        assert [env.reset()[1]["level"] for _ in range(5)] == drawn


TRAJECTORY = """
import hashlib, random, wmact_envs.taxi as t
text = []
for split in ("train", "val", "test"):
    for rainy in (False, True):
        env, rng = t.TaxiEnv(rainy=rainy, fickle=rainy, split=split), random.Random(0)
        text.append(env.reset(seed=5))
        for _ in range(300):
            text.append(env.step(rng.choice([rng.choice(t.ACTIONS), env.solution()[0]])))
            if text[-1][2]:
                text.append(env.reset())
print(hashlib.sha256(repr(text).encode()).hexdigest(), len(text))
"""


def test_same_seed_and_actions_same_trajectory_in_every_process():
    digests = {
        subprocess.run(
            [sys.executable, "-c", TRAJECTORY],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
        ).stdout
        for hash_seed in ("0", "1", "12345")
    }
    assert len(digests) == 1
    assert int(digests.pop().split()[1]) > 6 * 300 + 20  # episodes ended, and others were drawn


def test_no_global_generator_is_touched():
    before = random.getstate(), np.random.get_state()[1].tolist()
    env = TaxiEnv(rainy=True, fickle=True)
    env.reset(seed=0)
    env.step("north")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_render():
    env = started(STATE, layout="cells", render_mode="ansi")
    assert env.render() == TOWN
    env = started(STATE, render_mode="rgb_array")
    image = env.render()
    assert (image.shape, image.dtype) == ((5 * 64, 5 * 64, 3), np.uint8)
    colour = {cell: tuple(image[64 * cell[0] + 32, 64 * cell[1] + 32].tolist()) for cell in taxi.CELLS}
    blue, green, floor = colour[2, 3], colour[4, 0], colour[2, 2]
    assert len({blue, green, floor, *(colour[PADS[pad]] for pad in "RGB")}) == 6  # taxi, destination, floor and pads
    # A wall is dark along its whole length, and no other boundary of two cells is.
    dark = tuple(image[0, 0].tolist())
    assert all(tuple(image[64 * row + 32, 128].tolist()) == (dark if row in (0, 1) else floor) for row in range(5))
    # Waiting in the corner of R, then on the taxi, then waiting again: three pictures.
    waiting, riding = image, taxi.picture(State((2, 3), "in", "Y"))
    orange = tuple(riding[64 * 2 + 32, 64 * 3 + 32].tolist())
    assert orange != blue
    assert (waiting[:64, :64] == orange).all(axis=-1).any()
    assert not (riding[:64, :64] == orange).all(axis=-1).any()
    beside, aboard = taxi.picture(State((0, 0), "R", "Y")), taxi.picture(State((0, 0), "in", "Y"))
    assert (beside != aboard).any()
    assert started(STATE).render() is None


def test_pygame_is_not_needed():
    code = (
        "import sys; sys.modules['pygame'] = None\n"
        "from wmact_envs.taxi import TaxiEnv\n"
        "env = TaxiEnv(render_mode='rgb_array'); env.reset(seed=0); print(env.render().shape)\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    shape, loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert shape == "(320, 320, 3)"
    assert not {"wmact", "torch", "lightning", "transformers"} & set(loaded.split())
