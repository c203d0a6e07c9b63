"""Input and targets rebuild the document; a sample is a function of the document and the seed."""

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings

from megalite.data.objectives.prefix_lm import PrefixLM
from tests.unit.data.objectives.cases import (
    ALL_BLANKS,
    BLANKS,
    DOCUMENTS,
    END,
    FULL_STOP,
    MASK,
    MODE,
    NOISES,
    OBJECTIVES,
    SEEDS,
    SENTINELS,
    STRUCTURES,
    blank_infilling,
    body,
    denoising,
    generator,
    mixture,
    source_and_target,
    span_corruption,
)

FEW = settings(max_examples=60, deadline=None)
by_structure = pytest.mark.parametrize("kind", STRUCTURES)


def same(a, b) -> bool:
    """Equal arrays, of equal types, in equal places of two examples."""
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return (a is None and b is None) or (a.dtype == b.dtype and np.array_equal(a, b))


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=15, deadline=None)
@given(document=DOCUMENTS, seed=SEEDS)
def test_a_sample_is_a_function_of_document_and_seed_and_fits_its_size(name, document, seed):
    objective, _ = OBJECTIVES[name]
    example = objective(document, generator(seed))
    assert same(example, objective(document, generator(seed)))
    decoder, encoder = objective.sizes(np.array([len(document)]))
    assert len(example) <= decoder[0]
    assert example.encoder_length <= encoder[0]


def without_sentinels(source: list[int], target: list[int]) -> list[int]:
    """The document: each sentinel of the source replaced by its span of the target."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token in SENTINELS:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    assert [t for t in source if t in SENTINELS] == SENTINELS[: len(spans)].tolist()
    return [t for token in source for t in spans.get(token, [token])]


@by_structure
@FEW
@given(document=DOCUMENTS, seed=SEEDS)
def test_span_corruption(kind, document, seed):
    structure = STRUCTURES[kind]
    example = span_corruption(structure)(document, generator(seed))
    source, target = source_and_target(example, structure)
    assert source[-1] == target[-1] == END
    assert without_sentinels(source[:-1], target[:-1]) == body(document)


@by_structure
@FEW
@given(document=DOCUMENTS, seed=SEEDS)
def test_prefix_lm(kind, document, seed):
    structure = STRUCTURES[kind]
    source, target = source_and_target(PrefixLM(structure)(document, generator(seed)), structure)
    assert source
    assert source + target == document.tolist()


@by_structure
@FEW
@given(document=DOCUMENTS, seed=SEEDS)
def test_a_given_split_ends_the_prefix(kind, document, seed):
    structure = STRUCTURES[kind]
    example = PrefixLM(structure, FULL_STOP)(document, generator(seed))
    tokens = document.tolist()
    if FULL_STOP in tokens[:-1]:
        split = tokens.index(FULL_STOP) + 1
        assert source_and_target(example, structure) == (tokens[:split], tokens[split:])
    else:
        learned = example.labels[example.labels != -100].tolist()
        has_lead = structure.is_encoder_decoder or structure.blank is not None
        assert learned == tokens[0 if has_lead else 1 :]


@by_structure
@FEW
@given(document=DOCUMENTS, seed=SEEDS)
def test_a_mixture_opens_with_its_mode(kind, document, seed):
    structure = STRUCTURES[kind]
    source, target = source_and_target(mixture(structure)(document, generator(seed)), structure)
    assert source.pop(0) == MODE
    is_corrupted = target[0] in SENTINELS
    if is_corrupted:
        assert without_sentinels(source[:-1], target[:-1]) == body(document)
    else:
        assert source + target == document.tolist()


@pytest.mark.parametrize("noise", NOISES)
@FEW
@given(document=DOCUMENTS, seed=SEEDS)
def test_denoising_learns_the_document_and_reads_a_noised_one(noise, document, seed):
    structure = STRUCTURES["encoder-decoder"]
    example = denoising(noise)(document, generator(seed))
    source, target = source_and_target(example, structure)
    whole = body(document)
    assert target == [*whole, END]
    assert source.pop() == END
    assert NOISE_HOLDS[noise](source, whole)


def matches(source: list[int], whole: list[int]) -> bool:
    """Whether some texts in place of the masks give the document."""
    pattern = "".join(".*" if token == MASK else re.escape(chr(256 + token)) for token in source)
    return bool(re.fullmatch(pattern, "".join(chr(256 + token) for token in whole), re.DOTALL))


def sentences_of(tokens: list[int]) -> list[tuple[int, ...]]:
    parts: list[tuple[int, ...]] = [()]
    for token in tokens:
        parts[-1] += (token,)
        if token == FULL_STOP:
            parts.append(())
    return [part for part in parts if part]


def is_permuted(source: list[int], whole: list[int]) -> bool:
    """Whether the source is the document's sentences; the last of it may not end in a stop."""
    rest, parts = list(source), sorted(sentences_of(whole), key=len, reverse=True)
    return sorted(rest) == sorted(whole) and all(
        any(tuple(rest[i : i + len(part)]) == part for i in range(len(rest))) for part in parts
    )


