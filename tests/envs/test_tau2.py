"""τ²-bench: gold actions earn reward 1, what counts as what, both users, and what it takes to be fast."""

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from command_line import refused
from stub_server import Answer, Asked, Stub, serving
from wmact.chat import Chat
from wmact.nano import build_tokenizer
from wmact.rollout import Limits, Task, play
from wmact_envs import tau2, tau2_engine
from wmact_envs.endpoint import Endpoint
from wmact_envs.tau2 import Tau2Env
from wmact_envs.tau2_users import Call, EndpointUser, Said, ScriptedUser

pytest.importorskip("tau2", reason=tau2_engine.INSTALL)

CHAT = Chat(build_tokenizer())
CREATE = '{"name": "create_task", "arguments": {"user_id": "user_1", "title": "Important Meeting"}}'


def begun(
    domain: str = "mock", split: str = "base", level: int = 0, **kwargs: Any
) -> tuple[Tau2Env, str, dict[str, Any]]:
    env = Tau2Env(domain, split, **kwargs)
    observation, info = env.reset(seed=0, options={"level": level})
    return env, observation, info


# Tasks and rewards


@pytest.mark.parametrize(("domain", "counts"), [
    ("airline", (30, 20, 50)), ("retail", (74, 40, 114)), ("telecom", (74, 40, 114)),
])  # fmt: skip
def test_the_splits_are_the_packages(domain: str, counts: tuple[int, int, int]) -> None:
    splits = ("train", "test", "base")
    assert tuple(Tau2Env(domain, split).num_levels for split in splits) == counts
    train, test, base = ({task.id for task in Tau2Env(domain, split).tasks} for split in splits)
    assert not train & test
    assert train | test == base


def test_telecoms_extra_tasks_are_other_sets_of_faults_than_the_benchmarks_and_can_be_solved() -> None:
    extra, base = (Tau2Env("telecom", split, solo=True).tasks for split in ("extra", "base"))

    def faults(task: Any) -> str:  # "[mms_issue]airplane_mode_on|bad_vpn[PERSONA:Easy]", and nobody's persona is met
        return str(task.id).partition("[PERSONA")[0]

    assert (len(extra), len(base)) == (2171, 114)
    assert not {faults(task) for task in extra} & {faults(task) for task in base}
    for level in range(0, 2171, 100):
        env, _, _ = begun("telecom", "extra", level, solo=True)
        *_, last = [env.step(turn) for turn in env.solution() or []]
        assert last[4]["success"]


@pytest.mark.parametrize(("kwargs", "count"), [
    ({"domain": "telecom", "split": "extra", "solo": True}, 33), ({"domain": "retail", "split": "train"}, 254),
    ({"domain": "telecom", "split": "base"}, 5), ({"domain": "mock"}, 5),
])  # fmt: skip
def test_admissible_are_calls_that_the_tools_accept(kwargs: dict[str, Any], count: int) -> None:
    env, _, info = begun(**kwargs)
    assert len(set(info["admissible"])) == len(info["admissible"]) == count
    for action in info["admissible"]:
        *_, info = env.step(action)
        assert (info["kind"], info["valid"]) == ("tool", True)


@pytest.mark.parametrize("solo", [False, True])
@pytest.mark.parametrize("domain", ["mock", "telecom"])
def test_gold_actions_of_every_task_of_the_small_domains(domain: str, solo: bool) -> None:
    golden, baseline, failed = tau2.check(domain, "base", solo=solo)
    # mock: 9 tasks, one of them without gold actions and another state to reach; solo only where there is a ticket (7),
    # of which one wants the user told something
    assert golden == {("mock", False): 8, ("mock", True): 6}.get((domain, solo), 114)
    assert baseline == {"mock": 1, "telecom": 0}[domain]
    assert failed == []


