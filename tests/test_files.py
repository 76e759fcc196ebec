"""Files and folders that are written whole or not at all."""

from pathlib import Path
from typing import BinaryIO

import pytest

from wmact.files import new_file, new_folder


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
