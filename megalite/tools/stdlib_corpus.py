"""Data for all four stages from the Python standard library's source on this machine."""

import ast
import hashlib
import inspect
import json
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megalite.data.records import Record
from megalite.errors import DataError

SKIPPED = {"test", "tests", "site-packages", "idlelib", "lib2to3", "__pycache__", "dist-packages"}
HELD_OUT_SHARE = 0.1
MAX_DOCSTRING_CHARACTERS = 200
MIN_DOCSTRING_WORDS = 4
MAX_SIGNATURE_CHARACTERS = 160


@dataclass(frozen=True)
class Function:
    """A documented function.

    Attributes:
        module: path of its file below the library.
        signature: ``def`` line.
        docstring: first paragraph, on one line.
    """

    module: str
    signature: str
    docstring: str


def library_files(root: Path) -> Iterator[Path]:
    """Yield every source file of the library except tests, in a fixed order."""
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED.intersection(path.relative_to(root).parts[:-1]):
            yield path


def is_held_out(module: str) -> bool:
    """Whether a module, by its name alone, is kept for evaluation."""
    digest = hashlib.blake2b(module.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") < HELD_OUT_SHARE * 2**32


def functions(module: str, source: str) -> list[Function]:
    """The documented functions of a source file; none where it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        docstring = _first_paragraph(ast.get_docstring(node))
        signature = f"def {node.name}({ast.unparse(node.args)}):"
        if docstring and len(signature) <= MAX_SIGNATURE_CHARACTERS:
            found.append(Function(module, signature, docstring))
    return found


def _first_paragraph(docstring: str | None) -> str:
    if not docstring:
        return ""
    text = re.sub(r"\s+", " ", inspect.cleandoc(docstring).split("\n\n")[0]).strip()
    enough = len(text.split()) >= MIN_DOCSTRING_WORDS
    return text if enough and len(text) <= MAX_DOCSTRING_CHARACTERS else ""


def rankings(pool: list[Function], seed: int) -> Iterator[Record]:
    """Four docstrings for each signature, best first.

    The true one, another function's, the true one's words shuffled, the other's words shuffled: so
    plain English comes before sense. A function for which two of the four are equal is left out.
    """
    generator = random.Random(seed)
    for function in pool:
        other = generator.choice(pool).docstring
        fluent = [function.docstring, other]
        answers = fluent + [_shuffled(docstring, generator) for docstring in fluent]
        if len(set(answers)) == len(answers):
            yield {"prompt": function.signature, "answers": answers}


def _shuffled(text: str, generator: random.Random) -> str:
    words = text.split()
    generator.shuffle(words)
    return " ".join(words)


def write_corpus(
    folder: Path, seed: int, max_bytes: int, root: Path | None = None
) -> dict[str, int]:
    """Write training and held-out files for pretraining, SFT, ranking and PPO.

    Args:
        folder: gets ``{pretrain,sft,rm,ppo}.{train,heldout}.jsonl``.
        seed: of the random order and the random choices in rankings.
        max_bytes: most bytes of source text for pretraining, in whole files.
        root: of the library; None is this interpreter's.

    Returns:
        The number of records of each file.

    Raises:
        DataError: the library's source is not on this machine.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    records: dict[str, list[Record]] = {}
    pools: dict[str, list[Function]] = {"train": [], "heldout": []}
    for module, text in _sources(root, seed, max_bytes):
        part = "heldout" if is_held_out(module) else "train"
        records.setdefault(f"pretrain.{part}", []).append({"text": text})
        pools[part] += functions(module, text)
    if not pools["train"] or not pools["heldout"]:
        raise DataError(f"{root}: holds no Python source with docstrings; install the library's")
    for part, pool in pools.items():
        unique = list(dict.fromkeys(pool))
        random.Random(seed).shuffle(unique)
        records[f"sft.{part}"] = [
            {"instruction": f.signature, "input": "", "output": f.docstring} for f in unique
        ]
        records[f"rm.{part}"] = list(rankings(unique, seed))
        records[f"ppo.{part}"] = [{"prompt": f.signature} for f in unique]
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in records.items():
        _write_records(folder / f"{name}.jsonl", content)
    return {name: len(content) for name, content in records.items()}


def _sources(root: Path, seed: int, max_bytes: int) -> Iterator[tuple[str, str]]:
    """Modules and their text in random order, at most ``max_bytes`` together."""
    paths = list(library_files(root))
    random.Random(seed).shuffle(paths)
    size = 0
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="ignore")
        if text.strip() and size + len(text) <= max_bytes:
            size += len(text)
            yield str(path.relative_to(root)), text


def _write_records(path: Path, records: Iterable[Record]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
