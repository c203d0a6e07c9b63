"""Raw text of every kind, whole or in parts, and what is said of what can't be read."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalite.data.corpus import documents as source
from megalite.data.corpus.documents import (
    FileRange,
    documents,
    file_ranges,
    range_documents,
)
from megalite.data.corpus.sources import SourceFile, find_sources
from megalite.errors import DataError
from tests.unit.data.conftest import write_jsonl

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20)


def texts(sources, key="text", as_what="auto") -> list[str]:
    found = find_sources([str(path) for path in sources], key, as_what)
    return [piece.text for piece in documents(found.files, key)]


def rows(path: Path) -> SourceFile:
    return SourceFile(path, True)


@settings(max_examples=40)
@given(TEXTS, st.integers(1, 60))
def test_parts_of_a_jsonl_file_together_are_the_file(tmp_path_factory, content, size):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in content]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    parts = list(file_ranges(rows(path), size))
    assert parts[-1].last in (0, path.stat().st_size)
    read = [piece.text for part in parts for piece in range_documents(part, "text")]
    assert read == [text for text in content if text.strip()]


@settings(max_examples=25)
@given(TEXTS, st.integers(1, 4), st.integers(1, 2000))
def test_parts_of_a_parquet_file_together_are_the_file(tmp_path_factory, content, group, size):
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": content}), path, row_group_size=group)
    read = [
        piece.text
        for part in file_ranges(rows(path), size)
        for piece in range_documents(part, "text")
    ]
    assert read == [text for text in content if text.strip()]


@given(st.text("ab \n語é", max_size=200), st.integers(1, 30))
@settings(max_examples=40)
def test_pieces_of_a_text_file_together_are_the_file(tmp_path_factory, text, size):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text(text, encoding="utf-8", newline="")
    before, source.PIECE = source.PIECE, size
    try:
        pieces = list(range_documents(FileRange(SourceFile(path, False)), "text"))
    finally:
        source.PIECE = before
    assert "".join(piece.text for piece in pieces) in (text, "")
    if text.strip():
        assert "".join(piece.text for piece in pieces) == text
        assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_folder_is_read_in_a_fixed_order_and_below(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first\nline")
    write_jsonl(tmp_path / "sub" / "c.jsonl", [{"text": "third"}, {"text": "  "}])
    assert texts([tmp_path]) == ["first\nline", "second", "third"]


def test_another_key_and_a_byte_order_mark_are_understood(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"body": "one"}\r\n\r\n{"body": "two"}\r\n')
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfthree")
    assert texts([tmp_path / "a.jsonl"], "body") == ["one", "two"]
    assert texts([tmp_path / "b.txt"]) == ["three"]


GOOD = '{"text": "good"}\n'
BAD_ROWS = {
    "not JSON": '{"text": "a"\n',
    "no object": '["a"]\n',
    "no such key": '{"body": "a"}\n',
    "no text": '{"text": 3}\n',
    "null": '{"text": null}\n',
    "half a surrogate pair": '{"text": "a\\ud800b"}\n',
    "deep": "[" * 100_000 + "\n",
    "long number": '{"n": ' + "1" * 5000 + ', "text": "a"}\n',
    "not UTF-8": b'{"text": "\xff"}\n',
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line_in_any_part(tmp_path, kind):
    bad = BAD_ROWS[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD.encode() * 3 + (bad if isinstance(bad, bytes) else bad.encode()))
    for size in (10**6, len(GOOD) - 1):
        errors: list[DataError] = []
        for part in file_ranges(rows(path), size):
            list(range_documents(part, "text", errors.append))
        found = [str(error) for error in errors]
        assert len(found) == 1, found
        assert found[0].startswith(f"{path}:4: ")
        assert "\n" not in found[0]
    with pytest.raises(DataError, match="rows.jsonl:4"):
        texts([path])


def test_bad_rows_of_parquet_are_named(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), path)
    found: list[str] = []
    pieces = range_documents(FileRange(rows(path)), "text", lambda error: found.append(str(error)))
    assert [piece.text for piece in pieces] == ["a", "b"]
    said = f"{path}:record 2: must have text in column 'text', came null; see --text_key"
    assert found == [said]
    with pytest.raises(DataError, match="has no column 'body' but text"):
        texts([path], "body")
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    with pytest.raises(DataError, match="record 1: must have text"):
        texts([path])


def test_damaged_parquet_is_one_line(tmp_path):
    path = tmp_path / "rows.parquet"
    long = [f"row {number} " * 20 for number in range(500)]
    pyarrow.parquet.write_table(pyarrow.table({"text": long}), path, row_group_size=50)
    whole = path.read_bytes()
    broken = whole[:500] + bytes(len(whole) // 2 - 500) + whole[len(whole) // 2 :]
    for content in (b"", b"no parquet", whole[:-9], broken):
        path.write_bytes(content)
        with pytest.raises(DataError, match="rows.parquet") as caught:
            texts([path])
        assert "\n" not in str(caught.value)


def test_a_text_file_that_is_not_utf8_is_named_with_the_byte(tmp_path):
    path = tmp_path / "a.txt"
    place = source.PIECE + 5
    path.write_bytes(b"a" * (source.PIECE - 1) + "語語".encode() + b"\xff" + b"b" * 50)
    with pytest.raises(DataError, match=f"a.txt: must be text in UTF-8: .* at byte {place}"):
        texts([path])
    found: list[str] = []
    file = SourceFile(path, False)
    assert not list(
        range_documents(FileRange(file), "text", lambda error: found.append(str(error)))
    )
    assert len(found) == 1


@pytest.mark.parametrize("name", ["none.txt", "empty"])
def test_a_source_without_files_is_named(tmp_path: Path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=name):
        texts([tmp_path / name])
