"""What language models really write, and that reading it never fails and takes linear time."""

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wmact import protocol
from wmact.protocol import Answer, parse

MOVES = ("up", "down", "left", "right")
TAXI = ("north", "south", "east", "west", "pickup", "dropoff")
HOUSE = ("look", "go to fridge 1", "open fridge 1", "take apple 1 from fridge 1", "examine the desk")


@pytest.mark.parametrize(
    ("content", "actions"),
    [
        ("up", ["up"]),
        ("up down", ["up", "down"]),
        ("Up, DOWN,left", ["up", "down", "left"]),
        ("up; down ;left", ["up", "down", "left"]),
        ("up|down || left", ["up", "down", "left"]),
        ("up\ndown\r\nleft\n", ["up", "down", "left"]),
        ("up -> down => left > right", ["up", "down", "left", "right"]),
        ("up → down ⇒ left", ["up", "down", "left"]),  # between words an arrow says what comes next
        ("→ ↑ ↓ ←", ["right", "up", "down", "left"]),  # alone it is an action
        ("⬆️⬇️ ⬅️,➡️", ["up", "down", "left", "right"]),
        ("→→↓", ["right", "right", "down"]),
        ("1. up 2. left", ["up", "left"]),
        ("1) up\n2) left\n10) down", ["up", "left", "down"]),
        ("(1) up (2) left", ["up", "left"]),
        ("1.up 2.left", ["up", "left"]),
        ("Step 1: up\nStep 2: left", ["up", "left"]),
        ("- up\n- left\n* down\n• right", ["up", "left", "down", "right"]),
        ('["up", "left"]', ["up", "left"]),
        ("{'action': 'up'}", ["up"]),
        ("`up` ‘left’ “down” **right**", ["up", "left", "down", "right"]),
        ("```\nup\nleft\n```", ["up", "left"]),
        ("Move up, then go to the left and finally turn right.", ["up", "left", "right"]),
        ("My next action is: up!", ["up"]),
        ("right (1,2) down (2,2)", ["right", "down"]),  # the nano model's expected positions
        ("right (wall) up ( 3,4 ) left (a (nested (deep)) remark)", ["right", "up", "left"]),
        ("up (not left, as there is a wall)", ["up"]),
        ("up left (unfinished", ["up", "left", "unfinished"]),
        ("up : down", ["up", "down"]),
        ("up... down…", ["up", "down"]),
        ("up/left", ["up", "left"]),
        ("UP_DOWN", ["up_down"]),
        ("up jump LEFT", ["up", "jump", "left"]),  # an unreadable action counts in N
        ("上 up", ["上", "up"]),
        ("up x2", ["up", "x2"]),
        ("up 2", ["up", "2"]),
        ("x" * 100, ["x" * 40]),
    ],
)
def test_single_words(content: str, actions: list[str]) -> None:
    assert parse(f"<think>so</think> <action>{content}</action>", MOVES) == Answer("so", actions, "valid")


@pytest.mark.parametrize(
    ("text", "thinking", "actions"),
    [
        ("<think>a</think><action>up</action>", "a", ["up"]),
        ("<THINK> a </Think>\n\n<Action> Up </ACTION>", "a", ["up"]),
        ("< think >a< / think >< action >up< / action >", "a", ["up"]),
        ("<thinking>a</thinking><actions>up</actions>", "a", ["up"]),
        ("<think>a</think><answer>up</answer>", "a", ["up"]),
        ("<think>a</think><answer><action>up</action></answer>", "a", ["up"]),
        ("<think>a</think>Here it is: <action>up</action> I hope this helps.", "a", ["up"]),
        ("a </think> <action>up</action>", "a", ["up"]),  # the prompt opened the thinking
        ("<think>a <action>up</action>", "a", ["up"]),  # it was never closed
        ("<action>up</action>", "", ["up"]),
        ("I go up. <action>up</action>", "I go up.", ["up"]),
        ("<think>a</think><action>up, left", "a", ["up", "left"]),
        ("<think>a</think><action>up<action>", "a", ["up"]),
        ("<think>a</think><action>up<\\action>", "a", ["up"]),
        # a draft inside the thinking, several sets after it
        ("<think>or <action>left</action>?</think><action>up</action>", "or left?", ["up"]),
        ("<think>a</think><action>left</action> No! <action>up</action>", "a", ["up"]),
        ("<think>maybe <action>left</action>, no: <action>up</action></think>", "maybe left, no:", ["up"]),
        ("<think>a</think>Between <action> and </action>: <action>up</action>", "a", ["up"]),
        ("<think>a</think><action>up</action> in <action></action> tags", "a", ["up"]),
        ("<think>a</think><think>b</think><action>up</action>", "ab", ["up"]),
    ],
)
def test_tags(text: str, thinking: str, actions: list[str]) -> None:
    assert parse(text, MOVES) == Answer(thinking, actions, "valid")


