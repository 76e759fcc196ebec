"""The notebooks: run from top to bottom without a network, on known results, they show the numbers of the files."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

import known_study
from wmact.callbacks.episodes import append_episodes
from wmact.results import read_part
from wmact.types import Action, Episode, Turn
from wmact_envs.maze import MazeEnv

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

OFFLINE = """
import socket

def refuse(*args, **kwargs):
    raise OSError("a notebook has asked for the network")

socket.socket.connect = socket.getaddrinfo = refuse
"""
LOOK = """
import json
from matplotlib.figure import Figure

def told(axes):
    lines = [[line.get_label(), *(list(map(float, data)) for data in line.get_data())] for line in axes.lines]
    return {"title": axes.get_title().split("\\n")[0], "label": axes.get_ylabel(), "lines": lines}

figures = [value for value in Out.values() if isinstance(value, Figure)]
print(json.dumps([[told(axes) for axes in figure.axes if axes.get_visible()] for figure in figures]))
"""


class Shown(NamedTuple):
    """What a notebook has shown: pictures by figure, and every other output by its kind."""

    figures: list[list[dict[str, Any]]]
    pictures: list[str]
    text: str
    markdown: str
    html: str
    refusal: list[str]
    """The error's lines where there is nothing to read."""

    def lines(self, figure: int, axes: int) -> dict[str, list[float]]:
        """The values of the lines that have a name."""
        return {label: y for label, _, y in self.figures[figure][axes]["lines"] if not label.startswith("_")}


