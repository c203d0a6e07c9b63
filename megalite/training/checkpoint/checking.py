"""The files of a checkpoint checked by many processes, each its share, with one verdict for all."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from megalite.distributed.gather import told_by_any
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Axis, Mesh
from megalite.errors import CheckpointError
from megalite.training.checkpoint.manifest import (
    Facts,
    Files,
    UnreadableCheckpoint,
    check_files,
    read_manifest,
)


@dataclass(frozen=True)
class Checkers:
    """Processes that load a checkpoint together; alone unless told otherwise.

    Attributes:
        number: this process among those that share the checks.
        count: of those: of all that read one folder, or of a node, where each may have its own.
        axis: all that load.
        device: that communicates over ``axis``.
        known: files that this process has checked, as they were: a start of several models, such as
            PPO's, is read once.
    """

    number: int = 0
    count: int = 1
    axis: Axis = field(default_factory=lambda: Axis("world"))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    known: set[tuple[Any, ...]] = field(default_factory=set)

    @classmethod
    def of_node(cls, launch: Launch, mesh: Mesh) -> "Checkers":
        """The processes of a mesh, those of each node among themselves.

        Nodes may have copies of a folder, each on a disk of its own.
        """
        first = launch.rank - launch.local_rank
        ranks = mesh.ranks() or [launch.rank]
        beside = [rank for rank in ranks if first <= rank < first + launch.local_world_size]
        return cls(beside.index(launch.rank), len(beside), mesh.world, mesh.device)

    def share_of(self, files: Files) -> Files:
        """The files that this process checks: of each size the same number as the others."""
        by_size = sorted(files.items(), key=lambda entry: (-entry[1]["bytes"], entry[0]))
        return dict(by_size[self.number :: self.count])

    def check(self, folder: Path, files: Files) -> None:
        """Check this process's share of a checkpoint's files, but for those that it knows.

        Raises:
            CheckpointError: as :func:`check_files`.
        """
        for name, entry in self.share_of(files).items():
            seen = (entry["blake2b"], *_state_of(folder / name))
            if seen not in self.known:
                check_files(folder, {name: entry})
                self.known.add(seen)


def _state_of(path: Path) -> tuple[Any, ...]:
    """What tells that a file was not written to since; of none its name."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (path,)
    return path, found.st_ino, found.st_size, found.st_mtime_ns


def fault_in(folder: Path, files: Files, checkers: Checkers) -> str:
    """What is wrong with a checkpoint's files; empty where nothing is. Each is read once.

    Args:
        folder: of the checkpoint.
        files: that its manifest lists.
        checkers: who check them, who all call this.

    Raises:
        UnreadableCheckpoint: a file is there that can't be read.

    Comm: all-reduce of a number over ``checkers.axis``, and what is wrong, if something is.
    """
    own: tuple[bool, str] | None = None
    try:
        checkers.check(folder, files)
    except CheckpointError as error:
        own = isinstance(error, UnreadableCheckpoint), str(error)
    except OSError as error:
        own = True, f"{error.filename or folder}: can't be read: {error.strerror}"
    told = sorted(told_by_any(own, checkers.axis, checkers.device), key=lambda one: not one[0])
    if told and told[0][0]:
        raise UnreadableCheckpoint(told[0][1])
    return told[0][1] if told else ""


def verify_together(folder: Path, checkers: Checkers) -> Facts:
    """Check a checkpoint's files against its manifest; give its facts.

    Raises:
        CheckpointError: a file is missing, cut short, changed or can't be read.

    Comm: as :func:`fault_in`.
    """
    facts, files = read_manifest(folder)
    fault = fault_in(folder, files, checkers)
    if fault:
        raise CheckpointError(fault)
    return facts
