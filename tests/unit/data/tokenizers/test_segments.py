"""Texts with special tokens between: tokenized whole, each token owned by what it ends in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from megalite.data.tokenizers.load import load_tokenizer
from megalite.data.tokenizers.segments import around, by_stretches, spans_by_cuts
from tests.unit.data.conftest import TEXTS
from tests.unit.data.tokenizers.conftest import KINDS

each = pytest.mark.parametrize("kind", KINDS)
PARTS = st.lists(st.sampled_from([*TEXTS, "", " ", "the", " red", "猫", "\n\n"]), max_size=5)


@pytest.fixture(scope="module")
def loaded(paths):
    return {kind: load_tokenizer(path) for kind, path in paths.items()}


@each
@settings(max_examples=40)
@given(parts=PARTS)
def test_neighbouring_texts_are_tokenized_as_one(loaded, kind, parts):
    tokenizer = loaded[kind]
    owned = tokenizer.encode_segments(parts)
    assert [token for token, _ in owned] == tokenizer.encode("".join(parts))
    assert [number for _, number in owned] == sorted(number for _, number in owned)
    assert all(parts[number] for _, number in owned)


@each
@settings(max_examples=40)
@given(left=PARTS, right=PARTS)
def test_a_special_token_stands_where_it_was_written(loaded, kind, left, right):
    tokenizer = loaded[kind]
    end = tokenizer.end_id
    owned = tokenizer.encode_segments([*left, end, *right, end])
    places = [number for token, number in owned if token == end]
    assert places == [len(left), len(left) + 1 + len(right)]
    tokens = [token for token, _ in owned]
    assert tokens == [
        *tokenizer.encode("".join(left)),
        end,
        *tokenizer.encode("".join(right)),
        end,
    ]


@each
@settings(max_examples=30)
@given(parts=PARTS)
def test_a_tokenizer_without_spans_is_cut_where_one_with_spans_is(loaded, kind, parts):
    tokenizer = loaded[kind]
    without = by_stretches(parts, lambda text, cuts: spans_by_cuts(text, cuts, tokenizer.encode))
    with_spans = tokenizer.encode_segments(parts)
    assert [token for token, _ in without] == [token for token, _ in with_spans]
    owners = [number for _, number in without]
    assert owners == sorted(owners)
    alone = tokenizer.encode("".join(parts[:1]))
    whole = [token for token, _ in without]
    if parts and whole[: len(alone)] == alone:
        assert owners[: len(alone)] == [0] * len(alone)


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
@pytest.mark.parametrize("name", ["folder", "folder/tokenizer.json"])
def test_a_token_that_takes_spaces_along_is_of_the_text_it_is_written_in(
    tokenizer_folder, tmp_path, side, name
):
    """As Phi 3's ``<|assistant|>``, which was learned where an answer begins with a space."""
    theirs = AutoTokenizer.from_pretrained(tokenizer_folder)
    token = AddedToken("<|assistant|>", special=True, **{side: True})
    theirs.add_tokens([token], special_tokens=True)
    theirs.save_pretrained(tmp_path / "folder")
    ours = load_tokenizer(tmp_path / name)
    owned = ours.encode_segments(["the\n", "<|assistant|>", "\n the"])
    assert [token for token, _ in owned] == ours.encode("the\n<|assistant|>\n the")
    assert [n for token, n in owned if token == ours.token_id("<|assistant|>")] == [1]


def test_what_stands_around_a_text_is_seen():
    assert around([5, 6], [1, 5, 6, 2, 3]) == ([1], [2, 3])
    assert around([5, 6], [5, 6]) == ([], [])
    assert around([5, 6], [7, 8]) == ([], [])
