"""Special tokens come from the tokenizer; one that lacks them is refused with what adds them."""

import json

import numpy as np
import pytest

from megalite.cli import main
from megalite.data.config import CorpusConfig
from megalite.data.objectives.choice import choose_objective, sentence_ends
from megalite.data.objectives.mixture import Mixture
from megalite.data.objectives.span_corruption import SpanCorruption
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import ConfigError, DataError
from tests.unit.data.objectives.cases import STRUCTURES

TEXT = "The cat sees a dog. Does it? It does!\nOne more line, and the end of it.\n"
SPECIAL = ("[MASK]", "[gMASK]", "<sop>", "<eop>", "<mask>", "[NLU]", "[S2S]", "[NLG]")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "text.txt").write_text(TEXT * 20)

    def made(name: str, *more: str):
        words = ["tokenizer", "train", "--source", f'["{folder}/text.txt"]']
        assert main([*words, "--output", str(folder / name), "--vocab_size", "330", *more]) == 0
        return load_tokenizer(folder / name)

    return made


@pytest.fixture(scope="module")
def full(make):
    return make("full", "--sentinels", "20", "--special_tokens", json.dumps(SPECIAL))


@pytest.fixture(scope="module")
def bare(make):
    return make("bare")


def test_sentinels_descend_from_the_top_of_the_vocabulary(full):
    ids = [full.find(f"<extra_id_{n}>") for n in range(20)]
    assert ids == [full.vocab_size - 1 - n for n in range(20)]
    text = "The cat<extra_id_1> it<extra_id_0>"
    assert [i for i in full.encode(text) if i in ids] == [ids[1], ids[0]]
    assert full.decode(full.encode(text)) == "The cat it"


def test_sentences_end_where_their_text_says(full):
    ends = sentence_ends(full)
    tokens = np.array(full.encode(TEXT))
    texts = [full.decode([int(token)]) for token in tokens[ends[tokens]]]
    assert [text[-1] for text in texts] == list(".?!\n.\n")
    assert not ends[[full.find(token) for token in SPECIAL]].any()


OBJECTIVES = {
    "span_corruption": ("encoder-decoder", "<extra_id_0> to <extra_id_4>", "--sentinels 5"),
    "denoising": ("encoder-decoder", '"<mask>"', "--special_tokens '[\"<mask>\"]'"),
    "blank_infilling": ("glm", '"[MASK]", "[gMASK]", "<sop>", "<eop>"', "--special_tokens"),
    "u_palm": ("prefix", '"[NLU]"', "--special_tokens"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_tokenizer_without_the_tokens_is_refused_in_one_line(name, bare, full):
    kind, names, command = OBJECTIVES[name]
    data = CorpusConfig(objective=name, sequence_length=100, encoder_length=100)
    with pytest.raises(DataError) as caught:
        choose_objective(data, bare, STRUCTURES[kind])
    said = str(caught.value)
    assert "\n" not in said
    assert f"special tokens of data.objective {name}: {names}" in said
    assert f"megalite tokenizer train {command}" in said
    choose_objective(data, full, STRUCTURES[kind])


def test_longer_documents_need_more_sentinels(full):
    data = CorpusConfig(objective="span_corruption", sequence_length=300, encoder_length=1000)
    with pytest.raises(DataError, match=r"lacks \d+ .*: <extra_id_20> to .* shorter sequences"):
        choose_objective(data, full, STRUCTURES["encoder-decoder"])


def test_a_mixture_takes_the_modes_of_its_config(full):
    mixture = {"regular_token": "", "sequential_token": "[S2S]", "extreme_token": "[NLG]"}
    data = CorpusConfig(objective="ul2", sequence_length=60, mixture=mixture)
    chosen = choose_objective(data, full, STRUCTURES["prefix"])
    assert isinstance(chosen, Mixture)
    openings = [part.opening for part in chosen.parts]
    noise = [part.noise for part in chosen.parts if isinstance(part, SpanCorruption)]
    assert noise == [0.15, 0.15, 0.5, 0.5, 0.15, 0.5]
    extreme = (full.find("[NLG]"),)
    assert openings == [(), (), (full.find("[S2S]"),), *[extreme] * 4]


@pytest.mark.parametrize(
    ("name", "kind"), [("denoising", "prefix"), ("blank_infilling", "encoder-decoder")]
)
def test_an_objective_of_another_structure_is_refused(name, kind, full):
    with pytest.raises(ConfigError, match=f"data.objective {name}: needs"):
        choose_objective(CorpusConfig(objective=name), full, STRUCTURES[kind])


def test_tokens_of_another_tokenizer_end_no_sentence(full):
    """A store of another tokenizer is refused by the model's size; objectives read it till then."""
    data = CorpusConfig(objective="denoising", sequence_length=60)
    objective = choose_objective(data, full, STRUCTURES["encoder-decoder"])
    tokens = np.array([70_000, full.encode("Yes.")[-1], 80_000, 90_000])
    example = objective(tokens, np.random.default_rng(0))
    assert example.labels[:-1].tolist() == tokens.tolist()
