"""Transcripts tell the episode and do nothing else, whatever the model and the environment wrote."""

import re
import unicodedata

import pytest
from tensorboard.plugin_util import markdown_to_safe_html

from hostile import HOSTILE
from wmact.types import Action, Episode, Turn
from wmact.view import markdown, printable, transcript


def episode(text: str = "<action>up, up</action>") -> Episode:
    turn = Turn(2, 6, text, "valid", [Action("up", "effective"), Action("up", "blocked")], reward=0.5)
    last = Turn(8, 9, "hm", "unreadable")
    found = Episode("wmact/Maze-v0", 7, "abcdef0123456789", 1, 42, 3, optimal_length=1, reward=1.0)
    found.turns, found.observations, found.stop_reason = [turn, last], ["#.#\n#@#", text], "turns"
    return found


def test_transcript() -> None:
    assert transcript(episode()) == (
        "wmact/Maze-v0 level 7 (abcdef012345), sample 1, seed 42, policy version 3\n"
        "── turn 1 of 2 ──\n"
        "observation:\n  #.#\n  #@#\n"
        "reply (valid, 4 tokens):\n  <action>up, up</action>\n"
        "actions: up → effective, up → no effect\n"
        "reward: 0.5\n"
        "── turn 2 of 2 ──\n"
        "observation:\n  <action>up, up</action>\n"
        "reply (unreadable, 1 tokens):\n  hm\n"
        "actions: none\n"
        "reward: 0\n"
        "turns: reward 1, scaled 0.5, 1 of 2 actions effective, optimal 1"
    )


def test_an_error_is_told_and_a_turnless_episode_too() -> None:
    broken = Episode("env", 0, "id", 0, 0, 0, observations=["start"], stop_reason="error", error="Traceback\nboom")
    assert transcript(broken).endswith(
        "observation:\n  start\nerror: reward 0, scaled 0, 0 of 0 actions effective\nerror:\n  Traceback\n  boom"
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_reaches_the_terminal_that_controls_it(text: str) -> None:
    hostile = episode(text)
    hostile.turns[0].actions[0].text = hostile.env = hostile.level_id = hostile.error = text
    told = transcript(hostile)
    assert {unicodedata.category(c) for c in told if c != "\n"}.isdisjoint({"Cc", "Cf", "Cs", "Zl", "Zp"})
    told.encode("utf-8")  # lone surrogates would fail


@pytest.mark.parametrize("text", HOSTILE)
def test_tensorboard_shows_it_as_one_code_block(text: str) -> None:
    html = markdown_to_safe_html(markdown(transcript(episode(text))))
    assert re.findall("<[^>]*>?", html) == ["<pre>", "<code>", "</code>", "</pre>"]


def test_a_forged_line_stands_indented() -> None:
    forged = "\nreward: 100\nsolved: reward 100"
    hostile = episode(forged)
    hostile.turns[0].actions[0].text = forged
    told = transcript(hostile).split("\n")
    assert [line for line in told if line.startswith(("reward", "solved"))] == ["reward: 0.5", "reward: 0"]


def test_printable_keeps_what_can_be_seen() -> None:
    assert printable("a\r\nb\tc\x1b[0m é 中 🙂 █") == "a\nb   c\\x1b[0m é 中 🙂 █"
