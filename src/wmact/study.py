"""A comparison: every arm with every seed, tested on the same levels, and a report of it.

    python -m wmact study configs/study/maze.yaml
    python -m wmact study configs/study/maze.yaml configs/study/sokoban.yaml --jobs 4

Each run is two of the commands that anyone can give by hand, printed before they are run: `fit`, in
runs/study/<name>/<arm>/seed_<S>, then `test` on its last checkpoint. What is finished stands in the results
(docs/results/<name>), and everything else in the run folders, so the same command goes on where it was stopped or
killed: a run that was training loses at most its current iteration.
"""

import asyncio
import contextlib
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.utilities.exceptions import SIGTERMException

from wmact.checkpoints import lock
from wmact.commands import CommandParser
from wmact.files import new_file
from wmact.plot import require_matplotlib
from wmact.report import write_report
from wmact.results import Part, Results, collect, read_results, write_results
from wmact.study_file import Study, fingerprint, read_study, weights

RUNS = Path("runs", "study")
LOGGERS = ("wmact.loggers.TensorBoard", "wmact.loggers.CSVMetrics")
PATIENCE = 60.0
"""Seconds that a run gets to end by itself when it is told to; a rollout is given up within 20."""

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One arm with one seed. Whatever is known of it is in its folder and in the results."""

    study: Study
    arm: str
    seed: int

    @property
    def folder(self) -> Path:
        """Of all attempts at this run and of its tests, each a version_N."""
        return RUNS / self.study.name / self.arm / f"seed_{self.seed}"

    @functools.cached_property
    def asked(self) -> dict[str, str]:
        """What it is started with, as it was when this was first looked at."""
        words = self.study.words(self.arm, self.seed)
        return {"words": shlex.join(words), "settings": fingerprint(words), "weights": weights(words)}

    def trained(self) -> Path | None:
        """Return the folder of the training: the newest with a checkpoint to go on from, if there is one."""
        saved = [version for version in self._versions() if (version / "checkpoints" / "last.ckpt").is_file()]
        return max(saved, key=_number, default=None)

    def newest(self) -> Path:
        """Return the folder of the last command."""
        return max(self._versions(), key=_number)

    def fit(self) -> list[str]:
        """Return the command that trains it, from the start or from where it was stopped."""
        if trained := self.trained():
            return ["fit", *_checkpoint(trained)]
        where = {"save_dir": str(RUNS / self.study.name), "name": f"{self.arm}/seed_{self.seed}"}
        loggers = json.dumps([{"class_path": logger, "init_args": where} for logger in LOGGERS])
        return ["fit", *self.study.words(self.arm, self.seed), "--trainer.logger", loggers]

    def test(self) -> list[str]:
        """Return the command that tests it.

        Raises:
            ValueError: its training has left nothing to test.
        """
        if trained := self.trained():
            return ["test", *_checkpoint(trained)]
        raise ValueError(f"no checkpoints/last.ckpt in {self.folder}: it needs wmact.callbacks.LastCheckpoint")

    def check(self, results: Results, where: Path) -> None:
        """Refuse to go on with, or to keep, what was started with other words.

        Raises:
            ValueError: the words were others, or the files or the weights that they name.
        """
        asked = self.asked
        begun = json.loads((self.folder / "asked.json").read_text()) if self.trained() else None
        for place, before in ((where, results.run(self.arm, self.seed)), (self.folder, begun)):
            if before and (change := _change(before, asked)):
                way_out = f"give the study another name, or move {place} away"
                raise ValueError(f"{self} was run with other settings: {change}; {way_out}")

    def note(self) -> None:
        """Write down what it is started with.

        Raises:
            ValueError: meanwhile it would be another thing.
        """
        words = self.study.words(self.arm, self.seed)
        for part, now in {"settings": fingerprint(words), "weights": weights(words)}.items():
            if self.asked[part] not in (now, ""):
                what = "a configuration file was" if part == "settings" else "the weights of a model folder were"
                raise ValueError(f"{what} changed since the study was started; restore them")
        with new_file(self.folder / "asked.json") as file:
            file.write(json.dumps(self.asked).encode())

    def __str__(self) -> str:
        return f"{self.study.name} {self.arm} seed {self.seed}"

    def _versions(self) -> Iterator[Path]:
        return self.folder.glob("version_*")


def _change(before: dict[str, str], now: dict[str, str]) -> str:
    """Tell in which way a run is asked for otherwise than before; "" if it is not."""
    if before["words"] != now["words"]:
        return f"its words were {before['words']!r} and are now {now['words']!r}"
    if before["settings"] != now["settings"]:
        return f"a file named in {now['words']!r} has changed"
    if len({before.get("weights", ""), now["weights"]} - {""}) > 1:  # "": not known, or not there any more
        return f"a model folder named in {now['words']!r}, or in a file of it, has other weights now"
    return ""


def _number(version: Path) -> int:
    return int(version.name.removeprefix("version_"))


def _checkpoint(run: Path) -> list[str]:
    return ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]


class Studies:
    """Studies being run.

    Args:
        studies: with different names.
        where: folder of all results.
        jobs: runs at a time; each has its share of the cores.
    """

    def __init__(self, studies: Sequence[Study], where: Path, jobs: int) -> None:
        self.where, self.jobs = where, jobs
        self.results = {study.name: read_results(where / study.name) for study in studies}
        self.runs = [Run(study, arm, seed) for study in studies for seed in study.seeds for arm in study.arms]
        for run in self.runs:
            run.check(self.results[run.study.name], where / run.study.name)
        share = max(1, len(os.sched_getaffinity(0)) // jobs)
        self.environment = {"OMP_NUM_THREADS": str(share)} | os.environ  # what the user has set stays
        self.locks: dict[str, int] = {}

    async def go(self) -> int:
        """Run what is not finished, and return how many runs have failed."""
        room = asyncio.Semaphore(self.jobs)
        missing = [run for run in self.runs if not self.results[run.study.name].run(run.arm, run.seed)]
        print(f"# {len(self.runs)} runs, {len(self.runs) - len(missing)} of them finished", flush=True)
        with contextlib.ExitStack() as stack:
            for name in dict.fromkeys(run.study.name for run in missing):
                self.locks[name] = stack.enter_context(lock(RUNS / name)).fileno()
            async with asyncio.TaskGroup() as group:  # cancelled, it waits until every run has ended
                tasks = [group.create_task(self._attempt(run, room)) for run in missing]
        return sum(not task.result() for task in tasks)

    async def _attempt(self, run: Run, room: asyncio.Semaphore) -> bool:
        """Tell whether it worked; if not, the reason has been told."""
        async with room:
            started = time.monotonic()
            try:
                await self._run(run)
            except (ValueError, OSError, subprocess.CalledProcessError) as error:
                told = error.output if isinstance(error, subprocess.CalledProcessError) else error
                print(f"wmact: {run} failed: {told}", file=sys.stderr, flush=True)
                return False
            print(f"# {run}: done in {time.monotonic() - started:.0f} s", flush=True)
            return True

    async def _run(self, run: Run) -> None:
        run.note()
        await self._execute(run, run.fit())
        await self._execute(run, run.test())
        trained = run.trained()
        assert trained is not None
        results, name = self.results[run.study.name], run.study.name
        results.add(collect(run.arm, run.seed, trained, run.newest(), run.asked))
        write_results(self.where / name, results)

    async def _execute(self, run: Run, words: list[str]) -> None:
        """Run a command of wmact; cancelled, end it and wait for its end.

        Raises:
            CalledProcessError: it failed; its output is the last line of its stderr.
        """
        told, errors = run.folder / "output.txt", run.folder / "errors.txt"
        command = shlex.join(["python", "-m", "wmact", *words])
        print(f"# {run}, output in {told}\n{command}", flush=True)
        with told.open("a") as out, errors.open("w") as err:
            out.write(f"# {command}\n")
            out.flush()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "wmact", *words),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.environment,
                pass_fds=[self.locks[run.study.name]],  # a run that outlives a killed study keeps the lock
            )
        try:
            code = await process.wait()
        except asyncio.CancelledError:
            await _end(process)
            raise
        if code:
            lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
            ours = [line.removeprefix("wmact: ") for line in lines if line.startswith("wmact: ")]  # libraries may go on
            reason = [f"see {told}", *lines[-1:], *ours[-1:]][-1]
            raise subprocess.CalledProcessError(code, command, f"exit code {code}: {reason}")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ask a process to end, and kill it if it does not."""
    for end in (process.terminate, process.kill):
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            end()
            await asyncio.wait_for(process.wait(), PATIENCE)
            return


