"""Row intervals are the masks that papers define; packing changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megalite.data.example import Example, collate, pack
from megalite.data.structure import Structure
from megalite.distributed.mesh import Mesh
from megalite.engine.initial import initialise
from megalite.models.config import ModelConfig
from megalite.models.outputs import Logits
from megalite.models.transformer import Transformer
from megalite.ops import RowIntervals
from tests.unit.data.objectives.cases import (
    DOCUMENTS,
    FULL_STOP,
    OBJECTIVES,
    SEEDS,
    STRUCTURES,
    VOCABULARY,
    generator,
)

MANY = st.lists(st.tuples(DOCUMENTS, SEEDS), min_size=1, max_size=4)


def dense(start: np.ndarray, end: np.ndarray, keys: int) -> np.ndarray:
    rows = (torch.from_numpy(a)[None] for a in (start, end))
    return RowIntervals(*rows, keys).materialize()[0].numpy()


def source_rows(name: str, example: Example, structure: Structure) -> int:
    """Rows of a decoder's source.

    Nothing is learned in it but for its last row, which predicts the target's first token; where
    an answer has a start token (GLM), that predicts it and is no part of the source. A document
    without its given split has no source: every row is learned and the first is no split token.
    """
    first = int((example.labels != -100).argmax())
    if "blanks" in name or structure.blank is not None:
        return first
    return 0 if "split" in name and example.decoder.tokens[first] != FULL_STOP else first + 1


def from_definition(name: str, example: Example, structure: Structure) -> np.ndarray:
    sees = np.tril(np.ones((len(example), len(example)), dtype=bool))
    if structure.is_prefix:
        source = source_rows(name, example, structure)
        sees[:source, :source] = True
    return sees


def block_diagonal(parts: list[np.ndarray]) -> np.ndarray:
    whole = np.zeros(np.sum([part.shape for part in parts], axis=0), dtype=bool)
    at = np.zeros(2, dtype=int)
    for part in parts:
        end = at + part.shape
        whole[at[0] : end[0], at[1] : end[1]] = part
        at = end
    return whole


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=10, deadline=None)
@given(many=MANY)
def test_a_packed_row_sees_what_the_definition_says(name, many):
    objective, structure = OBJECTIVES[name]
    examples = [objective(document, generator(seed)) for document, seed in many]
    row = pack(examples)
    own = [from_definition(name, example, structure) for example in examples]
    assert (
        dense(row.decoder.mask.start, row.decoder.mask.end, len(row)) == block_diagonal(own)
    ).all()
    if structure.is_encoder_decoder:
        sources = [example.encoder_length for example in examples]
        both = [np.ones((n, n), dtype=bool) for n in sources]
        seen = dense(row.encoder.mask.start, row.encoder.mask.end, row.encoder_length)
        assert (seen == block_diagonal(both)).all()
        cross = [np.ones((len(e), n), dtype=bool) for e, n in zip(examples, sources, strict=True)]
        seen = dense(row.cross.start, row.cross.end, row.encoder_length)
        assert (seen == block_diagonal(cross)).all()
    restarts = np.concatenate([example.decoder.positions for example in examples])
    assert (row.decoder.positions == restarts).all()


MODELS = {
    "encoder-decoder": {"num_encoder_layers": 2, "position": "relative"},
    "causal": {},
    "prefix": {"position": "alibi"},
    "glm": {"rope_axes": 2},
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_a_documents_logits_are_the_same_alone_and_packed(kind):
    sizes = {"hidden_size": 32, "num_heads": 2, "head_size": 20, "ffn_size": 40, "num_layers": 2}
    config = ModelConfig(vocab_size=VOCABULARY, init_std=0.2, **sizes, **MODELS[kind])
    model = Transformer(config, Mesh.single())
    initialise(model, 3)
    random = np.random.default_rng(7)
    names = [name for name, case in OBJECTIVES.items() if case[1] == STRUCTURES[kind]]
    for name in names:
        documents = [random.integers(10, 60, size=n) for n in (11, 23, 6)]
        documents[0][4] = 2
        examples = [
            OBJECTIVES[name][0](document, generator(seed))
            for seed, document in enumerate(documents)
        ]
        rows = sum(len(e) for e in examples) + 3, sum(e.encoder_length for e in examples) + 2
        encoder = rows[1] if kind == "encoder-decoder" else 0
        packed = model(collate([pack(examples)], [0], rows[0], encoder), Logits())[0]
        at = 0
        for example in examples:
            own = example.encoder_length + (kind == "encoder-decoder")
            alone = model(collate([example], [0], encoder_length=own), Logits())[0]
            difference = (packed[at : at + len(example)] - alone).abs().max()
            assert difference <= 1e-6 * alone.abs().max(), name
            at += len(example)
