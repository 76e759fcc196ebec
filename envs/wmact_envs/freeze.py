"""Make the frozen test levels again, bit for bit: `python -m wmact_envs.freeze [--folder DIR]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import frozen, maze, sokoban


def main() -> None:
    """Generate every frozen file anew."""
    parser = argparse.ArgumentParser(prog="python -m wmact_envs.freeze", description="Make the frozen levels again.")
    parser.add_argument("--folder", type=Path, default=frozen.FOLDER, help="where (default: the package's levels)")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        **{name: maze.freeze(settings) for settings, name in maze.FROZEN.items()},
        **{name: sokoban.freeze(settings) for settings, name in sokoban.FROZEN.items()},
    }
    for name, levels in files.items():
        frozen.write(name, levels, folder)
        print(f"{folder / name}.jsonl")


if __name__ == "__main__":
    main()
