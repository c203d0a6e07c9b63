"""Documents of a store as full sequences: nothing lost, nothing twice, the same from any place."""

import numpy as np
import pytest

from megalite.data.corpus.packed_documents import BLOCK, PackedDocuments, Room, longest_document
from megalite.data.corpus.store import StoreWriter, TokenStore
from megalite.data.objectives.prefix_lm import PrefixLM
from megalite.errors import ConfigError, DataError
from tests.unit.data.objectives.cases import (
    END,
    FIRST_WORD,
    LAST_WORD,
    STRUCTURES,
    source_and_target,
    span_corruption,
)
from tests.unit.data.objectives.test_round_trip import same, without_sentinels

ROOM = Room(64, 96)


def make_store(folder, lengths) -> TokenStore:
    random = np.random.default_rng(0)
    writer = StoreWriter(folder / "store", np.uint16)
    for length in lengths:
        writer.add([*random.integers(FIRST_WORD, LAST_WORD, max(length - 1, 0)), END][:length])
    writer.close()
    return TokenStore(folder / "store")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    lengths = np.random.default_rng(1).geometric(1 / 40, 2 * BLOCK + 17)
    return make_store(tmp_path_factory.mktemp("sequences"), [*lengths, 700, 1, 2])


def examples_of(sequence, structure) -> list:
    """The examples that were packed into a sequence, cut where positions begin again."""
    bounds = [*np.flatnonzero(sequence.decoder.positions == 0).tolist(), len(sequence)]
    encoder = [*np.flatnonzero(sequence.encoder.positions == 0).tolist(), sequence.encoder_length]
    assert len(bounds) == len(encoder)
    for place in range(len(bounds) - 1):
        rows = slice(bounds[place], bounds[place + 1])
        source = sequence.encoder.tokens[encoder[place] : encoder[place + 1]].tolist()
        yield source, sequence.labels[rows].tolist()


def test_every_piece_is_in_one_sequence_of_an_epoch(store):
    structure = STRUCTURES["encoder-decoder"]
    objective = span_corruption(structure)
    sequences = PackedDocuments(store, objective, ROOM, seed=5)
    longest = longest_document(objective, ROOM)
    found = []
    for number in range(len(sequences)):
        sequence = sequences[number]
        assert len(sequence) <= ROOM.decoder
        assert sequence.encoder_length <= ROOM.encoder
        for source, target in examples_of(sequence, structure):
            assert source.pop() == target.pop() == END
            is_alone = len(source) == 1  # a single token is not corrupted
            found.append(tuple(source if is_alone else without_sentinels(source, target)))
    pieces = []
    for document in range(len(store)):
        tokens = store[document].tolist()
        for first in range(0, len(tokens), longest):
            piece = tokens[first : first + longest]
            if len(piece) > 1:
                cut = piece[:-1] if piece[-1] == END else piece
                pieces.append(tuple(cut))
    assert sorted(found) == sorted(pieces)


def test_sequences_are_full(store):
    sequences = PackedDocuments(store, span_corruption(STRUCTURES["encoder-decoder"]), ROOM, seed=5)
    filled = sum(sequences[number].encoder_length for number in range(len(sequences)))
    assert filled > 0.93 * len(sequences) * ROOM.encoder


def test_a_sequence_is_a_function_of_seed_and_number(store):
    objective = PrefixLM(STRUCTURES["prefix"])
    sequences = PackedDocuments(store, objective, ROOM, seed=5)
    again = PackedDocuments(store, objective, ROOM, seed=5)
    other = PackedDocuments(store, objective, ROOM, seed=6)
    count = len(sequences)
    for number in (count - 1, 3, 0):
        assert same(sequences[number], again[number])
    assert not all(same(sequences[i], other[i]) for i in range(8))


def test_an_epoch_has_its_own_draws_of_the_same_documents(store):
    structure = STRUCTURES["prefix"]
    sequences = PackedDocuments(store, PrefixLM(structure), ROOM, seed=5)
    count = len(sequences)
    examples = [(s.decoder.positions == 0).sum() for s in map(sequences.__getitem__, range(count))]
    alone = np.flatnonzero(np.array(examples) == 1)[:6].tolist()
    splits = []
    for number in alone:
        first = source_and_target(sequences[number], structure)
        second = source_and_target(sequences[count + number], structure)
        assert sum(first, []) == sum(second, [])
        splits.append(len(first[0]) != len(second[0]))
    assert any(splits)


def test_structures_learn_the_same_targets_in_the_same_sequences(store):
    kinds = ("encoder-decoder", "causal", "prefix")
    every = [PackedDocuments(store, PrefixLM(STRUCTURES[k]), Room(64, 64), seed=5) for k in kinds]
    assert len({len(sequences) for sequences in every}) == 1
    for number in (0, 7, len(every[0]) - 1):
        labels = [sequences[number].labels for sequences in every]
        learned = [sequence[sequence != -100].tolist() for sequence in labels]
        assert learned[0] == learned[1] == learned[2]


def test_a_sequence_without_room_is_refused(store):
    objective = span_corruption(STRUCTURES["encoder-decoder"])
    with pytest.raises(ConfigError, match="sequence_length 2: the shortest example takes"):
        PackedDocuments(store, objective, Room(2, 96), seed=0)


def test_a_store_without_a_document_of_two_tokens_is_refused(tmp_path):
    objective = PrefixLM(STRUCTURES["prefix"])
    with pytest.raises(DataError, match="no document has 2 tokens"):
        PackedDocuments(make_store(tmp_path, [1, 1]), objective, ROOM, seed=0)