@pytest.mark.parametrize(("domain", "levels"), [("airline", (0, 2)), ("retail", (0, 1))])
def test_gold_actions_of_a_sample_of_the_large_domains(domain: str, levels: tuple[int, ...]) -> None:
    for level in levels:
        env, _, info = begun(domain, "test", level)
        turns = env.solution()
        assert turns is not None
        answers = [env.step(turn) for turn in turns]
        assert [answer[2] for answer in answers] == [False] * (len(turns) - 1) + [True]
        assert answers[-1][1] == 1.0
        assert answers[-1][4]["success"]
        assert info["level_id"] == f"{domain}/{env.task.id}"
    assert env.domain.untouched()


def test_doing_nothing_is_a_success_where_nothing_was_to_be_done() -> None:
    outcomes = []
    for level in range(3):
        env, _, info = begun("airline", "test", level)
        _, reward, ended, _, _ = env.step("Goodbye.")
        assert ended
        assert info["baseline_success"] == (reward == 1.0)
        outcomes.append(reward)
    assert set(outcomes) == {0.0, 1.0}  # both kinds are among them


def test_check_env() -> None:
    env = gymnasium.make("wmact_envs:wmact/Tau2-v0", domain="mock", split="base", disable_env_checker=True)
    check_env(env.unwrapped)  # asserts
    assert env.reset(options={"level": 0})[0] in env.observation_space


def test_half_of_the_gold_is_not_enough() -> None:
    env, _, _ = begun()
    assert env.step("Goodbye.")[1:3] == (0.0, True)
    env.reset(options={"level": 0})
    env.step(CREATE.replace("Important", "Other"))
    assert env.step("Goodbye.")[1:3] == (0.0, True)


def test_what_is_to_be_told_has_to_be_told() -> None:
    env = Tau2Env("airline", "base")
    level = [task.id for task in env.tasks].index("3")
    env.reset(options={"level": level})
    turns = env.solution()
    assert turns is not None
    assert turns[-1] == "4. Goodbye."  # task 3: four suitcases
    for last, expected in (("Goodbye.", 0.0), ("That is 4 suitcases. Goodbye.", 1.0)):
        env.reset(options={"level": level})
        for turn in turns[:-1]:
            env.step(turn)
        assert env.step(last)[1] == expected


# What counts as what


def test_a_write_a_lookup_and_a_repetition() -> None:
    env, observation, _ = begun()
    assert observation.startswith("User: You are a team member who needs to create a task")
    kinds = []
    for action in ('{"name": "get_users"}', '{"name": "get_users", "arguments": {}}', CREATE, '{"name": "get_users"}'):
        observation, reward, ended, truncated, info = env.step(action)
        assert observation == f"Tool: {info['feedback']}"
        assert (reward, ended, truncated, info["kind"], info["valid"]) == (0.0, False, False, "tool", True)
        kinds.append((info["changed"], info["effective"]))
    # a lookup tells something new, twice the same does not, a write changes, and then the lookup has news again
    assert kinds == [(False, True), (False, False), (True, True), (False, True)]
    assert "Important Meeting" in env.step('{"name": "get_users"}')[0] or "task_2" in info["feedback"]


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ('{"name": "get_users"', "no JSON"),
        ("{name: get_users}", "no JSON"),
        ('{"name": "get_users"} {"name": "get_users"}', "no JSON (Extra data"),
        ('[{"name": "get_users"}, {"name": "get_users"}]', "one tool call at a time"),
        ('[{"name": "get_users"}]', "a tool call is"),
        ('{"tool": "get_users"}', "a tool call is"),
        ('{"name": "get_users", "arguments": "{}"}', "a tool call is"),
        ('{"name": "get_users", "arguments": {}, "thought": ""}', "a tool call is"),
        ('{"name": "get_userz", "arguments": {}}', "Tool 'get_userz' not found"),
        ('{"name": "create_task", "arguments": {"title": "x"}}', "missing 1 required positional argument: 'user_id'"),
        ('{"name": "get_users", "arguments": {"tool_name": 1}}', "multiple values"),
        ('{"a":' * 9000, "too many brackets"),
        (" ", "empty message"),
    ],
)
def test_what_is_no_call_is_invalid_and_told_why(action: str, reason: str) -> None:
    env, _, _ = begun()
    observation, reward, ended, _, info = env.step(action)
    assert observation.startswith("Tool: Error: ")
    assert reason in observation
    assert (reward, ended) == (0.0, False)
    assert not info["valid"]
    assert not info["effective"]
    env.step(CREATE)
    assert env.step("Goodbye.")[1] == 1.0  # it left no trace


