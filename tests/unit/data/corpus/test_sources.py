"""Which files of sources are read, as what, and what is said of the others."""

import bz2
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from megalite.data.corpus.documents import FileRange, documents, range_documents
from megalite.data.corpus.sources import SourceFile, find_sources
from megalite.errors import DataError

ROWS = [{"text": "one"}, {"text": "two\nlines"}, {"text": " "}]
TEXTS = ["one", "two\nlines"]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
LIST = json.dumps(ROWS, indent=2)
INFOS = {"default": {"description": "", "features": {}}}


def read(*sources, key="text", as_what="auto") -> list[str]:
    found = find_sources([str(source) for source in sources], key, as_what)
    return [piece.text for piece in documents(found.files, key)]


FILES = {
    "rows.json": LINES,
    "rows.JSON": LIST,
    "rows.JSONL": LINES,
    "list.jsonl": LIST,
    "one.json": LINES.splitlines()[0],
    "marked.json": "\ufeff" + LINES,
    "rows.jsonl.gz": gzip.compress(LINES.encode()),
    "rows.json.bz2": bz2.compress(LIST.encode()),
    "rows.jsonl.zst": pyarrow.Codec("zstd").compress(LINES.encode(), asbytes=True),
}


@pytest.mark.parametrize("name", FILES)
def test_rows_are_read_whatever_json_they_are_in(tmp_path, name):
    content = FILES[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert read(tmp_path / name) == read(tmp_path) == TEXTS[: 1 if name == "one.json" else 2]
    assert read(tmp_path / name, as_what="rows") == read(tmp_path)


def test_compressed_text_is_one_document(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"some\ntext"))
    assert read(tmp_path) == ["some\ntext"]


@pytest.mark.parametrize("content", [LINES, LIST, LINES.splitlines()[0], LINES + "not JSON\n"])
@pytest.mark.parametrize("name", ["rows.txt", "rows.data", "rows", "rows.txt.gz"])
def test_what_looks_like_rows_is_not_swallowed_as_text(tmp_path, name, content):
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(DataError, match=f"{name}: looks like JSON rows .* --format rows, or a"):
            read(source)
    assert read(tmp_path, as_what="text") == [content]


def test_other_names_may_hold_rows(tmp_path):
    (tmp_path / "rows.txt").write_text(LIST)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "table")
    assert read(tmp_path, as_what="rows") == TEXTS * 2
    (tmp_path / "rows.txt").unlink()
    assert read(tmp_path) == TEXTS


@pytest.mark.parametrize("text", ["{", "{ not JSON }\n{}", '[1, 2]\n["a"]', "[[1]]", '"a"', "{}"])
def test_text_that_only_begins_like_json_is_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert read(tmp_path) == [text]


@pytest.mark.parametrize("name", ["a.csv", "A.TSV", "a.csv.gz"])
def test_tables_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text("text\none\n")
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(DataError, match=f"{name}: is a table, .* --format text takes it as it"):
            read(source)
    assert read(tmp_path, as_what="text") == ["text\none\n"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.arrow"])
def test_archives_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04\0\0")
    with pytest.raises(DataError, match=rf"{name}: is an .*, which is not read here: write"):
        read(tmp_path / name)


def test_json_that_holds_no_rows_is_refused(tmp_path):
    for content in (json.dumps(INFOS), json.dumps(INFOS, indent=1), "[1, 2]", '["a"]'):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(DataError, match="a.json: holds no rows: .* its text under 'text'"):
            read(tmp_path / "a.json")
        assert read(tmp_path / "a.json", as_what="text") == [content]


def test_a_folders_hidden_and_other_files_are_left_out_and_said(tmp_path):
    folder = tmp_path / ".cache" / "set"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_text("[core]")
    (folder / "sub" / ".hidden").mkdir(parents=True)
    (folder / "sub" / ".hidden" / "a.txt").write_text("hidden")
    (folder / "sub" / "a.txt").write_text("seen")
    (folder / ".gitattributes").write_text("*")
    (folder / "dataset_infos.json").write_text(json.dumps(INFOS))
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (folder / "train.jsonl").write_text(LINES)
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / "gone").symlink_to(tmp_path / "none")
    assert read(folder) == ["seen", *TEXTS]
    found = find_sources([str(folder)], "text")
    reasons = {
        ".git": "hidden",
        ".gitattributes": "hidden",
        "dataset_infos.json": "JSON without rows",
        "elsewhere": "a link to a folder",
        "gone": "a link to nothing",
        "picture.png": "no text",
        "sub/.hidden": "hidden",
    }
    assert found.left_out == [f"{folder}/{name} ({reason})" for name, reason in reasons.items()]
    (said,) = found.notes()
    assert said.startswith(f"left out 7 files or folders: {folder}/.git (hidden), ")
    assert said.endswith(" and 2 more")


def test_a_folder_of_which_all_is_left_out_says_so(tmp_path):
    (tmp_path / "data.arrow").write_bytes(b"ARROW1\0\0")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DataError, match="holds no text; left out 2 files .*data.arrow .no text."):
        read(tmp_path)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl.gz"])
def test_bad_rows_of_a_list_and_of_compressed_lines_are_skipped_one_by_one(tmp_path, name):
    path = tmp_path / name
    good, bad = json.dumps({"text": "good"}), ['{"text": 3}', "7", '{"body": "a"}']
    lines = [good, bad[0], good, bad[1], bad[2], good]
    if name.endswith("gz"):
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        places = [f"{path}:{number}: " for number in (2, 4, 5)]
    else:
        path.write_text("[" + ",".join(lines) + "]")
        places = [f"{path}:record {number}: " for number in (2, 4, 5)]
    found: list[str] = []
    pieces = range_documents(
        FileRange(SourceFile(path, True)), "text", lambda error: found.append(str(error))
    )
    assert [piece.text for piece in pieces] == ["good"] * 3
    assert len(found) == 3
    assert all(said.startswith(place) for said, place in zip(found, places, strict=True))
    assert "must have text under 'text', has 'body'; see --text_key" in found[2]
