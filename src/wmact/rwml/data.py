"""RWML's data: one-turn episodes that predict next states, rewarded in one batch when all of them are played.

It is the line of `wmact.data` with other ends: levels are triplets of a file, a group is the samples of one triplet,
and `judge` gives the rewards. `NextStateData` is the baseline that shows the true next state (world-model SFT).
"""

import time
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np

from wmact.data import RolloutData
from wmact.demonstrations import ShownData
from wmact.environments import EnvSpec, Variant
from wmact.processes import gather, together
from wmact.rollout import Player, Task
from wmact.rwml import prediction
from wmact.rwml.env import ID, PredictionEnv
from wmact.rwml.rewards import Reward, targets
from wmact.rwml.state import entities, same, states
from wmact.rwml.triplets import Triplet
from wmact.types import Episode, Mean

OFFLINE = 2  # marks the random streams of calibration and filter, beside those of training and evaluation
HELD_OUT = Variant(kwargs={"part": "held_out"})


class PredictionData(RolloutData):
    """Predictions of next states by the current policy, one batch an epoch, and those of games that are held out.

    Args:
        triplets: file of triplets, as `python -m wmact collect` writes it.
        reward: what a prediction is worth, such as wmact.rwml.Within.
        held_out: share of the games that are not trained on; the variants of `val` and `test` are laid over them, and
            by default there is one of each, "held_out".
        kinds: only triplets of these kinds ("world", "tool", "user"); null: of all.
        history: most steps of the history that are shown; null: all that the file has.
        tag: name of the tags around a prediction; for "nano", which has no other, "action".
        tell_rules: open with the task, the answer's form and the rules of the world, where the file has them.
        max_turns: replies that a prediction may take; it ends with the first that can be read.
        rescale: as in `RolloutData`; without effect on one prediction, which is one action.
        step_penalty: taken off for a prediction.
        rollout: everything else is passed on to `RolloutData`.
    """

    def __init__(
        self,
        triplets: str,
        reward: Reward,
        held_out: float = 0.1,
        kinds: list[str] | None = None,
        history: int | None = None,
        tag: str = prediction.TAG,
        tell_rules: bool = True,
        max_turns: int = 1,
        rescale: bool = False,
        step_penalty: float = 0.0,
        val: dict[str, Variant] | None = None,
        test: dict[str, Variant] | None = None,
        **rollout: Any,
    ) -> None:
        asked = {"triplets": triplets, "held_out": held_out, "kinds": kinds, "history": history, "tag": tag}
        env = EnvSpec(ID, asked | {"told": tell_rules, "part": "train"})
        # A variant that says nothing of the part is of games that are held out, never of those trained on.
        val, test = ({"held_out": HELD_OUT} if some is None else some for some in (val, test))
        val, test = (
            {name: v if v.id else Variant(kwargs=HELD_OUT.kwargs | v.kwargs) for name, v in some.items()}
            for some in (val, test)
        )
        super().__init__(
            env=env,
            val=val,
            test=test,
            tell_rules=False,  # the prompt holds what is told
            max_turns=max_turns,
            rescale=rescale,
            step_penalty=step_penalty,
            **rollout,
        )
        # A prediction has no turn budgets to be read at: an evaluation gives it as many tries as training does.
        self.validation, self.testing = (replace(how, curve=(max_turns,)) for how in (self.validation, self.testing))
        self.triplets, self.reward = triplets, reward

    def setup(self, stage: str) -> None:
        """Check the reward too: a truth of each kind is asked about, before minutes are spent on predictions.

        Raises:
            ValueError: it has none for a kind.
            OSError: what it asks is not there, or does not answer.
        """
        super().setup(stage)
        specs = [self.env, *self.val.values(), *self.test.values()]
        of_kind = {triplet.kind: triplet for spec in specs for triplet in self._prediction_env(spec).triplets}
        asked = list(of_kind.values())
        for verdict in self.reward(targets(asked), asked):
            if isinstance(verdict, OSError):
                raise verdict

    def judge(self, spec: EnvSpec, episodes: list[Episode]) -> dict[str, Mean]:
        """Give all predictions of a rollout their rewards, in one batch.

        Returns:
            reward, exact (the same text, or equal JSON), entities, states (the same ones), missing_tag and truncated
            (replies without a prediction), length (characters of a prediction over those of the truth),
            zero_variance (of groups of several samples, those whose rewards are all the same).
        """
        started = time.perf_counter()
        with together():
            env = self._prediction_env(spec)
            played = [episode for episode in episodes if episode.error is None]
            found = [(episode, *_predicted(episode, env)) for episode in played]
            answered = [(episode, triplet, text) for episode, triplet, text in found if text is not None]
            verdicts = self.reward([text for *_, text in answered], [triplet for _, triplet, _ in answered])
            for (episode, *_), verdict in zip(answered, verdicts, strict=True):
                if isinstance(verdict, OSError):
                    episode.stop_reason, episode.error = "error", f"no reward: {verdict}"
                else:
                    episode.reward, episode.stop_reason = verdict, "solved" if verdict > 0 else "dead"
        self.performance["reward_seconds"] = time.perf_counter() - started
        found = [each for each in found if each[0].error is None]
        everyones = gather({(triplet.env, triplet.game) for _, triplet, _ in found})
        return figures(found, len(set().union(*everyones)) / len(everyones))

    def prediction_envs(self, number: int) -> list[gymnasium.Env[str, str]]:
        """Environments of the triplets that are trained on: so many, as far as `concurrency` lets them."""
        return self._pools.of(self.env, min(number, self.concurrency))

    def prediction_task(self, level: int, sample: int) -> Task:
        """The task of sampling a triplet with the start model, outside training and evaluation."""
        return self._task(level, sample, OFFLINE)

    def _prediction_env(self, spec: EnvSpec) -> PredictionEnv:
        env = self._pools.one(spec).unwrapped
        if not isinstance(env, PredictionEnv):
            raise ValueError(f"{spec.id} has no triplets: an evaluation of PredictionData plays {ID}")
        return env