def test_a_call_that_the_world_refuses_is_valid_and_idle() -> None:
    env, _, _ = begun()
    info = env.step('{"name": "update_task_status", "arguments": {"task_id": "task_9", "status": "completed"}}')[4]
    assert (info["valid"], info["changed"], info["effective"]) == (True, False, False)
    assert info["feedback"] == "Error: Task task_9 not found"


def test_a_calculation_that_would_not_end_is_not_begun() -> None:
    env, _, _ = begun("retail", "test")
    ask = '{"name": "calculate", "arguments": {"expression": "%s"}}'
    assert env.step(ask % "9**9**9**9")[4]["feedback"].startswith("Error: ** is no operator")
    assert env.step(ask % "9*9")[4]["feedback"] == "81.0"


def test_half_a_surrogate_pair_does_not_come_back() -> None:
    env, _, _ = begun()
    observation = env.step('{"name": "create_task", "arguments": {"user_id": "\\ud800", "title": "x"}}')[0]
    assert observation.encode()
    assert "?" in observation


def test_words_are_for_the_user_and_json_for_the_tools() -> None:
    env, _, _ = begun("telecom", "test", user="scripted")
    info = env.step("name: get_users {}")[4]
    assert (info["kind"], info["valid"], info["effective"]) == ("user", True, True)
    assert info["feedback"].startswith("You are John Smith")  # what the user knows comes second
    repeated = [env.step("And?")[4]["effective"] for _ in range(3)]
    assert repeated == [True, True, False]  # how it wants things done, "Yes, please go ahead.", and that again


def test_solo_has_a_ticket_all_tools_and_no_user() -> None:
    env, observation, _ = begun("telecom", "test", solo=True)
    assert observation.startswith("Ticket: The user has been unable to send MMS messages")
    assert "You cannot talk to the user" in env.rules
    assert {"toggle_data", "refuel_data"} <= set(env.domain.tools)
    observation, _, ended, _, info = env.step("Hello?")
    assert (observation, ended, info["valid"]) == (
        "Tool: Error: There is no user to talk to: call a tool.",
        False,
        False,
    )
    assert env.step('{"name": "toggle_data"}')[4]["changed"]
    assert env.step('{"name": "done"}')[2]


def test_what_went_before_is_told() -> None:
    env = Tau2Env("mock", "base")
    level = [task.id for task in env.tasks].index("update_task_with_message_history")
    lines = env.reset(options={"level": level})[0].split("\n\n")
    assert [line.partition(":")[0] for line in lines] == ["User", "You", "Tool", "You", "User"]


def test_episodes_do_not_see_each_others_writes() -> None:
    first, second = begun()[0], begun()[0]
    first.step(CREATE)
    assert "task_2" not in second.step('{"name": "get_users"}')[0]
    one, other = begun("retail", "test")[0], begun("retail", "test")[0]
    turns = one.solution()
    assert turns is not None
    for turn in turns[:-1]:
        changed = one.step(turn)[4]["changed"]
    assert changed
    assert one.environment.tools is not other.environment.tools
    assert other.environment.tools is other.domain.shared.tools
    assert one.domain.untouched()


def test_the_rules_say_as_much_as_they_are_asked_to() -> None:
    full, short, bare = (Tau2Env("mock", "base", policy=p, tools=t).rules for p, t in (
        (True, "schemas"), (True, "signatures"), (False, "none")))  # fmt: skip
    assert '{"name": "create_task", "description"' in full
    assert "create_task(user_id: str, title: str, description: str = None): Create a new task" in short
    assert "<policy>" in short
    assert "<" not in bare
    assert "FlightInfo | dict" in Tau2Env("airline", tools="signatures").rules
    assert "tau2.domains" not in Tau2Env("airline", tools="signatures").rules


# Users


class Tool:
    name = "toggle_data"
    openai_schema = {"type": "function", "function": {"name": "toggle_data", "parameters": {}}}


