"""Files and folders that are written whole or not at all.

What is written stands beside its place under another name, always the same one, so that what a killed process leaves is
used again; it takes its place when all of it is on the disk.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write into, which replaces the one at `path` when the block is done.

    Raises:
        OSError: it cannot be written, with `path` as its file name; what was at `path` is still there.
    """
    half = path.with_name(path.name + ".half")  # in the same folder: os.replace is atomic within one filesystem
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with half.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(half, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not name the file
        raise
    finally:
        half.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """Give a folder to write into, which becomes `target` when the block is done, and vanishes when it fails.

    Args:
        replace: a model's folder that is at `target` gives way, and what is not written anew stays in it. Between two
            renamings it is not there, but whole beside it as `.<name>.old`.

    Raises:
        ValueError: there is something (else) at `target`.
        OSError: it cannot be written.
    """
    if replace:
        require_replaceable(target)
    elif _occupied(target):
        raise ValueError(f"{target} is there already and not empty: give another folder, or remove it")
    target = target.resolve()  # a link stays, and what it leads to is replaced
    half, old = (target.with_name(f".{target.name}.{state}") for state in ("half", "old"))
    shutil.rmtree(half, ignore_errors=True)
    try:
        if _occupied(target):
            shutil.copytree(target, half)
        else:
            half.mkdir(parents=True)
        yield half
        for path in (path for path in half.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if _occupied(target):
            shutil.rmtree(old, ignore_errors=True)
            os.rename(target, old)
        os.rename(half, target)  # over an empty folder too
    finally:
        shutil.rmtree(half, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def require_replaceable(target: Path) -> None:
    """Refuse a place for a model where there is something else than one, which would be lost or mixed with it.

    Raises:
        ValueError: there is a file, or a folder that is not empty and holds no config.json, or holds folders that
            are not a tokenizer's.
    """
    if _occupied(target) and not (
        (target / "config.json").is_file()
        and all(path.is_file() or path.name == "additional_chat_templates" for path in target.iterdir())
    ):
        raise ValueError(f"{target} is there already, and no folder of a model: give another folder, or remove it")


def _occupied(target: Path) -> bool:
    return target.exists() and not (target.is_dir() and not any(target.iterdir()))
