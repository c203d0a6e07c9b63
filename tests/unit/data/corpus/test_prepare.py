"""``megalite data prepare`` by real processes: parts, kills, skipped rows, memory, full disks."""

import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tokenizers

from megalite.data.corpus.store import TokenStore
from megalite.data.tokenizers.load import load_tokenizer
from tests.unit.data.conftest import TEXTS, command, write_jsonl

ROOT = Path(__file__).parents[4]


def words(source, output, tokenizer, *more) -> list[str]:
    given = ["data", "prepare", "--source", f'["{source}"]', "--output", output]
    return [str(word) for word in [*given, "--tokenizer", tokenizer, *more]]


def read(output, tokenizer) -> list[str]:
    """Texts of a store's documents, whose last token is the end."""
    store = TokenStore(output)
    documents = [store[number].tolist() for number in range(len(store))]
    assert all(document[-1] == tokenizer.end_id for document in documents)
    return [tokenizer.decode(document[:-1]) for document in documents]


def process(*given, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "megalite", *given],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def sentences(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(TEXTS, k=generator.randint(1, 9))) for _ in range(count)]


def test_folders_text_jsonl_and_parquet_become_one_store_in_order(
    tmp_path, tokenizer, tokenizer_folder, capsys
):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("one text\nof two lines")
    write_jsonl(source / "b.jsonl", [{"text": text} for text in TEXTS])
    pyarrow.parquet.write_table(
        pyarrow.table({"text": ["row 1", "", "row 2"]}), source / "c.parquet"
    )
    (source / "d.py").write_text("print('four')\n")
    assert command(*words(source, tmp_path / "store", tokenizer_folder, "--processes", 1)) == 0
    expected = ["one text\nof two lines", *TEXTS, "row 1", "row 2", "print('four')\n"]
    assert read(tmp_path / "store", tokenizer) == expected
    assert "7 documents" in capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"source", "store.bin", "store.idx"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Rows for about a dozen parts of ``PARTS`` bytes."""
    return write_jsonl(
        tmp_path_factory.mktemp("corpus") / "rows.jsonl", [{"text": t} for t in sentences(1500)]
    )


PARTS = ("--part_bytes", 15_000)


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory, tokenizer_folder):
    """The store that one process makes in one part."""
    output = tmp_path_factory.mktemp("whole") / "store"
    assert command(*words(corpus, output, tokenizer_folder, "--processes", 1)) == 0
    return output


def same(a, b) -> bool:
    return all(
        Path(f"{a}{end}").read_bytes() == Path(f"{b}{end}").read_bytes() for end in (".bin", ".idx")
    )


@pytest.fixture
def as_input(monkeypatch):
    """Sets the standard input."""

    def give(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def test_a_tokenizer_that_is_not_read_by_tiktoken_is_told(tmp_path, tokenizer_folder, capsys):
    """Both where its kind is another, and where tiktoken isn't installed."""
    (tmp_path / "a.txt").write_text("a text")
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    other.save(str(tmp_path / "tokenizer.json"))
    given = words(tmp_path / "a.txt", tmp_path / "store", tmp_path / "tokenizer.json")
    assert command(*given, "--processes", 1) == 0
    says = "isn't read by tiktoken, which is some ten times as fast"
    assert f"{says}: the tokenizer is WordLevel" in capsys.readouterr().out
    code = (
        "import sys; sys.modules['tiktoken'] = None; "
        "from megalite.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    given = words(tmp_path / "a.txt", tmp_path / "store", tokenizer_folder, "--processes", 1)
    done = subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert f"{says}: it isn't installed: pip install 'megalite[data]'" in done.stdout


def test_lines_of_the_standard_input_make_the_store_of_their_file(
    corpus, whole, tmp_path, tokenizer_folder, as_input
):
    as_input(corpus.read_bytes())
    output = tmp_path / "store"
    assert command(*words("-", output, tokenizer_folder, *PARTS, "--processes", 1)) == 0
    assert same(whole, output)
    assert {path.name for path in tmp_path.iterdir()} == {"store.bin", "store.idx"}


def test_rows_of_a_dataset_make_the_store_of_their_file(corpus, whole, tmp_path, tokenizer_folder):
    output = tmp_path / "store"
    given = words(f"hf:{corpus.parent}", output, tokenizer_folder, *PARTS, "--processes", 1)
    assert command(*given) == 0
    assert same(whole, output)


def test_what_is_wrong_in_a_stream_is_named_by_its_line(
    corpus, tmp_path, tokenizer_folder, as_input, capsys
):
    lines = corpus.read_bytes().splitlines(keepends=True)
    content = b"".join([*lines[:1200], b'{"text": \n', *lines[1200:]])
    for more, says in (
        ((), "standard input:1201: not JSON"),
        (("--format", "text"), "--format text: - is a stream"),
    ):
        as_input(content)
        given = words("-", tmp_path / "store", tokenizer_folder, *PARTS, "--processes", 1, *more)
        assert command(*given) == 2
        assert says in capsys.readouterr().err
    assert not list(tmp_path.glob("store.bin"))


def test_a_dataset_without_the_column_is_named(corpus, tmp_path, tokenizer_folder, capsys):
    name = f"hf:{corpus.parent}"
    given = words(name, tmp_path / "s", tokenizer_folder, "--text_key", "x", "--processes", 1)
    assert command(*given) == 2
    assert f"{name}:row 1: has no column 'x' but 'text'" in capsys.readouterr().err


def test_a_tokenizer_that_is_made_anew_at_its_path_is_the_one_that_is_used(tmp_path):
    """As a notebook does, and commands in folders of their own that are all called alike."""
    source = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in TEXTS])
    train = ["tokenizer", "train", "--source", f'["{source}"]', "--output", tmp_path / "own"]
    for size in (290, 265):
        assert command(*train, "--vocab_size", size) == 0
        assert command(*words(source, tmp_path / "store", tmp_path / "own", "--processes", 1)) == 0
        assert read(tmp_path / "store", load_tokenizer(tmp_path / "own")) == TEXTS


