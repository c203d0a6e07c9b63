"""Rows of SFT, preference and prompt files in the forms that are in use.

SFT: Alpaca (``instruction``, ``input``, ``output``), ShareGPT (``conversations``), ``messages``.
Preferences: ``prompt`` with ``chosen`` and ``rejected``, or with ``answers``, best first.
Prompts: ``prompt``, Alpaca without ``output``, or ``messages`` without a last answer.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from megalite.errors import DataError

T = TypeVar("T")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
ROLES |= {"system": "system", "bing": "assistant", "chatgpt": "assistant", "bard": "assistant"}


@dataclass(frozen=True)
class Turn:
    """One message: ``role`` is system, user or assistant; ``context`` is what a user's is about."""

    role: str
    text: str
    context: str = ""

    @property
    def whole(self) -> str:
        """The text and what it is about."""
        return f"{self.text}\n{self.context}" if self.context else self.text


@dataclass(frozen=True)
class Ranking:
    """A conversation up to an answer, and answers to it, best first."""

    prompt: tuple[Turn, ...]
    answers: tuple[str, ...]


def read_rows(paths: Sequence[Path | str], parse: Callable[[dict[str, Any]], T]) -> list[T]:
    """Read and parse every row of JSONL, JSON or Parquet files; see :func:`located_rows`."""
    return [row for _, row in located_rows(paths, parse)]


def located_rows(
    paths: Sequence[Path | str], parse: Callable[[dict[str, Any]], T]
) -> Iterator[tuple[str, T]]:
    """Yield where each row of JSONL, JSON or Parquet files stands, such as ``file:line``, and it.

    Raises:
        DataError: names the file and line of what is wrong.
    """
    for path in paths:
        is_empty = True
        for where, row in _rows(Path(path)):
            try:
                yield where, parse(row)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{where}: {_reason(error)}") from None
            is_empty = False
        if is_empty:
            raise DataError(f"{path}: is empty; it needs at least one row")


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"key {error.args[0]!r} is missing"
    return str(error)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix == ".json":
        yield from _json_rows(path)
    else:
        yield from jsonl_rows(path)


def jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``file:line`` and the object of each line that isn't blank.

    Raises:
        DataError: a line is not a JSON object in UTF-8.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            yield f"{path}:{number}", parse_line(f"{path}:{number}", line)


def parse_line(where: str, line: bytes) -> dict[str, Any]:
    """Parse one line of JSONL.

    Raises:
        DataError: it is not a JSON object in UTF-8.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{where}: must be UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; deep nesting
        raise DataError(f"{where}: not JSON that can be read: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object, came {type(row).__name__}")
    return row


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: must be a list of JSON objects")
    for number, row in enumerate(rows, 1):
        yield f"{path}:item {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    file, number = open_parquet(path), 0
    try:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:row {number}", row
    except (OSError, ValueError) as error:  # pyarrow's errors about a damaged file
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: damaged behind row {number}: {reason}") from None


def open_parquet(path: Path) -> Any:
    """Open a Parquet file.

    Raises:
        DataError: pyarrow is not installed, or the file is not Parquet.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: Parquet needs pyarrow: pip install pyarrow") from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a Parquet file: {reason}") from None


def check_unicode(text: str) -> None:
    """Refuse half of a surrogate pair, which JSON can write and no encoding can.

    Raises:
        ValueError: there is one.
    """
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"character {error.start} is half of a surrogate pair") from None


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name!r} must be text, came {type(value).__name__}")
    check_unicode(value)
    return value


def _messages(row: dict[str, Any]) -> tuple[Turn, ...]:
    is_sharegpt = "conversations" in row
    items = row["conversations"] if is_sharegpt else row["messages"]
    role_key, text_key = ("from", "value") if is_sharegpt else ("role", "content")
    if not isinstance(items, list) or not items:
        raise ValueError("the conversation must be a list of at least one message")
    turns = []
    for item in items:
        if not isinstance(item, dict):
            raise TypeError(f"a message must be an object, came {type(item).__name__}")
        role = _text(item[role_key], role_key)
        if role not in ROLES:
            raise ValueError(f"{role_key} {role!r} must be one of {', '.join(ROLES)}")
        turns.append(Turn(ROLES[role], _text(item[text_key], text_key)))
    return tuple(turns)


def _instruction(row: dict[str, Any]) -> tuple[Turn, ...]:
    text = _text(row["instruction"], "instruction")
    more = _text(row.get("input") or "", "input")
    return (Turn("user", text, more),)


def parse_prompt(row: dict[str, Any]) -> tuple[Turn, ...]:
    """The conversation an answer is asked for."""
    if "prompt" in row:
        prompt = row["prompt"]
        if isinstance(prompt, list):
            return _messages({"messages": prompt})
        return (Turn("user", _text(prompt, "prompt")),)
    if "instruction" in row:
        return _instruction(row)
    if "messages" in row or "conversations" in row:
        turns = _messages(row)
        turns = turns[:-1] if turns[-1].role == "assistant" else turns
        if not turns:
            raise ValueError("the conversation has no message before the answer")
        return turns
    raise KeyError("prompt")


def parse_conversation(row: dict[str, Any]) -> tuple[Turn, ...]:
    """A conversation whose assistant turns are to be learned."""
    if "messages" in row or "conversations" in row:
        turns = _messages(row)
    elif "instruction" in row:
        turns = (*_instruction(row), Turn("assistant", _text(row["output"], "output")))
    else:
        turns = (*parse_prompt(row), Turn("assistant", _text(row["response"], "response")))
    if not any(turn.role == "assistant" for turn in turns):
        raise ValueError("the conversation has no assistant message to learn")
    return turns


def parse_ranking(row: dict[str, Any]) -> Ranking:
    """A ranking of two answers or more."""
    if "answers" in row:
        answers = row["answers"]
        if not isinstance(answers, list) or len(answers) < 2:
            raise ValueError("'answers' must be a list of at least two texts, best first")
    else:
        answers = [row["chosen"], row["rejected"]]
    return Ranking(parse_prompt(row), tuple(_text(answer, "answers") for answer in answers))
