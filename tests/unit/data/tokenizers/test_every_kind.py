"""What holds for a tokenizer of any kind."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megalite.data.corpus.store import TokenStore
from megalite.data.objectives.choice import sentence_ends
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import DataError
from tests.unit.data.conftest import TEXTS, command, write_jsonl
from tests.unit.data.tokenizers.conftest import KINDS

each = pytest.mark.parametrize("kind", KINDS)
lossless = pytest.mark.parametrize("kind", ["folder", "json", "bytes"])
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))


@pytest.fixture(scope="module")
def loaded(paths):
    return {kind: load_tokenizer(path) for kind, path in paths.items()}


@lossless
@settings(max_examples=80)
@given(text=ANY_TEXT)
def test_any_text_comes_back(loaded, kind, text):
    tokenizer = loaded[kind]
    tokens = tokenizer.encode(text)
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)
    assert tokenizer.decode(tokens) == text


@each
@settings(max_examples=30)
@given(texts=st.lists(st.one_of(st.sampled_from(TEXTS), ANY_TEXT), max_size=4))
def test_a_batch_is_encoded_as_its_texts_are(loaded, kind, texts):
    tokenizer = loaded[kind]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@each
def test_its_own_words_come_back(loaded, kind):
    tokenizer = loaded[kind]
    for text in TEXTS[:2]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@each
@settings(max_examples=40)
@given(data=st.data())
def test_any_ids_are_shown_those_without_a_token_by_number(loaded, kind, data):
    """A model may have more ids than its tokenizer."""
    tokenizer = loaded[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 40), max_size=8))
    shown = tokenizer.decode(ids)
    for number in ids:
        assert number < tokenizer.vocab_size or f"<{number}>" in shown
    known = [number for number in ids if number < tokenizer.vocab_size]
    if known == ids[: len(known)]:
        rest = "".join(f"<{number}>" for number in ids[len(known) :])
        assert shown == tokenizer.decode(known) + rest


@each
def test_the_text_of_each_token_is_what_it_decodes_to_alone(loaded, kind):
    tokenizer = loaded[kind]
    texts = tokenizer.token_texts()
    assert len(texts) == tokenizer.vocab_size
    special = {number for number, text in enumerate(texts) if not text}
    assert tokenizer.end_id in special
    for number in set(range(tokenizer.vocab_size)) - special:
        assert texts[number] == tokenizer.decode([number])


@each
def test_a_token_is_found_by_its_exact_text(loaded, kind):
    tokenizer = loaded[kind]
    end = {"folder": "<|endoftext|>", "json": "<|endoftext|>"}.get(kind, "</s>")
    assert tokenizer.find(end) == tokenizer.token_id(end) == tokenizer.end_id
    assert tokenizer.find("<extra_id_7>") is None
    with pytest.raises(DataError, match="has no token '<extra_id_7>'"):
        tokenizer.token_id("<extra_id_7>")


@each
def test_what_is_saved_is_the_same_tokenizer(loaded, kind, tmp_path):
    tokenizer = loaded[kind]
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    for name in ("vocab_size", "end_id", "begin_id", "pad_id", "chat_template"):
        assert getattr(again, name) == getattr(tokenizer, name)
    assert again.token_texts() == tokenizer.token_texts()
    assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)


@each
def test_without_a_chat_template_nothing_is_rendered(loaded, kind):
    tokenizer = loaded[kind]
    assert tokenizer.chat_template is None
    with pytest.raises(DataError, match="has no chat template"):
        tokenizer.render([{"role": "user", "content": "one"}], is_question=True)


@pytest.mark.parametrize("kind", ["json", "folder"])
def test_a_gap_in_the_ids_counts_to_the_size(with_gap, kind, tmp_path):
    tokenizer = load_tokenizer(with_gap[kind])
    assert tokenizer.vocab_size == 70_001
    assert tokenizer.encode("cat dog.") == [5, 70_000]
    assert tokenizer.decode([5]) + tokenizer.decode([6]) == "cat<6>"
    assert np.flatnonzero(sentence_ends(tokenizer)).tolist() == [70_000]
    source = write_jsonl(tmp_path / "text.jsonl", [{"text": "cat dog."}])
    given = ["data", "prepare", "--source", f'["{source}"]', "--tokenizer", with_gap[kind]]
    assert command(*given, "--output", tmp_path / "store", "--processes", 1) == 0
    assert TokenStore(tmp_path / "store")[0].tolist() == [5, 70_000]
