"""Processes that hold an engine which cannot share ours: one a worker, forked from a nursery that imported it once.

An engine that is not thread-safe, keeps its state in a C library, or rewrites sys.argv and stdout gets a process of its
own. The nursery imports the engine's module and forks, so that the next worker starts in milliseconds and shares its
memory; nothing of this process is imported again, as multiprocessing would do.

None of these processes outlives this one, however it ends: the nursery looks for its parent once a second, and the
kernel kills workers whose nursery is gone. A worker also ends when its `Worker` is closed or forgotten. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1  # linux/prctl.h
START_SECONDS = 120.0  # of a nursery's imports, on a machine that is busy


class WorkerFailed(RuntimeError):
    """The engine raised, died or hung. The message is one line; an engine's own traceback is the cause."""


class Worker:
    """A process that answers requests, one at a time. It is started by the first of them, and again when it is gone.

    Args:
        module: its function `serve(*request)` answers; imported by the nursery only.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self._connection: Connection | None = None
        self._process = -1  # a pidfd: unlike a number, it never names another process

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._connection is not None

    def ask(self, *request: Any, seconds: float) -> Any:
        """Return what `serve` makes of the request.

        Raises:
            WorkerFailed: it raised. Or it died, or took more than `seconds`: then the process is gone, and so is what
                it knew.
        """
        try:
            if self._connection is None:
                self._start()
            assert self._connection is not None
            self._connection.send(request)
            if not self._connection.poll(seconds):
                raise WorkerFailed(f"{self.module} did not answer within {seconds:g} s, and was stopped")
            done, answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self.close()
            raise WorkerFailed(f"the process of {self.module} died") from error
        except BaseException:  # somebody's deadline, or Ctrl-C: an answer may still be on its way
            self.close()
            raise
        if not done:
            raise WorkerFailed(f"{self.module}: {answer.strip().splitlines()[-1]}") from Exception(answer)
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signal.SIGKILL)
            os.close(self._process)
        if self._connection is not None:
            self._connection.close()
        self._connection, self._process = None, -1

    def __del__(self) -> None:
        """Let the process end by itself: it reads that nobody will ask any more."""
        if self._process >= 0:
            os.close(self._process)

    def _start(self) -> None:
        ours, theirs = Pipe()
        with theirs:
            _nursery(self.module).hatch(theirs)
        self._connection = ours
        if not ours.poll(START_SECONDS):
            raise WorkerFailed(f"{self.module} was not imported within {START_SECONDS:g} s")
        number = ours.recv()
        with contextlib.suppress(ProcessLookupError):  # it is gone again, as the first request will find
            self._process = os.pidfd_open(number)


class Nursery:
    """The process that has imported an engine's module and forks workers."""

    def __init__(self, module: str) -> None:
        self._control, theirs = socket.socketpair()
        here = str(Path(__file__).resolve().parent.parent)  # where this package is, however it was found
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", __name__, module, str(theirs.fileno()), str(os.getpid())]
        with theirs:
            self.process = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # libraries of planners print there
                process_group=0,  # Ctrl-C is for this process, which ends the others
            )

    def hatch(self, connection: Connection) -> None:
        """Fork a worker at the other end of `connection`."""
        socket.send_fds(self._control, [b"!"], [connection.fileno()])


_nurseries: dict[tuple[int, str], Nursery] = {}


def _nursery(module: str) -> Nursery:
    key = os.getpid(), module  # a fork of this process has to have its own
    if key not in _nurseries or _nurseries[key].process.poll() is not None:
        _nurseries[key] = Nursery(module)
    return _nurseries[key]


def main(module: str, control: socket.socket, parent: int) -> None:
    """Be the nursery, until the parent closes `control` or is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries workers
    libc = ctypes.CDLL(None)
    try:
        serve, failure = importlib.import_module(module).serve, ""
    except Exception:
        serve, failure = None, traceback.format_exc()
    gc.collect()
    gc.freeze()  # a collection would write to every object, and so copy all that workers share
    nursery = os.getpid()
    while os.getppid() == parent:
        if not select.select([control], [], [], 1.0)[0]:
            continue
        message, received, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == nursery:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                work(Connection(received[0]), serve, failure)
            os._exit(0)
        os.close(received[0])


def work(connection: Connection, serve: Any, failure: str) -> None:
    """Answer requests until there is nobody to ask: (True, the answer) or (False, a traceback)."""
    connection.send(os.getpid())
    with contextlib.suppress(EOFError, OSError):
        while True:
            request = connection.recv()
            try:
                answer = (False, failure) if failure else (True, serve(*request))
            except Exception:
                answer = (False, traceback.format_exc())
            connection.send(answer)


def _main() -> NoReturn:
    module, control, parent = sys.argv[1:]
    main(module, socket.socket(fileno=int(control)), int(parent))
    sys.exit()


if __name__ == "__main__":
    _main()
