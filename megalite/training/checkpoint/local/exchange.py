"""Parts of checkpoints on their way between nodes, a file at a time, through a group of CPUs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
import torch.distributed as dist
from torch import Tensor

from megalite.training.checkpoint.files import sync
from megalite.training.checkpoint.local.part import Part, write_manifest

CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class Neighbours:
    """Where each process's part is copied to.

    Attributes:
        to: the process that gets this one's; None: nobody.
        sources: those whose parts this one gets.
    """

    to: int | None = None
    sources: Sequence[int] = ()

    @classmethod
    def of(cls, rank: int, nodes: Mapping[int, Sequence[int]]) -> "Neighbours":
        """Each node's parts go to the next node, the last one's to the first.

        Args:
            rank: of this process.
            nodes: ranks on each node, by anything that tells nodes apart.
        """
        ring = list(nodes.values())
        if len(ring) == 1:
            return cls()
        to: dict[int, int] = {}
        for place, node in enumerate(ring):
            following = ring[(place + 1) % len(ring)]
            to |= {one: following[number % len(following)] for number, one in enumerate(node)}
        return cls(to[rank], [one for one, target in to.items() if target == rank])


@dataclass
class _Outgoing:
    """A part as tensors to send: two lengths, the manifest, the file in chunks."""

    folder: Path
    part: Part | None
    error: OSError | None = None

    def tensors(self) -> Iterator[Tensor]:
        text = b"" if self.part is None else self.part.text().encode()
        size = 0 if self.part is None else self.part.bytes
        yield torch.tensor([len(text), size])
        if self.part is None:
            return
        yield _bytes(text)
        with ExitStack() as stack:
            file = self._opened(stack)
            for at in range(0, size, CHUNK_BYTES):
                yield _bytes(self._read(file, min(CHUNK_BYTES, size - at)))

    def _opened(self, stack: ExitStack) -> BinaryIO | None:
        assert self.part is not None
        try:
            return stack.enter_context(open(self.folder / self.part.name, "rb"))
        except OSError as error:
            self.error = error
            return None

    def _read(self, file: BinaryIO | None, count: int) -> bytes:
        """So many bytes, whatever comes: the other process waits for them."""
        found = b""
        try:
            found = file.read(count) if file is not None else found
        except OSError as error:
            self.error = error
        return found.ljust(count, b"\0")


@dataclass
class _Incoming:
    """A part that comes from another process, and is written as it comes."""

    folder: Path
    source: int
    lengths: Tensor = field(default_factory=lambda: torch.empty(2, dtype=torch.int64))
    manifest: Tensor | None = None
    left: int = 0
    file: BinaryIO | None = None
    error: OSError | None = None
    is_done: bool = False

    def receive(self, group: dist.ProcessGroup) -> None:
        """Wait for the next tensor and take it."""
        if self.manifest is None:
            dist.recv(self.lengths, group=group, group_src=self.source)
            text, self.left = self.lengths.tolist()
            self.manifest, self.is_done = torch.empty(text, dtype=torch.uint8), text == 0
            if not self.is_done:
                dist.recv(self.manifest, group=group, group_src=self.source)
                self.is_done = not self.left
            return
        chunk = torch.empty(min(CHUNK_BYTES, self.left), dtype=torch.uint8)
        dist.recv(chunk, group=group, group_src=self.source)
        self._write(chunk)
        self.left -= len(chunk)
        self.is_done = not self.left

    def _write(self, chunk: Tensor) -> None:
        """Write a chunk; after a failure the rest is only taken, as the other process sends it."""
        if self.error is not None:
            return
        try:
            if self.file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.file = open(self._partial, "wb")  # noqa: SIM115  # until the last chunk
            self.file.write(chunk.numpy().tobytes())
        except OSError as error:
            self.error = error

    @property
    def _partial(self) -> Path:
        return self.folder / f"from-{self.source}-to-{dist.get_rank()}.partial"

    def finish(self) -> None:
        """Make the part whole in the folder.

        Raises:
            OSError: it could not be written.
            CheckpointError: what came is not what was sent.
        """
        if self.file is not None:
            self.file.close()
        if self.error is not None:
            raise self.error
        if self.file is None or self.manifest is None:
            return  # the other process has none
        text = self._partial.with_suffix(".json")
        text.write_bytes(bytes(self.manifest.numpy()))
        part = Part.read(text)
        text.unlink()
        os.replace(self._partial, self.folder / part.name)
        part.check(self.folder)
        sync(self.folder / part.name)
        write_manifest(self.folder, part)


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def exchange(
    folder: Path,
    part: Part | None,
    to: int | None,
    sources: Sequence[int],
    group: dist.ProcessGroup,
) -> None:
    """Send this process's part, and write what others send, all at the same time.

    Args:
        folder: of the step: the part's file is in it, and what comes goes there.
        part: what is sent; None: nothing.
        to: the process of ``group`` that gets it; None: nobody.
        sources: processes of ``group`` that send to this one.
        group: of CPUs; each process that sends or gets something calls this.

    Raises:
        OSError: a file could not be read or written.
        CheckpointError: what came is not what was sent.

    Comm: the file's bytes, and its manifest's.
    """
    outgoing = _Outgoing(folder, part)
    sends = iter(outgoing.tensors() if to is not None else ())
    incoming = [_Incoming(folder, source) for source in sources]
    texts = 2  # a manifest comes with its lengths in one turn of the process that gets it
    while True:
        sent = [next(sends, None) for _ in range(texts)]
        texts = 1
        works = [dist.isend(x, group=group, group_dst=to) for x in sent if x is not None]
        for one in incoming:
            if not one.is_done:
                one.receive(group)
        for work in works:
            if work is not None:
                work.wait()
        if not works and all(one.is_done for one in incoming):
            break
    for one in incoming:
        one.finish()
    if outgoing.error is not None:
        raise outgoing.error
