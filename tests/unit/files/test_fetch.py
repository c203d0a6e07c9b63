"""Files behind URLs: their copies are whole and as they are there, or a line says why not."""

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest

from megalite.data.config import StoredConversationConfig
from megalite.data.corpus.store import StoreWriter, TokenStore
from megalite.data.named_files import row_files, store_names
from megalite.distributed.launch import Launch
from megalite.errors import ConfigError, DataError
from megalite.files.fetch import fetch_together, fetched
from megalite.files.urls import cache, check_no_url, is_url, place_of
from megalite.models.hub import folder_of, pinned

KEY = "data.train"


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, refuses ``secret``, cuts ``short`` off and counts what is asked for."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        if "secret" in self.path:
            self.send_error(403)
            return
        super().do_GET()

    def copyfile(self, source, outputfile):
        data = source.read()
        outputfile.write(data[: len(data) // 2] if "short" in self.path else data)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder of files, and a cache without copies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "there"
    (folder / "rows").mkdir(parents=True)
    (folder / "rows" / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (folder / "rows" / "b.jsonl").write_text('{"prompt": "c", "response": "d"}\n')
    (folder / "rows" / ".c.jsonl").write_text("hidden")
    write_store(folder / "train", 3)
    return folder


@pytest.fixture
def web(here) -> Iterator[str]:
    """The URL of the folder on a web server."""
    with serving(here) as url:
        yield url


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    Server.asked.clear()
    handler = functools.partial(Server, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def write_store(prefix: Path, documents: int) -> None:
    writer = StoreWriter(prefix, np.uint16)
    for number in range(documents):
        writer.add(np.arange(number + 5))
    writer.close()


def refusal(url: str, key: str = KEY) -> str:
    with pytest.raises(DataError) as error:
        fetched(key, url)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"--{key} {url}: ")
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [(name, True) for name in ("s3://b/x", "memory://x", "simplecache::s3://b")]
    + [(name, False) for name in ("hf:a/b", "a/b", "/a//b", "C:/x", "owner/name@main", "")],
)
def test_a_url_has_a_scheme(name, is_one):
    assert is_url(name) is is_one


@pytest.mark.parametrize("scheme", ["http", "file", "memory"])
def test_a_store_is_read_as_if_it_were_here(scheme, here, web):
    if scheme == "memory":
        memory = fsspec.filesystem("memory")
        for end in ("bin", "idx"):
            memory.pipe_file(f"/d/train.{end}", (here / f"train.{end}").read_bytes())
    url = {"http": f"{web}/train", "file": f"file://{here}/train", "memory": "memory://d/train"}
    said = fetched(KEY, url[scheme])
    assert said[0].startswith(f"{url[scheme]}: 2 of 2 files fetched")
    (name,) = store_names([url[scheme]])
    assert len(TokenStore(name)) == 3
    again = fetched(KEY, url[scheme])
    assert not again


def test_folders_and_patterns_have_what_is_there_now(here, web):
    folder, pattern = f"{web}/rows", f"file://{here}/rows/*.jsonl"
    for url in (folder, pattern):
        fetched(KEY, url)
        files, others = row_files([url])
        assert [Path(file).name for file in files] == ["a.jsonl", "b.jsonl"]
        assert not others
    (here / "rows" / "a.jsonl").unlink()
    (here / "rows" / "b.jsonl").write_text('{"prompt": "longer", "response": "d"}\n')
    for url in (folder, pattern):
        assert fetched(KEY, url)[0].startswith(f"{url}: 1 of 1 files fetched")
        (file,) = row_files([url])[0]
        assert "longer" in Path(file).read_text()
    write_store(here / "other", 2)
    stores = f"file://{here}/*.idx"
    fetched(KEY, stores)
    assert [Path(name).name for name in store_names([stores])] == ["other", "train"]


def test_a_copy_that_was_changed_or_cut_is_fetched_again(here, web):
    url = f"{web}/train"
    fetched(KEY, url)
    place = place_of(f"{url}.bin")
    for change in (lambda b: b[:-1], lambda b: b"\xff" + b[1:]):
        place.write_bytes(change(place.read_bytes()))
        Server.asked.clear()
        said = fetched(KEY, url)
        assert said[0] == f"{url}: its copy {place} was not whole"
        assert said[1].startswith(f"{url}: 1 of 2 files fetched")
        assert place.read_bytes() == (here / "train.bin").read_bytes()
        assert Server.asked.count("/train.bin") == 1
    assert not list(cache().rglob("*.partial"))


def test_what_comes_short_is_no_copy(here, web):
    (here / "short.jsonl").write_text('{"a": 1}\n')
    assert "can't be reached, and" in refusal(f"{web}/short.jsonl")
    assert not place_of(f"{web}/short.jsonl").exists()
    assert not list(cache().rglob("*.partial"))


def test_without_its_server_a_whole_copy_is_taken(here):
    with serving(here) as web:
        url = f"{web}/train"
        fetched(KEY, url)
    (said,) = fetched(KEY, url)
    assert said.startswith(f"{url}: can't be reached: ")
    assert said.endswith(f": the copy in {cache()} is taken")
    place_of(f"{url}.idx").write_bytes(b"")
    assert f"can't be reached, and {cache()} has no whole copy: " in refusal(url)


def test_what_cant_be_read_is_told_in_a_line(here, web, monkeypatch):
    assert "there is no such file, folder or token store" in refusal(f"{web}/nothing")
    assert "there is no such file, folder or token store" in refusal(f"{web}/rows/*.parquet")
    (here / "secret").write_text("x")
    assert "this user may not read it: 403" in refusal(f"{web}/secret")
    assert "no file system for it: Protocol not known: nope" in refusal("nope://a/b")
    assert "another package for s3://: Install s3fs" in refusal("s3://a/b")
    assert "chains of URLs are not read" in refusal("simplecache::file:///a")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "train.bin"))
    assert f"{here}/train.bin" in refused_together(f"{web}/train")


