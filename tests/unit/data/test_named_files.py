"""Files, folders and patterns of rows and stores."""

import pytest

from megalite.data.corpus.sources import find_sources
from megalite.data.named_files import files_of, row_files, store_names
from megalite.errors import DataError

FILES = (
    "b.jsonl",
    "a.parquet",
    "deep/c.json",
    "d.jsonl.gz",
    "notes.md",
    "dataset_infos.json",
    ".hidden.jsonl",
    ".x/e.json",
)
STORES = ("s/one", "s/two", "s/deep/three")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stores = [stem + end for stem in STORES for end in (".bin", ".idx")]
    for name in (*(f"rows/{name}" for name in FILES), "odd[1].jsonl", "s/README", *stores):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def test_a_folder_is_all_rows_below_it_in_order_and_the_rest_is_told(folder):
    files, left_out = row_files(["rows"])
    assert files == ["rows/a.parquet", "rows/b.jsonl", "rows/d.jsonl.gz", "rows/deep/c.json"]
    assert left_out == ["rows/dataset_infos.json", "rows/notes.md"]


def test_patterns_and_files_are_read_once_and_a_file_with_brackets_is_a_file(folder):
    files, _ = row_files(["rows/b.jsonl", "rows/*.json*", "rows/**/*.json", "odd[1].jsonl"])
    assert files == ["rows/b.jsonl", "rows/d.jsonl.gz", "rows/deep/c.json", "odd[1].jsonl"]
    assert row_files(["gone.jsonl"]) == (["gone.jsonl"], [])  # whoever opens it says so


def test_stores_are_named_without_their_endings(folder):
    assert store_names(["s/one"]) == ["s/one"]
    assert store_names(["s"]) == ["s/deep/three", "s/one", "s/two"]
    assert store_names(["s/*", "s/one"]) == ["s/one", "s/two"]
    assert store_names(["s/t*"]) == ["s/two"]
    assert store_names(["s/**/*.idx"]) == ["s/deep/three", "s/one", "s/two"]
    assert store_names(["gone"]) == ["gone"]


@pytest.mark.parametrize(
    ("find", "name"),
    [(row_files, "s"), (row_files, "x*"), (store_names, "rows"), (store_names, "x*")],
)
def test_what_means_nothing_is_refused(folder, find, name):
    with pytest.raises(DataError) as error:
        find([name])
    assert str(error.value).startswith(f"{name}: no ")


@pytest.mark.parametrize(
    "find", [row_files, store_names, lambda names: find_sources(names, "text")]
)
def test_an_empty_name_is_not_the_working_folder(folder, find):
    with pytest.raises(DataError, match='^"" names no file or folder'):
        find([""])


def test_a_fingerprint_covers_what_is_read(folder):
    found = {str(path) for path in files_of(["rows/*.jsonl", "s/one", "nothing", "x*"])}
    assert found == {"rows/b.jsonl", "s/one.bin", "s/one.idx"}
