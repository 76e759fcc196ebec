"""tools/compare_predictions.py: two groups of tests on the same held-out triplets."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from wmact.rwml.triplets import part_of, read_triplets

TOOL = Path(__file__).resolve().parent.parent.parent / "tools" / "compare_predictions.py"


def written(folder: Path, rewards: list[float]) -> str:
    """The run folder of a test with the reward of each held-out triplet."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"held_out": 0.5}}}))
    records = [{"iteration": 0, "level": level, "reward": reward} for level, reward in enumerate(rewards)]
    (folder / "episodes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder)


def test_games_count_and_not_their_triplets(write, triplet, tmp_path, monkeypatch, capsys):
    """A game of many triplets counts like one of few, and what both find alike takes nothing away."""
    path = write(*(triplet(game=f"g{i // 4}", step=i) for i in range(160)))
    held_out = part_of(read_triplets(path).triplets, "held_out", 0.5)
    games = sorted({each.game for each in held_out})
    some = set(games[::2])
    ours = [written(tmp_path / f"ours{seed}", [float(each.game in some) for each in held_out]) for seed in range(2)]
    theirs = written(tmp_path / "theirs", [0.0] * len(held_out))
    monkeypatch.setattr(sys, "argv", ["x", *ours, "--against", theirs, "--triplets", str(path)])
    runpy.run_path(str(TOOL), run_name="__main__")
    said = capsys.readouterr().out
    share = len(some) / len(games)
    assert said.startswith(f"{share:.3f} of 2 against 0.000 of 1, {len(games)} games: {share:+.3f} [+0.")
    monkeypatch.setattr(sys, "argv", ["x", theirs, "--against", theirs, "--triplets", str(path)])
    runpy.run_path(str(TOOL), run_name="__main__")
    assert f"{len(games)} games: +0.000 [-0." in capsys.readouterr().out
    (tmp_path / "theirs" / "episodes.jsonl").unlink()
    with pytest.raises(SystemExit, match=r"theirs holds no episodes\.jsonl"):
        runpy.run_path(str(TOOL), run_name="__main__")
