"""Random spans of a document."""

import numpy as np

from megalite.data.arrays import Bool, Int64

Random = np.random.Generator


def noise_counts(lengths: Int64, density: float, mean_span: float) -> tuple[Int64, Int64]:
    """Noise tokens and noise spans of documents of these lengths (at least 2), as in T5.

    Source: Raffel et al. 2020, arXiv:1910.10683; ``random_spans_noise_mask`` of
    google-research/text-to-text-transfer-transformer, t5/data/preprocessors.py.
    """
    single = np.float32  # T5's precision, which decides how half a token is rounded
    noise = np.round(lengths.astype(single) * single(density)).astype(np.int64)
    noise = np.clip(noise, 1, lengths - 1)
    spans = np.maximum(np.round(noise.astype(single) / single(mean_span)).astype(np.int64), 1)
    return noise, np.minimum(spans, lengths - noise)


def random_noise_mask(length: int, density: float, mean_span: float, random: Random) -> Bool:
    """Which tokens are noise: bool [length].

    Spans of other tokens and of noise alternate; the last one is noise. All masks with these
    numbers of noise tokens and spans are equally likely. A single token is never noise.

    Source: see :func:`noise_counts`.
    """
    if length == 1:
        return np.zeros(1, dtype=bool)
    counts = noise_counts(np.array(length), density, mean_span)
    noise, spans = int(counts[0]), int(counts[1])
    noise_lengths = random_segments(noise, spans, random)
    other_lengths = random_segments(length - noise, spans, random)
    lengths = np.stack((other_lengths, noise_lengths), 1).ravel()
    return np.repeat(np.tile((False, True), spans), lengths)


def random_segments(items: int, segments: int, random: Random) -> Int64:
    """Lengths of ``segments`` non-empty parts of ``items``, each way equally likely."""
    is_first = random.permutation(np.arange(items - 1) < segments - 1)
    bounds = np.concatenate(([0], np.flatnonzero(is_first) + 1, [items]))
    return np.diff(bounds)


def replace_spans(tokens: Int64, mask: Bool, marks: Int64) -> Int64:
    """Replace each masked span by one mark, the n-th of the document by ``marks[n]``."""
    is_first = mask & ~np.concatenate(([False], mask[:-1]))
    marked = np.where(is_first, marks[np.maximum(np.cumsum(is_first) - 1, 0)], tokens)
    return marked[~mask | is_first]


def poisson_lengths(
    total: int, mean: float, random: Random, *, shortest: int, most_spans: int
) -> Int64:
    """Span lengths drawn from a Poisson distribution until they cover ``total`` tokens.

    Args:
        total: tokens to cover; the last span is cut to cover no more.
        mean: of the distribution.
        random: the source of draws.
        shortest: shorter draws are discarded.
        most_spans: most spans, even if they cover less than ``total``.

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


def scatter(length: int, lengths: Int64, random: Random) -> Int64:
    """Starts of spans of these lengths, in this order, so that none touches another.

    Args:
        length: of the document; there may be one span more than tokens outside of spans.
        lengths: int64 [spans]; an empty span stands between two tokens.
        random: the source of draws; each way is equally likely.

    Returns:
        int64 [spans].
    """
    kept = length - int(lengths.sum())
    gaps = np.sort(random.choice(kept + 1, len(lengths), replace=False))
    return gaps + np.cumsum(lengths) - lengths


def sentences(tokens: Int64, is_end: Bool) -> Int64:
    """Bounds of a document's sentences: int64 [sentences + 1], 0 first and the length last.

    Args:
        tokens: int64 [n].
        is_end: bool [V], tokens that end a sentence; tokens beyond V don't.
    """
    known = np.flatnonzero(tokens < len(is_end))
    ends = known[is_end[tokens[known]]] + 1
    return np.unique(np.concatenate(([0], ends, [len(tokens)])))
