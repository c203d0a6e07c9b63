"""Folders that transformers alone reads wrong, not at all, or only by code of their own."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from transformers import dynamic_module_utils

from megalite.data import files
from megalite.data.chat.chat import Chat
from megalite.data.chat.turns import Turn
from megalite.data.corpus.store import TokenStore
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import DataError
from tests.unit.data.conftest import TEXTS, command, write_jsonl
from tests.unit.data.tokenizers.conftest import train_sentencepiece

SPACED = ["  two", " one", "a  b   c", "def f():\n        return  1", "\n\n  x ", "\t", "é  ☕"]
LLAMA = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp("llama"), "bytes")


def folder_of(path: Path, model: Path, **more) -> Path:
    path.mkdir()
    shutil.copyfile(model, path / "tokenizer.model")
    (path / "tokenizer_config.json").write_text(json.dumps(LLAMA | more))
    return path


@pytest.mark.parametrize("has_json", [False, True])
def test_text_of_a_folder_with_a_sentencepiece_model_is_read_by_it(tmp_path, model, has_json):
    """transformers 5 leaves out a space at the beginning, and may make another tokenizer.json."""
    added = {"400": {"content": "<|im_end|>", "special": True}}
    folder = folder_of(tmp_path / "own", model, added_tokens_decoder=added, chat_template="{{ 1 }}")
    if has_json:
        load_tokenizer(folder).save(tmp_path / "saved")
        shutil.copyfile(tmp_path / "saved" / "tokenizer.json", folder / "tokenizer.json")
    ours = load_tokenizer(folder)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    texts = [*SPACED, *TEXTS, Path(files.__file__).read_text()]
    assert [ours.encode(text) for text in texts] == theirs.encode(texts)
    assert ours.encode_batch(texts) == theirs.encode(texts)
    assert [ours.decode(ours.encode(text)) for text in texts] == texts
    assert (ours.begin_id, ours.end_id, ours.chat_template) == (1, 2, "{{ 1 }}")
    last = ours.token_id("<|im_end|>")
    assert ours.vocab_size == last + 1 == theirs.vocab_size() + 1
    parts = [*theirs.encode("the cat"), last, *theirs.encode("  sees"), 2]
    assert ours.encode("the cat<|im_end|>  sees</s>") == parts
    assert ours.encode_batch(["the</s>"], special=False) == [theirs.encode("the</s>")]
    assert [token for token, _ in ours.encode_segments(["the cat", last, "  sees", 2])] == parts
    assert (ours.before, ours.after) == ([1], [])


def test_a_folder_may_say_that_no_space_stands_behind_a_special_token(tmp_path, model):
    ours = load_tokenizer(folder_of(tmp_path / "own", model, legacy=False))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    found = ours.encode("the</s>the cat")
    assert found[: found.index(2)] == theirs.encode("the")
    assert theirs.decode(found[found.index(2) + 1 :]) == "the cat"
    assert found[found.index(2) + 1 :] != theirs.encode("the cat")


ADDED = {"400": {"content": "<|im_end|>", "special": True, "rstrip": True}}
MIXED = [*SPACED, "<s>  two", "the</s>  cat<|im_end|>\n  a</s>", "a</s> b", "</s>▁x", " ▁x"]


@pytest.mark.parametrize("legacy", [None, True, False])
def test_a_conversation_is_read_as_its_text_is(tmp_path, model, legacy):
    """Parts of a text, and special tokens between them, give the tokens of the whole."""
    more = {} if legacy is None else {"legacy": legacy}
    ours = load_tokenizer(folder_of(tmp_path / "own", model, added_tokens_decoder=ADDED, **more))
    for text in MIXED:
        for cut in range(len(text) + 1):
            owned = ours.encode_segments([text[:cut], text[cut:]])
            assert [token for token, _ in owned] == ours.encode(text)
        whole = ours.encode(f"{text}</s>{text}")
        assert [token for token, _ in ours.encode_segments([text, 2, text])] == whole
    assert [n for _, n in ours.encode_segments(["a  b", 2, "  c", " d"])][-3:] == [2, 3, 3]
    owned = ours.encode_segments(["the</s>", "<|im_end|>", "\n  the"])
    assert [n for token, n in owned if token in (2, ours.token_id("<|im_end|>"))] == [0, 1]


def test_what_stands_behind_a_special_token_is_whole_where_no_space_is_put_there(tmp_path):
    """A letter that the model hasn't was joined with another one in front and lost."""
    folder = tmp_path / "t5"
    plain = train_sentencepiece(tmp_path, "unigram")
    folder_of(folder, plain, tokenizer_class="T5Tokenizer", extra_ids=0, legacy=False)
    ours, unknown = load_tokenizer(folder), 0
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(plain))
    assert ours.encode("the</s>☃")[-2:] == [2, unknown]
    assert ours.encode("☃")[-1] == theirs.unk_id() == unknown


@pytest.mark.parametrize("template", ["plain", "raw", "vicuna", "alpaca", "zephyr"])
@pytest.mark.parametrize("legacy", [True, False])
def test_a_prompt_is_the_tokenizers_own_encoding_of_its_text(tmp_path, model, legacy, template):
    """Behind the ``<s>`` that the tokenizer writes a text still begins with its space."""
    ours = load_tokenizer(folder_of(tmp_path / "own", model, legacy=legacy))
    prompt = Chat(template, ours).prompt([Turn("user", "  two\n    words")])
    text = ours.decode(prompt)
    after = prompt.index(2) if 2 in prompt else len(prompt)  # zephyr's end of a question
    assert prompt[:after] == [1, *ours.encode(text)][:after]
    assert "  two\n    words" in text


