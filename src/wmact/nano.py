"""The embedded default model, "nano": a Llama of about one million parameters with a tokenizer of its own.

It is small enough to be trained by reinforcement on a laptop in minutes, and an ordinary Hugging Face causal language
model otherwise: every tool that takes a model folder takes it. Its words are those of the Maze, Sokoban and Taxi
environments and nothing else; it cannot speak English. One coordinate such as ``(3,5)`` is one token, so that
simulating a move is a look-up and not arithmetic on digits.

The weights shipped with the package come from ``python -m wmact fit --config configs/warmstart/nano.yaml``.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "assets" / "nano"
GRID = 13  # coordinates (0,0)…(12,12) are single tokens: room for the 11×11 mazes and for walls around them
SPECIAL = ["<|pad|>", "<|unk|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
WORDS = (
    "<think> </think> <action> </action> (none) (in) (R) (G) (Y) (B) no so up down left right south north east "
    "west pickup dropoff you goal open box boxes target targets floor wall walls taxi passenger destination in at "
    "pad pads R G Y B map row column blocked moved pushed solved stuck done still now next then back try plan "
    "check yes"
).split()
SYMBOLS = list("#.PG*$+@_OX√S|:-,;=?!>") + ["\n"]
NUMBERS = [str(i) for i in range(41)]
RESERVED = 13  # room for words of later environments without changing the shape of the weights
# A coordinate or a word in parentheses, a tag, a word, a number, a line end, or any other visible character.
PIECE = Regex(r"\([^()\s]*\)|</?[a-z]+>|[A-Za-z]+|[0-9]+|\n|[^\s]")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer; spaces separate words and are not tokens, unknown words become ``<|unk|>``."""
    cells = [f"({row},{column})" for row in range(GRID) for column in range(GRID)]
    reserved = [f"<|reserved_{i}|>" for i in range(RESERVED)]
    words = list(dict.fromkeys(SPECIAL + WORDS + SYMBOLS + NUMBERS + cells + reserved))
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|unk|>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(PIECE, "isolated"), pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")]
    )
    return PreTrainedTokenizerFast(  # no decoder: words are joined by single spaces
        tokenizer_object=core,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|end|>",
        additional_special_tokens=[*SPECIAL[2:5], *reserved],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def build_model(hidden_size: int = 128, layers: int = 5, context: int = 2048) -> LlamaForCausalLM:
    """A Llama with random weights from torch's global generator; heads of 32, the smallest that vLLM serves."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        head_dim=32,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
