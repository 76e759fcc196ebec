"""Find out, before any training, whether a reward has a signal on a file of triplets, and where its threshold is.

    python -m wmact calibrate --triplets runs/rwml/maze.jsonl
    python -m wmact calibrate --triplets runs/rwml/maze.jsonl --embedder ./Qwen3-Embedding-0.6B --embedder http://host:8000/v1
    python -m wmact calibrate --config configs/rwml/maze.yaml --groups 32

For each distance (every --embedder, ROUGE-L, fields of JSON) and threshold: how often it accepts what says the same as
the truth (reordered, reworded, and pairs written by hand), and how often what does not (what the world said last, the
answer to another action of the same verb, one number changed, one state flipped, one thing left out). Then, how much of
the truth can be known from the history at all, and how well "what the world says moved" tells which actions had an
effect, without what an observation adds around it.
With a configuration, all this is of the triplets that it trains on, and its start model predicts some of them: groups
whose samples are all right or all wrong teach GRPO nothing, at a threshold or by the configuration's own reward. In the
end a threshold is recommended, or it says that there is no signal, and why.

A word of the truth is knowable if it stands in the history or the action, or in the truths of two other games, so that
it could be learnt; a thing (mug 1, #W2611340, (3,4)) only if it stands in the history or the action.

The table is printed; all figures are written as JSON to --out. Options that are not listed below are those of `fit`.
"""

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wmact.commands import CommandParser
from wmact.files import new_file
from wmact.rwml.data import PredictionData
from wmact.rwml.distances import BUNDLED, Distance, Exact, JSONFields, RougeL, SentenceEmbedding, ServedEmbedding
from wmact.rwml.nearmiss import GROSS, NEAR_MISSES, Pairs, all_pairs, by_hand, said_before
from wmact.rwml.offline import closing_engine, predict, provenance, read_prediction_data, training_env
from wmact.rwml.state import agree, as_json, entities
from wmact.rwml.triplets import Triplet, read_triplets
from wmact.view import columns

THRESHOLDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
MOST_GROSS = 0.05
"""A threshold is usable if it accepts at most this share of each kind of gross error …"""
LEAST_RIGHT = 0.5
"""… and semantic if it accepts at least this share of each kind of paraphrases. So many things must be knowable."""
MOST_FLAT = 0.9
"""With more groups than this without variance, there is next to nothing to learn from."""
FEW_PAIRS = 30
"""One error in so many is below `MOST_GROSS`; in fewer, chance decides."""
WORD = re.compile(r"[\w#.-]+")


def rates(distance: Distance, pairs: Sequence[Pairs]) -> dict[str, list[dict[str, float]]]:
    """For each kind of pairs, at each threshold: the share accepted, alone and with the guard of `SameState`."""
    found = {}
    for kind in pairs:
        between = distance(kind.others, kind.truths)
        guarded = [agree(a, b) for a, b in zip(kind.others, kind.truths, strict=True)]
        found[kind.name] = [
            {
                "threshold": threshold,
                "accepted": mean([each < threshold for each in between]),
                "guarded": mean([each < threshold and kept for each, kept in zip(between, guarded, strict=True)]),
            }
            for threshold in THRESHOLDS
        ]
    return found


def mean(values: Sequence[float]) -> float:
    """The mean, NaN of nothing."""
    return statistics.fmean(values) if values else math.nan


def recommend(table: dict[str, list[dict[str, float]]], alike: Sequence[str]) -> dict[str, Any] | None:
    """Return the threshold that accepts most paraphrases of those that tell gross errors, the lowest of several.

    Args:
        table: of `rates`.
        alike: kinds of pairs that say the same.

    Returns:
        It, and what it accepts of each kind of paraphrases, gross errors and near-misses, of these with `SameState`
        too; None where every threshold accepts too many gross errors.
    """
    best: dict[str, Any] | None = None
    for i, threshold in enumerate(THRESHOLDS):
        at = {kind: rows[i]["accepted"] for kind, rows in table.items() if not math.isnan(rows[i]["accepted"])}
        right, gross, near = ({k: at[k] for k in kinds if k in at} for kinds in (alike, GROSS, NEAR_MISSES))
        worst = max(gross.values(), default=math.nan)
        if worst <= MOST_GROSS and (best is None or mean([*right.values()]) > mean([*best["paraphrases"].values()])):
            best = {"threshold": threshold, "paraphrases": right, "gross_errors": gross, "near_misses": near}
            best["guarded"] = {kind: table[kind][i]["guarded"] for kind in near}
    return best


