"""What a model has forgotten: the questions, a model's answers by hand, intervals, weights, and the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from command_line import refused, run
from wmact import forgetting
from wmact.forgetting import (
    Question,
    Scored,
    compare,
    log_probabilities,
    parameter_change,
    passages,
    questions,
    score,
)
from wmact.models import Policy, load_tokenizer

KINDS = ("capital", "region")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a folder of its own."""
    monkeypatch.chdir(tmp_path)


def test_passages_are_text_of_one_length() -> None:
    assert len(passages()) >= 50
    assert {len(text) for text in passages()} == {1000}
    assert len(set(passages())) == len(passages())


def test_questions_have_one_right_answer() -> None:
    asked = questions()
    assert asked == questions()
    by_text = {question.text: question for question in asked}
    france = by_text["Question: What is the capital of France?\nAnswer:"]
    assert france.answers[france.right] == "Paris"
    assert by_text["Question: In which part of the world is Kenya?\nAnswer:"].kind == "region"
    assert "Question: What is the capital of Singapore?\nAnswer:" not in by_text  # it would tell itself
    for question in asked:
        assert len(set(question.answers)) == 4
    counts = {kind: sum(question.kind == kind for question in asked) for kind in KINDS}
    assert min(counts.values()) > 200
    places = np.bincount([question.right for question in asked], minlength=4) / len(asked)
    assert places.max() < 0.3  # whoever always says the first is right one time in four


def test_a_model_is_scored_by_its_own_probabilities(tiny_model: Path) -> None:
    """Against transformers' forward pass, one text at a time."""
    tokenizer, policy = load_tokenizer(str(tiny_model)), Policy(str(tiny_model)).eval()
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager").eval()

    def said(before: str, after: str) -> float:
        first = tokenizer.encode(before)
        ids = first + tokenizer.encode(after, add_special_tokens=False)
        log_p = plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return float(sum(log_p[i - 1, ids[i]] for i in range(len(first), len(ids))))

    texts = ["go up and down to you", "left"]
    asked = [
        Question("a", "you go", ("up", "down down down", "left", "right"), 1),
        Question("a", "go", ("up", "down", "left", "right"), 2),
        Question("b", "to", ("you", "up", "up up", "down"), 0),
    ]
    with torch.no_grad():
        found = score(policy, tokenizer, texts, asked)
        ids = tokenizer.encode(texts[0])
        log_p = plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = -sum(float(log_p[i - 1, ids[i]]) for i in range(1, len(ids)))
        best = [max(range(4), key=lambda i, q=q: said(q.text, f" {q.answers[i]}") / len(q.answers[i])) for q in asked]
    assert found.tokens.tolist() == [len(ids) - 1, 0]  # nothing comes before a first token
    assert found.nll == pytest.approx([expected, 0.0], rel=1e-5)
    right = [float(b == q.right) for b, q in zip(best, asked, strict=True)]
    assert [*found.correct["a"], *found.correct["b"]] == right
    assert log_probabilities(policy, [([5, 6], [7])] * 3000).shape == (3000,)  # in several batches


def test_perplexity_and_accuracy_by_hand() -> None:
    # exp((3 + 5)/(2 + 2)) = e²; after: exp((3 + 9)/4) = e³, e times as much; accuracy 3/4, before 1/4
    start = Scored(np.array([3.0, 5.0]), np.array([2, 2]), {"capital": np.array([1.0, 0.0, 0.0, 0.0])})
    model = Scored(np.array([3.0, 9.0]), np.array([2, 2]), {"capital": np.array([1.0, 1.0, 1.0, 0.0])})
    figures = compare(model, start)
    assert [figures["perplexity"][of].value for of in ("model", "start", "change")] == pytest.approx(
        [math.e**3, math.e**2, math.e]
    )
    # of two passages both resamples of one are drawn: no change, or e^(4/2)
    assert figures["perplexity"]["change"][1:] == pytest.approx((1, math.e**2))
    assert [figures["accuracy/capital"][of].value for of in ("model", "start", "change")] == [0.75, 0.25, 0.5]
    assert compare(model, None).keys() == figures.keys()
    assert compare(model, model)["perplexity"]["change"] == (1, 1, 1)


def test_change_of_weights_by_hand() -> None:
    start = {"a.0.w": torch.tensor([3.0, 4.0]), "a.1.w": torch.tensor([0.0, 5.0]), "b": torch.tensor([0.0])}
    model = {"a.0.w": torch.tensor([3.0, 4.5]), "a.1.w": torch.tensor([1.2, 5.0]), "b": torch.tensor([0.0])}
    change = parameter_change(model, start)
    assert change["tensors"] == pytest.approx({"a.0.w": 0.5 / 5, "a.1.w": 1.2 / 5, "b": 0})
    moved = math.sqrt((0.25 + 1.44) / 50)  # 1.3/√50
    assert change["kinds"] == pytest.approx({"a.*.w": moved, "b": 0})
    assert change["all"] == pytest.approx(moved)
    assert change["unchanged"] == 3 / 5
    with pytest.raises(ValueError, match=r"^--start is another architecture: b is missing in the model and \(1,\) in"):
        parameter_change({name: w for name, w in model.items() if name != "b"}, start)


def test_the_command(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a start whose output layer is shifted: weights, perplexity and file are those of it."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        lm.model.norm.weight *= 1.5
    lm.save_pretrained(tmp_path / "trained")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "trained")
    some = questions()
    monkeypatch.setattr(forgetting, "questions", lambda: [*some[:20], *some[-20:]])
    monkeypatch.setattr(forgetting, "passages", lambda: [text[:200] for text in passages()[:10]])
    assert run("forgetting", "trained", "--start", str(tiny_model), "--out", "found.json") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["model", "start", "change"]
    assert [line.split()[0] for line in printed[1:4]] == ["perplexity", "accuracy/capital", "accuracy/region"]
    assert printed[-1] == "10 passages; 40 questions of four answers each, so 0.25 is chance"
    found = json.loads(Path("found.json").read_text())
    assert (found["passages"], found["questions"]) == (10, {"capital": 20, "region": 20})
    assert found["weights"]["kinds"]["model.norm.weight"] == pytest.approx(0.5)
    assert {name for name, moved in found["weights"]["tensors"].items() if moved} == {"model.norm.weight"}
    perplexity = found["figures"]["perplexity"]
    ratio = perplexity["model"]["value"] / perplexity["start"]["value"]
    assert perplexity["change"]["value"] == pytest.approx(ratio)
    assert perplexity["change"]["low"] <= ratio <= perplexity["change"]["high"]
    assert "model.norm.weight" in "\n".join(printed)


def test_bad_input(tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--start is another architecture" in refused(capsys, "forgetting", str(tiny_model), "--start", "nano")
    assert "model='nowhere'" in refused(capsys, "forgetting", "./nowhere").replace("./", "")
    monkeypatch.setattr(forgetting.importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[forgetting]'" in refused(capsys, "forgetting", str(tiny_model))
