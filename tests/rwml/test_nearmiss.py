"""What the calibration makes of a true next state."""

import dataclasses

import numpy as np
import pytest

from wmact.rwml.nearmiss import all_pairs, by_hand, dropped, flipped, id_swapped, reordered, reworded, said_before, verb
from wmact.rwml.state import same
from wmact.rwml.triplets import Said


def every(rule, text):
    """Whatever a rule makes of a text."""
    return {rule(text, np.random.default_rng(seed)) for seed in range(40)}


@pytest.mark.parametrize(
    ("rule", "text", "made"),
    [
        (reordered, "On it, you see a mug 1, a pen 2, and a cup 3.", {"On it, you see a cup 3, a pen 2, and a mug 1."}),
        (reordered, "wall (1,1) (1,2) you (3,3)", {"wall (1,2) (1,1) you (3,3)"}),
        (reordered, '{"a": 1, "b": 2}', {'{"b": 2, "a": 1}'}),
        (reordered, "Nothing happens.", {None}),
        (reworded, "You close the drawer 3.", {"The drawer 3 is closed now."}),
        (reworded, "You sing.", {None}),
        (id_swapped, "a mug 0", {"a mug 1"}),
        (id_swapped, "a mug 9", {"a mug 10", "a mug 8"}),
        (id_swapped, "#W12", {"#W13", "#W11"}),
        (id_swapped, "(1,2)", {"(0,2)", "(2,2)", "(1,1)", "(1,3)"}),
        (id_swapped, "none", {None}),
        (flipped, "The safe 1 is open.", {"The safe 1 is closed."}),
        (flipped, "You turn on the lamp on the desk.", {"You turn off the lamp on the desk."}),
        (flipped, '{"ok": true, "x": "pending"}', {'{"ok": false, "x": "pending"}', '{"ok": true, "x": "cancelled"}'}),
        (flipped, "on the desk", {None}),
        (dropped, "you see a mug 1, and a pen 2.", {"you see a mug 1.", "you see a pen 2."}),
        (dropped, "open (1,1) (1,2) you", {"open (1,1) you", "open (1,2) you"}),
        (dropped, '{"a": 1, "b": 2}', {'{"b": 2}', '{"a": 1}'}),
        (dropped, "[1, 2]", {"[1]", "[2]"}),
        (dropped, "a mug 1", {None}),
    ],
)  # fmt: skip
def test_rules(rule, text, made):
    assert every(rule, text) == made


def test_the_verb_of_an_action():
    assert verb("Go to desk 1") == "go"
    assert verb('{"name": "get_order", "arguments": {}}') == "get_order"
    assert verb("") == ""


def test_pairs_of_a_file(triplet):
    mug, pen = ((Said("observation", f"You see a {thing}."),) for thing in ("mug 1", "pen 2"))
    rows = [
        triplet(step=0, next="You see a mug 1."),
        triplet(step=1, history=mug, action="go to bed 2", next="You see a pen 2."),
        triplet(step=2, history=pen, action="wait", next="You see a pen 2."),
        triplet(step=0, game="g1", action="go home", next="You see a cup 3."),
    ]
    made = {kind.name: kind for kind in all_pairs(rows, 10, 0)}
    # said last: of step 0 the observation, of step 1 what step 0 brought; step 2 repeats what was said last
    echo = dict(zip(made["echo"].truths, made["echo"].others, strict=True))
    assert echo == {
        "You see a mug 1.": rows[0].observation,
        "You see a pen 2.": "You see a mug 1.",
        "You see a cup 3.": rows[3].observation,
    }
    assert "wait" not in made["same verb"].truths
    for kind in made.values():
        assert all(same(a) != same(b) for a, b in zip(kind.truths, kind.others, strict=True))
    assert [kind.truths for kind in all_pairs(rows, 10, 0)] == [kind.truths for kind in made.values()]
    assert all(len(kind.truths) <= 1 for kind in all_pairs(rows, 1, 0))


def test_what_the_world_said_before(triplet):
    first = triplet(next="a mug 1")
    plain = triplet(step=1, history=(Said("observation", "a mug 1"),), next="a pen 2")
    assert said_before([plain, first]) == ["a mug 1", first.observation]
    assert said_before([plain]) == ["a mug 1"]  # where the step before is not among them
    around = dataclasses.replace(plain, history=(Said("observation", "a mug 1\nAdmissible actions: look"),))
    assert said_before([around, first]) == ["a mug 1", None]  # nothing tells what the world's part of the first one was


def test_what_was_written_by_hand_is_not_the_same_text():
    alike, unlike = by_hand()
    assert len(alike.truths) == 14
    assert len(unlike.truths) == 10
    assert not any(a == b for kind in (alike, unlike) for a, b in zip(kind.truths, kind.others, strict=True))