@pytest.mark.parametrize(
    ("text", "thinking"),
    [
        ("", ""),
        ("up", "up"),
        ("Action: up", "Action: up"),
        ("<think>up</think>", "up"),
        ("<think>up and on", "up and on"),
        ("<think>a</think><action></action>", "a"),
        ("<think>a</think><action> \n </action>", "a"),
        ("<think>a</think><action>, (nothing) ;</action>", "a"),
        ("<think>a <action>up</action></think><action></action>", "a up"),  # the draft was withdrawn
        ("<think>a</think> up </action>", "a"),
        ("<act>up</act>", "<act>up</act>"),
    ],
)
def test_unreadable(text: str, thinking: str) -> None:
    assert parse(text, MOVES) == Answer(thinking, [], "unreadable")


@pytest.mark.parametrize(
    ("names", "content", "actions"),
    [
        (TAXI, "pick up, Drop Off; pick-up drop_off PICKUP", ["pickup", "dropoff", "pickup", "dropoff", "pickup"]),
        (TAXI, "pick north up", ["pick", "north", "up"]),
        (TAXI, "north → east", ["north", "east"]),  # no right here
        (TAXI, "→", []),
        (("Go", "Stop"), "go then STOP", ["Go", "Stop"]),  # a filler that is an action, the environment's spelling
        (("a", "A"), "a A", ["a", "A"]),
        (("turn-left", "turn_right"), "turn left, Turn-Left, turn right", ["left", "turn-left", "right"]),
        (("1", "2"), "1, 2 3", ["1", "2", "3"]),
        (("+1",), "+1 | +1", ["+1", "+1"]),
    ],
)
def test_other_vocabularies(names: tuple[str, ...], content: str, actions: list[str]) -> None:
    assert parse(f"<action>{content}</action>", names).actions == actions


@pytest.mark.parametrize(
    ("content", "actions"),
    [
        ("go to fridge 1", ["go to fridge 1"]),
        ("Go  to Fridge 1\nopen fridge 1", ["go to fridge 1", "open fridge 1"]),
        ("look, go to fridge 1; open fridge 1 | look", ["look", "go to fridge 1", "open fridge 1", "look"]),
        ("1. go to fridge 1\n2. open fridge 1", ["go to fridge 1", "open fridge 1"]),
        ("- look\n* look\n• look", ["look", "look", "look"]),
        ("`look`; \"open fridge 1\"; 'look'.", ["look", "open fridge 1", "look"]),
        ('["look", "open fridge 1"]', ["look", "open fridge 1"]),
        ("open fridge 1 (it may be closed)", ["open fridge 1"]),
        ("examine the desk", ["examine the desk"]),  # no fillers here
        ("look open fridge 1", ["look open fridge 1"]),  # a space does not separate
        ("Go to fridge 2", ["go to fridge 2"]),
        ("y" * 100, ["y" * 40]),
        (" ; , | \n - -- _", []),
    ],
)
def test_multi_word_actions(content: str, actions: list[str]) -> None:
    assert parse(f"<action>{content}</action>", HOUSE).actions == actions


def test_a_separator_in_a_name_does_not_separate() -> None:
    assert parse("<action>say yes, please; look</action>", ("say yes, please", "look")).actions == [
        "say yes, please",
        "look",
    ]
    assert parse("<action>press (A)</action>", ("press (A)",)).actions == ["press (A)"]


def test_open_vocabulary_is_verbatim() -> None:
    text = "<action> Go to Fridge 1\n2. take the 'apple' (red); look,, inventory |</action>"
    assert parse(text, ()).actions == ["Go to Fridge 1", "2. take the 'apple' (red)", "look", "inventory"]
    assert parse("<action> ; </action>", []).format == "unreadable"


def test_at_most_a_thousand_actions() -> None:
    for names in (MOVES, HOUSE, ()):
        actions = parse(f"<action>{'up;' * 5000}</action>", names).actions
        assert actions == ["up"] * 1000


# Properties

STYLES = {
    "spaces": lambda actions: " ".join(actions),
    "commas": lambda actions: ", ".join(actions),
    "bars": lambda actions: " || ".join(actions),
    "arrows": lambda actions: " → ".join(actions),
    "ascii arrows": lambda actions: "->".join(actions),
    "numbered": lambda actions: " ".join(f"{i}. {action}" for i, action in enumerate(actions, 1)),
    "bullets": lambda actions: "\n".join(f"- {action}" for action in actions),
    "json": lambda actions: str(actions),
    "positions": lambda actions: " ".join(f"{action} ({i},{i})" for i, action in enumerate(actions)),
    "prose": lambda actions: "Move " + ", then go ".join(actions) + ".",
    "shouting": lambda actions: "\n".join(actions).upper(),
}
FRAMES = [
    "<think>so</think> <action>{}</action>",
    "<THINK>\nso\n</THINK>\n<Actions>\n{}\n</Actions> done",
    "<think>or <action>left</action></think><answer>{}</answer>",
    "<action>{}",
]


