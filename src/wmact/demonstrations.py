"""Imperfect demonstrations for the warm start: an explorer that loses patience thinks aloud and acts.

A thought simulates moves: where am I, where does this action take me, or does nothing come of it. The explorer goes
into what it has not tried yet, sometimes into a wall or the wrong way, and turns back from dead ends; where there is no
way back it says so and begins again. Now and then it claims something false and corrects it. It could find any goal by
thought alone, but it seldom has the patience: most thoughts stop after a few moves, and it acts on what it has. So a
model learns from it *how to simulate*, which is right nearly always, and a habit of thinking too little, which is for
reinforcement to break.

Nothing here knows a particular environment: the environment's own copy is the simulator, and its words tell the state.
What is said around them is a matter of `Wording`: nano's few words, or English for a model that speaks it.

A `Walkthrough` is the opposite: the environment's own solution, with a thought that says nothing. It is the baseline of
expert data (behaviour cloning), and serves every environment with a `solution()`.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from wmact.chat import Chat
from wmact.data import Plays, RolloutData
from wmact.environments import EnvSpec
from wmact.processes import share, together
from wmact.rollout import Player, Task
from wmact.types import Batch, Episode
from wmact.world_model import BLOCKED, RETRACTED, STUCK


@dataclass(frozen=True)
class Manner:
    """How a demonstrator thinks and acts. Probabilities unless said otherwise.

    Args:
        patience: share of thoughts that go on until the level is solved in thought.
        short_mean: mean number of simulated moves of all other thoughts.
        insight: chance that a move is an optimal one.
        memory: chance that any other move is chosen among the actions not tried yet from where it stands.
        notice: chance that any other move is chosen among the actions that change something.
        retreat: chance that a thought that has spoilt the level, as far as can be seen without a search, begins again.
        slip: chance that a simulated move is first told wrongly and then corrected; 0 shows no reflection.
        careless: chance that a random action that turns out to be blocked stands before an action of the plan.
        impulse: chance that one or two random actions, foreseen by no thought, follow the plan, as they always do if it
            is empty. Without them a model learns to believe that it is where it meant to go, instead of reading where
            it is.
        longest: most simulated moves of a thought.
    """

    patience: float = 0.07
    short_mean: float = 2.0
    insight: float = 0.25
    memory: float = 0.9
    notice: float = 0.8
    retreat: float = 0.8
    slip: float = 0.02
    careless: float = 0.2
    impulse: float = 0.3
    longest: int = 40


FILLED_IN: dict[str, tuple[str, ...]] = {
    "start": ("place", "task"),
    "step": ("action", "ahead", "outcome"),
    "leads": ("place",),
    "blocked": (),
    "correction": ("outcome",),
    "stuck": ("place",),
    "planned": ("action", "ahead", "outcome"),
    "reply": ("thought", "plan"),
}
"""What the templates of a `Wording` may name."""


@dataclass(frozen=True)
class Wording:
    """What a demonstrator's words are: templates, whose braces are filled. The defaults are nano's language.

    The environment's own words for an action and for a place stay as they are. Thoughts in other words than the
    defaults' cannot be read by `world_model.py`: leave its evaluation off.

    Args:
        start: opens a thought; {place} is where it begins, and {task} what is to be done, in environments that have a
            `task()`.
        step: a simulated move; {action}, as {outcome} what comes of it: one of the next two, and as {ahead} the cell
            that the action aims at, in environments that have an `ahead()`.
        leads: the outcome of an action that changes something, with its {place}.
        blocked: the outcome of one that changes nothing.
        correction: takes the outcome before it back; {outcome} is the right one.
        stuck: begins again, at {place}.
        planned: an action of the plan; {action}, {ahead} and {outcome}. What is in parentheses is a comment there.
        between: stands between the actions of a plan.
        reply: the whole; {thought} and {plan}.
    """

    start: str = "{place}"
    step: str = "{action} {outcome}"
    leads: str = "{place}"
    blocked: str = BLOCKED
    correction: str = f"{RETRACTED} {{outcome}}"
    stuck: str = f"{STUCK} {{place}}"
    planned: str = "{action} {outcome}"
    between: str = " "
    reply: str = "<think> {thought} </think> <action> {plan} </action>"

    def __post_init__(self) -> None:
        for name, words in FILLED_IN.items():
            _require_template(f"wording.{name}", getattr(self, name), words)

    def outcome(self, place: str | None) -> str:
        """What comes of an action: the place it leads to, or None where it changes nothing."""
        return self.blocked if place is None else self.leads.format(place=place)

    def of(self, env: Any, action: str) -> dict[str, str]:
        """What there is to say of an action before it is taken."""
        return {"action": action} | ({"ahead": env.ahead(action)} if self.names("ahead") else {})

    def names(self, word: str) -> bool:
        """Whether a template has this word filled in."""
        return any(f"{{{word}}}" in getattr(self, template) for template in FILLED_IN)


@dataclass(frozen=True)
class Walkthrough:
    """Demonstrations that follow the environment's `solution()` until it leads no further.

    All of it stands in one reply, or an action after the other where a reply holds one action (`one_action`). It is
    asked for again when it is used up and after a detour only: some environments know one from the beginning alone.

    Args:
        thought: what is thought before each reply, whatever it is; {action} is the first of the reply, and {task} what
            is to be done, in environments that have a `task()`: said again, a small model finds it more easily.
        reply: the whole; {thought} and {plan}.
        detour: share of replies that take any one action instead, from which the solution finds back. It shows more of
            the world, and what to do where a plan would not have come (Laskey et al. 2017, arXiv 1703.09327, inject
            noise likewise). Detours are not learnt: a model of them would stray as often.
    """

    thought: str = "Next: {action}."
    reply: str = "<think>{thought}</think> <action>{plan}</action>"
    detour: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.detour <= 1:
            raise ValueError(f"walkthrough.detour={self.detour}: a share of the replies, from 0 to 1")
        for name, words in (("thought", ["action", "task"]), ("reply", ["thought", "plan"])):
            _require_template(f"walkthrough.{name}", getattr(self, name), words)

    def replies(self, player: Player, rng: np.random.Generator) -> Iterator[tuple[str, bool]]:
        """Yield replies, each for the state that the one before has led to; no more where no solution leads on.

        Beside each stands whether it is to be learnt.

        Raises:
            ValueError: a detour, and the environment names no actions.
        """
        env: Any = player.env.unwrapped
        plan: list[str] = []
        while plan := plan or env.solution() or []:
            if detour := rng.random() < self.detour:
                actions, plan = [at_random(env, player.info, rng)], []
            else:
                length = 1 if player.one_action else len(plan)
                actions, plan = plan[:length], plan[length:]
            said = {"task": env.task()} if "{task}" in self.thought else {}
            thought = self.thought.format(action=actions[0], **said)
            yield self.reply.format(thought=thought, plan=", ".join(actions)), not detour


def at_random(env: gymnasium.Env[str, str], info: Mapping[str, Any], rng: np.random.Generator) -> str:
    """Any action there is.

    Raises:
        ValueError: the environment does not tell which there are.
    """
    actions = list(getattr(env.unwrapped, "action_names", ()) or info.get("admissible", ()))
    if not actions:
        raise ValueError('no action can be taken at random: the environment names none, nor does info["admissible"]')
    return str(actions[rng.integers(len(actions))])


def _require_template(name: str, text: Any, words: Sequence[str]) -> None:
    """Refuse a template that asks for more than what is filled in."""
    try:
        text.format(**dict.fromkeys(words, ""))
    except (AttributeError, LookupError, ValueError) as error:
        known = " and ".join(f"{{{word}}}" for word in words) or "nothing"
        raise ValueError(f"{name}={text!r}: what can be filled in is {known}") from error


def demonstrate(
    env: Any,
    rng: np.random.Generator,
    manner: Manner,
    wording: Wording = Wording(),
) -> str:
    """Return one reply for the environment's current state: a thought, and an action set that follows from it.

    Where there is chance, such as rain, a copy of the environment foresees it, but what else the plan holds or leaves
    out changes it: the plan ends where it leads to what was not thought of.

    Args:
        env: a TextEnv (unwrapped); it is not changed.
    """
    patient = rng.random() < manner.patience
    moves = manner.longest if patient else min(manner.longest, int(rng.geometric(1 / manner.short_mean)))
    simulator = copy.copy(env)
    task = {"task": env.task()} if wording.names("task") else {}
    thought = [wording.start.format(place=simulator.place(), **task)]
    tried: dict[Any, list[str]] = {}  # state → actions taken from it in thought, the last one last
    for _ in range(moves):
        before, before_place = simulator.state, simulator.place()
        action = choose(simulator, tried.setdefault(before, []), rng, manner)
        said = wording.of(simulator, action)
        _, _, terminated, _, info = simulator.step(action)
        place = simulator.place() if info["effective"] else None
        if rng.random() < manner.slip:
            wrong = wording.outcome(before_place if place is None else None)
            thought.append(wording.step.format(outcome=wrong, **said))
            thought.append(wording.correction.format(outcome=wording.outcome(place)))
        else:
            thought.append(wording.step.format(outcome=wording.outcome(place), **said))
        tried[before].append(action)
        if terminated:
            break
        if info["deadlock"] and rng.random() < manner.retreat:
            simulator = copy.copy(env)
            thought.append(wording.stuck.format(place=simulator.place()))
    plan = []
    actor = copy.copy(env)
    for _ in range(moves):  # following the last exits leaves out every detour of the thought
        if actor.state == simulator.state or actor.state not in tried:
            break
        if rng.random() < manner.careless:
            action = str(rng.choice(env.action_names))
            if not copy.copy(actor).step(action)[-1]["effective"]:
                plan.append(wording.planned.format(outcome=wording.outcome(None), **wording.of(actor, action)))
        effective = (a for a in reversed(tried[actor.state]) if copy.copy(actor).step(a)[-1]["effective"])
        way = next(effective, None)
        if way is None:
            break
        said = wording.of(actor, way)
        actor.step(way)
        plan.append(wording.planned.format(outcome=wording.outcome(actor.place()), **said))
    if not plan or rng.random() < manner.impulse:
        plan += rng.choice(env.action_names, size=rng.integers(1, 3)).tolist()
    return wording.reply.format(thought=" ".join(thought), plan=wording.between.join(plan))


def choose(simulator: Any, tried: list[str], rng: np.random.Generator, manner: Manner) -> str:
    """Return the explorer's next action from the simulator's state, where `tried` are those it took before."""
    if rng.random() < manner.insight and (solution := simulator.solution()):
        return str(solution[0])
    options = list(simulator.action_names)
    if rng.random() < manner.notice:
        options = [a for a in options if copy.copy(simulator).step(a)[-1]["effective"]] or options
    if rng.random() < manner.memory:
        options = [a for a in options if a not in tried] or options
    return str(rng.choice(options))


@dataclass(frozen=True)
class World:
    """An environment that is demonstrated, and how.

    Args:
        env: the environment.
        manner: how the demonstrator thinks and acts in it.
        wording: in which words.
        walkthrough: follow the environment's solution instead, to its end; manner and wording are then without meaning.
        episodes: how many of it are shown in a row before the next world's turn. Short ones need more of them to be
            heard beside long ones: every token counts the same.
    """

    env: EnvSpec
    manner: Manner = Manner()
    wording: Wording = Wording()
    walkthrough: Walkthrough | None = None
    episodes: int = 1

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"worlds: episodes={self.episodes}: at least 1 in a row")

    def needs(self) -> dict[str, str]:
        """What the environment must have, each with the way out where it has not."""
        if self.walkthrough:
            told = {"task": "; leave {task} out of walkthrough.thought"} if "{task}" in self.walkthrough.thought else {}
            return {"solution": ""} | told
        told = {
            word: f"; leave {{{word}}} out of the wording" for word in ("ahead", "task") if self.wording.names(word)
        }
        return {"place": "; give it a walkthrough"} | told

    def replies(self, player: Player, rng: np.random.Generator) -> Iterator[tuple[str, bool]]:
        """Yield replies, each for the state that the one before has led to, and whether it is to be learnt."""
        if self.walkthrough:
            return self.walkthrough.replies(player, rng)
        env = player.env.unwrapped
        return ((demonstrate(env, rng, self.manner, self.wording), True) for _ in itertools.count())


def play_demonstration(world: World, player: Player, max_turns: int, context: int = 2**31) -> Episode:
    """Play one level with the demonstrator in the model's place; what it writes counts as sampled.

    It ends too where the walkthrough leads no further, and as an error where the environment fails.

    Args:
        world: how it is demonstrated; its environment is not used.
        player: an episode that has not begun, in an environment of that kind and in a model's own chat format.
        max_turns: most replies.
        context: most tokens of the conversation.

    Raises:
        RolloutInterrupted: the player is told to stop.
    """
    chat, episode = player.chat, player.episode
    assert isinstance(chat, Chat), "what is shown has token ids"
    replies = world.replies(player, np.random.default_rng(episode.seed))
    with player.failing():
        player.reset()
        while episode.stop_reason is None:
            with player.foreign():
                reply, learnt = next(replies, (None, False))
            if reply is None:
                episode.stop_reason = "turns"
            else:
                player.say(chat.encode(reply) + [chat.end_of_turn], context, max_turns, learnt)
    return episode


class ShownData(RolloutData):
    """Batches of episodes that the model is shown, for supervised training; evaluation is as without.

    Args:
        batches: batches an epoch.
        episodes_a_batch: episodes a batch, of all processes together.
        learn_prompts: with the model's `echo_coef`, first prompts are observations as well. For a model that starts
            from nothing: the history in the prompt of a next state is full of next states.
        rollout: everything else is passed on.
    """

    def __init__(
        self, batches: int = 100, episodes_a_batch: int = 32, learn_prompts: bool = False, **rollout: Any
    ) -> None:
        super().__init__(**rollout)
        self.batches, self.episodes_a_batch, self.learn_prompts = batches, episodes_a_batch, learn_prompts

    def train_dataloader(self) -> Plays:
        """The next episodes of an endless sequence."""
        self._require_a_share("episodes_a_batch", self.episodes_a_batch)
        return Plays(self.shown_batch, self.batches)

    def shown_batch(self) -> Batch:
        """The next episodes of the sequence."""
        self._rest()
        first, self.cursor = self.cursor, self.cursor + self.episodes_a_batch
        with together():
            self.episodes = [self.shown(number) for number in share(range(first, self.cursor))]
        if self.learn_prompts:
            for episode in self.episodes:
                episode.told[:0] = [(1, turn.start) for turn in episode.turns[:1]]  # nothing predicts the first token
        return self._packed()

    def shown(self, number: int) -> Episode:
        """Return an episode of the sequence, by its number."""
        raise NotImplementedError


class DemonstrationData(ShownData):
    """Batches of demonstrations, of levels drawn at random; where a split has few they come again.

    The limits and the model's context are a demonstrator's as they are a model's: a reply that is over them ends its
    episode, and is not learnt from. Neither is an episode in which the environment failed.

    Args:
        worlds: what is demonstrated, by name; every batch has episodes of each in turn.
        rollout: everything else is passed on to `ShownData` and `RolloutData`.
    """

    def __init__(self, worlds: dict[str, World], **rollout: Any) -> None:
        if not worlds:
            raise ValueError("data.worlds={}: give at least one environment to demonstrate")
        super().__init__(env=next(iter(worlds.values())).env, **rollout)
        self.worlds = worlds
        self._turns = [world for world in worlds.values() for _ in range(world.episodes)]

    def setup(self, stage: str) -> None:
        """Check the demonstrated environments too."""
        super().setup(stage)
        for name, world in self.worlds.items():
            env = world.env.make()
            env.close()
            for needed, way_out in world.needs().items():
                if not hasattr(env.unwrapped, needed):
                    raise ValueError(
                        f"data.worlds.{name}: {world.env.id} has no {needed}() to demonstrate with{way_out}"
                    )

    def shown(self, number: int) -> Episode:
        """A level, played by the demonstrator."""
        world = self._turns[number % len(self._turns)]
        env = self._pools.one(world.env)
        level, seed = np.random.SeedSequence([self.seed, number]).generate_state(2).tolist()
        level %= getattr(env.unwrapped, "num_levels", None) or 2**31
        turns = 1 + seed % self.max_turns  # of all lengths: a board told again and again teaches little
        turns = self.max_turns if world.walkthrough else turns
        player = Player(env, Task(level, 0, seed), self.chat, self.limits, self.tell_rules, self._told_to_stop)
        episode = play_demonstration(world, player, turns, self.context)
        if episode.error:
            self._pools.renewed(world.env, env)
        return episode
