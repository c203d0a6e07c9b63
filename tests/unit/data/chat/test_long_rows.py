"""Records that don't fit a sequence, and those that have nothing to learn, are counted."""

import numpy as np
import pytest

from megalite.data.chat.chat import Chat
from megalite.data.chat.datasets import Conversations, Prompts, RankedAnswers
from megalite.data.chat.long_rows import RowRules
from megalite.data.structure import AnswerBlank, Structure
from megalite.errors import ConfigError, DataError
from megalite.models.batch import IGNORE
from tests.unit.data.conftest import write_jsonl


class Letters:
    """A tokenizer whose tokens are characters."""

    path, begin_id, end_id = "letters", None, 0
    before, after = [], []

    @staticmethod
    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def encode_segments(self, segments) -> list[tuple[int, int]]:
        parts = [self.encode(one) if isinstance(one, str) else [one] for one in segments]
        return [(token, number) for number, part in enumerate(parts) for token in part]


CHAT = Chat("plain", Letters())
SHORT = {"prompt": "ab", "response": "cd"}
LONG = {"prompt": "a" * 30, "response": "b" * 30}
ENCODER = Structure(is_encoder_decoder=True)
GLM = Structure(blank=AnswerBlank(7, 8))


def says(role: str, text: str, **more) -> dict:
    return {"role": role, "content": text, **more}


