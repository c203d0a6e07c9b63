"""Which answers of a record are pairs, which are judged, and how they share a sequence."""

import json

import numpy as np
import pytest
import torch

from megalite.data.chat.chat import Chat
from megalite.data.chat.long_rows import RowRules
from megalite.data.chat.preferences import Comparison, PreferredAnswers
from megalite.data.structure import Structure
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import ConfigError, DataError
from megalite.models.batch import IGNORE
from megalite.stages.preferences.config import PreferenceLossConfig
from megalite.stages.preferences.objective import Comparisons

STRUCTURES = {
    "causal": Structure(False, False, 0),
    "prefix": Structure(False, True, 0),
    "encoder-decoder": Structure(True, False, 0),
}
RANKING = {"prompt": "the", "answers": ["red", "cat", "red", "cat red"]}
PAIR = {"prompt": "a cat", "chosen": "red", "rejected": "the red red"}


@pytest.fixture
def read(tokenizer, tmp_path):
    def read(rows, structure="causal", length=40, is_judged=False) -> PreferredAnswers:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        chat = Chat("plain", load_tokenizer(str(tokenizer)))
        rules = RowRules(length)
        return PreferredAnswers([str(path)], chat, STRUCTURES[structure], rules, is_judged)

    return read


def told(item: Comparison):
    return item, np.arange(len(item.examples), dtype=np.float32)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_all_tokens_of_an_answer_and_none_of_its_prompt_are_targets(read, tokenizer, structure):
    answers, tokens = read([RANKING, PAIR], structure), load_tokenizer(str(tokenizer))
    for item, texts in zip(
        (answers[0], answers[1]), (RANKING["answers"], ["red", "the red red"]), strict=True
    ):
        for example, text in zip(item.answers, texts, strict=True):
            learned = example.labels[example.labels != IGNORE]
            assert tokens.decode(learned.tolist()).strip() == text
            assert learned[-1] == tokens.end_id
            assert (example.encoder is not None) == (structure == "encoder-decoder")


def test_pairs_are_all_those_of_answers_that_differ(read):
    answers = read([RANKING, PAIR])
    assert answers[0].pairs == [(0, 1), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert answers[0].judged == [True, True, False, True]
    made = Comparisons.of([told(answers[0]), told(answers[1])], [7, 8])
    assert made.pairs.tolist() == [[0, 1], [0, 3], [1, 2], [1, 3], [2, 3], [4, 5]]
    assert made.good.tolist() == [True, False, False, False, True, False]
    assert made.answers.reference.tolist() == [0, 1, 2, 3, 0, 1]
    lengths = made.answers.lengths
    assert sum(lengths) == made.answers.batch.labels.shape[1]
    sums = made.answers.sums(torch.ones(1, sum(lengths)))
    assert sums.tolist() == list(lengths)


def test_answers_that_share_a_sequence_see_their_own_prompt_only(read):
    made = Comparisons.of([told(read([RANKING, PAIR])[1])], [0])
    first, second = made.answers.lengths
    mask = made.answers.batch.decoder.mask
    assert mask.start[0].tolist() == [0] * first + [first] * second
    assert made.answers.batch.decoder.positions[0].tolist() == [*range(first), *range(second)]


def test_judged_answers_have_an_answer_to_another_prompt(read):
    rows = [
        {"prompt": "the", "completion": "red", "label": True},
        {"messages": [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "a"}],
         "label": 0},
        PAIR,
    ]  # fmt: skip
    answers = read(rows, length=9, is_judged=True)
    assert [answers[n].num_good for n in range(3)] == [1, 0, 1]
    made = Comparisons.of([told(answers[n]) for n in range(3)], [0, 1, 2])
    assert made.good.tolist() == [True, False, True, False]
    assert made.num_learned(PreferenceLossConfig(kind="kto")) == 4
    assert made.pairs.tolist() == [[2, 3]]
    assert made.others is not None
    assert made.others.reference.tolist() == [1, 1, 2]
    own, following = answers[0].answers[0], answers[1].answers[0]
    other = answers[0].other
    prompt = (own.labels == IGNORE).sum()
    assert other.decoder.tokens[:prompt].tolist() == own.decoder.tokens[:prompt].tolist()
    wanted = following.labels[following.labels != IGNORE].tolist()
    assert other.labels[other.labels != IGNORE].tolist() == wanted
    assert max(len(answers[n].other) for n in range(3)) <= 9


@pytest.mark.parametrize("prompts", ["aabbba", "abab", "baaa", "aa"])
def test_rows_of_one_prompt_side_by_side_have_an_answer_to_another(read, prompts):
    rows = [
        {"prompt": prompt, "completion": f"{prompt}{number}", "label": number % 2}
        for number, prompt in enumerate(prompts)
    ]
    answers = read(rows, is_judged=True)
    targets = [[e.labels[e.labels != IGNORE].tolist() for e in answers[n].examples]
               for n in range(len(rows))]  # fmt: skip
    for number, (_, other) in enumerate(targets):
        after = [(number + more) % len(rows) for more in range(1, len(rows))]
        another = [n for n in after if prompts[n] != prompts[number]] or after
        assert other == targets[another[0]][0]


@pytest.mark.parametrize(
    ("rows", "is_judged", "says"),
    [
        ([{"prompt": "a", "completion": "b", "label": True}], False, "--loss.kind kto"),
        ([{"prompt": "a", "completion": "b", "label": "yes"}] * 2, True, "'label' must be true"),
        ([{"prompt": "a", "completion": "b", "label": True}] * 2, True, "no answer is bad"),
        ([{"prompt": "a", "completion": "b", "label": False}] * 2, True, "no answer is good"),
        ([PAIR], True, "has one record"),
        ([{"prompt": "a", "answers": ["b", "b"]}], False, "no ranking has two answers that differ"),
    ],
)
def test_what_gives_nothing_to_compare_is_refused(read, rows, is_judged, says):
    with pytest.raises(DataError, match=says):
        read(rows, is_judged=is_judged)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "ipo", "label_smoothing": 0.1}, "--loss.label_smoothing 0.1: is of dpo, simpo"),
        ({"kind": "orpo", "sft_coefficient": 1.0}, "--loss.sft_coefficient 1.0"),
        ({"kind": "simpo", "length_normalised": True}, "--loss.length_normalised true"),
        ({"margin": 0.5}, "--loss.margin 0.5: is of simpo, and loss.kind is dpo"),
        ({"kind": "orpo", "bad_weight": 2.0}, "--loss.bad_weight 2.0: is of kto"),
    ],
)
def test_a_number_of_another_loss_is_refused(values, says):
    with pytest.raises(ConfigError, match=says):
        PreferenceLossConfig(**values)


def test_a_fingerprint_is_of_every_row(read):
    one, same = read([RANKING, PAIR]).fingerprint(), read([RANKING, PAIR]).fingerprint()
    others = [
        read([PAIR, RANKING]),
        read([RANKING, PAIR | {"rejected": "the red rec"}]),
        read([RANKING, PAIR], "prefix"),
        read([RANKING, PAIR], is_judged=True),
    ]
    assert one == same
    assert len({one, *(other.fingerprint() for other in others)}) == 5