@given(st.lists(st.sampled_from(MOVES), min_size=1), st.sampled_from(sorted(STYLES)), st.sampled_from(FRAMES))
def test_every_style_reads_the_same(actions: list[str], style: str, frame: str) -> None:
    answer = parse(frame.format(STYLES[style](actions)), MOVES)
    assert (answer.actions, answer.format) == (actions, "valid")


@given(st.lists(st.sampled_from(HOUSE), min_size=1), st.sampled_from(["\n{}", "{};", "{} | ", "{}, ", "- {}\n"]))
def test_every_style_of_multi_word_actions_reads_the_same(actions: list[str], style: str) -> None:
    content = "".join(style.format(action) for action in actions)
    assert parse(f"<action>{content}</action>", HOUSE).actions == actions


# One action a reply, as it stands


ORDER = '{"name": "get_order_details", "arguments": {"order_id": "#W1"}}'
TAGGED = '{"name": "note", "arguments": {"text": "</think> <action>look</action> \\"so\\"</action>"}}'


@pytest.mark.parametrize(
    ("block", "action"),
    [
        ("go to desk 1, then look", "go to desk 1, then look"),
        ("  Yes, cancel it; both orders.\n(All of them.)\n", "Yes, cancel it; both orders.\n(All of them.)"),
        (ORDER, ORDER),
        (f"\n{ORDER}\n", ORDER),
        (f"```json\n{ORDER}\n```", ORDER),
        (f"```json {ORDER}```", ORDER),
        (f"\n```\n{ORDER}\n```\n", ORDER),
        (f"```python\n{ORDER}\n```", ORDER),
        ("```go to desk 1```", "go to desk 1"),
        (TAGGED, TAGGED),
        (f"```json\n{TAGGED}\n```", TAGGED),
        (f"{ORDER}\n{ORDER}", f"{ORDER}\n{ORDER}"),  # two are no action of this world, which is for it to say
        ('{"name": "look"', '{"name": "look"'),
        ('{"text": "two\nlines </think>"}', '{"text": "two\nlines </think>"}'),
        ('{"n": ' + "9" * 5000 + "}", '{"n": ' + "9" * 5000 + "}"),  # more digits than Python reads
        ('{"a":' * 9000, '{"a":' * 9000),  # more brackets than it follows
    ],
)
def test_one_action_is_the_block_as_it_stands(block: str, action: str) -> None:
    assert parse(f"<think>so</think> <action>{block}</action> Done.", (), one_action=True) == Answer(
        "so", [action], "valid"
    )


@pytest.mark.parametrize(
    ("text", "thinking", "actions"),
    [
        (f"<think>or {ORDER} or <action>{TAGGED}</action>?</think><action>look</action>", None, ["look"]),
        ("<think>a</think><action>look</action> No! <action>wait</action>", "a", ["wait"]),
        ("<think>a</think><action>look</action><action> ```json\n``` </action><action></action>", "a", ["look"]),
        ('<think>a</think><action>{"a": <action>look</action>', "a", ["look"]),  # the first is no JSON
        (f"<think>a</think><action>{TAGGED}", "a", [TAGGED]),
        (f"<think>a</think>{ORDER}", "a", []),  # no tags
    ],
)
def test_which_block_is_the_one_action(text: str, thinking: str | None, actions: list[str]) -> None:
    answer = parse(text, (), one_action=True)
    assert answer.actions == actions
    assert answer.format == ("valid" if actions else "unreadable")
    assert thinking in (None, answer.thinking)


@given(st.dictionaries(st.text(), st.one_of(st.text(), st.sampled_from(["</action>", "<action>look", "</think>"]))))
def test_any_json_object_comes_back_whole(arguments: dict[str, str]) -> None:
    call = json.dumps({"name": "note", "arguments": arguments}, ensure_ascii=False)
    assert parse(f"<think>a</think><action>{call}</action>", (), one_action=True).actions == [call]


TAGS = ["<think>", "</think>", "<action>", "</action>", "<ANSWER>", "< actions >", "<", ">", "(", ")", "→", "->", "1."]
WRITING = st.lists(
    st.one_of(st.text(max_size=6), st.sampled_from([*TAGS, *MOVES, "pick", "up", "and", " ", "-", "_", ",", "\n"]))
).map("".join)
NAMES = st.sampled_from([MOVES, TAXI, HOUSE, (), ("Go", "a-b", "c_d"), ("",), ("x, y", "(")])


