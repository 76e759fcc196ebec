"""Leave most of the triplets out that the start model predicts already: there is nothing to learn from them.

    python -m wmact filter --config configs/rwml/maze.yaml --out runs/rwml/filtered.jsonl --right 7 --keep 0.1

Every triplet that would be trained on is predicted --samples times by the model of the configuration. One that is right
--right times or more is kept with the probability --keep (RWML's "too easy"); which, is decided by its own hash, so the
same command writes the same rows. Triplets of held-out games and of other kinds are kept as they are: what is evaluated
stays comparable. Every option that is not listed below is one of `fit`.
"""

from collections.abc import Sequence
from pathlib import Path

from wmact.commands import CommandParser
from wmact.rwml.offline import predict, provenance, read_prediction_data, training_env
from wmact.rwml.triplets import Triplet, drawn, read_triplets, write_triplets


def lucky(triplet: Triplet, seed: int, keep: float) -> bool:
    """Tell whether a triplet is among the share `keep` that stays; the same for all that ask the same."""
    return drawn(f"{seed} {triplet.digest}", keep)


def main(args: Sequence[str]) -> None:
    """Write a file without most of what is too easy.

    Raises:
        ValueError: the experiment is none of RWML, or nothing would be left to train on.
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
    env = training_env(data)
    levels = range(len(env.triplets))
    episodes = predict(data, levels, options.samples, lambda n: print(f"{n} predictions", flush=True))
    data.judge(data.env, episodes)
    errors = [episode.fault for episode in episodes if episode.error]
    if errors:
        raise OSError(f"{len(errors)} of {len(episodes)} predictions have no reward: {errors[0]}")
    n = options.samples
    right = [sum(episode.success for episode in episodes[n * level : n * (level + 1)]) for level in levels]
    easy = {env.triplets[level] for level in levels if right[level] >= options.right}
    whole = read_triplets(data.triplets)
    kept = [each for each in whole.triplets if each not in easy or lucky(each, data.seed, options.keep)]
    dropped = len(whole.triplets) - len(kept)
    if dropped == len(env.triplets):
        raise ValueError(f"all {dropped} triplets are too easy: there is nothing to learn; raise --right or --keep")
    about = provenance(
        "filter",
        args,
        rules=whole.provenance.get("rules", {}),
        model=data.model,
        seed=data.seed,
        samples=n,
        right=options.right,
        keep=options.keep,
        too_easy=len(easy),
        dropped=dropped,
        triplets_by_right_samples=[right.count(k) for k in range(n + 1)],
        filtered=whole.provenance,
    )
    write_triplets(options.out, about, kept)
    print(
        f"{options.out}: {len(kept)} triplets; of {len(env.triplets)} to train on {len(easy)} are too easy, of which "
        f"{dropped} are left out",
        flush=True,
    )
