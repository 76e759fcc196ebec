"""Who may import whom: environments stand alone, the mathematics needs torch only, the CLI starts without vllm."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src" / "wmact"
ENVS = ROOT / "envs" / "wmact_envs"
ENGINES = {
    "alfworld_engine.py": {"alfworld", "fast_downward", "mementos", "textworld"},
    "tau2_engine.py": {"loguru", "tau2"},
}
"""What other people's engines are imported by, and not before an environment is made."""


def imports(source: Path, package: str) -> set[str]:
    """Every module named in an import statement of a file, at any depth; relative names made absolute."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"), filename=str(source))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package if node.level else None, node.module]))
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}  # what is named may be a module itself
    return names


def third_party(modules: set[str]) -> set[str]:
    return {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names)


def loaded_by(code: str, *argv: str) -> set[str]:
    """The top-level modules in sys.modules once `code` has run in a fresh interpreter."""
    script = (
        f"import sys\nsys.argv = {['wmact', *argv]!r}\n"
        f"try:\n    {code}\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print('\\nLOADED', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split())


def test_the_reader_of_imports_sees_nested_and_relative_ones(tmp_path):
    source = tmp_path / "sample.py"
    source.write_text("import os, torch.nn\nfrom . import a\ndef f():\n    from .b import c\n    from numpy import d\n")
    assert imports(source, "wmact") == {
        "os", "torch.nn", "wmact", "wmact.a", "wmact.b", "wmact.b.c", "numpy", "numpy.d"
    }  # fmt: skip


def test_environments_load_without_torch_and_without_wmact():
    loaded = loaded_by("import wmact_envs, gymnasium; gymnasium.make('wmact/Maze-v0').reset(seed=0)")
    assert {"wmact_envs", "gymnasium", "numpy"} <= loaded
    assert not loaded & {"wmact", "torch", "lightning", "transformers", "vllm"}


def test_environments_with_engines_load_none():
    loaded = loaded_by("import wmact_envs.alfworld, wmact_envs.tau2, wmact_envs.workers")
    assert "wmact_envs" in loaded
    assert not loaded & {"wmact", "torch", *set().union(*ENGINES.values())}


def test_environments_import_gymnasium_and_numpy_only():
    for source in sorted(ENVS.rglob("*.py")):
        known = {"gymnasium", "numpy", "wmact_envs"} | ENGINES.get(source.name, set())
        extra = third_party(imports(source, "wmact_envs")) - known
        assert not extra, f"{source.relative_to(ROOT)} imports {sorted(extra)}"


@pytest.mark.parametrize("module", ["losses", "advantages"])
def test_the_mathematics_imports_torch_only(module):
    assert third_party(imports(SOURCES / f"{module}.py", "wmact")) == {"torch"}


def test_the_mathematics_loads_nothing_else_of_the_project():
    loaded = loaded_by("import wmact.losses, wmact.advantages")
    assert "torch" in loaded
    assert not loaded & {"wmact_envs", "gymnasium", "lightning", "transformers", "vllm"}


def test_learning_and_playing_do_not_import_each_other():
    playing = ("wmact.data", "wmact.engines", "wmact.rollout")
    learning = ("wmact.policy_gradient", "wmact.ppo", "wmact.grpo", "wmact.sft")
    for module in learning:
        source = SOURCES / f"{module.removeprefix('wmact.')}.py"
        assert not [name for name in imports(source, "wmact") if name.startswith(playing)]
    assert not [name for name in imports(SOURCES / "data.py", "wmact") if name.startswith(learning)]


@pytest.mark.parametrize(
    "argv", [("--help",), ("fit", "--config", "configs/maze.yaml", "--print_config")], ids=["help", "print_config"]
)
def test_the_command_line_starts_without_vllm(argv):
    loaded = loaded_by("import runpy; runpy.run_module('wmact', run_name='__main__', alter_sys=True)", *argv)
    assert {"wmact", "lightning"} <= loaded
    assert "vllm" not in loaded
