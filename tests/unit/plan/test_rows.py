"""What rows see in a plan is what they see in training."""

from pathlib import Path

import numpy as np
import pytest

from megalite.data.config import CorpusConfig
from megalite.data.corpus.store import StoreWriter, TokenStore
from megalite.data.corpus.windows import Windows
from megalite.models.config import ModelConfig
from megalite.plan.rows import Rows, conversation_rows, corpus_rows

MODEL = ModelConfig(num_layers=2)


def test_windows_of_short_documents_see_what_their_samples_do(tmp_path: Path):
    writer = StoreWriter(tmp_path / "store", np.dtype(np.uint16))
    for _ in range(640):
        writer.add(np.arange(37))
    writer.close()
    windows = Windows(TokenStore(tmp_path / "store"), 64)
    masks = [windows[number].decoder.mask for number in range(len(windows))]
    seen = np.mean([(mask.end - mask.start).mean() for mask in masks])
    rows = corpus_rows(CorpusConfig(sequence_length=64), MODEL, 37)
    assert rows.pairs(MODEL).decoder == pytest.approx(seen, rel=0.02)


def test_a_causal_row_sees_half_of_its_sequence_and_no_more_than_a_window():
    rows = Rows.plain(1000, 0)
    assert rows.pairs(MODEL).decoder == 500.5
    windowed = ModelConfig(num_layers=2, windows=(100, 0))
    inside = np.minimum(np.arange(1, 1001), 100).mean()
    assert rows.pairs(windowed).decoder == pytest.approx((inside + 500.5) / 2)


@pytest.mark.parametrize("objective", ["prefix_lm", "blank_infilling", "ul2", "span_corruption"])
def test_a_prefix_sees_more_and_short_documents_less(objective):
    data = CorpusConfig(objective=objective, sequence_length=512)
    alone = data.model_copy(update={"prefix": False})
    both, causal, short = (
        corpus_rows(*one).pairs(MODEL).decoder
        for one in ((data, MODEL), (alone, MODEL), (data, MODEL, 64))
    )
    assert short < 64
    assert short < causal < both < 512


def test_a_prefix_of_half_adds_an_eighth_of_all_pairs():
    causal, prefix = (
        conversation_rows(1024, 0, 0, share).pairs(MODEL).decoder for share in (0.0, 0.5)
    )
    assert prefix - causal == pytest.approx(512 * 511 / 2 / 1024)


def test_an_encoder_decoder_s_rows_see_both_streams():
    model = ModelConfig(num_encoder_layers=2, position="relative")
    data = CorpusConfig(objective="span_corruption", sequence_length=128, encoder_length=512)
    pairs = corpus_rows(data, model).pairs(model)
    assert pairs.decoder < 64
    assert 400 < pairs.encoder <= 512
    assert pairs.cross == pytest.approx(pairs.encoder, rel=0.01)
    packed = corpus_rows(data, model, 100).pairs(model)
    assert packed.encoder < 100


@pytest.mark.parametrize("model", [MODEL, ModelConfig(num_encoder_layers=2, position="relative")])
def test_stores_with_objectives_of_their_own_count_by_their_weights(model):
    names, shares = ("span_corruption", "prefix_lm"), (0.75, 0.25)
    told = {"sequence_length": 256, "encoder_length": 512}
    alone = [corpus_rows(CorpusConfig(objective=n, **told), model).pairs(model) for n in names]
    data = CorpusConfig(objectives=names, weights=shares, **told)
    mixed = corpus_rows(data, model).pairs(model)
    for stream in ("decoder", "encoder", "cross"):
        first, second = (getattr(one, stream) for one in alone)
        expected = shares[0] * first + shares[1] * second
        assert getattr(mixed, stream) == pytest.approx(expected, rel=0.01)
    assert alone[0].decoder != pytest.approx(alone[1].decoder, rel=0.1)


def test_a_prefix_that_a_token_would_end_is_of_a_random_length():
    told = {"objective": "prefix_lm", "sequence_length": 512}
    ended = CorpusConfig(prefix_lm={"split_token": "<sop>"}, **told)
    assert corpus_rows(ended, MODEL).pairs(MODEL) == corpus_rows(CorpusConfig(**told), MODEL).pairs(
        MODEL
    )
