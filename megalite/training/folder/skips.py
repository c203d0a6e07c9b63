"""Samples that a run skips for ever: told to it, or left out when it went back before a spike.

What a run decides is written into its folder before it goes back, so that a start after a crash
knows of it; every checkpoint keeps what its order skips. A checkpoint that has learned samples
which the run skips is passed over. So a run that went back has the curve of one that was told from
the start to skip them.
"""

import json
from pathlib import Path

from megalite.data.skipping import Ranges, in_words, is_same_before, learned_to, merged
from megalite.errors import CheckpointError
from megalite.training.checkpoint.files import sync, write_synced
from megalite.training.checkpoint.manifest import Facts

NAME = "skipped.json"


def read_skips(folder: Path) -> list[dict[str, int]]:
    """What a run has decided to skip: ``first``, ``end`` and ``step``, each time it went back.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / NAME
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [{key: int(entry[key]) for key in ("first", "end", "step")} for entry in entries]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{path}: is damaged: it must be a list of objects with first, end and step; the "
            "run's log.txt says which samples it skips"
        ) from None


def write_skips(folder: Path, entries: list[dict[str, int]]) -> None:
    """Write what a run has decided to skip, and wait until it is on the disk."""
    partial = folder / f"{NAME}.partial"
    write_synced(partial, json.dumps(entries, indent=1) + "\n")
    partial.rename(folder / NAME)
    sync(folder)


def skipped_of(facts: Facts, wanted: Ranges = ()) -> Ranges:
    """What a run that goes on from a checkpoint skips: what it did, and what is wanted besides."""
    return merged([*facts.get("skipped", ()), *wanted])


def can_go_on(facts: Facts, wanted: Ranges) -> bool:
    """Whether a checkpoint has learned nothing of what a run skips, ``wanted`` and its own."""
    own = skipped_of(facts)
    end = learned_to(facts["consumed_samples"], own)
    return is_same_before(end, own, skipped_of(facts, wanted))


def why_not(facts: Facts, wanted: Ranges) -> str:
    """Why a run that skips ``wanted`` can't go on from a checkpoint; empty if it can."""
    if can_go_on(facts, wanted):
        return ""
    return f"it has learned samples that the run skips ({in_words(wanted)})"