def rounds(*texts: str) -> list[dict]:
    return [says(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


def read(path, rows, rule="refuse", length=24, structure=None, packed=False) -> Conversations:
    source = write_jsonl(path / "rows.jsonl", rows)
    rules = RowRules(length, rule)
    return Conversations([str(source)], CHAT, structure or Structure(), rules, packed)


def text_of(example) -> tuple[str, str]:
    """What is read, and what of it is learned; $ is the end token."""
    learned = example.labels[example.labels != IGNORE]
    shown = [
        "".join(chr(t) if t else "$" for t in part) for part in (example.decoder.tokens, learned)
    ]
    return shown[0], shown[1]


def test_long_records_are_refused_with_their_number(tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, [SHORT, LONG, SHORT, LONG])
    assert str(caught.value) == (
        f"{tmp_path}/rows.jsonl:2: has 61 tokens, sequence_length is 24; 2 of 4 records are "
        "longer: raise it to 61, or set data.long_rows to drop, truncate, split or shorten"
    )


def test_dropped_records_are_counted(tmp_path):
    found = read(tmp_path, [SHORT, LONG, SHORT], "drop")
    assert len(found) == 2
    assert found.notes == [
        f"{tmp_path}/rows.jsonl: 1 of 3 records are longer than data.sequence_length 24 "
        "(the longest has 61 tokens): they are left out"
    ]
    with pytest.raises(DataError, match="all 2 records are longer: raise it"):
        read(tmp_path, [LONG, LONG], "drop")


@pytest.mark.parametrize("prefix", [False, True])
def test_truncated_records_lose_their_end(tmp_path, prefix):
    rows = [{"prompt": "a" * 10, "response": "b" * 30}, SHORT]
    found = read(tmp_path, rows, "truncate", structure=Structure(is_prefix=prefix))
    whole = read(tmp_path, rows, length=99, structure=Structure(is_prefix=prefix))
    cut, full = found[0], whole[0]
    assert text_of(cut) == ("a" * 10 + "\n" + "b" * 13, "b" * 14)
    assert cut.decoder.mask.end.tolist() == full.decoder.mask.end[:24].tolist()
    assert cut.decoder.mask.end.max() == 24
    assert text_of(found[1]) == text_of(whole[1])
    assert "1 of 2 records are longer" in found.notes[0]
    assert found.notes[0].endswith("they are cut to it")


def test_what_has_no_answer_left_is_left_out_and_counted(tmp_path):
    found = read(tmp_path, [LONG, SHORT], "truncate")
    assert len(found) == 1
    assert found.notes[1].endswith(
        "rows.jsonl: 1 of 2 conversations have nothing to learn and are left out"
    )
    with pytest.raises(DataError, match="nothing is learned of any record"):
        read(tmp_path, [LONG], "truncate")


def test_a_long_conversation_is_split_by_turns(tmp_path):
    talk = [says("system", "S"), *rounds("aa", "bb", "cc", "dd", "e" * 40, "f", "gg", "hh")]
    found = read(tmp_path, [{"messages": talk}, SHORT], "split", length=16)
    texts = [text_of(found[number])[0] for number in range(len(found))]
    assert [text[0] for text in texts] == ["S", "S", "a"]
    ends = ["aa\nbb$cc\ndd", "gg\nhh", "ab\ncd"]
    assert [text[-len(end) :] for text, end in zip(texts, ends, strict=True)] == ends
    assert [text_of(found[number])[1] for number in range(2)] == ["bb$dd$", "hh$"]
    assert "1 of 2 records are longer than data.sequence_length 16" in found.notes[0]
    assert found.notes[0].endswith(
        "they are split by turns into 2; 1 of their rounds are longer and left out"
    )


def test_a_long_conversation_is_shortened_by_its_last_rounds(tmp_path):
    talk = [says("system", "S"), *rounds("aa", "bb", "cc", "dd", "ee", "ff")]
    long_at_once = {"messages": [says("system", "S"), *rounds("a" * 30, "b", "cc", "dd")]}
    found = read(tmp_path, [{"messages": talk}, SHORT, long_at_once], "shorten", length=16)
    assert [text_of(found[n]) for n in range(len(found))] == [
        ("S\naa\nbb$cc\ndd", "bb$dd$"),
        ("ab\ncd", "cd$"),
    ]
    assert "2 of 3 records are longer than data.sequence_length 16" in found.notes[0]
    assert found.notes[0].endswith("1 are cut to the rounds that fit, the others left out")


def test_other_roles_are_refused_where_the_last_answer_alone_is_learned(tmp_path):
    chat = Chat("plain", Letters())
    chat.learned = ("user",)
    source = write_jsonl(tmp_path / "rows.jsonl", [SHORT])
    with pytest.raises(ConfigError, match=r"--data.learned \['user'\]: an encoder-decoder, and a"):
        Conversations([str(source)], chat, ENCODER, RowRules(24), False)


def test_messages_of_no_weight_are_read_and_not_learned(tmp_path):
    talk = [*rounds("a", "b", "c"), says("assistant", "d", weight=0)]
    silent = {"messages": [says("user", "x"), says("assistant", "y", train=False)]}
    found = read(tmp_path, [{"messages": talk}, silent])
    assert [text_of(found[number]) for number in range(len(found))] == [("a\nb$c\nd", "b$")]
    assert "1 of 2 conversations have nothing to learn" in found.notes[0]
    with pytest.raises(DataError, match="nothing is learned of any record"):
        read(tmp_path, [silent])


@pytest.mark.parametrize("structure", [ENCODER, GLM])
def test_where_one_answer_is_learned_it_is_the_last_that_counts(tmp_path, structure):
    talk = [*rounds("a", "b", "c"), says("assistant", "d", weight=0)]
    silent = {"messages": [says("user", "x"), says("assistant", "y", train=False)]}
    found = read(tmp_path, [{"messages": talk}, silent], structure=structure)
    assert [text_of(found[number])[1] for number in range(len(found))] == ["b$"]


@pytest.mark.parametrize("rule", ["truncate", "split", "shorten"])
def test_what_is_of_no_use_in_part_is_not_cut(tmp_path, rule):
    for structure in (ENCODER, GLM):
        with pytest.raises(ConfigError, match=f"--data.long_rows {rule}: cuts .* refuse or drop"):
            read(tmp_path, [SHORT], rule, structure=structure)
    for kind in (RankedAnswers, Prompts):
        with pytest.raises(ConfigError, match=f"--data.long_rows {rule}"):
            kind(["rows"], CHAT, Structure(), RowRules(24, rule))


def test_long_rankings_and_prompts_are_dropped_and_counted(tmp_path):
    rows = [{"prompt": "ab", "answers": ["c", "d"]}, {"prompt": "ab", "answers": ["c", "d" * 30]}]
    rows.append(
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    )
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    found = RankedAnswers([path], CHAT, Structure(), RowRules(24, "drop"))
    assert [len(found), len(found[0].answers)] == [2, 2]
    assert found.notes[0].startswith(f"{path}: 1 of 3 records are longer")
    assert found.notes[1] == f"{path}: 1 rankings compare answers to different conversations"
    assert found[1].answers[1].decoder.tokens.tolist() == Letters.encode("c\nd") + [0]
    path = str(write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "a"}, {"prompt": "a" * 30}]))
    prompts = Prompts([path], CHAT, Structure(), RowRules(24, "drop"))
    assert prompts.texts == ["a"]
    assert prompts[0].tokens == Letters.encode("a\n")
    assert "1 of 2 records" in prompts.notes[0]


def test_split_conversations_are_packed_like_any(tmp_path):
    talk = rounds(*[letter * 3 for letter in "abcdefgh"])
    found = read(tmp_path, [{"messages": talk}, SHORT], "split", length=20, packed=True)
    tokens = np.concatenate([found[number].decoder.tokens for number in range(len(found))])
    text = "".join(chr(t) if t else "$" for t in tokens)
    assert sorted(text) == sorted("aaa\nbbb$ccc\ndddeee\nfff$ggg\nhhhab\ncd")
