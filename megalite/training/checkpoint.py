"""Checkpoints: PyTorch's distributed files with a manifest of sizes and checksums.

Order of a save: files written and flushed, manifest last, folder renamed, ``latest`` moved, then
old ones deleted, never below two complete. A load verifies; all processes agree on the step.
"""

import hashlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.tensor import DTensor

from megalite.errors import CheckpointError
from megalite.torch_private import checkpoint_files
from megalite.training.heartbeat import Heartbeat

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Saving:
    """What a save has to do with the run around it.

    Attributes:
        heart: is told what the writer is at.
        timeout: of the collectives of a save and of the agreement on what to load.
        ranks: of the processes that save together; None for all of the run.
    """

    heart: Heartbeat = field(default_factory=Heartbeat)
    timeout: timedelta = timedelta(minutes=30)
    ranks: list[int] | None = None


class CheckpointManager:
    """Saves and loads the checkpoints of one run's folder."""

    def __init__(
        self,
        folder: Path | str,
        *,
        keep: int = 2,
        asynchronous: bool = True,
        say: Callable = print,
        saving: Saving | None = None,
    ) -> None:
        """Describe the folder.

        Comm: all processes that save call this together; it makes a group for saving.

        Args:
            folder: gets ``step-00000100/`` and ``latest``.
            keep: complete checkpoints that stay, at least two.
            asynchronous: write in a thread, from a copy of the state.
            say: is told what was skipped or went wrong.
            saving: who waits for a save, and how long.
        """
        self.folder, self._keep, self._asynchronous = Path(folder), keep, asynchronous
        self._say, self._saving = say, saving or Saving()
        self._group = None
        if dist.is_initialized():
            self._group = dist.new_group(
                self._saving.ranks,
                self._saving.timeout,
                "gloo",
                use_local_synchronization=self._saving.ranks is not None,
                group_desc="checkpoints",
            )
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Save tensors (plain, or DTensors) and facts (JSON) as the checkpoint of ``step``.

        Raises:
            CheckpointError: an earlier save failed, for example on a full disk.
        """
        self.wait()
        if not self._asynchronous:
            self._save(step, tensors, facts)
            self._raise()
            return
        copies = {name: _copy(tensor) for name, tensor in tensors.items()}
        self._thread = threading.Thread(target=self._save, args=(step, copies, facts))
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save that is under way.

        Raises:
            CheckpointError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[-1]
            raise CheckpointError(
                f"{self.folder}: a checkpoint could not be written: {reason}; earlier ones are "
                "whole: make room and start again"
            ) from None

    def _save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        partial = self.folder / f"step-{step:08}.partial"
        at = self._saving.heart.write
        try:
            with self._together():
                if self._rank == 0:
                    shutil.rmtree(partial, ignore_errors=True)
                    partial.mkdir(parents=True)
            at("write_data", step)
            dcp.save(
                tensors,
                storage_writer=dcp.FileSystemWriter(partial, sync_files=True),
                process_group=self._group,
                no_dist=self._group is None,
            )
            sums = self._checksums(partial)
            with self._together():
                if self._rank == 0:
                    self._publish(step, partial, {"facts": facts, "files": sums})
        except BaseException as error:  # told by wait()
            self._error = error
            if self._rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
        finally:
            at("", step)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Do a part of a save that one process may fail in, so that all fail with it.

        Comm: all-gather of the errors.
        """
        error: OSError | None = None
        try:
            yield
        except OSError as failure:
            error = failure
        errors: list[OSError | None] = [error]
        if self._group is not None:
            errors *= dist.get_world_size(self._group)
            dist.all_gather_object(errors, error, group=self._group)
        first = next((e for e in errors if e is not None), None)
        if first is not None:
            raise first

    def _checksums(self, partial: Path) -> dict[str, dict[str, Any]]:
        """Size and checksum of every file; each process reads those that it wrote.

        Comm: all-gather of them.
        """
        own = checkpoint_files(partial, self._rank)
        sums = {f.name: {"bytes": f.stat().st_size, "blake2b": checksum(f)} for f in own}
        gathered = [sums]
        if self._group is not None:
            gathered *= dist.get_world_size(self._group)
            dist.all_gather_object(gathered, sums, group=self._group)
        return {name: entry for part in gathered for name, entry in part.items()}

    def _publish(self, step: int, partial: Path, manifest: dict[str, Any]) -> None:
        at, path = self._saving.heart.write, partial.with_suffix("")
        at("write_manifest", step)
        manifest["blake2b"] = digest_of(manifest["facts"], manifest["files"])
        write_synced(partial / MANIFEST, json.dumps(manifest, indent=1))
        sync_folder(partial)
        at("rename", step)
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
        sync_folder(self.folder)
        at("move_latest", step)
        write_synced(self.folder / "latest.partial", path.name)
        (self.folder / "latest.partial").rename(self.folder / "latest")
        sync_folder(self.folder)
        at("delete_old", step)
        for old in self._superseded(path):
            shutil.rmtree(old)

    def _superseded(self, newest: Path) -> list[Path]:
        """What may go: older than the newest to keep, and what the run went back from."""
        folders = self._folders()
        complete = [f for f in folders if f <= newest and (f / MANIFEST).exists()]
        return complete[: -self._keep] + [f for f in folders if f > newest]

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        found = self.folder.glob("step-*")
        return sorted(path for path in found if path.suffix != ".partial")

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint and its facts, or None where there is none.

        Comm: a broadcast of the first process's finding.

        Raises:
            CheckpointError: there are checkpoints, but none of them is whole.
        """
        found = [self._newest_whole() if self._rank == 0 else None]
        if self._group is not None:
            dist.broadcast_object_list(found, group=self._group)
        (answer,) = found
        if isinstance(answer, str):
            raise CheckpointError(answer)
        return answer

    def _newest_whole(self) -> tuple[Path, dict[str, Any]] | str | None:
        faults = []
        for path in reversed(self._folders()):
            try:
                facts = verify(path)
            except CheckpointError as error:
                faults.append(str(error))
                self._say(f"{error}; going back to the one before")
                continue
            return path, facts
        if faults:
            return f"{self.folder}: no checkpoint is whole: {'; '.join(faults)}"
        return None


def _copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU that later steps don't change."""
    if isinstance(tensor, DTensor):
        return tensor.detach().clone() if tensor.device.type == "cpu" else tensor.detach().cpu()
    return tensor.detach().clone() if tensor.device.type == "cpu" else tensor.detach().cpu()


