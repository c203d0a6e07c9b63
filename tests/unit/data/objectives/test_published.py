"""Against ports of the published procedures, step by step as their code does it.

Source: t5/data/preprocessors.py of google-research/text-to-text-transfer-transformer:
``random_spans_noise_mask``, ``noise_span_to_unique_sentinel``, ``random_spans_helper``.
"""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megalite.data.corpus.packed_documents import Room, longest_document
from megalite.data.objectives.mixture import U_PALM, UL2
from megalite.data.objectives.spans import (
    poisson_lengths,
    random_noise_mask,
    random_segments,
    scatter,
)
from tests.unit.data.objectives.cases import (
    DOCUMENTS,
    END,
    SEEDS,
    STRUCTURES,
    VOCABULARY,
    body,
    generator,
    source_and_target,
    span_corruption,
)


def t5_segmentation(num_items: int, num_segments: int, random) -> np.ndarray:
    first_in_segment = np.pad(
        random.permutation(np.arange(num_items - 1) < num_segments - 1).astype(int), [[1, 0]]
    )
    segment_id = np.cumsum(first_in_segment)
    return np.bincount(segment_id, minlength=num_segments)


def t5_noise_mask(length: int, density: float, mean: float, random) -> np.ndarray:
    orig_length = length
    length = max(length, 2)
    num_noise_tokens = int(np.round(np.float32(length) * np.float32(density)))
    num_noise_tokens = min(max(num_noise_tokens, 1), length - 1)
    num_noise_spans = max(int(np.round(np.float32(num_noise_tokens) / np.float32(mean))), 1)
    num_nonnoise_tokens = length - num_noise_tokens
    noise = t5_segmentation(num_noise_tokens, num_noise_spans, random)
    nonnoise = t5_segmentation(num_nonnoise_tokens, num_noise_spans, random)
    interleaved = np.reshape(np.stack([nonnoise, noise], axis=1), [num_noise_spans * 2])
    span_starts = np.cumsum(interleaved)[:-1]
    span_start_indicator = np.zeros(length, dtype=int)
    span_start_indicator[span_starts] = 1
    span_num = np.cumsum(span_start_indicator)
    return np.equal(span_num % 2, 1)[:orig_length]


def t5_to_sentinels(tokens: np.ndarray, noise_mask: np.ndarray, vocab_size: int) -> np.ndarray:
    prev_token_is_noise = np.pad(noise_mask[:-1], [[1, 0]])
    first_noise_tokens = noise_mask & ~prev_token_is_noise
    subsequent_noise_tokens = noise_mask & prev_token_is_noise
    sentinel = vocab_size - np.cumsum(first_noise_tokens)
    tokens = np.where(first_noise_tokens, sentinel, tokens)
    return tokens[~subsequent_noise_tokens]


@settings(max_examples=100, deadline=None)
@example(350, (0.15, 3.0), 0)  # half a noise token in double precision, more in single
@given(st.integers(2, 700), st.sampled_from([(0.15, 3.0), (0.5, 3.0), (0.15, 64.0)]), SEEDS)
def test_the_noise_mask_is_t5s(length, noise, seed):
    ours = random_noise_mask(length, *noise, generator(seed))
    assert ours.tolist() == t5_noise_mask(length, *noise, generator(seed)).tolist()


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS, SEEDS)
def test_span_corruption_is_t5s(document, seed):
    structure, tokens = STRUCTURES["encoder-decoder"], np.array(body(document))
    made = span_corruption(structure)(document, generator(seed))
    mask = t5_noise_mask(len(tokens), 0.15, 3.0, generator(seed))
    inputs = [*t5_to_sentinels(tokens, mask, VOCABULARY), END]
    targets = [*t5_to_sentinels(tokens, ~mask, VOCABULARY), END]
    assert source_and_target(made, structure) == (inputs, targets)


def t5_lengths(inputs_length: int, density: float, mean: float) -> tuple[int, int]:
    def for_tokens(length: int) -> tuple[int, int]:
        num_noise_tokens = int(round(length * density))
        num_noise_spans = int(round(num_noise_tokens / mean))
        return (
            length - num_noise_tokens + num_noise_spans + 1,
            num_noise_tokens + num_noise_spans + 1,
        )

    tokens_length = inputs_length
    while for_tokens(tokens_length + 1)[0] <= inputs_length:
        tokens_length += 1
    return tokens_length, for_tokens(tokens_length)[1]


@pytest.mark.parametrize("inputs", [64, 256, 512, 1024])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 8.0)])
def test_a_full_row_is_as_long_as_t5s(inputs, density, mean):
    objective = span_corruption(STRUCTURES["encoder-decoder"], density, mean)
    tokens, targets = t5_lengths(inputs, density, mean)
    assert longest_document(objective, Room(10_000, inputs)) == tokens
    decoder, encoder = objective.sizes(np.array([tokens]))
    assert (int(decoder[0]), int(encoder[0])) == (targets, inputs)


def test_t5_was_trained_on_568_tokens_as_512_and_114():
    assert t5_lengths(512, 0.15, 3.0) == (568, 114)


def test_every_segmentation_is_equally_likely():
    draws = [tuple(random_segments(5, 3, generator(seed)).tolist()) for seed in range(3000)]
    counts = {cut: draws.count(cut) for cut in set(draws)}
    assert len(counts) == 6
    assert all(abs(count - 500) < 100 for count in counts.values())


def test_spans_are_poisson_and_stand_everywhere_apart():
    lengths, firsts = [], []
    for seed in range(400):
        random = generator(seed)
        drawn = poisson_lengths(60, 3.0, random, shortest=0, most_spans=60)
        assert drawn.sum() == 60
        starts = scatter(200, drawn, random)
        assert (starts[1:] > (starts + drawn)[:-1]).all()
        assert (starts + drawn)[-1] <= 200
        lengths += drawn[:-1].tolist()
        firsts.append(int(starts[0]))
    assert abs(np.mean(lengths) - 3.0) < 0.1
    assert abs(np.var(lengths) - 3.0) < 0.2
    assert min(firsts) == 0
    assert max(firsts) > 15


def test_ul2_is_its_table_and_u_palm_its_mixture():
    spans = {(d.mode[0], d.noise, d.mean_span) for d in UL2 if d.mode != "sequential"}
    regular = {("r", 0.15, 3), ("r", 0.15, 8)}
    assert spans == regular | {("e", 0.5, 3), ("e", 0.5, 8), ("e", 0.15, 64), ("e", 0.5, 64)}
    assert [d.noise for d in UL2 if d.mode == "sequential"] == [0.25]
    assert {d.mode: d.weight for d in U_PALM} == {
        "regular": 0.25,
        "sequential": 0.5,
        "extreme": 0.25,
    }
