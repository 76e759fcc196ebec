"""The DataModule of predictions: what is played, what it is worth, what is told about it."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch import Trainer

from literal import trainer
from wmact.data import Evaluation
from wmact.environments import Variant
from wmact.ppo import PPO
from wmact.rollout import Limits
from wmact.rwml import ByKind, Exact, NextStateData, PredictionData, Within
from wmact.rwml.data import figures
from wmact.rwml.triplets import Triplet
from wmact.types import Action, Episode, TrainingStopped, Turn

EXACT = Within(Exact(), 1.0)


@pytest.fixture
def rows(triplet: Callable[..., Triplet]) -> list[Triplet]:
    """Twenty games of two triplets; what happens is the action itself."""
    words = ("up", "down", "left", "right")
    return [triplet(game=f"g{i // 2}", step=i, action=words[i % 4], next=words[i % 4]) for i in range(40)]


class Keep(L.Callback):
    def on_train_batch_end(self, trainer: Trainer, module: L.LightningModule, *args: Any) -> None:
        self.train = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.episodes = trainer.datamodule.episodes  # type: ignore[attr-defined]


def build(model: Path, path: str, engine: Any, reward: Any = EXACT, **settings: Any) -> PredictionData:
    defaults: dict[str, Any] = {"groups": 2, "samples": 4, "limits": Limits(turn_tokens=6), "tag": "action"}
    defaults |= {"tell_rules": False, "max_logprob_gap": math.inf, "history": 0, "held_out": 0.3}
    defaults |= {"validation": Evaluation(levels=2, curve=(1,)), "testing": Evaluation(levels=2, samples=2, curve=(1,))}
    return PredictionData(path, reward, model=str(model), engine=engine, **(defaults | settings))


def asked(data: PredictionData, request: Any, tokenizer: Any) -> str:
    """The action that a prompt asks about; any for the probes of the weights."""
    words = tokenizer.decode(request.prompt_ids).split()
    return next((word for word in reversed(words) if word in ("up", "down", "left", "right")), "up")


def test_a_batch_of_predictions_is_rewarded_at_once(tiny_model, scripted, write, rows, tmp_path):
    """Of each group's four: right, wrong, cut off, without tags."""
    calls: list[int] = []

    class Counted(Within):
        def __call__(self, predicted, triplets):
            calls.append(len(predicted))
            return super().__call__(predicted, triplets)

    count = iter(range(10_000))

    def script(request: Any) -> str:
        word = asked(data, request, engine.tokenizer)
        wrong = "down" if word == "up" else "up"
        n = next(count) % 4
        return [f"<action> {word} </action>", f"<action> {wrong} </action>", "up " * 20, "up"][n]

    engine = scripted(script)
    data = build(tiny_model, write(*rows), engine, Counted(Exact(), 1.0))
    keep = Keep()
    run = trainer(1, devices=1, default_root_dir=tmp_path)
    run.callbacks.append(keep)
    run.limit_val_batches = 0
    module = PPO(model=str(tiny_model), max_mismatch_kl=math.inf)
    run.fit(module, datamodule=data)
    assert calls == [1, 4]  # a truth, before anything is played; of eight replies, four predictions
    ends = [episode.stop_reason for episode in keep.episodes]
    assert ends == ["solved", "dead", "turn_tokens", "turns"] * 2
    assert [episode.scaled_reward for episode in keep.episodes] == [1.0, 0.0, 0.0, 0.0] * 2
    held_out = {row.game for row in data._pools.one(data.val["held_out"]).unwrapped.triplets}
    trained = {data._pools.one(data.env).unwrapped.triplets[e.level].game for e in keep.episodes}
    assert held_out
    assert not trained & held_out
    wanted = {"reward": 0.25, "exact": 0.25, "entities": 0.5, "states": 0.5, "missing_tag": 0.25, "truncated": 0.25}
    # nothing here has a number or a state, so that every prediction names the same things; no group is flat
    assert {name: keep.train[f"train/{name}"] for name in wanted} == wanted
    assert keep.train["train/zero_variance"] == 0.0
    assert keep.train["performance/reward_seconds"] > 0


