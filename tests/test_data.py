"""The DataModule: which levels are played, with which weights, and what happens when something is wrong with either."""

import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM

import tiny_worlds
import wmact.data
from literal import trainer
from wmact.callbacks import TurnAnnealing
from wmact.data import Evaluation, RolloutData
from wmact.engines import Completion, EngineFailed, TransformersEngine, VLLMEngine
from wmact.environments import EnvSpec, Variant
from wmact.ppo import PPO
from wmact.rollout import Limits
from wmact.types import Batch, Episode, TrainingStopped
from wmact.weight_sync import default_engine

DOORS = EnvSpec("tiny_worlds:tiny/Doors-v0")
MAZE = "wmact_envs:wmact/Maze-v0"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_worlds.write_model(tmp_path_factory.mktemp("models") / "doors", hidden_size=32)


class Engine(TransformersEngine):
    """Counts what is asked of it."""

    def __init__(self) -> None:
        super().__init__(dtype="float32")
        self.loaded = self.closed = 0

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.loaded += 1
        super().load_weights(weights)

    def close(self) -> None:
        self.closed += 1
        super().close()


class Run:
    """A trainer with everything that is played and trained in it."""

    def __init__(
        self, model: str, folder: Path, engine: Engine | None = None, epochs: int = 1, **settings: Any
    ) -> None:
        self.engine = engine or Engine()
        defaults: dict[str, Any] = {"env": DOORS, "groups": 2, "samples": 2, "max_turns": 3, "tell_rules": False}
        defaults |= {"limits": Limits(turn_tokens=6), "engine": self.engine, "model": model}
        self.data = RolloutData(**(defaults | settings))
        self.module = PPO(model=model, lr=0.05, critic_lr=0.05)
        self.batches: list[Batch] = []
        self.episodes: list[list[Episode]] = []
        self.trainer = trainer(
            epochs, devices=1, callbacks=[TurnAnnealing(every=2), Keep(self)], default_root_dir=folder
        )

    def fit(self) -> "Run":
        L.seed_everything(0, verbose=False)
        self.trainer.fit(self.module, datamodule=self.data)
        return self


class Keep(L.Callback):
    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.run.batches.append(batch)
        self.run.episodes.append(self.run.data.episodes)


def drawing(env: EnvSpec, **settings: Any) -> RolloutData:
    """A DataModule that can draw levels and nothing else."""
    data = RolloutData(env=env, **settings)
    data.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    return data


# Levels


def test_a_batch_holds_every_level_samples_times_in_a_row(model: str, tmp_path: Path) -> None:
    run = Run(model, tmp_path, groups=3, samples=4).fit()
    episodes, batch = run.episodes[0], run.batches[0]
    levels = [episode.level for episode in episodes]
    assert levels == [level for level in levels[::4] for _ in range(4)]
    assert len(set(levels)) == 3
    assert [episode.sample for episode in episodes] == [0, 1, 2, 3] * 3
    groups = batch.group_E.tolist()
    assert groups == [group for group in groups[::4] for _ in range(4)]
    assert len(set(groups)) == 3
    assert len({episode.seed for episode in episodes}) == 12  # the samples of a level are not each other's copies
    took = run.trainer.callback_metrics
    in_envs = sum(episode.env_seconds for episode in episodes)
    assert float(took["performance/env_seconds"]) == pytest.approx(in_envs, rel=1e-6)
    assert 0 < in_envs < float(took["performance/rollout_seconds"])


def test_how_many_play_at_once_changes_nothing(model: str, tmp_path: Path) -> None:
    ids = []
    for concurrency in (1, 5, 256):
        (episodes,) = Run(model, tmp_path, groups=3, samples=3, concurrency=concurrency).fit().episodes
        ids.append([episode.ids for episode in episodes])
    assert ids[0] == ids[1] == ids[2]


def test_levels_depend_on_the_seed_only() -> None:
    """One endless sequence a seed: 2 at a time, or 6 at once, whatever else is set."""
    by_two = drawing(DOORS, groups=2, seed=3)
    six = drawing(DOORS, groups=6, seed=3, samples=5, max_turns=2, temperature=0.5, concurrency=3)._draw_levels()
    assert [*by_two._draw_levels(), *by_two._draw_levels(), *by_two._draw_levels()] == six
    assert by_two.cursor == 6
    assert not set(drawing(DOORS, groups=6, seed=4)._draw_levels()) & set(six)


