"""An episode played again from its log, to be looked at: every board as a picture, beside what the model thought.

An episode's level and actions are all that is needed: environments here are the same whenever they are played. Whether
that was so is checked against the log on the way.
"""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wmact import protocol
from wmact.callbacks import read_episodes
from wmact.environments import EnvSpec, Variant
from wmact.settings import read_yaml
from wmact.types import Action, ActionKind, Episode
from wmact.view import printable
from wmact.world_model import Claim, claims

Board = NDArray[np.uint8]
"""(height, width, 3) RGB."""


class Shot(NamedTuple):
    """An action, what became of it, and the board after it."""

    action: str
    kind: ActionKind
    board: Board


class Scene(NamedTuple):
    """A turn: what was thought in front of the board, and what was then done. Claims are judged on that board."""

    thinking: str
    claims: list[Claim]
    board: Board
    shots: list[Shot]


def newest_run(runs: Path) -> Path:
    """Return the run folder, at any depth below `runs`, whose episodes were written last.

    Raises:
        ValueError: there is none.
    """
    logs = sorted(runs.rglob("episodes.jsonl"), key=lambda log: log.stat().st_mtime)
    if not logs:
        raise ValueError(f"no episodes.jsonl below {runs}: `make maze` trains a run that writes one, and so do studies")
    return logs[-1].parent


def choose(log: Path, iteration: int | None = None, solved: bool | None = None, number: int = 0) -> dict[str, Any]:
    """Return the record of an episode: the `number`-th, from 0, of those that fit.

    Args:
        log: an episodes.jsonl.
        iteration: the training iteration; None: the last one.
        solved: True, False, or None for both.

    Raises:
        ValueError: there are not so many.
        OSError: the log cannot be read.
    """
    found: list[dict[str, Any]] = []
    last = None
    for record in read_episodes(log):
        if iteration is None and record["iteration"] != last:
            found, last = [], record["iteration"]
        if record["iteration"] == (last if iteration is None else iteration):
            found += [record] if solved in (None, record["stop_reason"] == "solved") else []
    if not 0 <= number < len(found):
        kind = {None: "", True: "solved ", False: "unsolved "}[solved]
        when = last if iteration is None else iteration
        raise ValueError(f"{log}: iteration {when} has {len(found)} {kind}episodes, and none of number {number}")
    return found[number]


def environment(run: Path, variant: str | None) -> Any:
    """Make the environment that episodes of a run were played in, one that paints.

    Args:
        run: its folder.
        variant: the record's; None for a training episode.

    Raises:
        ValueError: the run has no config.yaml, or its environment cannot be made, or cannot paint.
    """
    data = read_yaml(run / "config.yaml")["data"]["init_args"]
    env = EnvSpec(**data["env"])
    spec = env if variant is None else Variant(**data["test"][variant]).of(env)
    return EnvSpec(spec.id, spec.kwargs | {"render_mode": "rgb_array"}).make().unwrapped


def replay(env: Any, episode: Episode) -> list[Scene]:
    """Play an episode again, a scene a turn.

    Args:
        env: a TextEnv (unwrapped) that paints; it is reset and played.

    Raises:
        ValueError: level or actions are not what the log says of them.
    """
    observation, _ = env.reset(seed=episode.level, options={"level": episode.level})
    if episode.observations and observation != episode.observations[0]:
        raise ValueError(f"level {episode.level} of {episode.env} is another one than in the log: {CHANGED}")
    scenes = []
    for turn in episode.turns:
        thinking = protocol.parse(turn.text, env.action_names).thinking
        scene = Scene(thinking, claims(env, thinking), env.render(), [])
        scene.shots.extend(Shot(action.text, action.kind, _after(env, action)) for action in turn.actions)
        scenes.append(scene)
    return scenes


CHANGED = "the environment, or its arguments in config.yaml, have changed since"


def _after(env: Any, action: Action) -> Board:
    if action.kind in ("effective", "blocked"):
        *_, info = env.step(action.text)
        kind = "effective" if info["effective"] else "blocked"
        if kind != action.kind:
            raise ValueError(f"{action.text!r} is {kind} here, and was {action.kind} in the log: {CHANGED}")
    return env.render()


# As HTML. What a model wrote enters it as text and as nothing else: printable, escaped.

STYLE = """\
<style>
.wmact-turn {display: flex; gap: 1.5em; margin-bottom: 1.5em}
.wmact-thought {flex: 1; min-width: 14em; max-height: 40em; overflow: auto; white-space: pre-wrap}
.wmact-thought mark {color: inherit; background: rgba(46, 160, 67, .25)}
.wmact-thought mark.false {background: rgba(218, 54, 51, .3)}
.wmact-boards {flex: 2; display: flex; flex-wrap: wrap; gap: .8em; align-content: start}
.wmact-boards figure {margin: 0; text-align: center; line-height: 1.3}
.wmact-boards img {width: 7em; border: .25em solid gray; display: block}
.wmact-boards .effective img {border-color: rgb(46, 160, 67)}
.wmact-boards .blocked img {border-color: rgb(218, 54, 51)}
</style>"""


def page(scenes: Sequence[Scene]) -> str:
    """Return scenes as HTML: left the thought, its claims marked, right the board before and after every action."""
    return "\n".join([STYLE, *(_turn(scene, f"turn {n} of {len(scenes)}") for n, scene in enumerate(scenes, start=1))])


def marked(thinking: str, found: Sequence[Claim]) -> str:
    """Return a thought as HTML: claims marked, false ones with the truth behind them, what is taken back struck out."""
    parts, done = [], 0
    for claim in found:
        words = _safe(thinking[claim.start : claim.end])
        if claim.kind == "retracted":
            words = f"<s>{words}</s>"
        elif claim.right:
            words = f"<mark>{words}</mark>"
        else:
            truth = "nothing: there is no such state" if claim.truth is None else claim.truth
            words = f'<mark class="false" title="true would be {_safe(truth)}">{words} ✗</mark>'
        parts += [_safe(thinking[done : claim.start]), words]
        done = claim.end
    return "".join([*parts, _safe(thinking[done:])])


def _turn(scene: Scene, title: str) -> str:
    judged = [claim.right for claim in scene.claims if claim.kind != "retracted"]
    title += f": {sum(judged)} of {len(judged)} claims true" if judged else ""
    boards = [_figure(scene.board, "before", "")]
    boards += [_figure(shot.board, shot.kind, _safe(shot.action)) for shot in scene.shots]
    thought = f'<div class="wmact-thought"><b>{title}</b>\n{marked(scene.thinking, scene.claims)}</div>'
    return f'<div class="wmact-turn">{thought}<div class="wmact-boards">{"".join(boards)}</div></div>'


def _figure(board: Board, kind: str, action: str) -> str:
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, board, format="png")
    picture = f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
    return f'<figure class="{kind}">{picture}{action}<br>{kind.replace("_", " ")}</figure>'


def _safe(text: str) -> str:
    return html.escape(printable(text))
