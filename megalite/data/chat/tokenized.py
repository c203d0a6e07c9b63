"""Rows as they are tokenized: flat arrays, of which the examples of any row are made again.

Whole numbers lie in the smallest type that holds them all, and are given back in their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megalite.data.arrays import Int64
from megalite.data.example import Example, Intervals, Tokens

OF_STREAM = ("tokens", "positions", "mask.start", "mask.end")
DECODER = ("labels", *(f"decoder.{name}" for name in OF_STREAM))
WEIGHTS = ("weights",)
ENCODER = tuple(f"encoder.{name}" for name in OF_STREAM)
CROSS = ("cross.start", "cross.end")
# Where each example's rows end, each row's examples, and the numbers beside them.
DECODER_ENDS, ENCODER_ENDS, ROW_ENDS, NUMBER_ENDS = "decoder", "encoder", "rows", "numbers.ends"
NUMBERS = "numbers"


@dataclass(frozen=True)
class TokenizedRow:
    """A row.

    Attributes:
        examples: of a conversation one, of a ranking one for each answer.
        numbers: beside them, such as margins.
    """

    examples: list[Example]
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class TokenizedRows:
    """Rows by number; examples are counted through all of them.

    Attributes:
        arrays: by name: a field of all examples, one after another, and where each ends.
        types: the dtype that a field has in an example, by name.
        notes: what of the files is not read or was left out.
    """

    arrays: Mapping[str, NDArray[Any]]
    types: Mapping[str, str]
    notes: list[str]

    @classmethod
    def of(cls, rows: Sequence[TokenizedRow], notes: list[str]) -> "TokenizedRows":
        """Lay rows out, at least one; all their examples have the same fields."""
        examples = [example for row in rows for example in row.examples]
        names = _fields(examples[0])
        assert all(_fields(example) == names for example in examples)
        arrays: dict[str, NDArray[Any]] = {
            DECODER_ENDS: _ends(map(len, examples)),
            ENCODER_ENDS: _ends(example.encoder_length for example in examples),
            ROW_ENDS: _ends(len(row.examples) for row in rows),
            NUMBER_ENDS: _ends(len(row.numbers) for row in rows),
            NUMBERS: np.array([n for row in rows for n in row.numbers], dtype=np.float64),
        }
        types = {}
        for name in names:
            whole = np.concatenate([attrgetter(name)(example) for example in examples])
            arrays[name], types[name] = _small(whole), whole.dtype.str
        return cls(arrays, types, notes)

    def __len__(self) -> int:
        return len(self.arrays[ROW_ENDS])

    def __getitem__(self, number: int) -> TokenizedRow:
        examples = range(len(self.arrays[DECODER_ENDS]))[self._place(ROW_ENDS, number)]
        numbers = self.arrays[NUMBERS][self._place(NUMBER_ENDS, number)]
        return TokenizedRow([self.example(one) for one in examples], tuple(numbers.tolist()))

    @property
    def has_numbers(self) -> bool:
        """Whether any row has numbers beside it."""
        return bool(self.arrays[NUMBERS].size)

    def lengths(self) -> tuple[Int64, Int64]:
        """Rows of the decoder's and of the encoder's stream of each example, int64."""
        decoder, encoder = (
            np.diff(self.arrays[name], prepend=0) for name in (DECODER_ENDS, ENCODER_ENDS)
        )
        return decoder, encoder

    def example(self, number: int) -> Example:
        """An example; its arrays are its own."""
        places = {end: self._place(end, number) for end in (DECODER_ENDS, ENCODER_ENDS)}
        parts = {
            name: self.arrays[name][places[_ends_of(name)]].astype(dtype)
            for name, dtype in self.types.items()
        }
        cross = Intervals(*(parts[name] for name in CROSS)) if CROSS[0] in parts else None
        encoder = _stream(parts, ENCODER) if ENCODER[0] in parts else None
        decoder = _stream(parts, DECODER[1:])
        return Example(decoder, parts["labels"], parts.get("weights"), encoder, cross)

    def _place(self, ends: str, number: int) -> slice:
        found = self.arrays[ends]
        return slice(int(found[number - 1]) if number else 0, int(found[number]))


def _fields(example: Example) -> tuple[str, ...]:
    """The fields that an example has, as the paths of its attributes."""
    names = DECODER if example.weights is None else (*DECODER, *WEIGHTS)
    names = names if example.encoder is None else (*names, *ENCODER)
    return names if example.cross is None else (*names, *CROSS)


def _ends_of(field: str) -> str:
    return ENCODER_ENDS if field in ENCODER else DECODER_ENDS


def _stream(parts: Mapping[str, NDArray[Any]], names: Sequence[str]) -> Tokens:
    tokens, positions, start, end = (parts[name] for name in names)
    return Tokens(tokens, positions, Intervals(start, end))


def _ends(lengths: Iterable[int]) -> Int64:
    return np.cumsum(np.fromiter(lengths, dtype=np.int64), dtype=np.int64)


def _small(values: NDArray[Any]) -> NDArray[Any]:
    """Whole numbers in the smallest type that holds them; others as they are."""
    if values.dtype.kind not in "iu" or not values.size:
        return values
    least, most = (np.min_scalar_type(value) for value in (values.min(), values.max()))
    small = np.promote_types(least, most)
    return values.astype(small) if small.kind in "iu" else values