@pytest.mark.slow
def test_a_kill_and_another_run_in_parallel_give_the_store_of_one_process(
    corpus, whole, tmp_path, tokenizer_folder
):
    output = tmp_path / "store"
    given = words(corpus, output, tokenizer_folder, *PARTS)
    killed = process(*given, "--processes", "1")
    parts = Path(f"{output}.parts")
    until = time.monotonic() + 120
    while len(list(parts.glob("*.idx"))) < 2:
        assert killed.poll() is None, killed.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.002)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not Path(f"{output}.idx").exists()
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*.idx")}
    assert len(kept) >= 2
    marks = {path: path.stat().st_ino for path in kept}
    again = process(*given, "--processes", "2")
    while Path(f"{parts}/0.idx").exists() and again.poll() is None:
        assert {p: p.stat().st_ino for p in kept if p.exists()}.items() <= marks.items()
        time.sleep(0.01)
    said, _ = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert same(output, whole)
    assert not parts.exists()


def test_other_options_do_not_reuse_the_parts_of_a_killed_run(
    corpus, whole, tmp_path, tokenizer_folder
):
    output = tmp_path / "store"
    parts = Path(f"{output}.parts")
    parts.mkdir()
    (parts / "0.idx").write_bytes(b"of another job")
    assert command(*words(corpus, output, tokenizer_folder, *PARTS, "--processes", 1)) == 0
    assert same(output, whole)


def test_killing_the_first_process_ends_the_others(tmp_path, tokenizer_folder):
    source = write_jsonl(tmp_path / "rows.jsonl", [{"text": t * 20} for t in sentences(20000)])
    given = words(source, tmp_path / "store", tokenizer_folder, "--processes", "2")
    first = process(*given)
    until = time.monotonic() + 120
    while not (others := children(first.pid)) or len(others) < 2:
        assert first.poll() is None, first.stdout.read()
        assert time.monotonic() < until
        time.sleep(0.05)
    first.kill()
    first.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in others):
        assert time.monotonic() < until
        time.sleep(0.05)


