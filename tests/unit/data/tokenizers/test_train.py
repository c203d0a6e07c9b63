"""``megalite tokenizer train``: a folder that transformers reads."""

import json

from tokenizers import Tokenizer

from megalite.cli import main
from megalite.data.tokenizers.load import load_tokenizer
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


def test_the_folder_is_what_transformers_writes(tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    given = ["tokenizer", "train", "--source", f'["{tmp_path}/a.txt"]', "--vocab_size", 280]
    more = ["--special_tokens", '["[MASK]"]', "--sentinels", 3, "--end_token", "é"]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert command(*given, *more, "--output", ours) == 0
    inner = Tokenizer.from_file(str(ours / "tokenizer.json"))
    names = dict.fromkeys(("eos_token", "bos_token", "pad_token"), "é")
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(theirs)
    read = [AutoTokenizer.from_pretrained(folder) for folder in (ours, theirs)]
    kept = [{k: v for k, v in one.init_kwargs.items() if k != "name_or_path"} for one in read]
    default = kept[1].pop("model_max_length")
    assert read[0].model_max_length == read[1].model_max_length == default
    assert kept[0] == kept[1]
    assert type(read[0]) is type(read[1])
    assert read[0].all_special_tokens == read[1].all_special_tokens
    assert (ours / "tokenizer.json").read_bytes() == (theirs / "tokenizer.json").read_bytes()


def test_training_stops_reading_at_its_limit(tmp_path, capsys):
    rows = [{"text": "ab " * 50}] * 20 + [{"text": "zzzz " * 200}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["tokenizer", "train", "--source", f'["{path}"]', "--vocab_size", 280]
    assert command(*given, "--output", tmp_path / "few", "--max_bytes", 1000) == 0
    assert command(*given, "--output", tmp_path / "all") == 0
    few, whole = load_tokenizer(tmp_path / "few"), load_tokenizer(tmp_path / "all")
    assert len(few.encode("zzzz")) > len(whole.encode("zzzz"))


def test_fewer_tokens_than_asked_for_are_said(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("ab ab ab")
    given = ["tokenizer", "train", "--source", tmp_path / "a.txt", "--vocab_size", 300]
    assert main([str(word) for word in (*given, "--output", tmp_path / "made")]) == 0
    size = load_tokenizer(tmp_path / "made").vocab_size
    said = capsys.readouterr().out
    assert size < 300 and said == f"--vocab_size 300: the text has pairs for {size} tokens\n"


def test_a_tokenizer_of_no_text_is_refused(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(" ")
    given = ["tokenizer", "train", "--source", f'["{tmp_path}/a.txt"]', "--output", "x"]
    assert main(given) == 2
    assert "holds no text" in capsys.readouterr().err
