"""A bare tokenizer.json against the tokenizers library, and against transformers."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megalite.data.tokenizers.load import load_tokenizer
from megalite.data.tokenizers.tokenizer_json import JSONTokenizer
from tests.unit.data.conftest import TEXTS

MODELS = tokenizers.models
SPECIAL = {"eos_token": "</s>", "bos_token": "<s>", "pad_token": "<pad>"}


def byte_level() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(MODELS.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS * 5, trainer)
    return inner


def metaspace() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(MODELS.Unigram([("<unk>", 0.0), ("\u2581", -2.0)], 0))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    inner.train_from_iterator(TEXTS * 5, trainer)
    return inner


def word_pieces() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(MODELS.WordPiece(unk_token="[UNK]"))
    inner.normalizer = tokenizers.normalizers.BertNormalizer()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.decoder = tokenizers.decoders.WordPiece()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[UNK]"], show_progress=False
    )
    inner.train_from_iterator(TEXTS * 5, trainer)
    return inner


MAKERS = {"byte level": byte_level, "metaspace": metaspace, "word pieces": word_pieces}
each = pytest.mark.parametrize("kind", MAKERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Ours, and transformers' of the same file, which asks for truncation and padding."""
    folder, found = tmp_path_factory.mktemp("json"), {}
    for kind, make in MAKERS.items():
        inner = make()
        inner.add_special_tokens(list(SPECIAL.values()))
        inner.add_tokens(["<word>"])
        inner.enable_truncation(3)
        inner.enable_padding(length=9, pad_token="<pad>", pad_id=inner.token_to_id("<pad>"))
        path = folder / f"{kind}.json"
        inner.save(str(path))
        found[kind] = (
            path,
            load_tokenizer(path),
            PreTrainedTokenizerFast(tokenizer_file=str(path), **SPECIAL),
        )
    return found


def sentences():
    words = [*" ".join(TEXTS).split(), "<s>", "</s>", "<word>", "  ", "\n", "zzz"]
    return st.one_of(
        st.lists(st.sampled_from(words), max_size=9).map(" ".join),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    )


@each
@settings(max_examples=80)
@given(text=sentences(), data=st.data())
def test_ids_and_text_are_those_of_transformers_and_of_the_library(made, kind, text, data):
    path, ours, theirs = made[kind]
    library = tokenizers.Tokenizer.from_file(str(path))
    library.no_truncation()
    library.no_padding()
    ids = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text) == ids == library.encode(text, add_special_tokens=False).ids
    for some in (ids, data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=8))):
        assert ours.decode(some) == theirs.decode(some, skip_special_tokens=True)
        assert ours.decode(some) == library.decode(some)


@each
def test_its_facts_are_those_of_transformers(made, kind):
    _, ours, theirs = made[kind]
    assert isinstance(ours, JSONTokenizer)
    assert ours.vocab_size == len(theirs)
    assert ours.end_id == theirs.eos_token_id
    assert ours.begin_id == theirs.bos_token_id
    assert ours.pad_id == theirs.pad_token_id
    alone = [[number] for number in range(ours.vocab_size)]
    assert ours.token_texts() == theirs.batch_decode(alone, skip_special_tokens=True)
    for token, number in theirs.get_vocab().items():
        assert ours.find(token) == number


@each
def test_what_is_saved_is_a_folder_of_hugging_face(made, kind, tmp_path):
    _, ours, _ = made[kind]
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token, theirs.bos_token, theirs.pad_token) == tuple(SPECIAL.values())
    for text in (*TEXTS, "<s> red</s>", "a <word>"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text)


def test_padding_is_the_files_own_where_no_token_has_a_usual_name(tmp_path):
    inner = byte_level()
    inner.add_special_tokens(["[FILL]"])
    inner.enable_padding(pad_token="[FILL]", pad_id=inner.token_to_id("[FILL]"))
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.pad_id == inner.token_to_id("[FILL]") != 0
    assert (tokenizer.end_id, tokenizer.begin_id) == (None, None)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs.pad_token_id == tokenizer.pad_id
