"""SentencePiece models against their own library."""

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megalite.data.tokenizers.load import load_tokenizer
from megalite.data.tokenizers.sentence_piece import SentencePieceTokenizer
from tests.unit.data.tokenizers.conftest import SYMBOLS, lines, train_sentencepiece

each = pytest.mark.parametrize("kind", ["unigram", "bpe", "bytes"])
TEXTS = st.one_of(st.sampled_from(lines(20)), st.text(st.characters(exclude_categories=["Cs"])))


@pytest.fixture(scope="module")
def pairs(paths):
    """Ours and theirs by kind."""
    return {
        kind: (load_tokenizer(path), sentencepiece.SentencePieceProcessor(model_file=str(path)))
        for kind, path in paths.items()
        if path.suffix == ".model"
    }


@each
def test_it_is_read_by_its_own_library_with_its_special_tokens(pairs, kind):
    ours, theirs = pairs[kind]
    assert isinstance(ours, SentencePieceTokenizer)
    assert (ours.end_id, ours.begin_id) == (theirs.eos_id(), theirs.bos_id())
    assert ours.vocab_size == theirs.vocab_size()
    assert [ours.find(symbol) for symbol in SYMBOLS] == [theirs.piece_to_id(s) for s in SYMBOLS]


@each
@settings(max_examples=80)
@given(text=TEXTS, data=st.data())
def test_tokens_and_text_are_those_of_its_library(pairs, kind, text, data):
    ours, theirs = pairs[kind]
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    ids = data.draw(st.lists(st.integers(0, theirs.vocab_size() - 1), max_size=8))
    assert ours.decode(ids) == theirs.decode(ids)


@each
def test_spaces_stand_around_an_id_that_it_does_not_have(pairs, kind):
    ours, _ = pairs[kind]
    ids = [*ours.encode("the cat"), 70_000, *ours.encode("sees"), ours.end_id]
    assert ours.decode(ids) == "the cat<70000> sees"


def test_special_tokens_have_no_text_and_symbols_have_their_own(pairs):
    ours, theirs = pairs["unigram"]
    texts = ours.token_texts()
    assert [texts[n] for n in (theirs.unk_id(), theirs.bos_id(), theirs.eos_id())] == ["", "", ""]
    assert [texts[ours.find(symbol)] for symbol in SYMBOLS] == SYMBOLS


def test_a_model_without_special_tokens_has_none(tmp_path):
    path = train_sentencepiece(tmp_path, "bpe", bos_id=-1, eos_id=-1, pad_id=-1)
    tokenizer = load_tokenizer(path)
    assert (tokenizer.begin_id, tokenizer.end_id, tokenizer.pad_id) == (None, None, 0)


def test_a_folder_that_has_a_model_alone_is_that_model(tmp_path, paths):
    tokenizer = load_tokenizer(paths["unigram"])
    tokenizer.save(tmp_path / "folder")
    again = load_tokenizer(tmp_path / "folder")
    assert isinstance(again, SentencePieceTokenizer)
    assert again.path == str(tmp_path / "folder" / "tokenizer.model")
