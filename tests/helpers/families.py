"""Tiny models of the families: their own chat templates, special tokens and tokenization, with a small vocabulary.

Templates are the models' own (`tests/templates`). The steps of tokenization are those of transformers' class for the
family; Llama 3 has none and is written down here. Special tokens have the names and flags that the models publish.
"""

import json
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaTokenizer,
    LlamaConfig,
    LlamaTokenizer,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen3Config,
)

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
CORPUS = [
    "you are at the goal, user and assistant go up down left right model #####\n#P..#\n\n#####  end system\n",
    "the wall is to the left of you; then think and act, no instruction is needed here, im_end im_start turn\n",
]
LLAMA3_PIECES = (  # of its tokenizer.json
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def special(*words: str, **flags: Any) -> list[AddedToken]:
    return [AddedToken(word, **({"normalized": False, "special": True} | flags)) for word in words]


def byte_level() -> Tokenizer:
    """Byte-pair encoding of bytes, as GPT-2's."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return core


def _trained(core: Tokenizer, first: list[str]) -> dict[str, Any]:
    """Vocabulary and merges, with `first` before the others."""
    state = json.loads(core.to_str())["model"]
    words = [*first, *(word for word in state["vocab"] if word not in first)]
    return {"vocab": {word: i for i, word in enumerate(words)}, "merges": [tuple(pair) for pair in state["merges"]]}


def _sentence_piece(first: list[str]) -> dict[str, Any]:
    """Byte-pair encoding of characters, spaces written as ▁, and of the bytes of what else there is."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(Regex("\n"), "isolated")
    alphabet = [c for c in string.printable if c != " "] + ["▁"]
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=200, initial_alphabet=alphabet, show_progress=False)
    )
    return _trained(core, [*first, *(f"<0x{byte:02X}>" for byte in range(256))])


def _template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def llama3() -> PreTrainedTokenizerFast:
    """Llama 3.2: its template tells the date, and its tokenizer adds a beginning of text of its own."""
    core = byte_level()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words = [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"),
        *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
    ]
    core.add_special_tokens(special(*words))
    core.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[(words[0], core.token_to_id(words[0]))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=words[0], eos_token="<|eot_id|>", chat_template=_template("llama3_2")
    )


def _qwen(template: str, *tags: str) -> PreTrainedTokenizerFast:
    """Control tokens that are special, and tags that are not."""
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_start|>", "<|video_pad|>"]
    tokenizer = Qwen2Tokenizer(
        **_trained(byte_level(), []), eos_token="<|im_end|>", pad_token=words[0], chat_template=_template(template)
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special(*words)})
    tokenizer.add_tokens(special("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|file_sep|>", *tags, special=False))
    return tokenizer


def qwen2_5() -> PreTrainedTokenizerFast:
    """Qwen2.5: a system text of its own."""
    return _qwen("qwen2_5")


def qwen3() -> PreTrainedTokenizerFast:
    """Qwen3: its template drops earlier thinking; the tags of thinking are single tokens."""
    return _qwen("qwen3", "<tool_response>", "</tool_response>", "<think>", "</think>")


def gemma() -> PreTrainedTokenizerFast:
    """Gemma 3: the model's role is called model; runs of white space are added tokens that control nothing."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    runs = ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "<table>", "<unused0>", "[multimodal]"]
    tokenizer = GemmaTokenizer(
        **_sentence_piece([*words, *runs]), chat_template=_template("gemma3"), add_bos_token=True
    )
    tokenizer.add_tokens(special(*runs, special=False))
    tokenizer.add_special_tokens({"additional_special_tokens": special(*words[5:])})
    return tokenizer


def phi3() -> PreTrainedTokenizerFast:
    """Phi-3, on Llama 2's vocabulary: control tokens swallow white space after them, the template's line ends too."""
    tokenizer = LlamaTokenizer(
        **_sentence_piece(["<unk>", "<s>", "</s>"]), eos_token="<|endoftext|>", pad_token="<|endoftext|>",
        chat_template=_template("phi3"), add_bos_token=False,
    )  # fmt: skip
    words = ["<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [*special("</s>", *words, rstrip=True)]})
    return tokenizer


FAMILIES = {"llama3": llama3, "qwen2_5": qwen2_5, "qwen3": qwen3, "gemma": gemma, "phi3": phi3}
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
CONFIGS: dict[str, Any] = {
    "llama3": (LlamaConfig, {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen2_5": (Qwen2Config, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma": (Gemma3TextConfig, {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 512}),
    "phi3": (Phi3Config, {"tie_word_embeddings": False, "pad_token_id": 0}),
}


def write_model(name: str, folder: Path) -> str:
    """Write a 2-layer model of the family with random weights, and its tokenizer."""
    tokenizer = FAMILIES[name]()
    kind, settings = CONFIGS[name]
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = kind(**SIZES | ids | settings, vocab_size=len(tokenizer))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