def knowable(triplets: Sequence[Triplet]) -> dict[str, float]:
    """Return the shares of words and of things of the truths that can be known, means over triplets."""
    games: dict[str, set[str]] = defaultdict(set)
    for each in triplets:
        for word in words(each.next):
            games[word].add(each.game)
    of_words, of_things, whole = [], [], []
    for each in triplets:
        before = "\n".join([*(said.text for said in each.history), each.action])
        seen, there = words(before), words(each.next)
        if there:
            of_words.append(mean([word in seen or len(games[word] - {each.game}) >= 2 for word in there]))
        if things := entities(each.next):
            known = things & entities(before)
            of_things.append(len(known) / len(things))
            whole.append(known == things)
    return {"words": mean(of_words), "things": mean(of_things), "all_things": mean(whole)}


def words(text: str) -> set[str]:
    """The words of a text, lower-cased."""
    return {word.strip(".-") for word in WORD.findall(text.lower())} - {""}


def efficacy(distance: Distance, moves: Sequence[tuple[Triplet, str]]) -> list[dict[str, float]]:
    """Compare, at each threshold, "what the world says moved by more" with what the engine says of the action's effect.

    Args:
        moves: triplets, each with what the world said before it.
    """
    triplets = [each for each, _ in moves]
    moved = distance([before for _, before in moves], [each.next for each in triplets])
    found = []
    for threshold in (0.0, *THRESHOLDS):
        told = [distance > threshold for distance in moved]
        both = sum(a and each.effective for a, each in zip(told, triplets, strict=True))
        found.append(
            {
                "threshold": threshold,
                "precision": both / sum(told) if any(told) else math.nan,
                "recall": both / n if (n := sum(each.effective for each in triplets)) else math.nan,
            }
        )
    return found


def groups(distance: Distance, predictions: Sequence[tuple[Triplet, list[str | None]]]) -> list[dict[str, float]]:
    """What the start model's samples would earn at each threshold, and how many groups have no variance."""
    asked = [(text, triplet.next) for triplet, texts in predictions for text in texts if text is not None]
    known = dict(zip(asked, distance([a for a, _ in asked], [b for _, b in asked]), strict=True)) if asked else {}
    found = []
    for threshold in THRESHOLDS:
        rewards = [
            [text is not None and known[text, triplet.next] < threshold for text in texts]
            for triplet, texts in predictions
        ]
        found.append(
            {
                "threshold": threshold,
                "reward": mean([right for group in rewards for right in group]),
                "zero_variance": mean([all(group) or not any(group) for group in rewards]),
            }
        )
    return found


def verdict(result: dict[str, Any]) -> list[str]:
    """Say in plain words what the figures come to, distance by distance."""
    lines = []
    for name, found in result["distances"].items():
        best = found["recommended"]
        if best is None:
            told = each_of({kind: found["accepted"][kind][0]["accepted"] for kind in GROSS})
            lines.append(f"{name}: no signal: it does not tell gross errors. At its lowest threshold it accepts {told}")
            continue
        alike, gross, near = (each_of(best[what]) for what in ("paraphrases", "gross_errors", "near_misses"))
        line = f"{name}: τ_d = {best['threshold']:g} accepts {alike}; of gross errors {gross}"
        if strict := {kind: part for kind, part in best["paraphrases"].items() if part < LEAST_RIGHT}:
            line += f"; strict: a right prediction in other words than the world's counts as wrong ({each_of(strict)})"
        if max(best["near_misses"].values(), default=0) > 0.5:
            line += f"; it takes near-misses for right ({near}): AND it with wmact.rwml.SameState"
            if blind := {kind: part for kind, part in best["guarded"].items() if part > 0.5}:
                line += f", which does not see all of them ({each_of(blind)})"
        sampled = {row["threshold"]: row for row in found.get("start_model", [])}.get(best["threshold"])
        if sampled and sampled["zero_variance"] > MOST_FLAT:
            line += (
                f"; but no signal to start from: {sampled['zero_variance']:.0%} of the start model's groups have no "
                f"variance (its mean reward is {sampled['reward']:.2f})"
            )
        lines.append(line)
    own = result.get("start_model", {}).get("own_reward", {})
    if own.get("zero_variance", 0) > MOST_FLAT:
        lines.append(
            f"the configuration's own reward: no signal to start from: {own['zero_variance']:.0%} of the start model's "
            f"groups have no variance (its mean is {own['reward']:.2f})"
        )
    few = min((result["pairs"].get(kind, 0) for kind in GROSS), default=0)
    if few < FEW_PAIRS:
        lines.append(f"only {few} pairs of a kind of gross errors: collect more before you believe any of this")
    things = result["knowable"]["things"]
    if things < LEAST_RIGHT:
        lines.append(
            f"little signal whatever the distance: only {things:.0%} of the things that the truths name stand in the "
            "history or the action; the others could only be guessed"
        )
    return lines


