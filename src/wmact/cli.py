"""The command line: Lightning's, with fit, validate, test and predict.

    python -m wmact fit --config configs/maze.yaml
    python -m wmact fit --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt     continues that run
    python -m wmact test --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt
    python -m wmact study configs/study/maze.yaml         and the other commands of `wmact.commands`

Several --config overlay each other, and a value on the command line beats them all, the checkpoint's too.
"""

import dataclasses
import importlib
import logging
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import IO, Any, get_args

import torch
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf
from transformers.utils.logging import disable_progress_bar

from wmact.callbacks import TurnSchedule
from wmact.callbacks.progress import eval_table
from wmact.checkpoints import AtomicCheckpointIO, check_checkpoint, lock
from wmact.commands import COMMANDS, HELP
from wmact.data import RolloutData
from wmact.engines import EngineFailed
from wmact.loggers import discard, open_run_folder, run_folder_of
from wmact.module import AgentModule
from wmact.processes import place, require_same, tells
from wmact.settings import changes, read_yaml
from wmact.strategies import Signals, check_loops, check_precision, check_strategy, end_others_at_exit
from wmact.types import RolloutInterrupted, TrainingStopped
from wmact.view import printable

USAGE, STOPPED, TERMINATED, INTERRUPTED = 2, 1, 128 + signal.SIGTERM, 128 + signal.SIGINT  # exit codes
EXPECTED = (ArgumentError, ValueError, OSError, ImportError, MisconfigurationException, EngineFailed)
"""What is told in one line. Anything else is a fault of the program and shows its traceback."""


class SameSettings(Callback):
    """Refuse processes that were started with different settings, before anything is written or played."""

    def __init__(self, config: Namespace) -> None:
        self.config = config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare them."""
        require_same({name: str(value) for name, value in self.config.items()})


class SaveConfig(SaveConfigCallback):
    """Write config.yaml; for a resumed run once it has got through an iteration: a vain attempt changes nothing.

    A configuration that gives way to another one stays as config_until_<k>.yaml: the first k iterations were by it.
    """

    past_first = False
    before: Path | None = None  # what gives way, in the first process
    done = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it, but for a resumed run."""
        if stage == "fit" and self.config.get("ckpt_path"):
            self.config = self.config.clone()
            self.config["ckpt_path"] = None  # else whoever starts anew with this file would go on with this run
            self._compare(trainer)
        else:
            super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note after how many iterations the run goes on."""
        self.done = trainer.fit_loop.epoch_loop._batches_that_stepped

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Write it, once."""
        if not self.past_first:  # Lightning's own mark is set in the first process only, and all of them must agree
            self.past_first = True
            if self.before:
                kept = self.before.with_stem(f"{self.before.stem}_until_{self.done}")
                if not kept.exists():  # by one that is there the run came to this checkpoint
                    self.before.rename(kept)
            super().setup(trainer, pl_module, "fit")

    def _compare(self, trainer: Trainer) -> None:
        """Tell which settings are not what they were."""
        file = Path(str(trainer.log_dir), self.config_filename)  # all processes ask for it together
        if trainer.is_global_zero and file.is_file():
            with suppress(ValueError):  # a damaged file gives way
                now = OmegaConf.to_container(OmegaConf.create(self.parser.dump(self.config, skip_none=False)))
                if changed := changes(read_yaml(file), now):
                    self.before = file
                    told = ", ".join(f"{name} {before} → {after}" for name, (before, after) in changed.items())
                    print(f"other settings than before: {told}", flush=True)


