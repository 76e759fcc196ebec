"""What the commands of RWML share: the data of an experiment, playing it without a trainer, where a file came from."""

import datetime
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium

import wmact
from wmact.cli import read_experiment
from wmact.data import RolloutData
from wmact.models import resolve_model
from wmact.rollout import Task, play
from wmact.rwml.data import PredictionData
from wmact.rwml.env import PredictionEnv
from wmact.types import Episode
from wmact.weight_sync import default_engine, too_short


def read_data(words: Sequence[str]) -> RolloutData:
    """Return the data of the experiment that `fit` would run with these words; no weights are read.

    Raises:
        ValueError: it is no such experiment.
    """
    cli = read_experiment(words)
    data = cli._get(cli.config_init, "data")
    assert isinstance(data, RolloutData)
    return data


def read_prediction_data(words: Sequence[str]) -> PredictionData:
    """Return the data of an experiment of RWML.

    Raises:
        ValueError: it is none.
    """
    data = read_data(words)
    if not isinstance(data, PredictionData):
        raise ValueError(f"data is {type(data).__name__}: give a configuration whose data is wmact.rwml.PredictionData")
    return data


def by_model(
    data: RolloutData,
    envs: Sequence[gymnasium.Env[str, str]],
    tasks: Sequence[Task],
    told: Callable[[int], None] = lambda done: None,
    **how: Any,
) -> list[Episode]:
    """Play with the model as it is in its folder.

    Args:
        data: model, engine, limits and turns. The engine stays open.
        told: called with the number of episodes done, now and then.
        how: passed on to `play`.
    """
    data.engine = data.engine or default_engine(trust_remote_code=data.trust_remote_code)
    data.engine.start(resolve_model(data.model), stop_token_ids=data.chat.stop_token_ids, temperature=data.temperature)
    episodes = play(
        envs,
        tasks,
        data.engine,
        data.chat,
        max_turns=data.max_turns,
        limits=data.limits,
        tell_rules=data.tell_rules,
        progress=lambda done, _: told(done) if done == len(tasks) or done % 100 == 0 else None,
        **how,
    )
    if all(episode.stop_reason == "context" and not episode.turns for episode in episodes):
        raise too_short(data.engine, min(len(episode.ids) for episode in episodes))
    return episodes


def predict(data: PredictionData, levels: Sequence[int], samples: int) -> list[Episode]:
    """Sample predictions of triplets that are trained on; `data.judge` can be asked what they are worth.

    Returns:
        The samples of each level in a row. The engine stays open.
    """
    tasks = [data.prediction_task(level, sample) for level in levels for sample in range(samples)]
    return by_model(data, data.prediction_envs(len(tasks)), tasks)


@contextmanager
def closing_engine(data: RolloutData) -> Iterator[None]:
    """Close the engine, if one was started, however the block ends."""
    try:
        yield
    finally:
        if data.engine is not None:
            data.engine.close()


def training_env(data: PredictionData) -> PredictionEnv:
    """The environment whose levels are the triplets that are trained on."""
    env = data.prediction_envs(1)[0].unwrapped
    assert isinstance(env, PredictionEnv)
    return env


def provenance(command: str, args: Sequence[str], **more: Any) -> dict[str, Any]:
    """What the first line of a file tells of how it was made."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = shlex.join(["python", "-m", "wmact", command, *args])
    return {"command": line, "wmact": wmact.__version__, "date": now} | more
