"""``megalite data prepare``: raw text to a token store, in parallel and resumable.

The input is cut into parts of about equal size. A pool of processes tokenizes each part into a
store of its own; finished parts are kept, so a second run goes on where the first was stopped. At
the end the parts are joined in order.
"""

import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from megalite.config.section import Section
from megalite.data.corpus.documents import (
    DocumentPiece,
    FileRange,
    OnError,
    file_ranges,
    range_documents,
    stop,
)
from megalite.data.corpus.sources import FORMAT, FileFormat, SourceFile, Sources, find_sources
from megalite.data.corpus.store import StoreWriter, TokenStore, smallest_dtype
from megalite.data.corpus.streams import STANDARD_INPUT, chunks, is_stream, stream_lines
from megalite.data.tokenizers.load import load_tokenizer
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.distributed.launch import Launch
from megalite.errors import ConfigError, DataError, MegaliteError, naming
from megalite.files.fetch import fetch_together
from megalite.files.urls import check_no_url, is_url, local
from megalite.models.hub import folder_of, pinned

BATCH_DOCUMENTS = 64
BATCH_CHARACTERS = 1 << 18
LEAST_PARTS, LEAST_PART_BYTES = 64, 1 << 20  # a small corpus is cut finer, for all processes
NAMED = 10  # skipped records that are printed


class PrepareConfig(Section):
    """What is tokenized and where it goes."""

    source: tuple[str, ...] = Field(
        min_length=1,
        description="folders, text files, JSON or Parquet files; -: JSON lines of the standard "
        "input; hf:NAME: a dataset, read as a stream",
    )
    format: FileFormat = Field("auto", description=FORMAT)
    output: str = Field(min_length=1, description="new token store, without .bin and .idx")
    tokenizer: str = Field(
        "tokenizer", description="Hugging Face folder, tokenizer.json or SentencePiece .model"
    )
    text_key: str = Field("text", description="key of a record's text")
    append_end: bool = Field(True, description="end token after each document")
    prepend_begin: bool = Field(False, description="begin token before each document")
    end_token: str = Field(
        "", description="token that ends a document; empty: as the tokenizer's files say"
    )
    special_in_text: bool = Field(
        True,
        description="special tokens that a text spells out are those tokens; false: they are text",
    )
    trust_code: bool = Field(False, description="Python code in the tokenizer's folder may run")
    processes: int = Field(0, ge=0, description="number of processes; 0: one per core")
    part_bytes: int = Field(
        32_000_000, gt=0, description="most bytes of a part of the input, which is saved when done"
    )
    on_error: Literal["stop", "skip"] = Field(
        "stop",
        description="response to a malformed record; stop: end with an error; skip: leave it out, "
        "count and list it",
    )


@dataclass(frozen=True)
class _Part:
    """What one process tokenizes into one store.

    Attributes:
        ranges: the files and parts of files that it reads.
        prefix: of the store that is written.
        num_bytes: about, of input.
        kept: file of a stream's lines, which goes when they are tokenized.
    """

    ranges: tuple[FileRange, ...]
    prefix: str
    num_bytes: int
    kept: Path | None = None

    @property
    def is_done(self) -> bool:
        return Path(f"{self.prefix}.idx").exists()


def run(config: PrepareConfig, launch: Launch) -> int:
    """Write the store; only rank 0 does."""
    if launch.rank != 0:
        return 0
    check_no_url("output", config.output)
    named, fetched = pinned(Launch(), "tokenizer", config.tokenizer, "tokenizer")
    if fetched:
        sys.stdout.write(f"{fetched}\n")
    config = config.model_copy(update={"tokenizer": named})
    _tokenizer.cache_clear()  # a process may prepare by another one that has the same path
    tokenizer = _tokenizer(config.tokenizer, config.end_token, config.trust_code)
    if config.prepend_begin and tokenizer.begin_id is None:
        raise ConfigError(f"--prepend_begin: {tokenizer.path} has no begin token: leave it out")
    for text in fetch_together(Launch(), [("source", n) for n in config.source if is_url(n)]):
        sys.stdout.write(f"{text}\n")
    streams = [name for name in config.source if is_stream(name)]
    files = [local(name) for name in config.source if not is_stream(name)]
    if streams and config.format == "text":
        raise ConfigError(f"--format text: {streams[0]} is a stream: it holds a row in each line")
    sources = find_sources(files, config.text_key, config.format) if files else Sources([], [])
    folder = Path(f"{config.output}.parts")
    parts = list(_parts(sources.files, config.part_bytes, folder)) if files else []
    if slow := tokenizer.why_slow(sys.maxsize if streams else sum(p.num_bytes for p in parts)):
        sys.stdout.write(
            f"{tokenizer.path}: isn't read by tiktoken, which is some ten times as fast: {slow}\n"
        )
    with _opened(folder, config, [file.path for file in sources.files]):
        _tokenize_all(config, parts)
        parts += _tokenize_streams(config, streams, folder)
        _join(config, parts, tokenizer)
        skipped = _join_skipped(config, parts)
    _report(config, sources, skipped)
    if config.append_end and tokenizer.end_id is None:
        sys.stdout.write(
            f"{tokenizer.path}: has no end token that is known, so no document has an end; "
            "--end_token names one, --append_end false says that none is meant\n"
        )
    return 0