def test_the_scripted_user() -> None:
    user = ScriptedUser()
    user.begin("Make a task.", "", [Tool()], 0)
    assert user.hear("Hi!") == Said("Make a task.")
    assert user.hear("Anything else?") == Said("Yes, please go ahead.")
    assert user.hear("Please toggle data now.") == Said("", (Call("toggle_data", {}),))
    assert user.hear('Use `toggle_data` {"on": true} now').calls == (Call("toggle_data", {"on": True}),)
    assert user.told(["off"]) == Said("I have done that. off")
    assert user.hear("YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON.") == Said("###TRANSFER###")
    assert user.hear("Have a nice day!") == Said("###STOP###")


def completion(text: str | None, *calls: tuple[str, str]) -> Answer:
    functions = [{"id": "x", "type": "function", "function": {"name": n, "arguments": a}} for n, a in calls]
    message: dict[str, Any] = {"role": "assistant", "content": text} | ({"tool_calls": functions} if calls else {})
    return Answer(body={"choices": [{"message": message, "finish_reason": "stop"}]})


def answering(*answers: Answer) -> Stub:
    """Answers one after the other, the last again and again; and tells its one model."""
    waiting = list(answers)

    def answer(asked: Asked) -> Answer:
        if asked.path == "/v1/models":
            return Answer(body={"data": [{"id": "customer"}]})
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    return Stub(answer)


def test_a_user_on_a_server() -> None:
    says = (completion("My data is off."), completion(None, ("toggle_data", "{}")), completion("It works. ###STOP###"))
    with serving(answering(*says)) as stub:
        env, observation, _ = begun("telecom", "test", user=stub.url)
        assert observation == "User: My data is off."
        observation, _, ended, _, info = env.step("Please switch your data on.")
    assert (observation, ended, info["changed"]) == ("User: It works. ###STOP###", True, True)
    first, second, third = stub.bodies("/v1/chat/completions")
    assert first["model"] == "customer"
    assert [m["role"] for m in first["messages"]] == ["system", "user"]
    assert first["messages"][0]["content"].startswith("# User Simulation Guidelines")
    assert "John Smith" in first["messages"][0]["content"]
    assert first["messages"][1]["content"] == "Hi! How can I help you today?"
    assert "toggle_data" in [tool["function"]["name"] for tool in first["tools"]]
    assert [m["role"] for m in third["messages"][-2:]] == ["assistant", "tool"]
    assert third["messages"][-1]["content"].startswith("Mobile Data is now")
    assert third["messages"][:-2] == second["messages"]


def test_thoughts_that_a_server_leaves_in_are_not_said() -> None:
    with serving(answering(completion("<think>I am Mia.</think> Hello."))) as stub:
        assert begun(user=stub.url)[1] == "User: Hello."


RUBBISH = [
    Answer(body=b"<html>"), Answer(body={"choices": []}), completion(""), completion(None),
    completion("<think></think>"), completion(None, ("toggle_data", "{")), completion(None, ("toggle_data", "[]")),
]  # fmt: skip


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_rubbish_of_a_server_is_asked_for_again_and_then_an_error(rubbish: Answer) -> None:
    with serving(answering(rubbish, completion("Hello."))) as stub:
        user = EndpointUser(Endpoint(stub.url, pause=0.01), None)
        user.begin("", "prompt", [], 7)
        assert user.hear("Hi!") == Said("Hello.")
    assert [body["seed"] for body in stub.bodies("/v1/chat/completions")] == [7, 8]
    with serving(answering(rubbish)) as stub:
        user = EndpointUser(Endpoint(stub.url, pause=0.01), None)
        user.begin("", "prompt", [], 7)
        with pytest.raises(OSError, match=r"chat/completions: .*\(tried 3 times\)$"):
            user.hear("Hi!")
    assert len(stub.bodies("/v1/chat/completions")) == 3


def test_a_user_that_never_stops_calling_tools_is_an_error() -> None:
    with serving(answering(completion("Hello."), completion(None, ("check_status_bar", "{}")))) as stub:
        env, _, _ = begun("telecom", "test", user=stub.url)
        with pytest.raises(OSError, match="more than 20 tool calls in a row"):
            env.step("What do you see?")