def heeding_signals(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; the first Ctrl-C or SIGTERM cancels it, and is raised when it has ended."""
    came: list[BaseException] = []

    async def attended() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(error: BaseException) -> None:
            came.append(error)
            if len(came) == 1:
                task.cancel()

        for number, error in ((signal.SIGINT, KeyboardInterrupt()), (signal.SIGTERM, SIGTERMException())):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as in a background job
                loop.add_signal_handler(number, stop, error)
        return await work

    try:
        return asyncio.run(attended())
    except asyncio.CancelledError:
        raise came[0] from None


def main(args: Sequence[str]) -> None:
    """Run studies and report them. Exit codes: those of the command line, and 1 when a run has failed.

    Raises:
        ValueError: a study file, or what was run before, is not as it should be.
        OSError: a study is being run already, or results cannot be written.
        ImportError: there is no matplotlib.
    """
    parser = CommandParser("study", __doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="study files, one an environment")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each with its share of the cores (1)")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of results (docs/results)")
    parser.add_argument("--report", action="store_true", help="run nothing, report the results that are there")
    options = parser.parse_args(args)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: at least 1")
    require_matplotlib()
    studies = [read_study(path) for path in options.files]
    if len({study.name for study in studies}) < len(studies):
        raise ValueError(f"study names {', '.join(study.name for study in studies)}: two files cannot share one")
    failed = 0
    if not options.report:
        try:
            failed = heeding_signals(Studies(studies, options.results, options.jobs).go())
        except (KeyboardInterrupt, SIGTERMException) as error:
            error.add_note(f"go on with: {shlex.join(['python', '-m', 'wmact', 'study', *args])}")
            raise
    parts = [Part(study, read_results(options.results / study.name)) for study in studies]
    if options.report or any(part.runs for part in parts):
        words = [*map(str, options.files), "--results", str(options.results), "--report"]
        print(write_report(parts, options.results, shlex.join(["python", "-m", "wmact", "study", *words])), flush=True)
    if failed:
        print(f"wmact: runs that failed: {failed}; the same command tries them again", file=sys.stderr, flush=True)
        sys.exit(1)
