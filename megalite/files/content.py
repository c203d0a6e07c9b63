"""What is in files, in a few letters: other content has others.

A large file's fingerprint is of its size and of blocks spread over it, so that a store of many
gigabytes is told apart in a moment; a change that keeps the size and misses every block is not
seen.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

WHOLE_BYTES = 1 << 26  # a file up to this size is read whole
BLOCK_BYTES, BLOCKS = 1 << 16, 256


def fingerprint(paths: Iterable[Path], versions: Iterable[str] = (), whole: bool = False) -> str:
    """Of some files, each known by its name and content; 16 bytes in hexadecimal.

    Args:
        paths: of the files.
        versions: of what has no file here.
        whole: whether large files are read whole, too.
    """
    digest = hashlib.blake2b("\n".join(versions).encode(), digest_size=16)
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            if whole or size <= WHOLE_BYTES:
                while block := file.read(1 << 22):
                    digest.update(block)
                continue
            for number in range(BLOCKS):
                file.seek((size - BLOCK_BYTES) * number // (BLOCKS - 1))
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
