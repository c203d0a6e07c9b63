"""Jobs of processes that begin a run together, and of saves that fail on one of them."""

import os
import platform
import resource
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megalite.cli import find_command, load_config
from megalite.data.chat import row_source, row_store
from megalite.data.chat.chat import Chat
from megalite.data.chat.datasets import Conversations
from megalite.data.chat.row_store import RowStores
from megalite.data.config import MixedConversationConfig
from megalite.data.structure import Structure
from megalite.data.tokenizers.load import load_tokenizer
from megalite.distributed.launch import Launch
from megalite.errors import CheckpointError, MegaliteError, UserError
from megalite.files.copies import Elsewhere
from megalite.files.fetch import fetch_together
from megalite.models.hub import folder_of, pinned
from megalite.stages.datasets import Datasets
from megalite.training.checkpoint import manifest
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.folder import lock
from tests.hub import reach


def refusal(
    launch: Launch, words: list[str], last: list[str], folder: str = "", python: str = ""
) -> str:
    """What each process says of a run that is refused.

    The last process is told more, is elsewhere, or has another Python.
    """
    here, version = os.getcwd(), platform.python_version
    is_last = launch.rank == launch.world_size - 1
    command, rest = find_command([*words, *(last if is_last else [])])
    config, module = load_config(command, rest)
    lock.SEEN_S = 0.5
    try:
        if python and is_last:
            platform.python_version = lambda: python
        if folder and is_last:
            os.chdir(folder)
        module.run(config, launch)
    except MegaliteError as error:
        return f"{error.exit_code} {error}"
    finally:
        os.chdir(here)
        platform.python_version = version
    return "it was not refused"


def save_on_small_disk(launch: Launch, folder: str, rank: int) -> tuple[str, list[str]]:
    """Two saves, the second where ``rank`` can write no more; what it says, and what is there."""
    manager = CheckpointManager(Path(folder), asynchronous=False)
    tensors = {f"model.{launch.rank}": torch.ones(40_000)}
    manager.save(1, tensors, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if launch.rank == rank:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        manager.save(2, tensors, {"step": 2})
    except CheckpointError as error:
        return str(error), sorted(os.listdir(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return "it was saved", []


def name_on_hub(launch: Launch, url: str, cache: str, repo: str) -> tuple[str, list[str]]:
    """What a name means for each process, or why it is refused, and the files in the cache."""
    with pytest.MonkeyPatch.context() as patch:
        reach(patch, url, Path(cache))
        try:
            found, _ = pinned(launch, "checkpoint.start", repo, "model")
            return found, sorted(os.listdir(folder_of(found)))
        except MegaliteError as error:
            return str(error), []


def files_behind_url(launch: Launch, url: str, caches: str) -> tuple[int, list[str] | str]:
    """How many copies a process makes of what a URL names, and what is said or refused."""
    copied, copy = [], Elsewhere.copy
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", caches)
        patch.setattr(Elsewhere, "copy", lambda *which: copied.append(which) or copy(*which))
        try:
            said = fetch_together(launch, [("data.train", url)])
            return len(copied), said
        except UserError as error:
            return len(copied), str(error)


def read_when_loading(launch: Launch, folder: str, damage: str = "") -> tuple[list[str], str]:
    """The files of a checkpoint that this process reads to check them, and what is found wrong."""
    names, inner = [], manifest.checksum

    def note(path: Path) -> str:
        names.append(path.name)
        return inner(path)

    manager = CheckpointManager(folder, asynchronous=False, say=lambda _text: None)
    manager.save(1, {f"of {launch.rank}": torch.full((9,), float(launch.rank))}, {"step": 1})
    if damage and launch.rank == 0:
        (Path(folder) / "step-00000001" / damage).write_bytes(b"")
    dist.barrier()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "checksum", note)
        try:
            manager.latest()
        except CheckpointError as error:
            return names, str(error)
    return names, ""


def rows_once(launch: Launch, folder: str, cache: str) -> tuple[int, int, str]:
    """What a process tokenizes and reads whole for its conversations.

    Returns:
        How many texts, how often it reads files whole, and the conversations, or the error.
    """
    data = MixedConversationConfig(train=(f"{folder}/rows.jsonl",), cache=cache, packed=False)
    tokenizer = load_tokenizer(f"{folder}/tokenizer")
    chat, inner, texts = Chat("plain", tokenizer), tokenizer.encode_segments, []
    tokenizer.encode_segments = lambda segments: inner(texts.append(segments) or segments)
    fingerprint, wholes = row_store.fingerprint, []

    def whole(*what, **how) -> str:
        wholes.append(what)
        return fingerprint(*what, **how)

    def read(paths, rules, stores: RowStores) -> Conversations:
        return Conversations(paths, chat, Structure(), rules, data.packed, stores)

    with pytest.MonkeyPatch.context() as patch:
        for module in (row_store, row_source):
            patch.setattr(module, "fingerprint", whole)
        try:
            found = Datasets.read_once(launch, data, 0, read).train
        except UserError as error:
            return len(texts), len(wholes), str(error)
    labels = [found[number].labels.tolist() for number in range(len(found))]
    return len(texts), len(wholes), str(labels)
