"""Files of triplets: what is written is read, what is wrong is named with its line and column, games are cut whole."""

import json
import os
import re
from pathlib import Path

import pytest

from wmact.rwml.triplets import Said, part_of, read_triplets, write_triplets


def test_what_is_written_is_read(tmp_path, triplet):
    rows = [triplet(), triplet(game="ü\ud800", next="\x1b[31m\u2028", step=3, success=True, source="walkthrough")]
    rows.append(triplet(history=(Said("observation", "a"), Said("action", "b"), Said("observation", "c"))))
    path = tmp_path / "deep" / "file.jsonl"
    write_triplets(path, {"rules": {"x": "y"}}, rows)
    found = read_triplets(path)
    assert found.triplets == tuple(rows)
    assert found.provenance == {"rules": {"x": "y"}}
    assert path.read_bytes().isascii()
    assert os.listdir(path.parent) == ["file.jsonl"]
    assert found.triplets[2].observation == "c"


def test_a_file_is_read_once_and_again_when_it_changes(write, triplet):
    path = write(triplet())
    assert read_triplets(path) is read_triplets(path)
    write(triplet(), triplet(step=1))
    assert len(read_triplets(path).triplets) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"action": None}, "column 'action' is NoneType, not str"),
        ({"step": True}, "column 'step' is bool, not int"),
        ({"effective": 1}, "column 'effective' is int, not bool"),
        ({"state": "x"}, "column 'state' is unknown"),
        ({"source": "expert"}, "column 'source' is 'expert', not one of model, random, walkthrough"),
        ({"history": []}, "column 'history' does not end in an observation"),
        ({"history": [{"role": "observation", "text": "a"}, {"role": "action", "text": "b"}]}, "does not end in an"),
        ({"history": [{"role": "user", "text": "a"}]}, "column 'history', entry 0 is not"),
        ({"history": ["a"]}, "column 'history', entry 0 is not"),
    ],
)
def test_another_schema_names_line_and_column(write, triplet, change, told):
    path = Path(write(triplet(), triplet(), triplet()))
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 3: ")) as error:
        read_triplets(path)
    assert told in str(error.value)


def test_files_that_were_put_together_are_one(write, triplet):
    """As by `cat`: rules of both, and the first's provenance with the others' beside it."""
    path = Path(write(triplet()))
    one = path.read_text()
    write_triplets(path, {"rules": {"b": "2"}, "source": "walkthrough"}, [triplet(step=7)])
    path.write_text(one + path.read_text() + one)
    found = read_triplets(path)
    assert [each.step for each in found.triplets] == [triplet().step, 7, triplet().step]
    first = json.loads(one.splitlines()[0])["provenance"]
    second = {"rules": {"b": "2"}, "source": "walkthrough"}
    assert found.provenance == first | {"rules": first.get("rules", {}) | {"b": "2"}, "joined": [second, first]}


def test_what_is_missing_or_no_json_is_named(write, triplet):
    path = Path(write(triplet()))
    first, row = path.read_text().splitlines()
    for lines, told in {
        (first, '{"env": "x"}'): "line 2: column 'game' is missing",
        (first, row[:-5]): "line 2 is no JSON",
        (first, "[]"): "line 2 is no JSON object, but list",
        (row,): "line 1: no provenance",
        ('{"state": "x", "action": "y"}',): "its columns are 'state', 'action'",
        (first, "[" * 10**5): "line 2 is no JSON: ",
        (first,): "holds no triplets",
    }.items():
        path.write_text("\n".join(lines))
        with pytest.raises(ValueError, match=re.escape(told)):
            read_triplets(path)
    path.write_bytes(b"PAR1\xff\x00")
    with pytest.raises(ValueError, match=re.escape(f"{path} is no text")):
        read_triplets(path)
    with pytest.raises(FileNotFoundError, match="python -m wmact collect writes one"):
        read_triplets(path.with_name("none.jsonl"))


def test_games_are_held_out_whole_and_always_the_same(triplet):
    rows = [triplet(game=f"g{i % 200}", step=i // 200) for i in range(1000)]
    train, held_out = (part_of(rows, part, 0.2) for part in ("train", "held_out"))
    games = [{each.game for each in some} for some in (train, held_out)]
    assert not games[0] & games[1]
    assert len(train) + len(held_out) == 1000 == len(part_of(rows, "all", 0.2))
    # 200 games at 0.2: 40 ± 5.7; the very number is fixed by sha256
    assert 28 < len(games[1]) < 52
    assert games[1] == {each.game for each in part_of(reversed(rows), "held_out", 0.2)}
    # a larger share holds out these and more
    assert games[1] < {each.game for each in part_of(rows, "held_out", 0.3)}
    assert part_of(rows, "held_out", 0) == [] == part_of(rows, "train", 1)


def test_what_asks_the_same_has_one_digest(triplet):
    assert triplet().digest == triplet(next="other", seed=5, game="g1").digest
    assert triplet().digest != triplet(action="go to desk 2").digest
