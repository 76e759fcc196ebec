"""A study: its file, its runs stopped and gone on with, its results, statistics by hand, and what the report tells."""

import csv
import gzip
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

import tiny_worlds
from command_line import refused, run
from wmact import cli, figures, plot, study
from wmact.checkpoints import lock
from wmact.report import write_report
from wmact.results import Outcomes, Part, Results, collect, count_parameters, outcome, read_results, write_results
from wmact.study_file import Study, fingerprint, read_study, weights

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.usefixtures("alone")


# The study file

GOOD: dict[str, Any] = {
    "name": "doors",
    "base": ["base.yaml"],
    "arms": {"wmact": "", "wide": "--config 'a b.yaml' --data.groups 5"},
    "seeds": [0, 3],
    "common": "--trainer.max_epochs 2",
    "paper": {"wmact": {"standard": 88.14}},
}


def written(name: str, content: Any) -> str:
    Path(name).write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return name


def test_words_come_from_the_general_to_the_particular() -> None:
    words = read_study(Path(written("s.yaml", GOOD))).words("wide", 3)
    assert shlex.join(words) == (
        "--config base.yaml --trainer.max_epochs 2 --config 'a b.yaml' --data.groups 5 --seed_everything 3"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sed": 1}, ["'sed'", "name, base, arms, seeds, common"]),
        ({"seeds": "many"}, ["seeds: expected list", "got many"]),
        ({"seeds": [0, 1, 0]}, ["seeds=[0, 1, 0]", "twice"]),
        ({"seeds": []}, ["at least one arm and one seed"]),
        ({"arms": {}}, ["at least one arm and one seed"]),
        ({"arms": {"wmact": 3}}, ["arms", "expected str", "got 3"]),
        ({"arms": {"../wmact": ""}}, ["'../wmact'", "letters, digits"]),
        ({"name": "a/b"}, ["'a/b'", "letters, digits"]),
        ({"compare": "tau_3"}, ["compare", "'tau_3'", "wmact, wide"]),
        ({"paper": {"grpo": {"standard": 1}}}, ["paper", "'grpo'", "wmact, wide"]),
        ({"common": "--data.groups '3"}, ["'wmact'", "No closing quotation", "--data.groups '3"]),
        ({"base": ["none.yaml"]}, ["none.yaml: No such file"]),
        ({"base": ["half.yaml"]}, ["half.yaml", "line 2"]),
    ],
    ids=str,
)
def test_a_study_file_that_is_not_right(
    change: dict[str, Any], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    written("half.yaml", "a: [\n")
    line = refused(capsys, "study", written("s.yaml", GOOD | change))
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nname: b\n", ["s.yaml", "duplicate key name"]),
        ("arms: {a: x, a: y}\n", ["s.yaml", "duplicate key a"]),
        ("- a\n", ["s.yaml", "a mapping", "name, base"]),
        ("", ["s.yaml", "required", "name"]),
        ("a: [\n", ["s.yaml", "line 2"]),
    ],
)
def test_a_study_file_that_is_no_study(text: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "study", written("s.yaml", text))
    assert all(word in line for word in words), line


def test_words_of_the_command_that_are_not_right(capsys: pytest.CaptureFixture[str]) -> None:
    written("base.yaml", "a: 1")
    written("a b.yaml", "a: 1")
    good = written("s.yaml", GOOD)
    assert "none.yaml: No such file" in refused(capsys, "study", "none.yaml")
    assert "required: FILE" in refused(capsys, "study")
    assert "--jobs 0: at least 1" in refused(capsys, "study", good, "--jobs", "0")
    assert "unrecognized arguments: --seed 1" in refused(capsys, "study", good, "--seed", "1")
    assert "doors, doors: two files cannot share one" in refused(capsys, "study", good, good)
    assert "no results of doors in there yet" in refused(capsys, "study", good, "--report", "--results", "there")
    assert not Path("runs").exists()


def test_a_run_can_start_from_what_another_one_of_its_seed_has_left() -> None:
    arms = {"wmact": "--model.model runs/house/rwml_{seed}", "base": ""}
    study = read_study(Path(written("s.yaml", GOOD | {"arms": arms})))
    assert study.words("wmact", 3)[4:6] == ["--model.model", "runs/house/rwml_3"]
    assert "--model.model" not in study.words("base", 3)


def test_what_words_mean_is_in_their_files_too() -> None:
    words = ["--config", "base.yaml", "--config=more.yaml", "--data.groups", "3"]
    written("base.yaml", "a: 1\n")
    written("more.yaml", "b: ${a}\n")
    before = fingerprint(words)
    written("base.yaml", "# a comment\na:  1\n")
    assert fingerprint(words) == before
    assert fingerprint([*words[:-1], "4"]) != before
    for file in ("base.yaml", "more.yaml"):
        old = Path(file).read_text()
        written(file, "a: 2\n")
        assert fingerprint(words) != before
        written(file, old)
    assert fingerprint(words) == before


def start_model(content: str) -> str:
    Path("start").mkdir(exist_ok=True)
    return str(Path(written("start/model.safetensors", content)).parent)