def test_held_out_games_are_evaluated(tiny_model, scripted, write, rows, tmp_path):
    def script(request: Any) -> str:
        return f"<action> {asked(data, request, engine.tokenizer)} </action>"

    engine = scripted(script)
    data = build(tiny_model, write(*rows), engine)
    run = trainer(1, devices=1, default_root_dir=tmp_path)
    run.test(PPO(model=str(tiny_model)), datamodule=data, verbose=False)
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert found["eval/held_out/single_turn"] == found["eval/world_model/held_out/reward"] == 1.0
    assert found["eval/held_out/episodes"] == 4
    assert found["eval/world_model/held_out/length"] == 1.0
    assert "eval/world_model/held_out/length_low" not in found
    for name in ("reward", "exact", "entities", "states"):  # 4 of 4 samples, of 2 triplets: low 2/(2 + 1.96²) = 0.34238
        ends = [found[f"eval/world_model/held_out/{name}_{end}"] for end in ("low", "high")]
        assert ends == pytest.approx([0.342380, 1.0], abs=1e-6)
    assert found["eval/world_model/held_out/zero_variance"] == 1.0


def test_a_reward_that_cannot_be_had_is_an_error_and_too_many_stop_the_run(tiny_model, scripted, write, rows, tmp_path):
    def reward(predicted: list[str], triplets: list[Triplet]) -> list[float | OSError]:
        return [1.0 if len(predicted) == 1 else OSError("http://x: no connection")] * len(predicted)  # then it is gone

    data = build(tiny_model, write(*rows), scripted(lambda request: "<action> up </action>"), reward)
    run = trainer(1, devices=1, default_root_dir=tmp_path)
    run.limit_val_batches = 0
    with pytest.raises(TrainingStopped, match="8 of 8 episodes ended in an error: 8 × no reward: http://x: no conn"):
        run.fit(PPO(model=str(tiny_model), max_mismatch_kl=math.inf), datamodule=data)


def test_a_reward_that_was_never_there_is_told_before_anything_is_played(tiny_model, scripted, write, rows, triplet):
    rows = [*rows, triplet(game="g20", kind="tool"), triplet(game="g21", kind="tool")]
    data = partial(build, tiny_model, write(*rows), scripted(lambda request: ""), held_out=0.5)
    with pytest.raises(ValueError, match="none for triplets of kind 'tool'"):
        data(ByKind({"world": EXACT})).setup("fit")
    with pytest.raises(OSError, match="http://x: no connection"):
        data(lambda predicted, _: [1.0] * (len(predicted) - 1) + [OSError("http://x: no connection")]).setup("fit")
    data(ByKind({"world": EXACT, "": EXACT})).setup("fit")


def episode(level: int, reward: float, form: Any = "valid") -> Episode:
    found = Episode("env", level, str(level), 0, 0, 0, reward=reward)
    found.turns = [Turn(1, 2, "", form, [Action("x", "effective")])]
    return found


def test_figures_by_hand(triplet):
    truth = triplet(next="The safe 1 is open.")
    other = triplet(next="The safe 1 is open.", game="g1")
    found = [
        (episode(0, 1.0), truth, "The safe 1 is  open."),  # exact but for a space: 20 characters for 19
        (episode(0, 1.0), truth, "The safe 1 is closed."),  # another state, the same thing: 21
        (episode(1, 1.0), truth, "Open is the safe 2."),  # another thing, the same state: 19
        (episode(1, 0.0, "unreadable"), truth, None),
        (episode(2, 0.0, "overlong"), other, None),
    ]
    assert figures(found, 2) == {
        "reward": (3.0, 5, 2),  # five samples of three triplets of two games
        "exact": (1, 5, 2),
        "entities": (2, 5, 2),
        "states": (2, 5, 2),
        "missing_tag": (1, 5, 2),
        "truncated": (1, 5, 2),
        "length": (pytest.approx(20 / 19 + 21 / 19 + 1), 3, 0),  # no share
        "zero_variance": (1, 2, 2),  # of the two groups with several samples, the first
    }
    assert figures([], 0).keys() == figures(found, 2).keys()
    assert figures(found[:4], 1)["zero_variance"] == (1, 2, 1)  # both groups are of one game


