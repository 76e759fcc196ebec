"""Distances with the numbers that were measured, the real embedder among them, and pooling by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import stub_server
from wmact.rwml.distances import (
    Embedding,
    Exact,
    JSONFields,
    RougeL,
    SentenceEmbedding,
    ServedEmbedding,
    _vectors,
    embedder_folder,
    pool,
    pooling_of,
    rouge_l,
)

# Pair, cosine distance of all-MiniLM-L6-v2 as sentence-transformers gives it, ROUGE-L's F as rouge-score 0.1.2 does.
MEASURED = [
    (
        "You open the fridge 1. The fridge 1 is open. In it, you see a apple 1, and a egg 2.",
        "The fridge 1 is now open. Inside it there is an apple 1 and an egg 2.",
        0.068,
        None,
    ),
    ("You pick up the mug 1 from the desk 1.", "You take the mug 1 off the desk 1.", 0.055, 0.74),
    ("You turn on the desklamp 1.", "The desklamp 1 is now switched on.", 0.116, None),
    ("Nothing happens.", "The action has no effect.", 0.608, 0.0),
    ("The fridge 1 is open.", "The fridge 1 is closed.", 0.052, 0.80),
    ("You pick up the mug 1 from the desk 1.", "You pick up the mug 2 from the desk 1.", 0.022, None),
    ("You turn on the desklamp 1.", "You turn off the desklamp 1.", 0.067, None),
]


@pytest.fixture(scope="module")
def minilm() -> SentenceEmbedding:
    return SentenceEmbedding(device="cpu")


def test_distances_of_minilm_are_those_that_were_measured(minilm):
    found = minilm([a for a, *_ in MEASURED], [b for _, b, *_ in MEASURED])
    for distance, (a, b, measured, _) in zip(found, MEASURED, strict=True):
        assert distance == pytest.approx(measured, abs=0.01), (a, b)


def test_batches_and_padding_change_nothing_and_what_is_known_is_not_embedded_again(minilm, monkeypatch):
    texts = [a for a, *_ in MEASURED]
    whole = SentenceEmbedding(device="cpu", batch_size=2)
    whole._loaded, whole.longest, whole.pooling = minilm._loaded, minilm.longest, minilm.pooling
    one_by_one = np.concatenate([minilm.embed([text]) for text in texts])
    assert whole.embed(texts) == pytest.approx(one_by_one, abs=1e-5)
    whole(texts, texts[::-1])
    monkeypatch.setattr(whole, "embed", lambda texts: pytest.fail("embedded again"))
    assert whole(texts, texts) == [0.0] * len(texts)


def test_what_is_kept_is_bounded_and_the_longest_unused_goes(minilm):
    bounded = SentenceEmbedding(device="cpu", kept=2)
    bounded._loaded, bounded.longest, bounded.pooling = minilm._loaded, minilm.longest, minilm.pooling
    bounded(["a", "b", "a"], ["c", "a", "a"])
    assert len(bounded._known) == 2


def test_texts_that_are_cut_are_counted(minilm):
    before = minilm.cut
    minilm(["word " * 300], ["word " * 200])  # of 256 tokens
    assert minilm.cut == before + 1


def test_rouge_l():
    assert rouge_l("", "") == 1.0
    assert rouge_l("a", "") == 0.0
    # "the cat sat" and "the mat sat on": common the, sat; 2·2 / (3 + 4)
    assert rouge_l("The cat sat!", "the mat, sat on") == pytest.approx(4 / 7)
    # order counts: of a b c and c b a one word is common in order; 2·1 / 6
    assert rouge_l("a b c", "c b a") == pytest.approx(1 / 3)
    long = " ".join(map(str, range(200)))
    assert rouge_l(long, long) == 1.0
    for a, b, _, measured in MEASURED:
        if measured is not None:
            assert rouge_l(a, b) == pytest.approx(measured, abs=0.005)
    assert RougeL()(["a b"], ["a c"]) == [pytest.approx(0.5)]


def naive_lcs(a: str, b: str) -> int:
    rows = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            rows[i + 1][j + 1] = rows[i][j] + 1 if x == y else max(rows[i][j + 1], rows[i + 1][j])
    return rows[-1][-1]


def test_rouge_l_is_that_of_the_textbook():
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = ("".join(rng.choice(list("abc"), size=rng.integers(1, 90))) for _ in range(2))
        assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(2 * naive_lcs(a, b) / (len(a) + len(b)))


def test_fields_of_json():
    order = json.dumps({"id": "#W1", "items": [{"n": 1}, {"n": 2}], "note": {}})
    same = '{"note": {}, "items": [{"n": 1}, {"n": 2}],\n "id": "#W1"}'
    # four leaves: id, items/0/n, items/1/n, note; one of them differs: 1 - 2·3 / 8
    other = json.dumps({"id": "#W1", "items": [{"n": 1}, {"n": 3}], "note": {}})
    # three of four leaves are there: 1 - 2·3 / 7
    fewer = json.dumps({"id": "#W1", "items": [{"n": 1}, {"n": 2}]})
    deep = "[" * 100_000
    found = JSONFields()([same, other, fewer, "prose", deep, "[1]"], [order] * 5 + ["[1.0]"])
    assert found == [0.0, pytest.approx(0.25), pytest.approx(1 / 7), 1.0, 1.0, 1.0]
    assert JSONFields()(["Not found", "not"], ["Not  found", "Not found"]) == [0.0, 1.0]
    assert Exact()([same, other, "a  b\n", "a"], [order, order, "a b", "b"]) == [0.0, 1.0, 0.0, 1.0]


def test_an_embedding_that_is_no_number_is_far_from_everything():
    class Broken(Embedding):
        def embed(self, texts):
            return np.array([[np.nan, 1.0] if "bad" in text else [1.0, 0.0] for text in texts], dtype=np.float32)

    assert Broken(kept=9)(["bad prediction", "good"], ["truth", "truth"]) == [2.0, 0.0]
    with pytest.raises(OSError, match="not an answer of OpenAI's API"):
        _vectors({"data": [{"index": 0, "embedding": [float("nan"), 1.0]}]}, 1, "server")


def test_pooling_by_hand():
    hidden = torch.tensor([[[1.0, 0], [3, 2], [100, 100]], [[7, 7], [1, 1], [5, 3]]])
    right, left = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert pool(hidden, right, "mean").tolist() == [[2, 1], [pytest.approx(13 / 3), pytest.approx(11 / 3)]]
    assert pool(hidden, right, "last").tolist() == [[3, 2], [5, 3]]
    assert pool(hidden, left, "last").tolist() == [[100, 100], [5, 3]]
    assert pool(hidden, left, "first").tolist() == [[3, 2], [7, 7]]


def test_the_pooling_of_a_folder(tmp_path):
    assert pooling_of(embedder_folder("minilm")) == "mean"
    assert pooling_of(tmp_path) == "mean"
    (tmp_path / "1_Pooling").mkdir()
    module = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    # as Qwen3-Embedding has it
    config = {"word_embedding_dimension": 1024, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config | {"include_prompt": True}))
    assert pooling_of(tmp_path) == "last"
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="pooling_mode_max_tokens is not known"):
        pooling_of(tmp_path)


def test_a_last_token_embedder_of_a_folder(tiny_model, tmp_path):
    """A causal model with sentence-transformers' files beside it, as Qwen3-Embedding comes."""
    for file in Path(tiny_model).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "1_Pooling", "type": "x.Pooling"}]))
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    last, mean = SentenceEmbedding(str(tmp_path), device="cpu"), SentenceEmbedding(str(tiny_model), device="cpu")
    assert last(["up down"], ["left down"])[0] != pytest.approx(mean(["up down"], ["left down"])[0], abs=1e-3)
    alone, padded = last.embed(["up"]), last.embed(["up", "up down left right"])
    assert padded[0] == pytest.approx(alone[0], abs=1e-5)