def _predicted(episode: Episode, env: PredictionEnv) -> tuple[Triplet, str | None]:
    texts = [action.text for action in episode.actions]
    return env.triplets[episode.level], texts[0] if texts else None


def figures(found: list[tuple[Episode, Triplet, str | None]], games: float) -> dict[str, Mean]:
    """Return all figures, those too that nothing was found for, so that processes can add theirs.

    The interval of a share is of as many trials as games: several samples of a triplet are not independent, and states
    of one game are near copies of each other.

    Args:
        found: episodes with their triplet and their prediction, None where there is none.
        games: this process's share of all games that they are of.
    """
    tally: Counter[str] = Counter()
    groups: dict[int, list[float]] = defaultdict(list)
    for episode, triplet, text in found:
        truth = prediction.harmless(triplet.next)
        groups[episode.level].append(episode.reward)
        tally["reward"] += episode.reward  # type: ignore[assignment]
        tally["truncated"] += any(turn.format == "overlong" for turn in episode.turns)
        tally["missing_tag"] += any(turn.format == "unreadable" for turn in episode.turns)
        if text is not None:
            tally["exact"] += same(text) == same(truth)
            tally["entities"] += entities(text) == entities(truth)
            tally["states"] += states(text) == states(truth)
            tally["length"] += len(text) / max(1, len(truth))  # type: ignore[assignment]
            tally["predictions"] += 1
    several = [rewards for rewards in groups.values() if len(rewards) > 1]
    shares = ("reward", "exact", "entities", "states", "missing_tag", "truncated")
    return {name: Mean(tally[name], len(found), games) for name in shares} | {
        "length": Mean(tally["length"], tally["predictions"]),
        "zero_variance": Mean(
            sum(min(rewards) == max(rewards) for rewards in several), len(several), min(len(several), games)
        ),
    }


class NextStateData(ShownData, PredictionData):
    """Batches of true next states in the form of predictions, for supervised training; evaluated as `PredictionData`.

    A triplet comes again only after all others.

    Args:
        thought: what stands as the thought of every one; empty: no thought.
        rollout: everything else is passed on to `ShownData` and `PredictionData`.
    """

    def __init__(self, thought: str = "", **rollout: Any) -> None:
        super().__init__(**rollout)
        self.thought = thought

    def shown(self, number: int) -> Episode:
        """A triplet, with what the world said in the model's place."""
        env: Any = self._pools.one(self.env)
        triplets = env.unwrapped.triplets
        again, place = divmod(number, len(triplets))
        level = int(np.random.default_rng([self.seed, again]).permutation(len(triplets))[place])
        player = Player(env, self._task(level, again), self.chat, self.limits, told=False, stop=self._told_to_stop)
        before, text, behind = prediction.written(triplets[level].next, self.thought, env.unwrapped.tag)
        ids = [*self.chat.encode(before), *self.chat.quote(text), *self.chat.encode(behind), self.chat.end_of_turn]
        if len(ids) > self.limits.turn_tokens:
            raise ValueError(
                f"data.limits.turn_tokens={self.limits.turn_tokens}: the answer to triplet {level} takes {len(ids)} "
                "tokens, and no prediction could say it; raise the limit"
            )
        with player.failing():
            player.reset()
            player.say(ids, self.context, max_turns=1)
        return player.episode
