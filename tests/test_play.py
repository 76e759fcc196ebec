"""Playing one episode: what is printed, what a server is sent, and one line for everything that goes wrong."""

import io
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import command_line
import tiny_worlds
from stub_server import Answer, Asked, Stub, serving
from wmact import play, view
from wmact.chat import Chat
from wmact.engines import Completion, EngineFailed, TransformersEngine
from wmact.environments import EnvSpec
from wmact.models import BUNDLED
from wmact.nano import build_tokenizer
from wmact.rollout import Limits, Task
from wmact.rollout import play as roll_out
from wmact.terms import Terms, read_terms, write_terms

ROOT = Path(__file__).resolve().parent.parent
DOORS = ("--env", "tiny_worlds:tiny/Doors-v0", "--level", "1")  # the door of level 1 is "left"
VLLM_MODELS = {"data": [{"id": "doors", "max_model_len": 256}]}


pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a proxy, and with the engine that starts at once."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(play, "default_engine", lambda: TransformersEngine(dtype="float32", device="cpu"))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not made."""
    made: list[float] = []
    monkeypatch.setattr("wmact_envs.endpoint.time", SimpleNamespace(sleep=lambda s: made.append(s) if s else None))
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that says how its model is used to playing."""
    folder = tiny_worlds.write_model(tmp_path_factory.mktemp("models") / "doors")
    write_terms(Path(folder), Terms([EnvSpec("tiny_worlds:tiny/Doors-v0")], False, 5, Limits(turn_tokens=8)))
    return folder


run = partial(command_line.run, "play")


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that the command line leaves with."""
    return command_line.refused(capsys, "play", *args)


def vllm_like(*replies: str, **changes: Any) -> Callable[[Asked], Answer]:
    """Answers as vLLM does, with one reply after the other; `changes` go into the choice."""
    tokenizer, left = build_tokenizer(), list(replies)

    def answer(asked: Asked) -> Answer:
        if asked.path == "/v1/models":
            return Answer(body=VLLM_MODELS)
        assert asked.path == "/v1/completions"
        ids = tokenizer.encode(left.pop(0), add_special_tokens=False)
        return Answer(body={"choices": [{"text": "", "finish_reason": "stop", "token_ids": ids} | changes]})

    return answer


def chat_like(content: str | None, **changes: Any) -> Callable[[Asked], Answer]:
    """Answers as any server of OpenAI's API does, always the same."""
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"} | changes

    def answer(asked: Asked) -> Answer:
        return Answer(body={"data": [{"id": "gpt"}]} if asked.path == "/v1/models" else {"choices": [choice]})

    return answer


# What is printed

SOLVED = """\
tiny/Doors-v0 level 1 (doors1), sample 0, seed 0
── turn 1 of 5 ──
observation:
  goal left
reply (valid, 4 tokens):
  <action> up </action>
actions: up → no effect
reward: 0
── turn 2 of 5 ──
observation:
  goal left
reply (valid, 5 tokens):
  <action> left down </action>
actions: left → effective, down → after_end
reward: 0.333333
solved: reward 1, scaled 0.333333, 1 of 3 actions effective, optimal 1
"""  # one of three actions was effective: 1 · 1/3
TWO = ("<action> up </action><|end|>", "<action> left down </action><|end|>")


def test_the_episode_is_told_and_the_exit_code_is_0(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Stub(vllm_like(*TWO))) as stub:
        assert run(model, *DOORS, "--url", stub.url) == 0
    assert capsys.readouterr() == (SOLVED, "")


def test_unsolved_the_exit_code_is_1(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Stub(vllm_like(*TWO))) as stub:
        assert run(model, *DOORS, "--url", stub.url, "--turns", "1") == 1
    told = capsys.readouterr().out
    assert told.startswith(SOLVED[: SOLVED.index("── turn 1 of")] + "── turn 1 of 1 ──\n")
    assert told.endswith("turns: reward 0, scaled 0, 0 of 1 actions effective, optimal 1\n")


