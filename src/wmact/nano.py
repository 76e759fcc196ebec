"""The embedded default model, "nano": a Llama of about one million parameters with a tokenizer of its own.

It is small enough to be trained by reinforcement on a laptop in minutes, and an ordinary Hugging Face causal language
model otherwise: every tool that takes a model folder takes it. Its words are those of the Maze, Sokoban and Taxi
environments and nothing else; it cannot speak English. One coordinate such as ``(3,5)`` is one token, so that
simulating a move is a look-up and not arithmetic on digits.

The weights shipped with the package come from ``python -m wmact fit --config configs/warmstart/nano.yaml``.

Other worlds have other words. A nano of their own, with random weights and the vocabulary of triplets that were
collected there, is written by

    python -m wmact nano runs/house/random.jsonl runs/house/walkthrough.jsonl --out runs/house/nano

Its tokenizer is byte-level BPE: frequent words become one token each, and no text is unknown to it. It knows nothing
until it is shown something (`wmact.sft`).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wmact.commands import CommandParser
from wmact.files import new_folder
from wmact.rwml import prediction
from wmact.rwml.triplets import Said, Triplet, read_triplets

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
# For BPE: a tag, a word or a number with the space before it, line ends, blanks, or one other character.
BPE_PIECE = Regex(r"</?[a-z_]+>| ?[\p{L}_]+| ?\p{N}+|\n+|[^\S\n]+| ?[^\s\p{L}\p{N}_]")
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
    return _chatting(core, [*SPECIAL[2:5], *reserved], 2048)  # no decoder: words are joined by single spaces


def learn_tokenizer(texts: Iterable[str], vocabulary: int = 2000, context: int = 2048) -> PreTrainedTokenizerFast:
    """Byte-level BPE of some texts, in the form of a chat: a word with the space before it is one piece at most.

    Args:
        texts: of the world, and the tags that replies have; a piece is learnt if it comes twice.
        vocabulary: most tokens there are; 256 of them are bytes, so that every text can be told.
        context: most tokens of a conversation.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(BPE_PIECE, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator((text.encode(errors="replace").decode() for text in texts), trainer)
    return _chatting(core, SPECIAL[2:5], context)


def _chatting(core: Tokenizer, additional: list[str], context: int) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|end|>",
        additional_special_tokens=additional,
        chat_template=CHAT_TEMPLATE,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def build_model(
    hidden_size: int = 128, layers: int = 5, context: int = 2048, tokenizer: PreTrainedTokenizerFast | None = None
) -> LlamaForCausalLM:
    """A Llama with random weights from torch's global generator; heads of 32, the smallest that vLLM serves."""
    tokenizer = tokenizer or build_tokenizer()
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


def told(triplets: Iterable[Triplet]) -> Iterator[str]:
    """Yield what a nano of that world reads and writes: each action and answer, each beginning, and the tags."""
    for triplet in triplets:
        if triplet.step == 0:
            yield triplet.observation
        yield prediction.question([Said("observation", triplet.next)], triplet.action)
        yield f"<think>{triplet.action}</think> <action>{triplet.action}</action>"
        yield "".join(prediction.written(triplet.next, thought=""))


def main(args: Sequence[str]) -> None:
    """Write a nano with the vocabulary of collected triplets and random weights.

    Raises:
        ValueError: a file is none of triplets, or a number makes no model.
        OSError: a file cannot be read or written.
    """
    parser = CommandParser("nano", "Write a nano with the vocabulary of collected triplets and random weights.")
    parser.add_argument("triplets", nargs="+", type=Path, metavar="FILE", help="files that `collect` wrote")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the model folder that is written")
    parser.add_argument("--vocabulary", type=int, default=2000, help="most tokens there are (2000)")
    parser.add_argument("--hidden_size", type=int, default=128, help="width, a multiple of 32 (128)")
    parser.add_argument("--layers", type=int, default=5, help="layers (5)")
    parser.add_argument("--context", type=int, default=4096, help="most tokens of a conversation (4096)")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (0)")
    options = parser.parse_args(args)
    if options.hidden_size < 1 or options.hidden_size % 32:
        parser.error(f"--hidden_size {options.hidden_size}: a multiple of 32")
    if min(options.layers, options.context) < 1:
        parser.error(f"--layers {options.layers} --context {options.context}: at least 1")
    if options.vocabulary < (least := 256 + len(SPECIAL)):
        parser.error(f"--vocabulary {options.vocabulary}: at least {least}, which are bytes and control tokens")
    with new_folder(options.out, replace=True) as folder:
        found = [triplet for path in options.triplets for triplet in read_triplets(path).triplets]
        tokenizer = learn_tokenizer(told(found), options.vocabulary, options.context)
        torch.manual_seed(options.seed)
        model = build_model(options.hidden_size, options.layers, options.context, tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"{options.out}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens, of {len(found)} triplets")
