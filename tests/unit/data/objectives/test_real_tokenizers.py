"""Every objective of real text, by a byte-level BPE and by SentencePiece models."""

import json

import numpy as np
import pytest

from megalite.data.config import CorpusConfig
from megalite.data.corpus.packed_documents import PackedDocuments, Room
from megalite.data.corpus.store import TokenStore
from megalite.data.objectives.choice import choose_objective
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import DataError
from tests.unit.data.conftest import command, write_jsonl
from tests.unit.data.objectives.cases import STRUCTURES, generator, source_and_target
from tests.unit.data.tokenizers.conftest import lines, train_sentencepiece

SENTINELS = [f"<extra_id_{number}>" for number in range(20)]
SPECIAL = ["[MASK]", "[sMASK]", "[gMASK]", "<sop>", "<eop>", "<mask>", "[NLU]", "[S2S]", "[NLG]"]
ROOM = 64
DOCUMENTS = [f"{line}. {line}!" for line in lines(40)]
OBJECTIVES = {
    "prefix_lm": ("encoder-decoder", "causal", "prefix", "glm"),
    "span_corruption": ("encoder-decoder", "causal", "prefix", "glm"),
    "denoising": ("encoder-decoder",),
    "blank_infilling": ("glm", "causal"),
    "ul2": ("encoder-decoder", "prefix"),
    "u_palm": ("causal",),
}
CASES = [(name, kind) for name, kinds in OBJECTIVES.items() for kind in kinds]


@pytest.fixture(scope="module", params=["folder", "unigram", "bpe"])
def prepared(request, tmp_path_factory):
    """A tokenizer with all special tokens, and the store of the documents that it made."""
    folder = tmp_path_factory.mktemp(request.param)
    source = write_jsonl(folder / "text.jsonl", [{"text": text} for text in DOCUMENTS])
    path = folder / "own"
    if request.param == "folder":
        words = ["tokenizer", "train", "--source", f'["{source}"]', "--vocab_size", 340]
        words += ["--sentinels", len(SENTINELS), "--special_tokens", json.dumps(SPECIAL)]
        assert command(*words, "--output", path) == 0
    else:
        symbols = [*SENTINELS, *SPECIAL, ".", "!"]
        path = train_sentencepiece(
            folder, request.param, user_defined_symbols=symbols, vocab_size=120
        )
    words = ["data", "prepare", "--source", f'["{source}"]', "--tokenizer", path]
    assert command(*words, "--output", folder / "store", "--processes", 1) == 0
    return load_tokenizer(path), TokenStore(folder / "store")


def without_sentinels(source: list[int], target: list[int], sentinels: list[int]) -> list[int]:
    """The document: each sentinel of the source replaced by its span of the target."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [t for token in source for t in spans.get(token, [token])]


def filled(example, structure, tokenizer) -> list[int]:
    """The document: each mask of the corrupted text replaced by its span."""
    tokens, labels = example.decoder.tokens.tolist(), example.labels.tolist()
    masks = {tokenizer.find(token) for token in ("[MASK]", "[sMASK]", "[gMASK]")}
    start, end = tokenizer.find("<sop>"), tokenizer.find("<eop>")
    firsts = [row for row, token in enumerate(tokens) if token == start]
    spans = [labels[row : labels.index(end, row)] for row in firsts]
    if structure.axes == 2:  # the first axis names the mask that a span fills
        place = dict(zip(example.decoder.positions[firsts, 0].tolist(), spans, strict=True))
    else:
        assert len(firsts) == 1
        place = {next(i for i, token in enumerate(tokens) if token in masks): spans[0]}
    return [t for row, token in enumerate(tokens[: firsts[0]]) for t in place.get(row, [token])]


def text_of(name, example, structure, tokenizer) -> str:
    """The document that a model would read and learn from an example."""
    if name == "blank_infilling":
        return tokenizer.decode(filled(example, structure, tokenizer))
    source, target = source_and_target(example, structure)
    sentinels = [tokenizer.find(token) for token in SENTINELS]
    if name in ("ul2", "u_palm"):
        assert source.pop(0) in [tokenizer.find(token) for token in ("[NLU]", "[S2S]", "[NLG]")]
    if name == "denoising":
        return tokenizer.decode(target)
    if target[0] in sentinels:
        return tokenizer.decode(without_sentinels(source, target, sentinels))
    return tokenizer.decode(source + target)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_source_and_target_together_are_the_text(name, kind, prepared):
    (tokenizer, store), structure = prepared, STRUCTURES[kind]
    weights = {"spans_weight": float(kind == "glm"), "document_weight": float(kind != "glm")}
    data = CorpusConfig(
        objective=name, sequence_length=ROOM, encoder_length=ROOM, blank_infilling=weights
    )
    objective = choose_objective(data, tokenizer, structure)
    for number in range(0, len(store), 4):
        tokens = store[number].astype(np.int64)
        example = objective(tokens, generator(number))
        assert text_of(name, example, structure, tokenizer) == DOCUMENTS[number]
    packed = PackedDocuments(store, objective, Room(2 * ROOM, 2 * ROOM), seed=1)
    assert all(0 < len(packed[number]) <= 2 * ROOM for number in range(len(packed)))


def test_two_kinds_of_blanks_may_share_a_mask(prepared):
    tokenizer, store = prepared
    blanks = {"sentences_token": "[gMASK]", "sentences_weight": 1.0, "spans_weight": 0.0}
    data = CorpusConfig(objective="blank_infilling", sequence_length=ROOM, blank_infilling=blanks)
    objective = choose_objective(data, tokenizer, STRUCTURES["glm"])
    mask = tokenizer.find("[gMASK]")
    assert (objective.special.sentence, objective.special.document_end) == (mask, mask)
    assert mask in objective(store[0].astype(np.int64), generator(0)).decoder.tokens


def test_a_model_without_sentinels_is_refused_in_one_line(tmp_path):
    path = train_sentencepiece(tmp_path, "unigram", user_defined_symbols=[])
    data = CorpusConfig(objective="span_corruption", sequence_length=ROOM, encoder_length=ROOM)
    with pytest.raises(DataError, match="unigram.model: lacks .*: <extra_id_0> to") as caught:
        choose_objective(data, load_tokenizer(path), STRUCTURES["encoder-decoder"])
    assert "\n" not in str(caught.value)
