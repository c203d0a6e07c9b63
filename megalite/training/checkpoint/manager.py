"""Saves the checkpoints of a run's folder, and finds the newest intact one.

A checkpoint is PyTorch's distributed files and a manifest of their sizes and checksums. Order of a
save: files written and flushed, manifest last, folder renamed, ``latest`` moved, then old ones
deleted, never below two complete. A load verifies; all processes agree on the step.
"""

import contextlib
import errno
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from megalite.distributed.mesh import Axis
from megalite.distributed.transfer import Staged
from megalite.errors import CheckpointError, SaveFailed
from megalite.torch_private import checkpoint_files
from megalite.training.checkpoint.checking import Checkers, fault_in
from megalite.training.checkpoint.files import checksum, sync, write_synced
from megalite.training.checkpoint.manifest import (
    MANIFEST,
    Facts,
    Files,
    write_manifest,
)
from megalite.training.checkpoint.search import Search, manifests, newest_facts, step_folders
from megalite.training.checkpoint.together import from_first, together
from megalite.training.checkpoint.write_errors import (
    advice_on,
    error_number,
    naming_full_disk,
    reason_of,
)
from megalite.training.watchdog.heartbeat import SHARED, Heartbeat

Made = TypeVar("Made")


@dataclass(frozen=True)
class Saving:
    """What a save has to do with the run around it.

    Attributes:
        heartbeat: is told what the writer is doing.
        timeout: of the collectives of a save and of the agreement on what to load.
        ranks: of the processes that save together; None for all of the run.
        write_before: writes what a start that goes on from the checkpoint takes for written; the
            first process calls it before the checkpoint is whole.
    """

    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    timeout: timedelta = timedelta(minutes=30)
    ranks: list[int] | None = None
    write_before: Callable[[], None] = lambda: None

    def axis(self, name: str) -> Axis:
        """The processes that save together, with a group of CPUs of their own.

        Comm: they call this together; it makes the group.
        """
        if not dist.is_initialized():
            return Axis(name)
        group = dist.new_group(
            self.ranks,
            self.timeout,
            "gloo",
            use_local_synchronization=self.ranks is not None,
            group_desc=name,
        )
        return Axis(name, dist.get_world_size(group), dist.get_rank(group), group)


def _fits(_facts: Facts) -> str:
    return ""


