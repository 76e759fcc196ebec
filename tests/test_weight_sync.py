"""An engine that breaks down is started anew once; a second time the run stops (with its last checkpoint intact)."""

import pytest

from wmact.chat import Chat
from wmact.engines import EngineFailed, TransformersEngine
from wmact.nano import build_tokenizer
from wmact.types import TrainingStopped
from wmact.weight_sync import SyncedEngine


class Use:
    """What is done with an engine; it breaks down as often as `failures` says."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.versions: list[int | None] = []
        chat = Chat(build_tokenizer())
        self.synced = SyncedEngine(TransformersEngine(), "nano", chat, 1.0, max_logprob_gap=0.2, seed=0)

    def __call__(self) -> str:
        self.versions.append(self.synced.version)
        self.synced.version = 7
        if len(self.versions) <= self.failures:
            raise EngineFailed("out of memory")
        return "played"


def test_one_failure_is_survived_and_the_new_engine_is_given_the_weights_again(capsys):
    use = Use(failures=1)
    assert use.synced.restarting(use) == "played"
    assert use.versions == [None, None]  # no weights in the engine, so that the rollout loads them
    assert capsys.readouterr().out.count("out of memory") == 1


def test_a_second_failure_stops_the_run_in_one_line():
    use = Use(failures=2)
    with pytest.raises(TrainingStopped, match="failed again after a new start: out of memory"):
        use.synced.restarting(use)
