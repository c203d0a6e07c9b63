"""The checkpoints of a run's folder, from the newest back to one that can be taken."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from megalite.errors import CheckpointError
from megalite.training.checkpoint.manifest import (
    Facts,
    Files,
    UnreadableCheckpoint,
    read_manifest,
    unreadable,
)

LEARN = "take what they have learned out of --train.skip and the run's skipped.json"
STEP = re.compile(r"step-\d{8,}")
Candidate = tuple[Path, Facts, Files]


def step_folders(folder: Path) -> list[Path]:
    """The checkpoints' folders in a run's ``checkpoints``, in order; complete or not.

    What has another name, such as a copy that somebody keeps there, is none of them.

    Raises:
        UnreadableCheckpoint: this user may not look into it.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error) from None
    found = sorted(folder / name for name in names if STEP.fullmatch(name))
    return [path for path in found if path.is_dir()]


def manifests(folder: Path) -> Iterator[Candidate]:
    """The checkpoints whose manifests are intact, the newest first; their files aren't read.

    Raises:
        UnreadableCheckpoint: this user may not read one.
    """
    for path in reversed(step_folders(folder)):
        try:
            yield path, *read_manifest(path)
        except UnreadableCheckpoint:
            raise
        except CheckpointError:
            continue  # said where the checkpoints are read


def newest_facts(folder: Path) -> tuple[Path, Facts] | None:
    """The newest checkpoint whose manifest is intact, and its facts; its files aren't read.

    Raises:
        UnreadableCheckpoint: this user may not read one.
    """
    found = next(manifests(folder), None)
    return None if found is None else found[:2]


class Search:
    """Goes through checkpoints, and notes why those that it passed can't be taken."""

    def __init__(
        self, folder: Path, why_not: Callable[[Facts], str], say: Callable[[str], None]
    ) -> None:
        """Begin at the newest.

        Args:
            folder: the run's ``checkpoints``.
            why_not: says of a checkpoint's facts why it can't be taken; empty if it can.
            say: is told what is passed over, and why.
        """
        self._folder, self._why_not, self._say = folder, why_not, say
        self._damages: list[str] = []
        self._are_passed_over = False
        self._remaining = self._candidates()

    def next(self) -> Candidate | None:
        """The next one by its manifest; None where there is no checkpoint at all.

        Raises:
            CheckpointError: there are checkpoints, but none is intact and can be taken.
        """
        try:
            found = next(self._remaining, None)
        except PermissionError as error:
            raise unreadable(self._folder, error) from None
        if found is None and self._damages:
            what, do = "is intact", "put one back"
            if self._are_passed_over:
                what, do = "can be taken", f"{do} as it was, {LEARN}"
            raise CheckpointError(
                f"{self._folder}: no checkpoint {what}: {'; '.join(self._damages)}: {do}, or move "
                "all of them away to begin anew"
            )
        return found

    def pass_over(self, fault: str) -> None:
        """Note what is wrong with the last one."""
        self._damages.append(fault)
        self._say(f"{fault}; falling back to the previous checkpoint")

    def _candidates(self) -> Iterator[Candidate]:
        for path in reversed(step_folders(self._folder)):
            if not any(path.iterdir()):
                continue  # of a deletion that was cut off
            try:
                facts, files = read_manifest(path)
            except UnreadableCheckpoint:
                raise
            except CheckpointError as error:
                self.pass_over(str(error))
                continue
            if reason := self._why_not(facts):
                self._are_passed_over = True
                self.pass_over(f"{path}: {reason}")
                continue
            yield path, facts, files
