"""An engine that breaks down is started anew once; a second time the run stops (with its last checkpoint intact)."""

import pytest

from wmact.data import EnvSpec, RolloutData
from wmact.engines import EngineFailed, TransformersEngine
from wmact.types import TrainingStopped


class Broken(RolloutData):
    """Its rollouts fail as often as `failures` says."""

    def __init__(self, failures: int) -> None:
        super().__init__(engine=TransformersEngine())
        self.failures = failures
        self.versions: list[int] = []

    def _play_once(self, spec, tasks, max_turns):
        self.versions.append(self._loaded)
        self._loaded = 7
        if len(self.versions) <= self.failures:
            raise EngineFailed("out of memory")
        return []


def test_one_failure_is_survived_and_the_new_engine_is_given_the_weights_again(capsys):
    data = Broken(failures=1)
    assert data._play(EnvSpec(), [], 1) == []
    assert data.versions == [-1, -1]  # -1: no weights in the engine, so that the rollout loads them
    assert capsys.readouterr().out.count("out of memory") == 1


def test_a_second_failure_stops_the_run_in_one_line():
    with pytest.raises(TrainingStopped, match="failed again after a new start: out of memory"):
        Broken(failures=2)._play(EnvSpec(), [], 1)
