"""Compare what two models predict of the same held-out triplets: the difference of their rewards, with its interval.

    python tools/compare_predictions.py TEST [TEST ...] --against TEST [TEST ...] --triplets runs/telecom/random.jsonl

Each TEST is the run folder of a `test` with wmact.rwml.PredictionData and wmact.callbacks.EpisodeLog, one a seed. The
interval is 95 %, of a bootstrap that draws games and seeds anew (`wmact.statistics.crossed_bootstrap`): triplets of one
game are near copies of each other, and both models are asked about the same ones.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from wmact.callbacks import read_episodes
from wmact.rwml.triplets import Triplet, part_of, read_triplets
from wmact.settings import read_yaml
from wmact.statistics import Floats, crossed_bootstrap


def rewards(folder: Path, triplets: tuple[Triplet, ...]) -> dict[str, float]:
    """The mean reward of each game, of a test.

    Raises:
        SystemExit: the folder holds no episodes of a test.
    """
    held_out = part_of(triplets, "held_out", read_yaml(folder / "config.yaml")["data"]["init_args"]["held_out"])
    found: dict[str, list[float]] = defaultdict(list)
    for path in sorted(folder.glob("episodes*.jsonl")):
        for record in read_episodes(path):
            found[held_out[record["level"]].game].append(record["reward"])
    if not found:
        raise SystemExit(f"{folder} holds no episodes.jsonl: give the run folder that `python -m wmact test` printed")
    return {game: float(np.mean(values)) for game, values in found.items()}


def table(folders: list[Path], triplets: tuple[Triplet, ...]) -> dict[str, Floats]:
    """(seeds,) of each game that all tests asked about."""
    each = [rewards(folder, triplets) for folder in folders]
    games = sorted(set.intersection(*(set(found) for found in each)))
    return {game: np.array([found[game] for found in each]) for game in games}


def main() -> None:
    """Print the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="+", type=Path, metavar="TEST")
    parser.add_argument("--against", nargs="+", type=Path, metavar="TEST", required=True)
    parser.add_argument("--triplets", type=Path, metavar="FILE", required=True, help="that the tests were made with")
    options = parser.parse_args()
    triplets = read_triplets(options.triplets).triplets
    ours, theirs = table(options.tests, triplets), table(options.against, triplets)
    games = [game for game in ours if game in theirs]
    one, other = (np.stack([found[game] for game in games], axis=1) for found in (ours, theirs))
    difference = crossed_bootstrap(one, other)
    print(
        f"{one.mean():.3f} of {len(one)} against {other.mean():.3f} of {len(other)}, {len(games)} games: "
        f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    )


if __name__ == "__main__":
    main()
