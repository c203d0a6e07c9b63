"""The manifest of a checkpoint: facts about the run, and the size and checksum of each file."""

import hashlib
import json
from pathlib import Path
from typing import Any

from megalite.errors import CheckpointError
from megalite.training.checkpoint.files import checksum, write_synced

MANIFEST = "manifest.json"

Facts = dict[str, Any]  # what JSON can hold
Files = dict[str, dict[str, Any]]  # "bytes" and "blake2b" of each file, by name


class UnreadableCheckpoint(CheckpointError):
    """A checkpoint that may be intact, but this user may not read it."""


def unreadable(folder: Path, error: OSError) -> UnreadableCheckpoint:
    """What to say of a checkpoint that is there and may not be read."""
    return UnreadableCheckpoint(
        f"{error.filename or folder}: can't be read: {error.strerror}: get the permission to, or "
        "move it away to go on from what is before it"
    )


def write_manifest(folder: Path, facts: Facts, files: Files) -> None:
    """Write the manifest of a checkpoint's folder, and wait until it is on the disk."""
    content = {"facts": facts, "files": files, "blake2b": digest_of(facts, files)}
    write_synced(folder / MANIFEST, json.dumps(content, indent=1))


def digest_of(*content: Any) -> str:
    """BLAKE2b of what JSON can hold, 16 bytes, in hexadecimal; the same after a round trip."""
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def read_manifest(folder: Path) -> tuple[Facts, Files]:
    """The facts and files that a checkpoint's manifest lists; the files themselves aren't read.

    Raises:
        CheckpointError: there is no manifest, or it is damaged.
        UnreadableCheckpoint: there is one, which this user may not read.
    """
    manifest = folder / MANIFEST
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        files, facts = content["files"], content["facts"]
        is_whole = content["blake2b"] == digest_of(facts, files)
    except PermissionError as error:
        raise unreadable(folder, error) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{folder}: has no readable {MANIFEST}") from None
    if not is_whole:
        raise CheckpointError(f"{manifest}: its checksum doesn't match its content: it is damaged")
    return facts, files


def verify(folder: Path) -> Facts:
    """Check a checkpoint's files against its manifest; give its facts.

    Raises:
        CheckpointError: a file is missing, cut short or changed.
        UnreadableCheckpoint: a file is there, which this user may not read.
    """
    facts, files = read_manifest(folder)
    check_files(folder, files)
    return facts


def check_files(folder: Path, files: Files) -> None:
    """Check some files of a checkpoint against what its manifest lists of them.

    Raises:
        CheckpointError: a file is missing, cut short or changed.
        UnreadableCheckpoint: a file is there, which this user may not read.
    """
    try:
        for name, expected in files.items():
            _check_file(folder / name, expected)
    except PermissionError as error:
        raise unreadable(folder, error) from None


def _check_file(file: Path, expected: dict[str, Any]) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file}: is missing")
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise CheckpointError(f"{file}: must have {expected['bytes']} bytes, has {size}")
    if checksum(file) != expected["blake2b"]:
        raise CheckpointError(f"{file}: its checksum doesn't match the manifest: it is damaged")
