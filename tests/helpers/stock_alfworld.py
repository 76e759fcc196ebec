"""Plays ALFWorld games with the engine as it is shipped, or with ours; prints a digest of what it says, and its times.

python stock_alfworld.py stock|ours SPLIT STEPS LEVEL…
"""

import hashlib
import json
import random
import sys
from time import process_time


def main(side: str, split: str, steps: str, *levels: str) -> None:
    from wmact_envs import alfworld_games as games

    if side == "ours":
        from wmact_envs import alfworld_engine

        env = alfworld_engine._engine._env
    else:
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld.envs import PddlEnv

        env = AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)), shuffle=False)
    said = []
    times: dict[str, list[float]] = {"start": [], "again": [], "step": []}
    for level in map(int, levels):
        source = split, level, games.TASK_TYPES
        if side == "ours":
            begin = process_time()
            prepared = alfworld_engine.serve("prepare", source)
            alfworld_engine.serve("start", prepared)
            times["start"].append(process_time() - begin)
            begin = process_time()
            alfworld_engine.serve("start", prepared)
            times["again"].append(process_time() - begin)
            state = alfworld_engine._engine._state
        else:
            begin = process_time()
            env.load(games.compose(*source).data)
            state = env.reset()
            times["start"].append(process_time() - begin)
            times["again"].append(process_time() - begin)  # it keeps nothing
        rng = random.Random(level)
        told = [state.feedback, state["admissible_commands"], False]
        for _ in range(int(steps)):
            said.append(told)
            facts = positive(state["_facts"]) if side == "stock" else None
            # every tenth command is one that nobody knows
            known = sorted(state["admissible_commands"])
            command = "open the window" if rng.random() < 0.1 else rng.choice(known)
            begin = process_time()
            if side == "stock":
                state, _, _ = env.step(command)
                times["step"].append(process_time() - begin)
                changed = positive(state["_facts"]) != facts
                told = [state.feedback, state["admissible_commands"], changed]
            elif command in known:
                told = list(alfworld_engine.serve("act", command)[:3])
                times["step"].append(process_time() - begin)
                state = alfworld_engine._engine._state
            else:
                told = ["Nothing happens.", list(known), False]
        said.append(told)
    kinds = {text.split()[1] for text, _, _ in said}
    digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()
    changed = sum(changed for *_, changed in said)
    print(json.dumps({"digest": digest, "told": len(said), "changed": changed, "kinds": len(kinds), **times}))


def positive(facts: list) -> set:
    """Those that say what is so, but for what was looked at."""
    return {str(fact) for fact in facts if not fact.name.startswith("not_") and fact.name != "checked"}


if __name__ == "__main__":
    main(*sys.argv[1:])
