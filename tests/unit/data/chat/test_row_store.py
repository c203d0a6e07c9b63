"""Rows are tokenized once: later starts read them as they were, or say why they can't."""

import json
import os
import resource
import signal
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest

from megalite.data.chat import row_source, row_store
from megalite.data.chat.chat import Chat
from megalite.data.chat.datasets import Conversations, RankedAnswers
from megalite.data.chat.long_rows import RowRules
from megalite.data.chat.preferences import PreferredAnswers
from megalite.data.chat.row_store import MANIFEST, NOWHERE, RowStores
from megalite.data.split import Split
from megalite.data.structure import AnswerBlank, Structure
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import DataError
from tests.unit.data.conftest import write_jsonl

RULES = RowRules(48, "drop")
STRUCTURES = {
    "causal": Structure(),
    "prefix": Structure(is_prefix=True),
    "encoder-decoder": Structure(is_encoder_decoder=True),
    "glm": Structure(is_prefix=True, blank=AnswerBlank(7, 8), axes=2),
}
TALKS = [{"prompt": f"the cat {n}", "response": "naïve ☕ dog" * (1 + n % 3)} for n in range(9)]
TALKS += [{"prompt": "a" * 60, "response": "b", "more": 1}]
RANKINGS = [
    {"prompt": "the", "answers": ["red", "blue dog", "red"], "margin": [1, 0.5]},
    {"prompt": "one", "chosen": "cat", "rejected": "two"},
]
JUDGED = [{"prompt": "the", "completion": "red", "label": True}]
JUDGED += [{"prompt": "one", "completion": "a cat", "label": False}]


class Counted:
    """A tokenizer that counts the texts it is asked to read."""

    def __init__(self, folder) -> None:
        self._inner, self.calls = load_tokenizer(folder), 0

    def __getattr__(self, name):
        if name in ("encode", "encode_batch", "encode_segments"):
            self.calls += 1
        return getattr(self._inner, name)


def conversations(paths, chat, structure, stores):
    return Conversations(paths, chat, structure, RULES, True, stores)


def ranked(paths, chat, structure, stores):
    return RankedAnswers(paths, chat, structure, RULES, 2.0, stores)


def preferred(paths, chat, structure, stores):
    return PreferredAnswers(paths, chat, structure, RULES, False, stores)


def judged(paths, chat, structure, stores):
    return PreferredAnswers(paths, chat, structure, RULES, True, stores)


KINDS = {conversations: TALKS, ranked: RANKINGS, preferred: RANKINGS[1:] * 2, judged: JUDGED}


