"""Random spans of a document."""

import numpy as np

from megalite.data.example import Array

Random = np.random.Generator


def noise_counts(lengths: Array, density: float, mean_span: float) -> tuple[Array, Array]:
    """Noise tokens and noise spans of documents of these lengths (each >= 2), as T5 counts them.

    Source: Raffel et al. 2020, arXiv:1910.10683; ``random_spans_noise_mask`` of
    google-research/text-to-text-transfer-transformer, t5/data/preprocessors.py.
    """
    single = np.float32  # theirs, which decides what is half a token
    noise = np.round(lengths.astype(single) * single(density)).astype(np.int64)
    noise = np.clip(noise, 1, lengths - 1)
    spans = np.maximum(np.round(noise.astype(single) / single(mean_span)).astype(np.int64), 1)
    return noise, np.minimum(spans, lengths - noise)


def random_noise_mask(length: int, density: float, mean_span: float, random: Random) -> Array:
    """Which tokens are noise: bool [length], spans of noise and of the rest in turn, noise last.

    All masks with these numbers of noise tokens and spans are equally likely.

    Source: see :func:`noise_counts`.
    """
    counts = noise_counts(np.array(length), density, mean_span)
    noise, spans = int(counts[0]), int(counts[1])
    noise_lengths = random_segments(noise, spans, random)
    other_lengths = random_segments(length - noise, spans, random)
    lengths = np.stack((other_lengths, noise_lengths), 1).ravel()
    return np.repeat(np.tile((False, True), spans), lengths)


def random_segments(items: int, segments: int, random: Random) -> Array:
    """Cut ``items`` into ``segments`` parts, none empty, each way equally likely: int64 [parts]."""
    is_first = random.permutation(np.arange(items - 1) < segments - 1)
    bounds = np.concatenate(([0], np.flatnonzero(is_first) + 1, [items]))
    return np.diff(bounds)


def replace_spans(tokens: Array, mask: Array, marks: Array) -> Array:
    """Put one mark in place of each masked span: the n-th in the document gets ``marks[n]``."""
    is_first = mask & ~np.concatenate(([False], mask[:-1]))
    marked = np.where(is_first, marks[np.maximum(np.cumsum(is_first) - 1, 0)], tokens)
    return marked[~mask | is_first]


def poisson_lengths(
    total: int, mean: float, random: Random, *, shortest: int, most_spans: int
) -> Array:
    """Span lengths drawn from a Poisson distribution until they cover ``total`` tokens.

    Args:
        total: tokens to cover; the last span is cut so that no more are.
        mean: of the distribution.
        random: the draws.
        shortest: shorter draws don't count.
        most_spans: covers less where these are not enough.

    Returns:
        int64 [spans].
    """
    lengths = random.poisson(mean, 4 * most_spans + 16)
    lengths = lengths[lengths >= shortest][:most_spans].astype(np.int64)
    ends = np.cumsum(lengths)
    count = int(np.searchsorted(ends, total)) + 1
    lengths = lengths[:count]
    if count <= len(ends):
        lengths[-1] -= ends[count - 1] - total
    return lengths


def scatter(length: int, lengths: Array, random: Random) -> Array:
    """Where spans of these lengths start, in their order, so that none touches another.

    Args:
        length: of the document; ``lengths`` may have one more entry than tokens it leaves.
        lengths: int64 [spans]; an empty span stands between two tokens.
        random: the draws; each way is equally likely.

    Returns:
        int64 [spans].
    """
    kept = length - int(lengths.sum())
    gaps = np.sort(random.choice(kept + 1, len(lengths), replace=False))
    return gaps + np.cumsum(lengths) - lengths


def sentences(tokens: Array, is_end: Array) -> Array:
    """Bounds of a document's sentences: int64 [sentences + 1], 0 first and the length last.

    Args:
        tokens: int64 [n].
        is_end: bool [V], tokens that end a sentence.
    """
    ends = np.flatnonzero(is_end[tokens]) + 1
    return np.unique(np.concatenate(([0], ends, [len(tokens)])))