def checksum(path: Path) -> str:
    """BLAKE2b of a file, 16 bytes, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def digest_of(*content: Any) -> str:
    """BLAKE2b of what JSON can hold, 16 bytes, in hexadecimal; the same after a round trip."""
    text = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_synced(path: Path, text: str) -> None:
    """Write a small file and wait until it is on the disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_manifest(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's facts, and the sizes and checksums of its files, which are not read.

    Raises:
        CheckpointError: there is no manifest, or it is damaged.
    """
    manifest = path / MANIFEST
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        files, facts = content["files"], content["facts"]
        is_whole = content["blake2b"] == digest_of(facts, files)
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path}: has no readable {MANIFEST}") from None
    if not is_whole:
        raise CheckpointError(
            f"{manifest}: its checksum is not that of its content: it was damaged"
        )
    return facts, files


def verify(path: Path) -> dict[str, Any]:
    """Check a checkpoint's files against its manifest; give its facts.

    Raises:
        CheckpointError: a file is missing, cut short or changed.
    """
    facts, files = read_manifest(path)
    for name, wanted in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing")
        if file.stat().st_size != wanted["bytes"]:
            raise CheckpointError(
                f"{file}: must have {wanted['bytes']} bytes, has {file.stat().st_size}"
            )
        if checksum(file) != wanted["blake2b"]:
            raise CheckpointError(f"{file}: its checksum is not the manifest's; it was damaged")
    return facts


def load(path: Path, tensors: dict[str, Tensor]) -> None:
    """Load tensors in place, whatever layout they were saved from; each process reads its own.

    Raises:
        CheckpointError: a tensor is missing or has another shape: it is of another model.
    """
    reader = dcp.FileSystemReader(path)
    saved = reader.read_metadata().state_dict_metadata
    for name, tensor in tensors.items():
        if name not in saved:
            raise CheckpointError(f"{path}: has no {name}; it is of another model")
        size = tuple(saved[name].size)
        if size != tuple(tensor.shape):
            raise CheckpointError(
                f"{path}: {name} is {list(size)}, this model's is {list(tensor.shape)}; it is of "
                "another model"
            )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(tensors, storage_reader=reader, no_dist=True)


def find_checkpoint(path: Path | str) -> Path:
    """The checkpoint at a path: itself, or the latest of a run's folder.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path
    for folder in (path, path / "checkpoints"):
        latest = folder / "latest"
        if latest.is_file():
            return folder / latest.read_text(encoding="utf-8").strip()
    raise CheckpointError(
        f"{path}: no checkpoint there; give a run's folder, a step-... folder of it or a Hugging "
        "Face folder"
    )
