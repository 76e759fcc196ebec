"""A study of doors with known results: 20 levels of two variants, 3 iterations of training.

Levels are solved from the first on, so that an arm that solves as many as another solves the same ones.
"""

from collections.abc import Mapping
from pathlib import Path

import yaml

from wmact.results import Results, Row, write_results

LEVELS = 20
Solved = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Arm → standard levels solved in one turn, and within two, by each seed. Nobody solves a hard one."""

SOLVED: Solved = {
    "entire_plan": ((6, 6), (6, 6)),
    "interactive": ((4, 6), (12, 14)),
    "rescale_only": ((6, 8), (14, 16)),
    "step_penalty": ((8, 10), (10, 12)),
    "wmact": ((16, 18), (18, 20)),
    "tau_3": ((16, 16), (18, 18)),
}
CURVES = {
    "interactive": ([0.1, 0.2, 0.3], [0.4, 0.6, 0.8]),
    "step_penalty": ([0.1, 0.3, 0.5], [0.6, 0.55, 0.5]),
}
"""Arm → success in one turn and in many over training; that of the others is `CLIMB`."""
CLIMB = ([0.1, 0.3, 0.5], [0.4, 0.55, 0.7])


def write(folder: Path, solved: Solved = SOLVED) -> tuple[Path, Path]:
    """Write the study and its results; return the study file and the folder of all results."""
    study = folder / "doors.yaml"
    seeds = list(range(max(len(ones) for ones, _ in solved.values())))
    asked = {"name": "doors", "base": ["x.yaml"], "arms": dict.fromkeys(solved, ""), "seeds": seeds}
    study.write_text(yaml.safe_dump(asked | {"compare": next(reversed(solved))}, sort_keys=False))
    results = Results()
    for arm, (ones, twos) in solved.items():
        for seed, one, two in zip(range(len(ones)), ones, twos, strict=True):
            results.add(_run(arm, seed, [1] * one + [2] * (two - one) + [0] * (LEVELS - two)))
    write_results(folder / "results" / "doors", results)
    return study, folder / "results"


def _run(arm: str, seed: int, solved_at: list[int]) -> Results:
    owner = {"arm": arm, "seed": str(seed)}
    turns = "1" if arm == "entire_plan" else "2"
    run = {"words": f"--config x.yaml --seed_everything {seed}", "settings": "abc", "model": "nano"}
    run |= {"parameters": "893312", "max_turns": turns, "curve": "1 2 3", "errors": "0", "machine": "Abacus, 2 cores"}
    outcomes = [
        owner
        | {"variant": variant, "optimal_length": str(3 + level), "actions": "4", "effective": "3"}
        | {"level": str(level), "solved_at": str(at if variant == "standard" else 0)}
        for variant in ("standard", "hard")
        for level, at in enumerate(solved_at)
    ]
    return Results([owner | run], outcomes, [owner | _step(step, arm, seed) for step in range(3)])


def _step(step: int, arm: str, seed: int) -> Row:
    one, many = CURVES.get(arm, CLIMB)
    figures = {"train/turn_budget": 2 - step // 2, "train/actions_mean": 4 + 2 * seed - step, "train/success": 0.25}
    figures |= {"train/effective_share": 0.75, "eval/world_model/standard/thought_exact": 0.9 + 0.02 * step}
    figures |= {"eval/standard/single_turn": one[step], "eval/standard/multi_turn": many[step]}
    return {"step": str(step)} | {name: f"{value:g}" for name, value in figures.items()}