def test_no_level_twice_in_a_batch_where_there_are_few() -> None:
    data = drawing(EnvSpec(DOORS.id, {"levels": 5}), groups=5)
    assert sorted(data._draw_levels()) == [0, 1, 2, 3, 4]
    assert sorted(data._draw_levels()) == [0, 1, 2, 3, 4]  # they come again in the next batch: there are no others
    with pytest.raises(ValueError, match=r"data.groups=6: the environment has only 5 different levels"):
        drawing(EnvSpec(DOORS.id, {"levels": 5}), groups=6)._draw_levels()


def level_ids(env: EnvSpec, levels: Iterable[int]) -> set[str]:
    made: Any = env.make()
    return {made.reset(options={"level": level})[1]["level_id"] for level in levels}


def test_levels_of_evaluation_are_never_trained() -> None:
    """Neither they nor their rotations and reflections, which have the same level_id."""
    data = drawing(EnvSpec(MAZE), groups=200)
    levels = [*data._draw_levels(), *data._draw_levels()]
    trained = level_ids(EnvSpec(MAZE), levels[:200])
    assert len(trained) == 200  # no two of a batch are each other's rotation either
    trained |= level_ids(EnvSpec(MAZE), levels[200:])
    for split in ("val", "test"):
        evaluated = level_ids(EnvSpec(MAZE, {"split": split}), range(100))
        assert len(evaluated) > 50
        assert not trained & evaluated


# State


def test_the_state_is_plain_and_goes_on(model: str, tmp_path: Path) -> None:
    run = Run(model, tmp_path, epochs=2).fit()
    state = run.data.state_dict()
    assert state == {"cursor": 4, "turn_budget": run.data.turn_budget, "max_turns": 3}
    assert {type(value) for value in state.values()} == {int}
    torch.save(state, tmp_path / "state")
    loaded = torch.load(tmp_path / "state", weights_only=True)
    again = drawing(DOORS, groups=2, max_turns=3)
    again.load_state_dict(loaded | {"turn_budget": 2})
    assert (again.cursor, again.turn_budget) == (4, 2)
    played = {episode.level for episodes in run.episodes for episode in episodes}
    assert not played & set(again._draw_levels())
    asked_for = drawing(DOORS, max_turns=1)
    asked_for.load_state_dict(loaded | {"turn_budget": 2})
    assert asked_for.turn_budget == 1  # the user's, not the checkpoint's


# Weights


def test_each_batch_is_played_when_it_is_trained(model: str, tmp_path: Path) -> None:
    """A prefetched one would be played with the weights before; the version of the weights says so."""
    run = Run(model, tmp_path, epochs=3, val={"doors": Variant()}, validation=Evaluation(levels=2, curve=(1,))).fit()
    assert [batch.policy_version for batch in run.batches] == [0, 1, 2]
    assert [episodes[0].policy_version for episodes in run.episodes] == [0, 1, 2]
    assert len(run.data.train_dataloader()) == 1
    assert run.engine.loaded == 4  # versions 0 to 3: evaluation and training share those of one version


