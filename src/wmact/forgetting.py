"""What a model has forgotten: general knowledge and plain text, before and after a training, and how far it has moved.

    python -m wmact forgetting runs/telecom/smollm2-rwml --start smollm2
    python -m wmact forgetting smollm2 --out smollm2.json

Everything it asks is on this machine. The text is Python's own reference manual, one passage a topic, as the standard
library ships it (`pydoc_data`). The questions are about countries, four answers each, from the package countryinfo
(extra `forgetting`): what their capitals are and where in the world they lie. Both are modest: they tell a model that
has lost its general knowledge from one that has not, and are no benchmark to compare models by.

Intervals are 95 % by bootstrap over passages and questions; with --start both models are resampled together.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import operator
import platform
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from wmact.collate import collate
from wmact.commands import CommandParser
from wmact.files import new_file
from wmact.models import KNOWN, Policy, load_tokenizer
from wmact.statistics import Estimate, bootstrap
from wmact.types import Episode, Turn
from wmact.view import columns

PASSAGE = 1000  # characters
TOKENS_AT_ONCE = 4096
INSTALL = "pip install -e '.[forgetting]'"


class Question(NamedTuple):
    """A question with four answers; `right` is the number of the right one."""

    kind: str
    text: str
    answers: tuple[str, ...]
    right: int


class Scored(NamedTuple):
    """What one model makes of it all.

    Attributes:
        nll: (passages,) nats of each passage.
        tokens: (passages,) tokens of each that were predicted.
        correct: kind → (questions,) of 0 and 1.
    """

    nll: np.ndarray
    tokens: np.ndarray
    correct: dict[str, np.ndarray]


# What is asked


def passages() -> list[str]:
    """The beginnings of all topics of Python's reference manual that are long enough."""
    return [text[:PASSAGE] for _, text in sorted(topics.items()) if len(text) >= PASSAGE]


def questions() -> list[Question]:
    """What the capital of each country is, among capitals of its continent, and which part of the world it is in.

    A capital that is called like its country is not asked for.

    Raises:
        ModuleNotFoundError: countryinfo is not installed.
    """
    found = importlib.util.find_spec("countryinfo")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"the questions come with the package countryinfo: {INSTALL}", name="countryinfo")
    files = sorted((Path(found.origin).parent / "data").glob("*.json"))
    countries = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    known = ("capital", "region", "subregion")
    countries = [each for each in countries if all(each.get(key) and isinstance(each[key], str) for key in known)]
    asked: list[Question] = []
    for country in countries:
        name, capital, region = country["name"], country["capital"], country["region"]
        capitals = {each["capital"] for each in countries if each["region"] == region}
        if not {*_words(name)} & {*_words(capital)}:
            text = f"Question: What is the capital of {name}?\nAnswer:"
            asked.append(_question("capital", text, capital, sorted(capitals - {capital}), len(asked)))
    subregions = {each["subregion"] for each in countries}
    for country in countries:
        text = f"Question: In which part of the world is {country['name']}?\nAnswer:"
        others = sorted(subregions - {country["subregion"]})
        asked.append(_question("region", text, country["subregion"], others, len(asked)))
    return asked


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _question(kind: str, text: str, answer: str, others: Sequence[str], number: int) -> Question:
    """With three of the others and the answer in an order that its number gives."""
    draw = np.random.default_rng(np.random.SeedSequence([number]))
    answers = [answer, *draw.choice(others, 3, replace=False).tolist()]
    order = draw.permutation(4).tolist()
    return Question(kind, text, tuple(answers[i] for i in order), order.index(0))


# What a model makes of it


def score(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], asked: Sequence[Question]
) -> Scored:
    """Read all passages and answer all questions.

    The answer is the one of highest log-probability a character, after the question.
    """
    whole = [tokenizer.encode(text) for text in texts]
    nll = -log_probabilities(policy, [(ids[:1], ids[1:]) for ids in whole])
    pairs = [
        (tokenizer.encode(question.text), tokenizer.encode(f" {answer}", add_special_tokens=False))
        for question in asked
        for answer in question.answers
    ]
    given = log_probabilities(policy, pairs).reshape(-1, 4)
    given /= [[len(answer) for answer in question.answers] for question in asked]
    right = given.argmax(axis=1) == [question.right for question in asked]
    kinds = np.array([question.kind for question in asked])
    correct = {kind: right[kinds == kind].astype(float) for kind in dict.fromkeys(kinds.tolist())}
    return Scored(nll, np.array([len(ids) - 1 for ids in whole]), correct)