class CheckpointManager:
    """Saves and loads the checkpoints of one run's folder."""

    def __init__(
        self,
        folder: Path | str,
        *,
        keep: int = 2,
        asynchronous: bool = True,
        say: Callable[[str], None] = print,
        saving: Saving | None = None,
    ) -> None:
        """Describe the folder.

        Comm: all processes that save call this together; it makes a group for saving.

        Args:
            folder: gets ``step-00000100/`` and ``latest``.
            keep: complete checkpoints that stay, at least two.
            asynchronous: write in a thread, from a copy of the state.
            say: is told which checkpoints were skipped, and why.
            saving: who saves together, and how long that may take.
        """
        self.folder, self._keep, self._asynchronous = Path(folder), keep, asynchronous
        self._say, self._saving = say, saving or Saving()
        self._axis = self._saving.axis(SHARED)
        self._checkers = Checkers(self._axis.rank, self._axis.size, self._axis)
        self._group = self._axis.group
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._left: list[str] = []  # what couldn't be deleted, to be said

    def save(self, step: int, tensors: dict[str, Tensor], facts: Facts) -> None:
        """Save tensors (plain, or DTensors) and facts (JSON) as the checkpoint of ``step``.

        The checkpoint of the step that the facts name as ``best`` is not deleted, then or later.

        Raises:
            SaveFailed: it, or an earlier save, could not be written, for example on a full disk.
            CheckpointError: it failed otherwise.
        """
        self.wait()
        if not self._asynchronous:
            self._save(step, tensors, facts)
            self._raise()
            return
        staged = Staged(tensors)
        self._thread = threading.Thread(target=self._save_staged, args=(step, staged, facts))
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save that is under way.

        Raises:
            SaveFailed: it could not be written.
            CheckpointError: it failed otherwise.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise()

    @property
    def is_busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether a save in the background failed, which :meth:`wait` tells."""
        return self._error is not None

    def _raise(self) -> None:
        for text in self._left:
            self._say(text)
        self._left.clear()
        error, self._error = self._error, None
        if error is not None:
            whole = [path for path in self._folders() if (path / MANIFEST).exists()]
            newest = (
                f"earlier ones are intact, up to {whole[-1].name}" if whole else "there is none"
            )
            failure = SaveFailed if isinstance(error, OSError) else CheckpointError
            told = failure(
                f"{self.folder}: a checkpoint could not be written: {reason_of(error)}; {newest}: "
                f"{advice_on(error)}"
            )
            if isinstance(told, SaveFailed):
                told.is_forbidden = error_number(error) in (errno.EACCES, errno.EPERM)
            raise told from None

    def _save_staged(self, step: int, staged: Staged, facts: Facts) -> None:
        self._save(step, staged.wait(), facts)

    def _save(self, step: int, tensors: dict[str, Tensor], facts: Facts) -> None:
        partial = self._step_folder(step).with_suffix(".partial")
        enter = self._saving.heartbeat.enter_write
        try:
            with together(self._axis):
                if self._rank == 0:
                    shutil.rmtree(partial, ignore_errors=True)
                    partial.mkdir(parents=True)
            enter("write_data", step)
            with together(self._axis), naming_full_disk(partial):
                dcp.save(
                    tensors,
                    storage_writer=dcp.FileSystemWriter(partial, sync_files=True),
                    process_group=self._group,
                    no_dist=self._group is None,
                )
            files = self._checksums(partial)
            with together(self._axis):
                if self._rank == 0:
                    self._publish(step, partial, facts, files)
        except BaseException as error:  # raised again by wait()
            self._error = error
            if self._rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
        finally:
            enter("", step)

    def _checksums(self, partial: Path) -> Files:
        """Size and checksum of every file, for the first process, which writes the manifest.

        Each process reads the files that it wrote. Comm: a gather of their entries.
        """
        files: Files = {}
        with together(self._axis):
            for file in checkpoint_files(partial, self._rank):
                files[file.name] = {"bytes": file.stat().st_size, "blake2b": checksum(file)}
        gathered: list[Files] | None = None
        if self._rank == 0:
            gathered = [files] * self._axis.size
        if self._group is not None:
            dist.gather_object(files, gathered, group=self._group)
        return {name: entry for part in gathered or () for name, entry in part.items()}

    def _publish(self, step: int, partial: Path, facts: Facts, files: Files) -> None:
        """Make a folder whose files are written the newest checkpoint, and delete old ones."""
        enter, path = self._saving.heartbeat.enter_write, partial.with_suffix("")
        enter("write_manifest", step)
        self._saving.write_before()
        write_manifest(partial, facts, files)
        sync(partial)
        enter("rename", step)
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
        sync(self.folder)
        enter("move_latest", step)
        write_synced(self.folder / "latest.partial", path.name)
        (self.folder / "latest.partial").rename(self.folder / "latest")
        sync(self.folder)
        best = self._step_folder(facts.get("best", {}).get("step", 0))
        if best == path:
            write_synced(self.folder / "best.partial", path.name)
            (self.folder / "best.partial").rename(self.folder / "best")
            sync(self.folder)
        enter("delete_old", step)
        for old in self._superseded(path):
            if old != best:
                self._delete(old)

    def _step_folder(self, step: int) -> Path:
        return self.folder / f"step-{step:08}"

    def has(self, step: int) -> bool:
        """Whether the checkpoint of a step is there. Comm: a broadcast."""
        return self.from_first(lambda: (self._step_folder(step) / MANIFEST).is_file())

    def _superseded(self, newest: Path) -> list[Path]:
        """What may go: all but the newest to keep, and later steps that the run went back from."""
        folders = self._folders()
        complete = [f for f in folders if f <= newest and (f / MANIFEST).exists()]
        return complete[: -self._keep] + [f for f in folders if f > newest]

    def _delete(self, folder: Path) -> None:
        """Delete a checkpoint, its manifest first: what is left halfway is no checkpoint."""
        try:
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
        except OSError as error:
            self._left.append(f"{folder}: an old checkpoint stays: {reason_of(error)}")

    def tidy(self) -> None:
        """Delete what saves and deletions left that were killed halfway; one process does.

        Folders of steps without a manifest go only where an earlier or later one is complete.
        Nobody else may be saving there.
        """
        if self._rank != 0 or not self.folder.is_dir():
            return
        for path in sorted(self.folder.glob("*.partial")):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        folders = self._folders()
        complete = [path for path in folders if (path / MANIFEST).exists()]
        for path in folders:
            if path not in complete and (complete or not any(path.iterdir())):
                self._delete(path)

    def _folders(self) -> list[Path]:
        return step_folders(self.folder)

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What the first process makes, given to all; what it refuses, all refuse.

        Comm: a broadcast.

        Raises:
            CheckpointError: the first process raised it.
        """
        return from_first(make, self._axis, self.folder)

    def latest(self, why_not: Callable[[Facts], str] = _fits) -> tuple[Path, Facts] | None:
        """The newest intact checkpoint and its facts, or None where there is none.

        Each file is checked once, by one of the processes.

        Comm: a broadcast of what the first process finds, and an all-reduce of a number.

        Args:
            why_not: says of a checkpoint's facts why it can't be taken; empty if it can.

        Raises:
            CheckpointError: there are checkpoints, but none of them is intact and can be taken.
        """
        search = Search(self.folder, why_not, self._say)
        while (found := self.from_first(search.next)) is not None:
            path, facts, files = found
            fault = fault_in(path, files, self._checkers)
            if not fault:
                self._checkers.known.clear()
                return path, facts
            if self._rank == 0:
                search.pass_over(fault)
        return None

    def newest_step(self) -> int:
        """The step of the newest checkpoint by the manifests; -1 without. Comm: a broadcast."""

        def find() -> int:
            found = newest_facts(self.folder)
            return -1 if found is None else int(found[1]["step"])

        return self.from_first(find)

    def has_whole(self, fits: Callable[[Facts], bool]) -> bool:
        """Whether the facts of an intact checkpoint fit; says what is wrong with those that aren't.

        Comm: as :meth:`latest`, which doesn't check again what is checked here.

        Raises:
            CheckpointError: this user may not read one.
        """

        def fitting() -> list[tuple[Path, Files]]:
            return [(path, files) for path, facts, files in manifests(self.folder) if fits(facts)]

        faults = []
        for path, files in self.from_first(fitting):
            fault = fault_in(path, files, self._checkers)
            if not fault:
                return True
            faults.append(fault)
        for fault in faults:
            self._say(fault)
        return False
