"""Packed batches against one forward pass an episode, by transformers' own attention."""

import copy
import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from wmact import models
from wmact.attention import fold
from wmact.collate import collate
from wmact.models import Critic, Policy, load_model, load_tokenizer, resolve_model
from wmact.types import Batch, Episode, Turn

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "head_dim": 8, "max_position_embeddings": 64, "attn_implementation": "eager",
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=4),
    "llama, grouped queries": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=1),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2),
    "gemma2": Gemma2Config(
        **SIZES, num_key_value_heads=2, final_logit_softcapping=5.0, attn_logit_softcapping=None, sliding_window=32,
        query_pre_attn_scalar=8,
    ),
    # learned positions: unlike rotary ones they tell whether each episode is counted from 0
    "gpt2": GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
    "granite": GraniteConfig(**SIZES, num_key_value_heads=2, logits_scaling=8.0),
    "cohere": CohereConfig(**SIZES, num_key_value_heads=2, logit_scale=0.25),
}  # fmt: skip


def build(config: Any, attention: str) -> PreTrainedModel:
    """The same random weights whatever the attention; larger than usual, so that mistakes show."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation=attention, dtype=torch.float32
        )
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def packed(config: Any = CONFIGS["llama"], **kwargs: Any) -> Policy:
    return Policy(build(config, "wmact_packed"), **kwargs)


def one_by_one(model: PreTrainedModel, episodes: list[Episode]) -> list[Tensor]:
    """Logits (length, V) of each episode from a forward pass of its own, as any user of transformers would do it."""
    return [model(input_ids=torch.tensor([episode.ids]), use_cache=False).logits[0] for episode in episodes]


def score(logits: Tensor, episode: Episode, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of the sampled tokens; token i is predicted from i - 1."""
    where = [i for turn in episode.turns for i in range(turn.start, turn.end)]
    distributions = torch.distributions.Categorical(logits=logits[[i - 1 for i in where]] / temperature)
    return distributions.log_prob(torch.tensor(episode.ids)[where]), distributions.entropy()


@pytest.fixture
def episodes(make_episode: Callable[..., Episode]) -> list[Episode]:
    return [
        make_episode((3, 4, 0.0), (2, 3, 1.0), seed=1),
        make_episode((1, 1, 0.0), seed=2),
        make_episode((6, 2, 0.0), (1, 2, 0.0), (3, 5, 1.0), seed=3),
    ]


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(got: torch.nn.Module, expected: torch.nn.Module, atol: float = 1e-5) -> None:
    assert gradients(got).keys() == gradients(expected).keys()
    for name, gradient in gradients(expected).items():
        torch.testing.assert_close(gradients(got)[name], gradient, rtol=1e-4, atol=atol, msg=lambda m, n=name: n + m)


def sampled(level: int, prompt: list[int], *replies: list[int]) -> list[Episode]:
    """Samples of a level: the same prompt, then a reply each."""
    return [
        Episode(
            "toy", level, "toy", n, 0, 0, ids=prompt + reply, logprobs=[-1.0] * (len(prompt) + len(reply)),
            turns=[Turn(len(prompt), len(prompt) + len(reply), "", "valid")],
        )
        for n, reply in enumerate(replies)
    ]  # fmt: skip


@pytest.fixture
def samples(episodes: list[Episode]) -> list[Episode]:
    """Two levels with several samples: of different lengths, equal ones, and one that another begins with."""
    prompts = [[7, 8, 9, 10, 11], [7, 8, 9, 3]]
    first = sampled(10, prompts[0], [20, 21, 22], [20, 21], [30], [20, 21, 22], [20, 21, 22, 23, 24, 25])
    return [*first, episodes[0], *sampled(11, prompts[1], [40, 41], [42, 43, 44])]


@pytest.mark.parametrize("name", CONFIGS)
def test_prompts_read_once_equal_one_by_one(name: str, samples: list[Episode]) -> None:
    """Value and gradient, though the samples of a level share the tokens they begin with."""
    plain, policy = build(CONFIGS[name], "eager"), packed(CONFIGS[name])
    batch = collate(samples)
    logprobs, _ = policy(batch)
    one = one_by_one(plain, samples)
    expected = torch.cat([score(logits, episode)[0] for logits, episode in zip(one, samples, strict=True)])
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-5)
    weights = torch.linspace(-1, 1, len(logprobs))
    (weights @ logprobs).backward()
    (weights @ expected).backward()
    assert_same_gradients(policy.lm, plain)


def test_prompts_read_once_under_autocast(samples: list[Episode]) -> None:
    """In mixed precision queries and keys come in float32 and values in bfloat16."""
    policy, batch = packed(), collate(samples)
    alone = batch._replace(group_E=torch.arange(len(batch.group_E)))
    with torch.autocast("cpu", torch.bfloat16):
        (together, _), (each, _) = policy(batch), policy(alone)
    torch.testing.assert_close(together, each, rtol=0, atol=0.2)  # logits here are of size 10


