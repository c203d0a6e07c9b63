"""What one process holds of a run's state, as a file on its node's disk and its manifest.

``rank-00003.safetensors`` has the process's pieces of all tensors, ``rank-00003.json`` says what
they are; the manifest is written last, so a part without one is none.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from megalite.errors import CheckpointError
from megalite.layers.shards import local_box, local_part
from megalite.training.checkpoint.files import checksum, sync, write_synced
from megalite.training.checkpoint.manifest import Facts, check_files, digest_of


@dataclass(frozen=True)
class Part:
    """What is known of a process's part of a local checkpoint.

    Attributes:
        step: of the checkpoint.
        rank: whose part it is.
        world: processes that saved together.
        save: the same for all parts of a save, and for no other save.
        holds: tells layouts apart: which pieces of which tensors are in it.
        bytes: of the file.
        blake2b: its checksum.
        facts: of the run, in the first process's part.
    """

    step: int
    rank: int
    world: int
    save: str
    holds: str
    bytes: int = 0
    blake2b: str = ""
    facts: Facts | None = None

    @property
    def name(self) -> str:
        """Of the file of tensors."""
        return f"rank-{self.rank:05}.safetensors"

    @property
    def manifest_name(self) -> str:
        """Of the manifest."""
        return manifest_name(self.rank)

    def text(self) -> str:
        """The manifest, with its own checksum."""
        content = asdict(self)
        return json.dumps({"part": content, "blake2b": digest_of(content)})

    @classmethod
    def read(cls, path: Path) -> "Part":
        """From a manifest.

        Raises:
            CheckpointError: it is damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            part = cls(**content["part"])
            is_whole = content["blake2b"] == digest_of(content["part"])
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{path}: can't be read, or is no manifest of a part") from None
        if not is_whole:
            raise CheckpointError(f"{path}: its checksum doesn't match its content: it is damaged")
        return part

    def check(self, folder: Path) -> None:
        """Check the file in a folder against the manifest.

        Raises:
            CheckpointError: it is missing, cut short or changed.
        """
        check_files(folder, {self.name: {"bytes": self.bytes, "blake2b": self.blake2b}})


def manifest_name(rank: int) -> str:
    """Of the part of a process."""
    return f"rank-{rank:05}.json"


def pieces_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What this process holds of each tensor, in the memory of the tensors."""
    return {name: local_part(tensor) for name, tensor in tensors.items()}


def layout_of(tensors: Mapping[str, Tensor]) -> str:
    """Tells which pieces of which tensors a process holds; 16 bytes in hexadecimal."""
    boxes: dict[str, Any] = {}
    for name, tensor in tensors.items():
        shape, offset = local_box(tensor)
        boxes[name] = [list(tensor.shape), list(shape), list(offset), str(tensor.dtype)]
    return digest_of(boxes)


def write_part(folder: Path, part: Part, pieces: Mapping[str, Tensor]) -> Part:
    """Write a process's part, and wait until its file is on the disk; the manifest is not written.

    Args:
        folder: of the step; it is there.
        part: what is known of it.
        pieces: on the CPU, by name.

    Returns:
        The part with its file's size and checksum.
    """
    from safetensors.torch import save_file

    path = folder / part.name
    save_file({name: piece.contiguous() for name, piece in pieces.items()}, path)
    sync(path)
    return replace(part, bytes=path.stat().st_size, blake2b=checksum(path))


def write_manifest(folder: Path, part: Part) -> None:
    """Write a part's manifest beside its file: from now on the part is whole."""
    partial = folder / f"{part.manifest_name}.partial"
    write_synced(partial, part.text())
    partial.rename(folder / part.manifest_name)
    sync(folder)


def load_part(folder: Path, part: Part, tensors: Mapping[str, Tensor]) -> None:
    """Load a checked part into the tensors that it was saved from, or such as they are.

    Raises:
        CheckpointError: it can't be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / part.name
    try:
        with safe_open(path, framework="pt") as file:
            for name, piece in pieces_of(tensors).items():
                piece.copy_(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from None
