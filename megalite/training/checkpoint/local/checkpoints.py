"""Saves a run's state on the nodes' own disks, and finds the newest that is whole over all of them.

Each process writes what it holds, and a process of the next node gets a copy. Order of a save: all
parts whole on the disk, all copies whole, then all processes know that, then older ones go. So at
any moment one is whole. A start takes the newest whose every part is on some node and is what was
saved; parts go to the node that needs them.
"""

import contextlib
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megalite.distributed.gather import gather_objects, told_by_any
from megalite.distributed.launch import Launch
from megalite.distributed.transfer import Staged
from megalite.errors import CheckpointError, ConfigError
from megalite.training.checkpoint.local.choice import Choice, Chosen, Fault
from megalite.training.checkpoint.local.exchange import Neighbours, exchange
from megalite.training.checkpoint.local.part import (
    Part,
    layout_of,
    load_part,
    manifest_name,
    pieces_of,
    write_manifest,
    write_part,
)
from megalite.training.checkpoint.manager import Saving
from megalite.training.checkpoint.manifest import Facts
from megalite.training.checkpoint.together import from_first, together
from megalite.training.checkpoint.write_errors import naming_full_disk, reason_of
from megalite.training.watchdog.heartbeat import LOCAL

KEY = "--checkpoint.local.folder"


@dataclass(frozen=True)
class Place:
    """Where this process is among the nodes.

    Attributes:
        node: its node; of a launch, the first rank there.
        is_first: whether it is the node's first process, which tidies for the others.
    """

    node: int = 0
    is_first: bool = True

    @classmethod
    def of(cls, launch: Launch) -> "Place":
        """By torchrun's ranks."""
        return cls(launch.rank - launch.local_rank, launch.local_rank == 0)