def test_it_is_told_while_it_is_played_and_as_a_transcript_tells_it(
    scripted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, printed = scripted(lambda request: TWO[len(engine.submitted) - 1].removesuffix("<|end|>")), list[str]()
    teller = play.Teller(max_turns=2, tokens=True)

    def watch(episode: Any) -> None:
        teller(episode)
        printed.append(capsys.readouterr().out)

    env = EnvSpec("tiny_worlds:tiny/Doors-v0").make()
    (episode,) = roll_out(
        [env], [Task(1, 0, 0)], engine, Chat(build_tokenizer()), max_turns=2, limits=Limits(), watch=watch
    )
    assert "".join(printed) == view.transcript(episode).replace(", policy version 0", "") + "\n"
    # told of the beginning, of the first turn together with what came of it, and of the second, which is the end
    assert [part.count("observation") for part in printed] == [1, 1, 0]
    assert [part.count("reply") for part in printed] == [0, 1, 1]


def test_a_model_plays_in_this_process(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    codes = [run(model, *DOORS, "--seed", str(seed), "--turns", "1") for seed in range(12)]
    told = capsys.readouterr().out
    assert set(codes) == {0, 1}  # it says each of four words equally often: all alike happens once in 32 tries
    assert told.count("solved: ") == codes.count(0)
    again = run(model, *DOORS, "--seed", "3", "--turns", "1")
    assert (again, "seed 3" in told) == (codes[3], True)
    assert capsys.readouterr().out in told  # the same seed, the same episode


def test_a_fault_of_the_environment_is_one_line(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [model, *DOORS, "--env.kwargs", '{"fault": 3}']
    with serving(Stub(vllm_like(*TWO))) as stub:
        assert run(*words, "--url", stub.url) == 2
        told = capsys.readouterr()
        assert told.out.endswith("reply (valid, 4 tokens):\n  <action> up </action>\nactions: none\nreward: 0\n")
        assert told.err == "wmact: tiny_worlds:tiny/Doors-v0 failed: RuntimeError: hinge 1 is stuck\n"
        monkeypatch.setenv("WMACT_DEBUG", "1")
        with pytest.raises(ValueError, match="hinge 1 is stuck") as error:
            run(*words, "--url", stub.url)
    assert "in _act" in str(error.value.__cause__)


def test_a_server_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Stub(chat_like("\x1b[2J<action>left</action>"))) as stub:
        assert run(*DOORS, "--url", stub.url) == 0
    assert "  \\x1b[2J<action>left</action>\n" in capsys.readouterr().out
    with serving(Stub(lambda asked: Answer(404, b"\x1b[2J\nno"))) as stub:
        assert "HTTP 404, \\x1b[2J no" in refused(capsys, *DOORS, "--url", stub.url)


# What a server is sent


def test_token_ids_are_append_only(model: str) -> None:
    tokenizer = build_tokenizer()
    chat = Chat(tokenizer)
    with serving(Stub(vllm_like(*TWO))) as stub:
        assert run(model, *DOORS, "--url", stub.url, "--temperature", "0.5") == 0
    first, second = stub.bodies("/v1/completions")
    reply = tokenizer.encode(TWO[0], add_special_tokens=False)
    assert first["prompt"] == chat.open("goal left")  # no rules: the folder says that it was not told them
    assert second["prompt"] == first["prompt"] + reply + chat.reply_to("goal left")
    assert first["seed"] != second["seed"]
    fixed = {"model": "doors", "temperature": 0.5, "max_tokens": 8, "stop_token_ids": [5], "return_token_ids": True}
    whole = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True}
    for body in (first, second):
        assert {name: body[name] for name in body if name not in ("prompt", "seed")} == fixed | whole


def test_a_server_samples_with_the_seeds_of_this_process(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    submit = TransformersEngine.submit
    monkeypatch.setattr(TransformersEngine, "submit", lambda self, r: (seeds.append(r.seed), submit(self, r))[1])
    run(model, *DOORS, "--seed", "7")
    with serving(Stub(vllm_like(*[TWO[0]] * 5))) as stub:
        run(model, *DOORS, "--seed", "7", "--url", stub.url)
    sent = [body["seed"] for body in stub.bodies("/v1/completions")]
    assert len(sent) == 5
    assert sent[: len(seeds)] == seeds


def test_messages_hold_the_whole_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter(["I try.\n<action>up</action>", "Then <action>left</action>"])
    with serving(Stub(lambda asked: chat_like(next(answers))(asked))) as stub:
        assert run(*DOORS, "--url", stub.url, "--model", "gpt", "--tokens", "99") == 0
    first, second = stub.bodies("/v1/chat/completions")
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][0] == first["messages"][0]
    assert "The observation names the one that opens" in first["messages"][0]["content"]  # it has to be told the rules
    assert second["messages"][1]["content"] == "I try.\n<action>up</action>"
    assert second["messages"][2]["content"] == "goal left"
    assert set(first) == {"model", "messages", "max_tokens", "seed", "temperature"}
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("gpt", 99, 1.0)
    told = capsys.readouterr().out
    assert "reply (valid):\n  Then <action>left</action>\n" in told  # what a token is only the server knows


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"finish_reason": "length"}, "turn_tokens: reward 0"),  # not executed: the model was not done
        ({"message": {"content": None}}, "turns: reward 0"),  # such as a refusal
    ],
)
def test_half_a_message_and_none(changes: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Stub(chat_like("<action>left</action>", **changes))) as stub:
        assert run(*DOORS, "--url", stub.url, "--turns", "2") == 1
    assert told in capsys.readouterr().out


