"""What stands around a prepared document and inside it: end, begin, special tokens spelled out."""

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from megalite.data.corpus import documents
from megalite.data.corpus.store import TokenStore
from megalite.data.tokenizers.load import load_tokenizer
from tests.unit.data.conftest import TEXTS, command, write_jsonl
from tests.unit.data.tokenizers.conftest import train_sentencepiece

SPELLED = "red <eos> dog"


@pytest.fixture(scope="module", params=["json", "folder"])
def bare(request, tmp_path_factory):
    """A tokenizer whose end has no usual name."""
    folder = tmp_path_factory.mktemp("bare")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    inner.add_special_tokens(["<eos>", "<bos>"])
    if request.param == "json":
        inner.save(str(folder / "tokenizer.json"))
        return folder / "tokenizer.json"
    PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>").save_pretrained(folder)
    return folder


def prepare(path, tokenizer, *more) -> list[list[int]]:
    source = write_jsonl(path / "rows.jsonl", [{"text": SPELLED}, {"text": "cat"}])
    words = ["data", "prepare", "--source", f'["{source}"]', "--output", path / "store"]
    assert command(*words, "--tokenizer", tokenizer, "--processes", 1, *more) == 0
    store = TokenStore(path / "store")
    return [store[number].tolist() for number in range(len(store))]


def test_a_tokenizer_without_a_known_end_is_said_and_told_one(bare, tmp_path, capsys):
    tokenizer = load_tokenizer(bare, "<eos>")
    end = tokenizer.token_id("<eos>")
    assert (load_tokenizer(bare).end_id, tokenizer.end_id) == (None, end)
    assert prepare(tmp_path, bare)[1] == tokenizer.encode("cat")
    said = capsys.readouterr().out
    assert f"{bare}: has no end token that is known, so no document has an end; --end_token" in said
    assert prepare(tmp_path, bare, "--append_end", "false")[1] == tokenizer.encode("cat")
    assert "no end token" not in capsys.readouterr().out
    assert prepare(tmp_path, bare, "--end_token", "<eos>")[1] == [*tokenizer.encode("cat"), end]
    assert "no end token" not in capsys.readouterr().out
    source = tmp_path / "rows.jsonl"
    words = ["data", "prepare", "--source", f'["{source}"]', "--output", tmp_path / "s"]
    assert command(*words, "--tokenizer", bare, "--end_token", "<end>") == 2
    assert f"{bare}: has no token '<end>'" in capsys.readouterr().err


def test_special_tokens_that_a_text_spells_out_are_tokens_or_text(bare, tmp_path):
    tokenizer = load_tokenizer(bare)
    end = tokenizer.token_id("<eos>")
    as_token = prepare(tmp_path, bare)[0]
    assert as_token == [*tokenizer.encode("red "), end, *tokenizer.encode(" dog")]
    as_text = prepare(tmp_path, bare, "--special_in_text", "false")[0]
    assert end not in as_text
    assert tokenizer.decode(as_text) == SPELLED
    assert prepare(tmp_path, bare)[0] == as_token


def test_control_symbols_of_sentencepiece_are_text_in_a_text(tmp_path):
    path = train_sentencepiece(tmp_path, "bytes")
    tokenizer = load_tokenizer(path)
    for special in ("true", "false"):
        tokens = prepare(tmp_path, path, "--special_in_text", special)[0]
        assert tokens == [*tokenizer.encode(SPELLED), tokenizer.end_id]
    tokens = tokenizer.encode("a</s>b")
    assert tokenizer.end_id not in tokens
    assert tokenizer.decode(tokens) == "a</s>b"


def test_a_document_may_begin_with_a_token(tmp_path, monkeypatch, capsys, bare):
    path = train_sentencepiece(tmp_path, "bytes")
    tokenizer = load_tokenizer(path)
    around = tokenizer.begin_id, tokenizer.end_id
    expected = [[around[0], *tokenizer.encode(text), around[1]] for text in (SPELLED, "cat")]
    assert prepare(tmp_path, path, "--prepend_begin", "true") == expected
    long = "the cat\nsees\na dog\n" * 9
    (tmp_path / "a.txt").write_text(long)
    monkeypatch.setattr(documents, "PIECE", 40)  # a document in pieces begins and ends once
    words = ["data", "prepare", "--source", f'["{tmp_path}/a.txt"]', "--output", tmp_path / "s"]
    words += ["--tokenizer", path, "--processes", 1, "--prepend_begin", "true"]
    assert command(*words) == 0
    (document,) = TokenStore(tmp_path / "s")
    assert [place for place, token in enumerate(document) if token in around] == [
        0,
        len(document) - 1,
    ]
    if bare.is_file():
        words[words.index(path)] = bare
        assert command(*words) == 2
        assert "--prepend_begin: " in capsys.readouterr().err