@torch.no_grad()
def log_probabilities(policy: Policy, pairs: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
    """(pairs,) float64: log-probability of the second ids of each pair after the first."""
    episodes = []
    for n, (before, after) in enumerate(pairs):
        episode = Episode("text", n, str(n), 0, 0, 0, ids=before + after, logprobs=[0.0] * len(before + after))
        episode.turns = [Turn(len(before), len(episode.ids), "", "valid")] if after else []
        episodes.append(episode)
    device = next(policy.parameters()).device
    sums = []
    for batch in collate(episodes).split(TOKENS_AT_ONCE):
        logprobs_S, _ = policy(batch.to_device(device))
        sum_E = torch.zeros(len(batch.group_E), dtype=torch.float64)
        sums.append(sum_E.index_add_(0, batch.episode_S, logprobs_S.double().cpu()))
    return torch.cat(sums).numpy()


def parameter_change(model: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, Any]:
    """How far weights have moved: ‖w - w₀‖ / ‖w₀‖ of all together, of each kind of tensor and of each tensor.

    A kind is a name without the number of its layer. `unchanged` is the share of single weights that are as they were.

    Raises:
        ValueError: they are not weights of one architecture.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in weights.items()} for weights in (model, start)]
    for name in [*shapes[0], *shapes[1]]:
        here, there = (each.get(name, "missing") for each in shapes)
        if here != there:
            raise ValueError(f"--start is another architecture: {name} is {here} in the model and {there} in its start")
    squares: dict[str, tuple[float, float]] = {}
    unchanged = 0
    for name, before in start.items():
        moved = model[name].double() - before.double()
        squares[name] = float((moved**2).sum()), float((before.double() ** 2).sum())
        unchanged += int((moved == 0).sum())
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in squares:
        kinds[re.sub(r"\.\d+\.", ".*.", name)].append(name)

    def relative(names: Sequence[str]) -> float:
        moved, before = (sum(squares[name][i] for name in names) for i in (0, 1))
        return math.sqrt(moved / before) if before else math.inf if moved else 0.0

    return {
        "all": relative(list(squares)),
        "unchanged": unchanged / sum(before.numel() for before in start.values()),
        "kinds": {kind: relative(names) for kind, names in kinds.items()},
        "tensors": {name: relative([name]) for name in squares},
    }


# Figures


def perplexity(scored: Scored, chosen: np.ndarray) -> float:
    """The perplexity of some passages, all their tokens together."""
    return math.exp(scored.nll[chosen].sum() / scored.tokens[chosen].sum())


def accuracy(kind: str, scored: Scored, chosen: np.ndarray) -> float:
    """The share of some questions of a kind that was answered rightly."""
    return float(scored.correct[kind][chosen].mean())


def compare(scored: Scored, start: Scored | None) -> dict[str, dict[str, Estimate]]:
    """Figure → of the model; with a start also of that, and the change: a ratio of perplexities, or a difference."""
    figures = {"perplexity": _estimates(perplexity, operator.truediv, len(scored.nll), scored, start)}
    for kind, correct in scored.correct.items():
        right = functools.partial(accuracy, kind)
        figures[f"accuracy/{kind}"] = _estimates(right, operator.sub, len(correct), scored, start)
    return figures


def _estimates(
    figure: Callable[[Scored, np.ndarray], float],
    change: Callable[[float, float], float],
    number: int,
    scored: Scored,
    start: Scored | None,
) -> dict[str, Estimate]:
    found = {"model": bootstrap(lambda chosen: figure(scored, chosen), number)}
    if start is not None:
        found["start"] = bootstrap(lambda chosen: figure(start, chosen), number)
        found["change"] = bootstrap(lambda chosen: change(figure(scored, chosen), figure(start, chosen)), number)
    return found


def table(figures: dict[str, dict[str, Estimate]], change: dict[str, Any] | None) -> str:
    """Everything, a line each."""
    rows = [["", *next(iter(figures.values()))]]
    for name, row in figures.items():
        style = "{:,.4g} [{:,.4g}, {:,.4g}]" if name == "perplexity" else "{:.3f} [{:.3f}, {:.3f}]"
        signed = "× {:.4f} [{:.4f}, {:.4f}]" if name == "perplexity" else "{:+.3f} [{:+.3f}, {:+.3f}]"
        rows.append([name, *((signed if of == "change" else style).format(*found) for of, found in row.items())])
    if change is not None:
        rows.append(["weights, relative L2", "", "", f"{change['all']:.3g}"])
        rows.append(["weights, unchanged", "", "", f"{change['unchanged']:.3f}"])
        most = sorted(change["kinds"].items(), key=lambda item: -item[1])
        rows += [[f"  {kind}", "", "", f"{value:.3g}"] for kind, value in most]
    return "\n".join(columns(rows))


def main(args: Sequence[str]) -> None:
    """Print what a model knows, and what it has forgotten.

    Raises:
        ValueError: a model cannot be loaded, or the two are not of one architecture.
        ModuleNotFoundError: countryinfo is not installed.
    """
    parser = CommandParser("forgetting", __doc__)
    parser.add_argument("model", help=f"a model folder, a hub id, {KNOWN}")
    parser.add_argument("--start", help="what it was trained from: another such")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything there too, as JSON")
    options = parser.parse_args(args)
    texts, asked = passages(), questions()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: list[Scored] = []
    weights: list[dict[str, Tensor]] = []
    for name in [options.model, options.start] if options.start else [options.model]:
        policy = Policy(name).eval()
        weights.append({n: parameter.detach() for n, parameter in policy.lm.named_parameters()})
        change = parameter_change(*weights) if len(weights) == 2 else None  # before minutes are spent in vain
        found.append(score(policy.to(device), load_tokenizer(name), texts, asked))
        del policy
    figures = compare(found[0], found[1] if options.start else None)
    print(table(figures, change))
    print(f"{len(texts)} passages; {len(asked)} questions of four answers each, so 0.25 is chance", flush=True)
    if options.out:
        sources = "\n".join(itertools.chain(texts, *([each.text, *each.answers] for each in asked)))
        record = {
            "model": options.model,
            "start": options.start,
            "passages": len(texts),
            "questions": {kind: len(correct) for kind, correct in found[0].correct.items()},
            "python": platform.python_version(),
            "countryinfo": importlib.metadata.version("countryinfo"),
            "sha256": hashlib.sha256(sources.encode()).hexdigest(),
            "figures": {name: {of: figure._asdict() for of, figure in row.items()} for name, row in figures.items()},
            "weights": change,
        }
        with new_file(options.out) as file:
            file.write((json.dumps(record, indent=1) + "\n").encode())