def is_subsequence(source: list[int], whole: list[int]) -> bool:
    rest = iter(whole)
    return all(token in rest for token in source)


NOISE_HOLDS = {
    "bart": lambda source, whole: len(source) <= len(whole) and source.count(MASK) >= 1,
    "infill": lambda source, whole: (
        matches(source, whole) and len(source) <= len(whole) and MASK in source
    ),
    "permute": is_permuted,
    "mask": lambda source, whole: (
        len(source) == len(whole)
        and source.count(MASK) == round(0.3 * len(whole))
        and all(a in (b, MASK) for a, b in zip(source, whole, strict=True))
    ),
    "delete": lambda source, whole: (
        is_subsequence(source, whole) and len(source) == len(whole) - round(0.3 * len(whole))
    ),
    "rotate": lambda source, whole: any(whole[i:] + whole[:i] == source for i in range(len(whole))),
}


@pytest.mark.parametrize("blanks", ALL_BLANKS)
@FEW
@given(document=DOCUMENTS, seed=SEEDS)
def test_blanks_filled_by_their_spans_are_the_document(blanks, document, seed):
    example = blank_infilling(blanks)(document, generator(seed))
    count = int((example.decoder.positions[:, 1] == 0).sum())
    source = example.decoder.tokens[:count].tolist()
    masks = {BLANKS.span, BLANKS.sentence, BLANKS.document_end}
    assert example.decoder.positions[:count, 0].tolist() == list(range(count))
    filled: dict[int, list[int]] = {}
    for row in range(count, len(example)):
        place, number = example.decoder.positions[row].tolist()
        token, label = int(example.decoder.tokens[row]), int(example.labels[row])
        assert source[place] in masks
        if number == 1:
            assert token == BLANKS.start
            filled[place] = []
        else:
            assert len(filled[place]) == number - 2
            filled[place].append(token)
        ends = row + 1 == len(example) or example.decoder.positions[row + 1, 1] == 1
        assert label == (BLANKS.end if ends else example.decoder.tokens[row + 1])
    assert sorted(filled) == [i for i, token in enumerate(source) if token in masks]
    assert (example.labels[:count] == -100).all()
    rebuilt = [t for i, token in enumerate(source) for t in filled.get(i, [token])]
    assert rebuilt == body(document)


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_a_document_of_one_token_has_one_end(name, seed):
    """T5 leaves such a document as it is: its target is a sentinel without a span."""
    (objective, structure), document = OBJECTIVES[name], np.array([FULL_STOP, END])
    example = objective(document, generator(seed))
    decoder, encoder = objective.sizes(np.array([2]))
    assert len(example) <= decoder[0]
    assert example.encoder_length <= encoder[0]
    learned = example.labels[example.labels != -100].tolist()
    assert learned[-1] in (END, BLANKS.end)
    assert END not in learned[:-1]
    if name.startswith("span_corruption"):
        source, target = source_and_target(example, structure)
        assert [token for token in source if token != MODE] == [FULL_STOP, END]
        assert target == [SENTINELS[0], END]
