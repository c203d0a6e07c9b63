"""The samples of a run: those it learns from, and those that are held out."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from megalite.data.chat.long_rows import RowRules
from megalite.data.chat.row_store import RowStores
from megalite.data.config import ConversationConfig, CorpusConfig, StoredConversationConfig
from megalite.data.named_files import row_files, store_names
from megalite.data.split import Split
from megalite.distributed.agreement import text_of_node
from megalite.distributed.launch import Launch
from megalite.training.trainer import Evaluate

SHOWN = 5  # files left out that are named


class Noted(Protocol):
    """A dataset that knows what of its files is not read or was left out."""

    notes: list[str]


Samples = TypeVar("Samples")
NotedSamples = TypeVar("NotedSamples", bound=Noted)


@dataclass(frozen=True)
class Datasets(Generic[Samples]):
    """Datasets of one kind.

    Attributes:
        train: what the run learns from.
        heldout: what it is evaluated on, by names; that of ``data.heldout`` or ``data.split`` has
            an empty one.
        notes: what was left out of folders.
    """

    train: Samples
    heldout: Mapping[str, Samples] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        data: ConversationConfig,
        seed: int,
        read: Callable[[Sequence[str], RowRules], Samples],
    ) -> "Datasets[Samples]":
        """Read the files that ``data`` names, each group of them with ``read``.

        Raises:
            DataError: there are none, or one can't be read.
        """
        left_out: list[str] = []

        def opened(names: Sequence[str], split: Split) -> Samples:
            files, others = row_files(names)
            left_out.extend(file for file in others if file not in left_out)
            return read(files, replace(data.rules, split=split))

        train, heldout = parts_of(data, seed, opened)
        return cls(train, heldout, tuple(_left_out(left_out)))

    @classmethod
    def read_once(
        cls,
        launch: Launch,
        data: StoredConversationConfig,
        seed: int,
        read: Callable[[Sequence[str], RowRules, RowStores], Samples],
    ) -> "Datasets[Samples]":
        """Read files as :meth:`read`.

        Where their rows are kept, the first process of a node does, and tells the others which
        stores have them; else all read at once.

        Raises:
            UserError: they can't be read, by some process.

        Comm: a text through the store of the group that the processes have joined.
        """
        stores = RowStores.of(data.rows_folder, launch)
        made: list[Datasets[Samples]] = []

        def names() -> str:
            made.append(cls.read(data, seed, lambda paths, rules: read(paths, rules, stores)))
            return json.dumps(stores.names)

        told = text_of_node(launch, names, at_once=not data.keeps_all)
        if not made:
            stores.names.update(json.loads(told or "{}"))
            names()
        return made[0]

    @classmethod
    def of_stores(
        cls,
        data: CorpusConfig,
        seed: int,
        read: Callable[[Sequence[str], Split], Samples],
    ) -> "Datasets[Samples]":
        """Open the token stores that ``data`` names; see :meth:`read`."""
        return cls(*parts_of(data, seed, lambda names, split: read(store_names(names), split)))


def parts_of(
    data: ConversationConfig | CorpusConfig,
    seed: int,
    read: Callable[[Sequence[str], Split], Samples],
) -> tuple[Samples, dict[str, Samples]]:
    """What is learned, and what is held out, by names."""
    whole = Split()
    train = Split("train", data.split, seed) if data.split else whole
    heldout = {name: read(files, whole) for name, files in data.validation.items()}
    if data.split:
        heldout[""] = read(data.train, replace(train, part="heldout"))
    elif data.heldout:
        heldout[""] = read(data.heldout, whole)
    return read(data.train, train), heldout


def evaluations(
    heldout: Mapping[str, Samples], evaluation: Callable[[Samples], Evaluate]
) -> Evaluate | None:
    """What measures each held-out set, the metrics of one with a name ``METRIC/NAME``; or None."""
    each = {name: evaluation(samples) for name, samples in heldout.items()}

    def evaluate() -> dict[str, float]:
        return {
            f"{key}/{name}" if name else key: value
            for name, measure in each.items()
            for key, value in measure().items()
        }

    return evaluate if each else None


def _left_out(files: Sequence[str]) -> list[str]:
    if not files:
        return []
    more = len(files) - SHOWN
    shown = ", ".join(files[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
    return [f"left out, as their names are not those of rows: {shown}"]


def notes_of(datasets: Datasets[NotedSamples]) -> list[str]:
    """What of a run's files is not read or was left out, each thing once."""
    parts = [datasets.train, *datasets.heldout.values()]
    notes = [note for part in parts for note in part.notes]
    return [*datasets.notes, *dict.fromkeys(notes)]
