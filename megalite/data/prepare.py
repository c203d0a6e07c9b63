"""``megalite data prepare``: raw text to a token store, in parallel and resumable.

The input is cut into parts of about equal size; each part is tokenized by a process of a pool into
a store of its own, and finished parts are kept, so a second run goes on where the first was
stopped. At the end the parts are joined in order.
"""

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from megalite.config.section import Section
from megalite.data.documents import JSONL, Skipped, file_documents, files, stop
from megalite.data.formats import parse_line
from megalite.data.store import StoreWriter, TokenStore, smallest_dtype
from megalite.data.tokenizer import Tokenizer, load_tokenizer
from megalite.errors import DataError
from megalite.parallel.launch import Launch

BATCH_DOCUMENTS = 64


class PrepareConfig(Section):
    """What is tokenized and where it goes."""

    source: tuple[str, ...] = Field(description="folders, text, JSONL or Parquet files")
    output: str = Field(description="store that is written, without .bin and .idx")
    tokenizer: str = Field("tokenizer", description="see `megalite tokenizer train`")
    text_key: str = Field("text", description="key of a row's text")
    append_end: bool = Field(True, description="put the end token behind each document")
    processes: int = Field(0, ge=0, description="that tokenize; 0: one a core")
    part_bytes: int = Field(32_000_000, gt=0, description="of input between which work is saved")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="at a malformed row: stop, or count it and go on"
    )


@dataclass(frozen=True)
class _Part:
    """Bytes [first, last) of a file's lines, or a whole file where ``last`` is 0."""

    path: Path
    first: int = 0
    last: int = 0


def run(config: PrepareConfig, launch: Launch) -> int:
    """Write the store; only rank 0 does."""
    if launch.rank != 0:
        return 0
    tokenizer = load_tokenizer(config.tokenizer)
    parts = list(_parts(files(config.source), config.part_bytes))
    folder = Path(f"{config.output}.parts")
    _open_folder(folder, config, parts)
    skipped = Skipped()
    _tokenize_all(config, parts, folder, skipped)
    _join(config, folder, len(parts), tokenizer)
    shutil.rmtree(folder)
    _tell(config, skipped)
    return 0


def _parts(paths: list[Path], size: int) -> Iterator[_Part]:
    """Cut JSONL files at line ends, others not at all."""
    for path in paths:
        total = path.stat().st_size
        if path.suffix not in JSONL or total <= size:
            yield _Part(path)
            continue
        first = 0
        with open(path, "rb") as file:
            while first < total:
                file.seek(min(first + size, total))
                file.readline()
                last = file.tell()
                yield _Part(path, first, last)
                first = last


def _open_folder(folder: Path, config: PrepareConfig, parts: list[_Part]) -> None:
    """Keep finished parts of the same job, drop those of another."""
    stamp = json.dumps(
        [
            config.model_dump(exclude={"processes"}),
            [(str(p), p.path.stat().st_mtime) for p in parts],
        ]
    )
    mark = folder / hashlib.blake2b(stamp.encode(), digest_size=8).hexdigest()
    if folder.exists() and not mark.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


def _tokenize_all(
    config: PrepareConfig, parts: list[_Part], folder: Path, skipped: Skipped
) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    todo = [i for i in range(len(parts)) if not Path(f"{folder}/{i}.idx").exists()]
    columns = TextColumn("tokenize"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    context = multiprocessing.get_context("spawn")
    processes = config.processes or min(multiprocessing.cpu_count(), max(len(todo), 1))
    with Progress(*columns, transient=True) as progress, context.Pool(processes) as pool:
        bar = progress.add_task("", total=len(parts), completed=len(parts) - len(todo))
        work = [(config, parts[i], str(folder / str(i))) for i in todo]
        for count, named in pool.imap_unordered(_tokenize, work):
            skipped.count += count
            skipped.named += named[: skipped.limit - len(skipped.named)]
            progress.advance(bar)


def _tokenize(work: tuple[PrepareConfig, _Part, str]) -> tuple[int, list[str]]:
    """Tokenize one part; give how many rows were skipped and the first messages."""
    config, part, prefix = work
    tokenizer = load_tokenizer(config.tokenizer)
    skipped = Skipped()
    on_error = skipped if config.on_error == "skip" else stop
    writer = StoreWriter(prefix, smallest_dtype(tokenizer.vocab_size))
    end = [tokenizer.end_id] if config.append_end and tokenizer.end_id is not None else []
    batch: list[str] = []

    def flush() -> None:
        for tokens in tokenizer.encode_batch(batch) if batch else ():
            writer.add(tokens + end)
        batch.clear()

    for text in _texts(part, config.text_key, on_error):
        batch.append(text)
        if len(batch) == BATCH_DOCUMENTS:
            flush()
    flush()
    writer.close()
    return skipped.count, skipped.named


def _texts(part: _Part, key: str, on_error) -> Iterator[str]:
    if part.last == 0:
        yield from (text for _, text in file_documents(part.path, key, on_error))
        return
    with open(part.path, "rb") as file:
        before = sum(1 for _ in _lines(file, 0, part.first))
        for number, line in enumerate(_lines(file, part.first, part.last), before + 1):
            where = f"{part.path}:{number}"
            try:
                text = parse_line(where, line).get(key) if line.strip() else ""
                if not isinstance(text, str):
                    raise DataError(f"{where}: must have text under {key!r}; see --text_key")
            except DataError as error:
                on_error(error)
                continue
            if text.strip():
                yield text


def _lines(file, first: int, last: int) -> Iterator[bytes]:
    file.seek(first)
    at = first
    while at < last:
        line = file.readline()
        at += len(line)
        yield line


def _join(config: PrepareConfig, folder: Path, count: int, tokenizer: Tokenizer) -> None:
    writer = StoreWriter(config.output, smallest_dtype(tokenizer.vocab_size))
    documents = 0
    for number in range(count):
        if Path(f"{folder}/{number}.bin").stat().st_size:
            store = TokenStore(folder / str(number))
            writer.add_store(store)
            documents += len(store)
    if not documents:
        writer.close()
        for suffix in (".bin", ".idx"):
            Path(f"{config.output}{suffix}").unlink()
        shutil.rmtree(folder)
        raise DataError(f"{', '.join(config.source)}: holds no text")
    writer.close()


def _tell(config: PrepareConfig, skipped: Skipped) -> None:
    import sys

    store = TokenStore(config.output)
    sys.stdout.write(
        f"{config.output}: {len(store):,} documents, {store.num_tokens:,} tokens"
        + (f"; skipped {skipped.count:,} rows:" if skipped.count else "")
        + "\n"
        + "".join(f"  {message}\n" for message in skipped.named)
    )