def _parts(files: list[SourceFile], most: int, folder: Path) -> Iterator[_Part]:
    """Parts of about equal size; small files share one."""
    total = sum(file.path.stat().st_size for file in files)
    size = min(most, max(total // LEAST_PARTS, LEAST_PART_BYTES))
    group: list[FileRange] = []
    number, filled = 0, 0
    for file in files:
        for part_range in file_ranges(file, size):
            own = min(file.path.stat().st_size, size)
            if group and filled + own > size:
                yield _Part(tuple(group), f"{folder}/{number}", filled)
                group, number, filled = [], number + 1, 0
            group.append(part_range)
            filled += own
    yield _Part(tuple(group), f"{folder}/{number}", filled)


@contextmanager
def _opened(folder: Path, config: PrepareConfig, paths: list[Path]) -> Iterator[None]:
    """Keep finished parts of the same job, drop those of another; at the end all are dropped.

    Those of a file that is refused go too: once it is mended they are another job's.
    """
    own = folder_of(config.tokenizer)
    read = [*paths, *(sorted(own.iterdir()) if own.is_dir() else [own])]
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in read]
    stamp = json.dumps([config.model_dump(exclude={"processes"}), facts])
    mark = folder / hashlib.blake2b(stamp.encode(), digest_size=8).hexdigest()
    if folder.exists() and not mark.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield
    except DataError:
        if not any(map(is_stream, config.source)):
            shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def _tokenize_all(config: PrepareConfig, parts: list[_Part]) -> None:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    todo = [part for part in parts if not part.is_done]
    total = sum(part.num_bytes for part in parts)
    done = total - sum(part.num_bytes for part in todo)
    columns = TextColumn("tokenize"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    work = functools.partial(_tokenize, config)
    processes = min(config.processes or multiprocessing.cpu_count(), max(len(todo), 1))
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("", total=total, completed=done)
        for part in _in_parallel(work, todo, processes) if processes > 1 else _in_turn(work, todo):
            progress.advance(bar, part.num_bytes)


def _tokenize_streams(config: PrepareConfig, names: list[str], folder: Path) -> list[_Part]:
    """Tokenize what is read once, from its start: parts of a stream that broke off are no use."""
    for left in folder.glob("stream-*"):
        left.unlink()
    work, done = functools.partial(_tokenize, config), []
    processes = config.processes or multiprocessing.cpu_count()
    for number, name in enumerate(names):
        read = _stream_parts(config, name, f"{folder}/stream-{number}")
        found = _in_parallel(work, read, processes) if processes > 1 else _in_turn(work, read)
        done += sorted(found, key=lambda part: part.ranges[0].before)
    return done


def _stream_parts(config: PrepareConfig, name: str, prefix: str) -> Iterator[_Part]:
    """Parts of a stream, whose lines lie in a file of each until they are tokenized."""
    before = 0
    for number, lines in enumerate(chunks(stream_lines(name, config.text_key), config.part_bytes)):
        kept = Path(f"{prefix}-{number}.jsonl")
        with naming(kept):
            kept.write_bytes(b"".join(lines))
        shown = "standard input" if name == STANDARD_INPUT else name
        part_range = FileRange(SourceFile(kept, True), stream=shown, before=before)
        yield _Part((part_range,), f"{prefix}-{number}", kept.stat().st_size, kept)
        before += len(lines)


def _in_turn(work: Callable[[_Part], None], parts: Iterable[_Part]) -> Iterator[_Part]:
    for part in parts:
        work(part)
        yield part


def _in_parallel(
    work: Callable[[_Part], None], parts: Iterable[_Part], processes: int
) -> Iterator[_Part]:
    """Do the parts in any order, and yield each when it is done; few of them wait."""
    context = multiprocessing.get_context("forkserver")
    slow = (__name__, "transformers.models.auto.tokenization_auto")
    context.set_forkserver_preload([name for name in slow if name in sys.modules])
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
        waiting: dict[Future[None], _Part] = {}
        todo = iter(parts)
        try:
            while True:
                for part in itertools.islice(todo, 2 * processes - len(waiting)):
                    waiting[pool.submit(work, part)] = part
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    future.result()
                    yield waiting.pop(future)
        except BrokenProcessPool:
            raise MegaliteError(
                "data prepare: a tokenizing process was killed, perhaps because memory ran out; "
                "finished parts are kept: start again with fewer --processes or a smaller "
                "--part_bytes"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """End this process quietly at an interrupt, and when the process that started it ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def _tokenizer(path: str, end_token: str, trust_code: bool) -> Tokenizer:
    """The tokenizer of this process."""
    return load_tokenizer(path, end_token, trust_code)


def _tokenize(config: PrepareConfig, part: _Part) -> None:
    """Tokenize one part; skipped records are listed beside its store."""
    tokenizer = _tokenizer(config.tokenizer, config.end_token, config.trust_code)
    listed = Path(f"{part.prefix}.skipped")
    writer = StoreWriter(part.prefix, smallest_dtype(tokenizer.vocab_size))
    try:
        with open(listed, "w", encoding="utf-8") as skipped, naming(listed):

            def note(error: DataError) -> None:
                skipped.write(f"{error}\n")

            _write(config, part, note if config.on_error == "skip" else stop, writer)
        writer.close()
        if part.kept:
            part.kept.unlink()
    except BaseException:
        writer.discard()
        raise


def _write(config: PrepareConfig, part: _Part, on_error: OnError, writer: StoreWriter) -> None:
    tokenizer = _tokenizer(config.tokenizer, config.end_token, config.trust_code)
    end = [tokenizer.end_id] if config.append_end and tokenizer.end_id is not None else []
    begin = [tokenizer.begin_id] if config.prepend_begin and tokenizer.begin_id is not None else []
    starts = True
    for part_range in part.ranges:
        for pieces in _batches(range_documents(part_range, config.text_key, on_error)):
            texts = [piece.text for piece in pieces]
            encoded = tokenizer.encode_batch(texts, config.special_in_text)
            for piece, tokens in zip(pieces, encoded, strict=True):
                around = (begin if starts else [], end if piece.ends else [])
                writer.add([*around[0], *tokens, *around[1]], piece.ends)
                starts = piece.ends


def _batches(pieces: Iterable[DocumentPiece]) -> Iterator[list[DocumentPiece]]:
    """Pieces in lists that are small enough to tokenize at once."""
    batch: list[DocumentPiece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if len(batch) == BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _join(config: PrepareConfig, parts: list[_Part], tokenizer: Tokenizer) -> None:
    writer = StoreWriter(config.output, smallest_dtype(tokenizer.vocab_size))
    documents = 0
    try:
        for part in parts:
            if Path(f"{part.prefix}.bin").stat().st_size:
                store = TokenStore(part.prefix)
                writer.add_store(store)
                documents += len(store)
        if not documents:
            raise DataError(f"{', '.join(config.source)}: holds no text")
        writer.close()
    except BaseException:
        writer.discard()
        raise


@dataclass(frozen=True)
class _Skipped:
    """The records that were left out.

    Attributes:
        count: how many.
        first: messages about the first few.
        listed: the file with all messages.
    """

    count: int
    first: list[str]
    listed: Path


def _join_skipped(config: PrepareConfig, parts: list[_Part]) -> _Skipped:
    """List all skipped records in one file."""
    output, count = Path(f"{config.output}.skipped.txt"), 0
    first: list[str] = []
    with open(output, "w", encoding="utf-8") as file, naming(output):
        for part in parts:
            with open(f"{part.prefix}.skipped", encoding="utf-8") as listed:
                for line in listed:
                    file.write(line)
                    count += 1
                    if len(first) < NAMED:
                        first.append(line.rstrip("\n"))
    if not count:
        output.unlink()
    return _Skipped(count, first, output)


def _report(config: PrepareConfig, sources: Sources, skipped: _Skipped) -> None:
    store = TokenStore(config.output)
    lines = [f"{config.output}: {len(store):,} documents, {store.num_tokens:,} tokens"]
    if skipped.count:
        lines[0] += f"; skipped {skipped.count:,} records, all listed in {skipped.listed}:"
    lines += [f"  {message}" for message in skipped.first]
    sys.stdout.write("\n".join([*lines, *sources.notes()]) + "\n")