def test_the_engine_sleeps_while_the_policy_is_trained(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is given weights before it plays again, evaluations too."""
    seen: list[str] = []

    class Sleeper(Engine):
        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
            seen.append("load")
            super().load_weights(weights)

        def sleep(self) -> None:
            seen.append("sleep")
            super().sleep()

    step = PPO.training_step
    monkeypatch.setattr(PPO, "training_step", lambda *args: (seen.append("train"), step(*args))[1])
    Run(model, tmp_path, Sleeper(), epochs=2).fit()
    assert seen == ["load", "sleep", "train"] * 2


def test_an_engine_with_wrong_weights_stops_the_run_before_training(model: str, tmp_path: Path) -> None:
    class Deaf(Engine):
        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
            pass  # it keeps those of the model's folder, which are right for the first iteration only

    run = Run(model, tmp_path, Deaf(), epochs=3, max_logprob_gap=1e-3)
    with pytest.raises(TrainingStopped, match=r"differ from the trainer's by .*the engine does not hold these weights"):
        run.fit()
    assert len(run.batches) == run.trainer.global_step == 1


def test_an_engine_that_nobody_named_computes_as_the_trainer_does(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model, tmp_path / "half")  # most models are saved in bfloat16
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    monkeypatch.setattr("wmact.weight_sync.VLLMEngine", TransformersEngine)
    run = Run(str(tmp_path / "half"), tmp_path, max_logprob_gap=1e-5)
    run.data.engine = None
    assert len(run.fit().batches) == 1
    run = Run(str(tmp_path / "half"), tmp_path, TransformersEngine(), max_logprob_gap=1e-5)  # in the model's own dtype
    with pytest.raises(TrainingStopped, match=r"or one of them computes in bfloat16, where 0\.2 is a usual limit"):
        run.fit()


def test_answers_of_an_engine_that_was_started_anew_are_verified_as_the_trainer_scores(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are the likeliest, at temperature 0, but the trainer's log-probabilities are of temperature 0.5."""
    how = Evaluation(levels=2, curve=(1,), world_model=True)
    run = Run(model, tmp_path, test={"x": Variant()}, testing=how, temperature=0.5, max_logprob_gap=1e-3)
    run.module = PPO(model=model, temperature=0.5)
    complete, asked = run.data._complete, []

    def fail_once(prompts: list[list[int]]) -> list[str]:
        asked.append(prompts)
        if len(asked) == 1:
            raise EngineFailed("out of memory")
        answers = complete(prompts)
        assert run.engine._temperature == 0
        return answers

    monkeypatch.setattr(run.data, "_complete", fail_once)
    run.trainer.test(run.module, datamodule=run.data, verbose=False)
    assert len(asked) == run.engine.loaded == 2
    assert "out of memory; starting it anew" in capsys.readouterr().out


def test_an_engine_without_logprobs_stops_the_run_before_training(model: str, tmp_path: Path) -> None:
    class Silent(Engine):
        def step(self) -> list[Completion]:
            return [done._replace(logprobs=[math.nan] * len(done.logprobs)) for done in super().step()]

    run = Run(model, tmp_path, Silent())
    with pytest.raises(TrainingStopped, match="by nan a token"):
        run.fit()
    assert not run.batches


@pytest.mark.parametrize("installed", [True, False])
def test_the_engine_where_none_is_asked_for(
    installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    engine = default_engine()
    said = capsys.readouterr().out.splitlines()
    if installed:
        assert isinstance(engine, VLLMEngine)
        assert not said
    else:
        assert isinstance(engine, TransformersEngine)
        assert len(said) == 1
        assert "vLLM is not installed" in said[0]
        assert "requirements-cpu.txt" in said[0]


# Errors of environments


def test_too_many_errors_stop_the_run_and_the_most_frequent_are_named(model: str, tmp_path: Path) -> None:
    run = Run(model, tmp_path, env=EnvSpec(DOORS.id, {"fault": 1}))
    with pytest.raises(TrainingStopped, match=r"[34] of 4 episodes ended in an error: [34] × RuntimeError: hinge 0 is"):
        run.fit()
    assert not run.batches
    assert any("in _act" in str(episode.error) for episode in run.data.episodes)  # with the traceback


def test_the_three_most_frequent_errors() -> None:
    data = RolloutData(max_error_share=0.5)
    kinds = ["a"] * 2 + ["b"] * 5 + ["c"] * 3 + ["d"] + [None] * 10
    for number, kind in enumerate(kinds):
        episode = Episode("env", number, "", 0, 0, 0)
        episode.error = kind and f"Traceback …\n  File …\nValueError: {kind}\n"
        data.episodes.append(episode)
    with pytest.raises(TrainingStopped) as stopped:  # 11 of 21 are more than half
        data._check_errors(data.episodes)
    assert str(stopped.value) == (
        "11 of 21 episodes ended in an error: 5 × ValueError: b; 3 × ValueError: c; 2 × ValueError: a"
    )
    data._check_errors(data.episodes[1:])  # 10 of 20 are not


def test_an_evaluation_of_errors_is_no_result(model: str, tmp_path: Path) -> None:
    """A server that has gone down must not end as a success of 0."""
    run = Run(model, tmp_path, val={"broken": Variant(kwargs={"fault": 1})})
    with pytest.raises(TrainingStopped, match=r"^\d+ of \d+ episodes ended in an error: \d+ × RuntimeError: hinge"):
        run.fit()


def test_an_episode_with_an_error_is_kept_and_not_trained_on(model: str, tmp_path: Path) -> None:
    faulty = EnvSpec(DOORS.id, {"fault": 1})
    run = Run(model, tmp_path, env=faulty, groups=8, samples=4, max_error_share=1.0).fit()
    failed = [episode for episode in run.episodes[0] if episode.error]
    assert 0 < len(failed) < 32  # the others never said anything that could be executed
    assert len(run.batches[0].starts_E) - 1 == 32 - len(failed)


def test_a_batch_of_nothing_but_errors(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no door at all")

    run = Run(model, tmp_path, max_error_share=1.0)
    monkeypatch.setattr(tiny_worlds.Doors, "reset", faulty)
    with pytest.raises(ValueError, match=r"^none of 4 episodes holds a token to train on; they ended as 4 × error$"):
        run.fit()


def test_an_environment_that_broke_is_made_anew(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose process is gone, it would fail at every reset from then on, always the first to be free again."""
    broken: list[Any] = []
    act, reset = tiny_worlds.Doors._act, tiny_worlds.Doors.reset

    def break_once(env: Any, action: str) -> float:
        broken[:] = broken or [env]
        require_whole(env)
        return act(env, action)

    def require_whole(env: Any, **options: Any) -> Any:
        if env in broken:
            raise ConnectionError("gone")
        return reset(env, **options) if options else None

    monkeypatch.setattr(tiny_worlds.Doors, "_act", break_once)
    monkeypatch.setattr(tiny_worlds.Doors, "reset", require_whole)
    run = Run(model, tmp_path, groups=4, samples=4, concurrency=2, max_error_share=1.0).fit()
    assert [episode.fault for episode in run.episodes[0] if episode.error] == ["ConnectionError: gone"]


# Evaluation


@pytest.mark.parametrize(("curve", "max_turns", "played"), [((1, 2), 4, 4), ((1, 6), 4, 6), ((1,), 1, 1)])
def test_evaluation_plays_as_long_as_any_figure_needs(
    curve: tuple[int, ...], max_turns: int, played: int, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[int] = []
    play = wmact.data.play

    def spy(*args: Any, **settings: Any) -> list[Episode]:
        budgets.append(settings["max_turns"])
        return play(*args, **settings)

    monkeypatch.setattr(wmact.data, "play", spy)
    how = Evaluation(levels=4, samples=2, curve=curve)
    run = Run(model, tmp_path, val={"one": Variant(), "two": Variant()}, validation=how, max_turns=max_turns)
    run.data.turn_budget = 1  # the annealed budget is a figure of the evaluation, not its limit
    run.trainer.validate(run.module, datamodule=run.data, verbose=False)
    assert budgets == [played, played]
    assert run.trainer.callback_metrics["eval/two/episodes"] == 8
    assert run.data.cursor == 0  # no level of training is used up


def test_a_context_that_is_shorter_than_the_limits_is_told_of_once(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine()
    engine._max_model_len = 92
    limits = Limits(turn_tokens=40, episode_tokens=1000)
    run = Run(model, tmp_path, engine, epochs=2, samples=8, max_turns=40, limits=limits)
    run.module = PPO(model=model, lr=0.0, critic_lr=0.0)
    run.fit()
    first, second = ([episode.stop_reason for episode in played].count("context") for played in run.episodes)
    assert first
    assert second
    said = capsys.readouterr().out
    assert said.count("before their limits (stop/context)") == 1
    assert f"{first} of 16 episodes came to the end of the engine's context of 92 tokens" in said


def test_a_model_of_other_words_is_told_of_once_and_has_no_figures(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """This one says `<action> up </action>` whatever is asked: it has no thoughts, and answers no question."""
    how = Evaluation(levels=3, curve=(1,), world_model=True)
    run = Run(model, tmp_path, test={"standard": Variant()}, testing=how)
    run.trainer.test(run.module, datamodule=run.data, verbose=False)
    assert capsys.readouterr().out.count("nothing can be read: 'standard' has no thought and no answer") == 1
    assert "eval/standard/single_turn" in run.trainer.callback_metrics
    assert not [name for name in run.trainer.callback_metrics if name.startswith("eval/world_model")]


def test_a_model_of_partly_other_words_has_figures_of_what_can_be_read(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thoughts have parentheses that hold no place; its answers to questions are places."""
    read_thoughts = wmact.data.world_model.read_thoughts

    def think(env: Any, episodes: list[Episode]) -> Counter[str]:
        for episode in episodes:
            for turn in episode.turns:
                turn.text = f"<think> I go up (I think) </think> {turn.text}"
        return read_thoughts(env, episodes)

    monkeypatch.setattr(wmact.data.world_model, "read_thoughts", think)
    monkeypatch.setattr(tiny_worlds.Doors, "read_place", lambda env, text: None)  # there is no such place
    how = Evaluation(levels=3, curve=(1,), world_model=True)
    run = Run(model, tmp_path, test={"standard": Variant()}, testing=how)
    monkeypatch.setattr(run.data, "_complete", lambda prompts: ["(none)"] * len(prompts))
    run.trainer.test(run.module, datamodule=run.data, verbose=False)
    figures = {name.rpartition("/")[2] for name in run.trainer.callback_metrics if "world_model" in name}
    assert "question_exact" in figures
    assert not [name for name in figures if name.startswith("thought")]


def test_evaluation_repeats_itself(model: str, tmp_path: Path) -> None:
    run = Run(model, tmp_path, test={"doors": Variant()}, testing=Evaluation(levels=3, samples=2, curve=(1,)))
    first, second = (run.trainer.predict(run.module, datamodule=run.data) for _ in range(2))
    assert first is not None
    assert second is not None
    assert [episode.ids for episode in first[0].episodes] == [episode.ids for episode in second[0].episodes]
    assert [episode.level for episode in first[0].episodes] == [0, 0, 1, 1, 2, 2]


def test_more_levels_than_there_are(model: str, tmp_path: Path) -> None:
    run = Run(model, tmp_path, val={"few": Variant(kwargs={"levels": 5})}, validation=Evaluation(levels=6, curve=(1,)))
    with pytest.raises(ValueError, match=r"data\.validation\.levels=6: 'few' has 5"):
        run.trainer.validate(run.module, datamodule=run.data, verbose=False)


def test_all_levels_that_there_are(model: str, tmp_path: Path) -> None:
    how = Evaluation(levels=None, curve=(1,))
    run = Run(model, tmp_path, val={"few": Variant(kwargs={"levels": 5})}, validation=how)
    run.trainer.validate(run.module, datamodule=run.data, verbose=False)
    assert run.trainer.callback_metrics["eval/few/levels"] == 5
    endless = Run(model, tmp_path / "endless", val={"all": Variant()}, validation=how)
    with pytest.raises(ValueError, match=r"data\.validation\.levels=null: 'all' has levels without end"):
        endless.trainer.validate(endless.module, datamodule=endless.data, verbose=False)


def test_a_variant_says_what_differs() -> None:
    env = EnvSpec("m:A-v0", {"size": 9, "split": "train"})
    assert Variant().of(env) == env
    assert Variant(kwargs={"split": "val"}).of(env) == EnvSpec("m:A-v0", {"size": 9, "split": "val"})
    assert Variant("m:B-v0", {"hue": 1}).of(env) == EnvSpec("m:B-v0", {"hue": 1})


@pytest.mark.parametrize(("epochs", "expected"), [(2, [0, 2]), (3, [0, 2, 3])])
def test_the_trained_weights_are_evaluated_in_any_case(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, expected: list[int]
) -> None:
    how = Evaluation(levels=2, curve=(1,))
    run = Run(model, tmp_path, epochs=epochs, val={"doors": Variant()}, validation=how)
    run.trainer.check_val_every_n_epoch = 2
    seen, evaluate = [], run.data._evaluate
    monkeypatch.setattr(run.data, "_evaluate", lambda *a: seen.append(run.module.global_step) or evaluate(*a))
    run.fit()
    assert seen == expected


# The end


def test_everything_is_given_back(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(tiny_worlds.Doors, "close", lambda self: closed.append(self))
    run = Run(model, tmp_path, groups=2, samples=2).fit()
    assert run.engine.closed >= 1
    assert len(set(map(id, closed))) >= 4  # one an episode, and one that setup looked at
    assert len(run.data._pools) == 0


def test_everything_is_given_back_after_an_error(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(PPO, "training_step", faulty)
    run = Run(model, tmp_path)
    with pytest.raises(RuntimeError, match="a bug"):
        run.fit()
    assert run.engine.closed >= 1
    assert len(run.data._pools) == 0
    assert run.data._synced is None  # weights are loaded again, whatever is trained next


@pytest.mark.parametrize(
    "wrong", [{"groups": 0}, {"samples": 0}, {"max_turns": 0}, {"concurrency": -1}, {"temperature": 0.0}], ids=str
)
def test_impossible_settings(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^data.{name}={value}: must be"):
        RolloutData(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"levels": 0}, {"samples": 0}, {"curve": ()}, {"curve": (2, 1)}, {"curve": (0, 1)}], ids=str
)
def test_impossible_evaluations(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    shown = list(value) if name == "curve" else value
    with pytest.raises(ValueError, match=rf"^data\.validation, data\.testing: .*{re.escape(f'{name}={shown}')}"):
        Evaluation(**wrong)


@pytest.mark.parametrize("name", ["x/y", "world_model"])
def test_names_of_variants_that_would_hide_their_figures(name: str) -> None:
    with pytest.raises(ValueError, match=f"a variant is named '{name}'"):
        RolloutData(env=DOORS, val={name: Variant()})