def test_a_server_that_is_down_or_silent_ends_the_episode_as_an_error(scripted: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("wmact_envs.endpoint.time", SimpleNamespace(sleep=lambda seconds: None))
    engine = scripted(lambda request: "<action> up </action>")
    with serving(answering(completion("Hello."), Answer(delay=1.0))) as stub:
        env = Tau2Env("mock", "base", user=stub.url, user_timeout=0.2)
        (silent,) = play([env], [Task(0, 0, 0)], engine, CHAT, max_turns=3, limits=Limits(), tell_rules=False)
    (down,) = play([env], [Task(0, 0, 0)], engine, CHAT, max_turns=3, limits=Limits(), tell_rules=False)
    assert (silent.stop_reason, down.stop_reason) == ("error", "error")
    assert "no answer within 0.2 s (tried 3 times)" in str(silent.error)
    assert "no connection" in str(down.error)


# Bad arguments, and the package


def test_play_with_a_server_that_is_down_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr("wmact_envs.endpoint.time", SimpleNamespace(sleep=lambda seconds: None))
    kwargs = json.dumps({"domain": "mock", "split": "base", "user": "http://127.0.0.1:9/v1", "user_model": "m"})
    line = refused(capsys, "play", "--human", "--env", "wmact/Tau2-v0", "--env.kwargs", kwargs)
    assert "wmact/Tau2-v0 failed: OSError: http://127.0.0.1:9/v1/chat/completions: no connection" in line


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"domain": "bank"}, "domain='bank': use one of airline, retail, telecom, mock"),
        ({"split": "val"}, "split='val': domain 'retail' has train, test, base"),
        ({"domain": "mock"}, "split='train': domain 'mock' has base"),
        ({"solo": True}, "domain='retail' has no mode without a user"),
        ({"user": "gpt"}, "user='gpt': use 'scripted' or the address"),
        ({"tools": "all"}, "tools='all': use schemas, signatures or none"),
        ({"user": "http://x", "user_timeout": 0}, "timeout=0: must be above 0"),
        ({"render_mode": "human"}, "render_mode='human'"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        Tau2Env(**kwargs)


def test_bad_levels_and_steps() -> None:
    env = gymnasium.make("wmact_envs:wmact/Tau2-v0", domain="mock", split="base", disable_env_checker=True).unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("Hello")
    for options, error in (({"level": 9}, IndexError), ({"level": True}, ValueError), ({"lvl": 1}, ValueError)):
        with pytest.raises(error):
            env.reset(options=options)
    env.reset(seed=0)
    with pytest.raises(TypeError):
        env.step(3)
    env.step("Goodbye")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("Hello")


def test_without_the_package_it_is_one_line() -> None:
    code = (
        "import sys; sys.modules['tau2'] = None\n"
        "import wmact_envs.tau2\n"
        "from wmact.environments import EnvSpec\n"
        "try:\n    EnvSpec('wmact_envs:wmact/Tau2-v0').make()\nexcept ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert tau2_engine.INSTALL in line


def test_importing_the_environment_imports_neither_the_package_nor_its_heavy_parts() -> None:
    code = (
        "import sys, wmact_envs.tau2 as ours\n"
        "assert 'tau2' not in sys.modules\n"
        "ours.Tau2Env('mock', 'base')\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "tau2" in done.stdout.split()
    assert not {"litellm", "torch", "wmact"} & set(done.stdout.split())
    assert done.stderr == ""  # the package is kept quiet


def test_the_command_line_tells_what_it_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        tau2.main(["--check", "--domain", "mock"])
    assert stop.value.code == 0
    assert "mock: gold actions solve 8 of 8 tasks, doing nothing 1" in capsys.readouterr().out


def test_calls_are_read_as_json() -> None:
    assert tau2._read_call('{"name": "a", "arguments": {"b": "two\nlines"}}') == ("a", {"b": "two\nlines"})
    assert json.loads(begun()[0].example_actions[0])["name"] == "create_task"