def test_a_row_holds_each_position_of_a_prompt_once(samples: list[Episode]) -> None:
    batch = collate(samples)
    row = fold(batch)
    # 5 of the prompt and 3; [21] and [22] again, as every episode keeps a token; [30]; three more; another level; the
    # last: 4 and 2, and of 7 another 4 that are shared
    assert [segment.length for segment in row.segments] == [8, 1, 1, 1, 3, len(samples[5].ids), 6, 3]
    assert [segment.shared for segment in row.segments] == [0, 6, 5, 7, 8, 0, 0, 4]
    assert row.read_R.unique().numel() == row.read_R.numel() == sum(segment.length for segment in row.segments)
    torch.testing.assert_close(batch.ids_T[row.read_R][row.place_T], batch.ids_T)
    torch.testing.assert_close(batch.positions_T[row.read_R][row.place_T], batch.positions_T)


def test_less_than_half_is_not_worth_a_mask() -> None:
    batch = collate(sampled(0, [7, 8, 9], [20], [21, 22, 23], [24, 25, 26, 27]))
    assert [segment.shared for segment in fold(batch).segments] == [0, 3, 0]


def test_another_level_shares_nothing(samples: list[Episode]) -> None:
    for number, episode in enumerate(samples):
        episode.level = number
    batch = collate(samples)
    torch.testing.assert_close(fold(batch).read_R, torch.arange(batch.num_tokens))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_equals_one_by_one(name: str, temperature: float, episodes: list[Episode]) -> None:
    plain, policy = build(CONFIGS[name], "eager"), packed(CONFIGS[name], temperature=temperature)
    logprobs, entropies = policy(collate(episodes))
    parts = [
        score(logits, episode, temperature)
        for logits, episode in zip(one_by_one(plain, episodes), episodes, strict=True)
    ]
    expected_logprobs, expected_entropies = map(torch.cat, zip(*parts, strict=True))
    torch.testing.assert_close(logprobs, expected_logprobs, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropies, expected_entropies, rtol=0, atol=1e-5)
    weights = torch.linspace(-1, 1, len(logprobs))
    (weights @ logprobs + 0.3 * entropies.sum()).backward()
    (weights @ expected_logprobs + 0.3 * expected_entropies.sum()).backward()
    assert_same_gradients(policy.lm, plain)


def test_values_equal_one_by_one(tiny_model: Path, episodes: list[Episode]) -> None:
    critic = Critic.from_pretrained(str(tiny_model))
    torch.nn.init.normal_(critic.head.weight)
    torch.nn.init.constant_(critic.head.bias, 0.25)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager").base_model
    expected = [
        critic.head(plain(input_ids=torch.tensor([episode.ids])).last_hidden_state[0, i - 1])[0]
        for episode in episodes
        for turn in episode.turns
        for i in range(turn.start, turn.end)  # the state before token i is read where it is predicted
    ]
    torch.testing.assert_close(critic(collate(episodes)), torch.stack(expected), rtol=0, atol=1e-5)


def test_a_new_critic_knows_nothing(tiny_model: Path, episodes: list[Episode]) -> None:
    assert Critic.from_pretrained(str(tiny_model))(collate(episodes)).tolist() == [0.0] * 17


@pytest.mark.parametrize("name", ["llama, grouped queries", "qwen3"])
def test_no_episode_sees_another(name: str, episodes: list[Episode], make_episode: Callable[..., Episode]) -> None:
    """Bit for bit the same floats, whatever lies before and after in the row."""
    policy = packed(CONFIGS[name])
    neighbours = [make_episode((5, 3, 0.0), seed=seed) for seed in (8, 9)]
    logprobs = []
    for before, after in ((0, 1), (1, 0)):
        batch = collate([neighbours[before], episodes[0], neighbours[after]])
        logprobs.append(policy(batch)[0][batch.episode_S == 1])
    assert logprobs[0].equal(logprobs[1])


def test_no_token_sees_what_comes_after_it(episodes: list[Episode]) -> None:
    policy = packed()
    before = policy(collate(episodes))[0]
    episodes[0].ids[9] = (episodes[0].ids[9] + 1) % 50  # the first of turn 2: sampled token 4
    after = policy(collate(episodes))[0]
    assert before[:4].equal(after[:4])
    assert (before[4:7] != after[4:7]).all()
    assert before[7:].equal(after[7:])