def children(first: int) -> list[int]:
    """The processes that tokenize: forked from the server that the first process starts."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in forked(first)}
    servers = [pid for pid, command in commands.items() if b"forkserver" in command]
    return [pid for server in servers for pid in forked(server)]


def forked(parent: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))
    except FileNotFoundError:
        return []


def test_skipped_rows_are_counted_and_all_listed_from_every_part(
    corpus, whole, tmp_path, tokenizer_folder, capsys
):
    lines = corpus.read_text().splitlines(keepends=True)
    bad = list(range(5, 1500, 100))
    for number, row in enumerate(bad):
        lines.insert(row, f'{{"text": {number}}}\n')
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(lines))
    given = words(source, tmp_path / "store", tokenizer_folder, *PARTS, "--processes", 1)
    assert command(*given) == 2
    assert f"{source}:6: must have text" in capsys.readouterr().err
    assert not (tmp_path / "store.idx").exists()
    assert command(*given, "--on-error", "skip") == 0
    said = capsys.readouterr().out
    assert "skipped 15 records" in said
    assert said.count("must have text") == 10
    listed = (tmp_path / "store.skipped.txt").read_text().splitlines()
    assert listed == [
        f"{source}:{row + 1}: must have text under 'text', came int; see --text_key" for row in bad
    ]
    assert same(tmp_path / "store", whole)


def test_many_small_files_share_parts(tmp_path, tokenizer, tokenizer_folder):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(300):
        (source / f"{number:03}.txt").write_text(f"file {number}")
    assert command(*words(source, tmp_path / "store", tokenizer_folder, "--processes", 1)) == 0
    assert read(tmp_path / "store", tokenizer) == [f"file {number}" for number in range(300)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, tokenizer_folder, kind):
    """Tokenized as one, text takes over 100 bytes a character."""
    peaks, sizes = [], (500_000, 4_500_000)
    line = " ".join(TEXTS) * 3
    for size in sizes:
        path = tmp_path / f"{size}.{kind}"
        row = json.dumps({"text": line}) if kind == "jsonl" else line
        path.write_text(f"{row}\n" * (size // len(row)))
        given = words(path, tmp_path / "store", tokenizer_folder, "--processes", "1")
        started = process(*given, "--part_bytes", "500000")
        started.stdout.read()
        _, status, usage = os.wait4(started.pid, 0)
        assert status == 0
        peaks.append(usage.ru_maxrss * 1024)
    assert peaks[1] - peaks[0] < 8 * (sizes[1] - sizes[0]), peaks


def test_a_full_disk_is_one_line_and_what_was_done_is_kept(
    corpus, whole, tmp_path, tokenizer_folder
):
    output = tmp_path / "store"
    given = words(corpus, output, tokenizer_folder, *PARTS, "--processes", "1")
    size = Path(f"{whole}.bin").stat().st_size
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))  # noqa: E731
    full = process(*given, preexec_fn=limit)
    said, _ = full.communicate(timeout=120)
    assert full.returncode == 2, said
    assert said == f"megalite: {output}.bin.partial: File too large\n"
    assert not Path(f"{output}.idx").exists()
    assert not Path(f"{output}.bin.partial").exists()
    assert len(list(Path(f"{output}.parts").glob("*.idx"))) > 5
    assert command(*given) == 0
    assert same(output, whole)


def test_text_that_is_all_blank_is_refused_and_leaves_nothing(tmp_path, tokenizer_folder, capsys):
    (tmp_path / "a.txt").write_text(" \n ")
    assert command(*words(tmp_path / "a.txt", tmp_path / "s", tokenizer_folder)) == 2
    assert "a.txt: holds no text" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