def table(result: dict[str, Any]) -> str:
    """Everything, a line each."""
    kinds = list(result["pairs"])
    lines = [f"{result['triplets']} triplets of {result['games']} games", ""]
    rows = [["accepted", "τ_d", *kinds], ["", "", *(f"of {result['pairs'][kind]}" for kind in kinds)]]
    for name, found in result["distances"].items():
        best = (found["recommended"] or {}).get("threshold")
        for i, threshold in enumerate(THRESHOLDS):
            cells = [share(found["accepted"][kind][i]["accepted"]) for kind in kinds]
            rows.append([f"{name} ←" if threshold == best else name, f"{threshold:g}", *cells])
            if threshold == best:
                guarded = [share(found["accepted"][kind][i]["guarded"]) for kind in kinds]
                rows.append(["  and SameState", f"{threshold:g}", *guarded])
    lines += columns(rows)
    known = result["knowable"]
    lines += [
        "",
        f"knowable: {share(known['words'])} of the words, {share(known['things'])} of the things that truths name; "
        f"all things of {share(known['all_things'])} of the truths",
    ]
    for name, found in result["distances"].items():
        if found.get("cut"):
            lines.append(f"{name} reads {found['longest']} tokens: {found['cut']} texts were longer and were cut")
    lines += ["", "an action is effective if what the world says moved by more than τ, against the engine's word"]
    rows = [
        [name, f"{row['threshold']:g}", share(row["precision"]), share(row["recall"])]
        for name, found in result["distances"].items()
        for row in found["efficacy"]
    ]
    lines += columns([["", "τ", "precision", "recall"], *rows])
    if sampled := result.get("start_model"):
        lines += [
            "",
            f"start model {sampled['model']}: {sampled['groups']} groups of {sampled['samples']}, without a prediction "
            f"{share(sampled['missing'])}",
        ]
        rows = [
            [name, f"{row['threshold']:g}", f"{row['reward']:.3f}", share(row["zero_variance"])]
            for name, found in result["distances"].items()
            for row in found["start_model"]
        ]
        own = sampled["own_reward"]
        rows.append(["the configuration's own", "", f"{own['reward']:.3f}", share(own["zero_variance"])])
        lines += columns([["", "τ_d", "mean reward", "groups without variance"], *rows])
    return "\n".join([*lines, "", *result["verdict"]])


def each_of(shares: dict[str, float]) -> str:
    """Shares of several kinds, in words."""
    return ", ".join(f"{share(value)} of {kind}" for kind, value in shares.items()) or "nothing"


def share(value: float) -> str:
    """A share in per cent, – where there is none."""
    return "–" if math.isnan(value) else f"{value:.0%}"


def distance_of(embedder: str) -> Distance:
    """The distance of an embedder: "minilm", a folder, or the address of an API, with the model's name after a #."""
    if "://" in embedder:
        url, _, model = embedder.partition("#")
        return ServedEmbedding(url, model or None)
    return SentenceEmbedding(embedder)


