"""What tokenized rows are made of: another file, tokenizer, template or rule has another key."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from megalite.data.chat.chat import Chat
from megalite.data.chat.long_rows import RowRules
from megalite.data.structure import Structure
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.files.content import fingerprint
from megalite.models.files import WEIGHT_ENDS

CODE = Path(__file__).parents[1]  # whatever makes tokens of rows
LIBRARIES = ("jinja2", "pyarrow", "sentencepiece", "tiktoken", "tokenizers", "transformers")
OF_TOKENIZER = ("vocab_size", "end_id", "begin_id", "pad_id", "before", "after", "chat_template")
APART = ("tokenizer", "_template")  # of a chat: told by files, and by code or the tokenizer
SHOWN = 3  # files that are named


@dataclass(frozen=True)
class RowSource:
    """Files, and how their rows become tokens.

    Attributes:
        kind: of rows, and how they are parsed.
        paths: of the files.
        chat: writes conversations as tokens.
        structure: encoder-decoder, causal or prefix.
        rules: how records are read.
    """

    kind: str
    paths: Sequence[str]
    chat: Chat
    structure: Structure
    rules: RowRules

    @property
    def files(self) -> str:
        """The files for a sentence."""
        more = len(self.paths) - SHOWN
        return ", ".join(self.paths[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")

    @property
    def label(self) -> str:
        """What it is as far as that is known without reading a file; no other of a run has it."""
        return json.dumps([self._told(), self.chat.tokenizer.path])

    def _told(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "files": list(self.paths),
            "chat": {name: what for name, what in vars(self.chat).items() if name not in APART},
            "structure": asdict(self.structure),
            "rules": asdict(self.rules),
        }

    def key(self) -> dict[str, Any]:
        """All that the tokens depend on, as JSON has it; files by their whole content.

        Raises:
            OSError: a file can't be read.
        """
        told = self._told() | {
            "content": fingerprint(map(Path, self.paths), whole=True),
            "tokenizer": _tokenizer(self.chat.tokenizer),
            "code": _code(),
            "libraries": {name: _version(name) for name in LIBRARIES},
        }
        return json.loads(json.dumps(told))

    def state(self) -> list[tuple[int, int]]:
        """Size and time of each file, to see whether one changes meanwhile.

        Raises:
            OSError: a file is not there.
        """
        found = (Path(path).stat() for path in self.paths)
        return [(one.st_size, one.st_mtime_ns) for one in found]


def name_of(key: dict[str, Any]) -> str:
    """A name that no other key has; 32 letters."""
    return hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()


def _tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    path = Path(tokenizer.path)
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [
        file
        for file in inside
        if file.is_file() and file.name[0] != "." and file.suffix not in WEIGHT_ENDS
    ]
    own = {name: getattr(tokenizer, name) for name in OF_TOKENIZER}
    return {"files": fingerprint(files, whole=True), "class": type(tokenizer).__name__, **own}


@functools.cache
def _code() -> str:
    return fingerprint(sorted(CODE.rglob("*.py")), whole=True)


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""
