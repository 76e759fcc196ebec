"""The commands beside Lightning's fit, validate, test and predict, and what their parsers share."""

import argparse
from typing import NamedTuple, NoReturn


class Command(NamedTuple):
    """A command: the module whose `main(args)` runs it, imported only then, and what it does."""

    module: str
    does: str


COMMANDS = {
    "study": Command("wmact.study", "runs every arm and seed of a comparison and reports it"),
    "plot": Command("wmact.plot", "draws the curves of runs"),
    "export": Command("wmact.export", "writes a checkpoint as a Hugging Face folder"),
    "play": Command("wmact.play", "plays one episode and prints it"),
    "forgetting": Command("wmact.forgetting", "tells what general knowledge a model has, or has lost in a training"),
    "estimate": Command("wmact.estimate", "tells what an experiment takes and whether it fits"),
    "collect": Command("wmact.rwml.collect", "plays and keeps what came of every action, for RWML"),
    "calibrate": Command("wmact.rwml.calibrate", "tells whether a reward has a signal on such a file"),
    "nano": Command("wmact.nano", "writes an untrained nano with the vocabulary of such files"),
    "filter": Command("wmact.rwml.filter", "leaves out of such a file what the model predicts already"),
}
HELP = "Further commands: " + "; ".join(f"{name} {command.does}" for name, command in COMMANDS.items()) + "."


class CommandParser(argparse.ArgumentParser):
    """The parser of one of `COMMANDS`. A wrong word is a ValueError, which the command line tells in one line."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(
            prog=f"python -m wmact {name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise ValueError(f"{message}; {self.prog} --help shows what there is")
