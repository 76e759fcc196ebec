"""A nano with the words of a world of one's own: what its tokenizer knows, and that it is an ordinary model."""

import pytest
import torch

from wmact.chat import Chat
from wmact.demonstrations import Walkthrough, World, play_demonstration
from wmact.environments import EnvSpec
from wmact.models import load_model, load_tokenizer
from wmact.nano import main
from wmact.rollout import Limits, Player, Task
from wmact.rwml import prediction
from wmact.rwml.env import PredictionEnv


@pytest.fixture
def model(tmp_path, write, triplet, capsys):
    rows = [triplet(step=i, action=f"go to desk {i}", next=f"You arrive at desk {i}.") for i in range(12)]
    main([write(*rows), "--out", str(tmp_path / "nano"), "--hidden_size", "32", "--layers", "1", "--context", "512"])
    assert "of 12 triplets" in capsys.readouterr().out
    return tmp_path / "nano"


def pieces(tokenizer, text):
    return [tokenizer.decode([i]) for i in Chat(tokenizer).encode(text)]


def test_words_tags_and_numbers_of_the_world_are_tokens(model):
    tokenizer = load_tokenizer(str(model))
    before, text, behind = prediction.written("You arrive at desk 11.", "")
    said = ["<next_state>", "\n", "You", " arrive", " at", " desk", " 11", ".", "\n", "</next_state>"]
    assert pieces(tokenizer, before + text + behind) == said
    assert pieces(tokenizer, "<action>go to desk 3</action>") == ["<action>", "go", " to", " desk", " 3", "</action>"]


def test_every_text_can_be_told(model):
    chat = Chat(load_tokenizer(str(model)))
    text = 'Käse → 🧀,\n\n  two  blanks\t<b> {"a": [1, 20]}'
    assert chat.decode(chat.encode(text)) == text


def test_what_the_world_says_cannot_be_a_control_token(model):
    tokenizer = load_tokenizer(str(model))
    ids = Chat(tokenizer).open("desk<|end|>desk")
    assert ids.count(tokenizer.eos_token_id) == 1  # the template's own
    assert tokenizer.decode(ids).count("desk") == 2


def test_it_is_a_model_and_the_same_for_the_same_seed(model, tmp_path):
    weights = load_model(str(model)).state_dict()
    assert load_model(str(model)).config.max_position_embeddings == 512
    assert weights["lm_head.weight"].shape == (len(load_tokenizer(str(model))), 32)
    words = [str(tmp_path / "triplets.jsonl"), "--hidden_size", "32", "--layers", "1"]
    main([*words, "--out", str(tmp_path / "same")])
    main([*words, "--out", str(tmp_path / "other"), "--seed", "1"])
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(load_model(str(tmp_path / "same")).state_dict()[name], weights[name])
    assert not torch.equal(load_model(str(tmp_path / "other")).state_dict()[name], weights[name])


def test_it_replaces_a_model_whole_and_nothing_else(model, tmp_path, monkeypatch):
    words = [str(tmp_path / "triplets.jsonl"), "--hidden_size", "32", "--layers", "1", "--out"]
    before = (model / "model.safetensors").read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([*words, str(model), "--seed", "1"])
    assert (model / "model.safetensors").read_bytes() == before
    main([*words, str(model), "--seed", "1"])
    assert (model / "model.safetensors").read_bytes() != before
    with pytest.raises(ValueError, match="is there already, and no folder of a model"):
        main([*words, str(tmp_path)])


def test_a_lone_surrogate_in_a_file_is_no_error(tmp_path, write, triplet):
    main([write(triplet(next="\ud800 desk")), "--out", str(tmp_path / "nano"), "--hidden_size", "32", "--layers", "1"])
    assert (tmp_path / "nano" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--hidden_size", "33"], "--hidden_size 33: a multiple of 32"),
        (["--layers", "0"], "--layers 0 --context 4096: at least 1"),
        (["--vocabulary", "200"], "--vocabulary 200: at least 262"),  # 256 bytes and 6 control tokens
    ],
)
def test_numbers_that_make_no_model(tmp_path, write, triplet, words, told):
    with pytest.raises(ValueError, match=told):
        main([write(triplet()), "--out", str(tmp_path / "nano"), *words])
    assert not (tmp_path / "nano").exists()


def test_a_prediction_can_be_demonstrated_among_actions(model, write, triplet):
    row = triplet(next="You arrive at desk 3. <next_state>")  # a tag that the world says is none of ours
    env = PredictionEnv(write(row, name="one.jsonl"), told=False)
    how = Walkthrough(thought="", reply="<next_state>\n{plan}\n</next_state>")
    chat = Chat(load_tokenizer(str(model)))
    player = Player(env, Task(0, 0, 1), chat, Limits(turn_tokens=99), told=False)
    episode = play_demonstration(World(EnvSpec(), walkthrough=how), player, 20)
    assert [action.text for action in episode.actions] == ["You arrive at desk 3. ‹next_state>"]
    assert episode.stop_reason == "dead"  # it is over, and nothing has judged it
    assert env.solution() is None
