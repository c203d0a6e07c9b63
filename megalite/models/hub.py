"""Models by their names on the Hugging Face Hub: found in its cache, or fetched into it.

A name is ``NAME`` or ``OWNER/NAME``, perhaps with ``@`` and a branch, tag or commit. A run keeps it
with the commit that it meant when the run began, so that all processes, and the run when it goes
on, read the same files wherever the branch has moved to. A path that exists is never a name.
"""

import errno
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from megalite.distributed.agreement import text_of_first, text_of_node
from megalite.distributed.launch import Launch
from megalite.errors import CheckpointError, first_line
from megalite.files.urls import is_url, local
from megalite.models.elsewhere import fetch_model
from megalite.models.files import Wanted, chosen, has_tokenizer, has_weights, parts_of

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
ENTRIES = (  # by one of which a model is found in the cache
    "config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
)
WITHOUT_HUB = "give a folder, or fetch it where the Hub can be reached (`hf download`)"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class HubName:
    """A model on the Hub.

    Attributes:
        repo: ``OWNER/NAME``.
        revision: branch, tag or commit; empty: the main branch.
    """

    repo: str
    revision: str = ""

    @classmethod
    def like(cls, text: str) -> "HubName | None":
        """What a text would name; None where it can only be a path."""
        repo, _, revision = text.partition("@")
        if not NAME.fullmatch(repo) or "--" in repo or ".." in repo or repo.endswith(".git"):
            return None
        return cls(repo, revision)

    @classmethod
    def of(cls, text: str) -> "HubName | None":
        """What a text names; None where it is a path that exists, or can only be one."""
        return None if Path(text).exists() else cls.like(text)

    def at(self, commit: str) -> "HubName":
        """The same model at a commit."""
        return HubName(self.repo, commit)

    @property
    def is_pinned(self) -> bool:
        """Whether its files can't change."""
        return COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    def cached(self) -> Path | None:
        """Its folder in the Hub's cache on this machine, which may lack files; None without one."""
        from huggingface_hub import try_to_load_from_cache

        for entry in ENTRIES:
            found = try_to_load_from_cache(self.repo, entry, revision=self.revision or None)
            if isinstance(found, str):
                return Path(found).parent
        return None


def folder_of(name: str | Path) -> Path:
    """Where a model, run or tokenizer is on this machine: a path, or the copy of a name's or URL's.

    A name that isn't in the cache is taken for a path, which isn't there.
    """
    if is_url(name):
        return Path(local(str(name)))
    known = HubName.of(str(name))
    return (known.cached() if known is not None else None) or Path(name)


def pinned(launch: Launch, key: str, text: str, wanted: Wanted) -> tuple[str, str]:
    """Make what a name means lie in the cache of every node; all processes call this together.

    The first process finds out the commit, one process a node fetches, the others wait for it.

    Args:
        launch: this process among the run's, which have joined a process group if ``text`` is
            :meth:`HubName.like` a name, or a URL, and they are several.
        key: that names it.
        text: a path or URL, which stays as it is, or a name.
        wanted: which of its files.

    Returns:
        The path or URL, or the name with its commit; and what the first process should say, or
        nothing.

    Raises:
        UserError: there is no such model, or it can't be fetched.

    Comm: some texts through the store.
    """
    if is_url(text):
        return text, "; ".join(fetch_model(launch, key, text, wanted))
    if HubName.like(text) is None:
        return text, ""
    name, said = json.loads(text_of_first(launch, lambda: json.dumps(_pin(key, text))))
    named = HubName.like(name)
    if named is None or not named.is_pinned:
        return text, ""
    fetch = partial(_fetch, key, named, wanted, is_sure=name == text)
    return name, text_of_node(launch, fetch) or said


def _pin(key: str, text: str) -> tuple[str, str]:
    """A name with its commit, and what is to be said; a path as it is."""
    name = HubName.of(text)
    if name is None or name.is_pinned:
        return text, ""
    try:
        return str(name.at(_commit(key, name))), ""
    except _Unreachable as error:
        cached = name.cached()
        if cached is None:
            raise CheckpointError(
                f"{_nothing(key, name)} it isn't in {_cache()}, and {error}: {WITHOUT_HUB}"
            ) from None
        return str(name.at(cached.name)), f"{name}: {error}: {cached} is taken"