def test_weights_are_those_of_the_folders_that_words_and_their_files_name() -> None:
    folder = start_model("one")
    written("base.yaml", f"model: {{init_args: {{model: {folder}}}}}\ntrainer: {{default_root_dir: ''}}\n")
    named = (["--config", "base.yaml"], ["--model.model", folder], [f"--model.model={folder}"])
    (one,) = {weights(words) for words in named}
    assert weights(["--model.model", "nano"]) not in ("", one)
    assert weights(["--model.model", "a/hub-id", "--data.groups", "3"]) == ""
    start_model("other")
    (other,) = {weights(words) for words in named}
    assert other != one
    start_model("one")
    assert {weights(words) for words in named} == {one}


def test_weights_are_not_those_of_a_folder_that_is_replaced_by_another() -> None:
    folder = start_model("one")
    written("base.yaml", f"model: {{init_args: {{model: {folder}, lr: 0.1}}}}\n")
    written("nano.yaml", "model: {init_args: {model: nano}}\n")
    written("served.yaml", f"data: {{init_args: {{engine: {{init_args: {{served: {folder}}}}}}}}}\n")
    nano, one = weights(["--model.model", "nano"]), weights(["--model.model", folder])
    base = ["--config", "base.yaml"]
    assert weights(base) == one
    assert weights([*base, "--model.model", "nano"]) == weights([*base, "--model.init_args.model=nano"]) == nano
    assert weights([*base, "--config=nano.yaml"]) == nano
    assert weights(["--config", "nano.yaml", *base]) == one  # what is said last
    assert weights([*base, "--config", "nano.yaml", "--config", "served.yaml"]) not in (one, nano, "")
    assert weights(["--config", "nano.yaml", "--config", "served.yaml", "--data.engine", "null"]) == nano


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "study").glob("*.yaml")), ids=lambda file: file.stem)
def test_committed_results_are_of_the_shipped_studies(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(study, "RUNS", tmp_path)  # what was run here is another matter
    study.Studies([read_study(file)], ROOT / "docs" / "results", jobs=1)  # it refuses those of other settings


@pytest.fixture(scope="module")
def parser() -> Any:
    """The command line's, made once: that takes longer than to use it."""
    made = []

    def keep(self: cli.CLI, parser: Any, args: Any) -> None:
        made.append(parser)
        sys.exit(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli.CLI, "parse_arguments", keep)
        run("fit")
    return made[0]


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "study").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_studies_have_arms_that_parse(file: Path, parser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    asked = read_study(file)
    shown = {parser.dump(parser.parse_args(["fit", *asked.words(arm, asked.seeds[0])])) for arm in asked.arms}
    assert len(shown) == len(asked.arms)  # no two are the same


# Results


def test_what_is_kept_of_an_episode_by_hand() -> None:
    turns = [{"actions": [{"kind": kind} for kind in kinds]} for kinds in (["effective", "blocked"], [], ["effective"])]
    record = {"variant": "hard", "level": 7, "optimal_length": 4, "stop_reason": "solved", "turns": turns}
    expected = {"variant": "hard", "level": "7", "optimal_length": "4", "solved_at": "3"}
    assert outcome(record, 3) == expected | {"actions": "3", "effective": "2"}
    assert outcome(record, 2) == expected | {"actions": "2", "effective": "1"}  # the third turn is beyond two
    assert outcome(record | {"stop_reason": "turns"}, 3)["solved_at"] == "0"


def results_of(arm: str, seed: int, solved_at: Sequence[int] = (1, 0), **facts: str) -> Results:
    """Results of one run: a test of as many levels as there are numbers, with 4 actions each, 3 of them effective."""
    owner = {"arm": arm, "seed": str(seed)}
    run = {"words": f"--config x.yaml --seed_everything {seed}", "settings": "abc", "model": "nano"}
    run |= {"parameters": "893312", "max_turns": "2", "curve": "1 2 3", "errors": "0", "machine": "Abacus, 2 cores"}
    level = {"variant": "standard", "optimal_length": "3", "actions": "4", "effective": "3"}
    outcomes = [owner | level | {"level": str(n), "solved_at": str(at)} for n, at in enumerate(solved_at)]
    spent = {
        "performance/rollout_seconds": "3",
        "performance/update_seconds": "6",
        "performance/tokens_per_second": "5",
    }
    curves = [owner | spent | {"step": str(step), "train/turn_budget": str(2 - step)} for step in range(2)]
    curves[0] |= {"eval/standard/single_turn": "0.25", "eval/standard/multi_turn": "0.5"}
    curves[1] |= {"eval/standard/single_turn": "0.5", "eval/standard/multi_turn": "0.75"}
    return Results([owner | run | facts], outcomes, curves)


def test_equal_results_are_equal_bytes_in_whatever_order_they_came() -> None:
    runs = [results_of(arm, seed, (seed, 1, 0)) for arm in ("b", "a") for seed in (10, 9)]
    for folder, order in (("one", runs), ("two", runs[::-1]), ("three", [*runs, *runs[1:3]])):
        results = read_results(Path(folder))
        for each in order:
            results.add(each)
            write_results(Path(folder), results)
            results = read_results(Path(folder))
    for file in ("runs.csv", "outcomes.csv.gz", "curves.csv"):
        assert len({Path(folder, file).read_bytes() for folder in ("one", "two", "three")}) == 1
    assert Path("one/outcomes.csv.gz").read_bytes()[4:8] == bytes(4)  # where gzip writes the date
    assert [(row["arm"], row["seed"]) for row in results.runs] == [("a", "9"), ("a", "10"), ("b", "9"), ("b", "10")]
    assert gzip.decompress(Path("one/outcomes.csv.gz").read_bytes()).decode().splitlines()[:3] == [
        "arm,seed,variant,optimal_length,actions,effective,level,solved_at",
        "a,9,standard,3,4,3,0,9",
        "a,9,standard,3,4,3,1,1",
    ]
    assert (results.run("a", 9) or {})["model"] == "nano"
    assert results.run("a", 8) is None


def test_a_run_that_comes_again_takes_the_place_of_the_old_one() -> None:
    results = results_of("a", 0, (1, 1, 1))
    results.add(results_of("a", 0, (0,)))
    assert [row["solved_at"] for row in results.outcomes] == ["0"]
    assert len(results.runs) == 1


def test_parameters_are_the_models_and_a_tied_one_counts_once(tiny_model: Path) -> None:
    sizes = [count_parameters(name) for name in ("nano", "nano-maze", "nano-sokoban")]
    assert sizes == [893056] * 3  # 312 words and 4 layers of width 128, as they were before they were trained
    for tied in (True, False):
        config = LlamaConfig.from_pretrained(tiny_model, tie_word_embeddings=tied)
        LlamaForCausalLM(config).save_pretrained(f"tied-{tied}")
    head = config.vocab_size * config.hidden_size
    assert count_parameters("tied-False") - count_parameters("tied-True") == head


def test_what_was_tested() -> None:
    numbers = {  # seed → level → samples of (solved_at, actions, effective)
        0: {0: [(1, 2, 2), (0, 6, 3)], 1: [(3, 3, 3), (2, 1, 1)], 2: [(1, 1, 1), (1, 1, 1)]},
        1: {1: [(0, 4, 0), (0, 4, 0)], 0: [(1, 1, 1), (1, 1, 1)]},
    }
    rows = [
        {"seed": str(seed), "level": str(level), "solved_at": str(s), "actions": str(a), "effective": str(e)}
        for seed, levels in numbers.items()
        for level, samples in levels.items()
        for s, a, e in samples
    ]
    tested = Outcomes(rows, 2)
    assert tested.levels.tolist() == [0, 1]  # level 2 is of one seed only
    assert tested.success(1).tolist() == [[0.5, 0.0], [1.0, 0.0]]
    assert tested.success().tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert tested.success(3).tolist() == [[0.5, 1.0], [1.0, 0.0]]
    assert tested.per_episode().tolist() == [12 / 4, 10 / 4]
    assert tested.effective_share().tolist() == [9 / 12, 2 / 10]
    other = Outcomes([row | {"seed": "0"} for row in rows if row["level"] == "1" and row["seed"] == "0"], 2)
    ours, theirs = tested.paired(other, 3)
    assert (ours.tolist(), theirs.tolist()) == ([[1.0], [0.0]], [[1.0]])


# The report


def part_of(name: str = "doors", arms: Sequence[str] = ("interactive", "wmact"), **changes: Any) -> Part:
    """10 levels, 2 seeds: interactive solves 2 and 4 in one turn, 6 and 8 in two; wmact 6 and 8, then 8 and 10."""
    asked: dict[str, Any] = {"name": name, "base": ["x.yaml"], "arms": dict.fromkeys(arms, ""), "seeds": [0, 1]}
    results = Results()
    for arm in arms:
        for seed in (0, 1):
            one = 2 * seed + (6 if arm == "wmact" else 2)
            two = min(10, one + (2 if arm == "wmact" else 4))
            results.add(results_of(arm, seed, [1] * one + [2] * (two - one) + [0] * (10 - two)))
    write_results(Path("res", name), results)
    return Part(Study(**(asked | {"paper": {"wmact": {"standard": 88.14}}} | changes)), results)


def table_below(text: str, title: str) -> dict[str, list[str]]:
    """The first table below a heading: first cell → the others; the head has the name "head"."""
    lines = text.split(f"## {title}\n", 1)[1].splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return {"head": rows[0]} | {row[0]: row[1:] for row in rows[2:]}


def test_the_report_tells_the_numbers_of_the_files() -> None:
    path = write_report([part_of(note="Only doors.")], Path("res"), "python -m wmact study s.yaml --report")
    assert path == Path("res/doors/report.md")
    text = path.read_text()
    assert text.startswith("# doors: nano, 0.9 M\n\nOnly doors.\n")
    assert "\n    python -m wmact study s.yaml --report\n" in text
    facts = [line for line in text.splitlines() if line.startswith("| ")][2:]
    for fact in ("model | nano", "parameters | 893,312", "seeds | 0, 1", "training iterations | 2", "missing | none"):
        assert any(f"{fact} |" in line for line in facts), fact
    assert any("test levels | standard 10 |" in line for line in facts)
    assert any("machine | Abacus, 2 cores |" in line for line in facts)

    success = table_below(text, "Success within L_max (the paper's Table 1)")
    assert success["head"] == ["arm", "doors standard (nano, 0.9 M)", "paper (8 B)"]
    # within two turns: (6 + 8) / 20 and (8 + 10) / 20
    assert [success[arm][0].split()[0] for arm in ("interactive", "wmact")] == ["70.0", "90.0"]
    assert [success[arm][1] for arm in ("interactive", "wmact")] == ["", "88.14"]

    ablation = table_below(text, "Ablation (the paper's Table 3)")
    assert list(ablation) == ["head", "PPO-Interactive", "+ annealing = WMAct"]
    assert "Table 4" not in text  # there is no arm with a step penalty

    turns = table_below(text, "One turn and many")
    for arm, expected in {
        "interactive": ["30.0", "20.0 40.0", "2", "70.0", "60.0 80.0", "40.0"],
        "wmact": ["70.0", "60.0 80.0", "2", "90.0", "80.0 100.0", "20.0"],
    }.items():
        assert [cell.split(" [")[0] for cell in turns[arm]] == expected
    curve = table_below(text, "Success against allowed turns")
    assert curve["head"] == ["arm", "1", "2", "3"]
    assert [cell.split()[0] for cell in curve["wmact"]] == ["70.0", "90.0", "90.0"]

    # The levels' differences of seed means, interactive less wmact, in one turn: interactive solves levels 0 and 1 with
    # both seeds, 2 and 3 with one; wmact 0 to 5 with both, 6 and 7 with one. So -1/2 at 2, 3, 6, 7 and -1 at 4, 5: as
    # far from 0 as six numbers with signs can be, p = 2 / 2^6
    against = table_below(text, "Against wmact")
    assert list(against) == ["head", "interactive"]
    assert against["interactive"][0].split()[0] == "-40.0"
    assert float(against["interactive"][1]) == pytest.approx(2 / 64, abs=0.008)

    actions = table_below(text, "Actions of an episode, within L_max")
    assert actions["wmact"] == ["4.0", "0.750"]
    spent = table_below(text, "Time: means of an iteration, and of a run without its evaluations")
    assert spent["wmact"] == ["3.00", "6.00", "5", "0.3"]  # 2 iterations of 3 + 6 s are 0.3 min
    assert table_below(text, "Arms")["wmact"] == ["`--config x.yaml`"]


def test_the_report_names_what_is_missing_and_repeats_itself() -> None:
    part_of()
    asked = Study("doors", ["x.yaml"], {"entire_plan": "", "interactive": "", "wmact": ""}, [0, 1, 2])
    part = Part(asked, read_results(Path("res/doors")))
    path = write_report([part], Path("res"), "command")
    assert "| entire_plan 0, entire_plan 1, entire_plan 2, interactive 2, wmact 2 |" in path.read_text()
    assert "entire_plan" not in table_below(path.read_text(), "One turn and many")
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert {"report.md", "internalisation.png", "turns.png", "budget.png"} <= before.keys()
    write_report([part], Path("res"), "command")
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_runs_that_the_study_no_longer_asks_for_are_left_out() -> None:
    part_of()
    part = Part(Study("doors", ["x.yaml"], {"wmact": ""}, [1]), read_results(Path("res/doors")))
    assert (part.arms, part.tests["standard"]["wmact"].seeds) == (["wmact"], [1])


def test_environments_stand_side_by_side() -> None:
    parts = [
        part_of("doors"),
        part_of("gates", ("wmact", "step_penalty", "tau_3"), paper={"step_penalty": {"standard": 72.43}}),
    ]
    path = write_report(parts, Path("res"), "command")
    assert path == Path("res/doors+gates/report.md")
    text = path.read_text()
    success = table_below(text, "Success within L_max (the paper's Table 1)")
    assert success["head"] == [
        "arm",
        *("doors standard (nano, 0.9 M)", "paper (8 B)"),
        *("gates standard (nano, 0.9 M)", "paper (8 B)"),
    ]
    assert list(success)[1:] == ["interactive", "wmact", "step_penalty", "tau_3"]
    assert success["interactive"][2:] == ["", ""]  # gates have no such arm
    assert success["step_penalty"][3] == "72.43"
    assert "res/doors and res/gates" in text
    schedules = table_below(text, "Turn budget")
    assert list(schedules) == ["head", "wmact", "tau_3"]  # those of gates; doors have no other schedule
    assert schedules["tau_3"][2] == "1 1"  # played with 2 in iteration 0 and with 1 in iteration 1, by both seeds

    panels = figures.turns_figure(parts).axes
    assert [axes.get_title() for axes in panels] == ["doors standard\nnano, 0.9 M", "gates standard\nnano, 0.9 M"]
    lines = {line.get_label(): list(line.get_ydata()) for line in panels[0].lines}
    assert lines["wmact"] == pytest.approx([0.7, 0.9, 0.9])
    assert 0.8814 in [line.get_ydata()[0] for line in panels[0].lines]  # the paper's
    figure = figures.success_figure(parts)
    assert figure is not None
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title().split("\n")[0] for axes in shown] == [
        *("doors: interactive", "doors: wmact"),
        *("gates: wmact", "gates: step_penalty"),  # tau_3 is of the sweep
    ]
    (multi,) = [line for line in shown[0].lines if line.get_label() == "multi-turn"]
    assert (list(multi.get_xdata()), list(multi.get_ydata())) == ([0, 1], [0.5, 0.75])


