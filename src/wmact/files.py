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
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `target` when the block is done, and vanishes when it fails.

    Raises:
        ValueError: there is something at `target`.
        OSError: it cannot be written.
    """
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} is there already and not empty: give another folder, or remove it")
    half = target.with_name(f".{target.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    try:
        half.mkdir(parents=True)
        yield half
        for path in half.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        os.rename(half, target)  # over an empty folder too
    finally:
        shutil.rmtree(half, ignore_errors=True)