def llama_json() -> tokenizers.Tokenizer:
    """As transformers 4 writes LLaMA's: a space is put before a text, and spaces are letters."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
    parts = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    inner.normalizer = tokenizers.normalizers.Sequence(parts)
    return inner


def bytes_json() -> tokenizers.Tokenizer:
    """Byte-level BPE that composes letters first."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.normalizer = tokenizers.normalizers.NFC()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return inner


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (llama_json, {"tokenizer_class": "LlamaTokenizer"}),
        (llama_json, {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": True}),
        (bytes_json, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}),
        (bytes_json, {"tokenizer_class": "Qwen2Tokenizer"}),
    ],
)
def test_a_folder_reads_text_as_its_tokenizer_json_says(tmp_path, made, named):
    """As in transformers 4; 5 takes the vocabulary alone, where a folder names a class."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    theirs = made()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    theirs.train_from_iterator([*TEXTS, "12 345 12"] * 3, trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    config = LLAMA | {"add_bos_token": False} | named
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path)
    texts = [*SPACED, *TEXTS, "e\u0301cole 12 345", "the</s>  cat"]
    wanted = [read.ids for read in theirs.encode_batch(texts, add_special_tokens=False)]
    assert [ours.encode(text) for text in texts] == ours.encode_batch(texts) == wanted
    ours.save(tmp_path / "saved")
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert [saved.encode(text, add_special_tokens=False).ids for text in texts] == wanted


def test_a_folder_of_another_way_to_read_text_is_left_to_transformers(tmp_path, model):
    folder = folder_of(tmp_path / "own", model, add_prefix_space=False)
    assert not hasattr(load_tokenizer(folder), "_processor")


@pytest.mark.parametrize("is_lower", [True, False])
def test_a_bare_bert_vocabulary_is_read(tmp_path, is_lower):
    theirs = BertWordPieceTokenizer(lowercase=is_lower)
    theirs.train_from_iterator(["The Red cat"] * 9 + TEXTS * 5, 150, show_progress=False)
    theirs.save_model(str(tmp_path))
    ours = load_tokenizer(tmp_path)
    for text in ("The Red cat", "the red dog", "Zwei"):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    assert ours.end_id is None
    assert ours.find("[MASK]") == theirs.token_to_id("[MASK]")


def test_a_bare_gpt2_vocabulary_is_read(tmp_path):
    theirs = ByteLevelBPETokenizer()
    theirs.train_from_iterator(
        TEXTS * 5, 280, special_tokens=["<|endoftext|>"], show_progress=False
    )
    theirs.save_model(str(tmp_path))
    ours = load_tokenizer(tmp_path)
    assert [ours.encode(text) for text in SPACED] == [theirs.encode(text).ids for text in SPACED]
    assert ours.end_id == theirs.token_to_id("<|endoftext|>")


CODE = """
from transformers import PreTrainedTokenizer
open({mark!r}, "w").close()

class Letters(PreTrainedTokenizer):
    def __init__(self, **more):
        self._size = 128
        super().__init__(eos_token="\\x03", **more)
    @property
    def vocab_size(self):
        return self._size
    def get_vocab(self):
        return {{chr(n): n for n in range(128)}}
    def _tokenize(self, text, **more):
        return list(text)
    def _convert_token_to_id(self, token):
        return ord(token)
    def _convert_id_to_token(self, number):
        return chr(number)
    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)
    def save_vocabulary(self, folder, filename_prefix=None):
        return ()
"""


def test_code_in_a_folder_runs_only_if_it_is_trusted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    folder, mark = tmp_path / "letters", tmp_path / "ran"
    folder.mkdir()
    (folder / "tokenization_letters.py").write_text(CODE.format(mark=str(mark)))
    config = {"auto_map": {"AutoTokenizer": ["tokenization_letters.Letters", None]}}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "Letters"})
    )
    with pytest.raises(DataError, match=r"code of its own, tokenization_letters.py, which runs "):
        load_tokenizer(folder)
    source = write_jsonl(tmp_path / "rows.jsonl", [{"text": "ab"}])
    words = ["data", "prepare", "--source", f'["{source}"]', "--output", tmp_path / "store"]
    words += ["--tokenizer", folder, "--processes", 1]
    assert command(*words) == 2
    assert not mark.exists()
    assert "tokenizer.trust_code true (--trust_code of data prepare)" in capsys.readouterr().err
    assert command(*words, "--trust_code", "true") == 0
    assert mark.exists()
    assert TokenStore(tmp_path / "store")[0].tolist() == [*b"ab", 3]


def test_what_fails_in_a_folder_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "tokenization_broken.py").write_text(
        "class Broken:\n    @classmethod\n    def from_pretrained(cls, *_, **__):\n"
        "        raise AttributeError('\\nno\\nsuch thing')\n"
    )
    config = {"auto_map": {"AutoTokenizer": ["tokenization_broken.Broken", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="tokenizer that can be read") as caught:
        load_tokenizer(folder, trust_code=True)
    assert "\n" not in str(caught.value)


def test_a_text_may_be_longer_than_a_tokenizer_says(tmp_path, tokenizer_folder, capfd):
    folder = tmp_path / "own"
    shutil.copytree(tokenizer_folder, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 4}))
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer.encode(TEXTS[0])) > 4
    assert tokenizer.encode_batch(TEXTS)[0] == tokenizer.encode(TEXTS[0])
    assert "indexing errors" not in capfd.readouterr().err
