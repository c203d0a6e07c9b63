"""Ids by tiktoken are those of the tokenizers library, or there are none."""

import random
import string
import sys

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from megalite.data.tokenizers import byte_pairs
from megalite.data.tokenizers.byte_pairs import (
    GPT2,
    KNOWN,
    NEWER,
    Batches,
    BytePairs,
    NotByteLevel,
    fast_byte_pairs,
)

WORDS = (
    "the cat's 12345 dogs\n\n  aren't\tHERE été naïve 中文字符 кот, ﬁ ½ १२ 'S don'T\r\n\xa0x\u2028 "
)


def byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    if pattern == GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), plain])


def fast_or_none(tokenizer: Tokenizer) -> BytePairs | None:
    try:
        return fast_byte_pairs(tokenizer)
    except NotByteLevel:
        return None


def trained(pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = byte_level(pattern)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    draw = random.Random(0)
    words = WORDS.split(" ")
    texts = [" ".join(draw.choices(words, k=9)) for _ in range(300)]
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=sorted(KNOWN), ids=["newer", "newer-123", "gpt2"])
def both(request):
    tokenizer = trained(request.param)
    if request.param == NEWER % "":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer, fast_byte_pairs(tokenizer)


pieces = st.sampled_from([*WORDS.split(" "), " ", "  ", "\n", "'", "e\u0301", "<|end|>", "\x85"])


@settings(max_examples=60)
@given(text=st.lists(st.one_of(pieces, st.text(max_size=4))).map("".join))
def test_ids_are_the_tokenizers(both, text: str):
    tokenizer, fast = both
    found = fast.encode(text)
    is_left = "<|end|>" in text or not text.isascii()
    assert found == tokenizer.encode(text, add_special_tokens=False).ids or is_left and not found


def test_what_it_reads_and_what_it_leaves(both):
    tokenizer, fast = both
    assert fast.encode(WORDS * 50) == tokenizer.encode(WORDS * 50).ids
    assert fast.encode("a<|end|>") is None
    assert fast.encode("a <|e") == tokenizer.encode("a <|e").ids
    assert fast.encode(" " * 5000 + "a") is None
    has_normalizer = tokenizer.normalizer is not None
    assert (fast.encode("e\u0301") is None) == has_normalizer


def test_every_character_is_of_one_kind_to_both_or_left_out(both):
    """One of 37: words of a letter, digit, sign and space beside each."""
    tokenizer, fast = both
    codes = [code for code in range(0x80, 0x20000, 37) if not 0xD800 <= code < 0xE000]
    fast._meet(map(chr, codes))
    texts = ["a{0}1{0}!{0} {0}'{0}a".format(chr(code)) for code in codes]
    found = [(ids, text) for text in texts if (ids := fast.encode(text)) is not None]
    read = tokenizer.encode_batch_fast([text for _, text in found], add_special_tokens=False)
    assert [ids for ids, _ in found] == [one.ids for one in read]
    assert len(found) > 800


@st.composite
def vocabularies(draw):
    """Pairs of any tokens, of which BPE makes some never or in another way; ids in any order."""
    tokens = list(pre_tokenizers.ByteLevel.alphabet())
    known, merges = list("abc"), []
    for _ in range(draw(st.integers(1, 14))):
        pair = draw(st.sampled_from(known)), draw(st.sampled_from(known))
        if pair not in merges and len("".join(pair)) < 9:
            merges.append(pair)
            known.append("".join(pair))
    tokens += dict.fromkeys(token for token in known if len(token) > 1)
    order = draw(st.permutations(range(len(tokens))))
    vocabulary = dict(zip(tokens, order, strict=True))
    return models.BPE(vocab=vocabulary, merges=merges, ignore_merges=draw(st.booleans()))


@settings(max_examples=150)
@given(model=vocabularies(), texts=st.lists(st.text("abc", max_size=24), min_size=1, max_size=8))
def test_any_list_of_pairs(model, texts: list[str]):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = byte_level(GPT2)
    fast = fast_or_none(tokenizer)
    if fast is not None:
        assert [fast.encode(text) for text in texts] == [tokenizer.encode(t).ids for t in texts]


def test_a_token_that_pairs_never_make_is_made_nowhere_but_as_a_word():
    """(a, b) comes first, so bc is made of no "abc", and abc of its second pair alone."""
    vocabulary = {c: n for n, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    vocabulary |= {"ab": 300, "bc": 299, "abc": 298, "cab": 297}
    for ignore in (False, True):
        model = models.BPE(
            vocab=vocabulary, merges=[("a", "b"), ("b", "c"), ("a", "bc")], ignore_merges=ignore
        )
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = byte_level(GPT2)
        fast = fast_or_none(tokenizer)
        if ignore:  # tiktoken would make abc of ab and c wherever they meet
            assert fast is None
        else:
            for text in ("abc", "bc", "xabc", "cab", "bcabc"):
                assert fast.encode(text) == tokenizer.encode(text).ids


def other(change) -> Tokenizer:
    tokenizer = trained(GPT2)
    change(tokenizer)
    return tokenizer


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: setattr(t, "normalizer", normalizers.Lowercase()), "normalizer is Lowercase"),
        (
            lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
            "doesn't cut words as",
        ),
        (lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Metaspace()), "doesn't cut words as"),
        (lambda t: setattr(t, "pre_tokenizer", byte_level(r"\w+|\W+")), "doesn't cut words as"),
        (lambda t: setattr(t, "model", models.BPE(vocab={"a": 0}, merges=[])), "for some bytes"),
        (lambda t: setattr(t, "model", models.WordLevel({"a": 0}, unk_token="a")), "is WordLevel"),
        (lambda t: setattr(t.model, "dropout", 0.1), "has dropout 0.1"),
    ],
    ids=["normalizer", "prefix", "metaspace", "pattern", "bytes", "words", "dropout"],
)
def test_other_makes_are_left_to_their_library_and_say_why(change, why):
    tokenizer = other(change)
    with pytest.raises(NotByteLevel, match=why):
        fast_byte_pairs(tokenizer)
    assert why in Batches(tokenizer).why_slow(sys.maxsize)


def test_it_says_whether_it_is_read_by_tiktoken():
    batches = Batches(trained(GPT2))
    assert batches.why_slow(10) == ""
    assert batches._fast is None
    assert batches.why_slow(sys.maxsize) == ""
    assert batches._fast is not None


def test_batches_change_over_and_give_the_same(monkeypatch):
    tokenizer = trained(GPT2)
    monkeypatch.setattr(byte_pairs, "WORTH", 100 / tokenizer.get_vocab_size())
    batches = Batches(tokenizer)
    texts = [WORDS, "a<|end|>b", "", string.printable]
    first = batches.ids(texts[:1], True)
    assert batches._fast is None
    for special in (True, False):
        ids = batches.ids(texts, special)
        assert batches._fast is not None
        tokenizer.encode_special_tokens = not special
        assert ids == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        tokenizer.encode_special_tokens = False
    assert first == ids[:1]
    assert isinstance(tokenizer, tokenizers.Tokenizer)
