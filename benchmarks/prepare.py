"""``data prepare`` beside Megatron-LM's way: a pool of processes that encode a row each.

    python -m benchmarks.prepare [--mib 60] [--rounds 3] [--json]

Both read the same JSON lines of long documents with the same Hugging Face tokenizer in two
processes and write one store; the peer's is written by megatron-core's builder. The stores must be
equal byte by byte. A second line is ``tokenizer train`` beside the ``tokenizers`` library alone.
"""

import argparse
import filecmp
import json
import multiprocessing
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result import Result, show

PROCESSES, VOCABULARY = 2, 8192
FILES_A_DOCUMENT = 8  # of the standard library: some 150 KiB
CHUNK = 32  # rows that a process of the peer is given at once, as tools/preprocess_data.py does


def texts() -> list[str]:
    """The modules of the standard library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in folder.glob("*.py"))
    return [path.read_text(encoding="utf-8", errors="ignore") for path in files]


def documents(num_bytes: int) -> Iterator[str]:
    """Long documents: modules in an order that a seed gives."""
    modules, generator, done = texts(), random.Random(0), 0
    while done < num_bytes:
        text = "\n".join(generator.choices(modules, k=FILES_A_DOCUMENT))
        done += len(text.encode())
        yield text


def ours(source: Path, tokenizer: Path, output: Path) -> None:
    """``megalite data prepare``, in a process of its own as a user starts it."""
    words = ["data", "prepare", "--source", json.dumps([str(source)]), "--output", str(output)]
    words += ["--tokenizer", str(tokenizer), "--processes", str(PROCESSES)]
    run([sys.executable, "-m", "megalite", *words])


def theirs(source: Path, tokenizer: Path, output: Path) -> None:
    """The peer, in a process of its own."""
    words = ["--peer", str(source), str(tokenizer), str(output)]
    run([sys.executable, "-m", "benchmarks.prepare", *words])


def run(words: list[str]) -> None:
    """Run a command; what it says is shown if it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


class Encoder:
    """What a process of the peer does with a row. Source: Megatron-LM, tools/preprocess_data.py."""

    tokenizer = None

    @classmethod
    def begin(cls, folder: str) -> None:
        """Open the tokenizer."""
        from transformers import AutoTokenizer

        cls.tokenizer = AutoTokenizer.from_pretrained(folder)

    @classmethod
    def encode(cls, line: str) -> list[int]:
        """A row's tokens and the end."""
        text = json.loads(line)["text"]
        return [*cls.tokenizer(text)["input_ids"], cls.tokenizer.eos_token_id]


def peer(source: str, tokenizer: str, output: str) -> None:
    """Encode rows in a pool, and write them by megatron-core's builder."""
    import numpy as np
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{output}.bin", dtype=np.uint16)
    pool = multiprocessing.Pool(PROCESSES, Encoder.begin, (tokenizer,))
    with pool, open(source, encoding="utf-8") as lines:
        for tokens in pool.imap(Encoder.encode, lines, CHUNK):
            builder.add_document(tokens, [len(tokens)])
    builder.finalize(f"{output}.idx")


def train_ours(source: Path, output: Path) -> None:
    """``megalite tokenizer train``."""
    words = ["tokenizer", "train", "--source", json.dumps([str(source)])]
    words += ["--vocab_size", str(VOCABULARY), "--output", str(output)]
    run([sys.executable, "-m", "megalite", *words])


def train_theirs(source: Path) -> None:
    """The library alone."""
    run([sys.executable, "-m", "benchmarks.prepare", "--train-peer", str(source)])


def train_peer(source: str) -> None:
    """A byte-level BPE of the ``tokenizers`` library's own."""
    from tokenizers import ByteLevelBPETokenizer

    with open(source, encoding="utf-8") as lines:
        rows = (json.loads(line)["text"] for line in lines)
        ByteLevelBPETokenizer().train_from_iterator(rows, vocab_size=VOCABULARY)


def least(work, rounds: int) -> list[float]:
    """The least seconds of each of some works, which take turns."""
    seconds = [float("inf")] * len(work)
    for _ in range(rounds):
        for number, one in enumerate(work):
            started = time.perf_counter()
            one()
            seconds[number] = min(seconds[number], time.perf_counter() - started)
    return seconds


def compare(folder: Path, mib: float, rounds: int) -> list[Result]:
    """Make the rows and both results, and check that they are equal."""
    source, tokenizer = folder / "rows.jsonl", folder / "tokenizer"
    with open(source, "w", encoding="utf-8") as file:
        for text in documents(int(mib * 2**20)):
            file.write(json.dumps({"text": text}) + "\n")
    training = [lambda: train_ours(source, tokenizer), lambda: train_theirs(source)]
    trained = least(training, 1)
    stores = folder / "ours", folder / "theirs"
    sides = [
        lambda: ours(source, tokenizer, stores[0]),
        lambda: theirs(source, tokenizer, stores[1]),
    ]
    prepared = least(sides, rounds)
    for end in (".bin", ".idx"):
        if not filecmp.cmp(f"{stores[0]}{end}", f"{stores[1]}{end}", shallow=False):
            sys.exit(f"the stores differ: {end}")
    facts = {"mib": source.stat().st_size / 2**20}
    return [
        Result("data prepare", "Megatron-LM's way", *prepared, facts),
        Result("tokenizer train", "tokenizers", *trained, facts),
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--peer", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--train-peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(*options.peer)
    elif options.train_peer:
        train_peer(options.train_peer)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for result in compare(Path(folder), options.mib, options.rounds):
                show(result, options.json)


if __name__ == "__main__":
    main()