class LocalCheckpoints:
    """The local checkpoints of one run, as a process sees them.

    Attributes:
        folder: of the run on this node's disk.
        copies: whether there is another node that has a copy.
        say: is told what was passed over.
    """

    def __init__(
        self,
        root: Path | str,
        run: str,
        place: Place,
        saving: Saving,
        say: Callable[[str], None],
    ) -> None:
        """Make the folder, and find out who is where.

        Args:
            root: a folder on this node's own disk, for the local checkpoints of any run.
            run: known by this name there.
            place: of this process.
            saving: who saves together, and how long that may take.
            say: is told what was passed over.

        Raises:
            ConfigError: the folder can't be written, or is not each node's own.

        Comm: all processes that save call this together; it makes a group.
        """
        self.folder, self._place, self._saving, self.say = Path(root) / run, place, saving, say
        self._axis = saving.axis(LOCAL)
        self._nodes: dict[int, list[int]] = {}
        for rank, node in enumerate(gather_objects(place.node, self._axis)):
            self._nodes.setdefault(node, []).append(rank)
        self._neighbours = Neighbours.of(self._axis.rank, self._nodes)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._chosen: Chosen | None = None
        self._open(run)

    @property
    def copies(self) -> bool:
        """Whether another node has a copy of this one's parts."""
        return len(self._nodes) > 1

    def _open(self, run: str) -> None:
        """Make the folder; refuse one that two nodes share, where copies would lie on the parts."""
        fault, mark = None, self.folder / f"of-node-{self._place.node}.partial"
        if self._place.is_first:
            try:
                for other in self.folder.parent.glob(f"{run.partition('-')[0]}-*"):
                    if other != self.folder:
                        shutil.rmtree(other, ignore_errors=True)  # of this run, begun anew
                for half in self.folder.glob("**/*.partial"):
                    half.unlink(missing_ok=True)
                self.folder.mkdir(parents=True, exist_ok=True)
                mark.touch()
            except OSError as error:
                fault = f"{KEY} {self.folder.parent}: can't be written: {reason_of(error)}"
        self._refuse(fault)
        marks = list(self.folder.glob("of-node-*.partial"))
        if self._place.is_first and marks != [mark]:
            fault = (
                f"{KEY} {self.folder.parent}: is one folder for several nodes: it must be on a "
                "disk of each node's own; checkpoints on storage that nodes share are those of "
                "checkpoint.every"
            )
        self._refuse(fault)
        if self._place.is_first:
            mark.unlink(missing_ok=True)

    def _refuse(self, fault: str | None) -> None:
        told = told_by_any(fault, self._axis, torch.device("cpu"))
        if told:
            raise ConfigError(told[0])

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Facts) -> None:
        """Begin to save what this process holds of some tensors; a thread writes a copy of it.

        Args:
            step: that is done.
            tensors: by name; each process its own.
            facts: of the run, as in a shared checkpoint's manifest; the first process's are kept.

        Comm: none that is waited for; the thread's is of a group of its own.
        """
        self.wait()
        rank, size = self._axis.rank, self._axis.size
        kept = facts if rank == 0 else None
        part = Part(step, rank, size, "", layout_of(tensors), facts=kept)
        staged = Staged(pieces_of(tensors))
        self._thread = threading.Thread(target=self._save, args=(part, staged))
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> bool:
        """Wait for the save that is under way; whether none has failed, which is said."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            self.say(
                f"{self.folder}: a local checkpoint could not be written: {reason_of(error)}: "
                "training goes on"
            )
        return error is None

    def _save(self, part: Part, staged: Staged) -> None:
        enter, folder = self._saving.heartbeat.enter_write, self._step_folder(part.step)
        try:
            save = [uuid.uuid4().hex]
            if self._axis.group is not None:
                dist.broadcast_object_list(save, group=self._axis.group, group_src=0)
            part = replace(part, save=save[0])
            enter("local_data", part.step)
            with together(self._axis):
                folder.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    (folder / part.manifest_name).unlink()  # of a step that was gone back from
                with naming_full_disk(folder):
                    part = write_part(folder, part, staged.wait())
                enter("local_manifest", part.step)
                if part.rank == 0:
                    self._saving.write_before()
                write_manifest(folder, part)
            enter("local_copy", part.step)
            if self.copies:
                with together(self._axis):
                    self._copy(folder, part)
            enter("local_delete", part.step)
            self._keep(folder)
        except BaseException as error:  # said by wait()
            self._error = error
            if self._place.is_first:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            enter("", part.step)

    def _copy(self, folder: Path, part: Part) -> None:
        assert self._axis.group is not None
        exchange(folder, part, self._neighbours.to, self._neighbours.sources, self._axis.group)

    def _keep(self, folder: Path) -> None:
        """Delete all steps but one, which is whole everywhere."""
        for other in self.folder.glob("step-*") if self._place.is_first else ():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def _step_folder(self, step: int) -> Path:
        return self.folder / f"step-{step:08}"

    def newest(
        self, later_than: int, tensors: Mapping[str, Tensor], why_not: Callable[[Facts], str]
    ) -> tuple[Path, Facts] | None:
        """The newest local checkpoint that is whole over all nodes, and its facts.

        Each process's part is checked, and on its node's disk, when this returns.

        Args:
            later_than: a step; older ones are of no use.
            tensors: that are to be loaded, on this process.
            why_not: says of a checkpoint's facts why it can't be taken; empty if it can.

        Raises:
            CheckpointError: ``why_not`` raised it.

        Comm: a gather of what the nodes have, a broadcast of what is taken, parts that go to
        another node, and an all-reduce of a number.
        """
        self._chosen = None
        choice = Choice(self._nodes, later_than, why_not)
        choice.hear(self._gathered(self._there() if self._place.is_first else []))
        try:
            while (chosen := from_first(choice.next, self._axis, self.folder)) is not None:
                faults = self._take(chosen, layout_of(tensors))
                if not faults:
                    self._chosen = chosen
                    return self._step_folder(chosen.step), chosen.facts
                for fault in faults:
                    choice.pass_over(chosen, fault)
            return None
        finally:
            for text in choice.said:
                self.say(text)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what :meth:`newest` found, in place.

        Raises:
            CheckpointError: a part can't be read any more.
        """
        assert self._chosen is not None
        folder = self._step_folder(self._chosen.step)
        load_part(folder, self._own_part(folder), tensors)

    def _own_part(self, folder: Path) -> Part:
        return Part.read(folder / manifest_name(self._axis.rank))

    def _there(self) -> list[tuple[int, Part]]:
        """The parts on this node by their manifests, with a process that can send them."""
        found = []
        for path in sorted(self.folder.glob("step-*/rank-*.json")):
            try:
                found.append((self._axis.rank, Part.read(path)))
            except CheckpointError as error:
                self.say(str(error))
        return found

    def _gathered(self, own: list[tuple[int, Part]]) -> list[tuple[int, Part]]:
        """Of all nodes, for the first process."""
        if self._axis.group is None:
            return own
        found: list[Any] | None = [None] * self._axis.size if self._axis.rank == 0 else None
        dist.gather_object(own, found, group=self._axis.group, group_dst=0)
        return [entry for entries in found or () for entry in entries]

    def _take(self, chosen: Chosen, layout: str) -> list[Fault]:
        """Get this process's part and check it; the faults of all processes."""
        folder, own, rank = self._step_folder(chosen.step), None, self._axis.rank
        is_layout = False
        try:
            self._move(chosen, folder)
            part = self._own_part(folder)
            is_layout = part.holds != layout
            if is_layout:
                raise CheckpointError("it is of another layout")
            if part.save != chosen.save:
                raise CheckpointError(f"{folder / part.name}: is of another save")
            part.check(folder)
        except (CheckpointError, OSError) as error:
            own = Fault(rank, str(error), is_layout)
        return told_by_any(own, self._axis, torch.device("cpu"))

    def _move(self, chosen: Chosen, folder: Path) -> None:
        """Send parts to the processes whose node lacks them, one after another."""
        for holder, rank in chosen.moves(self._nodes):
            if self._axis.rank not in (holder, rank):
                continue
            group = self._axis.group
            assert group is not None
            if self._axis.rank == holder:
                exchange(folder, self._sendable(folder, rank), rank, (), group)
            else:
                exchange(folder, None, None, (holder,), group)

    def _sendable(self, folder: Path, rank: int) -> Part | None:
        """A part that is here; None where it is gone, of which the process that wants it tells."""
        try:
            return Part.read(folder / manifest_name(rank))
        except CheckpointError:
            return None

    def clear(self) -> None:
        """Delete this run's local checkpoints: the shared one is as new. Nothing is under way."""
        if self._place.is_first:
            shutil.rmtree(self.folder, ignore_errors=True)
