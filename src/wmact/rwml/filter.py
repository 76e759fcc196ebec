"""Leave most of the triplets out that the start model predicts already: there is nothing to learn from them.

    python -m wmact filter --config configs/rwml/maze.yaml --out runs/rwml/filtered.jsonl --right 7 --keep 0.1

Every triplet that would be trained on is predicted --samples times by the model of the configuration. One that is right
--right times or more is kept with the probability --keep (RWML's "too easy"); which, is decided by its own hash, so the
same command writes the same rows. Triplets of held-out games and of other kinds are kept as they are: what is evaluated
stays comparable. Every option that is not listed below is one of `fit`.

How many predictions of each triplet are right is kept beside FILE, in FILE.right.json, as it is counted: a command that
was stopped goes on from there, and one with another --right or --keep samples nothing anew.
"""

import hashlib
import json
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from wmact.commands import CommandParser
from wmact.files import new_file
from wmact.rwml.data import PredictionData
from wmact.rwml.offline import closing_engine, predict, provenance, read_prediction_data, training_env
from wmact.rwml.triplets import Triplet, drawn, read_triplets, write_triplets
from wmact.study_file import fingerprint, weights

BLOCK = 100  # triplets that are sampled and judged at a time


def lucky(triplet: Triplet, seed: int, keep: float) -> bool:
    """Tell whether a triplet is among the share `keep` that stays; the same for all that ask the same."""
    return drawn(f"{seed} {triplet.digest}", keep)


def count_right(data: PredictionData, samples: int, words: Sequence[str], path: Path) -> list[int]:
    """Sample predictions of every triplet that is trained on, and count the right ones.

    Args:
        words: the arguments that `data` was made from.
        path: file of what is counted, from which it goes on.

    Raises:
        ValueError: the file holds counts of something else.
        OSError: predictions have no reward.
    """
    triplets = training_env(data).triplets
    told = json.dumps([(triplet.digest, triplet.next) for triplet in triplets])
    asked = {"settings": fingerprint(words), "weights": weights(words), "samples": samples}
    of = asked | {"triplets": hashlib.sha256(told.encode()).hexdigest()}
    right = _counted(path, of)
    with closing_engine(data):
        while len(right) < len(triplets):
            levels = range(len(right), min(len(right) + BLOCK, len(triplets)))
            episodes = predict(data, levels, samples)
            data.judge(data.env, episodes)
            if errors := [episode.fault for episode in episodes if episode.error]:
                raise OSError(f"{len(errors)} of {len(episodes)} predictions have no reward: {errors[0]}")
            solved = [episode.success for episode in episodes]
            right += [sum(solved[i : i + samples]) for i in range(0, len(solved), samples)]
            with new_file(path) as file:
                file.write(json.dumps({"of": of, "right": right}).encode())
            print(f"{len(right)} of {len(triplets)} triplets predicted", flush=True)
    return right


def _counted(path: Path, of: dict[str, Any]) -> list[int]:
    if not path.is_file():
        return []
    try:
        before, right = itemgetter("of", "right")(json.loads(path.read_text()))
        changed = ", ".join(key for key in of if before[key] != of[key])
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"{path} holds no counts of `filter`: give another --out, or remove it") from None
    if changed:
        raise ValueError(f"{path} was counted with other {changed}: give another --out, or remove it")
    return list(right)


def main(args: Sequence[str]) -> None:
    """Write a file without most of what is too easy.

    Raises:
        ValueError: the experiment is none of RWML, nothing would be left to train on, or something else was counted.
        OSError: a file cannot be read or written, or a server does not answer.
    """
    parser = CommandParser("filter", __doc__)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the file that is written")
    parser.add_argument("--samples", type=int, default=8, help="predictions of each triplet (8)")
    parser.add_argument("--right", type=int, default=8, help="so many right ones are too easy (8)")
    parser.add_argument("--keep", type=float, default=0.1, help="probability that one too easy is kept (0.1)")
    options, words = parser.parse_known_args(args)
    if not 1 <= options.right <= options.samples:
        parser.error(f"--right {options.right} --samples {options.samples}: from 1 to as many as there are samples")
    if not 0 <= options.keep <= 1:
        parser.error(f"--keep {options.keep}: a probability, from 0 to 1")
    data = read_prediction_data(words)
    right = count_right(data, options.samples, words, options.out.with_name(f"{options.out.name}.right.json"))
    triplets = training_env(data).triplets
    easy = {triplet for triplet, n in zip(triplets, right, strict=True) if n >= options.right}
    whole = read_triplets(data.triplets)
    kept = [each for each in whole.triplets if each not in easy or lucky(each, data.seed, options.keep)]
    dropped = len(whole.triplets) - len(kept)
    if dropped == len(triplets):
        raise ValueError(f"all {dropped} triplets are too easy: there is nothing to learn; raise --right or --keep")
    about = provenance(
        "filter",
        args,
        rules=whole.provenance.get("rules", {}),
        model=data.model,
        seed=data.seed,
        samples=options.samples,
        right=options.right,
        keep=options.keep,
        too_easy=len(easy),
        dropped=dropped,
        triplets_by_right_samples=[right.count(k) for k in range(options.samples + 1)],
        filtered=whole.provenance,
    )
    write_triplets(options.out, about, kept)
    print(
        f"{options.out}: {len(kept)} triplets; of {len(triplets)} to train on {len(easy)} are too easy, of which "
        f"{dropped} are left out",
        flush=True,
    )
