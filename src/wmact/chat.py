"""Conversation → token ids, append-only.

The tokenizer's chat template is rendered once, on a dummy conversation; what stands around the dummy texts is then
put around the real ones. What the model sampled is never rendered or tokenised again, so a template that rewrites the
past (Qwen3's drops earlier thinking) cannot make the ids of the training differ from those that were sampled.

The text of an environment cannot become a control token, whatever it holds. It is encoded by a copy of the tokenizer in
which every added token has another name, an alias holding a Unicode noncharacter; that character is taken out of all
text. Template pieces are written with aliases, so that one pass encodes pieces and text as rendering them together
would: also where tokens merge over the border between the two.
"""

import json
import re
from datetime import date
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError
from tokenizers import Tokenizer

from wmact.protocol import TAG

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "\uffff"  # a noncharacter: never part of a text
ALIAS = re.compile(f"{MARK}(\\d+);")
DUMMY = ("wmactasks", "wmactreplies", "wmactinsists")


class Following(NamedTuple):
    """Ids that follow a reply; ids[start:end] are those of the text itself, without the template around it."""

    ids: list[int]
    start: int
    end: int


class Chat:
    """The token ids of one tokenizer's conversations.

    Args:
        tokenizer: a tokenizer of transformers with a fast backend and a chat template.

    Attributes:
        end_of_turn: id of the token that ends a reply.
        stop_token_ids: ids that end a reply: `end_of_turn`, and the tokenizer's end of sequence where it differs.

    Raises:
        ValueError: the tokenizer is not a fast one, has no chat template, or one that cannot be used.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{type(tokenizer).__name__} is not a fast tokenizer: give a model with a tokenizer.json")
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer {tokenizer.name_or_path!r} has no chat template: "
                "use an instruction-tuned model, or give a template: --model.chat_template FILE, or plain for ours"
            )
        self._tokenizer = tokenizer
        control = {i: token for i, token in backend.get_added_tokens_decoder().items() if _controls(token.content)}
        self._encoder = _renamed(backend, {token.content: i for i, token in control.items()})
        special = {*tokenizer.all_special_ids, *(i for i, token in control.items() if token.special)}
        self._hidden = {i for i in special if not TAG.fullmatch(str(tokenizer.convert_ids_to_tokens(i)))}

        rendered = _render(tokenizer, add_generation_prompt=True)
        aliased = _aliased(rendered, {token.content: i for i, token in control.items()})
        pieces = re.fullmatch("(.*){}(.*){}(.*){}(.*)".format(*DUMMY), aliased, re.DOTALL)
        if pieces is None or any(aliased.count(text) != 1 for text in DUMMY):
            raise _unusable("it does not show each text of a conversation once and in order")
        self._start, answer, following, self._ask = pieces.groups()
        end = ALIAS.search(following)
        if end is None:
            raise _unusable("no special token ends a reply")
        if rendered == _render(tokenizer, add_generation_prompt=False) and self._ask.strip() != answer.strip():
            raise _unusable("it ignores add_generation_prompt")
        self._next = following[end.start() :]
        self.end_of_turn = int(end[1])
        if self._encode(aliased) != tokenizer.encode(rendered, add_special_tokens=False):
            raise _unusable("its special tokens cannot be told from ordinary text")
        eos = tokenizer.eos_token_id
        self.stop_token_ids: tuple[int, ...] = (self.end_of_turn,)
        if isinstance(eos, int) and eos != self.end_of_turn:
            self.stop_token_ids += (eos,)

    def open(self, text: str) -> list[int]:
        """Ids of a conversation's beginning, with `text` as the user's, up to where the model starts writing."""
        return self._encode(self._start + _harmless(text) + self._ask)

    def reply_to(self, text: str) -> list[int]:
        """Ids to append after a sampled reply, which holds its end-of-turn token, up to where the model writes."""
        return self.following(text).ids

    def following(self, text: str, hint: str = "") -> Following:
        """The same for a hint and a text, and which of the ids are wholly the text's."""
        # The end of turn is encoded too and dropped again: what follows it is then not the beginning of a text, where
        # some tokenizers add a space.
        before, text = self._next + _harmless(hint), _harmless(text)
        encoded = self._encoder.encode(before + text + self._ask, add_special_tokens=False)
        begins, ends = len(before), len(before) + len(text)  # in characters, as a token's offsets are
        within = [i for i, (start, end) in enumerate(encoded.offsets) if begins <= start < end <= ends]
        start, end = (within[0], within[-1] + 1) if within else (1, 1)
        return Following(list(encoded.ids)[1:], start - 1, end - 1)

    def encode(self, text: str) -> list[int]:
        """Ids of a reply written in the model's place, such as a demonstration; control tokens in it are real."""
        # After a control token, as a reply is: where a text begins, some tokenizers add a space.
        end = str(self._tokenizer.convert_ids_to_tokens(self.end_of_turn))
        return list(self._tokenizer.encode(end + text, add_special_tokens=False))[1:]

    def quote(self, text: str) -> list[int]:
        """Ids of others' text that stands inside a reply written in the model's place; no token of it is a control."""
        return self._encode(_alias(self.end_of_turn) + _harmless(text))[1:]

    def decode(self, ids: list[int]) -> str:
        """A reply's text without special tokens, except tags such as ``<think>``."""
        shown = [i for i in ids if i not in self._hidden]
        text = self._tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _encode(self, text: str) -> list[int]:
        return list(self._encoder.encode(text, add_special_tokens=False).ids)


def _controls(content: str) -> bool:
    """Added tokens are control tokens, but for the runs of white space of some vocabularies (Gemma, GPT-NeoX)."""
    return bool(content.replace("▁", " ").strip())


def _alias(token_id: int) -> str:
    return f"{MARK}{token_id};"


def _aliased(rendered: str, control: dict[str, int]) -> str:
    names = "|".join(map(re.escape, sorted(control, key=len, reverse=True)))
    return re.sub(names, lambda match: _alias(control[match[0]]), rendered) if control else rendered


def _harmless(text: str) -> str:
    """Text in which no alias can occur, and no lone surrogate, which tokenizers refuse."""
    return text.replace(MARK, "").encode(errors="replace").decode()


def _renamed(backend: Tokenizer, control: dict[str, int]) -> Tokenizer:
    """A copy of the tokenizer in which control tokens are known by their aliases only; all ids stay the same."""
    state: dict[str, Any] = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        if token["content"] in control:
            token |= {"content": _alias(token["id"]), "normalized": False, "single_word": False}
    model = state["model"]
    names = {name: _alias(i) for name, i in control.items()}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(word, word): i for word, i in model["vocab"].items()}
    else:  # Unigram: the position is the id
        model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:  # merges that spell a control token would lead to an id that has its alias now
        pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & names.keys()]
    return Tokenizer.from_str(json.dumps(state | {"post_processor": None, "truncation": None, "padding": None}))


def _render(tokenizer: "PreTrainedTokenizerBase", add_generation_prompt: bool) -> str:
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": text} for role, text in zip(roles, DUMMY, strict=True)]
    try:
        rendered = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            strftime_now=date(2025, 1, 1).strftime,  # a prompt that tells today's date could not be repeated tomorrow
        )
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise _unusable(f"it fails on user, assistant, user ({' '.join(str(error).split())})") from error
    assert isinstance(rendered, str)
    return rendered


def _unusable(why: str) -> ValueError:
    return ValueError(f"the tokenizer's chat template cannot be used: {why}; give the model folder another template")
