"""``megalite data prepare``: raw text to a token store, in parallel and resumable.

The input is cut into parts of about equal size; each part is tokenized by a process of a pool into
a store of its own, and finished parts are kept, so a second run goes on where the first was
stopped. At the end the parts are joined in order.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from megalite.config.section import Section
from megalite.data.documents import Span, files, span_documents, spans, stop
from megalite.data.store import StoreWriter, TokenStore, smallest_dtype
from megalite.data.tokenizer import Tokenizer, load_tokenizer
from megalite.distributed.launch import Launch
from megalite.errors import DataError, MegaliteError, naming

BATCH_DOCUMENTS = 64
BATCH_CHARACTERS = 1 << 18
LEAST_PARTS, LEAST_PART_BYTES = 64, 1 << 20  # a small corpus is cut finer, for all processes
NAMED = 10  # skipped rows that are told on the terminal


class PrepareConfig(Section):
    """What is tokenized and where it goes."""

    source: tuple[str, ...] = Field(description="folders, text, JSONL or Parquet files")
    output: str = Field(description="store that is written, without .bin and .idx")
    tokenizer: str = Field("tokenizer", description="see `megalite tokenizer train`")
    text_key: str = Field("text", description="key of a row's text")
    append_end: bool = Field(True, description="put the end token behind each document")
    processes: int = Field(0, ge=0, description="that tokenize; 0: one a core")
    part_bytes: int = Field(
        32_000_000, gt=0, description="most bytes of input between which work is saved"
    )
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="at a malformed row: stop, or count it, list it and go on"
    )


@dataclass(frozen=True)
class _Part:
    """What one process tokenizes into one store.

    Attributes:
        spans: of files.
        prefix: of the store that is written.
        num_bytes: of input, about.
    """

    spans: tuple[Span, ...]
    prefix: str
    num_bytes: int

    @property
    def is_done(self) -> bool:
        return Path(f"{self.prefix}.idx").exists()


def run(config: PrepareConfig, launch: Launch) -> int:
    """Write the store; only rank 0 does."""
    if launch.rank != 0:
        return 0
    tokenizer = load_tokenizer(config.tokenizer)
    paths = files(config.source)
    folder = Path(f"{config.output}.parts")
    parts = list(_parts(paths, config.part_bytes, folder))
    _open_folder(folder, config, paths)
    _tokenize_all(config, parts)
    _join(config, parts, tokenizer)
    skipped = _join_skipped(config, parts)
    shutil.rmtree(folder)
    _tell(config, *skipped)
    return 0


def _parts(paths: list[Path], most: int, folder: Path) -> Iterator[_Part]:
    """Spans of about equal bytes together; small files share a part."""
    total = sum(path.stat().st_size for path in paths)
    size = min(most, max(total // LEAST_PARTS, LEAST_PART_BYTES))
    group: list[Span] = []
    number, filled = 0, 0
    for path in paths:
        for span in spans(path, size):
            own = min(path.stat().st_size, size)
            if group and filled + own > size:
                yield _Part(tuple(group), f"{folder}/{number}", filled)
                group, number, filled = [], number + 1, 0
            group.append(span)
            filled += own
    yield _Part(tuple(group), f"{folder}/{number}", filled)


def _open_folder(folder: Path, config: PrepareConfig, paths: list[Path]) -> None:
    """Keep finished parts of the same job, drop those of another."""
    own = Path(config.tokenizer)
    read = [*paths, *(sorted(own.iterdir()) if own.is_dir() else [own])]
    facts = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in read]
    stamp = json.dumps([config.model_dump(exclude={"processes"}), facts])
    mark = folder / hashlib.blake2b(stamp.encode(), digest_size=8).hexdigest()
    if folder.exists() and not mark.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


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


def _in_turn(work: Callable[[_Part], None], parts: list[_Part]) -> Iterator[_Part]:
    for part in parts:
        work(part)
        yield part


def _in_parallel(
    work: Callable[[_Part], None], parts: list[_Part], processes: int
) -> Iterator[_Part]:
    """Do the parts in any order, and yield each when it is done."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
        futures = {pool.submit(work, part): part for part in parts}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool:
            raise MegaliteError(
                "data prepare: a process that tokenized was killed, perhaps for want of memory; "
                "finished parts are kept: start again, with fewer --processes or a smaller "
                "--part_bytes"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """Let this process end quietly with an interrupt, and with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def _tokenizer(path: str) -> Tokenizer:
    """The tokenizer of this process."""
    return load_tokenizer(path)


def _tokenize(config: PrepareConfig, part: _Part) -> None:
    """Tokenize one part; the rows that were skipped are listed beside its store."""
    tokenizer = _tokenizer(config.tokenizer)
    listed = Path(f"{part.prefix}.skipped")
    writer = StoreWriter(part.prefix, smallest_dtype(tokenizer.vocab_size))
    try:
        with open(listed, "w", encoding="utf-8") as skipped, naming(listed):

            def note(error: DataError) -> None:
                skipped.write(f"{error}\n")

            _write(config, part, note if config.on_error == "skip" else stop, writer)
        writer.close()
    except BaseException:
        writer.discard()
        raise


def _write(
    config: PrepareConfig, part: _Part, on_error: Callable[[DataError], None], writer: StoreWriter
) -> None:
    tokenizer = _tokenizer(config.tokenizer)
    end = [tokenizer.end_id] if config.append_end and tokenizer.end_id is not None else []
    for span in part.spans:
        for pieces in _batches(span_documents(span, config.text_key, on_error)):
            encoded = tokenizer.encode_batch([piece.text for piece in pieces])
            for piece, tokens in zip(pieces, encoded, strict=True):
                writer.add(tokens + end if piece.ends else tokens, piece.ends)


def _batches(pieces: Iterable) -> Iterator[list]:
    """Groups of pieces that are small enough to hold."""
    batch: list = []
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


def _join_skipped(config: PrepareConfig, parts: list[_Part]) -> tuple[int, list[str], Path]:
    """List all skipped rows in one file; give how many there are, the first few and the file."""
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
    return count, first, output


def _tell(config: PrepareConfig, count: int, first: list[str], listed: Path) -> None:
    store = TokenStore(config.output)
    lines = [f"{config.output}: {len(store):,} documents, {store.num_tokens:,} tokens"]
    if count:
        lines[0] += f"; skipped {count:,} rows, all listed in {listed}:"
    sys.stdout.write("\n".join([*lines, *(f"  {message}" for message in first)]) + "\n")