def test_embedders_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no Hugging Face model folder"):
        SentenceEmbedding(str(tmp_path))(["a"], ["b"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[rwml\]'"):
        SentenceEmbedding()(["a"], ["b"])


def embeddings(asked: stub_server.Asked) -> stub_server.Answer:
    if asked.path == "/v1/models":
        return stub_server.Answer(body={"data": [{"id": "embedder"}]})
    vectors = {"north": [1, 0], "east": [0, 2.0], "south": [-3, 0], " ": [1, 1]}
    rows = [{"index": i, "embedding": vectors[text]} for i, text in enumerate(asked.body["input"])]
    return stub_server.Answer(body={"data": rows[::-1]})


def test_a_server_of_embeddings():
    with stub_server.serving(stub_server.Stub(embeddings)) as stub:
        distance = ServedEmbedding(stub.url, batch_size=2)
        found = distance(["north", "north", "north", ""], ["east", "south", "north", "north"])
        # right angle, opposite, the same; and 45°: 1 - √½
        assert found == pytest.approx([1, 2, 0, 1 - math.sqrt(0.5)], abs=1e-6)
        bodies = stub.bodies("/v1/embeddings")
        assert [body["input"] for body in bodies] == [["north", " "], ["east", "south"]]
        assert {body["model"] for body in bodies} == {"embedder"}


@pytest.mark.parametrize(
    "body",
    [{"data": []}, {"data": [{"embedding": ["a"]}]}, {"data": [{"embedding": []}]}, [], {"data": [{"index": 1}]}, b"?"],
)
def test_a_server_that_answers_rubbish(body):
    with (
        stub_server.serving(stub_server.Stub(lambda asked: stub_server.Answer(body=body))) as stub,
        pytest.raises(OSError, match=f"{stub.url}/embeddings: "),
    ):
        ServedEmbedding(stub.url, "m")(["a"], ["a "])