@settings(max_examples=300)
@given(WRITING, NAMES)
def test_never_raises_and_returns_what_it_says(text: str, names: tuple[str, ...]) -> None:
    answer = parse(text, names)
    assert (answer.format == "valid") == bool(answer.actions)
    whole = parse(text, names, one_action=True)
    assert len(whole.actions) == (whole.format == "valid")
    assert all(action in text for action in whole.actions)
    for action in answer.actions:
        assert action
        if names and action not in names:
            assert action == action.lower()
            assert len(action) <= 40


@settings(max_examples=300)
@given(WRITING, st.sampled_from([MOVES, TAXI, ("Go", "a-b", "c_d")]))
@example("<action>pick and up", TAXI)
@example(f"<action>{'a' * 39}-b", MOVES)
def test_reading_what_was_read_changes_nothing(text: str, names: tuple[str, ...]) -> None:
    actions = parse(text, names).actions
    assert parse(f"<action>{' '.join(actions)}</action>", names).actions == actions


@given(st.text(), st.lists(st.sampled_from(MOVES), min_size=1))
def test_thinking_does_not_act(thought: str, actions: list[str]) -> None:
    thought = thought.replace("<", "")
    answer = parse(f"<think>{thought} up <action>up</action></think><action>{' '.join(actions)}</action>", MOVES)
    assert answer.actions == actions


@pytest.mark.parametrize(
    "unit",
    ["<", "< ", "(", ")", "()", "<action>", "<think>", "</think>", "<action>up", "up ", "1", "1.", "-", "a", "\n", ";"]
    + ["<action>and</action>", "(a", "→", "pick ", "`", "[", " ", "𝕏", "İ", "``` "]
    + ['<action>{"a":"', '<action>{"a":1}'],
)
def test_a_megabyte_takes_linear_time(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    inside = "<action>" + text
    for names, whole, one in ((TAXI, text, 0), (TAXI, inside, 0), (HOUSE, inside, 0), ((), inside, 0), ((), text, 1)):
        begin = time.process_time()
        parse(whole, names, one_action=bool(one))
        assert time.process_time() - begin < 10  # it takes less than one; quadratic time would be hours


# What the model is told


def test_instructions() -> None:
    told = protocol.instructions("Walk to G.\n", MOVES, ("right", "down"))
    assert told.startswith("Walk to G.\n\nActions: up, down, left, right.\n\nFirst think, between <think> and </think>")
    assert "executed in order" in told
    assert told.endswith("is in its way.</think>\n<action>right, down</action>")


@pytest.mark.parametrize("names", [MOVES, TAXI, HOUSE])
def test_the_worked_example_is_read_as_meant(names: tuple[str, ...]) -> None:
    told = protocol.instructions("Rules.", names, names[1:3])
    assert parse(told, names).actions == list(names[1:3])
    assert parse(protocol.instructions("Rules.", names, ()), names).actions == list(names[:2])


def test_instructions_for_an_open_vocabulary() -> None:
    told = protocol.instructions("Rules.", (), ())
    assert "Actions:" not in told
    assert "looks like this" not in told
    assert "<action>go to fridge 1</action>" in protocol.instructions("Rules.", (), ("go to fridge 1",))


def test_instructions_for_one_action_a_reply() -> None:
    examples = (ORDER, "Which order do you mean, and why?")
    told = protocol.instructions("Rules.", (), examples, one_action=True)
    assert told.startswith("Rules.\n\nFirst think, between <think> and </think>")
    assert "one action, and nothing else" in told
    assert "separated by commas" not in told
    first, _, second = told.partition("or like this:")
    assert [parse(part, (), one_action=True).actions for part in (first, second)] == [[e] for e in examples]
    assert protocol.instructions("Rules.", (), (), one_action=True).endswith("what came of it.")


def test_first_message() -> None:
    assert protocol.first_message("Rules.", "#P.#") == "Rules.\n\n#P.#"
    assert protocol.first_message(None, "#P.#") == "#P.#"


def test_numbers_that_are_actions_are_no_numbers_of_a_list() -> None:
    digits = tuple("0123456789")
    assert protocol.parse("<action>4, 7.</action>", digits).actions == ["4", "7"]
    assert protocol.parse("<action>7.</action>", digits).actions == ["7"]
    assert protocol.parse("<action>1. up 2. left</action>", ("up", "left")).actions == ["up", "left"]


@pytest.mark.parametrize(
    "names", [("(0,0)", "(0,2)", "(1,1)"), ("place 0,1", "place 2,2", "pass"), ("a, b; c", "d"), ("up", "down")]
)
def test_the_example_of_an_answer_can_be_read(names: tuple[str, ...]) -> None:
    told = protocol.instructions("rules", names, names[:2])
    assert protocol.parse(told[told.rindex("<action>") :], names).actions == list(names[:2])