@pytest.fixture
def rows(tmp_path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", TALKS)


@pytest.fixture
def start(tokenizer_folder, rows, tmp_path):
    """A start of a run: its conversations, and how many texts were tokenized for them."""

    def start(stores=None, template="plain", rules=RULES, structure=None, path=rows, end=""):
        tokenizer = Counted(tokenizer_folder)
        if end:
            tokenizer.end_id = tokenizer.token_id(end)
        chat = Chat(template, tokenizer)
        before, stores = tokenizer.calls, stores or RowStores(tmp_path / "cache")
        found = Conversations([str(path)], chat, structure or Structure(), rules, True, stores)
        return found, tokenizer.calls - before

    return start


def content(value):
    """All that is in a sample, arrays with their types."""
    if is_dataclass(value):
        return [(one.name, content(getattr(value, one.name))) for one in fields(value)]
    if isinstance(value, (list, tuple)):
        return [content(one) for one in value]
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    return type(value), value


def samples(dataset) -> list:
    return [content(dataset[number]) for number in range(len(dataset))]


def stored(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_later_start_tokenizes_nothing_and_has_the_same_samples(
    tokenizer_folder, tmp_path, kind, structure
):
    path, stores = str(write_jsonl(tmp_path / "rows.jsonl", KINDS[kind])), RowStores(tmp_path / "c")
    tokenizer = Counted(tokenizer_folder)
    read = [[path], Chat("plain", tokenizer), STRUCTURES[structure]]
    plain, first = kind(*read, NOWHERE), kind(*read, stores)
    before = tokenizer.calls
    for later in (RowStores(stores.folder), stores):  # reads it whole; knows that it is
        again = kind(*read, later)
        assert tokenizer.calls == before
        assert samples(again) == samples(first) == samples(plain)
        assert again.notes[1:] == first.notes[1:] == plain.notes
        assert "tokenized before" in again.notes[0]
    assert "tokenized once into" in first.notes[0]


def test_what_was_left_out_is_said_by_each_start(start):
    found, calls = start()
    again, more = start()
    assert calls
    assert not more
    for one in (found, again):
        text = "\n".join(one.notes)
        assert "1 of 10 records are longer than data.sequence_length 48" in text
        assert "keys that are not read, of 10 records: 'more' (1)" in text


def test_whatever_the_tokens_depend_on_makes_another_store(start, rows, tmp_path):
    start()
    others = [
        {"template": "raw"},
        {"rules": RowRules(47, "drop")},
        {"rules": RowRules(48, "truncate")},
        {"rules": RowRules(48, "drop", {"response": "response"})},
        {"rules": RowRules(48, "drop", split=Split("train", 0.5, 3))},
        {"structure": Structure(is_prefix=True)},
        {"end": "a"},
        {"path": write_jsonl(tmp_path / "elsewhere.jsonl", TALKS)},
    ]
    for number, other in enumerate(others, 2):
        found, calls = start(**other)
        assert calls, other
        assert samples(found) == samples(start(NOWHERE, **other)[0])
        assert len(stored(tmp_path / "cache")) == number, other
    text = rows.read_text()
    rows.write_text(text.replace("cat 4", "cat 5"))
    os.utime(rows, ns=(0, 0))
    assert start()[1]
    assert len(stored(tmp_path / "cache")) == len(others) + 2


def test_large_files_are_told_apart_by_each_byte(start, rows, monkeypatch):
    monkeypatch.setattr("megalite.files.content.WHOLE_BYTES", 1)
    monkeypatch.setattr("megalite.files.content.BLOCKS", 2)
    monkeypatch.setattr("megalite.files.content.BLOCK_BYTES", 4)
    start()
    rows.write_text(rows.read_text().replace("cat 4", "cat 5"))
    assert start()[1]


def test_what_is_wrong_with_a_row_is_said_as_ever_and_nothing_is_kept(start, tmp_path):
    long = write_jsonl(tmp_path / "long.jsonl", TALKS)
    bad = write_jsonl(tmp_path / "bad.jsonl", [*TALKS[:1], {"prompt": "a"}])
    for more in ({"path": bad}, {"path": long, "rules": RowRules(48)}, {"path": tmp_path / "no"}):
        said = []
        for stores in (None, NOWHERE):
            with pytest.raises(DataError) as caught:
                start(stores, **more)
            said.append(str(caught.value))
        assert said[0] == said[1]
        assert said[0].startswith(str(more["path"]))
    assert not (tmp_path / "cache").exists()


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a bit of the tokens": lambda store: flipped(store / "decoder.tokens"),
    "a bit of the labels": lambda store: flipped(store / "labels"),
    "a bit of an end": lambda store: flipped(store / "decoder"),
    "a bit of what is told": lambda store: flipped(store / MANIFEST),
    "a cut file": lambda store: os.truncate(store / "labels", 3),
    "a file that is gone": lambda store: (store / "rows").unlink(),
    "nothing told": lambda store: (store / MANIFEST).unlink(),
    "half of what is told": lambda store: os.truncate(store / MANIFEST, 40),
    "something else told": lambda store: (store / MANIFEST).write_text("[1]"),
    "another store's content": lambda store: (store / MANIFEST).write_text(
        json.dumps({"key": {}, "arrays": {}, "types": {}, "notes": [], "check": ""})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_said_and_made_again(start, tmp_path, damage):
    whole = samples(start()[0])
    (store,) = stored(tmp_path / "cache")
    DAMAGE[damage](store)
    found, calls = start()
    assert calls
    assert samples(found) == whole
    assert any(f"{store}: can't be used: " in note for note in found.notes)
    again, calls = start()
    assert not calls
    assert samples(again) == whole
    assert not any("can't be used" in note for note in again.notes)
    assert stored(tmp_path / "cache") == [store]


def forked(work) -> int:
    """The exit status of a process that does this."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(7)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("place", ["mkdir", "rename"])
def test_a_start_that_is_killed_leaves_nothing_that_looks_whole(
    start, tmp_path, place, monkeypatch
):
    with monkeypatch.context() as patch:
        end = getattr(Path, place)

        def kill(path, *more, **options):
            if row_store.PARTIAL in path.name:
                os.kill(os.getpid(), signal.SIGKILL)
            return end(path, *more, **options)

        patch.setattr(Path, place, kill)
        assert forked(start) == signal.SIGKILL
    left = stored(tmp_path / "cache")
    found, calls = start()
    assert calls
    assert samples(found) == samples(start(NOWHERE)[0])
    assert len(stored(tmp_path / "cache")) == len(left) + 1
    for path in left:
        os.utime(path, (0, 0))
    assert start(template="raw")[1]
    assert len(stored(tmp_path / "cache")) == 2


def test_stores_that_nobody_opens_go_and_what_is_no_store_stays(start, tmp_path):
    start()
    (old,) = stored(tmp_path / "cache")
    own = tmp_path / "cache" / ".own.partial"
    own.mkdir()
    for path in (old, own):
        os.utime(path, (0, 0))
    start(template="raw")
    assert not old.exists()
    assert len(stored(tmp_path / "cache")) == 2
    assert own.exists()


def test_of_two_starts_at_once_both_read_the_same_store(start, tmp_path, monkeypatch):
    write, others = row_store.write, []

    def late(*arguments) -> None:
        monkeypatch.setattr(row_store, "write", write)
        others.append(start())
        write(*arguments)

    monkeypatch.setattr(row_store, "write", late)
    found, calls = start()
    assert calls
    assert others[0][1] == calls
    assert samples(found) == samples(others[0][0])
    assert len(stored(tmp_path / "cache")) == 1
    assert not start()[1]


def test_what_cannot_be_written_is_said_and_the_run_goes_without(start, tmp_path):
    whole = samples(start(NOWHERE)[0])
    (tmp_path / "file").write_text("")
    found, _ = start(RowStores(tmp_path / "file" / "cache"))
    assert samples(found) == whole
    assert f"data.cache {tmp_path}/file/cache: can't be written: Not a directory" in found.notes[0]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        found, _ = start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert samples(found) == whole
    assert f"data.cache {tmp_path}/cache: can't be written: File too large" in found.notes[0]
    assert stored(tmp_path / "cache") == []


def test_other_processes_of_a_node_write_nothing(start, tmp_path):
    other = RowStores(tmp_path / "cache", writes=False)
    found, calls = start(other)
    assert calls
    assert not (tmp_path / "cache").exists()
    start()
    assert start(other)[1] == 0
    assert samples(start(other)[0]) == samples(found)


def test_who_is_told_a_store_reads_none_of_it_unless_it_is_gone(start, tmp_path, monkeypatch):
    first = RowStores(tmp_path / "cache")
    whole = samples(start(first)[0])
    (store,) = stored(tmp_path / "cache")

    def told():
        return start(RowStores(tmp_path / "cache", names=dict(first.names)))

    with monkeypatch.context() as patch:
        for module in (row_store, row_source):
            patch.delattr(module, "fingerprint")
        found, calls = told()
    assert not calls
    assert samples(found) == whole
    for damage in ("a cut file", "a file that is gone", "nothing told", "half of what is told"):
        DAMAGE[damage](store)
        found, calls = told()
        assert calls, damage
        assert samples(found) == whole, damage
        assert told()[1] == 0, damage


def test_rows_of_a_file_that_changes_meanwhile_are_not_kept(start, rows, tmp_path, monkeypatch):
    learned = Conversations._read

    def changing(*arguments):
        os.utime(rows, ns=(1, 1))
        return learned(*arguments)

    monkeypatch.setattr(Conversations, "_read", changing)
    assert "changed meanwhile" in start()[0].notes[0]
    assert not (tmp_path / "cache").exists()
