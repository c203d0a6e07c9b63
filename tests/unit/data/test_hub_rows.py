"""Datasets by the Hugging Face library: names, rows, versions, and what is wrong with them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalite.data.chat.chat import Chat
from megalite.data.chat.datasets import Conversations
from megalite.data.chat.long_rows import RowRules
from megalite.data.chat.row_store import RowStores
from megalite.data.chat.turns import parse_conversation
from megalite.data.hub_rows import HubRows, dataset_version
from megalite.data.named_files import row_files
from megalite.data.records import Records
from megalite.data.structure import Structure
from megalite.errors import DataError
from megalite.training.folder.fingerprint import data_source
from tests.unit.data.conftest import write_jsonl

ROWS = [{"question": f"{n}?", "output": f"{n}."} for n in range(7)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "rows" / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "rows" / "test.jsonl", ROWS[:2])
    return tmp_path / "rows"


def turns(name) -> list:
    files, _ = row_files([name])
    return list(Records(files, parse_conversation, {"instruction": "question"}))


@pytest.mark.parametrize(
    ("more", "numbers"), [("", range(7)), (":test", range(2)), (":train[2:4]", range(2, 4))]
)
def test_rows_are_those_of_the_split_with_columns_renamed(folder, more, numbers):
    found = turns(f"hf:{folder}{more}")
    assert [where for where, _ in found] == [
        f"hf:{folder}{more}:row {number}" for number, _ in enumerate(numbers, 1)
    ]
    assert [[turn.text for turn in row] for _, row in found] == [
        [f"{n}?", f"{n}."] for n in numbers
    ]


name = st.from_regex(r"[a-z]+(/[a-z0-9_-]+)?", fullmatch=True)


@given(name, st.just("") | name, st.just("") | name, st.sampled_from(["", "test", "train[:10%]"]))
def test_a_name_is_taken_apart(path, revision, config, split):
    text = f"hf:{path}" + (f"@{revision}" if revision else "")
    text += f":{config}:{split or 'train'}" if config else f":{split}" if split else ""
    assert HubRows.of(text) == HubRows(path, revision, config, split or "train")


def test_another_content_is_another_version(folder):
    before = data_source([f"hf:{folder}"])
    assert before["fingerprint"] == data_source([f"hf:{folder}"])["fingerprint"]
    write_jsonl(folder / "train.jsonl", [*ROWS, ROWS[0]])
    assert before["fingerprint"] != data_source([f"hf:{folder}"])["fingerprint"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (":nope", "Unknown split"),
        (":sums:train", "'sums' not found"),
        (":a:b:c", r"must be hf:NAME\[@REVISION\]\[:CONFIG\]\[:SPLIT\]"),
        (":", "must be hf:NAME"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_dataset(folder, more, says):
    with pytest.raises(DataError, match=says) as raised:
        turns(f"hf:{folder}{more}")
    assert str(raised.value).startswith(f"hf:{folder}{more}: ")
    assert "\n" not in str(raised.value)


def test_a_dataset_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=rf"hf:{tmp_path}/none: Couldn't find any data file"):
        dataset_version(f"hf:{tmp_path}/none")


def test_the_library_that_is_missing_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the package datasets: .*megalite\[datasets\]"):
        turns(f"hf:{folder}")


def test_their_tokens_are_not_kept_and_that_is_said(folder, tokenizer, tmp_path):
    name, stores = f"hf:{folder}", RowStores(tmp_path / "cache")
    rules = RowRules(64, columns={"instruction": "question"})
    read = [[name], Chat("plain", tokenizer), Structure(), rules, True]
    found = Conversations(*read, stores)
    kept, packed = found.notes
    assert kept == f"{name}: data.cache keeps the rows of files alone"
    assert packed == f"{name}: data.packed puts 7 conversations side by side, samples: 1"
    assert found.num_examples == len(ROWS)
    assert not (tmp_path / "cache").exists()