def main(args: Sequence[str]) -> None:
    """Print the table, and write it as JSON.

    Raises:
        ValueError: the file, the configuration or an embedder cannot be used.
        OSError: a file cannot be read or written, or a server does not answer.
    """
    parser = CommandParser("calibrate", __doc__)
    parser.add_argument("--triplets", metavar="FILE", help="file of triplets (that of the configuration)")
    parser.add_argument(
        "--embedder", action="append", metavar="NAME", help="minilm, a folder, URL#MODEL, or none (minilm)"
    )
    parser.add_argument("--pairs", type=int, default=300, help="most pairs of a kind (300)")
    parser.add_argument("--groups", type=int, default=32, help="triplets that the start model predicts (32)")
    parser.add_argument("--samples", type=int, default=8, help="predictions of each (8)")
    parser.add_argument("--seed", type=int, default=0, help="of which pairs are made (0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON of all figures (FILE.calibration.json)")
    options, fit = parser.parse_known_args(args)
    for name in ("pairs", "groups", "samples"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: at least 1")
    if not options.triplets and not fit:
        parser.error("give --triplets FILE, or --config CONFIG whose data is wmact.rwml.PredictionData")
    fit += ["--data.triplets", options.triplets] if fit and options.triplets else []
    data = read_prediction_data(fit) if fit else None
    path = Path(data.triplets if data else options.triplets)
    triplets = tuple(training_env(data).triplets) if data else read_triplets(path).triplets
    embedders = [name for name in options.embedder or [BUNDLED] if name != "none"]
    distances: dict[str, Distance] = {name: distance_of(name) for name in embedders}
    distances |= {"ROUGE-L": RougeL(), "exact": Exact()}
    if any(as_json(each.next) is not None for each in triplets):
        distances["JSON fields"] = JSONFields()
    alike, unlike = by_hand()
    pairs = [*all_pairs(triplets, options.pairs, options.seed), alike, unlike]
    moves = [(each, last) for each, last in zip(triplets, said_before(triplets), strict=True) if last is not None]
    chosen = [moves[i] for i in np.random.default_rng(options.seed).permutation(len(moves))[: options.pairs]]
    result: dict[str, Any] = {
        "provenance": provenance("calibrate", args),
        "triplets": len(triplets),
        "games": len({(each.env, each.game) for each in triplets}),
        "pairs": {kind.name: len(kind.truths) for kind in pairs},
        "knowable": knowable(triplets),
        "distances": {},
    }
    for distance in distances.values():
        distance(["a"], ["b"])  # what is not there is told before predictions are sampled
    predictions = None
    if data is not None:
        levels = np.random.default_rng(options.seed).permutation(len(training_env(data).triplets))[: options.groups]
        predictions, own = sampled_predictions(data, levels.tolist(), options.samples)
        missing = mean([text is None for _, texts in predictions for text in texts])
        asked = {"model": data.model, "groups": len(predictions), "samples": options.samples}
        result["start_model"] = asked | {"missing": missing, "own_reward": own}
    for name, distance in distances.items():
        result["distances"][name] = measured(distance, pairs, chosen, predictions)
    result["verdict"] = verdict(result)
    out = options.out or path.with_suffix(".calibration.json")
    write_json(out, result)
    print(table(result), flush=True)
    print(f"\nall figures: {out}", flush=True)


def measured(
    distance: Distance,
    pairs: Sequence[Pairs],
    moves: Sequence[tuple[Triplet, str]],
    predictions: Sequence[tuple[Triplet, list[str | None]]] | None,
) -> dict[str, Any]:
    """All figures of a distance."""
    accepted = rates(distance, pairs)
    alike = [kind.name for kind in pairs if kind.same]
    found: dict[str, Any] = {"accepted": accepted, "recommended": recommend(accepted, alike)}
    found["efficacy"] = efficacy(distance, moves)
    if predictions is not None:
        found["start_model"] = groups(distance, predictions)
    if isinstance(distance, SentenceEmbedding):
        found |= {"cut": distance.cut, "longest": distance.longest}
    return found


def sampled_predictions(
    data: PredictionData, levels: list[int], samples: int
) -> tuple[list[tuple[Triplet, list[str | None]]], dict[str, float]]:
    """Let the start model predict; None stands for a reply without a prediction.

    Returns:
        Triplets with their predictions; and of the configuration's own reward, the mean and the share of groups without
        variance, NaN where no reward can be had.
    """
    with closing_engine(data):
        episodes = predict(data, levels, samples)
    judged = data.judge(data.env, episodes)
    own = {name: judged[name].total / (judged[name].number or math.nan) for name in ("reward", "zero_variance")}
    texts = [episode.actions[0].text if episode.actions else None for episode in episodes]
    triplets = [training_env(data).triplets[level] for level in levels]
    return [(each, texts[i * samples : (i + 1) * samples]) for i, each in enumerate(triplets)], own


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Write a file, whole or not at all; what is not a number is null."""
    with new_file(path) as file:
        file.write((json.dumps(_plain(result), indent=1) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
