"""Tokenizers of every kind behind one face."""

import json
import random

import pytest
import sentencepiece

from megalite.cli import main
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import DataError
from tests.unit.data.conftest import TEXTS, command


def test_training_gives_a_folder_that_transformers_reads(tokenizer_folder, tokenizer):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert len(theirs) == tokenizer.vocab_size == 300
    assert theirs.eos_token_id == tokenizer.end_id == tokenizer.pad_id
    for text in (*TEXTS, " leading", "a\n\nb\t", "\x00\U0001f980"):
        assert tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]


def test_a_bare_tokenizer_json_is_read_with_its_end(tokenizer_folder, tokenizer):
    bare = load_tokenizer(tokenizer_folder / "tokenizer.json")
    assert bare.end_id == tokenizer.end_id
    assert bare.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_sentencepiece_model_gives_its_own_tokens(tmp_path, kind):
    generator = random.Random(0)
    lines = [" ".join(generator.choices(" ".join(TEXTS).split(), k=8)) for _ in range(300)]
    (tmp_path / "text").write_text("\n".join(lines), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "model"),
        model_type=kind,
        vocab_size=90,
        byte_fallback=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model.model"))
    ours = load_tokenizer(tmp_path / "model.model")
    assert ours.end_id == theirs.eos_id()
    assert ours.begin_id == theirs.bos_id()
    assert ours.vocab_size >= theirs.vocab_size()
    for text in lines[:20]:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}', "[]"])
def test_a_damaged_tokenizer_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "broken.model").write_bytes(content.encode())
    for path in (tmp_path / "tokenizer.json", tmp_path, tmp_path / "broken.model"):
        with pytest.raises(DataError) as caught:
            load_tokenizer(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_says_what_would_do(tmp_path):
    with pytest.raises(DataError, match="no such tokenizer; give a Hugging Face folder"):
        load_tokenizer(tmp_path / "none")


def test_an_unknown_token_is_named(tokenizer):
    assert tokenizer.token_id("<|endoftext|>") == tokenizer.end_id
    with pytest.raises(DataError, match="has no token '<mask>'"):
        tokenizer.token_id("<mask>")


def test_training_stops_reading_at_its_limit(tmp_path, capsys):
    rows = [{"text": "ab " * 50}] * 20 + [{"text": "zzzz " * 200}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["tokenizer", "train", "--source", f'["{path}"]', "--vocab_size", 280]
    assert command(*given, "--output", tmp_path / "few", "--max_bytes", 1000) == 0
    assert command(*given, "--output", tmp_path / "all") == 0
    few, whole = load_tokenizer(tmp_path / "few"), load_tokenizer(tmp_path / "all")
    assert len(few.encode("zzzz")) > len(whole.encode("zzzz"))


def test_a_tokenizer_of_no_text_is_refused(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(" ")
    given = ["tokenizer", "train", "--source", f'["{tmp_path}/a.txt"]', "--output", "x"]
    assert main(given) == 2
    assert "holds no text" in capsys.readouterr().err
