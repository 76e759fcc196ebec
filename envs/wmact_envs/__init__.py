"""Text environments for language-model agents: gymnasium and numpy only.

Importing this package registers the ids below; `gymnasium.make("wmact_envs:wmact/Maze-v0", size=9)` does both at once.
No id of the games here has a step limit: how many turns an agent gets is the rollout's decision, not the environment's.
ALFWorld, which has engines and protocols of its own, is cut off after 50 steps, as everywhere.
"""

from gymnasium.envs.registration import register

register(id="wmact/Maze-v0", entry_point="wmact_envs.maze:MazeEnv")
register(id="wmact/MazeHard-v0", entry_point="wmact_envs.maze:MazeEnv", kwargs={"size": 11})
register(id="wmact/Taxi-v0", entry_point="wmact_envs.taxi:TaxiEnv")
register(id="wmact/TaxiRainy-v0", entry_point="wmact_envs.taxi:TaxiEnv", kwargs={"rainy": True})
register(id="wmact/TaxiFickle-v0", entry_point="wmact_envs.taxi:TaxiEnv", kwargs={"fickle": True})
register(
    id="wmact/SokobanOneBox-v0",
    entry_point="wmact_envs.sokoban:SokobanEnv",
    kwargs={"boxes": 1, "min_pushes": 2},
)
register(id="wmact/Sokoban-v0", entry_point="wmact_envs.sokoban:SokobanEnv")
register(
    id="wmact/SokobanHard1-v0",
    entry_point="wmact_envs.sokoban:SokobanEnv",
    kwargs={"height": 10, "width": 10},
)
register(id="wmact/SokobanHard2-v0", entry_point="wmact_envs.sokoban:SokobanEnv", kwargs={"boxes": 3})
register(id="wmact/ALFWorld-v0", entry_point="wmact_envs.alfworld:ALFWorldEnv")
# As verl-agent plays it: 50 steps, the last two observations and actions, the admissible commands listed.
register(
    id="wmact/ALFWorldVerl-v0",
    entry_point="wmact_envs.alfworld:ALFWorldEnv",
    kwargs={"history": 2, "admissible": True, "max_steps": 50},
)
register(id="wmact/Tau2-v0", entry_point="wmact_envs.tau2:Tau2Env")
