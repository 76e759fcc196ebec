"""The command line as tests call it: in this process, with its exit code and the one line it leaves with."""

import pytest

from wmact import cli


def run(*args: str) -> int:
    """The exit code."""
    try:
        cli.main(list(args))
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    """The one line that the command line leaves with."""
    capsys.readouterr()
    assert run(*args) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("wmact: ")
    return lines[0]
