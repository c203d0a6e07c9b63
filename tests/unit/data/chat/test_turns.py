"""Records of conversations, rankings and prompts in the formats that are in use."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalite.data.chat.turns import (
    Ranking,
    Turn,
    parse_conversation,
    parse_prompt,
    parse_ranking,
)
from megalite.data.records import read_records
from megalite.errors import DataError
from tests.unit.data.conftest import write_jsonl

HELLO = (Turn("user", "hi"), Turn("assistant", "hello"))
CONVERSATIONS = {
    "alpaca": ({"instruction": "hi", "input": "", "output": "hello"}, HELLO),
    "alpaca without input": ({"instruction": "hi", "output": "hello"}, HELLO),
    "alpaca with input": (
        {"instruction": "add", "input": "1 2", "output": "3"},
        (Turn("user", "add", "1 2"), Turn("assistant", "3")),
    ),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        HELLO,
    ),
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "hello"},
            ]
        },
        (Turn("system", "be brief"), *HELLO),
    ),
    "prompt and response": ({"prompt": "hi", "response": "hello"}, HELLO),
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_conversations(kind):
    record, turns = CONVERSATIONS[kind]
    assert parse_conversation(record) == turns
    assert parse_prompt(record) == turns[:-1]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "hi", "answers": ["good", "fair", "bad"]},
        {"prompt": [{"role": "user", "content": "hi"}], "answers": ["good", "fair", "bad"]},
        {"instruction": "hi", "answers": ["good", "fair", "bad"]},
        {"messages": [{"role": "user", "content": "hi"}], "answers": ["good", "fair", "bad"]},
    ],
)
def test_rankings(record):
    assert parse_ranking(record) == Ranking((Turn("user", "hi"),), ("good", "fair", "bad"))
    pair = {key: value for key, value in record.items() if key != "answers"}
    pair |= {"chosen": "good", "rejected": "bad"}
    assert parse_ranking(pair) == Ranking((Turn("user", "hi"),), ("good", "bad"))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_every_kind_of_file_gives_the_same_records(tmp_path, suffix):
    records = [record for record, _ in CONVERSATIONS.values() if "messages" in record] * 3
    path = tmp_path / f"records.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, records)
    elif suffix == "json":
        path.write_text(json.dumps(records))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    assert read_records([path], parse_conversation) == [CONVERSATIONS["messages"][1]] * 3
    broken = [*records, {"messages": [{"role": "wizard", "content": "x"}]}]
    if suffix == "jsonl":
        write_jsonl(path, broken)
    elif suffix == "json":
        path.write_text(json.dumps(broken))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(broken), path)
    place = {"jsonl": ":4: ", "json": ":record 4: ", "parquet": ":record 4: "}[suffix]
    with pytest.raises(DataError, match=f"records.{suffix}{place}role 'wizard' must be one of"):
        read_records([path], parse_conversation)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
KEYS = ["prompt", "messages", "conversations", "instruction", "input", "output", "response"]
KEYS += ["answers", "chosen", "rejected", "role", "content", "from", "value"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON))
@pytest.mark.parametrize("parse", [parse_conversation, parse_ranking, parse_prompt])
def test_any_object_is_parsed_or_refused(parse, record):
    try:
        parsed = parse(record)
    except (KeyError, TypeError, ValueError):
        return
    turns = parsed.prompt if isinstance(parsed, Ranking) else parsed
    assert turns
    assert all(isinstance(turn.text, str) for turn in turns)
