"""The command line: Lightning's, with fit, validate, test and predict.

    python -m wmact fit --config configs/maze.yaml
    python -m wmact fit --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt     continues that run
    python -m wmact test --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt

Several --config overlay each other, and a value on the command line beats them all, the checkpoint's too.
"""

import logging
import os
import signal
import sys
import warnings
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from transformers.utils.logging import disable_progress_bar

from wmact.data import RolloutData
from wmact.loggers import open_run_folder
from wmact.module import AgentModule
from wmact.rollout import RolloutInterrupted
from wmact.types import TrainingStopped

USAGE, STOPPED, TERMINATED, INTERRUPTED = 2, 1, 128 + signal.SIGTERM, 128 + signal.SIGINT  # exit codes


class CLI(LightningCLI):
    """LightningCLI with the values that module and data must agree on linked, and one run folder for all loggers."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what must be equal, from the module to the data."""
        parser.link_arguments("model.init_args.model", "data.init_args.model")
        parser.link_arguments("model.init_args.trust_remote_code", "data.init_args.trust_remote_code")
        parser.link_arguments("data.init_args.temperature", "model.init_args.temperature")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def before_fit(self) -> None:
        """Open the run folder, or that of the checkpoint, before anything is written."""
        folder = open_run_folder(self.trainer.loggers, self.config["fit"].get("ckpt_path"))
        if folder and self.trainer.is_global_zero:
            print(f"run folder {folder}", flush=True)


def build(args: list[str] | None = None, **kwargs: Any) -> CLI:
    """Parse, instantiate and run; `kwargs` are LightningCLI's. Raises what goes wrong."""
    return CLI(
        AgentModule,
        RolloutData,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False},
        save_config_kwargs={"overwrite": True},
        args=args,
        **kwargs,
    )


def main(args: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 training stopped itself, 2 bad input, 130 Ctrl-C, 143 SIGTERM.

    WMACT_DEBUG=1 shows the traceback of what is otherwise one line.
    """
    if not os.environ.get("WMACT_DEBUG"):
        _quiet()
    try:
        build(args)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)
    except RolloutInterrupted:
        _leave(f"terminated in a rollout, which is not trained on; {_resume_hint()}", TERMINATED)
    except TrainingStopped as error:
        _leave(f"training stopped: {error}; {_resume_hint()}", STOPPED, error)
    except (ArgumentError, ValueError, TypeError, OSError, ImportError, IndexError) as error:
        _leave(str(error) or type(error).__name__, USAGE, error)


def _quiet() -> None:
    """Keep other libraries' chatter from between our lines: hints, progress bars, warnings about what is on purpose."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    disable_progress_bar()
    for on_purpose in ("does not have many workers", "log_every_n_steps", "LeafSpec", "Checkpoint directory"):
        warnings.filterwarnings("ignore", message=f".*{on_purpose}")


def _leave(message: str, code: int, error: BaseException | None = None) -> None:
    if error is not None and os.environ.get("WMACT_DEBUG"):
        raise error
    print(f"wmact: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def _resume_hint() -> str:
    return "go on with: python -m wmact fit --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt"
