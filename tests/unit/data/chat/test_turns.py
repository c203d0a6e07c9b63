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
    parse_judged,
    parse_prompt,
    parse_ranking,
    parse_with_margin,
)
from megalite.errors import DataError
from tests.unit.data.conftest import read_records, write_jsonl

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
    "prompt and completion": ({"prompt": "hi", "completion": "hello"}, HELLO),
    "prompt and completion as messages": (
        {
            "prompt": [{"role": "user", "content": "hi"}],
            "completion": [{"role": "assistant", "content": "hello"}],
        },
        HELLO,
    ),
    "dolly": (
        {"instruction": "add", "context": "1 2", "response": "3", "category": "qa"},
        (Turn("user", "add", "1 2"), Turn("assistant", "3")),
    ),
    "alpaca with system and history": (
        {
            "system": "be brief",
            "history": [["one", "two"], ["three", "four"]],
            "instruction": "hi",
            "output": "hello",
        },
        (
            Turn("system", "be brief"),
            *(Turn("user", "one"), Turn("assistant", "two")),
            *(Turn("user", "three"), Turn("assistant", "four")),
            *HELLO,
        ),
    ),
    "sharegpt with system": (
        {
            "system": "be brief",
            "tools": "[]",
            "conversations": [
                {"from": "human", "value": "hi"},
                {"from": "gpt", "value": "hello"},
            ],
        },
        (Turn("system", "be brief"), *HELLO),
    ),
    "parts of content": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "h"}] * 2},
                {"role": "assistant", "content": "hello"},
            ]
        },
        (Turn("user", "hh"), HELLO[1]),
    ),
    "empty columns of another format": (
        {"messages": [], "conversations": [], "instruction": "hi", "output": "hello"},
        HELLO,
    ),
    "empty columns of a like format": (
        {"instruction": "hi", "input": "", "output": "", "context": "you", "response": "hello"},
        (Turn("user", "hi", "you"), HELLO[1]),
    ),
    "an answer that is empty": (
        {"prompt": "hi", "completion": ""},
        (HELLO[0], Turn("assistant", "")),
    ),
    "nulls beside another format": (
        {"messages": None, "prompt": None, "instruction": "hi", "input": None, "output": "hello"},
        HELLO,
    ),
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
    assert parse_ranking(record) == Ranking.of((Turn("user", "hi"),), ("good", "fair", "bad"))
    pair = {key: value for key, value in record.items() if key != "answers"}
    pair |= {"chosen": "good", "rejected": "bad"}
    assert parse_ranking(pair) == Ranking.of((Turn("user", "hi"),), ("good", "bad"))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_every_kind_of_file_gives_the_same_records(tmp_path, suffix):
    records = [CONVERSATIONS["messages"][0]] * 3
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
KEYS += ["answers", "chosen", "rejected", "role", "content", "from", "value", "history"]
KEYS += ["system", "completion", "context", "tools"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON))
@pytest.mark.parametrize("parse", [parse_conversation, parse_ranking, parse_prompt])
def test_any_object_is_parsed_or_refused(parse, record):
    try:
        parsed = parse(record)
    except (KeyError, TypeError, ValueError):
        return
    several = parsed.conversations if isinstance(parsed, Ranking) else (parsed,)
    for turns in several:
        assert turns
        assert all(isinstance(turn.text, str) for turn in turns)


QUESTION = {"role": "user", "content": "hi"}


def says(text: str) -> dict:
    return {"role": "assistant", "content": text}