def test_a_reply_that_fills_its_room_ends_the_episode(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    eight = "<action> up up up up up up up"
    with serving(Stub(vllm_like(eight, finish_reason="length"))) as stub:
        assert run(model, *DOORS, "--url", stub.url) == 1
    assert "turn_tokens: reward 0" in capsys.readouterr().out


@pytest.mark.parametrize("key", [None, "sk-hunter2"])
def test_the_key_goes_to_the_server_and_nowhere_else(
    key: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with serving(Stub(chat_like("<action>left</action>"))) as stub:
        assert run(*DOORS, "--url", stub.url) == 0
    sent = {asked.headers.get("Authorization") for asked in stub.asked}
    assert sent == {f"Bearer {key}" if key else None}
    assert "hunter2" not in str(capsys.readouterr())


def test_a_key_that_cannot_be_sent_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Stub(chat_like("<action>left</action>"))) as stub:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2\n")
        assert run(*DOORS, "--url", stub.url) == 0
        assert {asked.headers.get("Authorization") for asked in stub.asked} == {"Bearer sk-hunter2"}
        monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2\nX-Other: 1")
        told = refused(capsys, *DOORS, "--url", stub.url)
    assert "OPENAI_API_KEY has characters that no key has" in told
    assert "hunter2" not in told


def test_a_redirection_is_not_followed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hunter2")
    with serving(Stub(chat_like("x"))) as thief:
        to_thief = Answer(302, b"", {"Location": f"{thief.url}/models"})
        with serving(Stub(lambda asked: to_thief)) as stub:
            assert "HTTP 302, Found" in refused(capsys, *DOORS, "--url", stub.url)
    assert thief.asked == []


# A person


def test_a_person_plays(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("up\n<think>so</think><action>left</action>\n"))
    assert run(*DOORS, "--human") == 0
    told = capsys.readouterr().out
    rules = "Four doors. The observation names the one that opens.\nActions: up, down, left, right\n"
    assert told.startswith(rules + "tiny/Doors-v0 level 1")
    assert "actions: up → no effect\n" in told
    assert told.endswith("solved: reward 1, scaled 0.5, 1 of 2 actions effective, optimal 1\n")


def test_a_person_who_leaves(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("up\n"))
    assert "the input ended before the episode did" in refused(capsys, *DOORS, "--human")


# What goes wrong with a server: exit code 2 and one line

OTHER = '{"object": "list", "data": [1]}'
FAILURES: dict[str, tuple[Answer, str]] = {
    "not JSON": (Answer(body=b"<html>\n<body>hi"), "the answer is no JSON: <html> <body>hi"),
    "nothing": (Answer(body=b""), "the answer is no JSON"),
    "half": (Answer(body=b'{"da', headers={"Content-Length": "99"}), "the answer broke off"),
    "another schema": (Answer(body=OTHER.encode()), f"not an answer of OpenAI's API: {OTHER}"),
    "a list": (Answer(body=[]), "not an answer of OpenAI's API: []"),
    "a deep one": (Answer(body=b"[" * 100_000), "the answer is no JSON: [[["),
    "no model": (
        Answer(body={"data": []}),
        "serves several models or none; name one that it has: none",
    ),
    "two models": (
        Answer(body={"data": [{"id": "a"}, {"id": "b"}]}),
        "serves several models or none; name one that it has: a, b",
    ),
    "not found": (Answer(404, {"detail": "Not Found"}), "/v1/models: HTTP 404, Not Found"),
    "forbidden": (Answer(401, {"error": {"message": "bad key"}}), "/v1/models: HTTP 401, bad key"),
    "broken": (Answer(500, b""), "/v1/models: HTTP 500, Internal Server Error (tried 3 times)"),
    "overloaded": (Answer(429, {"message": "later"}), "/v1/models: HTTP 429, later (tried 3 times)"),
    "long words": (Answer(400, b"x" * 5000), "HTTP 400, " + "x" * 199 + "…"),
}


@pytest.mark.parametrize(("answer", "told"), FAILURES.values(), ids=FAILURES)
def test_failures(answer: Answer, told: str, pauses: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Stub(lambda asked: answer)) as stub:
        assert told in refused(capsys, *DOORS, "--url", stub.url)
    again = answer.status in (429, 500) or "Content-Length" in answer.headers
    assert (len(stub.asked), pauses) == ((3, [1, 2]) if again else (1, []))


def test_a_server_that_is_down(pauses: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Stub(chat_like(""))) as stub:
        url = stub.url
    line = refused(capsys, *DOORS, "--url", url)
    assert line == f"wmact: {url}/models: no connection, Connection refused (tried 3 times)"
    assert pauses == [1, 2]


def test_an_engine_that_breaks_down(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was played until then has been told."""
    step, steps = TransformersEngine.step, itertools.count(1)

    def fail(self: TransformersEngine) -> list[Completion]:
        if next(steps) > 8:  # a reply that ends after 4 tokens takes as many
            raise EngineFailed("vLLM failed: out of memory")
        return step(self)

    monkeypatch.setattr(TransformersEngine, "step", fail)
    monkeypatch.setattr(tiny_worlds.Doors, "_solved", lambda env: False)
    assert run(model, *DOORS) == 2
    told, line = capsys.readouterr()
    assert line == "wmact: vLLM failed: out of memory\n"
    assert told.count("reply (valid, 4 tokens)") == 2
    assert told.endswith("── turn 3 of 5 ──\nobservation:\n  goal left\n")


def test_a_server_that_is_slow(pauses: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Stub(lambda asked: Answer(body=VLLM_MODELS, delay=2))) as stub:
        line = refused(capsys, *DOORS, "--url", stub.url, "--timeout", "0.2")
    assert line == f"wmact: {stub.url}/models: no answer within 0.2 s (tried 3 times)"
    assert len(stub.asked) == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_recovers(
    status: int, model: str, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    good, count = vllm_like(*TWO), iter(range(99))
    # models, the first reply twice in vain, and in the end; then the second
    with serving(Stub(lambda asked: Answer(status, b"") if next(count) in (1, 2) else good(asked))) as stub:
        assert run(model, *DOORS, "--url", stub.url) == 0
    assert capsys.readouterr() == (SOLVED, "")
    first, again, at_last, second = stub.bodies("/v1/completions")
    assert first == again == at_last != second
    assert pauses == [1, 2]


def test_a_model_that_it_does_not_have(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Stub(vllm_like())) as stub:
        line = refused(capsys, model, *DOORS, "--url", stub.url, "--model", "other")
    assert f"{stub.url} serves no model 'other'; name one that it has: doors" in line


NO_IDS = {"choices": [{"finish_reason": "stop", "text": "<action> up </action>"}]}
BAD_IDS = [[], [-1], ["5"], [True], [2**31], None, 5, [5] * 9]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (NO_IDS, "answers without token ids, as vLLM's would; leave the model folder out to talk in messages"),
        ({"choices": [{"finish_reason": "stop", "token_ids": [7]}]}, "ended a reply without its end-of-turn token"),
        ({"choices": [{"finish_reason": "abort", "token_ids": [5]}]}, "not an answer of OpenAI's API"),
        *(({"choices": [{"finish_reason": "stop", "token_ids": ids}]}, "not an answer of OpenAI's") for ids in BAD_IDS),
    ],
)
def test_bad_token_ids(body: Any, told: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Stub(lambda a: Answer(body=VLLM_MODELS if a.path == "/v1/models" else body))) as stub:
        assert told in refused(capsys, model, *DOORS, "--url", stub.url)


def test_a_server_that_is_not_vllms(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Stub(chat_like("x"))) as stub:
        line = refused(capsys, model, *DOORS, "--url", stub.url)
    assert "does not tell how long a context it serves, as vLLM's would; leave the model folder out" in line


# The command line

BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "nobody": (("--env", "wmact/Maze-v0"), "who plays?"),
    "two": (("nano", "--human", "--env", "wmact/Maze-v0"), "who plays?"),
    "no environment": (("nano",), "--env"),
    "unknown environment": (("nano", "--env", "wmact/Mace-v0"), "'wmact_envs:wmact/Mace-v0'"),
    "unknown split": (("nano", "--env", "wmact/Maze-v0", "--split", "exam"), "split='exam'"),
    "unknown argument": (("nano", "--env", "wmact/Maze-v0", "--env.kwargs", '{"hue": 1}'), "'hue'"),
    "no JSON": (("nano", "--env", "wmact/Maze-v0", "--env.kwargs", "{hue: 1}"), "'{hue: 1}' is no JSON"),
    "no object": (("nano", "--env", "wmact/Maze-v0", "--env.kwargs", "[1]"), "'[1]' is no JSON object"),
    "no such level": (
        ("nano", "--env", "wmact/Maze-v0", "--split", "test", "--level", "1000"),
        "--level 1000: there are 1000 levels, which count from 0",
    ),
    "negative level": (("nano", "--env", "wmact/Maze-v0", "--level", "-1"), "--level -1"),
    "no turn": (("nano", "--env", "wmact/Maze-v0", "--turns", "0"), "max_turns=0: must be at least 1"),
    "no token": (("nano", "--env", "wmact/Maze-v0", "--tokens", "0"), "limits.turn_tokens=0: must be above 0"),
    "cold": (("nano", "--env", "wmact/Maze-v0", "--temperature", "-1"), "temperature=-1.0"),
    "no folder": (("./none", "--env", "wmact/Maze-v0"), "model='./none': no such folder"),
    "a file's address": (("--url", "file:///etc/passwd", "--env", "wmact/Maze-v0"), "url='file:///etc/passwd'"),
    "a bad port": (("--url", "http://127.0.0.1:x/v1", "--env", "wmact/Maze-v0"), "127.0.0.1:x"),
    "two addresses": (("http://a/v1", "--url", "http://b/v1", "--env", "wmact/Maze-v0"), "give one address"),
    "a name without a server": (("nano", "--model", "x", "--env", "wmact/Maze-v0"), "--model x"),
    "no time": (("http://127.0.0.1/v1", "--timeout", "0", "--env", "wmact/Maze-v0"), "timeout=0.0: must be above 0"),
    "unknown option": (("nano", "--env", "wmact/Maze-v0", "--turn", "1"), "python -m wmact play --help"),
}


@pytest.mark.parametrize(("args", "told"), BAD.values(), ids=BAD)
def test_bad_input(args: tuple[str, ...], told: str, pauses: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(capsys, *args)


# How a model is used to playing


@pytest.mark.parametrize(
    ("model", "env"),
    [("nano", "wmact/Maze-v0"), ("nano-maze", "wmact/Maze-v0"), ("nano-sokoban", "wmact/SokobanOneBox-v0")],
    ids=BUNDLED,
)
def test_a_bundled_model_plays_as_it_was_trained(model: str, env: str, capsys: pytest.CaptureFixture[str]) -> None:
    warm_start = ROOT / "configs" / "warmstart" / f"{model.removeprefix('nano-')}.yaml"
    config = yaml.safe_load(warm_start.read_text())["data"]["init_args"]
    terms = read_terms(BUNDLED[model])
    assert terms.envs == [EnvSpec(**world["env"]) for world in config["worlds"].values()]
    assert terms.limits == Limits(**config["limits"])
    assert (terms.tell_rules, terms.max_turns, terms.temperature) == (config["tell_rules"], config["max_turns"], 1.0)
    assert run(model, "--env", env, "--turns", "1") in (0, 1)
    told = capsys.readouterr().out
    assert "── turn 1 of 1 ──\nobservation:\n  wall (" in told  # as coordinates
    assert "reply (valid" in told


def test_the_command_line_beats_the_folder(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Stub(vllm_like(*TWO))) as stub:
        assert run(model, *DOORS, "--url", stub.url, "--turns", "2", "--tokens", "7", "--temperature", "0.25") == 0
    assert "turn 1 of 2" in capsys.readouterr().out
    assert {(body["max_tokens"], body["temperature"]) for body in stub.bodies("/v1/completions")} == {(7, 0.25)}


def test_arguments_are_those_of_the_environment_it_was_trained_on() -> None:
    terms = Terms([EnvSpec("wmact_envs:wmact/Maze-v0", {"layout": "cells", "loops": 0.5})])
    assert terms.kwargs("wmact_envs:wmact/Maze-v0") == {"layout": "cells", "loops": 0.5}
    assert terms.kwargs("wmact_envs:wmact/MazeHard-v0") == {"layout": "cells"}  # how it is told is the model's matter
    assert terms.kwargs("wmact_envs:wmact/ALFWorld-v0") == {}  # it is told in one way only
    assert terms.kwargs("others:Maze-v0") == Terms().kwargs("wmact_envs:wmact/Taxi-v0") == {}


def test_terms_come_back_as_they_were_written(tmp_path: Path) -> None:
    envs = [EnvSpec("a:b/C-v1", {"size": 9, "deep": {"x": [1, 2]}}), EnvSpec("a:b/D-v1")]
    terms = Terms(envs, False, 7, Limits(9, 99, 1.5), 0.5)
    write_terms(tmp_path, terms)
    assert read_terms(tmp_path) == terms
    assert read_terms(tmp_path / "elsewhere") == Terms()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "wmact.json: Expecting"),
        ("[]", "wmact.json: "),
        ('{"turns": 3}', "wmact.json: Option 'turns' is not accepted"),
        ('{"envs": [3]}', "wmact.json: envs: "),
        ('{"max_turns": "x"}', "wmact.json: max_turns: expected int, but got x"),
        ('{"max_turns": 0}', "wmact.json: max_turns=0: must be at least 1"),
        ('{"limits": {"turn_tokens": 0}}', "wmact.json: limits.turn_tokens=0: must be above 0"),
    ],
)
def test_damaged_terms(text: str, told: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("model")
    folder.mkdir()
    for file in Path(model).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "wmact.json").write_text(text)
    assert told in refused(capsys, "./model", *DOORS)