def test_a_study_without_results_is_named_beside_one_that_has_some() -> None:
    none = Part(Study("gates", ["x.yaml"], {"wmact": ""}, [0]), Results())
    text = write_report([part_of(), none], Path("res"), "command").read_text()
    facts = [line for line in text.splitlines() if line.startswith("| runs that are missing")]
    assert facts == ["| runs that are missing | none | wmact 0 |"]


def test_no_level_differs_and_a_table_without_the_arm_to_compare_with() -> None:
    results = results_of("wmact", 0, (1, 0))
    results.add(results_of("same", 0, (1, 0)))
    asked = {"name": "doors", "base": ["x.yaml"], "seeds": [0]}
    text = write_report([Part(Study(arms={"wmact": "", "same": ""}, **asked), results)], Path("res"), "x").read_text()
    assert table_below(text, "Against wmact")["same"] == ["no level differs", "", "no level differs", ""]
    part = Part(Study(arms={"wmact": "", "same": ""}, **asked), results_of("same", 0, (1, 0)))
    assert "Against" not in write_report([part], Path("res"), "x").read_text()


# Running, with a command that only pretends: it takes the words of wmact and writes what a run would

STUB = """#!PYTHON -IS
import json, os, pathlib, shutil, signal, sys, time
words = sys.argv[3:]
calls, seed = pathlib.Path("calls.jsonl"), None
if words[0] == "fit" and "--ckpt_path" not in words:
    where = json.loads(words[words.index("--trainer.logger") + 1])[0]["init_args"]
    home = pathlib.Path(where["save_dir"], where["name"])
else:
    home = pathlib.Path(words[words.index("--config") + 1]).parent.parent
version = home / f"version_{len(list(home.glob('version_*')))}"
arm, begun = home.parent.name, time.monotonic()
held = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
def told(**facts):
    facts["holds"] = str(pathlib.Path("runs/study/pretended/lock").absolute()) in held
    with calls.open("a") as file:
        file.write(json.dumps({"arm": arm, "threads": os.environ["OMP_NUM_THREADS"], "words": words} | facts) + "\\n")
if arm == "faulty":
    told()
    print("a long story\\nwmact: data.groups=0: must be at least 1\\na library's last words\\n", file=sys.stderr)
    sys.exit(2)
if arm == "foreign":
    sys.exit("Killed\\n\\n")
if arm == "mute":
    sys.exit(7)
if words[0] == "fit" and "--ckpt_path" not in words:
    version.mkdir(parents=True)
    for name in ("config.yaml", "metrics.csv"):
        shutil.copy(pathlib.Path("template", name), version / name)
    if arm == "unsaved":
        sys.exit(0)
    (version / "checkpoints").mkdir()
    shutil.copy("template/last.ckpt", version / "checkpoints" / "last.ckpt")
elif words[0] == "test":
    version.mkdir()
    if arm != "silent":
        shutil.copy("template/episodes.jsonl", version)
if arm == "editor":
    pathlib.Path("base.yaml").write_text("a: 2")
if arm == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
told()
time.sleep(60 if arm in ("slow", "deaf") and pathlib.Path("slowly").exists() else 0.3 if words[0] == "fit" else 0)
told(ended=True)
"""


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Write a study whose arms are runs of the stub; return its file."""
    stub = tmp_path / "stub"
    stub.write_text(STUB.replace("PYTHON", os.path.realpath(sys.executable)))
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    template = tmp_path / "template"
    template.mkdir()
    data = {"max_turns": 2, "testing": {"curve": [1, 2]}}
    config = {"data": {"init_args": data}, "model": {"init_args": {"model": "nano", "trust_remote_code": False}}}
    written("template/config.yaml", config)
    written("template/metrics.csv", "step,train/turn_budget,stability/entropy\n0,2.0,0.5\n")
    torch.save({"state_dict": {"policy.x": torch.zeros(7)}}, template / "last.ckpt")
    turn = {"actions": [{"kind": "effective"}]}
    record = {"variant": "standard", "optimal_length": 1, "stop_reason": "solved", "turns": [turn], "error": None}
    written("template/episodes.jsonl", "".join(json.dumps(record | {"level": level}) + "\n" for level in range(3)))
    written("base.yaml", "a: 1")

    def write(*arms: str, seeds: Sequence[int] = (0,), **changes: Any) -> str:
        asked = {"name": "pretended", "base": ["base.yaml"], "arms": dict.fromkeys(arms, ""), "seeds": list(seeds)}
        return written("s.yaml", asked | {"compare": arms[0]} | changes)

    return write


def calls(*keys: str) -> list[Any]:
    """What the stub was called with, in order; only what had ended, with the key `ended`."""
    if not Path("calls.jsonl").exists():
        return []
    records = [json.loads(line) for line in Path("calls.jsonl").read_text().splitlines()]
    return [tuple(record[key] for key in keys) for record in records if ("ended" in record) == ("ended" in keys)]


def test_every_arm_and_seed_is_trained_and_tested_once(
    pretend: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = pretend("one", "two", seeds=[0, 4], arms={"one": "", "two": "--data.groups 3"})
    assert run("study", file, "--results", "res") == 0
    words = [words for (words,) in calls("words")]
    assert [each[0] for each in words] == ["fit", "test"] * 4
    assert [arm for arm, _ in calls("arm", "words")] == ["one", "one", "two", "two"] * 2
    home = "runs/study/pretended/two/seed_4"
    loggers = json.loads(words[6][-1])
    assert words[6][:-1] == [*"fit --config base.yaml --data.groups 3 --seed_everything 4 --trainer.logger".split()]
    assert {logger["class_path"] for logger in loggers} == {"wmact.loggers.TensorBoard", "wmact.loggers.CSVMetrics"}
    assert all(logger["init_args"] == {"save_dir": "runs/study/pretended", "name": "two/seed_4"} for logger in loggers)
    saved = f"{home}/version_0/config.yaml --ckpt_path {home}/version_0/checkpoints/last.ckpt"
    assert words[7] == ["test", "--config", *saved.split()]
    out = capsys.readouterr().out
    assert calls("holds") == [(True,)] * 8  # the lock: it would keep it if the study were killed
    printed = [shlex.split(line)[3:] for line in out.splitlines() if line.startswith("python -m wmact")]
    assert printed == words  # as anyone can give them
    results = read_results(Path("res/pretended"))
    assert [(row["arm"], row["seed"]) for row in results.runs] == [
        ("one", "0"),
        ("one", "4"),
        ("two", "0"),
        ("two", "4"),
    ]
    assert (results.run("two", 4) or {}) | {"machine": "", "settings": ""} == {
        **{"arm": "two", "seed": "4", "words": "--config base.yaml --data.groups 3 --seed_everything 4"},
        **{"settings": "", "model": "nano", "parameters": "893056"},
        **{"max_turns": "2", "curve": "1 2", "errors": "0", "machine": ""},
    }
    assert results.curves[0] == {"arm": "one", "seed": "0", "step": "0", "train/turn_budget": "2"}
    assert len(results.outcomes) == 4 * 3
    assert Path("res/pretended/report.md").is_file()
    assert f"python -m wmact study {file} --results res --report" in Path("res/pretended/report.md").read_text()

    before = {path: path.read_bytes() for path in Path("res/pretended").iterdir()}
    assert run("study", file, "--results", "res") == 0
    assert len(calls("arm")) == 8  # nothing was run again
    assert {path: path.read_bytes() for path in Path("res/pretended").iterdir()} == before
    assert "# 4 runs, 4 of them finished" in capsys.readouterr().out


def test_a_failing_run_is_told_in_one_line_and_the_others_go_on(
    pretend: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = pretend("faulty", "unsaved", "silent", "foreign", "mute", "sound")
    assert run("study", file, "--results", "res") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "wmact: pretended faulty seed 0 failed: exit code 2: data.groups=0: must be at least 1"
    assert lines[1].startswith("wmact: pretended unsaved seed 0 failed: no checkpoints/last.ckpt in runs/study")
    assert lines[2].startswith(
        "wmact: pretended silent seed 0 failed: runs/study/pretended/silent/seed_0/version_1 has no"
    )
    assert "wmact.callbacks.EpisodeLog" in lines[2]
    assert lines[3] == "wmact: pretended foreign seed 0 failed: exit code 1: Killed"
    assert lines[4].startswith("wmact: pretended mute seed 0 failed: exit code 7: see runs/study/pretended/mute/seed_0")
    assert lines[5:] == ["wmact: runs that failed: 5; the same command tries them again"]
    assert [row["arm"] for row in read_results(Path("res/pretended")).runs] == ["sound"]
    assert "| faulty 0, unsaved 0, silent 0, foreign 0, mute 0 |" in Path("res/pretended/report.md").read_text()
    arms = dict.fromkeys(("faulty", "unsaved", "silent", "sound"), "")
    assert run("study", pretend(*arms, arms=arms | {"faulty": "--data.groups 1"}), "--results", "res") == 1
    again = [words for arm, words in calls("arm", "words") if arm == "faulty"][-1]
    assert "--data.groups" in again  # what has trained nothing may be started with other words


def test_jobs_share_the_cores(pretend: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(5))
    file = pretend("a", "b", "c")
    assert run("study", file, "--results", "res", "--jobs", "2") == 0
    lines = [json.loads(line) for line in Path("calls.jsonl").read_text().splitlines()]
    assert {line["threads"] for line in lines} == {"2"}  # 5 cores for 2
    at_once = most = 0
    for line in lines:
        at_once += -1 if "ended" in line else 1
        most = max(most, at_once)
    assert most == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    file = pretend("d")
    assert run("study", file, "--results", "res") == 0
    assert calls("threads")[-1] == ("3",)  # what the user has set


def test_what_was_run_with_other_words_is_neither_kept_nor_gone_on_with(
    pretend: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("study", pretend("one"), "--results", "res") == 0
    line = refused(capsys, "study", pretend("one", common="--data.groups 3"), "--results", "res")
    assert "pretended one seed 0 was run with other settings" in line
    assert "'--config base.yaml --seed_everything 0'" in line
    assert "'--config base.yaml --data.groups 3 --seed_everything 0'" in line
    assert "give the study another name, or move res/pretended away" in line
    line = refused(capsys, "study", pretend("one", common="--data.groups 3"), "--results", "elsewhere")
    assert "move runs/study/pretended/one/seed_0 away" in line  # what is there would be gone on with
    written("base.yaml", "a: 2")
    line = refused(capsys, "study", pretend("one"), "--results", "res")
    assert "a file named in '--config base.yaml --seed_everything 0' has changed" in line
    assert run("study", pretend("one"), "--results", "res", "--report") == 0  # that needs no words
    assert len(calls("arm")) == 2


def test_a_start_model_that_changed_is_not_mixed_in(
    pretend: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    common = f"--model.model {start_model('one')}"
    assert run("study", pretend("one", common=common), "--results", "res") == 0
    start_model("other")
    way_out = "has other weights now; give the study another name, or move res/pretended away"
    line = refused(capsys, "study", pretend("one", "other", common=common), "--results", "res")
    assert "pretended one seed 0 was run with other settings: a model folder named in '--config base.yaml" in line
    assert line.endswith(way_out)
    line = refused(capsys, "study", pretend("one", common=common), "--results", "elsewhere")
    assert line.endswith(
        "has other weights now; give the study another name, or move runs/study/pretended/one/seed_0 away"
    )
    Path("start/model.safetensors").unlink()  # it is not needed any more
    assert run("study", pretend("one", common=common), "--results", "res") == 0


def test_a_configuration_that_changes_under_way_is_not_mixed_in(
    pretend: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = pretend("editor", "late")
    assert run("study", file, "--results", "res") == 1
    told = capsys.readouterr().err.splitlines()[0]
    assert told.startswith("wmact: pretended late seed 0 failed: a configuration file was changed since the study was")
    assert calls("arm") == [("editor",)] * 2
    written("base.yaml", "a: 1")
    assert run("study", file, "--results", "res") == 0


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_stopped_it_takes_its_runs_along_and_tells_how_to_go_on(
    number: signal.Signals,
    code: int,
    word: str,
    pretend: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr(study, "PATIENCE", 1.0)
    before = signal.signal(number, signal.SIG_DFL)  # in a background job Ctrl-C is ignored, and the study ignores it
    request.addfinalizer(lambda: signal.signal(number, before))
    written("slowly", "")
    file = pretend("quick", "slow", "deaf", "never")
    threading.Thread(
        target=stop_when, args=(lambda: {"slow", "deaf"} <= {arm for (arm,) in calls("arm")}, number)
    ).start()
    begun = time.monotonic()
    assert run("study", file, "--results", "res dir", "--jobs", "3") == code
    assert time.monotonic() - begun < 30  # they would sleep for 60 s
    (line,) = capsys.readouterr().err.splitlines()
    again = f"python -m wmact study {file} --results 'res dir' --jobs 3"
    assert line == f"wmact: {word}; go on with: {again}"
    lock(Path("runs/study/pretended")).close()  # no child has it any more
    assert not {arm for arm, _ in calls("arm", "ended")} & {"slow", "deaf", "never"}
    Path("slowly").unlink()
    begun_before = len(calls("arm"))
    assert run(*shlex.split(again)[3:]) == 0
    resumed = {arm: words for arm, words in calls("arm", "words")[begun_before:] if words[0] == "fit"}
    assert {arm: "--ckpt_path" in words for arm, words in resumed.items() if arm != "quick"} == {
        **{"slow": True, "deaf": True},  # there was a checkpoint to go on from
        **{"never": False},
    }
    assert len(read_results(Path("res dir/pretended")).runs) == 4


def stop_when(ready: Callable[[], bool], number: signal.Signals) -> None:
    """Send this process a signal as soon as it is time."""
    while not ready():
        time.sleep(0.05)
    os.kill(os.getpid(), number)


def test_a_study_that_is_under_way_is_left_alone(
    pretend: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = pretend("one")
    with lock(Path("runs/study/pretended")) as held:
        outliving = subprocess.Popen(["sleep", "60"], pass_fds=[held.fileno()])  # as a run whose study was killed
        assert "runs/study/pretended is being written by another process" in refused(capsys, "study", file)
    assert "runs/study/pretended is being written by another process" in refused(capsys, "study", file)
    assert not calls("arm")
    outliving.kill()
    outliving.wait()
    assert run("study", file, "--results", "res") == 0


# A real one


def test_a_study_that_was_stopped_ends_as_if_it_had_not_been(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # whichever checkout is tested
    model = tiny_worlds.write_model(tmp_path_factory.mktemp("models") / "doors")
    tiny_worlds.write_settings(tmp_path / "base.yaml", model)
    # The commands by hand, uninterrupted
    before = tiny_worlds.steps
    assert run("fit", "--config", "base.yaml", "--seed_everything", "3") == 0
    steps = tiny_worlds.steps - before
    trained, tested = (tmp_path / "runs" / "doors" / f"version_{n}" for n in range(2))
    assert run("test", "--config", f"{trained}/config.yaml", "--ckpt_path", f"{trained}/checkpoints/last.ckpt") == 0
    straight = collect("wmact", 3, trained, tested, {})

    written("s.yaml", {"name": "doors", "base": ["base.yaml"], "arms": {"wmact": ""}, "seeds": [3]})
    process = subprocess.Popen(
        [sys.executable, "-m", "wmact", "study", "s.yaml", "--results", "res"],
        env=os.environ | {"DOORS_NAP": f"{steps * 2 // 3}:100:{tmp_path}/napping"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not Path("napping").exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    process.terminate()
    _, err = process.communicate(timeout=60)  # a step takes 100 s
    assert process.returncode == 143
    assert err == "wmact: terminated; go on with: python -m wmact study s.yaml --results res\n"
    home = Path("runs/study/doors/wmact/seed_3")
    torch.load(home / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert not Path("res").exists()

    assert run("study", "s.yaml", "--results", "res") == 0
    results = read_results(Path("res/doors"))
    assert results.outcomes == straight.outcomes
    assert len(results.outcomes) == 3
    kept = [{k: v for k, v in row.items() if not k.startswith("performance/")} for row in results.curves]
    assert kept == [{k: v for k, v in row.items() if not k.startswith("performance/")} for row in straight.curves]
    assert [row["step"] for row in kept] == ["0", "1", "2", "3", "4"]
    assert sorted(path.name for path in home.glob("version_*")) == ["version_0", "version_1"]  # trained in one place
    (row,) = results.runs
    assert int(row["parameters"]) == sum(p.numel() for p in LlamaForCausalLM.from_pretrained(model).parameters())

    # What the test itself reports of these episodes
    with (home / "version_1" / "metrics.csv").open() as file:
        (reported,) = csv.DictReader(file)
    scores = Outcomes(results.outcomes, 5)
    for figure, ours in {
        "single_turn": scores.success(1).mean(),
        "multi_turn": scores.success().mean(),
        "success_at/02": scores.success(2).mean(),
        "actions_mean": scores.per_episode().mean(),
        "effective_share": scores.effective_share().mean(),
    }.items():
        assert ours == pytest.approx(float(reported[f"eval/standard/{figure}"]), abs=1e-6), figure
    success = table_below(Path("res/doors/report.md").read_text(), "Success within L_max (the paper's Table 1)")
    assert float(success["wmact"][0].split()[0]) == round(100 * float(reported["eval/standard/multi_turn"]), 1)


# The command line and the other command


def test_help_lists_the_further_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Further commands: study runs every arm and seed of a comparison and reports it; plot draws" in told
    assert run("study", "--help") == 0
    assert "python -m wmact study configs/study/maze.yaml" in capsys.readouterr().out


def test_plot(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["step,train/turn_budget,train/effective_share", "eval/standard/single_turn,eval/standard/multi_turn"]
    head = ",".join(
        [*lines, *(f"eval/standard/{n}_turn_{end}" for n in ("single", "multi") for end in ("low", "high"))]
    )
    for name, single in (("a", 0.25), ("b", 0.75)):
        Path(name).mkdir()
        written(f"{name}/metrics.csv", f"{head}\n0,5,0.5,{single},0.9,0.2,0.8,0.8,1\n1,4,0.5,,,,,,\n")
    figure = plot.internalisation([Path("a"), Path("b")])
    mean = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert (mean["single-turn"], mean["multi-turn"]) == ([0.5], [0.9])
    for runs in (["a"], ["a", "b"]):
        assert run("plot", *runs, "--out", "pictures/x.png") == 0
        assert capsys.readouterr().out == "pictures/x.png\n"
        assert Path("pictures/x.png").read_bytes().startswith(b"\x89PNG")
    assert "c: no metrics.csv there" in refused(capsys, "plot", "c", "--out", "x.png")
    assert "nothing logged as 'eval/hard/" in refused(capsys, "plot", "a", "--out", "x.png", "--variant", "hard")
    assert "required: --out; python -m wmact plot --help" in refused(capsys, "plot", "a")


def test_without_matplotlib_it_ends_before_it_begins(
    pretend: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install matplotlib" in refused(capsys, "study", pretend("one"))
    assert not calls("arm")
