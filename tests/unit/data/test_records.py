"""Files of records: formats by content, compression, names of keys, and what is not read."""

import bz2
import gzip
import json
import lzma
import struct

import pyarrow
import pyarrow.parquet
import pytest

from megalite.data.chat.turns import parse_conversation, parse_prompt
from megalite.data.records import Records
from megalite.errors import DataError
from tests.unit.data.conftest import read_records, write_jsonl

ROWS = [{"instruction": f"row {n}", "output": "é"} for n in range(700)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, indent=1).encode()
SPREAD = b"\xef\xbb\xbf" + b" \n" * 5000 + LIST


def zstd(content: bytes) -> bytes:
    """Two frames, as tools that write in parallel make them."""
    half = len(content) // 2
    codec = pyarrow.Codec("zstd")
    parts = (codec.compress(part, asbytes=True) for part in (content[:half], content[half:]))
    return b"".join(parts)


def pzstd(content: bytes) -> bytes:
    """A frame whose size a skipped one says, as pzstd makes each."""
    frame = zstd(content)
    return struct.pack("<III", 0x184D2A50, 4, len(frame)) + frame


FILES = {
    "lines.json": LINES,
    "lines.JSONL": LINES,
    "lines.ndjson": LINES,
    "lines": LINES,
    "list.json": LIST,
    "list.jsonl": SPREAD,
    "lines.jsonl.gz": gzip.compress(LINES[:5000]) + gzip.compress(LINES[5000:]),
    "list.json.gz": gzip.compress(LIST),
    "gz without its name.jsonl": gzip.compress(LINES),
    "name without gz.jsonl.gz": LINES,
    "lines.jsonl.bz2": bz2.compress(LINES),
    "lines.jsonl.xz": lzma.compress(LINES),
    "lines.jsonl.zst": zstd(LINES),
    "lines.JSON.ZST": zstd(LINES),
    "by pzstd.jsonl.zst": pzstd(LINES),
}


@pytest.mark.parametrize("name", FILES)
def test_the_content_says_what_a_file_is(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    assert read_records([path], dict) == ROWS


def test_parquet_is_known_by_its_content_too(tmp_path):
    for name in ("rows.PARQUET", "rows"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / name)
        assert read_records([tmp_path / name], dict) == ROWS


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_a_damaged_compressed_file_is_one_line(tmp_path, pack):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(pack(LINES)[:-9])
    with pytest.raises(DataError, match="rows.jsonl: damaged, .* can't decompress it") as caught:
        read_records([path], dict)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rows.csv", "rows.TSV", "rows.tar.gz", "rows.zip", "rows.arrow"])
def test_what_is_not_read_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=rf"{name}: is an? .*: write it as JSON lines"):
        read_records([tmp_path / name], dict)


def test_an_object_over_several_lines_is_refused_as_that(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS[0], indent=1))
    with pytest.raises(DataError, match="rows.json:1: a record must be on one line, or in a list"):
        read_records([path], dict)


def test_a_value_that_python_cannot_hold_is_one_line(tmp_path):
    path = tmp_path / "rows.parquet"
    days = pyarrow.array([2**50], pyarrow.date64())
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"], "day": days}), path)
    with pytest.raises(DataError, match="after record 0 that Python can't hold: .*out of range: w"):
        read_records([path], dict)


def test_nulls_of_parquet_are_missing_keys(tmp_path):
    rows = [
        {"messages": None, "instruction": "a", "output": "b", "extra": None},
        {
            "messages": [
                {"role": "user", "content": "a", "weight": None},
                {"role": "assistant", "content": "b", "weight": 0},
            ],
            "instruction": None,
            "output": None,
            "extra": "c",
        },
    ]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    records = Records([path], parse_conversation)
    first, second = (turns for _, turns in records)
    assert [turn.text for turn in first] == [turn.text for turn in second] == ["a", "b"]
    assert (first[1].is_learned, second[1].is_learned) == (True, False)
    assert records.notes() == [f"{path}: keys that are not read, of 2 records: 'extra' (1)"]


def test_keys_that_nobody_reads_are_counted(tmp_path):
    rows = [
        {"prompt": "a", "response": "b", "score": 1, "tags": []},
        {"prompt": "a", "response": "b", "completion": "c"},
        {
            "messages": [
                {"role": "user", "content": "a", "name": "x"},
                {"role": "assistant", "content": "b"},
            ],
            "score": 0,
        },
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    records = Records([path], parse_conversation)
    assert len(list(records)) == 3
    (said,) = records.notes()
    assert said.startswith(f"{path}: keys that are not read, of 3 records: 'score' (2), ")
    assert set(said.partition("'score' (2), ")[2].split(", ")) == {
        "'completion' (1)",
        "'message.name' (1)",
    }
    prompts = Records([path], parse_prompt)
    assert len(list(prompts)) == 3
    assert "response" not in prompts.notes()[0]


def test_columns_name_the_files_keys(tmp_path):
    rows = [{"question": "a", "answer": "b", "instruction": "not this"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    names = {"instruction": "question", "output": "answer", "system": "role_play"}
    records = Records([path], parse_conversation, names)
    ((_, turns),) = records
    assert [turn.text for turn in turns] == ["a", "b"]
    assert records.notes() == [
        f"{path}: keys that are not read, of 1 records: 'instruction' (1)",
        f"{path}: data.columns names 'role_play', which no record has",
    ]
    rows = [{"talk": [{"who": "human", "said": "a"}, {"who": "gpt", "said": "b"}]}]
    write_jsonl(path, rows)
    records = Records(
        [path], parse_conversation, {"messages": "talk", "role": "who", "content": "said"}
    )
    ((_, turns),) = records
    assert [(turn.role, turn.text) for turn in turns] == [("user", "a"), ("assistant", "b")]
    assert not records.notes()


def test_a_folder_is_not_a_file_of_records(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}: is a folder; name the files in it"):
        read_records([tmp_path], dict)


def test_where_a_line_breaks_off_is_counted_in_that_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES + b'{"a": 1\n')
    with pytest.raises(DataError, match=r"not JSON: .* at column 9$"):
        read_records([path], dict)
