"""Supervised training on the command line: its learning rate, its resumption, and the model that it leaves."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import tiny_worlds
from command_line import refused, run
from wmact import sft
from wmact.demonstrations import DemonstrationData
from wmact.models import load_model
from wmact.rollout import RolloutInterrupted
from wmact.sft import SFT, one_cycle

pytestmark = pytest.mark.usefixtures("alone")
RUN = Path("runs/doors/version_0")
RESUMED = ["fit", "--config", f"{RUN}/config.yaml", "--ckpt_path", f"{RUN}/checkpoints/last.ckpt"]


@pytest.fixture
def config(tmp_path: Path) -> str:
    """The file of a run of two epochs of three batches, at a peak of 0.01, without evaluation."""
    model = tiny_worlds.write_model(tmp_path / "model")
    settings = tiny_worlds.settings(model, tmp_path / "runs")
    world = {"env": {"id": "tiny_worlds:tiny/Doors-v0"}, "walkthrough": {"reply": "<action> {plan} </action>"}}
    data: dict[str, Any] = {"worlds": {"doors": world}, "batches": 3, "episodes_a_batch": 2, "tell_rules": False}
    settings |= {
        "annealing": None,
        "trainer": settings["trainer"] | {"max_epochs": 2},
        "model": {"class_path": "wmact.sft.SFT", "init_args": {"model": model, "lr": 0.01}},
        "data": {"class_path": "wmact.demonstrations.DemonstrationData", "init_args": data},
    }
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(settings))
    return "sft.yaml"


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of every step from now on."""
    seen: list[float] = []
    step = SFT.apply_gradients

    def spy(self: SFT) -> dict[str, float]:
        seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return step(self)

    monkeypatch.setattr(SFT, "apply_gradients", spy)
    return seen


def weights(path: Path = RUN / "checkpoints" / "last.ckpt") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    assert [one_cycle(done) for done in (0.0, 0.01, 0.025, 0.05)] == pytest.approx([0, 0.2, 0.5, 1])
    # a quarter, half and all of what is left after 5 %: (1 + cos 45°) / 2, (1 + cos 90°) / 2, (1 + cos 180°) / 2
    assert [one_cycle(0.05 + 0.95 * part) for part in (0.25, 0.5, 1)] == pytest.approx([0.853553, 0.5, 0], abs=1e-6)


def test_a_run_that_is_given_more_epochs_and_another_rate(config: str, rates: list[float]) -> None:
    assert run("fit", "--config", config) == 0
    # step s of 6 is at (s + 1) / 7
    assert rates == pytest.approx([0.01 * one_cycle(s / 7) for s in range(1, 7)])
    before = {name: weight.clone() for name, weight in load_model(str(RUN / "model")).state_dict().items()}
    (RUN / "model" / "notes.txt").write_text("mine")
    rates.clear()
    assert run(*RESUMED, "--trainer.max_epochs", "4", "--model.lr", "0.05") == 0
    # steps 6 to 11 of 12: half of the way down again, from the rate that was asked for
    assert rates == pytest.approx([0.05 * one_cycle(s / 13) for s in range(7, 13)])
    after = load_model(str(RUN / "model")).state_dict()
    trained = weights()
    assert all(torch.equal(after[name], trained[f"policy.lm.{name}"]) for name in before)
    assert not all(torch.equal(after[name], weight) for name, weight in before.items())
    assert (RUN / "model" / "notes.txt").read_text() == "mine"
    assert not list(RUN.glob(".model*"))


def test_a_resumed_run_equals_an_uninterrupted_one(
    config: str, rates: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = DemonstrationData.shown_batch

    def stop(self: DemonstrationData) -> Any:
        if self._trainer().current_epoch == 1:
            raise RolloutInterrupted
        return batch(self)

    monkeypatch.setattr(DemonstrationData, "shown_batch", stop)
    assert run("fit", "--config", config) == 143
    assert len(rates) == 3
    monkeypatch.setattr(DemonstrationData, "shown_batch", batch)
    assert run(*RESUMED) == 0
    assert run("fit", "--config", config) == 0
    assert rates[:6] == rates[6:]
    straight = weights(RUN.with_name("version_1") / "checkpoints" / "last.ckpt")
    assert all(torch.equal(weight, straight[name]) for name, weight in weights().items())


def test_a_training_without_an_end(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "fit", "--config", config, "--trainer.max_epochs", "-1")
    assert line.startswith("wmact: trainer.max_epochs=-1: the learning rate falls to zero over all steps")
    assert "give --trainer.max_epochs or --trainer.max_steps" in line
    assert not RUN.exists()


def test_steps_are_an_end_too(config: str, rates: list[float]) -> None:
    assert run("fit", "--config", config, "--trainer.max_epochs", "-1", "--trainer.max_steps", "2") == 0
    assert rates == pytest.approx([0.01 * one_cycle(1 / 3), 0.01 * one_cycle(2 / 3)])


def test_a_model_is_not_written_over_something_else(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    line = refused(capsys, "fit", "--config", config, "--model.save_to", "mine")
    assert "mine is there already, and no folder of a model: give another folder" in line


def test_a_model_that_is_missing_is_written_though_nothing_is_left_to_train(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", config, "--model.save_to", "saved") == 0
    whole = Path("saved/model.safetensors").read_bytes()
    shutil.rmtree("saved")
    assert run(*RESUMED) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert Path("saved/model.safetensors").read_bytes() == whole


def test_a_model_that_cannot_be_written_leaves_the_one_before(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", "--config", config, "--trainer.max_steps", "1", "--model.save_to", "saved") == 0
    before = Path("saved/model.safetensors").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sft, "load_tokenizer", full)
    line = refused(capsys, "fit", "--config", config, "--trainer.max_steps", "1", "--model.save_to", "saved")
    assert "No space left on device" in line
    assert Path("saved/model.safetensors").read_bytes() == before
    assert not list(Path().glob(".saved*"))
