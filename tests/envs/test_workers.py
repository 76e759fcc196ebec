"""Processes of engines: what they answer, and that none of them is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wmact.rollout import deadline
from wmact_envs.workers import Worker, WorkerFailed

HELPERS = Path(__file__).resolve().parent.parent / "helpers"
LONG = 60.0  # on a busy machine


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))


@pytest.fixture
def worker():
    worker = Worker("toy_engine")
    yield worker
    worker.close()


def pid(worker: Worker) -> int:
    return worker.ask("say", seconds=LONG)[0]


def alive(process: int) -> bool:
    """Whether it is there, a zombie included."""
    return Path(f"/proc/{process}").exists()


def soon(what: Callable[[], bool]) -> bool:
    until = time.monotonic() + LONG
    while not what() and time.monotonic() < until:
        time.sleep(0.05)
    return what()


def test_answers_come_from_one_process_of_its_own(worker: Worker) -> None:
    first, what, arguments = worker.ask("say", 1, "two", seconds=LONG)
    assert (what, arguments) == ("say", (1, "two"))
    other = Worker("toy_engine")
    assert first not in (os.getpid(), pid(other))
    assert first == pid(worker)
    assert "toy_engine" not in sys.modules
    other.close()


def test_an_error_is_one_line_and_the_process_goes_on(worker: Worker) -> None:
    before = pid(worker)
    with pytest.raises(WorkerFailed, match=r"^toy_engine: and the last$") as caught:
        worker.ask("raise", seconds=LONG)
    assert "ValueError: first line" in str(caught.value.__cause__)
    assert pid(worker) == before


@pytest.mark.parametrize("what", ["die", "hang"])
def test_after_a_death_or_a_hang_there_is_a_new_process(worker: Worker, what: str) -> None:
    before = pid(worker)
    message = {"die": "the process of toy_engine died", "hang": "did not answer within 1 s, and was stopped"}[what]
    with pytest.raises(WorkerFailed, match=message):
        worker.ask(what, seconds=1 if what == "hang" else LONG)
    assert not worker.running
    assert soon(lambda: not alive(before))  # not even a zombie
    assert pid(worker) != before


def test_somebody_elses_deadline_ends_the_process_too(worker: Worker) -> None:
    before = pid(worker)
    with pytest.raises(TimeoutError), deadline(0.2):
        worker.ask("hang", seconds=LONG)
    assert soon(lambda: not alive(before))
    assert pid(worker) != before


def test_a_process_ends_with_its_worker(worker: Worker) -> None:
    forgotten = Worker("toy_engine")
    closed, left = pid(worker), pid(forgotten)
    worker.close()
    worker.close()
    del forgotten
    assert soon(lambda: not alive(closed) and not alive(left))


def test_a_module_that_cannot_be_imported_is_told_in_one_line() -> None:
    worker = Worker("no_such_engine")
    with pytest.raises(WorkerFailed, match=r"^no_such_engine: ModuleNotFoundError: No module named 'no_such_engine'$"):
        worker.ask("say", seconds=LONG)
    worker.close()


ORPHANS = """
import signal
from wmact_envs import workers
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts behind without
worker = workers.Worker("toy_engine")
print(worker.ask("say", seconds=60)[0], workers._nursery("toy_engine").process.pid, flush=True)
worker.ask("hang", seconds=600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_nothing_outlives_its_parent(how: signal.Signals) -> None:
    path = os.pathsep.join([str(HELPERS), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    children = [int(number) for number in parent.stdout.readline().split()]
    assert len(children) == 2
    assert all(map(alive, children))
    parent.send_signal(how)
    parent.wait(LONG)
    assert soon(lambda: not any(map(alive, children)))
