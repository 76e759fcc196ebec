"""Files and folders that are written whole or not at all."""

import os
import signal
from pathlib import Path
from typing import BinaryIO

import pytest

from wmact.files import new_file, new_folder, require_replaceable


def _write_half(file: BinaryIO, error: BaseException) -> None:
    file.write(b"half of")
    raise error


def test_a_file_takes_its_place_when_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.csv"
    for content in (b"before\n", b"after\n"):
        with new_file(path) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"before\n"
        assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == ["results.csv"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=["an error", "Ctrl-C"])
def test_a_file_that_is_not_finished_leaves_the_one_before(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "results.csv"
    path.write_text("before")
    with pytest.raises(type(error)), new_file(path) as file:
        _write_half(file, error)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_with_the_files_own_name(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    (tmp_path / "results.csv.half").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as told, new_file(path) as file:
        file.write(b"a row\n")
    assert told.value.filename == str(path)
    assert not list(tmp_path.iterdir())


def test_a_folder_takes_its_place_when_it_is_done(tmp_path: Path) -> None:
    target = tmp_path / "agent"
    left = tmp_path / ".agent.half"
    left.mkdir()
    (left / "of a killed process").touch()
    with new_folder(target) as folder:
        (folder / "config.json").write_text("{}")
        assert not target.exists()
    assert [each.name for each in target.iterdir()] == ["config.json"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        new_folder(tmp_path / "agent") as folder,
        (folder / "config.json").open("wb") as file,
    ):
        _write_half(file, ZeroDivisionError())
    assert not list(tmp_path.iterdir())


def test_nothing_of_somebody_else_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "agent"
    target.mkdir()
    (target / "mine").touch()
    with pytest.raises(ValueError, match="agent is there already and not empty"), new_folder(target):
        pass
    assert [each.name for each in target.iterdir()] == ["mine"]


def replaced(target: Path, weights: str) -> None:
    with new_folder(target, replace=True) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "weights").write_text(weights)


def test_a_models_folder_gives_way_and_keeps_what_is_not_written_anew(tmp_path: Path) -> None:
    target = tmp_path / "agent"
    replaced(target, "old")
    (target / "notes").touch()
    (target / "additional_chat_templates").mkdir()  # as transformers saves a tokenizer with several
    (target / "additional_chat_templates" / "tools.jinja").write_text("tools")
    (tmp_path / "link").symlink_to(target)
    replaced(tmp_path / "link", "new")
    assert (target / "weights").read_text() == "new"
    assert sorted(each.name for each in target.iterdir()) == [
        "additional_chat_templates",
        "config.json",
        "notes",
        "weights",
    ]
    assert (target / "additional_chat_templates" / "tools.jinja").read_text() == "tools"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["agent", "link"]
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("moment", "where"), [("fsync", "agent"), ("rename", "agent"), ("second rename", ".agent.old")]
)
def test_killed_while_a_folder_is_replaced(moment: str, where: str, tmp_path: Path) -> None:
    target = tmp_path / "agent"
    replaced(target, "old")
    child = os.fork()
    if not child:
        rename = os.rename

        def second(source: Path, destination: Path) -> None:
            if destination == target:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, destination)

        killed = second if moment == "second rename" else lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        setattr(os, moment.rpartition(" ")[2], killed)
        replaced(target, "new")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / where / "weights").read_text() == "old"
    replaced(target, "newer")  # what lies there does not get in the way
    assert (target / "weights").read_text() == "newer"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("there", ["a file", "a folder of something else", "a folder of folders"])
def test_what_is_no_model_is_not_replaced(there: str, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    if there == "a file":
        target.touch()
    else:
        (target / "chapters").mkdir(parents=True)
        (target / ("config.json" if there == "a folder of folders" else "thesis.tex")).touch()
    with pytest.raises(ValueError, match="mine is there already, and no folder of a model"):
        require_replaceable(target)