class CLI(LightningCLI):
    """LightningCLI with the values that module and data must agree on linked, and one run folder for all loggers."""

    folder: Path | None = None
    lock: IO[str] | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """All of Lightning's, without the options to run code from a checkpoint and to print results its own way."""
        return {name: hidden | {"weights_only", "verbose"} for name, hidden in LightningCLI.subcommands().items()}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give the turn schedule a key of its own, so that an overlay can change it; link what must be equal."""
        parser.add_lightning_class_args(TurnSchedule, "annealing", subclass_mode=True, required=False)
        parser.link_arguments("model.init_args.model", "data.init_args.model")
        parser.link_arguments("model.init_args.trust_remote_code", "data.init_args.trust_remote_code")
        parser.link_arguments("model.init_args.chat_template", "data.init_args.chat_template")
        parser.link_arguments("data.init_args.temperature", "model.init_args.temperature")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """Take no settings from a checkpoint: Lightning would let them silently beat those of the command line."""

    def before_instantiate_classes(self) -> None:
        """Refuse null where the type does not allow it: jsonargparse takes it everywhere."""
        for part in ("model", "data"):
            given = self._get(self.config, part)
            types = _types(resolve_name(given.class_path))
            for name in (name for name, value in given.init_args.items() if value is None):
                kind = types.get(name, Any)
                if kind is not Any and type(None) not in get_args(kind):
                    expected = "settings" if dataclasses.is_dataclass(kind) else getattr(kind, "__name__", kind)
                    raise ValueError(f"{part}.{name}: expected {expected}, but got null; leave it out for its default")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        """Without an annealing there is none; Lightning would put a None among the callbacks.

        And without a run folder no config.yaml is written; Lightning would write it where one happens to be.
        """
        if config.get("logger") is False:
            self.save_config_callback = None
        same = SameSettings(self.config.get(str(self.subcommand), self.config))  # the first, before SaveConfig
        try:
            return super()._instantiate_trainer(config, [same, *(each for each in callbacks if each is not None)])
        except TypeError as error:  # Lightning's for a few values of the right type, such as devices=-1 on a CPU
            raise ValueError(f"trainer: {error}") from error

    def after_instantiate_classes(self) -> None:
        """Look at the checkpoint before anything is written, then open one folder for all: that of a resumed run."""
        if self.subcommand == "fit":
            check_loops(self.trainer)
        check_strategy(self.trainer.strategy)
        check_precision(self.trainer.precision, self.trainer.strategy.root_device)
        self.trainer._signal_connector = Signals(self.trainer)
        end_others_at_exit(self.trainer.strategy)
        ckpt_path = self._get(self.config, "ckpt_path")
        if ckpt_path:
            check_checkpoint(ckpt_path, self.model)
        if type(self.trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            self.trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if self.subcommand is not None:
            self.folder = open_run_folder(self.trainer.loggers, ckpt_path if self.subcommand == "fit" else None)
        if self.folder and self.trainer.is_global_zero:
            # Two runs in one folder would cut each other's episodes off.
            self.lock = lock(self.folder) if self.subcommand == "fit" else None
            print(f"run folder {self.folder}", flush=True)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it. If nothing comes of it, its run folder goes again, and its number is free."""
        try:
            super()._run_subcommand(subcommand)
        except BaseException:
            if self.folder and self.trainer.is_global_zero and not self.trainer.callback_metrics:
                discard(self.folder)
            raise

    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Train; what ends it early is told how to go on."""
        try:
            self.trainer.fit(model, **kwargs)
        except BaseException as error:
            error.add_note(self._way_on())
            raise
        finally:
            if self.lock:
                self.lock.close()
        if not self.model.trained:
            stepped = 0 < self.trainer.max_steps <= self.trainer.global_step
            limit, what = ("max_steps", "optimizer steps") if stepped else ("max_epochs", "iterations")
            done = f"{getattr(self.trainer, limit)} {what} are done already"
            rank_zero_only(print)(f"nothing to do: {done}; raise --trainer.{limit}")

    def validate(self, model: LightningModule, **kwargs: Any) -> None:
        """Evaluate on the environments of `data.val`, and print a table."""
        self.trainer.validate(model, verbose=False, **kwargs)
        rank_zero_only(print)(eval_table(self.trainer.callback_metrics), flush=True)

    def test(self, model: LightningModule, **kwargs: Any) -> None:
        """Evaluate on the environments of `data.test`, and print a table."""
        self.trainer.test(model, verbose=False, **kwargs)
        rank_zero_only(print)(eval_table(self.trainer.callback_metrics), flush=True)

    def _way_on(self) -> str:
        last = Path(getattr(self.trainer.checkpoint_callback, "last_model_path", "") or "none")
        folder = run_folder_of(last) or self.folder  # other processes than the first do not know theirs
        if not folder or not last.is_file():
            return "nothing was saved yet"
        config, ckpt_path = (shlex.quote(str(path)) for path in (folder / "config.yaml", last))
        return f"go on with: python -m wmact fit --config {config} --ckpt_path {ckpt_path}"


def _types(part: type) -> dict[str, Any]:
    """The types of the constructor's arguments, with those that it passes on to classes of ours above it."""
    types: dict[str, Any] = {}
    for each in reversed(part.__mro__):
        if issubclass(each, AgentModule | RolloutData):
            types |= getattr(each.__init__, "__annotations__", {})
    return types