def test_an_evaluation_gives_a_prediction_as_many_tries_as_training(tiny_model, scripted, write, rows):
    build_with = partial(build, tiny_model, write(*rows), scripted(lambda request: ""))
    assert build_with(validation=Evaluation(levels=1, curve=(1, 2, 10))).validation == Evaluation(levels=1, curve=(1,))
    assert build_with(testing=Evaluation(levels=1), max_turns=2).testing == Evaluation(levels=1, curve=(2,))


def test_what_is_evaluated_is_held_out_unless_it_is_said_otherwise(tiny_model, scripted, write, rows):
    other = write(*rows, name="other.jsonl")
    test = {"unseen": Variant(kwargs={"triplets": other, "part": "all"}), "seen": Variant()}
    data = build(tiny_model, write(*rows), scripted(lambda request: ""), test=test)
    assert {name: spec.kwargs["part"] for name, spec in data.val.items()} == {"held_out": "held_out"}
    assert data.test["unseen"].kwargs["triplets"] == other
    assert data.test["unseen"].kwargs["part"] == "all"
    assert data.test["seen"].kwargs["part"] == "held_out"
    assert data.env.kwargs["part"] == "train"


# World-model SFT


def shown(model: Path, path: str, **settings: Any) -> NextStateData:
    data = NextStateData(
        triplets=path, reward=EXACT, model=str(model), batches=3, episodes_a_batch=8, held_out=0.3, **settings
    )
    data.setup("fit")
    return data


def test_the_true_next_state_is_shown_in_the_form_of_a_prediction(tiny_model, write, rows):
    data = shown(tiny_model, write(*rows), tag="action", tell_rules=False, thought="up")
    batches = list(data.train_dataloader())
    env: Any = data._pools.one(data.env).unwrapped
    assert len(batches) == 3
    for played in data.episodes:
        (turn,) = played.turns
        row = env.triplets[played.level]
        assert turn.text.split() == ["<think>", "up", "</think>", "<action>", row.next, "</action>"]
        assert [action.text for action in turn.actions] == [row.next]
        assert played.ids[turn.end - 1] == data.chat.end_of_turn
    # <think> up </think> ⏎ <action> ⏎ word ⏎ </action> and the end of the turn: ten tokens each
    assert len(batches[0].token_S) == 8 * 10


def test_every_triplet_comes_once_before_one_comes_again(tiny_model, write, rows):
    data = shown(tiny_model, write(*rows), tag="action", tell_rules=False)
    number = data._pools.one(data.env).unwrapped.num_levels
    data.episodes_a_batch = number
    loader = iter(data.train_dataloader())
    orders = []
    for _ in range(2):
        next(loader)
        orders.append([played.level for played in data.episodes])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(number))
    assert orders[0] != orders[1]


def test_control_tokens_of_the_world_are_none_in_what_is_shown(tiny_model, write, triplet):
    path = write(*[triplet(next="up <|end|> </action> down", game=f"g{i}") for i in range(20)])
    data = shown(tiny_model, path, tag="action", tell_rules=False)
    next(iter(data.train_dataloader()))
    for played in data.episodes:
        (turn,) = played.turns
        assert played.ids[turn.start : turn.end].count(data.chat.end_of_turn) == 1


def test_an_answer_that_no_prediction_could_say_is_told(tiny_model, write, triplet):
    path = write(*[triplet(next="up " * 50, game=f"g{i}") for i in range(20)])
    data = shown(tiny_model, path, tag="action", tell_rules=False, limits=Limits(turn_tokens=20))
    with pytest.raises(ValueError, match=r"data.limits.turn_tokens=20: the answer to triplet \d+ takes 5\d tokens"):
        next(iter(data.train_dataloader()))