def test_logits_in_chunks_equal_logits_at_once(episodes: list[Episode], monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate(episodes)
    assert batch.token_S.numel() == 17
    policies = [packed(temperature=0.8), packed(temperature=0.8)]
    results = []
    for policy, budget in zip(policies, (2**24, 50 * 5 + 3), strict=True):
        monkeypatch.setattr(models, "LOGIT_BUDGET", budget)  # 5 rows of the vocabulary at once: 17 = 5 + 5 + 5 + 2
        calls = []
        monkeypatch.setattr(
            policy, "_score", lambda h, t, own=policy._score, calls=calls: calls.append(len(t)) or own(h, t)
        )
        logprobs, entropies = policy(batch)
        assert calls == ([17] if budget == 2**24 else [5, 5, 5, 2])
        (torch.linspace(-1, 1, 17) @ logprobs + entropies.sum()).backward()
        results.append((logprobs, entropies))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)
    assert_same_gradients(policies[1], policies[0], atol=1e-6)


def test_a_budget_below_one_row_takes_one_row_at_a_time(
    episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = packed()(collate(episodes))
    monkeypatch.setattr(models, "LOGIT_BUDGET", 7)
    torch.testing.assert_close(packed()(collate(episodes)), expected, rtol=0, atol=1e-6)


def test_temperature_by_hand(episodes: list[Episode]) -> None:
    """Two tokens whose logits are 2 apart: at temperature 2 the first has 1/(1 + e^-1) = 0.7310586."""
    policy = packed(LlamaConfig(**SIZES | {"vocab_size": 2}), temperature=2.0)
    hidden = torch.zeros(1, 32)
    policy.lm.get_output_embeddings().register_forward_hook(lambda *_: torch.tensor([[2.0, 0.0]]))
    logprobs, entropies = policy._score(hidden, torch.tensor([0]))
    p = 0.7310586
    torch.testing.assert_close(logprobs.exp(), torch.tensor([p]), rtol=0, atol=1e-6)
    # -(p log p + q log q) = 0.7310586 · 0.3132617 + 0.2689414 · 1.3132617 = 0.5822031
    torch.testing.assert_close(entropies, torch.tensor([0.5822031]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["policy", "critic"])
def test_gradient_checkpointing_recomputes_and_changes_nothing(
    kind: str, tiny_model: Path, episodes: list[Episode]
) -> None:
    batch, models_, calls = collate(episodes), [], []
    for on in (False, True):
        if kind == "policy":
            model = Policy(str(tiny_model), gradient_checkpointing=on)
            trunk = model.lm.base_model
        else:
            model = Critic.from_pretrained(str(tiny_model), gradient_checkpointing=on)
            torch.nn.init.constant_(model.head.weight, 0.1)
            trunk = model.trunk
        passes = []
        trunk.layers[0].mlp.register_forward_pre_hook(lambda *_, passes=passes: passes.append(1))
        out = model(batch)
        (out[0] if kind == "policy" else out).sum().backward()
        models_.append(model)
        calls.append(len(passes))
    assert calls == [1, 2]  # a layer is computed again in the backward pass
    assert_same_gradients(models_[1], models_[0], atol=1e-6)


def test_an_episode_beyond_the_sliding_window_is_refused(make_episode: Callable[..., Episode]) -> None:
    policy = packed(Qwen2Config(**SIZES, num_key_value_heads=2, use_sliding_window=True, sliding_window=8,
                                max_window_layers=0))  # fmt: skip
    policy(collate([make_episode((4, 4, 0.0))]))
    with pytest.raises(ValueError, match="an episode of 9 tokens exceeds the model's sliding window of 8"):
        policy(collate([make_episode((4, 4, 0.0)), make_episode((4, 5, 0.0))]))


def test_attention_that_would_be_computed_wrongly_is_refused(episodes: list[Episode]) -> None:
    config = copy.deepcopy(CONFIGS["gemma2"])
    config.attn_logit_softcapping = 50.0
    with pytest.raises(ValueError, match="Gemma2Attention caps its attention logits"):
        packed(config)(collate(episodes))


def test_an_episode_without_a_turn_is_scored_as_nothing(make_episode: Callable[..., Episode]) -> None:
    empty = Episode("env", 1, "1", 0, 0, 0, ids=[1, 2], logprobs=[0.0, 0.0])
    batch = collate([empty, make_episode((1, 2, 0.0))])
    policy = packed()
    logprobs, entropies = policy(batch.episodes(0, 1))
    assert logprobs.shape == entropies.shape == (0,)
    logprobs.sum().backward()  # what the training step does with it
    assert all(not gradient.any() for gradient in gradients(policy).values())


def test_weights_are_float32_whatever_the_folder_holds(tiny_model: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert {p.dtype for p in Policy(str(tmp_path)).parameters()} == {torch.float32}
    assert {p.dtype for p in Critic.from_pretrained(str(tmp_path)).parameters()} == {torch.float32}


# Errors: one line each, with the model and the way out


def one_line(error: pytest.ExceptionInfo[ValueError], model: str, hint: str) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500 + len(model)
    assert message.startswith(f"model={model!r}: ")
    assert hint in message
    assert "'nano'" in message or "Hugging Face model folder" in message  # the way out


LOADERS: list[Callable[[str], Any]] = [Policy, Critic.from_pretrained, load_tokenizer]


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("model", ["/no/such/folder", "./missing", "~/missing-model", "a/b/c"])
def test_a_missing_folder(load: Callable[[str], Any], model: str) -> None:
    with pytest.raises(ValueError, match="model=") as error:
        load(model)
    one_line(error, model, "no such folder")
    assert str(error.value).count("model=") == 1


@pytest.mark.parametrize("load", LOADERS)
def test_a_folder_without_a_model(load: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model=") as error:
        load(str(tmp_path))
    one_line(error, str(tmp_path), "the folder has no config.json")


def test_a_folder_without_a_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model=") as error:
        load_tokenizer(str(tmp_path))
    one_line(error, str(tmp_path), "no tokenizer files")


@pytest.mark.parametrize("load", LOADERS[:2])
def test_a_folder_without_weights(load: Callable[[str], Any], tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    with pytest.raises(ValueError, match="model=") as error:
        load(str(tmp_path))
    one_line(error, str(tmp_path), "its weights cannot be loaded")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file(name: str, tiny_model: Path, tmp_path: Path) -> None:
    """Cut off in the middle, as a download or a full disk leaves it."""
    for file in tiny_model.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: len(content) // 2] if file.name == name else content)
    with pytest.raises(ValueError, match="model=") as error:
        load_tokenizer(str(tmp_path)) if name == "tokenizer.json" else Policy(str(tmp_path))
    one_line(error, str(tmp_path), "cannot be loaded")


def test_weights_of_another_shape(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 96', '"intermediate_size": 64'))
    with pytest.raises(ValueError, match="model=") as error:
        Policy(str(tmp_path))
    one_line(error, str(tmp_path), "its weights cannot be loaded")


@pytest.mark.parametrize("load", LOADERS)
def test_an_unknown_hub_id_offline(load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="model=") as error:
        load("wmact-tests/no-such-model")
    one_line(error, "wmact-tests/no-such-model", "cannot be loaded")
    assert "`hf download wmact-tests/no-such-model --local-dir FOLDER`" in str(error.value)


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub on this machine that has one model, tests/tiny, and an empty cache; what it was asked for."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            name = self.path.partition("/tests/tiny/resolve/main/")[2]
            file = tiny_model / name
            body = file.read_bytes() if name and file.is_file() else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            if not body:
                self.send_header("X-Error-Code", "EntryNotFound" if "/tests/tiny/" in self.path else "RepoNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", url)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it would go on asking the hub it knew
    yield asked
    server.shutdown()
    server.server_close()


def test_a_hub_id_comes_from_the_hub_and_then_from_its_cache(
    hub: list[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = dict(Policy(str(tiny_model)).named_parameters())
    for there in (True, False):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", not there)
        hub.clear()
        policy, tokenizer = Policy("tests/tiny"), load_tokenizer("tests/tiny")
        assert all(p.equal(expected[name]) for name, p in policy.named_parameters())
        assert tokenizer.get_vocab() == load_tokenizer(str(tiny_model)).get_vocab()
        assert tokenizer.chat_template
        assert ("/tests/tiny/resolve/main/model.safetensors" in hub) == there
        assert bool(hub) == there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match="model=") as error:
        Policy("tests/other")
    one_line(error, "tests/other", "cannot be loaded")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=4), "BloomForCausalLM has layers that cannot"),
        (Lfm2Config(**SIZES | {"head_dim": 8}, layer_types=["conv", "full_attention"]), r"has layers \(conv\) that"),
        (
            Llama4TextConfig(**SIZES, num_key_value_heads=2, num_local_experts=2),
            r"layers \(chunked_attention\) that",
        ),
    ],
)
def test_a_network_whose_layers_reach_from_one_episode_into_the_next(config: Any, told: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with torch.device("meta"), pytest.raises(ValueError, match=told):
        load_model(str(tmp_path))


def test_nothing_is_dropped_that_the_engine_would_not_drop(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0.1
    build(config, "eager").save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert model.training
    rates = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert len(rates) > 3
    assert set(rates) == {0.0}


def test_names_that_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == str(tmp_path)
    assert resolve_model("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert Path(resolve_model("nano")).name == "nano"


def test_moving_a_batch_keeps_it_whole(episodes: list[Episode]) -> None:
    batch = collate(episodes, policy_version=5)
    moved = batch.to_device(torch.device("cpu"))
    assert isinstance(moved, Batch)
    assert moved.policy_version == 5
    assert moved.ids_T.equal(batch.ids_T)
