"""The environment whose levels are triplets: its observation is history and action, its only action the prediction.

It ends with the first prediction and rewards nothing: what a prediction is worth is found out for all of a batch at
once, after the rollout (`wmact.rwml.data`).
"""

import hashlib
from typing import Any, get_args

import gymnasium

from wmact.protocol import Answer
from wmact.rwml import prediction
from wmact.rwml.triplets import Part, Triplet, part_of, read_triplets
from wmact_envs.text import AnyText, level_option

ID = "wmact.rwml:wmact/Prediction-v0"


class PredictionEnv(gymnasium.Env[str, str]):
    """Next-state prediction on the triplets of a file; level i is its i-th triplet of the part and kinds asked for.

    Args:
        triplets: the file.
        part: of the games: "all", those "train"ed on, or those "held_out".
        held_out: share of the games that are held out.
        kinds: only triplets of these kinds; null: of all.
        history: most steps of the history that are shown; null: all that the file has.
        told: open with the task, the answer's form and the rules of the world, where the file has them.
        tag: name of the tags around a prediction.

    Raises:
        OSError: there is no such file.
        ValueError: its schema is another, or it holds nothing of the part and kinds.
    """

    action_names: tuple[str, ...] = ()
    example_actions: tuple[str, ...] = ()
    rules = ""
    one_action = True

    def __init__(
        self,
        triplets: str,
        part: Part = "all",
        held_out: float = 0.1,
        kinds: list[str] | None = None,
        history: int | None = None,
        told: bool = True,
        tag: str = prediction.TAG,
        render_mode: None = None,
    ) -> None:
        if part not in get_args(Part):
            raise ValueError(f"part={part!r}: use one of {', '.join(get_args(Part))}")
        if not 0 <= held_out <= 1:
            raise ValueError(f"held_out={held_out}: a share of the games, from 0 to 1")
        if history is not None and history < 0:
            raise ValueError(f"history={history}: must not be negative; null shows all")
        if not tag.replace("_", "").isalpha() or tag.lower().startswith("th"):
            raise ValueError(f"tag={tag!r}: letters and underscores, and no name that could be one of thinking")
        there = read_triplets(triplets)
        of_part = part_of(there.triplets, part, held_out)
        chosen = (each for each in of_part if kinds is None or each.kind in kinds)
        # A file tells game after game; in this order the first few are spread over the games. Evaluations play them.
        self.triplets = sorted(chosen, key=lambda each: each.digest)
        if not self.triplets:
            games = len({(each.env, each.game) for each in there.triplets})
            found = ", ".join(sorted({each.kind for each in there.triplets}))
            raise ValueError(f"{triplets}: nothing of part={part!r}, kinds={kinds} ({games} games, kinds {found})")
        self.history, self.tag = history, tag
        self.told = {}
        if told:
            rules = there.provenance.get("rules") or {}
            envs = {each.env for each in self.triplets}
            self.told = {env: prediction.instructions(str(rules.get(env, "")), tag) for env in envs}
        self.num_levels = len(self.triplets)
        self.split = part
        self.observation_space = self.action_space = AnyText()
        self._level: int | None = None

    def prompt(self, triplet: Triplet) -> str:
        """What is asked of a triplet."""
        asked = prediction.question(prediction.recent(triplet.history, self.history), triplet.action, self.tag)
        return "\n\n".join([*filter(None, [self.told.get(triplet.env)]), asked])

    def target(self, level: int) -> str:
        """What the world said, as a prediction can say it."""
        return prediction.harmless(self.triplets[level].next, self.tag)

    def solution(self) -> list[str] | None:
        """The true answer, which a `Walkthrough` can say in its tags; None when the episode has ended."""
        return None if self._level is None else [self.target(self._level)]

    def read_reply(self, text: str) -> Answer:
        """Read a reply: the prediction is its only action."""
        return prediction.parse(text, self.tag)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Ask about triplet number `options["level"]`, or about one drawn with the environment's own generator.

        Raises:
            ValueError: an option that is unknown or not an integer.
            IndexError: there is no such triplet.
        """
        level = level_option(options or {}, self.split, self.num_levels)
        super().reset(seed=seed)
        self._level = int(self.np_random.integers(self.num_levels)) if level is None else level
        triplet = self.triplets[self._level]
        prompt = self.prompt(triplet)
        asked = hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()  # several triplets may ask the same
        info = {"level": self._level, "level_id": asked, "optimal_length": 1, "kind": triplet.kind}
        return prompt, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take the prediction; the episode ends."""
        if self._level is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        self._level = None
        return "", 0.0, True, False, {"valid": True, "effective": True, "success": False}
