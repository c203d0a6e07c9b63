"""All processes of a run were told the same, and read the same files: compared at its start."""

import json
import socket
from collections.abc import Mapping
from typing import Any

from megalite.distributed.agreement import text_of_any, text_of_first
from megalite.distributed.launch import Launch
from megalite.errors import ConfigError
from megalite.training.folder.fingerprint import data_source, tokenizer_source, weights_source
from megalite.training.folder.record import TOKENIZER, RunRecord, by_field, flat, is_weights

OWN = (
    "run.folder",
    "run.threads",
    "data.cache",
    "checkpoint.local.folder",
)  # what each process may have its own of
SAME = "all processes need the same command and config"
FILES, VERSION = "files of ", "version of "
APART = ("gpu", "processes")  # nodes may have other GPUs; the number is one for all
DATA = ("data.train", "data.heldout", "pretraining.train", "answers.prompts")
SETS = "data.validation."  # further sets of held-out data, each under its name


def sources_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config's run takes from elsewhere, by key: where it is, and its fingerprint."""
    found: dict[str, Any] = {}
    for key, value in flat(config):
        if value and is_weights(key):
            found[key] = weights_source(value)
        elif value and is_data(key):
            found[key] = data_source(value)
        elif key == TOKENIZER:
            found[key] = tokenizer_source(value)
    return {key: source for key, source in found.items() if source is not None}


def is_data(key: str) -> bool:
    """Whether a key of a config names files of data."""
    return key in DATA or key.startswith(SETS)


def check_same_run(launch: Launch, record: RunRecord) -> None:
    """Compare what this process was told and reads with the first one's.

    Files are compared by the first process of each node.

    Comm: the first process's record to all, and a line of each process.

    Raises:
        ConfigError: a process has another config, or other files; it names the key.
    """
    if launch.world_size == 1:
        return
    mine = _told(record)
    first: dict[str, Any] = json.loads(text_of_first(launch, lambda: json.dumps(mine)))
    said = ""
    for key, value in mine.items():
        is_seen = not (launch.local_rank and key.startswith(FILES))
        if value == first.get(key) or key in OWN or not is_seen:
            continue
        who = f"rank {launch.rank} ({socket.gethostname()})"
        if key.startswith(FILES):
            key = key.removeprefix(FILES)
            said = f"--{key}: {who} has other files there than rank 0: give all nodes the same"
        elif key.startswith(VERSION):
            name, theirs = key.removeprefix(VERSION), first.get(key)
            said = f"{name} {value}: {who} has it, rank 0 has {theirs}: give all nodes the same"
        else:
            theirs = json.dumps(first.get(key))
            said = f"--{key} {json.dumps(value)}: {who} was told so, rank 0 {theirs}: {SAME}"
        break
    found = text_of_any(launch, said)
    if found:
        raise ConfigError(found)


def _told(record: RunRecord) -> dict[str, Any]:
    """A record's values, and of what it was read from the fingerprints, by key."""
    told = {"stage": record.stage, **dict(by_field(record.config, record.kind))}
    keys = [k for k, _ in flat(record.config) if is_weights(k) or k == TOKENIZER or is_data(k)]
    sources = record.sources
    prints = {f"{FILES}{key}": sources.get(key, {}).get("fingerprint") for key in keys}
    computed = {f"{VERSION}{name}": version for name, version in record.versions.items()}
    for name in APART:
        computed.pop(f"{VERSION}{name}", None)
    return json.loads(json.dumps(told | prints | computed))
