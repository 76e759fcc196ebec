"""The command line: every shipped configuration, overlays, bad input in one line, files that are not to be trusted."""

import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.strategies import DDPStrategy

import tiny_worlds
from command_line import refused, run
from wmact import cli
from wmact.checkpoints import lock
from wmact.data import RolloutData
from wmact.export import export
from wmact.models import BUNDLED, load_tokenizer
from wmact.ppo import PPO
from wmact.strategies import check_precision, check_strategy
from wmact.types import Played

ROOT = Path(__file__).resolve().parent.parent
MAZE = str(ROOT / "configs" / "maze.yaml")
PRETRAINED = str(ROOT / "configs" / "models" / "pretrained.yaml")
COMMANDS = ("fit", "validate", "test", "predict")
SMALL = """
    --trainer.fast_dev_run true --model.model nano --data.engine wmact.engines.TransformersEngine --data.groups 2
    --data.samples 2 --data.max_turns 2 --data.limits.turn_tokens 8
    --data.validation.levels 2 --data.testing.levels 2 --data.validation.curve [1] --data.testing.curve [1]
    --data.tell_rules false --trainer.accelerator cpu
""".split()

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network."""

    def refuse(*_: Any) -> None:
        raise ConnectionRefusedError("a test asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else the hub is asked again and again


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_worlds.write_model(tmp_path_factory.mktemp("models") / "doors")


@pytest.fixture
def doors(tmp_path: Path, model: str) -> str:
    """The file of a small run."""
    return tiny_worlds.write_settings(tmp_path / "doors.yaml", model)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    """The folder of a run that is done; nobody writes to it."""
    folder = tmp_path_factory.mktemp("finished")
    cli.main(["fit", "--config", tiny_worlds.write_settings(folder / "doors.yaml", model), "--trainer.max_epochs", "2"])
    return folder / "runs" / "doors" / "version_0"


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    """What --print_config shows."""
    capsys.readouterr()
    assert run(*args, "--print_config") == 0
    return yaml.safe_load(capsys.readouterr().out)


# What is shipped


def shipped() -> dict[str, list[str]]:
    """File → the --config options it is used with. A file that is no whole experiment lies over the first that its own
    command names, or over maze.yaml.

    Those of `study` are tested in test_study.py, those of `strategies` in test_processes.py: they start processes. And
    those of `paper` in test_estimate.py: they need GPUs.
    """
    options = {}
    elsewhere = {path for name in ("study", "strategies", "paper") for path in (ROOT / "configs" / name).iterdir()}
    for path in sorted(set((ROOT / "configs").rglob("*.yaml")) - elsewhere):
        settings = yaml.safe_load(path.read_text())
        whole = "class_path" in settings.get("model", {}) and "trainer" in settings
        named = re.search(r"fit --config configs/(\S+) --config", path.read_text())
        options[str(path.relative_to(ROOT / "configs"))] = [
            *([] if whole else ["--config", str(ROOT / "configs" / named[1]) if named else MAZE]),
            "--config",
            str(path),
        ]
    return options


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("config", shipped().values(), ids=shipped())
def test_shipped_configurations_parse(config: list[str], command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, command, *config)
    assert {"trainer", "model", "data", "seed_everything"} <= shown.keys()
    if command == "fit":
        Path("again.yaml").write_text(yaml.safe_dump(shown))  # config.yaml of a run is such a file
        assert printed(capsys, command, "--config", "again.yaml") == shown


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("config", shipped().values(), ids=shipped())
def test_shipped_configurations_run(
    config: list[str], command: str, triplets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--data.engine.max_model_len", "2048"]
    settings = printed(capsys, command, *config)["data"]["init_args"]
    if "batches" in settings:
        more += ["--data.batches", "1", "--data.episodes_a_batch", "2", "--model.save_to", "elsewhere"]
    if "triplets" in settings:
        more += ["--data.triplets", triplets, "--data.limits.turn_tokens", "64"]
    worlds = settings.get("worlds", {})
    more += ["--data.limits.turn_tokens", "1000"] * bool(worlds)  # what is over the limits is not learnt
    recorded = [world["env"]["kwargs"] for world in worlds.values() if "triplets" in world["env"].get("kwargs", {})]
    if recorded:
        for kwargs in recorded:
            kwargs["triplets"] = triplets
        more += ["--data.worlds", json.dumps(worlds)]
    assert run(command, *config, *SMALL, *more) == 0
    assert not [path for path in Path().rglob("*") if path.is_file()]  # fast_dev_run leaves nothing behind


def test_configurations_for_a_laptop_take_transformers_where_there_is_no_vllm() -> None:
    named = {name for name, config in shipped().items() if "VLLMEngine" in Path(config[-1]).read_text()}
    assert named == {"tau2.yaml", "models/gpu.yaml"}


def test_another_engine_keeps_the_arguments_that_it_has_too(capsys: pytest.CaptureFixture[str]) -> None:
    """It is what to type without vLLM."""
    other = ["--data.engine", "wmact.engines.TransformersEngine"]
    engine = printed(capsys, "fit", *shipped()["tau2.yaml"], *other)["data"]["init_args"]["engine"]
    assert engine["class_path"] == other[1]
    told = {"dtype": "bfloat16", "max_model_len": 8192, "max_num_seqs": 32}
    assert engine["init_args"] == told | {"device": "auto", "trust_remote_code": False}


@pytest.mark.parametrize("config", [v for v in shipped().values() if len(v) == 2], ids=lambda v: Path(v[1]).stem)
def test_shipped_experiments_can_be_resumed(config: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = [callback["class_path"] for callback in printed(capsys, "fit", *config)["trainer"]["callbacks"]]
    assert [name for name in callbacks if name.endswith("Checkpoint")] == ["wmact.callbacks.LastCheckpoint"]


# Overlays


def test_later_files_win_and_the_command_line_beats_them(doors: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.yaml").write_text("data: {init_args: {groups: 5, samples: 5, max_turns: 7}}\nseed_everything: 11\n")
    Path("two.yaml").write_text("data: {init_args: {samples: 6, limits: {step_seconds: 3}}}\nseed_everything: 12\n")
    options = ["--config", doors, "--config", "one.yaml", "--config", "two.yaml", "--data.max_turns", "8"]
    shown = printed(capsys, "fit", *options)
    data = shown["data"]["init_args"]
    assert (data["groups"], data["samples"], data["max_turns"], shown["seed_everything"]) == (5, 6, 8, 12)
    assert data["limits"] == {"turn_tokens": 8, "episode_tokens": 16384, "step_seconds": 3}  # 8 is of the first file
    other_way_round = printed(capsys, "fit", "--config", doors, "--config", "two.yaml", "--config", "one.yaml")
    assert other_way_round["data"]["init_args"]["samples"] == 5


def test_module_and_data_agree(doors: str) -> None:
    built = cli.build(
        [
            "fit",
            "--config",
            doors,
            "--trainer.fast_dev_run",
            "true",
            "--data.temperature",
            "0.5",
            "--seed_everything",
            "7",
        ]
    )
    assert built.model.hparams.temperature == built.datamodule.temperature == 0.5
    assert built.model.hparams.model == built.datamodule.model
    assert built.datamodule.seed == 7


@pytest.mark.parametrize(("reference", "follows"), [("${.groups}", True), ("${data.init_args.groups}", False)])
def test_a_derived_value_follows_or_is_refused(
    reference: str, follows: bool, doors: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("derived.yaml").write_text(f"data: {{init_args: {{concurrency: '{reference}'}}}}")
    options = ["fit", "--config", doors, "--config", "derived.yaml", "--data.groups", "7"]
    if follows:
        data = printed(capsys, *options)["data"]["init_args"]
        assert data["groups"] == data["concurrency"] == 7
    else:
        assert "data.init_args.concurrency" in refused(capsys, *options)


# A checkpoint and the command line


def played_by(monkeypatch: pytest.MonkeyPatch) -> list[Played]:
    """Everything that is evaluated from now on."""
    evaluate, seen = RolloutData._evaluate, []

    def spy(self: RolloutData, *args: Any) -> Played:
        seen.append(evaluate(self, *args))
        return seen[-1]

    monkeypatch.setattr(RolloutData, "_evaluate", spy)
    return seen


@pytest.mark.parametrize("command", ["validate", "test"])
@pytest.mark.parametrize(("asked", "initial", "current"), [("1", 1, 1), (None, 5, 3)])
def test_the_turn_budget_is_the_one_asked_for_else_the_checkpoints(
    command: str, asked: str | None, initial: int, current: int, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["RolloutData"] |= {"turn_budget": 3, "max_turns": 5}  # annealed from 5 to 3
    torch.save(checkpoint, "annealed.ckpt")
    seen = played_by(monkeypatch)
    options = [command, "--config", str(finished / "config.yaml"), "--ckpt_path", "annealed.ckpt"]
    options += ["--trainer.logger", "false", "--data.validation.curve", "[1]", "--data.testing.curve", "[1]"]
    built = cli.build(options + (["--data.max_turns", asked] if asked else []))
    (played,) = seen
    assert (played.max_turns, played.turn_budget) == (initial, current)
    assert max(len(episode.turns) for episode in played.episodes) <= initial
    assert built.trainer.callback_metrics["eval/standard/turn_budget"] == current
    if initial == 1:
        assert (
            built.trainer.callback_metrics["eval/standard/multi_turn"]
            == built.trainer.callback_metrics["eval/standard/single_turn"]
        )


def test_the_command_line_beats_the_checkpoint_when_training_goes_on(finished: Path, doors: str) -> None:
    options = ["fit", "--config", doors, "--ckpt_path", str(finished / "checkpoints" / "last.ckpt")]
    options += ["--trainer.logger", "false", "--trainer.callbacks=null", "--trainer.enable_checkpointing", "false"]
    built = cli.build([*options, "--trainer.max_epochs", "3", "--model.lr", "0.5", "--model.gamma", "0.25"])
    assert built.trainer.global_step == 3  # 2 before, 1 now
    assert [group["lr"] for group in built.trainer.optimizers[0].param_groups] == [0.5, 0.01]
    assert built.model.hparams.gamma == 0.25


# Bad input: exit code 2 and one line, with the value and the way out


def folder_without(*patterns: str) -> str:
    """A copy of the bundled model without some of its files."""
    folder = Path("model")
    folder.mkdir()
    for file in BUNDLED["nano"].iterdir():
        if not any(file.match(pattern) for pattern in patterns):
            (folder / file.name).write_bytes(file.read_bytes())
    return str(folder)


def written(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


BAD: dict[str, tuple[Callable[[], list[str]], list[str]]] = {
    # name: (what is added to a good command, words of the line)
    "unknown key": (lambda: ["--data.grups", "1"], ["data: Option 'grups'", "--print_config"]),
    "unknown key in a group": (lambda: ["--data.limits.tokens", "1"], ["limits.tokens", "--print_config"]),
    "unknown key of the trainer": (lambda: ["--trainer.epochs", "1"], ["--trainer.epochs", "--print_config"]),
    "unknown key in a file": (
        lambda: ["--config", written("x.yaml", "model: {init_args: {rate: 1}}")],
        ["model: Option 'rate'", "--print_config"],
    ),
    "wrong type": (lambda: ["--data.groups", "many"], ["data.groups: expected int, but got many"]),
    "wrong type of the trainer": (lambda: ["--trainer.max_epochs", "x"], ["trainer.max_epochs: expected int", "got x"]),
    "wrong type in a callback": (
        lambda: ["--trainer.callbacks+=wmact.callbacks.EpisodeLog", "--trainer.callbacks.every", "x"],
        ["trainer.callbacks.every: expected int", "got x"],
    ),
    "wrong type in the schedule": (lambda: ["--annealing.every", "x"], ["annealing.every: expected int", "got x"]),
    "no schedule": (lambda: ["--annealing", "wmact.callbacks.EpisodeLog"], ["annealing", "EpisodeLog"]),
    "not one of the choices": (lambda: ["--model.critic", "both"], ["model.critic", "'separate', 'shared'", "both"]),
    "a positional": (lambda: ["maze"], ["unrecognized arguments: maze"]),
    "impossible number": (lambda: ["--data.groups", "0"], ["data.groups=0: must be at least 1"]),
    "impossible curve": (lambda: ["--data.validation.curve", "[3, 2]"], ["curve=[3, 2]", "ascending"]),
    "impossible limit": (lambda: ["--data.limits.step_seconds", "-1"], ["limits.step_seconds=-1", "above 0"]),
    "missing config": (lambda: ["--config", "no/such.yaml"], ["no/such.yaml", "does not exist"]),
    "config that is no YAML": (lambda: ["--config", written("x.yaml", "a: [\n")], ["parsing config", "line 2"]),
    "config that is no mapping": (lambda: ["--config", written("x.yaml", "- a\n- b\n")], ["config", "- a - b"]),
    "missing class": (lambda: ["--data.engine", "wmact.engines.Nothing"], ["data.engine", "no attribute 'Nothing'"]),
    "missing model folder": (lambda: ["--model.model", "/no/model"], ["'/no/model'", "no such folder", "'nano'"]),
    "a hub id without a network": (
        lambda: ["--model.model", "no/model"],
        ["'no/model'", "cannot be loaded", "hf download no/model", "local cache", "'nano'"],
    ),
    "model folder without config": (
        lambda: ["--model.model", folder_without("config.json")],
        ["model='model'", "no config.json", "give"],
    ),
    "model folder without weights": (
        lambda: ["--model.model", folder_without("*.safetensors")],
        ["model='model'", "weights cannot be loaded", "give"],
    ),
    "model folder without tokenizer": (
        lambda: ["--model.model", folder_without("tokenizer*")],
        ["model='model'", "a tokenizer cannot be loaded", "give"],
    ),
    "tokenizer without chat template": (
        lambda: ["--model.model", folder_without("chat_template*")],
        ["'model'", "no chat template", "use an instruction-tuned model", "--model.chat_template"],
    ),
    "a chat template that is not there": (
        lambda: ["--model.chat_template", "mine.jinja"],
        ["model.chat_template='mine.jinja'", "no such file", "'plain'"],
    ),
    "a chat template that cannot be used": (
        lambda: ["--model.chat_template", written("mine.jinja", "{{ messages[0].content }}")],
        ["chat template cannot be used", "once and in order"],
    ),
    "half precision": (lambda: ["--trainer.precision", "16-true"], ["precision=16-true", "use 32-true or bf16-mixed"]),
    "context shorter than any prompt": (
        lambda: ["--data.engine.max_model_len", "20"],
        ["context of 20 tokens", "--data.engine.init_args.max_model_len N"],
    ),
    "context shorter than this prompt": (
        lambda: ["--data.engine.max_model_len", "110", "--data.env.kwargs", '{"size": 11, "layout": "grid"}'],
        ["context of 110 tokens", "--data.engine.init_args.max_model_len N"],
    ),
    "context longer than the model's": (lambda: ["--data.engine.max_model_len", "4000"], ["4000", "limit of 2048"]),
    "unknown environment": (lambda: ["--data.env.id", "wmact/Mace-v0"], ["'wmact/Mace-v0'", "wmact_envs:wmact/Maze"]),
    "unknown module": (lambda: ["--data.env.id", "mazes:Maze-v0"], ["'mazes:Maze-v0'", "No module named 'mazes'"]),
    "impossible environment": (lambda: ["--data.env.kwargs", '{"size": 4}'], ["size=4", "try 7 or 11"]),
    "unknown argument of the environment": (lambda: ["--data.env.kwargs", '{"hue": 4}'], ["'hue'", "kwargs"]),
    "more levels than there are": (
        lambda: (
            ["--config", written("x.yaml", "data: {init_args: {val: {x: {kwargs: {split: test}}}}}")]
            + ["--data.validation.levels", "1001"]
        ),
        ["data.validation.levels=1001", "'x' has 1000"],
    ),
    "missing checkpoint": (lambda: ["--ckpt_path", "no.ckpt"], ["'no.ckpt'", "no such file", "last.ckpt"]),
    "a folder as checkpoint": (lambda: ["--ckpt_path", "."], ["'.'", "no such file", "last.ckpt"]),
    "a checkpoint in the web": (lambda: ["--ckpt_path", "http://x.test/a.ckpt"], ["http://x.test/a.ckpt", "no such"]),
    "damaged checkpoint": (lambda: ["--ckpt_path", written("x.ckpt", b"PK\3\4 half a file")], ["'x.ckpt'", "damaged"]),
    "empty checkpoint": (lambda: ["--ckpt_path", written("x.ckpt", b"")], ["'x.ckpt'", "damaged"]),
    "no accelerator": (lambda: ["--trainer.accelerator", "abacus"], ["abacus", "cpu"]),
    "devices that are none": (lambda: ["--trainer.devices", "-1"], ["trainer: `devices`", "should be an int > 0"]),
    "no evaluation ever": (
        lambda: ["--trainer.check_val_every_n_epoch", "0", "--trainer.fast_dev_run", "false"],
        ["trainer.check_val_every_n_epoch=0: must be at least 1"],
    ),
    "nothing to train on": (
        lambda: ["--trainer.limit_train_batches", "0", "--trainer.fast_dev_run", "false"],
        ["trainer.limit_train_batches=0: must be at least 1"],
    ),
    "no step": (lambda: ["--trainer.max_steps", "0", "--trainer.fast_dev_run", "false"], ["trainer.max_steps=0: must"]),
    "no such device": (lambda: ["--data.engine.init_args.device", "nope"], ["device='nope' cannot be used", "'cpu'"]),
    "a device without values": (lambda: ["--data.engine.device", "meta"], ["device='meta' cannot be used", "'cpu'"]),
    "null for a group": (lambda: ["--data.limits", "null"], ["data.limits: expected settings, but got null"]),
    "null for a number": (lambda: ["--data.groups", "null"], ["data.groups: expected int, but got null"]),
    "null for a rate": (lambda: ["--model.lr", "null"], ["model.lr: expected float, but got null"]),
    "null for the data": (lambda: ["--data", "null"], ["arguments are required: fit.data"]),
    "an engine that is no class": (lambda: ["--data.engine", "os.system"], ["data.engine", "os.system"]),
    "a reference to nothing": (lambda: ["--data.groups", "${.nothing}"], ["'.nothing'", "data.init_args.groups"]),
}


@pytest.mark.parametrize(("bad", "words"), BAD.values(), ids=BAD)
def test_bad_input(bad: Callable[[], list[str]], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "fit", "--config", MAZE, *SMALL, *bad())
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["which command?", "fit", "test", "study", "export"]),
        (["train"], ["train", "fit"]),
        (["fit"], ["fit.model"]),
    ],
)
def test_bad_commands(args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, *args)
    assert all(word in line for word in words), line


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_processes_that_are_copies(start_method: Any) -> None:
    check_strategy(DDPStrategy())
    with pytest.raises(ValueError, match=f"is DDPStrategy with start_method='{start_method}': use ddp, or"):
        check_strategy(DDPStrategy(start_method=start_method))


def test_bfloat16_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    check_precision("32-true", torch.device("cuda"))
    for precision in ("16-mixed", "16-true", "bf16-true", "64-true", "transformer-engine"):
        with pytest.raises(ValueError, match=f"^trainer.precision={precision}: use 32-true or bf16-mixed$"):
            check_precision(precision, torch.device("cpu"))
    check_precision("bf16-mixed", torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^trainer\.precision=bf16-mixed: Tesla T4 does not compute in bfloat16; use"):
        check_precision("bf16-mixed", torch.device("cuda"))


def test_a_model_without_a_template_is_given_ours(doors: str, tmp_path: Path) -> None:
    """It speaks in texts and ends of sequence, and the exported model goes on doing so."""
    folder = folder_without("chat_template*")
    words = ["--model.model", folder, "--model.chat_template", "plain", "--trainer.max_epochs", "1"]
    assert run("fit", "--config", doors, *words) == 0
    (folder_of_run,) = (tmp_path / "runs" / "doors").iterdir()
    first = json.loads((folder_of_run / "episodes.jsonl").read_text().splitlines()[0])
    tokenizer = load_tokenizer(folder)
    sign = first["observations"][0]
    opening = tokenizer.encode(f"User: {sign}\n\nAssistant:", add_special_tokens=False)
    assert first["ids"][: first["turns"][0]["start"]] == opening
    export(folder_of_run / "checkpoints" / "last.ckpt", tmp_path / "out")
    assert load_tokenizer(str(tmp_path / "out")).chat_template == load_tokenizer(folder, False, "plain").chat_template


@pytest.mark.parametrize(
    "bad",
    [["--data.env.id", "none:X-v0"], ["--data.engine.max_model_len", "20"], ["--data.val.standard.id", "none:X-v0"]],
    ids=["environment", "engine", "variant"],
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_run_that_cannot_start_leaves_nothing(
    command: str, bad: list[str], doors: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, command, "--config", doors, *bad)
    assert [*(tmp_path / "runs" / "doors").iterdir()] == []


def test_what_came_of_a_run_stays_when_it_fails(doors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("not today")

    monkeypatch.setattr(PPO, "training_step", fail)
    assert run("fit", "--config", doors) == 2
    assert "eval/standard/single_turn" in (tmp_path / "runs" / "doors" / "version_0" / "metrics.csv").read_text()


def test_a_run_folder_that_cannot_be_written(doors: str, capsys: pytest.CaptureFixture[str]) -> None:
    written("file", "")  # root may write anywhere, but not below a file
    logger = '[{"class_path": "wmact.loggers.CSVMetrics", "init_args": {"save_dir": "file/runs", "name": "x"}}]'
    assert "file/runs/x" in refused(capsys, "fit", "--config", doors, "--trainer.logger", logger)
    assert Path("file").read_bytes() == b""


def test_a_folder_for_one_logger_of_two(doors: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """jsonargparse gives this value to the last logger only; the run would go where the first one says."""
    line = refused(capsys, "fit", "--config", doors, "--trainer.logger.save_dir", "elsewhere")
    assert f"{tmp_path}/runs/doors and elsewhere/doors" in line
    assert "the same save_dir" in line


def test_without_vllm(doors: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    line = refused(capsys, "fit", "--config", doors, "--data.engine", "wmact.engines.VLLMEngine")
    assert "requirements-cpu.txt" in line
    assert run("fit", "--config", doors, "--data.engine", "null", "--trainer.fast_dev_run", "true") == 0
    out = [line for line in capsys.readouterr().out.splitlines() if "transformers engine" in line]
    assert len(out) == 1
    assert "requirements-cpu.txt" in out[0]


def lost(folder: Path) -> dict[str, bytes]:
    """What may not change when a run cannot be resumed."""
    files = [
        folder / "config.yaml",
        folder / "metrics.csv",
        folder / "episodes.jsonl",
        *sorted((folder / "checkpoints").iterdir()),
    ]
    return {file.name: file.read_bytes() for file in files}


def test_a_checkpoint_of_another_model(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny_worlds.write_model(tmp_path / "other", hidden_size=32)
    checkpoint, before = str(finished / "checkpoints" / "last.ckpt"), lost(finished)
    config = (finished / "config.yaml").read_bytes()
    for command in COMMANDS:
        options = [
            command,
            "--config",
            str(finished / "config.yaml"),
            "--ckpt_path",
            checkpoint,
            "--model.model",
            other,
        ]
        line = refused(capsys, *options)
        assert "policy.lm.model.embed_tokens.weight is (312, 64) in the checkpoint and (312, 32) in the model" in line
        assert "config.yaml" in line
    options = ["fit", "--config", str(finished / "config.yaml"), "--ckpt_path", checkpoint]
    assert "reference" in refused(capsys, *options, "--model.kl_coef", "0.1")
    line = refused(capsys, *options, "--model.critic", "shared")
    assert "was trained by wmact.ppo.PPO with critic='separate', but model is PPO with critic='shared'" in line
    assert lost(finished) == before
    assert (finished / "config.yaml").read_bytes() == config


@pytest.mark.parametrize(
    "bad",
    [
        ["--data.engine.max_model_len", "20"],
        ["--data.env.id", "none:X-v0"],
        ["--data.engine", "wmact.engines.VLLMEngine"],
    ],
    ids=["context", "environment", "engine"],
)
def test_nothing_is_lost_when_a_resumed_run_cannot_go_on(
    bad: list[str], finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    before = lost(finished)
    options = ["--config", str(finished / "config.yaml"), "--ckpt_path", str(finished / "checkpoints" / "last.ckpt")]
    refused(capsys, "fit", *options, "--trainer.max_epochs", "4", *bad)
    assert lost(finished) == before


def test_two_runs_cannot_write_one_folder(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = lost(finished)
    options = ["--config", str(finished / "config.yaml"), "--ckpt_path", str(finished / "checkpoints" / "last.ckpt")]
    with lock(finished):
        line = refused(capsys, "fit", *options, "--trainer.max_epochs", "4")
    assert f"{finished} is being written by another process" in line
    assert lost(finished) == before


def test_a_finished_run_says_so(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = lost(finished)
    options = ["--config", str(finished / "config.yaml"), "--ckpt_path", str(finished / "checkpoints" / "last.ckpt")]
    assert run("fit", *options) == 0
    assert "nothing to do: 2 iterations are done already; raise --trainer.max_epochs" in capsys.readouterr().out
    assert lost(finished) == before


def test_steps_that_are_done_are_told_as_steps(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", str(finished / "config.yaml"), "--ckpt_path", str(finished / "checkpoints" / "last.ckpt")]
    assert run("fit", *options, "--trainer.max_steps", "2", "--trainer.max_epochs", "9") == 0
    assert "nothing to do: 2 optimizer steps are done already; raise --trainer.max_steps" in capsys.readouterr().out


def test_the_file_of_a_resumed_run_begins_another_one(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    shutil.copytree(finished, folder)
    last = str(folder / "checkpoints" / "last.ckpt")
    file = folder / "config.yaml"
    assert run("fit", "--config", str(file), "--ckpt_path", last, "--trainer.max_epochs", "3") == 0
    settings = yaml.safe_load(file.read_text())
    assert settings["trainer"]["max_epochs"] == 3
    assert settings["ckpt_path"] is None


def test_what_lightning_would_do_otherwise_need_not_be_said(doors: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = yaml.safe_load(Path(doors).read_text())
    said = {name: settings["trainer"].pop(name) for name in ("num_sanity_val_steps", "log_every_n_steps")}
    Path("short.yaml").write_text(yaml.safe_dump(settings))
    shown = printed(capsys, "fit", "--config", "short.yaml")["trainer"]
    assert {name: shown[name] for name in said} == said == {"num_sanity_val_steps": 0, "log_every_n_steps": 1}


@pytest.mark.parametrize("out", ["curves", "curves.xyz", ".png", "no/folder/"])
def test_a_picture_of_no_kind(out: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "plot", str(finished), "--out", out)
    assert f"--out {Path(out)}: the name of a picture ends in one of ." in line
    assert all(kind in line for kind in (".png", ".svg", ".pdf"))
    assert not [*tmp_path.iterdir()]


def test_curves_that_are_not_there(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(folder: Path, *words: str) -> str:
        return refused(capsys, "plot", str(folder), "--out", "curves.png", *words)

    assert "'eval/hard/multi_turn'; there is eval/standard/multi_turn" in line(finished, "--variant", "hard")
    tested = tmp_path / "tested"
    tested.mkdir()
    rows = ["eval/standard/multi_turn", "eval/standard/single_turn"]
    rows += [f"{row}_{end}" for row in rows for end in ("low", "high")]
    (tested / "metrics.csv").write_text(f"step,{','.join(rows)}\n2{',0.5' * len(rows)}\n")
    assert "nothing logged as 'train/turn_budget'; is it the folder of a training?" in line(tested)
    for damage in ("a,b\n1,2\n", "step,b\nx,2\n"):
        (tested / "metrics.csv").write_text(damage)
        assert "metrics.csv: the file is damaged" in line(tested)


def test_the_environment_of_the_documentation(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "environment.md").read_text()
    for name, block in (("guess.py", "python"), ("guess.yaml", "yaml")):
        Path(name).write_text(text.split(f"```{block}\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    played: list[Played] = []
    evaluate = RolloutData._evaluate
    monkeypatch.setattr(RolloutData, "_evaluate", lambda *a: played.append(evaluate(*a)) or played[-1])
    configs = [word for file in (MAZE, PRETRAINED, "guess.yaml") for word in ("--config", file)]
    assert run("test", *configs, *SMALL, "--model.model", model) == 0
    (only,) = played
    assert only.variant == "standard"
    assert [episode.observations[0] for episode in only.episodes] == ["Guess."] * len(only.episodes)
    assert {episode.error for episode in only.episodes} == {None}


def test_a_command_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "colect", "--config", MAZE)
    assert line.startswith("wmact: 'colect' is no command; there are fit, validate, test, predict, study, ")
    assert ", collect, " in line


def test_a_fault_of_the_program_shows_its_traceback(doors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(PPO, "training_step", faulty)
    with pytest.raises(TypeError, match="a bug"):
        cli.main(["fit", "--config", doors, "--trainer.fast_dev_run", "true"])


def test_one_line_can_be_made_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WMACT_DEBUG", "1")
    with pytest.raises(ValueError, match="must be at least 1"):
        cli.main(["fit", "--config", MAZE, "--data.groups", "0"])


def test_the_process_leaves_one_line_and_code_2() -> None:
    command = [sys.executable, "-m", "wmact", "fit", "--config", MAZE, "--data.env.kwargs", '{"size": 4}', *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "size=4" in done.stderr


# Files that are not to be trusted


class Payload:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_with_code_is_refused(
    command: str, finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # Lightning alone would obey this
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save(checkpoint | {"extra": Payload()}, "bad.ckpt")
    config = str(finished / "config.yaml")
    line = refused(capsys, command, "--config", config, "--ckpt_path", "bad.ckpt")
    assert "'bad.ckpt': the file holds more than data" in line
    assert not Path("executed").exists()
    assert "--weights_only" in refused(capsys, command, "--config", config, "--weights_only", "false")


def test_a_checkpoint_with_a_few_other_bytes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((finished / "checkpoints" / "last.ckpt").read_bytes())
    middle = len(content) // 2  # of some weight: torch would take the new ones
    content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
    Path("other.ckpt").write_bytes(content)
    line = refused(capsys, "test", "--config", str(finished / "config.yaml"), "--ckpt_path", "other.ckpt")
    assert "'other.ckpt': the file is damaged, or no checkpoint; give another one, or begin anew" in line


@pytest.mark.parametrize("old_format", [True, False])
def test_other_files_with_code_are_refused(
    old_format: bool, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if old_format:
        torch.save({"state_dict": {}, "extra": Payload()}, "bad.ckpt", _use_new_zipfile_serialization=False)
    else:
        Path("bad.ckpt").write_bytes(pickle.dumps(Payload()))
    assert "'bad.ckpt'" in refused(capsys, "fit", "--config", str(finished / "config.yaml"), "--ckpt_path", "bad.ckpt")
    assert not Path("executed").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_names_no_class_to_make(command: str, finished: Path, doors: str) -> None:
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    tricks = {"_class_path": "os.system", "_instantiator": "os.system", "command": "touch executed", "lr": 77.0}
    torch.save(checkpoint | {"hyper_parameters": tricks | {"critic": "separate"}}, "tricks.ckpt")
    options = [command, "--config", doors, "--ckpt_path", "tricks.ckpt", "--trainer.max_epochs", "2"]
    built = cli.build(options)
    assert type(built.model) is PPO
    assert built.model.hparams.lr == 0.01
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch executed']",
        "model: !!python/object/apply:os.system ['touch executed']",
        "model: !!python/name:os.system",
        "model: {class_path: os.system, init_args: {command: touch executed}}",
        "data: {class_path: os.system, init_args: {command: touch executed}}",
        "data: {init_args: {engine: {class_path: os.system, init_args: {command: touch executed}}}}",
        "trainer: {logger: {class_path: subprocess.Popen, init_args: {args: [touch, executed]}}}",
        "trainer: {callbacks: [{class_path: os.system, init_args: {command: touch executed}}]}",
        "trainer: {plugins: [{class_path: os.system, init_args: {command: touch executed}}]}",
    ],
)
def test_a_config_with_code_is_refused(text: str, doors: str, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "fit", "--config", doors, "--config", written("bad.yaml", text), "--trainer.fast_dev_run", "true")
    assert not Path("executed").exists()


def test_a_secret_of_the_environment_is_written_nowhere(
    doors: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setenv("WANDB_API_KEY", "hf_secretsecret")
    assert run("fit", "--config", doors, "--trainer.max_epochs", "1") == 0
    shown = capsys.readouterr()
    name = "${oc.env:HF_TOKEN}"
    line = refused(capsys, "fit", "--config", doors, "--trainer.default_root_dir", name)  # would land in config.yaml
    assert "oc.env" in line
    assert "secretsecret" not in shown.out + shown.err + line
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "last.ckpt", "metrics.csv", "episodes.jsonl"} <= {path.name for path in files}
    assert not [path for path in files if b"secretsecret" in path.read_bytes()]


# Where the other commands write


def test_predict_writes_its_episodes(finished: Path, tmp_path: Path, doors: str) -> None:
    checkpoint = str(finished / "checkpoints" / "last.ckpt")
    for command in ("validate", "test", "predict"):
        assert run(command, "--config", doors, "--ckpt_path", checkpoint) == 0
    folders = [tmp_path / "runs" / "doors" / f"version_{n}" for n in range(3)]
    assert sorted((tmp_path / "runs" / "doors").iterdir()) == folders  # one each
    assert [(folder / "metrics.csv").exists() for folder in folders] == [True, True, False]
    assert len((folders[2] / "episodes.jsonl").read_text().splitlines()) == 3