def refused_together(url: str) -> str:
    with pytest.raises(DataError) as error:
        fetch_together(Launch(), [(KEY, url)])
    return str(error.value)


def test_of_a_run_the_latest_checkpoint_is_fetched_and_what_it_was_told(here, web):
    checkpoints = here / "run" / "checkpoints"
    for step in ("step-00000001", "step-00000002"):
        (checkpoints / step).mkdir(parents=True)
        (checkpoints / step / "manifest.json").write_text("{}")
        (checkpoints / step / "0.distcp").write_text(step)
    (checkpoints / "latest").write_text("step-00000002\n")
    (checkpoints / "best").write_text("step-00000001\n")
    (here / "run" / "config.toml").write_text("")
    (here / "run" / "log.txt").write_text("")
    url = f"{web}/run"
    pinned(Launch(), "checkpoint.start", url, "model")
    copy = folder_of(url)
    assert {str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()} == {
        "config.toml",
        "checkpoints/latest",
        "checkpoints/step-00000002/manifest.json",
        "checkpoints/step-00000002/0.distcp",
    }
    pinned(Launch(), "checkpoint.start", f"{url}/checkpoints/best", "model")
    assert (copy / "checkpoints/step-00000001/0.distcp").read_text() == "step-00000001"


@pytest.mark.parametrize(
    ("told", "base"), [("/scratch", "/scratch"), ("", "/home/me/.cache"), ("my", "/home/me/.cache")]
)
def test_what_is_kept_is_where_a_person_keeps_caches(monkeypatch, told, base):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", told)
    assert cache() == Path(base) / "megalite"
    assert StoredConversationConfig().rows_folder == cache() / "rows"


def test_nothing_is_written_to_a_url():
    with pytest.raises(ConfigError, match=r"--run\.folder s3://b/run: must be on a file system"):
        check_no_url("run.folder", "s3://b/run")
    assert not os.path.exists("s3:")