HH = "\n\nHuman: hi\n\nAssistant:{}"
PAIRS = {
    "answers as messages": {
        "prompt": [QUESTION],
        "chosen": [says("good")],
        "rejected": [says("bad")],
    },
    "an answer is one message": {
        "conversations": [{"from": "human", "value": "hi"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "the prompt within the answers": {
        "chosen": [QUESTION, says("good")],
        "rejected": [QUESTION, says("bad")],
    },
    "the prompt there and within": {
        "prompt": "hi",
        "chosen": [QUESTION, says("good")],
        "rejected": [QUESTION, says("bad")],
    },
    "HH-RLHF": {"chosen": HH.format(" good"), "rejected": HH.format(" bad")},
    "HH-RLHF cut": {"prompt": HH.format(""), "chosen": "good", "rejected": "bad"},
    "several": {"answers": [[QUESTION, says("good")], [QUESTION, says("bad")]]},
}


@pytest.mark.parametrize("kind", PAIRS)
def test_a_pair_is_the_same_in_every_form(kind):
    assert parse_ranking(PAIRS[kind]) == Ranking.of((Turn("user", "hi"),), ("good", "bad"))
    if "answers" not in PAIRS[kind]:
        assert parse_prompt(PAIRS[kind]) == (Turn("user", "hi"),)


def test_a_pair_may_be_of_several_rounds_and_of_two_conversations():
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "
    chosen, rejected = parse_ranking(
        {"chosen": text + "d", "rejected": HH.format("e")}
    ).conversations
    assert [turn.text for turn in chosen] == ["a", "b", "c", "d"]
    assert [turn.text for turn in rejected] == ["hi", "e"]
    with pytest.raises(ValueError, match="'chosen' is a conversation whose last question is not"):
        parse_ranking(PAIRS["the prompt there and within"] | {"prompt": "ho"})


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
def test_a_message_says_that_it_is_not_learned(key):
    messages = [QUESTION | {key: 0}, says("one") | {key: 0}, QUESTION, says("two") | {key: 1}]
    turns = parse_conversation({"messages": messages})
    assert [turn.is_learned for turn in turns if turn.role == "assistant"] == [False, True]
    for value in (0.5, "yes"):
        with pytest.raises(ValueError, match=f"'{key}' of a message must be 0, 1"):
            parse_conversation({"messages": [QUESTION, says("one") | {key: value}]})
    with pytest.raises(ValueError, match="only an assistant's is learned"):
        parse_conversation({"messages": [QUESTION | {key: True}, says("one")]})


def test_answers_within_a_prompt_are_not_learned():
    prompt = [QUESTION, says("one"), QUESTION]
    for answer in ("two", [says("two")]):
        turns = parse_conversation({"prompt": prompt, "completion": answer})
        assert [turn.is_learned for turn in turns if turn.role == "assistant"] == [False, True]


@pytest.mark.parametrize("parse", [parse_conversation, parse_ranking, parse_prompt])
def test_an_answer_that_has_begun_in_its_prompt_is_refused(parse):
    """It was written as an answer that ends, with another behind it."""
    record = {
        "prompt": [QUESTION, says("The")],
        "completion": [says(" end")],
        "answers": ["a", "b"],
    }
    with pytest.raises(ValueError, match="'prompt' ends with an assistant's message, and no templ"):
        parse(record)
    turns = parse_conversation(record | {"completion": [QUESTION, says("end")]})
    assert [turn.is_learned for turn in turns if turn.role == "assistant"] == [False, True]


def moss_row(**said) -> dict:
    """A record of MOSS's with a round."""
    chat = {"turn_1": {"Human": "<|Human|>: hi<eoh>\n", "MOSS": "<|MOSS|>: ho<eom>\n"} | said}
    return {"meta_instruction": "be MOSS\n", "num_turns": 1, "chat": chat}


def test_moss_records_are_turns_between_their_marks():
    row = moss_row(**{"Tool Responses": "<|Results|>:\n3\n<eor>\n", "Commands": None})
    row["chat"]["turn_2"] = None  # as Parquet has what another record alone has
    turns = (Turn("system", "be MOSS\n"), Turn("user", "hi"), Turn("assistant", "ho"))
    assert parse_conversation(row) == (*turns, Turn("results", "\n3\n"))
    assert parse_prompt(moss_row()) == turns[:2]


MOSS_FAULTS = [
    (moss_row(Human="hi<eoh>\n"), "'Human' of turn_1 must begin with '<|Human|>: ' and end with"),
    (moss_row(Human="<|Human|>: hi"), "and end with '<eoh>\\n', came '<|Human|>: hi'"),
    (
        moss_row(Search="x"),
        "'Search' of turn_1 must be one of Human, Inner Thoughts, Commands, MOS",
    ),
    (
        moss_row() | {"num_turns": 2},
        "'chat' must have turn_1 to turn_{num_turns}, which is 2, has ",
    ),
    (moss_row() | {"chat": {"turn_2": {}}}, "which is 1, has turn_2"),
    (
        moss_row() | {"chat": {}},
        "'chat' must have turn_1 to turn_{num_turns}, which is 1, has none",
    ),
]


@pytest.mark.parametrize(("row", "said"), MOSS_FAULTS)
def test_other_records_of_moss_are_refused_with_their_place(row, said, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [moss_row(), row])
    with pytest.raises(DataError) as caught:
        read_records([path], parse_conversation)
    assert str(caught.value).startswith(f"{path}:2: ") and said in str(caught.value)


REFUSED = {
    "tools": ({"tools": [{"name": "f"}]}, {}),
    "images": ({"images": ["a.png"]}, {}),
    "tool_calls": ({}, {"tool_calls": [{"id": "1"}]}),
    "reasoning_content": ({}, {"reasoning_content": "hm"}),
}


@pytest.mark.parametrize("key", REFUSED)
@pytest.mark.parametrize("parse", [parse_conversation, parse_ranking, parse_prompt])
def test_what_no_template_writes_is_refused_by_name(key, parse):
    row, message = REFUSED[key]
    record = {"messages": [says("a") | message, QUESTION, says("b")], "answers": ["c", "d"]} | row
    with pytest.raises(ValueError, match=f"'{key}' can't be written by any template"):
        parse(record)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool' must be one of"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "type 'image_url'"),
        ({"messages": [{"role": "user"}]}, "a message must have 'content', has 'role'"),
        ({"messages": [{"role": "user", "content": None}]}, "must have 'content', has null there"),
        ({"messages": "[]"}, "'messages' must be a list of at least one message, came str"),
        ({"system": "a", "messages": [{"role": "system", "content": "b"}]}, "keep one of them"),
        ({"history": ["a"], "instruction": "b", "output": "c"}, "'history' must be a list of"),
        ({"instruction": "b", "output": ["c"]}, "a message must be an object, came str"),
    ],
)
def test_what_a_record_cannot_mean_is_refused(record, says):
    with pytest.raises((ValueError, TypeError), match=says):
        parse_conversation(record)


def test_ultrafeedback_is_read_binarized_and_refused_with_scores():
    pair = {key: [QUESTION, says(key)] for key in ("chosen", "rejected")}
    record = {"prompt": "hi", "prompt_id": "1", "messages": pair["chosen"], "score_chosen": 8.0}
    expected = Ranking.of((Turn("user", "hi"),), ("chosen", "rejected"))
    assert parse_ranking(record | pair) == expected
    assert parse_conversation(record)[-1].text == "chosen"
    with pytest.raises(ValueError, match="'completions' with scores .UltraFeedback. have no order"):
        parse_ranking({"instruction": "hi", "completions": [{"response": "a", "overall_score": 7}]})


def test_a_context_stands_alone_where_the_text_is_empty():
    assert Turn("user", "", "1 2").whole == "1 2"
    assert Turn("user", "add", "1 2").whole == "add\n1 2"


@pytest.mark.parametrize("label", [True, 1, 1.0])
def test_a_label_may_be_a_number(label):
    """As pandas writes a column of true and false that has gaps."""
    judged = parse_judged({"prompt": "hi", "completion": "hello", "label": label})
    assert (judged.conversations, judged.num_good) == ((HELLO,), 1)
    with pytest.raises(ValueError, match="'label' must be true or false, came 0.5"):
        parse_judged({"prompt": "hi", "completion": "hello", "label": 0.5})


def test_a_missing_key_names_those_that_there_are(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises(DataError, match="'prompt' is missing, there is 'question', 'answer'; data"):
        read_records([path], parse_conversation)


def test_margins_are_read_where_they_are_asked_for():
    pair = {"prompt": "hi", "chosen": "good", "rejected": "bad", "margin": 0.67}
    assert parse_with_margin(pair).margins == (0.67,)
    assert parse_ranking(pair).margins == parse_with_margin({**pair, "margin": None}).margins == ()
    three = {"prompt": "hi", "answers": ["good", "fair", "bad"], "margin": [1, 0]}
    assert parse_with_margin(three).margins == (1.0, 0.0)


@pytest.mark.parametrize("margin", ["much", True, -1, [1, 2], [1], float("inf")])
def test_a_margin_that_is_none_is_refused(margin):
    record = {"prompt": "hi", "answers": ["a", "b", "c", "d"], "margin": margin}
    with pytest.raises(ValueError, match="'margin' must be a list of 3 numbers from 0 on"):
        parse_with_margin(record)
