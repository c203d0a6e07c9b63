"""Several sources of conversations as one, in shares of their examples."""

from collections.abc import Callable, Iterator, Sequence

from megalite.data.chat.datasets import Conversations
from megalite.data.config import MixedConversationConfig
from megalite.data.corpus.blend import Blend
from megalite.data.example import Example
from megalite.data.named_files import row_files
from megalite.errors import DataError

SHOWN = 8  # entries whose shares are said


class ConversationMixture:
    """Conversations of files, each in a share of the examples that are read.

    Sequences are packed file by file. One of a file that has more examples to a sequence is read
    as much less often, so over an epoch shares are those of examples.

    Attributes:
        notes: what of the files is not read or was left out, and the shares.

    Source: examples-proportional mixing with a limit, Raffel et al. 2020, arXiv:1910.10683, section
    3.5.2; shares of groups of tasks, google-research/FLAN flan/v2/mixtures.py.
    """

    def __init__(
        self, entries: Sequence[Sequence[Conversations]], shares: Sequence[Sequence[float]]
    ) -> None:
        """Mix.

        Args:
            entries: the files of each.
            shares: of each file in the examples; they need not add up to 1.
        """
        files = [file for entry in entries for file in entry]
        told = [share for entry in shares for share in entry]
        weights = [s * len(f) / f.num_examples for s, f in zip(told, files, strict=True)]
        self._blend: Blend[Example] = Blend(files, weights)
        self.notes = [note for file in files for note in file.notes]

    def __len__(self) -> int:
        return len(self._blend)

    def __getitem__(self, number: int) -> Example:
        return self._blend[number]


def mixture(
    data: MixedConversationConfig, read: Callable[[Sequence[str]], Conversations]
) -> ConversationMixture:
    """The conversations of ``data.train`` in the shares that ``data`` says.

    Args:
        data: the section.
        read: reads files.

    Raises:
        DataError: a file can't be read or has nothing to learn, or an entry has no file of its own.
    """
    named = list(_entries(data.train))
    entries = [[read([file]) for file in files] for files in named]
    shares = [
        list(_shares([file.num_examples for file in entry], data, number))
        for number, entry in enumerate(entries)
    ]
    mixed = ConversationMixture(entries, shares)
    whole = sum(map(sum, shares))
    said = [
        f"{name} {sum(share) / whole:.1%} of {sum(f.num_examples for f in entry):,}"
        for name, share, entry in zip(data.train, shares, entries, strict=True)
    ]
    more = f" and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    mixed.notes.append(f"shares of the examples: {', '.join(said[:SHOWN])}{more}")
    return mixed


def _entries(names: Sequence[str]) -> Iterator[list[str]]:
    """The files of each entry, none of an entry before."""
    seen: set[str] = set()
    for name in names:
        files = [file for file in row_files([name])[0] if file not in seen]
        if not files:
            raise DataError(f"--data.train {name}: all its files are those of entries before it")
        seen.update(files)
        yield files


def _shares(sizes: Sequence[int], data: MixedConversationConfig, entry: int) -> Iterator[float]:
    """The share of each file of an entry: by size up to the limit, of what the entry has."""
    limit = data.size_limits[entry] if data.size_limits else 0
    counted = [min(size, limit or size) for size in sizes]
    factor = data.weights[entry] / sum(counted) if data.weights else 1.0
    return (count * factor for count in counted)