def build(args: list[str] | None = None, cli: type[CLI] = CLI, **kwargs: Any) -> CLI:
    """Parse, instantiate and run; `kwargs` are LightningCLI's. Raises what goes wrong."""
    OmegaConf.clear_resolver("oc.env")  # its values would end up in config.yaml, and tokens are such values
    return cli(
        AgentModule,
        RolloutData,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        trainer_defaults={"num_sanity_val_steps": 0, "log_every_n_steps": 1},  # an iteration is one batch
        parser_kwargs={"prog": "python -m wmact", "parser_mode": "omegaconf+", "exit_on_error": False, "epilog": HELP},
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        args=args,
        **kwargs,
    )


class Unweighed(CLI):
    """Parses as `fit` does and builds networks on the meta device; there is no trainer, and nothing is run."""

    def instantiate_classes(self) -> None:
        """Build all but the trainer, which would ask for its devices."""
        with torch.device("meta"):
            self.config_init = self.parser.instantiate_classes(self.config)

    def after_instantiate_classes(self) -> None:
        """There is no run to prepare."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""


def read_experiment(words: Sequence[str]) -> CLI:
    """Return the experiment that `fit` would run with these words, without weights and without a trainer.

    Raises:
        ValueError: it is none.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        return build(["fit", *words], cli=Unweighed)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Exit codes: 0 done, 1 training stopped itself, 2 bad input or an engine that failed, 130 Ctrl-C, 143 SIGTERM.
    WMACT_DEBUG=1 shows the traceback of what is otherwise one line.
    """
    if not os.environ.get("WMACT_DEBUG"):
        _quiet()
    try:
        _run(args)
    except (RolloutInterrupted, SIGTERMException) as error:
        _leave("terminated", TERMINATED, error)
    except KeyboardInterrupt as error:
        _leave("interrupted", INTERRUPTED, error)
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):  # which Lightning turns into this
            raise
        _leave("interrupted", INTERRUPTED, error)
    except TrainingStopped as error:
        _leave(f"training stopped: {error}", STOPPED, error)
    except ArgumentError as error:
        _leave(f"{reason(error)}; python -m wmact fit --config FILE --print_config shows all settings", USAGE)
    except EXPECTED as error:
        _leave(reason(error), USAGE)


def _run(args: list[str] | None) -> None:
    """Run the command. Of several processes, the one that is to tell an error raises it; the others end quietly."""
    words = sys.argv[1:] if args is None else args
    try:
        if words and words[0] in COMMANDS:
            with _terminable():
                importlib.import_module(COMMANDS[words[0]].module).main(words[1:])
        elif words and words[0][:1].isalpha() and words[0] not in (known := CLI.subcommands()):
            raise ValueError(f"{words[0]!r} is no command; there are {', '.join([*known, *COMMANDS])}")
        elif not words:
            raise ValueError(f"which command? There are {', '.join([*CLI.subcommands(), *COMMANDS])}")
        else:
            build(args)
    except BaseException as error:
        if not tells(error):
            if place()[0] > 0:
                sys.exit(0)  # at any other code Lightning kills the first process, whose code is the one that is seen
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (to the end)
        raise


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, which writes down what it has; `fit` has a way of its own."""

    def end(*_: Any) -> None:
        raise SIGTERMException

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def reason(error: BaseException) -> str:
    """Tell an error in one line; of those that jsonargparse has wrapped, the key and the innermost reason."""
    keys: list[str] = []
    wrapper = re.compile(
        r'\s*(?:Parser key "(.+?)":|Does not validate|Problem with given class_path|- Expected a path)'
    )
    while (wrapped := wrapper.match(str(error))) and (inner := error.__cause__ or error.__context__):
        keys += [wrapped[1]] if wrapped[1] and wrapped[1] not in keys[-1:] else []
        error = inner
    told = re.sub(r"Expected an? (?:<class ')?(.+?)'?>?\. Got value: ", r"expected \1, but got ", str(error))
    return ": ".join(([".".join(keys)] if keys else []) + [told or type(error).__name__])


def _quiet() -> None:
    """Keep other libraries' chatter from between our lines: hints, progress bars, warnings about what is on purpose."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    disable_progress_bar()
    for on_purpose in (
        "does not have many workers",
        "log_every_n_steps",
        "LeafSpec",
        "Checkpoint directory",
        "dirpath has changed",
        "sync_dist=True",
        "returned a view tensor",
        "no logger configured",
    ):
        warnings.filterwarnings("ignore", message=f".*{on_purpose}")


def _leave(message: str, code: int, error: BaseException | None = None) -> None:
    """End with one line; with WMACT_DEBUG, inside the handler of an error, that error is raised instead."""
    if os.environ.get("WMACT_DEBUG"):
        raise
    whole = "; ".join([message, *getattr(error, "__notes__", [])])
    print(f"wmact: {printable(' '.join(whole.split()))}", file=sys.stderr, flush=True)
    sys.exit(code)
