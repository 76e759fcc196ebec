"""What `calibrate` concludes: rates, the threshold it recommends, what can be known, and the words for it."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from wmact.rwml import calibrate
from wmact.rwml.calibrate import THRESHOLDS, efficacy, groups, knowable, rates, recommend, verdict
from wmact.rwml.nearmiss import Pairs
from wmact.rwml.triplets import Said, Triplet


class Length:
    """The difference in length, in tenths: 0.1 a character."""

    def __call__(self, predicted: Sequence[str], observed: Sequence[str]) -> list[float]:
        return [abs(len(a) - len(b)) / 10 for a, b in zip(predicted, observed, strict=True)]


def accepted(**kinds: Sequence[float]) -> dict[str, list[dict[str, float]]]:
    """A table as of `rates`: shares accepted, the last one given at all other thresholds; with a guard half of them."""
    filled = {name: [*shares, *[shares[-1]] * (len(THRESHOLDS) - len(shares))] for name, shares in kinds.items()}
    return {
        name.replace("_", " "): [
            {"threshold": t, "accepted": a, "guarded": a / 2} for t, a in zip(THRESHOLDS, shares, strict=True)
        ]
        for name, shares in filled.items()
    }


def test_rates_at_each_threshold_with_and_without_the_guard() -> None:
    # apart by 0, 1 and 3 characters: 0, 0.1 and 0.3; the last names another thing
    pairs = Pairs("echo", False, ["mug 1", "mug 1", "mug "], ["mug 1", "mug 1s", "mugs 14"])
    (rows,) = rates(Length(), [pairs]).values()
    assert [row["accepted"] for row in rows] == pytest.approx([1 / 3] * 5 + [2 / 3] * 3 + [1])
    assert [row["guarded"] for row in rows] == pytest.approx([1 / 3] * 9)  # "1s" is another thing, too


def test_the_threshold_accepts_most_paraphrases_of_those_that_tell_gross_errors() -> None:
    table = accepted(reworded=[0.1, 0.6, 0.9, 1.0], echo=[0.0, 0.0, 0.05, 0.06], same_verb=[0.0])
    table |= accepted(id_swapped=[0.0, 0.5, 0.8, 1.0], state_flipped=[0.2, 0.4, 0.6, 1.0])
    best = recommend(table, ["reworded"])
    assert best is not None
    assert (best["threshold"], best["paraphrases"]) == (THRESHOLDS[2], {"reworded": 0.9})
    assert best["gross_errors"] == {"echo": 0.05, "same verb": 0.0}
    assert best["near_misses"] == {"id swapped": 0.8, "state flipped": 0.6}
    assert best["guarded"] == {"id swapped": 0.4, "state flipped": 0.3}
    assert recommend(accepted(reworded=[1.0], echo=[0.06], same_verb=[0.0]), ["reworded"]) is None
    lowest = recommend(accepted(reworded=[1.0], echo=[0.0], same_verb=[0.0]), ["reworded"])
    assert lowest is not None
    assert lowest["threshold"] == THRESHOLDS[0]  # of several that are as good


def test_what_can_be_known(triplet: Callable[..., Triplet]) -> None:
    def said(game: str, before: str, truth: str) -> Triplet:
        return triplet(game=game, history=(Said("observation", before),), action="go", next=truth)

    rows = [
        said("a", "there is a mug 1", "the mug 1 shines"),  # "shines" and "the" are in the truths of b and c
        said("b", "nothing", "the pen 2 shines"),  # "pen" and "2" stand nowhere else, and so does the thing
        said("c", "nothing", "the sun shines"),
    ]
    found = knowable(rows)
    # of a: the, shines, mug, 1 all; of b: the, shines of four; of c: the, shines of three
    assert found["words"] == pytest.approx((1 + 2 / 4 + 2 / 3) / 3)
    assert found["things"] == pytest.approx((1 + 0) / 2)  # c names none
    assert found["all_things"] == pytest.approx(1 / 2)


def test_whether_what_moved_tells_what_was_effective(triplet: Callable[..., Triplet]) -> None:
    def moved(by: int, effective: bool) -> Triplet:
        return triplet(next="x" + "y" * by, effective=effective)

    moves = [(each, "x") for each in (moved(0, False), moved(1, False), moved(3, True))]
    rows = {row["threshold"]: row for row in efficacy(Length(), moves)}
    assert (rows[0.0]["precision"], rows[0.0]["recall"]) == (1 / 2, 1)  # two moved, one of them effective
    assert (rows[0.2]["precision"], rows[0.2]["recall"]) == (1, 1)
    assert math.isnan(rows[0.4]["precision"])  # nothing moved by more
    assert rows[0.4]["recall"] == 0


def test_groups_without_variance(triplet: Callable[..., Triplet]) -> None:
    one = triplet(next="four")
    found = groups(Length(), [(one, ["four", "four"]), (one, ["four", None]), (one, ["far too long", "fours"])])
    assert found[0] == {"threshold": 0.005, "reward": 3 / 6, "zero_variance": 2 / 3}
    wider = next(row for row in found if row["threshold"] == 0.15)
    assert wider["reward"] == 4 / 6  # "fours" is right too, and its group has variance
    assert wider["zero_variance"] == 1 / 3


def result(pairs: int = 100, things: float = 1.0, **found: Any) -> dict[str, Any]:
    best: dict[str, Any] = {"threshold": 0.1, "paraphrases": {"reordered": 1.0, "reworded": 0.8}}
    best |= {
        "gross_errors": {"echo": 0.0, "same verb": 0.03},
        "near_misses": {"id swapped": 0.0},
        "guarded": {"id swapped": 0.0},
    }
    one = {"recommended": best | found.pop("best", {}), "accepted": accepted(echo=[0.5], same_verb=[0.25])} | found
    return {"distances": {"d": one}, "pairs": {"echo": pairs, "same verb": 100}, "knowable": {"things": things}}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (result(recommended=None), ["no signal: it does not tell gross errors", "50% of echo, 25% of same verb"]),
        # of all kinds alike it would be 0.7
        (result(best={"paraphrases": {"a": 1.0, "b": 0.4}}), ["strict: a right prediction", "as wrong (40% of b)"]),
        (
            result(best={"near_misses": {"c": 0.8, "d": 0.0}}),
            ["it takes near-misses for right (80% of c, 0% of d): AND it with wmact.rwml.SameState"],
        ),
        (
            result(best={"near_misses": {"c": 0.8, "d": 0.7}, "guarded": {"c": 0.8, "d": 0.1}}),
            ["AND it with wmact.rwml.SameState, which does not see all of them (80% of c)"],
        ),
        (result(pairs=29), ["only 29 pairs of a kind of gross errors: collect more"]),
        (result(things=0.4), ["little signal whatever the distance: only 40% of the things"]),
        (
            result(start_model=[{"threshold": 0.1, "zero_variance": 0.95, "reward": 0.01}]),
            ["no signal to start from: 95% of the start model's groups have no variance (its mean reward is 0.01)"],
        ),
    ],
    ids=["gross errors", "strict", "near-misses", "a blind guard", "few pairs", "unknowable", "flat groups"],
)
def test_the_verdict_in_words(found: dict[str, Any], told: list[str]) -> None:
    words = "\n".join(verdict(found))
    for text in told:
        assert text in words


def test_nothing_more_is_said_of_a_signal() -> None:
    told = "d: τ_d = 0.1 accepts 100% of reordered, 80% of reworded; of gross errors 0% of echo, 3% of same verb"
    assert verdict(result()) == [told]


def test_what_moved_is_what_the_world_says_and_not_what_an_observation_adds(
    triplet: Callable[..., Triplet], write: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ALFWorldVerl's, whose observations list what can be done: compared with these, everything moves."""
    rows = []
    for step, (says, effective) in enumerate([("a", True), ("a", False), ("b", True), ("b", False)]):
        seen = (Said("observation", f"{rows[-1].next if rows else 'start'}\nAdmissible actions: {step}"),)
        rows.append(triplet(step=step, history=seen, next=says, effective=effective))
    monkeypatch.setattr(calibrate, "distance_of", lambda name: Length())
    calibrate.main(["--triplets", write(*rows), "--out", str(tmp_path / "out.json")])
    told = {
        row["threshold"]: row
        for row in json.loads((tmp_path / "out.json").read_text())["distances"]["exact"]["efficacy"]
    }
    # of steps 1 to 3, before which the world has said something, step 2 is effective, and it alone brings another text
    assert (told[0.0]["precision"], told[0.0]["recall"]) == (1.0, 1.0)