def source(notebook: Any, tag: str | None = None) -> list[str]:
    """The sources of code cells, all or those with a tag."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell.source for cell in cells if tag is None or tag in cell.metadata.get("tags", [])]


def show(name: str, found: dict[str, Any], missing: dict[str, Any]) -> Shown:
    """Run a notebook with the parameters of `found`; then its first cells once more, with those of `missing`."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    _, setup, *_ = source(notebook)
    place = next(n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    given, none = ("\n".join(f"{key} = {value!r}" for key, value in each.items()) for each in (found, missing))
    ends = [new_code_cell(code, metadata={"tags": ["raises-exception"]}) for code in (LOOK, f"{none}\n{setup}")]
    cells = notebook.cells
    notebook.cells = [new_code_cell(OFFLINE), *cells[: place + 1], new_code_cell(given), *cells[place + 1 :], *ends]
    NotebookClient(notebook, timeout=280, startup_timeout=280, resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    shown = [output for each in outputs[:-2] for output in each]
    assert not [output for output in shown if output.output_type == "error" or output.get("name") == "stderr"]
    data = [output.data for output in shown if "data" in output]
    (look,), refused = outputs[-2], [output for output in outputs[-1] if output.output_type == "error"]
    return Shown(
        figures=json.loads(look.text),
        pictures=[each["image/png"] for each in data if "image/png" in each],
        text="".join(output.text for output in shown if output.output_type == "stream"),
        markdown="\n".join(each["text/markdown"] for each in data if "text/markdown" in each),
        html="\n".join(each["text/html"] for each in data if "text/html" in each),
        refusal=[re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for output in refused for line in output.traceback],
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of known results, where the kernel leaves its traces too."""
    folder = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
            patch.setenv(name, str(folder / name))
        patch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
        yield folder


def studied(name: str, home: Path, **more: Any) -> Shown:
    study, results = map(str, known_study.write(home))
    return show(name, {"STUDY": study, "RESULTS": results, **more}, {"RESULTS": str(home / "nowhere")})


def rows(shown: Shown, first: str) -> list[list[str]]:
    """The cells of every row of a table that begins so."""
    found = [line for line in shown.markdown.splitlines() if line.startswith(f"| {first} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in found]


def test_step_penalty_vs_annealing(home: Path) -> None:
    shown = studied("step_penalty_vs_annealing", home)
    assert "| missing" not in shown.markdown
    assert rows(shown, "test levels") == [["standard 20, hard 20"]]
    arms, differences, training, curves, turns = range(5)
    assert len(shown.pictures) == len(shown.figures) == 5
    assert [axes["title"] for axes in shown.figures[arms]] == ["doors standard", "doors hard"]
    # interactive, step_penalty, rescale_only, wmact of 20 levels, means of two seeds
    assert shown.lines(arms, 0)["single-turn"] == pytest.approx([5 / 20, 9 / 20, 7 / 20, 17 / 20])
    assert shown.lines(arms, 0)["multi-turn"] == pytest.approx([13 / 20, 11 / 20, 15 / 20, 19 / 20])
    dots = [x for label, x, _ in shown.figures[differences][0]["lines"] if label.endswith("-turn")]
    assert dots == [pytest.approx([40, 20, 50]), pytest.approx([40, -10, 20])]
    told = [line for line in shown.markdown.splitlines() if line.startswith("- doors")]
    assert len(told) == 2 * 3 * 2  # variants, pairs, budgets
    assert told[0].startswith("- doors standard, in one turn: wmact less step_penalty is +40.0 [")
    assert told[0].endswith("**wmact solves more**.")
    assert "less interactive is -10.0 [" in told[3]
    assert "**stays open**" in told[3]
    assert [axes["title"] for axes in shown.figures[training]] == [
        f"doors: {arm}" for arm in ("interactive", "step_penalty", "rescale_only", "wmact")
    ]
    assert shown.lines(training, 1)["multi-turn"] == [0.6, 0.55, 0.5]
    assert shown.text.splitlines()[-2:] == ["standard: 60.0%", "hard: 60.0%"]  # of 3 to 22 actions, 12 are above 10
    assert [axes["label"] for axes in shown.figures[curves]][::3] == ["actions an episode", "turn budget L_max"]
    assert shown.lines(curves, 0)["step_penalty"] == [5, 4, 3]
    assert shown.lines(curves, 3)["wmact"] == [2, 2, 1]
    assert rows(shown, "wmact") == [["4.0", "0.750", "4.0", "0.750"]]
    assert shown.lines(turns, 0)["step_penalty"] == pytest.approx([9 / 20, 11 / 20, 11 / 20])
    (line,) = shown.refusal
    assert re.search(r"ValueError: .*no results of doors in .*nowhere yet: .*`make study`", line)


def test_internalisation(home: Path) -> None:
    run = home / "run"
    run.mkdir()
    names = [f"eval/standard/{n}_turn{end}" for n in ("single", "multi") for end in ("", "_low", "_high")]
    (run / "metrics.csv").write_text(
        f"step,train/turn_budget,train/effective_share,{','.join(names)}\n"
        "0,6,0.5,0.25,0.2,0.3,0.5,0.4,0.6\n1,4,0.625,,,,,,\n2,3,0.75,0.5,0.4,0.6,0.75,0.7,0.8\n"
    )
    shown = studied("internalisation", home, RUNS=[str(run)])
    assert len(shown.pictures) == len(shown.figures) == 4
    success, turns, budget, own = range(4)
    assert [axes["title"] for axes in shown.figures[success]] == [  # all but the sweep
        f"doors: {arm}" for arm in ("entire_plan", "interactive", "rescale_only", "step_penalty", "wmact")
    ]
    assert shown.lines(success, 4) == {"multi-turn": [0.4, 0.55, 0.7], "single-turn": [0.1, 0.3, 0.5]}
    told = [line for line in shown.markdown.splitlines() if line.startswith("- doors")]
    assert [line.split(":")[0] for line in told[:3]] == [
        f"- doors standard, {arm}" for arm in ("interactive", "rescale_only", "wmact")
    ]
    assert told[0].endswith("**the gap did not shrink**.")
    assert "the gap is **10.0 [" in told[2]
    assert told[6].startswith("- doors standard, in one turn: wmact less interactive is +60.0 [")
    assert len(told) == 2 * 3 + 2 * 2
    assert [cells[-1] for cells in rows(shown, "wmact")[:2]] == ["10.0", "0.0"]  # the gaps, standard and hard
    assert shown.lines(turns, 0)["wmact"] == pytest.approx([17 / 20, 19 / 20, 19 / 20])
    assert shown.lines(turns, 1)["wmact"] == [0, 0, 0]
    assert shown.lines(budget, 0)["wmact"] == [2, 2, 1]
    assert rows(shown, "tau_3")[2][2] == "2 2"  # of the schedules: L_max was 1 from iteration 2 on, with both seeds
    assert rows(shown, "wmact")[-1][2] == "0.9 → 0.94"  # what thoughts say of the next place, at both ends
    assert shown.lines(own, 0) == {"multi-turn": [0.5, 0.75], "single-turn": [0.25, 0.5]}
    assert [line[2] for line in shown.figures[own][1]["lines"]] == [[6, 4, 3]]
    assert [line[2] for line in shown.figures[own][2]["lines"]] == [[0.5, 0.625, 0.75]]
    (line,) = shown.refusal
    assert "no results of doors in" in line


def test_look_at_an_episode(home: Path) -> None:
    run = home / "runs" / "maze" / "version_0"
    run.mkdir(parents=True)
    spec = {"id": "wmact_envs:wmact/Maze-v0", "kwargs": {"layout": "cells"}}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"env": spec}}}))
    env = MazeEnv(layout="cells")
    start, info = env.reset(options={"level": 5})
    place, way = env.place(), env.solution() or []
    env.step(way[0])
    text = f"<think> {place} {way[0]} {env.place()} {way[1]} (9,9) </think> <action> {' '.join(way)} </action>"
    solved = Episode("wmact/Maze-v0", 5, info["level_id"], 0, 0, 7, observations=[start], stop_reason="solved")
    solved.turns.append(Turn(0, 9, text, "valid", [Action(action, "effective") for action in way], reward=1.0))
    failed = Episode("wmact/Maze-v0", 6, "id", 0, 0, 7, stop_reason="turns")
    append_episodes(run / "episodes.jsonl", 7, [failed, solved])

    shown = show("look_at_an_episode", {"RUN": str(run), "SOLVED": True}, {"NUMBER": 4})
    assert f"{run}, iteration 7: solved after 1 turns" in shown.text
    assert shown.html.count("<img ") == 1 + len(way)
    assert shown.html.count('<figure class="effective">') == len(way)
    assert "<b>turn 1 of 1: 2 of 3 claims true</b>" in shown.html
    assert f"<mark>{place}</mark> {way[0]} <mark>" in shown.html
    assert "(9,9) ✗</mark>" in shown.html
    assert f"observation:\n  {start}\n" in shown.text
    (line,) = shown.refusal
    assert line.endswith("episodes.jsonl: iteration 7 has 1 solved episodes, and none of number 4")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_as_they_are_written(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]
    assert len(source(notebook, "parameters")) == 1
    code = "\n".join(line for cell in source(notebook) for line in cell.splitlines() if not line.startswith("%"))
    names = [node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)]
    names += [a.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom) for a in node.names]
    assert not [name for name in names if name.startswith("_")]


@pytest.mark.parametrize("name", ["internalisation", "step_penalty_vs_annealing"])
def test_as_they_stand_they_read_the_committed_results(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    given: dict[str, Any] = {}
    exec("\n".join(source(notebook, "parameters")), given)
    part = read_part(FOLDER / given["STUDY"], FOLDER / given["RESULTS"])
    named = re.search(r"^ARMS = (.+)$", source(notebook)[1], re.MULTILINE)
    arms = ast.literal_eval(named[1]) if named else part.arms
    assert part.only(*arms).arms == arms
    assert {"wmact", "interactive"} <= set(arms)
