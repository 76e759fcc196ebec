"""What notebooks show of a study: parts of it, comparisons in words, and figures with the numbers of the files."""

from pathlib import Path

import pytest

import known_study
from wmact import figures, report
from wmact.results import Part, read_part


@pytest.fixture
def part(tmp_path: Path) -> Part:
    return read_part(*known_study.write(tmp_path))


def test_without_results_it_says_what_to_run(tmp_path: Path) -> None:
    study, _ = known_study.write(tmp_path)
    with pytest.raises(ValueError, match=r"^no results of doors in nowhere yet: ") as error:
        read_part(study, Path("nowhere"))
    assert f"yet: python -m wmact study {study} makes them; in minutes, `make study` makes" in str(error.value)
    assert "\n" not in str(error.value)


def test_some_arms_of_a_study(part: Part) -> None:
    fewer = part.only("wmact", "interactive")
    assert fewer.arms == ["wmact", "interactive"]
    assert list(fewer.tests["hard"]) == ["wmact", "interactive"]
    assert fewer.study.compare == "interactive"  # "tau_3" is not among them
    assert part.only("tau_3", "wmact").study.compare == "tau_3"
    assert {row["arm"] for row in fewer.runs} == {"wmact", "interactive"}
    with pytest.raises(ValueError, match=r"^doors has no results of an arm 'grpo', only of entire_plan, interactive, "):
        part.only("wmact", "grpo")


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        # 17 less 9 of 20; one's levels are among the other's: ten differ, all the same way, p = 2 / 2^10
        ((16, 18), (8, 10), ["a less b is +40.0 [", "p = 0.00", "**a solves more**"]),
        ((8, 10), (16, 18), ["a less b is -40.0 [", "p = 0.00", "**b solves more**"]),
        # two levels differ, by a half: p = 2 / 2^2, as 10,000 flips have it
        ((10, 10), (10, 12), ["-5.0 [-20.0, +0.0]", "p = 0.48", "**stays open**; a difference of more than 20.0 p"]),
        ((10,), (10,), ["+0.0 [+0.0, +0.0]", "p = 1.0000", "No level differs", "With one seed"]),
        # one of two seeds solves everything: every level says half of it, and another draw of seeds may say nothing
        ((0, 20), (2, 2), ["+40.0 [-", "p = 0.00", "do not agree: which of them solves more **stays open**."]),
        # all and none of 20: Wilson's intervals end 0.1611 from 1 and from 0, so 1 - 0.1611 * 2 ** 0.5 = 0.772
        ((20,), (0,), ["+100.0 [+77.2, +100.0]", "p = 0.0001", "**a solves more**", "With one seed, this speaks"]),
    ],
)
def test_a_comparison_in_words(
    ours: tuple[int, ...], theirs: tuple[int, ...], words: list[str], tmp_path: Path
) -> None:
    part = read_part(*known_study.write(tmp_path, {"a": (ours, ours), "b": (theirs, theirs)}))
    told = report.compared(part, "standard", "a", "b", 1)
    assert told.startswith("doors standard, in one turn: a less b is ")
    assert all(word in told for word in words), told
    assert ("one seed" in told) == (len(ours) == 1)
    assert ", within L_max turns: " in report.compared(part, "standard", "a", "b")
    assert ", within 3 turns: " in report.compared(part, "standard", "a", "b", 3)


def test_internalisation_in_words(part: Part) -> None:
    def told(arm: str) -> str:
        return report.internalised(part, "standard", arm)

    assert told("wmact").startswith("doors standard, wmact: 85.0 [")  # 17 of 20
    assert " in one turn, 95.0 [" in told("wmact")
    assert "within 2; the gap is **10.0 [" in told("wmact")
    assert "one turn went 10.0 → 50.0 and many turns 40.0 → 70.0: **the gap shrank from below**" in told("wmact")
    assert "one turn went 10.0 → 30.0 and many turns 40.0 → 80.0: **the gap did not shrink**." in told("interactive")
    assert "many turns 60.0 → 50.0: **the gap shrank because many turns became worse**" in told("step_penalty")
    assert "the gap is **0.0 [0.0, " in told("entire_plan")
    hard = report.internalised(part, "hard", "wmact")
    assert hard.endswith("within 2; the gap is **0.0 [0.0, 16.1]** points.")  # Wilson: z²/(20 + z²), never evaluated


def test_arms_are_drawn_with_their_seeds(part: Part) -> None:
    standard, hard = figures.arms_figure(part.only("step_penalty", "wmact")).axes
    assert [axes.get_title().split("\n")[0] for axes in (standard, hard)] == ["doors standard", "doors hard"]
    assert [tick.get_text() for tick in standard.get_xticklabels()] == ["step_penalty", "wmact"]
    dots = {line.get_label(): list(line.get_ydata()) for line in standard.lines}
    assert dots["single-turn"] == pytest.approx([9 / 20, 17 / 20])
    assert dots["multi-turn"] == pytest.approx([11 / 20, 19 / 20])
    seeds = [list(line.get_ydata()) for line in standard.lines if line.get_marker() == "_"]
    assert seeds == [pytest.approx(each) for each in ([0.4, 0.5], [0.8, 0.9], [0.5, 0.6], [0.9, 1.0])]
    bars = [path.vertices[:, 1] for bar in standard.collections for path in bar.get_paths()]
    assert len(bars) == 4
    for (low, high), mean in zip(bars, [*dots["single-turn"], *dots["multi-turn"]], strict=True):
        assert low < mean < high
    assert [list(line.get_ydata()) for line in hard.lines if line.get_marker() == "o"] == [[0, 0], [0, 0]]


def test_differences_are_drawn_in_points(part: Part) -> None:
    pairs = [("wmact", "step_penalty"), ("step_penalty", "interactive")]
    standard, hard = figures.differences_figure(part, pairs).axes
    assert [tick.get_text() for tick in standard.get_yticklabels()] == [
        "wmact\nless step_penalty",
        "step_penalty\nless interactive",
    ]
    dots = {line.get_label(): list(line.get_xdata()) for line in standard.lines}
    assert dots["single-turn"] == pytest.approx([85 - 45, 45 - 25])
    assert dots["multi-turn"] == pytest.approx([95 - 55, 55 - 65])
    bars = [path.vertices[:, 0] for bar in standard.collections for path in bar.get_paths()]
    assert [low <= mean <= high for (low, high), mean in zip(bars, [40, 20, 40, -10], strict=True)] == [True] * 4
    assert bars[0][0] > 0  # leaves out 0, as the words say
    assert bars[3][0] < 0 <= bars[3][1]
    assert [list(line.get_xdata()) for line in hard.lines if line.get_marker() == "o"] == [[0, 0], [0, 0]]


def test_curves_of_training(part: Part) -> None:
    named = {"train/actions_mean": "actions", "eval/standard/single_turn": "one turn", "eval/none": "nothing"}
    actions, one, nothing = figures.training_figure(part.only("interactive", "wmact"), named).axes
    assert [axes.get_ylabel() for axes in (actions, one, nothing)] == ["actions", "one turn", "nothing"]
    means = {line.get_label(): list(line.get_ydata()) for line in actions.lines}
    assert means["wmact"] == [5, 4, 3]  # of 4 3 2 and 6 5 4
    assert [list(line.get_ydata()) for line in actions.lines][:2] == [[4, 3, 2], [6, 5, 4]]
    assert {line.get_label(): list(line.get_ydata()) for line in one.lines}["interactive"] == [0.1, 0.2, 0.3]
    assert not nothing.lines