def _commit(key: str, name: HubName) -> str:
    """The commit that a branch is at; the cache knows it from then on, for a time without the Hub.

    Raises:
        CheckpointError: there is no such model.
        _Unreachable: the Hub doesn't answer.
    """
    from huggingface_hub import hf_hub_download

    files = _asked(key, name, lambda: _listed(name))
    entry = next((file for file in ENTRIES if file in files), None)
    if entry is None:
        raise _without(key, name, ["config"], files)
    revision = name.revision or None
    path = _asked(key, name, lambda: hf_hub_download(name.repo, entry, revision=revision))
    return Path(path).parent.name


def _fetch(key: str, name: HubName, wanted: Wanted, is_sure: bool) -> str:
    """Fetch what the cache lacks of a pinned name; give what to say of it.

    ``is_sure``: what a run began with is in the cache as a whole if its main files are.
    """
    from huggingface_hub import hf_hub_download

    folder = name.cached()
    lacks: list[str] = [wanted]
    if folder is not None:
        lacks = lacking(folder, wanted)
    if is_sure and not lacks:
        return ""

    def fetch(file: str) -> str:
        return hf_hub_download(name.repo, file, revision=name.revision)

    try:
        names = needed(key, name, _asked(key, name, lambda: _listed(name)), wanted)
        for file in names:
            _asked(key, name, lambda: fetch(file))  # noqa: B023 - called at once
    except _Unreachable as error:
        if not lacks or (lacks == ["tokenizer"] and wanted == "model"):
            return ""  # it may have no tokenizer; who needs one says so
        raise CheckpointError(
            f"--{key} {name}: {_cache()} doesn't have its {' and '.join(lacks)}, and {error}: "
            f"{WITHOUT_HUB}"
        ) from None
    return f"{name}: {len(names)} files from {_endpoint()} are in {name.cached()}"


def lacking(folder: Path, wanted: Wanted) -> list[str]:
    """Which of a model's parts a folder of the cache doesn't have, or not wholly."""
    parts = {
        "config": (folder / "config.json").is_file(),
        "weights": has_weights(folder),
        "tokenizer": has_tokenizer(folder),
    }
    asked = {"config": ("config",), "tokenizer": ("tokenizer",)}.get(wanted, tuple(parts))
    return [part for part in asked if not parts[part]]


def needed(key: str, name: HubName, files: Iterable[str], wanted: Wanted) -> list[str]:
    """Which of a model's files on the Hub are read.

    Raises:
        CheckpointError: they lack a part that is wanted.
    """
    files = list(files)
    parts = parts_of(files)
    asked = {"config": ("config",), "tokenizer": ("tokenizer",)}.get(wanted, ("config", "weights"))
    lacks = [part for part in asked if not parts[part]]
    if lacks:
        raise _without(key, name, lacks, files)
    return chosen(parts, wanted)


def _without(key: str, name: HubName, lacks: list[str], files: list[str]) -> CheckpointError:
    shown = ", ".join(sorted(files)[:8]) + (", ..." if len(files) > 8 else "")
    return CheckpointError(
        f"--{key} {name}: has no {' and no '.join(lacks)} that is read here, but "
        f"{shown or 'nothing'}; a model is config.json with model.safetensors or "
        "pytorch_model.bin, or parts of them"
    )


class _Unreachable(Exception):
    """The Hub does not answer, or isn't to be asked; the text says why and what to do."""


def _asked(key: str, name: HubName, ask: Callable[[], Answer]) -> Answer:
    """What the Hub answers.

    Raises:
        CheckpointError: it has no such model, or its files can't be written.
        _Unreachable: it doesn't answer.
    """
    from huggingface_hub import errors

    try:
        return ask()
    except errors.GatedRepoError:
        raise CheckpointError(
            f"--{key} {name}: its owner gives it to those who ask: do that at "
            f"{_endpoint()}/{name.repo}, then log in with `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{_nothing(key, name)} {_endpoint()} has no such model, or none that you may see: "
            "look at the spelling, or log in with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(
            f"--{key} {name}: {_endpoint()} has {name.repo}, without a branch, tag or commit "
            f"{name.revision}"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise _Unreachable("HF_HUB_OFFLINE is set") from None
    except Exception as error:  # of the library that carries the requests, whichever it is
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            raise CheckpointError(
                f"--{key} {name}: can't be written into {_cache()}: {error.strerror}"
            ) from None
        raise _Unreachable(f"{_endpoint()} can't be reached: {first_line(error)}") from None


def _nothing(key: str, name: HubName) -> str:
    return f"--{key} {name}: there is no such file or folder here; as a model's name on the Hub:"


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _listed(name: HubName) -> list[str]:
    """A model's files on the Hub."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(name.repo, revision=name.revision or None)
    return [file.rfilename for file in info.siblings or ()]
